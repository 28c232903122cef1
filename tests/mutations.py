"""Faults made on purpose, a line of the product each: some named test must see it.

    python tests/mutations.py [--list] [--jobs N] [--limit-s S] [WORD ...]

That all tests pass says nothing of what they would let pass. A *mutation* (`mutants.py` has
them) is a rule of behaviour, and a line that breaks it. Each is made in a copy of the tree of
its own, and the tests that are named with it are run there; where the line is one of C, what
they need of it is built there first. First of all they run without a mutation, where all must
pass; then for each mutation one line is printed:

- *caught*: a named test failed, hung, or died.
- *lives*: all of its tests passed. A test is missing, and so this is a failure.
- *error*: its text does not stand in its file exactly once, or what it makes cannot be
  compiled or imported, or one of its tests is gone. It is to be written anew, for its rule.

WORDs choose mutations by what is in their rules or in the paths of their files. What does not
fit into the limit is left out, says so, and fails. `test_mutations.py` sees to it with every
run of the tests that each text and each test is there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import children
import machine_speed
from children import Done
from mutants import C_TESTS, MUTATIONS, Mutation

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]

# What a copy of the tree leaves out. What C tests were compiled to stays: only what has
# changed is compiled again.
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "dist", "sanitized")

# Seconds of an idle machine. A mutation may hang a test: that is seen, too.
TEST_LIMIT_S = 20
COMPILE_LIMIT_S = 120
TESTS_LIMIT_S = 60  # and TEST_LIMIT_S for each that is named
LIMIT_S = 1500
SLOWNESS = machine_speed.slowness()

CAUGHT, LIVES, ERROR, LEFT = "caught", "lives", "error", "left out"
# Of pytest.
ALL_PASSED, SOME_FAILED = 0, 1


class Verdict(NamedTuple):
    word: str
    why: str = ""


def run(command: list[str], tree: Path, limit_s: float, **environment: str) -> Done:
    environment |= {
        "PYTHONPATH": str(tree / "src"),  # before where the package is installed
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return children.run(command, limit_s, cwd=tree, environment=environment)


def build(tree: Path, command: list[str]) -> Verdict | None:
    """What is wrong with the C of a tree, or None."""
    done = run(command, tree, COMPILE_LIMIT_S)
    return None if done.status == 0 else Verdict(ERROR, f"cannot be built: {done.last_line()}")


class Tests:
    """Those of one mutation, or of all: the programs in C, and the ids for pytest."""

    def __init__(self, names: list[str]) -> None:
        self.functions = {name for name in names if name.startswith(C_TESTS)}
        self.programs = sorted({Path(name.partition("::")[0]).stem for name in self.functions})
        self.ids = [name for name in names if not name.startswith(C_TESTS)]

    def run_c(self, tree: Path) -> Verdict | None:
        """Build them; the first that fails."""
        if self.programs:
            binaries = [f"build/plain/{program}" for program in self.programs]
            wrong = build(tree, ["make", "-s", "-j2", "-C", C_TESTS, *binaries])
            if wrong is not None:
                return wrong
        for program in self.programs:
            done = run([f"{C_TESTS}build/plain/{program}"], tree, TEST_LIMIT_S)
            failed = [
                name
                for name in self.functions
                if Path(name.partition("::")[0]).stem == program
                and f"FAILED {name.partition('::')[2]}" in done.output
            ]
            if failed:
                return Verdict(CAUGHT, failed[0])
            if done.status is None or done.status < 0:
                how = "hangs" if done.status is None else f"dies by signal {-done.status}"
                return Verdict(CAUGHT, f"{program} {how}")
        return None

    def run_python(
        self, tree: Path, *, extension: bool, jobs: int = 1, pure: bool = False
    ) -> Verdict | None:
        """Build the extensions if one has changed; the first that fails.

        Args:
          pure: with the hot paths in Python. What is broken there must not be done in C.
        """
        if not self.ids:
            return None
        if extension:
            wrong = build(tree, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"])
            if wrong is not None:
                return wrong
        limits = [f"--timeout={TEST_LIMIT_S * SLOWNESS:.0f}", "-o", "faulthandler_timeout=0"]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *limits]
        if jobs > 1:
            command += ["-n", str(jobs), "--dist", "loadfile"]
        limit_s = TESTS_LIMIT_S + TEST_LIMIT_S * len(self.ids)
        environment = {"URING_TRIO_PURE": "1"} if pure else {}
        done = run([*command, *self.ids], tree, limit_s, **environment)
        if done.status is None:
            return Verdict(CAUGHT, "hangs")
        failed = re.findall(r"^(?:FAILED|ERROR) (tests/\S+)", done.output, re.MULTILINE)
        first = failed[0] if failed else done.last_line()
        if done.status == SOME_FAILED:
            return Verdict(CAUGHT, first)
        if done.status < 0:
            return Verdict(CAUGHT, f"dies by signal {-done.status}")
        if done.status != ALL_PASSED:
            return Verdict(ERROR, f"pytest ends with {done.status}: {first}")
        if " skipped" in done.last_line() and " passed" not in done.last_line():
            return Verdict(ERROR, f"nothing was run: {done.last_line()}")
        return None


@contextlib.contextmanager
def copy_of(tree: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(tree, copy, ignore=LEFT_OUT, symlinks=True)
        yield copy


def judge(tree: Path, mutation: Mutation) -> Verdict:
    """Run the tests of a mutation in a copy of a tree that has it."""
    tests = Tests(list(mutation.caught_by))
    with copy_of(tree) as copy:
        try:
            mutation.apply(copy)
        except LookupError as exc:
            return Verdict(ERROR, str(exc))
        found = tests.run_c(copy) or tests.run_python(
            copy, extension=mutation.is_c, pure=not mutation.is_c
        )
        return found or Verdict(LIVES)


def judge_without(tree: Path, chosen: list[Mutation], jobs: int) -> Verdict:
    """Build what C tests need, for all copies of the tree, and run all tests."""
    tests = Tests(list(dict.fromkeys(name for each in chosen for name in each.caught_by)))
    found = tests.run_c(tree) or tests.run_python(tree, extension=False, jobs=jobs)
    return found or Verdict(LIVES)


def judge_all(
    tree: Path, chosen: list[Mutation], jobs: int, limit_s: float
) -> dict[Mutation, Verdict]:
    verdicts: dict[Mutation, Verdict] = {}
    end = time.monotonic() + limit_s * SLOWNESS

    def in_time(mutation: Mutation) -> Verdict:
        if time.monotonic() > end:
            return Verdict(LEFT, f"{limit_s:.0f} s are over")
        return judge(tree, mutation)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(in_time, mutation): mutation for mutation in chosen}
        for future in concurrent.futures.as_completed(futures):
            mutation = futures[future]
            verdicts[mutation] = verdict = future.result()
            print(
                f"{verdict.word:9}{mutation.rule}\n{'':9}{mutation.path}: {verdict.why}", flush=True
            )
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="choose by what is in rules and paths")
    parser.add_argument("--list", action="store_true", help="print them, and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="so many at once (2)")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help=f"for all ({LIMIT_S})")
    options = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if all(word.lower() in f"{mutation.path} {mutation.rule}".lower() for word in options.words)
    ]
    if options.list:
        for mutation in chosen:
            print(mutation.rule, *mutation.caught_by, sep="\n    ")
        return 0
    begun = time.monotonic()
    with copy_of(ROOT) as tree:
        print("the tests without a mutation", flush=True)
        without = judge_without(tree, chosen, options.jobs)
        if without.word != LIVES:
            print(f"fail already: {without.why}")
            return 1
        verdicts = judge_all(tree, chosen, options.jobs, options.limit_s)
    print(f"{time.monotonic() - begun:.0f} s")
    counts = Counter(verdict.word for verdict in verdicts.values())
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 0 if set(counts) == {CAUGHT} else 1


if __name__ == "__main__":
    sys.exit(main())
