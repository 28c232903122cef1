"""Every way in which anyio makes a socket ends on the ring.

For each of them, traffic in a run of its own, and then the proof: the operations that moved it,
no call that went trio's own way, and no call of a stdlib socket's method by the run's thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from ecosystem_tools import (
    HOST,
    client_context,
    marks,
    need,
    on_ring,
    server_context,
    stdlib_socket_calls,
)

need("anyio")

import anyio
from anyio.abc import (
    ConnectedUDPSocket,
    ConnectedUNIXDatagramSocket,
    SocketAttribute,
    SocketListener,
    SocketStream,
    UDPSocket,
    UNIXDatagramSocket,
    UNIXSocketStream,
)
from anyio.streams.tls import TLSListener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = marks()

ROUNDS = 10
LARGE = os.urandom(1 << 20)
MESSAGE = b"a datagram"


def prove(async_fn: Callable[[], Awaitable[None]], **at_least: int) -> None:
    """Run on the ring; so many operations or calls of ours, and none of Python's on a socket."""

    async def main() -> None:
        with stdlib_socket_calls() as calls:
            await async_fn()
        assert calls == []

    on_ring(main, **at_least)


async def echo(stream: Any) -> None:
    """Until the peer sends its end. The peer's streams are closed by itself."""
    async with stream:
        async for data in stream:
            await stream.send(data)


async def talk(stream: Any, *, large: bool = True) -> None:
    """Small messages one by one, a large one both ways at once, and the end."""
    async with stream:
        for number in range(ROUNDS):
            await stream.send(b"%d" % number)
            assert await stream.receive() == b"%d" % number
        if large:
            received = bytearray()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, LARGE)
                while len(received) < len(LARGE):
                    received += await stream.receive()
            assert received == LARGE


async def serve_and_talk(
    listener: Any, connect: Callable[[], Awaitable[Any]], *, large: bool = True
) -> None:
    """Three clients of an echo server, one after the other."""
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        for _ in range(3):
            await talk(await connect(), large=large)
        tasks.cancel_scope.cancel()


def test_tcp_listener_and_streams() -> None:
    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST)
        port = listener.extra(SocketAttribute.local_port)
        await serve_and_talk(listener, lambda: anyio.connect_tcp(HOST, port))

    prove(main, poll_add=3, connect=3, send=6 * ROUNDS, recv=6 * ROUNDS)


def test_tls_over_a_listener() -> None:
    context = client_context()

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST)
        port = listener.extra(SocketAttribute.local_port)
        secure = TLSListener(listener, server_context())
        await serve_and_talk(
            secure, lambda: anyio.connect_tcp(HOST, port, ssl_context=context, tls_hostname=HOST)
        )

    prove(main, poll_add=3, connect=3, send=6 * ROUNDS, recv=6 * ROUNDS)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_unix_listener_and_streams(tmp_path: Path, kind: Any) -> None:
    large = kind == socket.SOCK_STREAM
    path = tmp_path / "socket"

    async def main() -> None:
        listener: Any = await anyio.create_unix_listener(path, kind=kind)
        await serve_and_talk(listener, lambda: anyio.connect_unix(path, kind=kind), large=large)

    prove(main, poll_add=3, send=6 * ROUNDS, recv=6 * ROUNDS)


def test_file_descriptors_over_a_unix_stream(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    sent = tmp_path / "sent"
    sent.write_text("a file that travels")

    async def give(stream: UNIXSocketStream) -> None:
        async with stream:
            for _ in range(ROUNDS):
                with sent.open("rb") as file:
                    await stream.send_fds(b"here", [file.fileno()])
                assert await stream.receive() == b"thanks"

    async def main() -> None:
        listener: Any = await anyio.create_unix_listener(path)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, give)
            async with await anyio.connect_unix(path) as client:
                for _ in range(ROUNDS):
                    message, (fd,) = await client.receive_fds(4, 1)
                    assert (message, os.read(fd, 100)) == (b"here", sent.read_bytes())
                    os.close(fd)
                    await client.send(b"thanks")
            tasks.cancel_scope.cancel()

    prove(main, sendmsg=ROUNDS, recvmsg=ROUNDS, send=ROUNDS, recv=ROUNDS, poll_add=1)


def test_udp_sockets() -> None:
    async def main() -> None:
        async with await anyio.create_udp_socket(local_host=HOST) as server:
            port = server.extra(SocketAttribute.local_port)
            async with await anyio.create_udp_socket(local_host=HOST) as client:
                for _ in range(ROUNDS):
                    await client.sendto(MESSAGE, HOST, port)
                    data, address = await server.receive()
                    assert data == MESSAGE
                    assert address[1] == client.extra(SocketAttribute.local_port)
            async with await anyio.create_connected_udp_socket(HOST, port) as connected:
                for _ in range(ROUNDS):
                    await connected.send(MESSAGE)
                    data, address = await server.receive()
                    await server.sendto(data, *address)
                    assert await connected.receive() == MESSAGE

    prove(main, sendmsg=2 * ROUNDS, recvmsg=2 * ROUNDS, send=ROUNDS)


def test_unix_datagram_sockets(tmp_path: Path) -> None:
    path, back = str(tmp_path / "server"), str(tmp_path / "client")

    async def main() -> None:
        async with await anyio.create_unix_datagram_socket(local_path=path) as server:
            async with await anyio.create_unix_datagram_socket(local_path=back) as client:
                for _ in range(ROUNDS):
                    await client.sendto(MESSAGE, path)
                    assert await server.receive() == (MESSAGE, back)
            os.unlink(back)
            async with await anyio.create_connected_unix_datagram_socket(
                path, local_path=back
            ) as connected:
                for _ in range(ROUNDS):
                    await connected.send(MESSAGE)
                    data, address = await server.receive()
                    await server.sendto(data, address)
                    assert await connected.receive() == MESSAGE

    prove(main, sendmsg=2 * ROUNDS, recvmsg=2 * ROUNDS, send=ROUNDS)


def stdlib_pair(type_: int, path: Path) -> tuple[socket.socket, socket.socket]:
    """Two that are bound and connected to each other, made without anybody's event loop."""
    if type_ == socket.AF_UNIX:
        ends = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        names: list[Any] = [f"{path}/a", f"{path}/b"]
    else:
        ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        names = [(HOST, 0)] * 2
    for end, name in zip(ends, names, strict=True):
        end.bind(name)
    return ends[0], ends[1]


def connected_pair(family: int, path: Path) -> tuple[socket.socket, socket.socket]:
    a, b = stdlib_pair(family, path)
    a.connect(b.getsockname())
    b.connect(a.getsockname())
    return a, b


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_listener_and_streams_from_sockets(tmp_path: Path, family: int) -> None:
    address: Any = (HOST, 0) if family == socket.AF_INET else str(tmp_path / "socket")
    stream_type = SocketStream if family == socket.AF_INET else UNIXSocketStream
    raw_listener = socket.socket(family)
    raw_listener.bind(address)
    raw_listener.listen()
    raw_clients = [socket.socket(family) for _ in range(3)]
    for client in raw_clients:
        client.connect(raw_listener.getsockname())

    async def main() -> None:
        listener = await SocketListener.from_socket(raw_listener)

        async def connect() -> SocketStream:
            return await stream_type.from_socket(raw_clients.pop())

        await serve_and_talk(listener, connect)

    prove(main, poll_add=3, send=6 * ROUNDS, recv=6 * ROUNDS)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_datagram_sockets_from_sockets(tmp_path: Path, family: int) -> None:
    plain_type: Any = UDPSocket if family == socket.AF_INET else UNIXDatagramSocket
    connected_type: Any = (
        ConnectedUDPSocket if family == socket.AF_INET else ConnectedUNIXDatagramSocket
    )
    for name in ("plain", "connected"):
        (tmp_path / name).mkdir()
    plain = stdlib_pair(family, tmp_path / "plain")
    connected = connected_pair(family, tmp_path / "connected")
    name = plain[1].getsockname()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            a, b = [
                await stack.enter_async_context(await plain_type.from_socket(end)) for end in plain
            ]
            for _ in range(ROUNDS):
                await a.send((MESSAGE, name))
                assert (await b.receive())[0] == MESSAGE
            a, b = [
                await stack.enter_async_context(await connected_type.from_socket(end))
                for end in connected
            ]
            for _ in range(ROUNDS):
                await a.send(MESSAGE)
                assert await b.receive() == MESSAGE

    prove(main, sendmsg=ROUNDS, recvmsg=ROUNDS, send=ROUNDS)


def test_the_proof_sees_calls_of_stdlib_sockets(backend: str) -> None:
    """The negative half: what goes behind trio's back is seen, and what stock trio does."""

    async def main() -> None:
        a, b = socket.socketpair()
        with a, b, stdlib_socket_calls() as calls:
            a.send(b"x")
            b.recv(1)
        assert calls == ["send", "recv"]
        c, d = trio.socket.socketpair()
        with c, d, stdlib_socket_calls() as calls:
            await c.send(b"x")
            await d.recv(1)
        assert calls == (["send", "recv"] if backend == harness.EPOLL else [])

    harness.run(backend, main)
