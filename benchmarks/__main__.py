"""``python -m benchmarks``: run the comparison, print tables, write JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.echo import ECHO_SCENARIOS, run_echo
from benchmarks.idle import run_idle
from benchmarks.peers import PEERS, RING, choose_peers
from benchmarks.processes import cores_for_server_and_load

IDLE = "idle"
SCENARIOS = [*(scenario.name for scenario in ECHO_SCENARIOS), IDLE]


def progress(text: str) -> None:
    """Say what is running, apart from the tables."""
    print(f"  {text}", file=sys.stderr, flush=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--scenario", action="append", choices=SCENARIOS, help="may be repeated; default: all"
    )
    parser.add_argument(
        "--servers",
        default=",".join(peer.name for peer in PEERS),
        help="separated by commas; default: %(default)s",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.servers.split(",")) - {peer.name for peer in PEERS}
    if unknown:
        parser.error(f"unknown servers: {', '.join(sorted(unknown))}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 if a connection broke on the way."""
    arguments = parse_arguments(argv)
    scenarios = arguments.scenario or SCENARIOS
    peers = choose_peers(PEERS, arguments.servers.split(","))
    server_core, load_core = cores_for_server_and_load()
    found: dict[str, Any] = {
        "environment": report.environment(),
        "options": {
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "server_core": server_core,
            "load_core": load_core,
        },
        "echo": {},
        "idle": {},
    }
    print(", ".join(f"{name} {value}" for name, value in found["environment"].items()))
    print(", ".join(f"{name} {value}" for name, value in found["options"].items()))
    for peer in peers:
        print(f"{peer.name}: {peer.about}")
    print(flush=True)

    bars: list[str] = []
    errors = 0
    for scenario in ECHO_SCENARIOS:
        if scenario.name in scenarios:
            result = run_echo(scenario, peers, arguments.rounds, arguments.seconds, progress)
            print(report.comparison_table(result), flush=True)
            found["echo"][scenario.name] = result.as_dict()
            bars += report.check_bars(result, RING, report.BARS.get(scenario.name, []))
            errors += result.errors()
    if IDLE in scenarios:
        idle = {peer.name: run_idle(peer, progress) for peer in peers}
        print(report.idle_table(idle), flush=True)
        found["idle"] = {name: each.as_dict() for name, each in idle.items()}
        bars += report.idle_bars(idle)
    print("\n".join(bars))
    found["bars"] = bars
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
