"""``python -m benchmarks``: every scenario against every peer; tables, JSON, page and plots."""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import idle, page, report, running
from benchmarks.peers import (
    BEFORE,
    RING,
    STOCK,
    STOCK_AGAIN,
    callback_servers,
    of_tree,
    sort_out,
    stream_servers,
)
from benchmarks.processes import cores_for_server_and_load
from benchmarks.progress import bars
from benchmarks.results import RESULTS, Results
from benchmarks.running import Options
from benchmarks.scenarios import IDLE, NAMES, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.progress import Progress
    from benchmarks.scenarios import Scenario

ROUNDS = 9
SECONDS = 1.0

# The quick look is over within five minutes: what does not fit is left out, and named.
QUICK_ROUNDS = 3
QUICK_SECONDS = 0.5
QUICK_BUDGET_S = 280.0
QUICK = "quick"
# What the bars of the idle scenario are about.
IDLE_BARS = (RING, RING + BEFORE, STOCK, STOCK_AGAIN)


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
      names: of the scenarios, in their order.
      options: how they are measured.
      results: where figures are added.
      budget_s: no scenario begins that would be over later than this; None is no limit.
      command: what was typed.
    """

    names: tuple[str, ...]
    options: Options
    results: Path
    budget_s: float | None
    command: str


def parse_names(parser: argparse.ArgumentParser, patterns: Sequence[str]) -> tuple[str, ...]:
    """The scenarios of these names; a pattern such as ``64x*`` stands for several."""
    chosen = set()
    for pattern in patterns:
        found = fnmatch.filter(NAMES, pattern)
        if not found:
            parser.error(f"no scenario is called {pattern}; --list names them")
        chosen.update(found)
    return tuple(name for name in NAMES if name in chosen)


# Options whose values are paths, which say nothing to others, and what stands there for them.
PATHS = {"--against": "TREE", "--results": "DIR"}


def shown_command(argv: Sequence[str]) -> str:
    """What was typed, but for paths."""
    words = [PATHS.get(before, word) for before, word in zip(["", *argv[:-1]], argv, strict=True)]
    return shlex.join(["python", "-m", "benchmarks", *words])


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="or a pattern; default: all")
    parser.add_argument("--list", action="store_true", help="name the scenarios, and what they do")
    parser.add_argument(
        "--bars",
        action="store_true",
        help="only the scenarios that have bars, and of each the programs that these are about",
    )
    parser.add_argument("--quick", action="store_true", help="a part of that, under 5 minutes")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"of each measurement; default: {SECONDS}")
    parser.add_argument("--servers", metavar="NAME,NAME", help="default: all of each scenario")
    parser.add_argument(
        "--against", type=Path, metavar="TREE", help="a built tree of another state, to compare"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing, make the page from what is there"
    )
    parser.add_argument(
        "--publish", action="store_true", help="the same, into docs/ and the README"
    )
    return parser


def make_plan(argv: Sequence[str], parser: argparse.ArgumentParser) -> Plan:
    """What the command line asks for."""
    arguments = parser.parse_args(argv)
    quick: bool = arguments.quick
    if arguments.names:
        names = parse_names(parser, arguments.names)
    elif quick:
        names = tuple(scenario.name for scenario in SCENARIOS if scenario.is_quick)
    elif arguments.bars:
        names = (*(scenario.name for scenario in SCENARIOS if scenario.bars), IDLE)
    else:
        names = NAMES
    servers = arguments.servers
    options = Options(
        rounds=arguments.rounds or (QUICK_ROUNDS if quick else ROUNDS),
        seconds=arguments.seconds or (QUICK_SECONDS if quick else SECONDS),
        servers=tuple(servers.split(",")) if servers else None,
        tree=arguments.against.resolve() if arguments.against else None,
        only_bars=quick or arguments.bars,
    )
    return Plan(
        names=names,
        options=options,
        results=arguments.results / QUICK if quick else arguments.results,
        budget_s=QUICK_BUDGET_S if quick else None,
        command=shown_command(argv),
    )


def print_head(plan: Plan) -> None:
    """The machine, the versions and the options: without these no figure means anything."""
    server_core, load_core = cores_for_server_and_load()
    print(", ".join(f"{name} {value}" for name, value in report.environment().items()))
    print(
        f"{plan.options.rounds} rounds of {plan.options.seconds:g} s, "
        f"server on core {server_core}, load on core {load_core}"
    )
    if server_core == load_core:
        print("There is one core only: server and load take time from each other.")
    print(flush=True)


def run_one(scenario: Scenario, plan: Plan, results: Results, progress: Progress) -> int:
    """Measure a scenario, show it, and keep it; how many errors there were."""
    progress.begin(scenario.name, running.steps_of(scenario, plan.options))
    outcome = running.run_scenario(scenario, plan.options, progress.step)
    progress.end()
    print(f"{scenario.name}: {scenario.load.about}")
    for name, reason in outcome.without.items():
        print(f"without {name or scenario.name}: {reason}")
    if not outcome.comparison.reports:
        return 0
    print(report.comparison_table(outcome.comparison, calls=outcome.calls))
    print(f"other work took {outcome.others:.0%} of the machine meanwhile")
    verdicts = running.bars_of(outcome)
    for verdict in verdicts:
        print(verdict.line())
    print(flush=True)
    results.add(scenario.name, running.as_dict(outcome, plan.options, plan.command))
    return outcome.comparison.errors()


def run_idle(plan: Plan, results: Results, progress: Progress) -> None:
    """The same for servers that nobody says anything to."""
    peers = [*stream_servers("echo"), *callback_servers("echo")]
    if plan.options.tree is not None:
        peers += of_tree(peers, plan.options.tree)
    wanted = plan.options.servers
    if wanted is None and plan.options.only_bars:
        wanted = IDLE_BARS
    if wanted is not None:
        peers = [peer for peer in peers if peer.name in wanted]
    chosen, without = sort_out(peers)
    progress.begin(IDLE, len(chosen))
    found = {}
    for peer in chosen:
        progress.step(peer.name)
        found[peer.name] = idle.run_idle(peer)
    progress.end()
    for name, reason in without.items():
        print(f"without {name}: {reason}")
    print(report.idle_table(found))
    lines = report.idle_bars(found)
    print("\n".join(lines), flush=True)
    results.add(
        IDLE,
        {
            "environment": report.environment(),
            "date": time.strftime("%Y-%m-%d"),
            "command": plan.command,
            "programs": {name: each.as_dict() for name, each in found.items()},
            "without": without,
            "bars": lines,
        },
    )


def run(plan: Plan) -> int:
    """Measure all that was asked for; 1 if anything broke on the way."""
    print_head(plan)
    results = Results.load(plan.results)
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in plan.names]
    started = time.monotonic()
    errors = 0
    steps = sum(running.steps_of(scenario, plan.options) for scenario in scenarios)
    expected_s = 0.0  # of those that were run
    with bars(steps) as progress:
        for scenario in scenarios:
            used_s = time.monotonic() - started
            slower = max(1.0, used_s / expected_s) if expected_s else 1.0
            needed_s = running.seconds_of(scenario, plan.options)
            if plan.budget_s is not None and used_s + needed_s * slower > plan.budget_s:
                print(f"without {scenario.name}: no time is left for it\n")
                continue
            errors += run_one(scenario, plan, results, progress)
            expected_s += needed_s
        if IDLE in plan.names:
            run_idle(plan, results, progress)
    page.write(results, plan.results)
    print(f"{plan.results / page.PAGE} is made from all results until now")
    return 1 if errors else 0


def print_names() -> None:
    """The scenarios, and what they do."""
    width = max(map(len, NAMES))
    for scenario in SCENARIOS:
        print(f"{scenario.name:{width}}  {scenario.load.about}")
    print(f"{IDLE:{width}}  1,000 connections on which nothing happens: wake-ups and memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        print_names()
        return 0
    if arguments.page or arguments.publish:
        results = Results.load(arguments.results)
        if arguments.publish:
            try:
                page.publish(results)
            except ValueError as error:
                print(f"nothing is published: {error}", file=sys.stderr)
                return 1
        else:
            page.write(results, arguments.results)
        return 0
    return run(make_plan(argv, parser))


if __name__ == "__main__":
    sys.exit(main())
