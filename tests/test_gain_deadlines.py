"""Deadlines and idle timeouts of connections."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import gain_tools
import pytest
import trio
from gain_tools import (
    CLOGGING,
    MIB,
    AsyncRecorder,
    Recorder,
    connect,
    connected,
    echo,
    read_exactly,
    read_to_end,
    receive_all,
    round_trip,
    run_in_worker,
    server_in_thread,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = ON_RING

SHORT_S = 0.03
LONG_S = 0.12  # four times as long: a busy machine may sleep through one SHORT_S

SETTERS = ("set_deadline", "set_read_deadline", "set_idle_timeout")


async def closed_after(recorder: Recorder) -> float:
    """The error must be a DeadlineExceeded; the seconds until it came."""
    started = trio.current_time()
    await until(lambda: recorder.counts().close == 1)
    (err,) = recorder.errors()
    assert isinstance(err, gain.DeadlineExceeded)
    assert isinstance(err, TimeoutError)
    return trio.current_time() - started


@pytest.mark.parametrize("setter", SETTERS)
async def test_a_silent_connection_is_closed_in_time(setter: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        getattr(conn, setter)(SHORT_S)
        assert SHORT_S * 0.8 <= await closed_after(recorder) < LONG_S * 4
        try:
            assert await read_to_end(client) == b""
        except trio.BrokenResourceError:
            pass  # how it is cut off is not promised


@pytest.mark.parametrize("setter", [*SETTERS, "set_write_deadline"])
async def test_none_takes_it_back(setter: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        if setter == "set_write_deadline":
            conn.write(CLOGGING)
        getattr(conn, setter)(SHORT_S)
        getattr(conn, setter)(None)
        await trio.sleep(2 * SHORT_S)
        assert recorder.counts().close == 0
        if setter == "set_write_deadline":
            await read_exactly(client, len(CLOGGING))


@pytest.mark.parametrize("setter", [*SETTERS, "set_write_deadline"])
async def test_a_later_one_replaces_an_earlier_one(setter: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        if setter == "set_write_deadline":
            conn.write(CLOGGING)
        getattr(conn, setter)(SHORT_S)
        getattr(conn, setter)(LONG_S)
        assert await closed_after(recorder) >= LONG_S * 0.9


@pytest.mark.parametrize("setter", SETTERS)
async def test_an_earlier_one_replaces_a_later_one(setter: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        getattr(conn, setter)(60)
        getattr(conn, setter)(SHORT_S)
        await closed_after(recorder)


@pytest.mark.parametrize("stalls", ["input", "output"])
async def test_a_deadline_is_for_both_directions(stalls: str) -> None:
    """As Go has it, `set_deadline` sets the read and the write deadline."""
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        if stalls == "output":
            conn.write(CLOGGING)
        conn.set_deadline(SHORT_S)
        if stalls == "output":
            await client.send_all(b"x")
        else:
            conn.write(b"x")
        await closed_after(recorder)


async def test_a_read_deadline_is_met_by_the_next_on_read() -> None:
    recorder = Recorder(on_read=echo)
    async with connected(recorder) as (conn, client):
        conn.set_read_deadline(LONG_S)
        await client.send_all(b"hello")
        assert await read_exactly(client, 5) == b"hello"
        await trio.sleep(LONG_S * 1.5)
        assert recorder.counts().close == 0


async def test_a_read_deadline_is_not_met_by_output() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.set_read_deadline(SHORT_S)
        conn.write(b"hello")
        assert await read_exactly(client, 5) == b"hello"
        await closed_after(recorder)


async def test_a_write_deadline_is_met_by_an_empty_output_buffer() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        conn.set_write_deadline(LONG_S * 4)
        assert len(await read_exactly(client, len(CLOGGING))) == len(CLOGGING)
        await until(lambda: conn.outbound_buffered() == 0)
        await trio.sleep(LONG_S * 4.5)
        assert recorder.counts().close == 0


async def test_a_write_deadline_ends_a_stalled_write() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.write(CLOGGING)
        conn.set_write_deadline(SHORT_S)
        await read_exactly(client, 100)  # some progress is not enough
        await closed_after(recorder)


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_an_idle_timeout_restarts_with_every_byte(direction: str) -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, client):
        conn.set_idle_timeout(LONG_S)
        for _ in range(10):
            if direction == "in":
                await client.send_all(b"x")
            else:
                conn.write(b"x")
            await trio.sleep(LONG_S / 5)
            assert recorder.counts().close == 0
        assert await closed_after(recorder) >= LONG_S / 2


async def test_deadlines_set_in_on_accept() -> None:
    recorder = Recorder(on_accept=lambda conn: conn.set_deadline(SHORT_S))
    async with connected(recorder):
        await closed_after(recorder)


async def test_a_deadline_passes_while_an_async_def_runs() -> None:
    """Its callback ends first, for no two overlap."""
    opened = trio.Event()

    async def read(conn: gain.Conn, n: int) -> None:
        await opened.wait()

    recorder = AsyncRecorder(on_read=read)
    async with connected(recorder) as (conn, client):
        await client.send_all(b"x")
        await until(lambda: recorder.counts().read == 1)
        conn.set_deadline(SHORT_S)
        await trio.sleep(2 * SHORT_S)
        assert recorder.counts().close == 0
        opened.set()
        await closed_after(recorder)


async def test_a_deadline_that_has_passed_already() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        conn.set_deadline(0)
        assert recorder.counts().close == 0  # not from inside the call
        await closed_after(recorder)


async def test_deadlines_of_a_closed_connection() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        conn.close()
        await until(lambda: recorder.counts().close == 1)
        setters: list[Callable[[float | None], None]] = [
            conn.set_deadline,
            conn.set_read_deadline,
            conn.set_write_deadline,
            conn.set_idle_timeout,
        ]
        for setter in setters:
            with pytest.raises(gain.ConnectionClosed):
                setter(1)


async def test_what_is_no_time_is_refused() -> None:
    async with connected(Recorder()) as (conn, _):
        for wrong in (float("nan"), -1, "1"):
            with pytest.raises((ValueError, TypeError)):
                conn.set_deadline(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["async def", "async_handler"])
async def test_read_deadline_is_met_by_what_comes_while_a_callback_runs(mode: str) -> None:
    """Its on_read waits for the callback, and not for the peer."""
    reached, go_on = threading.Event(), threading.Event()

    def begin(conn: gain.Conn) -> None:
        conn.discard(1)
        conn.set_read_deadline(0.1)
        reached.set()

    def hold(conn: gain.Conn, n: int) -> None:
        if not reached.is_set():
            begin(conn)
            go_on.wait(gain_tools.BOUND_S)

    async def hold_task(conn: gain.Conn, n: int) -> None:
        if not reached.is_set():
            begin(conn)
            await trio.to_thread.run_sync(go_on.wait, gain_tools.BOUND_S)

    action = hold if mode == "async_handler" else hold_task
    recorder = gain_tools.make_recorder(mode, on_read=action)
    async with connected(recorder, **gain_tools.options_for(mode)) as (conn, client):
        await client.send_all(b"1")
        assert await trio.to_thread.run_sync(reached.wait, gain_tools.BOUND_S)
        await client.send_all(b"2")
        await trio.sleep(0.2)
        go_on.set()
        await until(lambda: recorder.values("on_read") == [1, 1])
        taken: list[bytes] = []
        conn.call_soon_threadsafe(lambda: taken.append(conn.next()))  # when a thread is done
        await until(lambda: taken == [b"2"])
        assert recorder.counts().close == 0


async def test_read_deadline_passes_while_a_callback_runs_and_nothing_comes() -> None:
    async def hold(conn: gain.Conn, n: int) -> None:
        conn.discard()
        conn.set_read_deadline(0.05)
        await trio.sleep(0.2)

    recorder = gain_tools.AsyncRecorder(on_read=hold)
    async with connected(recorder) as (_, client):
        await client.send_all(b"1")
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.DeadlineExceeded)


# Blocking clients


@pytest.mark.parametrize("kind", ["set_deadline", "set_read_deadline", "set_idle_timeout"])
def test_silent_peer_is_let_go(kind: str) -> None:
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


def test_peer_who_does_not_read_is_let_go() -> None:
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


def test_peer_who_talks_is_kept() -> None:
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
