"""How connections end: once each, with the reason, all output sent, and nothing left behind.

A fault of Gain that a test is about stands in its docstring, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket as stdlib_socket
import threading
import time
from typing import Any

import harness
import pytest
from gain_tools import (
    MIB,
    RESETS,
    Recorder,
    Sink,
    architectures,
    close_now,
    connect,
    echo,
    in_thread,
    pattern,
    receive_all,
    receive_exactly,
    reset,
    ring_of,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_errors,
    wait_until,
    writer_of,
)
from marks import needs_ring

from uring_trio import gain

pytestmark = needs_ring


def assert_resets(errors: list[BaseException | None]) -> None:
    for error in errors:
        assert isinstance(error, OSError), error
        assert error.errno in RESETS, error


@architectures
def test_reset_gives_on_close_once_with_its_error(options: dict[str, Any]) -> None:
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
def test_reset_while_output_waits_gives_on_close_once_with_its_error(close: bool) -> None:
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
def test_reset_right_behind_data_is_not_lost(options: dict[str, Any]) -> None:
    """B1: when both are there at once, and nothing is written that would find out later."""
    handler = Sink()
    with server_in_thread(handler, **options) as server:
        for _ in range(60):
            client = connect(server)
            client.sendall(b"x" * 16_000)
            reset(client)
        wait_until(lambda: len(handler.errors()) == 60)
    assert all(isinstance(error, OSError) for error in handler.errors())


def test_connection_reset_before_it_is_accepted_harms_nobody() -> None:
    """B1, B2: in Gain's sharding the error of such a socket closes the listener."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, workers=2, architecture="sharding") as server:
        for _ in range(20):
            reset(connect(server))
        with connect(server) as client:
            round_trip(client, b"still here")
        wait_until(lambda: server.active_connections() == 0)


def echo_and_end_as_told(conn: gain.Conn, n: int) -> None:
    data = conn.next(n)
    conn.write(data)
    if data.endswith(b"close"):
        conn.close()
    elif data.endswith(b"abort"):
        conn.abort()


@architectures
def test_every_way_to_end_gives_one_on_close(options: dict[str, Any]) -> None:
    """B1: FIN, reset, close(), abort() and shutdown at once: still one on_close each."""
    handler = Recorder(on_read=echo_and_end_as_told)
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


@architectures
def test_no_fd_is_left_when_clients_close(options: dict[str, Any]) -> None:
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
def test_stopped_server_leaves_no_fd_and_its_port_is_free(options: dict[str, Any]) -> None:
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


def test_write_and_close_of_32_mib_arrives_whole() -> None:
    """B5: of 32 MiB a Gain client got 3.9, then EOF, and OnClose said that all was well."""
    message = pattern(32 * MIB)
    handler = writer_of(message, close=True)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == message
        assert wait_errors(handler) == [None]
    assert sum(handler.values("on_write")) == len(message)


def test_32_mib_in_pieces_of_all_kinds_arrive_whole() -> None:
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


def test_close_with_unread_input_does_not_reset_the_answer_away() -> None:
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


@pytest.mark.parametrize("how", ["open", "paused", "half closed"])
def test_on_close_comes_when_the_kernel_has_nothing_of_the_connection_any_more(how: str) -> None:
    """Its own operations are what it has, and beside them the listener's poll."""
    in_flight: list[int] = []

    def count() -> int:
        return sum(worker.operations_in_flight for worker in server.statistics().workers)

    class Ending(Recorder):
        def on_accept(self, conn: gain.Conn) -> None:
            super().on_accept(conn)
            if how == "paused":
                conn.pause_reading()

        def on_eof(self, conn: gain.Conn) -> None:
            self.act("on_eof", conn)

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            in_flight.append(count())
            super().on_close(conn, err)

    handler = Ending()
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        wait_until(lambda: handler.conns)
        if how == "half closed":
            client.shutdown(stdlib_socket.SHUT_WR)
        wait_until(lambda: count() == 2)
        handler.conn.call_soon_threadsafe(handler.conn.abort)
        wait_errors(handler, 1)
    assert in_flight == [1]


def test_closed_conn_never_becomes_somebody_elses() -> None:
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
                    taken = run_in_worker(handler.conns[0], lambda: handler.conns[0].write(b"?"))
                    assert taken == 0
                    run_in_worker(handler.conns[0], lambda: close_now(handler.conns[0]))
                round_trip(client, b"y")
            wait_errors(handler, count)
    assert len(handler.conns) == 20
    assert [conn.remote_addr() for conn in handler.conns] == peers
    assert [conn.context for conn in handler.conns] == contexts


def test_close_in_on_accept_is_the_end_of_one_connection_only() -> None:
    """B18, B2: for instance of what a user's callback refuses."""
    handler = Recorder(on_accept=lambda conn: conn.close())
    with server_in_thread(handler, workers=2) as server:
        for _ in range(20):
            with connect(server) as client:
                assert receive_all(client) == b""
        start = time.monotonic()
        wait_until(lambda: server.active_connections() == 0)
        assert time.monotonic() - start < 1
    assert handler.errors() == [None] * 20


# Many ends at once


def storm(server: gain.Server, name: int) -> None:
    """Connections that end in every way, as fast as they come."""
    for i in range(60):
        client = connect(server)
        mine = b"%d of %d, " % (i, name)
        if i % 6 == 0:
            client.sendall(mine + b"close")
            assert receive_all(client) == mine + b"close"
        elif i % 6 == 1:
            client.sendall(mine + b"abort")
        elif i % 6 == 2:
            round_trip(client, mine)
            reset(client)
        elif i % 6 == 3:
            client.sendall(mine)
            reset(client)
        elif i % 6 == 4:
            client.sendall(mine)
        else:
            round_trip(client, mine)
        client.close()


@architectures
def test_no_completion_is_ever_stale(options: dict[str, Any]) -> None:
    """B17: Gain knows operations by their fd; what ends late hits the fd's next owner."""
    handler = Recorder(on_read=echo_and_end_as_told)
    with server_in_thread(handler, **options) as server:
        with contextlib.ExitStack() as stack:
            for name in range(4):
                stack.enter_context(in_thread(storm, server, name))
        wait_until(lambda: server.active_connections() == 0)
        accepted = len(handler.conns)
        clients = [connect(server) for _ in range(8)]
        wait_until(lambda: len(handler.conns) == accepted + 8)
        rings = [ring_of(conn) for conn in handler.conns[-8:]]
        assert [ring.stale_cqes for ring in rings] == [0] * 8
        workers = {run_in_worker(conn, threading.get_ident) for conn in handler.conns[-8:]}
        if options.get("architecture") != "sharding":  # there the kernel chooses
            assert len(workers) == options["workers"]
        for client in clients:
            client.close()
        wait_until(lambda: server.active_connections() == 0)
    assert 4 * 50 <= accepted <= 4 * 60  # some are reset before they are accepted
