"""Load by the C generator: messages, one way, and short connections."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import c_programs, system_calls
from benchmarks.loadgen import LoadOptions, LoadReport, measure_load
from benchmarks.measurement import Measurement
from benchmarks.observe import peak_rss_kib
from benchmarks.processes import cores_for_server_and_load

if TYPE_CHECKING:
    from benchmarks.peers import Peer

WARMUP_S = 0.3  # CPython's caches and TCP's windows settle within some 100 ms

MIB = 1 << 20
UNITS = {"accept": "connection", "ask": "connection", "send": "MiB", "receive": "MiB"}
ABOUT = {
    "echo": "ping-pong over TCP on each connection, every byte compared",
    "unix": "ping-pong over UNIX sockets on each connection, every byte compared",
    "udp": "ping-pong of datagrams from so many sockets, every byte compared",
    "send": "as much as the server takes",
    "receive": "as much as the server gives",
    "accept": "connect, receive one byte, and the server closes",
    "ask": "connect, send 1 KiB, receive it back, and the server closes",
}


def format_bytes(size: int) -> str:
    """As sizes are called in names of scenarios: 64B, 16KiB, 1MiB."""
    for unit, factor in (("MiB", MIB), ("KiB", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


@dataclass(frozen=True)
class Generated:
    """So many connections at any time, each with one message under way.

    Attributes:
      kind: of loadgen.c.
      connections: at any time.
      message_bytes: the size of a message; one way, of a unit.
      patience: how many times longer than others this is warmed up and measured: so many
        connections take that long until each had some turns.
    """

    kind: str
    connections: int
    message_bytes: int
    patience: float = 1.0

    @property
    def unit(self) -> str:
        """A message, where nothing else is said."""
        return UNITS.get(self.kind, "message")

    @property
    def about(self) -> str:
        """With the numbers."""
        size = "" if self.kind in UNITS else f", {format_bytes(self.message_bytes)}"
        return f"{ABOUT[self.kind]}; {self.connections:,} at a time{size}"

    def missing(self) -> str | None:
        """It needs a compiler."""
        return c_programs.missing("loadgen")

    def seconds(self, seconds: float) -> float:
        """Warm-up and window."""
        return (WARMUP_S + seconds) * self.patience

    def fewest_of_mean(self, report: LoadReport) -> float | None:
        """How fair the server was to connections that are all busy; 1 is: all had the same."""
        if self.unit != "message" or not report.messages:
            return None
        return report.fewest * self.connections / report.messages

    def measure(self, peer: Peer, seconds: float, *, count_calls: bool = False) -> Measurement:
        """All three of its figures from one window."""
        _, load_core = cores_for_server_and_load()
        with peer.start() as server, ExitStack() as stack:
            fds: tuple[int, ...] = ()
            if count_calls:
                fds = stack.enter_context(system_calls.counters(server.pid))
            report = measure_load(
                LoadOptions(
                    port=server.port,
                    connections=self.connections,
                    message_bytes=self.message_bytes,
                    seconds=seconds * self.patience,
                    warmup_seconds=WARMUP_S * self.patience,
                    cpu=load_core,
                    server_pid=server.pid,
                    kind=self.kind,
                    call_counters=fds,
                )
            )
            return Measurement(
                units=report.messages,
                elapsed_ns=report.elapsed_ns,
                cpu_ns=report.server_cpu_ns,
                errors=report.errors,
                p50_ns=report.p50_ns,
                p99_ns=report.p99_ns,
                fewest_of_mean=self.fewest_of_mean(report),
                peak_kib=peak_rss_kib(server.pid),
                calls=report.server_calls if count_calls else None,
            )
