"""Random programs: what they are made of, and how one is run.

A program is a plan of `by_seed`: some tasks, some channels between them, and steps. A step is
``[task, verb, place, size, limit]``, all but the verb numbers that may be anything:

- *task*: which task takes it; each takes its own in their order, all tasks side by side.
- *verb*: one of an end's (`programs_ends`) or of `Program`'s.
- *place*: which end, by its number; a channel has two. Or which task, or which listener.
- *size*: in bytes; or checkpoints, or milliseconds.
- *limit*: milliseconds until the step is cancelled by its deadline; 0: `STEP_S`.

``both`` has two steps more behind these, ``[verb, place, size]``, which are done side by side in
a nursery of the step.

Each call is held against a model (`programs_model`). When all tasks are over, each end that is
left sends an end of file, each receives what is left, and the books are looked at: nothing in
flight, no buffer leased, no task and no descriptor and no thread more than before.

Time is the run's clock, and that is virtual: a deadline of 20 s costs nothing, and a program
that hangs ends at once, with what it noted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import socket as stdlib_socket
import struct
import time
from typing import TYPE_CHECKING, Any

import anyio
import by_seed
import gain_tools
import harness
import trio
import trio.testing

import simulation
from simulation import conduct, programs_crowd
from simulation.build import load
from simulation.faults import (
    BytesLost,
    ErrorUntold,
    LeftBehind,
    NotAsleep,
    NotTold,
    WrongBytes,
    WrongError,
    require,
)
from simulation.gain_ends import OF_SERVER, Served
from simulation.gain_others import OF_SERVICE
from simulation.pinned import trio_pinned
from simulation.programs_anyio import AnyioEnd
from simulation.programs_ends import (
    GONE,
    NO_MEMORY,
    SLACK_S,
    End,
    FdEnd,
    RawEnd,
    TrioEnd,
    Way,
    name_of,
    queue,
    unwrapped,
)
from simulation.programs_gain import KINDS as SERVED_KINDS
from simulation.programs_gain import Service, served_kinds
from simulation.programs_model import content
from simulation.trace import EVENT

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator

    from by_seed import Plan

# Seconds of the program's clock.
STEP_S = 20.0
FINAL_S = 100.0
PROGRAM_S = 50_000.0
SCENE_S = 100.0  # from one moment to the next
BOOKS_S = 1.0
TRACE_SHOWN = 600  # of a run that failed
# Choices by which something takes longer than the program has it take.
LATE_KINDS = {"delay", "refuse", "enter", "submit", "cancel", "fatal", "stale", "clock"}
# ... and those by which it is not heard at once.
DEAF_KINDS = {"enter", "submit", "fatal", "stale"}
FATAL = {errno.ENOMEM, errno.EBADR}
GONE_BY_NAME = frozenset(name_of(number) for number in (*GONE, errno.EBADF))
LATE_NETWORK = {"delays", "losses", "strangers"}
LOOK_S = 0.1  # between two looks of a peer that does not wait

TASKS_MAX = 4
SIZE_MAX = 1 << 18
ROOM_FOR_ALL = 50  # who dial in a program
ROOMS = (0, 4608, 20_000)  # bytes of a socket's buffers; 0: as they are

KINDS = (
    *("unix", "unix-raw", "fd-unix", "fd-raw", "pipe", "pipe-reader", "pipe-writer"),
    *("tcp", "tcp-raw", "seqpacket", "dgram", "udp"),
)
LISTENERS = ("tcp", "unix")
# What an end that lacks a verb does in its place.
RECEIVES = ("receive", "receive_any", "recv", "recv_into", "recvfrom", "recvmsg", "recvmsg_into")
SENDS = ("send_all", "send_all_changing", "send", "sendmsg", "send_fd")
CLOSES = ("close", "aclose", "leave")
READS = (*RECEIVES, "peek", "readable", "low_water", "rubbish")
WRITES = (*SENDS, "writable", "send_eof")
OF_OTHERS = ("stranger", "urgent", "stamps", "take_stamps")
OF_ENDS = (*READS, *WRITES, *CLOSES, *OF_OTHERS, "abort", *OF_SERVER)
OF_CROWDS = programs_crowd.VERBS
OF_LISTENERS = ("dial", "answer")


class World:
    """Where a program runs: on stock trio, on the ring, or on a simulated kernel.

    Attributes:
      strict: its clock stands still while anything is under way, so that who slept for seconds
        slept over what was there. On the machine's ring a pause is of real time, and it does not.
      is_simulated: the kernel is, and all that was asked of it is known.
      idle_s: real seconds in which nothing happens, before time is jumped over.
      is_heard: it takes what is asked of it at once.
      ends_polls: those that stay armed may end by themselves.
      is_prompt: it does at once what is asked of it, and nobody else takes anything: so how long
        something takes is the program's own.
    """

    is_simulated = False

    def __init__(self, backend: str, idle_s: float = 0.0) -> None:
        self.backend = backend
        self.strict = backend == harness.EPOLL
        self.idle_s = idle_s
        self.is_prompt = self.is_heard = self.is_lost = self.ends_polls = False
        self._computed: list[tuple[float, float]] = []  # until when, and for how long

    def compute(self, seconds: float) -> None:
        """Keep the processor for so long."""
        self.keep_processor(seconds)
        self._computed.append((trio.current_time(), seconds))

    def keep_processor(self, seconds: float) -> None:
        time.sleep(seconds)

    def computed_since(self, moment: float) -> float:
        """For how long nobody had a turn."""
        return sum(seconds for at, seconds in self._computed if at > moment)

    def run(self, main: Callable[[], Awaitable[None]], plan: Plan, door: str) -> None:
        clock = trio.testing.MockClock(autojump_threshold=self.idle_s)
        if door == "trio":
            harness.run_raw(self.backend, main, clock=clock)
        elif self.backend == harness.EPOLL:
            anyio.run(main, backend="trio", backend_options={"clock": clock})
        else:
            run_anyio(main, clock=clock)

    def pair(self, family: int, type_: int) -> tuple[Any, Any]:
        """Two connected sockets of the standard library's."""
        return stdlib_socket.socketpair(family, type_)

    def udp_pair(self) -> tuple[Any, Any]:
        """Two sockets that are connected to each other."""
        return udp_pair()

    def stale_cqes(self) -> int:
        """How many the kernel has made up."""
        return 0

    def unbalanced(self) -> list[str]:
        """What the kernel itself still has of the run."""
        return []


def run_anyio(main: Callable[[], Awaitable[None]], **options: Any) -> None:
    """On the ring, by anyio's own entry point."""
    backend_options = {"backend": "io_uring", **options}
    anyio.run(main, backend="uring_trio", backend_options=backend_options)


class SimulatedWorld(World):
    """On the simulated kernel, by the plan's choices."""

    is_simulated = True

    def __init__(self) -> None:
        super().__init__(harness.RING)
        self.strict = True
        self.simulation: simulation.Simulation | None = None
        self.has_network = False
        self.crowd_fds: set[int] = set()
        self.is_blurred = False

    def keep_processor(self, seconds: float) -> None:
        assert self.simulation is not None
        self.simulation.sleep(seconds)

    @property
    def chosen(self) -> set[str]:
        """The kinds of choices that were not plain, of the last events."""
        assert self.simulation is not None
        chosen = load()[1].SIM_NOTE_CHOSEN
        return {
            simulation.KINDS[kind]
            for _, kind, what, *_ in EVENT.iter_unpack(self.simulation.happened)
            if what == chosen
        }

    def pair(self, family: int, type_: int) -> tuple[Any, Any]:
        assert self.simulation is not None
        if self.has_network:
            return self.simulation.pair(family, type_)
        return super().pair(family, type_)

    def udp_pair(self) -> tuple[Any, Any]:
        # (Sockets that are really connected are none of the network's.)
        if self.has_network:
            return self.pair(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
        return super().udp_pair()

    def run(self, main: Callable[[], Awaitable[None]], plan: Plan, door: str) -> None:
        options = plan["options"]
        self.has_network = options.get("network", False)
        kinds = {*options.get("kinds", simulation.HARMLESS)}
        network_kinds = {*options.get("network_kinds", ())}
        self.is_blurred = "stale" in kinds or "clock" in kinds
        is_plain = not any(plan["kernel"])
        self.is_heard = is_plain or not DEAF_KINDS & kinds
        self.ends_polls = not is_plain and "end" in kinds
        self.is_prompt = is_plain or not (LATE_KINDS & kinds or LATE_NETWORK & network_kinds)
        with simulation.simulated(
            plan["kernel"],
            kinds=[kind for kind in simulation.KINDS if kind in kinds],
            switches=simulation.Switches(**options.get("switches", {})),
            schedule=options.get("order", 0),
            network=self.has_network,
            network_kinds=network_kinds,
        ) as sim:
            self.simulation = sim
            try:
                if door == "trio":
                    sim.run(main)
                else:
                    run_anyio(main, clock=sim.clock)
            except BaseException as exc:
                told = enters_told(sim.happened)
                if told and set(errors_in(exc)) == told:
                    self.is_lost = True
                    by_seed.note(f"lost: {sorted(told)}")
                    _lost.append(exc)
                    return
                print(f"{sim.trace(TRACE_SHOWN)}\n{sim.books}")
                if any("spin" in fault for fault in sim.faults):
                    raise NotAsleep(sim.faults[0]) from exc
                raise
        untold = errno.EBADR in enters_told(sim.happened)
        require(not untold, ErrorUntold, "a cqe was lost, and nobody was told")
        sim.check()
        # What came before its last events has left its trace in their number and their times.
        try:
            conduct.check(sim.happened, self)
        except AssertionError:
            print(sim.trace(TRACE_SHOWN))
            raise
        by_seed.note(f"{sim.books} {hashlib.sha256(sim.happened).hexdigest()}")

    def stale_cqes(self) -> int:
        assert self.simulation is not None
        return self.simulation.books.stale

    def unbalanced(self) -> list[str]:
        assert self.simulation is not None
        books, handed_over = self.simulation.books, self.simulation.handed_over_max
        limits = {"buffers_out": 0, "in_flight": harness.internal_polls()}
        limits["handed_over"] = handed_over
        return [f"the kernel's {name}" for name in limits if getattr(books, name) > limits[name]]


def enters_told(happened: bytes) -> set[int]:
    """Errors by which a run has lost its ring."""
    lib = load()[1]
    left = lib.SIM_NOTE_LEFT
    answers = {-a for _, _, what, _, a, _ in EVENT.iter_unpack(happened) if what == left}
    return answers & FATAL


def errors_in(exc: BaseException) -> Iterator[int]:
    """Of lost rings."""
    for each in getattr(exc, "exceptions", ()):
        yield from errors_in(each)
    cause = exc.__cause__
    if isinstance(exc, trio.TrioInternalError) and isinstance(cause, OSError):
        yield cause.errno or 0
    elif cause is not None:
        yield from errors_in(cause)


#: Runs that were lost. Their tasks do not come to their ends, and would complain of that.
_lost: list[BaseException] = []


class Task:
    """One task of a program."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope: trio.CancelScope | None = None  # of the step that it is in


class Listener:
    """Who is dialled at it, and by whom that is answered.

    Attributes:
      backlog: of connections in its queue; one more than that finds room.
      pending: in its queue now; a TCP connection may be accepted, and counted, before its
        connect has returned, or is cancelled.
      changed: when that changed last.
      waiting: those who have dialled and asked, by number, until they are answered.
      dropped: connections that were accepted and given up before it was known whose they are.
    """

    def __init__(self, sock: Any, address: Any, family: int, backlog: int) -> None:
        self.sock = sock
        self.backlog = backlog
        self.pending = 0
        self.changed = 0.0
        self.address = address
        self.family = family
        self.numbers = itertools.count()
        self.waiting: dict[int, Any] = {}
        self.answered: set[int] = set()
        self.dropped = 0
        self.accepting = Way(lambda: None)

    def count(self, more: int) -> None:
        self.pending += more
        self.changed = trio.current_time()

    def has_slept(self, began: float) -> bool:
        """Whether who began then has waited for as long as nothing has changed here.

        TCP's is connected for its peer although there is no room, and comes into the queue
        seconds later, or never: it is counted only if there is room for all.
        """
        if self.family != stdlib_socket.AF_UNIX and self.backlog < ROOM_FOR_ALL:
            return False
        return trio.current_time() - max(began, self.changed) >= SLACK_S


class Program:
    """One run of a plan."""

    def __init__(self, plan: Plan, world: World, door: str = "trio") -> None:
        self.plan = plan
        self.world = world
        self.door = door
        self.options = plan["options"]
        self.ends: list[End] = []
        self.listeners: list[Listener] = []
        self.tasks: list[Task] = []
        self.seen: set[str] = set()
        self.network_kinds = self.option("network_kinds", ())
        self.service = Service(self)
        self.crowd: programs_crowd.Crowd | None = None
        self.spare_fd = -1
        self.began = 0.0

    # ---- what it has ---------------------------------------------------------------------

    def option(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)

    async def make_channels(self, nursery: trio.Nursery) -> None:
        kinds = self.option("channels", [])
        await self.service.start(nursery, served_kinds(kinds))
        for number, kind in enumerate(kinds):
            await self.make_channel(number, kind)
        for kind in self.option("listeners", []):
            self.make_listener(kind)
        self.crowd = programs_crowd.make(self, self.option("crowd", 0))
        if self.crowd is not None and isinstance(self.world, SimulatedWorld):
            self.world.crowd_fds = self.crowd.fds

    async def make_channel(self, number: int, kind: str) -> None:
        queues = [queue(2 * number + side, kind, self.network_kinds) for side in (0, 1)]
        rooms = self.option("rooms", [])
        room = ROOMS[(rooms[number] if number < len(rooms) else 0) % len(ROOMS)]
        if kind in SERVED_KINDS:
            ends = await self.served_ends(number, kind, room, queues)
        elif kind.startswith("pipe"):
            ends = self.pipe_ends(kind, queues)
        else:
            ends = self.socket_ends(kind, await self.make_pair(kind, room), queues)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        for side, end in enumerate(ends):
            end.in_turn = self.world.backend != harness.EPOLL
            end.no_memory = "no_buffers" in self.network_kinds
            end.name = f"{number}{'ab'[side]} {kind}"
            end.world = self.world
        self.ends += ends

    async def make_pair(self, kind: str, room: int) -> tuple[Any, Any]:
        """Two connected sockets of the standard library's."""
        if kind.startswith("tcp"):
            pair = await self.tcp_pair(room)
        elif kind == "udp":
            pair = self.world.udp_pair()
        else:
            types = {
                "seqpacket": stdlib_socket.SOCK_SEQPACKET,
                "dgram": stdlib_socket.SOCK_DGRAM,
            }
            pair = self.world.pair(
                stdlib_socket.AF_UNIX, types.get(kind, stdlib_socket.SOCK_STREAM)
            )
        for sock in pair:
            sock.setblocking(False)
            if room and not kind.startswith("tcp"):
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, room)
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, room)
        return pair

    async def tcp_pair(self, room: int) -> tuple[Any, Any]:
        with trio.socket.socket() as listener:
            if room:
                listener.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, room)
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            sock = stdlib_socket.socket()
            if room:
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, room)
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, room)
            client = trio.socket.from_stdlib_socket(sock)
            with trio.fail_after(FINAL_S):
                await client.connect(listener.getsockname())
                server, _ = await listener.accept()
            if room:
                server.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, room)
        return tuple(unwrapped(each) for each in (client, server))  # type: ignore[return-value]

    async def served_ends(self, number: int, kind: str, room: int, queues: list[Any]) -> list[End]:
        served = self.service.serve(number, kind, room, queues)
        sock = await self.service.connect(number, kind, room)
        client = self.socket_end(kind, sock, queues[::-1], raw=kind.endswith("-raw"))
        return [client, served]

    def socket_ends(self, kind: str, pair: tuple[Any, Any], queues: list[Any]) -> list[End]:
        return [
            self.socket_end(kind, pair[0], queues[::-1], raw=False),
            self.socket_end(kind, pair[1], queues, raw=kind.endswith("-raw")),
        ]

    def socket_end(self, kind: str, sock: Any, queues: list[Any], *, raw: bool) -> End:
        """Of a socket that receives what is in the first queue and sends into the second."""
        strict = self.world.strict
        if raw:
            return RawEnd("", sock.detach(), *queues, strict=strict, is_socket=True)
        if kind.startswith("fd"):
            return FdEnd("", sock.detach(), *queues, strict=strict, is_socket=True)
        at_door = AnyioEnd if self.door == "anyio" and kind != "seqpacket" else TrioEnd
        return at_door("", sock, *queues, strict=strict, spare_fd=self.spare_fd)

    def pipe_ends(self, kind: str, queues: list[Any]) -> list[End]:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        strict = self.world.strict
        ends: list[End] = []
        for fd, raw, reads in (
            (reader, kind == "pipe-writer", True),
            (writer, kind == "pipe-reader", False),
        ):
            end: End
            queues_of_it = queues if reads else queues[::-1]
            if raw:
                end = RawEnd("", fd, *queues_of_it, strict=strict, is_socket=False)
            else:
                end = FdEnd("", fd, *queues_of_it, strict=strict, is_socket=False)
            end.reads, end.writes = reads, not reads
            ends.append(end)
        return ends

    def make_listener(self, kind: str) -> None:
        family = stdlib_socket.AF_INET if kind == "tcp" else stdlib_socket.AF_UNIX
        sock = stdlib_socket.socket(family)
        address: Any = ("127.0.0.1", 0)
        if kind == "unix":
            address = ""  # the kernel has a name that is nobody's
        sock.bind(address)  # trio's own would be done in a thread
        # (Stock takes a socket for connected that a full UNIX listener has refused.)
        full = self.world.backend == harness.EPOLL
        backlog = 100 if full else self.option("backlog", 3)
        sock.listen(backlog)
        address = sock.getsockname()
        listener = trio.socket.from_stdlib_socket(sock)
        self.listeners.append(Listener(listener, address, family, backlog))

    # ---- what it does --------------------------------------------------------------------

    async def main(self) -> None:
        self.spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        with trio.move_on_after(PROGRAM_S) as all_of_it, self.service.watched():
            async with trio.open_nursery() as nursery:
                await self.make_channels(nursery)
                await self.run_tasks()
                await self.finish()
                await self.service.finish()
        os.close(self.spare_fd)
        require(not all_of_it.cancelled_caught, NotTold, "it makes no progress")
        self.service.check()
        await self.balance()

    async def run_tasks(self) -> None:
        steps: dict[int, list[Any]] = {}
        for step in self.plan["steps"]:
            steps.setdefault(step[0] % TASKS_MAX, []).append(step)
        self.began = trio.current_time()
        self.tasks = [Task(f"t{number}") for number in range(TASKS_MAX)]
        async with trio.open_nursery() as nursery:
            for number in sorted(steps):
                nursery.start_soon(self.run_task, self.tasks[number], steps[number])

    async def run_task(self, task: Task, steps: list[Any]) -> None:
        for step in steps:
            _, verb, place, size, limit, *further = step
            limit_s = limit / 1000 if limit else PROGRAM_S if verb == "at" else STEP_S
            how = "cancelled"
            with trio.CancelScope(deadline=trio.current_time() + limit_s) as scope:
                task.scope = scope
                how = await self.do(task, verb, place, size, further)
            task.scope = None
            if how == "cancelled":
                self.saw(verb, how)
            self.note(task, verb, place, size, how)

    def note(self, task: Task, verb: str, place: int, size: int, how: str) -> None:
        by_seed.note(f"{trio.current_time():.6f} {task.name} {verb} {place} {size}: {how}")

    def saw(self, verb: str, how: str) -> None:
        first = how.split(" ", 1)[0]
        self.seen.add(f"{verb}: {'some' if first.isdecimal() else how.split(' (')[0]}")

    async def do(self, task: Task, verb: str, place: int, size: int, further: list[Any]) -> str:
        size = min(size, SIZE_MAX)
        if verb == "leave" and self.world.backend == harness.EPOLL:
            verb = "close"  # stock is not told of that, and who waits there waits for ever
        if verb in OF_ENDS:
            how = await self.do_at_end(verb, place, size)
        elif verb == "both":
            how = await self.both(task, further)
        elif verb in OF_SERVICE:
            how = await self.service.others.do(verb, place, size)
            self.saw(verb, how)
        elif verb in OF_LISTENERS:
            if not self.listeners:
                return "left out"
            listener = self.listeners[place % len(self.listeners)]
            how = await getattr(self, verb)(listener, size)
            self.saw(verb, how)
        elif verb in OF_CROWDS:
            if self.crowd is None:
                return "left out"
            how = await self.crowd.do(verb, place, size)
            self.saw(verb, how)
        else:
            how = await getattr(self, verb)(task, place, size)
        return how

    async def do_at_end(self, verb: str, place: int, size: int) -> str:
        if not self.ends:
            return "left out"
        end = self.ends[place % len(self.ends)]
        if (verb in READS and not end.reads) or (verb in WRITES and not end.writes):
            return "left out"
        if end.closed and verb in ("readable", "writable") and self.world.backend == harness.EPOLL:
            return "left out"  # stock raises, and counts a waiter for ever
        call = getattr(end, verb, None)
        for names, instead in ((RECEIVES, "receive"), (SENDS, "send_all"), (CLOSES, "close")):
            if call is None and verb in names:
                call = getattr(end, instead, None)
        if call is None:
            return "left out"
        if verb in (*RECEIVES, *SENDS):
            size = max(1, size)
        how: str = await call(size)
        self.saw(verb, how)
        return how

    async def both(self, task: Task, further: list[Any]) -> str:
        found: list[str] = []

        async def part(verb: str, place: int, size: int) -> None:
            found.append(await self.do(task, verb, place, size, []))

        async with trio.open_nursery() as nursery:
            for each in further:
                if each[0] != "both":
                    nursery.start_soon(part, *each)
        return " + ".join(found)

    async def stop(self, _task: Task, _place: int, size: int) -> str:
        """The servers."""
        return await self.service.stop(size)

    async def sleep(self, _task: Task, _place: int, size: int) -> str:
        await trio.sleep(size / 1000)
        return "slept"

    async def nap(self, _task: Task, _place: int, size: int) -> str:
        """Tenths of a millisecond: less than a pause."""
        await trio.sleep(size / 10_000)
        return "slept"

    async def compute(self, _task: Task, _place: int, size: int) -> str:
        """For so many ms, and nobody else has a turn meanwhile."""
        self.world.compute(size / 1000)
        return "computed"

    async def at(self, _task: Task, _place: int, size: int) -> str:
        """A moment of the program, the same for all tasks."""
        await trio.sleep_until(self.began + size * SCENE_S)
        return "there"

    async def checkpoints(self, _task: Task, _place: int, size: int) -> str:
        for _ in range(size % 16):
            await trio.lowlevel.checkpoint()
        return "done"

    async def settle(self, _task: Task, _place: int, _size: int) -> str:
        await trio.testing.wait_all_tasks_blocked()
        return "settled"

    async def cancel(self, task: Task, place: int, size: int) -> str:
        """After some checkpoints."""
        other = self.tasks[place % len(self.tasks)]
        if other is task:
            return "left out"
        for _ in range(size % 16):
            await trio.lowlevel.checkpoint()
        if other.scope is None:
            return "nobody"
        other.scope.cancel()
        return "cancels"

    # ---- listeners -----------------------------------------------------------------------

    async def dial(self, listener: Listener, size: int) -> str:
        """Connect, ask, and be answered."""
        number = next(listener.numbers)
        size = max(1, size)
        sock: Any = trio.socket.socket(listener.family)
        try:
            began = trio.current_time()
            try:
                await sock.connect(listener.address)
            except trio.Cancelled:
                full = listener.pending > listener.backlog
                asleep = self.world.strict and not full and listener.has_slept(began)
                require(not asleep, NotTold, "slept over room in the queue")
                closed = self.world.backend == harness.EPOLL or sock.fileno() < 0
                require(closed, WrongError, "a socket whose connect was cancelled is not closed")
                raise
            listener.count(1)
            stream = trio.SocketStream(sock)
            question = struct.pack("!HI", number, size) + content(100, number, size)
            await stream.send_all(question)
            listener.waiting[number] = sock
            sock = None
            answer = await receive_exactly(stream, size)
            require(answer == question[6:], WrongBytes, "another one's answer")
            listener.waiting.pop(number).close()
        except (trio.BrokenResourceError, EOFError) as exc:
            # Whoever had accepted it was cancelled, or there was no memory.
            sock = sock or listener.waiting.pop(number)
            if getattr(exc.__cause__, "errno", 0) in NO_MEMORY:
                return "no memory"
            if not listener.dropped and number not in listener.answered:
                raise WrongError("nobody had accepted it") from exc
            return type(exc).__name__
        finally:
            if sock is not None:
                sock.close()
        return "answered"

    async def answer(self, listener: Listener, _size: int) -> str:
        """Accept, and answer."""
        with listener.accepting.use() as use:
            try:
                sock, _ = await listener.sock.accept()
            except trio.BusyResourceError:
                require(use.overlapped, WrongError, "busy, and nobody else accepts")
                return "BusyResourceError"
            except trio.Cancelled:
                awake = len(listener.accepting.uses) > 1 or listener.pending <= 0
                asleep = not awake and listener.has_slept(use.alone)
                require(not asleep, NotTold, "slept over a connection")
                raise
            listener.count(-1)
        listener.dropped += 1  # as long as it is not known whose it is
        with sock:
            stream = trio.SocketStream(sock)
            try:
                number, size = struct.unpack("!HI", await receive_exactly(stream, 6))
                require(number not in listener.answered, WrongBytes, "accepted twice")
                listener.answered.add(number)
                listener.dropped -= 1
                question = await receive_exactly(stream, size)
                right = question == content(100, number, size)
                require(right, WrongBytes, "another one's question")
                await stream.send_all(question)
            except (trio.BrokenResourceError, EOFError) as exc:
                return type(exc).__name__  # the other was cancelled, or there was no memory
        return "answered"

    async def finish_listener(self, listener: Listener) -> None:
        """Who has asked and was not answered is still in the queue."""
        while set(listener.waiting) - listener.answered:
            known = len(listener.answered)
            with trio.move_on_after(SLACK_S) as scope:
                await self.answer(listener, 0)
            # (Nobody takes a long answer any more.)
            if scope.cancelled_caught and len(listener.answered) == known:
                lost = set(listener.waiting) - listener.answered
                few = len(lost) <= listener.dropped
                require(few, BytesLost, f"{len(lost)} connections are lost")
                break
        for sock in listener.waiting.values():
            sock.close()
        listener.sock.close()

    # ---- the end -------------------------------------------------------------------------

    async def finish(self) -> None:
        """What was sent and not received still comes, in order, and then the end."""
        with trio.fail_after(FINAL_S * (1 + len(self.ends))):
            for listener in self.listeners:
                await self.finish_listener(listener)
            if self.crowd is not None:
                await self.crowd.finish()
            for end in self.ends:
                end.has_low_water = False
                if isinstance(end, Served):
                    end.check_idle()
                    await end.s_resume(0)
                elif not end.closed and not end.shut and end.writes and end.is_stream:
                    await end.send_eof(0)  # type: ignore[attr-defined]
            for end in self.ends:
                if not end.closed and end.reads and not isinstance(end, Served):
                    await self.finish_end(end)
            for end in self.ends:
                if not isinstance(end, Served):
                    await end.close(0)  # type: ignore[attr-defined]

    async def finish_end(self, end: Any) -> None:
        while not end.ended:
            if not end.is_stream and not end.incoming.must_hold():
                return
            how = await end.receive(1 << 16)
            if how == "EAGAIN":  # one that does not wait
                await trio.sleep(LOOK_S)
            elif how in GONE_BY_NAME:
                return

    async def balance(self) -> None:
        """Nothing is left in the kernel or in our hands."""
        deadline = trio.current_time() + BOOKS_S
        while problems := self.unbalanced():
            if trio.current_time() > deadline:
                raise harness.BooksError(f"{problems} in {harness.io_statistics()}")
            await trio.sleep(LOOK_S)

    def unbalanced(self) -> list[str]:
        problems = harness.unbalanced()
        made_up = self.world.stale_cqes()
        if "stale_cqes" in problems and harness.io_statistics().stale_cqes <= made_up:
            problems.remove("stale_cqes")
        return [*problems, *self.world.unbalanced()]


async def receive_exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def udp_pair() -> tuple[stdlib_socket.socket, stdlib_socket.socket]:
    pair = [stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) for _ in range(2)]
    for sock in pair:
        sock.bind(("127.0.0.1", 0))
    for sock, other in (pair, pair[::-1]):
        sock.connect(other.getsockname())
    return pair[0], pair[1]


@contextlib.contextmanager
def nothing_left(world: World) -> Iterator[None]:
    """No descriptor and no thread more; trio keeps idle threads, and has them end later."""
    files, threads = harness.open_fds(), gain_tools.busy_threads()
    yield
    if world.is_lost:
        return  # what its tasks had is nobody's
    new = {fd: what for fd, what in harness.open_fds().items() if files.get(fd) != what}
    require(not new, LeftBehind, f"descriptors are left: {new}")
    left = gain_tools.busy_threads() - threads
    require(not left, LeftBehind, f"threads are left: {left}")


def run(plan: Plan, world: World, door: str = "trio") -> Program:
    """Run a program; what it has seen is in it.

    Raises:
      Exception: it does not hold.
    """
    program = Program(plan, world, door)
    with nothing_left(world), trio_pinned(program.option("order", 0)):
        world.run(program.main, plan, door)
    return program


class Generator:
    """Programs on the simulated kernel, through one door: a generator of `by_seed`."""

    def __init__(
        self, name: str, draw: Callable[[random.Random], Plan], door: str = "trio"
    ) -> None:
        self.name = name
        self.draw = draw
        self.door = door

    def run(self, plan: Plan) -> None:
        run(plan, SimulatedWorld(), self.door)


def prepare() -> None:
    """Have what each run of a process needs be there: the product, the simulation, its probe."""
    plan: Plan = {"options": {"channels": ["unix"]}, "steps": [], "kernel": []}
    for door in ("trio", "anyio"):
        run(plan, SimulatedWorld(), door)
