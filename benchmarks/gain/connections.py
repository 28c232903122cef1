"""10,000 connections: whether all are served, and what an idle one weighs.

Resident memory is read with half and with all of them, so that what a process pays once
drops out of the growth. Then a load on as many connections, from another process.
"""

from __future__ import annotations

import contextlib
import json
import resource
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.loadgen import LoadOptions, LoadReport, measure_load
from benchmarks.observe import connect, round_trip, rss_kib
from benchmarks.processes import ServerProcess, cores_for_server_and_load
from benchmarks.servers.control import allow_many_connections

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers import Peer

CONNECTIONS = 10_000
FDS_BESIDE = 200  # this process's and the server's own: libraries, pipes, the ring
SETTLE_S = 0.5  # after the last connection, until nothing moves


@dataclass(frozen=True)
class ConnectionsResult:
    """What a server did with many connections.

    Attributes:
      connections: were made, with a round trip on each.
      served: made another one when all were there.
      rss_per_connection_bytes: growth from half of the connections to all, for each.
      idle: the server's statistics while all were idle; empty if it has none.
      load: a ping-pong of 64 B on each of as many connections.
    """

    connections: int
    served: int
    rss_per_connection_bytes: float
    idle: dict[str, int]
    load: LoadReport

    @property
    def errors(self) -> int:
        """Connections that were not served to the end."""
        return self.connections - self.served + self.load.errors

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def allow_connections(count: int) -> str | None:
    """Raise RLIMIT_NOFILE, the hard one too where that is allowed; say why it cannot be."""
    needed = count + FDS_BESIDE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
        except (ValueError, OSError) as error:
            return f"RLIMIT_NOFILE is {hard}, and {needed} are needed: {error}"
    allow_many_connections()  # servers started from here inherit it
    return None


def read_statistics(server: ServerProcess) -> dict[str, int]:
    """What the server says of itself; empty if it has no such figures."""
    answer = server.ask("statistics")
    found: dict[str, int] = {} if answer == "unknown" else json.loads(answer)
    return found


def run_connections(
    peer: Peer, progress: Callable[[str], None], *, count: int = CONNECTIONS, seconds: float = 2.0
) -> ConnectionsResult:
    """Watch one server."""
    _, load_core = cores_for_server_and_load()
    progress(f"{count:,} connections: {peer.name}")
    half = count // 2
    with peer.start() as server, contextlib.ExitStack() as stack:
        conns = connect(server.port, half, stack)
        time.sleep(SETTLE_S)
        rss_half = rss_kib(server.pid)
        conns += connect(server.port, count - half, stack)
        time.sleep(SETTLE_S)
        rss_full = rss_kib(server.pid)
        idle = read_statistics(server)
        served = sum(map(round_trip, conns))
    with peer.start() as server:
        load = measure_load(
            LoadOptions(
                port=server.port,
                connections=count,
                seconds=seconds,
                warmup_seconds=seconds / 2,  # each connection has its first turn
                cpu=load_core,
                server_pid=server.pid,
            )
        )
    return ConnectionsResult(
        connections=count,
        served=served,
        rss_per_connection_bytes=(rss_full - rss_half) * 1024 / (count - half),
        idle=idle,
        load=load,
    )
