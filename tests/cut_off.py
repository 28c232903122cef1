"""Runs scenarios with something cut off at a point: what happens there is a `Way`.

A point is a moment at which some operation is in another state than at the last one: before
each step of a task (others are queued then, submitted, or over and not heard of), and when
something has come and nobody was told of it yet.

Afterwards the books of the run must balance, and no descriptor or thread be left.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import scenarios
import trio
from exception_groups import leaves
from scenarios import Course, Lost, evenly

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from scenarios import Scenario

    from uring_trio import gain

# Points between the cancel of what is shielded and the end of its shield.
SHIELDED_POINTS = 5

# What a task may find when another one of its scenario was cut off.
CONSEQUENCES = (Lost, trio.BrokenResourceError, ConnectionError)


class Points(trio.abc.Instrument):
    """Counts the points of a run, and does something at one."""

    def __init__(
        self, at: int | None, act: Callable[[], None], may_act: Callable[[], bool]
    ) -> None:
        self.count = 0
        #: Those at which there is something to cut off.
        self.promising: list[int] = []
        self._may_act = may_act
        self.at = at
        self._act = act
        self._later: dict[int, Callable[[], None]] = {}
        self._running = False

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """What is in here has points."""
        on_ring = harness.io_statistics().backend == harness.RING
        # (epoll's manager cannot be looked into.)
        with harness.before_wakes(self.pass_one) if on_ring else contextlib.nullcontext():
            self._running = True
            try:
                yield
            finally:
                self._running = False

    def pass_one(self) -> None:
        if not self._running:
            return
        self.count += 1
        if self._may_act():
            self.promising.append(self.count)
        if self.count == self.at:
            self._act()
        elif self.count in self._later:
            self._later.pop(self.count)()

    def after(self, points: int, act: Callable[[], None]) -> None:
        self._later[self.count + points] = act

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.pass_one()


class Way(Course):
    """What happens at a point, and how the scenario may end then."""

    #: Exceptions with which it may end.
    errors: tuple[type[BaseException], ...] = ()

    def __init__(self, at: int | None) -> None:
        self.points = Points(at, self.act, self.may_act)
        self.scope = trio.CancelScope()

    def act(self) -> None:
        raise NotImplementedError

    def may_act(self) -> bool:
        """Whether there is anything to cut off just now."""
        return True

    async def run(self, body: Callable[[Course], Awaitable[None]]) -> None:
        """The scenario, with what is around it."""
        with self.points.counted(), self.scope:
            await body(self)

    def note_end(self, leaves: list[BaseException]) -> None:
        """It has ended with these."""

    def has_cut_off(self) -> bool:
        """Whether anything was."""
        return self.scope.cancelled_caught


class Whole(Way):
    """The scenario is cancelled."""

    errors: tuple[type[BaseException], ...] = (*CONSEQUENCES, trio.Cancelled)

    def act(self) -> None:
        self.scope.cancel()


class Deadline(Whole):
    """Its time is over."""

    def act(self) -> None:
        self.scope.deadline = trio.current_time()


class Shielded(Way):
    """The same, but that it is shielded, for a little while yet."""

    errors = (*CONSEQUENCES, trio.Cancelled)

    def __init__(self, at: int | None) -> None:
        super().__init__(at)
        self._shield = trio.CancelScope(shield=True)

    def act(self) -> None:
        self.scope.cancel()
        self.points.after(SHIELDED_POINTS, self._lower)

    def _lower(self) -> None:
        self._shield.shield = False

    async def run(self, body: Callable[[Course], Awaitable[None]]) -> None:
        async def shielded(course: Course) -> None:
            with self._shield:
                await body(course)

        await super().run(shielded)


class Each(Way):
    """All operations are cancelled that can be called anew, and are."""

    def __init__(self, at: int | None) -> None:
        super().__init__(at)
        self.calls: dict[trio.lowlevel.Task, trio.CancelScope] = {}
        self.cut_off = 0

    def chosen(self) -> list[trio.CancelScope]:
        return list(self.calls.values())

    def act(self) -> None:
        for scope in self.chosen():
            scope.cancel()

    def may_act(self) -> bool:
        return bool(self.calls)

    async def again(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        task = trio.lowlevel.current_task()
        while True:
            with trio.CancelScope() as self.calls[task]:
                try:
                    return await fn(*args)
                finally:
                    del self.calls[task]
            self.cut_off += 1

    def has_cut_off(self) -> bool:
        return self.cut_off > 0


class One(Each):
    """One of them is."""

    def chosen(self) -> list[trio.CancelScope]:
        return super().chosen()[:1]


class Interrupt(Way):
    """A KeyboardInterrupt comes."""

    errors = (*CONSEQUENCES, KeyboardInterrupt)

    def __init__(self, at: int | None) -> None:
        super().__init__(at)
        self._leaves: list[BaseException] = []

    def act(self) -> None:
        signal.raise_signal(signal.SIGINT)

    def note_end(self, leaves: list[BaseException]) -> None:
        self._leaves = leaves

    def has_cut_off(self) -> bool:
        return any(isinstance(leaf, KeyboardInterrupt) for leaf in self._leaves)


class Server(Way):
    """The task is cancelled in which a server serves."""

    errors = CONSEQUENCES

    def __init__(self, at: int | None) -> None:
        super().__init__(at)
        self.served: list[trio.CancelScope] = []
        self.cut_off = 0

    def act(self) -> None:
        for scope in self.served:
            scope.cancel()

    def may_act(self) -> bool:
        return bool(self.served)

    async def serve(
        self, server: gain.Server, address: str, *, task_status: trio.TaskStatus[None]
    ) -> None:
        began = False

        class Status:
            def started(self) -> None:
                nonlocal began
                began = True
                task_status.started()

        with trio.CancelScope() as scope:
            self.served.append(scope)
            await super().serve(server, address, task_status=Status())
        self.cut_off += scope.cancelled_caught
        if not began:
            task_status.started()  # its client sees that there is none

    def has_cut_off(self) -> bool:
        return self.cut_off > 0


WAYS: dict[str, type[Way]] = {
    "whole": Whole,
    "deadline": Deadline,
    "shielded": Shielded,
    "each": Each,
    "one": One,
    "interrupt": Interrupt,
    "server": Server,
}


# ---- all points of a scenario --------------------------------------------------------------


def run(backend: str, scenario: Scenario, make: type[Way], at: int | None) -> Way:
    """Run it with something at a point; None: at no point."""
    way = make(at)
    threads = gain_tools.busy_threads()
    errors = tuple(set(way.errors) - set(CONSEQUENCES)) if scenario.plain else way.errors
    with harness.no_new_fds(collecting=not scenario.plain):
        try:
            scenarios.run(backend, scenario, lambda: way.run(scenario.body), [way.points])
        except BaseException as exc:
            found = leaves(exc)
            if at is None or not all(isinstance(leaf, errors) for leaf in found):
                raise
            way.note_end(found)
    gain_tools.wait_until(lambda: gain_tools.busy_threads() <= threads, "no thread is left")
    return way


def everywhere(backend: str, scenario: Scenario, way: str, most: int | None = None) -> float:
    """At which part of the points something was cut off.

    With *most* only so many are tried, evenly of those at which there is something to cut off;
    and others only as long as nothing was.
    """
    make = WAYS[way]
    points = run(backend, scenario, make, None).points
    assert points.count > 10
    # The order of tasks is trio's lot, so a run may take fewer points than the first.
    first = list(range(1, points.count + 1))
    if most is not None:
        first = [points.promising[at - 1] for at in evenly(len(points.promising), most)]
    cut_off = sum(run(backend, scenario, make, at).has_cut_off() for at in first)
    if cut_off:
        return cut_off / len(first)
    others = [at for at in range(1, points.count + 1) if at not in first]
    return any(run(backend, scenario, make, at).has_cut_off() for at in others) / points.count
