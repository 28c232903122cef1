"""Servers with ``tls=``: handshakes, done and refused."""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
import threading
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
    RESETS,
    TLS_1_2,
    TLS_1_3,
    Boom,
    Mode,
    Peer,
    Recorder,
    client_context,
    close_now,
    connect,
    connect_tls,
    echo,
    make_recorder,
    open_client,
    options_for,
    pattern,
    read_to_end,
    receive_all,
    receive_exactly,
    reset,
    round_trip,
    run_in_worker,
    server_context,
    server_in_thread,
    serving,
    speak_an_old_version,
    until,
    versions,
    wait_until,
)
from marks import needs_ring

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Callable, Iterator

    from uring_trio import gain


pytestmark = needs_ring

CLIENTS = 40
TIMEOUT_S = 0.1


@contextlib.contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The log lines about handshakes, complete after the block."""
    lines: list[str] = []
    with caplog.at_level(logging.INFO, "uring_trio.gain"):
        yield lines
    lines += [r.getMessage() for r in caplog.records if "handshake" in r.getMessage()]


def assert_gone(server: gain.Server, client: stdlib_socket.socket) -> bytes:
    """The server has let go of the only client, which sees it; what came until then."""
    received = b""
    try:
        received = receive_all(client)
    except ConnectionResetError:
        pass
    wait_until(lambda: server.active_connections() == 0)
    return received


# --- Handshakes that succeed ------------------------------------------------------------


@versions
def test_on_accept_comes_after_the_handshake(version: ssl.TLSVersion) -> None:
    handler = Recorder(on_accept=lambda conn: conn.write(b"welcome"), on_read=echo)
    with (
        server_in_thread(handler, workers=1, tls=server_context(version)) as server,
        connect(server) as raw,
    ):
        wait_until(lambda: server.active_connections() == 1)
        peer = Peer(raw)
        hello = peer.advance()
        raw.sendall(hello[:20])
        # The counters are answered by the worker, so it has seen the bytes by then.
        wait_until(lambda: server.statistics().workers[0].bytes_in == 20)
        assert handler.events == []
        raw.sendall(hello[20:])
        peer.shake_hands()
        peer.send(peer.seal(b"question") + peer.close_notify())
        assert peer.read_to_end() == b"welcomequestion"
    assert handler.names()[0] == "on_accept"
    assert handler.values("on_read") == [8]
    assert sum(handler.values("on_write")) == 15


@pytest.mark.parametrize("mode", MODES)
@versions
def test_data_with_the_end_of_the_handshake_is_not_lost(
    version: ssl.TLSVersion, mode: Mode
) -> None:
    handler = make_recorder(mode, on_read=echo)
    options = options_for(mode)
    with (
        server_in_thread(handler, workers=1, tls=server_context(version), **options) as server,
        connect(server) as raw,
    ):
        peer = Peer(raw)
        while not peer.is_done():
            raw.sendall(peer.advance())
            peer.feed()
        # With TLS 1.3 the client's Finished is in the same packet as data and close_notify.
        raw.sendall(peer.advance() + peer.seal(b"early bird") + peer.close_notify())
        assert peer.read_to_end() == b"early bird"
        wait_until(handler.errors)
    (error,) = handler.errors()
    assert isinstance(error, EOFError)
    assert handler.values("on_read") == [10]


@versions
def test_a_byte_at_a_time(version: ssl.TLSVersion) -> None:
    handler = Recorder(on_read=echo)
    with (
        server_in_thread(handler, workers=1, tls=server_context(version)) as server,
        connect(server) as raw,
    ):
        raw.setsockopt(6, 1, 1)  # TCP_NODELAY
        peer = Peer(raw)
        peer.shake_hands(at_once=1)
        peer.send(peer.seal(b"slow") + peer.seal(b"and steady") + peer.close_notify(), at_once=1)
        assert peer.read_to_end() == b"slowand steady"
    assert sum(handler.values("on_read")) == 14


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2, "architecture": "sharding"}])
def test_many_handshakes_at_once(options: dict[str, Any]) -> None:
    handler, context = Recorder(on_read=echo), client_context()
    faults: list[BaseException] = []

    def visit(number: int) -> None:
        try:
            with connect_tls(server, context) as client:
                round_trip(client, b"%d" % number * 1000)
                client.unwrap().close()
        except BaseException as exc:
            faults.append(exc)
            raise

    with server_in_thread(handler, tls=server_context(), **options) as server:
        threads = [threading.Thread(target=visit, args=[number]) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: server.active_connections() == 0)
    assert faults == []
    assert handler.counts().accept == handler.counts().close == CLIENTS
    assert all(isinstance(error, EOFError) for error in handler.errors())


@versions
def test_sessions_are_resumed(version: ssl.TLSVersion) -> None:
    handler, context = Recorder(on_read=echo), client_context()
    with server_in_thread(handler, workers=1, tls=server_context(version)) as server:
        with connect_tls(server, context) as first:
            round_trip(first, b"one")  # with TLS 1.3 the tickets come with the first data
            session = first.session
            assert not first.session_reused
        assert session is not None
        with connect_tls(server, context, session=session) as second:
            round_trip(second, b"two")
            assert second.session_reused
        wait_until(lambda: handler.counts().close == 2)


def test_protocol_is_agreed_on() -> None:
    ours, theirs = server_context(), client_context()
    ours.set_alpn_protocols(["h2", "http/1.1"])
    theirs.set_alpn_protocols(["http/1.1"])
    with (
        server_in_thread(Recorder(), workers=1, tls=ours) as server,
        connect_tls(server, theirs) as client,
    ):
        assert client.selected_alpn_protocol() == "http/1.1"


def test_statistics_count_ciphertext() -> None:
    handler = Recorder(on_read=echo)
    with (
        server_in_thread(handler, workers=1, tls=server_context()) as server,
        connect_tls(server) as client,
    ):
        before = server.statistics().workers[0]
        round_trip(client, b"x" * 1000)
        after = server.statistics().workers[0]
        # A record of TLS 1.3 is its data and 22 bytes; the client may have sent Finished late.
        assert after.bytes_in - before.bytes_in >= 1022
        assert after.bytes_out - before.bytes_out >= 1022
        assert after.bytes_buffered == after.buffers_leased == 0
        assert after.connections == 1


# --- Handshakes that fail ---------------------------------------------------------------


def send_http(raw: stdlib_socket.socket) -> None:
    raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def send_garbage(raw: stdlib_socket.socket) -> None:
    raw.sendall(bytes(range(256)) * 40)


def send_half_a_hello(raw: stdlib_socket.socket) -> None:
    raw.sendall(Peer(raw).advance()[:50])
    raw.shutdown(1)


def reset_after_half_a_hello(raw: stdlib_socket.socket) -> None:
    raw.sendall(Peer(raw).advance()[:50])
    reset(raw)


def distrust(raw: stdlib_socket.socket) -> None:
    peer = Peer(raw, client_context(trusting=False))
    with pytest.raises(ssl.SSLCertVerificationError):
        peer.shake_hands()
    raw.sendall(peer.alert())  # the alert


FAILURES: dict[Callable[[stdlib_socket.socket], None], str] = {
    send_http: r"(?i)http.request",
    send_garbage: r"(?i)ssl",
    send_half_a_hello: "ended the connection during the handshake",
    reset_after_half_a_hello: "reset",
    distrust: r"(?i)alert.unknown.ca",
    speak_an_old_version: r"(?i)unsupported.protocol",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failure", FAILURES)
def test_failed_handshake_is_a_log_line_and_no_callback(
    failure: Callable[[stdlib_socket.socket], None], mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    handler = make_recorder(mode, on_read=echo)
    with logged(caplog) as lines:
        options = {"tls": server_context(TLS_1_3), **options_for(mode)}
        with server_in_thread(handler, workers=1, **options) as server:
            with connect(server) as raw:
                wait_until(lambda: server.active_connections() == 1)
                failure(raw)
                if failure is not reset_after_half_a_hello:
                    assert_gone(server, raw)
            wait_until(lambda: server.active_connections() == 0)
            assert handler.events == []
            with connect_tls(server) as client:  # others are served
                round_trip(client, b"well-behaved")
    (line,) = lines
    assert line.startswith("TLS handshake with tcp connection from 127.0.0.1:")
    assert re.search(FAILURES[failure], line), line
    assert len(handler.conns) == 1


@pytest.mark.parametrize("trickles", [False, True], ids=["silent", "trickling"])
def test_handshake_has_a_timeout(trickles: bool, caplog: pytest.LogCaptureFixture) -> None:
    handler = Recorder()
    with logged(caplog) as lines:
        options: dict[str, Any] = {"tls": server_context(), "tls_handshake_timeout": TIMEOUT_S}
        with server_in_thread(handler, workers=1, **options) as server, connect(server) as raw:
            begun = time.monotonic()
            hello = Peer(raw).advance() if trickles else b""
            with contextlib.suppress(OSError):
                for byte in hello:
                    raw.sendall(bytes([byte]))
                    time.sleep(TIMEOUT_S / 20)
            assert_gone(server, raw)
            assert time.monotonic() - begun >= TIMEOUT_S
            assert handler.events == []
    (line,) = lines
    assert "took too long" in line


def test_timeout_is_over_with_the_handshake() -> None:
    handler = Recorder(on_read=echo)
    options: dict[str, Any] = {"tls": server_context(), "tls_handshake_timeout": 5 * TIMEOUT_S}
    with (
        server_in_thread(handler, workers=1, **options) as server,
        connect_tls(server) as client,
    ):
        round_trip(client, b"before")
        time.sleep(6 * TIMEOUT_S)
        round_trip(client, b"after")


def test_client_that_goes_right_after_the_handshake_was_accepted() -> None:
    handler = Recorder()
    with server_in_thread(handler, workers=1, tls=server_context(TLS_1_2)) as server:
        for number in range(1, 21):
            with connect(server) as raw:
                Peer(raw).shake_hands()
            wait_until(lambda number=number: handler.counts().close == number)  # type: ignore[misc]
    assert handler.names() == ["on_accept", "on_close"] * 20
    for error in handler.errors():
        # Tickets that nobody has read make the client's kernel send a reset.
        assert isinstance(error, ssl.SSLEOFError) or error.errno in RESETS  # type: ignore[union-attr]


def test_shutdown_does_not_wait_for_handshakes(caplog: pytest.LogCaptureFixture) -> None:
    handler = Recorder()
    with (
        logged(caplog) as lines,
        server_in_thread(handler, workers=2, tls=server_context()) as server,
        connect(server) as silent,
        connect(server) as half,
    ):
        half.sendall(Peer(half).advance())
        assert receive_exactly(half, 5)[:1] == b"\x16"  # our part of the handshake
        wait_until(lambda: server.active_connections() == 2)
        begun = time.monotonic()
        server.shutdown(4)
        assert time.monotonic() - begun < 1
        assert_gone(server, silent)
        assert_gone(server, half)
    assert lines == []
    assert handler.events == []


@pytest.mark.differential
@pytest.mark.ring_only
async def test_cancelled_server_lets_go_of_all() -> None:
    handler = Recorder(on_accept=lambda conn: conn.write(CLOGGING))

    async def fail() -> None:
        async with serving(handler, tls=server_context()) as server:
            _silent, half, done = clients = [await open_client(server) for _ in range(3)]
            await half.send_all(b"\x16\x03\x01")
            client = trio.SSLStream(done, client_context(), server_hostname=NAME)
            await client.do_handshake()
            await until(lambda: handler.conns and handler.conn.outbound_buffered())
            for stream in clients:
                nursery.start_soon(until_reset, stream)
            raise Boom

    async def until_reset(client: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(BOUND_S):
            await read_to_end(client)
        await client.aclose()

    async with trio.open_nursery() as nursery:
        with pytest.raises(Boom):
            await fail()
    assert handler.counts() == (1, 0, handler.counts().write, 1)
    assert handler.errors() == [None]


class Failing(ssl.SSLObject):
    """OpenSSL out of memory, or whatever else a write may fail of."""

    def write(self, data: object) -> int:
        raise ssl.SSLError("on purpose")


@pytest.mark.parametrize("closes", [False, True])
def test_data_that_cannot_be_encrypted_ends_the_connection(closes: bool) -> None:
    context = server_context()
    context.sslobject_class = Failing

    def answer(conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(n))
        if closes:
            conn.close()

    handler = Recorder(on_read=answer)
    with server_in_thread(handler, workers=1, tls=context) as server, connect(server) as raw:
        peer = Peer(raw)
        peer.shake_hands()
        peer.send(peer.seal(b"question"))
        wait_until(handler.errors)
        (error,) = handler.errors()
    assert isinstance(error, ssl.SSLError)


def test_server_talks_tls() -> None:
    """B19: what the users of servers like Gain ask for most."""
    message = pattern(MIB)

    def begin(conn: gain.Conn) -> None:
        conn.write(message)

    handler = Recorder(on_accept=begin, on_read=echo, on_write=lambda conn, n: None)
    with (
        server_in_thread(handler, workers=1, tls=server_context()) as server,
        connect_tls(server) as client,
    ):
        assert receive_exactly(client, len(message)) == message
        round_trip(client, b"hush")
        run_in_worker(handler.conn, lambda: close_now(handler.conn))
        assert receive_all(client) == b""  # after a close_notify, or this would raise
    assert sum(handler.values("on_write")) == len(message) + 4
    assert handler.values("on_read") == [4]
