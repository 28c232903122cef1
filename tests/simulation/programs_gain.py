"""Random programs for callback servers: one server in the run, its clients, and tasks beside it.

A channel is a connection here: its even end is the client's, one of `programs_ends`, and its odd
end is the server's, a `Served`, whose verbs begin with ``s_``. The first byte that a client sends
says which channel it is. A handler takes its input in the way that the plan says, holds it
against the model, and answers; tasks of the program write, pause, close and abort beside it.

What is held against the model, besides what `programs_ends` does:

- ``on_accept`` comes first and once, ``on_close`` last and once, and no two callbacks overlap;
- ``on_read`` tells of each byte once, and before an end of file every byte was told of;
- ``on_write`` adds up to what was written, if the connection ends well;
- a clean close loses nothing of what was written.
"""

from __future__ import annotations

import functools
import io
import math
import os
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any

import trio

from simulation.programs_ends import NO_MEMORY, End, unwrapped
from uring_trio import gain

if TYPE_CHECKING:
    from simulation.programs import Program

KINDS = ("served-unix", "served-unix-raw", "served-tcp", "served-tcp-raw", "served-udp")
TAKES = 6  # ways to take input
ANSWERS = 4  # ways to answer
PAUSE_S = 0.003  # of an async callback
DRAIN_S = 3.0
FINISH_S = 500.0
EARLY_S = 1e-6  # a float's
LATE_S = 5.0
ANSWER_MAX = 1 << 16

OF_SERVER = (
    *("s_write", "s_writev", "s_read_from", "s_close", "s_abort", "s_send_eof", "s_pause"),
    *("s_resume", "s_deadline", "s_idle", "s_limit", "s_drain", "s_task"),
)


class Service:
    """The servers of a program, and their ends of its channels.

    Attributes:
      served: by the channel's number.
      stopping: somebody has ended it.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.handler = HANDLERS[program.option("handler", 0) % len(HANDLERS)](self)
        self.served: dict[int, Served] = {}
        self.servers: dict[str, Any] = {}
        self.stopping = False
        takes = program.option("takes", [])
        self.may_be_stuck = any(way % TAKES in (2, 3) for way in takes)
        self.no_memory = "no_buffers" in program.option("network_kinds", ())

    async def start(self, nursery: trio.Nursery, kinds: set[str]) -> None:
        for kind in sorted(kinds):
            number = f"{os.getpid()} {threading.get_ident()}"
            address = {
                "unix": f"unix://@served {number}",
                "tcp": "tcp://127.0.0.1:0",
                "udp": "udp://127.0.0.1:0",
            }[kind]
            handler = Datagrams(self) if kind == "udp" else self.handler
            options = {} if kind == "udp" else self.options()
            start = functools.partial(gain.serve, workers=1, **options)
            self.servers[kind] = await nursery.start(start, address, handler)

    def options(self) -> dict[str, Any]:
        option = self.program.option
        found = {
            "read_buffer_limit": option("read_buffer_limit", 0),
            "write_high_water": option("write_high_water", 0),
            "max_connections": option("max_connections", 0),
        }
        return {name: value for name, value in found.items() if value}

    async def connect(self, number: int, kind: str, room: int) -> stdlib_socket.socket:
        """A client's socket, which has said who it is."""
        network = kind.split("-")[1]
        address = self.servers[network].addresses()[0]
        family = stdlib_socket.AF_UNIX if network == "unix" else stdlib_socket.AF_INET
        type_ = stdlib_socket.SOCK_DGRAM if network == "udp" else stdlib_socket.SOCK_STREAM
        sock = stdlib_socket.socket(family, type_)
        if room:
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, room)
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, room)
        client = trio.socket.from_stdlib_socket(sock)
        await client.connect(address[0] if network == "unix" else tuple(address))
        while network != "udp":
            try:
                assert await client.send(bytes((number,))) == 1
            except OSError as exc:
                if exc.errno not in NO_MEMORY:
                    raise
            else:
                break
        return unwrapped(client)

    def serve(self, number: int, queues: list[Any]) -> Served:
        """Its end of a channel."""
        served = Served(self, queues[0], queues[1])
        takes = self.program.option("takes", [])
        answers = self.program.option("answers", [])
        served.ways = (
            takes[number] if number < len(takes) else 0,
            answers[number] if number < len(answers) else 0,
        )
        self.served[number] = served
        return served

    async def stop(self, size: int) -> str:
        self.stopping = True
        for server in self.servers.values():
            server.async_shutdown(size / 1000)
        return "stopped"

    async def finish(self) -> None:
        """All clients are gone: so are their connections, soon."""
        handler = self.handler
        with trio.move_on_after(FINISH_S):
            while handler.closed < handler.accepted:  # noqa: ASYNC110 - looks, as a user does
                await trio.sleep(1)
        assert handler.closed == handler.accepted, (
            f"{handler.accepted} connections accepted, {handler.closed} closed"
        )
        for server in self.servers.values():
            server.async_shutdown(DRAIN_S)

    def check(self) -> None:
        """All servers have ended."""
        for server in self.servers.values():
            for worker in server.statistics().workers:
                left = (worker.connections, worker.buffers_leased, worker.bytes_buffered)
                assert left == (0, 0, 0), worker
                assert not worker.operations_in_flight, worker


class Served(End):
    """The server's end of a connection.

    Attributes:
      conn: None until the client has said who it is.
      told: bytes that ``on_read`` has told of.
      promised, written: bytes that were written, and that ``on_write`` has told of.
      may_lapse: a deadline or a limit may end it.
      due: when its deadline is, as it was set last; inf: it has none.
      idle, idle_since: seconds that it may be idle, and since when that holds.
      lapsed: one of them had come before it was set anew.
      is_over: ``on_close`` was called.
    """

    def __init__(self, service: Service, incoming: Any, outgoing: Any) -> None:
        super().__init__("", incoming, outgoing, strict=False)
        self.service = service
        self.conn: Any = None
        self.told = self.promised = self.written = 0
        self.may_lapse = self.is_over = self.takes_all = False
        self.ways = (0, 0)
        self.due = math.inf
        self.idle, self.idle_since = math.inf, 0.0
        self.lapsed = False

    def may_have_ended(self) -> bool:
        # The peer's end of file closes it as well, in its own time.
        peer = self.peer
        return (
            self.shut
            or self.closed
            or self.may_lapse
            or self.service.stopping
            or peer.shut
            or peer.closed
        )

    def has_ended(self) -> bool:
        return self.is_over

    # ---- what the handler does -----------------------------------------------------------

    def take(self, n: int) -> bytes:
        """Some of the input, in one of the ways."""
        conn = self.conn
        way = self.ways[0] % TAKES
        if way == 1:
            return bytes(conn.next(n))
        if way == 2:
            return bytes(conn.read(1 + n // 2))
        if way == 3:
            data = bytes(conn.peek())
            half = data[: len(data) // 2 + 1]
            assert conn.discard(len(half)) == len(half)
            return half
        if way == 4:
            buffer = bytearray(n)
            return bytes(buffer[: conn.read_into(buffer)])
        if way == 5:
            file = io.BytesIO()
            conn.write_to(file)
            return file.getvalue()
        return bytes(conn.next())

    def took(self, data: bytes) -> None:
        self.touch()
        self.incoming.receive(data)

    def answer(self, n: int) -> None:
        if self.shut:
            return
        way = self.ways[1] % ANSWERS
        if way:
            self.put(min((0, n, 3 * n, 1)[way], ANSWER_MAX), "write")

    def put(self, size: int, how: str) -> str:
        """Write so much."""
        piece = self.outgoing.begin(max(1, size))
        data = piece.data
        half = len(data) // 2
        if self.conn is None:
            piece.sent(0)
            return "left out"
        if how == "writev":
            count = self.conn.writev([data[:half], bytearray(data[half:])])
        elif how == "read_from":
            count = self.conn.read_from(io.BytesIO(data))
        else:
            count = self.conn.write(data)
        assert count in (0, len(data))
        assert count or self.may_have_ended() or self.aborted, "nothing is written"
        piece.sent(count)
        self.promised += count
        self.touch()
        return f"{count}"

    # ---- what is held against the model --------------------------------------------------

    def check_told(self) -> None:
        """The peer's end was told of: so was every byte before it."""
        assert self.peer.shut or self.peer.closed, f"{self.name}: an end that is none"
        if self.may_be_reset():
            return
        left = sum(max(0, piece.least - piece.taken) for piece in self.incoming.pieces)
        assert self.told >= self.incoming.total + left, f"{self.name}: an end before its input"

    def check_idle(self) -> None:
        """Who has been idle for too long is closed."""
        last = max(self.idle_since, self.changed, self.peer.changed)
        late = trio.current_time() - last > self.idle + LATE_S
        assert self.is_over or not late, f"{self.name}: idle, and not closed"

    def has_lapsed(self) -> bool:
        """Whether its deadline may have come; once it has, another one does not take it back."""
        due = min(self.due, self.idle_since + self.idle)
        return self.lapsed or trio.current_time() >= due - EARLY_S

    def check_error(self, err: BaseException) -> None:
        """It was closed with this: there is a cause."""
        peer = self.peer
        if isinstance(err, gain.StuckInput):
            assert self.service.may_be_stuck or self.may_lapse
        elif isinstance(err, gain.DeadlineExceeded):
            assert self.has_lapsed(), f"{self.name}: a deadline comes too early"
        elif isinstance(err, TimeoutError):
            assert self.shut or peer.shut or peer.closed or self.service.stopping
        else:
            assert isinstance(err, OSError), f"{self.name}: {err!r}"
            assert peer.closed or peer.aborted or self.service.no_memory, f"{self.name}: {err!r}"

    # ---- what tasks do beside it ---------------------------------------------------------

    def _quietly(self, call: Any, *arguments: Any) -> str:
        if self.conn is None:
            return "left out"
        try:
            call(*arguments)
        except gain.ConnectionClosed:
            assert self.may_have_ended() or self.is_over
            return "ConnectionClosed"
        return "done"

    def _put(self, size: int, how: str) -> str:
        try:
            return self.put(size, how)
        except gain.ConnectionClosed:
            assert self.shut
            self.outgoing.pieces[-1].sent(0)
            return "ConnectionClosed"

    async def s_write(self, size: int) -> str:
        return self._put(size, "write")

    async def s_writev(self, size: int) -> str:
        return self._put(size, "writev")

    async def s_read_from(self, size: int) -> str:
        return self._put(size, "read_from")

    async def s_close(self, _size: int) -> str:
        if self.conn is not None:
            self.shut = True
        return self._quietly(lambda: self.conn.close())

    async def s_abort(self, _size: int) -> str:
        if self.conn is not None:
            self.shut = self.aborted = True
        return self._quietly(lambda: self.conn.abort())

    async def s_send_eof(self, _size: int) -> str:
        if self.conn is not None:
            self.shut = True
        return self._quietly(lambda: self.conn.send_eof())

    async def s_pause(self, _size: int) -> str:
        return self._quietly(lambda: self.conn.pause_reading())

    async def s_resume(self, _size: int) -> str:
        return self._quietly(lambda: self.conn.resume_reading())

    async def s_deadline(self, size: int) -> str:
        if self.conn is None:
            return "left out"
        self.may_lapse = True
        self.lapsed = self.has_lapsed()
        self.due = trio.current_time() + size / 1000
        return self._quietly(lambda: self.conn.set_deadline(size / 1000))

    async def s_idle(self, size: int) -> str:
        if self.conn is None:
            return "left out"
        self.may_lapse = True
        self.lapsed = self.has_lapsed()
        self.idle, self.idle_since = size / 1000 or math.inf, trio.current_time()
        return self._quietly(lambda: self.conn.set_idle_timeout(size / 1000 or None))

    async def s_limit(self, size: int) -> str:
        self.may_lapse = True
        return self._quietly(lambda: self.conn.set_read_buffer_limit(max(1, size)))

    async def s_drain(self, _size: int) -> str:
        if self.conn is None:
            return "left out"
        try:
            await self.conn.drain()
        except gain.ConnectionClosed:
            return "ConnectionClosed"
        return "drained"

    async def s_task(self, size: int) -> str:
        async def write_later() -> None:
            await trio.sleep(PAUSE_S)
            self._put(size, "write")

        return self._quietly(lambda: self.conn.start_soon(write_later))


class Handler(gain.EventHandler):
    """Takes what comes and answers, by the plan; notes what it is told."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.accepted = self.closed = 0
        self.inside: set[int] = set()

    # ---- which connection it is ------------------------------------------------------------

    def on_accept(self, conn: gain.Conn) -> None:
        assert conn.context is None
        self.accepted += 1
        conn.context = Unknown()

    def end_of(self, conn: Any, *, at_read: bool = False) -> Any:
        found = conn.context
        if at_read and isinstance(found, Unknown):
            number = conn.next(1)[0]
            served = self.service.served[number]
            assert served.conn is None, "two connections of one client"
            served.conn = conn
            conn.context = served
        return conn.context

    # ---- what it is told --------------------------------------------------------------------

    def read(self, conn: Any, n: int) -> int:
        """Take some; how many."""
        known = isinstance(conn.context, Served)
        end = self.end_of(conn, at_read=True)
        n -= not known
        end.told += n
        buffered = conn.inbound_buffered()
        assert n <= buffered
        if not buffered:
            return 0
        data = end.take(max(1, n))
        end.took(data)
        return len(data)

    def on_read(self, conn: Any, n: int) -> None:
        assert n > 0
        taken = self.read(conn, n)
        end = conn.context
        if taken:
            end.answer(taken)

    def on_write(self, conn: Any, n: int) -> None:
        assert n > 0
        if isinstance(conn.context, Served):
            conn.context.written += n

    def on_close(self, conn: Any, err: BaseException | None) -> None:
        self.closed += 1
        end = conn.context
        assert not end.is_over, "closed twice"
        end.is_over = True
        self.service.program.saw("on_close", type(err).__name__)
        if isinstance(end, Unknown):
            return
        if err is not None and not isinstance(err, gain.EndOfStream):
            end.check_error(err)
            end.aborted = True
        elif self.service.stopping:
            end.aborted = True
        elif not end.aborted:
            assert end.written == end.promised, (
                f"{end.name}: {end.promised} bytes written, told of {end.written}"
            )
        if isinstance(err, gain.EndOfStream):
            end.check_told()
        end.note_close(abort=end.aborted)


class HalfClosing(Handler):
    """Writes on after the peer's end of file, and closes."""

    def on_eof(self, conn: Any) -> None:
        end = conn.context
        if isinstance(end, Unknown):
            conn.close()
            return
        end.check_told()
        end.put(100, "write")
        end.shut = True
        conn.close()


class Answering(Handler):
    """Ends its own direction after the peer's: that closes it."""

    def on_eof(self, conn: Any) -> None:
        end = conn.context
        if isinstance(end, Unknown):
            conn.close()
            return
        end.check_told()
        end.put(100, "write")
        if not end.shut:
            end.shut = True
            conn.send_eof()


class Patient(Handler):
    """As a task."""

    async def on_read(self, conn: Any, n: int) -> None:  # type: ignore[override]
        assert id(conn) not in self.inside, "two callbacks of one connection"
        self.inside.add(id(conn))
        try:
            taken = self.read(conn, n)
            await trio.sleep(PAUSE_S)
            end = conn.context
            if taken and not end.is_over:
                end.answer(taken)
        except gain.ConnectionClosed:
            pass
        finally:
            self.inside.remove(id(conn))


class Unknown:
    """A connection that has not said who it is."""

    is_over = False


HANDLERS = (Handler, HalfClosing, Patient, Answering)


class Datagrams(gain.EventHandler):
    """Answers each datagram with one of its channel's."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def on_read(self, conn: Any, n: int) -> None:
        data = conn.next(n)
        assert len(data) == n
        served = self.service.served[data[0] // 2]
        served.incoming.receive(data, len(data))
        message = served.outgoing.begin(min(n, 1000))
        assert conn.write(message.data) == len(message.data)
        message.sent(len(message.data))
