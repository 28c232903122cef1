"""Files that another process reads as well, and is faster.

Each time data comes all who wait are woken, and one finds it: a pre-forked worker's UDP socket, a
job pipe of make, a log pipe with two readers.
"""

from __future__ import annotations

import os
import select
import socket as stdlib_socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

TIMES = 200  # more than the kernel's 128 retries


def unix_datagrams() -> tuple[Any, Any]:
    return tools.unix_connection(stdlib_socket.SOCK_DGRAM)


def seqpacket() -> tuple[Any, Any]:
    return tools.unix_connection(stdlib_socket.SOCK_SEQPACKET)


STREAMS: dict[str, Callable[[], Any]] = {
    "tcp": tools.tcp_connection,
    "unix": tools.unix_connection,
}
MESSAGES: dict[str, Callable[[], Any]] = {
    "udp": tools.udp_connection,
    "unix_datagrams": unix_datagrams,
    "seqpacket": seqpacket,
}
CASES = [
    *((make, how) for make in STREAMS.values() for how in tools.STREAM_RECEIVES.values()),
    *((make, how) for make in MESSAGES.values() for how in tools.RECEIVES.values()),
]
IDS = [f"{make.__name__}-{how.__name__.strip('_')}" for make, how in CASES]


def take(sock: Any) -> bytes:
    """What the other process is faster to receive, once the network has brought it."""
    assert select.select([sock], [], [], tools.BOUND_S)[0]
    data: bytes = sock.recv(100)
    return data


@pytest.mark.parametrize("flags", [0, stdlib_socket.MSG_PEEK], ids=["take", "peek"])
@pytest.mark.parametrize(("make", "how"), CASES, ids=IDS)
async def test_receive_goes_on(make: Any, how: Any, flags: int) -> None:
    if flags and how is tools.STREAM_RECEIVES["receive_some"]:
        how = tools.RECEIVES["recv"]
    client, server = make()
    server.setblocking(False)
    received: list[bytes] = []

    async def receive(sock: SocketType) -> None:
        received.append(await how(sock, 100, flags))

    with client, server, tools.ours(server.dup()) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, sock)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(TIMES):
                client.send(b"%d" % number)
                assert take(server) == b"%d" % number
                await trio.lowlevel.checkpoint()
            long = how is tools.RECEIVES["recv"]
            await tools.nothing_moves(tools.WINDOW_S if long else tools.SHORT_WINDOW_S)
            assert not received
            client.send(b"data")
    assert received == [b"data"]


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
async def test_end_of_a_shared_stream_is_noticed(make: Any) -> None:
    client, server = make()
    server.setblocking(False)
    received: list[bytes] = []

    async def receive(sock: SocketType) -> None:
        received.append(await trio.SocketStream(sock).receive_some())

    with client, server, tools.ours(server.dup()) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, sock)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(TIMES):
                client.send(b"x")
                take(server)
                await trio.lowlevel.checkpoint()
            client.shutdown(stdlib_socket.SHUT_WR)
    assert received == [b""]


# ---- pipes, and sockets as files ----------------------------------------------------------


def pipe() -> tuple[int, int]:
    source, target = os.pipe()
    return target, source


def stream_as_file() -> tuple[int, int]:
    client, server = tools.unix_connection()
    return client.detach(), server.detach()


FILES = pytest.mark.parametrize("make", [pipe, stream_as_file], ids=lambda make: make.__name__)


@FILES
async def test_fd_stream_goes_on(make: Any) -> None:
    target, source = make()
    received: list[bytes] = []

    async def receive(stream: trio.lowlevel.FdStream) -> None:
        received.append(await stream.receive_some())

    async with trio.lowlevel.FdStream(os.dup(source)) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(receive, stream)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(TIMES):
            os.write(target, b"%d" % number)
            assert os.read(source, 100) == b"%d" % number
            await trio.lowlevel.checkpoint()
        await tools.nothing_moves()
        assert not received
        os.write(target, b"data")
    os.close(source)
    os.close(target)
    assert received == [b"data"]


@FILES
async def test_fd_stream_is_woken_at_once(make: Any) -> None:
    target, source = make()
    wakes = tools.Wakes()
    received = 0

    async def receive(stream: trio.lowlevel.FdStream) -> None:
        nonlocal received
        for _ in range(5):
            assert await stream.receive_some() == b"data"
            wakes.woken()
            received += 1

    async with trio.lowlevel.FdStream(os.dup(source)) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(receive, stream)
        for number in range(5):
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(20):
                os.write(target, b"x")
                os.read(source, 100)
                await trio.lowlevel.checkpoint()
            assert received == number
            wakes.possible()
            os.write(target, b"data")
            await tools.until_over(lambda: received, number)
    os.close(source)
    os.close(target)
    wakes.check()


GREEDY = """
import os, sys
os.set_blocking(0, False)  # of the file, for its other reader as well
import select
print("ready", flush=True)
taken = 0
while True:
    select.select([0], [], [])
    try:
        data = os.read(0, 1)
    except BlockingIOError:
        continue
    if not data:
        break
    taken += 1
print(taken, flush=True)
"""


@pytest.fixture
def other_reader() -> Iterator[tuple[int, int, subprocess.Popen[bytes]]]:
    """A pipe, and a process that reads from it as well."""
    source, target = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", GREEDY], stdin=source, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield source, target, process
        process.kill()


async def test_pipe_of_two_processes(
    other_reader: tuple[int, int, subprocess.Popen[bytes]],
) -> None:
    """Each byte is received once, by one of them, and both go on to the end."""
    source, target, process = other_reader
    taken = 0

    async def receive() -> None:
        nonlocal taken
        async with trio.lowlevel.FdStream(source) as stream:
            while await stream.receive_some(1):
                taken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for _ in range(2000):
            os.write(target, b"x")
            await trio.lowlevel.checkpoint()
        os.close(target)
    assert process.stdout is not None
    theirs = int(await trio.to_thread.run_sync(process.stdout.readline))
    assert taken + theirs == 2000
