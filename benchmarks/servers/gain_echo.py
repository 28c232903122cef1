"""Echo on gain, as its documentation has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.servers.gain_control import Announcing, serve

if TYPE_CHECKING:
    from uring_trio.gain import Conn


class Echo(Announcing):
    """Sends back what comes."""

    def on_read(self, conn: Conn, n: int) -> None:
        """Queue it; the worker sends all of a tick at once."""
        conn.write(conn.next(n))


if __name__ == "__main__":
    serve(Echo())
