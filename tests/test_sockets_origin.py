"""All ways to get a socket, and all ways to part with one while it is in use."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from trio.socket import SocketType

    Pair = tuple[SocketType, SocketType]

pytestmark = pytest.mark.differential


async def assert_connected(a: SocketType, b: SocketType) -> None:
    """Data flows both ways, also to a task that waits; on the ring, through the ring."""
    operations = getattr(harness.io_statistics(), "operations", {})
    before = operations.get("recv", 0), operations.get("send", 0)
    for source, target in ((a, b), (b, a)):
        received: list[bytes] = []

        async def receive(sock: SocketType = target, received: list[bytes] = received) -> None:
            received.append(await sock.recv(10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await source.send(b"x")
        assert received == [b"x"]
    if harness.io_statistics().backend == harness.RING:
        after = harness.io_statistics().operations
        assert after["recv"] >= before[0] + 2
        assert after["send"] >= before[1] + 2


async def accepted(listener: SocketType, connect: Callable[[], Awaitable[Any]]) -> Pair:
    """What ``connect()`` returned, and the other end of it."""
    results: dict[str, Any] = {}

    async def accept() -> None:
        results["server"], _ = await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        results["client"] = await connect()
    return results["client"], results["server"]


@pytest.fixture
async def listener() -> AsyncIterator[SocketType]:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    sock.listen()
    yield sock
    sock.close()


async def test_socket_connect_and_accept(listener: SocketType) -> None:
    async def connect() -> SocketType:
        await sock.connect(listener.getsockname())
        return sock

    sock = trio.socket.socket()
    client, server = await accepted(listener, connect)
    with client, server:
        assert client.getpeername() == server.getsockname()
        assert server.getpeername() == client.getsockname()
        assert not server.get_inheritable()
        assert server.family == stdlib_socket.AF_INET
        assert server.type & stdlib_socket.SOCK_STREAM
        await assert_connected(client, server)


async def test_socketpair() -> None:
    a, b = trio.socket.socketpair()
    with a, b:
        await assert_connected(a, b)


async def test_from_stdlib_socket() -> None:
    a, b = (trio.socket.from_stdlib_socket(sock) for sock in stdlib_socket.socketpair())
    with a, b:
        await assert_connected(a, b)


async def test_fromfd() -> None:
    a, b = stdlib_socket.socketpair()
    with a, b:
        family, type_ = stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM
        left = trio.socket.fromfd(a.fileno(), family, type_)
        right = trio.socket.fromfd(b.fileno(), family, type_)
        with left, right:
            await assert_connected(left, right)


async def test_socket_of_a_file_descriptor() -> None:
    a, b = stdlib_socket.socketpair()
    left = trio.socket.socket(fileno=a.detach())
    right = trio.socket.socket(fileno=b.detach())
    with left, right:
        await assert_connected(left, right)


async def test_dup() -> None:
    a, b = trio.socket.socketpair()
    with a, b, a.dup() as copy:
        await assert_connected(copy, b)
        await assert_connected(a, b)


async def test_open_tcp_stream_and_serve_tcp() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk.upper())

    async with trio.open_nursery() as nursery:
        (server,) = await nursery.start(
            functools.partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        )
        port = server.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"HELLO"
        nursery.cancel_scope.cancel()


async def test_open_tcp_listeners() -> None:
    for listener in await trio.open_tcp_listeners(0, host="127.0.0.1"):
        async with listener:
            client = await trio.testing.open_stream_to_socket_listener(listener)
            async with client, await listener.accept() as server:
                await assert_connected(client.socket, server.socket)


async def test_open_unix_socket(tmp_path: Path) -> None:
    with trio.socket.socket(stdlib_socket.AF_UNIX) as listener:
        await listener.bind(str(tmp_path / "socket"))
        listener.listen()
        async with await trio.open_unix_socket(tmp_path / "socket") as client:
            server, _ = await listener.accept()
            with server:
                await assert_connected(client.socket, server)


async def test_connect_errors(listener: SocketType) -> None:
    address = listener.getsockname()
    listener.close()
    with trio.socket.socket() as sock:
        with pytest.raises(ConnectionRefusedError) as caught:
            await sock.connect(address)
        # After a wait stock adds the address; refused at once, the errno's text only.
        assert "Connection refused" in str(caught.value)
        assert sock.fileno() != -1, "a failed connect does not close the socket"
    with trio.socket.socket() as sock, pytest.raises(OSError, match=r"unreachable|denied"):
        await sock.connect(("255.255.255.255", 1))


async def test_connecting_twice(listener: SocketType) -> None:
    with trio.socket.socket() as sock:
        await sock.connect(listener.getsockname())
        # After EINPROGRESS the kernel says EISCONN only from the third connect on.
        with contextlib.suppress(OSError):
            await sock.connect(listener.getsockname())
        with pytest.raises(OSError, match="already connected"):
            await sock.connect(listener.getsockname())


async def test_many_connections_are_accepted_in_order(listener: SocketType) -> None:
    clients = [trio.socket.socket() for _ in range(50)]
    for client in clients:
        await client.connect(listener.getsockname())
    for client in clients:
        server, address = await listener.accept()
        assert address == client.getsockname()
        server.close()
        client.close()


async def test_second_blocked_accept_is_busy(listener: SocketType) -> None:
    with trio.socket.socket() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closing_accept, listener)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await listener.accept()
            await client.connect(listener.getsockname())


async def closing_accept(listener: SocketType) -> None:
    sock, _ = await listener.accept()
    sock.close()


async def test_detach_gives_the_descriptor_away() -> None:
    a, b = trio.socket.socketpair()
    with b:
        await b.send(b"kept")
        fd = a.detach()
        assert a.fileno() == -1
        with stdlib_socket.socket(fileno=fd) as plain:
            assert plain.recv(10) == b"kept"


async def test_detach_with_a_receive_in_flight() -> None:
    # The socket is released without notice, so the waiting task may stay where it is;
    # but no byte may go to it that is meant for the new owner, and it can be cancelled.
    ended: list[str] = []

    async def receive(sock: SocketType) -> None:
        try:
            await sock.recv(10)
            ended.append("received")
        except (trio.ClosedResourceError, OSError):
            ended.append("closed")
        except trio.Cancelled:
            ended.append("cancelled")
            raise

    a, b = trio.socket.socketpair()
    with b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, a)
            await wait_all_tasks_blocked()
            with stdlib_socket.socket(fileno=a.detach()) as plain:
                await b.send(b"for the new owner")
                plain.settimeout(5)
                assert plain.recv(100) == b"for the new owner"
                nursery.cancel_scope.cancel()
    assert ended in (["closed"], ["cancelled"])


@pytest.mark.ring_only  # on stock they sleep until the descriptor is readable
@pytest.mark.parametrize("name", ["recv", "recv_into", "recvmsg", "accept", "send_all"])
async def test_detach_wakes_those_who_wait_with_EBADF(backend: str, name: str) -> None:
    """As they would find on stock when they try again; and not as if it were closed."""
    del backend
    woken: list[Any] = []
    waits: dict[str, Callable[[SocketType], Any]] = {
        "recv": lambda sock: sock.recv(5),
        "recv_into": lambda sock: sock.recv_into(bytearray(5)),
        "recvmsg": lambda sock: sock.recvmsg(5),
        "accept": lambda sock: sock.accept(),
        "send_all": lambda sock: trio.SocketStream(sock).send_all(bytes(8 << 20)),
    }

    async def wait(sock: SocketType) -> None:
        try:
            await waits[name](sock)
        except OSError as exc:
            woken.append(exc.errno)
        except trio.ClosedResourceError as exc:  # a stream's word for EBADF
            woken.append(str(exc))

    if name == "accept":
        sock, other = trio.socket.socket(), trio.socket.socket()
        await sock.bind(("127.0.0.1", 0))
        sock.listen()
    else:
        sock, other = trio.socket.socketpair()
    with other:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, sock)
                await wait_all_tasks_blocked()
                os.close(sock.detach())
    expected = "this socket was already closed" if name == "send_all" else errno.EBADF
    assert woken == [expected]


@pytest.mark.ring_only  # on stock they sleep until the descriptor is readable
async def test_a_closing_of_the_number_does_not_reach_who_was_told_of_a_detach() -> None:
    """The number is another file's by then, before its receive has come back."""
    results: list[Any] = []

    async def receive() -> None:
        try:
            results.append(await a.recv(10))
        except OSError as exc:
            results.append(exc.errno)

    a, b = trio.socket.socketpair()
    with b, trio.socket.socket() as another:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            number = a.detach()
            os.dup2(another.fileno(), number)
            trio.lowlevel.notify_closing(number)
            os.close(number)
    assert results == [errno.EBADF]


async def test_leaving_with_while_a_receive_is_in_flight() -> None:
    # Stock's __exit__ closes without notice. The peer sees the end at once all the same.
    async def receive(sock: SocketType) -> None:
        with pytest.raises((trio.ClosedResourceError, OSError, trio.Cancelled)):
            await sock.recv(10)

    a, b = trio.socket.socketpair()
    with b:
        async with trio.open_nursery() as nursery:
            with a:
                nursery.start_soon(receive, a)
                await wait_all_tasks_blocked()
            assert a.fileno() == -1
            assert await b.recv(1) == b""
            nursery.cancel_scope.cancel()


async def test_a_copy_keeps_the_connection_open_when_the_other_closes() -> None:
    a, b = trio.socket.socketpair()
    with a, b:
        copy = a.dup()
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await copy.recv(10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            a.close()
            await b.send(b"still there")
        assert received == [b"still ther"]
        copy.close()
        with pytest.raises(BrokenPipeError):
            await b.send(b"x")


async def test_a_closed_number_used_again_is_another_socket() -> None:
    for _ in range(30):
        a, b = trio.socket.socketpair()
        results: list[str] = []

        async def receive(sock: SocketType = a, results: list[str] = results) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sock.recv(10)
            results.append("closed")

        with b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await wait_all_tasks_blocked()
                number = a.fileno()
                a.close()
                c, d = trio.socket.socketpair()
                assert number in (c.fileno(), d.fileno())
                with c, d:
                    await assert_connected(c, d)
            assert results == ["closed"]


async def test_a_socket_that_is_dropped_while_idle_is_closed() -> None:
    a, b = trio.socket.socketpair()
    fd = a.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del a
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    b.close()
