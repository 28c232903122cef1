"""Closing, half-closing, addresses and socket options of a connection."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio
import trio.testing
from gain_tools import (
    CLOGGING,
    Counts,
    Recorder,
    connected,
    echo,
    open_client,
    read_exactly,
    read_to_end,
    serving,
    socket_option,
    until,
)
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = ON_RING

TCP = stdlib_socket.IPPROTO_TCP
SOCKET = stdlib_socket.SOL_SOCKET

DATA_METHODS: dict[str, Callable[[gain.Conn], Any]] = {
    "read": lambda conn: conn.read(1),
    "read_into": lambda conn: conn.read_into(bytearray(1)),
    "next": lambda conn: conn.next(1),
    "peek": lambda conn: conn.peek(1),
    "discard": lambda conn: conn.discard(1),
    "write_to": lambda conn: conn.write_to(io.BytesIO()),
}
WRITING_METHODS: dict[str, Callable[[gain.Conn], Any]] = {
    "write": lambda conn: conn.write(b"late"),
    "writev": lambda conn: conn.writev([b"late"]),
    "read_from": lambda conn: conn.read_from(io.BytesIO(b"late")),
}


async def test_close_sends_what_was_written_then_the_end() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        conn.close()
        assert await read_to_end(client) == CLOGGING
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]
    assert sum(recorder.values("on_write")) == len(CLOGGING)


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
async def test_after_close_data_methods_refuse_and_the_rest_works(strict: bool) -> None:
    """Nothing can be read, and nothing written; a write says so by 0, or raises if asked to."""
    recorder = Recorder()
    refused = []

    def try_all(conn: gain.Conn) -> None:
        for method in DATA_METHODS.values():
            with pytest.raises(gain.ConnectionClosed):
                method(conn)
        for method in WRITING_METHODS.values():
            if strict:
                with pytest.raises(gain.ConnectionClosed, match=re.escape(conn._connection.name())):
                    method(conn)
            else:
                assert method(conn) == 0

    def closed(conn: gain.Conn, err: object) -> None:
        try_all(conn)
        refused.append(conn)
        assert conn.context == "kept"
        assert conn.local_addr() == there
        assert conn.remote_addr() == here
        assert conn.outbound_buffered() == 0
        assert conn.inbound_buffered() >= 0

    recorder.actions["on_close"] = closed
    async with connected(recorder, write_strict=strict) as (conn, client):
        here, there = client.socket.getsockname(), client.socket.getpeername()
        conn.context = "kept"
        conn.close()
        try_all(conn)
        await until(lambda: recorder.counts().close == 1)
        assert refused == [conn]
        try_all(conn)
        assert conn.context == "kept"
        assert str(conn.remote_addr()) == f"127.0.0.1:{here[1]}"


@pytest.mark.parametrize("first", ["close", "abort"])
async def test_second_close_or_abort_does_nothing(first: str) -> None:
    recorder = Recorder(on_close=lambda conn, err: (conn.close(), conn.abort()))
    async with connected(recorder) as (conn, _):
        getattr(conn, first)()
        conn.close()
        await until(lambda: recorder.counts().close == 1)
        conn.close()
        conn.abort()
    assert recorder.counts() == Counts(1, 0, 0, 1)
    assert recorder.errors() == [None]


async def test_abort_resets() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        conn.abort()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await read_to_end(client)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


async def test_abort_while_close_drains() -> None:
    """The flush is cut short, and `on_close` gets what it would have got."""
    recorder = Recorder()
    async with connected(recorder, close_timeout=60) as (conn, _):
        conn.write(CLOGGING)
        conn.close()
        conn.abort()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


async def test_close_with_unread_input_does_not_reset_the_answer_away() -> None:
    recorder = Recorder()

    def read(conn: gain.Conn, n: int) -> None:
        conn.pause_reading()
        conn.write(b"answer")
        conn.close()

    recorder.actions["on_read"] = read
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(bytes(1_000_000))  # much of it still with the kernel
        await until(lambda: recorder.counts().read == 1)
        assert await read_to_end(client) == b"answer"
        await client.aclose()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


@pytest.mark.parametrize("behind", [b"", b"more"])
async def test_close_with_an_urgent_byte_unread_does_not_reset_the_answer_away(
    behind: bytes,
) -> None:
    """The kernel counts unread input up to the urgent byte: here none."""
    answer = bytes(2_000_000)  # some of it is with our kernel still when the file closes
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.pause_reading()
        await trio.testing.wait_all_tasks_blocked(0.05)  # its receive has ended
        await client.socket.send(b"!", stdlib_socket.MSG_OOB)
        if behind:
            await client.send_all(behind)
        await trio.testing.wait_all_tasks_blocked(0.05)
        conn.write(answer)
        conn.close()
        assert await read_to_end(client) == answer
        await client.aclose()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


async def test_close_waits_no_longer_than_a_second_for_a_peer_that_stays() -> None:
    recorder = Recorder(on_read=lambda conn, n: conn.close())
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(bytes(500_000))
        started = trio.current_time()
        await until(lambda: recorder.counts().close == 1)
        assert trio.current_time() - started < 1.5
    assert recorder.errors() == [None]


async def test_close_of_a_peer_that_takes_nothing_times_out() -> None:
    recorder = Recorder()
    async with connected(recorder, close_timeout=0.1) as (conn, client):
        conn.write(CLOGGING)
        conn.close()
        await until(lambda: recorder.counts().close == 1)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
    (err,) = recorder.errors()
    assert isinstance(err, TimeoutError)


async def test_no_on_read_after_close() -> None:
    recorder = Recorder(on_read=lambda conn, n: conn.close())
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(b"one")
        assert await read_to_end(client) == b""
        await client.send_all(b"two")
        await client.aclose()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.counts() == Counts(1, 1, 0, 1)


async def test_peers_end_after_close_is_no_error() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        conn.close()
        await client.send_eof()
        assert await read_to_end(client) == CLOGGING
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


async def test_close_inside_each_callback() -> None:
    for name in ("on_accept", "on_read", "on_write"):
        recorder = Recorder(on_accept=lambda conn: conn.write(b"hello"))
        recorder.actions[name] = gain_tools.close_now
        async with serving(recorder) as server, await open_client(server) as client:
            if name == "on_read":
                await client.send_all(b"x")
            await read_to_end(client)
            await client.aclose()
            await until(lambda: recorder.counts().close == 1)  # noqa: B023
        assert recorder.errors() == [None]


# send_eof


async def test_send_eof_leaves_the_other_direction_open() -> None:
    recorder = Recorder(on_read=lambda conn, n: conn.next(n))
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        conn.send_eof()
        assert await read_to_end(client) == CLOGGING
        await client.send_all(b"more for you")
        await until(lambda: recorder.values("on_read") == [12])
        with pytest.raises((gain.ConnectionClosed, BrokenPipeError)):
            conn.write(b"after our end")
        assert recorder.counts().close == 0
        await client.aclose()
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.EndOfStream)


async def test_send_eof_twice_does_nothing_more() -> None:
    async with connected(Recorder()) as (conn, client):
        conn.send_eof()
        conn.send_eof()
        assert await read_to_end(client) == b""
        conn.close()
        with pytest.raises(gain.ConnectionClosed):
            conn.send_eof()


# Addresses and options


async def test_addresses() -> None:
    async with connected(Recorder()) as (conn, client):
        local, remote = conn.local_addr(), conn.remote_addr()
        assert (local, remote) == (client.socket.getpeername(), client.socket.getsockname())
        assert isinstance(local, gain.Address)
        assert (local.network, remote.network) == ("tcp", "tcp")
        assert str(local) == f"127.0.0.1:{local[1]}"


async def test_wildcard_listener_gives_the_real_local_address() -> None:
    recorder = Recorder()
    async with serving(recorder, ":0") as server:
        port = server.addresses()[0][1]
        async with trio.SocketStream(trio.socket.socket()) as client:
            await client.socket.connect(("127.0.0.1", port))
            await until(lambda: recorder.conns)
            assert recorder.conn.local_addr() == ("127.0.0.1", port)
            assert recorder.conn.remote_addr() == client.socket.getsockname()
            assert str(recorder.conn.remote_addr()).startswith("127.0.0.1:")


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    recorder = Recorder(on_read=echo)
    async with serving(recorder, f"unix://{path}") as server:
        assert str(server.addresses()[0]) == str(path)
        async with await trio.open_unix_socket(str(path)) as client:
            await client.send_all(b"hello")
            assert await read_exactly(client, 5) == b"hello"
            assert str(recorder.conn.local_addr()) == str(path)
            assert recorder.conn.local_addr().network == "unix"
            assert recorder.conn.remote_addr().network == "unix"
        await until(lambda: recorder.counts().close == 1)
    assert not path.exists()
    assert recorder.counts() == Counts(1, 1, 1, 1)


async def test_fileno_is_the_accepted_socket_without_inheritance() -> None:
    async with connected(Recorder()) as (conn, client):
        assert socket_option(conn, SOCKET, stdlib_socket.SO_DOMAIN) == stdlib_socket.AF_INET
        with stdlib_socket.socket(fileno=os.dup(conn.fileno())) as sock:
            assert sock.getpeername() == client.socket.getsockname()
        assert not os.get_inheritable(conn.fileno())


async def test_socket_options() -> None:
    async with connected(Recorder()) as (conn, _):
        for value in (True, False):
            conn.set_no_delay(value)
            assert bool(socket_option(conn, TCP, stdlib_socket.TCP_NODELAY)) is value
        conn.set_keep_alive_period(90)
        assert socket_option(conn, SOCKET, stdlib_socket.SO_KEEPALIVE) == 1
        assert socket_option(conn, TCP, stdlib_socket.TCP_KEEPIDLE) == 90
        assert socket_option(conn, TCP, stdlib_socket.TCP_KEEPINTVL) == 90
        for wrong in (0, 0.5, -1):
            with pytest.raises(gain.InvalidDuration):
                conn.set_keep_alive_period(wrong)
        conn.set_linger(7)
        assert socket_option(conn, SOCKET, stdlib_socket.SO_LINGER) == 1
        conn.set_linger(-1)
        assert socket_option(conn, SOCKET, stdlib_socket.SO_LINGER) == 0
        before = socket_option(conn, SOCKET, stdlib_socket.SO_RCVBUF)
        conn.set_read_buffer(2048)
        assert socket_option(conn, SOCKET, stdlib_socket.SO_RCVBUF) < before


async def test_socket_options_of_a_closed_connection() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        conn.close()
        await until(lambda: recorder.counts().close == 1)
        methods: list[Callable[[Any], None]] = [
            conn.set_no_delay,
            conn.set_linger,
            conn.set_read_buffer,
            conn.set_write_buffer,
            conn.set_keep_alive_period,
        ]
        for method in methods:
            with pytest.raises(gain.ConnectionClosed):
                method(1)


async def test_no_delay_is_on_by_default() -> None:
    async with connected(Recorder()) as (conn, _):
        assert socket_option(conn, TCP, stdlib_socket.TCP_NODELAY)


# Errors


def test_errors_are_the_standard_ones_too() -> None:
    for error, standard in (
        (gain.EndOfStream, EOFError),
        (gain.DeadlineExceeded, TimeoutError),
        (gain.AddressError, ValueError),
        (gain.ConnectionClosed, ConnectionError),
    ):
        assert issubclass(error, gain.GainError)
        assert issubclass(error, standard)


@pytest.mark.parametrize("draining", [False, True], ids=["open", "draining"])
async def test_reset_gives_on_close_the_oserror(draining: bool) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        if draining:
            conn.write(CLOGGING)
            conn.close()
            await trio.testing.wait_all_tasks_blocked()
        gain_tools.reset(client.socket)
        await until(lambda: recorder.counts().close == 1)
    (err,) = recorder.errors()
    assert isinstance(err, OSError)
    assert err.errno in (errno.ECONNRESET, errno.EPIPE)


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
async def test_a_broadcast_to_one_that_is_closing(strict: bool) -> None:
    """The others get it, and who has sent it stays; unless a handler asks to be told."""

    def read(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        if data == b"bad":
            conn.write(CLOGGING)
            conn.close()
            return
        taken.extend(other.write(data) for other in recorder.conns if other is not conn)

    taken: list[int] = []
    recorder = Recorder(on_read=read)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(gain_tools.serving(recorder, write_strict=strict))
        clients = []
        for count in range(1, 4):
            client = await stack.enter_async_context(await gain_tools.open_client(server))
            clients.append(client)
            await until(lambda: len(recorder.conns) == count)  # noqa: B023
        closing, sender, listener = clients
        await closing.send_all(b"bad")
        await until(lambda: repr(recorder.conns[0]).endswith("flushing>"))
        if strict:
            with pytest.raises(gain.ConnectionClosed, match="flushing"):
                recorder.conns[0].write(b"hello")
            assert not taken
        else:
            await sender.send_all(b"hello")
            with trio.fail_after(gain_tools.BOUND_S):
                assert await listener.receive_some() == b"hello"
            assert taken == [0, 5]
        assert recorder.counts().close == 0
