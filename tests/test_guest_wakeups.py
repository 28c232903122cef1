"""No wake-up is lost: every kind of descriptor, in guest runs under two hosts, and without."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import builds
import harness
import pytest
from guest_tools import HOSTS
from wakeup_kinds import KINDS, SIGNAL, run_together

ROUNDS = 1000 if builds.slower() == 1 else 100  # a race is seen where it does not come true
PROGRAM = Path(__file__).with_name("wakeup_kinds.py")
# The longest takes 5 s on two busy cores.
PROGRAM_TIMEOUT_S = max(60.0, 15 * harness.SLOWNESS)

# Its signal must be blocked in all threads, also in those that trio keeps from other tests.
IN_A_PROCESS_OF_ITS_OWN = {"signalfd"}


def run_program(backend: str, host: str, kinds: list[str]) -> None:
    program = subprocess.run(
        [sys.executable, str(PROGRAM), backend, host, str(ROUNDS), *kinds],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )
    assert program.returncode == 0, program.stdout
    assert program.stdout == "all came\n"


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", KINDS)
def test_alone(backend: str, kind: str, host: str) -> None:
    if kind in IN_A_PROCESS_OF_ITS_OWN:
        run_program(backend, host, [kind])
        return
    done = HOSTS[host](backend, lambda: run_together([kind], ROUNDS))
    assert done == {kind: ROUNDS}


@pytest.mark.parametrize(
    # `make test` has one host; the others are the same helper under another loop.
    "host",
    [host if host == "host loop" else pytest.param(host, marks=pytest.mark.long) for host in HOSTS],
)
def test_all_beside_each_other(backend: str, host: str) -> None:
    run_program(backend, host, list(KINDS))


def test_the_signal_is_nobodys() -> None:
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL
