"""The timers of one connection: the deadlines that its user sets, and those that closing needs.

They are the connection's own, and are set and met on the worker's thread alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uring_trio.gain._engine import Clock

USERS = ("read", "write", "idle")
ALL = (*USERS, "handshake", "close", "discard", "stuck")


class Deadlines:
    """What is set of one connection.

    Attributes:
      count: how many are set.
      idle_s: seconds of the idle timeout; None is none.
      is_chosen: a deadline was set since on_read was told last.
    """

    __slots__ = ("_clock", "_owner", "count", "idle_s", "is_chosen")

    def __init__(self, clock: Clock, owner: Any) -> None:
        self._clock = clock
        self._owner = owner
        self.count = 0
        self.idle_s: float | None = None
        self.is_chosen = False

    def choose(self, kind: str, seconds: float) -> None:
        """One of the user's."""
        self.is_chosen = True
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

    def expired(self, kind: str) -> None:
        """It has expired."""
        self.count -= 1

    def restart_idle(self) -> None:
        """A byte has gone, either way."""
        if self.idle_s is not None and self._clock.is_set((self._owner, "idle")):
            self.start("idle", self.idle_s)

    def told(self) -> None:
        """An on_read is told."""
        self.is_chosen = False
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
