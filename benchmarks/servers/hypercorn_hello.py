"""hypercorn's trio worker and an application that says hello: ``hypercorn_hello.py ring|stock``."""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from benchmarks.servers.control import announce
from benchmarks.servers.on import run_on

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


async def main() -> None:
    """Serve on a free port until the process ends; a connection may ask as often as it likes."""
    config = Config.from_mapping(
        bind=["127.0.0.1:0"],
        errorlog=None,
        keep_alive_timeout=3600,
        keep_alive_max_requests=1 << 60,
    )
    # With it hypercorn handles no signals.
    forever = trio.Event().wait
    application: Any = app  # its types ask for more than a dict
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(
            functools.partial(serve, application, config, shutdown_trigger=forever)
        )
        found = re.search(r":(\d+)$", url)
        assert found is not None
        announce(int(found[1]))


if __name__ == "__main__":
    run_on(sys.argv[1], main)
