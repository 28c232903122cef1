"""trio's own choices, pinned: the one module of the tests that names what it makes them with.

trio throws a coin for the order of each batch of tasks, and leaves three more orders to where
objects lie in memory: of the tasks and of the scopes that a cancel reaches, which are sets, and
of deadlines that are equal. Here batches are shuffled by a seed (trio has that for hypothesis),
the sets keep their order, and objects are numbered as they come. A collection may call what
closes something, so there is none.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import harness
import outcome
import trio
from trio import _threads
from trio._core import _run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Ordered(dict[T, None]):
    """A set that is gone through in the order in which its members came."""

    def add(self, member: T) -> None:
        self[member] = None

    def remove(self, member: T) -> None:
        del self[member]

    def discard(self, member: T) -> None:
        self.pop(member, None)


class Numbers:
    """A number for each object, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._next = itertools.count()

    def of(self, one: Any) -> int:
        number = self._numbers.get(one)
        if number is None:
            number = self._numbers[one] = next(self._next)
        return number


_begin_status = _run.CancelStatus.__attrs_post_init__


def _begin_in_order(status: Any) -> None:
    status._children = Ordered()
    status._tasks = Ordered()
    _begin_status(status)


@contextlib.contextmanager
def trio_pinned(seed: int) -> Iterator[None]:
    """A run of trio's in here orders its tasks by *seed*, and by nothing else."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (_run, "_r", random.Random(seed)),
            (_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (_run, "id", Numbers().of),  # in front of the built-in one
            (_run.CancelStatus, "__attrs_post_init__", _begin_in_order),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(harness.no_collection())
        yield


@contextlib.contextmanager
def threads_in_time(pause_s: float) -> Iterator[None]:
    """What is given to a thread is done by one, in a moment of the run's own time.

    Nothing else runs meanwhile, so it replays; to the run it takes twice the pause.
    """

    async def work(fn: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        results: list[outcome.Outcome[Any]] = []
        await trio.sleep(pause_s)
        thread = threading.Thread(target=lambda: results.append(outcome.capture(fn)))
        thread.start()
        thread.join()
        await trio.sleep(pause_s)
        deliver(results[0])

    def start(fn: Any, deliver: Any, *_name: Any) -> None:
        trio.lowlevel.spawn_system_task(work, fn, deliver)

    with mock.patch.object(_threads, "start_thread_soon", start):
        yield
