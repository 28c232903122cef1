"""Data over ``tls=``, and how such connections end; all counts are of plaintext."""

from __future__ import annotations

import contextlib
import hashlib
import socket as stdlib_socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from gain_tools import (
    BOUND_S,
    CLOGGING,
    MIB,
    MODES,
    NAME,
    QUIET_S,
    RESETS,
    HalfCloser,
    Mode,
    Peer,
    Recorder,
    Sink,
    bytes_buffered,
    client_context,
    connect,
    connect_tls,
    echo,
    in_thread,
    make_recorder,
    open_client,
    options_for,
    pattern,
    push_until_stuck,
    receive_exactly,
    reset,
    run_in_worker,
    server_context,
    server_in_thread,
    serving,
    the_error,
    versions,
    wait_until,
)
from marks import needs_ring

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_ring

BIG = 32 * MIB
HIGH_WATER = 65536
# What the limits of one direction may be passed by: a tick's input, and the pieces of a send.
SLACK = MIB + 2 * HIGH_WATER


@contextlib.contextmanager
def shaken_hands(
    handler: Recorder, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, **options: Any
) -> Iterator[Peer]:
    """A server, and a client of it whose handshake is done."""
    tls = server_context(version)
    with (
        server_in_thread(handler, workers=1, tls=tls, **options) as server,
        connect(server) as raw,
    ):
        peer = Peer(raw)
        peer.shake_hands()
        wait_until(lambda: handler.counts().accept)
        yield peer


# --- Data -------------------------------------------------------------------------------


@pytest.mark.differential
@pytest.mark.ring_only
async def test_much_both_ways_at_once_with_bounded_memory() -> None:
    """The client reads late and slowly; the server waits for it in drain()."""
    message, peak = pattern(BIG), 0
    digest = hashlib.sha256()

    async def send(conn: gain.Conn) -> None:
        nonlocal peak
        for start in range(0, BIG, HIGH_WATER):
            conn.write(message[start : start + HIGH_WATER])
            peak = max(peak, conn.outbound_buffered() + conn.inbound_buffered())
            await conn.drain()
            assert conn.outbound_buffered() <= HIGH_WATER // 4

    handler = Recorder(
        on_accept=lambda conn: conn.start_soon(send, conn),
        on_read=lambda conn, n: digest.update(conn.next(n)),
        on_write=lambda conn, n: None,
    )
    async with serving(handler, tls=server_context()) as server:
        client = trio.SSLStream(await open_client(server), client_context(), server_hostname=NAME)
        received = bytearray()
        with trio.fail_after(6 * BOUND_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, message)
                await trio.sleep(QUIET_S)
                while len(received) < BIG:
                    received += await client.receive_some(16384)
        await client.aclose()
    assert received == message
    assert digest.digest() == hashlib.sha256(message).digest()
    assert sum(handler.values("on_read")) == sum(handler.values("on_write")) == BIG
    assert peak <= 2 * HIGH_WATER + SLACK


def test_echo_to_a_client_that_does_not_read_is_bounded() -> None:
    """Above high water reading stops by itself, and it goes on at low water."""
    handler = Recorder(on_read=echo)
    message = pattern(BIG)
    with shaken_hands(handler) as peer:
        sealed = peer.seal(message)
        sent = push_until_stuck(peer.raw, sealed)
        assert sent < len(sealed)
        assert bytes_buffered(handler.conn.server) <= 2 * HIGH_WATER + SLACK
        with in_thread(peer.raw.sendall, memoryview(sealed)[sent:]):
            assert peer.read_exactly(BIG) == message


@pytest.mark.parametrize("mode", MODES)
@versions
def test_counts_are_of_plaintext_and_add_up(version: ssl.TLSVersion, mode: Mode) -> None:
    message = pattern(3 * MIB)
    handler = make_recorder(mode, on_read=echo, on_write=lambda conn, n: None)
    options = {"tls": server_context(version), **options_for(mode)}
    with server_in_thread(handler, workers=1, **options) as server, connect_tls(server) as client:
        for size in (1, 100, 16384, 16385, 100_000):
            client.sendall(message[:size])
            assert receive_exactly(client, size) == message[:size]
        with connect(server) as raw:
            peer = Peer(raw)
            peer.shake_hands()
            with in_thread(raw.sendall, peer.seal(message)):
                assert peer.read_exactly(len(message)) == message
            raw.sendall(peer.close_notify())
            assert peer.read_to_end() == b""
        client.unwrap().close()
        wait_until(lambda: handler.counts().close == 2)
    sums = [1 + 100 + 16384 + 16385 + 100_000, len(message)]
    for conn, expected in zip(handler.conns, sums, strict=True):
        assert sum(handler.values("on_read", conn)) == expected
        assert sum(handler.values("on_write", conn)) == expected


def test_all_records_of_a_packet_are_one_call() -> None:
    handler = Recorder(on_read=echo)
    with shaken_hands(handler) as peer:
        peer.send(b"".join(peer.seal(b"%d" % i) for i in range(10)))
        assert peer.read_exactly(10) == b"0123456789"
    assert handler.values("on_read") == [10]


def test_input_is_not_announced_while_paused() -> None:
    handler = Recorder(on_accept=lambda conn: conn.pause_reading(), on_read=echo)
    with shaken_hands(handler) as peer:
        peer.send(peer.seal(b"later"))
        time.sleep(QUIET_S)
        assert handler.values("on_read") == []
        run_in_worker(handler.conn, handler.conn.resume_reading)
        assert peer.read_exactly(5) == b"later"


# --- The end ----------------------------------------------------------------------------


@versions
def test_close_flushes_and_says_close_notify(version: ssl.TLSVersion) -> None:
    message = pattern(BIG)

    def answer(conn: gain.Conn, n: int) -> None:
        conn.discard(n)
        conn.write(message)
        conn.close()

    handler = Recorder(on_read=answer, on_write=lambda conn, n: None)
    with shaken_hands(handler, version) as peer:
        peer.send(peer.seal(b"all of it"))
        assert peer.read_to_end() == message
        assert peer.raw.recv(1) == b""
        assert the_error(handler) is None
    assert sum(handler.values("on_write")) == BIG


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("says_so", [True, False], ids=["close_notify", "FIN alone"])
def test_all_is_delivered_and_answered_at_the_peers_end(says_so: bool, mode: Mode) -> None:
    """Only what on_close is told differs: without close_notify input may have been cut off."""
    message = pattern(2 * MIB)
    handler = make_recorder(mode, on_read=echo)
    with shaken_hands(handler, **options_for(mode)) as peer:

        def talk() -> None:
            peer.send(sealed)
            peer.raw.shutdown(stdlib_socket.SHUT_WR)

        sealed = peer.seal(message) + (peer.close_notify() if says_so else b"")
        with in_thread(talk):
            assert peer.read_to_end() == message
        error = the_error(handler)
    assert isinstance(error, gain.EndOfStream if says_so else ssl.SSLEOFError)
    assert sum(handler.values("on_read")) == len(message)


@versions
def test_after_close_notify_on_eof_may_go_on_writing(version: ssl.TLSVersion) -> None:
    message = pattern(4 * MIB)

    def finish(conn: gain.Conn) -> None:
        conn.write(message)
        conn.close()

    handler = HalfCloser(on_read=echo, on_eof=finish)
    with shaken_hands(handler, version) as peer:
        peer.send(peer.seal(b"last words") + peer.close_notify())
        assert peer.read_to_end() == b"last words" + message
        assert the_error(handler) is None
    assert handler.names().count("on_eof") == 1


def test_end_that_may_be_a_cut_is_no_on_eof() -> None:
    handler = HalfCloser(on_read=echo)
    with shaken_hands(handler) as peer:
        peer.send(peer.seal(b"half a mess"))
        peer.raw.shutdown(stdlib_socket.SHUT_WR)
        assert peer.read_to_end() == b"half a mess"
        assert isinstance(the_error(handler), ssl.SSLEOFError)
    assert "on_eof" not in handler.names()


@versions
def test_peer_that_goes_without_our_close_notify_has_ended_all_the_same(
    version: ssl.TLSVersion,
) -> None:
    handler = Sink()
    with server_in_thread(handler, workers=1, tls=server_context(version)) as server:
        for number in range(1, 21):
            with connect(server) as raw:
                peer = Peer(raw)
                peer.shake_hands()
                peer.send(peer.seal(b"goodbye") + peer.close_notify())
            wait_until(lambda number=number: handler.counts().close == number)  # type: ignore[misc]
    assert all(isinstance(error, gain.EndOfStream) for error in handler.errors())
    assert handler.values("on_read") == [7] * 20


def test_abort_resets() -> None:
    def refuse(conn: gain.Conn, n: int) -> None:
        conn.write(CLOGGING)
        conn.abort()

    handler = Recorder(on_read=refuse)
    with shaken_hands(handler) as peer:
        peer.send(peer.seal(b"please"))
        with pytest.raises(ConnectionResetError):
            peer.read_to_end()
        assert the_error(handler) is None


@pytest.mark.parametrize("mode", MODES)
def test_reset_in_the_middle_of_a_record(mode: Mode) -> None:
    handler = make_recorder(mode, on_read=echo)
    with shaken_hands(handler, **options_for(mode)) as peer:
        peer.send(peer.seal(b"whole"))
        assert peer.read_exactly(5) == b"whole"
        peer.send(peer.seal(bytes(16384))[:5000])
        reset(peer.raw)
        error = the_error(handler)
    assert isinstance(error, OSError)
    assert error.errno in RESETS
    assert handler.values("on_read") == [5]


@versions
def test_bad_record(version: ssl.TLSVersion) -> None:
    handler = Sink()
    with shaken_hands(handler, version) as peer:
        bad = bytearray(peer.seal(b"bad"))
        bad[-1] ^= 1
        peer.send(bytes(bad))
        error = the_error(handler)
    assert isinstance(error, ssl.SSLError)
    assert not isinstance(error, ssl.SSLEOFError)
    assert handler.values("on_read") == []


def test_good_record_before_a_bad_one_is_delivered_and_the_alert_is_sent() -> None:
    handler = Sink()
    with shaken_hands(handler) as peer:
        good, bad = peer.seal(b"good"), bytearray(peer.seal(b"bad"))
        bad[-1] ^= 1
        peer.send(good + bytes(bad))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert.bad.record.mac"):
            peer.read_to_end()
        assert isinstance(the_error(handler), ssl.SSLError)
        assert handler.received(handler.conn) == b"good"


# --- Deadlines --------------------------------------------------------------------------


def clog(conn: gain.Conn) -> None:
    conn.write(CLOGGING)
    conn.set_write_deadline(QUIET_S)


DEADLINES: dict[str, Callable[[gain.Conn], None]] = {
    "read": lambda conn: conn.set_read_deadline(QUIET_S),
    "write": clog,
    "idle": lambda conn: conn.set_idle_timeout(QUIET_S),
}


@pytest.mark.parametrize("kind", DEADLINES)
def test_deadlines_pass(kind: str) -> None:
    handler = Recorder(on_accept=DEADLINES[kind])
    with shaken_hands(handler):
        error = the_error(handler)
    assert isinstance(error, gain.DeadlineExceeded)
    assert kind in str(error)


@pytest.mark.parametrize("kind", ["read", "write", "idle"])
def test_deadlines_are_met(kind: str) -> None:
    def begin(conn: gain.Conn) -> None:
        conn.write(b"welcome")
        getattr(conn, f"set_{kind}_{'timeout' if kind == 'idle' else 'deadline'}")(QUIET_S)

    handler = Recorder(on_accept=begin, on_read=echo)
    with shaken_hands(handler) as peer:
        for _ in range(5):
            peer.send(peer.seal(b"x"))
            time.sleep(QUIET_S / 3)
        peer.send(peer.close_notify())
        assert peer.read_to_end() == b"welcomexxxxx"
        assert isinstance(the_error(handler), gain.EndOfStream)


def small_buffers(conn: gain.Conn) -> None:
    conn.set_write_buffer(4096)


@pytest.mark.parametrize("reads", [True, False], ids=["slow reader", "no reader"])
def test_close_timeout_is_about_progress(reads: bool) -> None:
    """Less than a piece of ciphertext in close_timeout is progress; nothing is a TimeoutError."""
    message = pattern(MIB // 4)

    def answer(conn: gain.Conn, n: int) -> None:
        conn.write(message)
        conn.close()

    handler = Recorder(on_accept=small_buffers, on_read=answer)
    tls = server_context()
    with (
        server_in_thread(handler, workers=1, tls=tls, close_timeout=0.3) as server,
        connect(server, receive_buffer=4096) as raw,
    ):
        peer = Peer(raw)
        peer.shake_hands()
        peer.send(peer.seal(b"x"))
        if reads:
            received = b""
            while len(received) < len(message):
                received += peer.read_exactly(4096)
                time.sleep(0.02)
            assert received == message
            assert peer.read_to_end() == b""
            assert the_error(handler) is None
        else:
            assert isinstance(the_error(handler), TimeoutError)
