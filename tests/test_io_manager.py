"""What trio asks of an IO manager: timeouts, falsy and truthy, errors, life and death."""

from __future__ import annotations

import gc
import itertools
import os
import socket as stdlib_socket
import sys
import time
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from marks import needs_ring
from trio.testing import MockClock, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.differential

# epoll rounds its timeout up to 1 ms; the ring's clock and ours may differ by less.
CLOCK_ERROR_S = 0.001


class Recorder:
    """Looks over the shoulder of the current manager's ``get_events``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # (timeout, how long it took, whether something was reported)
        self.calls: list[tuple[float, float, bool]] = []
        manager_type = type(harness.io_manager())
        original = manager_type.get_events

        def get_events(manager: Any, timeout: float) -> Any:
            start = time.perf_counter()
            events = original(manager, timeout)
            self.calls.append((timeout, time.perf_counter() - start, bool(events)))
            return events

        monkeypatch.setattr(manager_type, "get_events", get_events)

    def assert_falsy_only_after_the_timeout(self) -> None:
        for timeout, elapsed, reported in self.calls:
            assert reported or elapsed >= timeout - CLOCK_ERROR_S, (timeout, elapsed)

    def blocking_calls(self) -> list[tuple[float, float, bool]]:
        return [call for call in self.calls if call[0] > 0]


@pytest.fixture
def pairs() -> Iterator[list[tuple[stdlib_socket.socket, stdlib_socket.socket]]]:
    """A chain of connected sockets."""
    made = [stdlib_socket.socketpair() for _ in range(20)]
    for pair in made:
        for sock in pair:
            sock.setblocking(False)
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


async def pass_along(source: stdlib_socket.socket, target: stdlib_socket.socket) -> None:
    await trio.lowlevel.wait_readable(source)
    target.send(source.recv(1))


async def test_expired_timeout_is_falsy(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    for _ in range(5):
        await trio.sleep(0.02)
    recorder.assert_falsy_only_after_the_timeout()
    assert any(not reported for _, _, reported in recorder.blocking_calls())


async def test_data_before_the_timeout_is_truthy(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    with harness.nonblocking_pair() as (a, b), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, b.send, b"x")  # type: ignore[arg-type]
            await trio.lowlevel.wait_readable(a)
    recorder.assert_falsy_only_after_the_timeout()
    assert any(reported and elapsed < 5 for _, elapsed, reported in recorder.blocking_calls())


async def test_cancelled_waits_do_not_end_a_timeout_early(monkeypatch: pytest.MonkeyPatch) -> None:
    # The manager's own bookkeeping (removed polls, late answers to cancels) may come
    # in the middle of a sleep. It must not look like an expired timeout.
    recorder = Recorder(monkeypatch)
    with harness.nonblocking_pair() as (a, _):
        for _ in range(20):
            with trio.move_on_after(0.001):
                await trio.lowlevel.wait_readable(a)
            await trio.sleep(0.005)
    recorder.assert_falsy_only_after_the_timeout()


async def test_cancelled_receives_do_not_end_a_timeout_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(monkeypatch)
    a, b = trio.socket.socketpair()
    with a, b:
        for _ in range(20):
            with trio.move_on_after(0.001):
                await a.recv(1)
            await trio.sleep(0.005)
    recorder.assert_falsy_only_after_the_timeout()


async def test_ready_data_is_seen_while_other_tasks_keep_the_loop_busy() -> None:
    # get_events(0) has to look for real: a poll that only peeks never sees the data.
    with harness.nonblocking_pair() as (a, b):
        seen = trio.Event()

        async def reader() -> None:
            await trio.lowlevel.wait_readable(a)
            seen.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            b.send(b"x")
            ticks = 0
            while not seen.is_set():
                await trio.lowlevel.checkpoint()
                ticks += 1
        assert ticks <= 5


async def test_wait_all_tasks_blocked_waits_for_data_that_is_ready(
    pairs: list[tuple[stdlib_socket.socket, stdlib_socket.socket]],
) -> None:
    async with trio.open_nursery() as nursery:
        for (_, source), (target, _) in itertools.pairwise(pairs):
            nursery.start_soon(pass_along, source, target)
        await wait_all_tasks_blocked()
        pairs[0][0].send(b"x")
        await wait_all_tasks_blocked()
        assert pairs[-1][1].recv(1) == b"x"


async def test_who_is_found_busy_is_not_the_end_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two begin in one tick: on the ring one waits, and the other is told so at the next look,
    # which no completion of the kernel's ends.
    recorder = Recorder(monkeypatch)
    a, b = trio.socket.socketpair()
    told: list[bool] = []

    async def receive() -> None:
        try:
            await a.recv(1)
        except trio.BusyResourceError:
            told.append(True)
            await b.send(b"x")

    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(receive)
    assert told == [True]
    recorder.assert_falsy_only_after_the_timeout()


@needs_ring
@pytest.mark.ring_only
async def test_who_is_busy_is_told_so_at_once_whatever_begins_in_the_same_batch() -> None:
    """Who stands behind a receive that is over has his turn then, and is not submitted yet."""
    slots = harness.io_manager().slots
    a, b = trio.socket.socketpair()
    c, d = trio.socket.socketpair()
    begun: list[int] = []
    told: list[int] = []

    async def receive() -> None:
        begun.append(slots.tick)
        try:
            await a.recv(1)
        except trio.BusyResourceError:
            told.append(slots.tick)
            nursery.cancel_scope.cancel()

    with a, b, c, d:
        await d.send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.recv, 1)
            nursery.start_soon(c.recv, 1)
            nursery.start_soon(receive)
            nursery.start_soon(receive)
    assert told == [begun[0] + 1]


async def test_wait_all_tasks_blocked_waits_for_receives_that_can_complete() -> None:
    pairs = [trio.socket.socketpair() for _ in range(20)]

    async def relay(source: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
        await target.send(await source.recv(10))

    async with trio.open_nursery() as nursery:
        for (_, source), (target, _) in itertools.pairwise(pairs):
            nursery.start_soon(relay, source, target)
        await wait_all_tasks_blocked()
        await pairs[0][0].send(b"x")
        await wait_all_tasks_blocked()
        assert pairs[-1][1].is_readable()
    for a, b in pairs:
        a.close()
        b.close()


def test_autojump_does_not_jump_over_ready_data(
    backend: str, pairs: list[tuple[stdlib_socket.socket, stdlib_socket.socket]]
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for (_, source), (target, _) in itertools.pairwise(pairs):
                nursery.start_soon(pass_along, source, target)
            pairs[0][0].send(b"x")
            with trio.fail_after(1):
                await trio.lowlevel.wait_readable(pairs[-1][1])
        assert trio.current_time() == start
        await trio.sleep(1000)
        assert trio.current_time() == start + 1000

    clock = MockClock(autojump_threshold=0)
    start = clock.current_time()
    harness.run(backend, main, clock=clock)


def test_autojump_with_a_threshold(backend: str) -> None:
    async def main() -> None:
        start = trio.current_time()
        with trio.move_on_after(3600):
            await trio.sleep_forever()
        assert trio.current_time() - start == 3600

    harness.run(backend, main, clock=MockClock(autojump_threshold=0.01))


async def test_cushion_of_zero() -> None:
    await wait_all_tasks_blocked(0)


@pytest.mark.ring_only  # epoll blocks for ever
async def test_negative_cushion_is_a_poll() -> None:
    with trio.fail_after(5):
        await wait_all_tasks_blocked(-1)


async def test_process_events_accepts_an_empty_list() -> None:
    harness.io_manager().process_events([])


@pytest.mark.ring_only
async def test_process_events_accepts_none() -> None:
    harness.io_manager().process_events(None)


async def test_short_timeouts_are_kept() -> None:
    for seconds in (0.0, 35e-6, 0.0005, 0.01):
        start = time.perf_counter()
        await trio.sleep(seconds)
        assert seconds - CLOCK_ERROR_S <= time.perf_counter() - start < seconds + 1


async def test_wake_from_a_thread_is_prompt() -> None:
    token = trio.lowlevel.current_trio_token()
    for _ in range(20):
        woken = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, token.run_sync_soon, woken.set)
            with trio.fail_after(5):
                await woken.wait()


async def test_statistics_count_waiting_tasks(backend: str) -> None:
    def waiting() -> tuple[int, int]:
        statistics = harness.io_statistics()
        return statistics.tasks_waiting_read, statistics.tasks_waiting_write

    assert harness.io_statistics().backend == backend
    assert waiting() == (harness.INTERNAL_READERS, 0)
    with harness.nonblocking_pair() as (a, b), harness.nonblocking_pair() as (c, _):
        harness.fill(a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, a)
            nursery.start_soon(trio.lowlevel.wait_writable, a)
            nursery.start_soon(trio.lowlevel.wait_readable, c)
            await wait_all_tasks_blocked()
            assert waiting() == (harness.INTERNAL_READERS + 2, 1)
            harness.drain(b)
            await wait_all_tasks_blocked()
            assert waiting() == (harness.INTERNAL_READERS + 2, 0)
            nursery.cancel_scope.cancel()
    assert waiting() == (harness.INTERNAL_READERS, 0)


@pytest.mark.ring_only
async def test_ring_statistics() -> None:
    before = harness.io_statistics()
    a, b = trio.socket.socketpair()
    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.recv, 1)
            await wait_all_tasks_blocked()
            during = harness.io_statistics()
            await b.send(b"x")
    after = harness.io_statistics()
    assert before.backend == during.backend == after.backend == "io_uring"
    assert during.in_flight == before.in_flight + 1
    assert after.enters > before.enters
    assert after.operations["recv"] > before.operations.get("recv", 0)
    assert after.operations["send"] > before.operations.get("send", 0)
    assert isinstance(after.stock_calls, dict)
    with pytest.raises(AttributeError):
        after.in_flight = 7
    assert before is not after, "statistics are a snapshot"


async def test_attribute_errors_become_trios_runtime_error() -> None:
    # trio's wrappers mask every AttributeError. Ours must not make a new kind of it.
    for function in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
        with pytest.raises(RuntimeError, match="must be called from async context"):
            await function(object())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="must be called from async context"):
        trio.lowlevel.notify_closing(object())  # type: ignore[arg-type]


async def test_errors_of_fileno_are_passed_on() -> None:
    class Faulty:
        def fileno(self) -> int:
            raise ValueError("not today")

    for function in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
        with pytest.raises(ValueError, match="not today"):
            await function(Faulty())


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException] | None]:
    """The types of the exceptions that nobody could catch, instead of failing the test."""
    types: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: types.append(args.exc_type))
    return types


@pytest.mark.parametrize("cancel_first", [False, True])
def test_a_crashed_run_leaves_nothing_behind(
    backend: str, cancel_first: bool, unraisable: list[type[BaseException] | None]
) -> None:
    # The tasks are not unwound by trio but thrown away, after the manager was closed:
    # then come their abort functions, and notify_closing.
    async def blocked(sock: trio.socket.SocketType) -> None:
        try:
            await sock.recv(10)
        finally:
            sock._sock.close()  # type: ignore[attr-defined]

    def abort_badly(_: Any) -> Any:
        raise ZeroDivisionError("an abort function must not raise")

    async def main() -> None:
        a, b = trio.socket.socketpair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked, a)
            nursery.start_soon(blocked, b)
            nursery.start_soon(trio.lowlevel.wait_writable, full)
            await wait_all_tasks_blocked()
            managers.append(harness.io_manager())
            if cancel_first:
                nursery.cancel_scope.cancel()
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.lowlevel.wait_task_rescheduled(abort_badly)

    managers: list[Any] = []
    with harness.nonblocking_pair() as (full, _):
        harness.fill(full)
        with pytest.raises(trio.TrioInternalError):
            harness.run_raw(backend, main)
        manager = managers.pop()
        if backend == harness.RING:
            assert manager.closed
            assert not manager.leaked  # it waited for the kernel, which has finished
        del manager
        gc.collect()
    if backend == harness.RING:
        # Stock adds ValueError: I/O operation on closed epoll object.
        assert not {ValueError, OSError, AttributeError, SystemError} & set(unraisable)
    harness.run(backend, trio.sleep, 0)


@pytest.mark.ring_only
def test_calls_after_close_touch_nothing(backend: str) -> None:
    kept: list[Any] = []

    async def main() -> None:
        kept.append(harness.io_manager())

    harness.run(backend, main)
    (manager,) = kept
    fds = harness.open_fds()
    manager.close()
    manager.notify_closing(0)
    manager.notify_closing(-1)
    manager.force_wakeup()
    assert manager.statistics().in_flight == 0
    assert harness.open_fds() == fds


@pytest.mark.ring_only
def test_a_broken_ring_is_an_internal_error_not_a_raw_one(
    backend: str, unraisable: list[type[BaseException] | None]
) -> None:
    # get_events must not raise: trio would throw the whole run away, unwound by nobody.
    async def main() -> None:
        rings = [fd for fd, what in harness.open_fds().items() if "io_uring" in what]
        assert rings
        null = os.open("/dev/null", os.O_RDONLY)
        for fd in rings:
            os.dup2(null, fd)
        os.close(null)
        await trio.sleep(0.05)
        await trio.sleep(0.05)

    with pytest.raises(trio.TrioInternalError):
        harness.run_raw(backend, main)
    gc.collect()  # what trio could not unwind goes to the hook
    harness.run(backend, trio.sleep, 0)


def test_many_runs_in_a_row(backend: str) -> None:
    for _ in range(50):
        harness.run(backend, trio.sleep, 0)
