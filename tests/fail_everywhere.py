"""Runs scenarios with one call of the kernel's, or one allocation of ours, failing: each in turn.

``python fail_everywhere.py SCENARIO ... [--most N] [--only CALL] [--times N]`` is what
`test_fail_everywhere` starts, in a process of its own: it has an extension of `builds`, and may
be ended by an assertion in C. The last line of stdout is what was found, as JSON; the
lines before it name what is about to be done, for whoever has to find out why there is no last
one. ``--most`` takes so many of each kind of failure, evenly, and more of the allocations.

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
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import builds
import gain_tools
import harness
import kernel_table
import scenarios
import trio
from exception_groups import leaves
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

# Of the few allocations more are tried.
ALLOCATIONS_FOR_A_CALL = 4

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

    def begin(self) -> None:
        if self.call == ALLOCATION:
            LIB.fail_alloc_at(self.nth)
        else:
            LIB.fail_calls_at(PLACES[self.call], self.nth, self.times, getattr(errno, self.error))

    def __str__(self) -> str:
        return f"{self.call} {self.nth} x{self.times}: {self.error}"


def begin_none() -> None:
    """Count, and have nothing fail."""
    LIB.fail_alloc_at(0)
    LIB.fail_calls_at(0, 0, 0, 0)


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


def run(scenario: scenarios.Scenario) -> None:
    scenarios.run(harness.RING, scenario, lambda: scenario.body(scenarios.Course()))


def everything_in(exc: BaseException | None) -> Iterator[BaseException]:
    """It, what it groups, and what has led to each."""
    seen: set[int] = set()
    left = [exc]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        parts = getattr(each, "exceptions", None)
        if parts is None:
            yield each
        else:
            left.extend(parts)
        left += [each.__cause__, each.__context__]


class Unraised:
    """What was raised where nobody could take it: by a finalizer, or at a thread's end."""

    def __init__(self) -> None:
        self.told: list[str] = []
        sys.unraisablehook = self.note
        threading.excepthook = self.note

    def note(self, args: Any) -> None:
        words = "".join(
            traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        )
        self.told.append(f"{UNRAISED}: {words}")

    def take(self) -> list[str]:
        taken, self.told = self.told, []
        return taken


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

    def problems(self) -> list[str]:
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
        if found:
            self.before, self.threads = self.now(), gain_tools.busy_threads()
        return found + self.unraised.take()


def ended(scenario: scenarios.Scenario) -> End:
    """Run it: how it ended."""
    end = End()
    try:
        run(scenario)
    except BaseException as exc:  # noqa: BLE001  it is told as a whole
        found = list(everything_in(exc))
        end.errors = [(type(each), getattr(each, "errno", None), str(each)) for each in found]
        # Then trio asserts much, for itself.
        is_lost = any(isinstance(each, trio.TrioInternalError) for each in found)
        for leaf in leaves(exc):
            is_exit = isinstance(leaf, (trio.Cancelled, KeyboardInterrupt))
            if isinstance(leaf, (trio.TooSlowError, harness.BooksError)):
                end.problems.append(f"{type(leaf).__name__}: {leaf}")
            elif is_exit or not (is_lost or isinstance(leaf, CLEAR)):
                where = "".join(traceback.format_exception(type(leaf), leaf, leaf.__traceback__))
                end.problems.append(f"not a clear error: {where}")
        if not isinstance(exc, Exception):
            end.problems.append(f"no Exception: {exc!r}")
    return end


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


def failures(
    scenario: scenarios.Scenario, made: dict[str, int], most: int, times: int, only: str
) -> Iterator[Failure]:
    for call, count in made.items():
        if only not in ("", call) or call in scenario.sound:
            continue
        if call == ALLOCATION:
            yield from (Failure(call, nth) for nth in evenly(count, ALLOCATIONS_FOR_A_CALL * most))
            continue
        for error in HARMLESS.get(call, ()) + HARMFUL.get(call, ()):
            for nth in evenly(count, most):
                yield Failure(call, nth, error, times)


def fail_everywhere(
    name: str, books: Books, report: Report, *, most: int, times: int, only: str
) -> None:
    scenario = scenarios.SCENARIOS[name]
    made: Counter[str] = Counter()
    for _ in range(2):  # the second: what is made once in a process is made
        begin_none()
        end = ended(scenario)
        assert not end.errors, (name, end)
        made = Counter(counts())
        report.note(f"{name}, nothing fails", books.problems())
    usual = enters()
    for failure in failures(scenario, dict(made), most, times, only):
        where = f"{name}, {failure}"
        print(where, flush=True)
        faulthandler.dump_traceback_later(4 * scenarios.BOUND_S, exit=True)
        started = time.monotonic()
        failure.begin()
        end = ended(scenario)
        happened, entered = has_failed(), enters()
        begin_none()
        problems = end.problems
        if end.errors and not happened:
            problems.append(f"nothing failed, and it ended with {end.errors}")
        elif end.errors and failure.harmless:
            problems.append(f"it ended with {end.errors}")
        elif end.errors and not names_the_failure(end, failure):
            problems.append(f"nothing says what has failed: {end.errors}")
        if entered > max(ENTERS_AT_LEAST, ENTERS_FACTOR * usual):
            problems.append(f"{entered} enters, and usually {usual}")
        left = books.problems()
        if any(issubclass(kind, trio.TrioInternalError) for kind, _, _ in end.errors):
            # Its tasks are in the middle of something, and trio's own finalizers complain.
            left = [problem for problem in left if not problem.startswith(UNRAISED)]
        _probe.forget_kernel()  # of which it may have learned that it refuses rings
        report.note(where, problems + left)
        report.took(time.monotonic() - started, where)
        how = "not reached" if not happened else "an error" if end.errors else "the result"
        report.ends[f"{failure.call}: {how}"] += 1
    faulthandler.cancel_dump_traceback_later()
    # Whatever was: the next run in this process is one as any.
    end = ended(scenario)
    report.note(f"{name}, after all", [*end.problems, *map(str, end.errors), *books.problems()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--most", type=int, default=1 << 30)
    parser.add_argument("--times", type=int, default=1)
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
            fail_everywhere(
                name, books, report, most=options.most, times=options.times, only=options.only
            )
    print(report.as_json(), flush=True)


if __name__ == "__main__":
    main()
