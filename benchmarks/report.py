"""Tables for people: figures, and the bars that they are held to."""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.idle import CONNECTIONS, DEADLINES, HALF, IDLE_S
from benchmarks.peers import BEFORE, RING, STOCK, STOCK_AGAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.comparison import Bar, Comparison, Ratio
    from benchmarks.idle import IdleResult

# How metrics are headed. A ratio is shown beside those that bars are about.
HEADINGS = {
    "cpu_us": "CPU us",
    "per_second": "a second",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "fewest": "fewest/mean",
    "peak_mib": "peak MiB",
}
WITH_HUNDREDTHS = ("cpu_us", "fewest")
WITH_RATIO = ("cpu_us", "p50_us", "p99_us")

# As many rounds as a bar is judged by; fewer settle nothing.
ROUNDS_MIN = 9
# A noise beyond which a ratio of CPU times decides nothing, and a count of instructions does.
NOISE_MAX = 0.10

# What a run may take more than the other tree's at its start.
START_KIB_MORE = 512

# Enters and switches of an idle server may be off by so many; see Watch.
IDLE_SLACK = 2


# What is compared, or takes part.
PACKAGES = (
    *("uring-trio", "trio", "anyio", "uvloop", "rloop"),
    *("hypercorn", "h11", "httpx", "trio-websocket"),
)


def environment() -> dict[str, Any]:
    """The machine and the versions; without these no figure means anything."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "libc": " ".join(platform.libc_ver()),
        "python": sys.version.split()[0],
        **versions,
    }


def cpu_model() -> str:
    """As /proc/cpuinfo has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces; the first is words, all others are numbers."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_figure(value: float) -> str:
    """Large figures without decimals, small ones with one; nothing where there is none."""
    if math.isnan(value) or not value:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def verdict(met: bool) -> str:
    """The first word of a bar's line."""
    return "met   " if met else "MISSED"


def format_ratio(ratio: Ratio | None) -> str:
    """The median, and the extremes behind it."""
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"


def comparison_table(
    comparison: Comparison[Any],
    headings: dict[str, str] = HEADINGS,
    calls: dict[str, float] | None = None,
) -> str:
    """One scenario, a row for each program; with *calls* its system calls for a unit."""
    header = ["program"]
    for metric in comparison.metrics:
        header.append(headings[metric])
        if metric in WITH_RATIO:
            header.append(f"of {comparison.base}")
    rows = []
    for name in comparison.reports:
        row = [name]
        for metric in comparison.metrics:
            value = comparison.median(name, metric)
            is_fine = metric in WITH_HUNDREDTHS and value
            row.append(f"{value:,.2f}" if is_fine else format_figure(value))
            if metric in WITH_RATIO:
                row.append(format_ratio(comparison.ratio(name, metric)))
        if calls is not None:
            row.append(f"{calls[name]:.2f}" if name in calls else "-")
        rows.append([*row, str(comparison.errors(name))])
    if calls is not None:
        header.append("syscalls")
    return f"{comparison.name}\n{format_table([*header, 'errors'], rows)}\n"


def idle_table(results: dict[str, IdleResult]) -> str:
    """All servers' idling."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    rows = [
        [
            name,
            number(result.switches),
            number(result.enters),
            number(result.switches_with_deadlines),
            number(result.enters_with_deadlines),
            number(result.rss_per_connection_bytes),
            number(result.rss_start_kib),
            number(result.rss_after_load_kib),
        ]
        for name, result in results.items()
    ]
    header = [
        "server",
        "switches",
        "enters",
        f"switches, {DEADLINES} dl",
        f"enters, {DEADLINES} dl",
        "B/connection",
        "KiB at start",
        "KiB after load",
    ]
    title = (
        f"idle, {CONNECTIONS} connections, {IDLE_S:g} s, without and with {DEADLINES} deadlines; "
        f"resident set from {HALF} to {CONNECTIONS} connections"
    )
    return f"{title}\n{format_table(header, rows)}\n"


@dataclass(frozen=True)
class Verdict:
    """A bar, and what became of it.

    Attributes:
      word: "met", "MISSED", or "noise": worse than 1.0, but no further than the base is off
        itself in some round.
      ratio: what was found.
      noise: what a program is of itself in the same rounds; None if none was run twice.
      noise_of: which one.
      doubts: why it settles nothing, if it does not.
    """

    word: str
    scenario: str
    bar: Bar
    subject: str
    ratio: Ratio
    noise: Ratio | None
    noise_of: str
    doubts: tuple[str, ...]

    def line(self) -> str:
        """For a terminal."""
        bar = self.bar
        stretch = f", better {bar.stretch:g}" if bar.stretch is not None else ""
        doubts = "".join(f"; {doubt}" for doubt in self.doubts)
        return (
            f"{self.word:6}  {self.scenario}: {bar.metric} of {self.subject} "
            f"{format_ratio(self.ratio)} of {bar.base}, at most {bar.at_most:g}{stretch}"
            f" ({self.noise_of} against itself {format_ratio(self.noise)}{doubts})"
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def judge(ratio: Ratio, bar: Bar, noise: Ratio | None) -> str:
    """The verdict; "noise" where the base itself was as far off as this in some round."""
    if ratio.median > bar.at_most == 1.0 and noise and ratio.median <= noise.high:
        return "noise"
    return "met" if ratio.median <= bar.at_most else "MISSED"


def doubts_of(bar: Bar, noise: Ratio | None, rounds: int) -> tuple[str, ...]:
    """Why a verdict settles nothing."""
    found = []
    if rounds < ROUNDS_MIN:
        found.append(f"{rounds} rounds settle nothing, {ROUNDS_MIN} are wanted")
    off = 0.0 if noise is None else max(noise.high - 1, 1 - noise.low)
    if off > NOISE_MAX and bar.metric == "cpu_us":
        found.append(f"noise above {NOISE_MAX:.0%}: instructions decide")
    return tuple(found)


def judge_all(comparison: Comparison[Any], subject: str, bars: Sequence[Bar]) -> list[Verdict]:
    """A verdict for each bar that both sides of were measured."""
    found = []
    for bar in bars:
        name = bar.subject or subject
        ratio = comparison.ratio(name, bar.metric, bar.base)
        if ratio is None:
            continue
        noise_of = comparison.run_twice(bar.base)
        noise = comparison.noise(bar.metric, noise_of)
        found.append(
            Verdict(
                word=judge(ratio, bar, noise),
                scenario=comparison.name,
                bar=bar,
                subject=name,
                ratio=ratio,
                noise=noise,
                noise_of=noise_of,
                doubts=doubts_of(bar, noise, len(comparison.reports[name])),
            )
        )
    return found


def check_bars(comparison: Comparison[Any], subject: str, bars: Sequence[Bar]) -> list[str]:
    """A line for each bar of this scenario: whether it was met, and by how much."""
    return [verdict.line() for verdict in judge_all(comparison, subject, bars)]


def idle_bars(results: dict[str, IdleResult]) -> list[str]:
    """The same for idling."""
    ring, stock, before = results.get(RING), results.get(STOCK), results.get(RING + BEFORE)
    if ring is None:
        return []
    checks: list[tuple[str, float | None, float]] = [
        ("enters", ring.enters, IDLE_SLACK),
        ("switches", ring.switches, IDLE_SLACK),
        ("enters with deadlines", ring.enters_with_deadlines, DEADLINES + IDLE_SLACK),
        ("switches with deadlines", ring.switches_with_deadlines, DEADLINES + IDLE_SLACK),
    ]
    if stock is not None:
        # Stock against itself is the noise here too.
        again = results.get(STOCK_AGAIN, stock)
        limit = max(stock.rss_per_connection_bytes, again.rss_per_connection_bytes)
        checks.append(("bytes a connection", ring.rss_per_connection_bytes, limit))
    if before is not None:
        checks.append(("KiB at start", ring.rss_start_kib, before.rss_start_kib + START_KIB_MORE))
        checks.append(
            (
                "bytes a connection, beside the other tree's",
                ring.rss_per_connection_bytes,
                before.rss_per_connection_bytes,
            )
        )
    lines = [
        f"{verdict(found <= limit)}  idle: {name} {found:.0f}, at most {limit:.0f}"
        for name, found, limit in checks
        if found is not None
    ]
    if stock is not None:
        start = ring.rss_start_kib - stock.rss_start_kib
        load = ring.rss_after_load_kib - stock.rss_after_load_kib
        lines.append(
            f"        ring and pools, resident beside stock: {start:,} KiB at start, "
            f"{load:,} KiB after load"
        )
    return lines
