"""Each cure taken out singly: does a generator find it again? ``make taken-out``.

    python tests/taken_out.py [--list] [--generator NAME] [--seconds S] [--jobs N]
                              [--report FILE] [WORD ...]

`cures.py` has the list, and `by_seed.py` says what generators are. Each cure is taken out of a
copy of the tree of its own, which is built where it is C; there each generator is given new
seeds from 0 on for at most S seconds, one after the other, until one fails. First of all each
has that long in a copy with all cures in, where nothing may fail, and what was found without a
cure must pass there. Then a row is printed:

- *found*: by which generator, at which seed, after how long, and as what.
- *lives*: by none. The cure is not needed, or the generators do not get to where it is.
- *error*: its text does not stand in its file exactly once, or cannot be built, or what was
  found fails with the cure as well.

WORDs choose cures by what is in their rules or in the paths of their files.
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

# For each cure and generator.
SECONDS = 60.0
# What is under way when they are over, and loading.
MORE_S = 60.0

FOUND, LIVES, ERROR = "found", "lives", "error"


class Verdict(NamedTuple):
    """What came of one cure's absence.

    Attributes:
      word: `FOUND`, `LIVES`, `ERROR`.
      by: the generator that has found it, with
      source: which seed, or which plan.
      what: after how long, and how it failed; or what is in the way.
      plans: how many were run, by generator.
    """

    word: str
    by: str = ""
    source: str = ""
    what: str = ""
    plans: dict[str, int] = {}  # noqa: RUF012 - nobody changes it

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {count}" for name, count in self.plans.items())
        parts = (self.word, self.by, self.source, self.what, tried and f"({tried})")
        return " ".join(filter(None, parts))


def look(tree: Path, generators: list[str], seconds: float) -> Verdict:
    """Have generators look for a fault in a tree."""
    plans: dict[str, int] = {}
    report = tree / "report.json"
    for name in generators:
        command = [sys.executable, "tests/fuzz.py", "--generator", name, "--from", "0", "--stop"]
        command += ["--seconds", str(seconds), "--jobs", "1", "--report", str(report)]
        done = run(command, tree, seconds + MORE_S)
        if done.status not in (0, 1) or not report.exists():
            what = f"ends with {done.status}: {done.last_line()}"
            return Verdict(ERROR, name, what=what, plans=plans)
        told: dict[str, Any] = json.loads(report.read_text()).get(name, {"plans": 0})
        report.unlink()
        plans[name] = told["plans"]
        if done.status:
            failure = told["failures"][0]
            what = f"{failure['after_s']} s: {failure['outcome']}"
            return Verdict(FOUND, name, failure["source"], what, plans)
    return Verdict(LIVES, plans=plans)


def fails_anyway(tree: Path, name: str, source: str) -> bool:
    """Whether what was found fails in a tree with all cures in, too."""
    arguments = [name, source] if source.isdigit() else ["--plan", source]
    command = [sys.executable, "tests/by_seed.py", *arguments, "--apart"]
    return any(run(command, tree, MORE_S).status != 0 for _ in range(by_seed.REAL_TRIES))


def judge(tree: Path, cure: Cure, generators: list[str], seconds: float) -> Verdict:
    """Take a cure out of a copy of a tree, and have it looked for."""
    generators = [name for name in generators if name.rpartition("-")[2] in cure.doors]
    with copy_of(tree) as copy:
        try:
            cure.take_out(copy)
        except LookupError as exc:
            return Verdict(ERROR, what=str(exc))
        if cure.is_c:
            wrong = build(copy, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"])
            if wrong is not None:
                return Verdict(ERROR, what=wrong.why)
        found = look(copy, generators, seconds)
    if found.word == FOUND and fails_anyway(tree, found.by, found.source):
        return found._replace(word=ERROR, what=f"fails with the cure as well: {found.what}")
    return found


def table(verdicts: dict[Cure, Verdict]) -> str:
    """In the order of the list, as a page has it."""
    lines = ["| cure | without it | found by | seed | after |", "|---|---|---|---|---|"]
    for cure in CURES:
        if cure in verdicts:
            verdict = verdicts[cure]
            what = verdict.what if verdict.word == FOUND else verdict.what or cure.elsewhere
            lines.append(
                f"| {cure.rule} | {verdict.word} | {verdict.by} | {verdict.source} | {what} |"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="choose by what is in rules and paths")
    parser.add_argument("--list", action="store_true", help="print them, and run nothing")
    parser.add_argument("--generator", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each ({SECONDS:.0f})")
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
    generators = options.generator or by_seed.names()
    begun = time.monotonic()
    verdicts: dict[Cure, Verdict] = {}
    with copy_of(ROOT) as tree:
        print("with all cures in", flush=True)
        without = look(tree, generators, options.seconds)
        print(f"  {without}", flush=True)
        if without.word != LIVES:
            return 1
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {
                pool.submit(judge, tree, cure, generators, options.seconds): cure for cure in chosen
            }
            for future in concurrent.futures.as_completed(futures):
                cure = futures[future]
                verdicts[cure] = future.result()
                print(f"{cure.rule}\n  {verdicts[cure]}", flush=True)
    print(f"\n{table(verdicts)}\n\n{time.monotonic() - begun:.0f} s")
    if options.report:
        told = {cure.rule: verdict._asdict() for cure, verdict in verdicts.items()}
        options.report.write_text(json.dumps(told, indent=1))
    counts = Counter(verdict.word for verdict in verdicts.values())
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    lives = [cure for cure, verdict in verdicts.items() if verdict.word == LIVES]
    return 1 if counts[ERROR] or any(not cure.elsewhere for cure in lives) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
