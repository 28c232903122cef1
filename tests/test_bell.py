"""The bell: how other threads wake a run that is on the ring (`_bell`)."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import platform
import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import harness
import pytest
import sandbox
import trio
from guest_tools import run_in_host_loop
from marks import needs_ring
from test_threads_fork import in_child
from trio.testing import wait_all_tasks_blocked

from uring_trio import _bell, _kernel, _trio_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_ring

on_ring = functools.partial(harness.run, harness.RING)
with_bell = pytest.mark.skipif(not harness.FAST_WAYS, reason="the plain way is trio's own pair")

WAKES = 20_000
RUNS = 100
LATE_S = 10 * harness.SLOWNESS
ASLEEP_S = 2  # far more than a signal takes
EVENTFD2 = 290  # on x86-64
COUNT_MAX = 2**64 - 2


def bell() -> Any:
    return harness.io_manager()._bell


def eventfds() -> list[int]:
    return [fd for fd, words in harness.open_fds().items() if "anon_inode:[eventfd]" in words]


def count_of(fd: int) -> int:
    """What is in an eventfd; it is not read."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    (line,) = [line for line in info.splitlines() if line.startswith("eventfd-count")]
    return int(line.split()[1], 16)


class Calls:
    """What is called in the run, by `take`, from wherever."""

    def __init__(self) -> None:
        self.came: list[Any] = []
        self.token = trio.lowlevel.current_trio_token()
        self._due = trio.Event()

    def take(self, what: Any) -> None:
        self.came.append(what)
        self._due.set()

    def call(self, what: Any) -> None:
        self.token.run_sync_soon(self.take, what)

    async def all(self, *expected: Any) -> None:
        """Sleep until all have come, and nothing else has."""
        with trio.fail_after(LATE_S):
            while len(self.came) < len(expected):
                await self._due.wait()
                self._due = trio.Event()
        assert self.came == list(expected)


async def hop(count: int = 20) -> None:
    with trio.fail_after(LATE_S):
        for number in range(count):
            assert await trio.to_thread.run_sync(str, number) == str(number)
            assert await trio.to_thread.run_sync(trio.from_thread.run_sync, str, 7) == "7"


@contextlib.contextmanager
def joined(function: Callable[[], Any]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=function)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def in_new_thread(function: Callable[[], Any]) -> None:
    with joined(function):
        pass


# ---- no wake-up is lost ---------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_no_wake_is_lost_at_whatever_time_it_comes(backend: str, threads: int) -> None:
    """Each thread waits until its call was made: one that is lost is seen at once."""
    rounds = WAKES // threads if backend == harness.RING else WAKES // threads // 10

    def call_and_wait(token: trio.lowlevel.TrioToken, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(rounds):
            if dice.random() < 0.1:
                time.sleep(dice.choice([0, 1e-6, 2e-5]))
            called = threading.Event()
            token.run_sync_soon(called.set)
            assert called.wait(LATE_S)

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            for seed in range(threads):
                nursery.start_soon(trio.to_thread.run_sync, call_and_wait, token, seed)

    with mock.patch.object(harness, "HANG_S", 4 * harness.HANG_S):
        harness.run(backend, main)


def test_every_call_that_is_taken_is_made_though_the_run_ends(backend: str) -> None:
    def call(token: trio.lowlevel.TrioToken) -> None:
        try:
            while True:
                token.run_sync_soon(made.append, None)
                taken.append(None)
        except trio.RunFinishedError:
            pass

    async def main(checkpoints: int) -> None:
        threads.append(threading.Thread(target=call, args=[trio.lowlevel.current_trio_token()]))
        threads[-1].start()
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()

    dice = random.Random(1)
    for _ in range(RUNS):
        threads: list[threading.Thread] = []
        made: list[None] = []
        taken: list[None] = []
        harness.run(backend, main, dice.randrange(4))
        threads[0].join()
        assert len(made) == len(taken)


@with_bell
def test_many_that_ring_are_one_write() -> None:
    async def main() -> None:
        calls = Calls()
        await wait_all_tasks_blocked()  # trio's own task has had its first step
        (fd,) = eventfds()
        before = count_of(fd)

        def call(first: int) -> None:
            for i in range(1000):
                calls.call(first + i)

        for first in (0, 1000):
            in_new_thread(functools.partial(call, first))
        assert count_of(fd) == before + 1
        await calls.all(*range(2000))
        calls.call("again")
        assert count_of(fd) == before + 2
        await calls.all(*range(2000), "again")

    on_ring(main)


def test_idempotent_calls_are_made_once(backend: str) -> None:
    async def main() -> None:
        calls = Calls()
        for _ in range(10):
            calls.token.run_sync_soon(calls.take, "once", idempotent=True)
        await calls.all("once")

    harness.run(backend, main)


def test_a_call_that_calls_is_followed_by_that(backend: str) -> None:
    async def main() -> None:
        calls = Calls()

        def again(left: int) -> None:
            calls.take(left)
            if left:
                calls.token.run_sync_soon(again, left - 1)

        calls.token.run_sync_soon(again, 50)
        await calls.all(*range(50, -1, -1))

    harness.run(backend, main)


def test_a_finalizer_can_call(backend: str) -> None:
    class Last:
        def __init__(self, calls: Calls) -> None:
            self.calls = calls
            self.circle = self

        def __del__(self) -> None:
            self.calls.call("last")

    async def main() -> None:
        calls = Calls()
        Last(calls)
        gc.collect()
        await calls.all("last")
        Last(calls)
        in_new_thread(gc.collect)
        await calls.all("last", "last")

    harness.run(backend, main)


@with_bell
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("raises", [True, False])
def test_a_handler_rings_while_its_thread_rings(before: bool, raises: bool) -> None:
    """A signal strikes at the write, or behind it, and its handler calls as well."""
    write = os.eventfd_write
    struck: list[int] = []

    def strike(fd: int, value: int) -> None:
        if not before:
            write(fd, value)
        if not struck:
            struck.append(fd)
            signal.raise_signal(signal.SIGALRM)
        if before:
            write(fd, value)

    async def main() -> None:
        calls = Calls()

        def handle(*_: Any) -> None:
            calls.call("handler")
            if raises:
                raise KeyError("handler")

        signal.signal(signal.SIGALRM, handle)
        with mock.patch.object(os, "eventfd_write", strike):
            with pytest.raises(KeyError) if raises else contextlib.nullcontext():
                calls.call("task")
            await calls.all("task", "handler")
        calls.call("later")
        await calls.all("task", "handler", "later")

    previous = signal.getsignal(signal.SIGALRM)
    try:
        on_ring(main)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert struck


@with_bell
def test_an_eventfd_that_is_full_stops_nobody() -> None:
    async def main() -> None:
        calls = Calls()
        (fd,) = eventfds()
        os.eventfd_write(fd, COUNT_MAX - count_of(fd))
        await wait_all_tasks_blocked()  # that was told, too
        with pytest.raises(BlockingIOError):
            os.eventfd_write(fd, 1)
        in_new_thread(functools.partial(calls.call, 1))
        await calls.all(1)
        await hop()

    on_ring(main)


# ---- signals --------------------------------------------------------------------------------


def test_a_signal_of_another_thread_has_its_handler_run(backend: str) -> None:
    """Nobody is interrupted then, and nobody rings: only the pair's byte tells."""
    struck: list[float] = []
    handled: list[float] = []

    def strike() -> None:
        struck.append(time.monotonic())
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)

    async def main() -> None:
        with joined(threading.Timer(0.1, strike).run):
            await trio.sleep(ASLEEP_S)

    previous = signal.signal(signal.SIGALRM, lambda *_: handled.append(time.monotonic()))
    try:
        harness.run(backend, main)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert handled[0] - struck[0] < ASLEEP_S / 2


@with_bell
def test_the_pair_is_watched_where_signals_come() -> None:
    in_flight: list[int] = []

    async def main() -> None:
        await wait_all_tasks_blocked()
        in_flight.append(harness.io_statistics().in_flight)

    on_ring(main)
    in_new_thread(lambda: on_ring(main))
    assert in_flight == [2, 1]


# ---- files ----------------------------------------------------------------------------------


@with_bell
def test_its_descriptor_is_there_from_the_first_step_to_the_end() -> None:
    async def main() -> None:
        there = eventfds()
        assert len(there) == 1
        await hop(1)
        assert eventfds() == there

    on_ring(main)
    assert eventfds() == []


def test_after_the_run_a_call_is_refused(backend: str) -> None:
    async def main() -> trio.lowlevel.TrioToken:
        await hop(1)
        return trio.lowlevel.current_trio_token()

    token = harness.run(backend, main)
    with pytest.raises(trio.RunFinishedError):
        token.run_sync_soon(print)
    with pytest.raises(trio.RunFinishedError):
        trio.from_thread.run_sync(print, trio_token=token)


class Breaking(trio.abc.Clock):
    """One that has its run be lost, with no task unwound, when it is told to."""

    broken = False

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if self.broken:
            raise KeyError("clock")
        return deadline - time.monotonic()


@pytest.mark.ring_only
@pytest.mark.collects("a lost run's tasks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_of_a_lost_run_is_an_error(backend: str) -> None:
    clock = Breaking()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        await trio.to_thread.run_sync(int)
        clock.broken = True
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError):
        harness.run_raw(backend, main, clock=clock)
    assert eventfds() == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        tokens[0].run_sync_soon(print)
    gc.collect()


def test_a_forked_child_has_no_bell_and_wakes_nobody(backend: str) -> None:
    async def main() -> None:
        calls = Calls()
        fds = eventfds()
        counts = [count_of(fd) for fd in fds]

        def child() -> str:
            left = [fd for fd in eventfds() if fd in fds]
            calls.call("child")
            return "ok" if not left else f"it has {left}"

        assert in_child(child) == "ok"
        assert [count_of(fd) for fd in fds] == counts
        await wait_all_tasks_blocked()
        assert calls.came == []
        calls.call("parent")
        await calls.all("parent")

    harness.run(backend, main)


# ---- where there is none --------------------------------------------------------------------


def hop_without() -> None:
    async def main() -> None:
        assert bell() is None
        assert eventfds() == []
        await hop()

    on_ring(main)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EPERM, errno.ENOSYS])
def test_no_eventfd_is_to_be_had(error: int) -> None:
    with mock.patch.object(os, "eventfd", side_effect=OSError(error, "eventfd")):
        hop_without()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number is x86-64's")
def test_a_sandbox_refuses_eventfds() -> None:
    program = (
        f"import sandbox; sandbox.deny_io_uring('EPERM', {EVENTFD2}, {EVENTFD2})\n"
        "import test_bell; test_bell.hop_without(); print('hopped')"
    )
    ended = sandbox.run_python("NONE", program)
    assert ended.stdout == "hopped\n", ended.stderr


@with_bell
@pytest.mark.parametrize("which", [1, 2])
def test_no_poll_is_to_be_had(which: int) -> None:
    begin = _bell.LastingPoll._begin
    calls = []

    def refuse(self: Any) -> None:
        calls.append(self)
        if len(calls) == which:
            raise OSError(errno.ENOMEM, "no poll")
        begin(self)

    with mock.patch.object(_bell.LastingPoll, "_begin", refuse):
        hop_without()
    assert len(calls) == which


@pytest.mark.parametrize("name", ["wait_woken", "drain", "old_wakeup_fd"])
def test_a_trio_that_wakes_otherwise(name: str) -> None:
    other = tuple(f"{each}_other" if each == name else each for each in _trio_private._WAKEUP_NAMES)
    with mock.patch.object(_trio_private, "_WAKEUP_NAMES", other):
        hop_without()


def test_a_guest_has_none() -> None:
    async def main() -> None:
        assert bell() is None
        await hop()

    run_in_host_loop(harness.RING, main)


@pytest.mark.skipif(harness.FAST_WAYS, reason="of the plain way")
def test_the_plain_way_is_trios_pair() -> None:
    hop_without()


# ---- a poll that ends -----------------------------------------------------------------------


@with_bell
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("asleep", [True, False])
def test_a_poll_that_fails_gives_the_run_back_to_the_pair(which: int, asleep: bool) -> None:
    async def main() -> None:
        calls = Calls()
        if asleep:
            await wait_all_tasks_blocked()
        ringing = bell()
        harness.io_manager().slots.ring.cancel(ringing._polls[which]._slot)
        await wait_all_tasks_blocked()
        (fd,) = eventfds()
        count = count_of(fd)
        calls.call(1)
        await calls.all(1)
        await hop()
        assert count_of(fd) == count
        assert harness.io_statistics().in_flight == 1
        signal.raise_signal(signal.SIGALRM)
        await hop()

    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        on_ring(main)
    finally:
        signal.signal(signal.SIGALRM, previous)


@with_bell
def test_a_poll_that_ends_is_made_anew() -> None:
    begun: list[bool] = []

    def begin(self: Any) -> None:
        first = self._tell.__name__ == "_tell" and not begun
        begun.append(first)
        ring = self._slots.ring
        self._slot = self._slots.enter(self, ring.poll(self._fd, _kernel.POLLIN, not first))

    async def main() -> None:
        await hop()
        assert begun == [True, False, False]

    with mock.patch.object(_bell.LastingPoll, "_begin", begin):
        on_ring(main)
