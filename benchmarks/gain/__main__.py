"""``python -m benchmarks.gain``: what callback servers withstand; tables, bars and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gain import report
from benchmarks.gain.clients import KINDS
from benchmarks.gain.connections import CONNECTIONS, allow_connections, run_connections
from benchmarks.gain.hostile import run_hostile
from benchmarks.gain.peers import GAIN_ECHO, SERVER_PEERS
from benchmarks.peers import GAIN, choose_peers
from benchmarks.processes import cores_for_server_and_load
from benchmarks.report import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers import Peer


@dataclass
class Session:
    """What was asked for, and what has been found until now.

    Attributes:
      options: the command line.
      found: every figure, for JSON.
      bars: a line for each bar, and whether it was met.
      errors: everything that broke or was wrong.
    """

    options: argparse.Namespace
    found: dict[str, Any] = field(default_factory=dict)
    bars: list[str] = field(default_factory=list)
    errors: int = 0

    def choose(self, peers: Sequence[Peer]) -> list[Peer]:
        """Those of *peers* that were asked for and can run here."""
        names = None if self.options.servers is None else self.options.servers.split(",")
        return choose_peers(peers, names)

    def progress(self, text: str) -> None:
        """Say what is running, apart from the tables."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def leave_out(self, part: str, reason: str) -> None:
        """Say why a part is not run."""
        print(f"without {part}: {reason}\n", flush=True)
        self.found[part] = {"left out": reason}


def run_connections_part(session: Session) -> None:
    """Many connections, idle and busy."""
    count = session.options.connections
    reason = allow_connections(count)
    if reason is not None:
        session.leave_out("connections", reason)
        return
    results = {
        peer.name: run_connections(
            peer, session.progress, count=count, seconds=session.options.seconds
        )
        for peer in session.choose(SERVER_PEERS)
    }
    print(report.connections_table(results), flush=True)
    session.found["connections"] = {name: each.as_dict() for name, each in results.items()}
    session.bars += report.connections_bars(results)
    session.errors += sum(result.errors for result in results.values())


def run_hostile_part(session: Session) -> None:
    """Hostile clients; only gain is held to anything, so it is the only one by default."""
    peers = session.choose([GAIN_ECHO] if session.options.servers is None else SERVER_PEERS)
    found = session.found["hostile"] = {}
    for peer in peers:
        seconds = session.options.hostile_seconds
        results = [run_hostile(peer, kind, seconds, session.progress) for kind in KINDS]
        print(report.hostile_table(peer.name, results), flush=True)
        found[peer.name] = {each.kind: each.as_dict() for each in results}
        if peer.name == GAIN:
            session.bars += report.hostile_bars(results)
            session.errors += sum(result.errors for result in results)


PARTS = {
    "connections": run_connections_part,
    "hostile": run_hostile_part,
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gain", description=__doc__)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--hostile-seconds", type=float, default=60.0, help="of each hostile client"
    )
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--servers", metavar="NAME,NAME", help="default: all of each part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(argv)
    unknown = set(options.part) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 if anything broke on the way."""
    options = parse_arguments(argv)
    session = Session(options)
    server_core, load_core = cores_for_server_and_load()
    session.found["environment"] = environment()
    session.found["options"] = {
        "seconds": options.seconds,
        "server_core": server_core,
        "load_core": load_core,
    }
    for name in ("environment", "options"):
        print(", ".join(f"{key} {value}" for key, value in session.found[name].items()))
    print(flush=True)
    for part in options.part or PARTS:
        PARTS[part](session)
    print("\n".join(session.bars))
    session.found["bars"] = session.bars
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(session.found, indent=2) + "\n")
    return 1 if session.errors else 0


if __name__ == "__main__":
    sys.exit(main())
