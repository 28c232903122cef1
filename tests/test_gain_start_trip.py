"""How far a start goes round in the house: from ``gain.serve`` to where it is told as started.

    python tests/test_gain_start_trip.py [workers]

prints each room of ours that was entered, and how often.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest

import uring_trio
from uring_trio import gain

if TYPE_CHECKING:
    from types import FrameType

pytestmark = gain_tools.needs_ring

PACKAGE = str(Path(uring_trio.__file__).parent)
# A step back in either is a detour that somebody has to follow who reads it. The run's own
# ticks and the worker's beginning are counted as well.
ROOMS_MAX = 18
CALLS_MAX = 190


class Echo(gain.EventHandler):
    def on_read(self, conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(n))


class Trip:
    """Of one start, in all threads: the calls of each room."""

    def __init__(self) -> None:
        self.rooms: Counter[str] = Counter()
        self.under_way = False

    def note(self, frame: FrameType, event: str, _arg: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and self.under_way and path.startswith(PACKAGE):
            self.rooms[path[len(PACKAGE) + 1 : -3]] += 1

    def started(self, server: Any) -> None:
        self.under_way = False
        server.async_shutdown(0)

    async def go(self, workers: int) -> None:
        for again in (False, True):  # what is done once in a process is no part of it
            self.under_way = again
            await gain.serve("tcp://127.0.0.1:0", Echo(), task_status=self, workers=workers)  # type: ignore[arg-type]


def main(workers: int) -> None:
    trip = Trip()
    threading.setprofile(trip.note)
    sys.setprofile(trip.note)
    uring_trio.run(trip.go, workers, backend="io_uring")
    sys.setprofile(None)
    print(sum(trip.rooms.values()), "calls in", len(trip.rooms), "rooms")
    for room, calls in trip.rooms.most_common():
        print(f"{calls:5d} {room}")


@pytest.mark.skipif(sys.gettrace() is not None, reason="something is traced already")
def test_a_start_is_no_long_way_round() -> None:
    """In a process of its own, where nobody else looks at the calls."""
    command = [sys.executable, __file__, "1"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=10 * gain_tools.BOUND_S, check=True
    )
    calls, _, _, rooms, *_ = ended.stdout.split()
    assert int(rooms) <= ROOMS_MAX, ended.stdout
    assert int(calls) <= CALLS_MAX, ended.stdout


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
