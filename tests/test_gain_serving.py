"""One start of a server: its steps, and how it ends, whichever way it ends.

The workers here are scripted, so that orders come about which real ones rarely give; the
threads, their rings and their trio runs are real.
"""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import outcome
import pytest
import trio
from gain_tools import BOUND_S, Boom
from marks import ON_RING

from uring_trio.gain import _listen, _serving
from uring_trio.gain._address import parse_all
from uring_trio.gain._config import Config
from uring_trio.gain._errors import GainError, alone
from uring_trio.gain._serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = ON_RING


class ScriptedWorker:
    """Does what a start relies on, and notes what it was told."""

    def __init__(self, index: int = 0, *, drains: bool = True) -> None:
        self.index = index
        self.active = 0
        self.ended = False
        self.elsewhere = SimpleNamespace(closing=0)
        self.thread: int | None = None
        self.told: list[Any] = []
        self.listening: list[Any] = []
        self.fails: BaseException | None = None
        self.on_run: Callable[[], None] = lambda: None
        self.on_listen: Callable[[], None] = lambda: None
        self.drains = drains

    async def run(self, task_status: Any) -> None:
        self.thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        self.on_run()
        try:
            async with trio.open_nursery() as self.nursery:
                task_status.started()
                await self._over.wait()
                self.nursery.cancel_scope.cancel()
        finally:
            self.ended = True
            if not self._over.is_set():
                self.told.append("cancelled")
        if self.fails is not None:
            raise self.fails

    def start_soon(self, async_fn: Any, *args: Any) -> None:
        assert threading.get_ident() == self.thread
        self.nursery.start_soon(async_fn, *args)

    def meet(self, workers: Any) -> None:
        assert self in workers

    def listen(self, listener: Any, assign: Any) -> None:
        assert threading.get_ident() == self.thread
        self.on_listen()
        self.listening.append(listener)

    def begin_shutdown(self, drain_timeout: float) -> None:
        assert threading.get_ident() == self.thread
        self.told.append("begin_shutdown")
        self.timeout = drain_timeout
        if self.drains:
            self._over.set()

    def abort(self) -> None:
        assert threading.get_ident() == self.thread
        self.told.append("abort")
        self._over.set()

    def end(self, error: BaseException | None = None) -> None:
        self.fails = error
        self._over.set()

    def post(self, fn: Callable[..., object], *args: Any) -> bool:
        try:
            self._token.run_sync_soon(fn, *args)
        except trio.RunFinishedError:
            return False
        return True


class ScriptedListener:
    """What is bound for a worker; a test may have it refuse to be listened to."""

    def __init__(self, name: str) -> None:
        self.address = name
        self.closed = False
        self.refused = False

    def close(self) -> None:
        self.closed = True

    def refuse_clients(self) -> None:
        self.refused = True


class Running:
    """One start with scripted workers, in a task of its own; a test may replace its steps."""

    def __init__(self, workers: list[ScriptedWorker]) -> None:
        self.workers = workers
        self.steps: list[str] = []
        self.listeners = [[ScriptedListener(f"listener {each.index}")] for each in workers]
        self.running = trio.Event()
        self.on_start_thread: int | None = None
        self.on_bind: Callable[[], None] = lambda: None
        self.is_async = lambda name: True
        self.scope = trio.CancelScope()
        config = Config(workers=len(workers))
        specs = parse_all("localhost:0")  # a name, so that it is bound in a thread
        self.serving = Serving(self, self, config, specs)  # type: ignore[arg-type]

    def bind(self, _specs: Any, _config: Any, count: int) -> list[list[ScriptedListener]]:
        assert count == len(self.workers)
        self.steps.append("bind")
        self.on_bind()
        return self.listeners

    async def on_start(self, _server: Any) -> None:
        self.steps.append("on_start")
        self.on_start_thread = threading.get_ident()

    def started(self, server: Any) -> None:
        assert server is self
        self.steps.append("started")
        self.running.set()

    async def until_end(self) -> None:
        """Run to the end; raises what the start raises."""
        with trio.fail_after(BOUND_S), self.scope:
            await self.serving.run(self)

    async def until_end_with(self, actor: Callable[[], Any]) -> None:
        """The same, while ``actor`` runs once all listen."""

        async def act() -> None:
            await self.running.wait()
            await trio.lowlevel.checkpoint()
            actor()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            result = await outcome.acapture(self.until_end)
            nursery.cancel_scope.cancel()
        result.unwrap()

    def told(self) -> list[list[str]]:
        return [each.told for each in self.workers]

    def heard(self) -> list[list[str]]:
        """What each worker listens to."""
        return [[listener.address for listener in each.listening] for each in self.workers]


@pytest.fixture
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Running:
    """With two workers, or as ``with_workers`` says."""
    workers = scripted(*getattr(request, "param", (2,)))
    monkeypatch.setattr(_serving, "Worker", lambda index, *_: workers[index])
    found = Running(workers)
    monkeypatch.setattr(_listen, "bind", found.bind)
    return found


def with_workers(count: int, *, drains: bool = True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("running", [(count, drains)], indirect=True)


def scripted(count: int, drains: bool = True) -> list[ScriptedWorker]:
    return [ScriptedWorker(index, drains=drains) for index in range(count)]


async def test_steps_of_a_start_and_a_stop_in_their_order(running: Running) -> None:
    await running.until_end_with(lambda: running.serving.stop(3.0))
    assert running.steps == ["bind", "on_start", "started"]
    assert running.told() == [["begin_shutdown"], ["begin_shutdown"]]
    assert running.heard() == [["listener 0"], ["listener 1"]]
    assert all(2 < each.timeout <= 3 for each in running.workers)
    assert running.on_start_thread == running.workers[0].thread
    assert all(listener.closed for [listener] in running.listeners)


async def test_threads_are_the_workers_own_and_keep_no_program(running: Running) -> None:
    daemons: list[bool] = []
    for each in running.workers:
        each.on_run = lambda: daemons.append(threading.current_thread().daemon)
    await running.until_end_with(lambda: running.serving.stop(0))
    assert daemons == [True, True]
    assert len({threading.get_ident(), *(each.thread for each in running.workers)}) == 3


@with_workers(1)
async def test_inline_worker_runs_in_the_callers_thread(running: Running) -> None:
    await running.until_end_with(lambda: running.serving.stop(1))
    assert running.workers[0].thread == threading.get_ident()
    assert running.told() == [["begin_shutdown"]]


@pytest.mark.parametrize(
    ("running", "word"), [((1,), "cancelled"), ((2,), "abort")], indirect=["running"]
)
async def test_cancelled_start_aborts_without_a_drain(running: Running, word: str) -> None:
    await running.until_end_with(running.scope.cancel)
    assert running.scope.cancelled_caught
    assert all(each == [word] for each in running.told())


async def test_what_has_not_drained_at_the_deadline_is_aborted(running: Running) -> None:
    running.workers[0].drains = False
    await running.until_end_with(lambda: running.serving.stop(0.05))
    assert running.told() == [["begin_shutdown", "abort"], ["begin_shutdown"]]


@with_workers(2, drains=False)
async def test_abort_cuts_a_drain_short(running: Running) -> None:
    def stop_twice() -> None:
        running.serving.stop(60)
        running.serving.stop(0)

    await running.until_end_with(stop_twice)
    assert all("abort" in each for each in running.told())


@with_workers(2, drains=False)
async def test_later_stop_does_not_put_the_deadline_off(running: Running) -> None:
    def stop_twice() -> None:
        running.serving.stop(0.05)
        running.serving.stop(60)

    await running.until_end_with(stop_twice)


@with_workers(3)
@pytest.mark.parametrize("error", [Boom("2"), KeyboardInterrupt(), SystemExit(3)])
async def test_error_of_a_worker_stops_all_and_is_raised(
    running: Running, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        await running.until_end_with(lambda: running.workers[2].post(running.workers[2].end, error))
    assert caught.value is error
    assert running.told() == [["abort"], ["abort"], []]


@with_workers(1)
async def test_error_of_the_inline_worker_is_raised_as_it_is(running: Running) -> None:
    with pytest.raises(Boom):
        await running.until_end_with(lambda: running.workers[0].end(Boom()))


@with_workers(2, drains=False)
async def test_error_during_a_drain_stops_the_others_and_is_raised(running: Running) -> None:
    workers = running.workers

    def stop_and_fail() -> None:
        running.serving.stop(60)
        workers[1].post(workers[1].end, Boom())

    with pytest.raises(Boom):
        await running.until_end_with(stop_and_fail)
    assert workers[0].told[-1] == "abort"


@with_workers(3)
async def test_thread_that_cannot_be_had_stops_all_and_is_raised(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("worker 1"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        await running.until_end_with(lambda: None)


async def test_second_error_is_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    workers = running.workers
    workers[0].fails = Boom("second")  # raised when it is aborted
    with pytest.raises(Boom, match="first"):
        await running.until_end_with(lambda: workers[1].post(workers[1].end, Boom("first")))
    assert "another failure" in caplog.text
    assert "second" in caplog.text


async def test_error_beside_a_cancellation_is_raised(running: Running) -> None:
    def fail_and_cancel() -> None:
        running.serving._fail(Boom())
        running.scope.cancel()

    with pytest.raises(Boom):
        await running.until_end_with(fail_and_cancel)


async def test_worker_that_ends_unasked_is_an_error(running: Running) -> None:
    with pytest.raises(GainError, match="worker 1 ended"):
        await running.until_end_with(lambda: running.workers[1].post(running.workers[1].end))


async def test_error_of_bind_is_raised_before_a_worker_runs(running: Running) -> None:
    def refuse() -> None:
        raise OSError("no")

    running.on_bind = refuse
    with pytest.raises(OSError, match="no"):
        await running.until_end()
    assert [each.thread for each in running.workers] == [None, None]


async def test_error_of_on_start_is_raised_and_nothing_is_listened_to(running: Running) -> None:
    async def on_start(_server: Any) -> None:
        raise Boom

    running.serving._callbacks.on_start = on_start
    with pytest.raises(Boom):
        await running.until_end()
    assert running.steps == ["bind"]
    assert running.heard() == [[], []]
    assert running.told() == [["cancelled"], ["abort"]]  # it is raised in the first one's run
    assert all(listener.closed for [listener] in running.listeners)


async def test_stop_inside_on_start_ends_before_anything_is_listened_to(running: Running) -> None:
    async def on_start(_server: Any) -> None:
        running.serving.stop(1)

    running.serving._callbacks.on_start = on_start
    await running.until_end()
    assert running.heard() == [[], []]
    assert running.steps == ["bind", "started"]


async def test_on_start_has_until_the_deadline_of_a_stop(running: Running) -> None:
    async def on_start(_server: Any) -> None:
        running.serving.stop(0.05)
        await trio.sleep_forever()

    running.serving._callbacks.on_start = on_start
    begin = time.monotonic()
    await running.until_end()
    assert time.monotonic() - begin >= 0.05
    assert running.told() == [["abort"], ["abort"]]
    assert running.steps == ["bind", "started"]  # who waits for the start has a server


async def test_stop_during_bind_ends_it_at_once(running: Running) -> None:
    go_on = threading.Event()

    def stop_and_wait() -> None:
        running.serving.stop(60)
        go_on.wait(BOUND_S)

    running.on_bind = stop_and_wait
    await running.until_end()
    assert running.steps == ["bind"]
    assert running.workers[0].thread is None
    assert not running.listeners[0][0].closed
    go_on.set()
    await trio.to_thread.run_sync(
        wait_for, lambda: all(each.closed for [each] in running.listeners)
    )


@pytest.mark.parametrize("running", [(1,), (2,)], indirect=True)
async def test_stop_before_the_workers_are_ready_lets_nobody_in(running: Running) -> None:
    running.workers[0].on_run = lambda: running.serving.stop(60)
    await running.until_end()
    assert running.steps == ["bind"]
    assert all(listener.closed for [listener] in running.listeners)


async def test_stop_before_the_run_has_begun_does_nothing_else(running: Running) -> None:
    running.serving.stop(60)
    await running.until_end()
    assert running.steps == []


async def test_error_of_listen_is_raised(running: Running) -> None:
    def refuse() -> None:
        raise OSError("no")

    running.workers[1].on_listen = refuse
    with pytest.raises(OSError, match="no"):
        await running.until_end()
    assert "started" not in running.steps
    assert running.listeners[1][0].closed


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@with_workers(3)
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("order", ["others are ready", "others are not"])
async def test_error_before_a_worker_is_ready_ends_the_others(
    running: Running, failing: int, order: str
) -> None:
    """At once, or as soon as they are ready to be told."""
    serving: Any = running.serving
    others = [each for each in running.workers if each.index != failing]

    def refuse() -> None:
        if order == "others are ready":
            wait_for(lambda: all(serving._ready[each].is_set() for each in others))
        raise Boom

    for each in running.workers:
        if each.index == failing:
            each.on_run = refuse
        elif order == "others are not":
            each.on_run = lambda: wait_for(lambda: len(serving._aborted) == 2)
    with pytest.raises(Boom):
        await running.until_end()
    told = running.told()
    assert told.pop(failing) == []
    assert told == [["abort"], ["abort"]]
    assert running.steps == ["bind"]  # nobody was let in
    assert all(each.ended for each in others)


async def test_thread_inside_a_callback_is_left_behind_with_a_warning(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "LEAVE_BEHIND_S", 0.1)
    stuck, other = running.workers
    release = threading.Event()

    def stuck_in_a_callback() -> None:
        release.wait(BOUND_S)

    def stop_while_one_is_stuck() -> None:
        stuck.post(stuck_in_a_callback)
        running.serving.stop(0.1)

    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        await running.until_end_with(stop_while_one_is_stuck)
    assert 0.2 <= time.monotonic() - begin < 2
    assert "Worker 0 is left behind" in caplog.text
    assert "Worker 1" not in caplog.text
    assert other.told == ["begin_shutdown"]
    [[held], [free]] = running.listeners
    assert (held.refused, held.closed) == (True, False)  # it may be in use there
    assert (free.refused, free.closed) == (False, True)
    assert not release.is_set()
    release.set()
    for thread in threading.enumerate():
        if thread.ident == stuck.thread:
            thread.join(BOUND_S)
            assert not thread.is_alive()
    assert "abort" in stuck.told  # what it was told meanwhile ends it, once it looks


async def test_listener_of_a_thread_that_is_stuck_before_it_took_it_is_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serving, "LEAVE_BEHIND_S", 0.1)
    release = threading.Event()

    async def on_start(_server: Any) -> None:
        running.serving.stop(0)
        release.wait(BOUND_S)

    running.serving._callbacks.on_start = on_start
    await running.until_end()
    assert [each.index for each in running.serving._left_behind] == [0]
    assert all(listener.closed for [listener] in running.listeners)
    release.set()
    await trio.to_thread.run_sync(wait_for, lambda: running.workers[0].ended)
    assert running.heard() == [[], []]


async def test_error_of_a_worker_that_was_left_behind_is_logged(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "LEAVE_BEHIND_S", 0.1)
    release = threading.Event()
    stuck = running.workers[0]
    stuck.fails = Boom("too late")

    def stop_while_one_is_stuck() -> None:
        stuck.post(release.wait, BOUND_S)
        running.serving.stop(0)

    await running.until_end_with(stop_while_one_is_stuck)
    assert "too late" not in caplog.text
    release.set()
    await trio.to_thread.run_sync(wait_for, lambda: "worker 0 failed" in caplog.text)
    assert "too late" in caplog.text


async def test_on_close_that_blocks_its_thread_is_left_behind_once_its_time_is_over(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "LEAVE_BEHIND_S", 0.1)
    monkeypatch.setattr(_serving, "ON_CLOSE_S", 0.5)
    release = threading.Event()
    stuck = running.workers[0]
    stuck.elsewhere.closing = 1

    def stop_while_one_is_stuck() -> None:
        stuck.post(release.wait, BOUND_S)
        running.serving.stop(0)

    begin = time.monotonic()
    await running.until_end_with(stop_while_one_is_stuck)
    assert 0.6 <= time.monotonic() - begin < 2
    assert "Worker 0 is left behind" in caplog.text
    release.set()
    await trio.to_thread.run_sync(wait_for, lambda: stuck.ended)


async def test_worker_that_still_closes_connections_is_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "LEAVE_BEHIND_S", 0.1)
    slow = running.workers[0]
    slow.active = 8

    def close_slowly() -> None:
        while slow.active:
            time.sleep(0.05)
            slow.active -= 1

    def stop() -> None:
        slow.post(close_slowly)
        running.serving.stop(0)

    await running.until_end_with(stop)
    assert slow.active == 0
    assert "left behind" not in caplog.text


def test_stop_after_the_end_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Running] = []

    async def main() -> None:
        workers = scripted(2)
        monkeypatch.setattr(_serving, "Worker", lambda index, *_: workers[index])
        found.append(Running(workers))
        monkeypatch.setattr(_listen, "bind", found[0].bind)
        await found[0].until_end_with(lambda: found[0].serving.stop(0))

    trio.run(main)
    found[0].serving.stop(1)
    found[0].serving.stop(0)


def test_error_alone_is_without_groups_and_cancellations() -> None:
    async def cancelled() -> outcome.Outcome[None]:
        with trio.CancelScope() as scope:
            scope.cancel()
            result = await outcome.acapture(trio.sleep_forever)
        return result

    async def group(*errors: BaseException) -> None:
        async def fail(error: BaseException) -> None:
            raise error

        async with trio.open_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)

    def error_of(result: outcome.Outcome[None]) -> BaseException | None:
        assert isinstance(result, outcome.Error)
        return alone(result.error)

    boom = Boom()
    assert error_of(trio.run(cancelled)) is None
    assert error_of(outcome.Error(boom)) is boom
    assert error_of(outcome.capture(trio.run, group, boom)) is boom
    both = error_of(outcome.capture(trio.run, group, boom, KeyboardInterrupt()))
    assert both is not None
    assert {type(error) for error in both.exceptions} == {Boom, KeyboardInterrupt}  # type: ignore[attr-defined]
