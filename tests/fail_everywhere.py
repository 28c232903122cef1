"""Runs scenarios with one call of the kernel's, or one allocation of ours, failing: each in turn.

``python fail_everywhere.py SCENARIO ... [--most N] [--pairs N] [--cut-off N] [--only CALL]
[--times N]`` is what `test_fail_everywhere` starts, in a process of its own: it has an extension
of `builds`, and may be ended by an assertion in C. The last line of stdout is what was found, as
JSON; the lines before it name what is about to be done, for whoever has to find out why there is
no last one. ``--most`` takes so many of each kind of failure, evenly, and more of the allocations;
``--pairs`` so many times two failures in one run, drawn by seed, and ``--cut-off`` so many points
at which the run is cancelled and the very next enter, or allocation, fails.

A run with a failure ends in one of two ways: with the scenario's result, as if nothing had been;
or with an error that says what has failed. `HARMLESS` are failures after which the run goes on,
since the kernel gives them in passing: then only the result will do. Afterwards the books must
balance: nothing in the kernel, no lease, no descriptor, no thread, no mapping, no block of
memory more than before.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import gc
import itertools
import json
import logging
import os
import random
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import builds
import cut_off
import gain_tools
import harness
import kernel_table
import scenarios
import trio
from exception_groups import everything_in, leaves
from scenarios import evenly

import uring_trio
from uring_trio import _probe
from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# More enters than this, and so many times those of a run without a failure, are a spin.
ENTERS_AT_LEAST, ENTERS_FACTOR = 2_000, 20

VARIANT = "alloc"
_, LIB = load_extension()

UNRAISED = "raised where nobody could take it"

# How a run ends.
NOT_REACHED, AN_ERROR, THE_RESULT = "not reached", "an error", "the result"
# Kinds of failures besides those of one call with one error.
PAIR, CUT_OFF = "two", "cut off"

# trio's own files, and ours.
TRIO, OURS = str(Path(trio.__file__).parent), str(Path(uring_trio.__file__).parent)

# Of the few allocations more are tried.
ALLOCATIONS_FOR_A_CALL = 4

# How often a call fails in a row. Five enters would cost memory, on purpose: where a run probes the
# first fails a step of the probe and the others all rounds of its end (END_ROUNDS of csrc/probe.c),
# and what the kernel may write to is given up then. Four cost nothing, nor does any number of them
# in a run that has probed.
TIMES = (1, 1, 2, 3)

PLACES = {name: place for place, name in enumerate(kernel_table.names())}
ALLOCATION = "allocation"

#: By call: what Linux may answer in passing, so that nobody is to hear of it.
HARMLESS: dict[str, tuple[str, ...]] = {
    "enter": ("EINTR", "EAGAIN", "EBUSY"),
    "accept4": ("EAGAIN",),
    "sendto": ("EAGAIN",),
    "recvfrom": ("EAGAIN",),
    "sendmsg": ("EAGAIN",),
    "recvmsg": ("EAGAIN",),
    "connect": ("EAGAIN",),
    "read": ("EAGAIN", "EINTR"),
    "write": ("EAGAIN", "EINTR"),
    "poll": ("EINTR",),
}
#: What it may answer besides. (close(2) has no error for sockets, eventfds and rings.)
HARMFUL: dict[str, tuple[str, ...]] = {
    "setup": ("ENOMEM", "EMFILE", "EPERM"),
    "enter": ("ENOMEM", "EBADR"),
    "register_op": ("ENOMEM", "EINVAL"),
    "map": ("ENOMEM",),
    "allocate": ("ENOMEM",),
    "accept4": ("ECONNABORTED", "EMFILE", "ENOBUFS", "ENOMEM", "EPERM"),
    "sendto": ("ENOBUFS", "ENOMEM", "ECONNRESET", "EPIPE", "EHOSTUNREACH"),
    "recvfrom": ("ENOMEM", "ECONNRESET"),
    "sendmsg": ("ENOBUFS", "ENOMEM", "EHOSTUNREACH"),
    "recvmsg": ("ENOMEM", "ECONNREFUSED"),
    "connect": ("ENOMEM", "ECONNREFUSED"),
    "shutdown": ("ENOTCONN",),
    "getsockopt": ("ENOBUFS", "ENOPROTOOPT"),
    "setsockopt": ("ENOMEM", "EINVAL"),
    "getsockname": ("ENOBUFS",),
    "getpeername": ("ENOTCONN", "ENOBUFS"),
    "read": ("EIO",),
    "write": ("EPIPE", "EIO"),
    "poll": ("ENOMEM",),
    "queued": ("EINVAL",),
    "mode": ("ENOMEM",),
}
# Calls with which a run's ring begins, in each run in the same way.
BEGINNING = ("setup", "register_op", "map", "allocate")
# Errors that a run may end with, and what follows from them for others.
CLEAR: tuple[type[BaseException], ...] = (
    *(OSError, MemoryError, trio.TrioInternalError, uring_trio.UringUnavailable),
    *(trio.BrokenResourceError, trio.ClosedResourceError, scenarios.Lost),
    *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
)


@dataclass(frozen=True)
class Failure:
    """The *nth* call of a kind answers with an error, and so do *times* in all."""

    call: str
    nth: int
    error: str = "ENOMEM"
    times: int = 1

    @property
    def harmless(self) -> bool:
        return self.error in HARMLESS.get(self.call, ())

    @property
    def kind(self) -> str:
        return f"{self.call} {self.error}"

    def __str__(self) -> str:
        return f"{self.call} {self.nth} x{self.times}: {self.error}"


def begin(*failures: Failure) -> None:
    """Count from now on, and have these fail: one allocation at most."""
    LIB.fail_alloc_at(0)
    LIB.fail_calls_at(0, 0, 0, 0)
    for each in failures:
        if each.call == ALLOCATION:
            LIB.fail_alloc_at(each.nth)
        else:
            number = getattr(errno, each.error)
            LIB.fail_calls_also(PLACES[each.call], each.nth, each.times, number)


def has_failed() -> bool:
    return bool(LIB.fail_calls_failed() or LIB.fail_alloc_happened())


def enters() -> int:
    return int(LIB.fail_calls_made(PLACES["enter"]))


def counts() -> dict[str, int]:
    """How many calls and allocations there were since the last `begin`."""
    found = {name: int(LIB.fail_calls_made(place)) for name, place in PLACES.items()}
    return found | {ALLOCATION: int(LIB.fail_alloc_count())}


# ---- one run -------------------------------------------------------------------------------


@dataclass
class End:
    """How a run ended.

    Attributes:
      errors: all that its exception holds, as types, errnos and words; none: its result.
      problems: what must not be.
    """

    errors: list[tuple[type[BaseException], int | None, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_lost(self) -> bool:
        """Whether trio was: its tasks are in the middle of something."""
        return any(issubclass(kind, trio.TrioInternalError) for kind, _, _ in self.errors)


def run(scenario: scenarios.Scenario, way: cut_off.Way | None = None) -> None:
    if way is None:
        scenarios.run(harness.RING, scenario, lambda: scenario.body(scenarios.Course()))
    else:
        scenarios.run(harness.RING, scenario, lambda: way.run(scenario.body), [way.points])


class Unraised:
    """What was raised where nobody could take it: by a finalizer, or at a thread's end."""

    def __init__(self) -> None:
        self._told: list[tuple[str, bool]] = []
        sys.unraisablehook = self.note
        threading.excepthook = self.note

    def note(self, args: Any) -> None:
        words = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        told = f"{UNRAISED}: {''.join(words)}"
        self._told.append((told, is_of_a_lost_run(args.exc_value)))

    def take(self, *, is_lost: bool) -> list[str]:
        """All of it, but what there has to be where a run was lost."""
        taken, self._told = self._told, []
        return [words for words, is_usual in taken if not (is_lost and is_usual)]


def is_of_a_lost_run(exc: BaseException | None) -> bool:
    """Whether it is raised since tasks end in the middle of something, and in no run."""
    if exc is None:
        return False
    if is_raised_in(OURS, exc) and "coroutine ignored GeneratorExit" not in str(exc):
        return False
    # Files of theirs, coroutines that wait for something while they are closed, and what that
    # leads to.
    return (
        isinstance(exc, ResourceWarning)
        or "coroutine ignored GeneratorExit" in str(exc)
        or is_raised_in(TRIO, exc)
        or any(isinstance(each, GeneratorExit) for each in everything_in(exc))
    )


def is_raised_in(folder: str, exc: BaseException) -> bool:
    frames = traceback.extract_tb(exc.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(folder)


def forget_trios_locks() -> None:
    """trio keeps the tasks of a run that was lost which had a lock, and they their files."""
    from trio._core import _parking_lot

    getattr(_parking_lot, "GLOBAL_PARKING_LOT_BREAKER", {}).clear()


class Books:
    """What the process has, and must not have more of."""

    def __init__(self) -> None:
        self.unraised = Unraised()
        self.before = self.now()
        self.threads = gain_tools.busy_threads()

    def now(self) -> dict[str, int]:
        return {
            "descriptors": len(harness.open_fds()),
            "mapped bytes": int(LIB.fail_calls_mapped()),
            "blocks": int(LIB.fail_alloc_live()),
        }

    def problems(self, *, is_lost: bool = False) -> list[str]:
        forget_trios_locks()
        gc.collect()  # what a lost run has left is not to be found by a later one
        deadline = time.monotonic() + harness.FDS_TIMEOUT_S
        while True:
            now = self.now()
            found = [
                f"{name}: {now[name]}, and before {had}"
                for name, had in self.before.items()
                if now[name] > had
            ]
            new = gain_tools.busy_threads() - self.threads
            found += [f"a thread is left: {thread}" for thread in new]
            if not found or time.monotonic() > deadline:
                break
            gc.collect()
            time.sleep(0.002)
        gc.collect()  # what a thread had that has ended meanwhile
        if found:
            self.before, self.threads = self.now(), gain_tools.busy_threads()
        return found + self.unraised.take(is_lost=is_lost)


def ended(scenario: scenarios.Scenario, way: cut_off.Way | None = None) -> End:
    """Run it: how it ended."""
    end = End()
    clear = CLEAR if way is None else (*CLEAR, *way.errors)
    try:
        run(scenario, way)
    except BaseException as exc:  # noqa: BLE001  it is told as a whole
        found = list(everything_in(exc))
        end.errors = [(type(each), getattr(each, "errno", None), str(each)) for each in found]
        for leaf in leaves(exc):
            if isinstance(leaf, (trio.TooSlowError, harness.BooksError)):
                end.problems.append(f"{type(leaf).__name__}: {leaf}")
            elif not isinstance(leaf, clear):
                end.problems.append(f"not a clear error: {words_of(leaf)}")
        if end.is_lost:
            # Its tasks have not ended, and trio asserts that they have.
            end.problems += [
                f"not a clear error of a lost run: {words_of(each)}"
                for each in found
                if not isinstance(each, clear)
                and not (isinstance(each, AssertionError) and is_raised_in(TRIO, each))
            ]
        if way is None and not isinstance(exc, Exception):
            end.problems.append(f"no Exception: {exc!r}")
    return end


def words_of(exc: BaseException) -> str:
    return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))


def names_the_failure(end: End, failure: Failure) -> bool:
    """Whether some error says what has failed."""
    number = getattr(errno, failure.error)
    return any(
        found == number
        or (issubclass(kind, MemoryError) and number == errno.ENOMEM)
        or os.strerror(number) in words
        for kind, found, words in end.errors
    )


# ---- all runs of a scenario ----------------------------------------------------------------


class Report:
    """What is told at the end."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.ends: Counter[str] = Counter()
        self.slowest: list[tuple[float, str]] = []

    def note(self, where: str, problems: Sequence[str]) -> None:
        self.problems += [f"{where}: {problem}" for problem in problems]

    def took(self, seconds: float, where: str) -> None:
        self.slowest = sorted([*self.slowest, (round(seconds, 3), where)])[-5:]

    def as_json(self) -> str:
        return json.dumps(
            {"problems": self.problems, "ends": self.ends, "slowest": self.slowest[::-1]}
        )


def errors_of(call: str) -> tuple[str, ...]:
    return ("ENOMEM",) if call == ALLOCATION else HARMLESS.get(call, ()) + HARMFUL.get(call, ())


class Trial:
    """A scenario, which is run again and again; something fails each time."""

    def __init__(self, name: str, books: Books, report: Report) -> None:
        self._name = name
        self._scenario = scenarios.SCENARIOS[name]
        self._books, self._report = books, report
        for _ in range(2):  # the second: what is made once in a process is made
            begin()
            end = ended(self._scenario)
            assert not end.errors, (name, end)
            made = counts()
            report.note(f"{name}, nothing fails", books.problems())
        self._usual = enters()
        #: How often each call is made that may fail.
        self.made = {
            call: count
            for call, count in made.items()
            if count and errors_of(call) and call not in self._scenario.sound
        }

    def fail(self, *failures: Failure) -> None:
        """Run it with these."""
        where = f"{self._name}, {' and '.join(map(str, failures))}"
        with self._watched(where):
            begin(*failures)
            end = ended(self._scenario)
            happened, entered = has_failed(), enters()
            begin()
            problems = end.problems
            if end.errors and not happened:
                problems.append(f"nothing failed, and it ended with {end.errors}")
            elif end.errors and all(each.harmless for each in failures):
                problems.append(f"it ended with {end.errors}")
            elif end.errors and not any(names_the_failure(end, each) for each in failures):
                problems.append(f"nothing says what has failed: {end.errors}")
            if entered > max(ENTERS_AT_LEAST, ENTERS_FACTOR * self._usual):
                problems.append(f"{entered} enters, and usually {self._usual}")
            self._note(where, end)
        how = NOT_REACHED if not happened else AN_ERROR if end.errors else THE_RESULT
        kind = failures[0].kind if len(failures) == 1 else PAIR
        self._report.ends[f"{kind}: {how}"] += 1

    def cut_off(self, at: int, failure: Failure) -> None:
        """Run it until that point; there it is cancelled, and the next thing fails."""
        where = f"{self._name}, cut off at {at}, with {failure}"
        with self._watched(where):
            begin()
            # Nobody here keeps it: it knows tasks, and a lost run's are to be collected.
            end = ended(self._scenario, CutOff(at, failure))
            happened = has_failed()
            begin()
            self._note(where, end)
        how = NOT_REACHED if not happened else AN_ERROR if end.errors else THE_RESULT
        self._report.ends[f"{CUT_OFF}: {how}"] += 1

    def points(self) -> int:
        """How many it has."""
        begin()
        way = CutOff(None, Failure("enter", 0))
        run(self._scenario, way)
        return way.points.count

    def end(self) -> None:
        """Whatever was: the next run in this process is one as any."""
        end = ended(self._scenario)
        problems = [*end.problems, *map(str, end.errors), *self._books.problems()]
        self._report.note(f"{self._name}, after all", problems)

    def _note(self, where: str, end: End) -> None:
        left = self._books.problems(is_lost=end.is_lost)
        _probe.forget_kernel()  # of which it may have learned that it refuses rings
        self._report.note(where, end.problems + left)

    @contextlib.contextmanager
    def _watched(self, where: str) -> Iterator[None]:
        print(where, flush=True)
        faulthandler.dump_traceback_later(4 * scenarios.BOUND_S, exit=True)
        started = time.monotonic()
        yield
        self._report.took(time.monotonic() - started, where)
        faulthandler.cancel_dump_traceback_later()


class CutOff(cut_off.Whole):
    """It is cancelled, and something else fails at once."""

    errors = (*cut_off.Whole.errors, *CLEAR)

    def __init__(self, at: int | None, failure: Failure) -> None:
        super().__init__(at)
        self._failure = failure

    def act(self) -> None:
        begin(self._failure)
        super().act()


def each_of(made: dict[str, int], most: int, times: int, only: str) -> Iterator[Failure]:
    for call, count in made.items():
        if only in ("", call):
            several = ALLOCATIONS_FOR_A_CALL if call == ALLOCATION else 1
            for error in errors_of(call):
                for nth in evenly(count, several * most):
                    yield Failure(call, nth, error, times)


def pairs_of(name: str, made: dict[str, int], count: int) -> Iterator[list[Failure]]:
    """Two failures in a run, so many times; the same for the same scenario."""
    for number in range(count):
        draw = random.Random(f"{name} {number}")
        chosen: list[Failure] = []
        while len(chosen) < 2:
            call = draw.choice(sorted(made))
            error = draw.choice(errors_of(call))
            if not any(each.call == ALLOCATION == call for each in chosen):
                times = draw.choice(TIMES)
                chosen.append(Failure(call, draw.randint(1, made[call]), error, times))
        yield chosen


#: What fails when a run is cut off, at once.
AT_ONCE = [Failure("enter", 1, error) for error in errors_of("enter")]
AT_ONCE.append(Failure(ALLOCATION, 1))


def fail_everywhere(
    name: str, books: Books, report: Report, options: argparse.Namespace, *, is_first: bool
) -> None:
    trial = Trial(name, books, report)
    made = dict(trial.made)
    if not is_first and made["setup"] == 1:
        # It begins as the first of them did.
        made = {call: count for call, count in made.items() if call not in BEGINNING}
    for failure in each_of(made, options.most, options.times, options.only):
        trial.fail(failure)
    for pair in pairs_of(name, trial.made, options.pairs):
        trial.fail(*pair)
    # In turn, each point with another of them, so that all have their turn.
    failing = itertools.cycle(AT_ONCE)
    for at in evenly(trial.points(), options.cut_off) if options.cut_off else []:
        trial.cut_off(at, next(failing))
    trial.end()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--most", type=int, default=1 << 30)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--cut-off", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    if builds.loaded() != VARIANT:
        environment = builds.environment(VARIANT)
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    logging.disable()  # a server tells of what goes wrong, and here much does
    warnings.simplefilter("error", ResourceWarning)
    table = LIB.fail_calls_over(LIB.ut_kernel_in_use)
    report = Report()
    gc.collect()
    gc.freeze()  # what is there stays: a collection is for what a run has left
    with kernel_table.in_use(table), contextlib.suppress(BrokenPipeError):
        books = Books()
        for name in options.names:
            fail_everywhere(name, books, report, options, is_first=name == options.names[0])
    print(report.as_json(), flush=True)


if __name__ == "__main__":
    main()
