"""A KeyboardInterrupt at any line of ours: it ends the run in order, as it does on stock trio.

trio brings one to the main task, unless the code that it finds is a user's own: then it is raised
right there. So what is ours must not look like a user's where it has noted one half of
something: an operation without whoever it belongs to, a task that is woken and does not know it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cut_off
import harness
import pytest
import scenarios
import trio
from exception_groups import leaves
from marks import needs_ring
from scenarios import SCENARIOS, Course, evenly

import uring_trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# Between an accept and its stream nobody has the socket yet: an interrupt of a scenario's own code
# there, such as in the stream's making, leaves it to the garbage collector, as on stock trio.
pytestmark = [needs_ring, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

SOURCES = str(Path(uring_trio.__file__).parent)
ENDS = (KeyboardInterrupt, trio.Cancelled, *cut_off.CONSEQUENCES)

# Of the lines of one function, as often as they are run; of all lines.
SAMPLE, LONG_SAMPLE = 6, 400

#: Where something is half done, by the scenario that goes there.
HALVES = [
    ("server async", "_slots.py", "enter"),
    ("server async", "_trio_private.py", "wake"),
    ("server async", "_callbacks.py", "_run_on_close"),
    ("server async", "_callbacks.py", "_run_async"),
    ("server tcp", "_worker.py", "listen"),
    ("server tcp", "_turn.py", "sleep"),
    ("server datagrams", "_slots.py", "enter"),
    ("echo", "_slots.py", "enter"),
]


class Lines:
    """Counts lines of ours, as they are run, and interrupts at one."""

    def __init__(self, at: int | None, file: str, function: str) -> None:
        self.count = 0
        self._at = at
        self._file, self._function = file, function

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        chosen = self._function in ("", code.co_name) and code.co_filename.endswith(self._file)
        return self._line if chosen and code.co_filename.startswith(SOURCES) else None

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self._at:
                signal.raise_signal(signal.SIGINT)
        return self._line


def run(name: str, at: int | None, file: str = "", function: str = "") -> int:
    """Run a scenario; how many of these lines it has."""
    scenario = SCENARIOS[name]
    lines = Lines(at, file, function)

    async def body() -> None:
        with lines.counted():
            await scenario.body(Course())

    with harness.no_new_fds(collecting=True):
        try:
            scenarios.run(harness.RING, scenario, body)
        except BaseException as exc:
            if at is None or not all(isinstance(leaf, ENDS) for leaf in leaves(exc)):
                raise
    return lines.count


@pytest.mark.parametrize(("name", "file", "function"), HALVES)
def test_at_the_lines_of_what_is_half_done(name: str, file: str, function: str) -> None:
    count = run(name, None, file, function)
    assert count > 0
    for at in evenly(count, SAMPLE):
        run(name, at, file, function)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_at_some_of_all_lines(name: str) -> None:
    for at in evenly(run(name, None), LONG_SAMPLE):
        run(name, at)
