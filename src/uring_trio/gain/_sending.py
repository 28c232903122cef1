"""How a connection sends: one send in flight, of what was written until it began.

The worker tries small output at once (`_worker`); what the socket did not take then, and all
output of special connections, is an operation. Without MSG_WAITALL: a short count is
progress, which ``on_write``, the deadlines and the close timeout all want to know of, and
a peer's reset in the middle of a send is lost with it.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from uring_trio._kernel import ECANCELED, EINTR, TRANSFER_MAX
from uring_trio.gain._receiving import Receiving
from uring_trio.gain._states import Event, State

if TYPE_CHECKING:
    from uring_trio.gain._secure import Secure
    from uring_trio.gain._stuck import Stuck

MSG_NOSIGNAL = socket.MSG_NOSIGNAL


def os_error(result: int) -> OSError:
    """The exception for a cqe's negative result."""
    return OSError(-result, os.strerror(-result))


class Sending(Receiving):
    """The send operation of a connection."""

    __slots__ = ("_handshaking", "_idle_s", "_in_thread", "_secure", "_timed")

    _secure: Secure | None
    _stuck: Stuck | None

    def _init_sending(self) -> None:
        self._idle_s: float | None = None
        self._in_thread = False
        self._secure = None
        self._handshaking = False  # of TLS; it needs input whatever the user needs
        self._timed = 0  # deadlines that are set

    def _wants_input(self) -> bool:
        if self._handshaking:
            return not self._eof and self._state <= State.FLUSHING
        return super()._wants_input()

    def _send_next(self) -> None:
        """Send what was written; nothing is in flight."""
        if self._state > State.FLUSHING or self._in_thread:
            return
        if self._secure is not None:
            data = self._secure.next_output(self._out)
            if not data:
                if self._out_size and self._secure.error is not None:
                    self._fail(self._secure.error)  # it will never be sent
                return
        elif self._out:
            data = self._next_output()
        else:
            return
        sent = self._ring.try_send(self._fd, data, min(len(data), TRANSFER_MAX))
        if sent < len(data):
            self._send_what_is_left(data, sent)
        else:
            self._send_at = 0
            self._send_size = sent
            self._sent(sent)
            if self._special:
                self._attend()
            elif self.worker.callbacks.on_write is not None:
                self.worker.wrote.append(self)

    def _send_what_is_left(self, data: bytes, sent: int) -> None:
        """An attempt to send at once has taken *sent* bytes, or was refused."""
        sent = max(sent, 0)  # an error comes again, from the operation
        self._sending = data
        self._send_at = 0
        self._send_size = -1  # no count is all of it
        if sent:
            self._sent(sent)
        else:
            self._send_rest()
        if self._out_size > self._high_water and not self._out_full:
            self._output_full()
        self._attend()

    def _send_rest(self) -> None:
        data = self._sending
        if data is None or self._state >= State.ENDING:
            self._sending = None
            return
        at = self._send_at
        size = self._send_size = min(len(data) - at, TRANSFER_MAX)
        slot = self._ring.send_from(self._fd, data, at, size, MSG_NOSIGNAL)
        self._send_slot = self._own(slot)

    def _sent(self, res: int) -> None:
        """The send in flight is over."""
        if res < 0:
            if res == EINTR:
                self._send_rest()
            elif res != ECANCELED:
                self._send_failed(res)
            if res != EINTR:
                self._sending = None
            return
        self.worker.bytes_out += res
        self._send_at += res
        whole = res == self._send_size
        if self._secure is None:
            self._account(res)
        else:
            self._account(self._secure.accepted(res, whole=whole))
        if self._idle_s is not None and res:
            self._restart_idle()
        if self._sending is not None and self._send_at < len(self._sending):
            self._send_rest()
            return
        self._sending = None
        if self._out or (self._secure is not None and self._secure.pending()):
            self._begin_output()

    def _send_failed(self, res: int) -> None:
        if self._state is State.FLUSHING and not self._out_size:
            # A peer may go, close_notify said, without waiting for ours. Many do.
            self._apply(Event.ABORT)
        elif self._secure is None or self._out_size or self._recv_slot < 0:
            self._fail(os_error(res), by_peer=True)
        # Else it was a ticket or the like: there may be input, and then an end or an error.

    def _try_last(self, data: bytes) -> None:
        """Send this if it can be done now: the connection is about to end."""
        if data and self._send_slot < 0 and self._sending is None:
            self._ring.try_send(self._fd, data, len(data))

    def _account(self, size: int) -> None:
        """The kernel has *size* more bytes of what was written."""
        self._out_size -= size
        self._written += size
        if self._stuck is not None:
            self._stuck.unsent -= size
        if self._out_full and self._out_size <= self._low_water:
            self._out_full = False
        if self._drained is not None and self._out_size <= self._low_water:
            self._wake_drainers()
        if self._timed:
            if self._out_size == 0:
                self._meet("write")
            if self._state is State.FLUSHING:
                self._restart_close_timeout()

    # ---- for the classes above -----------------------------------------------------------

    def _apply(self, event: Event) -> None:
        raise NotImplementedError

    def _fail(self, exc: BaseException, *, by_peer: bool = False) -> None:
        raise NotImplementedError

    def _begin_output(self) -> None:
        raise NotImplementedError

    def _attend(self) -> None:
        raise NotImplementedError

    def _meet(self, kind: str) -> None:
        raise NotImplementedError

    def _restart_idle(self) -> None:
        raise NotImplementedError

    def _restart_close_timeout(self) -> None:
        raise NotImplementedError
