"""Peers that have ended their stream, and read slowly what they are sent.

The peer's FIN wakes a send that waits for room, and goes on doing so: POLLRDHUP stays set, and
io_uring's own poll looks at it. A server's answer to ``curl`` or ``nc -N`` is such a send.
"""

from __future__ import annotations

import json
import os
import resource
import socket as stdlib_socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import harness
import kernel_workers
import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

PEERS = 20
SIZE = 300_000  # bytes; a clogged connection of these buffers holds about 100,000


async def send_all(sock: SocketType, data: bytes) -> None:
    await trio.SocketStream(sock).send_all(data)


async def send_all_of_user_memory(sock: SocketType, data: bytes) -> None:
    await trio.SocketStream(sock).send_all(bytearray(data))


async def send(sock: SocketType, data: bytes) -> None:
    while data:
        data = data[await sock.send(data) :]


async def send_user_memory(sock: SocketType, data: bytes) -> None:
    view = memoryview(bytearray(data))
    while view:
        view = view[await sock.send(view) :]


async def sendmsg(sock: SocketType, data: bytes) -> None:
    while data:
        data = data[await sock.sendmsg([data[:5000], data[5000:]]) :]


async def sendto(sock: SocketType, data: bytes) -> None:
    while data:
        data = data[await sock.sendto(data, sock.getpeername()) :]


async def fd_stream(sock: SocketType, data: bytes) -> None:
    stream = trio.lowlevel.FdStream(os.dup(sock.fileno()))
    async with stream:
        await stream.send_all(data)


SENDS = [send_all, send_all_of_user_memory, send, send_user_memory, sendmsg, sendto, fd_stream]
CONNECTIONS: dict[str, Callable[[], Any]] = {
    "tcp": tools.tcp_connection,
    "unix": tools.unix_connection,
}
CASES = [  # a connected UNIX stream takes no address
    (kind, how) for kind in CONNECTIONS for how in SENDS if (kind, how) != ("unix", sendto)
]
IDS = [f"{kind}-{how.__name__}" for kind, how in CASES]


@pytest.mark.parametrize(("kind", "how"), CASES, ids=IDS)
async def test_slow_reader_gets_all(kind: str, how: Any) -> None:
    connections = [CONNECTIONS[kind]() for _ in range(PEERS)]

    async def serve(server: Any, data: bytes) -> None:
        with tools.ours(server) as sock:
            assert await sock.recv(1) == b""
            await how(sock, data)

    with tools.closing(*(client for client, _ in connections)):
        async with trio.open_nursery() as nursery:
            for seed, (client, server) in enumerate(connections):
                client.shutdown(stdlib_socket.SHUT_WR)
                nursery.start_soon(serve, server, tools.data_of(SIZE, seed))
            long = how in (send_all, sendmsg)
            await tools.nothing_moves(tools.WINDOW_S if long else tools.SHORT_WINDOW_S)
            for seed, (client, _) in enumerate(connections):
                assert await tools.read_all(client) == tools.data_of(SIZE, seed)


@pytest.mark.parametrize("kind", CONNECTIONS)
async def test_send_goes_on_as_soon_as_there_is_room(kind: str) -> None:
    client, server = CONNECTIONS[kind]()
    wakes = tools.Wakes()
    rounds, sent = 3, 0
    client.setblocking(False)
    client.shutdown(stdlib_socket.SHUT_WR)

    async def serve(sock: SocketType) -> None:
        nonlocal sent
        for _ in range(rounds):
            await tools.clog(server)
            await sock.send(b"x")
            wakes.woken()
            sent += 1

    with tools.closing(client), tools.ours(server) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            for done in range(rounds):
                await tools.until(lambda: harness.io_statistics().tasks_waiting_write == 1)
                await tools.nothing_moves(0.15)
                assert sent == done
                wakes.possible()
                harness.drain(client)
                await tools.until_over(lambda: sent, done)
    wakes.check()


async def test_seqpacket_to_a_slow_reader() -> None:
    client, server = tools.unix_connection(stdlib_socket.SOCK_SEQPACKET)
    client.shutdown(stdlib_socket.SHUT_WR)
    messages = [b"%06d" % number * 100 for number in range(300)]

    async def serve(sock: SocketType) -> None:
        for number, message in enumerate(messages):
            if number % 2:
                assert await sock.send(message) == len(message)
            else:
                assert await sock.sendmsg([message]) == len(message)

    with client, tools.ours(server) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            await tools.nothing_moves()
            received = [await trio.to_thread.run_sync(client.recv, 1000) for _ in messages]
    assert received == messages


async def test_pipe_that_another_writer_fills_first() -> None:
    """The same with pipes: room is there for a moment, and somebody else takes it."""
    source, target = os.pipe()
    size = 1 << 20
    data = tools.data_of(size)
    taken = 0

    async with trio.lowlevel.FdStream(os.dup(target)) as stream, trio.open_nursery() as nursery:
        os.set_blocking(target, False)
        taken += fill_pipe(target)
        nursery.start_soon(stream.send_all, data)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(200):
            os.read(source, 4096)
            taken += fill_pipe(target) - 4096
            await trio.lowlevel.checkpoint()
        await tools.nothing_moves()
        received = b""
        while len(received) < taken + size:
            chunk = await trio.to_thread.run_sync(os.read, source, 1 << 20)
            received += chunk
    os.close(source)
    os.close(target)
    assert received[taken:] == data


def fill_pipe(fd: int) -> int:
    written = 0
    try:
        while True:
            written += os.write(fd, bytes(4096))
    except BlockingIOError:
        return written


async def test_proxy_of_two_pumps() -> None:
    """Client and server end their requests at once; each answer goes through slow readers."""
    peers = 10
    fronts = [tools.tcp_connection() for _ in range(peers)]
    backs = [tools.tcp_connection() for _ in range(peers)]
    requests = [tools.data_of(1000, number) for number in range(peers)]
    answers = [tools.data_of(SIZE, peers + number) for number in range(peers)]

    async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for chunk in source:
            await target.send_all(chunk)
        await target.send_eof()

    async def proxy(front: Any, back: Any) -> None:
        async with (
            trio.SocketStream(tools.ours(front)) as client,
            trio.SocketStream(tools.ours(back)) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(pump, client, server)
            nursery.start_soon(pump, server, client)

    async def answer(sock: Any, expected: bytes, data: bytes) -> None:
        async with trio.SocketStream(tools.ours(sock)) as stream:
            received = b""
            async for chunk in stream:
                received += chunk
            assert received == expected
            await stream.send_all(data)

    with tools.closing(*(client for client, _ in fronts)):
        async with trio.open_nursery() as nursery:
            for number in range(peers):
                client, front = fronts[number]
                back, server = backs[number]
                nursery.start_soon(proxy, front, back)
                nursery.start_soon(answer, server, requests[number], answers[number])
                client.sendall(requests[number])
                client.shutdown(stdlib_socket.SHUT_WR)
            await tools.nothing_moves()
            for number in range(peers):
                assert await tools.read_all(fronts[number][0]) == answers[number]


# ---- where there are few threads to be had ------------------------------------------------

USER_LIMIT = 12  # threads and processes of the user; we have 1, a thread of trio's, a child


async def serve_beside_slow_readers() -> dict[str, Any]:
    """What an honest client gets, and a subprocess, while more peers than threads are slow."""
    connections = [tools.tcp_connection() for _ in range(PEERS)]

    async def serve(server: Any) -> None:
        async with trio.SocketStream(tools.ours(server)) as stream:
            request = b""
            async for chunk in stream:
                request += chunk
            await stream.send_all(request or bytes(SIZE))

    found: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for client, server in connections:
            client.shutdown(stdlib_socket.SHUT_WR)
            nursery.start_soon(serve, server)
        await tools.nothing_moves()
        honest, server = tools.tcp_connection()
        nursery.start_soon(serve, server)
        async with trio.SocketStream(tools.ours(honest)) as stream:
            await stream.send_all(bytes(100_000))
            await stream.send_eof()
            found["honest"] = 0
            async for chunk in stream:
                found["honest"] += len(chunk)
        found["subprocess"] = (await trio.run_process(["/bin/true"])).returncode
        found["workers"] = len(kernel_workers.workers())
        found["slow"] = [len(await tools.read_all(client)) for client, _ in connections]
        for client, _ in connections:
            client.close()
    return found


def become_a_user_with_few_threads() -> None:
    user = 100_000 + os.getpid()
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    resource.setrlimit(resource.RLIMIT_NPROC, (USER_LIMIT, USER_LIMIT))


def run_as_a_user_with_few_threads(backend: str) -> None:
    """In a child process."""
    become_a_user_with_few_threads()
    print(json.dumps(harness.run(backend, serve_beside_slow_readers)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user of no other process")
def test_honest_client_where_there_are_few_threads(backend: str) -> None:
    program = (
        f"import test_retries_half_closed as here; here.run_as_a_user_with_few_threads({backend!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "honest": 100_000,
        "subprocess": 0,
        "workers": 0,
        "slow": [SIZE] * PEERS,
    }
