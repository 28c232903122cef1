"""A connection on which nothing can move costs nothing, whatever stays set on its socket.

A poll reports POLLERR, POLLHUP and POLLRDHUP whether or not it was asked to, and a server
that answers each with another poll runs in circles: a full CPU for as long as a peer's end
waits behind input that nobody takes. What is counted here is the loop's turns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest
import trio
from gain_tools import (
    ARCHITECTURES,
    CLOGGING,
    LOOPBACK_UDP,
    NAME,
    HalfCloser,
    Recorder,
    client_context,
    connect,
    echo,
    ring_of,
    round_trip,
    server_context,
    server_in_thread,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


pytestmark = ON_RING

NETWORKS = ["tcp", "unix", "tls"]
LIMIT = 4096
LOOK_S = 0.3
ENTERS_MAX = 15  # in LOOK_S; a circle makes ten thousands in a second
CPU_SHARE_MAX = 0.05
WAKE_S = 0.05


def kernel_workers() -> set[str]:
    """The threads of this process that the kernel has made for operations."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text().startswith("iou-wrk"):
                found.add(task.name)
    return found


@pytest.fixture(autouse=True)
def earlier_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an earlier run, which stay for a while, are not this run's."""
    monkeypatch.setattr(f"{__name__}.EARLIER", kernel_workers())


EARLIER: set[str] = set()


async def assert_asleep(enters_max: int = ENTERS_MAX) -> None:
    """The loop sleeps, and so does the kernel."""
    await trio.sleep(0.05)  # what is on its way
    enters = harness.io_statistics().enters
    share = await harness.cpu_share_asleep(LOOK_S, CPU_SHARE_MAX)
    assert harness.io_statistics().enters - enters <= enters_max
    assert share <= CPU_SHARE_MAX
    assert kernel_workers() <= EARLIER


class AsyncReader(HalfCloser):
    """Its ``on_read`` lasts until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.began = trio.Event()
        self.go_on = trio.Event()

    async def on_read(self, conn: gain.Conn, n: int) -> None:
        self.events.append(gain_tools.Event("on_read", conn, n))
        self.began.set()
        await self.go_on.wait()
        conn.discard(n)


class ThreadReader(HalfCloser):
    """The same in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.began = trio.Event()
        self.go_on = threading.Event()

    def on_read(self, conn: gain.Conn, n: int) -> None:
        self.events.append(gain_tools.Event("on_read", conn, n))
        trio.from_thread.run_sync(self.began.set)
        assert self.go_on.wait(gain_tools.BOUND_S)
        conn.discard(n)


class Client:
    """One end of a connection to a server of any network, in the server's run."""

    def __init__(self, raw: trio.SocketStream, stream: trio.abc.Stream) -> None:
        self.raw = raw
        self.stream = stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def end(self) -> None:
        """Half-close; with TLS what is beneath it."""
        await self.raw.send_eof()


@contextlib.asynccontextmanager
async def connected(
    network: str, handler: Recorder, tmp_path: Path, **options: Any
) -> AsyncIterator[tuple[gain.Conn, Client]]:
    address = f"unix://{tmp_path}/s" if network == "unix" else gain_tools.LOOPBACK
    if network == "tls":
        options["tls"] = server_context()
    async with gain_tools.serving(handler, address, **options) as server:
        where = server.addresses()[0]
        if network == "unix":
            raw = await trio.open_unix_socket(where[0])
        else:
            raw = await trio.open_tcp_stream(*where[:2])
        stream: trio.abc.Stream = raw
        async with raw:
            if network == "tls":
                stream = trio.SSLStream(raw, client_context(), server_hostname=NAME)
                await stream.do_handshake()
            await until(lambda: handler.conns, "a connection is accepted")
            yield handler.conn, Client(raw, stream)


def ending(network: str) -> type[BaseException]:
    """What a connection without ``on_eof`` ends with, or one with TLS."""
    import ssl

    return ssl.SSLEOFError if network == "tls" else gain.EndOfStream


async def assert_wakes(handler: HalfCloser, network: str, total: int) -> None:
    """All that was sent has come, and then the end, at once."""
    started = harness.running_time()
    if network == "tls":
        await until(lambda: handler.counts().close == 1)
        assert isinstance(handler.errors()[0], ending(network))
    else:
        await until(lambda: "on_eof" in handler.names())
    assert harness.running_time() - started < WAKE_S
    assert sum(handler.values("on_read")) == total


# The peer ends while nobody reads


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [0, 1, 3 * LIMIT, 300_000])
async def test_paused(network: str, size: int, tmp_path: Path) -> None:
    handler = HalfCloser(on_read=lambda conn, n: conn.discard())
    async with connected(network, handler, tmp_path, read_buffer_limit=LIMIT) as (conn, client):
        conn.pause_reading()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await client.send(bytes(size))
                await client.end()

            nursery.start_soon(send)
            await assert_asleep()
            conn.resume_reading()
        await assert_wakes(handler, network, size)
        conn.abort()


@pytest.mark.parametrize("network", NETWORKS)
async def test_paused_in_on_read_with_large_messages(network: str, tmp_path: Path) -> None:
    def read(conn: gain.Conn, n: int) -> None:
        conn.discard()
        if sum(handler.values("on_read")) == 1_500_000:
            conn.pause_reading()

    handler = HalfCloser(on_read=read)
    async with connected(network, handler, tmp_path) as (conn, client):
        await client.send(bytes(1_500_000))
        await until(lambda: sum(handler.values("on_read")) == 1_500_000)
        await client.send(bytes(30_000))
        await client.end()
        await assert_asleep()
        conn.resume_reading()
        await assert_wakes(handler, network, 1_530_000)
        conn.abort()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("how", ["whole", "pieces", "large"])
async def test_full_input(network: str, how: str, tmp_path: Path) -> None:
    handler = HalfCloser()
    total = 3 * LIMIT if how != "large" else 60_000
    async with connected(network, handler, tmp_path, read_buffer_limit=LIMIT) as (conn, client):
        step = LIMIT // 4 if how == "pieces" else total
        for at in range(0, total, step):
            await client.send(bytes(step))
            if at < LIMIT:
                await until(lambda: conn.inbound_buffered() > at)  # noqa: B023  waits in this turn
        await assert_asleep()
        handler.actions["on_read"] = lambda conn, n: conn.discard()
        await client.end()
        conn.discard()
        await assert_wakes(handler, network, total)
        conn.abort()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("size", [1, 5 * LIMIT])
async def test_beside_an_async_on_read(
    network: str, paused: bool, size: int, tmp_path: Path
) -> None:
    handler = AsyncReader()
    async with connected(network, handler, tmp_path, read_buffer_limit=LIMIT) as (conn, client):
        await client.send(b"x")
        await handler.began.wait()
        if paused:
            conn.pause_reading()
        await client.send(bytes(size))
        await client.end()
        await assert_asleep()
        conn.resume_reading()
        handler.go_on.set()
        await assert_wakes(handler, network, 1 + size)
        conn.abort()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 5 * LIMIT])
async def test_beside_an_on_read_in_a_thread(network: str, size: int, tmp_path: Path) -> None:
    handler = ThreadReader()
    async with connected(
        network, handler, tmp_path, read_buffer_limit=LIMIT, async_handler=True
    ) as (conn, client):
        await client.send(b"x")
        await handler.began.wait()
        await client.send(bytes(size))
        await client.end()
        await assert_asleep()
        handler.go_on.set()
        await assert_wakes(handler, network, 1 + size)
        conn.abort()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 5 * LIMIT])
async def test_full_output(network: str, size: int, tmp_path: Path) -> None:
    """The send side is blocked, and reading has stopped because of it."""
    handler = HalfCloser(on_read=lambda conn, n: conn.discard())
    async with connected(network, handler, tmp_path) as (conn, client):
        conn.write(CLOGGING)
        await until(lambda: 0 < conn.outbound_buffered() < len(CLOGGING))
        await client.send(bytes(size))
        await client.end()
        await assert_asleep()
        left = len(CLOGGING)
        while left > 0:
            left -= len(await client.stream.receive_some(1 << 20))
        await assert_wakes(handler, network, size)
        conn.abort()


@pytest.mark.parametrize("network", ["tcp", "unix"])
@pytest.mark.parametrize("blocked", [False, True])
async def test_open_behind_the_peers_end(network: str, blocked: bool, tmp_path: Path) -> None:
    """Half-closed, all read, and open for as long as the handler wants."""
    handler = HalfCloser(on_read=lambda conn, n: conn.discard())
    async with connected(network, handler, tmp_path) as (conn, client):
        await client.send(b"question")
        await client.end()
        await until(lambda: "on_eof" in handler.names())
        if blocked:
            conn.write(CLOGGING)
            await until(lambda: 0 < conn.outbound_buffered() < len(CLOGGING))
        await assert_asleep()
        if blocked:
            assert await gain_tools.read_exactly(client.raw, len(CLOGGING)) == CLOGGING
            await assert_asleep()
        conn.write(b"answer")
        assert await gain_tools.read_exactly(client.raw, 6) == b"answer"
        conn.close()
        await until(lambda: handler.counts().close == 1)
    assert handler.errors() == [None]


# A reset is noticed whatever was told before it


@pytest.mark.parametrize("before", ["nothing", "end", "data", "data and end"])
@pytest.mark.parametrize("how", ["paused", "full", "read"])
async def test_a_reset_is_noticed(before: str, how: str, tmp_path: Path) -> None:
    handler = HalfCloser()
    if how == "read":
        handler.actions["on_read"] = lambda conn, n: conn.discard()
    async with connected("tcp", handler, tmp_path, read_buffer_limit=LIMIT) as (conn, client):
        if how == "full":
            await client.send(bytes(LIMIT))
            await until(lambda: conn.inbound_buffered() >= LIMIT)
        elif how == "paused":
            conn.pause_reading()
        if "data" in before:
            await client.send(b"more")
        if "end" in before and how != "full":  # see test_gain_stuck_input
            await client.end()
        await assert_asleep()
        assert handler.counts().close == 0
        started = harness.running_time()
        gain_tools.reset(client.raw.socket)
        await until(lambda: handler.counts().close == 1)
        assert harness.running_time() - started < WAKE_S
    (err,) = handler.errors()
    assert isinstance(err, OSError)
    # What the kernel says of a reset once the peer's end has come.
    ended = "end" in before and how != "full"
    assert err.errno == (errno.EPIPE if ended else errno.ECONNRESET)


# Nothing at all


def threads_of_this_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def wait_conns(handler: Recorder, count: int) -> list[gain.Conn]:
    wait_until(lambda: len(handler.conns) == count)
    return handler.conns


def voluntary_switches(thread: str) -> int:
    with open(f"/proc/self/task/{thread}/status") as file:
        (line,) = (line for line in file if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


def test_idle_workers_sleep() -> None:
    """B16: two idle Gain workers take 17 % of a core, and wake 8,700 times a second."""
    others = threads_of_this_process()
    with contextlib.ExitStack() as stack:
        conns = []
        for options in ARCHITECTURES.values():
            handler = Recorder(on_accept=lambda conn: conn.set_idle_timeout(600), on_read=echo)
            server = stack.enter_context(server_in_thread(handler, **options))
            for _ in range(3):
                round_trip(stack.enter_context(connect(server)), b"not always idle")
            conns += wait_conns(handler, 3)
        datagrams = server_in_thread(Recorder(on_read=echo), LOOPBACK_UDP, workers=2)
        server = stack.enter_context(datagrams)
        round_trip(stack.enter_context(connect(server)), b"nor this one")
        enters = [ring_of(conn).enters for conn in conns]
        time.sleep(0.05)  # until all of them sleep
        threads = threads_of_this_process() - others
        assert len(threads) >= 7  # the workers
        before = {thread: voluntary_switches(thread) for thread in threads}
        time.sleep(2)
        woken = {thread: voluntary_switches(thread) - before[thread] for thread in threads}
        assert all(count <= 2 for count in woken.values()), woken
        # To be asked wakes a worker: that, and the asking of up to two others on its ring.
        asked = [ring_of(conn).enters - count for conn, count in zip(conns, enters, strict=True)]
        assert max(asked) <= 12, asked
