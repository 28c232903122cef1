"""Servers on asyncio's streams: ``asyncio_streams.py asyncio|uvloop|rloop SERVICE``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from typing import TYPE_CHECKING

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
from benchmarks.servers.loops import run_asyncio
from benchmarks.servers.responder import Responder

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Awaitable, Callable


# What a client that left makes of a write; a RuntimeError on rloop 0.5.
GONE = (ConnectionError, RuntimeError)


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    """Send back what comes, until the client leaves."""
    while data := await reader.read(RECEIVE_BYTES):
        writer.write(data)
        await writer.drain()


async def read_in_time(reader: StreamReader) -> bytes:
    """What comes, or nothing if that takes too long."""
    if sys.version_info >= (3, 11):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                return await reader.read(RECEIVE_BYTES)
        return b""
    try:
        return await asyncio.wait_for(reader.read(RECEIVE_BYTES), DEADLINE_S)
    except asyncio.TimeoutError:
        return b""


async def echo_with_deadline(reader: StreamReader, writer: StreamWriter) -> None:
    """The same; who says nothing for a while is left."""
    while data := await read_in_time(reader):
        writer.write(data)
        await writer.drain()


async def sink(reader: StreamReader, _writer: StreamWriter) -> None:
    """Drop what comes."""
    while await reader.read(RECEIVE_BYTES):
        pass


async def source(_reader: StreamReader, writer: StreamWriter) -> None:
    """Send until the client leaves."""
    while True:
        writer.write(CHUNK)
        await writer.drain()


async def accept(_reader: StreamReader, writer: StreamWriter) -> None:
    """One byte."""
    writer.write(b"x")


async def ask(reader: StreamReader, writer: StreamWriter) -> None:
    """A whole request, and its answer."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        writer.write(await reader.readexactly(ASK_BYTES))


async def http(reader: StreamReader, writer: StreamWriter) -> None:
    """Answer all whole requests."""
    responder = Responder()
    while (data := await reader.read(RECEIVE_BYTES)) and not responder.broken:
        writer.write(responder.feed(data))
        await writer.drain()


HANDLERS: dict[str, Callable[[StreamReader, StreamWriter], Awaitable[None]]] = {
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


async def serve(service: str) -> None:
    """Listen on a free port of 127.0.0.1 until the process ends."""
    allow_many_connections()

    async def handle(reader: StreamReader, writer: StreamWriter) -> None:
        with contextlib.suppress(*GONE):
            await HANDLERS[service](reader, writer)
        writer.close()

    if service == "unix":
        number = unix_number()
        server = await asyncio.start_unix_server(handle, f"\0{unix_name(number)}", backlog=BACKLOG)
    else:
        context = server_context() if service == "tls" else None
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=BACKLOG, ssl=context)
        number = server.sockets[0].getsockname()[1]
    announce(number)
    # It serves already, and serve_forever() would end that on rloop 0.5.
    async with server:
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    run_asyncio(sys.argv[1], functools.partial(serve, sys.argv[2]))
