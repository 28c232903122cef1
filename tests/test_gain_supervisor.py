"""One task that runs the workers: how it ends, whichever way it ends.

The workers here are scripted, so that orders come about which real ones rarely give; the
threads, their rings and their trio runs are real.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import outcome
import pytest
import trio
from marks import needs_ring

from uring_trio.gain import _supervisor
from uring_trio.gain._config import Config
from uring_trio.gain._errors import GainError
from uring_trio.gain._supervisor import Supervisor, error_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    needs_ring,
    pytest.mark.differential,
    pytest.mark.ring_only,
]

BOUND_S = 5.0


class Boom(Exception):
    """What tests raise on purpose."""


class ScriptedWorker:
    """Does what the supervisor relies on, and notes what it was told."""

    def __init__(self, index: int = 0, *, drains: bool = True) -> None:
        self.index = index
        self.active = 0
        self.thread: int | None = None
        self.told: list[Any] = []
        self.listening: list[Any] = []
        self.fails: BaseException | None = None
        self.on_run: Callable[[], None] = lambda: None
        self.on_listen: Callable[[], None] = lambda: None
        self._drains = drains

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
            if not self._over.is_set():
                self.told.append("cancelled")
        if self.fails is not None:
            raise self.fails

    def listen(self, listener: Any, assign: Any) -> None:
        assert threading.get_ident() == self.thread
        self.on_listen()
        self.listening.append(listener)

    def begin_shutdown(self, drain_timeout: float) -> None:
        assert threading.get_ident() == self.thread
        self.told.append("begin_shutdown")
        self.timeout = drain_timeout
        if self._drains:
            self._over.set()

    def abort(self) -> None:
        assert threading.get_ident() == self.thread
        self.told.append("abort")
        self._over.set()

    def end(self, error: BaseException | None = None) -> None:
        self.fails = error
        self._over.set()

    def post(self, fn: Callable[..., None], *args: Any) -> bool:
        try:
            self._token.run_sync_soon(fn, *args)
        except trio.RunFinishedError:
            return False
        return True


class Site:
    """The steps of a start, each of which a test may replace."""

    def __init__(self, workers: list[ScriptedWorker]) -> None:
        self.steps: list[str] = []
        self.unheard: list[list[Any]] = [[f"listener {each.index}"] for each in workers]
        self.running = trio.Event()
        self.on_start_thread: int | None = None

    async def bind(self) -> None:
        self.steps.append("bind")

    def bound(self) -> bool:
        self.steps.append("bound")
        return True

    async def on_start(self) -> None:
        self.steps.append("on_start")
        self.on_start_thread = threading.get_ident()

    def listeners(self) -> list[list[Any]]:
        return self.unheard

    def assign(self) -> None:
        return None

    def started(self) -> None:
        self.steps.append("started")
        self.running.set()


class Running:
    """A supervisor in a task of its own."""

    def __init__(self, workers: list[ScriptedWorker], *, inline: bool = False) -> None:
        self.workers = workers
        self.site = Site(workers)
        config = Config(workers=len(workers))
        self.supervisor = Supervisor(workers, config, inline=inline)  # type: ignore[arg-type]
        self.scope = trio.CancelScope()

    async def until_end(self) -> None:
        """Run to the end; raises what the supervisor raises."""
        with trio.fail_after(BOUND_S), self.scope:
            await self.supervisor.run(self.site)

    async def until_end_with(self, actor: Callable[[], Any]) -> None:
        """The same, while ``actor`` runs once all listen."""

        async def act() -> None:
            await self.site.running.wait()
            await trio.lowlevel.checkpoint()
            actor()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            result = await outcome.acapture(self.until_end)
            nursery.cancel_scope.cancel()
        result.unwrap()

    def told(self) -> list[list[str]]:
        return [each.told for each in self.workers]


def scripted(count: int = 2, **options: Any) -> list[ScriptedWorker]:
    return [ScriptedWorker(index, **options) for index in range(count)]


async def test_steps_of_a_start_and_a_stop_in_their_order() -> None:
    running = Running(scripted())
    site = running.site
    await running.until_end_with(lambda: running.supervisor.request_shutdown(3.0))
    assert site.steps == ["bind", "bound", "on_start", "started"]
    assert running.told() == [["begin_shutdown"], ["begin_shutdown"]]
    assert [each.listening for each in running.workers] == [["listener 0"], ["listener 1"]]
    assert all(2 < each.timeout <= 3 for each in running.workers)
    assert site.on_start_thread == running.workers[0].thread


async def test_threads_are_the_workers_own_and_keep_no_program() -> None:
    workers = scripted()
    daemons: list[bool] = []
    for each in workers:
        each.on_run = lambda: daemons.append(threading.current_thread().daemon)
    running = Running(workers)
    await running.until_end_with(lambda: running.supervisor.request_shutdown(0))
    assert daemons == [True, True]
    assert len({threading.get_ident(), *(each.thread for each in workers)}) == 3


async def test_inline_worker_runs_in_the_callers_thread() -> None:
    running = Running(scripted(1), inline=True)
    await running.until_end_with(lambda: running.supervisor.request_shutdown(1))
    assert running.workers[0].thread == threading.get_ident()
    assert running.told() == [["begin_shutdown"]]


@pytest.mark.parametrize("inline", [True, False])
async def test_cancelled_supervisor_aborts_without_a_drain(inline: bool) -> None:
    running = Running(scripted(1 if inline else 2), inline=inline)
    await running.until_end_with(running.scope.cancel)
    assert running.scope.cancelled_caught
    word = "cancelled" if inline else "abort"
    assert all(each == [word] for each in running.told())


async def test_what_has_not_drained_at_the_deadline_is_aborted() -> None:
    running = Running([ScriptedWorker(0, drains=False), ScriptedWorker(1)])
    await running.until_end_with(lambda: running.supervisor.request_shutdown(0.05))
    assert running.told() == [["begin_shutdown", "abort"], ["begin_shutdown"]]


async def test_abort_cuts_a_drain_short() -> None:
    running = Running(scripted(drains=False))

    def stop_twice() -> None:
        running.supervisor.request_shutdown(60)
        running.supervisor.request_abort()

    await running.until_end_with(stop_twice)
    assert all(each[-1] == "abort" for each in running.told())


async def test_later_stop_does_not_put_the_deadline_off() -> None:
    running = Running(scripted(drains=False))

    def stop_twice() -> None:
        running.supervisor.request_shutdown(0.05)
        running.supervisor.request_shutdown(60)

    await running.until_end_with(stop_twice)


@pytest.mark.parametrize("error", [Boom("2"), KeyboardInterrupt(), SystemExit(3)])
async def test_error_of_a_worker_stops_all_and_is_raised(error: BaseException) -> None:
    running = Running(scripted(3))
    with pytest.raises(type(error)) as caught:
        await running.until_end_with(lambda: running.workers[2].post(running.workers[2].end, error))
    assert caught.value is error
    assert running.told() == [["abort"], ["abort"], []]


async def test_error_of_the_inline_worker_is_raised_as_it_is() -> None:
    running = Running(scripted(1), inline=True)
    with pytest.raises(Boom):
        await running.until_end_with(lambda: running.workers[0].end(Boom()))


async def test_error_during_a_drain_stops_the_others_and_is_raised() -> None:
    workers = scripted(drains=False)
    running = Running(workers)

    def stop_and_fail() -> None:
        running.supervisor.request_shutdown(60)
        workers[1].post(workers[1].end, Boom())

    with pytest.raises(Boom):
        await running.until_end_with(stop_and_fail)
    assert workers[0].told[-1] == "abort"


async def test_second_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    workers = scripted()
    workers[0].fails = Boom("second")  # raised when it is aborted
    running = Running(workers)
    with pytest.raises(Boom, match="first"):
        await running.until_end_with(lambda: workers[1].post(workers[1].end, Boom("first")))
    assert "another failure" in caplog.text
    assert "second" in caplog.text


async def test_worker_that_ends_unasked_is_an_error() -> None:
    running = Running(scripted())
    with pytest.raises(GainError, match="worker 1 ended"):
        await running.until_end_with(lambda: running.workers[1].post(running.workers[1].end))


async def test_error_of_on_start_is_raised_and_nothing_is_listened_to() -> None:
    running = Running(scripted())

    async def on_start() -> None:
        raise Boom

    running.site.on_start = on_start  # type: ignore[method-assign]
    with pytest.raises(Boom):
        await running.until_end()
    assert running.site.steps == ["bind", "bound"]
    assert [each.listening for each in running.workers] == [[], []]
    assert running.told() == [["abort"], ["abort"]]


async def test_stop_inside_on_start_ends_before_anything_is_listened_to() -> None:
    running = Running(scripted())

    async def on_start() -> None:
        running.supervisor.request_shutdown(1)

    running.site.on_start = on_start  # type: ignore[method-assign]
    await running.until_end()
    assert [each.listening for each in running.workers] == [[], []]


async def test_on_start_has_until_the_deadline_of_a_stop() -> None:
    running = Running(scripted())

    async def on_start() -> None:
        running.supervisor.request_shutdown(0.05)
        await trio.sleep_forever()

    running.site.on_start = on_start  # type: ignore[method-assign]
    await running.until_end()
    assert running.told()[0][0] == "begin_shutdown"


async def test_stop_during_bind_ends_it_at_once() -> None:
    running = Running(scripted())

    async def bind() -> None:
        running.supervisor.request_shutdown(60)
        await trio.sleep_forever()

    running.site.bind = bind  # type: ignore[method-assign]
    await running.until_end()
    assert running.site.steps == []
    assert running.workers[0].thread is None


async def test_error_of_listen_is_raised() -> None:
    running = Running(scripted())

    def refuse() -> None:
        raise OSError("no")

    running.workers[1].on_listen = refuse
    with pytest.raises(OSError, match="no"):
        await running.until_end()
    assert "started" not in running.site.steps
    assert running.site.unheard[1] == ["listener 1"]  # the server's still, to be closed


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("order", ["others are ready", "others are not"])
async def test_error_before_a_worker_is_ready_ends_the_others(failing: int, order: str) -> None:
    """At once, or as soon as they are ready to be told."""
    running = Running(scripted(3))
    others = [each for each in running.supervisor._workers if each.worker.index != failing]

    def refuse() -> None:
        if order == "others are ready":
            wait_for(lambda: all(each.ready for each in others))
        raise Boom

    for each in running.workers:
        if each.index == failing:
            each.on_run = refuse
        elif order == "others are not":
            each.on_run = lambda: wait_for(lambda: all(other.aborted for other in others))
    with pytest.raises(Boom):
        await running.until_end()
    told = running.told()
    assert told.pop(failing) == []
    assert told == [["abort"], ["abort"]]
    assert running.site.steps == ["bind"]  # nobody was let in
    assert all(each.ended for each in others)


async def test_thread_inside_a_callback_is_left_behind_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_supervisor, "LEAVE_BEHIND_S", 0.1)
    running = Running(scripted())
    stuck, other = running.workers
    release = threading.Event()

    def stuck_in_a_callback() -> None:
        release.wait(BOUND_S)

    def stop_while_one_is_stuck() -> None:
        stuck.post(stuck_in_a_callback)
        running.supervisor.request_shutdown(0.1)

    running.site.unheard = [[], []]
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        await running.until_end_with(stop_while_one_is_stuck)
    assert 0.2 <= time.monotonic() - begin < 2
    assert "Worker 0 is left behind" in caplog.text
    assert "Worker 1" not in caplog.text
    assert other.told == ["begin_shutdown"]
    assert not release.is_set()
    release.set()
    for thread in threading.enumerate():
        if thread.ident == stuck.thread:
            thread.join(BOUND_S)
            assert not thread.is_alive()
    assert "abort" in stuck.told  # what it was told meanwhile ends it, once it looks


async def test_worker_that_still_closes_connections_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_supervisor, "LEAVE_BEHIND_S", 0.1)
    running = Running(scripted())
    slow = running.workers[0]
    slow.active = 8

    def close_slowly() -> None:
        while slow.active:
            time.sleep(0.05)
            slow.active -= 1

    def stop() -> None:
        slow.post(close_slowly)
        running.supervisor.request_shutdown(0)

    await running.until_end_with(stop)
    assert slow.active == 0
    assert "left behind" not in caplog.text


def test_request_after_the_end_is_nothing() -> None:
    supervisors: list[Supervisor] = []

    async def main() -> None:
        running = Running(scripted())
        supervisors.append(running.supervisor)
        await running.until_end_with(running.supervisor.request_abort)

    trio.run(main)
    supervisors[0].request_shutdown(1)
    supervisors[0].request_abort()


def test_error_of_a_result_is_without_groups_and_cancellations() -> None:
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

    boom = Boom()
    assert error_of(outcome.Value(None)) is None
    assert error_of(trio.run(cancelled)) is None
    assert error_of(outcome.Error(boom)) is boom
    assert error_of(outcome.capture(trio.run, group, boom)) is boom
    both = error_of(outcome.capture(trio.run, group, boom, KeyboardInterrupt()))
    assert both is not None
    assert {type(error) for error in both.exceptions} == {Boom, KeyboardInterrupt}  # type: ignore[attr-defined]
