"""A worker's timers: one task that sleeps until the first, and only if there is one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._elsewhere import Elsewhere
from uring_trio.gain._timers import Timers

if TYPE_CHECKING:
    from uring_trio.gain._config import Config
    from uring_trio.gain._handler import Callbacks

logger = logging.getLogger("uring_trio.gain")


class Clock(Elsewhere):
    """The part of a worker that knows the time."""

    def __init__(self, callbacks: Callbacks, config: Config) -> None:
        super().__init__(callbacks, config)
        self.timers: Timers[Any] = Timers()
        self._timer_scope: trio.CancelScope | None = None

    def set_timer_in(self, key: Any, seconds: float) -> None:
        """Have ``key[0]._timer_expired(key[1])`` called in so many seconds."""
        self.set_timer(key, trio.current_time() + seconds)

    def set_timer(self, key: Any, deadline: float) -> None:
        """The same at a time of trio's clock."""
        self.timers.schedule(key, deadline)
        if self._timer_scope is None:
            self._timer_scope = trio.CancelScope(deadline=deadline)
            self.nursery.start_soon(self._watch_clock)
        elif deadline < self._timer_scope.deadline:
            self._timer_scope.deadline = deadline

    async def _watch_clock(self) -> None:
        while (deadline := self.timers.next_deadline()) < float("inf"):
            with trio.CancelScope(deadline=deadline) as self._timer_scope:
                await trio.sleep_forever()
            for owner, kind in self.timers.expired(trio.current_time()):
                owner._timer_expired(kind)
            self.wake()
        self._timer_scope = None

    async def run_ticks(self, seconds: float, server: Any) -> None:
        """Call ``on_tick`` every so many seconds, and never two at once."""
        on_tick = self.callbacks.on_tick
        assert on_tick is not None
        is_async = self.callbacks.is_async("on_tick")
        at = trio.current_time()
        while True:
            at = max(at + seconds, trio.current_time())
            await trio.sleep_until(at)
            try:
                result = on_tick(server)
                if is_async:
                    await result
            except Exception:
                logger.exception("on_tick raised")

    def wake(self) -> None:
        """Have a turn."""
        raise NotImplementedError
