"""HTTP plaintext on ``asyncio.Protocol`` and uvloop; the responder is the one of gain_http.py."""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from benchmarks.servers.responder import Responder
from benchmarks.servers.uvloop_protocol import serve


class Http(asyncio.Protocol):
    """A responder for each connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and make the responder."""
        self.transport = cast("asyncio.Transport", transport)
        self.responder = Responder()

    def data_received(self, data: bytes) -> None:
        """Answer all whole requests."""
        self.transport.write(self.responder.feed(data))
        if self.responder.broken:
            self.transport.close()


if __name__ == "__main__":
    uvloop.run(serve(Http))
