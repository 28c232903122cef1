"""The own test suites of httpcore, hypercorn and trio-websocket, on stock trio and on the ring.

Each comes from its project's sdist and has an environment of its own under ``.matrix``, with
the releases that it was written for. It runs twice there, and each test must have the same
outcome: a test that fails on stock trio says nothing about the ring, and has to fail there, too.

    python tests/ecosystem/suites.py [NAME ...] [--markdown FILE]

The index that pip is set up for is the only thing that it needs from the network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".matrix" / "ecosystem"

RUN_LIMIT_S = 300  # the longest takes 20 s
ON_THE_RING = ("-p", "uring_trio.pytest_plugin", "--uring-report")
OUTCOMES = "URING_TRIO_OUTCOMES"


@dataclass(frozen=True)
class Suite:
    """A release of a project, and how its tests are run.

    Attributes:
      name: the project's, on the index.
      version: the release.
      extras: of the project.
      needs: what its tests import, and pytest in the release that they know.
      arguments: for pytest.
      passed_min: with far fewer the suite did not run, and two empty sets are equal too.
    """

    name: str
    version: str
    extras: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...]
    passed_min: int


SUITES = (
    Suite(
        "httpcore",
        "1.0.9",
        "[asyncio,http2,socks,trio]",
        ("pytest", "pytest-httpbin", "pytest-trio", "pytest-timeout"),
        (),
        200,
    ),
    Suite(
        "hypercorn",
        "0.18.0",
        "[trio]",
        # The next release of h2 refuses a header that its tests send.
        ("h2==4.3.0", "httpx", "pytest", "pytest-asyncio", "pytest-trio", "pytest-timeout"),
        ("-o", "addopts="),  # its own are about coverage
        180,
    ),
    Suite(
        "trio-websocket",
        "0.12.2",
        "",
        ("pytest==8.3.5", "pytest-trio", "pytest-timeout", "trustme"),
        ("-o", "trio_mode=true"),  # as in its repository's pytest.ini, which the sdist is without
        60,
    ),
)


@dataclass
class Result:
    """What a suite gave: outcomes by test, on stock and on the ring, and the ring's report."""

    suite: Suite
    stock: dict[str, str]
    ring: dict[str, str]
    report: dict[str, Any]
    seconds: float

    def problems(self) -> list[str]:
        """Why this proves no equality, or that there is none."""
        found = [
            f"{test}: {self.stock.get(test)} on stock trio, {self.ring.get(test)} on the ring"
            for test in sorted(self.stock.keys() | self.ring.keys())
            if self.stock.get(test) != self.ring.get(test)
        ]
        passed = list(self.stock.values()).count("passed")
        if passed < self.suite.passed_min:
            found.append(f"only {passed} tests passed on stock trio")
        found += self.report["failures"]
        if not self.report["runs"].get("io_uring"):
            found.append("no run was on the ring")
        return found


def pip(python: Path, *arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([str(python), "-m", "pip", *arguments, *quiet], check=True)


def build_wheel() -> Path:
    """Ours, from a copy of the sources: a build in the checkout would change what is there."""
    copy = PLACE / "source"
    shutil.rmtree(copy, ignore_errors=True)
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    target = PLACE / "dist"
    shutil.rmtree(target, ignore_errors=True)
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(target), str(copy))
    (wheel,) = target.glob("*.whl")
    return wheel


def set_up(suite: Suite, wheel: Path) -> tuple[Path, Path]:
    """A fresh environment and the project's sources: the interpreter, and where to run it."""
    place = PLACE / suite.name
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    release = f"{suite.name}{suite.extras}=={suite.version}"
    pip(python, "install", str(wheel), release, *suite.needs)
    sdist = f"{suite.name}=={suite.version}"
    # pip builds the metadata, also of what it only downloads, in an environment for that.
    pip(python, "download", sdist, "--no-deps", "--no-binary", suite.name, "--dest", str(place))
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Python 3.10 and 3.11 have the filter from a later release on, and 3.14 wants it.
        if hasattr(tarfile, "data_filter"):
            tar.extractall(place, filter="data")
        else:
            tar.extractall(place)
    return python, place / archive.name.removesuffix(".tar.gz")


def run_suite(python: Path, directory: Path, suite: Suite, *options: str) -> dict[str, str]:
    """Outcomes by test; nothing of the machine's pytest settings has a say."""
    outcomes = directory.parent / "outcomes.json"
    outcomes.unlink(missing_ok=True)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "URING_TRIO"))}
    environ |= {"PYTHONPATH": str(Path(__file__).parent), OUTCOMES: str(outcomes)}
    # Without -c, pytest looks for settings further up, and finds those of this project.
    command = [str(python), "-m", "pytest", "-c", "pyproject.toml", "-q", "-p", "suites"]
    done = subprocess.run(
        [*command, *suite.arguments, *options],
        cwd=directory,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=RUN_LIMIT_S,
        check=False,
    )
    if not outcomes.exists():
        raise RuntimeError(f"pytest did not run {suite.name}'s suite:\n{done.stdout[-4000:]}")
    found: dict[str, str] = json.loads(outcomes.read_text())
    return found


def compare(suite: Suite, wheel: Path) -> Result:
    """Set a suite up and run it on both."""
    started = time.monotonic()
    python, directory = set_up(suite, wheel)
    report = directory.parent / "report.json"
    stock = run_suite(python, directory, suite)
    ring = run_suite(python, directory, suite, *ON_THE_RING, str(report))
    content = json.loads(report.read_text())
    return Result(suite, stock, ring, content, time.monotonic() - started)


def table(results: list[Result]) -> str:
    """What became of each suite, in Markdown."""
    lines = [
        "| suite | on stock trio | on the ring | same for each test | runs on the ring | operations |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        operations = ", ".join(f"{name} {n}" for name, n in result.report["operations"].items())
        cells = [
            f"{result.suite.name} {result.suite.version}",
            counted(result.stock),
            counted(result.ring),
            "no" if result.problems() else "yes",
            str(result.report["runs"].get("io_uring", 0)),
            operations,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def counted(outcomes: dict[str, str]) -> str:
    counts = Counter(outcomes.values())
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description="other projects' suites on stock and on the ring")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    arguments = parser.parse_args()
    known = {suite.name: suite for suite in SUITES}
    if unknown := set(arguments.names) - known.keys():
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    PLACE.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel()
    results = []
    for name in arguments.names or known:
        result = compare(known[name], wheel)
        results.append(result)
        print(f"{name}: {counted(result.ring)} in {result.seconds:.0f} s", flush=True)
        for problem in result.problems():
            print(f"  {problem}", flush=True)
    print(f"\n{table(results)}")
    failing = {t for r in results for t, outcome in r.stock.items() if outcome == "failed"}
    for test in sorted(failing):
        print(f"fails on stock trio: {test}")
    if arguments.markdown:
        arguments.markdown.write_text(table(results) + "\n")
    return 1 if any(result.problems() for result in results) else 0


# As a plugin of the pytest that it starts: note how each test ended.

_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Set-up and tear-down tell only of what went wrong in them, or of a skip.
    if report.when != "call" and report.passed:
        return
    outcome = f"x{report.outcome}" if hasattr(report, "wasxfail") else report.outcome
    before = _outcomes.get(report.nodeid)
    _outcomes[report.nodeid] = outcome if before in (None, "passed") else f"{before}, {outcome}"


def pytest_sessionfinish() -> None:
    Path(os.environ[OUTCOMES]).write_text(json.dumps(_outcomes))


if __name__ == "__main__":
    sys.exit(main())
