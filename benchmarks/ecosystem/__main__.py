"""``python -m benchmarks.ecosystem``: hypercorn and trio-websocket on the ring and on stock trio."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.comparison import Bar, Comparison, take_turns
from benchmarks.ecosystem.load import HTTP, METRICS, WEBSOCKET, Exchange, ExchangeReport, measure
from benchmarks.peers import RING, STOCK, STOCK_AGAIN, Peer, choose_peers

# CPU for a request is not worse than stock trio's.
BARS = [Bar("cpu_us", STOCK, 1.0)]
HEADINGS = {**report.HEADINGS, "cpu_us": "CPU us/req", "per_second": "reqs/s"}


@dataclass(frozen=True)
class Scenario:
    """A server, what is said to it, and by how many.

    Attributes:
      server: a module of ``benchmarks.servers``.
      module: what that needs, from the extra ``ecosystem``.
      exchange: what goes to and fro.
      connections: each has one request under way at any time.
    """

    server: str
    module: str
    exchange: Exchange
    connections: int

    @property
    def name(self) -> str:
        """As it is called in options and tables: hypercorn_hello-8."""
        return f"{self.server}-{self.connections}"

    def peers(self) -> list[Peer]:
        """The server on the ring, and twice on stock trio."""
        return [
            Peer(RING, self.server, "on uring_trio", (RING,), needs=("io_uring",)),
            Peer(STOCK, self.server, "on trio's epoll", (STOCK,)),
            Peer(STOCK_AGAIN, self.server, "the same once more: the noise", (STOCK,)),
        ]


SCENARIOS = [
    *(Scenario("hypercorn_hello", "hypercorn", HTTP, count) for count in (1, 8, 50)),
    *(Scenario("websocket_echo", "trio_websocket", WEBSOCKET, count) for count in (1, 8, 50)),
]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ecosystem", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[scenario.name for scenario in SCENARIOS],
        help="may be repeated; default: all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args(argv)


def run_scenario(scenario: Scenario, rounds: int, seconds: float) -> Comparison[ExchangeReport]:
    """All rounds."""

    def progress(text: str) -> None:
        print(f"  {scenario.name}, {text}", file=sys.stderr, flush=True)

    def measure_peer(peer: Peer) -> ExchangeReport:
        return measure(peer, scenario.exchange, scenario.connections, seconds)

    reports = take_turns(choose_peers(scenario.peers()), rounds, measure_peer, progress)
    return Comparison(scenario.name, METRICS, reports, STOCK, STOCK_AGAIN)


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 if a connection broke on the way."""
    arguments = parse_arguments(argv)
    found: dict[str, Any] = {
        "environment": report.environment(),
        "options": {"rounds": arguments.rounds, "seconds": arguments.seconds},
        "scenarios": {},
    }
    print(", ".join(f"{name} {value}" for name, value in found["environment"].items()))
    bars: list[str] = []
    errors = 0
    for scenario in SCENARIOS:
        if arguments.scenario and scenario.name not in arguments.scenario:
            continue
        if importlib.util.find_spec(scenario.module) is None:
            print(f"without {scenario.name}: {scenario.module} is in the extra 'ecosystem'")
            continue
        result = run_scenario(scenario, arguments.rounds, arguments.seconds)
        print(report.comparison_table(result, HEADINGS), flush=True)
        found["scenarios"][scenario.name] = result.as_dict()
        bars += report.check_bars(result, RING, BARS)
        errors += result.errors()
    print("\n".join(bars))
    found["bars"] = bars
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
