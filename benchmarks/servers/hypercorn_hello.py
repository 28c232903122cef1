"""hypercorn and an application that says hello: ``hypercorn_hello.py LOOP``.

LOOP is ``ring`` or ``stock`` for its trio worker, ``asyncio`` or ``uvloop`` for its asyncio one.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import sys
from typing import Any

import trio
from hypercorn.asyncio import serve as serve_on_asyncio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_on_trio

from benchmarks.servers.control import announce
from benchmarks.servers.loops import TRIO, run_asyncio, run_trio

BODY = b"hello"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Hello to every request."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def config(bind: str) -> Config:
    """A connection may ask as often as it likes."""
    return Config.from_mapping(
        bind=[bind],
        errorlog=None,
        keep_alive_timeout=3600,
        keep_alive_max_requests=1 << 60,
    )


application: Any = app  # its types ask for more than a dict


async def main_on_trio() -> None:
    """Serve on a free port until the process ends."""
    # With it hypercorn handles no signals.
    forever = trio.Event().wait
    async with trio.open_nursery() as nursery:
        start = functools.partial(
            serve_on_trio, application, config("127.0.0.1:0"), shutdown_trigger=forever
        )
        (url,) = await nursery.start(start)
        found = re.search(r":(\d+)$", url)
        assert found is not None
        announce(int(found[1]))


async def main_on_asyncio() -> None:
    """The same; this worker tells no port, so the socket is made here."""
    listening = socket.create_server(("127.0.0.1", 0))
    serving = serve_on_asyncio(
        application, config(f"fd://{listening.fileno()}"), shutdown_trigger=asyncio.Event().wait
    )
    announce(listening.getsockname()[1])
    await serving


if __name__ == "__main__":
    if sys.argv[1] in TRIO:
        run_trio(sys.argv[1], main_on_trio)
    else:
        run_asyncio(sys.argv[1], main_on_asyncio)
