"""How the page puts results together: parts of it, kinds of programs, and who loses to whom."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.measurement import METRICS, Measurement
from benchmarks.peers import (
    ANYIO,
    ASYNCIO,
    ASYNCIO_PROTOCOL,
    BEFORE,
    C_EPOLL,
    C_RING,
    GAIN,
    OURS,
    RING,
    RLOOP,
    RLOOP_PROTOCOL,
    STOCK,
    STOCK_AGAIN,
    UVLOOP,
    UVLOOP_PROTOCOL,
)
from benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Who is compared with whom: a task for each connection, or callbacks.
RIVALS = {
    RING: (STOCK, ANYIO, ASYNCIO, UVLOOP, RLOOP),
    GAIN: (ASYNCIO_PROTOCOL, UVLOOP_PROTOCOL, RLOOP_PROTOCOL, C_EPOLL, C_RING),
}
# What less is better of, as `measurement.METRICS` has them.
LESS_IS_BETTER = ("cpu_us", "p50_us", "p99_us", "peak_mib")


@dataclass(frozen=True)
class Group:
    """A part of the page.

    Attributes:
      name: of its files.
      title: its heading.
      scenarios: their names, in order.
    """

    name: str
    title: str
    scenarios: tuple[str, ...]


def named(*beginnings: str) -> tuple[str, ...]:
    """The scenarios whose names begin so."""
    return tuple(each.name for each in SCENARIOS if each.name.startswith(beginnings))


def echo_named(size: str) -> tuple[str, ...]:
    """The echo scenarios of a size."""
    return tuple(
        each.name for each in SCENARIOS if each.name[0].isdigit() and each.name.endswith(f"x{size}")
    )


GROUPS = (
    Group("echo-64B", "Echo, 64 B", echo_named("64B")),
    Group("echo-1KiB", "Echo, 1 KiB", echo_named("1KiB")),
    Group("echo-16KiB", "Echo, 16 KiB", echo_named("16KiB")),
    Group("echo-large", "Echo, 100 KiB and 1 MiB", (*echo_named("100KiB"), *echo_named("1MiB"))),
    Group("bulk", "One way", named("bulk")),
    Group("short", "Short connections", named("accept")),
    Group("sockets", "TLS, UDP, UNIX", named("tls", "udp", "unix")),
    Group("deadline", "A deadline around each receive", named("deadline")),
    Group("http", "HTTP plaintext", ("http", "http-pipelined")),
    Group("applications", "hypercorn, trio-websocket, httpx", named("hypercorn", "web", "httpx")),
    Group("threads", "Calls in threads", named("to-thread")),
    Group("workers", "Two workers", named("workers")),
)

# The one plot of the README: streams, small messages on few and many connections, and large ones.
OVERVIEW = ("64x64B", "1000x64B", "1000x16KiB", "8x100KiB")
OVERVIEW_PROGRAMS = (
    *(RING, STOCK, STOCK_AGAIN, ANYIO, ASYNCIO, UVLOOP),
    *(GAIN, UVLOOP_PROTOCOL, C_EPOLL, C_RING),
)


def rounds_of(entry: Mapping[str, Any], name: str, metric: str) -> list[float]:
    """A program's figure in each round; empty where there is none."""
    found = [METRICS[metric](Measurement(**each)) for each in entry["programs"][name]["rounds"]]
    return [value for value in found if value and not math.isnan(value)]


def ratios(entry: Mapping[str, Any], name: str, base: str, metric: str) -> list[float]:
    """One relative to another, round by round."""
    ours, theirs = rounds_of(entry, name, metric), rounds_of(entry, base, metric)
    return (
        [one / other for one, other in zip(ours, theirs, strict=False)]
        if len(ours) == len(theirs)
        else []
    )


@dataclass(frozen=True)
class Loss:
    """Where ours takes more than somebody else's.

    Attributes:
      ratio: the median of the rounds; above 1.
      is_noise: some round had it the other way round.
    """

    scenario: str
    ours: str
    rival: str
    metric: str
    ratio: float
    is_noise: bool


def losses(scenarios: Mapping[str, Mapping[str, Any]]) -> Iterator[Loss]:
    """All of them, the largest first within a scenario."""
    for name, entry in scenarios.items():
        if "unit" not in entry:
            continue
        found = []
        programs = entry["programs"]
        for ours in OURS:
            for rival in (*RIVALS[ours], ours + BEFORE):
                if ours not in programs or rival not in programs:
                    continue
                for metric in LESS_IS_BETTER:
                    each = ratios(entry, ours, rival, metric)
                    if each and (median := statistics.median(each)) > 1:
                        found.append(Loss(name, ours, rival, metric, median, min(each) <= 1))
        yield from sorted(found, key=lambda loss: -loss.ratio)
