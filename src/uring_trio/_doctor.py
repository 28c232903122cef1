"""``python -m uring_trio doctor``: what ``probe()`` found, for people or as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap

from uring_trio._probe import ProbeReport, probe

EXIT_RING = 0
EXIT_FALLBACK = 1
EXIT_USAGE = 2

WIDTH = 88
LABEL_WIDTH = 13


def main(*, as_json: bool) -> int:
    """Print the report; the exit status tells the ring from the fallback."""
    try:
        report = probe()
    except ValueError as exc:
        print(f"uring_trio doctor: {exc}", file=sys.stderr)
        return EXIT_USAGE
    try:
        print(json.dumps(report.as_dict(), indent=2) if as_json else for_people(report), flush=True)
    except BrokenPipeError:
        # The reader has seen enough (``| head``). Python flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_RING if report.backend == "io_uring" else EXIT_FALLBACK


def for_people(report: ProbeReport) -> str:
    """The verdict first, then what to do, then the details."""
    verdict = "trio runs on io_uring here."
    if report.backend != "io_uring":
        verdict = f"No io_uring here: trio runs on {report.backend}, as without uring_trio."
    lines = [verdict, ""]
    if report.reason is not None:
        lines += [*labelled("reason", report.reason), *labelled("remedy", report.remedy or "")]
    for problem in report.problems:
        if problem != report.reason:
            lines += labelled("problem", problem)
    lines += [
        *labelled("kernel", report.kernel),
        *labelled("trio", report.trio_version),
        *labelled("python", f"{platform.python_implementation()} {platform.python_version()}"),
        *labelled("hot paths", report.hot_paths),
        *labelled("setup flags", listed(report.setup_flags)),
        *labelled("features", listed(report.features)),
        *labelled("opcodes", listed(report.opcodes)),
    ]
    for name, value in report.limits.items():
        lines += labelled("limits" if name == next(iter(report.limits)) else "", f"{name} {value}")
    return "\n".join(lines)


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "not known"


def labelled(label: str, text: str) -> list[str]:
    """The text after its label, wrapped and indented under its own first line."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {label:{LABEL_WIDTH}}",
        subsequent_indent=" " * (LABEL_WIDTH + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
