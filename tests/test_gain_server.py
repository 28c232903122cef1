"""A server's life: started, asked, stopped and started again, from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import math
import socket as stdlib_socket
import threading
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import gain_tools
import outcome
import pytest
import trio
from gain_tools import (
    BOUND_S,
    LOOPBACK,
    Boom,
    Recorder,
    architectures,
    assert_echoes,
    connect,
    echo,
    in_thread,
    round_trip,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

import uring_trio
from uring_trio import _run, gain
from uring_trio.gain import _listen

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = ON_RING


# --- States ---


def test_a_server_that_never_ran() -> None:
    server = gain.Server(Recorder())
    server.shutdown()
    server.async_shutdown()
    assert not server.is_running()
    assert server.active_connections() == 0
    assert server.addresses() == ()
    assert server.statistics() == gain.ServerStatistics(workers=())
    with pytest.raises(gain.InvalidState):
        server.start_soon(trio.sleep_forever)


def test_second_start_is_refused() -> None:
    with server_in_thread(Recorder(), workers=1) as server:
        with pytest.raises(gain.ServerAlreadyRunning, match="server already running"):
            server.start(LOOPBACK)
        assert server.is_running()


@pytest.mark.parametrize("state", ["starting", "closing"])
def test_second_start_is_refused_while_the_server_is(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another error than while it runs; and the first goes on to its end."""
    go_on = threading.Event()
    bind = _listen.bind

    def wait_then_bind(*args: Any) -> Any:
        assert go_on.wait(BOUND_S)
        return bind(*args)

    def wait(server: gain.Server) -> None:
        server.async_shutdown()
        assert go_on.wait(BOUND_S)

    handler = Recorder(**({"on_start": wait} if state == "closing" else {}))
    if state == "starting":
        monkeypatch.setattr(_listen, "bind", wait_then_bind)
    server = gain.Server(handler, gain.Config(workers=1))
    thread = threading.Thread(target=server.start, args=(LOOPBACK,))
    thread.start()
    if state == "closing":
        wait_until(lambda: handler.starts)
    wait_until(lambda: server._serving is not None)
    with pytest.raises(gain.InvalidState, match=f"the server is {state}") as caught:
        server.start(LOOPBACK)
    assert type(caught.value) is gain.InvalidState
    if state == "starting":
        with pytest.raises(gain.InvalidState, match="does not run"):
            server.start_soon(trio.sleep, 0)
    go_on.set()
    if state == "starting":
        wait_until(server.is_running)
        server.shutdown()
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert handler.starts == 1


def test_one_of_many_starts_at_once_is_the_start() -> None:
    server = gain.Server(Recorder(), gain.Config(workers=1))
    barrier = threading.Barrier(8)
    ends: list[outcome.Outcome[None]] = []

    def start() -> None:
        barrier.wait()
        ends.append(outcome.capture(server.start, LOOPBACK))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(ends) == 7)
    assert all(isinstance(getattr(end, "error", None), gain.InvalidState) for end in ends)
    wait_until(server.is_running)
    server.shutdown()
    for thread in threads:
        thread.join(BOUND_S)
    assert isinstance(ends[7], outcome.Value)


def test_stop_before_the_run_of_a_start_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is bound, nobody is told, and the server can be started again."""
    run = _run.run
    handler = Recorder(on_start=lambda server: server.async_shutdown())
    server = gain.Server(handler, gain.Config(workers=1))

    def stop_then_run(*args: Any, **options: Any) -> Any:
        server.async_shutdown()
        return run(*args, **options)

    monkeypatch.setattr(_run, "run", stop_then_run)
    server.start(LOOPBACK)
    assert handler.starts == 0
    monkeypatch.undo()
    server.start(LOOPBACK)
    assert handler.starts == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_starts_again_after_a_shutdown(workers: int) -> None:
    handler = Recorder(on_read=echo)
    server = gain.Server(handler, gain.Config(workers=workers))
    for count in (1, 2, 3):
        thread = threading.Thread(target=server.start, args=(LOOPBACK,))
        thread.start()
        wait_until(server.is_running)
        assert_echoes(server)
        server.shutdown()
        thread.join(BOUND_S)
        assert not thread.is_alive()
        assert handler.starts == count
    assert len(server.statistics().workers) == workers


@pytest.mark.parametrize("workers", [1, 2])
def test_starts_again_after_a_failed_start(workers: int) -> None:
    handler = Recorder()
    server = gain.Server(handler, gain.Config(workers=workers))
    with stdlib_socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as caught:
            server.start([LOOPBACK, taken])
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(gain.AddressError):
        server.start("nonsense")
    assert handler.starts == 0
    assert server.addresses() == ()
    handler.actions["on_start"] = lambda server: server.async_shutdown()
    server.start(LOOPBACK)
    assert handler.starts == 1


def test_no_ring_is_said_with_cause_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "epoll")
    for workers in (1, 2):
        handler = Recorder(on_start=lambda server: server.async_shutdown())
        server = gain.Server(handler, gain.Config(workers=workers))
        with pytest.raises(uring_trio.UringUnavailable, match="Unset URING_TRIO_BACKEND"):
            server.start(LOOPBACK)
        with pytest.raises(uring_trio.UringUnavailable):
            trio.run(server.serve, LOOPBACK)
        monkeypatch.delenv("URING_TRIO_BACKEND")
        server.start(LOOPBACK)
        monkeypatch.setenv("URING_TRIO_BACKEND", "epoll")
        assert handler.starts == 1


async def test_start_inside_a_trio_run_names_serve() -> None:
    server = gain.Server(Recorder())
    with pytest.raises(RuntimeError, match="await serve"):
        server.start(LOOPBACK)
    with pytest.raises(RuntimeError, match="await serve"):
        gain.listen_and_serve(LOOPBACK, Recorder())
    assert not server.is_running()


def test_start_inside_an_asyncio_loop_names_serve() -> None:
    async def main() -> None:
        gain.listen_and_serve(LOOPBACK, Recorder())

    with pytest.raises(RuntimeError, match="await serve"):
        asyncio.run(main())


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError):
        gain.Server(object())
    with pytest.raises(TypeError, match=r"gain\.Config"):
        gain.Server(Recorder(), {"workers": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wrokers"):
        gain.listen_and_serve(LOOPBACK, Recorder(), wrokers=2)
    server = gain.Server(Recorder())
    wrong: Any
    for wrong in (-1, math.nan, 10**400, "1", None, Decimal(1)):
        with pytest.raises(gain.InvalidDuration):
            server.shutdown(wrong)
        with pytest.raises(gain.InvalidDuration):
            server.async_shutdown(wrong)


# --- on_start ---


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["def", "async def"])
def test_on_start_comes_when_bound_and_before_anything_is_accepted(workers: int, mode: str) -> None:
    class Handler(Recorder):
        def look(self, server: gain.Server) -> None:
            assert server.is_running()
            self.client = connect(server)  # the kernel lets it wait

    class Plain(Handler):
        def on_start(self, server: gain.Server) -> None:
            self.look(server)
            time.sleep(0.05)  # would be enough to be accepted in
            assert self.conns == []

    class Async(Handler):
        async def on_start(self, server: gain.Server) -> None:
            self.look(server)
            await trio.sleep(0.05)
            assert self.conns == []

    handler = Plain() if mode == "def" else Async()
    with server_in_thread(handler, workers=workers):
        wait_until(lambda: handler.conns)
        handler.client.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [Boom(), KeyboardInterrupt(), SystemExit()])
def test_on_start_that_raises_fails_the_start(workers: int, error: BaseException) -> None:
    seen: list[Any] = []

    def fail(server: gain.Server) -> None:
        seen.extend(server.addresses())
        raise error

    with pytest.raises(type(error)) as caught:
        gain.listen_and_serve(LOOPBACK, Recorder(on_start=fail), workers=workers)
    assert caught.value is error
    with stdlib_socket.create_server(seen[0]):
        pass  # the port is free


@pytest.mark.parametrize("workers", [1, 2])
def test_shutdown_in_on_start_accepts_nothing(workers: int) -> None:
    clients = []

    def stop(server: gain.Server) -> None:
        clients.append(connect(server))
        server.shutdown()

    handler = Recorder(on_start=stop)
    gain.listen_and_serve(LOOPBACK, handler, workers=workers)
    assert handler.conns == []
    with clients[0] as client, pytest.raises(ConnectionResetError):
        client.recv(1)


# --- serve ---


async def test_one_worker_runs_in_the_callers_own_run() -> None:
    send, receive = trio.open_memory_channel[int](10)
    threads = []

    def tell(conn: gain.Conn, n: int) -> None:
        threads.append(threading.get_ident())
        send.send_nowait(n)

    async with (
        serving(Recorder(on_read=tell)) as server,
        await gain_tools.open_client(server) as client,
    ):
        await client.send_all(b"four")
        with trio.fail_after(BOUND_S):
            assert await receive.receive() == 4
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("workers", [1, 2])
def test_run_on_epoll_gets_workers_in_threads(workers: int) -> None:
    threads = []
    backends = []

    def note(conn: gain.Conn, n: int) -> None:
        threads.append(threading.get_ident())
        backends.append(uring_trio.probe().backend)
        echo(conn, n)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            serve = functools.partial(gain.serve, workers=workers)
            server = await nursery.start(serve, LOOPBACK, Recorder(on_read=note))
            assert server.is_running()
            for _ in range(2):
                await trio.to_thread.run_sync(assert_echoes, server)
            server.async_shutdown()

    trio.run(main)
    assert threading.get_ident() not in threads
    assert len(set(threads)) == workers
    assert set(backends) == {"io_uring"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_cancelled_serve_aborts_and_on_close_still_runs(workers: int) -> None:
    # A peer that reads nothing: a drain would take its time.
    handler = Recorder(on_accept=lambda conn: conn.write(gain_tools.CLOGGING))
    server = gain.Server(handler, gain.Config(workers=workers))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, LOOPBACK)
        client = await gain_tools.open_client(server)
        await until(lambda: handler.conns)
        begin = time.monotonic()
        nursery.cancel_scope.cancel()
    assert time.monotonic() - begin < 2
    await client.aclose()
    assert handler.errors() == [None]
    gain_tools.assert_ended(server, handler)


def test_several_addresses_in_their_order(tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    texts = ["tcp4://localhost:0", f"unix://{path}", "127.0.0.1:0", "tcp://127.0.0.1:0"]
    with server_in_thread(Recorder(on_read=echo), texts, workers=2) as server:
        found = server.addresses()
        assert [address.network for address in found] == ["tcp", "unix", "tcp", "tcp"]
        assert str(found[1]) == path
        assert len({str(address) for address in found}) == 4
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("architecture", ["reactor", "sharding"])
def test_streams_and_datagrams_in_one_server(architecture: str) -> None:
    texts = [LOOPBACK, gain_tools.LOOPBACK_UDP, LOOPBACK]
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, texts, workers=2, architecture=architecture) as server:
        stream, datagram, _ = server.addresses()
        assert [address.network for address in server.addresses()] == ["tcp", "udp", "tcp"]
        assert_echoes(server)
        with stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) as client:
            client.settimeout(BOUND_S)
            client.sendto(b"question", datagram)
            assert client.recvfrom(100) == (b"question", datagram)
        assert server.active_connections() <= 1  # the stream's, if it is not closed yet
    with stdlib_socket.create_server(stream):
        pass


@pytest.mark.parametrize("how", ["cancelled", "shut down"])
async def test_start_given_up_during_a_look_up_leaves_nothing_bound(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, bound = threading.Event(), threading.Event(), []
    bind = _listen.bind

    def look_up_slowly(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(BOUND_S)
        bound.append(bind(*args))
        return bound[0]

    monkeypatch.setattr(_listen, "bind", look_up_slowly)
    server = gain.Server(Recorder(), gain.Config(workers=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, "tcp://localhost:0")
        await until(begun.is_set)
        if how == "cancelled":
            nursery.cancel_scope.cancel()
        else:
            server.async_shutdown()
    assert not server.is_running()
    go_on.set()
    await until(lambda: bound and bound[0][0][0].sock.fileno() == -1)


# --- Logging ---


def test_options_of_the_logger_are_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("uring_trio.gain")
    seen: list[tuple[int, int]] = []

    def stop(server: gain.Server) -> None:
        seen.append((logger.level, len(logger.handlers)))
        server.async_shutdown()

    before = logger.level, len(logger.handlers)
    gain.listen_and_serve(LOOPBACK, Recorder(on_start=stop), workers=1)
    gain.listen_and_serve(LOOPBACK, Recorder(on_start=stop), workers=1, logger_level=logging.ERROR)
    gain.listen_and_serve(LOOPBACK, Recorder(on_start=stop), workers=1, pretty_logger=True)
    assert (logger.level, len(logger.handlers)) == before
    assert seen == [before, (logging.ERROR, before[1]), (before[0], before[1] + 1)]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("WARNING  Closing connections worker=0") == 1


class StartFault(Exception):
    pass


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port of 127.0.0.1 that another program listens on."""
    with stdlib_socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@architectures
def test_server_starts_after_starts_that_failed(options: dict[str, Any]) -> None:
    """B18: after a failed Start a Gain server is neither started nor stopped, for ever."""

    def fail(server: gain.Server) -> None:
        raise StartFault

    handler = Recorder(on_read=echo)
    server = gain.Server(handler, gain.Config(**options))
    with pytest.raises(gain.AddressError):
        server.start("no such thing")
    with taken_port() as port, pytest.raises(OSError, match="use") as caught:
        # The first could be bound, and must not stay so.
        server.start([LOOPBACK, f"tcp://127.0.0.1:{port}"])
    assert caught.value.errno == errno.EADDRINUSE
    handler.actions["on_start"] = fail
    with pytest.raises(StartFault):
        server.start(LOOPBACK)
    assert not server.is_running()
    del handler.actions["on_start"]
    with in_thread(server.start, LOOPBACK):
        wait_until(server.is_running)
        with connect(server) as client:
            round_trip(client, b"at last")
        server.shutdown()
    handler.verify()


@architectures
def test_statistics_tell_what_the_workers_do(options: dict[str, Any]) -> None:
    """B19: Gain has no numbers but that of its connections."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, **options) as server:
        clients = [connect(server) for _ in range(6)]
        for client in clients:
            round_trip(client, b"x" * 1000)
        workers = server.statistics().workers
        assert len(workers) == options["workers"]
        assert sum(worker.connections for worker in workers) == 6
        wait_until(lambda: sum(w.bytes_out for w in server.statistics().workers) == 6000)
        assert sum(worker.bytes_in for worker in server.statistics().workers) == 6000
        with pytest.raises(AttributeError):
            workers[0].connections = 0  # type: ignore[misc]
        for client in clients:
            client.close()
