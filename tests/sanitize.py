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
reports is a failure, and so is a test that fails. The tests run file by file, each file in a
process of its own: one that crashes is that file's.
"""

from __future__ import annotations

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
#: So many seeds of each generator.
SEEDS = 30
#: Of these, those that measure, and would measure what looks.
MEASURES = ("test_gain_latency", "test_gain_benchmarks")


def make(target: str) -> bool:
    """Make one in csrc/tests."""
    return subprocess.run(["make", "-C", C_TESTS, target], cwd=ROOT, check=False).returncode == 0


def files(names: tuple[str, ...]) -> list[str]:
    """The tests whose files' names begin like this."""
    found = sorted(path for name in names for path in ROOT.glob(f"tests/{name}*.py"))
    return [str(path.relative_to(ROOT)) for path in found if path.stem not in MEASURES]


def run_tests(variant: str, names: tuple[str, ...] = TESTED) -> bool:
    """Run them on a variant, and tell of each file in a line."""
    failed = []
    for file in files(names):
        started = time.monotonic()
        status = builds.run(
            variant, ["-u", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", file]
        )
        seconds = time.monotonic() - started
        print(
            f"{variant}: {file}: {'ok' if status == 0 else 'FAILED'}, {seconds:.1f} s", flush=True
        )
        if status != 0:
            failed.append(file)
    print(f"{variant}: {len(failed)} files failed", *failed, flush=True)
    return not failed


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
