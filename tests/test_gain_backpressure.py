"""High and low water, paused reading, and what a slow peer costs."""

from __future__ import annotations

import contextlib
import errno
import socket as stdlib_socket
import time
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import test_gain_asleep
import trio
import trio.testing
from gain_tools import (
    CLOGGING,
    MIB,
    RESETS,
    Mode,
    Recorder,
    Sink,
    bytes_buffered,
    connect,
    connected,
    echo,
    in_thread,
    make_recorder,
    open_client,
    pattern,
    push_until_stuck,
    read_exactly,
    receive_all,
    receive_exactly,
    reset,
    resident_bytes,
    round_trip,
    run_in_worker,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from uring_trio import gain

pytestmark = ON_RING

QUIET_S = 0.03  # for something to happen that must not
KIB = 1024


async def test_pause_and_resume_reading() -> None:
    sink = Sink()
    async with connected(sink) as (conn, client):
        conn.pause_reading()
        conn.pause_reading()
        await client.send_all(b"x" * 1000)
        await trio.sleep(QUIET_S)
        assert sink.received_size() == 0
        conn.resume_reading()
        await until(lambda: sink.received_size() == 1000)
        conn.resume_reading()
        conn.pause_reading()
        await client.send_all(b"x" * 1000)
        await trio.sleep(QUIET_S)
        assert sink.received_size() == 1000
        conn.resume_reading()
        await until(lambda: sink.received_size() == 2000)


async def test_pause_in_on_read_stops_the_next_one() -> None:
    recorder = Recorder()

    def read(conn: gain.Conn, n: int) -> None:
        conn.discard()
        conn.pause_reading()

    recorder.actions["on_read"] = read
    async with connected(recorder) as (conn, client):
        for count in range(1, 5):
            await client.send_all(b"x")
            if count > 1:
                await trio.sleep(QUIET_S)
                assert recorder.counts().read == count - 1
                conn.resume_reading()
            await until(lambda: recorder.counts().read == count)  # noqa: B023


async def test_paused_connection_holds_the_peer_back() -> None:
    sink = Sink()
    async with connected(sink) as (conn, client), trio.open_nursery() as nursery:
        conn.pause_reading()
        sent = trio.Event()

        async def send() -> None:
            await client.send_all(CLOGGING)
            sent.set()

        nursery.start_soon(send)
        await trio.sleep(QUIET_S)
        assert not sent.is_set()
        assert conn.inbound_buffered() <= 128 * KIB
        conn.resume_reading()
        await until(lambda: sink.received_size() == len(CLOGGING))


async def test_what_trickles_in_while_reading_is_paused_stays_with_the_kernel() -> None:
    """No piece is large, so none by itself changes how it is received."""
    async with connected(Recorder()) as (conn, client):
        conn.pause_reading()
        await trio.sleep(QUIET_S)
        for _ in range(20):
            await client.send_all(b"x" * 100)
            await trio.sleep(0.001)
        await trio.sleep(QUIET_S)
        assert conn.inbound_buffered() == 0
        conn.resume_reading()
        await until(lambda: conn.inbound_buffered() == 2000)


async def test_input_that_nobody_consumes_is_bounded() -> None:
    recorder = Recorder()
    limit = 32 * KIB
    async with (
        connected(recorder, read_buffer_limit=limit) as (conn, client),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.send_all, CLOGGING)
        await until(lambda: conn.inbound_buffered() >= limit)
        await trio.sleep(QUIET_S)
        # One buffer may have been on its way when the limit was reached.
        assert conn.inbound_buffered() <= limit + 128 * KIB
        recorder.actions["on_read"] = lambda conn, n: conn.discard()
        conn.discard()
        await until(lambda: sum(recorder.values("on_read")) == len(CLOGGING))


async def test_reading_stops_above_high_water_and_goes_on_below_low() -> None:
    sink = Sink()
    async with connected(sink, write_high_water=64 * KIB) as (conn, client):
        conn.write(CLOGGING)
        await until(lambda: conn.outbound_buffered() < len(CLOGGING))
        await trio.sleep(QUIET_S)
        assert conn.outbound_buffered() > 64 * KIB
        await client.send_all(b"x" * 1000)
        await trio.sleep(QUIET_S)
        assert sink.received_size() == 0
        await read_exactly(client, len(CLOGGING))
        await until(lambda: sink.received_size() == 1000)
        assert conn.outbound_buffered() <= 16 * KIB


LOW_HIGH = 4 * KIB * KIB  # a high water so high that the steps of sending are small beside it
STEP = 512 * KIB


async def read_slowly(client: trio.abc.ReceiveStream, size: int) -> None:
    """In pieces so small that the server sees to each before the next."""
    left = size
    while left:
        left -= len(await client.receive_some(min(left, 16 * KIB)))
        for _ in range(3):
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("network", ["tcp", "unix", "tls"])
async def test_reading_goes_on_just_below_low_water(network: str, tmp_path: Path) -> None:
    """Not before, at high water, and not only when all was sent."""
    left_at_read: list[int] = []
    recorder = Recorder(on_read=lambda conn, n: left_at_read.append(conn.outbound_buffered()))
    async with test_gain_asleep.connected(
        network, recorder, tmp_path, write_high_water=LOW_HIGH, socket_send_buffer_size=32 * KIB
    ) as (conn, client):
        total = 2 * LOW_HIGH
        conn.write(bytes(total))
        await until(lambda: conn.outbound_buffered() < total)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(b"are you there?")
        await read_slowly(client.stream, total)
        await until(lambda: left_at_read)
    assert len(left_at_read) == 1
    assert LOW_HIGH // 4 - STEP <= left_at_read[0] <= LOW_HIGH // 4


async def test_reading_goes_on_up_to_high_water() -> None:
    recorder = Recorder()
    # A small send buffer: the kernel takes some, and not all, however long it has.
    async with connected(recorder, write_high_water=LOW_HIGH, socket_send_buffer_size=32 * KIB) as (
        conn,
        client,
    ):
        conn.write(bytes(LOW_HIGH))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert 0 < conn.outbound_buffered() <= LOW_HIGH
        await client.send_all(b"x")
        await until(lambda: recorder.counts().read == 1)
        conn.write(bytes(LOW_HIGH))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send_all(b"x")
        await trio.sleep(QUIET_S)
        assert recorder.counts().read == 1


@pytest.mark.parametrize("network", ["tcp", "tls"])
async def test_drain_returns_just_below_low_water(network: str, tmp_path: Path) -> None:
    left: list[int] = []
    async with test_gain_asleep.connected(
        network, Recorder(), tmp_path, write_high_water=LOW_HIGH, socket_send_buffer_size=32 * KIB
    ) as (conn, client):
        total = 2 * LOW_HIGH
        conn.write(bytes(total))

        async def drain() -> None:
            await conn.drain()
            left.append(conn.outbound_buffered())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await read_slowly(client.stream, total)
    assert LOW_HIGH // 4 - STEP <= left[0] <= LOW_HIGH // 4


async def test_echo_to_a_peer_that_does_not_read_is_bounded() -> None:
    recorder = Recorder(on_read=echo)
    async with connected(recorder) as (conn, client):
        total = 4 * len(CLOGGING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(total))
            await until(lambda: conn.outbound_buffered() > 64 * KIB)
            await trio.sleep(QUIET_S)
            assert conn.outbound_buffered() < 64 * KIB + 512 * KIB
            assert await read_exactly(client, total) == bytes(total)
        await until(lambda: sum(recorder.values("on_write")) == total)


@pytest.mark.parametrize("how", ["high water", "paused", "full"])
async def test_reset_is_noticed_while_reading_has_stopped(how: str) -> None:
    recorder = Recorder()
    async with connected(recorder, read_buffer_limit=1000) as (conn, client):
        if how == "high water":
            conn.write(CLOGGING)
        elif how == "paused":
            conn.pause_reading()
        else:
            await client.send_all(bytes(1000))
            await until(lambda: conn.inbound_buffered() == 1000)
        await trio.sleep(QUIET_S)
        gain_tools.reset(client.socket)
        await until(lambda: recorder.counts().close == 1)
    (err,) = recorder.errors()
    assert isinstance(err, OSError)
    assert err.errno in (errno.ECONNRESET, errno.EPIPE)


# drain


async def test_drain_returns_at_low_water() -> None:
    high = 256 * KIB
    async with connected(Recorder(), write_high_water=high) as (conn, client):
        conn.write(CLOGGING)
        drained = trio.Event()
        left = []

        async def drain() -> None:
            await conn.drain()
            left.append(conn.outbound_buffered())
            drained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            nursery.start_soon(drain)
            await trio.sleep(QUIET_S)
            assert not drained.is_set()
            await read_exactly(client, len(CLOGGING))
        assert len(left) == 2
        assert max(left) <= high // 4


async def test_drain_below_low_water_is_a_checkpoint() -> None:
    async with connected(Recorder()) as (conn, _):
        with trio.testing.assert_checkpoints():
            await conn.drain()
        conn.write(b"x")
        with trio.testing.assert_checkpoints():
            await conn.drain()


async def test_drain_can_be_cancelled_and_loses_nothing() -> None:
    async with connected(Recorder()) as (conn, client):
        conn.write(CLOGGING)
        with trio.move_on_after(QUIET_S) as scope:
            await conn.drain()
        assert scope.cancelled_caught
        assert await read_exactly(client, len(CLOGGING)) == CLOGGING


@pytest.mark.parametrize("how", ["abort", "reset"])
async def test_drain_of_a_connection_that_ends_raises(how: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        raised = []

        async def drain() -> None:
            with pytest.raises((OSError, trio.ClosedResourceError)) as caught:
                await conn.drain()
            raised.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            if how == "abort":
                conn.abort()
            else:
                gain_tools.reset(client.socket)
        assert len(raised) == 1
        await until(lambda: recorder.counts().close == 1)


async def test_async_def_that_drains_sends_any_amount() -> None:
    async def accept(conn: gain.Conn) -> None:
        for number in range(100):
            conn.write(bytes([number]) * 50_000)
            await conn.drain()
            assert conn.outbound_buffered() <= 16 * KIB
        conn.close()

    recorder = gain_tools.AsyncRecorder(on_accept=accept)
    async with serving(recorder) as server, await open_client(server) as client:
        data = await gain_tools.read_to_end(client)
    assert data == b"".join(bytes([number]) * 50_000 for number in range(100))
    assert sum(recorder.values("on_write")) == len(data)


# Fairness


async def test_a_flood_starves_nobody() -> None:
    recorder = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)[:1]))
    async with (
        serving(recorder) as server,
        await open_client(server) as flood,
        await open_client(server) as calm,
        trio.open_nursery() as nursery,
    ):

        async def drown() -> None:
            while True:
                await flood.send_all(bytes(1 << 20))

        nursery.start_soon(drown)
        await until(lambda: recorder.counts().read > 10)
        with trio.fail_after(gain_tools.BOUND_S):
            for _ in range(20):
                started = trio.current_time()
                await calm.send_all(b"!")
                assert await calm.receive_some() == b"!"
                assert trio.current_time() - started < 0.5
        nursery.cancel_scope.cancel()


async def test_a_handler_that_leaves_too_much_is_warned_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected(Recorder(), read_buffer_limit=100) as (conn, client):
        await client.send_all(b"x" * 150)
        await until(lambda: "read_buffer_limit (100)" in caplog.text)
        assert "has left 150 bytes unread" in caplog.text
        conn.discard()
        await client.send_all(b"x" * 150)
        await until(lambda: conn.inbound_buffered() == 150)
    assert caplog.text.count("has left") == 1


# Both directions at once, and blocking clients who send too fast or read too slowly


LIMIT = 64 * 1024  # the default of read_buffer_limit and of write_high_water


# How far a limit may be passed: by what one tick may bring, all of the small provided buffers.
SLACK = MIB


# So that the kernel does not buffer many MiB before anything has to stop.
SMALL: dict[str, Any] = {"socket_recv_buffer_size": 65536, "socket_send_buffer_size": 65536}


def test_big_streams_go_both_ways_at_once() -> None:
    """B6: Gain does not receive while a send is pending, so two such peers can lock up."""
    message = pattern(16 * MIB)

    def write_more(conn: gain.Conn, *_: Any) -> None:
        while conn.outbound_buffered() < LIMIT and conn.context < len(message):
            conn.write(message[conn.context : conn.context + LIMIT])
            conn.context += LIMIT

    def begin(conn: gain.Conn) -> None:
        conn.context = 0
        write_more(conn)

    handler = Sink(on_accept=begin, on_write=write_more)
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server) as client,
        in_thread(receive_exactly, client, len(message)) as answer,
    ):
        client.sendall(message)
        wait_until(lambda: handler.received_size(handler.conn) == len(message))
    assert answer == [message]
    assert handler.received(handler.conn) == message


def test_echo_of_a_big_stream_is_the_stream() -> None:
    """B6: the same where what comes in is what goes out."""
    message = pattern(16 * MIB)
    handler = Recorder(on_read=echo)
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server) as client,
        in_thread(receive_exactly, client, len(message)) as answer,
    ):
        client.sendall(message)
    assert answer == [message]


@contextlib.contextmanager
def stuck_client(handler: Recorder, **options: Any) -> Iterator[stdlib_socket.socket]:
    """A connection whose 16 MiB of output wait, because the client does not read.

    When the block ends the client resets it, or the server would wait for it.
    """
    handler.actions["on_accept"] = lambda conn: conn.write(bytes(16 * MIB))
    with server_in_thread(handler, workers=1, **options) as server:
        client = connect(server, receive_buffer=65536)
        assert receive_exactly(client, 100)
        try:
            yield client
        finally:
            reset(client)


def test_input_is_read_while_output_waits() -> None:
    """B6: below high water output that waits stops no input."""
    message = pattern(4 * MIB)
    handler = Sink()
    with stuck_client(handler, write_high_water=64 * MIB) as client:
        client.sendall(message)
        wait_until(lambda: handler.received_size(handler.conn) == len(message))
        assert handler.received(handler.conn) == message
        assert run_in_worker(handler.conn, handler.conn.outbound_buffered) > 8 * MIB


def test_fin_is_noticed_while_output_waits() -> None:
    """B6: Gain learns of the peer's FIN only when all was sent."""
    seen = []

    class HalfCloser(Recorder):
        def on_eof(self, conn: gain.Conn) -> None:
            seen.append(conn.outbound_buffered())

    with stuck_client(HalfCloser(), write_high_water=64 * MIB) as client:
        client.shutdown(stdlib_socket.SHUT_WR)
        wait_until(lambda: seen)
    assert seen[0] > 8 * MIB


@pytest.mark.parametrize(
    "stop",
    [lambda conn: conn.write(bytes(16 * MIB)), lambda conn: conn.pause_reading()],
    ids=["above high water", "paused"],
)
def test_reset_by_a_blocking_client_is_noticed_while_reading_has_stopped(
    stop: Callable[[gain.Conn], None],
) -> None:
    """B6: nor does Gain learn of a reset; here it is, though nothing is being received."""
    handler = Recorder(on_accept=stop)
    with server_in_thread(handler, workers=1) as server:
        client = connect(server, receive_buffer=65536)
        client.sendall(b"not read")
        wait_until(lambda: handler.conns)
        for _ in range(3):  # ticks, in which reading stops
            run_in_worker(handler.conn, handler.conn.outbound_buffered)
        assert handler.errors() == []
        reset(client)
        wait_until(handler.errors)
    (error,) = handler.errors()
    assert isinstance(error, OSError)
    assert error.errno in RESETS


def test_fast_writer_who_does_not_read_is_held_back() -> None:
    """B6: what Gain buffers for a peer who does not read has no bound."""
    handler = Recorder(on_read=echo)
    message = pattern(64 * MIB)
    with (
        server_in_thread(handler, workers=1, **SMALL) as server,
        connect(server, receive_buffer=65536, send_buffer=65536) as client,
    ):
        before = resident_bytes()
        sent = push_until_stuck(client, message)
        assert sent < 8 * MIB  # the kernel's buffers, and little more
        assert bytes_buffered(server) <= 2 * LIMIT + SLACK
        assert resident_bytes() - before < 16 * MIB
        assert receive_exactly(client, sent) == message[:sent]
        round_trip(client, b"and it goes on")


@pytest.mark.parametrize("mode", ["def", "async def"])
def test_handler_who_does_not_consume_is_given_no_more_than_the_limit(mode: Mode) -> None:
    """B6, B14: Gain's input buffer has no limit either."""
    gate = trio.Event()
    taken = bytearray()

    def leave(conn: gain.Conn, n: int) -> Any:
        return gate.wait() if mode == "async def" else None

    def take(conn: gain.Conn, n: int) -> None:
        taken.extend(conn.next())

    handler = make_recorder(mode, on_read=leave)
    message = pattern(64 * MIB)
    with (
        server_in_thread(handler, workers=1, **SMALL) as server,
        connect(server, send_buffer=65536) as client,
    ):
        sent = push_until_stuck(client, message)
        assert sent < 8 * MIB
        conn = handler.conn
        buffered = run_in_worker(conn, conn.inbound_buffered)
        assert LIMIT <= buffered <= LIMIT + SLACK
        assert bytes_buffered(server) == buffered
        handler.actions["on_read"] = take
        run_in_worker(conn, lambda: take(conn, 0))
        run_in_worker(conn, gate.set)
        wait_until(lambda: len(taken) == sent)
    assert taken == message[:sent]
    assert sum(handler.values("on_read")) <= sent


def test_drain_waits_for_low_water() -> None:
    """B6: Gain gives its handlers no sign of how far a peer is behind."""
    piece = bytes(MIB // 4)
    written, drained = [], []

    async def write_in_step(conn: gain.Conn) -> None:
        for _ in range(64):
            conn.write(piece)
            written.append(conn.outbound_buffered())
            await conn.drain()
            drained.append(conn.outbound_buffered())
        conn.close()

    handler = Recorder(on_accept=lambda conn: conn.start_soon(write_in_step, conn))
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server, receive_buffer=65536) as client,
    ):
        assert len(receive_all(client)) == 64 * len(piece)
    assert max(drained) <= LIMIT // 4
    assert max(written) <= len(piece) + LIMIT // 4


def test_flood_neither_stalls_itself_nor_others() -> None:
    """B14: one client who sends 16 MiB stalls a Gain worker for over a minute."""
    waits = []
    flood = 64 * MIB
    taken = 0

    def answer_a_byte(conn: gain.Conn, n: int) -> None:
        nonlocal taken
        conn.write(conn.next(n)[:1])
        taken += n

    handler = Recorder(on_read=answer_a_byte)
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server) as other,
        connect(server) as flooder,
        in_thread(flooder.sendall, bytes(flood)),
    ):
        while taken < flood:
            start = time.monotonic()
            round_trip(other, b"x")
            waits.append(time.monotonic() - start)
    assert max(waits) < 0.1


def test_buffer_that_grows_is_not_copied_over_and_over() -> None:
    """B14: in Gain, to gather x MiB takes time that grows as x squared: 8 MiB took 57 s."""
    message = pattern(16 * MIB)
    handler = Recorder()  # consumes nothing
    with (
        server_in_thread(handler, workers=1, read_buffer_limit=2 * len(message)) as server,
        connect(server) as client,
    ):
        start = time.monotonic()
        client.sendall(message)
        wait_until(lambda: handler.conns)
        conn = handler.conn
        wait_until(lambda: run_in_worker(conn, conn.inbound_buffered) == len(message))
        assert run_in_worker(conn, conn.peek) == message
        assert time.monotonic() - start < 2
    assert sum(handler.values("on_read")) == len(message)
