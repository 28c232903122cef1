"""The plots, as SVG and PNG: readable on white and on black, for there is one file for both.

So the background is left out, and lines and letters are of a grey in the middle between the two.
A bar is the median, and the line on it reaches from the lowest round to the highest.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
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
FRAME_INCHES = 0.9  # title, axis and label of a panel
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


@dataclass(frozen=True)
class Panel:
    """One scenario's bars.

    Attributes:
      title: above it.
      names: of the programs, from the top.
      values: the rounds of each.
      label: below it.
      mark: where a line goes from top to bottom, or None.
    """

    title: str
    names: Sequence[str]
    values: Sequence[Sequence[float]]
    label: str
    mark: float | None = None


def draw_figure(directory: Path, name: str, panels: Sequence[Panel]) -> bool:
    """All panels in one figure; False if there are none."""
    if not panels:
        return False
    # Imported where it is used: it takes a second, and those who measure need no plots.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-len(panels) // PANELS_A_ROW)
    columns = min(PANELS_A_ROW, len(panels))
    bars = max(len(panel.names) for panel in panels)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(PANEL_INCHES * columns, (FRAME_INCHES + BAR_INCHES * bars) * rows),
            layout="constrained",
        )
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(all_axes, panels, strict=False):
            draw_bars(axes, panel.names, panel.values)
            axes.set_title(panel.title, loc="left")
            axes.set_xlabel(panel.label)
            if panel.mark is not None:
                axes.axvline(panel.mark, color=STOCK_COLOUR, linewidth=0.8, linestyle="--")
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        save(figure, directory, name)
    return True


def draw_metric(
    directory: Path, name: str, scenarios: Mapping[str, Mapping[str, Any]], metric: str, label: str
) -> bool:
    """A metric of some scenarios; False if there is nothing to show."""
    panels = []
    for title, entry in scenarios.items():
        shown = [each for each in entry["programs"] if rounds_of(entry, each, metric)]
        values = [rounds_of(entry, each, metric) for each in shown]
        if shown:
            panels.append(Panel(title, shown, values, label.format(unit=entry["unit"])))
    return draw_figure(directory, name, panels)


def draw_overview(directory: Path, name: str, scenarios: Mapping[str, Mapping[str, Any]]) -> bool:
    """The README's: CPU for a message beside stock trio's; False if there is nothing to show."""
    panels = []
    for title in OVERVIEW:
        entry = scenarios.get(title)
        if entry is None or STOCK not in entry["programs"]:
            continue
        shown = [each for each in OVERVIEW_PROGRAMS if each in entry["programs"]]
        values = [ratios(entry, each, STOCK, "cpu_us") for each in shown]
        panels.append(
            Panel(f"echo, {title}", shown, values, "CPU for a message, of stock trio's", mark=1.0)
        )
    return draw_figure(directory, name, panels)
