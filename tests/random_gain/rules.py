"""What the books depend on: a plan's options, and how its server stands."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import machine_speed

from uring_trio import gain

if TYPE_CHECKING:
    from random_gain.books import Account

# A bound that makes a failure of a hang is for an idle machine, and longer on a busy one.
SLOWNESS = machine_speed.slowness()


class Rules:
    """Of a plan's options, what the books depend on; and how the server stands.

    Attributes:
      has_tasks: callbacks may be tasks, or run in threads.
      only_callbacks: nobody but callbacks has used a connection.
      tells_eof: on_eof is defined.
      tells_written: on_write is, too.
      legacy_writes: a write to a connection that is over raises, whatever the options say.
      generation: which start of the server this is.
      contenders: connections that are open, or want to be.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.read_buffer_limit: int = options.get("read_buffer_limit", 65_536)
        self.write_high_water: int = options.get("write_high_water", 65_536)
        self.close_timeout: float = options.get("close_timeout", 30.0)
        self.handshake_timeout: float = options.get("tls_handshake_timeout", 30.0)
        self.max_connections: int | None = options.get("max_connections")
        self.tls = bool(options.get("tls"))
        self.has_tasks = bool(options.get("async") or options.get("async_handler"))
        self.only_callbacks = True
        self.tells_eof = "on_eof" not in options.get("without", [])
        self.tells_written = "on_write" not in options.get("without", [])
        # Releases that have no such option raise for what they do not take.
        self.legacy_writes = not hasattr(gain.Config(), "write_strict")
        self.generation = 0
        self.contenders = 0
        # By generation: when it was told to end, when its time is over, and when it had ended.
        self._stopped: dict[int, float] = {}
        self._over: dict[int, float] = {}
        self._ended: dict[int, float] = {}

    @property
    def is_plain(self) -> bool:
        """Callbacks are plain calls, and nobody else uses a connection."""
        return self.only_callbacks and not self.has_tasks

    def is_tls(self, account: Account) -> bool:
        peer = account.peer
        return self.tls or (peer is not None and peer.is_tls)

    def is_full(self) -> bool:
        """Whether some may have to wait until another closes."""
        return self.max_connections is not None and self.contenders > self.max_connections

    def stop(self, drain_s: float) -> None:
        """The server is told to end; what has not by then is aborted."""
        now = time.monotonic()
        self._stopped.setdefault(self.generation, now)
        self._over[self.generation] = min(self._over.get(self.generation, math.inf), now + drain_s)

    def has_ended(self, at: float) -> None:
        """It has, by then."""
        self._ended[self.generation] = at

    def stopped(self, generation: int, by: float) -> bool:
        """Whether the server had been told to end at that time."""
        return self._stopped.get(generation, math.inf) <= by

    def was_aborted(self, generation: int) -> bool:
        """Or may have been, since it has not ended before its time was over."""
        return self._over.get(generation, math.inf) <= self._ended.get(generation, math.inf)
