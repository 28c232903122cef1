"""A KeyboardInterrupt at any line of ours: it ends the run in order, as it does on stock trio.

trio brings one to the main task, unless the code that it finds is a user's own: then it is raised
right there. So what is ours must not look like a user's where it has noted one half of
something: an operation without whoever it belongs to, a task that is woken and does not know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cut_off
import harness
import pytest
import scenarios
import trio
from exception_groups import leaves
from line_signals import Lines, is_ours
from marks import needs_ring
from scenarios import SCENARIOS, Course, evenly

from uring_trio import _hot_parts

if TYPE_CHECKING:
    from types import CodeType

# Between an accept and its stream nobody has the socket yet: an interrupt of a scenario's own code
# there, such as in the stream's making, leaves it to the garbage collector, as on stock trio.
pytestmark = [needs_ring, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

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


def run(name: str, at: int | None, file: str = "", function: str = "") -> int:
    """Run a scenario; how many of these lines it has."""
    scenario = SCENARIOS[name]

    def is_chosen(code: CodeType) -> bool:
        there = is_ours(code) and code.co_filename.endswith(file)
        return there and function in ("", code.co_name)

    lines = Lines(is_chosen, [at])

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
def test_at_the_lines_of_what_is_half_done(
    name: str, file: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if function == "wake":  # which has no lines where it is in C
        monkeypatch.setattr(_hot_parts, "hot", None)
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
