"""Datagrams of a callback server: what a handler can do with one, and what it cannot."""

from __future__ import annotations

import errno
import io
import logging
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio
from gain_tools import BOUND_S, LOOPBACK_UDP, Recorder, echo, serving, until
from marks import ON_RING

from uring_trio import gain
from uring_trio._slots import Occupant

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = ON_RING

# Every method that a thread other than the worker's may not call.
IN_WORKER_ONLY: dict[str, Callable[[Any], Any]] = {
    "next": lambda conn: conn.next(),
    "read": lambda conn: conn.read(),
    "peek": lambda conn: conn.peek(),
    "discard": lambda conn: conn.discard(),
    "read_into": lambda conn: conn.read_into(bytearray(1)),
    "write_to": lambda conn: conn.write_to(io.BytesIO()),
    "write": lambda conn: conn.write(b"x"),
    "writev": lambda conn: conn.writev([b"x"]),
    "read_from": lambda conn: conn.read_from(io.BytesIO(b"x")),
    "send_to": lambda conn: conn.send_to(b"x", ("127.0.0.1", 9)),
    "start_soon": lambda conn: conn.start_soon(trio.sleep, 0),
    "close": lambda conn: conn.close(),
    "fileno": lambda conn: conn.fileno(),
    "inbound_buffered": lambda conn: conn.inbound_buffered(),
    "outbound_buffered": lambda conn: conn.outbound_buffered(),
    "set_read_buffer": lambda conn: conn.set_read_buffer(1 << 16),
}

STREAMS_ONLY: dict[str, Callable[[gain.Conn], Any]] = {
    "send_eof": lambda conn: conn.send_eof(),
    "start_tls": lambda conn: conn.start_tls(None),  # type: ignore[arg-type]
    "pause_reading": lambda conn: conn.pause_reading(),
    "set_read_buffer_limit": lambda conn: conn.set_read_buffer_limit(1),
    "resume_reading": lambda conn: conn.resume_reading(),
    "set_no_delay": lambda conn: conn.set_no_delay(True),
    "set_keep_alive_period": lambda conn: conn.set_keep_alive_period(5),
    "set_deadline": lambda conn: conn.set_deadline(5),
    "set_read_deadline": lambda conn: conn.set_read_deadline(5),
    "set_write_deadline": lambda conn: conn.set_write_deadline(5),
    "set_idle_timeout": lambda conn: conn.set_idle_timeout(5),
}


# What else a connection has: for users, used on datagrams below; and for the IO manager.
ELSEWHERE = {
    "abort",
    "batch",
    "call_soon_threadsafe",
    "context",
    "drain",
    "local_addr",
    "reading",
    "remote_addr",
    "server",
    "set_linger",
    "set_write_buffer",
    "task",
    "worker",
}


async def open_client(server: gain.Server) -> trio.socket.SocketType:
    address = server.addresses()[0]
    family = stdlib_socket.AF_INET if len(address) == 2 else stdlib_socket.AF_INET6
    client = trio.socket.socket(family, stdlib_socket.SOCK_DGRAM)
    await client.connect(address)
    return client


async def answer(client: trio.socket.SocketType) -> bytes:
    with trio.fail_after(BOUND_S):
        return await client.recv(1 << 16)


async def ask(client: trio.socket.SocketType, data: bytes) -> bytes:
    await client.send(data)
    return await answer(client)


async def received(recorder: Recorder, client: trio.socket.SocketType, data: bytes) -> gain.Conn:
    """The datagram that *data* becomes."""
    count = len(recorder.values("on_read"))
    await client.send(data)
    await until(lambda: len(recorder.values("on_read")) > count)
    return recorder.conns[-1]


def test_every_method_of_a_connection_is_thought_of() -> None:
    public = {name for name in dir(gain.Conn) if not name.startswith("_")}
    at_slots = vars(Occupant).keys()
    assert public <= ELSEWHERE | IN_WORKER_ONLY.keys() | STREAMS_ONLY.keys() | at_slots


async def test_input_is_the_datagram_and_nothing_else() -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            first = await received(recorder, client, b"0123456789")
            second = await received(recorder, client, b"other")
            assert first.inbound_buffered() == 10
            assert first.peek(3) == b"012"
            assert first.peek(100) == first.peek() == b"0123456789"
            assert first.next(2) == b"01"
            with pytest.raises(gain.ShortBuffer):
                first.next(9)
            buffer = bytearray(3)
            assert first.read_into(buffer) == 3
            assert buffer == b"234"
            assert first.discard(1) == 1
            file = io.BytesIO()
            assert first.write_to(file) == 4
            assert file.getvalue() == b"6789"
            with pytest.raises(gain.IsEmpty):
                first.read()
            assert first.next() == b""
            assert second.read(2) + second.read() == b"other"


async def test_empty_datagram_is_told_of_and_has_nothing_to_read() -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            conn = await received(recorder, client, b"")
            assert conn.inbound_buffered() == 0
            assert conn.next() == conn.next(0) == conn.peek() == b""
            with pytest.raises(gain.IsEmpty):
                conn.read()
            assert conn.write(b"") == 0
            assert await answer(client) == b""
            # It was sent, so it is told of.
            await until(lambda: recorder.values("on_write") == [0])


async def test_each_way_to_reply_sends_one_datagram() -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            conn = await received(recorder, client, b"?")
            assert conn.write(bytearray(b"one")) == 3
            assert conn.writev([b"t", memoryview(b"w"), b"o"]) == 3
            big = bytes(range(256)) * 255
            assert conn.read_from(io.BytesIO(big)) == len(big)
            assert [await answer(client) for _ in range(3)] == [b"one", b"two", big]
            for send in (conn.write, lambda data: conn.read_from(io.BytesIO(data))):
                with pytest.raises(OSError, match="long") as caught:
                    send(bytes(65_508))
                assert caught.value.errno == errno.EMSGSIZE
            assert conn.outbound_buffered() == 0
            await conn.drain()
            # Written in one turn, so told of at once.
            await until(lambda: recorder.values("on_write") == [6 + len(big)])
            conn.write(b"fine")
            assert await answer(client) == b"fine"


async def test_on_write_that_writes_keeps_nobody_waiting() -> None:
    """Two on_write that answer each other would hold the worker for ever in one turn."""
    client_done = trio.Event()
    datagrams: list[gain.Conn] = []
    recorder = Recorder(on_read=echo)

    def write_again(conn: gain.Conn, n: int) -> None:
        if conn.remote_addr().network == "udp" and not client_done.is_set():
            for other in datagrams:
                other.write(b"again")

    recorder.actions["on_write"] = write_again
    async with serving(recorder, [gain_tools.LOOPBACK, LOOPBACK_UDP]) as server:
        tcp, udp = server.addresses()
        with trio.socket.socket(type=stdlib_socket.SOCK_DGRAM) as client:
            for _ in range(2):
                await client.sendto(b"go", udp)
            await until(lambda: len(recorder.conns) == 2)
            datagrams.extend(recorder.conns)
            datagrams[0].write(b"and on")
            await until(lambda: recorder.counts().write > 50)
            async with await trio.open_tcp_stream(*tcp) as stream:
                await stream.send_all(b"are you there?")
                assert await gain_tools.read_exactly(stream, 14) == b"are you there?"
            client_done.set()


@pytest.mark.parametrize("name", STREAMS_ONLY)
async def test_what_only_streams_have_is_refused(name: str) -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            conn = await received(recorder, client, b"x")
            with pytest.raises(gain.NotSupported, match=name):
                STREAMS_ONLY[name](conn)


async def test_close_and_abort_do_nothing() -> None:
    recorder = Recorder(on_read=lambda conn, n: (conn.close(), conn.abort(), conn.close()))
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            conn = await received(recorder, client, b"x")
            conn.write(b"still here")
            assert await answer(client) == b"still here"
            assert conn.next() == b"x"
            assert server.active_connections() == 0


@pytest.mark.parametrize("name", IN_WORKER_ONLY)
async def test_other_threads_are_refused(name: str) -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            conn = await received(recorder, client, b"x")

            def elsewhere() -> None:
                with pytest.raises(gain.OpNotAvailableInMode, match=f"^{name}.*threadsafe"):
                    IN_WORKER_ONLY[name](conn)
                conn.context = threading.get_ident()
                assert conn.local_addr() == server.addresses()[0]
                assert conn.remote_addr() == client.getsockname()
                conn.call_soon_threadsafe(conn.write, b"this way")

            await trio.to_thread.run_sync(elsewhere)
            assert await answer(client) == b"this way"
            assert conn.context != threading.get_ident()


async def test_after_the_server_s_end_only_context_and_addresses_are_left() -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        local = server.addresses()[0]
        with await open_client(server) as client:
            remote = client.getsockname()
            conn = await received(recorder, client, b"x")
            conn.context = "mine"
    counts = {"fileno", "inbound_buffered", "outbound_buffered"}
    for name in IN_WORKER_ONLY.keys() - counts - {"close"}:
        with pytest.raises(gain.ConnectionClosed):
            IN_WORKER_ONLY[name](conn)
    with pytest.raises(gain.ConnectionClosed):
        conn.call_soon_threadsafe(print)
    conn.close()
    assert (conn.context, conn.local_addr(), conn.remote_addr()) == ("mine", local, remote)
    assert (conn.fileno(), conn.inbound_buffered(), conn.outbound_buffered()) == (-1, 1, 0)


async def test_task_of_a_datagram_replies_later_and_may_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = trio.Event()

    async def reply(conn: gain.Conn) -> None:
        await released.wait()
        conn.write(b"later")
        raise gain_tools.Boom("too much")

    recorder = Recorder(on_read=lambda conn, n: conn.start_soon(reply, conn))
    async with serving(recorder, LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            await received(recorder, client, b"x")
            released.set()
            for _ in range(2):
                assert await answer(client) == b"later"
                await client.send(b"again")
    (record,) = [r for r in caplog.records if r.exc_info][:1]
    assert record.levelno == logging.ERROR
    assert "too much" in str(record.exc_info)


@pytest.mark.parametrize("options", [{}, {"async_handler": True}], ids=["def", "thread"])
async def test_callback_that_raises_is_logged_and_the_next_datagram_comes(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fail_first(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        conn.write(data)
        # Not by its number: in threads the next one may be here before this one looks.
        if data == b"a":
            raise gain_tools.Boom("first")

    recorder = Recorder(on_read=fail_first)
    async with serving(recorder, LOOPBACK_UDP, **options) as server:
        with await open_client(server) as client:
            assert await ask(client, b"a") == b"a"
            assert await ask(client, b"b") == b"b"
    assert ["on_read raised" in r.getMessage() for r in caplog.records if r.exc_info] == [True]


async def test_handler_without_on_read_takes_datagrams_and_drops_them() -> None:
    class Deaf(gain.EventHandler):
        def on_write(self, conn: gain.Conn, n: int) -> None:
            raise AssertionError

    async with serving(Deaf(), LOOPBACK_UDP) as server:
        with await open_client(server) as client:
            for _ in range(100):
                await client.send(bytes(1000))
            await until(lambda: server.statistics().workers[0].bytes_in == 100_000)


async def test_socket_options_act_on_the_socket_of_all() -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP, socket_recv_buffer_size=50_000) as server:
        with await open_client(server) as client:
            first = await received(recorder, client, b"x")
            second = await received(recorder, client, b"y")
            assert first.fileno() == second.fileno()
            first.set_read_buffer(30_000)
            first.set_write_buffer(20_000)
            first.set_linger(0)  # means nothing to UDP, and the kernel takes it
            option = gain_tools.socket_option
            # The kernel doubles what it is told, for its own books.
            assert option(second, stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF) == 60_000
            assert option(second, stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF) == 40_000
