"""Servers on asyncio's protocols, the fastest that its loops have, as callbacks.

``asyncio_protocols.py asyncio|uvloop|rloop SERVICE``
"""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Any, cast

from benchmarks.servers.control import (
    ASK_BYTES,
    BACKLOG,
    CHUNK,
    allow_many_connections,
    announce,
    server_context,
    unix_name,
    unix_number,
)
from benchmarks.servers.loops import run_asyncio
from benchmarks.servers.responder import Responder

# So many chunks in one turn of the loop, however fast the client takes them: others come too.
CHUNKS_A_TURN = 16


class Connection(asyncio.Protocol):
    """Keeps the transport."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first callback."""
        self.transport = cast("asyncio.Transport", transport)


class Echo(Connection):
    """Sends back what comes."""

    def data_received(self, data: bytes) -> None:
        """Queue it; uvloop sends all of an iteration at once."""
        self.transport.write(data)


class Sink(Connection):
    """Drops what comes."""

    def data_received(self, data: bytes) -> None:
        """Nothing."""


class Source(Connection):
    """Sends until the client leaves."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self.loop = asyncio.get_running_loop()
        self.paused = False
        self.more()

    def more(self) -> None:
        """As much as the transport takes, or a turn's."""
        for _ in range(CHUNKS_A_TURN):
            if self.paused or self.transport.is_closing():
                return
            self.transport.write(CHUNK)
        self.loop.call_soon(self.more)

    def pause_writing(self) -> None:
        """Enough."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        self.more()


class Accept(Connection):
    """One byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """And that was it."""
        super().connection_made(transport)
        self.transport.write(b"x")
        self.transport.close()


class Ask(Connection):
    """A whole request, and its answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing has come yet."""
        super().connection_made(transport)
        self.request = b""

    def data_received(self, data: bytes) -> None:
        """Gather, and answer once."""
        self.request += data
        if len(self.request) >= ASK_BYTES:
            self.transport.write(self.request)
            self.transport.close()


class Http(Connection):
    """A responder for each connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make the responder."""
        super().connection_made(transport)
        self.responder = Responder()

    def data_received(self, data: bytes) -> None:
        """Answer all whole requests."""
        self.transport.write(self.responder.feed(data))
        if self.responder.broken:
            self.transport.close()


class EchoDatagrams(asyncio.DatagramProtocol):
    """Each goes back to where it came from."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Back."""
        self.transport.sendto(data, addr)


PROTOCOLS: dict[str, type[Connection]] = {
    "echo": Echo,
    "sink": Sink,
    "source": Source,
    "accept": Accept,
    "ask": Ask,
    "http": Http,
    "tls": Echo,
    "unix": Echo,
}


async def serve(service: str) -> None:
    """Serve on a free port of 127.0.0.1 until the process ends."""
    allow_many_connections()
    loop = asyncio.get_running_loop()
    if service == "udp":
        transport, _ = await loop.create_datagram_endpoint(
            EchoDatagrams, local_addr=("127.0.0.1", 0)
        )
        announce(transport.get_extra_info("sockname")[1])
        await loop.create_future()
        return
    protocol = PROTOCOLS[service]
    if service == "unix":
        number = unix_number()
        server = await loop.create_unix_server(protocol, f"\0{unix_name(number)}", backlog=BACKLOG)
    else:
        context = server_context() if service == "tls" else None
        server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=BACKLOG, ssl=context)
        number = server.sockets[0].getsockname()[1]
    announce(number)
    # It serves already, and serve_forever() would end that on rloop 0.5.
    async with server:
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    run_asyncio(sys.argv[1], functools.partial(serve, sys.argv[2]))
