"""The page: tables and plots from the results, and nothing that is not in them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plots, report
from benchmarks.comparison import Ratio
from benchmarks.groups import GROUPS, losses
from benchmarks.scenarios import IDLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.results import Results

ROOT = Path(__file__).resolve().parents[1]
PAGE = "benchmarks.md"
PLOTS = "benchmarks"  # the folder beside the page
OVERVIEW_FILE = "overview"

# Of each group: what is plotted, and what stands below it.
PLOTTED = {"cpu_us": "CPU, µs for a {unit}", "p99_us": "p99, µs of a {unit}"}

METRIC_WORDS = {
    "cpu_us": "CPU",
    "per_second": "a second",
    "p50_us": "p50",
    "p99_us": "p99",
    "fewest": "fewest of the mean",
    "peak_mib": "peak memory",
}
WORDS = {"met": "met", "MISSED": "**missed**", "noise": "within the noise"}
MARKS = re.compile(r"(?<=<!-- plot -->\n).*?(?=<!-- /plot -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """As Markdown has it."""
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def ratio_text(ratio: Mapping[str, float] | None) -> str:
    """The median, and the extremes."""
    if ratio is None:
        return ""
    return report.format_ratio(Ratio(**ratio))


def compared(scenarios: Mapping[str, Any]) -> dict[str, Any]:
    """Those with rounds: all but the idle one."""
    return {name: entry for name, entry in scenarios.items() if name != IDLE}


# The parts of the page.


def machine_lines(scenarios: Mapping[str, Any]) -> Iterator[str]:
    """Machine, versions, date and command of each run."""
    runs: dict[tuple[str, ...], list[str]] = {}
    for name, entry in scenarios.items():
        environment = ", ".join(f"{key} {value}" for key, value in entry["environment"].items())
        how = f"{entry['rounds']} rounds of {entry['seconds']:g} s" if "rounds" in entry else ""
        runs.setdefault((entry["date"], f"`{entry['command']}`", how, environment), []).append(name)
    environments = {key[3] for key in runs}
    if len(environments) == 1:
        yield f"One machine and one set of versions: {environments.pop()}."
        yield ""
        yield from table(
            ["date", "command", "how", "scenarios"],
            [[*key[:3], ", ".join(names)] for key, names in runs.items()],
        )
    else:
        yield "The runs differ in machine or versions: compare within one, not across."
        yield ""
        yield from table(
            ["date", "command", "how", "machine and versions", "scenarios"],
            [[*key, ", ".join(names)] for key, names in runs.items()],
        )


def bar_rows(scenarios: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each bar."""
    for entry in compared(scenarios).values():
        for verdict in entry["bars"]:
            bar = verdict["bar"]
            stretch = f" ({bar['stretch']:g})" if bar["stretch"] is not None else ""
            yield [
                verdict["scenario"],
                f"{METRIC_WORDS[bar['metric']]}, {verdict['subject']} / {bar['base']}",
                ratio_text(verdict["ratio"]),
                f"≤ {bar['at_most']:g}{stretch}",
                ratio_text(verdict["noise"]),
                "; ".join([WORDS[verdict["word"]], *verdict["doubts"]]),
            ]


def loss_rows(scenarios: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each scenario and metric with a loss, the largest first."""
    rows: dict[tuple[str, str], list[str]] = {}
    for loss in losses(scenarios):
        mark = "~" if loss.is_noise else ""
        text = f"{loss.ours} / {loss.rival} {mark}{loss.ratio:.2f}"
        rows.setdefault((loss.scenario, METRIC_WORDS[loss.metric]), []).append(text)
    for key, texts in rows.items():
        yield [*key, ", ".join(texts)]


def scenario_lines(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """A table of programs, and what was not measured."""
    yield f"### {name}"
    yield ""
    yield f"{entry['about'][0].upper()}{entry['about'][1:]}."
    yield ""
    base = entry["base"]
    unit = entry["unit"]
    header = [
        "program",
        f"CPU, µs a {unit}",
        f"of {base}'s",
        f"{unit}s a second",
        "p50, µs",
        f"of {base}'s",
        "p99, µs",
        f"of {base}'s",
        "fewest of mean",
        "system calls",
        "peak MiB",
    ]
    rows = []
    for program, found in entry["programs"].items():
        median, ratio = found["median"], found["ratio"]
        calls = found["calls_per_unit"]
        row = [
            program,
            f"{median['cpu_us']:,.2f}",
            ratio_text(ratio["cpu_us"]),
            report.format_figure(median["per_second"]),
            report.format_figure(median["p50_us"]),
            ratio_text(ratio["p50_us"]),
            report.format_figure(median["p99_us"]),
            ratio_text(ratio["p99_us"]),
            f"{median['fewest']:.2f}" if median["fewest"] else "",
            "" if calls is None else f"{calls:.2f}",
            report.format_figure(median["peak_mib"]),
        ]
        if found["errors"]:
            row[0] += f" ({found['errors']} errors)"
        rows.append(row)
    yield from table(header, rows)
    yield f"- Other work took {entry['others']:.0%} of the machine meanwhile."
    for program, reason in entry["without"].items():
        yield f"- Without {program or name}: {reason}"
    if entry["calls_denied"]:
        yield f"- System calls were not counted: {entry['calls_denied']}"
    yield ""


def idle_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """The idle scenario's table."""
    yield "## Idle"
    yield ""
    yield "1,000 connections on which nothing happens, for 5 s; and the same with 10 deadlines."
    yield ""
    programs = entry["programs"]
    columns = {
        "switches": "context switches",
        "enters": "enters into the ring",
        "switches_with_deadlines": "switches with deadlines",
        "enters_with_deadlines": "enters with deadlines",
        "rss_per_connection_bytes": "bytes a connection",
        "rss_start_kib": "KiB at the start",
        "rss_after_load_kib": "KiB after load",
    }
    rows = [
        [name, *("" if found[key] is None else f"{found[key]:,.0f}" for key in columns)]
        for name, found in programs.items()
    ]
    yield from table(["program", *columns.values()], rows)
    yield from (f"- {' '.join(line.split())}" for line in entry["bars"])
    yield ""


def page_lines(scenarios: Mapping[str, Any], drawn: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """All of it; *drawn* are the plots' names by group."""
    yield "# Benchmarks"
    yield ""
    yield "<!-- made by `python -m benchmarks`; change benchmarks/page.py, not this -->"
    yield ""
    yield "CPU is user and system of the whole program; figures are medians over the rounds."
    yield "A ratio is taken within a round, and stands with the lowest and the highest of them."
    yield "A name that ends in `-again` is the same program once more: how far that is off 1 is the noise."
    yield "System calls are those for one unit, counted by the kernel in a pass of its own; what a ring does within one is not in it."
    yield "Fewest of mean is how many units that connection had which had the fewest, of what all had in the mean: how fair it is."
    yield "How it is measured is in [benchmarks/README.md](../benchmarks/README.md)."
    yield ""
    if OVERVIEW_FILE in drawn:
        yield f"![CPU for a message, of stock trio's]({PLOTS}/{OVERVIEW_FILE}.svg)"
        yield ""
    yield "## Machine, versions and commands"
    yield ""
    yield from machine_lines(scenarios)
    yield "## What it is held to"
    yield ""
    rows = list(bar_rows(scenarios))
    if rows:
        yield from table(
            ["scenario", "what", "ratio", "bar (better)", "noise of the same run", "verdict"], rows
        )
    else:
        yield "No scenario with a bar has been measured."
        yield ""
    yield "## Where it loses"
    yield ""
    rows = list(loss_rows(scenarios))
    if rows:
        yield "Every median in which ours takes more than another program that is written alike."
        yield "`~` is: some round had it the other way round."
        yield ""
        yield from table(["scenario", "of what", "who / than whom, and how much"], rows)
    else:
        yield "Nowhere in these results."
        yield ""
    for group in GROUPS:
        here = [name for name in group.scenarios if name in scenarios]
        if not here:
            continue
        yield f"## {group.title}"
        yield ""
        for name in drawn.get(group.name, ()):
            yield f"![{group.title}]({PLOTS}/{name}.svg)"
            yield ""
        for name in here:
            yield from scenario_lines(name, scenarios[name])
    if IDLE in scenarios:
        yield from idle_lines(scenarios[IDLE])


# Files.


def draw(scenarios: Mapping[str, Any], directory: Path) -> dict[str, list[str]]:
    """All plots; their names by group."""
    drawn: dict[str, list[str]] = {}
    for group in GROUPS:
        here = {name: scenarios[name] for name in group.scenarios if name in scenarios}
        for metric, label in PLOTTED.items():
            name = f"{group.name}-{metric.partition('_')[0]}"
            if plots.draw_metric(directory, name, here, metric, label):
                drawn.setdefault(group.name, []).append(name)
    if plots.draw_overview(directory, OVERVIEW_FILE, scenarios):
        drawn[OVERVIEW_FILE] = [OVERVIEW_FILE]
    return drawn


def write(results: Results, directory: Path) -> None:
    """The page and its plots, beside the results or elsewhere; no plots without matplotlib."""
    drawn: dict[str, list[str]] = {}
    if importlib.util.find_spec("matplotlib") is None:
        print("without plots: matplotlib is not installed; it is in the extra 'bench'")
    else:
        drawn = draw(results.scenarios, directory / PLOTS)
    directory.mkdir(parents=True, exist_ok=True)
    lines = page_lines(results.scenarios, drawn)
    (directory / PAGE).write_text("\n".join(lines).rstrip() + "\n")


def publish(results: Results, root: Path = ROOT) -> None:
    """The same into docs/, the results with it, and the one plot into the README.

    Raises:
      ValueError: there is nothing, or something that too few rounds stand behind.
    """
    few = [
        name
        for name, entry in compared(results.scenarios).items()
        if entry["rounds"] < report.ROUNDS_MIN
    ]
    if few or not results.scenarios:
        raise ValueError(
            f"fewer than {report.ROUNDS_MIN} rounds: {', '.join(few)}" if few else "no results"
        )
    docs = root / "docs"
    write(results, docs)
    results.save(docs / PLOTS)
    readme = root / "README.md"
    plot = f"![CPU for a message, of stock trio's](docs/{PLOTS}/{OVERVIEW_FILE}.svg)\n"
    text, count = MARKS.subn(plot, readme.read_text())
    if count != 1:
        raise ValueError("the README has no place for the plot, between <!-- plot --> marks")
    readme.write_text(text)
