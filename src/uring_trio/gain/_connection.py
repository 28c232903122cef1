"""What a connection does between the kernel and its handler.

A worker's turn goes over its connections in three sweeps: what the kernel has done, what
the handlers are to be told, what is to be sent. A connection of a plain handler, open, with
nothing set that needs more thought, goes through all three in the worker's own loops
(`_worker`). Everything else is *special* and comes here, to `Connection._settle`: it asks,
until nothing is left, which callback is due, and then has the kernel receive, send or close
as the state (`_states`) demands.

One callback at a time: while an ``async def`` or a thread has the connection it is *busy*;
input gathers, counts add up, and everything is looked at again when it ends.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import trio

from uring_trio._kernel import CQE_F_BUFFER, EAGAIN, ECANCELED, EINTR, ENOBUFS
from uring_trio.gain._closing import Closing
from uring_trio.gain._errors import EndOfStream, StuckInput
from uring_trio.gain._receiving import (
    ENDS,
    LARGE_SIZE,
    POLLERR,
    POLLHUP,
    POLLRDHUP,
    SMALLEST_BUFFER,
    ends,
)
from uring_trio.gain._states import Event, State
from uring_trio.gain._stuck import AFTER_END_S, LATE_S, Stuck, time_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio.gain._secure import Secure


class Connection(Closing):
    """One connection's machinery; its API is in the classes below and above."""

    __slots__ = (
        "_announced",
        "_close_when_idle",
        "_deadline_set",
        "_deferred",
        "_deferred_size",
        "_input_limit",
        "_settling",
        "_stuck",
        "_tasks",
        "_tasks_running",
        "_user",
        "_warned_of_stuck",
    )

    _home: int
    _user: int  # the thread that has it, while one has
    _tasks: list[tuple[Any, tuple[Any, ...], object]] | None
    _deferred: list[tuple[Callable[..., Any], tuple[Any, ...]]]

    def _init_connection(self) -> None:
        self._special = True
        self._settling = False
        self._announced = False  # on_close was called
        self._deferred_size = 0
        self._close_when_idle = False
        self._tasks = None
        self._tasks_running = 0
        self._input_limit: int = self.worker.config.read_buffer_limit
        self._stuck: Stuck | None = None
        self._warned_of_stuck = False
        self._deadline_set = False  # since on_read was told last

    # ---- being looked at -----------------------------------------------------------------

    def _attend(self) -> None:
        """Have the worker settle this connection, in this turn or the next."""
        self._special = True
        if not self._ready:
            self._ready = True
            worker = self.worker
            worker.ready.append(self)
            if worker.parked and not self._in_thread:
                worker.wake()

    def _begin_output(self) -> None:
        """There is something to send, and no send in flight."""
        self._dirty.append(self)
        if self.worker.parked:
            self._wake_worker()

    def _wake_worker(self) -> None:
        if not self._in_thread:  # else all of it is sent when the thread is done
            self.worker.wake()

    def _output_full(self) -> None:
        self._out_full = True
        self._special = True
        if not self._in_thread:
            self._attend()

    def _input_consumed(self) -> None:
        if self._buffered() < self._input_limit:
            self._input_full = False
            if not self._in_thread:
                self._attend()

    def _is_cut_off(self) -> bool:
        ended = self._state >= State.ENDING or self._err is not None
        return ended and self._out_size > self._low_water

    def _needs_settling(self) -> bool:
        """Whether the worker's own loops are not enough for it."""
        return (
            self._state is not State.OPEN
            or not self.worker.plain
            or self._eof
            or self._err is not None
            or self._secure is not None
            or self._timed > 0
            or self._out_full
            or self._input_full
            or self._paused
            or self._stopped
            or self._ended
            or self._drained is not None
        )

    def _settle(self) -> None:
        """Call what is due, then have the kernel do what the state demands."""
        self._settling = True
        try:
            if self._readable and not self._in_thread and self._wants_input():
                self._receive_ready()
            while not self._busy and self._call_next():
                pass
            if not self._in_thread:
                if self._lease_size:
                    self._stash()
                if self._large:
                    self._pool = b""
                self._limit_input()
            if self._large and not self._in_thread:
                self._shrink()
            if self._busy and self._err is not None and not self._in_thread:
                self._abort_unless_rest()
            self._advance()
        finally:
            self._settling = False
        if self._send_slot < 0 and (
            self._out or (self._secure is not None and self._secure.pending())
        ):
            self._dirty.append(self)  # once too often does no harm
        if self._input_full or self._stuck is not None:
            self._judge_input()
        self._special = self._needs_settling()

    # ---- callbacks -----------------------------------------------------------------------

    def _call_next(self) -> bool:
        """Call the callback that is due first, if there is one."""
        worker = self.worker
        callbacks = worker.callbacks
        state = self._state
        if not self._accepted:
            if state is not State.OPEN:
                return False
            self._accepted = True
            return self._call("on_accept", callbacks.on_accept)
        if self._written:
            written, self._written = self._written, 0
            if callbacks.on_write is not None:
                return self._call("on_write", callbacks.on_write, written)
        if state is State.OPEN:
            return self._call_reader(callbacks)
        if state is State.CLOSED and not self._announced:
            self._announced = True
            self._call("on_close", callbacks.on_close, self._err)
            if not self._busy:
                worker.forget(self)
        return False

    def _call_reader(self, callbacks: Any) -> bool:
        fresh = self._unannounced()
        if fresh and not self._stopped and (not self._paused or self._err is not None):
            self._fresh = 0
            if callbacks.on_read is None:
                self._drop(self._buffered())
                return False
            self._deadline_set = False
            if self._timed:
                self._meet("read")
            self._silent = True
            return self._call("on_read", callbacks.on_read, fresh)
        if self._err is not None:
            self._abort_unless_rest()
        elif self._close_when_idle:
            if self._reset:
                self._apply(Event.ABORT)
            else:
                self._begin_close()
        elif self._eof and not self._eof_told and (not fresh or self._stopped):
            self._eof_told = True
            truncated = None if self._secure is None else self._secure.truncated
            if truncated is None and callbacks.on_eof is not None:
                return self._call("on_eof", callbacks.on_eof)
            self._err = truncated or EndOfStream("the peer ended the connection")
            self._begin_close()
        return False

    def _call(self, name: str, function: Callable[..., Any] | None, *args: Any) -> bool:
        """Call a callback, here or as a task; True if more may be due at once."""
        if function is None:
            return True
        worker = self.worker
        if worker.runs_elsewhere(name):
            self._stash()
            self._busy = True
            worker.run_elsewhere(self, name, function, args)
            return False
        try:
            function(self, *args)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            self._raised(name, exc)
        return True

    def _raised(self, name: str, exc: BaseException) -> None:
        """A callback or a task of this connection raised."""
        self.worker.logger.error(
            "%s raised, its connection is closed: %s",
            name,
            self._name(),
            exc_info=(type(exc), exc, exc.__traceback__),
        )
        if name != "on_close":
            self._fail(exc)

    def _callback_ended(self, name: str) -> None:
        """An async callback, or one in a thread, is over."""
        self._busy = False
        if self._state is State.CLOSED:
            self._buffer = None  # a thread had it when the file was closed
        elif self._err is not None and self._state is State.OPEN:
            self._thread = self._home  # there may be an on_read yet
        if name == "on_close":
            self.worker.forget(self)
            return
        if self._deferred:
            self._take_deferred()
        self._attend()
        if (self._out or self._secure is not None) and self._send_slot < 0:
            self._begin_output()

    # ---- as an occupant of slots ---------------------------------------------------------

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take a cqe, in the scheduler: the worker's turn does the rest."""
        worker = self.worker
        self._special = True  # what comes for it later goes the same way, in its order
        worker.batch.append((self, slot, res, flags, offset))
        worker.wake()

    def lose(self) -> None:
        """The run is over: there is nobody to be told."""

    def dispose(self, res: int) -> None:
        """What was received is in the engine's memory, and goes with it."""

    def release(self) -> None:
        """What is being sent is ours until the connection itself is gone."""

    # ---- what the kernel has done --------------------------------------------------------

    def _completed(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take a cqe that the worker's loop has no short way for."""
        if slot == self._recv_slot:
            if ends(flags):
                self._receive_ended(slot, res, flags)
            kind = "recv"
        elif slot == self._send_slot:
            self._slots[slot] = None
            self._send_slot = -1
            kind = "send"
        else:
            if ends(flags):
                self._slots[slot] = None
                self._watch_slot = -1
            kind = "watch"
        if self._in_thread:
            self._defer(kind, res, flags, offset)
            return
        if kind == "recv":
            if res <= 0:
                self._receive_failed(res)
            elif flags & CQE_F_BUFFER:
                self.worker.bytes_in += res
                self._received(self.worker.slots.pool[offset : offset + res])
            else:
                self._readable |= res
        elif kind == "send":
            self._sent(res)
        else:
            self._watched(res)
        self._attend()

    def _defer(self, kind: str, res: int, flags: int, offset: int) -> None:
        """A thread has the connection: keep this until it is done."""
        if res > 0 and kind != "watch":
            self._restart_idle()  # the bytes go now, whenever they are told of
        self._keep_back(kind, res, flags, offset)
        # Not `_input_full` alone: a thread that takes input ends that for what it has itself.
        room = self._deferred_size < self._input_limit
        goes_on = kind == "recv" and (res > 0 or res == ECANCELED) and room
        if goes_on and self._recv_slot < 0 and self._wants_input():
            self._arm()  # it was one-shot, or gives way to a poll: input gathers all the same

    def _keep_back(self, kind: str, res: int, flags: int, offset: int) -> None:
        if kind == "recv" and res > 0 and not flags & CQE_F_BUFFER:
            self._readable |= res
            return
        if kind == "recv" and res > 0:
            self.worker.bytes_in += res
            data = self.worker.slots.pool[offset : offset + res]
            self._deferred.append((self._received, (data,)))
            self._deferred_size += res
            buffer = self._buffer  # the thread's now, and it may take it away
            size = self._deferred_size + (0 if buffer is None else len(buffer))
            if size >= self._input_limit:
                self._input_full = True
                if self._recv_slot >= 0 and not self._recv_canceling:
                    self._cancel_receive()
        elif kind == "recv":
            self._deferred.append((self._receive_failed, (res,)))
        elif kind == "send":
            self._deferred.append((self._sent, (res,)))
        else:
            self._deferred.append((self._watched, (res,)))

    def _take_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        self._deferred_size = 0
        self._input_full = False
        for fn, args in deferred:
            fn(*args)
        self._limit_input()

    def _receive_ready(self) -> None:
        """The poll of a stream with large messages: there is input, an end, or an error."""
        worker = self.worker
        told, self._readable = self._readable, 0
        size = self._ring.try_recv(self._fd, worker.block.c, LARGE_SIZE)
        if size <= 0:
            if size != EAGAIN:
                self._receive_failed(size)
            return
        if size == LARGE_SIZE or told & ENDS:
            worker.more.append((self, told))
        worker.bytes_in += size
        data = worker.block.data(size)
        if self._secure is None and self._state is State.OPEN:
            if self._rest is not None:
                self._rest -= size
            self._take_large(data)
            self._limit_input()  # now: a callback that runs elsewhere leaves no later moment
            if self._idle_s is not None:
                self._restart_idle()
        else:
            self._note_size(size)
            self._received(data)

    def _received(self, data: bytes) -> None:
        """Input, as its own bytes."""
        if self._state > State.OPEN and not self._handshaking:
            return  # thrown away
        if self._rest is not None:
            self._rest -= len(data)
        if self._idle_s is not None:
            self._restart_idle()
        if not self._large and len(data) >= SMALLEST_BUFFER:
            self._grow()
        if self._secure is None:
            self._keep(data)
        else:
            self._decrypt(self._secure, data)

    def _keep(self, data: bytes) -> None:
        """Input for the user."""
        self._stash()
        if self._buffer is None:
            self._buffer = bytearray(data)
        else:
            self._buffer += data
        self._fresh += len(data)
        self._limit_input()

    def _limit_input(self) -> None:
        """Stop receiving at read_buffer_limit, or go on."""
        full = self._buffered() >= self._input_limit
        if full:
            self._special = True
        self._input_full = full

    # ---- input that nobody takes; see `_stuck` -------------------------------------------

    def _is_stuck(self) -> bool:
        """Whether input has stopped at its limit, and nothing of this connection can take any."""
        return (
            self._input_full
            and self._state is State.OPEN
            and not (self._paused or self._out_full or self._stopped or self._eof)
            and not (self._handshaking or self._close_when_idle or self._err is not None)
            and not (self._busy or self._tasks_running or self._drained is not None)
            and self._recv_slot < 0  # what is on its way has come
            and not self._unannounced()
        )

    def _judge_input(self) -> None:
        """No callback is due: note that the connection is stuck, or is no more; or close it."""
        if not self._is_stuck():
            self._forget_stuck()
            return
        stuck = self._stuck
        if stuck is not None and stuck.is_still(self._buffered(), self._out_size):
            if stuck.deadline:
                if self._has_deadline():
                    return  # which is an end
            elif stuck.over:
                self._fail(StuckInput(self._buffered(), self._input_limit, self._why_for_good()))
                return
            else:
                return
        self._stuck = Stuck(self._buffered(), self._out_size)
        self._stuck.deadline = self._deadline_set and self._has_deadline()
        self._time_stuck()
        if not self._warned_of_stuck:
            self._warned_of_stuck = True
            self._warn_of_stuck()

    def _forget_stuck(self) -> None:
        """It may go on, or somebody has shown that he minds it."""
        if self._stuck is not None:
            self._stuck = None
            self._cancel_timer("stuck")

    def _time_stuck(self) -> None:
        timeout = self.worker.config.stuck_input_timeout
        seconds = time_left(timeout, peer_ended=self._has_peer_ended())
        if seconds is not None:
            self._start_stuck_timer(seconds)

    def _start_stuck_timer(self, seconds: float) -> None:
        assert self._stuck is not None
        self._stuck.due = trio.current_time() + seconds
        self._start_timer("stuck", seconds)

    def _stuck_timer_expired(self) -> None:
        stuck = self._stuck
        if stuck is None:
            return
        if trio.current_time() - stuck.due > LATE_S and not stuck.was_late:
            stuck.was_late = True
            self._start_stuck_timer(AFTER_END_S)
        else:
            stuck.over = True
            self._attend()  # after what is due before

    def _has_peer_ended(self) -> bool:
        """Whether the peer's end was seen, behind whatever is unread."""
        return bool(self._watch_told & (POLLHUP | POLLRDHUP))

    def _why_for_good(self) -> str:
        if self._has_peer_ended():
            return "the peer has ended its stream"
        return f"nobody took any for {self.worker.config.stuck_input_timeout:g} s (stuck_input_timeout)"

    def _warn_of_stuck(self) -> None:
        timeout = self.worker.config.stuck_input_timeout
        self.worker.logger.warning(
            "receiving stops: the handler has left %d bytes unread of a %s; for messages as "
            "long as that, raise read_buffer_limit (%d)%s",
            self._buffered(),
            self._name(),
            self._input_limit,
            "" if timeout is None else f"; it is closed after {timeout:g} s (stuck_input_timeout)",
        )

    def _receive_failed(self, res: int) -> None:
        """No data: the end of the stream, or an error."""
        if res == 0:
            self._eof = True
            if self._secure is not None and (self._state <= State.OPEN or self._handshaking):
                error = self._secure.transport_ended()
                if error is not None and error is not self._secure.truncated:
                    self._fail(error)  # else it is told when all input has been
            if self._state is State.DISCARDING:
                self._apply(Event.DISCARDED)
        elif res == ENOBUFS:
            self.worker.starved.append(self)
        elif res not in (ECANCELED, EINTR):
            self._peer_gone(res)

    def _watched(self, res: int) -> None:
        """The poll for errors alone, which tells of the peer's end too."""
        if res > 0:
            self._watch_told |= res
            if self._stuck is not None and res & (POLLHUP | POLLRDHUP):
                self._time_stuck()
        if self._wants_input() and not self._is_multishot():
            return  # its receives find the error themselves, and what came before it first
        if res > 0 and res & (POLLERR | POLLHUP) and self._state is State.OPEN:
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._peer_gone(-error)

    # ---- TLS -----------------------------------------------------------------------------

    def _use_tls(self, secure: Secure, state: State) -> None:
        """All that the file takes and gives goes through *secure* from here on."""
        self._secure = secure
        self._state = state
        self._handshaking = True

    def _begin_handshake(self) -> None:
        if self._handshaking and self._state <= State.OPEN:
            self._start_timer("handshake", self.worker.config.tls_handshake_timeout)
            self._attend()

    def _handshake_ended(self) -> None:
        self._handshaking = False
        self._cancel_timer("handshake")
        if self._state is State.HANDSHAKE:
            self._apply(Event.READY)

    def _decrypt(self, secure: Secure, data: bytes) -> None:
        """Input of the file's, and what it leads to."""
        plaintext = secure.received(data)
        if self._handshaking and secure.handshake_done:
            self._handshake_ended()
        if plaintext and self._state is State.OPEN:
            self._keep(plaintext)
        if secure.peer_closed:
            self._eof = True
        if secure.error is not None:
            self._try_last(secure.last_words())
            self._fail(secure.error)
        elif self._send_slot < 0 and secure.pending():
            self._begin_output()
