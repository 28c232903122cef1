"""Guest runs under a host that acts between their turns: nothing it does is overheard.

A run in trio's guest mode sleeps in a helper thread. Here the host writes, reads and cancels
while it sleeps, and there is no deadline in the run that would wake it all the same; so only the
host can see that somebody sleeps on. *Watchers* are tasks that wait for a file, take what is
there, and wait again. The books:

- whoever waits for what has come is woken, soon, and whoever is cancelled;
- nobody is woken for what was taken away again;
- what an eventfd tells comes as soon as what a pipe tells: rounds of both are done in turn, so
  that a busy machine is so for both;
- while nothing happens no callback comes, and no CPU is used.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import resource
import statistics
import time
from typing import TYPE_CHECKING, Any

import harness
import process_books
import trio
import wakeup_kinds

from peers import conduct
from peers.books import Burnt, Early, Left, Strange, Stuck
from peers.files import Semaphore

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from by_seed import Plan


class Nothing(wakeup_kinds.Kind):
    """No file: whoever waits for it sleeps until he is cancelled."""

    fd = -1

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


NOTHING = "nothing"
KINDS: dict[str, type[wakeup_kinds.Kind]] = {
    "eventfd": wakeup_kinds.Eventfd,
    "full_eventfd": wakeup_kinds.FullEventfd,
    "semaphore": Semaphore,
    "timerfd": wakeup_kinds.Timerfd,
    "inotify": wakeup_kinds.Inotify,
    "epoll": wakeup_kinds.Epoll,
    "epoll_of_pipe": wakeup_kinds.EpollOfPipe,
    "epoll_of_epoll": wakeup_kinds.EpollOfEpoll,
    "pipe": wakeup_kinds.Pipe,
    "socket": wakeup_kinds.Socket,
    "full_socket": wakeup_kinds.FullSocket,
    NOTHING: Nothing,
}
# A wake-up of theirs may run inside an eventfd's: see `uring_trio._guest`.
OF_EVENTFDS = ("eventfd", "full_eventfd", "semaphore", "epoll", "epoll_of_epoll")

ASLEEP_S = 0.004  # no callback for so long: the helper sleeps, or as good as
WOKEN_MAX_S = 1.0 * conduct.SLOWNESS
QUIET_S, SETTLED_S = 0.06, 0.04  # what the kernel has put off comes within 32 ms
TIMES_MAX = 20
# What is put off takes 16 ms in the middle; fewer rounds say little.
LATER_S, LATER_TIMES, ROUNDS_MIN = 0.006, 3.0, 6


class Watcher:
    """A task that waits for a file, again and again."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.file = KINDS[kind](None)  # type: ignore[arg-type]  # no thread is needed
        self.file.open()
        self.scope = self.glance_scope = trio.CancelScope()
        self.waits = self.woken = self.cancelled = self.glances = 0

    async def run(self) -> None:
        while True:
            self.scope = trio.CancelScope()
            with self.scope:
                self.waits += 1
                await self._wait(self.file.writable)
                try:
                    self.file.get()
                except BlockingIOError:
                    raise Early(f"{self.kind} was told to be ready, and is not") from None
                self.woken += 1
            self.cancelled += self.scope.cancelled_caught

    def glances_anew(self) -> None:
        self.glance_scope = trio.CancelScope()

    async def glance(self) -> None:
        """Wait for the other direction, once, and take nothing."""
        with self.glance_scope:
            await self._wait(not self.file.writable)
        self.glances += 1

    async def _wait(self, writable: bool) -> None:
        if self.file.fd < 0:
            await trio.sleep_forever()
        wait = trio.lowlevel.wait_writable if writable else trio.lowlevel.wait_readable
        await wait(self.file.fd)


class Host:
    """The host's loop, and what it does by a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._callbacks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._outcome: Any = None
        self._watchers: dict[int, Watcher] = {}
        self._late_s: dict[bool, list[float]] = {True: [], False: []}  # of eventfds, of the pipe
        self._scarce = contextlib.ExitStack()
        self._is_scarce = False
        self._token: Any = None
        self._nursery: Any = None

    # ---- the loop

    def run(self) -> None:
        """All of the plan."""
        harness.start_guest_run(
            conduct.BACKEND,
            self._main,
            run_sync_soon_threadsafe=self._callbacks.put,
            done_callback=self._finish,
        )
        try:
            with self._scarce:
                self._until(lambda: self._nursery is not None, "the run does not begin")
                self._pipe = self._watch(-1, "pipe")
                for step in self._plan["steps"]:
                    self._step(step)
                    self._failed()
            self._settle()
        finally:
            self._end()
        self._outcome.unwrap()
        self._judge_lateness()

    async def _main(self) -> None:
        assert harness.io_statistics().backend == conduct.BACKEND
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()
        await harness.assert_books_balance()

    def _finish(self, outcome: Any) -> None:
        self._outcome = outcome

    def _failed(self) -> None:
        if self._outcome is not None:
            self._outcome.unwrap()
            raise Strange("the run has ended by itself")

    def _until(self, condition: Callable[[], object], otherwise: str) -> None:
        """Run callbacks until something is so."""
        end = time.monotonic() + WOKEN_MAX_S
        while not condition():
            self._failed()
            try:
                callback = self._callbacks.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise Stuck(otherwise) from None
            callback()

    def _settle(self) -> int:
        """Run callbacks until the helper sleeps: how many there were."""
        count = 0
        while True:
            try:
                callback = self._callbacks.get(timeout=ASLEEP_S)
            except queue.Empty:
                return count
            callback()
            count += 1

    def _end(self) -> None:
        """By a cancel of the host's, as all else."""
        try:
            if self._nursery is not None and self._outcome is None:
                self._nursery.cancel_scope.cancel()
            self._until(lambda: self._outcome is not None, "the run sleeps on, cancelled")
        finally:
            for watcher in self._watchers.values():
                watcher.file.close()

    # ---- steps

    def _step(self, step: list[Any]) -> None:
        verb, rest = step[0], step[1:]
        if verb == "watch":
            if rest[0] not in self._watchers:
                self._watch(*rest)
        elif verb == "scarce":
            self._be_scarce(bool(rest[0]))
        elif verb == "quiet":
            self._quiet()
        elif (watcher := self._watchers.get(rest[0])) is not None:
            if verb == "cancel":
                self._cancel(watcher, *rest[1:])
            elif watcher.kind == NOTHING:
                pass
            elif verb == "rounds":
                self._rounds(watcher, *rest[1:])
            elif verb == "vain":
                self._in_vain(watcher)

    def _watch(self, number: int, kind: str) -> Watcher:
        try:
            watcher = Watcher(kind)
        except OSError:
            if self._is_scarce:
                return self._pipe
            raise
        self._watchers[number] = watcher
        self._token.run_sync_soon(self._nursery.start_soon, watcher.run)
        self._until(lambda: watcher.waits, f"nobody begins to wait for a {kind}")
        return watcher

    def _be_scarce(self, on: bool) -> None:
        """No descriptor is left."""
        self._settle()
        if on and not self._is_scarce:
            self._scarce.enter_context(no_more_descriptors())
        elif not on:
            self._scarce.close()
        self._is_scarce = on

    def _rounds(self, watcher: Watcher, times: int, glance: bool) -> None:
        for _ in range(min(times, TIMES_MAX)):
            plain = not glance and not self._is_scarce and watcher.kind in OF_EVENTFDS
            if plain:
                self._late_s[False].append(self._round(self._pipe))
            if glance:
                self._glance(watcher)
            late_s = self._round(watcher)
            if plain:
                self._late_s[True].append(late_s)

    def _round(self, watcher: Watcher) -> float:
        """Something comes while the run sleeps: how long it took until it was taken."""
        self._settle()
        before, began = watcher.woken, time.monotonic()
        watcher.file.put()
        self._until(
            lambda: watcher.woken > before, f"a task sleeps beside a {watcher.kind} that is ready"
        )
        return time.monotonic() - began

    def _glance(self, watcher: Watcher) -> None:
        before = watcher.glances
        watcher.glances_anew()
        self._token.run_sync_soon(self._nursery.start_soon, watcher.glance)
        self._settle()
        if watcher.glances == before:
            watcher.glance_scope.cancel()
            self._until(lambda: watcher.glances > before, "a cancelled wait goes on")

    def _cancel(self, watcher: Watcher, deadline: bool) -> None:
        self._settle()
        before, waits = watcher.cancelled, watcher.waits
        if deadline:
            watcher.scope.deadline = -math.inf
        else:
            watcher.scope.cancel()
        self._until(
            lambda: watcher.cancelled > before and watcher.waits > waits,
            f"a task that waits for a {watcher.kind} sleeps on, cancelled by the host",
        )

    def _in_vain(self, watcher: Watcher) -> None:
        """Something comes and goes, and the run has had no turn."""
        if watcher.kind == "timerfd":
            return  # nobody knows when it comes
        self._settle()
        before = watcher.woken
        watcher.file.put()
        watcher.file.get()
        self._settle()
        self._failed()
        if watcher.woken != before:
            raise Early(f"a task has taken from a {watcher.kind} that had nothing")

    def _quiet(self) -> None:
        if self._is_scarce:
            return  # looking takes a descriptor
        end = time.monotonic() + conduct.REST_MAX_S
        while True:
            self._settle()
            time.sleep(SETTLED_S)
            self._settle()
            cpu = process_books.Cpu()
            time.sleep(QUIET_S)
            share = cpu.most()
            count = self._settle()
            if conduct.BACKEND != harness.RING or not (count or share > conduct.CPU_SHARE_MAX):
                return
            if time.monotonic() > end:
                raise Burnt(f"nothing happens: {count} callbacks, {share:.0%} of a core")

    def _judge_lateness(self) -> None:
        of_eventfds, of_pipes = self._late_s[True], self._late_s[False]
        if len(of_pipes) < ROUNDS_MIN:
            return
        late_s, limit_s = statistics.median(of_eventfds), statistics.median(of_pipes)
        if late_s > LATER_S + LATER_TIMES * limit_s:
            raise Stuck(
                f"what eventfds tell comes after {late_s * 1e3:.1f} ms, "
                f"what a pipe tells after {limit_s * 1e3:.1f}"
            )


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(harness.open_fds()) + 2, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(plan: Plan) -> None:
    """A plan under a host.

    Raises:
      AssertionError: some book does not agree.
    """
    conduct.start("trio", trio.lowlevel.checkpoint, "guest")  # what is made once in a process
    books = process_books.Descriptors(), process_books.Threads(), process_books.Workers()
    try:
        Host(plan).run()
    except Exception as exc:  # noqa: BLE001  the same, out of its groups
        raise conduct.sole(exc) from None
    if left := process_books.stays(*books):
        raise Left(f"left behind: {left}")


def draw(random: random.Random) -> Plan:
    """A plan, by nothing but what *random* gives."""
    steps: list[Any] = []
    scarce_first = random.random() < 0.25
    numbers = range(random.choice([1, 2, 3]))
    watches = [
        ["watch", number, random.choice([*KINDS, "eventfd", "full_eventfd", NOTHING])]
        for number in numbers
    ]
    # A file is opened before there is no descriptor, and waited for again afterwards.
    steps += [*watches, ["scarce", 1]] if scarce_first else watches
    for _ in range(random.choice([4, 6, 8])):
        number, x = random.choice(numbers), random.random()
        if x < 0.5:
            glance = random.random() < 0.3
            steps.append(["rounds", number, random.choice([1, 3, 6]), glance])
        elif x < 0.7:
            steps.append(["cancel", number, random.random() < 0.3])
        elif x < 0.85:
            steps.append(["vain", number])
        elif x < 0.9:
            steps.append(["scarce", random.randrange(2)])
        else:
            steps.append(["quiet"])
    return {"options": {"how": "hosts"}, "steps": steps, "kernel": []}
