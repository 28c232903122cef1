"""Datagrams to a UNIX receiver whose queue is full: syslog, journald, statsd clients.

Such a socket of ours can always be written to, as far as poll(2) knows, and the receiver's queue
is looked at only by the send itself. So io_uring's own retries come in vain at once, and the last
of them runs with an iterator that the first one has used up: an empty message is sent.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import anyio
import harness
import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

MESSAGES = [b"<%d> message" % number for number in range(200)]  # a queue holds 10 or so


async def send(sock: SocketType, message: bytes, _: str) -> None:
    assert await sock.send(message) == len(message)


async def send_user_memory(sock: SocketType, message: bytes, _: str) -> None:
    assert await sock.send(bytearray(message)) == len(message)


async def sendmsg(sock: SocketType, message: bytes, _: str) -> None:
    assert await sock.sendmsg([message[:3], message[3:]]) == len(message)


async def sendmsg_user_memory(sock: SocketType, message: bytes, _: str) -> None:
    assert await sock.sendmsg([bytearray(message)]) == len(message)


async def sendmsg_to(sock: SocketType, message: bytes, path: str) -> None:
    assert await sock.sendmsg([message[:3], message[3:]], [], 0, path) == len(message)


async def sendto(sock: SocketType, message: bytes, path: str) -> None:
    assert await sock.sendto(message, path) == len(message)


async def sendto_user_memory(sock: SocketType, message: bytes, path: str) -> None:
    assert await sock.sendto(bytearray(message), path) == len(message)


# How, and whether the sender's socket is connected.
SENDS = [
    (send, True),
    (send_user_memory, True),
    (sendmsg, True),
    (sendmsg_user_memory, True),
    (sendto, True),
    (sendmsg_to, True),
    (sendto, False),
    (sendto_user_memory, False),
    (sendmsg_to, False),
]
IDS = [f"{how.__name__}-{'connected' if connected else 'free'}" for how, connected in SENDS]


def receiver_at(path: Path) -> stdlib_socket.socket:
    receiver = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    receiver.bind(str(path))
    return receiver


async def receive(receiver: stdlib_socket.socket) -> list[bytes]:
    receiver.setblocking(True)
    return [await trio.to_thread.run_sync(receiver.recv, 1000) for _ in MESSAGES]


@pytest.mark.parametrize(("how", "connected"), SENDS, ids=IDS)
async def test_all_are_delivered_in_order(how: Any, connected: bool, tmp_path: Path) -> None:
    path = tmp_path / "log"
    receiver = receiver_at(path)
    sender = trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)

    async def send_them() -> None:
        for message in MESSAGES:
            await how(sender, message, str(path))

    with receiver, sender:
        if connected:
            await sender.connect(str(path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_them)
            await tools.nothing_moves(tools.WINDOW_S if how is sendto else tools.SHORT_WINDOW_S)
            assert await receive(receiver) == MESSAGES


@pytest.mark.parametrize(("how", "connected"), SENDS, ids=IDS)
async def test_send_goes_on_as_soon_as_there_is_room(
    how: Any, connected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    receiver = receiver_at(path)
    sender = trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    wakes = tools.Wakes()
    sent = 0

    def fill_queue() -> None:
        with stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(str(path))
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.send(b"x")

    async def send_them() -> None:
        nonlocal sent
        for message in MESSAGES[:3]:
            fill_queue()
            await how(sender, message, str(path))
            wakes.woken()
            sent += 1

    receiver.setblocking(False)
    with receiver, sender:
        if connected:
            await sender.connect(str(path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_them)
            for done in range(3):
                await tools.until(lambda: harness.io_statistics().tasks_waiting_write == 1)
                await trio.sleep(0.12)  # until the pauses are at their longest
                assert sent == done
                wakes.possible()
                receiver.recv(100)
                await tools.until_over(lambda: sent, done)
    wakes.check()


async def test_many_senders_wait_for_one_receiver(tmp_path: Path) -> None:
    path = tmp_path / "log"
    receiver = receiver_at(path)
    senders = 40

    async def send_them(number: int) -> None:
        with trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as sender:
            for part in range(3):
                await sender.sendto(b"%d %d" % (number, part), str(path))

    with receiver:
        async with trio.open_nursery() as nursery:
            for number in range(senders):
                nursery.start_soon(send_them, number)
            await tools.nothing_moves()
            received = [
                await trio.to_thread.run_sync(receiver.recv, 1000) for _ in range(3 * senders)
            ]
    for number in range(senders):
        of_one = [message for message in received if message.split()[0] == b"%d" % number]
        assert of_one == [b"%d %d" % (number, part) for part in range(3)]


async def test_receiver_that_goes_away_ends_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "log"
    receiver = receiver_at(path)
    with trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as sender:
        await sender.connect(str(path))

        async def send_them() -> None:
            for message in MESSAGES:
                await sender.send(message)

        async def send_in_vain() -> None:
            with pytest.raises(ConnectionRefusedError):
                await send_them()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            receiver.close()


async def test_seqpacket_to_a_reader_that_is_late() -> None:
    client, server = tools.unix_connection(stdlib_socket.SOCK_SEQPACKET)

    async def send_them(sock: SocketType) -> None:
        for number, message in enumerate(MESSAGES):
            await (send if number % 2 else sendmsg)(sock, message, "")

    with client, tools.ours(server) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_them, sock)
            await tools.nothing_moves()
            assert await receive(client) == MESSAGES


# ---- through anyio ------------------------------------------------------------------------


def run_anyio(backend: str, async_fn: Callable[..., Any], *args: Any) -> None:
    name = "trio" if backend == harness.EPOLL else "uring_trio"
    anyio.run(async_fn, *args, backend=name)


async def anyio_send_connected(path: Path) -> None:
    async with await anyio.create_connected_unix_datagram_socket(remote_path=path) as sock:
        for message in MESSAGES:
            await sock.send(message)


async def anyio_send_free(path: Path) -> None:
    async with await anyio.create_unix_datagram_socket() as sock:
        for message in MESSAGES:
            await sock.sendto(message, str(path))


@pytest.mark.parametrize("how", [anyio_send_connected, anyio_send_free], ids=lambda f: f.__name__)
def test_through_anyio(backend: str, how: Any, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "log"
        with receiver_at(path) as receiver:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(how, path)
                await tools.nothing_moves()
                assert await receive(receiver) == MESSAGES

    run_anyio(backend, main)
