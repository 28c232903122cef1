"""What a server calls: a user's handler, and which of its callbacks are there at all."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio.gain._conn import Conn
    from uring_trio.gain._server import Server

CALLBACKS = (
    "on_start",
    "on_accept",
    "on_read",
    "on_write",
    "on_close",
    "on_eof",
    "on_tick",
)


class EventHandler:
    """The callbacks of a server; define those that you need, as ``def`` or ``async def``.

    A ``def`` runs in the worker's loop and must not block. An ``async def`` runs as a task;
    no two callbacks of one connection ever overlap. One that is not defined costs nothing.
    All workers share one handler: with more than one it is called from several threads.

    A callback that raises is logged, and closes its connection, which gets the exception
    in ``on_close``.
    """

    def on_start(self, server: Server) -> Any:
        """The addresses are bound, and nothing is accepted yet. To raise stops the start."""

    def on_accept(self, conn: Conn) -> Any:
        """A connection was accepted; with ``tls=`` its handshake is done. Not for UDP."""

    def on_read(self, conn: Conn, n: int) -> Any:
        """*n* bytes have come that no ``on_read`` has announced and nobody has consumed."""

    def on_write(self, conn: Conn, n: int) -> Any:
        """The kernel has taken *n* bytes since the last ``on_write``; at most once a tick."""

    def on_close(self, conn: Conn, err: BaseException | None) -> Any:
        """The connection is closed; called exactly once for each that was accepted.

        Args:
          conn: its data methods raise `ConnectionClosed` now.
          err: None after our ``close()``, ``abort()`` or shutdown; `EndOfStream` after the
            peer's end of file; an OSError; `DeadlineExceeded`; or what a callback raised.
        """

    def on_eof(self, conn: Conn) -> Any:
        """The peer has sent its end of file; the connection stays open for writing.

        Where a handler does not define it the connection flushes and closes by itself.
        """

    def on_tick(self, server: Server) -> Any:
        """Called every ``tick`` seconds, in worker 0 only."""


class Callbacks:
    """A handler's callbacks: the bound method of each, or None where it is not defined.

    Raises:
      TypeError: a callback is there and cannot be called.
    """

    on_start: Callable[..., Any] | None
    on_accept: Callable[..., Any] | None
    on_read: Callable[..., Any] | None
    on_write: Callable[..., Any] | None
    on_close: Callable[..., Any] | None
    on_eof: Callable[..., Any] | None
    on_tick: Callable[..., Any] | None

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self._async: set[str] = set()
        for name in CALLBACKS:
            method = getattr(handler, name, None)
            if getattr(method, "__func__", None) is getattr(EventHandler, name):
                method = None
            if method is not None and not callable(method):
                raise TypeError(f"{name} of {handler!r} must be callable, not {method!r}")
            if method is not None and is_async(method):
                self._async.add(name)
            setattr(self, name, method)
        if all(getattr(handler, name, None) is None for name in CALLBACKS):
            raise TypeError(f"a handler defines callbacks such as on_read; {handler!r} has none")

    def is_async(self, name: str) -> bool:
        """Whether the callback is an ``async def``."""
        return name in self._async

    def any_async(self) -> bool:
        """Whether a callback of a connection is an ``async def``."""
        return bool(self._async - {"on_start", "on_tick"})


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine; an object with ``async def __call__`` too."""
    call = getattr(function, "__call__", None)  # noqa: B004 - the method is wanted
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
