"""Sockets that are not ours, and files that are no pipes: trio's own way still works."""

from __future__ import annotations

import os
import socket as stdlib_socket
import tempfile
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.lowlevel import FdStream
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

pytestmark = pytest.mark.differential


class CountingSocket(trio.socket.SocketType):
    """A user's own socket: everything goes to another one, and is counted."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.inner = sock
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("inner", "calls") or name.startswith("__"):
            return object.__getattribute__(self, name)
        self.calls.append(name)
        return getattr(self.inner, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.inner.close()


def ring_operations() -> int:
    """How many operations of sockets went to the ring so far; 0 on stock."""
    counts = getattr(harness.io_statistics(), "operations", {})
    return sum(counts.get(name, 0) for name in ("recv", "send", "recvmsg", "sendmsg", "accept"))


async def test_a_users_socket_under_a_stream() -> None:
    a, b = trio.socket.socketpair()
    mine = CountingSocket(a)
    async with trio.SocketStream(mine) as left, trio.SocketStream(b) as right:
        await left.send_all(b"hello")
        assert await right.receive_some() == b"hello"
        await right.send_all(b"answer")
        assert await left.receive_some() == b"answer"
        await left.send_eof()
        assert await right.receive_some() == b""
    assert {"send", "recv", "shutdown"} <= set(mine.calls)


async def test_a_subclass_of_the_standard_librarys_socket_inside() -> None:
    # trio's own tests swap _sock like this, and expect its connect to be called.
    class Loud(stdlib_socket.socket):
        def connect(self, address: Any) -> None:
            calls.append("connect")
            raise ConnectionAbortedError

    calls: list[str] = []
    a, b = trio.socket.socketpair()
    with a, b:
        plain = a._sock  # type: ignore[attr-defined]
        a._sock = Loud(fileno=plain.detach())  # type: ignore[attr-defined]
        a._sock.setblocking(False)  # type: ignore[attr-defined]
        before = ring_operations()
        await a.send(b"x")
        assert ring_operations() == before
        assert await b.recv(10) == b"x"
        await b.send(b"y")
        assert await a.recv(10) == b"y"
        stream = trio.SocketStream(a)
        await stream.send_all(b"z")
        await b.send(b"w")
        assert await stream.receive_some() == b"w"
        with pytest.raises(ConnectionAbortedError):
            await a.connect("/nowhere")
    assert calls == ["connect"]


async def test_a_custom_socket_factory() -> None:
    class Factory(trio.abc.SocketFactory):
        def socket(self, family: Any = None, type_: Any = None, proto: Any = None) -> Any:
            made.append(CountingSocket(trio.socket.from_stdlib_socket(stdlib_socket.socket())))
            return made[-1]

    made: list[CountingSocket] = []
    assert trio.socket.set_custom_socket_factory(Factory()) is None
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with await trio.open_tcp_stream(*listener.getsockname()) as client:
            server, _ = await listener.accept()
            with server:
                await client.send_all(b"x")
                assert await server.recv(10) == b"x"
    assert len(made) == 2
    assert "send" in made[1].calls


async def test_fake_net() -> None:
    fake_net = pytest.importorskip("trio.testing._fake_net")
    fake_net.FakeNet().enable()
    a = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    b = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    before = ring_operations()
    with a, b:
        await a.bind(("127.0.0.1", 0))
        await b.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.recvfrom, 10)
            await wait_all_tasks_blocked()
            await a.sendto(b"x", b.getsockname())
        await a.sendto(b"y", b.getsockname())
        data, address = await b.recvfrom(10)
        assert (data, address) == (b"y", a.getsockname())
    assert ring_operations() == before


async def test_fd_stream_on_a_regular_file(tmp_path: Path) -> None:
    # trio does not forbid it. The position moves on, as with read(2) and write(2).
    path = tmp_path / "file"
    async with FdStream(os.open(path, os.O_RDWR | os.O_CREAT)) as stream:
        await stream.send_all(b"0123456789")
        os.lseek(stream.fileno(), 2, os.SEEK_SET)
        assert await stream.receive_some(3) == b"234"
        assert await stream.receive_some(100) == b"56789"
        assert await stream.receive_some(100) == b""
        await stream.send_all(b"more")
    assert path.read_bytes() == b"0123456789more"
    async with FdStream(os.open(path, os.O_WRONLY | os.O_APPEND)) as stream:
        await stream.send_all(b"!")
    assert path.read_bytes() == b"0123456789more!"


async def test_fd_stream_on_devices() -> None:
    async with FdStream(os.open("/dev/zero", os.O_RDONLY)) as zero:
        assert await zero.receive_some(1000) == bytes(1000)
    async with FdStream(os.open("/dev/null", os.O_RDWR)) as null:
        await null.send_all(bytes(1 << 20))
        assert await null.receive_some(10) == b""


async def test_fd_stream_of_a_large_file() -> None:
    payload = os.urandom(3 << 20)
    with tempfile.TemporaryFile() as file:
        file.write(payload)
        file.flush()
        file.seek(0)
        async with FdStream(os.dup(file.fileno())) as stream:
            received = b""
            async for chunk in stream:
                received += chunk
    assert received == payload


async def test_readiness_and_operations_on_one_socket() -> None:
    a, b = trio.socket.socketpair()
    with a, b:
        for i in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, a)
                await wait_all_tasks_blocked()
                await b.send(b"%d" % i)
            assert await a.recv(10) == b"%d" % i
            await trio.lowlevel.wait_writable(a)
            await a.send(b"x")
            assert await b.recv(10) == b"x"


async def test_blocking_mode_of_a_borrowed_socket_does_not_matter() -> None:
    # A copy of the descriptor shares its mode: someone may have set it to blocking.
    a, b = trio.socket.socketpair()
    with a, b, stdlib_socket.socket(fileno=os.dup(a.fileno())) as copy:
        copy.settimeout(5)
        copy.setblocking(False)
        await b.send(b"x")
        assert await a.recv(10) == b"x"
