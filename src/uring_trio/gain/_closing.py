"""How a connection ends: flushed or cut off, and never with a byte of ours lost by accident.

See `_states` for the way it takes.

When the peer has gone, by a reset or because nothing can be sent to it any more, what it had
sent before is still input: in this batch, behind the cqe that tells of the end; with the
kernel, if it is more than one receive takes; in the buffer, beside a callback that runs as a
task. So the connection stays open for it, and is aborted when nothing of it is left, or when
it does not read. Nothing can be sent meanwhile: that callback can take input, and all else
raises.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from uring_trio.gain._errors import DeadlineExceeded, EndOfStream
from uring_trio.gain._receiving import ends
from uring_trio.gain._sending import Sending, os_error
from uring_trio.gain._states import Event, State, next_state

if TYPE_CHECKING:
    import trio

# Seconds for which input is thrown away after our FIN, so that no reset overtakes the answer.
DISCARD_S = 1.0
LINGER_OFF_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: close(2) sends a reset


class Closing(Sending):
    """The end of a connection."""

    __slots__ = (
        "_accepted",
        "_busy",
        "_eof_told",
        "_err",
        "_fin_sent",
        "_nursery",
        "_reset",
        "_rest",
        "_silent",
        "_sock",
    )

    _err: BaseException | None
    _nursery: trio.Nursery | None

    def _init_closing(self, sock: socket.socket) -> None:
        self._sock = sock
        self._state = State.OPEN
        self._accepted = False  # on_accept was called, so on_close will be
        self._busy = False  # a callback runs as a task or in a thread
        self._err = None
        self._eof_told = False  # on_eof was called, or the close that is in its place begun
        self._fin_sent = False
        self._reset = False
        # Bytes that the peer had sent before it went, and that are not received yet.
        self._rest: int | None = None
        self._silent = False  # on_read was called, and nothing was answered yet
        self._nursery = None

    def _apply(self, event: Event) -> None:
        """Move the state on, if the event means anything in it."""
        state = next_state(self._state, event)
        if state is None:
            return
        self._state = state
        self._special = True
        if state is State.ENDING:
            self._end()

    def _fail(self, exc: BaseException, *, by_peer: bool = False) -> None:
        """End the connection because of *exc*; what was received before is announced first.

        Args:
          exc: for ``on_close``.
          by_peer: the kernel says so. What the peer had sent before is input like any other,
            also what is still with the kernel, and what a callback that runs as a task has
            not taken yet.
        """
        if self._state >= State.ENDING:
            return
        if self._state is State.DISCARDING:
            self._apply(Event.ABORT)  # all was sent: what the peer does now is no error
            return
        if self._state is State.HANDSHAKE:
            self.worker.logger.info("TLS handshake with %s failed: %s", self._name(), exc)
        if self._err is None or isinstance(self._err, EndOfStream):
            self._err = exc
            if by_peer and self._state is State.OPEN:
                self._let_rest_come()
        if by_peer and self._state is State.OPEN:
            self._out.clear()
            self._attend()  # it is aborted there, after what this batch may still bring
            return
        announce = False
        if self._state is State.OPEN and isinstance(exc, OSError):
            announce = self._unannounced() > 0 or not self._accepted
        if not announce or self._busy or isinstance(exc, DeadlineExceeded):
            self._apply(Event.ABORT)
        self._attend()

    def _let_rest_come(self) -> None:
        """Nothing can be sent any more."""
        if self._busy:
            self._thread = 0  # but for taking input: see `Conn._refuse`
        self._wake_drainers()

    def _is_rest_due(self) -> bool:
        """Whether input from before the end is still to be received, or taken."""
        if self._busy and self._buffered():
            return True
        self._limit_input()  # the last on_read may have made room
        if self._rest is None:
            self._rest = self._queued()  # measured once: a UNIX peer may go on for ever
        return self._rest > 0 and self._wants_input() and self._queued() > 0

    def _abort_unless_rest(self) -> None:
        if self._state is State.OPEN and not self._is_rest_due():
            self._apply(Event.ABORT)

    def _peer_gone(self, res: int) -> None:
        """There will be no input any more."""
        if self._secure is not None and self._eof and not self._eof_told:
            return  # close_notify came before, and an unread ticket makes of a FIN a reset
        self._fail(os_error(res), by_peer=True)

    def _begin_close(self) -> None:
        """No more reading and writing; what was written is sent first."""
        self._apply(Event.CLOSE)
        if self._state is State.FLUSHING:
            self._thread = 0
            self._forget_deadlines()
            if self._secure is not None:
                self._secure.close(self._out)
                self._handshaking = self._handshaking and self._out_size > 0
                if self._send_slot < 0:
                    self._begin_output()
            if self._out_size or self._secure is not None:
                self._start_close_timeout()
        self._attend()

    def _advance(self) -> None:
        """Do what the state demands of the kernel."""
        state = self._state
        if state is State.FLUSHING and self._is_flushed():
            self._finish_output()
        elif self._ended and not self._fin_sent and state is State.OPEN and not self._out_size:
            self._send_fin()
        if self._state is State.ENDING:
            self._cancel_all()
            if self._is_quiet():
                self._close_file()
        elif self._state is not State.CLOSED:
            self._steer()
            if self._silent and self._state is State.OPEN and not self._eof:
                self._silent = False
                if not self._out and self._send_slot < 0:
                    self._watch()

    def _is_flushed(self) -> bool:
        if self._send_slot >= 0 or self._out_size:
            return False
        return self._secure is None or not self._secure.pending()

    def _finish_output(self) -> None:
        """All was sent. With unread input, close(2) would send a reset: read it first."""
        if not self._eof:
            self._send_fin()  # at once, and before any reset that is sent all the same
        if self._timed:
            self._cancel_timer("close")
        if self._recv_slot >= 0 and not self._recv_canceling:
            self._cancel_receive()
        if self._recv_slot >= 0:
            return  # what it may still bring is read, and not unread
        if self._unread():
            self._buffer = None
            self._lease_size = 0
            self._apply(Event.FLUSHED_UNREAD)
            self._start_timer("discard", DISCARD_S)
        else:
            self._apply(Event.FLUSHED)

    def _send_fin(self) -> None:
        if self._fin_sent:
            return
        self._fin_sent = True
        with contextlib.suppress(OSError):  # the peer may have gone
            self._sock.shutdown(socket.SHUT_WR)

    def _end(self) -> None:
        """ENDING begins: nobody can use it any more."""
        self._thread = 0
        self._forget_deadlines()
        self._out.clear()
        self._wake_drainers()
        if self._reset:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF_AT_ONCE)
        self._attend()

    def _cancel_all(self) -> None:
        if self._recv_slot >= 0 and not self._recv_canceling:
            self._cancel_receive()
        if self._watch_slot >= 0 and not self._watch_canceling:
            self._cancel_watch()
        slot = self._send_slot
        # A second cancel of the same operation is refused, and harmless.
        if slot >= 0 and self._ring.cancel(slot) == 0:
            self._slots[slot] = None
            self._send_slot = -1
            self._sending = None

    def _is_quiet(self) -> bool:
        return self._recv_slot < 0 and self._send_slot < 0 and self._watch_slot < 0

    def _close_file(self) -> None:
        self._apply(Event.QUIET)
        if not self._in_thread:  # else it may be in the middle of taking from it
            self._buffer = None
        self._sending = None
        self._remember_addresses()
        self._sock.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        if self._accepted:
            self._attend()
        else:
            self.worker.forget(self)

    def _lost(self, slot: int, flags: int) -> None:
        """Take note of a cqe, and not of what it brings."""
        if not ends(flags):
            return
        if self._slots[slot] is self:
            self._slots[slot] = None
        if slot == self._recv_slot:
            self._recv_slot = -1
        elif slot == self._send_slot:
            self._send_slot = -1
            self._sending = None
        elif slot == self._watch_slot:
            self._watch_slot = -1

    def _end_now(self) -> None:
        """The worker is aborted: let go of the file at once, whatever is in flight."""
        self._reset = True
        self._lease_size = 0  # the engine may have it back by now
        if self._state < State.ENDING:
            self._apply(Event.ABORT)
        self._cancel_all()
        self._attend()

    # ---- for the classes above -----------------------------------------------------------

    def _remember_addresses(self) -> None:
        raise NotImplementedError

    def _start_timer(self, kind: str, seconds: float) -> None:
        raise NotImplementedError

    def _cancel_timer(self, kind: str) -> None:
        raise NotImplementedError

    def _has_deadline(self) -> bool:
        raise NotImplementedError

    def _name(self) -> str:
        raise NotImplementedError

    def _limit_input(self) -> None:
        raise NotImplementedError

    def _forget_deadlines(self) -> None:
        raise NotImplementedError

    def _start_close_timeout(self) -> None:
        raise NotImplementedError
