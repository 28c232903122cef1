"""Data and the end, both there before the kernel looks at either: the end is not lost.

A multishot receive that polls first, and finds data and a reset (or on a UNIX socket data
and an end of file), gives the data and on Linux 6.18 says nothing more: the end wakes nobody,
because it came before.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = ON_RING

LIMIT_S = 5.0
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Holding(gain.EventHandler):
    """Answers nothing, and holds its worker while the peer sends and resets."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.held = threading.Event()
        self.go_on = threading.Event()
        self.received = b""
        self.closed = trio.Event()
        self.err: BaseException | None = None

    def hold(self) -> None:
        self.held.set()
        assert self.go_on.wait(LIMIT_S)

    def on_accept(self, conn: gain.Conn) -> None:
        if self.where == "on_accept":
            self.hold()

    def on_read(self, conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        self.received += data
        if data == b"hold":
            self.hold()
        elif data == b"pause":
            conn.pause_reading()
            self.hold()
            conn.resume_reading()

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        self.err = err
        self.closed.set()


async def end_of(
    address: str, handler: Holding, first: bytes, data: bytes, how: str, **options: Any
) -> None:
    """Have a client send *first*, and *data* and its end while the worker is held."""

    def client(address: gain.Address) -> None:
        family = socket.AF_UNIX if address.network == "unix" else socket.AF_INET
        with socket.socket(family) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(address[0] if address.network == "unix" else tuple(address))
            sock.sendall(first)
            assert handler.held.wait(LIMIT_S)
            sock.sendall(data)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            if how == "shutdown":
                sock.shutdown(socket.SHUT_WR)
                handler.go_on.set()
                assert sock.recv(1) == b""
        handler.go_on.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(gain.serve, **options), address, handler)
        with trio.fail_after(LIMIT_S):
            await trio.to_thread.run_sync(client, server.addresses()[0])
            await handler.closed.wait()
        server.async_shutdown()
    assert handler.received == first + data


@pytest.mark.parametrize("size", [1, 5000, 50_000])
@pytest.mark.parametrize("where", ["on_accept", "hold", "pause"])
async def test_reset_behind_data_while_the_worker_is_busy(where: str, size: int) -> None:
    handler = Holding(where)
    first = b"" if where == "on_accept" else where.encode()
    await end_of("tcp://127.0.0.1:0", handler, first, b"x" * size, "reset")
    assert isinstance(handler.err, ConnectionResetError)


@pytest.mark.parametrize("size", [1, 5000, 50_000])
async def test_data_before_a_reset_is_told_in_a_thread(size: int) -> None:
    """The reset is known before the thread begins: what came before it is input like any other."""
    handler = Holding("on_accept")
    address = "tcp://127.0.0.1:0"
    await end_of(address, handler, b"", b"x" * size, "reset", async_handler=True)
    assert isinstance(handler.err, ConnectionResetError)


@pytest.mark.parametrize("how", ["close", "shutdown"])
@pytest.mark.parametrize("size", [1, 5000, 50_000])
@pytest.mark.parametrize("where", ["on_accept", "hold", "pause"])
@pytest.mark.parametrize("network", ["tcp", "unix"])
async def test_end_of_file_behind_data_while_the_worker_is_busy(
    network: str, where: str, size: int, how: str, tmp_path: Path
) -> None:
    handler = Holding(where)
    first = b"" if where == "on_accept" else where.encode()
    address = "tcp://127.0.0.1:0" if network == "tcp" else f"unix://{tmp_path}/s"
    await end_of(address, handler, first, b"x" * size, how)
    assert isinstance(handler.err, gain.EndOfStream)


@pytest.mark.parametrize("size", [1, 5000, 50_000])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_reset_behind_data_before_it_is_accepted(host: str, size: int) -> None:
    """It waits in the kernel's queue, because the worker is held: nothing of it is lost."""
    handler = Holding("hold")
    handler.closed = trio.Event()
    held: list[gain.Conn] = []
    peers: list[gain.Address] = []

    def on_accept(conn: gain.Conn) -> None:
        peers.append(conn.remote_addr())
        if not held:
            held.append(conn)
            handler.hold()

    def on_close(conn: gain.Conn, err: BaseException | None) -> None:
        if conn not in held:
            handler.err = err
            handler.closed.set()

    handler.on_accept = on_accept  # type: ignore[method-assign]
    handler.on_close = on_close  # type: ignore[method-assign]
    name: list[object] = []

    def clients(address: gain.Address) -> None:
        family = socket.AF_INET if host[0] != "[" else socket.AF_INET6
        with socket.socket(family) as first, socket.socket(family) as second:
            first.connect(address)
            assert handler.held.wait(LIMIT_S)
            second.connect(address)
            name.append(second.getsockname())
            second.sendall(b"x" * size)
            second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        handler.go_on.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, f"tcp://{host}:0", handler)
        with trio.fail_after(LIMIT_S):
            await trio.to_thread.run_sync(clients, server.addresses()[0])
            await handler.closed.wait()
        server.async_shutdown()
    assert handler.received == b"x" * size
    assert isinstance(handler.err, ConnectionResetError)
    assert peers[1:] == name


# Beside a callback that runs as a task, and behind output that cannot be sent any more


@pytest.mark.parametrize("before_urgent", [None, 0, 3])
@pytest.mark.parametrize("size", [1, 5000, 50_000])
@pytest.mark.parametrize(
    ("takes", "limit"),
    [("before", 1 << 20), ("before", 2), ("after", 1 << 20), ("after", 2), ("later", 1 << 20)],
)
async def test_reset_behind_data_beside_an_async_on_read(
    takes: str, limit: int, size: int, before_urgent: int | None
) -> None:
    """What came before the reset is there to be taken, and told of where that is due.

    The kernel counts input up to an urgent byte, and what is behind that has come as well.
    """
    taken = b""
    told = 0
    notes: list[object] = []
    reached, go_on, closed = trio.Event(), trio.Event(), trio.Event()

    class Handler(gain.EventHandler):
        async def on_read(self, conn: gain.Conn, n: int) -> None:
            nonlocal taken, told
            told += n
            first = not reached.is_set()
            if takes == "before" or not first:
                taken += conn.next(n)
            if first:
                reached.set()
                await go_on.wait()
                assert conn.write(b"nobody reads that") == 0
            if takes == "after" and first:
                taken += conn.read()
                with pytest.raises(gain.ConnectionClosed):
                    conn.read()

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            notes.append(err)
            closed.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(gain.serve, read_buffer_limit=limit), "tcp://127.0.0.1:0", Handler()
        )
        with trio.fail_after(LIMIT_S), socket.socket() as client:
            client.connect(server.addresses()[0])
            client.sendall(b"go")
            await reached.wait()
            if before_urgent is not None:
                client.sendall(b"x" * before_urgent)
                client.send(b"!", socket.MSG_OOB)
            client.sendall(b"x" * size)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.close()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not notes
            go_on.set()
            await closed.wait()
        server.async_shutdown()
    sent = size + (before_urgent or 0)
    if takes == "later":
        assert told == 2 + sent
    else:
        assert taken == b"go" + b"x" * sent
    assert isinstance(notes[0], ConnectionResetError)


async def test_reset_wakes_who_drains_in_an_async_on_read() -> None:
    notes: list[object] = []
    reached, closed = trio.Event(), trio.Event()

    class Handler(gain.EventHandler):
        async def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.write(bytes(64 << 20))
            reached.set()
            for _ in range(2):
                try:
                    await conn.drain()
                except gain.ConnectionClosed:
                    notes.append("drain")
            notes.append(conn.next(n))

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            notes.append(isinstance(err, ConnectionError))
            closed.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, "tcp://127.0.0.1:0", Handler())
        with trio.fail_after(LIMIT_S), socket.socket() as client:
            client.connect(server.addresses()[0])
            client.sendall(b"go")
            await reached.wait()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.close()
            await closed.wait()
        server.async_shutdown()
    assert notes == ["drain", "drain", b"go", True]


class Answering(Holding):
    def on_read(self, conn: gain.Conn, n: int) -> None:
        conn.write(b"answer")
        super().on_read(conn, n)


class AsyncAnswering(gain.EventHandler):
    def __init__(self, plain: Answering) -> None:
        self.plain = plain
        self.on_close = plain.on_close  # type: ignore[method-assign]

    async def on_read(self, conn: gain.Conn, n: int) -> None:
        await trio.lowlevel.checkpoint()
        self.plain.received += conn.next(n)
        if not self.plain.held.is_set():
            self.plain.hold()
        else:
            with contextlib.suppress(gain.ConnectionClosed):
                conn.write(b"answer")


def reset_behind(address: gain.Address, handler: Holding, data: bytes) -> None:
    """Send *data* while the worker is held, and reset when the other side has all of it."""
    with socket.socket() as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(address)
        sock.sendall(b"hold")
        assert handler.held.wait(LIMIT_S)
        sock.sendall(data)
        while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
            time.sleep(0.001)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    handler.go_on.set()


@pytest.mark.parametrize("limit", [64 << 10, 1 << 20])
@pytest.mark.parametrize("handler_is_async", [False, True])
async def test_reset_behind_data_whose_answer_cannot_be_sent(
    handler_is_async: bool, limit: int
) -> None:
    """A send finds out first, while there is still more to be received than one receive takes."""
    size = 400_000
    for _ in range(3):
        answering = Answering("hold")
        handler = AsyncAnswering(answering) if handler_is_async else answering
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                partial(gain.serve, socket_recv_buffer_size=1 << 20, read_buffer_limit=limit),
                "tcp://127.0.0.1:0",
                handler,
            )

            with trio.fail_after(LIMIT_S):
                await trio.to_thread.run_sync(
                    reset_behind, server.addresses()[0], answering, bytes(size)
                )
                await answering.closed.wait()
            server.async_shutdown()
        assert len(answering.received) == 4 + size
        assert isinstance(answering.err, OSError)


@pytest.mark.parametrize("size", [1, 8192, 50_000])
async def test_reset_behind_input_that_was_taken(size: int) -> None:
    """Nothing is left to be received: the connection ends, large messages or small."""
    taken = 0
    reached, closed = trio.Event(), trio.Event()
    notes: list[object] = []

    class Handler(gain.EventHandler):
        def on_read(self, conn: gain.Conn, n: int) -> None:
            nonlocal taken
            taken += len(conn.next(n))
            if taken == size:
                reached.set()

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            notes.append(err)
            closed.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, "tcp://127.0.0.1:0", Handler())
        with trio.fail_after(LIMIT_S), socket.socket() as client:
            client.connect(server.addresses()[0])
            client.sendall(b"x" * size)
            await reached.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.close()
            await closed.wait()
        server.async_shutdown()
    assert isinstance(notes[0], ConnectionResetError)
