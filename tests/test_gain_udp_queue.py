"""Datagrams that the kernel does not take at once: queued, dropped beyond a bound, counted.

Loopback UDP takes whatever it is given. A UNIX socket does not: it is full after a few
datagrams that its peer has not read, so one stands in for the UDP socket of a worker.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import gain_tools
import trio
from gain_tools import LOOPBACK_UDP, AsyncRecorder, Recorder, serving, until
from marks import ON_RING

from uring_trio import gain
from uring_trio.gain import _datagram
from uring_trio.gain._listen import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from uring_trio.gain._datagram import DatagramSocket

pytestmark = ON_RING

SIZE = 100  # bytes of a datagram here
HIGH_WATER = 1000  # bytes, so ten of these


def unix_pair() -> tuple[stdlib_socket.socket, stdlib_socket.socket]:
    """The worker's socket, and a peer that reads only when it is told to."""
    peer = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    ours = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    for sock in (peer, ours):
        sock.bind("")  # Linux gives it a name
        sock.setblocking(False)
    # So that poll(2) tells whether the peer has room. The peer is not connected: that would
    # make it a pair, for which poll looks at the send buffer alone.
    ours.connect(peer.getsockname())
    return ours, peer


@contextlib.asynccontextmanager
async def clogging(
    recorder: Recorder, **options: Any
) -> AsyncIterator[tuple[Any, stdlib_socket.socket, DatagramSocket, gain.Server]]:
    """A server, and a datagram on a socket that clogs; its peer and the worker's side."""
    options = {"write_high_water": HIGH_WATER, **options}
    ours, peer = unix_pair()
    with peer:
        async with serving(recorder, LOOPBACK_UDP, **options) as server:
            with trio.socket.socket(type=stdlib_socket.SOCK_DGRAM) as client:
                await client.sendto(b"", server.addresses()[0])
                await until(lambda: recorder.conns)
            conn: Any = recorder.conn
            worker = conn.worker
            worker.listen(Listener(ours, gain.Address("udp", ("stand-in", 0)), "udp"))
            peer.sendto(b"go", ours.getsockname())
            await until(lambda: len(recorder.conns) == 2)
            yield recorder.conns[1], peer, worker._sockets[1], server


def drain(peer: stdlib_socket.socket) -> list[bytes]:
    received = []
    with contextlib.suppress(BlockingIOError):
        while True:
            received.append(peer.recv(SIZE + 1))
    return received


def messages(count: int) -> list[bytes]:
    return [b"%*d" % (SIZE, i) for i in range(count)]


def write_until_queued(conn: Any) -> int:
    """How many datagrams the kernel took before the first that it did not."""
    for count, message in enumerate(messages(10_000)):
        assert conn.write(message) == SIZE
        if conn.outbound_buffered():
            return count
    raise AssertionError("the peer's queue has no end")


async def collect(peer: stdlib_socket.socket, count: int) -> list[bytes]:
    received: list[bytes] = []

    def all_there() -> bool:
        received.extend(drain(peer))
        return len(received) >= count

    await until(all_there)
    return received


async def test_what_waits_is_sent_in_order_and_told_of() -> None:
    recorder = Recorder()
    async with clogging(recorder) as (conn, peer, datagrams, server):
        taken = write_until_queued(conn)
        for message in messages(taken + 5)[taken + 1 :]:
            conn.write(message)
        assert conn.outbound_buffered() == datagrams.queued == 5 * SIZE
        assert server.statistics().workers[0].bytes_buffered == 5 * SIZE
        await until(lambda: sum(recorder.values("on_write")) == taken * SIZE)
        # It sleeps on a poll until the peer reads, and does not try again and again.
        slot = datagrams._output.slot
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert datagrams._output.slot == slot != -1
        assert await collect(peer, taken + 5) == messages(taken + 5)
        await until(lambda: sum(recorder.values("on_write")) == (taken + 5) * SIZE)
        assert conn.outbound_buffered() == datagrams.queued == datagrams.dropped == 0
        assert datagrams._output.slot == -1


async def test_nothing_overtakes_what_waits() -> None:
    async with clogging(Recorder()) as (conn, peer, _, _):
        taken = write_until_queued(conn)
        received = drain(peer)
        # There is room now, and the worker has not heard of it.
        conn.write(b"later")
        received += await collect(peer, 2)
        assert received == [*messages(taken + 1), b"later"]


async def test_beyond_high_water_datagrams_are_dropped_and_counted() -> None:
    recorder = Recorder()
    async with clogging(recorder) as (conn, peer, datagrams, server):
        taken = write_until_queued(conn)
        for _ in range(50):
            assert conn.write(bytes(SIZE)) == SIZE  # never an error, never short
        kept = HIGH_WATER // SIZE
        assert datagrams.queued == HIGH_WATER
        assert server.statistics().workers[0].datagrams_dropped == 51 - kept
        assert len(await collect(peer, taken + kept)) == taken + kept
        await until(lambda: sum(recorder.values("on_write")) == (taken + kept) * SIZE)
        assert conn.write(b"there is room again") == 19
        assert await collect(peer, 1) == [b"there is room again"]


async def test_empty_datagrams_have_a_bound_too() -> None:
    async with clogging(Recorder()) as (conn, peer, datagrams, _):
        taken = write_until_queued(conn)
        for _ in range(2 * _datagram.QUEUE_LENGTH_MAX):
            conn.write(b"")
        assert len(datagrams._queue) == _datagram.QUEUE_LENGTH_MAX
        received = await collect(peer, taken + _datagram.QUEUE_LENGTH_MAX)
        assert received[taken + 1 :] == [b""] * (_datagram.QUEUE_LENGTH_MAX - 1)


async def test_mutable_buffer_that_waits_is_a_copy() -> None:
    async with clogging(Recorder()) as (conn, peer, _, _):
        taken = write_until_queued(conn)
        buffer = bytearray(b"before")
        conn.write(buffer)
        buffer[:] = b"after!"
        assert (await collect(peer, taken + 2))[-1] == b"before"


async def test_what_waits_for_a_peer_who_goes_is_dropped(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stand-in's peer has no address of the internet, which is what is logged.
    monkeypatch.setattr(_datagram, "address_of", lambda _name: "the peer")
    async with clogging(Recorder()) as (conn, peer, datagrams, server):
        write_until_queued(conn)
        conn.write(bytes(SIZE))
        peer.close()
        await until(lambda: datagrams.dropped == 2)
        assert conn.outbound_buffered() == datagrams.queued == 0
        assert server.statistics().workers[0].datagrams_dropped == 2
    assert "sending to the peer failed: [Errno 111] Connection refused" in caplog.text


async def test_shutdown_sends_what_waits() -> None:
    recorder = AsyncRecorder()
    async with clogging(recorder) as (conn, peer, datagrams, server):
        taken = write_until_queued(conn)
        server.async_shutdown(gain_tools.BOUND_S)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert not datagrams.closed
        assert await collect(peer, taken + 1) == messages(taken + 1)
        await until(lambda: datagrams.closed)
        assert datagrams.dropped == 0
    assert sum(recorder.values("on_write")) == (taken + 1) * SIZE


async def test_shutdown_gives_up_at_its_deadline() -> None:
    async with clogging(Recorder()) as (conn, _, datagrams, server):
        write_until_queued(conn)
        server.async_shutdown(0.05)
        await until(lambda: datagrams.closed)
        assert datagrams.dropped == 1
        assert conn.outbound_buffered() == 0
