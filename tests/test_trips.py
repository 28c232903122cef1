"""How far each trip of docs/design.md goes round in the house.

    python tests/test_trips.py [--calls] [trip ...]

prints of each trip what has to be followed by who reads it: the calls of our functions, the
rooms that they are in, which are modules, and the moves from one room to another. What the
loop does on the way belongs to the trip. A function that sleeps is called again when it goes
on. What is C's is no call. Before a trip counts it is made often enough to be warm.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from marks import needs_ring

import uring_trio
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

PACKAGE = str(Path(uring_trio.__file__).parent) + "/"
MESSAGE = b"x" * 64
# Enough for whatever is chosen by how it went before, such as whether a receive polls first.
TIMES_BEFORE = 4
# So long nothing happens: what is under way has ended.
QUIET_S = 0.01
SCRIPT_LIMIT_S = 50.0

# The most rooms of a trip. What is over them is a detour that every reader takes. Of the trips
# of the callback servers their own rooms count: the ticks of a run lie under every one of them.
ROOMS_MAX = {
    "recv_into": 5,
    "accept to armed": 8,
    "peer's close to on_close": 7,
    "serve to started": 12,
}
# ... and rooms that each of these trips cannot but go through: else it was another one.
ROOMS_SEEN = {
    "recv_into": {"_sockets", "_io_manager"},
    "accept to armed": {"gain._accept", "gain._connection", "gain._worker"},
    "peer's close to on_close": {"gain._connection", "gain._life", "gain._worker"},
    "serve to started": {"gain._server", "gain._serving", "gain._worker"},
}


class Way:
    """The calls of one trip, in all threads, in their order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # room, function
        self.under_way = False
        self.last_turn = False

    def note(self, frame: FrameType, event: str, _arg: Any) -> None:
        """A function to be given to `sys.setprofile`."""
        if event != "call" or not self.under_way:
            return
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(PACKAGE):
            if self.last_turn and function == "get_events":
                self.end()
                return
            room = path[len(PACKAGE) :].removesuffix(".py").replace("/", ".")
            self.calls.append((room, function))

    def begin(self) -> None:
        """What happens from now on belongs to the trip."""
        self.under_way = True

    def end(self) -> None:
        """What happens from now on does not."""
        self.under_way = False

    def end_with_turn(self) -> None:
        """The rest of this turn of the loop does still."""
        self.last_turn = True

    @contextlib.contextmanager
    def counted(self, counts: bool) -> Iterator[None]:
        """What happens within belongs to the trip, if this is the time that counts."""
        self.under_way = counts
        try:
            yield
        finally:
            self.end()

    def summary(self) -> dict[str, Any]:
        """What is printed."""
        rooms = [room for room, _ in self.calls]
        moves = sum(room != before for before, room in itertools.pairwise(rooms))
        return {"calls": len(rooms), "rooms": sorted(set(rooms)), "moves": moves}


def times() -> Iterator[bool]:
    """Whether it counts: once, when it is warm."""
    yield from [False] * TIMES_BEFORE
    yield True


# ---- trio ---------------------------------------------------------------------------------


@contextlib.contextmanager
def connection() -> Iterator[tuple[trio.socket.SocketType, socket.socket]]:
    """One end for trio, and one that blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        end, _ = listener.accept()
    with trio.socket.from_stdlib_socket(end) as ours, peer:
        yield ours, peer


async def receive_some(way: Way) -> None:
    """From the call until the task has the bytes, which are there."""
    with connection() as (ours, peer):
        stream = trio.SocketStream(ours)
        for counts in times():
            peer.sendall(MESSAGE)
            with way.counted(counts):
                await stream.receive_some(4096)


async def send_all(way: Way, data: bytes | bytearray) -> None:
    """From the call until the task goes on; the kernel takes all at once."""
    with connection() as (ours, _):
        stream = trio.SocketStream(ours)
        for counts in times():
            with way.counted(counts):
                await stream.send_all(data)


async def recv_into(way: Way) -> None:
    """From the call until the task has the count of bytes, which are there."""
    with connection() as (ours, peer):
        memory = bytearray(4096)
        for counts in times():
            peer.sendall(MESSAGE)
            with way.counted(counts):
                await ours.recv_into(memory)


async def cancel(way: Way) -> None:
    """Of a receive that the kernel has: from ``cancel()`` until its task goes on."""

    async def receive(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        with scope:
            await stream.receive_some(4096)
        way.end()

    with connection() as (ours, _):
        stream = trio.SocketStream(ours)
        for counts in times():
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, stream, scope)
                await trio.testing.wait_all_tasks_blocked(QUIET_S)
                if counts:
                    way.begin()
                scope.cancel()


def run(way: Way) -> None:
    """All of a run that passes one checkpoint, when there was one before."""
    for counts in times():
        with way.counted(counts):
            uring_trio.run(trio.lowlevel.checkpoint, backend="io_uring")


# ---- callback servers ---------------------------------------------------------------------


class Handler(gain.EventHandler):
    """Echoes, and tells of one connection's callbacks."""

    def __init__(self) -> None:
        self.told: dict[str, trio.Event] = {}
        self.called: Callable[[str], None] = lambda name: None

    def tell(self, name: str) -> None:
        self.called(name)
        self.told[name].set()

    def on_accept(self, conn: gain.Conn) -> None:
        self.tell("on_accept")

    def on_read(self, conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(n))
        self.tell("on_read")

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        self.tell("on_close")

    async def wait_for(self, name: str, act: Callable[[], object]) -> None:
        """Act, and wait for the callback that comes of it, and all that comes of that."""
        self.told[name] = trio.Event()
        act()
        await self.told[name].wait()
        await trio.testing.wait_all_tasks_blocked(QUIET_S)


async def serve_one(way: Way, callback: str) -> None:
    """A part of a connection's life, which *callback* is called in.

    It begins when the peer connects, sends or closes. ``on_accept`` and ``on_read``: it ends
    when the worker has nothing left to do, and sleeps. ``on_close``: it ends with the call.
    """
    handler = Handler()
    async with trio.open_nursery() as nursery:
        serve = partial(gain.serve, "tcp://127.0.0.1:0", handler, workers=1)
        server: gain.Server = await nursery.start(serve)

        def called(name: str) -> None:
            if name == callback == "on_close":
                way.end()
            elif name == callback:
                way.end_with_turn()

        async def step(name: str, act: Callable[[], object], *, counts: bool) -> None:
            if counts and name == callback:
                handler.called = called
                way.begin()
            await handler.wait_for(name, act)
            handler.called = lambda name: None

        for counts in times():
            with socket.socket() as peer:
                connect = partial(peer.connect, tuple(server.addresses()[0]))
                await step("on_accept", connect, counts=counts)
                for last in times():
                    await step("on_read", partial(peer.sendall, MESSAGE), counts=counts and last)
                    assert peer.recv(len(MESSAGE)) == MESSAGE
                await step("on_close", peer.close, counts=counts)
        server.async_shutdown(0)


class Started:
    """What `serve` tells that it has started; the server is not needed any more."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def started(self, server: gain.Server) -> None:
        self.way.end()
        server.async_shutdown(0)


async def start(way: Way) -> None:
    """From the call of `serve` until it tells that the server has started."""
    for counts in times():
        if counts:
            way.begin()
        await gain.serve(
            "tcp://127.0.0.1:0",
            gain.EventHandler(),
            workers=1,
            task_status=Started(way),  # type: ignore[arg-type]
        )


# ---- all of them --------------------------------------------------------------------------


def on_ring(trip: Callable[..., Awaitable[None]], *args: Any) -> Callable[[Way], None]:
    return lambda way: uring_trio.run(trip, way, *args, backend="io_uring")


TRIPS: dict[str, Callable[[Way], None]] = {
    "receive_some": on_ring(receive_some),
    "send_all(bytes)": on_ring(send_all, MESSAGE),
    "send_all(bytearray)": on_ring(send_all, bytearray(MESSAGE)),
    "recv_into": on_ring(recv_into),
    "cancel": on_ring(cancel),
    "run": run,
    "accept to armed": on_ring(serve_one, "on_accept"),
    "read, write, send": on_ring(serve_one, "on_read"),
    "peer's close to on_close": on_ring(serve_one, "on_close"),
    "serve to started": on_ring(start),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What each trip goes through.")
    parser.add_argument("--calls", action="store_true", help="each call as well")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("trip", nargs="*", help=f"of {', '.join(TRIPS)}; default: all")
    options = parser.parse_args()
    ways = {name: Way() for name in options.trip or TRIPS}
    current = Way()

    def note(frame: FrameType, event: str, arg: Any) -> None:
        current.note(frame, event, arg)

    # One function for all, because threads are used again, and none is given another one.
    threading.setprofile(note)
    sys.setprofile(note)
    gc.disable()  # what it would call is on nobody's way
    for name, way in ways.items():
        current = way
        TRIPS[name](way)
    sys.setprofile(None)
    if options.json:
        print(json.dumps({name: way.summary() for name, way in ways.items()}))
        return
    for name, way in ways.items():
        found = way.summary()
        rooms = found["rooms"]
        print(f"{name}: {found['calls']} calls, {len(rooms)} rooms, {found['moves']} moves")
        print("   ", " ".join(rooms))
        for room, function in way.calls if options.calls else ():
            print(f"        {room}: {function}")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """All trips, made in a process of their own, where nobody else looks at the calls."""
    command = [sys.executable, __file__, "--json"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=SCRIPT_LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    trips: dict[str, Any] = json.loads(ended.stdout)
    return trips


@pytest.mark.fast_ways
@needs_ring
@pytest.mark.parametrize("trip", ROOMS_MAX)
def test_a_trip_is_no_long_way_round(found: dict[str, Any], trip: str) -> None:
    rooms = set(found[trip]["rooms"])
    assert ROOMS_SEEN[trip] <= rooms
    of_servers = {room for room in rooms if room.startswith("gain.")}
    counted = of_servers or rooms
    assert len(counted) <= ROOMS_MAX[trip], counted


if __name__ == "__main__":
    main()
