"""The tables of the callback servers, and the bars that they are held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.gain.hostile import WAIT_MAX_MS
from benchmarks.peers import GAIN
from benchmarks.report import format_figure, format_table, verdict

if TYPE_CHECKING:
    from benchmarks.gain.connections import ConnectionsResult
    from benchmarks.gain.hostile import HostileResult, Side


def connections_table(results: dict[str, ConnectionsResult]) -> str:
    """All servers with many connections."""
    header = [
        "server",
        "connections",
        "served",
        "RSS B/connection",
        "buffers leased idle",
        "B buffered idle",
        "under load: msgs/s",
        "CPU us/msg",
        "p99 us",
        "errors",
    ]
    rows = [
        [
            name,
            f"{result.connections:,}",
            f"{result.served:,}",
            f"{result.rss_per_connection_bytes:,.0f}",
            str(result.idle.get("buffers_leased", "-")),
            str(result.idle.get("bytes_buffered", "-")),
            format_figure(result.load.messages_per_second),
            f"{result.load.server_cpu_us_per_message:.2f}",
            format_figure(result.load.p99_ns / 1000),
            str(result.errors),
        ]
        for name, result in results.items()
    ]
    return f"many connections\n{format_table(header, rows)}\n"


def connections_bars(results: dict[str, ConnectionsResult]) -> list[str]:
    """All served, and nothing leased by those that do nothing."""
    result = results.get(GAIN)
    if result is None:
        return []
    leased = result.idle["buffers_leased"]
    counts = f"{result.served:,} of {result.connections:,}, {result.load.errors} broken under load"
    return [
        f"{verdict(result.errors == 0)}  connections: served {counts}",
        f"{verdict(leased == 0)}  connections: {leased} buffers leased while all are idle",
    ]


def describe_left_over(side: Side) -> str:
    """What the server's books are off by."""
    return ", ".join(f"{name} {off:+}" for name, off in side.left_over.items()) or "nothing"


def hostile_table(name: str, results: list[HostileResult]) -> str:
    """One server, a row for each kind of client."""
    header = [
        "client",
        "its pace/s",
        "busy",
        "server",
        "others: p99 us",
        "max ms",
        "left over",
        "RSS KiB",
        "well-behaved instead/s",
        "busy",
        "server",
        "others: p99 us",
        "p99 ratio",
        "errors",
    ]
    rows = [
        [
            result.kind,
            format_figure(result.hostile.client.per_second),
            f"{result.hostile.client.busy:.0%}",
            f"{result.hostile.server_busy:.0%}",
            format_figure(result.hostile.load.p99_ns / 1000),
            f"{result.wait_max_ms:.1f}",
            describe_left_over(result.hostile),
            f"{result.hostile.rss_growth_kib:+,}",
            format_figure(result.well_behaved.client.per_second),
            f"{result.well_behaved.client.busy:.0%}",
            f"{result.well_behaved.server_busy:.0%}",
            format_figure(result.well_behaved.load.p99_ns / 1000),
            f"{result.p99_ratio:.2f}",
            str(result.errors),
        ]
        for result in results
    ]
    return f"{name}: hostile clients beside well-behaved ones\n{format_table(header, rows)}\n"


def hostile_bars(results: list[HostileResult]) -> list[str]:
    """Nothing left over, and nobody waits for long."""
    lines = []
    for result in results:
        clean = not result.hostile.left_over
        quick = result.wait_max_ms <= WAIT_MAX_MS
        lines.append(
            f"{verdict(clean)}  {result.kind}: left over {describe_left_over(result.hostile)}"
        )
        lines.append(
            f"{verdict(quick and not result.errors)}  {result.kind}: the longest wait of a "
            f"well-behaved client {result.wait_max_ms:.1f} ms, at most {WAIT_MAX_MS:g}; "
            f"{result.errors} errors"
        )
    return lines
