"""Tables for people: figures, and the bars that they are held to."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.idle import CONNECTIONS, DEADLINES, HALF, IDLE_S
from benchmarks.peers import RING, STOCK, STOCK_AGAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.echo import EchoResult, Ratio
    from benchmarks.idle import IdleResult

# scenario -> (metric, relative to, at most). A bar of 1.0 means: not worse than stock
# beyond the noise, which is the range of stock against itself.
BARS: dict[str, list[tuple[str, str, float]]] = {
    "64x64B": [("cpu_us", STOCK, 0.5), ("cpu_us", "uvloop", 1.2)],
    "1x64B": [("cpu_us", STOCK, 1.0), ("p50_us", STOCK, 1.05)],
    "8x1KiB": [("cpu_us", STOCK, 1.0)],
    "8x16KiB": [("cpu_us", STOCK, 1.0)],
    "8x100KiB": [("cpu_us", STOCK, 0.7)],
    "8x1MiB": [("cpu_us", STOCK, 0.7)],
}

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


def format_ratio(ratio: Ratio | None) -> str:
    """The median, and the extremes behind it."""
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"


def echo_table(result: EchoResult) -> str:
    """One scenario."""
    rows = [
        [
            name,
            f"{result.median(name, 'cpu_us'):.2f}",
            format_ratio(result.ratio(name, "cpu_us")),
            f"{result.median(name, 'per_second'):,.0f}",
            f"{result.median(name, 'p50_us'):,.1f}",
            format_ratio(result.ratio(name, "p50_us")),
            f"{result.median(name, 'p99_us'):,.1f}",
            str(result.errors(name)),
        ]
        for name in result.reports
    ]
    header = [
        "server",
        "CPU us/msg",
        "of stock",
        "msgs/s",
        "p50 us",
        "of stock",
        "p99 us",
        "errors",
    ]
    return f"{result.scenario.name}\n{format_table(header, rows)}\n"


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


def echo_bars(result: EchoResult) -> list[str]:
    """What the issue asks of this scenario, and whether it was met."""
    lines = []
    for metric, base, bar in BARS.get(result.scenario.name, []):
        ratio = result.ratio(RING, metric, base)
        if ratio is None:
            continue
        noise = result.ratio(STOCK_AGAIN, metric)
        allowed = max(bar, noise.high) if noise and bar == 1.0 else bar
        verdict = "met" if ratio.median <= allowed else "MISSED"
        lines.append(
            f"{verdict:6}  {result.scenario.name}: {metric} of {base} "
            f"{format_ratio(ratio)}, at most {bar:g}"
            f" (stock against itself {format_ratio(noise)})"
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
        f"{'met' if found <= limit else 'MISSED':6}  idle: {name} {found:.0f}, at most {limit:.0f}"
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
