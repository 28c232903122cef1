"""How many connections there are, and how many more there may be.

A worker counts those that it serves. One that accepts keeps a place for each that is about to
be accepted, which whoever serves it takes over. The limit is the server's, over all workers.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Connections are counted by the worker that accepts as well as by the one that serves.
_counting = threading.Lock()


class Places:
    """Those of one worker.

    Args:
      limit: of all workers; None is none.

    Attributes:
      active: connections that the worker serves, or is about to.
      claimed: places for connections that are about to be accepted.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._peers: Sequence[Places] = (self,)
        self.active = 0
        self.claimed = 0

    def share_with(self, peers: Sequence[Places]) -> None:
        """The limit is for all of these."""
        self._peers = peers

    def is_free(self) -> bool:
        """Whether one more connection is allowed."""
        limit = self._limit
        return limit is None or sum(each.active + each.claimed for each in self._peers) < limit

    def claim(self) -> bool:
        """Keep a place for a connection that is to be accepted here, if there is one."""
        if self._limit is None:
            return True
        with _counting:
            allowed = self.is_free()
            self.claimed += allowed
        return allowed

    def unclaim(self) -> bool:
        """There was no connection; whether that makes room for others."""
        if self._limit is None:
            return False
        with _counting:
            self.claimed -= 1
        return True

    def use_claim(self, places: Places) -> None:
        """A connection was accepted here: it takes the place, and is counted there."""
        with _counting:
            if self._limit is not None:
                self.claimed -= 1
            places.enter()

    def enter(self) -> None:
        """One more; while counting is locked."""
        self.active += 1

    def leave(self) -> None:
        """One less."""
        with _counting:
            self.active -= 1
