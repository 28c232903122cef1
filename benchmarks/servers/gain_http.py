"""HTTP plaintext on gain; the responder is the one of uvloop_http.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.servers.gain_control import Announcing, serve
from benchmarks.servers.responder import Responder

if TYPE_CHECKING:
    from uring_trio.gain import Conn


class Http(Announcing):
    """A responder for each connection."""

    def on_accept(self, conn: Conn) -> None:
        """The responder is the connection's context."""
        conn.context = Responder()

    def on_read(self, conn: Conn, n: int) -> None:
        """Answer all whole requests."""
        responder: Responder = conn.context
        conn.write(responder.feed(conn.next(n)))
        if responder.broken:
            conn.close()


if __name__ == "__main__":
    serve(Http())
