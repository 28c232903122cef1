"""The peer's end of file: with ``on_eof``, the connection stays open for writing."""

from __future__ import annotations

import errno
import socket as stdlib_socket

import gain_tools
import pytest
import trio
import trio.testing
from gain_tools import (
    CLOGGING,
    MIB,
    AsyncRecorder,
    Boom,
    HalfCloser,
    Recorder,
    Sink,
    connect,
    connected,
    consume,
    echo,
    in_thread,
    is_silent,
    open_client,
    pattern,
    read_exactly,
    read_to_end,
    receive_all,
    run_in_worker,
    server_in_thread,
    serving,
    until,
    wait_errors,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

pytestmark = ON_RING


async def test_on_eof_leaves_the_connection_open_for_writing() -> None:
    recorder = HalfCloser(on_read=consume)
    async with connected(recorder) as (conn, client):
        await client.send_all(b"question")
        await client.send_eof()
        await until(lambda: "on_eof" in recorder.names())
        assert recorder.names(conn) == ["on_accept", "on_read", "on_eof"]
        conn.write(CLOGGING)
        conn.close()
        assert await read_to_end(client) == CLOGGING
        await until(lambda: recorder.counts().close == 1)
    assert recorder.names().count("on_eof") == 1
    assert recorder.errors() == [None]


async def test_on_eof_comes_after_all_bytes() -> None:
    data = bytes(300_000)
    at_eof = []
    recorder = HalfCloser()
    recorder.actions["on_read"] = consume

    def eof(conn: gain.Conn) -> None:
        at_eof.append(sum(recorder.values("on_read")))
        conn.close()

    recorder.actions["on_eof"] = eof
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(data)
        await client.send_eof()
        assert await read_to_end(client) == b""
    assert at_eof == [len(data)]


class AsyncHalfCloser(AsyncRecorder):
    async def on_eof(self, conn: gain.Conn) -> None:
        await self._call("on_eof", conn)


HALF_CLOSERS = [HalfCloser, AsyncHalfCloser]
both_kinds = pytest.mark.parametrize("kind", HALF_CLOSERS, ids=["def", "async def"])


@both_kinds
async def test_answer_in_on_eof(kind: type[Recorder]) -> None:
    def answer(conn: gain.Conn) -> None:
        conn.write(conn.next() * 2)
        conn.close()

    recorder = kind(on_eof=answer)
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(b"question")
        await client.send_eof()
        assert await read_to_end(client) == b"question" * 2
        await until(lambda: recorder.counts().close == 1)
    assert recorder.names() == ["on_accept", "on_read", "on_eof", "on_write", "on_close"]
    assert recorder.errors() == [None]


@both_kinds
async def test_raising_on_eof_closes_the_connection(kind: type[Recorder]) -> None:
    def fail(conn: gain.Conn) -> None:
        raise Boom

    recorder = kind(on_eof=fail)
    async with connected(recorder) as (_, client):
        await client.send_eof()
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], Boom)


async def test_half_closed_connection_stays_until_somebody_ends_it() -> None:
    recorder = HalfCloser()
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_eof()
        await until(lambda: "on_eof" in recorder.names())
        for _ in range(3):
            recorder.conn.write(b"still here")
            assert await read_exactly(client, 10) == b"still here"
            await trio.sleep(0.01)
        assert server.active_connections() == 1
        server.async_shutdown()
        assert await read_to_end(client) == b""
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


async def test_reset_of_a_half_closed_connection_is_noticed() -> None:
    recorder = HalfCloser()
    async with connected(recorder) as (conn, client):
        await client.send_eof()
        await until(lambda: "on_eof" in recorder.names())
        conn.write(CLOGGING)
        await trio.sleep(0.02)
        gain_tools.reset(client.socket)
        await until(lambda: recorder.counts().close == 1)
    (err,) = recorder.errors()
    assert isinstance(err, OSError)
    assert err.errno in (errno.ECONNRESET, errno.EPIPE)


@both_kinds
async def test_end_together_with_data(kind: type[Recorder]) -> None:
    recorder = kind(on_read=echo, on_eof=gain_tools.close_now)
    async with serving(recorder) as server:
        for _ in range(20):
            async with await open_client(server) as client:
                await client.send_all(b"hello")
                await client.send_eof()
                assert await read_to_end(client) == b"hello"
        await until(lambda: recorder.counts().close == 20)
    assert recorder.errors() == [None] * 20


async def test_end_while_reading_is_paused_comes_with_resuming() -> None:
    recorder = HalfCloser(on_read=consume)
    async with connected(recorder) as (conn, client):
        conn.pause_reading()
        await client.send_all(b"hello")
        await client.send_eof()
        await trio.sleep(0.02)
        conn.resume_reading()
        await until(lambda: "on_eof" in recorder.names())
        assert recorder.values("on_read") == [5]
        conn.close()


# Without on_eof


@pytest.mark.parametrize("kind", [Recorder, AsyncRecorder], ids=["def", "async def"])
async def test_output_is_flushed_before_the_connection_closes(kind: type[Recorder]) -> None:
    def read(conn: gain.Conn, n: int) -> None:
        conn.discard(n)
        conn.write(CLOGGING)

    recorder = kind(on_read=read)
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(b"question")
        await client.send_eof()
        assert await read_to_end(client) == CLOGGING
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.EndOfStream)
    assert sum(recorder.values("on_write")) == len(CLOGGING)


async def test_callback_that_runs_finishes_and_may_write() -> None:
    gate = trio.Event()

    async def read(conn: gain.Conn, n: int) -> None:
        await gate.wait()
        conn.write(conn.next(n))

    recorder = AsyncRecorder(on_read=read)
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(b"question")
        await client.send_eof()
        await until(lambda: recorder.counts().read == 1)
        await trio.sleep(0.02)
        gate.set()
        assert await read_to_end(client) == b"question"
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.EndOfStream)


async def test_end_of_the_stream_while_output_waits_for_a_slow_peer() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        await client.send_eof()
        await trio.sleep(0.02)
        assert recorder.counts().close == 0
        assert await read_to_end(client) == CLOGGING
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.EndOfStream)


# Both directions


@pytest.mark.parametrize("size", [0, 1, len(gain_tools.CLOGGING)])
@pytest.mark.parametrize("when", ["before", "in on_eof", "after"])
async def test_a_connection_closes_when_both_directions_have_ended(when: str, size: int) -> None:
    """And all output is out."""
    output = gain_tools.CLOGGING[:size]

    class Handler(Recorder):
        def on_accept(self, conn: gain.Conn) -> None:
            super().on_accept(conn)
            if when == "before":
                conn.write(output)
                conn.send_eof()

        def on_eof(self, conn: gain.Conn) -> None:
            with self.recorded("on_eof", conn):
                if when == "in on_eof":
                    conn.write(output)
                    conn.send_eof()

    handler = Handler()
    async with gain_tools.connected(handler) as (conn, client):
        await client.send_eof()
        if when == "after":
            await until(lambda: "on_eof" in handler.names())
            await trio.testing.wait_all_tasks_blocked()
            assert handler.counts().close == 0
            conn.write(output)
            conn.send_eof()
        assert await read_to_end(client) == output
        await until(lambda: handler.counts().close == 1)
    assert isinstance(handler.errors()[0], gain.EndOfStream)
    assert sum(handler.values("on_write")) == size


# Blocking clients


@pytest.mark.parametrize("size", [5, 10_000, 300_000])
def test_data_that_comes_with_the_fin_is_delivered_and_answered(size: int) -> None:
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


def test_every_byte_is_announced_before_the_end_of_the_stream() -> None:
    """B3: in Gain what had not been read when the FIN came could not be read any more."""
    handler = Sink()
    message = pattern(4 * MIB)
    with server_in_thread(handler, workers=1) as server:
        with connect(server) as client:
            client.sendall(message)
        (error,) = wait_errors(handler)
        assert isinstance(error, gain.EndOfStream)
    assert handler.received(handler.conn) == message


def test_unread_bytes_are_still_there_in_on_eof() -> None:
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


def test_half_closed_connection_stays_open_for_writing() -> None:
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


def test_send_eof_ends_our_half_and_reading_goes_on() -> None:
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
