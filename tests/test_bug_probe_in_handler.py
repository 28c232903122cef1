"""A signal handler may ask ``probe()`` while its own thread is in the middle of one."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import signal, uring_trio
from uring_trio import _kernel
ask = _kernel.probe_kernel

def interrupted(*args):
    _kernel.probe_kernel = ask
    signal.raise_signal(signal.SIGUSR1)
    return ask(*args)

_kernel.probe_kernel = interrupted
signal.signal(signal.SIGUSR1, lambda *_: print(uring_trio.probe().backend))
print(uring_trio.probe().backend)
"""
TIMEOUT_S = 20


def test_both_are_answered() -> None:
    command = [sys.executable, "-c", CODE]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    inner, outer = printed.stdout.split()
    assert inner == outer
