"""The plots, as SVG and PNG: readable on white and on black, for there is one file for both.

So the background is left out, and lines and letters are of a grey in the middle between the two.
A bar is the median, and the line on it reaches from the lowest round to the highest.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.groups import OVERVIEW, OVERVIEW_PROGRAMS, ratios, rounds_of
from benchmarks.peers import BEFORE, C_EPOLL, C_RING, OURS, STOCK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7d8590"  # 4:1 on white, and 5:1 on GitHub's dark page
OURS_COLOUR = "#2f81f7"
BEFORE_COLOUR = "#79b8ff"
STOCK_COLOUR = "#d29922"
C_COLOUR = "#8957e5"
OTHER_COLOUR = "#57ab5a"

BAR_INCHES = 0.24
PANEL_INCHES = 4.6
PANELS_A_ROW = 2
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "font.size": 9,
    "savefig.transparent": True,
    "svg.fonttype": "path",  # the same letters everywhere
    "svg.hashsalt": "uring_trio",  # the same file from the same figures
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def colour_of(name: str) -> str:
    """Ours, stock trio, plain C, and all others."""
    if name in OURS:
        return OURS_COLOUR
    if name.endswith(BEFORE):
        return BEFORE_COLOUR
    if name.startswith(STOCK):
        return STOCK_COLOUR
    return C_COLOUR if name in (C_EPOLL, C_RING) else OTHER_COLOUR


def draw_bars(axes: Axes, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    """A horizontal bar for each program, from the top; *values* are its rounds."""
    medians = [statistics.median(each) for each in values]
    spans = [
        [median - min(each) for each, median in zip(values, medians, strict=True)],
        [max(each) - median for each, median in zip(values, medians, strict=True)],
    ]
    places = range(len(names))
    axes.barh(
        places,
        medians,
        xerr=spans,
        color=[colour_of(name) for name in names],
        ecolor=INK,
        error_kw={"elinewidth": 1.2},
    )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, directory: Path, name: str) -> None:
    """Both files."""
    directory.mkdir(parents=True, exist_ok=True)
    # Without a date: what does not change makes no difference between two versions.
    figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
    figure.savefig(directory / f"{name}.png", dpi=150)


def draw_panels(
    directory: Path, name: str, scenarios: Mapping[str, Mapping[str, Any]], metric: str, label: str
) -> bool:
    """One figure with a panel for each scenario; False if there is nothing to show."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = []
    for title, entry in scenarios.items():
        shown = [each for each in entry["programs"] if rounds_of(entry, each, metric)]
        if shown:
            panels.append((title, shown, [rounds_of(entry, each, metric) for each in shown], entry))
    if not panels:
        return False
    rows = -(-len(panels) // PANELS_A_ROW)
    columns = min(PANELS_A_ROW, len(panels))
    bars = max(len(shown) for _, shown, _, _ in panels)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(PANEL_INCHES * columns, (0.9 + BAR_INCHES * bars) * rows),
            layout="constrained",
        )
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (title, shown, values, entry) in zip(all_axes, panels, strict=False):
            draw_bars(axes, shown, values)
            axes.set_title(title, loc="left")
            axes.set_xlabel(label.format(unit=entry["unit"]))
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        save(figure, directory, name)
    return True


def draw_overview(directory: Path, name: str, scenarios: Mapping[str, Mapping[str, Any]]) -> bool:
    """The README's: CPU for a message beside stock trio's; False if there is nothing to show."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = []
    for title in OVERVIEW:
        entry = scenarios.get(title)
        if entry is None or STOCK not in entry["programs"]:
            continue
        shown = [each for each in OVERVIEW_PROGRAMS if each in entry["programs"]]
        values = [ratios(entry, each, STOCK, "cpu_us") for each in shown]
        panels.append((title, shown, values))
    if not panels:
        return False
    with rc_context(STYLE):
        bars = max(len(shown) for _, shown, _ in panels)
        rows = -(-len(panels) // PANELS_A_ROW)
        columns = min(PANELS_A_ROW, len(panels))
        figure = Figure(
            figsize=(PANEL_INCHES * columns, (0.8 + BAR_INCHES * bars) * rows),
            layout="constrained",
        )
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (title, shown, values) in zip(all_axes, panels, strict=False):
            draw_bars(axes, shown, values)
            axes.axvline(1.0, color=STOCK_COLOUR, linewidth=0.8, linestyle="--")
            axes.set_title(f"echo, {title}", loc="left")
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("CPU for a message, of stock trio's (less is better)", fontsize=9)
        save(figure, directory, name)
    return True
