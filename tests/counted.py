"""The programs whose instructions `counts.py` counts, one for each door; runs under callgrind.

    python tests/counted.py LIBRARY DOOR ...

Both ends of each connection are in this thread, over UNIX sockets, where a send is at once at
the other end. So nothing here depends on time, on another process or on the network, and the
kernel is done with whatever it was given when it returns. What is left of chance is taken out:

- The engine may look at its ring for some microseconds before it sleeps (csrc/spin.c), and
  does as many rounds of that as fit: `without_looks` has it never want to.
- Sends leave before the end of a tick that is long (csrc/tick.c), and here each is: no tick is.
- trio shuffles each batch of tasks: its dice are thrown from a seed.
- The collector comes when some number of objects was made: it is off.
- Hashes of strings: PYTHONHASHSEED, which `counts.py` sets.

A door is a context manager that sets all up, and gives a function which does so many rounds of
the same. Each round has `PAIRS` connections, all of them busy at once: a fixed batch.

valgrind runs one thread at a time, and takes io_uring_enter for a call that does not sleep: a
run that sleeps in it, until a thread wakes it, sleeps for ever. So what needs a thread while a
door is set up or taken down is done beside a task that is always ready (`awake`), and a hop to
a thread looks again and again (`napping`): some 1 % of it is chance, and it is shown only. Both
nap in between, because on a quiet machine a thread that never sleeps has valgrind for minutes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket as stdlib_socket
import ssl
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import trio

import uring_trio
from uring_trio import _kernel, gain
from uring_trio._trio_private import current_runner

Rounds = Callable[[int], Awaitable[None]]
Door = Callable[[], contextlib.AbstractAsyncContextManager[Rounds]]

PAIRS = 16
# Of what takes few instructions more is done in a round, so that no single event counts.
ECHOES = 4
HOPS = 4
MESSAGE = b"x" * 64
# Before anything is counted: CPython makes its code faster as it runs, and pools grow.
WARM_UP = 10
# What the larger has more is the rounds alone: their start and end are in both.
SIZES = (5, 15)
# Of a run that waits for a thread: a look costs a hundredth of the hop.
NAP_S = 0.001
# Misses in a row: the engine then wants 4,096 short sleeps before it looks again.
NO_LOOKS = 1 << 16


# ---- the doors ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[Rounds]:
    """`trio.SocketStream`, both ends."""
    pairs = [trio.socket.socketpair() for _ in range(PAIRS)]
    async with echoing([(trio.SocketStream(a), trio.SocketStream(b)) for a, b in pairs]) as rounds:
        yield rounds


@contextlib.asynccontextmanager
async def tls() -> AsyncIterator[Rounds]:
    """`trio.SSLStream` over the same."""
    import trustme

    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("counted.example").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    pairs = []
    for _ in range(PAIRS):
        a, b = map(trio.SocketStream, trio.socket.socketpair())
        server = trio.SSLStream(a, server_context, server_side=True)
        client = trio.SSLStream(b, client_context, server_hostname="counted.example")
        pairs.append((server, client))
    async with echoing(pairs) as rounds:
        yield rounds


@contextlib.asynccontextmanager
async def echoing(
    pairs: Sequence[tuple[trio.abc.Stream, trio.abc.Stream]],
) -> AsyncIterator[Rounds]:
    """Rounds of a message and its echo, over streams."""

    async def echo(stream: trio.abc.Stream) -> None:
        while True:
            await stream.send_all(await stream.receive_some(4096))

    async def ask(stream: trio.abc.Stream, count: int) -> None:
        for _ in range(count):
            await stream.send_all(MESSAGE)
            await stream.receive_some(4096)

    async def rounds(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _, client in pairs:
                nursery.start_soon(ask, client, count)

    async with trio.open_nursery() as nursery:
        for server, _ in pairs:
            nursery.start_soon(echo, server)
        yield rounds
        nursery.cancel_scope.cancel()
    for pair in pairs:
        for stream in pair:
            await trio.aclose_forcefully(stream)


@contextlib.asynccontextmanager
async def sockets() -> AsyncIterator[Rounds]:
    """`trio.socket`, both ends."""
    pairs = [trio.socket.socketpair() for _ in range(PAIRS)]

    async def echo(sock: trio.socket.SocketType) -> None:
        while True:
            await sock.send(await sock.recv(4096))

    async def ask(sock: trio.socket.SocketType, count: int) -> None:
        for _ in range(count):
            await sock.send(MESSAGE)
            await sock.recv(4096)

    async def rounds(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _, client in pairs:
                nursery.start_soon(ask, client, count)

    async with trio.open_nursery() as nursery:
        for server, _ in pairs:
            nursery.start_soon(echo, server)
        yield rounds
        nursery.cancel_scope.cancel()
    for pair in pairs:
        for sock in pair:
            sock.close()


@contextlib.asynccontextmanager
async def datagrams() -> AsyncIterator[Rounds]:
    """`trio.socket` of UDP, both ends: what is sent over loopback is there when the call returns."""
    pairs = [(await bound_socket(), await bound_socket()) for _ in range(PAIRS)]

    async def echo(sock: trio.socket.SocketType) -> None:
        while True:
            await sock.sendto(*await sock.recvfrom(4096))

    async def ask(sock: trio.socket.SocketType, address: Any, count: int) -> None:
        for _ in range(count):
            await sock.sendto(MESSAGE, address)
            await sock.recvfrom(4096)

    async def rounds(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for server, client in pairs:
                nursery.start_soon(ask, client, server.getsockname(), count)

    async with trio.open_nursery() as nursery:
        for server, _ in pairs:
            nursery.start_soon(echo, server)
        yield rounds
        nursery.cancel_scope.cancel()
    for pair in pairs:
        for sock in pair:
            sock.close()


async def bound_socket() -> trio.socket.SocketType:
    """A socket of UDP that has an address on loopback."""
    sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    return sock


class Due:
    """Tells a task when something has happened to each connection of a round."""

    def __init__(self) -> None:
        self._left = 0
        self._all = trio.Event()

    def expect_all(self) -> None:
        self._left = PAIRS
        self._all = trio.Event()

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self._all.set()

    async def wait(self) -> None:
        await self._all.wait()


class Echo(gain.EventHandler):
    """A callback server's."""

    def __init__(self, due: Due) -> None:
        self._due = due

    def on_accept(self, conn: gain.Conn) -> None:
        self._due.one()

    def on_read(self, conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(n))
        self._due.one()


def by_plain_clients(clients: Sequence[stdlib_socket.socket], due: Due) -> Rounds:
    """Rounds of a message of each client and its echo; none of them ever waits."""

    async def rounds(count: int) -> None:
        for _ in range(ECHOES * count):
            due.expect_all()
            for client in clients:
                client.send(MESSAGE)
            await due.wait()
            for client in clients:
                client.recv(4096)

    return rounds


@contextlib.asynccontextmanager
async def gain_echo() -> AsyncIterator[Rounds]:
    """A callback server in this run; its clients are plain sockets, which never wait."""
    due = Due()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as clients_open:
        path = f"{directory}/socket"
        async with trio.open_nursery() as nursery:
            async with awake():
                await nursery.start(gain.serve, f"unix://{path}", Echo(due))
            due.expect_all()
            clients = [clients_open.enter_context(connected(path)) for _ in range(PAIRS)]
            await due.wait()

            yield by_plain_clients(clients, due)
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def gain_datagrams() -> AsyncIterator[Rounds]:
    """The same over UDP: a datagram over loopback is there when its sendto(2) returns."""
    due = Due()
    async with trio.open_nursery() as nursery:
        async with awake():
            server = await nursery.start(gain.serve, "udp://127.0.0.1:0", Echo(due))
        with contextlib.ExitStack() as clients_open:
            clients = []
            for _ in range(PAIRS):
                client = stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM)
                clients.append(clients_open.enter_context(client))
                client.setblocking(False)
                client.connect(tuple(server.addresses()[0]))

            yield by_plain_clients(clients, due)
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def accept() -> AsyncIterator[Rounds]:
    """Short connections to `trio.serve_listeners`: a message, its echo, and the end."""
    due = Due()

    async def echo(stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some(4096))
        due.one()

    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        plain = stdlib_socket.socket(stdlib_socket.AF_UNIX)
        plain.bind(path)
        plain.listen(PAIRS)
        listening = trio.socket.from_stdlib_socket(plain)

        async def rounds(count: int) -> None:
            for _ in range(count):
                due.expect_all()
                clients = [connected(path) for _ in range(PAIRS)]
                for client in clients:
                    client.send(MESSAGE)
                await due.wait()
                for client in clients:
                    client.recv(4096)
                    client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listening)])
            yield rounds
            nursery.cancel_scope.cancel()


def connected(path: str) -> stdlib_socket.socket:
    """A client that never waits: what it asks for is there, or it raises."""
    client = stdlib_socket.socket(stdlib_socket.AF_UNIX)
    client.setblocking(False)
    client.connect(path)
    return client


@contextlib.asynccontextmanager
async def thread() -> AsyncIterator[Rounds]:
    """`trio.to_thread.run_sync`, one at a time."""

    async def rounds(count: int) -> None:
        for _ in range(HOPS * count):
            await trio.to_thread.run_sync(int)

    with napping():
        yield rounds


DOORS: dict[str, Door] = {
    "streams": streams,
    "sockets": sockets,
    "datagrams": datagrams,
    "gain": gain_echo,
    "gain_datagrams": gain_datagrams,
    "accept": accept,
    "tls": tls,
    "thread": thread,
}


@contextlib.asynccontextmanager
async def awake() -> AsyncIterator[None]:
    """The run does not sleep on its ring in here; a thread has its turn while this one naps."""

    async def ready() -> None:
        while True:
            time.sleep(NAP_S)  # noqa: ASYNC251 - what the thread waits for is this one
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ready)
        yield
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def napping() -> Iterator[None]:
    """The run looks at its ring again and again, in place of a sleep."""
    ring = current_runner().io_manager.ring
    wait = ring.wait

    def nap_and_wait(timeout_ns: int) -> Any:
        answer = wait(0)
        while not answer and timeout_ns:
            time.sleep(NAP_S)
            answer = wait(0)
        return answer

    with mock.patch.object(ring, "wait", nap_and_wait):
        yield


# ---- counting -------------------------------------------------------------------------------


@contextlib.contextmanager
def without_looks() -> Iterator[None]:
    """Have the engine of this run not look before it sleeps."""
    spin = current_runner().io_manager.ring._engine.spin
    spin.credit, spin.misses = 0, NO_LOOKS
    yield
    assert spin.misses == NO_LOOKS, "it has looked"


async def count(name: str, callgrind: Any) -> None:
    dice: Any = getattr(trio._core._run, "_r")  # noqa: B009 - mypy: not exported
    dice.seed(0)
    with without_looks():
        async with DOORS[name]() as rounds:
            await rounds(WARM_UP)
            for size in SIZES:
                callgrind.counted_zero()
                await rounds(size)
                callgrind.counted_dump(f"{name} {size}".encode())


def main(library: str, names: list[str]) -> None:
    """Each door in a process of its own: what one leaves behind is not in the next one's.

    It is forked, since the imports would take longer than all that is counted.
    """
    callgrind = ctypes.CDLL(library)
    gc.disable()
    for name in names:
        child = os.fork()
        if not child:
            status = 1
            try:
                callgrind.counted_start()
                with mock.patch.object(_kernel, "LONG_TICK_NS", 0):
                    uring_trio.run(count, name, callgrind, backend="io_uring")
                status = 0
            except BaseException:  # noqa: BLE001 - nothing may go on into what the parent does
                traceback.print_exc()
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"{name} has failed")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
