"""A line with no kernel below it: who is busy, and when the next has its turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from outcome import Error

from uring_trio._kernel import ECANCELED
from uring_trio._lines import Backlog, Receiver
from uring_trio._slots import Slots


class FakeRing:
    """Has all that was prepared in the kernel: it can be asked to end, and not withdrawn."""

    pool = b"abcdef"
    record_address = pool_address = 0

    def __init__(self) -> None:
        self.prepared = 0
        self.left = 0  # that the kernel had no memory for

    def unsubmitted(self) -> int:
        return self.left

    def recv(self, *_: Any) -> int:
        self.prepared += 1
        return self.prepared

    read = recv

    def cancel(self, slot: int) -> int:
        return 1


class Desk:
    """A receiver's line, and what its tasks were woken with."""

    def __init__(self) -> None:
        self.woken: list[Any] = []
        self.ring = FakeRing()
        self.slots = Slots(self.ring, lambda task, value: self.woken.append(value))  # type: ignore[arg-type]
        self.backlog = Backlog()
        self.line = Receiver(self.slots, self.backlog, lambda: 7, is_socket=True)

    def end_tick(self) -> None:
        """All that was queued is in the kernel, and nothing has come."""
        self.slots.tick += 1
        starved = not self.slots.all_submitted()
        for line, operation in self.backlog.take_contended(starved=starved):
            line.find_busy(operation)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("uring_trio._operations.run_context", SimpleNamespace(task="a task"))
    return Desk()


def is_busy(value: object) -> bool:
    return isinstance(value, Error) and isinstance(value.error, trio.BusyResourceError)


def test_who_stands_behind_is_busy_once_the_first_was_submitted_and_waits(desk: Desk) -> None:
    first = desk.line.receive(10)
    desk.line.receive(10)
    assert desk.woken == []
    desk.end_tick()
    (value,) = desk.woken
    assert is_busy(value)
    assert first.is_waited_for()
    with pytest.raises(trio.BusyResourceError):
        desk.line.receive(10)


def test_nobody_is_busy_while_the_kernel_has_no_memory_for_the_first(desk: Desk) -> None:
    desk.ring.left = 1
    desk.line.receive(10)
    desk.line.receive(10)
    desk.end_tick()
    desk.line.receive(10)
    desk.end_tick()
    assert desk.woken == []
    desk.ring.left = 0
    desk.end_tick()
    assert len(desk.woken) == 2
    assert all(map(is_busy, desk.woken))


def test_who_stands_behind_has_his_turn_if_the_first_was_done_at_once(desk: Desk) -> None:
    first = desk.line.receive(10)
    second = desk.line.receive(10)
    desk.slots.deliver([(first.slot, 3, 0, 0)])
    assert desk.line.current is second
    desk.end_tick()
    assert desk.woken == [b"abc"]
    assert desk.ring.prepared == 2


def test_nobody_is_busy_while_the_first_is_about_to_leave(desk: Desk) -> None:
    first = desk.line.receive(10)
    desk.end_tick()
    assert first.abort(lambda: None) is trio.lowlevel.Abort.FAILED
    second = desk.line.receive(10)
    for _ in range(3):  # its last cqe takes its time
        desk.end_tick()
    assert desk.woken == []
    desk.slots.deliver([(first.slot, ECANCELED, 0, 0)])
    assert desk.woken == [ECANCELED]
    assert desk.line.current is second
    assert desk.ring.prepared == 2
