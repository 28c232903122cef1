"""Servers on trio's own streams: ``trio_streams.py ring|stock SERVICE``; the same code on both."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import sys
from typing import TYPE_CHECKING

import trio

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
from benchmarks.servers.loops import run_trio
from benchmarks.servers.responder import Responder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def echo(stream: trio.abc.Stream) -> None:
    """Send back what comes, until the client leaves."""
    while data := await stream.receive_some():
        await stream.send_all(data)


async def echo_with_deadline(stream: trio.abc.Stream) -> None:
    """The same; who says nothing for a while is left."""
    while True:
        data: bytes | bytearray = b""
        with trio.move_on_after(DEADLINE_S):
            data = await stream.receive_some()
        if not data:
            return
        await stream.send_all(data)


async def sink(stream: trio.abc.Stream) -> None:
    """Drop what comes."""
    while await stream.receive_some():
        pass


async def source(stream: trio.abc.Stream) -> None:
    """Send until the client leaves."""
    while True:
        await stream.send_all(CHUNK)


async def accept(stream: trio.abc.Stream) -> None:
    """One byte; serve_tcp() closes."""
    await stream.send_all(b"x")


async def ask(stream: trio.abc.Stream) -> None:
    """A whole request, and its answer."""
    request = b""
    while len(request) < ASK_BYTES:
        data = await stream.receive_some()
        if not data:
            return
        request += data
    await stream.send_all(request)


async def http(stream: trio.abc.Stream) -> None:
    """Answer all whole requests."""
    responder = Responder()
    while data := await stream.receive_some():
        await stream.send_all(responder.feed(bytes(data)))
        if responder.broken:
            return


HANDLERS: dict[str, Callable[[trio.abc.Stream], Awaitable[None]]] = {
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


async def serve_streams(service: str, nursery: trio.Nursery) -> int:
    """Listen, and return the port."""

    async def handle(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await HANDLERS[service](stream)

    if service == "unix":
        number = unix_number()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(f"\0{unix_name(number)}")
        listening.listen(BACKLOG)
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listening))]
        await nursery.start(trio.serve_listeners, handle, listeners)
        return number
    if service == "tls":
        ssl_listeners: list[trio.SSLListener[trio.SocketStream]] = await nursery.start(
            functools.partial(
                trio.serve_ssl_over_tcp, handle, 0, server_context(), host="127.0.0.1"
            )
        )
        [under] = [each.transport_listener for each in ssl_listeners]
        assert isinstance(under, trio.SocketListener)
        return int(under.socket.getsockname()[1])
    server = functools.partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
    tcp_listeners: list[trio.SocketListener] = await nursery.start(server)
    return int(tcp_listeners[0].socket.getsockname()[1])


async def echo_datagrams(sock: trio.socket.SocketType) -> None:
    """Each goes back to where it came from."""
    while True:
        data, sender = await sock.recvfrom(RECEIVE_BYTES)
        await sock.sendto(data, sender)


async def serve(service: str) -> None:
    """Listen on a free port of 127.0.0.1 until the process ends."""
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

        if service == "udp":
            sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            await sock.bind(("127.0.0.1", 0))
            nursery.start_soon(echo_datagrams, sock)
            port = sock.getsockname()[1]
        else:
            port = await serve_streams(service, nursery)
        announce(port, answer)


if __name__ == "__main__":
    run_trio(sys.argv[1], functools.partial(serve, sys.argv[2]))
