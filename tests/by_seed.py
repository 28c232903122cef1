"""Random plans by seed: what a generator is, and how one of its plans is run, replayed and shrunk.

    python tests/by_seed.py NAME SEED            one seed, in this process
    python tests/by_seed.py NAME FIRST:END,...   some, each in a process of its own
    python tests/by_seed.py --plan FILE          a plan that was written down
    python tests/by_seed.py                      the names that there are

    --shrink     find the shortest plan that fails in the same way, and write it down
    --same       run it in two processes: their notes and outcomes must be the same
    --show       print the plan, and run nothing
    --notes      print what the run noted
    --times N    run it so often, and count in which ways it ends

A *generator* draws a plan by a seed, and runs it. A *plan* is plain data, so that it can be
written down, read, cut and run again:

- ``options``: by name; one that is missing has its plainest value.
- ``steps``: a flat list of what is done in turn, each JSON.
- ``kernel``: what the simulated kernel chooses, a list of small integers, taken one after the
  other. Past its end each is 0, and 0 is always the plain choice: in order, whole, no fault.

So a plan gets plainer by leaving out and by making numbers smaller, and `shrink` does no more.
What follows for a generator:

- A part of its plans, in their order, is a plan as well, and so is one with smaller numbers: a
  step that cannot be done any more, since what it needs is missing, is left out.
- ``run()`` raises for a failure and for nothing else, and takes no choice that is not in the
  plan: whatever else is random, such as trio's order of tasks, is seeded from it. Only what the
  machine's own kernel does (``real``) cannot be had again with certainty.
- It is bounded by itself where it can: what does not end is a failure, told as one.
- It leaves nothing behind. Each plan has a process of its own in which no other was run, forked
  where there are modules, and what the generator has prepared for all of them: importing it
  runs nothing, and what ``prepare()`` does leaves neither a thread nor a ring.
- On the machine's own kernel it uses public names of the product only, so that it runs with the
  product of another release (``fuzz.py --against``). What needs more asks whether it is there.

The generator NAME, with ``_`` for ``-``, is in ``tests/seeds_NAME.py``, which calls `register`; its
name begins with ``sim-`` if it runs on the simulated kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import faulthandler
import functools
import gc
import importlib
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

import children
import machine_speed
from exception_groups import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# Where what was found is written; git has no eye on it.
FOUND = ROOT / ".seeds"
# How the names of those begin that run on the simulated kernel.
SIMULATED = "sim-"
# In the environment: the tree whose product is run, if it is not this one's. See `fuzz.py`.
AGAINST = "URING_TRIO_AGAINST"

# Seconds of an idle machine: bounds that only make a failure of a hang. What waits for nothing
# real has the shorter one.
REAL_LIMIT_S = 20.0
LIMIT_S = 5.0
# For the stacks, from the signal that asks for them to the one that ends all.
STACKS_S = 2.0
# So many times its limit a run lives if whoever is to end it does not.
OUTLIVED = 3.0
# How long `shrink` goes on, and how often it tries what may pass by luck.
SHRINK_S = 300.0
REAL_TRIES = 4
# Of what a process printed, to be shown: the end of it.
OUTPUT_BYTES = 20_000
# ... and of an exception's words.
SAID_MAX = 160


class Plan(TypedDict):
    """See above: all of it JSON."""

    options: dict[str, Any]
    steps: list[Any]
    kernel: list[int]


class Generator(Protocol):
    """What draws plans and runs them."""

    name: str

    def draw(self, random: random.Random) -> Plan:
        """A plan, by nothing but what *random* gives."""

    def run(self, plan: Plan) -> None:
        """Do it.

        Raises:
          Exception: it failed.
        """


@dataclass(frozen=True)
class Entry:
    """A generator as it is registered.

    Attributes:
      generator: it.
      real: whether it runs on the machine's own ring: it needs one, and need not replay.
      limit_s: how long a plan may take on an idle machine; it hangs then.
      seeds: how many of its seeds are a part of ``make test``.
      ready: what all of its plans need, such as a simulation that is built: called once in a
        process, before the first of them.
    """

    generator: Generator
    real: bool
    limit_s: float
    seeds: int
    ready: Callable[[], object] = lambda: None

    @property
    def name(self) -> str:
        return self.generator.name

    def draw(self, seed: int) -> Plan:
        return self.generator.draw(random.Random(f"{self.name} {seed}"))


# ---- which there are ---------------------------------------------------------------------

_entries: dict[str, Entry] = {}


def register(
    generator: Generator,
    *,
    real: bool,
    limit_s: float | None = None,
    seeds: int = 20,
    prepare: Callable[[], object] | None = None,
) -> None:
    """Make a generator known by its name; see `Entry`."""
    assert generator.name not in _entries, generator.name
    assert not (real and generator.name.startswith(SIMULATED)), generator.name
    if limit_s is None:
        limit_s = REAL_LIMIT_S if real else LIMIT_S
    ready = functools.cache(prepare or (lambda: None))
    _entries[generator.name] = Entry(generator, real, limit_s, seeds, ready)


def names() -> list[str]:
    """All generators that have a file."""
    files = sorted(TESTS.glob("seeds_*.py"))
    return [file.stem.partition("_")[2].replace("_", "-") for file in files]


def entry(name: str) -> Entry:
    """A generator by its name; its file is imported.

    Raises:
      LookupError: there is none.
    """
    if name not in _entries:
        if name not in names():
            raise LookupError(f"no generator is called {name!r}; there are: {' '.join(names())}")
        importlib.import_module(f"seeds_{name.replace('-', '_')}")
    return _entries[name]


# ---- one run -----------------------------------------------------------------------------

PASSED, FAILED, DIED, HANGS = "passed", "failed", "died", "hangs"

_notes: list[str] = []


def note(line: str) -> None:
    """Say what happens in a run: two of the same plan must say the same, unless it is real."""
    _notes.append(line)


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      kind: `PASSED`, `FAILED` by an exception, `DIED` by a signal or an exit, or `HANGS`.
      what: in which way: the types of exceptions, or the signal. The same fault has the same.
      said: the words of the exception, in a line.
      text: the traceback, and the end of what was printed.
      ms: how long drawing and running took.
      notes: what it noted, if it came to its end.
      cpu_ms: how much CPU that took, of all threads, and of the kernel for them.
    """

    kind: str
    what: str = ""
    said: str = ""
    text: str = ""
    ms: float = 0.0
    notes: tuple[str, ...] = ()
    cpu_ms: float = 0.0

    @property
    def way(self) -> tuple[str, str]:
        """What stays while a plan is shrunk."""
        return self.kind, self.what

    @property
    def way_in_words(self) -> str:
        return ": ".join(filter(None, self.way))

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.kind, self.what, self.said)))


def types_in(exc: BaseException) -> set[str]:
    """The types of an exception, or of all in a group."""
    return {type(leaf).__name__ for leaf in leaves(exc)}


def words_of(exc: BaseException) -> str:
    """The first line of an exception, or of the first in a group."""
    return str(leaves(exc)[0]).partition("\n")[0][:SAID_MAX]


@contextlib.contextmanager
def nothing_unseen(seen: list[str]) -> Iterator[None]:
    """Warnings are errors, and what is raised where nobody can catch it is noted."""

    def unraisable(args: Any) -> None:
        seen.append(type(args.exc_value).__name__)
        sys.__unraisablehook__(args)

    def in_thread(args: Any) -> None:
        seen.append(args.exc_type.__name__)
        threading.__excepthook__(args)

    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
            gc.collect()  # for what complains of not having been closed
    finally:
        sys.unraisablehook, threading.excepthook = before


def run_here(which: Entry, plan: Plan | int) -> Outcome:
    """Run a plan, or draw and run that of a seed, in this process."""
    which.ready()
    _notes.clear()
    unseen: list[str] = []
    started, cpu_started = time.perf_counter(), time.process_time()
    kind, what, said, text = PASSED, "", "", ""
    # Whoever asks Python's own generator gets the same each time.
    random.seed(0)
    with nothing_unseen(unseen):
        try:
            which.generator.run(which.draw(plan) if isinstance(plan, int) else copy.deepcopy(plan))
        except BaseException as exc:  # noqa: BLE001 - an interrupt that is let out is a failure
            kind, what, said = FAILED, " ".join(sorted(types_in(exc))), words_of(exc)
            text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
            del exc
        ms = (time.perf_counter() - started) * 1e3
        cpu_ms = (time.process_time() - cpu_started) * 1e3
    if kind == PASSED and unseen:
        kind, what = FAILED, " ".join(["unraisable", *sorted(set(unseen))])
        said = "raised where nobody could catch it: see what was printed"
    return Outcome(kind, what, said, text, ms, tuple(_notes), cpu_ms)


def look_for_leaks() -> None:
    """Have a sanitizer that is in this process report them: it ends in a way that none sees."""
    look = getattr(ctypes.CDLL(None), "__lsan_do_recoverable_leak_check", None)
    if look is not None:
        look()


class Apart:
    """A run in a process of its own, forked from this one, with a limit."""

    def __init__(self, which: Entry, plan: Plan | int) -> None:
        which.ready()  # which may build something: no part of the run
        self.which = which
        self.plan = plan
        self.limit_s = which.limit_s * machine_speed.slowness()
        self.begun = time.monotonic()
        self.deadline = self.begun + self.limit_s
        self._result: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until end()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until end()
        self._told = False
        # What is there already is nobody's garbage, and stays on pages that both share.
        gc.collect()
        gc.freeze()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        with warnings.catch_warnings():
            # A pytest that forks may have threads, which hold nothing that a plan needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            self._be_the_child(parent)
        self.pidfd = os.pidfd_open(self.pid)

    def _be_the_child(self, parent: int) -> None:
        try:
            children.end_with(parent)  # who would see to the limit?
            # ... and who, if that one hangs? Nothing here has a use for this signal.
            signal.alarm(math.ceil(OUTLIVED * self.limit_s + STACKS_S))
            os.setsid()
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._output.fileno(), 2)
            faulthandler.enable(file=2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            outcome = run_here(self.which, self.plan)
            look_for_leaks()
            self._result.write(json.dumps(outcome).encode())
            self._result.flush()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of this process's is the parent's
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def hurry(self) -> float:
        """Once its time is over: ask for its stacks, then end it. Seconds until it is due again."""
        now = time.monotonic()
        if now >= self.deadline:
            if self._told:
                self._kill()
            else:
                os.kill(self.pid, signal.SIGABRT)  # faulthandler answers with the stacks
            self._told = True
            self.deadline = now + STACKS_S
        return self.deadline - now

    def _kill(self) -> None:
        # By its number too: it may not have come so far as to have a session of its own.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)

    def end(self) -> Outcome:
        """How it was, after its end."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        with contextlib.suppress(ProcessLookupError):  # also what it has started
            os.killpg(self.pid, signal.SIGKILL)
        with self._result, self._output:
            self._result.seek(0)
            result = self._result.read()
            size = self._output.seek(0, os.SEEK_END)
            self._output.seek(max(0, size - OUTPUT_BYTES))
            printed = self._output.read().decode(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        if self._told:
            return Outcome(HANGS, "", f"not over after {self.limit_s:.1f} s", printed)
        if code < 0:
            return Outcome(DIED, signal.Signals(-code).name, "", printed)
        if code or not result:
            return Outcome(DIED, f"exit {code}", "", printed)
        kind, what, said, text, ms, notes, cpu_ms = json.loads(result)
        return Outcome(kind, what, said, f"{text}{printed}", ms, tuple(notes), cpu_ms)

    def stop(self) -> None:
        """Give it up."""
        self._kill()
        self.end()


def run_all(runs: Iterable[Apart], jobs: int) -> Iterator[tuple[Apart, Outcome]]:
    """Runs in processes of their own, so many at once; each is given when it has ended.

    *runs* starts them, one each time that it is asked.
    """
    waiting = iter(runs)
    going: dict[int, Apart] = {}
    poller = select.poll()
    over = False
    try:
        while going or not over:
            while not over and len(going) < jobs:
                if (run := next(waiting, None)) is None:
                    over = True
                else:
                    going[run.pidfd] = run
                    poller.register(run.pidfd, select.POLLIN)
            if not going:
                return
            due_s = min(run.hurry() for run in going.values())
            for pidfd, _ in poller.poll(max(1.0, due_s * 1e3)):
                poller.unregister(pidfd)
                run = going.pop(pidfd)
                yield run, run.end()
    finally:
        for run in going.values():
            run.stop()


def run_apart(which: Entry, plan: Plan | int) -> Outcome:
    """One run in a process of its own."""
    return next(run_all(iter([Apart(which, plan)]), 1))[1]


# ---- shrinking ---------------------------------------------------------------------------


def without(items: list[Any], at: int, size: int) -> list[Any]:
    return items[:at] + items[at + size :]


def strip_zeros(kernel: list[int]) -> list[int]:
    """Past the end is 0 as well."""
    end = len(kernel)
    while end and not kernel[end - 1]:
        end -= 1
    return kernel[:end]


def smaller(value: Any) -> list[Any]:
    """What is plainer than a number or a truth, the plainest first."""
    if value is True:
        return [False]
    if isinstance(value, int) and value is not False:
        tried = dict.fromkeys((0, 1, value // 2, value - 1))
        return [each for each in tried if 0 <= each < value]
    return []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all that is no list and no dictionary."""
    if isinstance(value, (list, dict)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))
    else:
        yield path


def at(value: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, value)


def changed(plan: Plan, **parts: Any) -> Plan:
    return {**plan, **parts}  # type: ignore[typeddict-item]


def with_value(plan: Plan, path: tuple[Any, ...], value: Any) -> Plan:
    new = copy.deepcopy(plan)
    at(new, path[:-1])[path[-1]] = value
    return new


def shrink(plan: Plan, fails: Callable[[Plan], bool], seconds: float = SHRINK_S) -> Plan:
    """The plainest plan that was found to fail as *plan* does."""
    end = time.monotonic() + seconds
    known: set[str] = set()

    def try_it(candidate: Plan) -> bool:
        nonlocal plan
        written = json.dumps(candidate, sort_keys=True)
        if time.monotonic() > end or written in known:
            return False
        known.add(written)
        if fails(candidate):
            plan = candidate
            return True
        return False

    def drop(part: str) -> None:
        # Chunks from the end to the beginning, smaller and smaller; one that is gone moves
        # nothing that is still to be tried.
        size = max(1, len(at(plan, (part,))) // 2)
        while True:
            place = max(0, len(at(plan, (part,))) - size)
            while at(plan, (part,)):
                try_it(changed(plan, **{part: without(at(plan, (part,)), place, size)}))
                if place == 0:
                    break
                place = max(0, place - size)
            if size == 1:
                return
            size //= 2

    def zero_the_kernel() -> None:
        size = max(1, len(plan["kernel"]) // 2)
        while plan["kernel"]:
            for place in range(0, len(plan["kernel"]), size):
                kernel = list(plan["kernel"])
                kernel[place : place + size] = [0] * len(kernel[place : place + size])
                try_it(changed(plan, kernel=strip_zeros(kernel)))
            if size == 1:
                return
            size //= 2

    def plainer_options() -> None:
        for name in list(plan["options"]):
            options = {key: value for key, value in plan["options"].items() if key != name}
            try_it(changed(plan, options=options))

    def smaller_numbers() -> None:
        for path in list(places(dict(plan))):
            while any(try_it(with_value(plan, path, each)) for each in smaller(at(plan, path))):
                pass

    before: Plan | None = None
    while before != plan and time.monotonic() < end:
        before = plan
        drop("steps")
        zero_the_kernel()
        drop("kernel")
        plainer_options()
        smaller_numbers()
        plan = changed(plan, kernel=strip_zeros(plan["kernel"]))
    return plan


def shrink_apart(which: Entry, plan: Plan, outcome: Outcome, seconds: float = SHRINK_S) -> Plan:
    """Shrink with each try in a process of its own, so that what hangs or dies shrinks, too."""
    tries = REAL_TRIES if which.real else 1

    def fails(candidate: Plan) -> bool:
        return any(run_apart(which, candidate).way == outcome.way for _ in range(tries))

    return shrink(plan, fails, seconds)


# ---- written down ------------------------------------------------------------------------


def write(file: Path, name: str, plan: Plan, outcome: Outcome | None = None) -> None:
    """A plan with the name of its generator, a step a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    steps = ",\n".join(f"    {json.dumps(step)}" for step in plan["steps"])
    lines = [
        f'  "generator": {json.dumps(name)}',
        *([f'  "outcome": {json.dumps(str(outcome))}'] if outcome else []),
        f'  "options": {json.dumps(plan["options"])}',
        f'  "steps": [\n{steps}\n  ]' if steps else '  "steps": []',
        f'  "kernel": {json.dumps(plan["kernel"])}',
    ]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read(file: Path) -> tuple[str, Plan]:
    """The generator's name and the plan."""
    data = json.loads(file.read_text(encoding="utf-8"))
    plan: Plan = {key: data[key] for key in ("options", "steps", "kernel")}  # type: ignore[assignment]
    return data["generator"], plan


def command(name: str, source: int | Path) -> str:
    """What replays a seed or a plan."""
    python = sys.executable
    if Path(python).is_relative_to(ROOT):
        python = os.path.relpath(python, ROOT)
    if against := os.environ.get(AGAINST):
        python = f"PYTHONPATH={against}/src {sys.executable}"
    if isinstance(source, int):
        return f"{python} tests/by_seed.py {name} {source}"
    shown = os.path.relpath(source, ROOT) if source.is_relative_to(ROOT) else source
    return f"{python} tests/by_seed.py --plan {shown}"


# ---- the command line --------------------------------------------------------------------


def notes_of(arguments: list[str], hash_seed: int) -> str:
    """What a new process notes, and how it ends."""
    done = subprocess.run(
        [sys.executable, sys.argv[0], *arguments, "--notes", "--apart"],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout


def first_difference(one: str, two: str) -> str:
    lines = one.splitlines(), two.splitlines()
    for number, (a, b) in enumerate(zip(*lines, strict=False), 1):
        if a != b:
            return f"line {number}: {a!r}, and {b!r}"
    return f"{len(lines[0])} lines, and {len(lines[1])}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", help="of a generator")
    parser.add_argument("seed", nargs="?", help="a number, or several: 3,17,40:50")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan that was written down")
    parser.add_argument("--shrink", action="store_true", help="find the shortest that fails so")
    parser.add_argument("--same", action="store_true", help="two processes must note the same")
    parser.add_argument("--show", action="store_true", help="print the plan, and run nothing")
    parser.add_argument("--notes", action="store_true", help="print what the run noted")
    parser.add_argument("--apart", action="store_true", help="in a process of its own")
    parser.add_argument("--times", type=int, metavar="N", help="count how so many runs end")
    parser.add_argument("--to", type=Path, metavar="FILE", help="where the plan is written")
    parser.add_argument("--seconds", type=float, default=SHRINK_S, help="for --shrink")
    parser.add_argument("--jobs", type=int, default=1, help="so many of several at once")
    options = parser.parse_args(argv)
    if (options.name is None) != (options.seed is None) or (options.plan and options.name):
        parser.error("either NAME and SEED, or --plan FILE")
    return options


def seeds_of(words: str) -> list[int]:
    """What ``3,17,40:50`` means."""
    ranges = [word.partition(":") for word in words.split(",")]
    return [
        seed
        for first, colon, end in ranges
        for seed in range(int(first), int(end) if colon else int(first) + 1)
    ]


def run_several(which: Entry, seeds: list[int], jobs: int) -> int:
    """Some seeds, each apart: how many failed."""
    failures, ms = 0, []
    for run, outcome in run_all((Apart(which, seed) for seed in seeds), jobs):
        assert isinstance(run.plan, int)
        ms.append(outcome.ms)
        if outcome.kind != PASSED:
            failures += 1
            print(f"{which.name} {run.plan}: {outcome}\n{outcome.text}", end="")
            print(f"  {command(which.name, run.plan)}", flush=True)
    ms.sort()
    print(f"{which.name}: {len(ms)} seeds, {failures} failed, median {ms[len(ms) // 2]:.1f} ms")
    return failures


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.name is None and options.plan is None:
        print("\n".join(names()))
        return 0
    source: int | Path
    if options.plan:
        name, plan = read(options.plan)
        which, source = entry(name), options.plan.resolve()
        arguments = ["--plan", str(source)]
        to = FOUND / f"{options.plan.stem}-short.json"
    else:
        which = entry(options.name)
        seeds = seeds_of(options.seed)
        if len(seeds) > 1:
            return 1 if run_several(which, seeds, options.jobs) else 0
        source, plan = seeds[0], which.draw(seeds[0])
        arguments = [which.name, str(source)]
        to = FOUND / f"{which.name}-{source}.json"
    if options.show:
        print(json.dumps(plan, indent=1))
        return 0
    if options.same:
        one, two = (notes_of(arguments, hash_seed) for hash_seed in (1, 2))
        if one != two:
            print(f"two runs differ: {first_difference(one, two)}")
            return 1
        print(f"the same twice, {len(one.splitlines())} lines")
        return 0
    if options.times is not None:
        ways = Counter(run_apart(which, plan).way_in_words for _ in range(options.times))
        print(json.dumps(ways))
        return 0 if ways[PASSED] == options.times else 1
    outcome = (run_apart if options.apart or options.shrink else run_here)(which, plan)
    if options.notes:
        print("\n".join(outcome.notes))
        print(outcome)
    else:
        print(f"{which.name} {source}: {outcome}, {outcome.ms:.1f} ms\n{outcome.text}", end="")
    if outcome.kind == PASSED:
        return 0
    if options.shrink:
        plan = shrink_apart(which, plan, outcome, options.seconds)
        to = (options.to or to).resolve()
        write(to, which.name, plan, outcome)
        print(f"{to.read_text()}\n  {command(which.name, to)}")
    return 1


if __name__ == "__main__":
    # Under its own name: generators import it, and there is one registry.
    import by_seed

    children.end_with_parent()
    sys.exit(by_seed.main(sys.argv[1:]))
