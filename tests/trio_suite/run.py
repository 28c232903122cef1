"""trio's own installed test suite on stock trio and on the ring, compared test by test.

Both runs are in this environment and side by side, each in an empty directory. The sets
of passed tests must be equal, apart from ``EXPECTED_DIFFERENCES``, and every other
outcome must be the one that stock trio has: a skip, an expected failure or a rerun that
is new on the ring hides a failure. And the ring must really have been at work: each of
recv, send, accept and connect must have been done by it.

    python tests/trio_suite/run.py [--serial] [--report FILE] [-- PYTEST ARGUMENTS]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

# Left out of the comparison, but run and shown all the same. Each tests how stock trio is
# made and not what it does for its users.
EXPECTED_DIFFERENCES = {
    "test_io_manager_statistics": "knows the backend names of stock trio only",
    "test_close_at_bad_time_for_receive_some": (
        "patches wait_readable to close the pipe there; a completion does not wait"
    ),
    "test_close_at_bad_time_for_send_all": (
        "patches wait_writable to close the pipe there; a completion does not wait"
    ),
}

# trio 0.35.0 has 827, and 0.28.0 the fewest of those that we support, 745. With far fewer the
# suite did not run, and two empty sets are equal too.
PASSED_MIN = 700

# The ring's share of the work must not be nothing.
REQUIRED_OPERATIONS = ("recv", "send", "poll_add", "connect")

# static_tool and gen_exports run type checkers and code generators over trio's sources.
SELECTION = [
    "--pyargs",
    "trio",
    "-p",
    "trio._tests.pytest_plugin",
    "--run-slow",
    "-k",
    "not static_tool and not gen_exports",
    "--ignore-glob=/*/test_gen_exports.py",  # needs more packages even to be collected
    "-p",
    "no:cacheprovider",
    "-q",
    "--tb=short",
]
ON_THE_RING = ["-p", "uring_trio.pytest_plugin", "--uring-backend=io_uring"]

TEST_TIMEOUT_S = 60  # trio's slowest test takes about 5 s alone
RUN_TIMEOUT_S = 400  # about 40 s alone, and under a make test of 15 minutes
LOOK_S = 10.0


def slowness() -> float:
    """How much longer it may take here; ``tests/run_all.py`` has measured it."""
    return float(os.environ.get("URING_TRIO_SLOWNESS", "1"))


class Recorder:
    """A pytest plugin that notes each test's outcome."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Set-up and tear-down tell only of what went wrong in them, or of a skip.
        tells = report.when == "call" or not report.passed
        if tells and self.outcomes.get(report.nodeid) in (None, "passed"):
            self.outcomes[report.nodeid] = outcome_of(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.outcomes[f"{report.nodeid} (collecting)"] = report.outcome


def outcome_of(report: pytest.TestReport) -> str:
    if report.when != "call" and report.failed:
        return "error"
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return str(report.outcome)


def record(path: str, arguments: list[str]) -> int:
    """The inner process: run the suite and write the outcomes to *path*."""
    import pytest

    recorder = Recorder()
    status = pytest.main(arguments, plugins=[recorder])
    Path(path).write_text(json.dumps(recorder.outcomes))
    return int(status)


@dataclass
class SuiteRun:
    """The suite in a process of its own, on one backend."""

    name: str
    directory: Path
    arguments: list[str]
    seen: int = 0  # bytes of its output

    def start(self) -> None:
        self.directory.mkdir()
        work = self.directory / "work"  # empty: the suite must not find a configuration
        work.mkdir()
        self.log = (self.directory / "log").open("w")
        self.started = time.monotonic()
        command = [sys.executable, __file__, "--record", str(self.directory / "outcomes"), "--"]
        self.process = subprocess.Popen(
            [*command, *SELECTION, *timeout_options(), *self.arguments],
            cwd=work,
            # What happens to be installed beside pytest must not change the suite.
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def finish(self) -> None:
        """Wait for the end, and read what was recorded."""
        deadline = time.monotonic() + RUN_TIMEOUT_S * slowness()
        while not self.is_over() and time.monotonic() < deadline:
            self.show_life()
        self.timed_out = self.process.poll() is None
        if self.timed_out:
            self.process.kill()
        self.status = self.process.wait()
        self.seconds = time.monotonic() - self.started
        self.log.close()
        try:
            self.outcomes: dict[str, str] = json.loads((self.directory / "outcomes").read_text())
        except FileNotFoundError:
            self.outcomes = {}

    def is_over(self) -> bool:
        """Wait for the end, for a moment."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LOOK_S)
        return self.process.poll() is not None

    def show_life(self) -> None:
        """A line if the suite has got further: who watches us must see that it does."""
        size = (self.directory / "log").stat().st_size
        if size != self.seen:
            self.seen = size
            print(f"{self.name}: {size} bytes of output", flush=True)

    def output(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def summary(self) -> str:
        counts = Counter(self.outcomes.values())
        words = ", ".join(f"{n} {word}" for word, n in sorted(counts.items())) or "nothing ran"
        return f"{self.name:9} {words} in {self.seconds:.1f}s (exit status {self.status})"


def timeout_options() -> list[str]:
    if importlib.util.find_spec("pytest_timeout") is None:
        return []
    return ["-p", "pytest_timeout", f"--timeout={min(TEST_TIMEOUT_S * slowness(), 90):.0f}"]


def zip_outcomes(stock: dict[str, str], ring: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each test with its outcome here and there."""
    for test in sorted(stock.keys() | ring.keys()):
        yield test, stock.get(test, "not run"), ring.get(test, "not run")


def compare(stock: dict[str, str], ring: dict[str, str]) -> tuple[list[str], list[str]]:
    """The differences that are failures, and those that were expected, with the reason."""
    failures, expected = [], []
    for test, on_stock, on_ring in zip_outcomes(stock, ring):
        if on_stock == on_ring:
            continue
        line = f"{test}: {on_stock} on stock trio, {on_ring} on the ring"
        reason = EXPECTED_DIFFERENCES.get(test.rpartition("::")[2])
        if reason is None:
            failures.append(line)
        else:
            expected.append(f"{line} ({reason})")
    return failures, expected


def check_operations(report: dict[str, Any]) -> list[str]:
    """What the plugin's report says against this having been a run on the ring."""
    operations = report.get("operations", {})
    missing = [name for name in REQUIRED_OPERATIONS if not operations.get(name)]
    failures = [f"no {name} was done by the ring" for name in missing]
    return failures + list(report.get("failures", ["the ring's run left no report"]))


def run_both(directory: Path, extra: list[str], *, serial: bool) -> tuple[SuiteRun, SuiteRun, Any]:
    report = directory / "report.json"
    stock = SuiteRun("stock", directory / "stock", extra)
    ring_arguments = [*ON_THE_RING, f"--uring-report={report}", *extra]
    ring = SuiteRun("io_uring", directory / "ring", ring_arguments)
    stock.start()
    if serial:
        stock.finish()
    ring.start()
    if not serial:
        stock.finish()
    ring.finish()
    return stock, ring, json.loads(report.read_text()) if report.exists() else {}


def show(stock: SuiteRun, ring: SuiteRun, report: dict[str, Any]) -> bool:
    """Print what there is to know; True if the ring does all that stock trio does."""
    differences, expected = compare(stock.outcomes, ring.outcomes)
    failures = [*differences, *check_operations(report)]
    passed = sum(outcome == "passed" for outcome in stock.outcomes.values())
    if passed < PASSED_MIN:
        failures.append(f"only {passed} tests passed on stock trio: the suite does not run here")
    for run in (stock, ring):
        if run.timed_out:
            failures.append(f"{run.name}: not done after {RUN_TIMEOUT_S} s")
    if failures:
        for run in (stock, ring):
            print(f"--- output of the run on {run.name}\n{run.output()}")
    print(stock.summary())
    print(ring.summary())
    for name in ("operations", "stock_calls", "ring"):
        counts = sorted(report.get(name, {}).items())
        print(f"{name}: {', '.join(f'{key} {n}' for key, n in counts) or 'none'}")
    for line in expected:
        print(f"expected difference: {line}")
    for line in failures:
        print(f"FAILED {line}")
    outcomes = zip_outcomes(stock.outcomes, ring.outcomes)
    same = sum(on_stock == on_ring == "passed" for _, on_stock, on_ring in outcomes)
    failed = f"{len(failures)} failed, " if failures else ""
    print(f"===== {failed}{same} passed in {max(stock.seconds, ring.seconds):.2f}s =====")
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(description="trio's own suite, stock against the ring")
    parser.add_argument("--serial", action="store_true", help="one run after the other")
    parser.add_argument("--report", type=Path, help="write the outcomes and counts as JSON")
    parser.add_argument("--record", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("extra", nargs="*", help="further arguments for pytest, after --")
    arguments = parser.parse_args()
    if arguments.record:
        sys.path.remove(str(Path(__file__).resolve().parent))
        return record(arguments.record, arguments.extra)
    with tempfile.TemporaryDirectory(prefix="trio_suite_") as directory:
        stock, ring, report = run_both(Path(directory), arguments.extra, serial=arguments.serial)
        passed = show(stock, ring, report)
    if arguments.report:
        content = {"stock": stock.outcomes, "io_uring": ring.outcomes, "report": report}
        arguments.report.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
