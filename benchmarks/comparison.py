"""Programs that take turns, and the ratios between them.

All servers take turns within a round, in an order that is turned round every time, so
that a machine that slows down for a while slows down all of them. Ratios are taken
within a round, before the median.
"""

from __future__ import annotations

import statistics
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.peers import Peer


# What a server does that breaks, does not start or does not answer.
FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)


class Report(Protocol):
    """What one measurement of one server gives: a dataclass that knows its errors."""

    @property
    def errors(self) -> int:
        """What went wrong; with any, the figures mean little."""


ReportT = TypeVar("ReportT", bound=Report)


@dataclass(frozen=True)
class Ratio:
    """A metric relative to another server's: the median over the rounds, and the extremes."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """What a figure is held to.

    Attributes:
      metric: what is compared.
      base: the name of the server that it is relative to.
      at_most: the highest median of the ratios. 1.0 means: not worse beyond the noise,
        which is the range of the base against itself; what lies within that is neither
        met nor missed.
      subject: the name of the server that is held to it, or None for the one that the
        benchmark is about.
      stretch: what would be better still, or None.
    """

    metric: str
    base: str
    at_most: float
    subject: str | None = None
    stretch: float | None = None


@dataclass
class Comparison(Generic[ReportT]):
    """One scenario: each server's reports, a report for each round.

    Attributes:
      name: the scenario's.
      metrics: how each is read off a report, the unit in its name.
      reports: of each server, in the order of its rounds.
      base: the server that tables give ratios to.
      again: the same server once more; its ratio to the base is the noise.
      more_again: other servers that were run twice, and the names of their second ones.
    """

    name: str
    metrics: Mapping[str, Callable[[ReportT], float]]
    reports: dict[str, list[ReportT]]
    base: str
    again: str
    more_again: Mapping[str, str] = field(default_factory=dict)

    def run_twice(self, name: str) -> str:
        """*name*, if it was run a second time, or else the base of all."""
        return name if self.more_again.get(name) in self.reports else self.base

    def noise(self, metric: str, base: str) -> Ratio | None:
        """What *base*, which was run twice, is of itself; None if it was run only once."""
        return self.ratio(self.more_again.get(base, self.again), metric, base)

    def median(self, name: str, metric: str) -> float:
        """The median over the rounds."""
        return statistics.median(map(self.metrics[metric], self.reports[name]))

    def ratio(self, name: str, metric: str, base: str | None = None) -> Ratio | None:
        """*name* relative to *base*, round by round; None if one of them was not run."""
        base = self.base if base is None else base
        if name not in self.reports or base not in self.reports:
            return None
        read = self.metrics[metric]
        pairs = zip(self.reports[name], self.reports[base], strict=True)
        # Without messages in a round there is no base; the errors are shown then.
        ratios = [read(one) / read(other) for one, other in pairs if read(other)]
        if not ratios:
            return None
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def errors(self, name: str | None = None) -> int:
        """What went wrong in all rounds, of one server or of all."""
        names = self.reports if name is None else [name]
        return sum(report.errors for each in names for report in self.reports[each])


def take_turns(
    peers: Sequence[Peer],
    rounds: int,
    measure: Callable[[Peer], ReportT],
    progress: Callable[[str], None],
    left: dict[str, str] | None = None,
) -> dict[str, list[ReportT]]:
    """Measure all *peers* in each of *rounds*, every other round backwards.

    With *left*, a server that cannot be measured is put there with the reason, and is not
    among the reports; otherwise it raises.
    """
    reports: dict[str, list[ReportT]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            if peer.name not in reports:
                continue
            progress(f"round {number + 1} of {rounds}: {peer.name}")
            try:
                reports[peer.name].append(measure(peer))
            except FAILURES as error:
                if left is None:
                    raise
                left[peer.name] = str(error)
                del reports[peer.name]
    return reports
