"""A program that a test starts: bounded, told whole, and ended together with what it has started.

- It has a limit, and what it said until then is not lost: it is written to a file, so that
  nobody who holds a pipe open can have us wait.
- It has a session of its own, which is ended with it. What has left that session must see to
  its own end; `end_with` does, for processes that are forked from one.
- A test that is ended itself, by its own limit or by a signal that no Python sees, cannot end
  what it has started. So a program of ours asks the kernel for that: `end_with_parent`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING, NamedTuple

import machine_speed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# In the environment: who is to be outlived by no program that reads this.
PARENT = "URING_TRIO_TESTS_PARENT"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

_libc = ctypes.CDLL(None)


class Done(NamedTuple):
    """How a program ended: its status, negative if a signal has killed it; None: it hung."""

    status: int | None
    output: str

    def last_line(self) -> str:
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "")


def end_with(parent: int) -> None:
    """Have the kernel kill this process when *parent*, that has forked it, has ended."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before we could ask
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent() -> None:
    """For a program: end with the test that has started it, if one has."""
    if os.environ.get(PARENT) == str(os.getppid()):
        end_with(os.getppid())


def run(
    command: Sequence[object],
    limit_s: float,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a program for at most so many seconds of an idle machine: its end and all it said."""
    with tempfile.TemporaryFile() as said:
        program = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **(environment or {}), PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = program.wait(limit_s * machine_speed.slowness())
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what it has started
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        said.seek(0)
        return Done(status, said.read().decode(errors="replace"))
