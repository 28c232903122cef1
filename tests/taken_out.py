"""Each cure taken out singly: does a generator find it again? ``make taken-out``.

    python tests/taken_out.py [--list] [--generator NAME] [--seconds S] [--jobs N] [--from SEED]
                              [--report FILE] [WORD ...]

`cures.py` has the list, and `by_seed.py` says what generators are. Each cure is taken out of a
copy of the tree of its own, which is built where it is C; there the generators of its doors are
given new seeds, those that find most of its kind first: each a little time, then each more,
S seconds in all. The seeds are none of those that ``make test`` runs, which pass.

One failure is none: a real kernel has its moods, and a busy machine too. So what fails is run
again, and counts as found if

- the same plan fails again without the cure, in the same way: once more at least on the
  machine's own ring, each time in the simulation; and
- it passes each time with it.

What does not is told, and the search goes on behind it. Then a row is printed:

- *found*: by which generator, at which seed, after how long, as what, and how many of the runs
  of that plan have failed so.
- *lives*: by none. If that has a reason it stands with the cure: it is looked for all the same,
  for a shorter time, and a find shows that the reason is none.
- *error*: its text does not stand in its file exactly once, or cannot be built, or all that was
  found fails with the cure as well.

First of all each generator runs for a moment in a copy with all cures in, where nothing may
fail. WORDs choose cures by what is in their rules or in the paths of their files.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import by_seed
import machine_speed
from cures import CURES, Cure
from mutations import build, copy_of, run

ROOT = Path(__file__).resolve().parents[1]

# For each cure, over all generators: what 60 take on two idle cores is some 40 minutes then.
SECONDS = 100.0
# The parts of a generator's time, one after the other: most that is found at all is found soon.
ROUNDS = (0.25, 0.75)
# Of the time of a cure that is said not to be found here.
WITH_A_REASON = 0.3
# What is under way when they are over, and loading.
MORE_S = 60.0
# For each generator with all cures in.
BEFORE_S = 8.0
# make test has those before: `test_taken_out.py` sees to it.
FIRST_SEED = 1000

# How often what was found is run again without the cure, at most, and after how many that fail
# so no more; then how often with it. In the simulation all runs of a plan are the same.
AGAIN, AGAIN_FAILS, WITH_IT = 6, 2, 6
AGAIN_SIMULATED, WITH_IT_SIMULATED = 2, 1
# Finds of one cure that are none, before its search is given up.
DOUBTS_MAX = 4

FOUND, LIVES, ERROR = "found", "lives", "error"


class Find(NamedTuple):
    """What a generator came upon.

    Attributes:
      by: the generator, with
      seed: which seed, after
      after_s: seconds of this search, as
      outcome: what it said, and
      way: in which way: see `by_seed.Outcome`.
    """

    by: str
    seed: int
    after_s: float
    outcome: str
    way: str


class Verdict(NamedTuple):
    """What came of one cure's absence.

    Attributes:
      word: `FOUND`, `LIVES`, `ERROR`.
      find: what has been found.
      runs: how many of all runs of its plan failed so: "3 of 4".
      what: what is in the way, or what was seen and is no find.
      plans: how many were run, by generator.
      seconds: how long it was looked for.
    """

    word: str
    find: Find | None = None
    runs: str = ""
    what: str = ""
    plans: dict[str, int] = {}  # noqa: RUF012 - nobody changes it
    seconds: float = 0.0

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {count}" for name, count in self.plans.items())
        parts = [self.word]
        if self.find is not None:
            find = self.find
            parts += [f"by {find.by} {find.seed} after {find.after_s:.0f} s ({self.runs})"]
            parts += [find.outcome]
        parts += [self.what, tried and f"(plans: {tried}; {self.seconds:.0f} s)"]
        return " ".join(filter(None, parts))


class Search:
    """Generators, at work in one tree."""

    def __init__(self, tree: Path, generators: list[str], first: int) -> None:
        self.tree = tree
        self.generators = generators
        self.next = dict.fromkeys(generators, first)
        self.plans = dict.fromkeys(generators, 0)
        self.searched_s = 0.0
        self.wrong = ""

    def look(self, name: str, seconds: float) -> Find | None:
        """Give a generator new seeds for so long; what it finds first. See `wrong`."""
        report = self.tree / f"report-{name}.json"
        command = [sys.executable, "tests/fuzz.py", "--generator", name, "--stop", "--jobs", "1"]
        command += ["--from", str(self.next[name]), "--seconds", str(seconds)]
        done = run([*command, "--report", str(report)], self.tree, seconds + MORE_S)
        if done.status not in (0, 1) or not report.exists():
            self.wrong = f"{name} ends with {done.status}: {done.last_line()}"
            return None
        # A generator that cannot run here is not in it.
        told: dict[str, Any] = json.loads(report.read_text()).get(name, {"plans": 0, "used_s": 0.0})
        report.unlink()
        self.plans[name] += told["plans"]
        self.next[name] += told["plans"]
        before_s = self.searched_s
        self.searched_s += told["used_s"]
        if not done.status:
            return None
        failure = told["failures"][0]
        seed = int(failure["source"])
        after_s = before_s + failure["after_s"]
        return Find(name, seed, after_s, failure["outcome"], failure["way"])

    def ways(self, name: str, seed: int, times: int) -> Counter[str]:
        """How so many runs of one seed end."""
        command = [sys.executable, "tests/by_seed.py", name, str(seed), "--times", str(times)]
        limit_s = MORE_S + times * by_seed.entry(name).limit_s
        done = run(command, self.tree, limit_s)
        return Counter(json.loads(done.last_line() or "{}"))


def confirm(find: Find, without: Search, with_it: Search) -> tuple[str, str]:
    """How many of its runs failed in the same way; and why that is no find, or nothing."""
    real = by_seed.entry(find.by).real
    wanted = AGAIN_FAILS if real else AGAIN_SIMULATED
    failed = runs = 0
    while runs < (AGAIN if real else AGAIN_SIMULATED) and failed < wanted:
        ways = without.ways(find.by, find.seed, 1)
        runs += 1
        failed += ways[find.way]
    # The first failure counts in the text alone: it is what was looked for.
    told = f"{failed + 1} of {runs + 1}"
    if failed < (1 if real else wanted):
        return told, f"{find.by} {find.seed}: {find.outcome}: {told} runs"
    times = WITH_IT if real else WITH_IT_SIMULATED
    passed = with_it.ways(find.by, find.seed, times)[by_seed.PASSED]
    if passed < times:
        return told, f"{find.by} {find.seed}: {find.outcome}: with the cure, too"
    return told, ""


def search(without: Search, with_it: Search, seconds: float) -> Verdict:
    """Look for one cure's absence."""
    doubts: list[str] = []
    share_s = seconds / max(1, len(without.generators))

    def verdict(word: str, find: Find | None = None, runs: str = "", what: str = "") -> Verdict:
        return Verdict(word, find, runs, what, without.plans, without.searched_s)

    for part in ROUNDS:
        for name in without.generators:
            end = time.monotonic() + part * share_s
            # Behind what was none there are other seeds.
            while (left_s := end - time.monotonic()) > 0 and len(doubts) < DOUBTS_MAX:
                find = without.look(name, left_s)
                if without.wrong:
                    return verdict(ERROR, what=without.wrong)
                if find is None:
                    break
                runs, doubt = confirm(find, without, with_it)
                if not doubt:
                    return verdict(FOUND, find, runs)
                doubts.append(doubt)
    word = ERROR if doubts and all(each.endswith("too") for each in doubts) else LIVES
    return verdict(word, what="; ".join(doubts))


def judge(tree: Path, cure: Cure, options: argparse.Namespace) -> Verdict:
    """Take a cure out of a copy of a tree, and have it looked for."""
    chosen = [name for name in options.generator or by_seed.names() if cure.meets(name)]
    generators = sorted(chosen, key=cure.order)
    seconds = options.seconds * (WITH_A_REASON if cure.reason else 1.0)
    with copy_of(tree) as copy:
        try:
            cure.take_out(copy)
        except LookupError as exc:
            return Verdict(ERROR, what=str(exc))
        if cure.is_c:
            wrong = build(copy, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"])
            if wrong is not None:
                return Verdict(ERROR, what=wrong.why)
        first = options.first
        found = search(Search(copy, generators, first), Search(tree, generators, first), seconds)
    if found.word == FOUND and cure.reason:
        return found._replace(word=ERROR, what=f"and it is said that nothing can: {cure.reason}")
    return found


def before(tree: Path, options: argparse.Namespace, pool: concurrent.futures.Executor) -> str:
    """What fails with all cures in, or nothing."""

    def look(name: str) -> str:
        search = Search(tree, [name], options.first)
        return str(search.look(name, BEFORE_S) or search.wrong)

    names = options.generator or by_seed.names()
    return "; ".join(filter(None, pool.map(look, names)))


def table(verdicts: dict[Cure, Verdict]) -> str:
    """In the order of the list, as a page has it."""
    lines = ["| cure | without it | found by | seed | after | runs | as |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for cure in CURES:
        if cure in verdicts:
            verdict = verdicts[cure]
            find = verdict.find
            cells = [cure.rule, verdict.word]
            if find is not None:
                cells += [find.by, str(find.seed), f"{find.after_s:.1f} s", verdict.runs]
                cells += [find.way]
            else:
                cells += ["", "", "", "", verdict.what or cure.reason]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="choose by what is in rules and paths")
    parser.add_argument("--list", action="store_true", help="print them, and run nothing")
    parser.add_argument("--generator", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each ({SECONDS:.0f})")
    parser.add_argument("--from", type=int, dest="first", default=FIRST_SEED, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="so many at once (2)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="all verdicts, as JSON")
    options = parser.parse_args(argv)
    chosen = [
        cure
        for cure in CURES
        if all(
            word.lower() in f"{cure.rule} {[each.path for each in cure.edits]}".lower()
            for word in options.words
        )
    ]
    if options.list:
        print("\n".join(cure.rule for cure in chosen))
        return 0
    machine_speed.slowness()
    begun = time.monotonic()
    verdicts: dict[Cure, Verdict] = {}
    with copy_of(ROOT) as tree:
        # Once for all: what it makes is compiled already in each copy.
        wrong = build(tree, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"])
        print("with all cures in", flush=True)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            if failed := wrong.why if wrong else before(tree, options, pool):
                print(f"  {failed}", flush=True)
                return 1
            print(f"  nothing fails, {time.monotonic() - begun:.0f} s", flush=True)
            futures = {pool.submit(judge, tree, cure, options): cure for cure in chosen}
            for future in concurrent.futures.as_completed(futures):
                cure = futures[future]
                verdicts[cure] = future.result()
                print(f"{cure.rule}\n  {verdicts[cure]}", flush=True)
    print(f"\n{table(verdicts)}\n\n{time.monotonic() - begun:.0f} s")
    if options.report:
        told = {
            cure.rule: {**verdict._asdict(), "find": verdict.find and verdict.find._asdict()}
            for cure, verdict in verdicts.items()
        }
        options.report.write_text(json.dumps(told, indent=1))
    counts = Counter(verdict.word for verdict in verdicts.values())
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    lives = [cure for cure, verdict in verdicts.items() if verdict.word == LIVES]
    return 1 if counts[ERROR] or any(not cure.reason for cure in lives) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
