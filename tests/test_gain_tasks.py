"""Tasks of a server and of a connection, and the server's tick."""

from __future__ import annotations

import threading
import time
from typing import Any

import gain_tools
import pytest
import trio
import trio.testing
from gain_tools import (
    AsyncRecorder,
    Boom,
    Recorder,
    connected,
    echo,
    open_client,
    read_exactly,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

pytestmark = ON_RING


class Log:
    """A task that notes how it goes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def forever(self, *args: object) -> None:
        self.notes.append("started")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.notes.append("cancelled")
            raise

    async def write_later(self, conn: gain.Conn, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        conn.write(data)
        await conn.drain()
        self.notes.append("written")


async def test_task_of_a_connection_uses_it() -> None:
    log = Log()

    def read(conn: gain.Conn, n: int) -> None:
        conn.start_soon(log.write_later, conn, conn.next(n))

    async with connected(Recorder(on_read=read)) as (_, client):
        await client.send_all(b"hello")
        assert await read_exactly(client, 5) == b"hello"
        await until(lambda: log.notes == ["written"])


@pytest.mark.parametrize("how", ["close", "abort", "reset", "shutdown"])
async def test_task_of_a_connection_ends_with_it(how: str) -> None:
    log = Log()

    def closed(conn: gain.Conn, err: object) -> None:
        log.notes.append("on_close")

    recorder = Recorder(on_accept=lambda conn: conn.start_soon(log.forever, 1), on_close=closed)
    async with serving(recorder) as server, await open_client(server) as client:
        await until(lambda: log.notes == ["started"])
        if how == "reset":
            gain_tools.reset(client.socket)
        elif how == "shutdown":
            server.async_shutdown(0.1)
        else:
            getattr(recorder.conn, how)()
        await until(lambda: len(log.notes) == 3)
    assert sorted(log.notes) == ["cancelled", "on_close", "started"]


async def test_task_of_a_connection_that_raises_troubles_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise Boom

    recorder = Recorder(on_read=echo)
    async with (
        serving(recorder) as server,
        await open_client(server) as one,
        await open_client(server) as two,
    ):
        await until(lambda: len(recorder.conns) == 2)
        recorder.conns[0].start_soon(fail)
        await until(lambda: any(record.exc_info for record in caplog.records))
        for client in (one, two):
            if client.socket.getsockname() != recorder.conns[0].remote_addr():
                await client.send_all(b"hello")
                assert await read_exactly(client, 5) == b"hello"
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [Boom]


async def test_start_soon_of_a_closed_connection_raises() -> None:
    recorder = Recorder()
    async with connected(recorder) as (conn, _):
        conn.close()
        await until(lambda: recorder.counts().close == 1)
        with pytest.raises(gain.ConnectionClosed):
            conn.start_soon(trio.sleep, 0)


async def test_task_of_the_server_runs_until_it_ends() -> None:
    log = Log()
    recorder = Recorder(on_start=lambda server: server.start_soon(log.forever, 1))
    async with serving(recorder):
        await until(lambda: log.notes == ["started"])
    assert log.notes == ["started", "cancelled"]


def test_task_of_the_server_from_another_thread() -> None:
    ran = threading.Event()

    async def task(*args: int) -> None:
        await trio.lowlevel.checkpoint()
        assert args == (1, 2)
        ran.set()

    with gain_tools.server_in_thread(Recorder()) as server:
        server.start_soon(task, 1, 2)
        wait_until(ran.is_set)


async def test_callbacks_share_channels_with_the_callers_run() -> None:
    send, receive = trio.open_memory_channel[bytes](1)

    async def read(conn: gain.Conn, n: int) -> None:
        await send.send(conn.next(n))

    async with connected(AsyncRecorder(on_read=read)) as (_, client):
        await client.send_all(b"hello")
        with trio.fail_after(gain_tools.BOUND_S):
            assert await receive.receive() == b"hello"


# on_tick


class Ticker(Recorder):
    def __init__(self, **actions: Any) -> None:
        super().__init__(**actions)
        self.ticks: list[tuple[gain.Server, int]] = []

    def on_tick(self, server: gain.Server) -> Any:
        self.ticks.append((server, threading.get_ident()))


def test_on_tick_is_called_in_one_worker_until_the_end() -> None:
    ticker = Ticker()
    with gain_tools.server_in_thread(ticker, tick=0.005) as server:
        wait_until(lambda: len(ticker.ticks) >= 5)
        server.shutdown()
        count = len(ticker.ticks)
    assert len(set(ticker.ticks)) == 1
    assert ticker.ticks[0][0] is server
    assert len(ticker.ticks) == count


async def test_no_tick_without_the_option() -> None:
    ticker = Ticker()
    async with serving(ticker):
        await trio.sleep(0.02)
    assert ticker.ticks == []


async def test_async_ticks_do_not_overlap() -> None:
    inside: list[gain.Server] = []
    overlaps: list[gain.Server] = []

    class Slow(Ticker):
        async def on_tick(self, server: gain.Server) -> None:
            overlaps.extend(inside)
            inside.append(server)
            self.ticks.append((server, 0))
            await trio.sleep(0.01)
            inside.clear()

    ticker = Slow()
    async with serving(ticker, tick=0.002):
        await until(lambda: len(ticker.ticks) >= 4)
    assert overlaps == []


def test_on_tick_comes_as_often_as_was_asked_for() -> None:
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


async def test_a_task_that_is_started_while_another_s_error_ends_all_does_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log()

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise Boom

    async def name_a_successor(conn: gain.Conn) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # until nothing but this task is left of them
                await trio.testing.wait_all_tasks_blocked()
            conn.start_soon(log.forever)

    def accept(conn: gain.Conn) -> None:
        conn.start_soon(name_a_successor, conn)
        conn.start_soon(fail)

    recorder = Recorder(on_accept=accept)
    async with serving(recorder) as server, await open_client(server):
        await until(lambda: recorder.counts().close == 1)
    (err,) = recorder.errors()
    assert isinstance(err, Boom)
    assert log.notes == []
    assert [r.exc_info[0] for r in caplog.records if r.exc_info] == [Boom]


# What raises while it is cancelled: an error of the user's beside a cancellation


async def raise_when_cancelled(begun: trio.Event) -> None:
    """A task whose cleanup fails, beside others that are cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        try:
            begun.set()
            await trio.sleep_forever()
        finally:
            raise Boom


async def serve_and_cancel(handler: gain.EventHandler, begun: trio.Event, **options: Any) -> None:
    """A client sends something, and when what fails has begun, what serves is cancelled."""
    async with trio.open_nursery() as nursery:
        server = gain.Server(handler, gain.Config(workers=1, **options))
        await nursery.start(server.serve, gain_tools.LOOPBACK)
        async with await open_client(server) as client:
            await client.send_all(b"x")
            with trio.fail_after(gain_tools.BOUND_S):
                await begun.wait()
            nursery.cancel_scope.cancel()


def errors_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("how", ["start_soon", "on_accept", "on_read", "thread", "on_tick"])
async def test_what_raises_while_it_is_cancelled_does_not_fail_the_server(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged like any other, and on_close comes."""
    closed: list[object] = []
    accepted, begun = trio.Event(), trio.Event()

    class Handler(gain.EventHandler):
        def on_accept(self, conn: gain.Conn) -> None:
            accepted.set()

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            closed.append(err)

    async def callback(*args: object) -> None:
        if how == "on_tick":
            await accepted.wait()  # or there is nothing to close
        await raise_when_cancelled(begun)

    handler: Any = Handler()
    if how == "start_soon":
        handler.on_accept = lambda conn: conn.start_soon(raise_when_cancelled, begun)
    elif how == "thread":
        handler.on_read = lambda conn, n: trio.from_thread.run(raise_when_cancelled, begun)
    else:
        setattr(handler, how, callback)
    await serve_and_cancel(handler, begun, tick=0.001, async_handler=how == "thread")
    assert len(closed) == 1
    assert len(errors_logged(caplog)) == 1, errors_logged(caplog)


async def test_what_raises_of_a_datagram_while_it_is_cancelled_does_not_fail_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = trio.Event()

    def read(conn: gain.Conn, n: int) -> None:
        conn.start_soon(raise_when_cancelled, begun)

    async with trio.open_nursery() as nursery:
        server = gain.Server(Recorder(on_read=read), gain.Config(workers=1))
        await nursery.start(server.serve, gain_tools.LOOPBACK_UDP)
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.connect(server.addresses()[0])
            await sock.send(b"x")
            with trio.fail_after(gain_tools.BOUND_S):
                await begun.wait()
            nursery.cancel_scope.cancel()
    assert len(errors_logged(caplog)) == 1, errors_logged(caplog)
