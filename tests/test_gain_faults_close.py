"""How connections end: what Gain loses, leaks or never says, and this server must not.

Each test names the fault of Gain that it is about, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import errno
import os
import random
import socket as stdlib_socket
from typing import Any

import harness
import pytest
from gain_tools import (
    BOUND_S,
    MIB,
    RESETS,
    Recorder,
    Sink,
    architectures,
    close_now,
    connect,
    echo,
    in_thread,
    is_silent,
    needs_ring,
    pattern,
    receive_all,
    receive_exactly,
    reset,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_until,
)

from uring_trio import gain

pytestmark = needs_ring


def writer_of(data: bytes, *, close: bool = False) -> Recorder:
    """A handler that writes ``data`` to every client at once, and then perhaps closes."""

    def write(conn: gain.Conn) -> None:
        conn.write(data)
        if close:
            conn.close()

    return Recorder(on_accept=write)


def wait_errors(handler: Recorder, count: int = 1) -> list[BaseException | None]:
    wait_until(lambda: len(handler.errors()) >= count, f"{count} on_close")
    return handler.errors()


def assert_resets(errors: list[BaseException | None]) -> None:
    for error in errors:
        assert isinstance(error, OSError), error
        assert error.errno in RESETS, error


# --- B1 ---------------------------------------------------------------------------------


@architectures
def test_b1_reset_gives_on_close_once_with_its_error(options: dict[str, Any]) -> None:
    """B1: Gain logs a reset and drops it: no OnClose, and the connection stays for ever."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, **options) as server:
        clients = [connect(server) for _ in range(8)]
        for client in clients:
            round_trip(client, b"hello")
        assert server.active_connections() == 8
        for client in clients:
            reset(client)
        errors = wait_errors(handler, 8)
        assert_resets(errors)
        assert {error.errno for error in errors if isinstance(error, OSError)} == {errno.ECONNRESET}
        wait_until(lambda: server.active_connections() == 0)


@pytest.mark.parametrize("close", [False, True], ids=["open", "closing"])
def test_b1_reset_while_output_waits_gives_on_close_once_with_its_error(close: bool) -> None:
    """B1: the same for a send that fails; Gain's CLOSE linked behind it is never done."""
    handler = writer_of(bytes(8 * MIB), close=close)
    with server_in_thread(handler, workers=1) as server:
        client = connect(server, receive_buffer=65536)
        assert receive_exactly(client, 1000)
        assert handler.errors() == []
        reset(client)
        assert_resets(wait_errors(handler))
        wait_until(lambda: server.active_connections() == 0)


@architectures
def test_b1_reset_right_behind_data_is_not_lost(options: dict[str, Any]) -> None:
    """B1: when both are there at once, and nothing is written that would find out later."""
    handler = Sink()
    with server_in_thread(handler, **options) as server:
        for _ in range(60):
            client = connect(server)
            client.sendall(b"x" * 16_000)
            reset(client)
        wait_until(lambda: server.active_connections() == 0)
    assert all(isinstance(error, OSError) for error in handler.errors())


def test_b1_connection_reset_before_it_is_accepted_harms_nobody() -> None:
    """B1, B2: in Gain's sharding the error of such a socket closes the listener."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, workers=2, architecture="sharding") as server:
        for _ in range(20):
            reset(connect(server))
        with connect(server) as client:
            round_trip(client, b"still here")
        wait_until(lambda: server.active_connections() == 0)


def do_as_told(conn: gain.Conn, n: int) -> None:
    data = conn.next(n)
    conn.write(data)
    if data == b"close":
        conn.close()
    if data == b"abort":
        conn.abort()


@architectures
def test_b1_every_way_to_end_gives_one_on_close(options: dict[str, Any]) -> None:
    """B1: FIN, reset, close(), abort() and shutdown at once: still one on_close each."""
    handler = Recorder(on_read=do_as_told)
    with server_in_thread(handler, **options) as server:
        staying = [connect(server) for _ in range(10)]
        for client in staying:
            round_trip(client, b"stay")
        for _ in range(12):
            with connect(server) as client:
                client.sendall(b"close")
                assert receive_all(client) == b"close"
            with connect(server) as client:
                client.sendall(b"abort")
                with pytest.raises(ConnectionResetError):
                    receive_all(client)
            with connect(server) as client:
                round_trip(client, b"fin")
            client = connect(server)
            round_trip(client, b"reset")
            reset(client)
            reset(connect(server))
        wait_until(lambda: server.active_connections() == 10)
    kinds = {type(error) for error in handler.errors()}
    assert kinds == {type(None), gain.EndOfStream, ConnectionResetError}
    for client in staying:
        assert receive_all(client) == b""
        client.close()


# --- B1b --------------------------------------------------------------------------------


@architectures
def test_b1b_no_fd_is_left_when_clients_close(options: dict[str, Any]) -> None:
    """B1b: Gain only shuts such a socket down: 30 connects and closes are 30 fds more."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, **options) as server:
        with connect(server) as client:
            round_trip(client, b"warm up")
        wait_errors(handler, 1)
        with harness.no_new_fds():
            for _ in range(30):
                with connect(server) as client:
                    round_trip(client, b"x")
            wait_errors(handler, 31)


@architectures
def test_b1b_stopped_server_leaves_no_fd_and_its_port_is_free(options: dict[str, Any]) -> None:
    """B1b: Gain never closes its listeners."""
    with harness.no_new_fds():
        with server_in_thread(Recorder(), **options) as server:
            address = tuple(server.addresses()[0])
            clients = [connect(server) for _ in range(4)]
        for client in clients:
            client.close()
    with stdlib_socket.socket() as listener:
        # For the connections in TIME_WAIT; a listener that is left would refuse it all the same.
        listener.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()


# --- B3 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 10_000, 300_000])
def test_b3_data_that_comes_with_the_fin_is_delivered_and_answered(size: int) -> None:
    """B3: Gain answered 1 time in 50; the FIN hid the bytes that came with it."""
    handler = Recorder(on_read=echo)
    message = pattern(size)
    with server_in_thread(handler, workers=1) as server:
        for _ in range(50):
            with connect(server) as client, in_thread(receive_all, client) as answer:
                client.sendall(message)
                client.shutdown(stdlib_socket.SHUT_WR)
            assert answer == [message]
        errors = wait_errors(handler, 50)
    assert {type(error) for error in errors} == {gain.EndOfStream}
    assert issubclass(gain.EndOfStream, EOFError)
    for conn in handler.conns:
        assert sum(handler.values("on_read", conn)) == size


def test_b3_every_byte_is_announced_before_the_end_of_the_stream() -> None:
    """B3: in Gain what had not been read when the FIN came could not be read any more."""
    handler = Sink()
    message = pattern(4 * MIB)
    with server_in_thread(handler, workers=1) as server:
        with connect(server) as client:
            client.sendall(message)
        (error,) = wait_errors(handler)
        assert isinstance(error, gain.EndOfStream)
    assert handler.received(handler.conn) == message


class HalfCloser(Recorder):
    """With ``on_eof``, so that the peer's FIN does not close; reads nothing by itself."""

    def on_eof(self, conn: gain.Conn) -> None:
        with self.recorded("on_eof", conn, conn.inbound_buffered()):
            self.act("on_eof", conn)


def test_b3_unread_bytes_are_still_there_in_on_eof() -> None:
    """B3: what on_read left in the buffer can be read when the peer has ended its half."""

    def answer(conn: gain.Conn) -> None:
        conn.write(conn.next())
        conn.close()

    handler = HalfCloser(on_eof=answer)
    message = pattern(30_000)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(message)
        client.shutdown(stdlib_socket.SHUT_WR)
        assert receive_all(client) == message
        assert wait_errors(handler) == [None]
    assert handler.values("on_eof") == [len(message)]


def test_b3_half_closed_connection_stays_open_for_writing() -> None:
    """B3: Gain has no half-close; a FIN shuts both directions down at once."""
    handler = HalfCloser()
    answer = pattern(2 * MIB)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"question")
        client.shutdown(stdlib_socket.SHUT_WR)
        wait_until(lambda: handler.values("on_eof") == [8])
        assert is_silent(client)
        assert server.active_connections() == 1

        def reply() -> None:
            handler.conn.write(answer)
            handler.conn.close()

        run_in_worker(handler.conn, reply)
        assert receive_all(client) == answer
        assert wait_errors(handler) == [None]
    assert handler.values("on_eof") == [8]
    names = handler.names()
    assert names.count("on_eof") == 1
    assert "on_read" not in names[names.index("on_eof") :]


def test_b3_send_eof_ends_our_half_and_reading_goes_on() -> None:
    """B3: nor can a Gain server end its own half."""

    def end_first(conn: gain.Conn) -> None:
        conn.write(b"that is all")
        conn.send_eof()

    handler = Sink(on_accept=end_first)
    message = pattern(MIB)
    with server_in_thread(handler, workers=1) as server:
        with connect(server) as client:
            assert receive_all(client) == b"that is all"
            client.sendall(message)
        (error,) = wait_errors(handler)
        assert isinstance(error, gain.EndOfStream)
    assert handler.received(handler.conn) == message


# --- B5 ---------------------------------------------------------------------------------


def test_b5_write_and_close_of_32_mib_arrives_whole() -> None:
    """B5: of 32 MiB a Gain client got 3.9, then EOF, and OnClose said that all was well."""
    message = pattern(32 * MIB)
    handler = writer_of(message, close=True)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == message
        assert wait_errors(handler) == [None]
    assert sum(handler.values("on_write")) == len(message)


def test_b5_32_mib_in_pieces_of_all_kinds_arrive_whole() -> None:
    """B5: the same for many writes, of bytes and of a buffer that is used again at once."""
    message = pattern(32 * MIB)

    def write_pieces(conn: gain.Conn) -> None:
        generator = random.Random(5)
        scratch = bytearray()
        at = 0
        while at < len(message):
            size = generator.choice([1, 100, 4096, 70_000, MIB])
            scratch[:] = message[at : at + size]
            conn.write(scratch if generator.random() < 0.5 else bytes(scratch))
            scratch[:] = bytes(len(scratch))
            at += size
        conn.close()

    handler = Recorder(on_accept=write_pieces)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == message
        assert wait_errors(handler) == [None]
    assert sum(handler.values("on_write")) == len(message)


def test_b5_close_with_unread_input_does_not_reset_the_answer_away() -> None:
    """B5: close(2) with unread input sends a RST, which destroys what was sent before."""
    answer = pattern(100_000)

    def answer_unread(conn: gain.Conn, n: int) -> None:
        conn.write(answer)
        conn.close()

    handler = Recorder(on_read=answer_unread)
    with server_in_thread(handler, workers=1) as server:
        for _ in range(10):
            with connect(server) as client:
                client.sendall(bytes(4 * MIB))  # the answer comes after the first of it
                assert receive_all(client) == answer
        assert wait_errors(handler, 10) == [None] * 10


def test_b5_shutdown_drains() -> None:
    """B5: Gain's Shutdown never drains; what was not sent yet is lost."""
    message = pattern(16 * MIB)
    handler = writer_of(message)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        start = receive_exactly(client, 1000)
        with in_thread(server.shutdown, BOUND_S):
            assert start + receive_all(client) == message
    assert handler.errors() == [None]


# --- B12 --------------------------------------------------------------------------------


def test_b12_closed_conn_never_becomes_somebody_elses() -> None:
    """B12: Gain hands a closed Conn to the next peer; a kept one writes into that."""
    contexts = []

    def name(conn: gain.Conn) -> None:
        conn.context = os.urandom(8)
        contexts.append(conn.context)

    handler = Recorder(on_accept=name, on_read=echo)
    peers = []
    with server_in_thread(handler, workers=1) as server:
        for count in range(1, 21):  # the kernel gives the same fd out again each time
            with connect(server) as client:
                peers.append(client.getsockname())
                round_trip(client, b"x")
                if count > 1:
                    with pytest.raises(gain.ConnectionClosed):
                        run_in_worker(handler.conns[0], lambda: handler.conns[0].write(b"?"))
                    run_in_worker(handler.conns[0], lambda: close_now(handler.conns[0]))
                round_trip(client, b"y")
            wait_errors(handler, count)
    assert len(handler.conns) == 20
    assert [conn.remote_addr() for conn in handler.conns] == peers
    assert [conn.context for conn in handler.conns] == contexts
