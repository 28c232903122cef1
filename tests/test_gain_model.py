"""Random clients of random handlers: what must be true of every connection stays true.

The handler echoes, in pieces, late, from tasks and threads, and sometimes closes, aborts
or pauses. So what a client receives is a beginning of what it has sent, and all of it
where nobody has cut the connection short.
"""

from __future__ import annotations

import contextlib
import random
import threading
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio
from gain_tools import MODES, Recorder, open_client, serving, until
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = ON_RING

SEEDS = 4
CLIENTS = 12
MESSAGE_MAX = 200_000
SIZES = (1, 100, 4096, 20_000, 70_000)


class Chaos:
    """The actions of a handler that echoes in many ways."""

    def __init__(self, seed: int, mode: str) -> None:
        self.rng = random.Random(seed)
        self.mode = mode
        self.lock = threading.Lock()
        self.cut: set[Any] = set()  # the peers of connections that we have cut short
        self.ended = False  # the server was, and so all connections are
        self.ways = [self.all, self.all, self.all, self.pieces, self.pausing]
        self.recorder = gain_tools.make_recorder(
            mode, on_accept=self.accept, on_read=self.read, on_write=self.wrote
        )
        if seed % 2:  # else a task may be cancelled by the end of the stream, with its bytes
            self.ways += [self.from_task, self.from_task]
            vars(self.recorder)["on_eof"] = self.on_eof

    def choose(self, *options: Any) -> Any:
        with self.lock:
            return self.rng.choice(options)

    def accept(self, conn: gain.Conn) -> None:
        # Deadlines that do not pass, for the bookkeeping.
        with self.closed_meanwhile():
            self.choose(conn.set_deadline, conn.set_idle_timeout, lambda _: None)(60)

    def read(self, conn: gain.Conn, n: int) -> None:
        # An ``async def`` may meet its connection closed: a reset, another task's abort.
        with self.closed_meanwhile():
            self.read_open(conn, n)

    def read_open(self, conn: gain.Conn, n: int) -> None:
        buffered = conn.inbound_buffered()
        assert n > 0
        assert len(conn.peek()) == buffered
        if self.mode != "async def":  # else a task may have consumed it since
            assert n <= buffered
        with self.lock:
            end = self.rng.random() < 0.01
        if end:
            self.cut.add(conn.remote_addr())
            self.choose(conn.close, conn.abort)()
        else:
            self.choose(*self.ways)(conn)

    def closed_meanwhile(self) -> contextlib.AbstractContextManager[None]:
        if self.mode == "async def":
            return contextlib.suppress(gain.ConnectionClosed)
        return contextlib.nullcontext()

    def on_eof(self, conn: gain.Conn) -> None:
        with self.recorder.recorded("on_eof", conn):
            conn.write(conn.next())
            conn.close()

    def all(self, conn: gain.Conn) -> None:
        conn.write(conn.next())

    def pieces(self, conn: gain.Conn) -> None:
        while buffered := conn.inbound_buffered():
            size = min(buffered, self.choose(*SIZES))
            conn.writev([conn.read(size // 2), conn.next(size - size // 2)])

    def from_task(self, conn: gain.Conn) -> None:
        conn.start_soon(self.echo_later, conn)

    async def echo_later(self, conn: gain.Conn) -> None:
        await trio.sleep(self.choose(0, 0.001))
        await when_it_is_ours(lambda: conn.write(conn.next()))

    def pausing(self, conn: gain.Conn) -> None:
        conn.write(conn.next())
        conn.pause_reading()
        conn.start_soon(self.resume_later, conn)

    async def resume_later(self, conn: gain.Conn) -> None:
        await trio.sleep(0.001)
        await when_it_is_ours(conn.resume_reading)

    def wrote(self, conn: gain.Conn, n: int) -> None:
        assert n > 0


async def when_it_is_ours(use: Callable[[], Any]) -> None:
    """Use a connection that a thread may have just now, or that may be closed."""
    while True:
        try:
            use()
        except gain.ConnectionClosed:
            pass
        except gain.OpNotAvailableInMode:
            await trio.sleep(0.001)
            continue
        return


class Client:
    """Sends random pieces, receives meanwhile, and ends in one of many ways."""

    def __init__(self, server: gain.Server, chaos: Chaos, seed: int) -> None:
        self.server = server
        self.chaos = chaos
        self.rng = random.Random(seed)
        self.sent = bytearray()
        self.received = bytearray()
        self.end = self.rng.choice(["finish", "finish", "finish", "close", "reset"])

    async def run(self) -> None:
        async with await open_client(self.server) as stream:
            name = stream.socket.getsockname()
            recorder = self.chaos.recorder
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.receive, stream)
                with contextlib.suppress(trio.BrokenResourceError):
                    await self.send(stream)
                    if self.end == "finish":
                        await stream.send_eof()
                if self.end != "finish":
                    # Else it may be gone before it is accepted, and then nobody is told of it.
                    await until(lambda: name in [c.remote_addr() for c in recorder.conns])
                    nursery.cancel_scope.cancel()
            if self.end == "reset":
                gain_tools.reset(stream.socket)
        assert self.sent.startswith(self.received)
        if self.end == "finish" and name not in self.chaos.cut and not self.chaos.ended:
            assert len(self.received) == len(self.sent)

    async def send(self, stream: trio.SocketStream) -> None:
        total = self.rng.randrange(1, MESSAGE_MAX)
        while len(self.sent) < total:
            piece = self.rng.randbytes(self.rng.choice(SIZES))
            self.sent += piece
            await stream.send_all(piece)
            if self.rng.random() < 0.3:
                await trio.sleep(self.rng.choice([0, 0.001]))

    async def receive(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(self.rng.choice(SIZES)):
                self.received += data
                if self.rng.random() < 0.1:
                    await trio.sleep(0.001)


def check(recorder: Recorder, cut: set[Any]) -> None:
    for conn in recorder.conns:
        (err,) = recorder.values("on_close", conn)
        if conn.remote_addr() in cut:
            # Our close() or abort(); or the peer's reset, had it come first or cut off what
            # close() was draining.
            assert err is None or isinstance(err, OSError), err
        else:
            assert err is None or isinstance(err, (gain.EndOfStream, OSError)), err


def random_options(seed: int, mode: str) -> dict[str, Any]:
    choice: Callable[..., Any] = random.Random(seed).choice
    return {
        **gain_tools.options_for(mode),
        "architecture": choice(["reactor", "sharding"]),
        "read_buffer_limit": choice([1, 5000, 65536]),
        "write_high_water": choice([1, 5000, 65536]),
    }


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_random_connections(seed: int, mode: str, workers: int) -> None:
    chaos = Chaos(seed, mode)
    options = random_options(seed, mode)
    async with serving(chaos.recorder, workers=workers, **options) as server:
        with trio.fail_after(gain_tools.BOUND_S * 2):
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    client = Client(server, chaos, seed * 1000 + number)
                    nursery.start_soon(client.run)
        await until(lambda: chaos.recorder.counts().close == CLIENTS)
    check(chaos.recorder, chaos.cut)


@pytest.mark.parametrize("how", ["shutdown", "abort", "cancel"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_the_server_ends_at_a_random_moment(seed: int, mode: str, how: str) -> None:
    chaos = Chaos(seed, mode)
    options = random_options(seed, mode)
    server = gain.Server(chaos.recorder, gain.Config(workers=3 if seed % 2 else 1, **options))
    scope = trio.CancelScope()
    ended = trio.Event()

    async def serve(task_status: trio.TaskStatus[gain.Server]) -> None:
        with scope:
            await server.serve(gain_tools.LOOPBACK, task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        for number in range(CLIENTS):
            nursery.start_soon(Client(server, chaos, seed * 1000 + number).run)
        await until(lambda: chaos.recorder.counts().accept == CLIENTS)
        await trio.sleep(random.Random(seed).random() * 0.03)
        chaos.ended = True
        if how == "cancel":
            scope.cancel()
        else:
            server.async_shutdown(0.05 if how == "shutdown" else 0)
        with trio.fail_after(gain_tools.BOUND_S):
            await ended.wait()
    gain_tools.assert_ended(server, chaos.recorder)
