"""Sockets with something on their error queue that nobody reads.

Completions of MSG_ZEROCOPY, time stamps of what was sent, ICMP errors where IP_RECVERR is set: as
long as one is there, poll(2) says POLLERR, and a receive still finds nothing. Stock trio spins
then. On the ring such receives sleep, hold no buffer, and keep nobody else waiting.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket as stdlib_socket
import time
from typing import TYPE_CHECKING, Any

import harness
import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

SOCKETS = 140  # more than the 128 small buffers that there are for receives
SO_ZEROCOPY, MSG_ZEROCOPY, MSG_ERRQUEUE = 60, 0x4000000, 0x2000
IP_RECVERR = 11
ROUND_TRIP_MAX_S = 0.5


def poll_says_error(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def zerocopy(make: Callable[[], Any]) -> tuple[Any, Any]:
    client, server = make()
    server.setsockopt(stdlib_socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    server.send(b"answer", MSG_ZEROCOPY)
    assert client.recv(100) == b"answer"
    return client, server


def time_stamps(make: Callable[[], Any]) -> tuple[Any, Any]:
    client, server = make()
    tools.time_stamps(server)
    server.send(b"answer")
    assert client.recv(100) == b"answer"
    return client, server


def closed_port() -> Any:
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()


def port_unreachable(make: Callable[[], Any]) -> tuple[Any, Any]:
    """An ICMP error of a datagram to another port, of which the socket's user has heard."""
    client, server = make()
    nobody = closed_port()
    peer = client.getsockname()
    server.setsockopt(stdlib_socket.IPPROTO_IP, IP_RECVERR, 1)
    server.connect(nobody)
    server.send(b"to nobody")
    server.setblocking(False)
    deadline = time.monotonic() + tools.BOUND_S
    while server.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ERROR) == 0:
        assert time.monotonic() < deadline
    server.connect(peer)
    return client, server


SITUATIONS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "zerocopy-tcp": lambda: zerocopy(tools.tcp_connection),
    "zerocopy-udp": lambda: zerocopy(tools.udp_connection),
    "time_stamps-tcp": lambda: time_stamps(tools.tcp_connection),
    "time_stamps-udp": lambda: time_stamps(tools.udp_connection),
    "port_unreachable-udp": lambda: port_unreachable(tools.udp_connection),
}
ALL = pytest.mark.parametrize("situation", SITUATIONS)
STREAMS = pytest.mark.parametrize("situation", [s for s in SITUATIONS if s.endswith("tcp")])


@contextlib.contextmanager
def connections(situation: str, count: int = 1) -> Iterator[list[tuple[Any, SocketType]]]:
    """Peers, and sockets of ours of which poll(2) says POLLERR and nothing else."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            client, server = SITUATIONS[situation]()
            stack.enter_context(client)
            stack.enter_context(server)
            deadline = time.monotonic() + tools.BOUND_S
            while not poll_says_error(server):  # what was sent is not yet acknowledged
                assert time.monotonic() < deadline
            made.append((client, stack.enter_context(tools.ours(server.dup()))))
        yield made


async def round_trip(count: int = 20) -> None:
    """Two others, who have nothing to do with it."""
    client, server = await harness.stream_pair()

    async def echo() -> None:
        async with server:
            async for chunk in server:
                await server.send_all(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        async with client:
            for number in range(count):
                started = time.monotonic()
                await client.send_all(b"%d" % number)
                assert await client.receive_some(100) == b"%d" % number
                assert time.monotonic() - started < ROUND_TRIP_MAX_S


def receives(situation: str) -> dict[str, Any]:
    return tools.STREAM_RECEIVES if situation.endswith("tcp") else tools.RECEIVES


@ALL
async def test_others_are_answered_at_once(situation: str) -> None:
    received: list[bytes] = []

    async def receive(sock: SocketType, how: Any) -> None:
        received.append(await how(sock, 100, 0))

    hows = list(receives(situation).values())
    with connections(situation, SOCKETS) as made:
        async with trio.open_nursery() as nursery:
            for number, (_, sock) in enumerate(made):
                nursery.start_soon(receive, sock, hows[number % len(hows)])
            await tools.nothing_moves()
            await round_trip()
            assert not received
            for number, (client, _) in enumerate(made):
                client.send(b"%d" % number)
    assert sorted(received, key=int) == [b"%d" % number for number in range(SOCKETS)]


@STREAMS
async def test_streams_of_many_do_not_hold_the_buffers(situation: str) -> None:
    """All of them by `receive_some`, which takes a buffer of the ring's."""
    received: list[bytes] = []

    async def receive(sock: SocketType) -> None:
        received.append(await trio.SocketStream(sock).receive_some())

    with connections(situation, SOCKETS) as made:
        async with trio.open_nursery() as nursery:
            for _, sock in made:
                nursery.start_soon(receive, sock)
            await tools.nothing_moves()
            await round_trip()
            assert not received
            for client, _ in made:
                client.send(b"data")
    assert received == [b"data"] * SOCKETS


@ALL
async def test_receive_is_woken_at_once(situation: str) -> None:
    wakes = tools.Wakes()
    received = 0

    async def receive(sock: SocketType) -> None:
        nonlocal received
        for how in receives(situation).values():
            assert await how(sock, 100, 0) == b"data"
            wakes.woken()
            received += 1

    with connections(situation) as [(client, sock)]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, sock)
            for number in range(len(receives(situation))):
                await trio.sleep(0.12)  # until the pauses are at their longest
                assert received == number
                wakes.possible()
                client.send(b"data")
                await tools.until_over(lambda: received, number)
    wakes.check()


@ALL
async def test_one_alone_enters_seldom(situation: str) -> None:
    """Counted, since the CPU's share of one socket would hide a good deal."""
    with connections(situation) as [(client, sock)]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recv, 100)
            await trio.sleep(0.15)  # while the pauses grow
            if tools.on_the_ring():
                before = harness.io_statistics().enters
                await tools.nothing_moves()
                # The longest pause is 32 ms, and the test itself enters a few times.
                assert harness.io_statistics().enters - before < tools.WINDOW_S / 0.032 + 8
            client.send(b"data")


@ALL
async def test_error_queue_is_still_there(situation: str) -> None:
    """Nobody has read it meanwhile: it is the user's."""
    with connections(situation) as [(client, sock)]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recv, 100)
            await trio.sleep(0.1)
            client.send(b"data")
        assert poll_says_error(sock)
        _, control, _, _ = await sock.recvmsg(100, 1000, MSG_ERRQUEUE)
        assert control


async def test_error_is_raised_and_then_it_waits() -> None:
    """Of an ICMP error a receive that waits is told once, and the next one waits."""
    a, b = tools.udp_connection()
    with b:
        nobody = a.getsockname()
        a.close()
        b.setsockopt(stdlib_socket.IPPROTO_IP, IP_RECVERR, 1)
        with tools.ours(b.dup()) as sock:

            async def receive() -> None:
                with pytest.raises(ConnectionRefusedError) as caught:
                    await sock.recv(100)
                assert caught.value.errno == errno.ECONNREFUSED
                assert await sock.recv(100) == b"data"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                b.send(b"to nobody")
                await trio.sleep(0.1)
                await tools.nothing_moves()
                with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as again:
                    again.bind(nobody)
                    again.sendto(b"data", b.getsockname())


@STREAMS
async def test_sends_wait_for_room_as_well(situation: str) -> None:
    """With the error queue unread a send finds no room, and poll(2) says POLLERR."""
    data = tools.data_of(300_000)
    with connections(situation) as [(client, sock)]:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await trio.SocketStream(sock).send_all(data)
                sock.shutdown(stdlib_socket.SHUT_WR)

            nursery.start_soon(send)
            await tools.nothing_moves()
            assert await tools.read_all(client) == data
