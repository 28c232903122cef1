"""``make demo``: an echo server on the ring beside the same on stock trio.

Each server runs in a process of its own on one core, under load over loopback from the
C generator on another. Both take turns, so that a machine that changes its speed changes
it for both. Where the ring cannot be had, the demo says why and measures stock alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks import c_programs
from benchmarks.echo import EchoScenario, measure_once
from benchmarks.peers import Peer
from benchmarks.processes import cores_for_server_and_load
from uring_trio._probe import ProbeReport, backend_from_environment, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from benchmarks.loadgen import LoadReport

# As in their runs' statistics, and not as in the benchmarks: here nobody knows "the ring" yet.
RING = Peer("io_uring", "trio_streams", "SocketStream on uring_trio", ("ring", "echo"))
STOCK = Peer("stock", "trio_streams", "SocketStream on trio's epoll", ("stock", "echo"))

# 3 loads x 2 servers x 2 rounds of (0.3 + 0.8) s, and some 0.4 s to start each pair of
# processes: 18 s, of the 30 s that people are willing to look at a demo. Where that takes
# longer, because the machine is slow or has other work, there is only the first round of
# some loads.
ROUNDS = 2
SECONDS = 0.8
BUDGET_S = 24.0

LOADS = (EchoScenario(64, 64), EchoScenario(1, 64), EchoScenario(8, 100 << 10))


# The measurement.


@dataclass(frozen=True)
class Figures:
    """What is shown of one server under one load: medians over the rounds."""

    cpu_us: float
    per_second: float
    p50_us: float
    p99_us: float
    errors: int
    rounds: int

    @classmethod
    def of(cls, reports: list[LoadReport]) -> Figures:
        """The medians of *reports*."""

        def median(key: Callable[[LoadReport], float]) -> float:
            return statistics.median(map(key, reports))

        return cls(
            cpu_us=median(lambda report: report.server_cpu_us_per_message),
            per_second=median(lambda report: report.messages_per_second),
            p50_us=median(lambda report: report.p50_ns / 1000),
            p99_us=median(lambda report: report.p99_ns / 1000),
            errors=sum(report.errors for report in reports),
            rounds=len(reports),
        )


class Display(Protocol):
    """Where the demo shows what it does; with rich, or plain."""

    def say(self, text: str) -> None:
        """One line of text."""

    def steps(self, names: Sequence[str]) -> Generator[str, None, None]:
        """Hand out *names* one by one, and show how far it is."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose first two columns are words, and all others numbers."""


class PlainDisplay:
    """Lines of text."""

    def say(self, text: str) -> None:
        """One line of text."""
        print(text, flush=True)

    def steps(self, names: Sequence[str]) -> Generator[str, None, None]:
        """A line for each name."""
        for number, name in enumerate(names, 1):
            self.say(f"[{number:2}/{len(names)}] {name}")
            yield name

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns padded with spaces."""
        lines = [header, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        self.say(f"\n{title}\n")
        for line in lines:
            words = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
            self.say("  ".join([*words, *numbers]).rstrip())


class RichDisplay:
    """A progress bar and a drawn table."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    def say(self, text: str) -> None:
        """One line of text."""
        self._console.print(text, markup=False)

    def steps(self, names: Sequence[str]) -> Generator[str, None, None]:
        """A bar, with the name of what is running behind it."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console, transient=True) as progress:
            bar = progress.add_task("", total=len(names))
            for name in names:
                progress.update(bar, description=name)
                yield name
                progress.advance(bar)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table with rules."""
        from rich import box
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


def make_display(plain: bool) -> Display:
    """A display with rich where it is installed, unless *plain* is wanted."""
    if not plain:
        with contextlib.suppress(ImportError):
            return RichDisplay()
    return PlainDisplay()


def measure_all(
    display: Display, peers: Sequence[Peer], seconds: float
) -> dict[tuple[EchoScenario, Peer], Figures]:
    """Every load on every server, the servers taking turns, as often as there is time for it."""
    plan = [
        (load, peer)
        for turn in range(ROUNDS)
        for load in LOADS
        for peer in (peers if turn % 2 == 0 else reversed(peers))
    ]
    # Who asks for more seconds has more time.
    budget_s = BUDGET_S * max(1.0, seconds / SECONDS)
    started = time.monotonic()
    longest_s = 0.0  # of a load on all servers
    reports: dict[tuple[EchoScenario, Peer], list[LoadReport]] = {}
    steps = display.steps([f"{peer.name}: {load.name}" for load, peer in plan])
    for number, (load, peer) in enumerate(plan):
        now = time.monotonic()
        if number % len(peers) == 0:
            if number >= len(LOADS) * len(peers) and now - started + longest_s > budget_s:
                break
            pair_started = now
        next(steps)
        reports.setdefault((load, peer), []).append(measure_once(peer, load, seconds))
        longest_s = max(longest_s, time.monotonic() - pair_started)
    steps.close()
    return {key: Figures.of(values) for key, values in reports.items()}


# What is told.


def rows_of(figures: dict[tuple[EchoScenario, Peer], Figures]) -> list[list[str]]:
    """The table: a row for each load and server, the ring's with its share of stock's CPU."""
    rows = []
    for (load, peer), found in sorted(figures.items(), key=lambda item: LOADS.index(item[0][0])):
        stock = figures[load, STOCK]
        share = f"{found.cpu_us / stock.cpu_us:.2f}" if peer == RING else ""
        rows.append(
            [
                load.name,
                peer.name,
                f"{found.cpu_us:.1f}",
                share,
                f"{found.per_second:,.0f}",
                f"{found.p50_us:,.0f}",
                f"{found.p99_us:,.0f}",
            ]
        )
    return rows


# 80 columns, also with rich's padding.
HEADER = ["load", "trio on", "CPU us/msg", "of stock", "msgs/s", "p50 us", "p99 us"]


def explain_backend(display: Display, report: ProbeReport) -> None:
    """Say what the comparison is about, or why there is none."""
    display.say(f"Linux {os.uname().release}, trio {report.trio_version}")
    if report.backend == RING.name:
        display.say("An echo server on trio with io_uring, and the same on stock trio (epoll).")
        return
    display.say(f"io_uring cannot be used here: {report.reason}")
    if report.remedy:
        display.say(f"What helps: {report.remedy}")
    display.say("So this shows stock trio alone, which is what programs get here.")


def demo(display: Display, seconds: float) -> int:
    """Measure, and show the table."""
    if not sys.platform.startswith("linux"):
        display.say("The demo is Linux's alone, as io_uring is.")
        return 1
    if reason := c_programs.missing("loadgen"):
        display.say(f"The load comes from a program in C, which cannot be built: {reason}")
        return 1
    report = probe()
    explain_backend(display, report)
    peers = [RING, STOCK] if report.backend == RING.name else [STOCK]
    if len(set(cores_for_server_and_load())) == 1:
        display.say("There is one core only: server and load take time from each other.")
    figures = measure_all(display, peers, seconds)
    rounds = sorted({found.rounds for found in figures.values()})
    times = " or ".join(map(str, rounds)) + (" round" if rounds == [1] else " rounds")
    title = f"TCP echo over loopback, median of {times} of {seconds:g} s"
    display.table(title, HEADER, rows_of(figures))
    display.say("CPU is user + system of the whole server process.")
    errors = sum(found.errors for found in figures.values())
    if errors:
        display.say(f"{errors} connections broke or stalled: do not trust these figures.")
    return 1 if errors else 0


def duration(text: str) -> float:
    """The value of --seconds: argparse shows what a ValueError of this refuses."""
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Compare an echo server on io_uring with the same on stock trio.",
    )
    parser.add_argument("--plain", action="store_true", help="plain lines, also where rich is")
    parser.add_argument("--seconds", type=duration, default=SECONDS, help="for each measurement")
    arguments: Any = parser.parse_args(argv)
    try:
        backend_from_environment()
    except ValueError as exc:
        parser.error(str(exc))
    try:
        return demo(make_display(arguments.plain), arguments.seconds)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
