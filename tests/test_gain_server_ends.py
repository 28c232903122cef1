"""How a server ends: shut down from anywhere, interrupted, failed; and its tasks."""

from __future__ import annotations

import asyncio
import contextlib
import socket as stdlib_socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import outcome
import pytest
import trio
from gain_tools import (
    BOUND_S,
    LOOPBACK,
    Boom,
    Recorder,
    assert_echoes,
    connect,
    echo,
    make_recorder,
    server_in_thread,
    wait_until,
)
from marks import ON_RING

import uring_trio
from uring_trio import gain
from uring_trio.gain import _callbacks, _listen, _server, _serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = ON_RING

# --- Shutdown ---


@pytest.mark.parametrize("network", ["tcp", "udp"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_aborted_before_it_listens_does_not_listen(
    workers: int, network: str
) -> None:
    """Both are asked of it while it is busy: to listen, and to end."""
    held, go_on = threading.Event(), threading.Event()

    async def hold() -> None:
        held.set()
        assert go_on.wait(BOUND_S)

    handler = Recorder(on_start=lambda server: server.start_soon(hold))
    server = gain.Server(handler, gain.Config(workers=workers))
    ends: list[outcome.Outcome[None]] = []
    address = gain_tools.address_for(network)

    def serve() -> None:
        # Not in a run on the ring, so that its one worker is a thread, too.
        ends.append(outcome.capture(lambda: trio.run(server.serve, address)))

    thread = threading.Thread(target=serve)
    thread.start()
    assert held.wait(BOUND_S)
    time.sleep(gain_tools.QUIET_S)  # for the order to listen
    server.async_shutdown(0)
    time.sleep(gain_tools.QUIET_S)  # and that to end
    go_on.set()
    thread.join(BOUND_S)
    [end] = ends
    end.unwrap()
    gain_tools.assert_ended(server, handler)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", gain_tools.MODES)
def test_shutdown_in_a_callback_does_not_block(workers: int, mode: str) -> None:
    took: list[float] = []

    def stop(conn: gain.Conn, n: int) -> None:
        begin = time.monotonic()
        server.shutdown(BOUND_S)
        took.append(time.monotonic() - begin)

    handler = make_recorder(mode, on_read=stop)
    with (
        server_in_thread(handler, workers=workers, **gain_tools.options_for(mode)) as server,
        connect(server) as client,
    ):
        client.sendall(b"stop")
        assert client.recv(1) == b""
    assert took[0] < 1


def test_shutdown_returns_when_the_port_is_free() -> None:
    with server_in_thread(Recorder(), workers=2) as server:
        address = server.addresses()[0]
        with connect(server):
            server.shutdown()
            with stdlib_socket.create_server(address):
                pass


def test_all_who_shut_down_wait_for_the_end() -> None:
    handler = Recorder(on_accept=lambda conn: conn.write(gain_tools.CLOGGING))
    with server_in_thread(handler, workers=1) as server, connect(server):
        wait_until(lambda: handler.conns)
        server.async_shutdown(0.2)
        assert not server.is_running()
        server.shutdown(60)  # the earlier deadline counts
        assert handler.errors() == [None]


def test_thread_that_is_stuck_is_left_behind_and_the_server_starts_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()
    stuck: list[threading.Thread] = []

    def wait(conn: gain.Conn, n: int) -> None:
        stuck.append(threading.current_thread())
        release.wait(BOUND_S)

    server = gain.Server(Recorder(on_read=wait), gain.Config(workers=2))
    thread = threading.Thread(target=server.start, args=(LOOPBACK,))
    thread.start()
    wait_until(server.is_running)
    with connect(server) as client:
        address = server.addresses()[0]
        client.sendall(b"x")
        wait_until(lambda: stuck)
        server.shutdown(0.1)
        thread.join(BOUND_S)
        assert not thread.is_alive()
        assert "is left behind: its thread is still in a callback" in caplog.text
        with pytest.raises(ConnectionRefusedError):
            stdlib_socket.create_connection(address, timeout=1)
        again = threading.Thread(target=server.start, args=(LOOPBACK,))
        again.start()
        wait_until(server.is_running)
        release.set()
        stuck[0].join(BOUND_S)
        assert not stuck[0].is_alive()
        server.shutdown()
        again.join(BOUND_S)


# --- Errors, tasks ---


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_callback_is_raised_from_start(
    workers: int, error: type[BaseException]
) -> None:
    def stop(conn: gain.Conn, n: int) -> None:
        raise error

    ends = []

    class Handler(gain.EventHandler):
        on_read = staticmethod(stop)

    server = gain.Server(Handler(), gain.Config(workers=workers))
    thread = threading.Thread(target=lambda: ends.append(outcome.capture(server.start, LOOPBACK)))
    thread.start()
    wait_until(server.is_running)
    with connect(server) as client:
        client.sendall(b"x")
        thread.join(BOUND_S)
    assert isinstance(ends[0], outcome.Error)
    assert type(ends[0].error) is error
    assert not server.is_running()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("drain_s", [0, BOUND_S])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_in_on_close_leave_no_connection_behind(
    workers: int, drain_s: float, error: type[BaseException]
) -> None:
    told = []

    class Handler(gain.EventHandler):
        def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.write(conn.next(n))

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            told.append(conn)
            raise error

    ends = []
    server = gain.Server(Handler(), gain.Config(workers=workers))
    thread = threading.Thread(target=lambda: ends.append(outcome.capture(server.start, LOOPBACK)))
    thread.start()
    wait_until(server.is_running)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4 * workers)]
        for client in clients:
            gain_tools.round_trip(client, b"x")
        server.async_shutdown(drain_s)
        thread.join(BOUND_S)
        # The other end of each is closed: with a reset, or an end of file.
        for client in clients:
            client.settimeout(BOUND_S)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    assert isinstance(ends[0], outcome.Error)
    assert type(ends[0].error) is error
    assert len(told) == len(set(told)) == 4 * workers
    gain_tools.assert_ended(server, Handler())


@pytest.mark.parametrize("workers", [1, 2])
def test_start_that_is_given_up_has_let_go_of_its_path(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    bind = _listen.bind

    def bind_slowly(*args: Any) -> Any:
        server.async_shutdown()
        time.sleep(0.05)  # the run gets to know
        listeners = bind(*args)
        steps.append("bound")
        return listeners

    monkeypatch.setattr(_listen, "bind", bind_slowly)
    server = gain.Server(Recorder(), gain.Config(workers=workers))
    path = tmp_path / "socket"
    server.start(f"unix://{path}")
    assert steps == ["bound"]
    assert not path.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_from_anywhere_run_in_a_worker(workers: int) -> None:
    found: list[tuple[str, int]] = []

    async def note(name: str) -> None:
        await trio.lowlevel.checkpoint()
        assert uring_trio.probe().backend == "io_uring"
        found.append((name, threading.get_ident()))

    def on_start(server: gain.Server) -> None:
        server.start_soon(note, "on_start")
        found.append(("worker 0", threading.get_ident()))

    def on_accept(conn: gain.Conn) -> None:
        found.append(("accepted", threading.get_ident()))
        server.start_soon(note, "on_accept")

    handler = Recorder(on_start=on_start, on_accept=on_accept)
    with server_in_thread(handler, workers=workers) as server:
        server.start_soon(note, "elsewhere")
        for _ in range(workers):
            with connect(server):
                wait_until(lambda: len(found) % 2 == 1)  # the worker and its task have told
        wait_until(lambda: len(found) == 3 + 2 * workers)
    threads = dict(found)
    assert threads["on_start"] == threads["elsewhere"] == threads["worker 0"]
    accepted = [thread for name, thread in found if name == "accepted"]
    assert len(set(accepted)) == workers
    assert sorted(accepted) == sorted(thread for name, thread in found if name == "on_accept")


@pytest.mark.parametrize("workers", [1, 2])
def test_task_that_raises_stops_the_server_and_is_raised(workers: int) -> None:
    async def fail() -> None:
        raise Boom

    handler = Recorder(on_start=lambda server: server.start_soon(fail))
    server = gain.Server(handler, gain.Config(workers=workers))
    with pytest.raises(Boom):
        server.start(LOOPBACK)
    assert not server.is_running()


def test_balancer_that_fails_is_logged_and_worker_0_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, workers=2, load_balancing=lambda counts, remote: 7) as server:
        assert_echoes(server)
        assert_echoes(server)
    assert "load_balancing returned 7" in caplog.text


def test_host_of_a_guest_run_may_ask_and_stop_without_blocking_itself() -> None:
    async def host() -> None:
        loop = asyncio.get_running_loop()
        running, told = asyncio.Event(), asyncio.Event()
        ended = loop.create_future()

        async def tell() -> None:
            await trio.lowlevel.checkpoint()
            told.set()

        handler = Recorder(on_start=lambda server: running.set())
        server = gain.Server(handler, gain.Config(workers=1))
        uring_trio.start_guest_run(
            server.serve,
            LOOPBACK,
            backend="io_uring",
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        await asyncio.wait_for(running.wait(), BOUND_S)
        server.start_soon(tell)
        await asyncio.wait_for(told.wait(), BOUND_S)
        begin = time.monotonic()
        server.shutdown()
        assert time.monotonic() - begin < 1
        (await asyncio.wait_for(ended, BOUND_S)).unwrap()
        assert not server.is_running()

    asyncio.run(host())


# An async on_close


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("how", ["drain is over", "second shutdown", "begun by the abort"])
def test_an_async_on_close_runs_to_its_end(how: str, workers: int) -> None:
    ended: list[str] = []

    class Handler(gain.EventHandler):
        async def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.discard()
            if how == "begun by the abort":
                await trio.sleep_forever()

        async def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            await trio.sleep(0.3)
            ended.append("on_close")

    with (
        gain_tools.server_in_thread(Handler(), workers=workers) as server,
        gain_tools.connect(server) as client,
    ):
        client.sendall(b"x")
        gain_tools.wait_until(lambda: sum(w.bytes_in for w in server.statistics().workers))
        server.async_shutdown(5 if how == "second shutdown" else 0.1)
        if how == "second shutdown":
            time.sleep(0.1)
            server.async_shutdown(0)
        gain_tools.wait_until(lambda: not server.active_connections())
    assert ended == ["on_close"]


def test_nobody_is_left_behind_while_an_async_on_close_has_its_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "LEAVE_BEHIND_S", 0.1)
    monkeypatch.setattr(_server, "LEAVE_BEHIND_S", 0.1)
    ended: list[str] = []

    class Handler(gain.EventHandler):
        async def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            await trio.sleep(1)
            ended.append("on_close")

    with (
        gain_tools.server_in_thread(Handler(), workers=2) as server,
        gain_tools.connect(server),
    ):
        gain_tools.wait_until(lambda: server.active_connections() == 1)
        server.shutdown(0.05)
        assert ended == ["on_close"]
    assert not [r for r in caplog.records if r.levelname == "WARNING" and "Closing" not in r.msg]


def test_an_async_on_close_that_does_not_end_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_callbacks, "ON_CLOSE_S", 0.2)
    began: list[float] = []

    class Handler(gain.EventHandler):
        async def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            began.append(time.monotonic())
            await trio.sleep_forever()

    with (
        gain_tools.server_in_thread(Handler(), workers=1) as server,
        gain_tools.connect(server) as client,
    ):
        gain_tools.wait_until(lambda: server.active_connections() == 1)
        name = client.getsockname()
        server.async_shutdown(0.05)
        gain_tools.wait_until(lambda: not server.active_connections())
        assert time.monotonic() - began[0] >= 0.2
    (warning,) = [r.getMessage() for r in caplog.records if "on_close" in r.getMessage()]
    assert f"127.0.0.1:{name[1]}" in warning


# A server that is cancelled


@pytest.mark.parametrize("mode", gain_tools.MODES)
async def test_what_was_sent_when_the_server_is_cancelled_is_told_of(
    mode: str, tmp_path: Path
) -> None:
    """A send and the cancellation are over in one batch: what it has sent was sent."""
    handler = make_recorder(
        mode, on_accept=lambda conn: conn.write(gain_tools.CLOGGING), on_write=lambda conn, n: None
    )
    options = gain_tools.options_for(mode)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(gain.serve, **options), f"unix://{tmp_path}/s", handler
        )
        with connect(server) as client:
            client.setblocking(False)
            for _ in range(20):  # the socket is full, and a send waits
                await trio.sleep(0.005)
            received = len(harness.drain(client))  # which makes room for it
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await gain_tools.until(lambda: handler.counts().close == 1)
            while data := client.recv(1 << 20):
                received += len(data)
    assert sum(handler.values("on_write")) == received
