"""anyio's own test suite on stock trio and on the ring, compared test by test.

The suite is that of the anyio release which is installed here, from its sdist (pip fetches
it once, into ``.anyio_suite``). It is run with the installed anyio on stock trio, and on the
ring by each route: ``anyio_options()``, ``backend="uring_trio"``, ``install()``. After mapping the parameter each test must have the outcome that
stock trio has, apart from ``EXPECTED_DIFFERENCES``; each run of trio must have been on the
ring, apart from ``STARTED_BY_TESTS``; and the ring must have done its share.

The suite needs ``::1 localhost``. Not every machine has that, so it runs in a private mount
namespace with a hosts file of its own; where that is not permitted all of this is skipped.

    python tests/anyio_suite/compare.py [--route ROUTE] [--parallel] [-- PYTEST ARGUMENTS]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SDISTS = ROOT / ".anyio_suite"
HERE = Path(__file__).resolve().parent

# The parameter that stands for trio, in the names of tests.
PARAMETERS = {
    "stock": "trio",
    "options": "trio+uring",
    "name": "uring_trio",
    "install": "trio",
}
RING_ROUTES = ("options", "name", "install")

# By the name of the test's function. They are run and shown all the same.
NAME_IS_TRIO = "compares the name that sniffio reports, which stays trio, with the backend's"
EXPECTED_DIFFERENCES: dict[str, dict[str, str]] = {
    "options": {},
    "install": {},
    "name": {
        "test_sniffio": NAME_IS_TRIO,
        "test_single_thread": NAME_IS_TRIO,
        "test_single_thread_overlapping": NAME_IS_TRIO,
        "test_multiple_threads": NAME_IS_TRIO,
        "test_retry_after_failed_enter": NAME_IS_TRIO,
    },
}

# Of a process that imports pytest and plugins: 3 s are over before that on a machine that is busy.
# Less than the 10 s for which the tests sleep that an interrupt is to end.
START_LIMIT, START_LIMIT_S = "timeout=3)", 9

# Left out of one route, by the test's name on stock trio.
NOT_RUN: dict[str, dict[str, str]] = {
    "name": {
        "tests/test_from_thread.py::TestBlockingPortal::test_from_async[trio-trio]": (
            "trio's deadlock of a portal in a run of its own (anyio's issue 525), which the "
            "suite expects of two backends that are both named trio"
        ),
    },
}

# Tests some of whose runs are on epoll by their own doing: they start trio themselves, or
# give its name to anyio without the options that they were parametrized with.
STARTED_BY_TESTS = {
    "test_bind_failure_closes_socket",
    "test_call_async_cancellation",
    "test_call_async_cancellation_cleanup",
    "test_call_async_cancellation_does_not_block",
    "test_call_async_context_variable",
    "test_call_async_corofunc",
    "test_clock",
    "test_debugger_exit_in_taskgroup",
    "test_from_async",
    "test_future_cancellation_does_not_block",
    "test_run_natively",
}

# anyio 4.16.0 has 1116 with trio and without the Internet, and 4.14.0 over 900. With far
# fewer the suite did not run, and two empty sets are equal too.
PASSED_MIN = 850

# The ring's share of the work must not be nothing.
REQUIRED_OPERATIONS = ("recv", "send", "connect", "sendmsg", "recvmsg", "poll_add")

HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
MOUNT_HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'

RUN_TIMEOUT_S = 300  # about 40 s alone
LOOK_S = 10.0


def slowness() -> float:
    """How much longer it may take here; ``tests/run_all.py`` has measured it."""
    return float(os.environ.get("URING_TRIO_SLOWNESS", "1"))


# In the suite's conftest, before the fixture `anyio_backend`.
FIXTURE = "@pytest.fixture(params=backend_params)\n"
PARAMETERS_OF_OURS = """\
import suite_backend
backend_params = [*asyncio_params, *suite_backend.backend_params()]

"""


class Skip(Exception):
    """The comparison cannot be made here."""


def fetch_suite() -> Path:
    """The unpacked sdist of the installed anyio."""
    version = importlib.metadata.version("anyio")
    unpacked = SDISTS / f"anyio-{version}"
    if not unpacked.exists():
        SDISTS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SDISTS) as directory:
            download = [
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary=anyio",
                f"anyio=={version}",
            ]
            done = subprocess.run(
                [sys.executable, "-m", "pip", *download, f"--dest={directory}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            archives = list(Path(directory).glob("*.tar.gz"))
            if done.returncode != 0 or not archives:
                raise Skip(f"pip could not fetch the sdist of anyio {version}:\n{done.stdout}")
            with tarfile.open(archives[0]) as archive:
                archive.extractall(directory)
            (Path(directory) / unpacked.name).rename(unpacked)
    return unpacked


def copy_suite(sdist: Path, directory: Path) -> None:
    """The tests and their configuration, without anyio itself; with our parameters.

    Tests that start a pytest of their own have more time for that, on stock as on the ring.
    """
    shutil.copytree(sdist / "tests", directory / "tests")
    shutil.copy(sdist / "pyproject.toml", directory)
    conftest = directory / "tests" / "conftest.py"
    text = conftest.read_text()
    if text.count(FIXTURE) != 1:
        raise SystemExit("the suite's conftest is not what it was: look for `backend_params`")
    conftest.write_text(text.replace(FIXTURE, PARAMETERS_OF_OURS + FIXTURE))
    plugin = directory / "tests" / "test_pytest_plugin.py"
    plugin.write_text(plugin.read_text().replace(START_LIMIT, f"timeout={START_LIMIT_S})"))


def namespace(hosts: Path) -> list[str]:
    """What to put before a command, so that it sees *hosts* as /etc/hosts."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    prefix = [*unshare, "sh", "-c", MOUNT_HOSTS, "sh", str(hosts)]
    try:
        tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise Skip("there is no unshare(1), which makes the mount namespace") from exc
    if tried.returncode != 0:
        raise Skip(f"a private mount namespace is not permitted here: {tried.stderr.strip()}")
    return prefix


@dataclass
class SuiteRun:
    """The suite in a process of its own, by one route."""

    route: str
    directory: Path
    seen: int = 0  # bytes of its output

    def start(self, sdist: Path, prefix: list[str], extra: list[str]) -> None:
        self.directory.mkdir()
        copy_suite(sdist, self.directory)
        command = [sys.executable, "-m", "pytest", "-p", "suite_backend", "-q", "-k", "trio"]
        for test in NOT_RUN.get(self.route, {}):
            command.append(f"--deselect={from_stock(test, self.route)}")
        # Nothing else makes the backend's name known here: plugins are not loaded by themselves.
        command += ["-p", "uring_trio._pytest_entry", "-p", "no:cacheprovider", *extra]
        settings = {
            "ANYIO_SUITE_ROUTE": self.route,
            "ANYIO_SUITE_RECORD": str(self.record),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            # In a namespace where this user is root, /tmp/pytest-of-root is somebody else's.
            "PYTEST_DEBUG_TEMPROOT": str(self.directory),
        }
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.log = (self.directory / "log").open("w")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, *command],
            cwd=self.directory,
            env={**os.environ, **settings, "PYTHONPATH": path},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    @property
    def record(self) -> Path:
        return self.directory / "record.json"

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
        recorded = json.loads(self.record.read_text()) if self.record.exists() else {}
        self.recorded: dict[str, Any] = recorded
        self.outcomes = {
            as_on_stock(test, self.route): outcome
            for test, outcome in recorded.get("outcomes", {}).items()
        }

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
            print(f"{self.route}: {size} bytes of output", flush=True)

    def output(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def summary(self) -> str:
        counts = Counter(self.outcomes.values())
        words = ", ".join(f"{n} {word}" for word, n in sorted(counts.items())) or "nothing ran"
        return f"{self.route:8} {words} in {self.seconds:.1f}s (exit status {self.status})"


def as_on_stock(test: str, route: str) -> str:
    """The test's name with stock trio's parameter in place of this route's."""
    name, bracket, parameters = test.partition("[")
    return name + bracket + parameters.replace(PARAMETERS[route], PARAMETERS["stock"])


def from_stock(test: str, route: str) -> str:
    """The other way round; the backend's parameter is the first of these names."""
    name, bracket, parameters = test.partition("[")
    return name + bracket + parameters.replace(PARAMETERS["stock"], PARAMETERS[route], 1)


def bare(test: str) -> str:
    """The function's name."""
    return test.partition("[")[0].rpartition("::")[2]


def compare(stock: SuiteRun, ring: SuiteRun) -> tuple[list[str], list[str]]:
    """The differences that are failures, and those that were expected, with the reason."""
    failures, expected = [], []
    for test in sorted(stock.outcomes.keys() | ring.outcomes.keys()):
        on_stock, on_ring = (run.outcomes.get(test, "not run") for run in (stock, ring))
        # A thread's error is told of with the test or after it, as it comes.
        if on_stock == on_ring or {on_stock, on_ring} <= {"failed", "error"}:
            continue
        line = f"{test}: {on_stock} on stock trio, {on_ring} by {ring.route}"
        left_out = NOT_RUN.get(ring.route, {}).get(test)
        reason = left_out or EXPECTED_DIFFERENCES[ring.route].get(bare(test))
        if reason is None:
            failures.append(line)
        else:
            expected.append(f"{line} ({reason})")
    return failures, expected


def check_backend(ring: SuiteRun) -> list[str]:
    """What the record says against this having been a run on the ring."""
    operations = ring.recorded.get("operations", {})
    missing = [name for name in REQUIRED_OPERATIONS if not operations.get(name)]
    failures = [f"{ring.route}: no {name} was done by the ring" for name in missing]
    for test, n in ring.recorded.get("elsewhere", {}).items():
        if bare(test) not in STARTED_BY_TESTS or ring.route == "install":
            failures.append(f"{ring.route}: {n} runs were on epoll in {test}")
    return failures


def run_all(directory: Path, arguments: argparse.Namespace) -> list[SuiteRun]:
    hosts = directory / "hosts"
    hosts.write_text(HOSTS)
    prefix = namespace(hosts)
    sdist = fetch_suite()
    runs = [SuiteRun(route, directory / route) for route in ("stock", *arguments.route)]
    for run in runs:
        run.start(sdist, prefix, arguments.extra)
        if not arguments.parallel:
            run.finish()
    for run in runs if arguments.parallel else []:
        run.finish()
    return runs


def show(runs: list[SuiteRun], *, whole: bool) -> bool:
    """Print what there is to know; True if the ring does all that stock trio does."""
    stock, *rings = runs
    failures, expected = [], []
    for ring in rings:
        new, known = compare(stock, ring)
        failures += new + check_backend(ring)
        expected += known
    passed = sum(outcome == "passed" for outcome in stock.outcomes.values())
    if whole and passed < PASSED_MIN:
        failures.append(f"only {passed} tests passed on stock trio: the suite does not run here")
    failures += [f"{r.route}: not done after {RUN_TIMEOUT_S} s" for r in runs if r.timed_out]
    for run in runs if failures else []:
        print(f"--- output of the run by {run.route}\n{run.output()}")
    print(f"anyio {importlib.metadata.version('anyio')}")
    for run in runs:
        print(run.summary())
        for name in ("runs", "operations", "plain_calls", "stock_calls"):
            counts = sorted(run.recorded.get(name, {}).items())
            if counts and (run is not stock or name == "runs"):
                print(f"  {name}: {', '.join(f'{key} {n}' for key, n in counts)}")
    for test, outcome in stock.outcomes.items():
        if outcome in ("failed", "error"):
            print(f"{outcome} on stock trio, too: {test}")
    for line in expected:
        print(f"expected difference: {line}")
    for line in failures:
        print(f"FAILED {line}")
    failed = f"{len(failures)} failed, " if failures else ""
    print(f"===== {failed}{passed} passed in {sum(run.seconds for run in runs):.2f}s =====")
    return not failures


def main() -> int:
    # A shell starts a background job with SIGINT ignored, and a test of the suite sends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description="anyio's own suite, stock against the ring")
    parser.add_argument("--route", action="append", choices=RING_ROUTES, help="on the ring by it")
    # Not by default: the suite gives processes 3 s, which on two busy cores is not enough.
    parser.add_argument("--parallel", action="store_true", help="all runs at once")
    parser.add_argument("extra", nargs="*", help="further arguments for pytest, after --")
    arguments = parser.parse_args()
    arguments.route = arguments.route or ["options", "name"]
    with tempfile.TemporaryDirectory(prefix="anyio_suite_") as directory:
        try:
            runs = run_all(Path(directory), arguments)
        except Skip as exc:
            print(f"===== 1 skipped in 0.00s =====\nskipped: {exc}")
            return 1 if os.environ.get("URING_TRIO_REQUIRE") == "1" else 0
        return 0 if show(runs, whole=not arguments.extra) else 1


if __name__ == "__main__":
    sys.exit(main())
