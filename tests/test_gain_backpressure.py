"""High and low water, paused reading, and what a slow peer costs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import gain_tools
import pytest
import test_gain_asleep
import trio
import trio.testing
from gain_tools import (
    CLOGGING,
    Recorder,
    Sink,
    connected,
    echo,
    open_client,
    read_exactly,
    serving,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from uring_trio import gain

pytestmark = gain_tools.ON_RING

QUIET_S = 0.03  # for something to happen that must not
KIB = 1024


async def test_pause_and_resume_reading() -> None:
    sink = Sink()
    async with connected(sink) as (conn, client):
        conn.pause_reading()
        conn.pause_reading()
        await client.send_all(b"x" * 1000)
        await trio.sleep(QUIET_S)
        assert sink.received_size() == 0
        conn.resume_reading()
        await until(lambda: sink.received_size() == 1000)
        conn.resume_reading()
        conn.pause_reading()
        await client.send_all(b"x" * 1000)
        await trio.sleep(QUIET_S)
        assert sink.received_size() == 1000
        conn.resume_reading()
        await until(lambda: sink.received_size() == 2000)


async def test_pause_in_on_read_stops_the_next_one() -> None:
    recorder = Recorder()

    def read(conn: gain.Conn, n: int) -> None:
        conn.discard()
        conn.pause_reading()

    recorder.actions["on_read"] = read
    async with connected(recorder) as (conn, client):
        for count in range(1, 5):
            await client.send_all(b"x")
            if count > 1:
                await trio.sleep(QUIET_S)
                assert recorder.counts().read == count - 1
                conn.resume_reading()
            await until(lambda: recorder.counts().read == count)  # noqa: B023


async def test_paused_connection_holds_the_peer_back() -> None:
    sink = Sink()
    async with connected(sink) as (conn, client), trio.open_nursery() as nursery:
        conn.pause_reading()
        sent = trio.Event()

        async def send() -> None:
            await client.send_all(CLOGGING)
            sent.set()

        nursery.start_soon(send)
        await trio.sleep(QUIET_S)
        assert not sent.is_set()
        assert conn.inbound_buffered() <= 128 * KIB
        conn.resume_reading()
        await until(lambda: sink.received_size() == len(CLOGGING))


async def test_input_that_nobody_consumes_is_bounded() -> None:
    recorder = Recorder()
    limit = 32 * KIB
    async with (
        connected(recorder, read_buffer_limit=limit) as (conn, client),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.send_all, CLOGGING)
        await until(lambda: conn.inbound_buffered() >= limit)
        await trio.sleep(QUIET_S)
        # One buffer may have been on its way when the limit was reached.
        assert conn.inbound_buffered() <= limit + 128 * KIB
        recorder.actions["on_read"] = lambda conn, n: conn.discard()
        conn.discard()
        await until(lambda: sum(recorder.values("on_read")) == len(CLOGGING))


async def test_reading_stops_above_high_water_and_goes_on_below_low() -> None:
    sink = Sink()
    async with connected(sink, write_high_water=64 * KIB) as (conn, client):
        conn.write(CLOGGING)
        await until(lambda: conn.outbound_buffered() < len(CLOGGING))
        await trio.sleep(QUIET_S)
        assert conn.outbound_buffered() > 64 * KIB
        await client.send_all(b"x" * 1000)
        await trio.sleep(QUIET_S)
        assert sink.received_size() == 0
        await read_exactly(client, len(CLOGGING))
        await until(lambda: sink.received_size() == 1000)
        assert conn.outbound_buffered() <= 16 * KIB


LOW_HIGH = 4 * KIB * KIB  # a high water so high that the steps of sending are small beside it
STEP = 512 * KIB


async def read_slowly(client: trio.abc.ReceiveStream, size: int) -> None:
    """In pieces so small that the server sees to each before the next."""
    left = size
    while left:
        left -= len(await client.receive_some(min(left, 16 * KIB)))
        for _ in range(3):
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("network", ["tcp", "unix", "tls"])
async def test_reading_goes_on_just_below_low_water(network: str, tmp_path: Path) -> None:
    """Not before, at high water, and not only when all was sent."""
    left_at_read: list[int] = []
    recorder = Recorder(on_read=lambda conn, n: left_at_read.append(conn.outbound_buffered()))
    async with test_gain_asleep.connected(
        network, recorder, tmp_path, write_high_water=LOW_HIGH, socket_send_buffer_size=32 * KIB
    ) as (conn, client):
        total = 2 * LOW_HIGH
        conn.write(bytes(total))
        await until(lambda: conn.outbound_buffered() < total)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(b"are you there?")
        await read_slowly(client.stream, total)
        await until(lambda: left_at_read)
    assert len(left_at_read) == 1
    assert LOW_HIGH // 4 - STEP <= left_at_read[0] <= LOW_HIGH // 4


async def test_reading_goes_on_up_to_high_water() -> None:
    recorder = Recorder()
    async with connected(recorder, write_high_water=LOW_HIGH) as (conn, client):
        conn.write(bytes(LOW_HIGH))  # of which the kernel takes some
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert 0 < conn.outbound_buffered() <= LOW_HIGH
        await client.send_all(b"x")
        await until(lambda: recorder.counts().read == 1)
        conn.write(bytes(LOW_HIGH))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send_all(b"x")
        await trio.sleep(QUIET_S)
        assert recorder.counts().read == 1


@pytest.mark.parametrize("network", ["tcp", "tls"])
async def test_drain_returns_just_below_low_water(network: str, tmp_path: Path) -> None:
    left: list[int] = []
    async with test_gain_asleep.connected(
        network, Recorder(), tmp_path, write_high_water=LOW_HIGH, socket_send_buffer_size=32 * KIB
    ) as (conn, client):
        total = 2 * LOW_HIGH
        conn.write(bytes(total))

        async def drain() -> None:
            await conn.drain()
            left.append(conn.outbound_buffered())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await read_slowly(client.stream, total)
    assert LOW_HIGH // 4 - STEP <= left[0] <= LOW_HIGH // 4


async def test_echo_to_a_peer_that_does_not_read_is_bounded() -> None:
    recorder = Recorder(on_read=echo)
    async with connected(recorder) as (conn, client):
        total = 4 * len(CLOGGING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(total))
            await until(lambda: conn.outbound_buffered() > 64 * KIB)
            await trio.sleep(QUIET_S)
            assert conn.outbound_buffered() < 64 * KIB + 512 * KIB
            assert await read_exactly(client, total) == bytes(total)
        await until(lambda: sum(recorder.values("on_write")) == total)


@pytest.mark.parametrize("how", ["high water", "paused", "full"])
async def test_reset_is_noticed_while_reading_has_stopped(how: str) -> None:
    recorder = Recorder()
    async with connected(recorder, read_buffer_limit=1000) as (conn, client):
        if how == "high water":
            conn.write(CLOGGING)
        elif how == "paused":
            conn.pause_reading()
        else:
            await client.send_all(bytes(1000))
            await until(lambda: conn.inbound_buffered() == 1000)
        await trio.sleep(QUIET_S)
        gain_tools.reset(client.socket)
        await until(lambda: recorder.counts().close == 1)
    (err,) = recorder.errors()
    assert isinstance(err, OSError)
    assert err.errno in (errno.ECONNRESET, errno.EPIPE)


# drain


async def test_drain_returns_at_low_water() -> None:
    high = 256 * KIB
    async with connected(Recorder(), write_high_water=high) as (conn, client):
        conn.write(CLOGGING)
        drained = trio.Event()
        left = []

        async def drain() -> None:
            await conn.drain()
            left.append(conn.outbound_buffered())
            drained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            nursery.start_soon(drain)
            await trio.sleep(QUIET_S)
            assert not drained.is_set()
            await read_exactly(client, len(CLOGGING))
        assert len(left) == 2
        assert max(left) <= high // 4


async def test_drain_below_low_water_is_a_checkpoint() -> None:
    async with connected(Recorder()) as (conn, _):
        with trio.testing.assert_checkpoints():
            await conn.drain()
        conn.write(b"x")
        with trio.testing.assert_checkpoints():
            await conn.drain()


async def test_drain_can_be_cancelled_and_loses_nothing() -> None:
    async with connected(Recorder()) as (conn, client):
        conn.write(CLOGGING)
        with trio.move_on_after(QUIET_S) as scope:
            await conn.drain()
        assert scope.cancelled_caught
        assert await read_exactly(client, len(CLOGGING)) == CLOGGING


@pytest.mark.parametrize("how", ["abort", "reset"])
async def test_drain_of_a_connection_that_ends_raises(how: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        raised = []

        async def drain() -> None:
            with pytest.raises((OSError, trio.ClosedResourceError)) as caught:
                await conn.drain()
            raised.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            if how == "abort":
                conn.abort()
            else:
                gain_tools.reset(client.socket)
        assert len(raised) == 1
        await until(lambda: recorder.counts().close == 1)


async def test_async_def_that_drains_sends_any_amount() -> None:
    async def accept(conn: gain.Conn) -> None:
        for number in range(100):
            conn.write(bytes([number]) * 50_000)
            await conn.drain()
            assert conn.outbound_buffered() <= 16 * KIB
        conn.close()

    recorder = gain_tools.AsyncRecorder(on_accept=accept)
    async with serving(recorder) as server, await open_client(server) as client:
        data = await gain_tools.read_to_end(client)
    assert data == b"".join(bytes([number]) * 50_000 for number in range(100))
    assert sum(recorder.values("on_write")) == len(data)


# Fairness


async def test_a_flood_starves_nobody() -> None:
    recorder = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)[:1]))
    async with (
        serving(recorder) as server,
        await open_client(server) as flood,
        await open_client(server) as calm,
        trio.open_nursery() as nursery,
    ):

        async def drown() -> None:
            while True:
                await flood.send_all(bytes(1 << 20))

        nursery.start_soon(drown)
        await until(lambda: recorder.counts().read > 10)
        with trio.fail_after(gain_tools.BOUND_S):
            for _ in range(20):
                started = trio.current_time()
                await calm.send_all(b"!")
                assert await calm.receive_some() == b"!"
                assert trio.current_time() - started < 0.5
        nursery.cancel_scope.cancel()


async def test_a_handler_that_leaves_too_much_is_warned_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected(Recorder(), read_buffer_limit=100) as (conn, client):
        await client.send_all(b"x" * 150)
        await until(lambda: "read_buffer_limit (100)" in caplog.text)
        assert "has left 150 bytes unread" in caplog.text
        conn.discard()
        await client.send_all(b"x" * 150)
        await until(lambda: conn.inbound_buffered() == 150)
    assert caplog.text.count("has left") == 1
