"""Shutdown, from anywhere and at any moment: it drains, it ends, and loses no data.

A fault of Gain that a test is about stands in its docstring, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from gain_tools import (
    BOUND_S,
    LOOPBACK,
    MIB,
    AsyncRecorder,
    Recorder,
    architectures,
    connect,
    echo,
    in_thread,
    is_silent,
    pattern,
    receive_all,
    receive_exactly,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_until,
    writer_of,
)
from marks import needs_ring

from uring_trio import gain

if TYPE_CHECKING:
    import socket as stdlib_socket

pytestmark = needs_ring


def seconds_of(fn: Any, *args: Any) -> float:
    start = time.monotonic()
    fn(*args)
    return time.monotonic() - start


@architectures
def test_shutdown_lets_a_running_async_callback_end(options: dict[str, Any]) -> None:
    """B15: Gain closes the connection under a running OnRead, and the process dies of it."""
    gates: list[trio.Event] = []

    async def answer_later(conn: gain.Conn, n: int) -> None:
        gate = trio.Event()
        gates.append(gate)
        await gate.wait()
        conn.write(conn.next(n).upper())

    handler = AsyncRecorder(on_read=answer_later)
    with server_in_thread(handler, **options) as server, connect(server) as client:
        client.sendall(b"question")
        wait_until(lambda: gates)
        with in_thread(server.shutdown):
            assert is_silent(client)
            assert handler.errors() == []
            run_in_worker(handler.conn, gates[0].set)
            assert receive_all(client) == b"QUESTION"
        assert not server.is_running()
    assert handler.errors() == [None]


def test_shutdown_lets_a_callback_in_a_thread_end() -> None:
    """B15: the same where a plain on_read runs in a thread."""
    begun, gate = threading.Event(), threading.Event()

    def answer_later(conn: gain.Conn, n: int) -> None:
        begun.set()
        assert gate.wait(BOUND_S)
        conn.write(conn.next(n).upper())

    handler = Recorder(on_read=answer_later)
    with (
        server_in_thread(handler, workers=1, async_handler=True) as server,
        connect(server) as client,
    ):
        client.sendall(b"question")
        assert begun.wait(BOUND_S)
        with in_thread(server.shutdown):
            assert is_silent(client)
            assert handler.errors() == []
            gate.set()
            assert receive_all(client) == b"QUESTION"
    assert handler.errors() == [None]


def test_callback_that_does_not_end_is_cancelled_at_the_deadline() -> None:
    """B15: Gain's Shutdown has no deadline at all."""
    begun = []

    async def never_end(conn: gain.Conn, n: int) -> None:
        begun.append(conn)
        await trio.sleep_forever()

    handler = AsyncRecorder(on_read=never_end)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"question")
        wait_until(lambda: begun)
        assert 0.2 <= seconds_of(server.shutdown, 0.2) < 1.5
    assert handler.errors() == [None]


def test_output_that_nobody_takes_is_aborted_at_the_deadline() -> None:
    """B15: the same for output: the deadline is kept, and the peer sees a reset, no FIN."""
    handler = Recorder(on_accept=lambda conn: conn.write(pattern(16 * MIB)))
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server, receive_buffer=65536) as client,
    ):
        assert receive_exactly(client, 100)
        assert 0.3 <= seconds_of(server.shutdown, 0.3) < 1.5
        with pytest.raises(ConnectionResetError):
            receive_all(client)
    assert handler.errors() == [None]


def shutdown_in(name: str, how: str) -> tuple[Recorder, list[gain.Server]]:
    """A handler that shuts its server down in one of its callbacks."""
    servers: list[gain.Server] = []
    actions: dict[str, Any] = {
        "on_start": servers.append,
        "on_read": lambda conn, n: (conn.write(conn.next(n)), conn.close()),
    }
    before = actions.get(name)

    def act(*args: Any) -> None:
        if before is not None:
            before(*args)
        getattr(servers[0], how)()

    return Recorder(**{**actions, name: act}), servers


@pytest.mark.parametrize("how", ["shutdown", "async_shutdown"])
@pytest.mark.parametrize("name", ["on_start", "on_accept", "on_read", "on_write", "on_close"])
@pytest.mark.parametrize("workers", [1, 2])
def test_shutdown_may_be_called_in_any_callback(name: str, how: str, workers: int) -> None:
    """B15: Gain's Shutdown in a callback waits for itself, for ever."""
    handler, _ = shutdown_in(name, how)
    server = gain.Server(handler, gain.Config(workers=workers))
    with in_thread(server.start, LOOPBACK):
        if name != "on_start":
            wait_until(server.is_running)
            with connect(server) as client:
                client.sendall(b"last words")
                with contextlib.suppress(ConnectionError):
                    assert receive_all(client) in (b"last words", b"")
    assert not server.is_running()
    assert server.active_connections() == 0
    handler.verify()


@architectures
def test_shutdown_from_several_threads_and_again(options: dict[str, Any]) -> None:
    """B15: of two Gain shutdowns one may wait for what the other has taken."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, **options) as server:
        clients = [connect(server) for _ in range(10)]
        for client in clients:
            round_trip(client, b"hello")
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(in_thread(server.shutdown))
            server.async_shutdown()
        assert not server.is_running()
        assert seconds_of(server.shutdown) < 0.5
        server.async_shutdown()
        for client in clients:
            assert receive_all(client) == b""
            client.close()
    assert handler.errors() == [None] * 10


@architectures
def test_shutdown_under_traffic(options: dict[str, Any]) -> None:
    """B15: Gain gives buffers away that the kernel still receives into."""
    handler = Recorder(on_read=echo)

    def talk(client: stdlib_socket.socket) -> int:
        count = 0
        with client, contextlib.suppress(ConnectionError):
            while True:
                client.sendall(b"x" * 2000)
                if not receive_exactly(client, 2000):
                    return count
                count += 1
        return count

    with server_in_thread(handler, **options) as server, contextlib.ExitStack() as stack:
        talks = [stack.enter_context(in_thread(talk, connect(server))) for _ in range(8)]
        wait_until(lambda: len(handler.values("on_read")) > 200)
        assert seconds_of(server.shutdown) < 2
        stack.close()
        assert sum(count for (count,) in talks) > 0
    assert set(handler.errors()) == {None}


def test_connections_are_refused_while_closing() -> None:
    """B15: accepting stops at once, and the server says that it is not running."""
    handler = Recorder(on_accept=lambda conn: conn.write(bytes(16 * MIB)))
    with (
        server_in_thread(handler, workers=1) as server,
        connect(server, receive_buffer=65536) as client,
    ):
        address = server.addresses()[0]
        assert receive_exactly(client, 100)
        server.async_shutdown(BOUND_S)
        wait_until(lambda: not server.is_running())
        assert handler.errors() == []  # it still drains
        with pytest.raises(gain.InvalidState):
            server.start(LOOPBACK)

        def is_refused() -> bool:
            try:
                connect(address).close()
            except ConnectionError:
                return True
            return False

        wait_until(is_refused)
        assert len(receive_all(client)) == 16 * MIB - 100
    # Those that were refused too late may have been accepted, and have left.
    assert handler.values("on_close", handler.conns[0]) == [None]


def test_shutdown_before_start_and_between_starts_does_nothing() -> None:
    """B15, B18: and a server that was shut down can be started again."""
    handler = Recorder(on_read=echo)
    server = gain.Server(handler, gain.Config(workers=1))
    for _ in range(3):
        server.shutdown()
        server.async_shutdown()
        with in_thread(server.start, LOOPBACK):
            wait_until(server.is_running)
            with connect(server) as client:
                round_trip(client, b"again")
            server.shutdown()
    assert handler.starts == 3
    handler.verify()


def test_shutdown_drains() -> None:
    """B5: Gain's Shutdown never drains; what was not sent yet is lost."""
    message = pattern(16 * MIB)
    handler = writer_of(message)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        start = receive_exactly(client, 1000)
        with in_thread(server.shutdown, BOUND_S):
            assert start + receive_all(client) == message
    assert handler.errors() == [None]
