"""Echo under load: CPU per message, messages a second and latency of every server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.comparison import Comparison, take_turns
from benchmarks.loadgen import LoadOptions, LoadReport, measure_load
from benchmarks.peers import STOCK, STOCK_AGAIN
from benchmarks.processes import cores_for_server_and_load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.peers import Peer

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


def measure_once(peer: Peer, scenario: EchoScenario, seconds: float) -> LoadReport:
    """Start a server, load it, and stop it."""
    _, load_core = cores_for_server_and_load()
    with peer.start() as server:
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
    *,
    base: str = STOCK,
    again: str = STOCK_AGAIN,
) -> Comparison[LoadReport]:
    """All rounds of a scenario."""
    reports = take_turns(
        peers,
        rounds,
        lambda peer: measure_once(peer, scenario, seconds),
        lambda text: progress(f"{scenario.name}, {text}"),
    )
    return Comparison(scenario.name, METRICS, reports, base, again)
