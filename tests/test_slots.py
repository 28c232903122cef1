"""The table of slots: who stands at each, who is told of a batch, and how a run ends."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from harness import Sitter

from uring_trio import _draining
from uring_trio._kernel import CQE_F_MORE, ECANCELED
from uring_trio._slots import SLOTS_AT_FIRST, Occupant, Record, Slots


class FakeRing:
    """As much of a ring as a table of slots asks for."""

    pool = b""
    record_address = pool_address = 0

    def __init__(self) -> None:
        self.queued: set[int] = set()  # not known to the kernel
        self.unfinished: set[int] = set()
        self.ends_with: dict[int, int] = {}

    def cancel(self, slot: int) -> int:
        if slot in self.queued:
            self.queued.remove(slot)
            return 0
        return 1

    def error(self, result: int) -> Exception:
        return OSError(-result, "refused")

    def in_flight(self) -> int:
        return len(self.unfinished)

    def wait(self, timeout_ns: int) -> int:
        return len(self.unfinished) or -4

    def records(self, count: int) -> list[Record]:
        done, self.unfinished = sorted(self.unfinished), set()
        assert count == len(done)
        return [(slot, self.ends_with.get(slot, ECANCELED), 0, 0) for slot in done]


def no_wake(task: Any, value: Any) -> None:
    raise AssertionError(f"nobody sleeps: {task}, {value}")


@pytest.fixture
def ring() -> FakeRing:
    return FakeRing()


@pytest.fixture
def slots(ring: FakeRing) -> Slots:
    return Slots(ring, no_wake)  # type: ignore[arg-type]


def enter(slots: Slots, *numbers: int) -> list[Sitter]:
    sitters = [Sitter() for _ in numbers]
    for sitter, slot in zip(sitters, numbers, strict=True):
        assert slots.enter(sitter, slot) == slot
    return sitters


def taking(slots: Slots) -> list[Any]:
    return list(slots.takers)


def test_a_refused_operation_gets_no_slot(slots: Slots) -> None:
    with pytest.raises(OSError, match="refused"):
        slots.enter(Sitter(), -12)
    assert slots.occupants() == []


def test_the_table_grows_with_the_engines(slots: Slots) -> None:
    last = SLOTS_AT_FIRST
    first, second = enter(slots, last - 1, last)
    assert slots.table[last - 1 : last + 1] == [first, second]
    assert len(slots.table) == 2 * SLOTS_AT_FIRST


def test_nobody_is_put_where_another_stands(slots: Slots) -> None:
    enter(slots, 3)
    with pytest.raises(AssertionError):
        slots.enter(Sitter(), 3)


def test_a_slot_is_empty_before_its_occupant_is_told_of_the_last_record(slots: Slots) -> None:
    class Successor(Sitter):
        def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
            super().complete(slot, res, flags, offset)
            slots.enter(next_one, slot)

    first, next_one = Successor(), Sitter()
    slots.enter(first, 5)
    slots.deliver([(5, 7, 0, 0)])
    assert first.told == [(5, 7, 0, 0)]
    assert slots.table[5] is next_one


def test_a_record_with_more_to_come_leaves_the_occupant(slots: Slots) -> None:
    (sitter,) = enter(slots, 5)
    slots.deliver([(5, 1, CQE_F_MORE, 0), (5, 2, CQE_F_MORE, 64)])
    assert slots.table[5] is sitter
    slots.deliver([(5, 3, 0, 0)])
    assert slots.table[5] is None
    assert [res for _, res, _, _ in sitter.told] == [1, 2, 3]


def test_what_is_withdrawn_leaves_its_slot_and_what_is_asked_to_end_does_not(
    slots: Slots, ring: FakeRing
) -> None:
    _, asked = enter(slots, 1, 2)
    ring.queued = {1}
    assert slots.withdraw(1)
    assert not slots.withdraw(2)
    assert slots.table[:3] == [None, None, asked]


def test_takers_are_taken_off_also_by_an_error_and_in_any_order(slots: Slots) -> None:
    def first(records: Any) -> Any:
        return records

    def second(records: Any) -> Any:
        return records

    one, two = slots.taking(first), slots.taking(second)
    one.__enter__()
    two.__enter__()
    assert taking(slots) == [first, second]
    one.__exit__(None, None, None)
    assert taking(slots) == [second]
    two.__exit__(None, None, None)
    assert taking(slots) == []
    with contextlib.suppress(ZeroDivisionError), slots.taking(first):
        assert taking(slots) == [first]
        raise ZeroDivisionError
    assert taking(slots) == []


def test_a_taker_that_is_there_twice_is_taken_off_once(slots: Slots) -> None:
    def take(records: Any) -> Any:
        return records

    with slots.taking(take):
        with slots.taking(take):
            assert taking(slots) == [take, take]
        assert taking(slots) == [take]
    assert taking(slots) == []


def test_a_taker_may_be_taken_off_when_all_are_forgotten(slots: Slots) -> None:
    """A run that was lost ends before its tasks do."""
    with slots.taking(lambda records: records):
        slots.forget()
    assert slots.takers == ()


def test_at_the_end_each_slot_ends_once_and_nobody_is_told(slots: Slots, ring: FakeRing) -> None:
    withdrawn, cancelled, done, early = enter(slots, 0, 1, 2, 3)
    ring.queued = {0}
    ring.unfinished = {1, 2}
    ring.ends_with = {2: 9}
    # Of one the last record was in a batch that nobody has processed: nothing tells of it.
    slots.begin_end()
    assert _draining.drain(slots, 0)
    assert withdrawn.told == ["lose", "release"]
    assert cancelled.told == ["lose", ("dispose", ECANCELED), "release"]
    assert done.told == ["lose", ("dispose", 9), "release"]
    assert early.told == ["lose", "release"]


def test_what_stands_at_several_slots_is_told_of_each(slots: Slots, ring: FakeRing) -> None:
    sitter: Occupant = Sitter()
    for slot in (4, 6):
        slots.enter(sitter, slot)
    ring.unfinished = {4, 6}
    slots.begin_end()
    assert _draining.drain(slots, 0)
    assert sitter.told.count(("dispose", ECANCELED)) == 2  # type: ignore[attr-defined]
    assert slots.occupants() == []
