"""Servers on gain's callbacks: ``gain_callbacks.py SERVICE [--workers N]``."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from typing import TYPE_CHECKING

from benchmarks.servers.control import (
    ASK_BYTES,
    CHUNK,
    allow_many_connections,
    announce,
    server_context,
    unix_name,
    unix_number,
)
from benchmarks.servers.responder import Responder
from uring_trio import gain

if TYPE_CHECKING:
    from uring_trio.gain import Conn, Server


def answer(server: Server, request: str) -> str:
    """The sums over all workers, as JSON; called by the thread that reads the requests."""
    if request != "statistics":
        return "unknown"
    workers = [dataclasses.asdict(each) for each in server.statistics().workers]
    return json.dumps({name: sum(each[name] for each in workers) for name in workers[0]})


class Announcing(gain.EventHandler):
    """Tells its port as every server here does."""

    def on_start(self, server: Server) -> None:
        """Bound, and not accepting yet: clients wait in the backlog."""
        address = server.addresses()[0]
        number = unix_number() if address.network == "unix" else address[1]
        announce(number, functools.partial(answer, server))


class Echo(Announcing):
    """Sends back what comes, bytes and datagrams alike."""

    def on_read(self, conn: Conn, n: int) -> None:
        """Queue it; the worker sends all of a tick at once."""
        conn.write(conn.next(n))


class Sink(Announcing):
    """Drops what comes."""

    def on_read(self, conn: Conn, n: int) -> None:
        """Out of the buffer, and no more."""
        conn.discard(n)


class Source(Announcing):
    """Sends until the client leaves."""

    def on_accept(self, conn: Conn) -> None:
        """Two chunks, so that one is there while the other is on its way."""
        conn.write(CHUNK)
        conn.write(CHUNK)

    def on_write(self, conn: Conn, n: int) -> None:
        """One more for each that is gone."""
        while conn.outbound_buffered() <= len(CHUNK) and conn.write(CHUNK):
            pass


class Accept(Announcing):
    """One byte."""

    def on_accept(self, conn: Conn) -> None:
        """And that was it; what was written is sent first."""
        conn.write(b"x")
        conn.close()


class Ask(Announcing):
    """A whole request, and its answer."""

    def on_read(self, conn: Conn, n: int) -> None:
        """Leave it in the buffer until all is there."""
        if conn.inbound_buffered() >= ASK_BYTES:
            conn.write(conn.next(ASK_BYTES))
            conn.close()


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


HANDLERS: dict[str, type[Announcing]] = {
    "echo": Echo,
    "sink": Sink,
    "source": Source,
    "accept": Accept,
    "ask": Ask,
    "http": Http,
    "tls": Echo,
    "unix": Echo,
    "udp": Echo,
}


def main() -> None:
    """Serve on a free port of 127.0.0.1 until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("service", choices=HANDLERS)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    allow_many_connections()
    address = {"udp": "udp://127.0.0.1:0", "unix": f"unix://@{unix_name(unix_number())}"}
    gain.listen_and_serve(
        address.get(arguments.service, "tcp://127.0.0.1:0"),
        HANDLERS[arguments.service](),
        workers=arguments.workers,
        tls=server_context() if arguments.service == "tls" else None,
    )


if __name__ == "__main__":
    main()
