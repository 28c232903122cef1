"""trio.socket over TCP: data, errors, closing, order between tasks."""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

CLOSERS: dict[str, Callable[[SocketType], object]] = {
    "close": lambda sock: sock.close(),
    "with": lambda sock: sock.__exit__(None, None, None),
}


@pytest.fixture
async def tcp() -> AsyncIterator[tuple[SocketType, SocketType]]:
    a, b = await harness.tcp_pair()
    yield a, b
    a.close()
    b.close()


async def received_into(results: list[Any], sock: SocketType, size: int = 100) -> None:
    """Receive once, and note the data or the name of the error."""
    try:
        results.append(await sock.recv(size))
    except (trio.ClosedResourceError, trio.BusyResourceError, OSError) as exc:
        results.append(type(exc).__name__)


async def test_recv_and_send(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    with assert_checkpoints():
        assert await a.send(b"hello") == 5
    with assert_checkpoints():
        assert await b.recv(3) == b"hel"
    assert await b.recv(100) == b"lo"
    a.shutdown(stdlib_socket.SHUT_WR)
    for _ in range(2):
        with assert_checkpoints():
            assert await b.recv(100) == b""


async def test_blocked_recv_gets_what_comes(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, b)
        await wait_all_tasks_blocked()
        assert results == []
        await a.send(b"late")
    assert results == [b"late"]


@pytest.mark.parametrize("size", [1, 8 << 10, 64 << 10, 128 << 10, 1 << 20, 8 << 20])
async def test_recv_never_returns_more_than_asked(
    tcp: tuple[SocketType, SocketType], size: int
) -> None:
    a, b = tcp
    payload = os.urandom(256 << 10)

    async def send() -> None:
        sent = 0
        while sent < len(payload):
            sent += await a.send(payload[sent:])
        a.shutdown(stdlib_socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = bytearray()
        for _ in range(50):
            chunk = await b.recv(size)
            assert len(chunk) <= size
            received += chunk
        while chunk := await b.recv(1 << 20):
            received += chunk
    assert received == payload


async def test_recv_into_writes_only_what_came(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    buffer = bytearray(b"." * 10)
    await a.send(b"abcdef")
    assert await b.recv_into(buffer, 3) == 3
    assert buffer == b"abc......."
    assert await b.recv_into(memoryview(buffer)[5:]) == 3
    assert buffer == b"abc..def.."
    buffer.extend(b"x")  # the buffer is free again


async def test_blocked_recv_into(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    buffer = bytearray(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.recv_into, buffer)
        await wait_all_tasks_blocked()
        if buffer_is_pinned():
            with pytest.raises(BufferError):
                buffer.append(0)
        await a.send(b"abc")
    assert buffer.startswith(b"abc")
    buffer.clear()


def buffer_is_pinned() -> bool:
    """Stock holds no buffer while it waits; on the ring it belongs to the kernel."""
    return bool(harness.io_statistics().backend == harness.RING)


async def test_short_send_returns_the_count(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    payload = os.urandom(32 << 20)
    with trio.fail_after(10):
        sent = await a.send(payload)
    assert 0 < sent < len(payload)
    received = bytearray()
    while len(received) < sent:
        received += await b.recv(1 << 20)
    assert received == payload[:sent]


async def test_blocked_send_goes_on_when_the_peer_reads(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    total = harness.fill(a._sock)  # type: ignore[attr-defined]
    sent: list[int] = []

    async def send() -> None:
        sent.append(await a.send(b"y" * 1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.01)
        assert sent == []
        received = b""
        while not sent or len(received) < total + sent[0]:
            received += await b.recv(1 << 20)
    assert received == b"x" * total + b"y" * sent[0]


@pytest.mark.parametrize("closer", CLOSERS)
async def test_close_wakes_a_blocked_receive(
    tcp: tuple[SocketType, SocketType], closer: str
) -> None:
    a, b = tcp
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, b)
        await wait_all_tasks_blocked()
        if closer == "with" and not buffer_is_pinned():
            trio.lowlevel.notify_closing(b)  # stock's __exit__ forgets it
        CLOSERS[closer](b)
    assert results in (["ClosedResourceError"], ["OSError"])
    assert await a.recv(1) == b""


async def test_peer_sees_the_end_before_close_returns(
    tcp: tuple[SocketType, SocketType],
) -> None:
    a, b = tcp
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, b)
        await wait_all_tasks_blocked()
        b.close()
        # Synchronously: no tick of trio's may be needed for the FIN.
        a._sock.settimeout(5)  # type: ignore[attr-defined]
        assert a._sock.recv(1) == b""  # type: ignore[attr-defined]
        a._sock.settimeout(0)  # type: ignore[attr-defined]
    assert results == ["ClosedResourceError"]


async def test_a_closed_listener_can_be_bound_again_at_once() -> None:
    async def accept(listener: SocketType) -> None:
        with pytest.raises((trio.ClosedResourceError, OSError)):
            await listener.accept()

    port = 0
    for _ in range(20):
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", port))
        listener.listen()
        port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, listener)
            await wait_all_tasks_blocked()
            listener.close()
            with stdlib_socket.socket() as again:
                again.bind(("127.0.0.1", port))


async def test_closed_socket(tcp: tuple[SocketType, SocketType]) -> None:
    a, _ = tcp
    a.close()
    a.close()
    assert a.fileno() == -1
    for operation in (
        lambda: a.recv(1),
        lambda: a.recv_into(bytearray(1)),
        lambda: a.recvmsg(1),
        lambda: a.recvfrom(1),
        lambda: a.send(b"x"),
        lambda: a.sendmsg([b"x"]),
        lambda: a.accept(),
    ):
        with assert_checkpoints(), pytest.raises(OSError, match="Bad file descriptor") as caught:
            await operation()
        assert caught.value.errno == errno.EBADF


async def test_not_connected_socket() -> None:
    with trio.socket.socket() as sock:
        for operation, number in (
            (lambda: sock.recv(1), errno.ENOTCONN),
            (lambda: sock.send(b"x"), errno.EPIPE),
            (lambda: sock.accept(), errno.EINVAL),
            (lambda: sock.sendmsg([b"x"]), errno.EPIPE),
        ):
            with assert_checkpoints(), pytest.raises(OSError, match="Errno") as caught:
                await operation()
            assert caught.value.errno == number


async def test_reset_and_broken_pipe(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
    b.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, linger)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, a)
        await wait_all_tasks_blocked()
        b.close()
    assert results == ["ConnectionResetError"]
    with pytest.raises(BrokenPipeError):
        await a.send(b"x")


async def test_tasks_on_one_socket_receive_in_order(tcp: tuple[SocketType, SocketType]) -> None:
    # All the data is there, so nobody has to wait for long: no task is busy.
    a, b = tcp
    await a.send(b"abcde")
    await trio.lowlevel.wait_readable(b)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(received_into, results, b, 1)
    assert sorted(results) == [b"a", b"b", b"c", b"d", b"e"]


async def test_second_blocked_receive_is_busy(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, b)
        await wait_all_tasks_blocked()
        for _ in range(3):
            with pytest.raises(trio.BusyResourceError):
                await b.recv(1)
        await a.send(b"for the first")
    assert results == [b"for the first"]


async def test_both_directions_are_independent(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, b)
        await wait_all_tasks_blocked()
        await b.send(b"out")
        assert await a.recv(10) == b"out"
        await a.send(b"in")
    assert results == [b"in"]


async def test_is_readable_while_a_receive_is_in_flight(
    tcp: tuple[SocketType, SocketType],
) -> None:
    a, b = tcp
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received_into, results, b, 2)
        await wait_all_tasks_blocked()
        assert not b.is_readable()
        await a.send(b"abcd")
        await wait_all_tasks_blocked()
        assert results == [b"ab"]
        assert b.is_readable()
    assert await b.recv(10) == b"cd"
    assert not b.is_readable()


async def test_peek_leaves_the_data(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    results: list[Any] = []

    async def peek() -> None:
        results.append(await b.recv(10, stdlib_socket.MSG_PEEK))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peek)
        await wait_all_tasks_blocked()
        await a.send(b"abc")
    assert results == [b"abc"]
    assert await b.recv(10, stdlib_socket.MSG_PEEK) == b"abc"
    assert b.is_readable()
    assert await b.recv(10) == b"abc"


async def test_out_of_band_data(tcp: tuple[SocketType, SocketType]) -> None:
    a, b = tcp
    await a.send(b"abc!", stdlib_socket.MSG_OOB)
    assert await b.recv(10) == b"abc"
    assert await b.recv(10, stdlib_socket.MSG_OOB) == b"!"
