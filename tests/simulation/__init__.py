"""Programs on a simulated kernel: unchanged, in virtual time, and again by their choices.

::

    with simulation.simulated(choices=[0, 3, 0, 1]) as sim:
        sim.run(main)  # trio.run, on the ring of the simulation
    sim.check()  # its books

The kernel is csrc/tests/sim.c, behind the table that all calls of the product go through. So
rings, operations, calls beside them, probes, and all of Python above are what they always are.
Where a kernel may do one thing or another, a stream of small integers decides; 0, and all past
its end, is the plain behaviour. Given a seed it is drawn, and recorded: `Simulation.choices`.

What does not replay: other threads and processes, signals, and the random numbers of TLS and of
the program. trio's own choices do (`pinned`).

Threads. What they are given by `trio.to_thread` takes no virtual time, and a deadline does not
wait for it; only a wait without an end does. Runs of several threads share the time, each by
`Simulation.run`; the workers of a server that has more than one are threads that run by trio's
own clock, and are outside. Guest mode: the host's part, and a helper that waits for the ring's
eventfd, run in virtual time; a helper that is shown eventfds of the program's sleeps for real.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as stdlib_socket
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import builds
import kernel_table
import machine_speed
import trio
from harness import BooksError

import uring_trio
from simulation import clock, trace
from simulation.build import load
from simulation.pinned import trio_pinned
from uring_trio import _kernel, _probe
from uring_trio.gain import _capabilities

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

T = TypeVar("T")

CHOICES_MAX = 65536
ENDLESS_S = 3600  # a longer wait has no end; as in sim.c
TRACE_SHOWN = 60  # events in a failure's message

#: What may be chosen, by name; "fatal" and "stale" no kernel does that works.
KINDS = trace.CHOICES
#: What may be chosen of "network", by name: csrc/tests/net.h.
NETWORK = ("delays", "shorts", "order", "losses", "strangers", "no_buffers")
#: Those that a program need not know of.
NETWORK_HARMLESS = ("delays", "shorts", "order")
HARMLESS = tuple(kind for kind in KINDS if kind not in ("fatal", "stale", "clock"))


@dataclass(frozen=True)
class Switches:
    """Kernels with faults, or without a feature; csrc/tests/sim.h says what each does."""

    no_defer_taskrun: bool = False
    no_single_issuer: bool = False
    accept_waits: bool = False
    pipes_without_nowait: bool = False
    no_multishot_receive: bool = False
    no_inq_of_unix: bool = False
    reset_is_missed: bool = False
    cancel_misses_multishot: bool = False
    refusal_takes_buffer: bool = False
    end_is_missed: bool = False
    small_cq: bool = False
    no_probe: bool = False


@dataclass(frozen=True)
class Books:
    """What was counted; csrc/tests/sim.h."""

    now_ns: int
    enters: int
    sqes: int
    cqes: int
    wakes: int
    choices: int
    rings: int
    in_flight: int
    given_up: int
    buffers_out: int
    mappings: int
    left_waiting: int
    handed_over: int
    overflows: int
    stale: int
    held: int
    faults: int
    never_ending: int


#: Books that must be empty once all rings are closed.
EMPTY_AT_THE_END = (
    *("rings", "in_flight", "given_up", "buffers_out", "mappings", "held"),
    *("left_waiting", "handed_over", "faults", "never_ending"),
)


class Endless(trio.abc.Instrument):
    """Has a run be cancelled that waits for what will never come."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.scope = trio.CancelScope()

    def after_io_wait(self, timeout: float) -> None:
        """The kernel says so when the wait is over."""
        if timeout > ENDLESS_S and self._sim.books.never_ending:
            self.scope.cancel()


class Simulation:
    """The kernel that is in use; made by `simulated`.

    Attributes:
      handed_over_max: requests that it may have given to threads of its own.
    """

    def __init__(self) -> None:
        self._ffi, self._lib = load()
        self._last: tuple[Books, list[int], list[str], bytes] | None = None
        self._last_network: dict[str, int] | None = None
        self.clock = clock.Clock(self._lib.sim_now_ns)
        self.handed_over_max = 0

    def allow_hand_over(self) -> None:
        """One request more, of which that is no fault."""
        self.handed_over_max += 1

    def run(self, async_fn: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """trio's run, on a ring of the simulation and by its clock.

        Raises:
          BooksError: it waited for what would never come, and was cancelled.
        """
        endless = Endless(self)

        async def main() -> T:
            with endless.scope:
                return await async_fn(*args)
            raise BooksError("\n".join([*self.faults, self.trace()]))

        options.setdefault("clock", self.clock)
        options["instruments"] = [endless, *options.get("instruments", ())]
        return uring_trio.run(main, backend="io_uring", **options)

    def pair(
        self,
        family: int = stdlib_socket.AF_UNIX,
        kind: int = stdlib_socket.SOCK_STREAM,
    ) -> tuple[stdlib_socket.socket, stdlib_socket.socket]:
        """Two connected sockets: of the network, if there is one.

        Raises:
          OSError: such a pair is not made.
        """
        fds = self._ffi.new("int[2]")
        error = self._lib.sim_pair(family, kind | stdlib_socket.SOCK_CLOEXEC, fds)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        ours, theirs = (stdlib_socket.socket(family, kind, fileno=fd) for fd in fds)
        return ours, theirs

    def bad_datagram(self, sock: Any, size: int) -> None:
        """A datagram with a wrong checksum comes to a UDP socket of the network."""
        self._lib.net_bad_datagram(self._lib.net_of(sock.fileno()), size)

    def is_readable(self, fd: int) -> bool:
        """What poll(2) says now of a socket of the network; nobody is said to have asked."""
        file = self._lib.net_of(fd)
        told = 0 if file == self._ffi.NULL else self._lib.net_poll(file, select.POLLIN)
        return bool(told & (select.POLLIN | select.POLLERR | select.POLLHUP))

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._lib.sim_sleep(int(seconds * clock.NS))

    @property
    def books(self) -> Books:
        """Of now, or of the end."""
        if self._last is not None:
            return self._last[0]
        found = self._ffi.new("struct sim_books *")
        self._lib.sim_read_books(found)
        return Books(*(int(getattr(found, field.name)) for field in fields(Books)))

    @property
    def network_books(self) -> dict[str, int]:
        """Those of the network: csrc/tests/net.h. At the end, as they were then."""
        if self._last_network is not None:
            return self._last_network
        found = self._ffi.new("struct net_books *")
        self._lib.net_read_books(found)
        names = [name for name, _ in self._ffi.typeof("struct net_books").fields]
        return {name: int(getattr(found, name)) for name in names}

    @property
    def choices(self) -> list[int]:
        """Those that were made, without the plain ones at the end."""
        if self._last is not None:
            return self._last[1]
        made = self._ffi.new("uint32_t[]", CHOICES_MAX)
        return list(made[0 : self._lib.sim_choices_made(made, CHOICES_MAX)])

    @property
    def faults(self) -> list[str]:
        """What must never happen, and did."""
        if self._last is not None:
            return self._last[2]
        found: list[str] = []
        while (text := self._lib.sim_fault_text(len(found))) != self._ffi.NULL:
            found.append(self._ffi.string(text).decode())
        return found

    def trace(self, count: int = TRACE_SHOWN) -> str:
        """The last events, one a line."""
        happened = self.happened
        size = self._ffi.sizeof("struct sim_event")
        events = self._ffi.from_buffer("struct sim_event[]", happened)
        made = len(happened) // size
        return "\n".join(trace.lines(events[max(0, made - count) : made], self._lib))

    @property
    def happened(self) -> bytes:
        """All events, or the last 131,072 of them: equal if the same has happened."""
        if self._last is not None:
            return self._last[3]
        made = self._lib.sim_trace_length()
        events = self._ffi.new("struct sim_event[]", made)
        self._lib.sim_read_trace(events, made)
        return bytes(self._ffi.buffer(events))

    def check(self) -> None:
        """That the books are empty: to be asked when all rings are closed.

        Raises:
          BooksError: they are not; with what happened last.
        """
        books, limits = self.books, {"handed_over": self.handed_over_max}
        found = {name: getattr(books, name) for name in EMPTY_AT_THE_END}
        wrong = [f"{name} = {n}" for name, n in found.items() if n > limits.get(name, 0)]
        if wrong:
            raise BooksError("\n".join([", ".join(wrong), *self.faults, self.trace()]))

    def _end(self) -> None:
        self._last_network = self.network_books
        self._last = self.books, self.choices, self.faults, self.happened
        self._lib.sim_close()


def _open(switches: Switches, choices: Sequence[int]) -> None:
    ffi, lib = load()
    given = ffi.new("struct sim_switches *")
    for field in fields(switches):
        setattr(given, field.name, getattr(switches, field.name))
    lib.sim_open(given, ffi.new("uint32_t[]", choices), len(choices))


@contextlib.contextmanager
def _in_use() -> Iterator[None]:
    ffi, lib = load()
    engine_ffi, engine_lib = _kernel.load_extension()
    address = int(ffi.cast("uintptr_t", lib.sim_table()))
    table = engine_ffi.cast("struct ut_kernel *", address)
    with contextlib.ExitStack() as stack:
        if builds.loaded() == "guard":
            table = engine_lib.guard_over(table)
            stack.callback(engine_lib.guard_over, engine_ffi.NULL)
        stack.enter_context(kernel_table.in_use(table))
        yield


#: What each kernel did when it was tried, without choices.
_known: dict[Switches, tuple[Any, Any]] = {}


def _knowledge(switches: Switches) -> tuple[Any, Any]:
    if switches not in _known:
        with _asked_anew():
            _open(switches, ())
            with _in_use(), _virtual_time():
                probe = _probe.kernel_probe()
                capabilities = None if probe.error else _capabilities.capabilities()
            load()[1].sim_close()
        _known[switches] = probe, capabilities
    return _known[switches]


@contextlib.contextmanager
def _asked_anew() -> Iterator[None]:
    """What this process knows of its kernel is kept for later."""
    state, found = _probe._state, _capabilities._found
    _probe._state, _capabilities._found = _probe.ProcessState(), None
    try:
        yield
    finally:
        _probe._state, _capabilities._found = state, found


@contextlib.contextmanager
def _virtual_time() -> Iterator[None]:
    lib = load()[1]
    with clock.in_use(lib.sim_now_ns, lambda seconds: lib.sim_sleep(int(seconds * clock.NS))):
        yield


@contextlib.contextmanager
def simulated(
    choices: Sequence[int] = (),
    *,
    seed: int | None = None,
    kinds: Iterable[str] = HARMLESS,
    switches: Switches | None = None,
    schedule: int = 0,
    patience: float = 1.0,
    probing: bool = False,
    network: bool = False,
    network_kinds: Iterable[str] = NETWORK_HARMLESS,
) -> Iterator[Simulation]:
    """Put a simulated kernel in use, in this process.

    Args:
      choices: what is chosen, in turn.
      seed: instead of these.
      kinds: what may be chosen at all.
      switches: the kernel's faults.
      schedule: the seed of trio's order of tasks.
      patience: seconds of an idle machine's time that a wait which nothing simulated ends looks at the
        machine's files.
      probing: have the product try this kernel, by its choices; else it knows already what it
        would find without any. (What servers try needs the machine's files.)
      network: sockets that are not connected when they are first used are files of a network
        without a kernel; else all are the machine's.
      network_kinds: what may be chosen in it.
    """
    switches = switches or Switches()
    knowledge = _knowledge(switches)
    _, lib = load()
    with _asked_anew(), trio_pinned(schedule):
        if not probing:
            _probe._state.remember_probe(knowledge[0])
        if not probing or network:  # its trials look at their sockets by select.poll
            _capabilities._found = knowledge[1]
        _open(switches, choices)
        if seed is not None:
            lib.sim_draw_choices(seed)
        lib.sim_allow(sum(1 << KINDS.index(kind) for kind in kinds))
        lib.sim_set_patience(int(patience * machine_speed.slowness() * 1000))
        if network:
            lib.sim_use_network(sum(1 << NETWORK.index(kind) for kind in network_kinds))
        sim = Simulation()
        try:
            with _in_use(), _virtual_time():
                yield sim
        finally:
            sim._end()


__all__ = ["HARMLESS", "KINDS", "Books", "BooksError", "Simulation", "Switches", "simulated"]
