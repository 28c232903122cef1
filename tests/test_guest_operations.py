"""Operations whose completion comes right before or behind an eventfd's wake-up.

What a wake-up of an eventfd signals may be put off by the kernel, and work that comes
while other work waits signals nothing: so it is what stands beside an eventfd that a guest
run could sleep through. Who wakes: a thread, a process, a signal, trio's own wake-up.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket as stdlib_socket
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest
import trio
import trio.lowlevel
from guest_tools import HOSTS
from marks import needs_ring
from wakeup_kinds import DELAYS_S, Waker, waker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from uring_trio import gain

ROUNDS = 200
THREAD_TIMEOUT_S = 30
NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


@pytest.fixture(params=HOSTS)
def run(backend: str, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a function under each host, and on none."""

    def start(async_fn: Callable[[], Awaitable[Any]]) -> Any:
        return HOSTS[request.param](backend, async_fn)

    return start


@contextlib.contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def read_eventfd(fd: int) -> None:
    await trio.lowlevel.wait_readable(fd)
    os.eventfd_read(fd)


# ---- operations ----------------------------------------------------------------------------

# Each gives what to await in a round, and what to do for it in the thread.


async def _pair() -> tuple[trio.socket.SocketType, stdlib_socket.socket]:
    with stdlib_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = trio.socket.socket()
        await near.connect(listener.getsockname())
        far, _ = listener.accept()
    return near, far


@contextlib.asynccontextmanager
async def receive_some() -> AsyncIterator[Any]:
    near, far = await _pair()
    async with trio.SocketStream(near) as stream:
        with far:

            async def receive() -> None:
                assert await stream.receive_some(10) == b"x"

            yield receive, lambda: far.send(b"x")


@contextlib.asynccontextmanager
async def recv_into() -> AsyncIterator[Any]:
    near, far = await _pair()
    with near, far:
        buffer = bytearray(10)

        async def receive() -> None:
            assert await near.recv_into(buffer) == 1

        yield receive, lambda: far.send(b"x")


class Reader:
    """Reads so many bytes, or to the end, in whatever thread calls it."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self.read = read
        self.size = size
        self.idle = threading.Event()
        self.idle.set()

    def __call__(self) -> None:
        self.idle.clear()
        left = self.size
        while left and (data := self.read(left)):
            left -= len(data)
        self.idle.set()

    def wait(self) -> None:
        """Before its file is closed: what was sent last may lie there still."""
        assert self.idle.wait(5)


@contextlib.asynccontextmanager
async def send_all() -> AsyncIterator[Any]:
    a, far = stdlib_socket.socketpair()
    reader = Reader(far.recv, 500_000)  # a UNIX socket takes 208 KiB
    with far:
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(a)) as stream:
                yield lambda: stream.send_all(bytes(reader.size)), reader
        finally:
            reader.wait()


@contextlib.asynccontextmanager
async def accept() -> AsyncIterator[Any]:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()

        async def take() -> None:
            accepted, _ = await listener.accept()
            accepted.close()

        yield take, lambda: stdlib_socket.create_connection(address).close()


@contextlib.asynccontextmanager
async def recvfrom() -> AsyncIterator[Any]:
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as near:
        await near.bind(("127.0.0.1", 0))
        with stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) as far:

            async def receive() -> None:
                assert (await near.recvfrom(10))[0] == b"x"

            address = near.getsockname()
            yield receive, lambda: far.sendto(b"x", address)


@contextlib.asynccontextmanager
async def recvmsg() -> AsyncIterator[Any]:
    near, far = trio.socket.socketpair(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET)
    with near, far:

        async def receive() -> None:
            assert (await near.recvmsg(10))[0] == b"x"

        fd = far.fileno()
        yield receive, lambda: os.write(fd, b"x")


@contextlib.asynccontextmanager
async def fd_stream_receive() -> AsyncIterator[Any]:
    near, far = os.pipe2(NONBLOCK_CLOEXEC)
    try:
        async with trio.lowlevel.FdStream(near) as stream:

            async def receive() -> None:
                assert await stream.receive_some(10) == b"x"

            yield receive, lambda: os.write(far, b"x")
    finally:
        os.close(far)


@contextlib.asynccontextmanager
async def fd_stream_send() -> AsyncIterator[Any]:
    far, near = os.pipe()
    reader = Reader(partial(os.read, far), 200_000)  # a pipe takes 64 KiB
    try:
        async with trio.lowlevel.FdStream(near) as stream:
            yield lambda: stream.send_all(bytes(reader.size)), reader
    finally:
        reader.wait()
        os.close(far)


@contextlib.asynccontextmanager
async def fd_stream_of_an_eventfd() -> AsyncIterator[Any]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    async with trio.lowlevel.FdStream(fd) as stream:

        async def receive() -> None:
            assert len(await stream.receive_some(8)) == 8

        yield receive, lambda: os.eventfd_write(fd, 1)


@contextlib.asynccontextmanager
async def run_sync_soon() -> AsyncIterator[Any]:
    token = trio.lowlevel.current_trio_token()
    calls: list[trio.Event] = []

    async def wait() -> None:
        calls.append(trio.Event())
        await calls[-1].wait()
        calls.clear()

    yield wait, lambda: token.run_sync_soon(lambda: calls[-1].set())


@contextlib.asynccontextmanager
async def thread_that_ends() -> AsyncIterator[Any]:
    may_end = threading.Semaphore(0)

    async def wait() -> None:
        await trio.to_thread.run_sync(may_end.acquire)

    yield wait, may_end.release


OPERATIONS = (
    receive_some,
    recv_into,
    send_all,
    accept,
    recvfrom,
    recvmsg,
    fd_stream_receive,
    fd_stream_send,
    fd_stream_of_an_eventfd,
    run_sync_soon,
    thread_that_ends,
)


@pytest.mark.parametrize("eventfd_first", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_beside_an_eventfd(run: Any, operation: Any, eventfd_first: bool) -> None:
    async def main() -> int:
        rounds = 0
        delays = random.Random(operation.__name__)  # the same ones each time
        with eventfd() as fd, waker() as thread:
            async with operation() as (wait, wake):
                for _ in range(ROUNDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(read_eventfd, fd)
                        nursery.start_soon(wait)
                        await trio.lowlevel.checkpoint()  # both wait, in the next tick
                        both = [lambda: os.eventfd_write(fd, 1), wake]
                        if not eventfd_first:
                            both.reverse()
                        thread.do(both[0], delays.choice(DELAYS_S))
                        thread.do(both[1])
                    rounds += 1
        return rounds

    assert run(main) == ROUNDS


# ---- who wakes -----------------------------------------------------------------------------

WRITER = """
import os, sys
eventfd, pipe = int(sys.argv[1]), int(sys.argv[2])
while sys.stdin.buffer.read(1):
    os.eventfd_write(eventfd, 1)
    os.write(pipe, b"x")
"""


def test_another_process_wakes(run: Any) -> None:
    async def main() -> int:
        rounds = 0
        near, far = os.pipe2(NONBLOCK_CLOEXEC)
        with (
            eventfd() as fd,
            subprocess.Popen(  # noqa: ASYNC220 - it is waited for by what it writes
                [sys.executable, "-c", WRITER, str(fd), str(far)],
                stdin=subprocess.PIPE,
                pass_fds=[fd, far],
            ) as writer,
        ):
            assert writer.stdin is not None
            os.close(far)
            async with trio.lowlevel.FdStream(near) as stream:
                for _ in range(ROUNDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(read_eventfd, fd)
                        nursery.start_soon(stream.receive_some, 1)
                        writer.stdin.write(b"x")
                        writer.stdin.flush()
                    rounds += 1
            writer.stdin.close()
        return rounds

    assert run(main) == ROUNDS


def test_a_signal_wakes(run: Any) -> None:
    main_thread = threading.get_ident()

    async def main() -> int:
        rounds = 0
        near, far = await _pair()
        with near, far, eventfd() as fd, waker() as thread:

            def handle(*_: object) -> None:
                os.eventfd_write(fd, 1)
                far.send(b"x")

            before = signal.signal(signal.SIGUSR1, handle)
            try:
                for _ in range(ROUNDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(read_eventfd, fd)
                        nursery.start_soon(near.recv, 10)
                        await trio.lowlevel.checkpoint()
                        thread.do(
                            lambda: signal.pthread_kill(main_thread, signal.SIGUSR1), DELAYS_S[-1]
                        )
                    rounds += 1
            finally:
                signal.signal(signal.SIGUSR1, before)
        return rounds

    assert run(main) == ROUNDS


@pytest.mark.parametrize("cancelled", ["eventfd", "other"])
def test_cancelled_waits_take_nobodys_wakeup(run: Any, cancelled: str) -> None:
    async def main() -> int:
        rounds = 0
        near, far = await _pair()
        with near, far, eventfd() as one, eventfd() as two, waker() as thread:
            for _ in range(ROUNDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read_eventfd, one)
                    nursery.start_soon(near.recv, 10)
                    with trio.move_on_after(0):
                        if cancelled == "eventfd":
                            await trio.lowlevel.wait_readable(two)
                        else:
                            await trio.lowlevel.wait_writable(two)
                            await trio.sleep_forever()
                    thread.do(lambda: os.eventfd_write(one, 1), DELAYS_S[-1])
                    thread.do(lambda: far.send(b"x"))
                rounds += 1
        return rounds

    assert run(main) == ROUNDS


# ---- callback servers ----------------------------------------------------------------------


@needs_ring
@pytest.mark.parametrize("host", HOSTS)
def test_a_worker_is_told_by_threads_and_by_clients(host: str) -> None:
    # A thread posts to the worker; beside it come a client's bytes, and an eventfd's wake-up
    # for another task of the run.
    conns: list[gain.Conn] = []

    def read(conn: gain.Conn, n: int) -> None:
        conns[:] = [conn]
        conn.write(conn.next(n))

    async def main() -> int:
        rounds = 0
        async with gain_tools.connected(gain_tools.Recorder(on_read=read)) as (_, client):
            with eventfd() as fd, waker() as thread:
                for _ in range(ROUNDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(read_eventfd, fd)
                        nursery.start_soon(_exchange, client, thread, fd, conns)
                    rounds += 1
        return rounds

    assert HOSTS[host](harness.RING, main) == ROUNDS


async def _exchange(
    client: trio.SocketStream, thread: Waker, fd: int, conns: list[gain.Conn]
) -> None:
    await client.send_all(b"a")
    assert await gain_tools.read_exactly(client, 1) == b"a"
    (conn,) = conns
    thread.do(lambda: os.eventfd_write(fd, 1), DELAYS_S[-1])
    thread.do(lambda: conn.call_soon_threadsafe(conn.write, b"b"))
    assert await gain_tools.read_exactly(client, 1) == b"b"
