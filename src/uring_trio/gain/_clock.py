"""A worker's timers: one task that sleeps until the first, and only if there is one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._timers import Timers

if TYPE_CHECKING:
    from collections.abc import Callable


class WorkerClock:
    """Calls ``key[0]._timer_expired(key[1])`` when a key's time has come.

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

    async def _watch(self) -> None:
        while (deadline := self._timers.next_deadline()) < math.inf:
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()
            for owner, kind in self._timers.expired(trio.current_time()):
                owner._timer_expired(kind)
            self._wake()
        self._scope = None
