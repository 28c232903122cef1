"""What looks for faults of memory and of threads while tests run: ``make sanitize``.

    python tests/sanitize.py [NAME ...]

- *analyze*: gcc's ``-fanalyzer`` over the engine, each file by itself.
- *threads*: ThreadSanitizer over what several threads do with an engine: in C alone (csrc/tests),
  and under tests of guest mode, of worker threads, and of several runs. Of Python it sees the
  locks alone.
- *address*: AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer over the extension,
  while tests of sockets, streams, cancels and callback servers run on it. What others do not
  free is listed in csrc/tests/leaks_of_others.supp.
- *guard*: what the kernel works on between protected pages (csrc/tests/guard.c), under the same
  tests.
- *seeds*: the first seeds of each generator (`by_seed`), always the same: on AddressSanitizer and
  its like, which is in the simulated kernel then, too; and on the guard, which stands before the
  simulated kernel as well.

NAMEs choose. Each prints what it finds, and its last line counts; one line that any of them
reports is a failure, and so is a test that fails. The tests run by some files in a process, and
by some processes at a time: so little time goes to starts, and a crash is that of some files.

None of them runs what is of stock trio alone: none of our C is in it (conftest.py).
"""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import builds

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
C_TESTS = "csrc/tests"

#: Tests by the beginnings of their files' names.
TESTED = (
    *("test_given_memory", "test_sockets", "test_streams", "test_stream_rules", "test_cancel"),
    *("test_guest", "test_model", "test_gain"),
)
#: Of those that have more than one thread.
THREADED = (
    "test_guest",
    "test_gain_threads",
    "test_gain_sharding",
    "test_threads",
    "test_two_runs",
)
#: Of these, those that measure, and would measure what looks.
MEASURES = ("test_gain_latency", "test_gain_benchmarks")
#: ... and of single tests.
LEFT_OUT = {
    # It counts how often threads wake up, and one of ThreadSanitizer's own does, each 100 ms.
    "thread": ("tests/test_guest_helper.py::test_idle_is_asleep",),
    "address": (
        # It measures how long a round trip waits beside 64 MiB.
        "tests/test_gain_backpressure.py::test_flood_neither_stalls_itself_nor_others",
        # It measures how four processes of the same speed share, which these are not beside others.
        "tests/test_gain_accept_shared.py::test_idle_processes_share",
    ),
}
#: So many of them in a process, and so many processes at a time.
FILES = 6
PROCESSES = 2
#: pytest's limit for a test, in seconds; stretched by `Variant.slower`.
TEST_LIMIT_S = 60.0
#: So many seeds of each generator.
SEEDS = 10


def make(target: str) -> bool:
    """Make one in csrc/tests."""
    return subprocess.run(["make", "-C", C_TESTS, target], cwd=ROOT, check=False).returncode == 0


def files(names: tuple[str, ...]) -> list[str]:
    """The tests whose files' names begin like this."""
    found = sorted(path for name in names for path in ROOT.glob(f"tests/{name}*.py"))
    return [str(path.relative_to(ROOT)) for path in found if path.stem not in MEASURES]


def run_files(variant: str, some: list[str]) -> bool:
    """Run some files on a variant, and tell of them when they are through."""
    started = time.monotonic()
    limit_s = TEST_LIMIT_S * builds.VARIANTS[variant].slower
    done = subprocess.run(
        [
            *(sys.executable, "tests/builds.py", variant, "-m", "pytest", "-q", "--tb=short"),
            *("-p", "no:cacheprovider", "-m", "not long", "--durations=3"),
            f"--timeout={limit_s:.0f}",
            *("-o", f"faulthandler_timeout={limit_s - 10:.0f}"),
            *(f"--deselect={test}" for test in LEFT_OUT.get(variant, ())),
            *some,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    seconds = time.monotonic() - started
    outcome = "ok" if done.returncode == 0 else "FAILED"
    print(done.stdout, f"{variant}: {' '.join(some)}: {outcome}, {seconds:.1f} s", flush=True)
    return done.returncode == 0


def run_tests(variant: str, names: tuple[str, ...] = TESTED) -> bool:
    """Run them on a variant."""
    found = files(names)
    # Neighbours are alike, and not in one process: so all take about as long.
    batches = -(-len(found) // FILES)
    parts = [found[first::batches] for first in range(batches)]
    builds.build(variant)
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as processes:
        passed = list(processes.map(lambda part: run_files(variant, part), parts))
    failed = passed.count(False)
    print(f"{variant}: {len(found)} files, {failed} of {len(parts)} processes failed", flush=True)
    return failed == 0


def run_seeds(variant: str) -> bool:
    """Run the first seeds of all generators on a variant."""
    command = ["tests/fuzz.py", "--from", "0", "--seeds", str(SEEDS), "--jobs", "1"]
    return builds.run(variant, command) == 0


LOOKS: dict[str, Callable[[], bool]] = {
    "analyze": lambda: make("analyze"),
    "threads": lambda: make("threads") & run_tests("thread", THREADED),
    "address": lambda: run_tests("address"),
    "guard": lambda: run_tests("guard"),
    "seeds": lambda: run_seeds("address") & run_seeds("guard"),
}


def main(names: list[str]) -> int:
    """Run all, or those that are named."""
    unknown = set(names) - LOOKS.keys()
    if unknown:
        print(f"there are {', '.join(LOOKS)}, and no {', '.join(unknown)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or LOOKS:
        print(f"--- {name}", flush=True)
        if not LOOKS[name]():
            failed.append(name)
    print(f"{len(failed)} failed", *failed, sep=" ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
