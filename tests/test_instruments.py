"""Instruments: what they may do between our wakes, and that a run keeps them as trio does.

``task_scheduled`` runs between the wakes of a closing, or of `find_busy`, and may call abort
functions of tasks that are about to be woken as well. Each must be woken once.

And for its time a run on the ring has a collection of instruments of ours (`_instruments`).
Whatever is done to it comes out as it does on stock, and trio's is there again at the end.
"""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from guest_tools import Host
from trio.testing import MockClock, wait_all_tasks_blocked

from uring_trio import _instruments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOOKS = (
    *("before_run", "after_run", "task_spawned", "task_scheduled", "before_task_step"),
    *("after_task_step", "task_exited", "before_io_wait", "after_io_wait"),
)
# Older releases of trio have a dict, and keep it.
FLAT = harness.FAST_WAYS and issubclass(trio._core._run.Instruments, UserDict)  # type: ignore[attr-defined]


class Canceller(trio.abc.Instrument):
    """Cancels all scopes as soon as a task is scheduled, while it is active."""

    def __init__(self) -> None:
        self.scopes: list[trio.CancelScope] = []
        self.active = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if self.active:
            for scope in self.scopes:
                scope.cancel()

    async def sleeper(
        self, outcomes: list[str], fn: Callable[..., Awaitable[Any]], *args: Any
    ) -> None:
        with trio.CancelScope() as scope:
            self.scopes.append(scope)
            try:
                await fn(*args)
            except (trio.ClosedResourceError, trio.BusyResourceError, OSError) as exc:
                outcomes.append(type(exc).__name__)
        if scope.cancelled_caught:
            outcomes.append("cancelled")


def no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    # trio logs what an instrument raises, and switches it off.
    assert caplog.records == []


def test_notify_closing_with_a_reader_and_a_writer(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    canceller = Canceller()
    outcomes: list[str] = []

    async def main() -> None:
        with harness.nonblocking_pair() as (a, _):
            harness.fill(a)
            async with trio.open_nursery() as nursery:
                for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
                    nursery.start_soon(canceller.sleeper, outcomes, wait, a)
                await wait_all_tasks_blocked()
                canceller.active = True
                trio.lowlevel.notify_closing(a)
                canceller.active = False

    harness.run(backend, main, instruments=[canceller])
    assert len(outcomes) == 2
    assert "ClosedResourceError" in outcomes
    no_complaint(caplog)


def test_close_in_the_tick_in_which_operations_start(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    canceller = Canceller()
    outcomes: list[str] = []

    async def main() -> None:
        a, b = trio.socket.socketpair()

        async def close() -> None:
            canceller.active = True
            a.close()
            canceller.active = False

        with b:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(canceller.sleeper, outcomes, a.recv, 10)
                nursery.start_soon(close)

    harness.run(backend, main, instruments=[canceller])
    assert len(outcomes) == 3
    no_complaint(caplog)


def test_tasks_that_are_found_busy(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    canceller = Canceller()
    outcomes: list[str] = []

    async def main() -> None:
        a, b = trio.socket.socketpair()
        with a, b:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(canceller.sleeper, outcomes, a.recv, 10)
                await trio.lowlevel.checkpoint()
                canceller.active = True
                await trio.sleep(0.01)
                canceller.active = False

    harness.run(backend, main, instruments=[canceller])
    assert len(outcomes) == 4
    no_complaint(caplog)


# ---- the collection ---------------------------------------------------------------------------


def collection() -> Any:
    """That of the current run."""
    return trio.lowlevel.current_task()._runner.instruments


class Steps(trio.abc.Instrument):
    """Writes its name down before each step of one task."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self._name = name
        self._seen = seen
        self.task: object = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self._seen.append(self._name)


def made_to_raise(hook: str) -> trio.abc.Instrument:
    """An instrument of which *hook* raises; it has one more, which does nothing."""

    def fail(self: object, *args: object) -> None:
        raise ValueError(hook)

    def pass_by(self: object, *args: object) -> None:
        pass

    other = "task_exited" if hook != "task_exited" else "task_spawned"
    methods = {hook: fail, other: pass_by}
    made: trio.abc.Instrument = type("Raising", (trio.abc.Instrument,), methods)()
    return made


class Counter(trio.abc.Instrument):
    """How often each hook was called."""

    def __init__(self) -> None:
        self.calls = dict.fromkeys(HOOKS, 0)


for _hook in HOOKS:

    def _count(self: Counter, *args: object, hook: str = _hook) -> None:
        self.calls[hook] += 1

    setattr(Counter, _hook, _count)


def test_they_are_called_in_the_order_in_which_they_were_added(backend: str) -> None:
    seen: list[str] = []
    a, b, c = (Steps(name, seen) for name in "abc")

    async def step() -> str:
        seen.clear()
        await trio.lowlevel.checkpoint()
        return "".join(seen)

    async def main() -> None:
        for each in (a, b, c):
            each.task = trio.lowlevel.current_task()
        assert await step() == "ab"
        trio.lowlevel.add_instrument(c)
        assert await step() == "abc"
        trio.lowlevel.add_instrument(b)  # it is there: nothing changes
        assert await step() == "abc"
        trio.lowlevel.remove_instrument(a)
        assert await step() == "bc"
        trio.lowlevel.add_instrument(a)
        assert await step() == "bca"
        for each in (a, b, c):
            trio.lowlevel.remove_instrument(each)
        assert await step() == ""
        with pytest.raises(KeyError):
            trio.lowlevel.remove_instrument(a)
        trio.lowlevel.add_instrument(c)
        assert await step() == "c"

    harness.run(backend, main, instruments=[a, b])


@pytest.mark.parametrize(
    ("hook", "added"),
    [(hook, "before the run") for hook in HOOKS] + [(hook, "in it") for hook in HOOKS[1:]],
)
def test_one_that_raises_is_removed_and_the_others_go_on(
    backend: str, caplog: pytest.LogCaptureFixture, hook: str, added: str
) -> None:
    raising, counter = made_to_raise(hook), Counter()

    async def main() -> None:
        if added == "in it":
            trio.lowlevel.add_instrument(raising)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0.001)
            await trio.sleep(0.001)
        if hook != "after_run":
            with pytest.raises(KeyError):
                trio.lowlevel.remove_instrument(raising)

    instruments = [raising, counter] if added == "before the run" else [counter]
    harness.run(backend, main, instruments=instruments)
    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == [hook]
    assert min(counter.calls.values()) > 0


def test_each_hook_is_called_as_often_as_on_stock() -> None:
    def calls(backend: str) -> dict[str, int]:
        counter = Counter()

        async def main() -> None:
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.lowlevel.checkpoint)
                await trio.sleep(1)

        harness.run_raw(backend, main, instruments=[counter], clock=MockClock(autojump_threshold=0))
        # trio's own wakeup, and the waits for it, are not the same on both.
        return {name: counter.calls[name] for name in HOOKS if "io_wait" not in name}

    on_stock = calls(harness.EPOLL)
    assert min(on_stock.values()) > 0
    assert calls(harness.RING) == on_stock


def test_one_may_remove_and_add_others_while_it_is_called(backend: str) -> None:
    seen: list[str] = []

    class Exchanging(Steps):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            super().before_task_step(task)
            if task is self.task:
                trio.lowlevel.remove_instrument(self)
                trio.lowlevel.add_instrument(late)

    first, late = Exchanging("first", seen), Steps("late", seen)

    async def main() -> None:
        first.task = late.task = trio.lowlevel.current_task()
        await trio.lowlevel.checkpoint()
        assert seen == ["first"]  # the call was to those who were there when it began
        await trio.lowlevel.checkpoint()
        assert seen == ["first", "late"]

    harness.run(backend, main, instruments=[first])


def test_one_that_cannot_be_added_leaves_nothing_behind(backend: str) -> None:
    class Broken(Counter):
        @property
        def zzz(self) -> None:
            raise ValueError("no")

    async def main() -> None:
        before = set(collection())
        with pytest.MonkeyPatch.context() as patch:
            # `dir` is sorted: all hooks are noted by the time that this is looked at.
            patch.setattr(trio.abc.Instrument, "zzz", None, raising=False)
            with pytest.raises(ValueError, match="no"):
                trio.lowlevel.add_instrument(Broken())
        assert set(collection()) == before == {"_all"}
        assert not any(hook in collection() for hook in HOOKS)

    harness.run(backend, main)


def test_it_is_a_mapping_like_trios(backend: str) -> None:
    counter = Counter()
    names = {"_all", *HOOKS}

    async def main() -> None:
        found = collection()
        trio.lowlevel.add_instrument(counter)
        assert set(found) == set(found.keys()) == names
        assert len(found) == len(names)
        assert found["after_run"] == {counter: None} == found.get("after_run")
        assert found == {name: {counter: None} for name in names} == dict(found)
        assert "after_run" in found
        del found["after_run"]
        assert "after_run" not in found
        found["after_run"] = {counter: None}
        assert "after_run" in found
        assert found.pop("after_run") == {counter: None}
        assert "after_run" not in found
        trio.lowlevel.remove_instrument(counter)
        assert set(found) == {"_all"}
        assert not any(hook in found for hook in HOOKS)
        assert isinstance(found, trio._core._run.Instruments)  # type: ignore[attr-defined]

    harness.run(backend, main)


# ---- of the ring alone ------------------------------------------------------------------------


@pytest.mark.ring_only
@pytest.mark.fast_ways
@pytest.mark.skipif(not FLAT, reason="this trio has a dict")
def test_trios_is_back_at_the_end_with_all_that_was_added(backend: str) -> None:
    trios, runners, counter = [], [], Counter()

    class Looks(trio.abc.Instrument):
        def before_run(self) -> None:
            runners.append(trio._core._run.GLOBAL_RUN_CONTEXT.runner)
            trios.append(runners[0].instruments)

        def after_run(self) -> None:
            trios.append(runners[0].instruments)

    async def main() -> None:
        assert type(collection()) is _instruments.FlatInstruments
        trio.lowlevel.add_instrument(counter)
        assert counter in trios[0]["_all"]  # who still holds it sees the same

    harness.run(backend, main, instruments=[Looks()])
    assert trios[0] is trios[1] is runners[0].instruments
    assert type(trios[0]) is trio._core._run.Instruments  # type: ignore[attr-defined]
    assert counter.calls["after_run"] == 1


@pytest.mark.ring_only
@pytest.mark.fast_ways
@pytest.mark.skipif(not FLAT, reason="this trio has a dict")
def test_guest_runs_have_it_too(backend: str) -> None:
    runners, counter = [], Counter()

    async def main() -> None:
        runners.append(trio.lowlevel.current_task()._runner)
        assert type(collection()) is _instruments.FlatInstruments
        trio.lowlevel.add_instrument(counter)
        await trio.sleep(0.001)

    host = Host(backend)
    host.start(main)
    host.run_until(lambda: host.done)
    assert counter.calls["after_task_step"] > 0
    assert counter.calls["after_run"] == 1
    assert type(runners[0].instruments) is trio._core._run.Instruments  # type: ignore[attr-defined]


@pytest.mark.ring_only
def test_what_somebody_else_has_put_there_stays(backend: str) -> None:
    class Others(trio._core._run.Instruments):  # type: ignore[name-defined, misc]
        pass

    class Puts(trio.abc.Instrument):
        def before_run(self) -> None:
            trio._core._run.GLOBAL_RUN_CONTEXT.runner.instruments = Others([])

    async def main() -> None:
        assert type(collection()) is Others
        runners.append(trio.lowlevel.current_task()._runner)

    runners: list[Any] = []
    harness.run(backend, main, instruments=[Puts()])
    assert type(runners[0].instruments) is Others


@pytest.mark.ring_only
@pytest.mark.fast_ways
@pytest.mark.skipif(not FLAT, reason="this trio has a dict")
def test_what_somebody_puts_there_in_the_run_stays(backend: str) -> None:
    async def main() -> Any:
        runner = trio.lowlevel.current_task()._runner
        runner.instruments = trio._core._run.Instruments([])  # type: ignore[attr-defined]
        return runner, runner.instruments

    runner, put = harness.run(backend, main)
    assert runner.instruments is put
