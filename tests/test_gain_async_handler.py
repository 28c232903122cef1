"""``async_handler=True``: a plain ``on_read`` runs in a thread, which owns the connection."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest
import trio
import trio.testing
from gain_tools import (
    Boom,
    Counts,
    Recorder,
    connected,
    echo,
    open_client,
    read_exactly,
    read_to_end,
    receive_exactly,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain
from uring_trio.gain import _worker
from uring_trio.gain._capabilities import Capabilities
from uring_trio.gain._halves import Inbound
from uring_trio.gain._life import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = ON_RING


@contextlib.asynccontextmanager
async def in_thread(
    on_read: Callable[[gain.Conn, int], Any], **options: Any
) -> AsyncIterator[tuple[Recorder, trio.SocketStream]]:
    """A connection whose ``on_read``, in its thread, is this; and its client."""
    recorder = Recorder(on_read=on_read)
    async with (
        serving(recorder, async_handler=True, **options) as server,
        await open_client(server) as client,
    ):
        yield recorder, client


class Hold:
    """An action that keeps its thread until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, conn: gain.Conn, n: int) -> None:
        conn.discard(n)
        self.reached.set()
        assert self.open.wait(gain_tools.BOUND_S)


def test_async_handlers_thread_owns_the_connection() -> None:
    """And nobody else has it meanwhile, the worker's own thread included."""
    reached, go_on = threading.Event(), threading.Event()
    threads = []

    def read(conn: gain.Conn, n: int) -> None:
        threads.append(threading.get_ident())
        conn.write(conn.next(n))
        conn.set_no_delay(True)
        reached.set()
        go_on.wait(gain_tools.BOUND_S)

    def accept(conn: gain.Conn) -> None:
        threads.append(threading.get_ident())

    recorder = Recorder(on_read=read, on_accept=accept)
    with (
        gain_tools.server_in_thread(recorder, async_handler=True, workers=1) as server,
        gain_tools.connect(server) as client,
    ):
        client.sendall(b"hello")
        wait_until(reached.is_set)
        with pytest.raises(gain.OpNotAvailableInMode):
            recorder.conn.write(b"stolen")
        assert server.active_connections() == 1
        go_on.set()
        assert receive_exactly(client, 5) == b"hello"
    assert len(set(threads)) == 2
    assert recorder.counts() == Counts(1, 1, 1, 1)


def test_async_handlers_of_several_connections_run_side_by_side() -> None:
    barrier = threading.Barrier(3, timeout=gain_tools.BOUND_S)

    def read(conn: gain.Conn, n: int) -> None:
        barrier.wait()
        echo(conn, n)

    with (
        gain_tools.server_in_thread(
            Recorder(on_read=read), workers=1, async_handler=True, pool=3
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(gain_tools.connect(server)) for _ in range(3)]
        for client in clients:
            client.sendall(b"x")
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 3


def test_pool_bounds_the_threads() -> None:
    inside: list[int] = []
    most = []
    lock = threading.Lock()

    def read(conn: gain.Conn, n: int) -> None:
        with lock:
            inside.append(1)
            most.append(len(inside))
        pause.wait(0.01)
        with lock:
            inside.pop()
        echo(conn, n)

    pause = threading.Event()
    with (
        gain_tools.server_in_thread(
            Recorder(on_read=read), workers=1, async_handler=True, pool=2
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(gain_tools.connect(server)) for _ in range(8)]
        for client in clients:
            client.sendall(b"x")
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 8
    assert max(most) == 2


# What a thread may do

IN_THREAD: dict[str, Callable[[gain.Conn], Any]] = {
    "writev": lambda conn: conn.writev([b"a", b"b"]),
    "read_from": lambda conn: conn.read_from(io.BytesIO(b"ab")),
    "write_to": lambda conn: conn.write_to(io.BytesIO()),
    "read_into": lambda conn: conn.read_into(bytearray(1)),
    "peek": lambda conn: conn.peek(),
    "discard": lambda conn: conn.discard(),
    "send_eof": lambda conn: conn.send_eof(),
    "pause_reading": lambda conn: conn.pause_reading(),
    "resume_reading": lambda conn: conn.resume_reading(),
    "set_deadline": lambda conn: conn.set_deadline(60),
    "set_read_deadline": lambda conn: conn.set_read_deadline(60),
    "set_write_deadline": lambda conn: conn.set_write_deadline(60),
    "set_idle_timeout": lambda conn: conn.set_idle_timeout(60),
    "set_linger": lambda conn: conn.set_linger(-1),
    "start_soon": lambda conn: conn.start_soon(trio.sleep, 0),
    "fileno": lambda conn: conn.fileno(),
    "buffered": lambda conn: (conn.inbound_buffered(), conn.outbound_buffered()),
    "close": lambda conn: conn.close(),
    "abort": lambda conn: conn.abort(),
}


@pytest.mark.parametrize("name", IN_THREAD)
async def test_everything_is_available_in_the_thread(name: str) -> None:
    async with in_thread(lambda conn, n: IN_THREAD[name](conn)) as (recorder, client):
        await client.send_all(b"x")
        await until(lambda: recorder.counts().read == 1 and not recorder._inside)
        assert recorder.faults == []


@pytest.mark.parametrize("names", ["close close", "abort abort", "close abort"])
async def test_the_thread_may_close_and_close_again(names: str) -> None:
    def read(conn: gain.Conn, n: int) -> None:
        for name in names.split():
            getattr(conn, name)()

    async with in_thread(read) as (recorder, client):
        await client.send_all(b"x")
        with contextlib.suppress(trio.BrokenResourceError):
            await read_to_end(client)
        await client.aclose()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.errors() == [None]


async def test_deadline_set_in_the_thread_counts() -> None:
    async with in_thread(lambda conn, n: conn.set_deadline(0.03)) as (recorder, client):
        await client.send_all(b"x")
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], gain.DeadlineExceeded)


async def test_closed_in_the_thread_refuses_as_ever() -> None:
    refused = []

    def read(conn: gain.Conn, n: int) -> None:
        conn.close()
        for call in (conn.next, lambda: conn.write(b"x"), lambda: conn.set_no_delay(True)):
            with pytest.raises(gain.ConnectionClosed):
                call()
            refused.append(call)

    async with in_thread(read, write_strict=True) as (recorder, client):
        await client.send_all(b"x")
        assert await read_to_end(client) == b""
        await client.aclose()
        await until(lambda: recorder.counts().close == 1)
    assert len(refused) == 3


async def test_answer_and_close_in_the_thread() -> None:
    def read(conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(n) * 1_000_000)
        conn.close()

    async with in_thread(read) as (recorder, client):
        await client.send_all(b"x")
        assert await read_to_end(client) == b"x" * 1_000_000
        await until(lambda: recorder.counts().close == 1)
    assert sum(recorder.values("on_write")) == 1_000_000
    assert recorder.errors() == [None]


async def test_raising_in_the_thread_closes_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read(conn: gain.Conn, n: int) -> None:
        raise Boom

    async with in_thread(read) as (recorder, client):
        await client.send_all(b"x")
        with contextlib.suppress(trio.BrokenResourceError):
            await read_to_end(client)
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], Boom)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [Boom]


# What happens meanwhile


async def test_input_gathers_while_the_thread_runs() -> None:
    hold = Hold()
    async with in_thread(hold) as (recorder, client):
        await client.send_all(b"x")
        await until(hold.reached.is_set)
        for _ in range(5):
            await client.send_all(b"12345")
            await trio.testing.wait_all_tasks_blocked()
        recorder.actions["on_read"] = echo
        hold.open.set()
        assert await read_exactly(client, 25) == b"12345" * 5
    assert recorder.values("on_read") == [1, 25]


async def test_input_beyond_the_limit_stays_with_the_kernel() -> None:
    hold = Hold()
    total = len(gain_tools.CLOGGING)
    async with in_thread(hold, read_buffer_limit=16384) as (recorder, client):
        await client.send_all(b"x")
        await until(hold.reached.is_set)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, gain_tools.CLOGGING)
            await trio.sleep(0.05)
            recorder.actions["on_read"] = lambda conn, n: conn.discard()
            hold.open.set()
            await until(lambda: sum(recorder.values("on_read")) == total + 1)
    assert recorder.values("on_read")[1] <= 16384 + 128 * 1024


@pytest.mark.parametrize("how", ["end", "reset", "deadline"])
async def test_what_ends_the_connection_waits_for_the_thread(how: str) -> None:
    hold = Hold()
    expected: dict[str, type[BaseException]] = {
        "end": gain.EndOfStream,
        "reset": OSError,
        "deadline": gain.DeadlineExceeded,
    }
    recorder = Recorder(on_read=hold)
    if how == "deadline":
        recorder.actions["on_accept"] = lambda conn: conn.set_idle_timeout(0.1)
    async with (
        serving(recorder, async_handler=True) as server,
        await open_client(server) as client,
    ):
        await client.send_all(b"x")
        await until(hold.reached.is_set)
        if how == "end":
            await client.send_eof()
        elif how == "reset":
            gain_tools.reset(client.socket)
        await trio.sleep(0.15 if how == "deadline" else 0.03)
        assert recorder.counts().close == 0
        hold.open.set()
        await until(lambda: recorder.counts().close == 1)
    assert isinstance(recorder.errors()[0], expected[how])


async def test_other_connections_go_on_while_a_thread_runs() -> None:
    hold = Hold()
    recorder = Recorder(on_read=hold)
    async with (
        serving(recorder, async_handler=True) as server,
        await open_client(server) as one,
        await open_client(server) as two,
    ):
        await one.send_all(b"x")
        await until(hold.reached.is_set)
        recorder.actions["on_read"] = echo
        await two.send_all(b"hello")
        assert await read_exactly(two, 5) == b"hello"
        hold.open.set()


async def test_cancelled_serve_closes_also_those_that_wait_for_a_thread() -> None:
    hold = Hold()
    recorder = Recorder(on_read=hold)
    server = gain.Server(recorder, gain.Config(workers=1, async_handler=True, pool=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, gain_tools.LOOPBACK)
        clients = [await open_client(server) for _ in range(3)]
        for client in clients:
            await client.send_all(b"x")
        await until(hold.reached.is_set)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        hold.open.set()
    assert recorder.errors() == [None] * 3
    assert recorder.counts().read == 1
    gain_tools.assert_ended(server, recorder)
    for client in clients:
        await client.aclose()


async def test_reset_before_the_thread_begins() -> None:
    """The thread has the bytes that came before it."""
    seen: list[bytes] = []

    def read(conn: gain.Conn, n: int) -> None:
        seen.append(conn.next(n))

    recorder = Recorder(on_read=read)
    async with serving(recorder, async_handler=True) as server:
        for count in range(1, 21):
            client = await open_client(server)
            await client.send_all(b"hello")
            gain_tools.reset(client.socket)
            await until(lambda: recorder.counts().close == count)  # noqa: B023
    assert seen == [b"hello"] * 20


async def test_async_def_on_read_needs_no_thread() -> None:
    threads = set()

    async def read(conn: gain.Conn, n: int) -> None:
        threads.add(threading.get_ident())
        conn.write(conn.next(n))

    recorder = gain_tools.AsyncRecorder(on_read=read)
    async with connected(recorder, async_handler=True) as (_, client):
        await client.send_all(b"hello")
        assert await read_exactly(client, 5) == b"hello"
    assert threads == {threading.get_ident()}


def test_who_counts_the_input_does_not_mind_that_a_thread_takes_it() -> None:
    """Statistics and deadlines ask on the worker's thread, between any two steps of the other."""

    class Emptied(Inbound):
        """Its buffer is taken away as soon as somebody has looked at it."""

        __slots__ = ("looks",)
        looks: int

        @property
        def buffer(self) -> bytearray | None:
            self.looks += 1
            return bytearray(b"input") if self.looks == 1 else None

        @buffer.setter
        def buffer(self, buffer: bytearray | None) -> None:
            assert buffer is None

    inbound = Emptied(b"", 100)
    inbound.looks = 0
    assert inbound.buffered() == 5


async def test_a_thread_may_be_taking_input_when_its_connection_is_closed() -> None:
    """What it has in hand stays there until it is done; then nothing is kept."""
    hold = Hold()

    recorder = Recorder(on_read=hold, on_accept=lambda conn: conn.set_idle_timeout(0.2))
    async with (
        serving(recorder, async_handler=True, read_buffer_limit=1000) as server,
        await open_client(server) as client,
    ):
        await client.send_all(b"first")
        assert await trio.to_thread.run_sync(hold.reached.wait, gain_tools.BOUND_S)
        connection: Any = recorder.conn._connection
        connection.inbound.buffer = bytearray(b"what it is taking")
        await client.send_all(bytes(2000))  # so that the receive ends
        await client.send_eof()  # and so does the watch: nothing is in flight any more
        await until(lambda: connection.life.state is State.CLOSED)
        assert connection.inbound.buffer == b"what it is taking"
        hold.open.set()
        await until(lambda: recorder.counts().close == 1)
        assert connection.inbound.buffer is None
        assert isinstance(recorder.errors()[0], gain.DeadlineExceeded)


@pytest.mark.parametrize("size", [1, 5000], ids=["small", "large"])
@pytest.mark.parametrize("multishot", [True, False], ids=["multishot", "one-shot"])
async def test_bytes_that_come_while_a_thread_runs_are_not_idle(
    size: int, multishot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not multishot:
        monkeypatch.setattr(_worker, "capabilities", lambda: Capabilities(False))
    hold = Hold()
    idle_s = 0.2 * harness.SLOWNESS
    closed: list[float] = []
    recorder = Recorder(
        on_read=hold,
        on_accept=lambda conn: conn.set_idle_timeout(idle_s),
        on_close=lambda _conn, _err: closed.append(time.perf_counter()),
    )
    async with (
        serving(recorder, async_handler=True, read_buffer_limit=1 << 20) as server,
        await open_client(server) as client,
    ):
        await client.send_all(bytes(size))
        assert await trio.to_thread.run_sync(hold.reached.wait, gain_tools.BOUND_S)
        for _ in range(12):
            await trio.sleep(idle_s / 4)
            sent = time.perf_counter()  # the last bytes cannot have come before
            await client.send_all(bytes(size))
        assert recorder.conn._life.err is None
        hold.open.set()
        await until(lambda: sum(recorder.values("on_read")) == 13 * size)
        await until(lambda: recorder.counts().close == 1)
    assert closed[0] - sent >= idle_s
    assert isinstance(recorder.errors()[0], gain.DeadlineExceeded)


# What others want of a connection while a thread has it


async def test_calls_from_other_threads_wait_until_it_is_given_back() -> None:
    """All are delivered, in their order, and none in the middle of what the thread writes."""
    many = 50

    def read(conn: gain.Conn, n: int) -> None:
        conn.discard()
        conn.write(b"(")
        go_on.wait(0.002)
        conn.write(b")")

    go_on = threading.Event()
    recorder = Recorder(on_read=read)
    async with connected(recorder, async_handler=True) as (conn, client):

        def push() -> None:
            for number in range(many):
                conn.call_soon_threadsafe(conn.write, b"%02d" % number)
                go_on.wait(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, push)
            for _ in range(many):
                await client.send_all(b"q")
                await trio.sleep(0.001)
        await until(lambda: sum(recorder.values("on_read")) == many)
        conn.call_soon_threadsafe(conn.send_eof)
        received = await read_to_end(client)
    answers = received.count(b"()")
    assert 1 <= answers == received.count(b"(") == received.count(b")")
    assert received.replace(b"()", b"") == b"".join(b"%02d" % number for number in range(many))


async def test_a_task_of_the_connection_writes_while_a_thread_has_it() -> None:
    hold = Hold()
    written = trio.Event()

    async def write(conn: gain.Conn) -> None:
        assert await trio.to_thread.run_sync(hold.reached.wait, gain_tools.BOUND_S)
        for number in range(100):
            assert conn.write(b"%02d" % number) == 2
        written.set()

    recorder = Recorder(on_read=hold, on_accept=lambda conn: conn.start_soon(write, conn))
    async with connected(recorder, async_handler=True) as (_, client):
        await client.send_all(b"x")
        await written.wait()
        hold.open.set()
        expected = b"".join(b"%02d" % number for number in range(100))
        assert await read_exactly(client, 200) == expected
        assert recorder.counts().close == 0


@pytest.mark.parametrize("how", ["reset", "close", "abort"])
@pytest.mark.parametrize("strict", [False, True])
async def test_what_a_task_wrote_beside_a_thread_may_come_too_late(
    how: str, strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """``on_close`` tells that the connection is over; the write was none that raises."""
    hold = Hold()

    def read(conn: gain.Conn, n: int) -> None:
        hold(conn, n)
        if how != "reset":
            getattr(conn, how)()

    async with in_thread(read, write_strict=strict) as (recorder, client):
        await client.send_all(b"x")
        await until(hold.reached.is_set)
        if how == "reset":
            gain_tools.reset(client.socket)
            await trio.sleep(0.03)  # the worker knows, and tells when the thread is done
        assert recorder.conn.write(b"late") == 4
        hold.open.set()
        await until(lambda: recorder.counts().close == 1)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_task_that_raises_beside_a_thread_ends_the_connection_at_once() -> None:
    hold = Hold()

    async def fail() -> None:
        assert await trio.to_thread.run_sync(hold.reached.wait, gain_tools.BOUND_S)
        raise Boom

    recorder = Recorder(on_read=hold, on_accept=lambda conn: conn.start_soon(fail))
    async with connected(recorder, async_handler=True) as (_, client):
        await client.send_all(b"x")
        with trio.fail_after(gain_tools.BOUND_S / 2), contextlib.suppress(trio.BrokenResourceError):
            assert await client.receive_some() == b""  # while the thread goes on
        assert recorder.counts().close == 0
        hold.open.set()
        await until(lambda: recorder.counts().close == 1)
    (error,) = recorder.errors()
    assert isinstance(error, Boom)


async def test_a_broadcast_reaches_others_while_a_thread_has_one_that_is_over() -> None:
    """The worker's own thread is told by 0, as of any connection that is over."""
    hold = Hold()
    recorder = Recorder(on_read=hold, on_accept=lambda conn: conn.set_idle_timeout(0.05))
    async with connected(recorder, async_handler=True) as (conn, client):
        await client.send_all(b"x")
        await until(lambda: repr(conn).endswith("closed>"))
        assert conn.write(b"too late") == 0
        hold.open.set()
        await until(lambda: recorder.counts().close == 1)


async def test_a_task_cannot_write_after_the_end_of_file_while_a_thread_has_it() -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold(conn: gain.Conn, n: int) -> None:
        conn.discard()
        held.set()
        assert go_on.wait(gain_tools.BOUND_S)

    recorder = Recorder(on_accept=lambda conn: conn.send_eof(), on_read=hold)
    async with serving(recorder, async_handler=True) as server, await open_client(server) as client:
        await client.send_all(b"x")
        await until(held.is_set)
        try:
            with pytest.raises(gain.ConnectionClosed, match="send_eof"):
                recorder.conn.write(b"late")
        finally:
            go_on.set()
        assert await read_to_end(client) == b""
