"""One plan, done: its steps in turn, the quiet stretches, the end, and the books."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket as stdlib_socket
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import by_seed
import guest_tools
import harness
import kernel_workers
import machine_speed
import process_books
import trio
from exception_groups import leaves

import uring_trio
from peers.between import Between
from peers.books import Burnt, Early, Handed, Left, Lost, Strange, Stuck
from peers.kinds import KINDS
from peers.listeners import Listener
from peers.messages import Messages
from peers.places import Call, World, name_of
from peers.stranger import Stranger, as_socket, poll_says
from peers.streams import TERMINALS
from peers.ways import OWN_WAY, takes_flags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from by_seed import Plan

FOUND = (Burnt, Early, Handed, Left, Lost, Strange, Stuck)

# In the environment: books that are not looked at, and the backend. What another release leaves to
# the kernel's own retry is no news; what comes of it is.
WITHOUT = set(os.environ.get("URING_TRIO_PEERS_WITHOUT", "").split())
if os.environ.get(by_seed.AGAINST):
    WITHOUT.add("retried")
BACKEND = os.environ.get("URING_TRIO_PEERS_BACKEND", harness.RING)

# It sleeps on in what was left or detached, waits in a file that is set to blocking, and takes a
# full listener for one that answers later: see docs/limits.md.
NOT_ON_STOCK = {"leave", "detach", "block", "connect_unix", "connect_seqpacket"}

SLOWNESS = machine_speed.slowness()
RUN_MAX_S = 12.0 * SLOWNESS
FINISH_MAX_S = 3.0 * SLOWNESS
SLOW_MAX_S = 0.25
# From when something is possible until whoever waits for it is told: some 35 ms, at most.
WAKE_MAX_S = 1.0 * SLOWNESS
# In a quiet stretch what was begun before it comes to an end, and then no window takes more.
SETTLE_S = 0.01
CPU_SHARE_MAX = 0.05
REST_MAX_S = 1.0 * SLOWNESS
# A busy loop keeps us from taking, but not somebody else who waits.
BUSY_MIN_S, OTHERS_MAX_S = 0.02, 1.0 * SLOWNESS
# Of a call in trio's own way, which may be busy all the time that it waits.
OWN_WAY_MAX_S = 0.003
TIMES_MAX = 300
# A worker of the kernel's that has nothing to do is there for longer.
LOOK_S = 1.0
# A step, or a moment of the end, keeps the loop from turning for no longer: some call blocks it.
TURN_MAX_S = 4.0 * SLOWNESS
# What one more round of the same may take in each of the later ones: of Python's blocks, and of
# malloc's bytes, which all of C's are among. All of them must take more, so what is bought once, or
# now and then, is none of it.
# 3 blocks are the book's own.
BLOCKS_A_ROUND = 12
# What malloc keeps for the next of a size counts as given out, up to seven of each: some 3,000 in
# each of these rounds, and 7,000 in another thread than the first, on stock as well.
BYTES_A_ROUND, BYTES_IN_A_THREAD = 6_000, 20_000
ROUNDS_BEFORE = 3


class Conduct:
    """A run of a plan."""

    def __init__(self, plan: Plan, door: str, stranger: Stranger | None, between: Between) -> None:
        self._options = plan["options"]
        self._steps = plan["steps"]
        self._door = door
        self._stranger = stranger
        self._between = between
        self._world: World
        self._places: dict[int, Any] = {}
        self._calls: list[Call] = []
        self._times_max = TIMES_MAX
        self._nursery: trio.Nursery
        self._workers = process_books.Workers()
        self._look_at = 0.0

    async def run(self) -> None:
        """All of it, once or some rounds."""
        assert harness.io_statistics().backend == BACKEND
        self._between.here()
        with trio.fail_after(RUN_MAX_S):
            rounds = self._options.get("rounds", 0)
            await self._round(quiet=True)
            memory = []
            for _ in range(rounds):
                await self._round(quiet=False)
                forget_deadlines()
                memory.append(process_books.memory())
            if rounds > ROUNDS_BEFORE:
                self._judge_memory(memory)
        if BACKEND == harness.RING:
            await harness.assert_books_balance()
        self._no_workers("at the end")

    def _judge_memory(self, memory: list[process_books.Memory]) -> None:
        """Some rounds in a row took more than the one before: it is no one-time purchase."""
        later = memory[ROUNDS_BEFORE - 1 :]
        in_thread = self._options.get("host") == "thread"
        size = BYTES_IN_A_THREAD if in_thread else BYTES_A_ROUND
        if told := process_books.growth(later, blocks=BLOCKS_A_ROUND, malloc_bytes=size):
            raise Left(told)

    async def _round(self, *, quiet: bool) -> None:
        self._world = World(door=self._door, stranger=self._stranger, between=self._between)
        self._places, self._calls = {}, []
        self._times_max = TIMES_MAX if quiet else TIMES_MAX // 15
        try:
            async with trio.open_nursery() as self._nursery:
                for step in self._steps:
                    if quiet or step[0] not in ("quiet", "busy"):
                        await self._step(step)
                self._between.forget()
                await self._finish()
                self._nursery.cancel_scope.cancel()
            for place in self._places.values():
                turns()
                await place.close()
        finally:
            self._world.close()

    # ---- steps

    async def _step(self, step: list[Any]) -> None:
        verb, rest = step[0], step[1:]
        turns()
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._no_workers("after some steps")
        if verb == "open":
            await self._open(*rest)
        elif verb == "tick":
            for _ in range(max(1, rest[0])):
                await trio.lowlevel.checkpoint()
        elif verb == "sleep":
            await trio.sleep(min(rest[0], 50) / 1e3)
        elif verb == "quiet":
            await self._quiet(rest[0])
        elif verb == "busy":
            self._busy(rest[0])
        elif verb == "cancel":
            if self._calls:
                self._calls[rest[0] % len(self._calls)].scope.cancel()
        elif verb == "again":
            for _ in range(min(rest[0], self._times_max)):
                for inner in rest[1]:
                    await self._step(inner)
        elif (place := self._places.get(rest[0])) is not None:
            await self._at_place(verb, place, rest[1:])

    async def _at_place(self, verb: str, place: Any, rest: list[Any]) -> None:
        if BACKEND != harness.RING and rest[0] in NOT_ON_STOCK:
            return
        if verb == "call":
            self._call(place, *rest)
        elif verb == "peer":
            place.act(*rest)
        elif verb == "rival":
            # Calls in trio's own way block where a rival has the file wait.
            if rest[0] != "block" or not any(c.flag in OWN_WAY for c in self._calls):
                place.rival_act(*rest)
        elif verb == "between":
            if rest[0] != "flip" or not any(c.flag in OWN_WAY for c in self._calls):
                place.between(*rest)
        elif verb == "option":
            place.option(*rest)
        elif verb == "shut":
            place.shut(*rest)
        elif verb == "close":
            await place.close_early(*rest)

    async def _open(self, number: int, kind: str, shape: str, size: int) -> None:
        if BACKEND != harness.RING and kind in NOT_ON_STOCK:
            return
        if number not in self._places:
            place = KINDS[kind](self._world, number, kind)
            await place.open(shape, size)
            self._places[number] = place

    def _call(self, place: Any, name: str, size: int, flag: str, cancel: str, ms: int) -> None:
        way = place.calls().get(name)
        if way is None or len(self._calls) > 100:
            return
        if not takes_flags(name):
            flag = ""
        if flag in OWN_WAY and "blocks" in place.facts:
            return
        scope = trio.CancelScope()
        if cancel == "deadline":
            scope.deadline = trio.current_time() + ms / 1e3
        # A terminal's writes are trio's own, too, and with its other end gone they are busy.
        if flag in OWN_WAY or (way == "write" and place.kind in TERMINALS):
            scope.deadline = min(scope.deadline, trio.current_time() + OWN_WAY_MAX_S)
        call = Call(place, name, way, size, flag, scope, self._world.clock())
        call.before = cancel == "before"
        for other in self._calls:
            if other.place is place and other.way == way:
                call.hindered = other.hindered = True
        self._calls.append(call)
        self._nursery.start_soon(self._do, call)

    async def _do(self, call: Call) -> None:
        try:
            with call.scope:
                if call.before:
                    call.scope.cancel()
                await call.place.call(call)
                if call.before:
                    raise Strange(f"{call} was cancelled before it began, and returned")
        except FOUND:
            raise
        except Exception as exc:
            exc = sole(exc)
            if isinstance(exc, FOUND):
                raise exc from None
            call.place.failed(call, exc)
            if name_of(exc) not in call.place.excuses(call):
                facts = sorted(call.place.facts)
                raise Strange(f"{call} raised {exc!r}; what was done: {facts}") from exc
        finally:
            call.done = True
            self._calls.remove(call)

    # ---- books in between

    def _no_workers(self, when: str) -> None:
        """An operation is with one for seconds, and then it has nothing to do for five more."""
        if "workers" not in WITHOUT and (found := self._workers.more()):
            raise Handed(f"{', '.join(found)} {when}; {self._waiting()}")

    def _waiting(self) -> str:
        return f"waiting: {'; '.join(map(str, self._calls)) or 'nobody'}"

    async def _quiet(self, ms: int) -> None:
        """Nobody does anything; whatever waits must have to, and cost nothing."""
        await trio.sleep(SETTLE_S)
        window_s = min(max(ms, 40), 200) / 1e3
        share, end = 1.0, time.monotonic() + REST_MAX_S
        while share > CPU_SHARE_MAX and time.monotonic() < end:
            cpu = process_books.Cpu()
            await trio.sleep(window_s)
            share = cpu.sum()
        self._no_workers("in a quiet stretch")
        if BACKEND == harness.RING:
            if "retried" not in WITHOUT and (kept := kernel_workers.retried()):
                raise Handed(f"the kernel would try {kept} again itself; {self._waiting()}")
            if harness.io_statistics().leases_out:
                raise Left(f"buffers are held in a quiet stretch; {self._waiting()}")
            if share > CPU_SHARE_MAX and "cpu" not in WITHOUT:
                raise Burnt(f"{share:.0%} of a core in a quiet stretch; {self._waiting()}")
        await self._nobody_stuck()

    async def _nobody_stuck(self) -> None:
        end = time.monotonic() + WAKE_MAX_S
        while True:
            stuck = self._stuck()
            if not stuck:
                return
            if time.monotonic() > end:
                raise Stuck(f"could go on, and does not: {'; '.join(stuck)}")
            await trio.sleep(0.002)

    def _stuck(self) -> list[str]:
        stuck = []
        for call in self._calls:
            if call.flag not in OWN_WAY and call.name != "serve":
                why = call.place.why_not_ended(call)
                if why and not vain(call):
                    stuck.append(f"{call}: {why}")
        return stuck + [f"the other one at {place}" for place in self._left_by_others()]

    def _left_by_others(self) -> list[Any]:
        """Places where there is something to take, and a stranger who takes all sees nothing."""
        return [
            place
            for place in self._places.values()
            if isinstance(place, Listener | Messages)
            # Of an end or an error the stranger has been told, and it is there still.
            and not place.facts & {"peer closed", "peer shut_write", "refused"}
            and place.rival
            and place.rival.greedy
            and place.fd() >= 0
            and poll_says(place.fd()) & select.POLLIN
        ]

    def _busy(self, ms: int) -> None:
        """The loop does not turn: who waits for the same as we is served meanwhile."""
        started = time.monotonic()
        time.sleep(min(ms, 60) / 1e3)
        if time.monotonic() - started < BUSY_MIN_S:
            return
        while left := self._left_by_others():
            if time.monotonic() - started > OTHERS_MAX_S:
                raise Stuck(f"while we are busy nobody takes what is there: {list(map(str, left))}")
            time.sleep(0.001)

    # ---- the end

    async def _finish(self) -> None:
        """The peers read all and say all: each call comes to its end."""
        end = time.monotonic() + FINISH_MAX_S
        pause_s = 0.0
        while self._calls:
            turns()
            for place in self._places.values():
                place.finish_some([call for call in self._calls if call.place is place])
            if time.monotonic() > end - FINISH_MAX_S + SLOW_MAX_S:
                self._cancel_the_slow()
            if time.monotonic() > end:
                why = [
                    f"{c}: {c.place.why_not_ended(c)}, {sorted(c.place.facts)}" for c in self._calls
                ]
                raise Stuck(f"never came to an end: {'; '.join(why)}")
            await trio.sleep(pause_s)
            pause_s = min(pause_s + 0.0005, 0.01)

    def _cancel_the_slow(self) -> None:
        for call in self._calls:
            if call.place.slow and call.place.why_not_ended(call) is None:
                call.scope.cancel()


def forget_deadlines() -> None:
    """trio keeps the scopes of a thousand deadlines that are over; they are none of our memory."""
    trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines._prune()


def vain(call: Call) -> bool:
    """Whether a receive finds nothing, though poll(2) says that there is something."""
    if call.way != "read" or call.name.startswith("wait_") or call.scope.cancel_called:
        return False
    if (fd := call.place.fd()) < 0:
        return False
    if (sock := as_socket(fd)) is None:
        return False
    try:
        sock.recv(1, stdlib_socket.MSG_PEEK | stdlib_socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        sock.detach()
    return False


def sole(exc: Exception) -> Exception:
    """The exception, out of the groups that a server's nursery puts around it."""
    first = leaves(exc)[0]
    assert isinstance(first, Exception)  # a group of them holds no others
    return first


# ---- around the run ----------------------------------------------------------------------


def turns() -> None:
    """The loop has come here; it does not wait in the kernel beside it."""
    signal.setitimer(signal.ITIMER_REAL, TURN_MAX_S)


def turns_no_more(_: int, __: Any) -> None:
    """Of a signal."""
    raise Stuck("the loop does not turn: a call blocks")


@contextlib.contextmanager
def blocking_is_seen() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, turns_no_more)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(plan: Plan, door: str) -> None:
    """One plan by one door.

    Raises:
      AssertionError: some book does not agree.
    """
    start(door, trio.lowlevel.checkpoint)  # what is made once in a process
    books = process_books.Descriptors(), process_books.Threads()
    stranger = Stranger() if plan["options"].get("stranger") else None
    try:
        between = Between()
        conduct = Conduct(plan, door, stranger, between)
        host = plan["options"].get("host", "")
        looks_matter = any(step[0] == "between" for step in plan["steps"])
        with blocking_is_seen(), between.in_use() if looks_matter else contextlib.nullcontext():
            start(door, conduct.run, host)
    finally:
        if stranger:
            stranger.close()
    if left := process_books.stays(*books):
        raise Left("; ".join(left))


def start(door: str, main: Any, host: str = "", backend: str = BACKEND) -> None:
    """A run by a door, under a host."""
    if host == "thread":
        failures: list[BaseException] = []

        def in_thread() -> None:
            try:
                start(door, main, backend=backend)
            except BaseException as exc:  # noqa: BLE001  raised again below
                failures.append(exc)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
    elif door == "anyio":
        options = uring_trio.anyio_options(backend="io_uring") if backend == harness.RING else {}
        anyio.run(main, backend="trio", backend_options=options)
    elif host == "guest":
        guest_tools.run_in_host_loop(backend, main)
    else:
        harness.run_raw(backend, main)
