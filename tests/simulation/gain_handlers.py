"""The handlers of simulated servers: plain ones, such as go on after their peer's end, and tasks.

A connection's first byte says whose it is: a channel's number, or `VISITOR`. What a callback
finds wrong is noted, since a server goes on when one raises.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from simulation.faults import Refused, WrongBytes, WrongCount, WrongOrder, require
from simulation.gain_ends import PAUSE_S, Served
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.programs_gain import Service

    Callback = TypeVar("Callback", bound=Callable[..., Any])

VISITOR = 255
KEPT_S = 8.0  # that a connection is kept after its peer's end: longer than anything takes
EOF_ANSWER = 100  # bytes
DATAGRAM_ANSWER_MAX = 1000


class Unknown:
    """A connection that has not said who it is."""

    def __init__(self, since: float) -> None:
        self.since = since


class Visitor:
    """One that is echoed to, and no channel's."""


def noting(callback: Callback) -> Callback:
    """Of a handler's: what it raises is a fault of the program."""

    @functools.wraps(callback)
    def noted(self: Any, *arguments: Any) -> None:
        try:
            callback(self, *arguments)
        except Exception as exc:
            self.service.note_fault(exc)
            raise

    @functools.wraps(callback)
    async def noted_task(self: Any, *arguments: Any) -> None:
        try:
            await callback(self, *arguments)
        except Exception as exc:
            self.service.note_fault(exc)
            raise

    return noted_task if inspect.iscoroutinefunction(callback) else noted  # type: ignore[return-value]


class Handler(gain.EventHandler):
    """Takes what comes and answers, by the plan; notes what it is told."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.inside: set[int] = set()

    # ---- of every kind of handler ----------------------------------------------------------

    def accept(self, conn: Any) -> None:
        require(conn.context is None, WrongOrder, "accepted twice")
        conn.context = Unknown(self.service.now())
        self.service.seats[conn.server].enter(conn)

    def read(self, conn: Any, n: int) -> None:
        """Take some, and answer; where others may have ended it meanwhile."""
        try:
            self._read(conn, n)
        except gain.ConnectionClosed:
            over = not isinstance(conn.context, Served) or conn.context.may_have_ended()
            require(over, Refused, "ConnectionClosed of one that is not")

    def _read(self, conn: Any, n: int) -> None:
        require(n > 0, WrongCount, "on_read of nothing")
        if isinstance(conn.context, Unknown):
            n -= 1
            self._introduce(conn, conn.next(1)[0])
        end = conn.context
        if isinstance(end, Visitor):
            if n:
                conn.write(conn.next(n))
        elif n and (taken := end.tell(n)):
            end.answer(taken)

    def _introduce(self, conn: Any, number: int) -> None:
        if number == VISITOR:
            conn.context = Visitor()
            return
        served = self.service.served.get(number)
        require(served is not None, WrongBytes, f"a connection of nobody's: {number}")
        assert served is not None
        require(served.conn is None, WrongOrder, "two connections of one client")
        served.conn = conn
        served.mind()
        conn.context = served

    def ended(self, conn: Any) -> Any:
        """Its peer has ended it: the channel's end, if it is one's that still writes."""
        end = conn.context
        if not isinstance(end, Served):
            conn.close()
            return None
        require(not end.eof_told, WrongOrder, f"{end.name}: its peer's end is told twice")
        end.check_told()
        end.eof_told = True
        if not end.shut:
            end.write_beside(EOF_ANSWER, "write")
        end.mind()
        return end

    def closed(self, conn: Any, err: BaseException | None) -> None:
        end = conn.context
        self.service.seats[conn.server].leave(conn)
        self.service.program.saw("on_close", type(err).__name__)
        if isinstance(end, Served):
            end.check_close(err)

    # ---- callbacks -------------------------------------------------------------------------

    @noting
    def on_accept(self, conn: gain.Conn) -> Any:
        self.accept(conn)

    @noting
    def on_read(self, conn: gain.Conn, n: int) -> Any:
        self.read(conn, n)

    @noting
    def on_write(self, conn: gain.Conn, n: int) -> Any:
        require(n > 0, WrongCount, "on_write of nothing")
        end: Any = conn.context
        if isinstance(end, Served):
            end.written += n
            within = end.written <= end.promised
            require(within, WrongCount, f"{end.name}: told of more than was written")

    @noting
    def on_close(self, conn: gain.Conn, err: BaseException | None) -> Any:
        self.closed(conn, err)

    @noting
    def on_tick(self, server: gain.Server) -> Any:
        self.service.seats[server].ticked()


class HalfClosing(Handler):
    """Writes on after the peer's end of file, and closes."""

    @noting
    def on_eof(self, conn: Any) -> None:
        end = self.ended(conn)
        if end is not None:
            end.close_here()


class Answering(Handler):
    """Ends its own direction after the peer's: that closes it."""

    @noting
    def on_eof(self, conn: Any) -> None:
        end = self.ended(conn)
        if end is not None and not end.shut:
            end.shut = True
            conn.send_eof()


class Keeping(Handler):
    """Keeps a connection for a while after its peer's end, and closes it then."""

    @noting
    def on_eof(self, conn: Any) -> None:
        end = self.ended(conn)
        if end is not None:
            conn.start_soon(self._close_later, end)

    async def _close_later(self, end: Served) -> None:
        end.tasks += 1
        try:
            await trio.sleep(KEPT_S)
            while await end.s_close(0) == "lent":  # noqa: ASYNC110 - nobody tells of it
                await trio.sleep(PAUSE_S)
        finally:
            end.tasks -= 1


class Patient(Handler):
    """Reads as a task."""

    @noting
    async def on_read(self, conn: gain.Conn, n: int) -> None:
        with self.alone(conn):
            if n % 2:
                await trio.sleep(PAUSE_S)
            self.read(conn, n)
            await trio.sleep(PAUSE_S)

    def alone(self, conn: gain.Conn) -> Inside:
        return Inside(self.inside, id(conn))


class Nurse(Patient):
    """All of it as tasks."""

    @noting
    async def on_accept(self, conn: gain.Conn) -> None:
        with self.alone(conn):
            self.accept(conn)
            await trio.sleep(PAUSE_S)

    @noting
    async def on_eof(self, conn: gain.Conn) -> None:
        with self.alone(conn):
            end = self.ended(conn)
            await trio.sleep(PAUSE_S)
            if end is not None and not end.is_over:
                end.close_here()

    @noting
    async def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        with self.alone(conn):
            self.closed(conn, err)
            await trio.sleep(PAUSE_S)


class Inside:
    """No two callbacks of a connection at the same time."""

    def __init__(self, inside: set[int], which: int) -> None:
        self._inside = inside
        self._which = which

    def __enter__(self) -> None:
        require(self._which not in self._inside, WrongOrder, "two callbacks of one connection")
        self._inside.add(self._which)

    def __exit__(self, *_: object) -> None:
        self._inside.remove(self._which)


#: In the order of the plans' option; those of the second row run as tasks.
HANDLERS = (Handler, HalfClosing, Answering, Keeping, Patient, Nurse)


class Datagrams(gain.EventHandler):
    """Answers each datagram with one of its channel's."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @noting
    def on_read(self, conn: Any, n: int) -> None:
        data = conn.next(n)
        require(len(data) == n, WrongCount, f"{len(data)} bytes of a datagram of {n}")
        served = self.service.served.get(data[0] // 2) if n else None
        require(served is not None, WrongBytes, "a datagram of nobody's")
        assert served is not None
        served.incoming.receive(data, len(data))
        served.touch()
        message = served.outgoing.begin(min(n, DATAGRAM_ANSWER_MAX))
        count = conn.write(message.data)
        require(count == len(message.data), Refused, f"{count} bytes of a datagram written")
        if self.service.no_memory:
            message.cut_off()  # it is thrown away where the kernel has none for it
        else:
            message.sent(count)

    @noting
    def on_tick(self, server: gain.Server) -> None:
        self.service.seats[server].ticked()
