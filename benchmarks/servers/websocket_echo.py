"""trio-websocket's echo: ``websocket_echo.py ring|stock``."""

from __future__ import annotations

import contextlib
import functools
import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from benchmarks.servers.control import announce
from benchmarks.servers.loops import run_trio


async def echo(request: WebSocketRequest) -> None:
    """Send back each message, until the client leaves."""
    socket = await request.accept()
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.send_message(await socket.get_message())


async def main() -> None:
    """Serve on a free port until the process ends."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(serve_websocket, echo, "127.0.0.1", 0, ssl_context=None)
        )
        announce(server.port)


if __name__ == "__main__":
    run_trio(sys.argv[1], main)
