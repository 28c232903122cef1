"""How far three trips go round in the house: from ``gain.serve`` to where it is told as
started, from a connection that comes to an armed receive, and from a peer's close to
``on_close``.

    python tests/test_gain_trips.py

prints each room of the callback servers that was entered, and how often. The ticks of the
run, which lie under every trip, are no part of them.
"""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio

import uring_trio
from uring_trio import gain

if TYPE_CHECKING:
    from types import FrameType

pytestmark = gain_tools.needs_ring

ROOMS = str(Path(uring_trio.__file__).parent / "gain") + "/"
# A step back in any of them is a detour that somebody has to follow who reads it.
TRIPS = {
    "serve to started": (12, 140),
    "accept to armed": (8, 80),
    "peer's close to on_close": (7, 115),
}


class Trip:
    """The calls of each room, while one is under way."""

    def __init__(self) -> None:
        self.rooms: Counter[str] = Counter()
        self.names: list[str] = []
        self.under_way = False

    def note(self, frame: FrameType, event: str, _arg: Any) -> None:
        path = frame.f_code.co_filename
        if frame.f_code.co_flags & inspect.CO_COROUTINE:
            return  # a task goes on, and nobody has called it
        if event == "call" and self.under_way and path.startswith(ROOMS):
            room = path[len(ROOMS) : -3]
            self.rooms[room] += 1
            self.names.append(f"{room}.{frame.f_code.co_name}")

    def end(self, name: str) -> None:
        self.under_way = False
        print(f"{name}: {sum(self.rooms.values())} calls in {len(self.rooms)} rooms")
        for room, calls in self.rooms.most_common():
            print(f"{calls:5d} {room}")
        if "-v" in sys.argv:
            print("  ".join(self.names))
        self.rooms.clear()
        self.names.clear()

    def started(self, server: gain.Server) -> None:
        """As a task status of ``serve``."""
        if self.under_way:
            self.end("serve to started")
        server.async_shutdown(0)


class Handler(gain.EventHandler):
    """Says when a trip ends."""

    def __init__(self, trip: Trip) -> None:
        self.trip = trip

    def on_read(self, conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(n))

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        if self.trip.under_way:
            self.trip.end("peer's close to on_close")


async def go(trip: Trip) -> None:
    for again in (False, True):  # what is done once in a process is no part of it
        trip.under_way = again
        await gain.serve("tcp://127.0.0.1:0", Handler(trip), task_status=trip)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, "tcp://127.0.0.1:0", Handler(trip))
        address = server.addresses()[0]
        for again in (False, True):
            trip.under_way = again
            client = socket.create_connection(tuple(address))
            with client:
                await trio.sleep(0.05)
                if again:
                    trip.end("accept to armed")
                client.sendall(b"a message")
                client.setblocking(False)
                await trio.sleep(0.05)
                assert client.recv(100) == b"a message"
                trip.under_way = again
            await trio.sleep(0.05)
        server.shutdown()


def main() -> None:
    trip = Trip()
    sys.setprofile(trip.note)
    uring_trio.run(go, trip, backend="io_uring")
    sys.setprofile(None)


@pytest.mark.skipif(sys.gettrace() is not None, reason="something is traced already")
def test_trips_are_no_long_way_round() -> None:
    """In a process of its own, where nobody else looks at the calls."""
    command = [sys.executable, __file__]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=10 * gain_tools.BOUND_S, check=True
    )
    for name, (rooms_max, calls_max) in TRIPS.items():
        (line,) = (line for line in ended.stdout.splitlines() if line.startswith(name))
        calls, _, _, rooms, _ = line.rpartition(": ")[2].split()
        assert int(rooms) <= rooms_max, ended.stdout
        assert int(calls) <= calls_max, ended.stdout


if __name__ == "__main__":
    main()
