"""Deadlines, without I/O and without a clock.

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
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")

# Below this the heap is not swept for dead entries: the sweep is O(n), and they are few.
DEAD_ENTRIES_MIN = 64


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
        """When `expired` should be called next: not later than the first deadline, or `math.inf`."""
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
