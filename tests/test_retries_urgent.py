"""Urgent bytes, which wake a receive that they are not for.

POLLPRI stays set as long as nobody has read beyond the byte: a peek never does. io_uring's own
poll of a receive asks for POLLPRI, so one byte from anybody keeps such a receive trying.
"""

from __future__ import annotations

import contextlib
import itertools
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

TIMES = 200  # more than the kernel's 128 retries
CONNECTIONS: dict[str, Callable[[], Any]] = {
    "tcp": tools.tcp_connection,
    "tcp6": lambda: tools.tcp_connection(stdlib_socket.AF_INET6),
    "unix": tools.unix_connection,
}
INLINE_TIMES = 20  # each ends a receive, which begins anew
KINDS = pytest.mark.parametrize("kind", CONNECTIONS)


def window_s(how: str) -> float:
    return tools.WINDOW_S if how == "recv" else tools.SHORT_WINDOW_S


@KINDS
@pytest.mark.parametrize("how", tools.RECEIVES)
async def test_peek_after_an_urgent_byte_waits(kind: str, how: str) -> None:
    """As a server does that looks at the first byte, to tell TLS from plain text."""
    seen: list[bytes] = []
    connections = [CONNECTIONS[kind]() for _ in range(5)]

    async def peek(server: Any) -> None:
        with tools.ours(server) as sock:
            seen.append(await tools.RECEIVES[how](sock, 1, stdlib_socket.MSG_PEEK))
            assert await sock.recv(10) == b"ab"

    with tools.closing(*(client for client, _ in connections)):
        async with trio.open_nursery() as nursery:
            for _, server in connections:
                nursery.start_soon(peek, server)
            await trio.testing.wait_all_tasks_blocked()
            for client, _ in connections:
                client.send(b"!", stdlib_socket.MSG_OOB)
            await tools.nothing_moves(window_s(how))
            assert not seen
            for client, _ in connections:
                client.send(b"ab")
    assert seen == [b"a"] * len(connections)


async def send_when_possible(client: Any, data: bytes, flags: int) -> None:
    with trio.fail_after(tools.BOUND_S):
        while True:
            with contextlib.suppress(BlockingIOError):
                assert client.send(data, flags) == len(data)
                return
            await trio.lowlevel.checkpoint()


@KINDS
@pytest.mark.parametrize("how", tools.STREAM_RECEIVES)
async def test_many_urgent_bytes_to_a_waiting_receive(kind: str, how: str) -> None:
    client, server = CONNECTIONS[kind]()
    received = b""
    client.setblocking(False)  # bytes that nobody has looked at fill a small buffer soon

    async def receive(sock: SocketType) -> None:
        nonlocal received
        while not received.endswith(b"data"):
            received += await tools.STREAM_RECEIVES[how](sock, 100, 0)

    with client, tools.ours(server) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, sock)
            for _ in range(TIMES):
                await trio.testing.wait_all_tasks_blocked()
                await send_when_possible(client, b"!", stdlib_socket.MSG_OOB)
            await tools.nothing_moves(window_s(how))
            await send_when_possible(client, b"data", 0)
    # An urgent byte becomes data when the next one comes, unless a receive has passed it by then.
    # How many do depends on the moment, on stock as well.
    assert received.lstrip(b"!") == b"data"


@KINDS
async def test_data_is_received_at_once_after_urgent_bytes(kind: str) -> None:
    client, server = CONNECTIONS[kind]()
    wakes = tools.Wakes()
    seen = 0

    async def peek(sock: SocketType) -> None:
        nonlocal seen
        while seen < 5:
            assert await sock.recv(1, stdlib_socket.MSG_PEEK) == b"a"
            wakes.woken()
            assert await sock.recv(10) == b"a"
            seen += 1

    with client, tools.ours(server) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peek, sock)
            for number in range(5):
                await trio.testing.wait_all_tasks_blocked()
                client.send(b"!", stdlib_socket.MSG_OOB)
                await trio.sleep(0.12)  # until the pauses are at their longest
                assert seen == number
                wakes.possible()
                client.send(b"a")
                await tools.until_over(lambda: seen, number)
    wakes.check()


@KINDS
@pytest.mark.parametrize("how", tools.STREAM_RECEIVES)
async def test_urgent_bytes_inline_are_data(kind: str, how: str) -> None:
    client, server = CONNECTIONS[kind]()
    server.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_OOBINLINE, 1)
    received: list[bytes] = []

    async def receive(sock: SocketType) -> None:
        for _ in range(2 * INLINE_TIMES):
            received.append(await tools.STREAM_RECEIVES[how](sock, 100, 0))

    with client, tools.ours(server) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, sock)
            for number in range(INLINE_TIMES):
                for message, flags in ((b"!", stdlib_socket.MSG_OOB), (b"data", 0)):
                    before = 2 * number + bool(flags == 0)
                    await trio.testing.wait_all_tasks_blocked()
                    client.send(message, flags)
                    await tools.until_over(lambda: len(received), before)
            await trio.testing.wait_all_tasks_blocked()
    assert received == list(itertools.islice(itertools.cycle([b"!", b"data"]), 2 * INLINE_TIMES))


@KINDS
async def test_urgent_byte_is_there_for_who_asks_for_it(kind: str) -> None:
    """A receive that was woken by it in vain has not taken it away, unless stock's does, too."""
    client, server = CONNECTIONS[kind]()
    with client, tools.ours(server) as sock:
        with trio.move_on_after(0.05) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sock.recv, 10, stdlib_socket.MSG_PEEK)
                await trio.testing.wait_all_tasks_blocked()
                client.send(b"!", stdlib_socket.MSG_OOB)
        assert scope.cancelled_caught
        assert await sock.recv(1, stdlib_socket.MSG_OOB) == b"!"


async def test_low_water_mark_is_for_who_waits() -> None:
    """What is there at the call is given; a call that waits does so for the mark."""
    client, server = tools.tcp_connection()
    server.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVLOWAT, 10)
    received: list[bytes] = []

    async def receive(sock: SocketType) -> None:
        received.append(await sock.recv(100))

    with client, tools.ours(server) as sock, trio.fail_after(5):
        for number in range(3):
            client.send(b"%04d" % number)
            await tools.until(lambda: len(server_peek(server)) == 4)
            assert await sock.recv(100) == b"%04d" % number
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, sock)
            await trio.testing.wait_all_tasks_blocked()
            client.send(b"12345")
            await tools.nothing_moves()
            assert not received
            client.send(b"67890")
        assert received == [b"1234567890"]
        client.send(b"end")
        await tools.until(lambda: len(server_peek(server)) == 3)
        assert await sock.recv(100) == b"end"


def server_peek(server: Any) -> bytes:
    try:
        return bytes(server.recv(100, stdlib_socket.MSG_PEEK))
    except BlockingIOError:
        return b""
