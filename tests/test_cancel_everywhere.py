"""Cut off everywhere: each scenario is run once for each point at which something may be.

A point is a moment at which some operation is in another state than at the last one: before
each step of a task (others are queued then, submitted, or over and not heard of), and when
something has come and nobody was told of it yet. What happens at the nth point is a `Way`:

- the whole scenario is cancelled; so is one that is shielded, and loses its shield a little
  later;
- every operation is cancelled, or one of them, and is then called anew: the scenario must come
  to its end, with nothing lost and nothing done twice;
- a KeyboardInterrupt comes, which trio brings to the main task;
- the task in which a callback server runs is cancelled, and its clients are not.

Afterwards the books of the run must balance, and no descriptor or thread be left.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest
import scenarios
import trio
from marks import needs_ring
from scenarios import SCENARIOS, Course, Lost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from scenarios import Scenario

    from uring_trio import gain

# Points between the cancel of what is shielded and the end of its shield.
SHIELDED_POINTS = 5
# Of each way and scenario, where not all are tried: evenly, the first and the last among them.
SAMPLE = 8

# Those of which all points are tried, each time.
PLAIN = ("echo", "datagrams", "blocked senders", "passed descriptors")
# Servers start within so many.
STARTS = ("server tcp", "server async", "server threads", "server datagrams everywhere")
START_POINTS = 20

# What a task may find when another one of its scenario was cut off.
CONSEQUENCES = (Lost, trio.BrokenResourceError, ConnectionError)


class Points(trio.abc.Instrument):
    """Counts the points of a run, and does something at one."""

    def __init__(self, at: int | None, act: Callable[[], None]) -> None:
        self.count = 0
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
        self.points = Points(at, self.act)
        self.scope = trio.CancelScope()

    def act(self) -> None:
        raise NotImplementedError

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

    errors = (*CONSEQUENCES, trio.Cancelled)

    def act(self) -> None:
        self.scope.cancel()


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
            leaves = scenarios.leaves(exc)
            if at is None or not all(isinstance(leaf, errors) for leaf in leaves):
                raise
            way.note_end(leaves)
    gain_tools.wait_until(lambda: gain_tools.busy_threads() <= threads, "no thread is left")
    return way


def points(count: int, most: int | None) -> list[int]:
    """Of all at most so many, evenly, with the first and the last."""
    if most is None or count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(each * (count - 1) / (most - 1)) for each in range(most)})


def cut_off_everywhere(backend: str, name: str, way: str, most: int | None = None) -> float:
    """At which part of the points something was cut off."""
    scenario, make = SCENARIOS[name], WAYS[way]
    count = run(backend, scenario, make, None).points.count
    assert count > 10
    # The order of tasks is trio's lot, so a run may take fewer points than the first.
    tried = points(count, most)
    return sum(run(backend, scenario, make, at).has_cut_off() for at in tried) / len(tried)


def has_way(name: str, way: str) -> bool:
    """Whether there is anything to cut off: what TLS has begun cannot be called anew."""
    if way == "server":
        return "server" in name
    return way not in ("each", "one") or "tls" not in name


CASES = [
    (backend, name, way)
    for name, scenario in SCENARIOS.items()
    for way in WAYS
    if has_way(name, way)
    for backend in (harness.EPOLL, harness.RING)
    if backend == harness.RING or not scenario.ring_only
]


def cases(found: list[tuple[str, str, str]]) -> pytest.MarkDecorator:
    """Of a test that is run by each, on the ring where there is one."""
    return pytest.mark.parametrize(
        ("where", "name", "way"),
        [
            pytest.param(
                *case,
                id="-".join(case).replace(" ", "_"),
                marks=needs_ring if case[0] == harness.RING else (),
            )
            for case in found
        ],
    )


@cases([case for case in CASES if case[2] == "whole" and case[1] in PLAIN])
def test_cancelled_at_every_point(where: str, name: str, way: str) -> None:
    assert cut_off_everywhere(where, name, way) > 0.5


@cases(CASES)
def test_cut_off_at_some_points(where: str, name: str, way: str) -> None:
    cut_off_everywhere(where, name, way, SAMPLE)


@cases(
    [case for case in CASES if case[1] in STARTS and case[2] in ("whole", "server", "interrupt")]
)
def test_a_server_is_cut_off_at_every_point_of_its_start(where: str, name: str, way: str) -> None:
    made = [run(where, SCENARIOS[name], WAYS[way], at) for at in range(1, START_POINTS + 1)]
    assert sum(each.has_cut_off() for each in made) > START_POINTS / 2


@pytest.mark.long
@pytest.mark.timeout(600)
@cases(CASES)
def test_cut_off_at_every_point(where: str, name: str, way: str) -> None:
    assert cut_off_everywhere(where, name, way) > 0
