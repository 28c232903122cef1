"""Data and a reset that the kernel has both before it looks at either: the reset is not lost.

A multishot receive that is armed when both are there gives the data, and on Linux 6.18 says
nothing more: the reset wakes nobody, because it came before.
"""

from __future__ import annotations

import socket
import struct
import threading

import pytest
import trio

from uring_trio import gain

pytestmark = [pytest.mark.differential, pytest.mark.ring_only]

LIMIT_S = 5.0
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Sink(gain.EventHandler):
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


@pytest.mark.parametrize("size", [1, 5000, 50_000])
@pytest.mark.parametrize("where", ["on_accept", "hold", "pause"])
async def test_reset_behind_data_while_the_worker_is_busy(where: str, size: int) -> None:
    handler = Sink(where)
    first = b"" if where == "on_accept" else where.encode()

    def client(address: gain.Address) -> None:
        with socket.create_connection(address, LIMIT_S) as sock:
            sock.sendall(first)
            assert handler.held.wait(LIMIT_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            sock.sendall(b"x" * size)
        handler.go_on.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, "tcp://127.0.0.1:0", handler)
        await trio.to_thread.run_sync(client, server.addresses()[0])
        with trio.fail_after(LIMIT_S):
            await handler.closed.wait()
        server.async_shutdown()
    assert isinstance(handler.err, ConnectionResetError)
    assert handler.received == first + b"x" * size
