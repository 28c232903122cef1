"""Random programs for callback servers: servers in the run, their clients, and tasks beside them.

A channel is a connection here: its even end is the client's, one of `programs_ends`, and its odd
end is the server's, a `Served` (`gain_ends`), whose verbs begin with ``s_``. A handler
(`gain_handlers`) takes its input in the way that the plan says, holds it against the model, and
answers; tasks of the program write, pause, close and abort beside it. *Visitors* come and go,
and *strangers* do to a server's files what another process might (`gain_others`).

What is held against the model, besides what `programs_ends` does:

- ``on_accept`` comes first and once, ``on_close`` last and once, and no two callbacks overlap;
- ``on_read`` tells of each byte once, and before an end of file every byte was told of;
- ``on_write`` adds up to what was written, if the connection ends well;
- a clean close loses nothing of what was written;
- there are never more connections than are allowed, and who waits gets a place that is free;
- what is due is done, a tick too, and a server that is stopped ends in time;
- time goes by: a server that turns without an end, and without its clock, would take a CPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any

import trio

from simulation.faults import Logged, NotAsleep, NotTold, WrongCount, WrongOrder, require
from simulation.gain_ends import EARLY_S, PAUSE_S, Served
from simulation.gain_handlers import HANDLERS, Datagrams, Unknown
from simulation.gain_others import Others
from simulation.pinned import threads_in_time
from simulation.programs_ends import NO_MEMORY, SLACK_S, unwrapped
from simulation.programs_model import ENDLESS, MessageQueue
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulation.programs import Program

KINDS = ("served-unix", "served-unix-raw", "served-tcp", "served-tcp-raw", "served-udp")
DRAIN_S = 3.0
FINISH_S = 500.0
LOOK_S = 31.0  # between two looks at what is due
ON_CLOSE_S = 5.0  # that an async on_close has when its server is aborted
MOMENT_S = 0.001  # an enter takes some ns, and nothing else any time
TURNS_MAX = 8000  # of a run, in a moment
DATAGRAM_MAX = 65_507
OVERHEAD = 500  # bytes that a datagram takes in a buffer beside its own
STRICT_MAX = 90_000  # bytes of datagrams: a buffer that is left as it is has room for the double

# What an option is that a plan does not name.
READ_BUFFER_LIMIT = 65_536
WRITE_HIGH_WATER = 65_536
CLOSE_TIMEOUT_S = 30.0
STUCK_TIMEOUT_S = 10.0


def served_kinds(channels: list[Any]) -> set[str]:
    """The networks of those channels that are connections to servers."""
    return {kind.split("-")[1] for kind in channels if kind in KINDS}


class Turns(trio.abc.Instrument):
    """Has a run end that turns and turns while next to no time goes by."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._since = -1.0
        self.count = 0

    def before_io_wait(self, _timeout: float) -> None:
        """One more turn."""
        now = self._service.now()
        if now - self._since > MOMENT_S:
            self._since, self.count = now, 0
        self.count += 1
        if self.count == TURNS_MAX:
            self._service.note_fault(NotAsleep(f"{TURNS_MAX} turns until {now:.6f}"))


class Errors(logging.Handler):
    """Has a server's errors be faults."""

    def __init__(self, service: Service) -> None:
        super().__init__(logging.ERROR)
        self._service = service

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        text = record.getMessage()
        if not self._service.expects(text):
            self._service.note_fault(Logged(text))


class Seat:
    """One server of a program.

    Attributes:
      specs: where it listens.
      server: the one that is started, again and again.
      accepted, closed: connections.
      ended: it is over, since it was started last; before that it is not.
      stop_by: when it has to be; inf: nobody has stopped it.
      room_since: since when there has been a place for one connection more.
      shut: indices of addresses that somebody else has shut.
      was_robbed: somebody else has taken connections of it.
      started, began: how often it was, and when that was last.
      ticks, ticked_at: how many there were since, and when the last was.
    """

    def __init__(self, service: Service, specs: list[str], handler: Any, config: gain.Config):
        self.service = service
        self.specs = specs
        self.server = gain.Server(handler, config)
        self.config = config
        self.accepted = self.closed = 0
        self.unknown: set[Any] = set()
        self.ended = trio.Event()
        self.stop_by = self.drain_by = float("inf")
        self.room_since = 0.0
        self.began = self.ticked_at = 0.0
        self.ticks = 0
        self.shut: set[int] = set()
        self.was_robbed = False
        self.started = 0

    # ---- from its start to its end -------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """Once. Of two that start it at the same time one is refused, and changes nothing."""
        if self.started and not self.ended.is_set():
            await self.server.serve(self.specs, task_status=task_status)
            require(False, WrongOrder, "a server is started that has not ended")
        self.ended = trio.Event()
        self.stop_by = self.drain_by = float("inf")
        self.room_since = self.ticked_at = self.began = self.service.now()
        self.ticks = 0
        self.shut.clear()
        self.started += 1
        try:
            await self.server.serve(self.specs, task_status=task_status)
        finally:
            self.ended.set()
            self.check_end()

    def stop(self, drain_s: float) -> None:
        now = self.service.now()
        self.drain_by = min(self.drain_by, now + drain_s)
        self.stop_by = min(self.stop_by, now + drain_s + ON_CLOSE_S + SLACK_S)
        self.server.async_shutdown(drain_s)

    def check_end(self) -> None:
        """It holds nothing any more."""
        require(self.accepted == self.closed, NotTold, f"{self.open} connections, and it has ended")
        for worker in self.server.statistics().workers:
            left = (worker.connections, worker.buffers_leased, worker.bytes_buffered)
            require(left == (0, 0, 0), WrongCount, f"{worker}")
            require(not worker.operations_in_flight, WrongCount, f"{worker}")

    # ---- what its handler tells ----------------------------------------------------------

    @property
    def open(self) -> int:
        return self.accepted - self.closed

    def enter(self, conn: Any) -> None:
        """A connection."""
        self.accepted += 1
        self.unknown.add(conn)
        most = self.config.max_connections
        if most is not None:
            require(self.open <= most, WrongCount, f"{self.open} connections of at most {most}")
            if self.open == most:
                self.room_since = float("inf")

    def leave(self, conn: Any) -> None:
        """It is closed."""
        self.closed += 1
        self.unknown.discard(conn)
        require(self.closed <= self.accepted, WrongOrder, "closed twice")
        if self.room_since == float("inf"):
            self.room_since = self.service.now()

    def ticked(self) -> None:
        now, tick = self.service.now(), self.config.tick
        require(tick is not None, WrongOrder, "a tick of a server without one")
        assert tick is not None
        self.ticks += 1
        most = (now - self.began) / tick + EARLY_S
        require(self.ticks <= most, WrongOrder, f"{self.ticks} ticks, where {most:.3f} are due")
        self.ticked_at = now

    # ---- what is due ---------------------------------------------------------------------

    def is_at_work(self) -> bool:
        """It runs, and nobody has stopped it."""
        return self.stop_by == float("inf") and not self.ended.is_set()

    def has_long_had_room(self) -> bool:
        """Whether it has been there for whoever has come, for as long as anything takes."""
        return self.is_at_work() and self.service.now() - self.room_since >= SLACK_S

    def check_due(self) -> None:
        now, tick = self.service.now(), self.config.tick
        require(self.ended.is_set() or now <= self.stop_by, NotTold, "the server does not end")
        if not self.is_at_work():
            return
        if tick is not None:
            require(now - self.ticked_at <= tick + SLACK_S, NotTold, "a tick does not come")
        for conn in list(self.unknown):
            found = conn.context
            if not isinstance(found, Unknown):
                self.unknown.discard(conn)
            else:
                late = now - found.since > SLACK_S
                require(not late, NotTold, "a connection of whose first byte nobody was told")


class Service:
    """The servers of a program, and their ends of its channels.

    Attributes:
      served: by the channel's number.
      seats: by their servers.
      stopping: somebody has ended one, perhaps to start it again.
      faults: that were found where nobody lets them through.
    """

    def __init__(self, program: Program) -> None:
        option = program.option
        self.program = program
        self.served: dict[int, Served] = {}
        self.seats: dict[Any, Seat] = {}
        self.by_network: dict[str, Seat] = {}
        self.stopping: bool = False
        self.faults: list[BaseException] = []
        self.others = Others(self)
        self.no_memory: bool = "no_buffers" in program.network_kinds
        self.read_buffer_limit = option("read_buffer_limit", 0) or READ_BUFFER_LIMIT
        self.low_water = (option("write_high_water", 0) or WRITE_HIGH_WATER) // 4
        self.close_timeout_s = option("close_timeout", 0) / 1000 or CLOSE_TIMEOUT_S
        self.stuck_timeout_s = option("stuck_input_timeout", 0) / 1000 or STUCK_TIMEOUT_S
        self.in_threads = option("in_threads", 0) % 3
        self.is_strict = bool(option("write_strict", False))
        kind = HANDLERS[option("handler", 0) % len(HANDLERS)]
        self.tells_eof = hasattr(kind, "on_eof") and kind.on_eof is not gain.EventHandler.on_eof
        self.handler = kind(self)
        self.turns = Turns(self)
        self._errors = Errors(self)
        self._nursery: trio.Nursery | None = None
        self._looking = trio.CancelScope()
        self._expected: set[str] = set()

    @property
    def simulation(self) -> Any:
        """The kernel: servers are in no other world."""
        world: Any = self.program.world
        assert world.simulation is not None
        return world.simulation

    def now(self) -> float:
        """Of the run, also in a thread."""
        return float(self.simulation.clock.current_time())

    # ---- the servers ---------------------------------------------------------------------

    async def start(self, nursery: trio.Nursery, kinds: set[str]) -> None:
        if not kinds:
            return
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        streams = sorted(kinds - {"udp"})
        together = self.program.option("together", False)
        for group in [streams] if together and streams else [[kind] for kind in streams]:
            specs = [spec for kind in group for spec in self._specs(kind)]
            await self._seat(group, specs, self.handler, self._options())
        if "udp" in kinds:
            size = self.program.option("udp_send_buffer", 0)
            options = {**self._common(), "socket_send_buffer_size": size}
            await self._seat(["udp"], self._specs("udp"), Datagrams(self), options)
        nursery.start_soon(self._look_on)

    async def _seat(
        self, networks: list[str], specs: list[str], handler: Any, options: dict[str, Any]
    ) -> None:
        assert self._nursery is not None
        seat = Seat(self, specs, handler, gain.Config(workers=1, **options))
        self.seats[seat.server] = seat
        self.by_network |= dict.fromkeys(networks, seat)
        await self._nursery.start(seat.serve)

    def _specs(self, kind: str) -> list[str]:
        number = f"{os.getpid()} {threading.get_ident()}"
        count = 1 + bool(self.program.option("two_addresses", False))
        return [
            f"unix://@served {number} {index}" if kind == "unix" else f"{kind}://127.0.0.1:0"
            for index in range(count)
        ]

    def _common(self) -> dict[str, Any]:
        tick_ms = self.program.option("tick", 0)
        return {"tick": tick_ms / 1000} if tick_ms else {}

    def _options(self) -> dict[str, Any]:
        option = self.program.option
        found = {
            "read_buffer_limit": option("read_buffer_limit", 0),
            "write_high_water": option("write_high_water", 0),
            "max_connections": option("max_connections", 0),
            "close_timeout": option("close_timeout", 0) / 1000,
            "stuck_input_timeout": option("stuck_input_timeout", 0) / 1000,
            "write_strict": self.is_strict,
            "async_handler": bool(self.in_threads),
        }
        return {**self._common(), **{name: value for name, value in found.items() if value}}

    async def stop(self, size: int) -> str:
        """All of them."""
        self.stopping = True
        for seat in self.seats.values():
            seat.stop(size / 1000)
        return "stopped"

    async def restart(self, place: int, size: int) -> str:
        """One of them ends, and is started again."""
        assert self._nursery is not None
        seat = list(self.seats.values())[place % len(self.seats)]
        self.stopping = True
        seat.stop(size / 1000)
        await seat.ended.wait()
        await trio.lowlevel.checkpoint()
        if not seat.ended.is_set() or seat.server.is_running():
            return "somebody else has"
        try:
            await self._nursery.start(seat.serve)
        except gain.InvalidState:
            return "InvalidState"
        except RuntimeError:  # trio's: it ended before it could be used
            require(seat.stop_by < float("inf"), NotTold, "a server does not start")
            return "stopped before it listens"
        return "started"

    def may_be_aborted(self) -> bool:
        """Whether a server has been stopped, and its time to send what waits is over."""
        now = self.now()
        return any(now >= seat.drain_by - EARLY_S for seat in self.seats.values())

    # ---- clients -------------------------------------------------------------------------

    def address(self, network: str, index: int) -> tuple[Seat, int, Any] | None:
        """One of a server's addresses there; None: it has none now."""
        seat = self.by_network[network]
        found = [
            (number, address)
            for number, address in enumerate(seat.server.addresses())
            if address.network == network
        ]
        if not found:
            return None
        number, address = found[index % len(found)]
        return seat, number, address[0] if network == "unix" else tuple(address)

    async def connect(self, number: int, kind: str, room: int) -> stdlib_socket.socket:
        """A client's socket, which has said who it is."""
        network = kind.split("-")[1]
        found = self.address(network, number)
        assert found is not None
        family = stdlib_socket.AF_UNIX if network == "unix" else stdlib_socket.AF_INET
        type_ = stdlib_socket.SOCK_DGRAM if network == "udp" else stdlib_socket.SOCK_STREAM
        sock = stdlib_socket.socket(family, type_)
        if room:
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, room)
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, room)
        client = trio.socket.from_stdlib_socket(sock)
        await client.connect(found[2])
        while network != "udp":
            try:
                require(await client.send(bytes((number,))) == 1, WrongCount, "a byte is sent")
            except OSError as exc:
                if exc.errno not in NO_MEMORY:
                    raise
            else:
                break
        return unwrapped(client)

    def serve(self, number: int, kind: str, room: int, queues: list[Any]) -> Served:
        """Its end of a channel."""
        for each in queues:
            if isinstance(each, MessageQueue) and not room and self._carries_all():
                each.loses = False
                each.holds = ENDLESS
        served = Served(self, queues[0], queues[1])
        takes = self.program.option("takes", [])
        answers = self.program.option("answers", [])
        served.ways = (
            takes[number] if number < len(takes) else 0,
            answers[number] if number < len(answers) else 0,
        )
        served.network = kind.split("-")[1]
        self.served[number] = served
        return served

    def _carries_all(self) -> bool:
        """Whether no datagram can be lost, or come out of its order, by the network's doing."""
        if {"losses", "order", "no_buffers"} & {*self.program.network_kinds}:
            return False
        channels = self.program.option("channels", [])
        total = 0
        for _, verb, place, size, _, *further in self.program.plan["steps"]:
            for what, where, much in ((verb, place, size), *further):
                if what in ("steal", "spoil"):
                    return False
                if channels[where // 2 % len(channels)] == "served-udp":
                    total += min(much, DATAGRAM_MAX) + OVERHEAD
        return total < STRICT_MAX

    def gives_up(self, served: Served) -> bool:
        """Whether its listener has ended, or others have taken of its queue."""
        seat = self.by_network[served.network]
        return bool(self.stopping or seat.shut or seat.was_robbed)

    def has_long_had_room(self, served: Served) -> bool:
        seat = self.by_network[served.network]
        return seat.has_long_had_room()

    # ---- what is found -------------------------------------------------------------------

    def note_fault(self, fault: BaseException) -> None:
        """Have the program end with it, unless it does already, with another."""
        assert self._nursery is not None
        scope = self._nursery.cancel_scope
        if scope.cancel_called:
            return
        self.faults.append(fault)
        if threading.get_ident() == self._thread:
            scope.cancel()
        else:
            self._token.run_sync_soon(scope.cancel)

    def expect(self, text: str) -> None:
        """A server is going to log that."""
        self._expected.add(text)

    def expects(self, text: str) -> bool:
        return any(each in text for each in self._expected)

    async def _look_on(self) -> None:
        with self._looking:
            while True:
                await trio.sleep(LOOK_S)
                self.look()

    def look(self) -> None:
        """What is due is done."""
        for seat in self.seats.values():
            seat.check_due()
        for served in self.served.values():
            served.check_due()

    async def finish(self) -> None:
        """All clients are gone: so are their connections, soon."""
        seats = self.seats.values()
        with trio.move_on_after(FINISH_S):
            while any(seat.open for seat in seats) or self._is_awaited():  # noqa: ASYNC110 - looks
                await trio.sleep(1)
        for seat in seats:
            counts = f"{seat.accepted} connections accepted, {seat.closed} closed"
            require(not seat.open, NotTold, counts)
        self._looking.cancel()
        self.stopping = True  # one that its client has aborted may be accepted now
        for seat in seats:
            seat.stop(DRAIN_S)

    def _is_awaited(self) -> bool:
        """Whether a client that is gone has a connection which was not accepted yet."""
        return any(served.is_stream and served.is_awaited() for served in self.served.values())

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A program with servers: what they log, and how they turn."""
        if not served_kinds(self.program.option("channels", [])):
            yield
            return
        logger = logging.getLogger("uring_trio.gain")
        trio.lowlevel.add_instrument(self.turns)
        logger.addHandler(self._errors)
        try:
            with threads_in_time(PAUSE_S):
                yield
        except BaseException as exc:
            for fault in self.faults:  # what comes of it is not to be told first
                raise fault from exc
            raise
        finally:
            logger.removeHandler(self._errors)
            trio.lowlevel.remove_instrument(self.turns)
        self.check()

    def check(self) -> None:
        """All servers have ended."""
        for fault in self.faults:
            raise fault
        for seat in self.seats.values():
            require(seat.ended.is_set(), NotTold, "a server has not ended")
