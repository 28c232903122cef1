"""Files that are shared, taken away, closed: what stock trio promises of them, the ring promises.

A plan is done twice, on stock trio and on the ring. Its steps are such that stock has one answer
to each: what was done is over before the next (`files.soon`), and no two of our calls compete
for the same thing. After each step both must be the same: how each call has ended, or that it
waits; and what the other end of each file is told. The ring has a while to get there.

A file has several *holders*: its number, another number (dup), trio's sockets around the same
socket of the standard library's, streams. Calls and closes are in one of two runs, each in a
thread of its own. Where the ring promises another thing than stock (see docs/limits.md), stock's
answer is replaced by that:

- leaving `with` tells who waits, as close() does;
- detach() gives EBADF to who receives or sends; who waits for readiness waits on;
- who waits in another run than that which closes is told, with some error.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import socket as stdlib_socket
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import harness
import kernel_workers
import process_books
import trio
from trio.testing import wait_all_tasks_blocked

from peers import conduct, ways
from peers.books import Burnt, Handed, Left, Strange
from peers.files import KINDS, File
from peers.places import READ, WRITE, name_of, set_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from by_seed import Plan

    Job = Callable[[], Awaitable[None]]

QUIET_S = 0.06
SLOW_S = 0.02  # what a second look at stock gives to each step
ANSWER_MAX_S = conduct.RUN_MAX_S
WAITS = "waits"
ENDED = "an error"  # whichever
SOCKETS = ("sock", "again", "dup")
SEND_SIZE = 20
CALLS_MAX = 60

State = dict[str, Any]


class Call:
    """One of ours, with how it has ended."""

    def __init__(self, place: Place, holder: str, name: str, way: str, size: int) -> None:
        self.place = place
        self.holder = holder
        self.name = name
        self.way = way
        self.size = size
        self.where = 0
        self.number = -1
        self.scope = trio.CancelScope()
        self.outcome = WAITS
        self.instead = ""  # of having been cancelled: what is promised where stock is told nothing
        self.told_elsewhere = False

    @property
    def waits(self) -> bool:
        return self.outcome == WAITS

    @property
    def for_readiness(self) -> bool:
        return self.name.startswith("wait_")

    def __str__(self) -> str:
        run = " in the other run" if self.where else ""
        return f"{self.name} of {self.holder} of {self.place.file.kind}{run}"

    def ended(self, how: str, *, failed: bool = False) -> None:
        self.outcome = ENDED if failed and self.told_elsewhere else how


class Place:
    """A file and its holders."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.things: dict[str, Any] = {}
        self.was_read = self.has_mark = False

    def number_of(self, holder: str) -> int:
        """-1 when it is closed."""
        if holder == "number":
            return self.file.fd
        thing = self.things.get(holder)
        if thing is None:
            return -1
        if holder == "other_number":
            return int(thing)
        return int(thing.socket.fileno() if holder == "stream" else thing.fileno())

    def hold(self, holder: str) -> None:
        """Have it, if it can be had."""
        if holder in self.things or self.file.fd < 0:
            return
        sock = self.file.sock
        if holder in ("sock", "again") and sock is not None:
            self.things[holder] = trio.socket.from_stdlib_socket(sock)
        elif holder == "dup" and sock is not None:
            self.things[holder] = trio.socket.from_stdlib_socket(sock.dup())
        elif holder == "stream" and sock is not None and sock.type == stdlib_socket.SOCK_STREAM:
            self.things[holder] = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
        elif holder == "file":
            self.things[holder] = trio.lowlevel.FdStream(os.dup(self.file.fd))
        elif holder == "other_number":
            self.things[holder] = os.dup(self.file.fd)

    def forget(self, number: int) -> None:
        """It was closed by somebody."""
        for holder in list(self.things):
            if self.number_of(holder) in (number, -1):
                del self.things[holder]
        if self.file.fd == number:
            self.file.fd = -1
            self.file.sock = None

    def close(self) -> None:
        """What is open still, without a word: nobody waits."""
        for holder in list(self.things):
            thing = self.things.pop(holder)
            if holder in SOCKETS:
                thing.close()
            elif holder == "stream":
                thing.socket.close()
            elif holder == "file":
                thing.close()
            else:
                os.close(thing)
        self.file.close()


# ---- the other run -------------------------------------------------------------------------


class OtherRun:
    """A run in a thread of its own, which does what it is given, one after the other."""

    def __init__(self, start: Callable[[Job], None]) -> None:
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(start,))
        self._thread.start()
        self.answer()

    def _run(self, start: Callable[[Job], None]) -> None:
        try:
            start(self._main)
        except BaseException as exc:  # noqa: BLE001  whoever asks is told
            self._answers.put(exc)
        else:
            self._answers.put(None)

    async def _main(self) -> None:
        self._send, jobs = trio.open_memory_channel[Any](100)
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.nursery:
            self._answers.put(None)
            async for job in jobs:
                try:
                    await job()
                except Exception as exc:  # noqa: BLE001  whoever asks is told
                    self._answers.put(exc)
                else:
                    self._answers.put(None)
            self.nursery.cancel_scope.cancel()

    def ask(self, job: Job) -> None:
        """Have it done, and wait until it is."""
        self._token.run_sync_soon(self._send.send_nowait, job)
        self.answer()

    def do(self, function: Callable[[], object]) -> None:
        async def job() -> None:
            function()

        self.ask(job)

    def answer(self) -> None:
        if (failed := self._answers.get(timeout=ANSWER_MAX_S)) is not None:
            raise failed

    def close(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._send.close)
        self._thread.join(ANSWER_MAX_S)
        if self._thread.is_alive():
            raise Strange("the other run does not end")
        self.answer()


# ---- a plan on one backend -----------------------------------------------------------------


class Sitting:
    """One plan, once.

    Attributes:
      states: after each step.
    """

    def __init__(
        self, plan: Plan, door: str, backend: str, model: list[State] | None, pause_s: float = 0
    ) -> None:
        self._plan = plan
        self._anyio = door == "anyio"
        self._backend = backend
        self._start = functools.partial(conduct.start, door, backend=backend)
        self._model = model
        self._pause_s = pause_s
        self.states: list[State] = []
        self._places: dict[int, Place] = {}
        self._calls: list[Call] = []
        self._other: OtherRun | None = None
        self._nursery: trio.Nursery
        self._seen_at_once: dict[str, int] = {}
        self._workers = process_books.Workers()

    def run(self) -> list[State]:
        """All of it: the states."""
        self._start(self._main, self._plan["options"].get("host", ""))
        return self.states

    async def _main(self) -> None:
        assert harness.io_statistics().backend == self._backend
        with tempfile.TemporaryDirectory(prefix="peers-") as self._folder:
            try:
                with trio.fail_after(conduct.RUN_MAX_S):
                    async with trio.open_nursery() as self._nursery:
                        await self._steps()
                        self._nursery.cancel_scope.cancel()
            finally:
                for call in self._calls:
                    if not call.where:
                        call.scope.cancel()
                if self._other is not None:
                    self._other.close()
                for place in self._places.values():
                    place.close()
        if self._backend == harness.RING:
            await harness.assert_books_balance()

    async def _steps(self) -> None:
        for step in self._plan["steps"]:
            await self._step(step)
            await self._settle()
            await self._compare(step)
        for call in self._waiting():
            self._cancel(call)
        await self._settle()
        await self._compare(["the end"])

    # ---- steps

    async def _step(self, step: list[Any]) -> None:
        verb, rest = step[0], step[1:]
        if verb == "open":
            number, kind = rest
            if number not in self._places:
                self._places[number] = Place(KINDS[kind](kind, self._folder))
        elif verb == "quiet":
            await self._quiet()
        elif verb == "cancel":
            waiting = self._waiting()
            if waiting:
                self._cancel(waiting[rest[0] % len(waiting)])
        elif (place := self._places.get(rest[0])) is not None:
            if verb == "hold":
                place.hold(rest[1])
            elif verb == "acts":
                # To who waits in another thread they are not done in one turn.
                elsewhere = any(c.where and c.place is place for c in self._waiting())
                for name, size in rest[1][:1] if elsewhere else rest[1]:
                    place.file.act(name, size)
            elif verb == "call":
                self._call(place, *rest[1:])
            elif verb == "mark":
                await self._mark(place, *rest[1:])
            elif verb == "close":
                await self._close(place, *rest[1:])
            elif verb == "drop":
                self._drop(place, *rest[1:])

    def _waiting(self) -> list[Call]:
        return [call for call in self._calls if call.waits]

    def _cancel(self, call: Call) -> None:
        if call.where and self._other is not None:
            self._other.do(call.scope.cancel)
        else:
            call.scope.cancel()

    def _other_run(self) -> OtherRun:
        if self._other is None:
            self._other = OtherRun(self._start)
        return self._other

    async def _settle(self) -> None:
        for _ in range(2):
            if self._other is not None:
                self._other.ask(self._rest)
            await self._rest()
        if self._pause_s:
            await trio.sleep(self._pause_s)

    async def _rest(self) -> None:
        """Until all tasks of a run sleep, and nothing comes."""
        with trio.move_on_after(conduct.WAKE_MAX_S) as scope:
            await wait_all_tasks_blocked()
        if scope.cancelled_caught:
            waiting = "; ".join(map(str, self._waiting())) or "nobody"
            raise Burnt(f"the loop does not come to rest; waiting: {waiting}")

    # ---- calls

    def _call(self, place: Place, holder: str, name: str, size: int, where: int) -> None:
        call = Call(place, holder, name, READ, size)
        call.where, call.number = where, place.number_of(holder)
        function = self._function(call)
        if function is None or call.number < 0 or len(self._calls) > CALLS_MAX:
            return
        for other in self._waiting():
            # Which of two would get it nobody has promised, unless the second is refused.
            rivals = other.place is place and other.way == call.way
            same = (other.number, other.where) == (call.number, where)
            same = same and other.for_readiness == call.for_readiness
            # Beside one that waits for a mark stock gives what is there: see docs/limits.md.
            if rivals and (not same or place.has_mark):
                return
        place.was_read = place.was_read or (call.way == READ and not call.for_readiness)
        self._calls.append(call)
        task = functools.partial(self._do, call, function)
        if where:
            other_run = self._other_run()
            other_run.do(lambda: other_run.nursery.start_soon(task))
        else:
            self._nursery.start_soon(task)

    def _function(self, call: Call) -> Callable[[], Awaitable[str]] | None:
        """What it does, if its holder has such a call."""
        holder, name = call.holder, call.name
        thing = call.place.things.get(holder)
        if name in ("wait_readable", "wait_writable"):
            call.way = READ if name == "wait_readable" else WRITE
            return functools.partial(self._wait, call)
        if name in ways.SOCKET_READS and holder in SOCKETS:
            return functools.partial(self._read, call, ways.SOCKET_READS[name], thing)
        if name in ways.TRIO_STREAM_READS and holder in ("stream", "file"):
            return functools.partial(self._read, call, ways.receive_some, thing)
        call.way = WRITE
        if name in ways.SOCKET_WRITES and holder in SOCKETS:
            return functools.partial(self._write, ways.SOCKET_WRITES[name], thing)
        if name in ways.TRIO_STREAM_WRITES and holder in ("stream", "file"):
            return functools.partial(self._write, ways.TRIO_STREAM_WRITES[name], thing)
        return None

    async def _wait(self, call: Call) -> str:
        door: Any = anyio if self._anyio else trio.lowlevel
        thing = call.place.things.get(call.holder)
        waited = thing if call.holder in SOCKETS and call.size % 2 else call.number
        await getattr(door, call.name)(waited)
        return "is ready"

    async def _read(self, call: Call, read: Any, thing: Any) -> str:
        data = await read(thing, 1 + call.size % call.place.file.size_max, 0)
        return f"{len(data)} bytes, {call.place.file.sum_of(data)}"

    async def _write(self, write: Any, thing: Any) -> str:
        await write(thing, bytes(SEND_SIZE), 0)
        return "sent"

    async def _do(self, call: Call, function: Callable[[], Awaitable[str]]) -> None:
        with call.scope:
            try:
                call.ended(await function())
            except Exception as exc:  # noqa: BLE001  that is what is compared
                call.ended(name_of(exc), failed=True)
        if call.waits:
            call.ended(call.instead or "cancelled")

    async def _mark(self, place: Place, holder: str, size: int, where: int) -> None:
        """SO_RCVLOWAT; past trio only where it was not received from yet."""
        place.has_mark = True
        if holder in SOCKETS and holder in place.things:
            set_it = functools.partial(set_option, place.things[holder], "lowat", size)
            if where:
                self._other_run().do(set_it)
            else:
                set_it()
        elif place.file.sock is not None and not place.was_read:
            set_option(place.file.sock, "lowat", size)

    # ---- closing

    async def _close(self, place: Place, holder: str, how: str, where: int) -> None:
        number = place.number_of(holder)
        if number < 0:
            return
        how = how if holder in SOCKETS else ""
        for call in self._waiting():
            if call.number == number and call.place is place:
                self._will_be_told(call, how, where)
        job = functools.partial(self._do_close, place, holder, how, number)
        if where:
            self._other_run().ask(job)
        else:
            await job()
        place.forget(number)

    def _will_be_told(self, call: Call, how: str, where: int) -> None:
        """Where stock tells nothing, and the ring promises a word."""
        stock = self._backend == harness.EPOLL
        if call.where != where:
            call.told_elsewhere = True
            if stock:
                call.instead = ENDED
                self._cancel(call)
        elif how == "detach" and not call.for_readiness and stock:
            call.instead = "EBADF"
            self._cancel(call)

    async def _do_close(self, place: Place, holder: str, how: str, number: int) -> None:
        thing: Any = place.things.get(holder)
        notify: Any = anyio.notify_closing if self._anyio else trio.lowlevel.notify_closing
        if holder in ("stream", "file"):
            await thing.aclose()
        elif holder not in SOCKETS:
            notify(number)
            if place.file.sock is not None and place.file.fd == number:
                place.file.sock.close()
            else:
                os.close(number)
        elif how == "leave":
            if self._backend == harness.EPOLL:
                notify(thing)
            with thing:
                pass
        elif how == "detach":
            thing.detach()
            await self._rest()
            notify(number)  # who waits for readiness
            os.close(number)
        else:
            if how == "notify":
                notify(thing)
            thing.close()

    def _drop(self, place: Place, holder: str) -> None:
        """Nobody waits any more, and it is closed without a word, in the same turn."""
        if holder not in ("number", "other_number"):
            return
        number = place.number_of(holder)
        waiting = [c for c in self._waiting() if c.place is place and c.number == number]
        if number < 0 or any(c.where or not c.for_readiness for c in waiting):
            return
        for call in waiting:
            call.scope.cancel()
        if place.file.sock is not None and place.file.fd == number:
            place.file.sock.close()
        else:
            os.close(number)
        self._seen_at_once[f"the other end of the {place.file.kind}, at once"] = (
            place.file.far_sees()
        )
        place.forget(number)

    # ---- books

    def _state(self) -> State:
        state: State = {f"{n}: {call}": call.outcome for n, call in enumerate(self._calls)}
        state |= self._seen_at_once
        for number, place in self._places.items():
            state[f"the other end of {number}, a {place.file.kind}"] = place.file.far_sees()
        return state

    async def _compare(self, step: list[Any]) -> None:
        """With the model, which there is no time for at once: what is late is not wrong."""
        end = time.monotonic() + conduct.WAKE_MAX_S
        while True:
            state = self._state()
            model = state if self._model is None else self._model[len(self.states)]
            if state == model:
                break
            if time.monotonic() > end:
                raise Strange(f"after {step}: {differences(model, state)}")
            await trio.sleep(0.002)
            await self._settle()
        self.states.append(state)

    async def _quiet(self) -> None:
        """Whatever waits now costs nothing."""
        if self._backend != harness.RING:
            return
        await trio.sleep(conduct.SETTLE_S)
        share, end = 1.0, time.monotonic() + conduct.REST_MAX_S
        while share > conduct.CPU_SHARE_MAX and time.monotonic() < end:
            cpu = process_books.Cpu()
            await trio.sleep(QUIET_S)
            share = cpu.most()
        waiting = "; ".join(map(str, self._waiting())) or "nobody"
        if share > conduct.CPU_SHARE_MAX:
            raise Burnt(f"{share:.0%} of a core in a quiet stretch; waiting: {waiting}")
        if workers := self._workers.more():
            raise Handed(f"{workers} in a quiet stretch; waiting: {waiting}")
        if kept := kernel_workers.retried():
            raise Handed(f"the kernel would try {kept} again itself; waiting: {waiting}")
        if harness.io_statistics().leases_out:
            raise Left(f"buffers are held in a quiet stretch; waiting: {waiting}")


def differences(model: State, state: State) -> str:
    return "; ".join(
        f"{key}: stock {model.get(key)!r}, ring {state.get(key)!r}"
        for key in {**model, **state}
        if model.get(key) != state.get(key)
    )


def run(plan: Plan, door: str) -> None:
    """A plan on stock and on the ring.

    Raises:
      AssertionError: they differ, or some book does not agree.
    """
    conduct.start(door, trio.lowlevel.checkpoint)  # what is made once in a process
    books = process_books.Descriptors(), process_books.Threads(), process_books.Workers()
    model = Sitting(plan, door, harness.EPOLL, None).run()
    try:
        Sitting(plan, door, conduct.BACKEND, model).run()
    except BaseException as exc:
        if not isinstance(sole := conduct.sole(exc), Strange):  # type: ignore[arg-type]
            raise
        # Perhaps stock had no time to say all.
        patient = Sitting(plan, door, harness.EPOLL, None, SLOW_S).run()
        if patient == model:
            raise sole from None
        Sitting(plan, door, conduct.BACKEND, patient, SLOW_S).run()
    if left := process_books.stays(*books):
        raise Left(f"left behind: {left}")
