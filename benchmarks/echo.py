"""Echo under the C generator's load, as it reports: for the demo, and beside hostile clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.generated import format_bytes
from benchmarks.loadgen import LoadOptions, LoadReport, measure_load
from benchmarks.processes import cores_for_server_and_load

if TYPE_CHECKING:
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
        return f"{self.connections}x{format_bytes(self.message_bytes)}"


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
