"""Echo under load: CPU per message, messages a second and latency of every server.

All servers take turns within a round, in an order that is turned round every time, so
that a machine that slows down for a while slows down all of them. Ratios are taken
within a round, before the median.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.peers import STOCK, Peer
from uring_trio._loadgen import LoadOptions, LoadReport, cores_for_server_and_load, measure_load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WARMUP_S = 0.3  # CPython's caches and TCP's windows settle within some 100 ms


@dataclass(frozen=True)
class EchoScenario:
    """So many connections, each with one message under way."""

    connections: int
    message_bytes: int

    @property
    def name(self) -> str:
        """As it is called in options and tables: 64x64B, 8x100KiB."""
        size = self.message_bytes
        for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if size % factor == 0:
                return f"{self.connections}x{size // factor}{unit}"
        return f"{self.connections}x{size}B"


ECHO_SCENARIOS = (
    EchoScenario(64, 64),
    EchoScenario(1, 64),
    EchoScenario(8, 1 << 10),
    EchoScenario(8, 16 << 10),
    EchoScenario(8, 100 << 10),
    EchoScenario(8, 1 << 20),
)

# What is read off a report, with the unit in the name.
METRICS: dict[str, Callable[[LoadReport], float]] = {
    "cpu_us": lambda report: report.server_cpu_us_per_message,
    "per_second": lambda report: report.messages_per_second,
    "p50_us": lambda report: report.p50_ns / 1000,
    "p99_us": lambda report: report.p99_ns / 1000,
}


@dataclass(frozen=True)
class Ratio:
    """A metric relative to another server's: the median over the rounds, and the extremes."""

    median: float
    low: float
    high: float


@dataclass
class EchoResult:
    """One scenario: each server's reports, a report for each round."""

    scenario: EchoScenario
    reports: dict[str, list[LoadReport]]

    def median(self, name: str, metric: str) -> float:
        """The median over the rounds."""
        return statistics.median(map(METRICS[metric], self.reports[name]))

    def ratio(self, name: str, metric: str, base: str = STOCK) -> Ratio | None:
        """*name* relative to *base*, round by round; None if one of them was not run."""
        if name not in self.reports or base not in self.reports:
            return None
        read = METRICS[metric]
        pairs = zip(self.reports[name], self.reports[base], strict=True)
        # Without messages in a round there is no base; the errors are shown then.
        ratios = [read(one) / read(other) for one, other in pairs if read(other)]
        if not ratios:
            return None
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def errors(self, name: str) -> int:
        """Connections that broke or stalled, in all rounds."""
        return sum(report.errors for report in self.reports[name])

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        found: dict[str, Any] = {}
        for name, reports in self.reports.items():
            cpu, p50 = self.ratio(name, "cpu_us"), self.ratio(name, "p50_us")
            found[name] = {
                "median": {metric: self.median(name, metric) for metric in METRICS},
                "cpu_of_stock": asdict(cpu) if cpu else None,
                "p50_of_stock": asdict(p50) if p50 else None,
                "rounds": [asdict(report) for report in reports],
            }
        return found


def measure_once(peer: Peer, scenario: EchoScenario, seconds: float) -> LoadReport:
    """Start a server, load it, and stop it."""
    server_core, load_core = cores_for_server_and_load()
    with peer.start(server_core) as server:
        return measure_load(
            LoadOptions(
                port=server.port,
                connections=scenario.connections,
                message_bytes=scenario.message_bytes,
                seconds=seconds,
                warmup_seconds=WARMUP_S,
                cpu=load_core,
                server_pid=server.pid,
            )
        )


def run_echo(
    scenario: EchoScenario,
    peers: Sequence[Peer],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> EchoResult:
    """All rounds of a scenario."""
    result = EchoResult(scenario, {peer.name: [] for peer in peers})
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            progress(f"{scenario.name}, round {number + 1} of {rounds}: {peer.name}")
            result.reports[peer.name].append(measure_once(peer, scenario, seconds))
    return result
