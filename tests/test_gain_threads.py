"""Connections and servers as other threads may use them."""

from __future__ import annotations

import contextlib
import io
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import gain_tools
import outcome
import pytest
import trio
from gain_tools import (
    LOOPBACK_UDP,
    Recorder,
    architectures,
    connect,
    connected,
    echo,
    open_client,
    read_exactly,
    receive_all,
    receive_exactly,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = ON_RING

# Everything of a connection but call_soon_threadsafe, context and the addresses.
REFUSED: dict[str, Callable[[gain.Conn], Any]] = {
    "read": lambda conn: conn.read(),
    "next": lambda conn: conn.next(),
    "peek": lambda conn: conn.peek(),
    "read_into": lambda conn: conn.read_into(bytearray(1)),
    "discard": lambda conn: conn.discard(),
    "write_to": lambda conn: conn.write_to(io.BytesIO()),
    "inbound_buffered": lambda conn: conn.inbound_buffered(),
    "write": lambda conn: conn.write(b"x"),
    "writev": lambda conn: conn.writev([b"x"]),
    "read_from": lambda conn: conn.read_from(io.BytesIO(b"x")),
    "outbound_buffered": lambda conn: conn.outbound_buffered(),
    "close": lambda conn: conn.close(),
    "abort": lambda conn: conn.abort(),
    "send_eof": lambda conn: conn.send_eof(),
    "start_tls": lambda conn: conn.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)),
    "pause_reading": lambda conn: conn.pause_reading(),
    "resume_reading": lambda conn: conn.resume_reading(),
    "set_deadline": lambda conn: conn.set_deadline(1),
    "set_read_deadline": lambda conn: conn.set_read_deadline(1),
    "set_write_deadline": lambda conn: conn.set_write_deadline(1),
    "set_idle_timeout": lambda conn: conn.set_idle_timeout(1),
    "start_soon": lambda conn: conn.start_soon(trio.sleep, 0),
    "fileno": lambda conn: conn.fileno(),
    "set_read_buffer": lambda conn: conn.set_read_buffer(4096),
    "set_write_buffer": lambda conn: conn.set_write_buffer(4096),
    "set_linger": lambda conn: conn.set_linger(1),
    "set_keep_alive_period": lambda conn: conn.set_keep_alive_period(60),
    "set_no_delay": lambda conn: conn.set_no_delay(True),
}


def in_thread(fn: Callable[[], Any]) -> outcome.Outcome[Any]:
    """How it ends in a thread of its own."""
    ends: list[outcome.Outcome[Any]] = []
    thread = threading.Thread(target=lambda: ends.append(outcome.capture(fn)))
    thread.start()
    thread.join(gain_tools.BOUND_S)
    return ends[0]


@contextlib.contextmanager
def connection_elsewhere(
    recorder: Recorder, **options: Any
) -> Iterator[tuple[gain.Conn, Any, gain.Server]]:
    """A connection whose worker runs in another thread."""
    with (
        gain_tools.server_in_thread(recorder, **options) as server,
        gain_tools.connect(server) as client,
    ):
        wait_until(lambda: recorder.counts().accept == 1)
        yield recorder.conn, client, server


@pytest.mark.parametrize("name", REFUSED)
async def test_methods_are_refused_in_other_threads(name: str) -> None:
    async with connected(Recorder()) as (conn, client):
        end = in_thread(lambda: REFUSED[name](conn))
        assert isinstance(end, outcome.Error), end
        assert isinstance(end.error, gain.OpNotAvailableInMode)
        assert "call_soon_threadsafe" in str(end.error)
        assert name in str(end.error)
        conn.write(b"unharmed")
        assert await read_exactly(client, 8) == b"unharmed"


async def test_drain_is_refused_in_other_threads() -> None:
    async with connected(Recorder()) as (conn, _):
        end = in_thread(lambda: trio.run(conn.drain))
        assert isinstance(end, outcome.Error)
        assert isinstance(end.error, gain.OpNotAvailableInMode)


def test_context_and_addresses_work_in_every_thread() -> None:
    with connection_elsewhere(Recorder()) as (conn, client, _):
        conn.context = "mine"
        assert conn.context == "mine"
        assert conn.local_addr() == client.getpeername()
        assert conn.remote_addr() == client.getsockname()


async def test_every_task_of_the_worker_may_use_a_connection() -> None:
    async with connected(Recorder()) as (conn, client):

        async def task(data: bytes) -> None:
            conn.write(data)
            await conn.drain()

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(task, b"x")
        assert await read_exactly(client, 10) == b"x" * 10


# call_soon_threadsafe


def test_call_soon_threadsafe_runs_in_the_worker_first_in_first_out() -> None:
    recorder = Recorder()
    order: list[int] = []
    threads = set()

    def call(number: int) -> None:
        order.append(number)
        threads.add(threading.get_ident())

    with connection_elsewhere(recorder) as (conn, client, _):
        for number in range(1000):
            conn.call_soon_threadsafe(call, number)
        wait_until(lambda: len(order) == 1000)
        conn.call_soon_threadsafe(conn.write, b"pushed")
        assert receive_exactly(client, 6) == b"pushed"
    assert order == list(range(1000))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_call_soon_threadsafe_is_in_order_for_all_connections_of_a_worker() -> None:
    recorder = Recorder()
    order: list[int] = []
    with (
        gain_tools.server_in_thread(recorder, workers=1) as server,
        gain_tools.connect(server),
        gain_tools.connect(server),
    ):
        wait_until(lambda: len(recorder.conns) == 2)
        for number in range(100):
            recorder.conns[number % 2].call_soon_threadsafe(order.append, number)
        wait_until(lambda: len(order) == 100)
    assert order == list(range(100))


async def test_call_soon_threadsafe_in_the_workers_own_thread_is_never_at_once() -> None:
    called: list[str] = []
    async with connected(Recorder()) as (conn, _):
        conn.call_soon_threadsafe(called.append, "later")
        assert called == []
        await until(lambda: called == ["later"])


def test_call_soon_threadsafe_raises_when_the_worker_has_ended() -> None:
    recorder = Recorder()
    with connection_elsewhere(recorder) as (conn, _, server):
        server.shutdown()
        with pytest.raises(gain.ConnectionClosed):
            conn.call_soon_threadsafe(print)
        conn.context = "still"
        assert conn.context == "still"


def test_call_soon_threadsafe_of_a_closed_connection_whose_worker_lives() -> None:
    recorder = Recorder()
    called = threading.Event()
    with connection_elsewhere(recorder) as (conn, client, _):
        client.close()
        wait_until(lambda: recorder.counts().close == 1)
        conn.call_soon_threadsafe(called.set)
        wait_until(called.is_set)


def test_call_soon_threadsafe_that_raises_does_not_end_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise gain_tools.Boom

    recorder = Recorder(on_read=echo)
    with connection_elsewhere(recorder) as (conn, _, server):
        conn.call_soon_threadsafe(fail)
        wait_until(lambda: any(record.exc_info for record in caplog.records))
        with gain_tools.connect(server) as other:
            other.sendall(b"x")
            assert receive_exactly(other, 1) == b"x"


def test_push_between_connections_of_different_workers() -> None:
    """Broadcast, which Gain cannot do."""
    recorder = Recorder()

    def read(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        for other in recorder.conns:
            other.call_soon_threadsafe(other.write, data)

    recorder.actions["on_read"] = read
    with (
        gain_tools.server_in_thread(recorder, workers=2) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(gain_tools.connect(server)) for _ in range(6)]
        wait_until(lambda: recorder.counts().accept == 6)
        clients[0].sendall(b"to all")
        assert [receive_exactly(client, 6) for client in clients] == [b"to all"] * 6


def test_datagrams_can_be_answered_from_another_thread_later() -> None:
    recorder = Recorder()
    with (
        gain_tools.server_in_thread(recorder, LOOPBACK_UDP) as server,
        gain_tools.connect(server) as client,
    ):
        client.sendall(b"question")
        wait_until(lambda: recorder.counts().read == 1)
        conn = recorder.conn
        with pytest.raises(gain.OpNotAvailableInMode):
            conn.write(b"too direct")
        conn.call_soon_threadsafe(conn.write, b"answer")
        assert client.recv(100) == b"answer"


# The server's methods


def test_server_may_be_asked_from_any_thread() -> None:
    with connection_elsewhere(Recorder()) as (_, client, server):
        assert server.active_connections() == 1
        assert server.is_running()
        assert server.addresses()[0] == client.getpeername()
        assert sum(worker.connections for worker in server.statistics().workers) == 1


def test_shutdown_in_a_callback_acts_like_async_shutdown() -> None:
    recorder = Recorder(on_start=lambda server: servers.append(server))
    servers: list[gain.Server] = []
    recorder.actions["on_read"] = lambda conn, n: servers[0].shutdown()
    with connection_elsewhere(recorder) as (_, client, server):
        client.sendall(b"x")
        assert client.recv(1) == b""
        wait_until(lambda: not server.is_running())
    assert recorder.errors() == [None]


async def test_shutdown_in_a_task_acts_like_async_shutdown() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, await open_client(server) as client:
        await until(lambda: recorder.conns)
        server.shutdown()
        assert await read_exactly(client, 1) == b""


@architectures
def test_other_threads_reach_a_connection(options: dict[str, Any]) -> None:
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
def test_one_connection_writes_to_all(options: dict[str, Any]) -> None:
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
