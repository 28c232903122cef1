"""Bytes in and out: what Gain strands, invents or mixes up, and this server must not.

Each test names the fault of Gain that it is about, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

import pytest
from gain_tools import (
    MIB,
    MODES,
    Mode,
    Recorder,
    connect,
    echo,
    in_thread,
    is_silent,
    make_recorder,
    needs_ring,
    options_for,
    pattern,
    receive_all,
    receive_exactly,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_until,
)

if TYPE_CHECKING:
    from uring_trio import gain

pytestmark = needs_ring


# --- B4 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [10_000, 200_000])
def test_b4_echo_of_next_n_is_complete(mode: Mode, size: int) -> None:
    """B4: of 10,000 bytes Gain announced the last 1,808; its own echo stranded the rest."""
    handler = make_recorder(mode, on_read=echo)
    message = pattern(size)
    with (
        server_in_thread(handler, workers=1, **options_for(mode)) as server,
        connect(server) as client,
        in_thread(receive_exactly, client, size) as answer,
    ):
        client.sendall(message)
    assert answer == [message]
    assert sum(handler.values("on_read")) == size


def test_b4_n_counts_what_no_on_read_has_announced_and_nobody_consumed() -> None:
    """B4: so that what a callback leaves is not announced again."""
    seen = []

    def leave(conn: gain.Conn, n: int) -> None:
        seen.append((n, conn.inbound_buffered()))

    def take_all(conn: gain.Conn, n: int) -> None:
        leave(conn, n)
        conn.write(conn.next())

    handler = Recorder(on_read=leave)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"a" * 1000)
        wait_until(lambda: len(seen) == 1)
        handler.actions["on_read"] = take_all
        client.sendall(b"b" * 500)
        assert receive_exactly(client, 1500) == b"a" * 1000 + b"b" * 500
        round_trip(client, b"c" * 10)
    assert seen == [(1000, 1000), (500, 1500), (10, 10)]


def test_b4_bytes_consumed_elsewhere_are_not_announced() -> None:
    """B4: what was gathered while reading was paused and then taken is nobody's news."""
    handler = Recorder(on_accept=lambda conn: conn.pause_reading())
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"x" * 100)
        assert is_silent(client)
        assert handler.values("on_read") == []
        run_in_worker(handler.conn, handler.conn.resume_reading)
        wait_until(lambda: handler.values("on_read") == [100])
        assert run_in_worker(handler.conn, lambda: handler.conn.next(100)) == b"x" * 100
        client.sendall(b"y" * 7)
        wait_until(lambda: handler.values("on_read") == [100, 7])


# --- B9, B10, B11 -----------------------------------------------------------------------


def test_b9_read_from_an_empty_file_writes_nothing() -> None:
    """B9: Gain then sends 4,096 bytes of garbage."""
    results = []

    def write(conn: gain.Conn) -> None:
        results.append(conn.read_from(io.BytesIO(b"")))
        results.append(conn.outbound_buffered())
        results.append(conn.read_from(io.BytesIO(b"all there is")))
        results.append(conn.read_from(io.BytesIO(b"")))
        conn.close()

    handler = Recorder(on_accept=write)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == b"all there is"
    assert results == [0, 0, 12, 0]
    assert handler.values("on_write") == [12]


def test_b10_discard_of_a_negative_count_is_all_that_is_there() -> None:
    """B10: Gain returns -1, and has one byte more in its buffer than before."""
    results = []

    def discard(conn: gain.Conn, n: int) -> None:
        assert n == 10
        for count in (0, 3, 100):
            results.append((conn.discard(count), conn.inbound_buffered(), conn.peek()))
        results.append((conn.discard(-1), conn.inbound_buffered(), conn.peek()))
        handler.actions["on_read"] = lambda conn, n: results.append(
            (conn.discard(-1), conn.inbound_buffered(), conn.next())
        )
        conn.write(b"next")

    handler = Recorder(on_read=discard)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"0123456789")
        assert receive_exactly(client, 4) == b"next"
        client.sendall(b"abcde")
        wait_until(lambda: len(results) == 5)
    assert results == [
        (0, 10, b"0123456789"),
        (3, 7, b"3456789"),
        (7, 0, b""),
        (0, 0, b""),
        (5, 0, b""),
    ]


def test_b11_bytes_are_right_whatever_the_sizes() -> None:
    """B11: Gain's pool gives a ring of 8,192 bytes a mapping of 12,288, and bytes go wrong."""
    generator = random.Random(11)
    message = pattern(4 * MIB)

    def take_some(conn: gain.Conn, n: int) -> None:
        while conn.inbound_buffered() > conn.context:
            size = generator.choice([1, 7, 4096, 8192, 12_288, 12_289, conn.inbound_buffered()])
            size = min(size, conn.inbound_buffered())
            ahead = conn.peek(size)
            scratch = bytearray(size)
            if size % 2:
                assert conn.read_into(scratch) == size
            else:
                scratch[:] = conn.next(size)
            assert scratch == ahead
            conn.write(scratch)
            conn.context = generator.choice([0, 0, 1, 4000])

    def begin(conn: gain.Conn) -> None:
        conn.context = 0

    handler = Recorder(on_accept=begin, on_read=take_some)
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server) as client,
        in_thread(receive_exactly, client, len(message) - 4000) as answer,
    ):
        at = 0
        while at < len(message):
            size = generator.choice([1, 100, 4095, 8192, 12_288, 100_000])
            client.sendall(message[at : at + size])
            at += size
    assert answer == [message[:-4000]]
