"""Echo on uvloop's fastest interface, ``asyncio.Protocol``; uvloop_http.py listens so too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import uvloop

from benchmarks.servers.control import allow_many_connections, announce

if TYPE_CHECKING:
    from collections.abc import Callable


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Queue it; uvloop sends all of an iteration at once."""
        self.transport.write(data)


async def serve(protocol: Callable[[], asyncio.Protocol]) -> None:
    """Serve on a free port of 127.0.0.1 until the process ends."""
    allow_many_connections()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=4096)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Echo))
