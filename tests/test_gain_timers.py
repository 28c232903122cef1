"""Deadlines against a plain dict, and the costs that the module promises."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from uring_trio.gain._deadlines import DEAD_ENTRIES_MIN, Timers

# Few of each, so that a run meets the same key and the same time again and again.
KEYS = st.integers(0, 7)
TIMES = st.one_of(st.integers(0, 20).map(float), st.just(math.inf))


class TimersModel(RuleBasedStateMachine):
    """`Timers` beside the simplest thing that could work: a dict that is searched."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: Timers[int] = Timers()
        self.model: dict[int, float] = {}

    @rule(key=KEYS, deadline=TIMES)
    def schedule(self, key: int, deadline: float) -> None:
        self.timers.schedule(key, deadline)
        self.model[key] = deadline

    @rule(key=KEYS)
    def cancel(self, key: int) -> None:
        assert self.timers.cancel(key) == (self.model.pop(key, None) is not None)

    @rule(now=TIMES)
    def expire(self, now: float) -> None:
        keys = self.timers.expired(now)
        due = {key: deadline for key, deadline in self.model.items() if deadline <= now}
        assert len(keys) == len(due)
        assert set(keys) == due.keys()
        assert [due[key] for key in keys] == sorted(due.values())
        for key in keys:
            del self.model[key]
        # Or the worker would spin: it sleeps until this time and asks again.
        assert self.timers.next_deadline() > now or not self.model

    @rule()
    def wake_when_told(self) -> None:
        """A worker that sleeps until each next_deadline is never late."""
        while self.model and (first := min(self.model.values())) < math.inf:
            now = self.timers.next_deadline()
            assert now <= first
            keys = self.timers.expired(now)
            assert all(self.model.pop(key) == now for key in keys)

    @invariant()
    def same_keys(self) -> None:
        assert len(self.timers) == len(self.model)
        for key in range(8):
            assert (key in self.timers) == (key in self.model)
            if key in self.model:
                assert self.timers._timers[key].deadline == self.model[key]

    @invariant()
    def never_too_late(self) -> None:
        assert self.timers.next_deadline() <= min(self.model.values(), default=math.inf)


TestTimersModel = TimersModel.TestCase


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(KEYS, st.integers(0, 20)), max_size=30))
def test_equal_deadlines_come_in_the_order_they_were_scheduled(
    moves: list[tuple[int, int]],
) -> None:
    timers: Timers[int] = Timers()
    for key, deadline in dict(moves).items():
        timers.schedule(key, deadline)
    in_order = sorted(dict(moves).items(), key=lambda item: item[1])
    assert timers.expired(20) == [key for key, _ in in_order]


def test_no_keys_means_never() -> None:
    timers: Timers[str] = Timers()
    assert timers.next_deadline() == math.inf
    assert timers.expired(1e9) == []
    timers.schedule("a", 1.0)
    timers.cancel("a")
    assert timers.next_deadline() == math.inf


def test_nan_is_refused_and_changes_nothing() -> None:
    timers: Timers[str] = Timers()
    timers.schedule("a", 1.0)
    with pytest.raises(ValueError, match="NaN"):
        timers.schedule("a", math.nan)
    assert timers.expired(1.0) == ["a"]


def test_moving_later_files_nothing_until_the_old_deadline_comes() -> None:
    timers: Timers[int] = Timers()
    for key in range(1000):
        timers.schedule(key, 30.0)
    for byte in range(1, 100):
        for key in range(1000):
            timers.schedule(key, 30.0 + byte)
    assert len(timers._heap) == 1000
    # One wake-up for nothing, and then the right time at once.
    assert timers.next_deadline() == 30.0
    assert timers.expired(30.0) == []
    assert timers.next_deadline() == 129.0
    assert timers.expired(129.0) == list(range(1000))


def test_cancelled_timers_leave_neither_memory_nor_keys_behind() -> None:
    class Connection:
        pass

    timers: Timers[Connection] = Timers()
    survivor = Connection()
    timers.schedule(survivor, 1e6)
    seen = []
    for _ in range(10_000):
        connection = Connection()
        seen.append(weakref.ref(connection))
        timers.schedule(connection, 30.0)
        timers.schedule(connection, 10.0)
        timers.cancel(connection)
    del connection
    gc.collect()
    assert not [ref for ref in seen if ref() is not None]
    assert len(timers._heap) <= DEAD_ENTRIES_MIN + 3
    assert timers.expired(math.inf) == [survivor]
