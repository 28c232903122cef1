"""Hostile clients beside well-behaved ones: nobody waits for them, and nothing stays.

The well-behaved clients are the C load generator. Each kind is run twice, once with the
hostile client and once with a well-behaved one that is as busy in its place; the latency
of the others is compared between the two. After the hostile client has gone, the server's
books must show what they showed before it came.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.echo import WARMUP_S
from benchmarks.gain.clients import ClientReport, Kind
from benchmarks.gain.connections import read_statistics
from benchmarks.loadgen import LoadOptions, LoadReport, measure_load
from benchmarks.observe import connect, open_fds, rss_kib
from benchmarks.processes import ServerProcess, cores_for_server_and_load, pinned

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers import Peer

WELL_BEHAVED = 8  # connections, each with a message of 64 B under way
WAIT_MAX_MS = 100.0
SETTLE_LIMIT_S = 10.0  # until nothing is left over; close() discards input for 1 s
LOOK_S = 0.05
SETTLE_S = 0.3  # until a connection that was closed here is gone there
CLIENT_STOP_LIMIT_S = 20.0

# What a server's books must show again afterwards; its bytes in and out only grow.
BOOKS = ("connections", "operations_in_flight", "buffers_leased", "bytes_buffered")


@dataclass(frozen=True)
class Side:
    """One run: a client, and the well-behaved ones beside it.

    Attributes:
      client: what the hostile client did, or the one in its place.
      load: what the well-behaved clients saw.
      left_over: how far each of the server's books was off afterwards; empty: not at all.
      rss_growth_kib: of the server, from before the client to after it.
    """

    client: ClientReport
    load: LoadReport
    left_over: dict[str, int]
    rss_growth_kib: int

    @property
    def server_busy(self) -> float:
        """The part of its core that the server took."""
        return self.load.server_cpu_ns / max(1, self.load.elapsed_ns)


@dataclass(frozen=True)
class HostileResult:
    """One kind of client."""

    kind: str
    hostile: Side
    well_behaved: Side

    @property
    def errors(self) -> int:
        """Well-behaved connections that broke, and answers that were wrong."""
        return sum(
            side.load.errors + side.client.failures for side in (self.hostile, self.well_behaved)
        )

    @property
    def wait_max_ms(self) -> float:
        """The longest that a well-behaved client waited beside the hostile one."""
        return self.hostile.load.max_ns / 1e6

    @property
    def p99_ratio(self) -> float:
        """The 99th percentile beside the hostile client, relative to the other run's."""
        return self.hostile.load.p99_ns / max(1, self.well_behaved.load.p99_ns)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def read_books(server: ServerProcess) -> dict[str, int]:
    """What must not grow: file descriptors, and what the server itself counts."""
    statistics = read_statistics(server)
    found = {name: statistics[name] for name in BOOKS if name in statistics}
    return {"fds": open_fds(server.pid), **found}


def wait_for_books(server: ServerProcess, wanted: dict[str, int]) -> dict[str, int]:
    """How far the books are off *wanted* once they settled, or after 10 s."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        books = read_books(server)
        off = {name: books[name] - wanted[name] for name in wanted if books[name] != wanted[name]}
        if not off or time.monotonic() > deadline:
            return off
        time.sleep(LOOK_S)


class ClientProcess:
    """A client of ``clients.py`` on core *cpu*; it works from here until ``stop``."""

    def __init__(
        self, kind: Kind, port: int, *, hostile: bool, pace: float | None, cpu: int
    ) -> None:
        options = {"kind": kind.name, "port": port, "hostile": hostile, "pace": pace}
        with pinned([cpu]):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gain.clients", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "started":
            self.kill()
            raise RuntimeError(f"the client did not start: {kind.name}")

    def stop(self) -> ClientReport:
        """End it, and return what it did."""
        answer, _ = self._process.communicate(timeout=CLIENT_STOP_LIMIT_S)
        return ClientReport(**json.loads(answer))

    def kill(self) -> None:
        """End it by force, if it has not ended."""
        with self._process:
            self._process.kill()


def run_side(peer: Peer, kind: Kind, seconds: float, *, hostile: bool, pace: float | None) -> Side:
    """One client of a kind beside the well-behaved ones, on a new server."""
    _, load_core = cores_for_server_and_load()
    with peer.start() as server, ExitStack() as stack:
        with ExitStack() as first:
            connect(server.port, 1, first)  # what a server makes once is there then
        time.sleep(SETTLE_S)
        books, rss = read_books(server), rss_kib(server.pid)
        client = ClientProcess(kind, server.port, hostile=hostile, pace=pace, cpu=load_core)
        stack.callback(client.kill)
        load = measure_load(
            LoadOptions(
                port=server.port,
                connections=WELL_BEHAVED,
                seconds=seconds,
                warmup_seconds=WARMUP_S,
                cpu=load_core,
                server_pid=server.pid,
            )
        )
        report = client.stop()
        left_over = wait_for_books(server, books)
        return Side(report, load, left_over, rss_kib(server.pid) - rss)


def run_hostile(
    peer: Peer, kind: Kind, seconds: float, progress: Callable[[str], None]
) -> HostileResult:
    """One kind: the hostile client, then a well-behaved one at its pace."""
    progress(f"{kind.name} client, {seconds:g} s: {peer.name}")
    hostile = run_side(peer, kind, seconds, hostile=True, pace=kind.pace)
    progress(f"a well-behaved one in its place, {seconds:g} s: {peer.name}")
    pace = max(1.0, hostile.client.per_second)
    well_behaved = run_side(peer, kind, seconds, hostile=False, pace=pace)
    return HostileResult(kind.name, hostile, well_behaved)
