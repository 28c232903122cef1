"""Where a plan's server runs, and how it is ended.

"start"   `Server.start`, on a thread of its own
"serve"   `Server.serve` in a run on the ring: the worker, if it is one, is in that run
"beside"  `Server.serve` in a run on epoll: all workers are threads
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import harness
import outcome
import trio

import uring_trio
from random_gain.faults import LeftBehind, NotTold, WrongCounts
from random_gain.rules import SLOWNESS
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Sequence

START_MAX_S = 5.0 * SLOWNESS
JOIN_MAX_S = 5.0 * SLOWNESS
GIVE_UP_S = 1.0 * SLOWNESS


class Host:
    """One server, which may be started again when it has ended."""

    def __init__(self, handler: Any, config: gain.Config, how: str, ring: Any) -> None:
        self.server = gain.Server(handler, config)
        self._how = how
        self._ring = ring
        self._thread: threading.Thread | None = None
        self._ends: list[outcome.Outcome[None]] = []
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self.ended_at = 0.0

    def start(self, addresses: Sequence[str]) -> None:
        """Have it serve; returns once it runs."""
        self._ends = []
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(
            target=self._run, args=[list(addresses)], name="the server's start", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_MAX_S
        while not self.server.is_running() and not self._ends:
            if time.monotonic() > deadline:
                raise NotTold("the server does not start")
            time.sleep(0.0005)
        for end in self._ends:
            end.unwrap()

    def _run(self, addresses: list[str]) -> None:
        end = outcome.capture(self._serve, addresses)
        self.ended_at = time.monotonic()
        self._ends.append(end)

    def _serve(self, addresses: list[str]) -> None:
        if self._how == "start":
            self.server.start(addresses)
        elif self._how == "serve":
            options = {} if self._ring is None else {"ring": self._ring}
            uring_trio.run(self._in_run, addresses, backend="io_uring", **options)
        else:
            trio.run(self._in_run, addresses)

    async def _in_run(self, addresses: list[str]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            await self.server.serve(addresses)
        await harness.assert_books_balance()

    def can_be_cancelled(self) -> bool:
        return self._how != "start"

    def cancel(self) -> None:
        """Cancel what serves."""
        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)

    def give_up(self) -> None:
        """The plan has failed: do not leave it running, if it can be ended."""
        if self._thread is not None and not self._ends:
            self.server.async_shutdown(0)
            self._thread.join(GIVE_UP_S)

    def has_ended(self) -> bool:
        return bool(self._ends)

    def verify(self) -> None:
        """It has ended as it should, with nothing left.

        Raises:
          BaseException: what it has ended with.
        """
        assert self._thread is not None
        self._thread.join(JOIN_MAX_S)
        if self._thread.is_alive():
            raise LeftBehind("the thread that has started the server")
        for end in self._ends:
            end.unwrap()
        server = self.server
        if server.is_running() or server.active_connections():
            raise WrongCounts(f"{server.active_connections()} connections of one that has ended")
        for worker in server.statistics().workers:
            for name in HELD:
                if getattr(worker, name):
                    raise WrongCounts(f"{name} of one that has ended: {worker}")


# What a worker must have none of at its end; `gain_tools` has the same, and more than is public.
HELD = ("connections", "buffers_leased", "bytes_buffered", "operations_in_flight")
