"""A server with idle connections: what waiting costs, and what a connection weighs.

Waiting must cost nothing: neither an enter into the ring nor a voluntary context switch
without a deadline, and one for each deadline with some. What a connection weighs is the
growth of the resident set between 500 and 1,000 of them, so that what a process pays
once, the ring and its buffers with it, drops out; that is shown by itself.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.loadgen import LoadOptions, measure_load
from benchmarks.observe import connect, rss_kib, voluntary_switches
from benchmarks.peers import IO_URING
from benchmarks.processes import ServerProcess, cores_for_server_and_load
from benchmarks.servers.control import allow_many_connections

if TYPE_CHECKING:
    from benchmarks.peers import Peer

CONNECTIONS = 1000
HALF = CONNECTIONS // 2
IDLE_S = 5.0
DEADLINES = 10
# After the last connection and between a question and a reading: until nothing moves.
SETTLE_S = 0.5

# What makes a server touch all the memory that it will use: many and large messages.
WORKOUT = LoadOptions(port=0, connections=64, message_bytes=100 << 10, seconds=1.0)


@dataclass(frozen=True)
class IdleResult:
    """What a server did while nothing happened, and how large it was.

    Attributes:
      switches: voluntary context switches in 5 s without deadlines.
      enters: calls into the ring in the same time; None off the ring.
      switches_with_deadlines: the same with 10 deadlines in that time; None off trio.
      enters_with_deadlines: likewise.
      rss_start_kib: resident set with no connection yet.
      rss_per_connection_bytes: growth from 500 to 1,000 connections, divided by 500.
      rss_after_load_kib: resident set of another process, after heavy load.
    """

    switches: int
    enters: int | None
    switches_with_deadlines: int | None
    enters_with_deadlines: int | None
    rss_start_kib: int
    rss_per_connection_bytes: float
    rss_after_load_kib: int

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def read_enters(server: ServerProcess, peer: Peer) -> int:
    """The ring's counter; 0 for everything that has none."""
    if not peer.is_trio:
        return 0
    return json.loads(server.ask("statistics"))["enters"] or 0


@dataclass
class Watch:
    """Counts over 5 s. A question wakes the server, so its own cost is taken off."""

    server: ServerProcess
    peer: Peer

    def idle(self, deadlines: int = 0) -> tuple[int, int]:
        """Voluntary context switches, and enters."""
        first = read_enters(self.server, self.peer)
        before = read_enters(self.server, self.peer)
        question = before - first
        questions = 1
        if deadlines:
            self.server.ask(f"deadlines {deadlines} {IDLE_S}")
            questions += 1
        time.sleep(SETTLE_S)
        switches = voluntary_switches(self.server.pid)
        time.sleep(IDLE_S)
        switches = voluntary_switches(self.server.pid) - switches
        after = read_enters(self.server, self.peer)
        return switches, after - before - questions * question


def rss_after_load(peer: Peer, load_cpu: int) -> int:
    """The resident set of a fresh server after a second of heavy load."""
    with peer.start() as server:
        measure_load(replace(WORKOUT, port=server.port, cpu=load_cpu))
        time.sleep(SETTLE_S)
        return rss_kib(server.pid)


def run_idle(peer: Peer) -> IdleResult:
    """Watch one server."""
    allow_many_connections()
    _, load_cpu = cores_for_server_and_load()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(peer.start())
        time.sleep(SETTLE_S)
        rss_start = rss_kib(server.pid)
        connect(server.port, HALF, stack)
        time.sleep(SETTLE_S)
        rss_half = rss_kib(server.pid)
        connect(server.port, CONNECTIONS - HALF, stack)
        time.sleep(SETTLE_S)
        rss_full = rss_kib(server.pid)
        watch = Watch(server, peer)
        switches, enters = watch.idle()
        switches_late, enters_late = watch.idle(DEADLINES) if peer.is_trio else (None, None)
    has_ring = peer.is_trio and IO_URING in peer.needs
    return IdleResult(
        switches=switches,
        enters=enters if has_ring else None,
        switches_with_deadlines=switches_late,
        enters_with_deadlines=enters_late if has_ring else None,
        rss_start_kib=rss_start,
        rss_per_connection_bytes=(rss_full - rss_half) * 1024 / (CONNECTIONS - HALF),
        rss_after_load_kib=rss_after_load(peer, load_cpu),
    )
