"""What Gain's API lacks and a server needs: each is there, and does what its name says.

Each test is about B19 of the faults of Gain, as ``docs/gain.md`` numbers them; ``send_to``
is in ``test_gain_faults_udp``.
"""

from __future__ import annotations

import logging
import select
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from gain_tools import (
    BOUND_S,
    LOOPBACK,
    LOOPBACK_UDP,
    MIB,
    Boom,
    Recorder,
    architectures,
    close_now,
    connect,
    echo,
    is_silent,
    needs_ring,
    pattern,
    receive_all,
    receive_exactly,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_until,
)

from uring_trio import gain

if TYPE_CHECKING:
    import socket as stdlib_socket
    from pathlib import Path

pytestmark = needs_ring


# --- Deadlines and timers ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["set_deadline", "set_read_deadline", "set_idle_timeout"])
def test_b19_silent_peer_is_let_go(kind: str) -> None:
    """B19: a Gain server keeps a silent peer for ever."""
    handler = Recorder(on_accept=lambda conn: getattr(conn, kind)(0.1))
    with server_in_thread(handler, workers=1) as server:
        start = time.monotonic()
        with connect(server) as client:
            assert receive_all(client) == b""
        assert 0.08 < time.monotonic() - start < 1
        wait_until(handler.errors)
    (error,) = handler.errors()
    assert isinstance(error, gain.DeadlineExceeded)
    assert isinstance(error, TimeoutError)


def test_b19_peer_who_does_not_read_is_let_go() -> None:
    """B19: nor has Gain a deadline for writing."""

    def write(conn: gain.Conn) -> None:
        conn.write(bytes(16 * MIB))
        conn.set_write_deadline(0.1)

    handler = Recorder(on_accept=write)
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server, receive_buffer=65536),
    ):
        wait_until(handler.errors)
    assert isinstance(handler.errors()[0], gain.DeadlineExceeded)


def test_b19_peer_who_talks_is_kept() -> None:
    """B19: every byte starts the idle timeout again, on_read meets the read deadline."""

    def begin(conn: gain.Conn) -> None:
        conn.set_idle_timeout(0.2)
        conn.set_read_deadline(0.2)

    handler = Recorder(on_accept=begin, on_read=echo)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        for _ in range(8):
            time.sleep(0.05)
            round_trip(client, b"still here")
        assert handler.errors() == []
        run_in_worker(handler.conn, lambda: handler.conn.set_idle_timeout(None))
        time.sleep(0.3)
        round_trip(client, b"and now for as long as I like")


def test_b19_on_tick_comes_as_often_as_was_asked_for() -> None:
    """B19: Gain has no timers."""
    times: list[float] = []
    threads = set()

    class Ticking(Recorder):
        def on_tick(self, server: gain.Server) -> None:
            assert server.is_running()
            times.append(time.monotonic())
            threads.add(threading.get_ident())

    with server_in_thread(Ticking(), workers=2, tick=0.05):
        wait_until(lambda: len(times) >= 5)
    assert 0.15 < times[4] - times[0] < 2
    assert len(threads) == 1


# --- Other threads and connections ------------------------------------------------------


@architectures
def test_b19_other_threads_reach_a_connection(options: dict[str, Any]) -> None:
    """B19: in Gain nothing but a connection's own callbacks can write to it, or wake it."""
    handler = Recorder()
    order: list[int] = []
    with server_in_thread(handler, **options) as server, connect(server) as client:
        wait_until(lambda: handler.conns)
        conn = handler.conn
        for name, operation in (
            ("write", lambda: conn.write(b"x")),
            ("next", lambda: conn.next()),
            ("close", lambda: conn.close()),
        ):
            with pytest.raises(gain.OpNotAvailableInMode, match="call_soon_threadsafe") as caught:
                operation()
            assert name in str(caught.value)
        start = time.monotonic()
        conn.call_soon_threadsafe(conn.write, b"pushed")
        assert receive_exactly(client, 6) == b"pushed"
        assert time.monotonic() - start < 0.1
        for i in range(1000):
            conn.call_soon_threadsafe(order.append, i)
        conn.call_soon_threadsafe(conn.close)
        assert receive_all(client) == b""
    assert order == list(range(1000))
    with pytest.raises(gain.ConnectionClosed):
        conn.call_soon_threadsafe(order.append, 0)


@architectures
def test_b19_one_connection_writes_to_all(options: dict[str, Any]) -> None:
    """B19: so a chat or anything that publishes cannot be written with Gain."""

    def tell_all(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        for other in handler.conns:
            other.call_soon_threadsafe(other.write, data)

    handler = Recorder(on_read=tell_all)
    with server_in_thread(handler, **options) as server:
        clients = [connect(server) for _ in range(10)]
        wait_until(lambda: len(handler.conns) == 10)
        clients[3].sendall(b"to whom it may concern")
        for client in clients:
            assert receive_exactly(client, 22) == b"to whom it may concern"
            client.close()


@pytest.mark.parametrize("size", [1, 2000])
def test_b19_writev_sends_all_buffers_in_order(size: int) -> None:
    """B19: Gain has no writev."""
    pieces = [b"%d," % i * (i % 7) for i in range(size)]

    def write(conn: gain.Conn) -> None:
        conn.writev([bytearray(piece) if i % 2 else piece for i, piece in enumerate(pieces)])
        conn.close()

    handler = Recorder(on_accept=write)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        assert receive_all(client) == b"".join(pieces)


@architectures
@pytest.mark.parametrize("most", [1, 3])
def test_b19_max_connections_holds_the_rest_back(options: dict[str, Any], most: int) -> None:
    """B19: Gain accepts what it can, whatever it can serve."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, max_connections=most, **options) as server:
        clients = [connect(server) for _ in range(most + 2)]  # the kernel's backlog takes them
        for client in clients:
            client.sendall(b"me")
        served = [client for client in clients if not is_silent(client)]
        assert len(served) == server.active_connections() == most
        waiting = [client for client in clients if client not in served]
        while waiting:
            served.pop(0).close()
            (client,) = select.select(waiting, [], [], BOUND_S)[0]  # whichever it is
            assert receive_exactly(client, 2) == b"me"
            assert server.active_connections() <= most
            waiting.remove(client)
            served.append(client)
        for client in served:
            client.close()
        wait_until(lambda: len(handler.errors()) == most + 2)


# --- Addresses and TLS ------------------------------------------------------------------


def test_b19_server_has_several_addresses_of_all_kinds(tmp_path: Path) -> None:
    """B19: a Gain server has one address, and no UNIX socket."""
    path = tmp_path / "socket"
    handler = Recorder(on_read=echo)
    with server_in_thread(
        handler, [LOOPBACK, f"unix://{path}", LOOPBACK_UDP, LOOPBACK], workers=1
    ) as server:
        addresses = server.addresses()
        assert [address.network for address in addresses] == ["tcp", "unix", "udp", "tcp"]
        assert str(addresses[1]) == str(path)
        for address in addresses:
            with connect(address) as client:
                round_trip(client, str(address).encode())
                assert handler.conns[-1].local_addr().network == address.network
        with pytest.raises(OSError, match="use"):
            gain.listen_and_serve(f"unix://{path}", Recorder())  # it is alive
    assert not path.exists()


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def secure(client: stdlib_socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(client, server_hostname="localhost")


def test_b19_server_talks_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """B19: what the users of servers like Gain ask for most."""
    message = pattern(MIB)

    def begin(conn: gain.Conn) -> None:
        conn.write(message)

    handler = Recorder(on_accept=begin, on_read=echo, on_write=lambda conn, n: None)
    with (
        server_in_thread(handler, workers=1, tls=tls[0]) as server,
        secure(connect(server), tls[1]) as client,
    ):
        assert receive_exactly(client, len(message)) == message
        round_trip(client, b"hush")
        run_in_worker(handler.conn, lambda: close_now(handler.conn))
        assert receive_all(client) == b""  # after a close_notify, or this would raise
    assert sum(handler.values("on_write")) == len(message) + 4
    assert handler.values("on_read") == [4]


def test_b19_connection_turns_to_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """B19: also later, as STARTTLS does."""

    def begin_tls(conn: gain.Conn, n: int) -> None:
        assert conn.next(n) == b"STARTTLS"
        conn.write(b"go ahead")
        handler.actions["on_read"] = echo
        conn.start_tls(tls[0])

    handler = Recorder(on_read=begin_tls)
    with server_in_thread(handler, workers=1) as server, connect(server) as plain:
        plain.sendall(b"STARTTLS")
        assert receive_exactly(plain, 8) == b"go ahead"
        with secure(plain, tls[1]) as client:
            round_trip(client, b"hush")


# --- To see what it does ----------------------------------------------------------------


@architectures
def test_b19_statistics_tell_what_the_workers_do(options: dict[str, Any]) -> None:
    """B19: Gain has no numbers but that of its connections."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, **options) as server:
        clients = [connect(server) for _ in range(6)]
        for client in clients:
            round_trip(client, b"x" * 1000)
        workers = server.statistics().workers
        assert len(workers) == options["workers"]
        assert sum(worker.connections for worker in workers) == 6
        wait_until(lambda: sum(w.bytes_out for w in server.statistics().workers) == 6000)
        assert sum(worker.bytes_in for worker in server.statistics().workers) == 6000
        with pytest.raises(AttributeError):
            workers[0].connections = 0  # type: ignore[misc]
        for client in clients:
            client.close()


def test_b19_faults_of_callbacks_go_to_the_programs_own_logging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B19, B2: Gain writes to stdout, and a panic in a handler ends the process."""

    def fail(conn: gain.Conn, n: int) -> None:
        raise Boom("on purpose")

    handler = Recorder(on_read=fail)
    with (
        caplog.at_level(logging.WARNING, "uring_trio.gain"),
        server_in_thread(handler, workers=1) as server,
        connect(server) as one,
        connect(server) as other,
    ):
        one.sendall(b"x")
        one.settimeout(BOUND_S)
        assert receive_all(one) == b""
        handler.actions["on_read"] = echo
        round_trip(other, b"unharmed")
        wait_until(handler.errors)
        (error,) = handler.errors()
        assert isinstance(error, Boom)
    records = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[1] for record in records if record.exc_info] == [error]
    assert all(record.name.startswith("uring_trio.gain") for record in records)
