"""Every check of the project, one after the other, with one summary: ``make test``.

A failing check does not stop the others. Each has a time limit, so that the whole
stays under a quarter of an hour and a hang becomes a failure.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

PYTEST_SUMMARY = re.compile(r"^=* ?(\d+ [a-z]+(?:, \d+ [a-z]+)*) in [\d.]+s\b")
PYTEST_COUNT = re.compile(r"(\d+) ([a-z]+)")


@dataclass
class Check:
    """A command, how long it may take, and what became of it."""

    name: str
    command: list[str]
    limit_s: int
    counts: dict[str, int] = field(default_factory=dict)
    passed: bool = False
    seconds: float = 0.0


def checks() -> list[Check]:
    """All checks; the quick ones first, so that a slip shows early."""
    python = sys.executable
    return [
        Check("ruff check", [str(BIN / "ruff"), "check", "."], 60),
        Check("ruff format", [str(BIN / "ruff"), "format", "--check", "."], 60),
        Check("mypy", [str(BIN / "mypy")], 180),
        Check("C tests", ["make", "-C", "csrc/tests", "check"], 180),
        Check("pytest", [python, "-m", "pytest", "-q", "--ignore=tests/ecosystem"], 600),
        Check("ecosystem", [python, "-m", "pytest", "-q", "tests/ecosystem"], 120),
        Check("trio's suite", [python, "tests/trio_suite/run.py"], 420),
        Check("anyio's suite", [python, "tests/anyio_suite/compare.py"], 330),
    ]


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a check with all that it started; it leads its own process group."""
    print(f"time limit: killing {process.args!r}", flush=True)
    os.killpg(process.pid, signal.SIGKILL)


def run_check(check: Check) -> None:
    """Run one check, show its output as it comes, and note result and counts."""
    print(f"\n--- {check.name}: {' '.join(check.command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        check.command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    watchdog = threading.Timer(check.limit_s, kill_group, [process])
    watchdog.start()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := PYTEST_SUMMARY.match(line):
            check.counts = {word: int(n) for n, word in PYTEST_COUNT.findall(match[1])}
    check.passed = process.wait() == 0
    watchdog.cancel()
    check.seconds = time.monotonic() - started


def print_summary(done: list[Check]) -> bool:
    """A line for each check, then one for all in pytest's form; True if all passed."""
    total = {"failed": 0, "passed": 0, "skipped": 0}
    print("\n--- summary")
    for check in done:
        counts = ", ".join(f"{n} {word}" for word, n in check.counts.items())
        result = "ok" if check.passed else "FAILED"
        print(f"{check.name:14} {result:7} {check.seconds:6.1f} s  {counts}")
        # The project's own tests count one by one, everything else as one test: the
        # runs of trio's suite would drown them.
        own = check.counts if check.name in ("pytest", "ecosystem") else {}
        for word in total:
            total[word] += own.get(word, 0)
        total["failed"] += own.get("error", 0) + own.get("errors", 0)
        if not own or (not check.passed and not total["failed"]):
            total["passed" if check.passed else "failed"] += 1
    words = ", ".join(f"{n} {word}" for word, n in total.items() if n)
    print(f"===== {words} in {sum(check.seconds for check in done):.2f}s =====", flush=True)
    return all(check.passed for check in done)


def main(names: list[str]) -> int:
    """Run all checks, or those whose names contain one of *names*."""
    # A shell starts a background job with SIGINT ignored, and children inherit that; tests of
    # KeyboardInterrupt would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    chosen = [c for c in checks() if not names or any(name in c.name for name in names)]
    for check in chosen:
        run_check(check)
    return 0 if print_summary(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
