"""What a connection does between an engine and its handler.

Its two halves (`_halves`) and its life (`_life`) are tables without I/O, and hold all that
decides; which callback is due and what the engine is to do is computed from them. Here the
answers become operations of its link (`_engine`) and calls of its handler, and nowhere else.

A worker's turn goes over its connections in three sweeps: what the engine has done, what
the handlers are to be told, what is to be sent. A connection of a plain handler, open, with
nothing set that needs more thought, goes through all three in the worker's own loops
(`_turn`). Every other one comes here, to `Connection.settle`: it asks, until nothing is left,
which callback is due, and then has the engine receive, send or close.

A connection has three parts, one for each thing that it turns answers into:

    Intake     the input: what receives, and the poll for errors; what they bring
    Outlet     the output: one send after the other; who waits for them
    Calls      the handler: what it is told, here, as a task or in a thread; its own tasks

One callback at a time: while an ``async def`` or a thread has the connection it is *busy*;
input gathers, counts add up, and everything is looked at again when it ends.

Output is tried at once, and is an operation only as far as the socket does not take it; with
no MSG_WAITALL: a short count is progress, which ``on_write``, the deadlines and the close
timeout all want to know of, and a peer's reset in the middle of a send is lost with it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import trio

from uring_trio import _hot_parts
from uring_trio._beside import own_address
from uring_trio._fast_ways import FAST
from uring_trio._hot_parts import ConnectionFields
from uring_trio._kernel import (
    EAGAIN,
    ECANCELED,
    EINTR,
    ENOBUFS,
    POLLERR,
    POLLHUP,
    TRANSFER_MAX,
    os_error,
)
from uring_trio.gain._address import Address
from uring_trio.gain._callbacks import Tasks
from uring_trio.gain._deadlines import Deadlines
from uring_trio.gain._engine import PEER_ENDED
from uring_trio.gain._errors import ConnectionClosed, DeadlineExceeded, EndOfStream
from uring_trio.gain._halves import (
    Flight,
    FlightEvent,
    Inbound,
    Input,
    InputEvent,
    Outbound,
    Output,
    OutputEvent,
    Pieces,
    PiecesEvent,
)
from uring_trio.gain._life import (
    Due,
    Event,
    Life,
    State,
    Told,
    ToldEvent,
    Wanted,
    Way,
    callback_due,
    receives,
    wanted,
    way_of,
)
from uring_trio.gain._patience import Patience, StageEvent

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uring_trio.gain._engine import Link
    from uring_trio.gain._tls import Secure

# Seconds for which input is thrown away after our FIN, so that no reset overtakes the answer.
DISCARD_S = 1.0


class Connection(ConnectionFields):
    """One connection of a worker: its life, and how it is looked at.

    Args:
      worker: who serves it.
      sock: its file, which is the link's from now on.
      network: ``"tcp"`` or ``"unix"``.
      local: our own address; None: to be asked for.
      peer: the other's, as the kernel gives it: an Address is made when it is asked for.
      secure: with ``tls=``: its handshake comes before the handler knows of it.

    Attributes:
      conn: what its handler has of it.
      way: how it goes through the worker's turn; computed from the tables whenever it was
        settled, and SETTLED as soon as something happens.
      ready: it stands in the list of those that the worker's turn comes to.
      secure: all that the file takes and gives goes through this, if there is one.
    """

    __slots__ = (
        "calls",
        "deadlines",
        "intake",
        "life",
        "local",
        "network",
        "outlet",
        "peer",
        "secure",
        "sock",
        "worker",
    )

    conn: Any
    inbound: Inbound
    outbound: Outbound
    link: Link
    turn: Any
    way: Way
    ready: bool

    def __init__(
        self,
        worker: Any,
        sock: socket.socket,
        network: str,
        local: Address | None,
        peer: Any,
        secure: Secure | None = None,
    ) -> None:
        engine = worker.engine
        self.worker = worker
        self.turn = worker.turn
        self.sock = sock
        self.network = network
        self.local = local
        self.peer = peer
        self.inbound = Inbound(engine.pool, worker.config.read_buffer_limit, engine.sizes)
        self.outbound = Outbound(worker.config.write_high_water)
        self.life = Life(worker.thread, State.OPEN if secure is None else State.HANDSHAKE)
        self.link = engine.link(self, sock)
        self.way = Way.SETTLED
        self.ready = False
        self.secure: Secure | None = None
        self.deadlines: Deadlines | None = None
        self.intake = Intake(self)
        self.outlet = Outlet(self)
        self.calls = Calls(self)
        self.conn = worker.callbacks.stream(self)
        if secure is not None:
            self.use_tls(secure)

    # ---- who it is -----------------------------------------------------------------------

    def name(self) -> str:
        """For logs."""
        return f"{self.network} connection from {self.remote_addr()!s:.120}"

    def local_addr(self) -> Address:
        """Our own address."""
        local = self.local
        if local is None:
            local = self.local = Address.from_sockaddr(
                self.network, own_address(self.sock.fileno())
            )
        return local

    def remote_addr(self) -> Address:
        """The peer's address."""
        peer = self.peer
        if type(peer) is not Address:
            peer = self.peer = Address.from_sockaddr(self.network, peer)
        return peer

    # ---- being looked at -----------------------------------------------------------------

    def attend(self) -> None:
        """On the worker's thread: have it settled, in this turn or the next."""
        self.way = Way.SETTLED
        if not self.ready:
            self.ready = True
            self.turn.attend(self)

    def changed(self) -> None:
        """Its user has changed something; a thread's changes are looked at when it is done."""
        if not self.life.is_lent:
            self.attend()

    def when_mine(self, fn: Callable[..., Any], *args: Any) -> None:
        """Call it; if a thread has the connection, when that is done."""
        if self.life.is_lent:
            self.calls.keep(fn, *args)
        else:
            fn(*args)

    def took(self) -> None:
        """Its user has consumed input."""
        self.intake.took()

    def call(self, fn: Callable[..., Any], *args: Any) -> None:
        """What another thread has asked for; while a thread has the connection it waits."""
        self.when_mine(self.worker.call, fn, args)

    def happened(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Something that its turn is to look at; what comes later goes the same way, behind it."""
        self.way = Way.SETTLED
        self.turn.add_happened(self.link, slot, res, flags, offset)

    def look_at_more(self, told: int) -> None:
        """In the next turn, for there may be more than was received."""
        if self.inbound.pieces:  # else a receive finds it
            self.link.remember(told)
        if not self.ready:
            self.ready = True
            self.turn.attend(self)

    def settle(self) -> None:
        """Call what is due, then have the engine do what is wanted."""
        calls, intake = self.calls, self.intake
        if self.life.told is Told.CLOSE:
            return
        if self.link.readable:
            intake.take()
        unanswered = calls.make_all()
        if not self.life.is_lent:
            intake.put_away()
        if self.life.state is State.FLUSHING and self.outbound.size and self.secure is None:
            self.outlet.flush()
        self._act(unanswered=unanswered)
        if self.life.state is State.CLOSED:
            calls.make_all()
            return
        self.outlet.offer()
        if self.inbound.is_full or intake.patience is not None:
            intake.judge()
        if FAST and self.worker.plain:
            deadlines = 0 if self.deadlines is None else self.deadlines.count
            self.way = way_of(self.inbound, self.outbound, self.life, self.secure, deadlines)

    def _act(self, *, unanswered: bool) -> None:
        """Have the engine do what is wanted."""
        inbound, outbound, life = self.inbound, self.outbound, self.life
        want = wanted(inbound, outbound, life, self.secure, unanswered=unanswered)
        if want & Wanted.FINISH:
            self._finish_output()
            want = wanted(inbound, outbound, life, self.secure)
        elif want & Wanted.FIN:
            self.link.send_fin()
            outbound.step(OutputEvent.FIN)
            self.attend()
        if want & Wanted.CLOSE:
            self._cancel_all()
            if self.link.is_quiet():
                self._close_file()
        else:
            self.intake.act(want)

    # ---- deadlines -----------------------------------------------------------------------

    def timers(self) -> Deadlines:
        """Its deadlines, made when they are first needed."""
        if self.deadlines is None:
            self.deadlines = Deadlines(self.worker.clock, self)
        return self.deadlines

    def start_timer(self, kind: str, seconds: float) -> None:
        """Have one of our own expire."""
        self.timers().start(kind, seconds)
        self.way = Way.SETTLED

    def set_deadline(self, kind: str, seconds: float | None) -> None:
        """One of the user's; None: none."""
        self.when_mine(self._set_deadline, kind, seconds)

    def _set_deadline(self, kind: str, seconds: float | None) -> None:
        if seconds is None:
            if self.deadlines is not None:
                self.deadlines.cancel(kind)
            self.intake.look_again()
        elif not self.life.is_over:
            self.timers().choose(kind, seconds)
            self.way = Way.SETTLED
            if self.intake.patience is not None:
                self.intake.patience.step(StageEvent.DEADLINE)

    def _timer_expired(self, kind: str) -> None:
        self.timers().expired()
        if self.life.is_over:
            return  # one that expired with it, and before it, has ended all
        if kind == "discard":
            self.end(Event.DISCARDED)
        elif kind == "close":
            seconds = self.worker.config.close_timeout
            self._fail(
                TimeoutError(f"the peer took nothing for {seconds:g} s while closing"), Event.RESET
            )
        elif kind == "handshake":
            self.fail(DeadlineExceeded("the TLS handshake took too long"))
        elif kind == "stuck":
            assert self.intake.patience is not None
            self.intake.patience.timer_expired()
        elif kind == "write" and not self.outbound.size:
            self.intake.look_again()
        elif kind == "read" and self.intake.has_come_meanwhile():
            pass
        else:
            self.fail(DeadlineExceeded(f"the {kind} deadline is over"))

    # ---- TLS -----------------------------------------------------------------------------

    def use_tls(self, secure: Secure) -> None:
        """All that the file takes and gives goes through *secure* from here on."""
        self.secure = secure
        self.when_mine(self._begin_handshake)

    def _begin_handshake(self) -> None:
        if self.life.state > State.LOST:
            return
        assert self.secure is not None
        self.start_timer("handshake", self.worker.config.tls_handshake_timeout)
        self.attend()
        if self.inbound.has_ended:  # nothing of the peer's will come: it fails now
            error = self.secure.transport_ended()
            assert error is not None
            self.outlet.try_last(self.secure.last_words())
            self.fail(error)

    def handshake_done(self) -> None:
        """TLS has begun."""
        self.timers().cancel("handshake")
        if self.life.in_handshake:
            self.life.step(Event.READY)

    # ---- how it ends ---------------------------------------------------------------------

    def close(self) -> None:
        """Send what was written, then close; nothing is announced any more."""
        if self.life.is_open:
            if self.life.is_lent:
                self.life.revoke()
            self.when_mine(self.begin_close)

    def begin_close(self) -> None:
        """No more reading and writing; what was written is sent first."""
        life, outbound, secure = self.life, self.outbound, self.secure
        if life.state > State.LOST:
            return
        life.step(Event.CLOSE)
        if life.is_over:
            self._ended()
            return
        self.inbound.step(InputEvent.SHUT)
        outbound.step(OutputEvent.CLOSE)
        if self.deadlines is not None:
            self.deadlines.forget()
        if secure is not None:
            secure.close(outbound.pieces, unsent=outbound.size > 0)
        if outbound.sending is not None or secure is not None:
            self.outlet.time_close()
        self.attend()

    def abort(self) -> None:
        """Close at once, with a reset."""
        if not self.life.is_over:
            if self.life.is_lent:
                self.life.revoke()
            self.when_mine(self._abort)

    def _abort(self) -> None:
        if not self.life.is_over:
            self.end(Event.RESET)

    def leave(self) -> None:
        """The server ends: close, after the callback that runs."""
        life = self.life
        if life.is_busy and life.is_open:
            life.step(Event.LEAVE)
            self.when_mine(self._shut_input)
            self.attend()
        elif life.state <= State.LOST:
            self.begin_close()

    def _shut_input(self) -> None:
        if self.life.is_open:
            self.inbound.step(InputEvent.SHUT)

    def end_now(self) -> None:
        """The worker is aborted: let go of the file at once, whatever is in flight."""
        if not self.life.is_over:
            self.end(Event.RESET)
        self._cancel_all()
        self.attend()

    def send_eof(self) -> None:
        """End the output behind what was written."""
        self.outbound.step(OutputEvent.END)
        self.changed()

    def fail(self, exc: BaseException) -> None:
        """End it because of *exc*."""
        self._fail(exc, Event.ABORT)

    def _fail(self, exc: BaseException, event: Event) -> None:
        life = self.life
        if life.is_over:
            return
        if life.in_handshake:
            self.worker.logger.info("TLS handshake with %s failed: %s", self.name(), exc)
        life.blame(exc)
        self.end(event)

    def lose(self, exc: BaseException) -> None:
        """The kernel says that the peer has gone; what it had sent is input like any other."""
        if not self.life.is_open:
            self.fail(exc)
        elif self.life.blame(exc):
            self._lose()  # it ends after what this batch may still bring

    def spoil(self, exc: BaseException) -> None:
        """TLS has ended; what was received before is announced first."""
        life, inbound = self.life, self.inbound
        untold = inbound.unannounced() > 0 or life.told is Told.NOTHING
        if life.state is not State.OPEN or life.is_busy or not untold:
            self.fail(exc)
        elif life.blame(exc):
            self._lose()
            inbound.step(InputEvent.END)

    def _lose(self) -> None:
        self.life.step(Event.LOSE)
        self.inbound.step(InputEvent.LOSE)
        self.outbound.cut()
        self.outlet.wake_drainers()
        self.attend()

    def end(self, event: Event) -> None:
        """Nobody can use it any more; what is in flight ends, and then it is closed."""
        self.life.step(event)
        self._ended()

    def _ended(self) -> None:
        life = self.life
        if self.deadlines is not None:
            self.deadlines.forget()
        if life.state is State.RESETTING:
            self.link.reset_at_close()
        if not life.is_lent:
            self.end_halves()
        self.outlet.wake_drainers()
        self.attend()

    def end_halves(self) -> None:
        """Nothing of them is of use to anybody; a thread keeps its own until it is done."""
        self.inbound.end()
        self.outbound.cut()

    def _finish_output(self) -> None:
        """All was sent. With unread input, close(2) would send a reset: read it first."""
        inbound, outbound = self.inbound, self.outbound
        if outbound.state is Output.DRAINING:
            if not inbound.has_ended:
                self.link.send_fin()  # at once, and before any reset that is sent all the same
            outbound.step(OutputEvent.FIN)
        if self.deadlines is not None:
            self.deadlines.cancel("close")
        self.intake.stop()
        if inbound.receive is not Flight.IDLE:
            return  # what it may still bring is read, and not unread
        if not inbound.has_ended and (inbound.buffered() or self.link.unread()):
            self.life.step(Event.FLUSHED_UNREAD)
            inbound.throw_away()
            self.start_timer("discard", DISCARD_S)
        else:
            self.end(Event.FLUSHED)

    def _cancel_all(self) -> None:
        self.intake.cancel()
        if self.link.stop_send():
            self.when_mine(self.outbound.finish)

    def _close_file(self) -> None:
        self.life.step(Event.QUIET)
        if self.local is None:
            with contextlib.suppress(OSError):
                self.local_addr()  # while it can be asked for
        self.link.close()
        self.calls.cancel_tasks()
        if self.life.told is not Told.ACCEPT:
            self.worker.forget(self)


class Intake:
    """What turns the input's wishes into operations, and takes what they bring.

    Attributes:
      patience: how long it waits for somebody to take input, once that has been at its limit.
    """

    __slots__ = ("_connection", "_inbound", "_life", "_link", "patience")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbound = connection.inbound
        self._life = connection.life
        self._link = connection.link
        self.patience: Patience | None = None

    # ---- operations ----------------------------------------------------------------------

    def act(self, want: int) -> None:
        """Have the engine receive, or watch for errors, or neither."""
        inbound = self._inbound
        if want & Wanted.RECEIVE:
            if inbound.receive is Flight.IDLE:
                self._arm()
            if want & Wanted.WATCH:
                self.watch()
            return
        if inbound.receive is Flight.ARMED:
            self.stop()
        if want & Wanted.WATCH and inbound.receive is Flight.IDLE:
            self.watch()

    def _receives(self) -> bool:
        connection = self._connection
        return receives(self._inbound, connection.outbound, self._life, connection.secure)

    def _arm(self) -> None:
        size, data = self._link.take_first()
        if size not in (EAGAIN, EINTR):
            self.completed(size, data, last=False)
            return
        self._link.arm(large=self._inbound.pieces is not Pieces.SMALL)
        self._inbound.step_receive(FlightEvent.ARM)

    def stop(self) -> None:
        """Have what receives end."""
        if self._inbound.receive is Flight.ARMED:
            stopped = self._link.stop()
            self._inbound.step_receive(FlightEvent.LAST if stopped else FlightEvent.CANCEL)

    def watch(self) -> None:
        """Watch for errors alone."""
        inbound = self._inbound
        if inbound.watch is Flight.IDLE:
            self._link.watch(again=inbound.has_ended or inbound.noticed > 0)
            inbound.step_watch(FlightEvent.ARM)

    def cancel(self) -> None:
        """Have both end."""
        self.stop()
        if self._inbound.watch is Flight.ARMED:
            stopped = self._link.stop_watch()
            self._inbound.step_watch(FlightEvent.LAST if stopped else FlightEvent.CANCEL)

    def lost(self) -> None:
        """The last completion of what receives was not looked at."""
        self._inbound.step_receive(FlightEvent.LAST)

    def watch_lost(self) -> None:
        """That of the poll for errors."""
        self._inbound.step_watch(FlightEvent.LAST)

    # ---- what comes ----------------------------------------------------------------------

    def completed(self, res: int, data: bytes, *, last: bool) -> None:
        """A receive has brought *data*, an end (0), or an errno."""
        connection, inbound = self._connection, self._inbound
        if last:
            inbound.step_receive(FlightEvent.LAST)
        if res > 0:
            connection.turn.count_in(res)
        if not self._life.is_lent:
            if res > 0:
                self._received(data)
            else:
                self.failed(res)
        elif res > 0:
            if connection.deadlines is not None:
                # The bytes go now, whenever they are told of.
                connection.deadlines.restart_idle()
            inbound.set_aside(res)
            connection.calls.keep(self._received, data)
        else:
            if res != ECANCELED:
                inbound.set_end_aside()
            connection.calls.keep(self.failed, res)
        connection.attend()

    def input_there(self, *, last: bool) -> None:
        """The link of a large stream has input, an end or an error to be taken."""
        if last:
            self._inbound.step_receive(FlightEvent.LAST)
        self._connection.attend()

    def take(self) -> None:
        """Take what the link of a large stream has, if it is wanted."""
        if self._life.is_lent or not self._receives():
            return
        connection, inbound = self._connection, self._inbound
        size, data, more = self._link.take()
        if size <= 0:
            if size != EAGAIN:
                self.failed(size)
            return
        if more:
            connection.turn.add_more(connection, more)
        connection.turn.count_in(size)
        inbound.note_large(size)
        if connection.secure is None and self._life.is_open:
            inbound.received_rest(size)
            inbound.lease(data, 0, size)
            inbound.judge()  # now: a callback that runs elsewhere leaves no later moment
            if connection.deadlines is not None:
                connection.deadlines.restart_idle()
        else:
            self._received(data)

    def _received(self, data: bytes) -> None:
        """Input, as its own bytes."""
        life, inbound, secure = self._life, self._inbound, self._connection.secure
        handshaking = secure is not None and secure.handshaking
        if life.is_over or (life.state > State.LOST and not handshaking):
            return  # thrown away
        inbound.received_rest(len(data))
        if self._connection.deadlines is not None:
            self._connection.deadlines.restart_idle()
        if inbound.note_small(len(data)):
            self.stop()
        if secure is None:
            inbound.keep(data)
        else:
            self._decrypt(secure, data)

    def _decrypt(self, secure: Secure, data: bytes) -> None:
        """Input of the file's, and what it leads to."""
        connection, inbound = self._connection, self._inbound
        handshaking = secure.handshaking
        plaintext = secure.received(data)
        if handshaking and not secure.handshaking:
            connection.handshake_done()
        if plaintext and self._life.is_open:
            inbound.keep(plaintext)
        if secure.peer_closed and not self._life.is_over:
            inbound.step(InputEvent.END)
        if secure.error is not None:
            connection.outlet.try_last(secure.last_words())
            connection.spoil(secure.error)

    def failed(self, res: int) -> None:
        """No data: the end of the stream, or an error."""
        connection, life, secure = self._connection, self._life, self._connection.secure
        if res == 0:
            self._inbound.step(InputEvent.END)
            if secure is not None and (life.state <= State.LOST or secure.handshaking):
                error = secure.transport_ended()
                if error is not None and error is not secure.truncated:
                    connection.spoil(error)  # else it is told when all input has been
            if life.state is State.DISCARDING:
                connection.end(Event.DISCARDED)
        elif res not in (ECANCELED, EINTR, ENOBUFS):
            self._peer_gone(res)
        # Else it is armed anew when it is settled: buffers have come home with this batch's end
        # by the time that the kernel sees it.

    def watch_completed(self, res: int, *, last: bool) -> None:
        """The poll for errors has told of something."""
        if last:
            self._inbound.step_watch(FlightEvent.LAST)
        if res > 0:
            self._inbound.notice(res)
        self._connection.when_mine(self._watched, res)
        self._connection.attend()

    def _watched(self, res: int) -> None:
        """The poll for errors alone, which tells of the peer's end too."""
        if res > 0 and res & PEER_ENDED and self.patience is not None:
            self.patience.peer_has_ended()
        misses = self._connection.worker.engine.misses_errors
        if (self._inbound.pieces or not misses) and self._receives():
            return  # its receives find the error themselves, and what came before it first
        if res > 0 and res & (POLLERR | POLLHUP) and self._life.is_open:
            error = self._link.error()
            if error:
                self._peer_gone(-error)

    def _peer_gone(self, res: int) -> None:
        """There will be no input any more."""
        ended = self._inbound.state in (Input.ENDED, Input.ENDED_PAUSED)
        if self._connection.secure is not None and ended:
            return  # close_notify came before, and an unread ticket makes of a FIN a reset
        self._connection.lose(os_error(res))

    # ---- what is there -------------------------------------------------------------------

    def measure_rest(self) -> None:
        """The peer has gone: how much it had sent, and whether there is room for that."""
        self._inbound.judge()  # the last on_read may have made some
        self._inbound.note_rest(self._link.unread())

    def put_away(self) -> None:
        """Nothing is to be told now: the engine wants its buffers back."""
        inbound = self._inbound
        if inbound.lease_size:
            inbound.stash()
        inbound.judge()
        if inbound.pieces:
            self.shrink()

    def shrink(self) -> None:
        """Nothing is leased: go back to small buffers if the messages are small now."""
        inbound = self._inbound
        if inbound.pieces is Pieces.SHRINKING:
            self.stop()
            if inbound.receive is Flight.IDLE:
                inbound.step_pieces(PiecesEvent.IDLE)
                self._link.forget_input()  # a receive finds it
        inbound.leave_pool()

    def has_come_meanwhile(self) -> bool:
        """Whether input has come that only the callback that runs keeps from its on_read."""
        inbound = self._inbound
        return self._life.is_busy and (inbound.announces or inbound.aside > 0)

    # ---- what its user says --------------------------------------------------------------

    def took(self) -> None:
        """Its user has consumed input; there may be room again."""
        if not self._life.is_lent and self._inbound.is_at_limit:
            self._inbound.judge()
            if not self._inbound.is_at_limit:
                self._connection.attend()

    def set_limit(self, size: int) -> None:
        """Let so many bytes gather."""
        self._inbound.set_limit(size)
        self._minded()

    def pause(self) -> None:
        """Receive no more for now."""
        self._inbound.step(InputEvent.PAUSE)
        self._minded()

    def resume(self) -> None:
        """Go on."""
        self._inbound.step(InputEvent.RESUME)
        self._minded()

    def _minded(self) -> None:
        self.forget_stuck()
        self._connection.changed()

    # ---- input that nobody takes; see `_patience` ----------------------------------------

    def judge(self) -> None:
        """Whether it is stuck now."""
        if self.patience is None:
            self.patience = Patience(self._connection)
        self.patience.judge()

    def forget_stuck(self) -> None:
        """It may go on, or somebody has shown that he minds it."""
        if self.patience is not None:
            self.patience.forget()

    def look_again(self) -> None:
        """It may be stuck from now on."""
        if self._inbound.is_full and self._life.state is State.OPEN and not self._life.is_lent:
            self.forget_stuck()
            self._connection.attend()


class Outlet:
    """What turns the output into sends, one after the other."""

    __slots__ = ("_connection", "_drained", "_life", "_link", "_outbound")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbound = connection.outbound
        self._life = connection.life
        self._link = connection.link
        self._drained: trio.Event | None = None

    # ---- in the worker's turn ------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection  # `_hot` calls it from a user's frame
    def soon(self) -> None:
        """There is something to send, and no send in flight."""
        if not self._life.is_lent:  # else all of it is sent when the thread is done
            self._connection.turn.add_dirty(self._connection)

    def offer(self) -> None:
        """If there is; once too often does no harm."""
        if self._outbound.sending is None and not self._life.is_over and self._has_output():
            self.soon()

    def _has_output(self) -> bool:
        secure = self._connection.secure
        return bool(self._outbound.pieces) or (secure is not None and secure.pending())

    def flush(self) -> None:
        """Nothing more will be written: what there is need not wait for the turn's end."""
        if self._outbound.sending is None:
            self.send_next()

    def time_close(self) -> None:
        """The peer has to take something, from now on."""
        connection = self._connection
        connection.start_timer("close", connection.worker.config.close_timeout)

    def overflow(self) -> None:
        """What was written is over high water, behind what the socket has refused."""
        self._outbound.step(OutputEvent.FILL)
        self._connection.changed()

    def send_next(self) -> None:
        """Send what was written; nothing is in flight."""
        connection, outbound, secure = self._connection, self._outbound, self._connection.secure
        if self._life.state > State.FLUSHING or self._life.is_lent:
            return
        if secure is not None:
            data = secure.next_output(outbound.pieces)
            if not data:
                if outbound.size and secure.error is not None:
                    connection.spoil(secure.error)  # it will never be sent
                return
        elif outbound.pieces:
            data = outbound.take_piece()
        else:
            return
        sent = self._link.try_send(data, min(len(data), TRANSFER_MAX))
        if sent < len(data):
            self.send_rest_of(data, sent)
            return
        outbound.begin(data)
        outbound.next_part(TRANSFER_MAX)
        self._sent(sent)
        if connection.way is Way.SETTLED:
            connection.attend()
        else:
            connection.turn.add_wrote(connection)

    def send_rest_of(self, data: bytes, sent: int) -> None:
        """An attempt to send at once has taken *sent* bytes, or was refused."""
        outbound = self._outbound
        outbound.begin(data)
        if sent > 0:  # an error comes again, from the operation
            self._sent(sent)
        else:
            self._send_part()
        if outbound.is_over_high_water():
            outbound.step(OutputEvent.FILL)
        if self._life.state is State.FLUSHING:
            self.time_close()
        self._connection.attend()

    def _send_part(self) -> None:
        if self._life.is_over:
            self._outbound.finish()
        else:
            self._link.send(*self._outbound.next_part(TRANSFER_MAX))

    def try_last(self, data: bytes) -> None:
        """Send this if it can be done now: the connection is about to end."""
        if data and self._outbound.sending is None:
            self._link.try_send(data, len(data))

    # ---- what became of it ---------------------------------------------------------------

    def completed(self, res: int) -> None:
        """The send in flight is over."""
        connection = self._connection
        if self._life.is_lent:
            if res > 0 and connection.deadlines is not None:
                connection.deadlines.restart_idle()
            connection.calls.keep(self._sent, res)
        else:
            self._sent(res)
        connection.attend()

    def lost(self, res: int) -> None:
        """The worker ends, and nothing more is sent; but what this has sent was sent."""
        if res > 0:
            self._connection.when_mine(self._count, res)
        self._outbound.finish()

    def _sent(self, res: int) -> None:
        """So much of what is being sent has gone, or an errno."""
        connection, outbound = self._connection, self._outbound
        if res == EINTR:
            self._send_part()
            return
        if res < 0:
            outbound.finish()
            if res != ECANCELED:
                self._failed(res)
            return
        self._count(res)
        if res and connection.deadlines is not None:
            connection.deadlines.restart_idle()
        if outbound.is_unsent():
            self._send_part()
            return
        outbound.finish()
        if self._has_output():
            self.soon()

    def _count(self, res: int) -> None:
        """The kernel has *res* more bytes of what is being sent."""
        secure = self._connection.secure
        self._connection.turn.count_out(res)
        whole = self._outbound.took(res)
        self._account(res if secure is None else secure.accepted(res, whole=whole))

    def _failed(self, res: int) -> None:
        connection, outbound = self._connection, self._outbound
        if self._life.state is State.FLUSHING and not outbound.size:
            # A peer may go, close_notify said, without waiting for ours. Many do.
            connection.end(Event.ABORT)
        elif connection.secure is None or outbound.size or not connection.inbound.receive:
            connection.lose(os_error(res))
        # Else it was a ticket or the like: there may be input, and then an end or an error.

    def _account(self, size: int) -> None:
        """The kernel has *size* more bytes of what was written."""
        connection, outbound = self._connection, self._outbound
        deadlines, patience = connection.deadlines, connection.intake.patience
        outbound.account(size)
        if patience is not None:
            patience.sent(size)
        if self._drained is not None and outbound.size <= outbound.low_water:
            self.wake_drainers()
        if deadlines is not None and deadlines.count:
            if outbound.size == 0:
                deadlines.cancel("write")
            if self._life.state is State.FLUSHING:
                if outbound.size or connection.secure is not None:  # a close_notify follows
                    deadlines.start("close", connection.worker.config.close_timeout)
                else:
                    deadlines.cancel("close")

    # ---- who waits for it ----------------------------------------------------------------

    async def drain(self) -> None:
        """Sleep until the output is down at low water."""
        connection, outbound = self._connection, self._outbound
        while outbound.size > outbound.low_water:
            if self._life.is_over or self._life.err is not None:
                raise ConnectionClosed("drain: the connection ended with output unsent")
            if self._drained is None:
                self._drained = trio.Event()
                connection.changed()
            drained = self._drained
            outbound.wait()
            try:
                await drained.wait()
            finally:
                outbound.wait_no_more()
                if drained is self._drained and not drained.statistics().tasks_waiting:
                    self._drained = None
                # Whoever looked meanwhile has seen somebody who may take input.
                connection.intake.look_again()

    def wake_drainers(self) -> None:
        """It is down there, or will never be."""
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set()


class Calls:
    """What its handler is told, one callback at a time, and what others want called.

    Those that are no plain calls run elsewhere (`_callbacks`), of which this is the host.
    """

    __slots__ = ("_connection", "_kept", "_life", "_tasks")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._life = connection.life
        self._tasks: Tasks | None = None
        # While a thread has it: what is to be done when it gives it back, in this order.
        self._kept: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    # ---- callbacks -----------------------------------------------------------------------

    def make_all(self) -> bool:
        """Until nothing is due; whether an on_read was told, which may not have answered."""
        connection, life, inbound = self._connection, self._life, self._connection.inbound
        unanswered = False
        while True:
            if life.state is State.LOST and not life.is_lent:
                connection.intake.measure_rest()
            due = callback_due(inbound, connection.outbound, life)
            if due is Due.NOTHING:
                return unanswered
            if due is Due.READ:
                unanswered = True
            self._make(due)

    def _make(self, due: Due) -> None:
        """Call the callback that is due, or do what is due in its place."""
        connection, life, inbound = self._connection, self._life, self._connection.inbound
        callbacks, tell, conn = connection.worker.callbacks, connection.worker.tell, connection.conn
        if due is Due.READ:
            n = inbound.announced()
            if callbacks.on_read is None:
                inbound.drop(inbound.buffered())
                return
            if connection.deadlines is not None:
                connection.deadlines.told()
            tell(self, "on_read", callbacks.on_read, conn, n)
        elif due is Due.WROTE:
            tell(self, "on_write", callbacks.on_write, conn, connection.outbound.tell())
        elif due is Due.ACCEPT:
            life.tell(ToldEvent.ACCEPT)
            tell(self, "on_accept", callbacks.on_accept, conn)
        elif due is Due.EOF:
            inbound.step(InputEvent.TELL)
            truncated = None if connection.secure is None else connection.secure.truncated
            if truncated is None and callbacks.on_eof is not None:
                tell(self, "on_eof", callbacks.on_eof, conn)
            else:
                life.blame(truncated or EndOfStream("the peer ended the connection"))
                connection.begin_close()
        elif due is Due.BOTH_ENDED:
            life.blame(EndOfStream("both directions have ended"))
            connection.begin_close()
        elif due is Due.LEAVE:
            connection.begin_close()
        elif due is Due.GIVE_UP:
            connection.end(Event.ABORT)
        else:
            assert due is Due.CLOSED
            life.tell(ToldEvent.CLOSE)
            try:
                tell(self, "on_close", callbacks.on_close, conn, life.err)
            finally:  # it may be a KeyboardInterrupt or SystemExit, which ends the server
                if not life.is_busy:
                    connection.worker.forget(connection)

    def raised(self, name: str, exc: BaseException) -> None:
        """A callback or a task of this connection raised."""
        connection = self._connection
        connection.worker.logger.error(
            "%s raised, its connection is closed: %s",
            name,
            connection.name(),
            exc_info=(type(exc), exc, exc.__traceback__),
        )
        if name != "on_close":
            connection.fail(exc)

    # ---- callbacks that run elsewhere ----------------------------------------------------

    def begin_elsewhere(self, *, in_thread: bool) -> None:
        """A callback begins that is no plain call."""
        self._connection.inbound.stash()
        if in_thread:
            self._life.lend()
        else:
            self._life.run_as_task()

    def borrow(self, thread: int) -> bool:
        """In a thread: begin; False if that is too late."""
        return self._life.borrow(thread)

    def may_tell(self, name: str) -> bool:
        """Whether there still is what a callback, as a task, is to be told of."""
        return name != "on_read" or self._life.user != 0 or self.may_take_rest()

    def may_take_rest(self) -> bool:
        """Whether the peer has gone while a callback runs as a task, and left input."""
        return self._life.is_lost_beside_task and self._connection.inbound.buffered() > 0

    def ended_elsewhere(self, name: str, exc: Exception | None) -> None:
        """It is over."""
        connection = self._connection
        self._life.give_back()
        if exc is not None:
            self.raised(name, exc)
        if name == "on_close":
            connection.worker.forget(connection)
            return
        if self._life.is_over:
            connection.end_halves()
        if self._kept:
            self._take_back()
        connection.attend()
        connection.outlet.offer()

    def keep(self, fn: Callable[..., Any], *args: Any) -> None:
        """A thread has the connection: call it when that is done."""
        self._kept.append((fn, args))

    def _take_back(self) -> None:
        """A thread has given the connection back."""
        kept, self._kept = self._kept, []
        self._connection.inbound.take_back()
        for fn, args in kept:
            fn(*args)

    # ---- tasks ---------------------------------------------------------------------------

    def start_task(self, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        """Run a task in the connection's nursery."""
        self._connection.when_mine(self._start_task, async_fn, args, name)

    def _start_task(self, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        connection = self._connection
        if self._life.is_over:
            return  # it would be cancelled at once
        if self._tasks is None:
            self._tasks = Tasks(self.raised, connection.intake.look_again)
        connection.intake.forget_stuck()
        self._tasks.start(connection.worker.nursery, async_fn, args, name or async_fn)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return 0 if self._tasks is None else self._tasks.running

    def cancel_tasks(self) -> None:
        """The connection is closed."""
        if self._tasks is not None:
            self._tasks.cancel()


if _hot_parts.hot is not None:
    _hot_parts.hot.know(Connection=Connection)
