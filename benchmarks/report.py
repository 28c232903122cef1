"""Tables for people: figures, and the bars that they are held to."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import Bar
from benchmarks.idle import CONNECTIONS, DEADLINES, HALF, IDLE_S
from benchmarks.peers import RING, STOCK, STOCK_AGAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.comparison import Comparison, Ratio
    from benchmarks.idle import IdleResult

# What the ring's echo is held to, by scenario.
BARS: dict[str, list[Bar]] = {
    "64x64B": [Bar("cpu_us", STOCK, 0.5), Bar("cpu_us", "uvloop", 1.2)],
    "1x64B": [Bar("cpu_us", STOCK, 1.0), Bar("p50_us", STOCK, 1.05)],
    "8x1KiB": [Bar("cpu_us", STOCK, 1.0)],
    "8x16KiB": [Bar("cpu_us", STOCK, 1.0)],
    "8x100KiB": [Bar("cpu_us", STOCK, 0.7)],
    "8x1MiB": [Bar("cpu_us", STOCK, 0.7)],
}

# How metrics are headed. A ratio is shown beside those that bars are about.
HEADINGS = {
    "cpu_us": "CPU us/msg",
    "per_second": "msgs/s",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
}
WITH_RATIO = ("cpu_us", "p50_us")

# Enters and switches of an idle server may be off by so many; see Watch.
IDLE_SLACK = 2


def environment() -> dict[str, Any]:
    """The machine and the versions; without these no figure means anything."""
    versions = {}
    for name in ("trio", "uring-trio", "uvloop"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
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
    """Large figures without decimals, small ones with one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def verdict(met: bool) -> str:
    """The first word of a bar's line."""
    return "met   " if met else "MISSED"


def format_ratio(ratio: Ratio | None) -> str:
    """The median, and the extremes behind it."""
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"


def comparison_table(comparison: Comparison[Any], headings: dict[str, str] = HEADINGS) -> str:
    """One scenario, a row for each server."""
    header = ["server"]
    for metric in comparison.metrics:
        header.append(headings[metric])
        if metric in WITH_RATIO:
            header.append(f"of {comparison.base}")
    rows = []
    for name in comparison.reports:
        row = [name]
        for metric in comparison.metrics:
            value = comparison.median(name, metric)
            row.append(f"{value:,.2f}" if metric == "cpu_us" else format_figure(value))
            if metric in WITH_RATIO:
                row.append(format_ratio(comparison.ratio(name, metric)))
        rows.append([*row, str(comparison.errors(name))])
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


def judge(ratio: Ratio, bar: Bar, noise: Ratio | None) -> str:
    """The verdict; "noise" where the base itself was as far off as this in some round."""
    if ratio.median > bar.at_most == 1.0 and noise and ratio.median <= noise.high:
        return "noise "
    return verdict(ratio.median <= bar.at_most)


def check_bars(comparison: Comparison[Any], subject: str, bars: Sequence[Bar]) -> list[str]:
    """A line for each bar of this scenario: whether it was met, and by how much."""
    lines = []
    for bar in bars:
        name = bar.subject or subject
        ratio = comparison.ratio(name, bar.metric, bar.base)
        if ratio is None:
            continue
        noise = comparison.ratio(comparison.again, bar.metric)
        lines.append(
            f"{judge(ratio, bar, noise)}  {comparison.name}: {bar.metric} of {name} "
            f"{format_ratio(ratio)} of {bar.base}, at most {bar.at_most:g}"
            f" ({comparison.base} against itself {format_ratio(noise)})"
        )
    return lines


def idle_bars(results: dict[str, IdleResult]) -> list[str]:
    """The same for idling."""
    ring, stock = results.get(RING), results.get(STOCK)
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
