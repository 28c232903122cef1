"""Running scenarios: all of one's programs in turn, and then their system calls."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks import report, system_calls
from benchmarks.comparison import FAILURES, Comparison, take_turns
from benchmarks.measurement import METRICS, Measurement
from benchmarks.observe import Others
from benchmarks.peers import AGAIN, of_tree, sort_out
from benchmarks.scenarios import bars_against, peers_of_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from benchmarks.peers import Peer
    from benchmarks.scenarios import Scenario

CALLS_S = 0.5  # of the pass that counts system calls: some thousand messages
START_S = 0.9  # beside what is measured: a Python that starts, connections made, a server's end


@dataclass(frozen=True)
class Options:
    """How everything is measured.

    Attributes:
      rounds: each program is measured so often.
      seconds: and so long each time.
      servers: the names of those that are wanted, or None for all.
      tree: another tree of this product to measure too, or None.
      only_bars: only the programs that bars are about.
    """

    rounds: int
    seconds: float
    servers: tuple[str, ...] | None = None
    tree: Path | None = None
    only_bars: bool = False


@dataclass
class Outcome:
    """What came of a scenario.

    Attributes:
      scenario: which.
      comparison: the rounds of those that could be measured.
      calls: system calls for a unit, by program, where they were counted.
      without: why the others were not measured, by program; "" stands for all of it.
      calls_denied: why system calls were not counted, or None.
      others: the part of the machine's CPUs that others took meanwhile.
    """

    scenario: Scenario
    comparison: Comparison[Measurement]
    calls: dict[str, float] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    calls_denied: str | None = None
    others: float = 0.0


def peers_of(scenario: Scenario, options: Options) -> list[Peer]:
    """Who takes part, whether or not it can run here."""
    peers = list(scenario.peers)
    if options.only_bars:
        names = peers_of_bars(scenario)
        peers = [peer for peer in peers if peer.name in names]
    if options.servers is not None:
        peers = [peer for peer in peers if peer.name in options.servers]
    if options.tree is None:
        return peers
    return [each for peer in peers for each in (peer, *of_tree([peer], options.tree))]


def base_of(scenario: Scenario, options: Options) -> tuple[str, str]:
    """What the table gives ratios to, and the same once more: of those who take part, if any."""
    names = [peer.name for peer in peers_of(scenario, options)]
    for base, again in ((scenario.base, scenario.again), *AGAIN.items()):
        if base in names:
            return base, again
    return scenario.base, scenario.again


def steps_of(scenario: Scenario, options: Options) -> int:
    """How many measurements it takes."""
    count_calls = system_calls.denied() is None
    return len(peers_of(scenario, options)) * (options.rounds + count_calls)


def seconds_of(scenario: Scenario, options: Options) -> float:
    """How long it takes, by and large."""
    peers = len(peers_of(scenario, options))
    load = scenario.load
    calls = START_S + load.seconds(CALLS_S) if system_calls.denied() is None else 0.0
    return peers * (options.rounds * (START_S + load.seconds(options.seconds)) + calls)


def run_scenario(scenario: Scenario, options: Options, progress: Callable[[str], None]) -> Outcome:
    """All rounds, and the pass that counts system calls."""
    others = Others()
    base, again = base_of(scenario, options)
    outcome = Outcome(
        scenario,
        Comparison(scenario.name, METRICS, {}, base, again, AGAIN),
        calls_denied=system_calls.denied(),
    )
    if reason := scenario.load.missing():
        outcome.without[""] = reason
        return outcome
    peers, outcome.without = sort_out(peers_of(scenario, options))
    outcome.comparison.reports.update(
        take_turns(
            peers,
            options.rounds,
            lambda peer: scenario.load.measure(peer, options.seconds),
            progress,
            outcome.without,
        )
    )
    if outcome.calls_denied is None:
        measured = [peer for peer in peers if peer.name in outcome.comparison.reports]
        outcome.calls = count_calls(scenario, measured, options, progress)
    outcome.others = others.part()
    return outcome


def count_calls(
    scenario: Scenario, peers: Iterable[Peer], options: Options, progress: Callable[[str], None]
) -> dict[str, float]:
    """System calls for a unit, by program; one that fails here has none."""
    found = {}
    for peer in peers:
        progress(f"system calls: {peer.name}")
        try:
            measured = scenario.load.measure(peer, min(CALLS_S, options.seconds), count_calls=True)
        except (*FAILURES, system_calls.CannotCount):
            continue
        if measured.calls_per_unit is not None:
            found[peer.name] = measured.calls_per_unit
    return found


def bars_of(outcome: Outcome) -> list[report.Verdict]:
    """What became of the scenario's bars."""
    bars = (*outcome.scenario.bars, *bars_against(list(outcome.comparison.reports)))
    return report.judge_all(outcome.comparison, "", bars)


def as_dict(outcome: Outcome, options: Options, command: str) -> dict[str, Any]:
    """As plain data: everything that the page is made from; *command* is what was typed."""
    scenario, comparison = outcome.scenario, outcome.comparison
    programs = {}
    about = {peer.name: peer.about for peer in peers_of(scenario, options)}
    for name, reports in comparison.reports.items():
        ratios = {metric: comparison.ratio(name, metric) for metric in METRICS}
        programs[name] = {
            "about": about[name],
            "median": {metric: comparison.median(name, metric) for metric in METRICS},
            "ratio": {metric: asdict(ratio) if ratio else None for metric, ratio in ratios.items()},
            "calls_per_unit": outcome.calls.get(name),
            "errors": comparison.errors(name),
            "rounds": [asdict(each) for each in reports],
        }
    return {
        "about": scenario.load.about,
        "unit": scenario.load.unit,
        "base": comparison.base,
        "again": comparison.again,
        "environment": report.environment(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "programs": programs,
        "without": outcome.without,
        "calls_denied": outcome.calls_denied,
        "others": outcome.others,
        "bars": [verdict.as_dict() for verdict in bars_of(outcome)],
    }
