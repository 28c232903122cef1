"""``start_tls``: a connection that begins in clear."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel
from gain_tools import (
    MIB,
    MODES,
    QUIET_S,
    TLS_1_3,
    Mode,
    Peer,
    Recorder,
    bytes_buffered,
    client_context,
    connect,
    connect_tls,
    echo,
    make_recorder,
    options_for,
    pattern,
    receive_exactly,
    round_trip,
    run_in_worker,
    secure,
    server_context,
    server_in_thread,
    speak_an_old_version,
    the_error,
    versions,
    wait_until,
)
from marks import needs_ring

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_ring

STARTTLS, READY = b"STARTTLS\r\n", b"220 ready\r\n"
modes = pytest.mark.parametrize("mode", MODES)


class Switch:
    """An ``on_read`` that goes over to TLS when asked for it, and then does something else."""

    def __init__(
        self,
        then: Callable[[gain.Conn, int], Any] = echo,
        *,
        version: ssl.TLSVersion = TLS_1_3,
        before: bytes = READY,
        after: bytes = b"",
    ) -> None:
        self.context = server_context(version)
        self.then, self.before, self.after = then, before, after
        self.secure: set[gain.Conn] = set()

    def __call__(self, conn: gain.Conn, n: int) -> None:
        if conn in self.secure:
            self.then(conn, n)
            return
        assert conn.next(len(STARTTLS)) == STARTTLS
        conn.write(self.before)
        conn.start_tls(self.context)
        self.secure.add(conn)
        conn.write(self.after)


@contextlib.contextmanager
def clear_client(handler: Recorder, **options: Any) -> Iterator[stdlib_socket.socket]:
    """A server, and a client that has sent nothing yet."""
    with server_in_thread(handler, workers=1, **options) as server, connect(server) as raw:
        wait_until(lambda: handler.counts().accept)
        yield raw


def switch(raw: stdlib_socket.socket) -> None:
    raw.sendall(STARTTLS)
    assert receive_exactly(raw, len(READY)) == READY


# --- In order ---------------------------------------------------------------------------


@modes
@versions
def test_before_in_clear_and_after_encrypted(version: ssl.TLSVersion, mode: Mode) -> None:
    handler = make_recorder(
        mode, on_read=Switch(version=version, after=b"hush"), on_write=lambda conn, n: None
    )
    with clear_client(handler, **options_for(mode)) as raw:
        switch(raw)
        peer = Peer(raw)
        peer.shake_hands()
        assert peer.read_exactly(4) == b"hush"
        peer.send(peer.seal(b"secret"))
        assert peer.read_exactly(6) == b"secret"
        peer.send(peer.close_notify())
        assert peer.read_to_end() == b""
        assert isinstance(the_error(handler), gain.EndOfStream)
    assert handler.values("on_read") == [len(STARTTLS), 6]
    assert sum(handler.values("on_write")) == len(READY) + 10


@modes
def test_much_on_both_sides_of_the_switch(mode: Mode) -> None:
    """More than the kernel takes is in flight in clear, and more than high water behind it."""
    clear, hidden = pattern(8 * MIB), pattern(6 * MIB)[::-1]
    handler = make_recorder(
        mode, on_read=Switch(before=clear, after=hidden), on_write=lambda conn, n: None
    )
    with clear_client(handler, **options_for(mode)) as raw:
        raw.sendall(STARTTLS)
        time.sleep(QUIET_S)  # the server's send is stuck in the clear part
        assert receive_exactly(raw, len(clear)) == clear
        peer = Peer(raw)
        peer.shake_hands()
        assert peer.read_exactly(len(hidden)) == hidden
        wait_until(lambda: bytes_buffered(handler.conn.server) == 0)
    assert sum(handler.values("on_write")) == len(clear) + len(hidden)


def test_a_send_in_flight_leaves_in_clear_and_is_counted() -> None:
    """The switch is made while the kernel works on what was written long before."""
    clear, hidden = pattern(16 * MIB), pattern(MIB)[::-1]

    def change(conn: gain.Conn) -> None:
        assert conn.outbound_buffered()
        conn.start_tls(server_context())
        conn.write(hidden)
        conn.close()

    handler = Recorder(on_accept=lambda conn: conn.write(clear), on_write=lambda conn, n: None)
    with clear_client(handler) as raw:
        wait_until(lambda: bytes_buffered(handler.conn.server))
        time.sleep(QUIET_S)
        run_in_worker(handler.conn, lambda: change(handler.conn))
        assert receive_exactly(raw, len(clear)) == clear
        peer = Peer(raw)
        peer.shake_hands()
        assert peer.read_to_end() == hidden
        assert the_error(handler) is None
    assert sum(handler.values("on_write")) == len(clear) + len(hidden)


@modes
@versions
def test_write_and_close_before_the_handshake(version: ssl.TLSVersion, mode: Mode) -> None:
    """What close() drains may have to wait for the handshake first."""
    hidden = pattern(MIB)
    change = Switch(version=version, after=hidden)

    def change_and_close(conn: gain.Conn, n: int) -> None:
        change(conn, n)
        conn.close()

    handler = make_recorder(mode, on_read=change_and_close, on_write=lambda conn, n: None)
    with clear_client(handler, **options_for(mode)) as raw:
        switch(raw)
        peer = Peer(raw)
        peer.shake_hands()
        assert peer.read_to_end() == hidden
        assert the_error(handler) is None
    assert sum(handler.values("on_write")) == len(READY) + len(hidden)


def test_close_before_the_handshake_with_nothing_hidden() -> None:
    change = Switch()

    def change_and_close(conn: gain.Conn, n: int) -> None:
        change(conn, n)
        conn.close()

    handler = Recorder(on_read=change_and_close)
    with clear_client(handler) as raw:
        switch(raw)
        assert raw.recv(1) == b""
        assert the_error(handler) is None


def test_the_handshake_goes_on_while_reading_is_paused() -> None:
    change = Switch(after=b"welcome")

    def change_and_pause(conn: gain.Conn, n: int) -> None:
        change(conn, n)
        conn.pause_reading()

    handler = Recorder(on_read=change_and_pause)
    with clear_client(handler) as raw:
        switch(raw)
        peer = Peer(raw)
        peer.shake_hands()
        peer.send(peer.seal(b"unread"))
        assert peer.read_exactly(7) == b"welcome"
        time.sleep(QUIET_S)
        assert handler.values("on_read") == [len(STARTTLS)]


def test_shutdown_flushes_what_waits_for_the_handshake() -> None:
    handler = Recorder(on_read=Switch(after=b"farewell"))
    with clear_client(handler) as raw:
        switch(raw)
        handler.conn.server.async_shutdown(4)
        peer = Peer(raw)
        peer.shake_hands()
        assert peer.read_to_end() == b"farewell"
        assert the_error(handler) is None


def test_shutdown_does_not_wait_for_a_handshake_with_nothing_behind_it() -> None:
    handler = Recorder(on_read=Switch())
    with clear_client(handler) as raw:
        switch(raw)
        begun = time.monotonic()
        handler.conn.server.shutdown(4)
        assert time.monotonic() - begun < 1
        assert the_error(handler) is None


@pytest.mark.parametrize("network", ["tcp", "unix"])
def test_from_a_task(network: str, tmp_path: Any) -> None:
    """At any time, and over any stream."""

    async def greet(conn: gain.Conn) -> None:
        await trio.lowlevel.checkpoint()
        conn.write(READY)
        conn.start_tls(server_context())
        conn.write(b"hush")
        await conn.drain()

    address = "tcp://127.0.0.1:0" if network == "tcp" else f"unix://{tmp_path / 'socket'}"
    handler = Recorder(on_accept=lambda conn: conn.start_soon(greet, conn))
    with server_in_thread(handler, address, workers=1) as server:
        if network == "tcp":
            raw = connect(server)
        else:
            raw = stdlib_socket.socket(stdlib_socket.AF_UNIX)
            raw.connect(server.addresses()[0][0])
        with raw:
            assert receive_exactly(raw, len(READY)) == READY
            peer = Peer(raw)
            peer.shake_hands()
            assert peer.read_exactly(4) == b"hush"


# --- Refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("pipelined", ["ClientHello", "plaintext"])
def test_input_in_clear_behind_the_command_is_refused(pipelined: str) -> None:
    """Anybody on the path could have put it there: CVE-2011-0411 and its kin."""
    errors: list[BaseException] = []
    change = Switch()

    def try_to_change(conn: gain.Conn, n: int) -> None:
        try:
            change(conn, n)
        except gain.GainError as exc:
            errors.append(exc)
            handler.actions["on_read"] = echo
            conn.discard()

    handler = Recorder(on_read=try_to_change)
    with clear_client(handler) as raw:
        behind = Peer(raw).advance() if pipelined == "ClientHello" else b"RSET\r\n"
        raw.sendall(STARTTLS + behind)
        assert receive_exactly(raw, len(READY)) == READY
        raw.sendall(b"still in clear")
        assert receive_exactly(raw, 14) == b"still in clear"
    (error,) = errors
    assert f"{len(behind)} bytes of plaintext" in str(error)


@modes
def test_input_in_clear_that_comes_later_fails_the_handshake(mode: Mode) -> None:
    handler = make_recorder(mode, on_read=Switch(after=b"secret"))
    with clear_client(handler, **options_for(mode)) as raw:
        switch(raw)
        raw.sendall(b"MAIL FROM:<mallory@example.org>\r\n")
        assert isinstance(the_error(handler), ssl.SSLError)
        assert b"secret" not in receive_exactly(raw, 1000)
    assert handler.values("on_read") == [len(STARTTLS)]


def test_twice_is_refused() -> None:
    def again(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        with pytest.raises(gain.GainError, match="has TLS already"):
            conn.start_tls(server_context())
        conn.write(data)

    handler = Recorder(on_read=Switch(again))
    with clear_client(handler) as raw:
        switch(raw)
        peer = Peer(raw)
        peer.shake_hands()
        peer.send(peer.seal(b"fine"))
        assert peer.read_exactly(4) == b"fine"
    handler = Recorder(on_read=again)
    with (
        server_in_thread(handler, workers=1, tls=server_context()) as server,
        connect_tls(server) as client,
    ):
        client.sendall(b"fine")
        assert receive_exactly(client, 4) == b"fine"


def test_refusals_change_nothing() -> None:
    """A client's context, an ended output and another thread."""

    def misuse(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        with pytest.raises(ssl.SSLError):
            conn.start_tls(client_context())
        conn.write(data)
        conn.send_eof()
        with pytest.raises(gain.ConnectionClosed, match="start_tls"):
            conn.start_tls(server_context())

    handler = Recorder(on_read=misuse)
    with clear_client(handler) as raw:
        wait_until(lambda: handler.counts().accept)
        with pytest.raises(gain.OpNotAvailableInMode, match="start_tls"):
            handler.conn.start_tls(server_context())
        raw.sendall(b"clear")
        assert receive_exactly(raw, 6) == b"clear"
        raw.close()
        assert isinstance(the_error(handler), gain.EndOfStream)
    with pytest.raises(gain.GainError, match="start_tls"):
        handler.conn.start_tls(server_context())


# --- Failed -----------------------------------------------------------------------------


def send_garbage(raw: stdlib_socket.socket) -> None:
    raw.sendall(bytes(100))


@modes
@pytest.mark.parametrize("failure", [send_garbage, speak_an_old_version])
def test_failed_handshake_closes(
    failure: Callable[[stdlib_socket.socket], None], mode: Mode
) -> None:
    handler = make_recorder(mode, on_read=Switch(after=b"secret"))
    with clear_client(handler, **options_for(mode)) as raw:
        switch(raw)
        failure(raw)
        error = the_error(handler)
    assert isinstance(error, ssl.SSLError)
    assert not isinstance(error, ssl.SSLEOFError)


def test_end_in_the_handshake() -> None:
    handler = Recorder(on_read=Switch(after=b"secret"))
    with clear_client(handler) as raw:
        switch(raw)
        raw.sendall(Peer(raw).advance()[:100])
        raw.shutdown(stdlib_socket.SHUT_WR)
        assert isinstance(the_error(handler), ssl.SSLEOFError)


def test_after_the_end_there_is_no_handshake_to_wait_for() -> None:
    class AtTheEnd(Recorder):
        def on_eof(self, conn: gain.Conn) -> None:
            conn.write(READY)
            conn.start_tls(server_context())

    handler = AtTheEnd()
    with clear_client(handler) as raw:
        raw.shutdown(stdlib_socket.SHUT_WR)
        assert receive_exactly(raw, len(READY)) == READY
        assert isinstance(the_error(handler), ssl.SSLEOFError)


@modes
def test_an_end_right_behind_the_command_fails_the_handshake(mode: Mode) -> None:
    def late(conn: gain.Conn, n: int) -> None:
        time.sleep(QUIET_S)  # the end has come meanwhile
        Switch()(conn, n)

    handler = make_recorder(mode, on_read=late)
    with clear_client(handler, **options_for(mode)) as raw:
        raw.sendall(STARTTLS)
        raw.shutdown(stdlib_socket.SHUT_WR)
        assert isinstance(the_error(handler), ssl.SSLEOFError)


@modes
def test_handshake_has_a_timeout(mode: Mode) -> None:
    handler = make_recorder(mode, on_read=Switch())
    options = {**options_for(mode), "tls_handshake_timeout": QUIET_S}
    with clear_client(handler, **options) as raw:
        switch(raw)
        assert isinstance(the_error(handler), gain.DeadlineExceeded)


def test_close_timeout_holds_for_a_client_that_does_not_shake_hands() -> None:
    change = Switch(after=b"hidden")

    def change_and_close(conn: gain.Conn, n: int) -> None:
        change(conn, n)
        conn.close()

    handler = Recorder(on_read=change_and_close)
    with clear_client(handler, close_timeout=QUIET_S) as raw:
        switch(raw)
        assert isinstance(the_error(handler), TimeoutError)


def test_connection_turns_to_tls() -> None:
    """B19: also later, as STARTTLS does."""

    def begin_tls(conn: gain.Conn, n: int) -> None:
        assert conn.next(n) == b"STARTTLS"
        conn.write(b"go ahead")
        handler.actions["on_read"] = echo
        conn.start_tls(server_context())

    handler = Recorder(on_read=begin_tls)
    with server_in_thread(handler, workers=1) as server, connect(server) as plain:
        plain.sendall(b"STARTTLS")
        assert receive_exactly(plain, 8) == b"go ahead"
        with secure(plain) as client:
            round_trip(client, b"hush")
