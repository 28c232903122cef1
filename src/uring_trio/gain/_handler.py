"""`EventHandler`: the callbacks that a user may define."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uring_trio.gain._callbacks import CALLBACKS, note_undefined

if TYPE_CHECKING:
    from uring_trio.gain._conn import Conn
    from uring_trio.gain._server import Server


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


for _name in CALLBACKS:
    note_undefined(getattr(EventHandler, _name))
