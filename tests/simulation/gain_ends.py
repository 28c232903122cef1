"""The server's end of a connection: what its handler and tasks beside it do, and what is due.

What is held against the model at once: a callback where it cannot be, other bytes, an end or an
error without a cause. What is *due* is asked at some moments when nothing has moved for longer
than anything takes: bytes of which no ``on_read`` has told, an end that nobody was told of, a
connection that should be closed and is not. A server that sleeps over its input shows in that
alone. Each rule is one of docs/gain.md, and says nothing where the handler does not read.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import trio

from simulation.faults import (
    BytesLost,
    NotTold,
    Refused,
    Unbounded,
    WrongCount,
    WrongEnd,
    require,
)
from simulation.programs_ends import SLACK_S, End
from uring_trio import gain

if TYPE_CHECKING:
    from simulation.programs_gain import Service

TAKES = 9  # ways to take input
LEAVE = (6, 7, 8)  # those that leave it all
STUCK = (2, 3, *LEAVE)  # those after which it may be stuck
ANSWERS = 4  # ways to answer
PAUSE_S = 0.003  # of an async callback
EARLY_S = 1e-6  # a float's
# What tasks write while a thread has the connection comes behind what the thread writes.
ONLY_THREADS_WRITE, ONLY_TASKS_WRITE = 1, 2
ANSWER_MAX = 1 << 16

OF_SERVER = (
    *("s_write", "s_writev", "s_read_from", "s_close", "s_abort", "s_send_eof", "s_pause"),
    *("s_resume", "s_deadline", "s_idle", "s_limit", "s_drain", "s_task"),
)


class Served(End):
    """The server's end of a connection, or of a UDP client's datagrams.

    Attributes:
      conn: None until the client has said who it is.
      told: bytes that ``on_read`` has told of.
      stolen: bytes that somebody else has taken off the file.
      promised, written: bytes that were written, and that ``on_write`` has told of.
      paused, limit: whether it is, and how much input may gather.
      closing: somebody has closed it, and it may have something to send.
      eof_told: ``on_eof`` was called.
      kept: bytes that had come before its peer's reset; None: not known.
      tasks: of its own, that run.
      full_since: since when nobody takes any of as much as the limit allows; None: it is not so.
      minded: when something was done last that its peer does not learn of.
      told_at: when ``on_read`` was called last.
      may_lapse: a deadline or a limit may end it.
      due, due_since: when its deadline is, as it was set last, and when that was.
      idle, idle_since: seconds that it may be idle, and since when that holds.
      lapsed: one of them had come before it was set anew.
      is_over: ``on_close`` was called.
      network: its client's.
    """

    sends_later = True

    def __init__(self, service: Service, incoming: Any, outgoing: Any) -> None:
        super().__init__("", incoming, outgoing, strict=False)
        self.service = service
        self.now = service.now  # a thread has no run to ask
        self.conn: Any = None
        self.told = self.stolen = self.promised = self.written = self.tasks = 0
        self.may_lapse = self.is_over = self.takes_all = False
        self.paused = self.closing = self.eof_told = False
        self.limit = service.read_buffer_limit
        self.ways = (0, 0)
        self.kept: int | None = None
        self.full_since: float | None = None
        self.minded = self.told_at = 0.0
        self.due, self.due_since = math.inf, 0.0
        self.idle, self.idle_since = math.inf, 0.0
        self.lapsed = False
        self.network = ""

    # ---- what its client asks ------------------------------------------------------------

    def was_reset(self) -> bool:
        # As far as its client can tell.
        return self.aborted or self.is_untold() or self.is_given_up()

    def is_given_up(self) -> bool:
        """Whether it may have been in the queue of a listener that is not what it was."""
        return self.conn is None and self.service.gives_up(self)

    def is_awaited(self) -> bool:
        """Whether it lies in the queue of a listener that will take it."""
        return self.conn is None and not self.peer.aborted and not self.is_given_up()

    def is_untold(self) -> bool:
        """Whether its file is closed, and a task is still to say so: ``on_close``."""
        if self.conn is None or self.is_over:
            return False
        try:
            return bool(self.conn.fileno() < 0)
        except gain.OpNotAvailableInMode:  # a thread has it, and on_close waits for that
            return True

    def may_have_ended(self) -> bool:
        # The peer's end of file closes it as well, in its own time.
        peer = self.peer
        return (
            self.shut
            or self.closed
            or self.may_lapse
            or self.may_be_stuck()
            or self.service.stopping
            or peer.shut
            or peer.closed
            or self.is_untold()
            or self.is_given_up()
        )

    def has_ended(self) -> bool:
        return self.is_over

    def may_be_stuck(self) -> bool:
        return self.ways[0] % TAKES in STUCK

    def touch(self) -> None:
        self.changed = self.now()

    def mind(self) -> None:
        """Something was done here."""
        self.minded = self.now()

    # ---- what the handler does -----------------------------------------------------------

    def tell(self, n: int) -> int:
        """``on_read`` tells of so many bytes: take some; how many."""
        now = self.now()
        self.told = self.seen() + n
        self.told_at = now
        buffered = self.conn.inbound_buffered()
        if buffered < n:
            self.conn.peek(0)  # raises if it is over, since a task reads late
        require(n <= buffered, WrongCount, f"{self.name}: on_read of {n}, and {buffered} are there")
        if self.full_since is not None:
            late = now - self.full_since > SLACK_S
            require(not late, Unbounded, f"{self.name}: more input, long after it was at its limit")
        data = self.take(max(1, n)) if buffered else b""
        self.note_fullness()
        if data:
            self.took(data)
        return len(data)

    def note_fullness(self) -> None:
        """Somebody has looked at the input, or has been told of it."""
        if self.conn.inbound_buffered() < self.limit:
            self.full_since = None
        elif self.full_since is None:
            self.full_since = self.now()

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
            count = conn.discard(len(half))
            require(count == len(half), Refused, f"{count} bytes discarded of {len(half)}")
            return half
        if way == 4:
            buffer = bytearray(n)
            return bytes(buffer[: conn.read_into(buffer)])
        if way == 5:
            file = io.BytesIO()
            conn.write_to(file)
            return file.getvalue()
        if way in LEAVE:
            if way == 7:
                conn.peek()
            elif way == 8:
                conn.peek(n)
            return b""
        return bytes(conn.next())

    def took(self, data: bytes) -> None:
        self.touch()
        if self.stolen:
            self.incoming.loose.append(data)
            self.incoming.place_certain()
        else:
            self.incoming.receive(data)

    def answer(self, n: int) -> None:
        if self.shut or self.service.in_threads == ONLY_TASKS_WRITE:
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
        require(count in (0, len(data)), Refused, f"{count} bytes written of {len(data)}")
        over = self.may_have_ended() or self.aborted or self.peer.aborted
        over = over or self.service.no_memory  # what it wrote before has failed
        require(count or over, Refused, f"{self.name}: nothing is written")
        piece.sent(count)
        self.promised += count
        self.touch()
        return f"{count}"

    # ---- what is held against the model at once ------------------------------------------

    def seen(self) -> int:
        """Bytes that ``on_read`` has told of, or that were taken before it could."""
        total: int = self.incoming.total
        return max(self.told, total)

    def known(self) -> int:
        """Bytes that its peer's calls have said were sent."""
        pieces = self.incoming.pieces
        left: int = sum(max(0, piece.least - piece.taken) for piece in pieces)
        return int(self.incoming.total) + left

    def check_told(self) -> None:
        """The peer's end was told of: so was every byte before it."""
        ended = self.peer.shut or self.peer.closed
        require(ended, WrongEnd, f"{self.name}: an end that is none")
        if not self.may_be_reset():
            all_told = self.seen() + self.stolen >= self.known()
            require(all_told, BytesLost, f"{self.name}: an end before its input")

    def check_idle(self) -> None:
        """Who has been idle for too long is closed."""
        last = max(self.idle_since, self.changed, self.peer.changed)
        late = self.now() - last > self.idle + SLACK_S
        require(self.is_over or not late, NotTold, f"{self.name}: idle, and not closed")

    def has_lapsed(self) -> bool:
        """Whether its deadline may have come; once it has, another one does not take it back."""
        due = min(self.due, self.idle_since + self.idle)
        return self.lapsed or self.now() >= due - EARLY_S

    def check_close(self, err: BaseException | None) -> None:
        """``on_close`` comes."""
        require(not self.is_over, NotTold, f"{self.name}: closed twice")
        self.is_over = True
        if isinstance(err, gain.EndOfStream):
            self.check_told()
        elif err is not None:
            self.check_error(err)
            self.aborted = True
        elif self.service.may_be_aborted():
            self.aborted = True
        else:
            mine = self.shut or self.aborted or self.service.stopping
            require(mine, WrongEnd, f"{self.name}: closed, and by nobody")
        if not self.aborted:
            whole = self.written == self.promised
            counts = f"{self.promised} bytes written, told of {self.written}"
            require(whole, WrongCount, f"{self.name}: {counts}")
        self.note_close(abort=self.aborted)

    def check_error(self, err: BaseException) -> None:
        """It was closed with this: there is a cause."""
        peer = self.peer
        if isinstance(err, gain.StuckInput):
            cause = self.may_be_stuck() or self.may_lapse
        elif isinstance(err, gain.DeadlineExceeded):
            cause = self.has_lapsed()
        elif isinstance(err, TimeoutError):
            cause = self.shut or peer.shut or peer.closed or self.service.stopping
        else:
            gone = peer.closed or peer.aborted or self.service.no_memory
            cause = isinstance(err, OSError) and gone
            if cause and self.kept is not None and self._reads():
                all_told = self.seen() + self.stolen >= self.kept
                require(
                    all_told, BytesLost, f"{self.name}: {self.kept} bytes came before the reset"
                )
        require(cause, WrongEnd, f"{self.name}: on_close of {err!r}")

    def _reads(self) -> bool:
        """Whether its handler reads, as far as is known of one that is over.

        A server that stops ends the tasks of its callbacks, and what they had not begun.
        """
        room = self.seen() - self.incoming.total < self.limit and not self.service.stopping
        return room and not self.paused and not self.shut and not self._unsent()

    def _unsent(self) -> int:
        """Bytes that were written, and of which no ``on_write`` has told."""
        return self.promised - self.written

    # ---- what is due ---------------------------------------------------------------------

    def check_due(self) -> None:
        """Nothing moves any more: all has happened that must."""
        now = self.now()
        quiet_s = now - max(self.changed, self.peer.changed, self.minded, self.told_at)
        if quiet_s < SLACK_S or self.is_over or self.service.stopping:
            return
        why = self._undone(now, quiet_s) if self.is_stream else self._undelivered()
        require(not why, NotTold, f"{self.name}: {why}, for {quiet_s:.3f} s")

    def _undelivered(self) -> str:
        if self.incoming.loses:
            return ""
        lost = any(message.is_sent and not message.received for message in self.incoming.messages)
        return "a datagram that nobody was told of" if lost else ""

    def _undone(self, now: float, quiet_s: float) -> str:
        conn, peer = self.conn, self.peer
        if conn is None:
            late = self.is_awaited() and self.service.has_long_had_room(self)
            return "a connection that nobody accepts" if late else ""
        output = conn.outbound_buffered()
        if self.aborted:
            return "it is aborted, and not closed"
        if self.closing:
            if not output:
                return "it is closed, has nothing to send, and is still there"
            late = quiet_s > self.service.close_timeout_s + SLACK_S
            return "its peer takes nothing, and it is still there" if late else ""
        if peer.aborted and self.network == "tcp":
            return "its peer has reset it"
        return self._unread(output) or self._unended(now, quiet_s, output) or self._untold(output)

    def _unread(self, output: int) -> str:
        """Input, or its end, that its handler should know of."""
        conn, peer = self.conn, self.peer
        room = conn.inbound_buffered() < self.limit and output <= self.service.low_water
        if self.paused or not room or self.may_be_reset():
            return ""
        if self.may_be_stuck() and not repr(conn).endswith(", open>"):
            return ""  # it was, and is being closed
        if self.seen() + self.stolen < self.known():
            return f"{self.known() - self.seen()} bytes have come, of which nobody was told"
        if not (peer.shut or peer.closed):
            return ""
        if self.service.tells_eof:
            return "" if self.eof_told else "nobody was told of its peer's end"
        return "" if output else "its peer has ended, and it is not closed"

    def _unended(self, now: float, quiet_s: float, output: int) -> str:
        """That it should be closed."""
        conn = self.conn
        if self.eof_told and self.shut and not output:
            return "both its directions have ended, and it is not closed"
        untold = self.told_at < self.due_since and not self.eof_told
        if untold and now > self.due + SLACK_S:
            return "its deadline is over"
        full = conn.inbound_buffered() >= self.limit and output <= self.service.low_water
        alone = not self.paused and not self.tasks and not self.may_lapse
        stuck_s = self.service.stuck_timeout_s
        if full and alone and not self.eof_told and quiet_s > stuck_s + SLACK_S:
            return "its input is stuck"
        return ""

    def _untold(self, output: int) -> str:
        if not output and self._unsent() and not self.peer.closed:
            return f"{self._unsent()} bytes are sent, of which no on_write has told"
        return ""

    # ---- what tasks do beside it ---------------------------------------------------------

    def _quietly(self, call: Any, *arguments: Any) -> str:
        if self.conn is None:
            return "left out"
        self.mind()
        try:
            call(*arguments)
        except gain.OpNotAvailableInMode:
            return self._is_lent()
        except gain.ConnectionClosed:
            ended = self.may_have_ended() or self.is_over or self.peer.aborted
            ended = ended or self.service.no_memory
            require(ended, Refused, f"{self.name}: ConnectionClosed of one that is not")
            return "ConnectionClosed"
        return "done"

    def _is_lent(self) -> str:
        require(self.service.in_threads, Refused, f"{self.name}: another thread has it")
        return "lent"

    def write_beside(self, size: int, how: str) -> str:
        """Not in one of its callbacks."""
        if self.service.in_threads == ONLY_THREADS_WRITE:
            return "left out"
        try:
            return self.put(size, how)
        except gain.OpNotAvailableInMode:
            self.outgoing.pieces[-1].sent(0)
            return self._is_lent()
        except gain.ConnectionClosed:
            ended = self.shut or self.service.is_strict
            require(ended, Refused, f"{self.name}: a write raises")
            self.outgoing.pieces[-1].sent(0)
            return "ConnectionClosed"

    async def s_write(self, size: int) -> str:
        return self.write_beside(size, "write")

    async def s_writev(self, size: int) -> str:
        return self.write_beside(size, "writev")

    async def s_read_from(self, size: int) -> str:
        return self.write_beside(size, "read_from")

    def close_here(self) -> None:
        """Its side closes it."""
        self.conn.close()
        self.shut = self.closing = True
        self.mind()

    async def s_close(self, _size: int) -> str:
        return self._quietly(self.close_here)

    async def s_abort(self, _size: int) -> str:
        def abort() -> None:
            self.conn.abort()
            self.shut = self.aborted = True

        return self._quietly(abort)

    async def s_send_eof(self, _size: int) -> str:
        def send_eof() -> None:
            self.conn.send_eof()
            self.shut = True

        return self._quietly(send_eof)

    async def s_pause(self, _size: int) -> str:
        def pause() -> None:
            self.conn.pause_reading()
            self.paused = True

        return self._quietly(pause)

    async def s_resume(self, _size: int) -> str:
        def resume() -> None:
            self.conn.resume_reading()
            self.paused = False
            self.full_since = None

        return self._quietly(resume)

    async def s_deadline(self, size: int) -> str:
        def set_it() -> None:
            self.conn.set_deadline(size / 1000)
            self.may_lapse = True
            self.lapsed = self.has_lapsed()
            self.due_since = self.now()
            self.due = self.due_since + size / 1000

        return self._quietly(set_it)

    async def s_idle(self, size: int) -> str:
        def set_it() -> None:
            self.conn.set_idle_timeout(size / 1000 or None)
            self.may_lapse = True
            self.lapsed = self.has_lapsed()
            self.idle, self.idle_since = size / 1000 or math.inf, self.now()

        return self._quietly(set_it)

    async def s_limit(self, size: int) -> str:
        def set_it() -> None:
            self.conn.set_read_buffer_limit(max(1, size))
            self.may_lapse = True
            self.limit = max(1, size)
            self.full_since = None

        return self._quietly(set_it)

    async def s_drain(self, _size: int) -> str:
        if self.conn is None:
            return "left out"
        try:
            await self.conn.drain()
        except gain.OpNotAvailableInMode:
            return self._is_lent()
        except gain.ConnectionClosed:
            return "ConnectionClosed"
        return "drained"

    async def s_task(self, size: int) -> str:
        async def write_later() -> None:
            self.tasks += 1
            try:
                await trio.sleep(PAUSE_S)
                self.write_beside(size, "write")
            finally:
                self.tasks -= 1

        return self._quietly(lambda: self.conn.start_soon(write_later))

    # ---- others on its file --------------------------------------------------------------

    def lose_to(self, data: bytes) -> None:
        """Somebody else has taken these bytes, which may not be the next ones."""
        self.stolen += len(data)
        self.touch()
        self.incoming.loose.append(data)
        self.incoming.place_certain()
