"""What a connection does between an engine and its handler.

Its input (`_inbound`), its output (`_outbound`) and its life (`_life`) are tables without
I/O, and hold all that decides. What is due for it is computed from them (`_due`). Here the
answers become operations of its link (`_engine`) and calls of its handler, and nowhere else.

A worker's turn goes over its connections in three sweeps: what the engine has done, what
the handlers are to be told, what is to be sent. A connection of a plain handler, open, with
nothing set that needs more thought, goes through all three in the worker's own loops
(`_turn`). Every other one comes here, to `Connection.settle`: it asks, until nothing is left,
which callback is due, and then has the engine receive, send or close.

One callback at a time: while an ``async def`` or a thread has the connection it is *busy*;
input gathers, counts add up, and everything is looked at again when it ends.

Output is tried at once, and is an operation only as far as the socket does not take it; with
no MSG_WAITALL: a short count is progress, which ``on_write``, the deadlines and the close
timeout all want to know of, and a peer's reset in the middle of a send is lost with it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from uring_trio._fast_ways import FAST
from uring_trio._kernel import EAGAIN, ECANCELED, EINTR, ENOBUFS, TRANSFER_MAX
from uring_trio.gain import _inbound, _outbound
from uring_trio.gain._deadlines import Deadlines
from uring_trio.gain._due import Due, Wanted, Way, callback_due, is_plain, receives, wanted
from uring_trio.gain._engine import ENDS, PEER_ENDED, POLLERR, POLLHUP
from uring_trio.gain._errors import ConnectionClosed, DeadlineExceeded, EndOfStream
from uring_trio.gain._inbound import Flight, FlightEvent, Inbound
from uring_trio.gain._life import Event, Life, State, Told, ToldEvent
from uring_trio.gain._outbound import Outbound
from uring_trio.gain._patience import Patience
from uring_trio.gain._tasks import Tasks

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uring_trio.gain._engine import Link
    from uring_trio.gain._secure import Secure

# Seconds for which input is thrown away after our FIN, so that no reset overtakes the answer.
DISCARD_S = 1.0


def os_error(result: int) -> OSError:
    """The exception for a completion's negative result."""
    return OSError(-result, os.strerror(-result))


class Connection:
    """One connection of a worker.

    Args:
      worker: who serves it.
      sock: its file, which is the link's from now on.

    Attributes:
      conn: what its handler has of it.
      way: how it goes through the worker's turn; computed from the tables whenever it was
        settled, and SETTLED as soon as something happens.
      ready: it stands in the list of those that the worker's turn comes to.
    """

    __slots__ = (
        "conn",
        "deadlines",
        "drained",
        "inbound",
        "kept",
        "life",
        "link",
        "outbound",
        "patience",
        "ready",
        "secure",
        "tasks",
        "turn",
        "way",
        "worker",
    )

    def __init__(self, worker: Any, sock: socket.socket) -> None:
        engine = worker.engine
        self.worker = worker
        self.turn = worker.turn
        self.conn: Any = None
        self.inbound = Inbound(engine.pool, worker.config.read_buffer_limit)
        self.outbound = Outbound(worker.config.write_high_water)
        self.life = Life(worker.thread)
        self.link: Link = engine.link(self, sock)
        self.way = Way.SETTLED
        self.ready = False
        self.secure: Secure | None = None
        self.deadlines: Deadlines | None = None
        self.patience: Patience | None = None
        self.tasks: Tasks | None = None
        self.drained: trio.Event | None = None
        # While a thread has it: what is to be done when it gives it back, in this order.
        self.kept: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

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
            self.kept.append((fn, args))
        else:
            fn(*args)

    def send_soon(self) -> None:
        """There is something to send, and no send in flight."""
        if not self.life.is_lent:  # else all of it is sent when the thread is done
            self.turn.add_dirty(self)

    def settle(self) -> None:
        """Call what is due, then have the engine do what is wanted."""
        life, inbound, outbound, link = self.life, self.inbound, self.outbound, self.link
        if link.readable and not life.is_lent and receives(inbound, outbound, life, self.secure):
            self._receive_large()
        unanswered = False  # an on_read was told, which may not have answered
        while (due := self._due()) is not Due.NOTHING:
            unanswered |= due is Due.READ
            self._do(due)
        if not life.is_lent:
            if inbound.lease_size:
                inbound.stash()
            inbound.judge()
            if link.large:
                inbound.leave_pool(b"")  # so that the next one has the same memory, warm
                self.shrink()
        self._act(unanswered=unanswered)
        if outbound.sending is None and not life.is_over and self._has_output():
            self.turn.add_dirty(self)  # once too often does no harm
        if inbound.is_full or self.patience is not None:
            self._judge_input()
        self.way = self._choose_way()

    def _choose_way(self) -> Way:
        if not (
            FAST
            and self.worker.plain
            and is_plain(self.inbound, self.outbound, self.life)
            and self.secure is None
            and (self.deadlines is None or not self.deadlines.count)
        ):
            return Way.SETTLED
        return Way.LARGE if self.link.large else Way.SMALL

    # ---- callbacks -----------------------------------------------------------------------

    def _due(self) -> Due:
        life = self.life
        if life.state is State.LOST and not life.is_lent:
            self.inbound.judge()  # the last on_read may have made room
            self.inbound.note_rest(self.link.unread())
        return callback_due(self.inbound, self.outbound, life)

    def _do(self, due: Due) -> None:
        """Call the callback that is due, or do what is due in its place."""
        life, inbound, callbacks = self.life, self.inbound, self.worker.callbacks
        if due is Due.READ:
            n = inbound.announced()
            if callbacks.on_read is None:
                inbound.drop(inbound.buffered())
                return
            if self.deadlines is not None:
                self.deadlines.told()
            self._call("on_read", callbacks.on_read, n)
        elif due is Due.WROTE:
            self._call("on_write", callbacks.on_write, self.outbound.tell())
        elif due is Due.ACCEPT:
            life.tell(ToldEvent.ACCEPT)
            self._call("on_accept", callbacks.on_accept)
        elif due is Due.EOF:
            inbound.step(_inbound.Event.TELL)
            truncated = None if self.secure is None else self.secure.truncated
            if truncated is None and callbacks.on_eof is not None:
                self._call("on_eof", callbacks.on_eof)
            else:
                life.blame(truncated or EndOfStream("the peer ended the connection"))
                self.begin_close()
        elif due is Due.BOTH_ENDED:
            life.blame(EndOfStream("both directions have ended"))
            self.begin_close()
        elif due is Due.LEAVE:
            self.begin_close()
        elif due is Due.GIVE_UP:
            self._end(Event.ABORT)
        else:
            assert due is Due.CLOSED
            life.tell(ToldEvent.CLOSE)
            self._call("on_close", callbacks.on_close, life.err)
            if not life.is_busy:
                self.worker.forget(self)

    def _call(self, name: str, function: Callable[..., Any] | None, *args: Any) -> None:
        """Call a callback, here or as a task."""
        if function is None:
            return
        elsewhere = self.worker.elsewhere
        if elsewhere.runs(name):
            self.inbound.stash()
            elsewhere.run(self, name, function, (self.conn, *args))
            return
        try:
            function(self.conn, *args)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            self.raised(name, exc)

    def raised(self, name: str, exc: BaseException) -> None:
        """A callback or a task of this connection raised."""
        self.worker.logger.error(
            "%s raised, its connection is closed: %s",
            name,
            self.conn._name(),
            exc_info=(type(exc), exc, exc.__traceback__),
        )
        if name != "on_close":
            self.fail(exc)

    # ---- callbacks that run elsewhere ----------------------------------------------------

    def begin_elsewhere(self, *, in_thread: bool) -> None:
        """A callback begins that is no plain call."""
        if in_thread:
            self.life.lend()
        else:
            self.life.run_as_task()

    def borrow(self, thread: int) -> bool:
        """In a thread: begin; False if that is too late."""
        return self.life.borrow(thread)

    def may_tell(self, name: str) -> bool:
        """Whether there still is what a callback, as a task, is to be told of."""
        return name != "on_read" or self.life.user != 0 or self.may_take_rest()

    def ended_elsewhere(self, name: str, exc: Exception | None) -> None:
        """It is over."""
        life = self.life
        life.give_back()
        if exc is not None:
            self.raised(name, exc)
        if name == "on_close":
            self.worker.forget(self)
            return
        if life.is_over:
            self._end_halves()
        if self.kept:
            self._take_back()
        self.attend()
        if self._has_output() and self.outbound.sending is None:
            self.send_soon()

    def _take_back(self) -> None:
        """A thread has given the connection back."""
        kept, self.kept = self.kept, []
        self.inbound.take_back()
        for fn, args in kept:
            fn(*args)

    def call(self, fn: Callable[..., Any], *args: Any) -> None:
        """What another thread has asked for; while a thread has the connection it waits."""
        self.when_mine(self.worker.call, fn, args)

    def may_take_rest(self) -> bool:
        """Whether the peer has gone while a callback runs as a task, and left input."""
        life = self.life
        return life.state is State.LOST and not life.is_lent and self.inbound.buffered() > 0

    # ---- what the engine has done --------------------------------------------------------

    def happened(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Something that its turn is to look at; what comes later goes the same way, behind it."""
        self.way = Way.SETTLED
        self.turn.add_happened(self.link, slot, res, flags, offset)

    def receive_completed(self, res: int, data: bytes, *, last: bool) -> None:
        """A receive has brought *data*, an end (0), or an errno."""
        if last:
            self.inbound.step_receive(FlightEvent.LAST)
        if res > 0:
            self.turn.count_in(res)
        if not self.life.is_lent:
            if res > 0:
                self._received(data)
            else:
                self.receive_failed(res)
        elif res > 0:
            if self.deadlines is not None:
                self.deadlines.restart_idle()  # the bytes go now, whenever they are told of
            self.inbound.set_aside(res)
            self.kept.append((self._received, (data,)))
        else:
            if res != ECANCELED:
                self.inbound.set_end_aside()
            self.kept.append((self.receive_failed, (res,)))
        self.attend()

    def input_there(self, *, last: bool) -> None:
        """The link of a large stream has input, an end or an error to be taken."""
        if last:
            self.inbound.step_receive(FlightEvent.LAST)
        self.attend()

    def send_completed(self, res: int) -> None:
        """The send in flight is over."""
        if self.life.is_lent:
            if res > 0 and self.deadlines is not None:
                self.deadlines.restart_idle()
            self.kept.append((self._sent, (res,)))
        else:
            self._sent(res)
        self.attend()

    def watch_completed(self, res: int, *, last: bool) -> None:
        """The poll for errors has told of something."""
        if last:
            self.inbound.step_watch(FlightEvent.LAST)
        if res > 0:
            self.inbound.notice(res)
        self.when_mine(self._watched, res)
        self.attend()

    def receive_lost(self) -> None:
        """The last completion of what receives was not looked at."""
        self.inbound.step_receive(FlightEvent.LAST)

    def watch_lost(self) -> None:
        """That of the poll for errors."""
        self.inbound.step_watch(FlightEvent.LAST)

    def send_lost(self) -> None:
        """That of a send."""
        self.outbound.finish()

    # ---- input ---------------------------------------------------------------------------

    def _receive_large(self) -> None:
        """Take what the link of a large stream has."""
        inbound, link = self.inbound, self.link
        size, data, told = link.take()
        if size <= 0:
            if size != EAGAIN:
                self.receive_failed(size)
            return
        if told & ENDS or link.fills(size):
            self.turn.add_more(self, told)
        self.turn.count_in(size)
        link.note_large(size)
        if self.secure is None and self.life.is_open:
            inbound.received_rest(size)
            inbound.lease(data, 0, size)
            inbound.judge()  # now: a callback that runs elsewhere leaves no later moment
            if self.deadlines is not None:
                self.deadlines.restart_idle()
        else:
            self._received(data)

    def _received(self, data: bytes) -> None:
        """Input, as its own bytes."""
        life = self.life
        handshaking = self.secure is not None and self.secure.handshaking
        if life.is_over or (life.state > State.LOST and not handshaking):
            return  # thrown away
        self.inbound.received_rest(len(data))
        if self.deadlines is not None:
            self.deadlines.restart_idle()
        if self.link.note_size(len(data)) and self.inbound.receive is Flight.ARMED:
            self._stop_receive()
        if self.secure is None:
            self.inbound.keep(data)
        else:
            self._decrypt(self.secure, data)

    def receive_failed(self, res: int) -> None:
        """No data: the end of the stream, or an error."""
        life, secure = self.life, self.secure
        if res == 0:
            self.inbound.step(_inbound.Event.END)
            if secure is not None and (life.state <= State.LOST or secure.handshaking):
                error = secure.transport_ended()
                if error is not None and error is not secure.truncated:
                    self._spoil(error)  # else it is told when all input has been
            if life.state is State.DISCARDING:
                self._end(Event.DISCARDED)
        elif res == ENOBUFS:
            self.turn.add_starved(self)
        elif res not in (ECANCELED, EINTR):
            self._peer_gone(res)

    def _watched(self, res: int) -> None:
        """The poll for errors alone, which tells of the peer's end too."""
        if res > 0 and res & PEER_ENDED and self.patience is not None:
            self.patience.peer_has_ended()
        if self.link.finds_errors and receives(self.inbound, self.outbound, self.life, self.secure):
            return  # its receives find the error themselves, and what came before it first
        if res > 0 and res & (POLLERR | POLLHUP) and self.life.is_open:
            error = self.link.error()
            if error:
                self._peer_gone(-error)

    def _peer_gone(self, res: int) -> None:
        """There will be no input any more."""
        ended = self.inbound.state in (_inbound.State.ENDED, _inbound.State.ENDED_PAUSED)
        if self.secure is not None and ended:
            return  # close_notify came before, and an unread ticket makes of a FIN a reset
        self._lose(os_error(res))

    def took(self) -> None:
        """Its user has consumed input; there may be room again."""
        if not self.life.is_lent and self.inbound.state in _FULL:
            self.inbound.judge()
            if self.inbound.state not in _FULL:
                self.attend()

    def set_limit(self, size: int) -> None:
        """Let so many bytes gather."""
        self.inbound.set_limit(size)
        self.forget_stuck()
        self.changed()

    def pause(self) -> None:
        """Receive no more for now."""
        self.inbound.step(_inbound.Event.PAUSE)
        self.forget_stuck()
        self.changed()

    def resume(self) -> None:
        """Go on."""
        self.inbound.step(_inbound.Event.RESUME)
        self.forget_stuck()
        self.changed()

    # ---- output --------------------------------------------------------------------------

    def _has_output(self) -> bool:
        return bool(self.outbound.pieces) or (self.secure is not None and self.secure.pending())

    def overflow(self) -> None:
        """What was written is over high water, behind what the socket has refused."""
        self.outbound.step(_outbound.Event.FILL)
        self.changed()

    def send_next(self) -> None:
        """Send what was written; nothing is in flight."""
        outbound, secure = self.outbound, self.secure
        if self.life.state > State.FLUSHING or self.life.is_lent:
            return
        if secure is not None:
            data = secure.next_output(outbound.pieces)
            if not data:
                if outbound.size and secure.error is not None:
                    self._spoil(secure.error)  # it will never be sent
                return
        elif outbound.pieces:
            data = outbound.take_piece()
        else:
            return
        sent = self.link.try_send(data, min(len(data), TRANSFER_MAX))
        if sent < len(data):
            self.send_rest_of(data, sent)
            return
        outbound.begin(data)
        outbound.next_part(TRANSFER_MAX)
        self._sent(sent)
        if self.way is Way.SETTLED:
            self.attend()
        else:
            self.turn.add_wrote(self)

    def send_rest_of(self, data: bytes, sent: int) -> None:
        """An attempt to send at once has taken *sent* bytes, or was refused."""
        outbound = self.outbound
        outbound.begin(data)
        if sent > 0:  # an error comes again, from the operation
            self._sent(sent)
        else:
            self._send_part()
        if outbound.is_over_high_water() and outbound.state <= _outbound.State.ENDING_FULL:
            outbound.step(_outbound.Event.FILL)
        self.attend()

    def _send_part(self) -> None:
        if self.life.is_over:
            self.outbound.finish()
        else:
            self.link.send(*self.outbound.next_part(TRANSFER_MAX))

    def _sent(self, res: int) -> None:
        """So much of what is being sent has gone, or an errno."""
        outbound, secure = self.outbound, self.secure
        if res == EINTR:
            self._send_part()
            return
        if res < 0:
            outbound.finish()
            if res != ECANCELED:
                self._send_failed(res)
            return
        self.turn.count_out(res)
        whole = outbound.took(res)
        self._account(res if secure is None else secure.accepted(res, whole=whole))
        if res and self.deadlines is not None:
            self.deadlines.restart_idle()
        if outbound.is_unsent():
            self._send_part()
            return
        outbound.finish()
        if self._has_output():
            self.send_soon()

    def _send_failed(self, res: int) -> None:
        if self.life.state is State.FLUSHING and not self.outbound.size:
            # A peer may go, close_notify said, without waiting for ours. Many do.
            self._end(Event.ABORT)
        elif self.secure is None or self.outbound.size or self.inbound.receive is Flight.IDLE:
            self._lose(os_error(res))
        # Else it was a ticket or the like: there may be input, and then an end or an error.

    def _try_last(self, data: bytes) -> None:
        """Send this if it can be done now: the connection is about to end."""
        if data and self.outbound.sending is None:
            self.link.try_send(data, len(data))

    def _account(self, size: int) -> None:
        """The kernel has *size* more bytes of what was written."""
        outbound, deadlines = self.outbound, self.deadlines
        outbound.account(size)
        if self.patience is not None:
            self.patience.sent(size)
        if self.drained is not None and outbound.size <= outbound.low_water:
            self._wake_drainers()
        if deadlines is not None and deadlines.count:
            if outbound.size == 0:
                deadlines.cancel("write")
            if self.life.state is State.FLUSHING:
                if outbound.size or self.secure is not None:  # a close_notify follows
                    deadlines.start("close", self.worker.config.close_timeout)
                else:
                    deadlines.cancel("close")

    async def drain(self) -> None:
        """Sleep until the output is down at low water."""
        outbound = self.outbound
        while outbound.size > outbound.low_water:
            if self.life.is_over or self.life.err is not None:
                raise ConnectionClosed("drain: the connection ended with output unsent")
            if self.drained is None:
                self.drained = trio.Event()
                self.way = Way.SETTLED
            drained = self.drained
            outbound.wait()
            try:
                await drained.wait()
            except BaseException:
                outbound.wait_no_more()
                if drained is self.drained and not drained.statistics().tasks_waiting:
                    self.drained = None
                    self.look_again()
                raise
            outbound.wait_no_more()

    def _wake_drainers(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None:
            drained.set()

    # ---- input that nobody takes; see `_patience` ----------------------------------------

    def _judge_input(self) -> None:
        if self.patience is None:
            self.patience = Patience(self)
        self.patience.judge()

    def forget_stuck(self) -> None:
        """It may go on, or somebody has shown that he minds it."""
        if self.patience is not None:
            self.patience.forget()

    def look_again(self) -> None:
        """It may be stuck from now on."""
        if self.inbound.is_full and self.life.state is State.OPEN and not self.life.is_lent:
            self.forget_stuck()
            self.attend()

    # ---- deadlines -----------------------------------------------------------------------

    def timers(self) -> Deadlines:
        """Its deadlines, made when they are first needed."""
        if self.deadlines is None:
            self.deadlines = Deadlines(self.worker.clock, self)
        return self.deadlines

    def set_deadline(self, kind: str, seconds: float | None) -> None:
        """One of the user's; None: none."""
        self.when_mine(self._set_deadline, kind, seconds)

    def _set_deadline(self, kind: str, seconds: float | None) -> None:
        if seconds is None:
            if self.deadlines is not None:
                self.deadlines.cancel(kind)
            self.look_again()
        elif not self.life.is_over:
            self.timers().choose(kind, seconds)
            self.way = Way.SETTLED
            if self.patience is not None:
                self.patience.mind_deadline()

    def _start_timer(self, kind: str, seconds: float) -> None:
        self.timers().start(kind, seconds)
        self.way = Way.SETTLED

    def _timer_expired(self, kind: str) -> None:
        self.timers().expired(kind)
        if self.life.is_over:
            return  # one that expired with it, and before it, has ended all
        if kind == "discard":
            self._end(Event.DISCARDED)
        elif kind == "close":
            seconds = self.worker.config.close_timeout
            self._fail(
                TimeoutError(f"the peer took nothing for {seconds:g} s while closing"), Event.RESET
            )
        elif kind == "handshake":
            self.fail(DeadlineExceeded("the TLS handshake took too long"))
        elif kind == "stuck":
            assert self.patience is not None
            self.patience.timer_expired()
        elif kind == "write" and not self.outbound.size:
            self.look_again()
        elif kind == "read" and self._has_come_meanwhile():
            pass
        else:
            self.fail(DeadlineExceeded(f"the {kind} deadline is over"))

    def _has_come_meanwhile(self) -> bool:
        """Whether input has come that only the callback that runs keeps from its on_read."""
        inbound = self.inbound
        return self.life.is_busy and (inbound.announces or inbound.aside > 0)

    # ---- TLS -----------------------------------------------------------------------------

    def use_tls(self, secure: Secure) -> None:
        """All that the file takes and gives goes through *secure* from here on."""
        self.secure = secure
        self.when_mine(self._begin_handshake)
        if secure.pending() and self.outbound.sending is None:
            self.send_soon()  # it is not in the queue any more, where it would be seen

    def begin_in_handshake(self, secure: Secure) -> None:
        """With ``tls=``, before the handler knows of it."""
        self.life.begin_in_handshake()
        self.use_tls(secure)

    def _begin_handshake(self) -> None:
        if self.life.state <= State.LOST:
            self._start_timer("handshake", self.worker.config.tls_handshake_timeout)
            self.attend()

    def _decrypt(self, secure: Secure, data: bytes) -> None:
        """Input of the file's, and what it leads to."""
        handshaking = secure.handshaking
        plaintext = secure.received(data)
        if handshaking and not secure.handshaking:
            self.timers().cancel("handshake")
            if self.life.in_handshake:
                self.life.step(Event.READY)
        if plaintext and self.life.is_open:
            self.inbound.keep(plaintext)
        if secure.peer_closed and not self.life.is_over:
            self.inbound.step(_inbound.Event.END)
        if secure.error is not None:
            self._try_last(secure.last_words())
            self._spoil(secure.error)
        elif self.outbound.sending is None and secure.pending():
            self.send_soon()

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
        self.inbound.step(_inbound.Event.SHUT)
        outbound.step(_outbound.Event.CLOSE)
        if self.deadlines is not None:
            self.deadlines.forget()
        if secure is not None:
            secure.close(outbound.pieces, unsent=outbound.size > 0)
            if outbound.sending is None:
                self.send_soon()
        if outbound.size or secure is not None:
            self._start_timer("close", self.worker.config.close_timeout)
        self.attend()

    def abort(self) -> None:
        """Close at once, with a reset."""
        if not self.life.is_over:
            if self.life.is_lent:
                self.life.revoke()
            self.when_mine(self._abort)

    def _abort(self) -> None:
        if not self.life.is_over:
            self._end(Event.RESET)

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
            self.inbound.step(_inbound.Event.SHUT)

    def end_now(self) -> None:
        """The worker is aborted: let go of the file at once, whatever is in flight."""
        if not self.life.is_over:
            self._end(Event.RESET)
        self._cancel_all()
        self.attend()

    def send_eof(self) -> None:
        """End the output behind what was written."""
        self.outbound.step(_outbound.Event.END)
        self.changed()

    def fail(self, exc: BaseException) -> None:
        """End it because of *exc*."""
        self._fail(exc, Event.ABORT)

    def _fail(self, exc: BaseException, event: Event) -> None:
        life = self.life
        if life.is_over:
            return
        if life.in_handshake:
            self.worker.logger.info("TLS handshake with %s failed: %s", self.conn._name(), exc)
        if life.state is not State.DISCARDING:  # all was sent: what comes now is no error
            life.blame(exc)
        self._end(event)

    def _lose(self, exc: BaseException) -> None:
        """The kernel says that the peer has gone; what it had sent is input like any other."""
        life = self.life
        if not life.is_open:
            self.fail(exc)
        elif life.blame(exc):
            life.step(Event.LOSE)
            self.inbound.step(_inbound.Event.LOSE)
            self.outbound.cut()
            self._wake_drainers()
            self.attend()  # it ends there, after what this batch may still bring

    def _spoil(self, exc: BaseException) -> None:
        """TLS has ended; what was received before is announced first."""
        life, inbound = self.life, self.inbound
        untold = inbound.unannounced() > 0 or life.told is Told.NOTHING
        if life.state is not State.OPEN or life.is_busy or not untold:
            self.fail(exc)
        elif life.blame(exc):
            life.step(Event.LOSE)
            inbound.step(_inbound.Event.LOSE)
            inbound.step(_inbound.Event.END)
            self.outbound.cut()
            self._wake_drainers()
            self.attend()

    def _end(self, event: Event) -> None:
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
            self._end_halves()
        self._wake_drainers()
        self.attend()

    def _end_halves(self) -> None:
        self.inbound.end()
        self.outbound.cut()

    # ---- what the engine is to do --------------------------------------------------------

    def _act(self, *, unanswered: bool) -> None:
        """Have the engine do what is wanted."""
        inbound, outbound, life, link = self.inbound, self.outbound, self.life, self.link
        want = wanted(inbound, outbound, life, self.secure)
        if want & Wanted.FINISH:
            self._finish_output()
            want = wanted(inbound, outbound, life, self.secure)
        elif want & Wanted.FIN:
            link.send_fin()
            outbound.step(_outbound.Event.FIN)
            self.attend()
        if want & Wanted.CLOSE:
            self._cancel_all()
            if link.is_quiet():
                self._close_file()
            return
        if want & Wanted.RECEIVE:
            if inbound.receive is Flight.IDLE:
                self._arm()
        elif inbound.receive is Flight.ARMED:
            self._stop_receive()
        elif inbound.receive is Flight.IDLE and want & Wanted.WATCH:
            self.watch()
        if unanswered and life.is_open and not inbound.has_ended and outbound.is_out:
            self.watch()

    def arm_if_wanted(self) -> None:
        """A buffer has come home."""
        if self.inbound.receive is Flight.IDLE and receives(
            self.inbound, self.outbound, self.life, self.secure
        ):
            self._arm()

    def _arm(self) -> None:
        self.link.arm()
        self.inbound.step_receive(FlightEvent.ARM)

    def _stop_receive(self) -> None:
        stopped = self.link.stop()
        self.inbound.step_receive(FlightEvent.LAST if stopped else FlightEvent.CANCEL)

    def look_at_more(self, told: int) -> None:
        """In the next turn, for there may be more than was received."""
        self.link.remember(told)
        if not self.ready:
            self.ready = True
            self.turn.attend(self)

    def watch(self) -> None:
        """Watch for errors alone."""
        inbound = self.inbound
        if inbound.watch is Flight.IDLE:
            self.link.watch(again=inbound.has_ended or inbound.noticed > 0)
            inbound.step_watch(FlightEvent.ARM)

    def shrink(self) -> None:
        """Nothing is leased: go back to small buffers if the messages are small now."""
        if self.link.shrink():
            if self.inbound.receive is Flight.ARMED:
                self._stop_receive()
        elif not self.link.large:
            self.inbound.leave_pool(self.worker.engine.pool)

    def _finish_output(self) -> None:
        """All was sent. With unread input, close(2) would send a reset: read it first."""
        inbound, outbound = self.inbound, self.outbound
        if outbound.state is _outbound.State.DRAINING:
            if not inbound.has_ended:
                self.link.send_fin()  # at once, and before any reset that is sent all the same
            outbound.step(_outbound.Event.FIN)
        if self.deadlines is not None:
            self.deadlines.cancel("close")
        if inbound.receive is Flight.ARMED:
            self._stop_receive()
        if inbound.receive is not Flight.IDLE:
            return  # what it may still bring is read, and not unread
        if not inbound.has_ended and (inbound.buffered() or self.link.unread()):
            self.life.step(Event.FLUSHED_UNREAD)
            inbound.throw_away()
            self._start_timer("discard", DISCARD_S)
        else:
            self._end(Event.FLUSHED)

    def _cancel_all(self) -> None:
        inbound, link = self.inbound, self.link
        if inbound.receive is Flight.ARMED:
            self._stop_receive()
        if inbound.watch is Flight.ARMED:
            stopped = link.stop_watch()
            inbound.step_watch(FlightEvent.LAST if stopped else FlightEvent.CANCEL)
        if link.stop_send():
            self.when_mine(self.outbound.finish)

    def _close_file(self) -> None:
        self.life.step(Event.QUIET)
        self.conn._remember_addresses()
        self.link.close()
        if self.tasks is not None:
            self.tasks.cancel()
        if self.life.told is Told.ACCEPT:
            self.attend()
        else:
            self.worker.forget(self)

    # ---- tasks ---------------------------------------------------------------------------

    def start_task(self, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        """Run a task in the connection's nursery."""
        self.when_mine(self._start_task, async_fn, args, name)

    def _start_task(self, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        if self.life.is_over:
            return  # it would be cancelled at once
        if self.tasks is None:
            self.tasks = Tasks(self.raised, self.look_again)
        self.forget_stuck()
        self.tasks.start(self.worker.nursery, async_fn, args, name or async_fn)


_FULL = frozenset({_inbound.State.FULL, _inbound.State.PAUSED_FULL, _inbound.State.LOST_FULL})
