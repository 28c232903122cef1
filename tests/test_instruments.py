"""An instrument that cancels other tasks while a closing, or `find_busy`, wakes them.

``task_scheduled`` runs between the wakes, and calls abort functions of tasks that are about
to be woken as well. Each must be woken once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import harness
import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


class Canceller(trio.abc.Instrument):
    """Cancels all scopes as soon as a task is scheduled, while it is active."""

    def __init__(self) -> None:
        self.scopes: list[trio.CancelScope] = []
        self.active = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if self.active:
            for scope in self.scopes:
                scope.cancel()

    async def sleeper(
        self, outcomes: list[str], fn: Callable[..., Awaitable[Any]], *args: Any
    ) -> None:
        with trio.CancelScope() as scope:
            self.scopes.append(scope)
            try:
                await fn(*args)
            except (trio.ClosedResourceError, trio.BusyResourceError, OSError) as exc:
                outcomes.append(type(exc).__name__)
        if scope.cancelled_caught:
            outcomes.append("cancelled")


def no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    # trio logs what an instrument raises, and switches it off.
    assert caplog.records == []


def test_notify_closing_with_a_reader_and_a_writer(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    canceller = Canceller()
    outcomes: list[str] = []

    async def main() -> None:
        with harness.nonblocking_pair() as (a, _):
            harness.fill(a)
            async with trio.open_nursery() as nursery:
                for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
                    nursery.start_soon(canceller.sleeper, outcomes, wait, a)
                await wait_all_tasks_blocked()
                canceller.active = True
                trio.lowlevel.notify_closing(a)
                canceller.active = False

    harness.run(backend, main, instruments=[canceller])
    assert len(outcomes) == 2
    assert "ClosedResourceError" in outcomes
    no_complaint(caplog)


def test_close_in_the_tick_in_which_operations_start(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    canceller = Canceller()
    outcomes: list[str] = []

    async def main() -> None:
        a, b = trio.socket.socketpair()

        async def close() -> None:
            canceller.active = True
            a.close()
            canceller.active = False

        with b:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(canceller.sleeper, outcomes, a.recv, 10)
                nursery.start_soon(close)

    harness.run(backend, main, instruments=[canceller])
    assert len(outcomes) == 3
    no_complaint(caplog)


def test_tasks_that_are_found_busy(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    canceller = Canceller()
    outcomes: list[str] = []

    async def main() -> None:
        a, b = trio.socket.socketpair()
        with a, b:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(canceller.sleeper, outcomes, a.recv, 10)
                await trio.lowlevel.checkpoint()
                canceller.active = True
                await trio.sleep(0.01)
                canceller.active = False

    harness.run(backend, main, instruments=[canceller])
    assert len(outcomes) == 4
    no_complaint(caplog)
