"""How far it is: bars by rich where it is installed and somebody looks, or lines."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Progress(Protocol):
    """Steps of about the same length, within scenarios."""

    def begin(self, scenario: str, steps: int) -> None:
        """The next scenario, and how many steps it has."""

    def step(self, text: str) -> None:
        """What is done now; the step before is done."""

    def end(self) -> None:
        """The scenario is done."""


class Lines:
    """A line for each step, apart from the tables."""

    def __init__(self) -> None:
        self._scenario = ""

    def begin(self, scenario: str, steps: int) -> None:
        """Remember it: each line begins with it."""
        self._scenario = scenario

    def step(self, text: str) -> None:
        """Say it."""
        print(f"  {self._scenario}, {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Nothing to say."""


@contextlib.contextmanager
def bars(steps: int) -> Iterator[Progress]:
    """A bar for all *steps* and one for the scenario; lines where nobody could see bars."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress
    except ImportError:
        yield Lines()
        return

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Tables go above the bars on a terminal, and into the file where output is one.
    with RichProgress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as shown:
        whole = shown.add_task("all", total=steps)
        current = shown.add_task("", total=1)

        class Bars:
            """Two bars."""

            def __init__(self) -> None:
                self._scenario = ""
                self._started = 0
                self._steps = 0

            def begin(self, scenario: str, steps: int) -> None:
                """The second bar is empty again."""
                self._scenario, self._started, self._steps = scenario, 0, steps
                shown.reset(current, total=steps, description=scenario)

            def step(self, text: str) -> None:
                """The step before is done."""
                done = min(self._started, 1)
                self._started += 1
                shown.update(current, description=f"{self._scenario}, {text}", advance=done)
                shown.update(whole, advance=done)

            def end(self) -> None:
                """Steps of those that could not be measured are done too."""
                left = self._steps - max(0, self._started - 1)
                shown.update(whole, advance=left)
                shown.update(current, completed=self._steps)

        yield Bars()
