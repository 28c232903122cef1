"""An engine of callback servers that is a script: every order that the ring may give, by seed.

It has no socket, no ring and no clock. A `Peer` sends, ends, resets and takes as the seed
says; what is asked of a `ScriptedLink` completes in any order and in any of the ways that
`uring_trio.gain._engine` allows, of which each step chooses one.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
from threading import get_ident
from typing import TYPE_CHECKING, Any

from uring_trio._kernel import POLLERR, POLLHUP, POLLIN, POLLRDHUP
from uring_trio.gain import EventHandler
from uring_trio.gain._callbacks import Callbacks
from uring_trio.gain._config import Config
from uring_trio.gain._conn import Conn, DatagramConn
from uring_trio.gain._connection import Connection
from uring_trio.gain._engine import ENDS
from uring_trio.gain._halves import Sizes
from uring_trio.gain._turn import Turn
from uring_trio.gain._worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_MAX = 8  # bytes that a small receive takes: the sizes are those of a toy
LARGE_MAX = 32
SMALL_IN_A_ROW = 3


# What may happen, in the words of `_engine`'s rules: a test shows that each of it does.
HAPPENINGS = {
    "there before anything was armed",
    "taken back",
    "stopped, and nothing came",
    "stopped, and data came all the same",
    "stopped, and the end came all the same",
    "a receive that stays armed",
    "a receive that ends with its data",
    "no buffer",
    "the end",
    "an error",
    "told of large input",
    "told of large input and its end",
    "a poll that ends by itself",
    "taken to the brim",
    "nothing to take",
    "watched, and stopped",
    "watched, and the peer has ended",
    "watched, and the peer has gone",
    "sent at once, whole",
    "sent at once, in part",
    "not sent at once",
    "sent in part",
    "sent whole",
    "a send that was stopped",
    "a send that was interrupted",
    "a send that failed",
    "begun in a thread, too late",
    "begun in a thread",
    "begun as a task",
    "a batch of many",
}


class Peer:
    """The other side of a connection."""

    def __init__(self) -> None:
        self.sent = bytearray()  # all that it ever has
        self.unread = bytearray()  # of that, what was not received
        self.end: int | None = None  # 0: its end of file; else an errno
        self.received = bytearray()
        self.window = 0  # bytes that it takes yet
        self.fin = self.reset = False  # what it has got


class ScriptedLink:
    """One file of the engine."""

    def __init__(self, engine: ScriptedEngine, connection: Connection, peer: Peer) -> None:
        self.engine, self.connection, self.peer = engine, connection, peer
        self.fd = len(engine.links)
        self.was_armed = False
        self.polls = False  # what receives is a poll
        self.readable = 0
        self.flights: dict[str, str] = {}  # operation -> "armed", or "stopping"
        self.sending: tuple[bytes, int, int] = (b"", 0, 0)
        self.again = False
        self.told_of: tuple[int, int | None] | None = None  # by a poll: it tells of what is new
        self.linger = True
        self.closed = False

    # ---- what is asked of it -------------------------------------------------------------

    def begin(self, name: str) -> None:
        assert not self.closed
        assert name not in self.flights, f"{name} is armed twice"
        self.flights[name] = "armed"

    def take_back(self, name: str) -> bool:
        assert not self.closed
        if self.flights.get(name) != "armed":
            return False
        if self.engine.rng.random() < 0.2:  # nobody has begun it
            self.engine.seen.add("taken back")
            del self.flights[name]
            return True
        self.flights[name] = "stopping"
        return False

    def arm(self, *, large: bool) -> None:
        self.begin("receive")
        self.polls = large
        self.told_of = None

    def stop(self) -> bool:
        return self.take_back("receive")

    def watch(self, *, again: bool) -> None:
        self.begin("watch")
        self.again = again

    def stop_watch(self) -> bool:
        return self.take_back("watch")

    def send(self, data: bytes, at: int, size: int) -> None:
        assert 0 < size <= len(data) - at
        self.begin("send")
        self.sending = data, at, size

    def stop_send(self) -> bool:
        return self.take_back("send")

    def is_quiet(self) -> bool:
        return not self.flights

    def in_flight(self) -> int:
        return len(self.flights)

    def forget(self, slot: Any, res: int, flags: int) -> None:
        raise AssertionError("no batch is lost here")

    def try_send(self, data: bytes, size: int) -> int:
        assert not self.closed
        assert "send" not in self.flights
        sent = self.put(data[:size], self.engine.rng.choice([size, size, size // 2, 0]))
        how = "whole" if sent == size else "in part"
        self.engine.seen.add(f"sent at once, {how}" if sent > 0 else "not sent at once")
        return sent

    def put(self, data: bytes, most: int) -> int:
        peer = self.peer
        if peer.end:
            return -peer.end
        assert not peer.fin
        taken = min(len(data), most, peer.window)
        if not taken:
            return -errno.EAGAIN
        peer.window -= taken
        peer.received += data[:taken]
        return taken

    def take_first(self) -> tuple[int, bytes]:
        assert not self.closed
        was_armed, self.was_armed = self.was_armed, True
        if was_armed or "receive" in self.flights:
            return -errno.EAGAIN, b""
        peer = self.peer
        if peer.unread:
            self.engine.seen.add("there before anything was armed")
            data = self.cut(PIECE_MAX)
            return len(data), data
        return -errno.EAGAIN if peer.end is None else -peer.end, b""

    def take(self) -> tuple[int, bytes, int]:
        told, self.readable = self.readable, 0
        peer = self.peer
        if peer.unread:
            data = self.cut(LARGE_MAX)
            more = told & ENDS or len(data) == LARGE_MAX
            if len(data) == LARGE_MAX:
                self.engine.seen.add("taken to the brim")
            return len(data), data, told if more else 0
        self.engine.seen.add("nothing to take")
        return -errno.EAGAIN if peer.end is None else -peer.end, b"", 0

    def remember(self, told: int) -> None:
        self.readable |= told

    def forget_input(self) -> None:
        self.readable = 0

    def unread(self) -> int:
        return len(self.peer.unread)

    def error(self) -> int:
        return self.peer.end or 0

    def send_fin(self) -> None:
        assert not self.closed
        self.peer.fin = True

    def reset_at_close(self) -> None:
        self.linger = False

    def close(self) -> None:
        assert not self.closed
        assert not self.flights, "closed with an operation in flight"
        self.closed = True
        self.peer.reset = not self.linger or bool(self.peer.unread)
        self.peer.fin = True

    # ---- what happens --------------------------------------------------------------------

    def cut(self, most: int) -> bytes:
        data = bytes(self.peer.unread[:most])
        del self.peer.unread[:most]
        return data

    def steps(self) -> list[Callable[[], None]]:
        """What may happen next."""
        peer, found = self.peer, []
        state = self.flights.get("receive")
        there = bool(peer.unread) or peer.end is not None
        if there and self.polls:
            there = self.told_of != (len(peer.sent), peer.end)
        if state == "stopping" or (state and there):
            found.append(self.receive_step)
        state = self.flights.get("watch")
        if state == "stopping" or (state and peer.end is not None and not self.again):
            found.append(self.watch_step)
        state = self.flights.get("send")
        if state == "stopping" or (state and (peer.window or peer.end)):
            found.append(self.send_step)
        return found

    def happen(self, kind: str, res: int, data: bytes, *, last: bool) -> None:
        if last:
            del self.flights[kind]
        self.engine.batch_data.append(data)
        at = len(self.engine.batch_data) - 1
        self.connection.happened(kind, res, int(last), at)  # type: ignore[arg-type]

    def receive_step(self) -> None:
        rng, peer, seen = self.engine.rng, self.peer, self.engine.seen
        stopping = self.flights["receive"] == "stopping"
        stays = self.polls or self.engine.misses_errors
        last = stopping or not stays or rng.random() < 0.2
        if stopping and rng.random() < 0.5:
            seen.add("stopped, and nothing came")
            self.happen("receive", -errno.ECANCELED, b"", last=True)
        elif self.polls and not stopping:
            self.told_of = (len(peer.sent), peer.end)
            ends = 0 if peer.end is None else POLLRDHUP
            seen.add("told of large input and its end" if ends else "told of large input")
            self.happen("readable", POLLIN | ends, b"", last=False)
            if last:
                seen.add("a poll that ends by itself")
                self.flights.pop("receive")
                self.connection.happened("poll over", 0, 1, 0)  # type: ignore[arg-type]
        elif peer.unread:
            if not stopping and rng.random() < 0.1:
                seen.add("no buffer")
                self.happen("receive", -errno.ENOBUFS, b"", last=True)
                return
            if stopping:
                seen.add("stopped, and data came all the same")
            elif last:
                seen.add("a receive that ends with its data")
            else:
                seen.add("a receive that stays armed")
            data = self.cut(rng.randint(1, PIECE_MAX))
            self.happen("receive", len(data), data, last=last)
        elif peer.end is not None:
            seen.add("an error" if peer.end else "the end")
            if stopping:
                seen.add("stopped, and the end came all the same")
            self.happen("receive", -peer.end, b"", last=True)
        else:
            self.happen("receive", -errno.ECANCELED, b"", last=True)

    def watch_step(self) -> None:
        seen = self.engine.seen
        if self.flights["watch"] == "stopping":
            seen.add("watched, and stopped")
            self.happen("watch", -errno.ECANCELED, b"", last=True)
        elif self.peer.end:
            seen.add("watched, and the peer has gone")
            self.happen("watch", POLLERR | POLLHUP | POLLRDHUP, b"", last=True)
        else:
            seen.add("watched, and the peer has ended")
            self.happen("watch", POLLRDHUP, b"", last=True)

    def send_step(self) -> None:
        rng, seen = self.engine.rng, self.engine.seen
        data, at, size = self.sending
        stopping = self.flights["send"] == "stopping"
        if stopping and rng.random() < 0.5:
            res = -errno.ECANCELED
        elif rng.random() < 0.1:
            res = -errno.EINTR
        else:
            res = self.put(data[at : at + size], rng.randint(1, size))
            if res == -errno.EAGAIN:
                res = -errno.ECANCELED if stopping else -errno.EINTR
        if res > 0:
            seen.add("sent whole" if res == size else "sent in part")
        else:
            how = {-errno.ECANCELED: "was stopped", -errno.EINTR: "was interrupted"}
            seen.add(f"a send that {how.get(res, 'failed')}")
        self.happen("send", res, b"", last=True)

    def happened(self, kind: Any, res: int, last: int, at: int) -> None:
        """In the turn."""
        connection = self.connection
        if kind == "receive":
            connection.intake.completed(res, self.engine.batch_data[at], last=bool(last))
        elif kind == "send":
            connection.outlet.completed(res)
        elif kind == "watch":
            connection.intake.watch_completed(res, last=bool(last))
        else:
            self.readable |= res
            connection.intake.input_there(last=bool(last))


class Running:
    """A callback that runs as a task, or in a thread."""

    def __init__(
        self, seen: set[str], host: Any, name: str, call: Callable[[], None], *, in_thread: bool
    ) -> None:
        self.seen, self.host, self.name, self.call = seen, host, name, call
        self.in_thread, self.begun = in_thread, False
        self.raised: Exception | None = None

    def begin(self) -> None:
        host = self.host
        try:
            if not self.in_thread:
                self.seen.add("begun as a task")
                begins = host.may_tell(self.name)
            else:
                begins = host.borrow(get_ident())
                self.seen.add("begun in a thread" if begins else "begun in a thread, too late")
            if begins:
                self.call()
        except Exception as exc:  # noqa: BLE001 - as a worker does
            self.raised = exc


class ScriptedEngine:
    """A worker's engine, clock and places to run callbacks, and the worker: all by one seed."""

    def __init__(self, seed: int, handler: Any, **options: Any) -> None:
        self.rng = random.Random(seed)
        self.misses_errors = self.rng.random() < 0.5  # receives are multishot
        self.sizes = Sizes(PIECE_MAX, SMALL_IN_A_ROW)
        self.pool = b""
        self.batch_data: list[bytes] = []
        self.seen: set[str] = set()  # of `HAPPENINGS`
        self.peers: list[Peer] = []
        self.links: list[ScriptedLink] = []
        self.running: list[Running] = []
        self.timers: dict[Any, float] = {}
        self.time = 0.0
        self.names: dict[str, bool] = {}  # callback -> whether in a thread
        # As a worker.
        self.engine = self.elsewhere = self.clock = self
        self.logger = logging.getLogger("scripted")
        self.config = Config(**options)
        self.callbacks = Callbacks(handler, Conn, DatagramConn, EventHandler)
        self.turn = Turn(self.callbacks)
        self.turn.serve(lambda fd, data, size: self.links[fd].try_send(data, size))
        self.thread = get_ident()
        self.plain = True
        self.server = None
        self.open: set[Connection] = set()

    def connect(self) -> tuple[Connection, Peer]:
        self.peers.append(Peer())
        here: Any = "here"
        sock: Any = None
        connection = Connection(self, sock, "unix", here, "there")
        self.open.add(connection)
        connection.attend()
        return connection, self.peers[-1]

    def link(self, connection: Connection, _sock: Any) -> ScriptedLink:
        self.links.append(ScriptedLink(self, connection, self.peers[-1]))
        return self.links[-1]

    def forget(self, connection: Connection) -> None:
        self.open.remove(connection)

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        fn(*args)

    tell = Worker.tell

    # ---- callbacks that run elsewhere ----------------------------------------------------

    def run(self, host: Any, name: str, function: Any, args: tuple[Any, ...]) -> None:
        in_thread = self.names[name]
        host.begin_elsewhere(in_thread=in_thread)
        running = Running(self.seen, host, name, lambda: function(*args), in_thread=in_thread)
        self.running.append(running)

    def run_step(self) -> None:
        running = self.rng.choice(self.running)
        if not running.begun:
            running.begun = True
            if running.in_thread:
                thread = threading.Thread(target=running.begin)
                thread.start()
                thread.join()
            else:
                running.begin()
            return
        self.running.remove(running)
        running.host.ended_elsewhere(running.name, running.raised)

    # ---- time ----------------------------------------------------------------------------

    def now(self) -> float:
        return self.time

    def set_in(self, key: Any, seconds: float) -> None:
        self.timers[key] = self.time + seconds

    def cancel(self, key: Any) -> bool:
        return self.timers.pop(key, None) is not None

    def is_set(self, key: Any) -> bool:
        return key in self.timers

    def let_time_pass(self) -> None:
        key = min(self.timers, key=lambda key: self.timers[key])
        self.time = max(self.time, self.timers.pop(key))
        key[0]._timer_expired(key[1])

    # ---- the loop ------------------------------------------------------------------------

    def take_turn(self) -> None:
        self.turn.sweep_completions()
        self.batch_data.clear()
        self.turn.sweep()

    def step(self) -> bool:
        """One thing happens, anywhere; False if nothing can."""
        steps = [step for link in self.links for step in link.steps()]
        if self.running:
            steps.append(self.run_step)
        if not steps:
            return False
        for _ in range(self.rng.randint(1, 3)):  # in one batch
            steps = [step for link in self.links for step in link.steps()]
            if self.running:
                steps.append(self.run_step)
            if steps:
                self.rng.choice(steps)()
        if len(self.turn.batch) > 1:
            self.seen.add("a batch of many")
        self.take_turn()
        return True


class Steady:
    """In place of chance: nothing is taken back, a piece is as large as it may be, all is sent."""

    def random(self) -> float:
        return 0.9

    def randint(self, _least: int, most: int) -> int:
        return most

    def choice(self, options: Any) -> Any:
        return options[0]


def steady_engine(handler: Any, **options: Any) -> ScriptedEngine:
    """One to which nothing happens by chance."""
    engine = ScriptedEngine(0, handler, **options)
    engine.rng = Steady()  # type: ignore[assignment]
    engine.misses_errors = True  # what receives stays armed
    return engine
