"""Callbacks that do not run in the worker's turn: ``async def``, and ``on_read`` in a thread.

Each runs as a task of the worker's nursery. The connection is busy meanwhile: what comes
for it gathers, and is looked at when the callback has ended.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio.gain._config import Config
    from uring_trio.gain._conn import Conn
    from uring_trio.gain._handler import Callbacks


NOBODY = -1  # no thread's ident


class Elsewhere:
    """The part of a worker that runs callbacks as tasks and in threads."""

    nursery: trio.Nursery
    thread: int | None

    def __init__(self, callbacks: Callbacks, config: Config) -> None:
        self.callbacks = callbacks
        self.config = config
        self._limiter: trio.CapacityLimiter | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._elsewhere = {
            name
            for name in ("on_accept", "on_read", "on_write", "on_close", "on_eof")
            if callbacks.is_async(name)
        }
        self._in_threads = config.async_handler and not callbacks.is_async("on_read")
        if self._in_threads:
            self._elsewhere.add("on_read")

    def runs_elsewhere(self, name: str) -> bool:
        """Whether this callback is no plain call."""
        return name in self._elsewhere

    def run_elsewhere(
        self, conn: Conn, name: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        """Run a callback as a task; `Connection._callback_ended` is called at its end."""
        if name == "on_read" and self._in_threads:
            # From here on: what comes meanwhile is kept for when the thread is done.
            conn._in_thread = True
            conn._user = 0
            conn._thread = NOBODY
            self.nursery.start_soon(self._run_in_thread, conn, function, args)
        else:
            self.nursery.start_soon(self._run_async, conn, name, function, args)

    async def _run_async(
        self, conn: Conn, name: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        try:
            # on_close is called whatever happens, also when the server is cancelled.
            with trio.CancelScope(shield=name == "on_close") as scope:
                self._scopes.add(scope)
                try:
                    # What it would be told of went with the connection.
                    if name != "on_read" or conn._thread or conn._may_take_rest():
                        await function(conn, *args)
                finally:
                    self._scopes.discard(scope)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            conn._raised(name, exc)
        finally:
            conn._callback_ended(name)

    async def _run_in_thread(
        self, conn: Conn, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self.config.pool)

        def call() -> None:
            if conn._thread == 0:
                return  # ended before there was a thread for it
            conn._thread = conn._user = get_ident()
            function(conn, *args)

        raised: Exception | None = None
        try:
            await trio.to_thread.run_sync(call, limiter=self._limiter)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            raised = exc
        finally:
            conn._in_thread = False
            usable = conn._state is State.OPEN and not conn._close_when_idle
            conn._thread = conn._home if usable else 0
            if raised is not None:
                conn._raised("on_read", raised)
            conn._callback_ended("on_read")

    def cancel_callbacks(self) -> None:
        """The time is over: cancel the callbacks that run as tasks."""
        for scope in self._scopes:
            scope.cancel()
