"""All generators in turn, seed after seed, until the time is over: ``make fuzz SECONDS=600``.

    python tests/fuzz.py [--seconds S | --seeds N | --quick] [--generator NAME] [--jobs N]
                         [--from SEED] [--stop] [--only KIND] [--report FILE] [--against TREE]

`by_seed.py` says what a generator is. First come the plans of ``tests/failed_plans``, each of
which has once shown a fault, then the seeds that ever failed here, then new ones: the generator
that has had the least time is next. How far each has come is kept in ``.seeds/state.json``, so
that the next call goes on there; with ``--from`` it is neither read nor written, and there are
new seeds only.

A failure is printed at once, with the command that replays it. A generator that fails often
enough is left out for the rest of the time.

``--only KIND`` is for a machine whose clock cannot be trusted, such as an emulated one: failures
that are no exception of that type (or, by a word of `fault_words.py`, of that kind) are told in
a line, and count as none.

``--against TREE`` runs the generators of this tree with the product of another one, such as a
checkout of an old release, to show what they find there. Its extension must be built; the
environment is this one. Only generators for the machine's own kernel can do that, which use
public names of the product alone, and ask for what came later.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import by_seed
import children
import fault_words
import harness
from by_seed import AGAINST, PASSED, ROOT, Apart, Entry, Outcome, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED_PLANS = ROOT / "tests" / "failed_plans"

SECONDS = 600.0
# Of one generator: after so many more of them tell nothing.
FAILURES_MAX = 10
# Characters that are shown of each: its traceback, and how what it printed begins.
TEXT_MAX = 5000
# A sign of life.
PROGRESS_S = 30.0
# As often the state is written: what an interrupted call has found is found.
SAVE_S = 10.0


@dataclass
class State:
    """How far each generator has come, by name, and which seeds ever failed."""

    next: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def load(cls) -> State:
        file = by_seed.FOUND / "state.json"
        return cls(**json.loads(file.read_text())) if file.exists() else cls()

    def save(self) -> None:
        file = by_seed.FOUND / "state.json"
        file.parent.mkdir(exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(asdict(self), indent=1))
        new.replace(file)  # whole, also when two of us end at the same time

    def note(self, name: str, seed: int, *, passed: bool) -> None:
        self.next[name] = max(seed + 1, self.next.get(name, 0))
        failed = self.failed.setdefault(name, [])
        if not passed and seed not in failed:
            failed.append(seed)


class Book:
    """What came of the seeds of each generator."""

    def __init__(self, only: str | None = None) -> None:
        self.only = only
        self.ms: defaultdict[str, list[float]] = defaultdict(list)
        self.cpu_ms: defaultdict[str, list[float]] = defaultdict(list)
        self.used_s: defaultdict[str, float] = defaultdict(float)
        self.failures: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.begun = self.told_at = time.monotonic()

    def note(self, run: Apart, source: int | Path, outcome: Outcome) -> None:
        name = run.which.name
        self.ms[name].append(outcome.ms)
        self.cpu_ms[name].append(outcome.cpu_ms)
        self.used_s[name] += time.monotonic() - run.begun
        if outcome.kind == PASSED:
            self.progress()
            return
        if self.only is not None and not fault_words.is_of(outcome.what, self.only):
            print(f"{name} {source}: not counted: {outcome}", flush=True)
            return
        replay = by_seed.command(name, source)
        self.failures[name].append(
            {
                "source": str(source),
                "outcome": str(outcome),
                "way": outcome.way_in_words,
                "after_s": round(time.monotonic() - self.begun, 1),
                "text": outcome.text,
            }
        )
        print(f"\n{name} {source}: {outcome}\n{outcome.text[:TEXT_MAX]}", end="")
        print(f"\n  again:   {replay}\n  shorter: {replay} --shrink", flush=True)

    def progress(self) -> None:
        if time.monotonic() - self.told_at > PROGRESS_S:
            self.told_at = time.monotonic()
            print(", ".join(f"{name}: {len(ms)}" for name, ms in self.ms.items()), flush=True)

    @property
    def failed(self) -> int:
        return sum(map(len, self.failures.values()))

    def summary(self) -> str:
        heads = ("plans", 8), ("failures", 10), ("median ms", 11), ("of CPU", 8), ("99 % ms", 9)
        lines = [f"{'generator':16}" + "".join(f"{head:>{width}}" for head, width in heads)]
        lines[0] += f"{'s':>8}"
        for name, ms in sorted(self.ms.items()):
            # What hung or died has no time.
            known = sorted(each for each in ms if each) or [0.0]
            last = known[min(len(known) - 1, len(known) * 99 // 100)]
            lines.append(
                f"{name:16}{len(ms):8}{len(self.failures[name]):10}"
                f"{statistics.median(known):11.1f}{self.median_cpu_ms(name):8.1f}"
                f"{last:9.1f}{self.used_s[name]:8.1f}"
            )
        ways = Counter(each["way"] for told in self.failures.values() for each in told)
        lines += [f"  {count} x {way}" for way, count in ways.most_common()]
        total = sum(map(len, self.ms.values()))
        lines.append(f"{total} plans, {self.failed} failed, {time.monotonic() - self.begun:.1f} s")
        return "\n".join(lines)

    def median_cpu_ms(self, name: str) -> float:
        return statistics.median([each for each in self.cpu_ms[name] if each] or [0.0])

    def report(self) -> dict[str, Any]:
        return {
            name: {
                "plans": len(ms),
                "failures": self.failures[name],
                "used_s": round(self.used_s[name], 1),
                "median_cpu_ms": round(self.median_cpu_ms(name), 2),
            }
            for name, ms in self.ms.items()
        }


def failed_plans(chosen: list[Entry]) -> Iterator[tuple[Entry, Plan, Path]]:
    """What was written down since it once failed."""
    entries = {entry.name: entry for entry in chosen}
    for file in sorted(FAILED_PLANS.glob("*.json")):
        name, plan = by_seed.read(file)
        if name in entries:
            yield entries[name], plan, file


class Fuzz:
    """Which plan is next, and what was."""

    def __init__(self, chosen: list[Entry], options: argparse.Namespace) -> None:
        self.chosen = chosen
        self.options = options
        self.state = State() if options.first is not None else State.load()
        self.saved = time.monotonic()
        self.book = Book(options.only)
        self.sources: dict[int, int | Path] = {}
        self.end = time.monotonic() + options.seconds

        # Of each the next new seed, and the one at which it is over.
        self.next = {
            entry.name: self.state.next.get(entry.name, options.first or 0) for entry in chosen
        }
        self.over: dict[str, float] = {
            entry.name: self.next[entry.name] + self.count(entry) for entry in chosen
        }

    def count(self, entry: Entry) -> float:
        """How many new seeds, if not as many as the time allows."""
        if self.options.quick:
            return entry.seeds
        return math.inf if self.options.seeds is None else self.options.seeds

    def go(self) -> Book:
        for run, outcome in by_seed.run_all(self.runs(), self.options.jobs):
            source = self.sources.pop(run.pid)
            self.book.note(run, source, outcome)
            if isinstance(source, int) and self.options.first is None:
                self.state.note(run.which.name, source, passed=outcome.kind == PASSED)
                if time.monotonic() >= self.saved + SAVE_S:
                    self.state.save()
                    self.saved = time.monotonic()
            if self.options.stop and self.book.failed:
                break
        if self.options.first is None:
            self.state.save()
        return self.book

    def start(self, entry: Entry, plan: Plan | int, source: int | Path) -> Apart:
        run = Apart(entry, plan)
        self.sources[run.pid] = source
        return run

    def runs(self) -> Iterator[Apart]:
        """Starts one plan after the other."""
        known = failed_plans(self.chosen) if self.options.first is None else ()
        for entry, plan, file in known:
            yield self.start(entry, plan, file)
        for entry in self.chosen:
            for seed in self.state.failed.get(entry.name, []):
                if time.monotonic() < self.end:
                    yield self.start(entry, seed, seed)
        while time.monotonic() < self.end and (able := [*filter(self.may_go_on, self.chosen)]):
            # Who has had least is next; at the beginning all have had nothing.
            entry = min(able, key=lambda each: (self.book.used_s[each.name], self.next[each.name]))
            seed = self.next[entry.name]
            self.next[entry.name] += 1
            yield self.start(entry, seed, seed)

    def may_go_on(self, entry: Entry) -> bool:
        failed = len(self.book.failures[entry.name])
        return failed < self.options.failures and self.next[entry.name] < self.over[entry.name]


def run_against(tree: Path) -> None:
    """Become what was called, with the product of another tree."""
    if not list((tree / "src" / "uring_trio").glob("_engine.*.so")):
        raise SystemExit(f"{tree} is not built: python setup.py build_ext --inplace")
    os.environ["PYTHONPATH"] = str(tree / "src")  # before where this tree's is installed
    os.environ[AGAINST] = str(tree)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, help=f"how long ({SECONDS:.0f})")
    parser.add_argument("--seeds", type=int, help="so many new ones of each generator")
    parser.add_argument("--quick", action="store_true", help="as many of each as in `make test`")
    parser.add_argument("--generator", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many at once")
    parser.add_argument("--from", type=int, dest="first", help="the first new seed")
    parser.add_argument("--only", metavar="KIND", help="the type, or word, that counts")
    parser.add_argument("--stop", action="store_true", help="at the first failure")
    parser.add_argument(
        "--failures", type=int, default=FAILURES_MAX, help="so many of one are enough"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="what failed, as JSON")
    parser.add_argument("--against", type=Path, metavar="TREE", help="the product to be run")
    options = parser.parse_args(argv)
    if options.seconds is None:
        counted = options.seeds is not None or options.quick
        options.seconds = math.inf if counted else SECONDS
    return options


def choose(options: argparse.Namespace) -> list[Entry]:
    """The generators that are asked for, and that can run here."""
    names = options.generator or by_seed.names()
    if AGAINST in os.environ:
        # What is simulated knows the product from within, and cannot even be imported.
        names = [name for name in names if not name.startswith(by_seed.SIMULATED)]
    chosen = [by_seed.entry(name) for name in names]
    if AGAINST in os.environ:
        chosen = [entry for entry in chosen if entry.real]
    denied = harness.ring_denied()
    for entry in chosen:
        if entry.real and denied:
            print(f"{entry.name} is left out: {denied}")
    return [entry for entry in chosen if not (entry.real and denied)]


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.against is not None:
        if AGAINST not in os.environ:
            sys.stdout.flush()
            run_against(options.against.resolve())
        product = str(sys.modules["uring_trio"].__file__)
        if not Path(product).is_relative_to(os.environ[AGAINST]):
            raise SystemExit(f"the product is {product}, and not that of {options.against}")
        print(f"the product is {product}")
        options.first = options.first or 0
    try:
        chosen = choose(options)
    except LookupError as exc:
        raise SystemExit(str(exc)) from None
    book = Fuzz(chosen, options).go()
    print(f"\n{book.summary()}", flush=True)
    if options.report:
        options.report.write_text(json.dumps(book.report(), indent=1))
    return 1 if book.failed else 0


if __name__ == "__main__":
    children.end_with_parent()
    sys.exit(main(sys.argv[1:]))
