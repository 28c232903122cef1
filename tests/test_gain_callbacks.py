"""When callbacks are called, with what, and what becomes of one that raises."""

from __future__ import annotations

import gain_tools
import pytest
import trio
import trio.testing
from gain_tools import (
    CLOGGING,
    MODES,
    AsyncRecorder,
    Mode,
    Recorder,
    connect,
    connected,
    consume,
    echo,
    in_thread,
    is_silent,
    make_recorder,
    open_client,
    options_for,
    pattern,
    read_exactly,
    read_to_end,
    receive_exactly,
    round_trip,
    run_in_worker,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

pytestmark = ON_RING

KINDS = [Recorder, AsyncRecorder]
both_kinds = pytest.mark.parametrize("kind", KINDS, ids=["def", "async def"])


class Gate:
    """An action that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self.open = trio.Event()

    async def __call__(self, conn: gain.Conn, *_: object) -> None:
        self.reached.set()
        await self.open.wait()


# on_read


@both_kinds
async def test_n_announces_every_byte_once(kind: type[Recorder]) -> None:
    data = bytes(range(256)) * 2000
    received = bytearray()
    recorder = kind(on_read=lambda conn, n: received.extend(conn.next(n)))
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(data)
        await until(lambda: len(received) == len(data))
    assert received == data
    assert sum(recorder.values("on_read")) == len(data)
    assert 0 not in recorder.values("on_read")


async def test_bytes_left_over_are_not_announced_again() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        await client.send_all(b"first")
        # A task may see the bytes before they are announced.
        await until(lambda: recorder.values("on_read") == [5])
        await client.send_all(b"second")
        await until(lambda: recorder.values("on_read") == [5, 6])
        assert conn.inbound_buffered() == 11
        assert conn.next(11) == b"firstsecond"


async def test_on_read_is_left_out_if_a_task_has_consumed_everything() -> None:
    gate = Gate()
    recorder = AsyncRecorder(on_read=gate)
    async with connected(recorder) as (conn, client):
        await client.send_all(b"one")
        await gate.reached.wait()
        await client.send_all(b"two")
        await until(lambda: conn.inbound_buffered() == 6)
        assert conn.next(6) == b"onetwo"
        gate.open.set()
        conn.write(b"x")
        await until(lambda: recorder.values("on_write"))
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.values("on_read") == [3]


async def test_on_read_counts_only_what_nobody_has_consumed() -> None:
    gate = Gate()
    recorder = AsyncRecorder(on_read=gate)
    async with connected(recorder) as (conn, client):
        await client.send_all(b"one")
        await gate.reached.wait()
        await client.send_all(b"twothree")
        await until(lambda: conn.inbound_buffered() == 11)
        assert conn.next(6) == b"onetwo"
        gate.open.set()
        await until(lambda: recorder.values("on_read") == [3, 5])
        assert conn.next(5) == b"three"


async def test_input_gathers_while_an_async_def_runs_up_to_the_limit() -> None:
    gate = Gate()
    recorder = AsyncRecorder(on_read=gate)
    limit = 16 * 1024
    async with connected(recorder, read_buffer_limit=limit) as (conn, client):
        await client.send_all(b"!")
        await gate.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, CLOGGING)
            await until(lambda: conn.inbound_buffered() >= limit)
            await trio.sleep(0.05)  # for it to overflow, if it does
            gathered = conn.inbound_buffered()
            # What was in flight when the limit was reached comes on top of it: one buffer.
            assert limit <= gathered <= limit + 128 * 1024
            assert recorder.values("on_read") == [1]
            recorder.actions["on_read"] = lambda conn, n: conn.discard()
            gate.open.set()
            await until(lambda: len(recorder.values("on_read")) > 1)
            assert recorder.values("on_read")[1] == gathered - 1
            await until(lambda: sum(recorder.values("on_read")) == len(CLOGGING) + 1)


# on_write


@both_kinds
async def test_on_write_counts_add_up(kind: type[Recorder]) -> None:
    recorder = kind(on_read=consume)
    async with connected(recorder) as (conn, client):
        for piece in (b"abc", CLOGGING, b"defg"):
            conn.write(piece)
        total = 7 + len(CLOGGING)
        assert len(await read_exactly(client, total)) == total
        await until(lambda: sum(recorder.values("on_write")) == total)
        assert 0 not in recorder.values("on_write")
        assert conn.outbound_buffered() == 0


async def test_writes_of_one_callback_are_one_on_write() -> None:
    def read(conn: gain.Conn, n: int) -> None:
        for byte in conn.next(n):
            conn.write(bytes([byte]))

    recorder = Recorder(on_read=read)
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(b"0123456789")
        assert await read_exactly(client, 10) == b"0123456789"
        await until(lambda: recorder.values("on_write"))
    assert recorder.values("on_write") == [10]


async def test_on_write_is_summed_while_an_async_def_runs() -> None:
    gate = Gate()
    recorder = AsyncRecorder(on_read=gate)
    async with connected(recorder) as (conn, client):
        await client.send_all(b"!")
        await gate.reached.wait()
        for number in range(5):
            conn.write(b"%d" % number)
            assert await read_exactly(client, 1) == b"%d" % number
        await until(lambda: conn.outbound_buffered() == 0)
        assert recorder.values("on_write") == []
        gate.open.set()
        await until(lambda: recorder.values("on_write") == [5])


async def test_no_callback_is_called_from_inside_write_or_close() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        before = recorder.names()
        conn.write(b"x")
        conn.writev([b"y", b"z"])
        conn.close()
        conn.abort()
        assert recorder.names() == before
        await until(lambda: recorder.counts().close == 1)


@both_kinds
async def test_callbacks_of_a_connection_never_overlap(kind: type[Recorder]) -> None:
    """Reads, writes and the close all at once; the recorder looks for overlaps."""
    recorder = kind(on_read=echo)
    async with serving(recorder) as server, await open_client(server) as client:

        async def send() -> None:
            for _ in range(200):
                await client.send_all(b"x" * 1000)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert len(await read_to_end(client)) == 200_000
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.EndOfStream)


async def test_async_defs_of_two_connections_run_side_by_side() -> None:
    gate = Gate()
    recorder = AsyncRecorder(on_read=gate)
    async with (
        serving(recorder) as server,
        await open_client(server) as one,
        await open_client(server) as two,
    ):
        await one.send_all(b"x")
        await gate.reached.wait()
        gate.reached = trio.Event()
        await two.send_all(b"x")
        with trio.fail_after(gain_tools.BOUND_S):
            await gate.reached.wait()
        gate.open.set()


# on_close


@both_kinds
async def test_on_close_waits_for_the_callback_that_runs(kind: type[Recorder]) -> None:
    recorder = kind(on_read=echo)
    if kind is AsyncRecorder:
        gate = Gate()
        recorder.actions["on_read"] = gate
    async with connected(recorder) as (conn, client):
        if kind is AsyncRecorder:
            await client.send_all(b"x")
            await gate.reached.wait()
            conn.abort()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert recorder.counts().close == 0
            gate.open.set()
        else:
            conn.abort()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


@both_kinds
async def test_all_bytes_come_before_the_end_and_all_output_goes(kind: type[Recorder]) -> None:
    data = bytes(range(256)) * 1000
    recorder = kind(on_read=echo)
    async with serving(recorder) as server, await open_client(server) as client:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await client.send_all(data)
                await client.send_eof()

            nursery.start_soon(send)
            assert await read_to_end(client) == data
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.EndOfStream)
    assert sum(recorder.values("on_write")) == len(data)


async def test_shutdown_gives_none() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, await open_client(server):
        await until(lambda: recorder.conns)
        server.async_shutdown()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


# on_start


@both_kinds
async def test_on_start_runs_bound_and_running_before_anything_is_accepted(
    kind: type[Recorder],
) -> None:
    seen = []

    def start(server: gain.Server) -> None:
        seen.append((server.is_running(), server.addresses()[0][1] > 0, recorder.counts().accept))

    recorder = kind(on_start=start)
    async with serving(recorder) as server, await open_client(server):
        await until(lambda: recorder.counts().accept == 1)
    assert seen == [(True, True, 0)]
    assert recorder.starts == 1


async def test_async_on_start_is_awaited_before_accepting() -> None:
    gate = Gate()

    class Slow(Recorder):
        async def on_start(self, server: gain.Server) -> None:
            self.server = server
            await gate(None)  # type: ignore[arg-type]

    recorder = Slow()
    async with trio.open_nursery() as nursery:
        server = gain.Server(recorder, gain.Config(workers=1))
        nursery.start_soon(server.serve, gain_tools.LOOPBACK)
        await gate.reached.wait()
        async with await open_client(server):
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert recorder.counts().accept == 0
            gate.open.set()
            await until(lambda: recorder.counts().accept == 1)
            server.async_shutdown()


# What on_read announces, to blocking clients


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [10_000, 200_000])
def test_echo_of_next_n_is_complete(mode: Mode, size: int) -> None:
    """B4: of 10,000 bytes Gain announced the last 1,808; its own echo stranded the rest."""
    handler = make_recorder(mode, on_read=echo)
    message = pattern(size)
    with (
        server_in_thread(handler, workers=1, **options_for(mode)) as server,
        connect(server) as client,
        in_thread(receive_exactly, client, size) as answer,
    ):
        client.sendall(message)
    assert answer == [message]
    assert sum(handler.values("on_read")) == size


def test_n_counts_what_no_on_read_has_announced_and_nobody_consumed() -> None:
    """B4: so that what a callback leaves is not announced again."""
    seen = []

    def leave(conn: gain.Conn, n: int) -> None:
        seen.append((n, conn.inbound_buffered()))

    def take_all(conn: gain.Conn, n: int) -> None:
        leave(conn, n)
        conn.write(conn.next())

    handler = Recorder(on_read=leave)
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"a" * 1000)
        wait_until(lambda: len(seen) == 1)
        handler.actions["on_read"] = take_all
        client.sendall(b"b" * 500)
        assert receive_exactly(client, 1500) == b"a" * 1000 + b"b" * 500
        round_trip(client, b"c" * 10)
    assert seen == [(1000, 1000), (500, 1500), (10, 10)]


def test_bytes_consumed_elsewhere_are_not_announced() -> None:
    """B4: what was gathered while reading was paused and then taken is nobody's news."""
    handler = Recorder(on_accept=lambda conn: conn.pause_reading())
    with server_in_thread(handler, workers=1) as server, connect(server) as client:
        client.sendall(b"x" * 100)
        assert is_silent(client)
        assert handler.values("on_read") == []
        run_in_worker(handler.conn, handler.conn.resume_reading)
        wait_until(lambda: handler.values("on_read") == [100])
        assert run_in_worker(handler.conn, lambda: handler.conn.next(100)) == b"x" * 100
        client.sendall(b"y" * 7)
        wait_until(lambda: handler.values("on_read") == [100, 7])
