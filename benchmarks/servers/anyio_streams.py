"""Servers on anyio's streams over asyncio: ``anyio_streams.py asyncio|uvloop SERVICE``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import anyio
from anyio.streams.tls import TLSListener

from benchmarks.servers.control import (
    ASK_BYTES,
    BACKLOG,
    CHUNK,
    DEADLINE_S,
    RECEIVE_BYTES,
    allow_many_connections,
    announce,
    server_context,
    unix_name,
    unix_number,
)
from benchmarks.servers.responder import Responder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream, Listener


async def echo(stream: ByteStream) -> None:
    """Send back what comes, until the client leaves."""
    while True:
        await stream.send(await stream.receive(RECEIVE_BYTES))


async def echo_with_deadline(stream: ByteStream) -> None:
    """The same; who says nothing for a while is left."""
    while True:
        data = b""
        with anyio.move_on_after(DEADLINE_S):
            data = await stream.receive(RECEIVE_BYTES)
        if not data:
            return
        await stream.send(data)


async def sink(stream: ByteStream) -> None:
    """Drop what comes."""
    while True:
        await stream.receive(RECEIVE_BYTES)


async def source(stream: ByteStream) -> None:
    """Send until the client leaves."""
    while True:
        await stream.send(CHUNK)


async def accept(stream: ByteStream) -> None:
    """One byte."""
    await stream.send(b"x")


async def ask(stream: ByteStream) -> None:
    """A whole request, and its answer."""
    request = b""
    while len(request) < ASK_BYTES:
        request += await stream.receive(RECEIVE_BYTES)
    await stream.send(request)


async def http(stream: ByteStream) -> None:
    """Answer all whole requests."""
    responder = Responder()
    while not responder.broken:
        await stream.send(responder.feed(await stream.receive(RECEIVE_BYTES)))


HANDLERS: dict[str, Callable[[ByteStream], Awaitable[None]]] = {
    "echo": echo,
    "deadline": echo_with_deadline,
    "sink": sink,
    "source": source,
    "accept": accept,
    "ask": ask,
    "http": http,
    "tls": echo,
    "unix": echo,
}


async def serve_datagrams() -> None:
    """Each goes back to where it came from."""
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as sock:
        announce(sock.extra(anyio.abc.SocketAttribute.local_port))
        async for data, (host, port) in sock:
            await sock.sendto(data, host, port)


async def serve(service: str) -> None:
    """Listen on a free port of 127.0.0.1 until the process ends."""
    allow_many_connections()
    if service == "udp":
        await serve_datagrams()
        return

    async def handle(stream: ByteStream) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                await HANDLERS[service](stream)

    listener: Listener[Any]
    if service == "unix":
        number = unix_number()
        listener = await anyio.create_unix_listener(f"\0{unix_name(number)}", backlog=BACKLOG)
    else:
        listener = await anyio.create_tcp_listener(
            local_host="127.0.0.1", local_port=0, backlog=BACKLOG
        )
        number = listener.extra(anyio.abc.SocketAttribute.local_port)
    if service == "tls":
        listener = TLSListener(listener, server_context())
    announce(number)
    await listener.serve(handle)


if __name__ == "__main__":
    anyio.run(
        serve,
        sys.argv[2],
        backend="asyncio",
        backend_options={"use_uvloop": sys.argv[1] == "uvloop"},
    )
