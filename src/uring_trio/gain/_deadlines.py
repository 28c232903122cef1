"""Deadlines: those of all connections of a worker, who waits for them, and what is set of one.

`Timers` holds the first, without I/O and without a clock.

A worker holds one deadline or more for each of thousands of connections, and the usual
thing that happens to a deadline is that it moves later: an idle timeout restarts with
every byte. So a move to a later time touches no heap. The key's timer remembers both
where it is filed and when it is due, and is filed anew only when the time at which it is
filed has come: once in each timeout, not once for each byte.

What that costs: `Timers.next_deadline()` may be too early by such a move (never too late).
The worker then wakes once for nothing, and `Timers.expired()` has by then filed the key
where it belongs, so it never wakes twice for one move.

A cancelled timer, and one that moved earlier and was filed a second time, stays in the
heap as a dead entry without its key. Dead entries are dropped from the top as they are
met, and all of them when they are more than the live ones.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from uring_trio.gain._engine import Clock

K = TypeVar("K", bound="Hashable")

# Below this the heap is not swept for dead entries: the sweep is O(n), and they are few.
DEAD_ENTRIES_MIN = 64

USERS = ("read", "write", "idle")
ALL = (*USERS, "handshake", "close", "discard", "stuck")


class _Timer(Generic[K]):
    """One key's entry in the heap; dead when it has no key."""

    __slots__ = ("deadline", "filed_at", "keys", "order")

    def __init__(self, key: K, deadline: float, order: int) -> None:
        self.keys = [key]  # emptied when it dies: a dead entry must not keep a connection alive
        self.deadline = deadline
        self.filed_at = deadline
        self.order = order

    def __lt__(self, other: _Timer[K]) -> bool:
        if self.filed_at != other.filed_at:
            return self.filed_at < other.filed_at
        return self.order < other.order


class Timers(Generic[K]):
    """The deadlines of many keys: O(log n) to set, O(1) to move later.

    Times are floats on whatever clock the caller reads, `math.inf` being never.
    """

    def __init__(self) -> None:
        self._timers: dict[K, _Timer[K]] = {}
        self._heap: list[_Timer[K]] = []
        self._scheduled = 0  # ever; orders those due at the same time

    def __len__(self) -> int:
        return len(self._timers)

    def __contains__(self, key: object) -> bool:
        return key in self._timers

    def schedule(self, key: K, deadline: float) -> None:
        """Set the deadline of *key*, whether or not it has one.

        Raises:
          ValueError: *deadline* is not a number.
        """
        if math.isnan(deadline):  # it would break the order of the heap
            raise ValueError("a deadline must be a number, not NaN")
        timer = self._timers.get(key)
        if timer is not None:
            if deadline >= timer.filed_at:
                timer.deadline = deadline
                return
            self._bury(timer)
        self._scheduled += 1
        timer = self._timers[key] = _Timer(key, deadline, self._scheduled)
        heapq.heappush(self._heap, timer)

    def cancel(self, key: K) -> bool:
        """Forget the deadline of *key*; whether it had one."""
        timer = self._timers.pop(key, None)
        if timer is None:
            return False
        self._bury(timer)
        return True

    def next_deadline(self) -> float:
        """When `expired` should be called next, or `math.inf`: not after the first deadline."""
        heap = self._heap
        while heap and not heap[0].keys:
            heapq.heappop(heap)
        return heap[0].filed_at if heap else math.inf

    def expired(self, now: float) -> list[K]:
        """Take out the keys that are due at *now*, in the order of their deadlines.

        Afterwards `next_deadline` is later than *now*.
        """
        heap = self._heap
        keys: list[K] = []
        while heap and heap[0].filed_at <= now:
            timer = heap[0]
            if timer.keys and timer.deadline > timer.filed_at:
                timer.filed_at = timer.deadline
                heapq.heapreplace(heap, timer)
                continue
            heapq.heappop(heap)
            for key in timer.keys:
                del self._timers[key]
                keys.append(key)
        return keys

    def _bury(self, timer: _Timer[K]) -> None:
        timer.keys.clear()
        # The new entry of one that moved earlier is not in the heap yet: an error of one.
        dead = len(self._heap) - len(self._timers)
        if dead > max(DEAD_ENTRIES_MIN, len(self._timers)):
            self._heap = [timer for timer in self._heap if timer.keys]
            heapq.heapify(self._heap)


class WorkerClock:
    """Calls ``key[0]._timer_expired(key[1])`` when a key's time has come.

    One task sleeps until the first, and only if there is one.

    Args:
      wake: has a turn of the worker's follow.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._timers: Timers[Any] = Timers()
        self._nursery: trio.Nursery | None = None
        self._scope: trio.CancelScope | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """The worker runs."""
        self._nursery = nursery

    def now(self) -> float:
        """trio's time."""
        return trio.current_time()

    def set_in(self, key: Any, seconds: float) -> None:
        """Have it expire in so many seconds."""
        deadline = trio.current_time() + seconds
        self._timers.schedule(key, deadline)
        if self._scope is None:
            assert self._nursery is not None
            self._scope = trio.CancelScope(deadline=deadline)
            self._nursery.start_soon(self._watch)
        elif deadline < self._scope.deadline:
            self._scope.deadline = deadline

    def cancel(self, key: Any) -> bool:
        """Forget it; whether it was set."""
        return self._timers.cancel(key)

    def is_set(self, key: Any) -> bool:
        """Whether it is."""
        return key in self._timers

    @trio.lowlevel.enable_ki_protection
    async def _watch(self) -> None:
        while (deadline := self._timers.next_deadline()) < math.inf:
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()
            for owner, kind in self._timers.expired(trio.current_time()):
                owner._timer_expired(kind)
            self._wake()
        self._scope = None


class Deadlines:
    """What is set of one connection: by its user, and for its closing.

    Set and met on the worker's thread alone.

    Attributes:
      count: how many are set.
      idle_s: seconds of the idle timeout; None is none.
      chosen: how many its user has set since on_read was told last.
    """

    __slots__ = ("_clock", "_owner", "chosen", "count", "idle_s")

    def __init__(self, clock: Clock, owner: Any) -> None:
        self._clock = clock
        self._owner = owner
        self.count = 0
        self.idle_s: float | None = None
        self.chosen = 0

    def choose(self, kind: str, seconds: float) -> None:
        """One of the user's."""
        self.chosen += 1
        if kind == "idle":
            self.idle_s = seconds
        self.start(kind, seconds)

    def start(self, kind: str, seconds: float) -> None:
        """Have it expire in so many seconds."""
        key = (self._owner, kind)
        if not self._clock.is_set(key):
            self.count += 1
        self._clock.set_in(key, seconds)

    def cancel(self, kind: str) -> None:
        """It is met, or not wanted any more."""
        if self._clock.cancel((self._owner, kind)):
            self.count -= 1
        if kind == "idle":
            self.idle_s = None

    def expired(self) -> None:
        """One has."""
        self.count -= 1

    def restart_idle(self) -> None:
        """A byte has gone, either way."""
        if self.idle_s is not None and self._clock.is_set((self._owner, "idle")):
            self.start("idle", self.idle_s)

    def told(self) -> None:
        """An on_read is told."""
        self.chosen = 0
        if self.count:
            self.cancel("read")

    def forget(self) -> None:
        """None of them matters any more."""
        if self.count:
            for kind in ALL:
                self.cancel(kind)
        self.idle_s = None

    def has_users(self) -> bool:
        """Whether one of the user's is set."""
        return any(self._clock.is_set((self._owner, kind)) for kind in USERS)
