"""Both directions at once, and peers who send too fast or read too slowly.

Each test names the fault of Gain that it is about, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from gain_tools import (
    MIB,
    RESETS,
    Mode,
    Recorder,
    Sink,
    bytes_buffered,
    connect,
    echo,
    in_thread,
    make_recorder,
    needs_ring,
    pattern,
    push_until_stuck,
    receive_all,
    receive_exactly,
    reset,
    resident_bytes,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uring_trio import gain

pytestmark = needs_ring

LIMIT = 64 * 1024  # the default of read_buffer_limit and of write_high_water

# How far a limit may be passed: by what one tick may bring, all of the small provided buffers.
SLACK = MIB

# So that the kernel does not buffer many MiB before anything has to stop.
SMALL: dict[str, Any] = {"socket_recv_buffer_size": 65536, "socket_send_buffer_size": 65536}


# --- B6 ---------------------------------------------------------------------------------


def test_b6_big_streams_go_both_ways_at_once() -> None:
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


def test_b6_echo_of_a_big_stream_is_the_stream() -> None:
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


def test_b6_input_is_read_while_output_waits() -> None:
    """B6: below high water output that waits stops no input."""
    message = pattern(4 * MIB)
    handler = Sink()
    with stuck_client(handler, write_high_water=64 * MIB) as client:
        client.sendall(message)
        wait_until(lambda: handler.received_size(handler.conn) == len(message))
        assert handler.received(handler.conn) == message
        assert run_in_worker(handler.conn, handler.conn.outbound_buffered) > 8 * MIB


def test_b6_fin_is_noticed_while_output_waits() -> None:
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
def test_b6_reset_is_noticed_while_reading_has_stopped(stop: Callable[[gain.Conn], None]) -> None:
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


def test_b6_fast_writer_who_does_not_read_is_held_back() -> None:
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
def test_b6_handler_who_does_not_consume_is_given_no_more_than_the_limit(mode: Mode) -> None:
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


def test_b6_drain_waits_for_low_water() -> None:
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


# --- B14 --------------------------------------------------------------------------------


def test_b14_flood_neither_stalls_itself_nor_others() -> None:
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


def test_b14_buffer_that_grows_is_not_copied_over_and_over() -> None:
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
