"""Echo on asyncio's streams; uvloop_streams.py runs the same on uvloop."""

from __future__ import annotations

import asyncio
import contextlib

from benchmarks.servers.control import allow_many_connections, announce

# As much as trio's receive_some() takes at most, so that all servers may read alike.
RECEIVE_BYTES = 65536


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until the client leaves."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(RECEIVE_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve() -> None:
    """Listen on a free port of 127.0.0.1 and echo until the process ends."""
    allow_many_connections()
    # backlog: asyncio's 100 would drop some of 1,000 clients that connect at once.
    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=4096)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
