"""Memory that operations work on, and who is at work on it at the same time.

That each operation ends as it should says little here: what the kernel does to memory that was
given up too early is seen, if ever, by somebody else. So these run on a guard as well, and with
faults that it must find: see test_guard.py.
"""

from __future__ import annotations

import contextlib
import gc
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest
import trio
from marks import ON_RING
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uring_trio import gain

pytestmark = ON_RING

# Of them one enter completes some, and the others are completed by more enters of one wait.
MANY = 64
CLOGGING = bytes(range(256)) * (4 << 12)  # more than the kernel's buffers of a pair hold


async def test_many_receive_at_once_into_the_rings_buffers() -> None:
    pairs = [trio.socket.socketpair() for _ in range(MANY)]
    received: dict[int, bytes] = {}

    async def receive(number: int, stream: trio.SocketStream) -> None:
        received[number] = bytes(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        for number, (_, b) in enumerate(pairs):
            nursery.start_soon(receive, number, trio.SocketStream(b))
        await wait_all_tasks_blocked()
        for number, (a, _) in enumerate(pairs):
            await a.send(b"%d" % number * 1000)
    assert received == {number: b"%d" % number * 1000 for number in range(MANY)}
    for pair in pairs:
        for sock in pair:
            sock.close()


async def test_many_connections_of_a_server_have_input_at_once() -> None:
    """Their receives stay armed, and the kernel completes about 20 in each enter."""
    handler = gain_tools.Recorder(on_read=gain_tools.echo)
    async with gain_tools.serving(handler) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(gain_tools.connect(server)) for _ in range(MANY)]
            await gain_tools.until(lambda: len(handler.conns) == MANY)
            for repeats in (100, 101, 102):
                # In one tick of the server, which is in this thread.
                sent = [b"%3d" % number * repeats for number in range(MANY)]
                for client, data in zip(clients, sent, strict=True):
                    client.send(data)
                for client, data in zip(clients, sent, strict=True):
                    with trio.fail_after(gain_tools.BOUND_S):
                        await trio.lowlevel.wait_readable(client)
                    assert gain_tools.receive_exactly(client, len(data)) == data


async def test_input_that_a_handler_leaves_is_there_later() -> None:
    def answer_twice(conn: gain.Conn, n: int) -> None:
        if handler.counts().read <= 2:
            gain_tools.echo(conn, n)

    handler = gain_tools.Recorder(on_read=answer_twice)
    async with gain_tools.connected(handler) as (conn, client):
        for _ in range(2):  # from then on it goes the short way
            await client.send_all(b"question")
            assert await gain_tools.read_exactly(client, 8) == b"question"
        await client.send_all(b"unread")
        await gain_tools.until(conn.inbound_buffered)
        await client.send_all(b" so far")
        await gain_tools.until(lambda: conn.inbound_buffered() == 13)
        assert conn.next() == b"unread so far"


async def receive_into(sock: trio.socket.SocketType) -> Any:
    await sock.recv_into(bytearray(100))


async def receive_message(sock: trio.socket.SocketType) -> Any:
    await sock.recvfrom(100)


async def receive_message_into(sock: trio.socket.SocketType) -> Any:
    await sock.recvmsg_into([bytearray(50), bytearray(50)])


async def receive_datagram(sock: trio.socket.SocketType) -> Any:
    await sock.recv(100)


@pytest.mark.parametrize(
    "receive",
    [receive_into, receive_message, receive_message_into, receive_datagram],
    ids=lambda function: function.__name__,
)
async def test_a_cancelled_receive_has_its_memory_until_it_ends(
    receive: Callable[[Any], Awaitable[Any]],
) -> None:
    a, b = trio.socket.socketpair(type=stdlib_socket.SOCK_DGRAM)
    with a, b:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, b)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await a.send(b"late")
            assert await b.recv(100) == b"late"


@pytest.mark.parametrize("how", ["bytes", "bytearray"])
async def test_what_is_sent_stays_what_it_was(how: str) -> None:
    a, b = trio.socket.socketpair()
    one, two = trio.SocketStream(a), trio.SocketStream(b)

    async def send() -> None:
        data = bytes(CLOGGING) if how == "bytes" else bytearray(CLOGGING)
        await one.send_all(data)

    async with one, two, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        received = bytearray()
        while len(received) < len(CLOGGING):
            received += await two.receive_some()
        assert received == CLOGGING


async def test_what_was_being_sent_at_a_close_is_kept_until_its_end() -> None:
    a, b = trio.socket.socketpair()
    one, two = trio.SocketStream(a), trio.SocketStream(b)

    async def send() -> None:
        await harness.expect_exception(trio.ClosedResourceError, one.send_all, CLOGGING[:-1])

    async with two, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await one.aclose()
        gc.collect()
        received = bytearray()
        while chunk := await two.receive_some():
            received += chunk
    assert CLOGGING.startswith(received)


async def test_a_connect_has_its_address_until_it_ends() -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(3):
            with trio.socket.socket() as sock:
                await sock.connect(listener.getsockname())
                accepted, address = await listener.accept()
                with accepted:
                    assert address == sock.getsockname()
