"""The echo server of ring.py and stock.py: trio's own stream API under ``trio.serve_tcp``."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import TYPE_CHECKING

import trio

from benchmarks.servers.control import allow_many_connections, announce

if TYPE_CHECKING:
    from trio import SocketStream


async def echo(stream: SocketStream) -> None:
    """Send back what comes, until the client leaves."""
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            await stream.send_all(data)


async def serve() -> None:
    """Listen on a free port of 127.0.0.1 and echo until the process ends."""
    allow_many_connections()
    token = trio.lowlevel.current_trio_token()
    async with trio.open_nursery() as nursery:

        def start_deadlines(count: int, seconds: float) -> None:
            for number in range(count):
                nursery.start_soon(trio.sleep, seconds * (number + 1) / (count + 1))

        def answer_here(request: str) -> str:
            match request.split():
                case ["statistics"]:
                    io_statistics = trio.lowlevel.current_statistics().io_statistics
                    return json.dumps(
                        {
                            "backend": io_statistics.backend,
                            "enters": getattr(io_statistics, "enters", None),
                        }
                    )
                case ["deadlines", count, seconds]:
                    start_deadlines(int(count), float(seconds))
                    return "{}"
            return "unknown"

        def answer(request: str) -> str:
            return trio.from_thread.run_sync(answer_here, request, trio_token=token)

        server = functools.partial(trio.serve_tcp, echo, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(server)
        announce(listeners[0].socket.getsockname()[1], answer)
