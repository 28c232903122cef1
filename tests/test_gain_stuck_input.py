"""A message longer than ``read_buffer_limit``: a warning at once, and an end that is bounded.

A connection is closed for it only where nothing can free it any more; each condition of
docs/gain.md has its negative half here.
"""

from __future__ import annotations

import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio
import trio.testing
from gain_tools import CLOGGING, AsyncRecorder, HalfCloser, Recorder, open_client, serving, until
from marks import ON_RING
from test_gain_asleep import NETWORKS, assert_asleep, connected

from uring_trio import gain
from uring_trio.gain._patience import AFTER_END_S, LATE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = ON_RING

LIMIT = 1000
TIMEOUT_S = 0.15
LONG_S = 10 * TIMEOUT_S
KIB = 1024


class Framed(Recorder):
    """A length of four bytes, and a message; answers ``ok``. Waits for whole messages."""

    def on_accept(self, conn: gain.Conn) -> None:
        conn.context = None
        super().on_accept(conn)

    def on_read(self, conn: gain.Conn, n: int) -> None:
        with self.recorded("on_read", conn, n):
            if conn.context is None:
                if conn.inbound_buffered() < 4:
                    return
                (conn.context,) = struct.unpack(">I", conn.next(4))
            if conn.inbound_buffered() >= conn.context:
                conn.discard(conn.context)
                conn.context = None
                conn.write(b"ok")
            self.act("on_read", conn, n)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("receiving stops")]


async def fill(handler: Recorder, conn: gain.Conn, client: Any) -> None:
    """Leave the handler with all that it will ever be given."""
    await client.send(bytes(LIMIT))
    await until(lambda: conn.inbound_buffered() >= LIMIT)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert handler.counts().close == 0


async def end_of(
    handler: Recorder, seconds: float, *, slack: float = 0.1, since: float | None = None
) -> BaseException | None:
    """What the connection ends with, after about so many seconds: from now, or *since* then.

    Where this process did not run meanwhile the server's timer was late too, and has begun
    once more (see `_patience`): that time, and no other, is allowed on top.
    """
    looked = trio.current_time()
    started = looked if since is None else since
    stopped = 0.0  # the longest time in which nothing of this run has run
    while handler.counts().close != 1:
        assert looked - started < gain_tools.BOUND_S
        await trio.sleep(0.0005)
        stopped = max(stopped, trio.current_time() - looked)
        looked = trio.current_time()
    if stopped > LATE_S / 2:
        slack += stopped + AFTER_END_S
    assert seconds - 0.05 <= looked - started <= seconds + slack
    (err,) = handler.errors()
    return err


# A message that is too long


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("how", ["at once", "pieces", "large pieces"])
@pytest.mark.parametrize("peer_ends", [False, True])
async def test_a_message_that_is_too_long(
    network: str, how: str, peer_ends: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = 5_000_000
    handler = Framed()
    data = struct.pack(">I", size) + bytes(size)
    step = {"at once": len(data), "pieces": 900, "large pieces": 9000}[how]
    async with connected(
        network, handler, tmp_path, read_buffer_limit=16 * KIB, stuck_input_timeout=TIMEOUT_S
    ) as (_conn, client):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                try:
                    for at in range(0, len(data), step):
                        await client.send(data[at : at + step])
                        await trio.lowlevel.checkpoint()
                except (trio.BrokenResourceError, OSError):
                    pass  # the server has closed

            nursery.start_soon(send)
            await until(lambda: warnings_in(caplog), "a warning")
            assert handler.counts().close == 0
            if peer_ends:
                nursery.cancel_scope.cancel()
        if peer_ends:
            await client.raw.aclose()
        await until(lambda: handler.counts().close == 1)
    (err,) = handler.errors()
    if isinstance(err, gain.StuckInput):
        assert err.limit == 16 * KIB
        assert 16 * KIB <= err.buffered <= size
        assert str(err.buffered) in str(err)
        assert "read_buffer_limit of 16384" in str(err)
    else:  # what was sent and not read makes a reset of the peer's close
        assert peer_ends
        assert network != "unix" or isinstance(err, OSError)
    assert len(warnings_in(caplog)) == 1
    assert f"closed after {TIMEOUT_S:g} s (stuck_input_timeout)" in warnings_in(caplog)[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [LIMIT - 4, 4, 1])
async def test_a_message_that_fits_comes_in_pieces(
    network: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Framed()
    async with connected(
        network, handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=0.01
    ) as (_, client):
        for _ in range(3):
            for byte in struct.pack(">I", size) + bytes(size - 1):
                await client.send(bytes([byte]))
            await trio.sleep(0.03)
            await client.send(b"!")
            assert await client.stream.receive_some(2) == b"ok"
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("network", NETWORKS)
async def test_the_peers_end_is_the_end(network: str, tmp_path: Path) -> None:
    """Long before the timeout, and with all of the message sent."""
    handler = Recorder()
    async with connected(
        network, handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=60
    ) as (conn, client):
        await fill(handler, conn, client)
        await client.send(b"what is left")
        await client.end()
        err = await end_of(handler, 0.1)
    assert isinstance(err, gain.StuckInput)
    assert err.reason == "the peer has ended its stream"
    assert (err.buffered, err.limit) == (LIMIT, LIMIT)


@pytest.mark.parametrize("network", NETWORKS)
async def test_the_time_is_over(network: str, tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        network, handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        err = await end_of(handler, TIMEOUT_S)
    assert isinstance(err, gain.StuckInput)
    assert f"{TIMEOUT_S:g} s (stuck_input_timeout)" in str(err)


async def test_none_is_for_ever_but_for_the_peers_end(tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=None
    ) as (conn, client):
        await fill(handler, conn, client)
        await assert_asleep()
        assert handler.counts().close == 0
        await client.end()
        assert isinstance(await end_of(handler, 0.1), gain.StuckInput)


async def test_a_reset_is_a_reset(tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=60
    ) as (conn, client):
        await fill(handler, conn, client)
        gain_tools.reset(client.raw.socket)
        assert isinstance(await end_of(handler, 0), ConnectionResetError)


async def test_each_connection_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    handler = Recorder()
    async with serving(handler, read_buffer_limit=LIMIT) as server:
        for number in range(1, 4):
            async with await open_client(server) as client:
                await until(lambda: len(handler.conns) == number)  # noqa: B023  waits in this turn
                conn = handler.conns[-1]
                for _ in range(2):
                    await client.send_all(bytes(LIMIT))
                    await until(lambda: conn.inbound_buffered() == LIMIT)  # noqa: B023
                    await until(lambda: len(warnings_in(caplog)) == number)  # noqa: B023
                    conn.discard()
                await until(lambda: conn.inbound_buffered() == 0)  # noqa: B023
    assert len(warnings_in(caplog)) == 3
    assert f"has left {LIMIT} bytes unread" in caplog.text


# What keeps a connection that is full


async def stays_open(handler: Recorder, seconds: float = LONG_S) -> None:
    with trio.move_on_after(seconds):
        await until(lambda: handler.counts().close)
        raise AssertionError(f"closed with {handler.errors()}")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("peer_ends", [False, True])
async def test_paused_on_purpose(network: str, peer_ends: bool, tmp_path: Path) -> None:
    handler = Recorder(on_read=lambda conn, n: conn.pause_reading())
    async with connected(
        network, handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        if peer_ends:
            await client.send(b"x" * 100)
            await client.end()
        await stays_open(handler)
        handler.actions["on_read"] = lambda conn, n: conn.discard()
        conn.resume_reading()
        conn.discard()
        if peer_ends:
            await until(lambda: handler.counts().close == 1)
            expected = ssl.SSLEOFError if network == "tls" else gain.EndOfStream
            assert isinstance(handler.errors()[0], expected)
            assert sum(handler.values("on_read")) == LIMIT + 100


async def test_resumed_and_still_full(tmp_path: Path) -> None:
    """The time begins when reading may go on, and does not because of the limit."""
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        conn.pause_reading()
        conn.resume_reading()
        await fill(handler, conn, client)
        conn.pause_reading()
        await stays_open(handler)
        conn.resume_reading()
        assert isinstance(await end_of(handler, TIMEOUT_S), gain.StuckInput)


async def test_full_output_stops_reading_too(tmp_path: Path) -> None:
    def read(conn: gain.Conn, n: int) -> None:
        if not conn.outbound_buffered():
            conn.write(CLOGGING)

    handler = Recorder(on_read=read)
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        await stays_open(handler)
        handler.actions["on_write"] = lambda conn, n: conn.discard()
        assert await gain_tools.read_exactly(client.raw, len(CLOGGING)) == CLOGGING
        await stays_open(handler, 2 * TIMEOUT_S)


@pytest.mark.parametrize("peer_ends", [False, True])
@pytest.mark.parametrize("what", ["async def", "thread", "task", "task in on_accept", "drain"])
async def test_something_of_the_connection_runs(what: str, peer_ends: bool, tmp_path: Path) -> None:
    go_on = trio.Event()
    thread_goes_on = threading.Event()
    options: dict[str, Any] = {}
    handler: Recorder
    if what == "async def":

        async def read(conn: gain.Conn, n: int) -> None:
            await go_on.wait()

        handler = AsyncRecorder(on_read=read)
    elif what == "thread":
        options["async_handler"] = True
        handler = Recorder(on_read=lambda conn, n: thread_goes_on.wait(gain_tools.BOUND_S) and None)
    elif what == "drain":
        handler = Recorder(on_accept=lambda conn: conn.write(CLOGGING))
        options["write_high_water"] = 2 * len(CLOGGING)
    else:
        where = "on_accept" if what.endswith("on_accept") else "on_read"
        handler = Recorder(**{where: lambda conn, *_: conn.start_soon(go_on.wait)})

    async with (
        connected(
            "tcp",
            handler,
            tmp_path,
            read_buffer_limit=LIMIT,
            stuck_input_timeout=TIMEOUT_S,
            **options,
        ) as (conn, client),
        trio.open_nursery() as nursery,
    ):
        if what == "drain":
            conn._outbound.low_water = (
                1000  # the peer takes nothing, and it is not above high water
            )

            async def drain() -> None:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_later, scope)
                    await conn.drain()

            async def cancel_later(scope: trio.CancelScope) -> None:
                await go_on.wait()
                scope.cancel()

            nursery.start_soon(drain)
        await client.send(bytes(LIMIT))
        await until(lambda: conn.server.statistics().workers[0].bytes_in >= LIMIT)
        await trio.testing.wait_all_tasks_blocked(0.01)  # and nothing is received any more
        if peer_ends:
            await client.end()
        await stays_open(handler)
        go_on.set()
        thread_goes_on.set()
        seconds = 0.1 if peer_ends else TIMEOUT_S
        assert isinstance(await end_of(handler, seconds), gain.StuckInput)


def set_and_forget_a_deadline(conn: gain.Conn) -> None:
    conn.set_deadline(5)
    conn.set_deadline(None)


@pytest.mark.parametrize("act", ["next", "peek and read", "write", "deadline", "task", "limit"])
async def test_somebody_minds_it(act: str, tmp_path: Path) -> None:
    """Again and again, and then nobody does."""
    acts: dict[str, Callable[[gain.Conn], object]] = {
        "next": lambda conn: conn.next(1),
        "peek and read": lambda conn: (conn.peek(2), conn.read(1)),
        "write": lambda conn: conn.write(b"wait"),
        "deadline": set_and_forget_a_deadline,
        "task": lambda conn: conn.start_soon(trio.lowlevel.checkpoint),
        "limit": lambda conn: conn.set_read_buffer_limit(LIMIT - 1),
    }
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT // 2, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        for _ in range(10):  # each time well before the end, all together well behind it
            await trio.sleep(0.3 * TIMEOUT_S)
            assert handler.counts().close == 0
            acts[act](conn)
        await until(lambda: handler.counts().close == 1)
        assert isinstance(handler.errors()[0], gain.StuckInput)


@pytest.mark.parametrize("act", ["peek", "inbound_buffered"])
async def test_looking_is_not_minding(act: str, tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        for _ in range(20):
            await trio.sleep(0.2 * TIMEOUT_S)
            if handler.counts().close:
                break
            getattr(conn, act)()
        assert isinstance(handler.errors()[0], gain.StuckInput)


@pytest.mark.parametrize("kind", ["deadline", "read_deadline", "idle_timeout"])
async def test_a_deadline_that_is_set_since_is_an_end(kind: str, tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        getattr(conn, f"set_{kind}")(4 * TIMEOUT_S)
        assert isinstance(await end_of(handler, 4 * TIMEOUT_S), gain.DeadlineExceeded)


async def test_a_deadline_that_is_set_by_who_was_told_last_is_an_end(tmp_path: Path) -> None:
    set_at = [0.0]

    def on_read(conn: gain.Conn, _n: int) -> None:
        conn.set_read_deadline(4 * TIMEOUT_S)
        set_at[0] = trio.current_time()

    handler = Recorder(on_read=on_read)
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        ended = await end_of(handler, 4 * TIMEOUT_S, since=set_at[0])
        assert isinstance(ended, gain.DeadlineExceeded)


async def test_a_deadline_from_before_is_none(tmp_path: Path) -> None:
    handler = Recorder(on_accept=lambda conn: conn.set_idle_timeout(60))
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        assert isinstance(await end_of(handler, TIMEOUT_S), gain.StuckInput)


async def test_a_write_deadline_that_has_passed_in_vain(tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        conn.set_write_deadline(TIMEOUT_S)  # nothing is written, so it ends nothing
        assert isinstance(await end_of(handler, 2 * TIMEOUT_S), gain.StuckInput)


async def test_a_task_that_the_handler_wakes_has_its_turn(tmp_path: Path) -> None:
    """The peer has ended, and everything is there; a task of the program takes the input."""
    total = 50 * LIMIT
    send, receive = trio.open_memory_channel[gain.Conn](1000)
    handler = HalfCloser(on_read=lambda conn, n: send.send_nowait(conn))
    taken = 0

    async def take() -> None:
        nonlocal taken
        async for conn in receive:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            taken += conn.discard()

    async with (
        connected("tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=None) as (
            conn,
            client,
        ),
        trio.open_nursery() as nursery,
    ):
        conn.pause_reading()
        await client.send(bytes(total))
        await client.end()
        await assert_asleep()
        nursery.start_soon(take)
        conn.resume_reading()
        await until(lambda: "on_eof" in handler.names())
        await until(lambda: taken == total)
        conn.close()
        await until(lambda: handler.counts().close == 1)
        assert handler.errors() == [None]
        nursery.cancel_scope.cancel()


async def test_time_in_which_the_process_does_not_run_is_not_counted(tmp_path: Path) -> None:
    handler = Recorder()
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=TIMEOUT_S
    ) as (conn, client):
        await fill(handler, conn, client)
        time.sleep(3 * TIMEOUT_S)  # noqa: ASYNC251  all of this run waits, as in a stopped process
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        assert conn.discard() == LIMIT
        await stays_open(handler, 2 * TIMEOUT_S)
        await client.send(bytes(LIMIT))
        assert isinstance(await end_of(handler, TIMEOUT_S), gain.StuckInput)


# A proxy whose far side is slow


class PausingProxy(Recorder):
    """Pairs its connections; leaves input where it is while the other end is behind."""

    def on_accept(self, conn: gain.Conn) -> None:
        with self.recorded("on_accept", conn):
            others = [c for c in self.conns if c.context is None and c is not conn]
            conn.context = others[0] if others else None
            if others:
                others[0].context = conn

    def on_read(self, conn: gain.Conn, n: int) -> None:
        with self.recorded("on_read", conn, n):
            self.pass_on(conn)

    def on_write(self, conn: gain.Conn, n: int) -> None:
        with self.recorded("on_write", conn, n):
            conn.context.resume_reading()
            self.pass_on(conn.context)

    def pass_on(self, conn: gain.Conn) -> None:
        far = conn.context
        if far.outbound_buffered() < 32 * KIB:
            far.write(conn.next())
        else:
            conn.pause_reading()

    def on_eof(self, conn: gain.Conn) -> None:
        with self.recorded("on_eof", conn):
            self.pass_on(conn)
            conn.context.close()
            conn.close()


@pytest.mark.parametrize("half_closes", [False, True])
async def test_proxy_with_a_slow_far_side_loses_nothing(half_closes: bool) -> None:
    data = bytes(range(256)) * (len(CLOGGING) // 256)
    proxy = PausingProxy()
    async with (
        serving(proxy, read_buffer_limit=16 * KIB, stuck_input_timeout=TIMEOUT_S) as server,
        await open_client(server) as near,
    ):
        await until(lambda: len(proxy.conns) == 1)
        async with await open_client(server) as far, trio.open_nursery() as nursery:
            await until(lambda: len(proxy.conns) == 2)

            async def send() -> None:
                await near.send_all(data)
                if half_closes:
                    await near.send_eof()

            nursery.start_soon(send)
            await stays_open(proxy, 10 * TIMEOUT_S)
            if half_closes:
                assert await gain_tools.read_to_end(far) == data
            else:
                assert await gain_tools.read_exactly(far, len(data)) == data
                assert proxy.counts().close == 0


class AsyncProxy(gain.EventHandler):
    """Passes on to a stream of its own, and waits for it in ``on_read``."""

    def __init__(self, far: trio.abc.SendStream) -> None:
        self.far = far
        self.errors: list[BaseException | None] = []

    async def on_read(self, conn: gain.Conn, n: int) -> None:
        await self.far.send_all(conn.next(n))

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        self.errors.append(err)


async def test_async_proxy_with_a_slow_far_side_loses_nothing() -> None:
    data = bytes(range(256)) * (len(CLOGGING) // 256)
    far, reader = trio.testing.memory_stream_one_way_pair()
    ready = trio.Event()
    proxy = AsyncProxy(far)

    deliver = far.send_all_hook
    assert deliver is not None

    async def slow() -> None:
        await ready.wait()
        await deliver()

    far.send_all_hook = slow
    async with (
        serving(proxy, read_buffer_limit=16 * KIB, stuck_input_timeout=TIMEOUT_S) as server,
        await open_client(server) as near,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            await near.send_all(data)
            await near.send_eof()

        nursery.start_soon(send)
        await trio.sleep(10 * TIMEOUT_S)
        assert proxy.errors == []
        ready.set()
        received = bytearray()
        while len(received) < len(data):
            received += await reader.receive_some(1 << 20)
        assert received == data
        await until(lambda: proxy.errors)
        assert isinstance(proxy.errors[0], gain.EndOfStream)
