"""How a connection receives: one multishot operation, or polls where messages are large.

A multishot receive stays armed over many messages and takes a small buffer for each piece;
re-arming, which is a third of what a small message costs us, falls away. Where pieces fill
their buffers the messages are large, and then small buffers chop them into many operations.
So the stream goes over to a multishot poll, and when that says that there is input, a
recv(2) into one block of the worker's own, as large as messages are. All its connections
use the same block, one after the other, so that it stays in the CPU's cache, and the copy
into ``bytes`` comes out of there: 8 x 100 KiB took 1.5 times the CPU of uvloop's protocol
with provided buffers of 128 KiB, which are cold, and too few for all. It is one receive a
tick, which is also what bounds a flood. Such a poll tells only of what arrives: a receive
that has filled the block has another in the next turn, and so has one that was told of the
stream's end together with its input. The stream comes back when its messages have been
small for a while.

To pause is to cancel the operation; what arrives before its last cqe is input like any
other. -ENOBUFS is back-pressure: nothing was read, and it is armed again as buffers come home.

A reset must never be missed. A multishot receive that waits for a poll first misses one,
and an end of file as well, where it is there behind data already when it is armed (seen on
6.18): it hands over the data and never answers again. So it is armed without POLL_FIRST,
and a connection whose handler does not answer, so that no send would find out, gets a poll
for errors beside its receive, once. The same poll watches one that does not read: paused,
its input or its output full, or the peer's end read already.

A poll that asks for nothing is told of POLLERR, POLLHUP and POLLRDHUP all the same, and at
once again for as long as one of them stays set: POLLRDHUP from the peer's end until the
connection closes, POLLERR until somebody empties the socket's queue of errors. So once a
watch has told of anything the next is a multishot poll: it stays armed, and tells of what
changes. The first is one-shot, because most connections close when it has told.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Any

from uring_trio._kernel import CQE_F_MORE, CQE_F_SOCK_NONEMPTY, GROUP_SIZES
from uring_trio.gain._output import Output
from uring_trio.gain._states import State

if TYPE_CHECKING:
    from uring_trio._kernel import Ring

SMALLEST_BUFFER = GROUP_SIZES[0]
# Bytes that one receive of a stream with large messages takes at most; about as much as
# loopback and fast networks deliver at once, and with its copy small against an L2 cache.
LARGE_SIZE = GROUP_SIZES[-1]
# As `_lines.SMALL_IN_A_ROW`: receives that a small buffer would have held.
SMALL_IN_A_ROW = 16

POLLIN, POLLERR, POLLHUP = 0x1, 0x8, 0x10
POLLRDHUP = 0x2000
ENDS = POLLERR | POLLHUP | POLLRDHUP


class Receiving(Output):
    """The receive operation of a connection."""

    __slots__ = (
        "_eof",
        "_fd",
        "_large",
        "_paused",
        "_poll_first",
        "_readable",
        "_recv_canceling",
        "_recv_slot",
        "_ring",
        "_slots",
        "_small_in_a_row",
        "_state",
        "_stopped",
        "_watch_canceling",
        "_watch_slot",
        "_watch_told",
    )

    _ring: Ring
    _slots: list[Any]  # the manager's: whose each slot is
    _state: State

    def _init_receiving(self, fd: int) -> None:
        self._fd = fd
        self._recv_slot = -1
        self._recv_canceling = False
        self._watch_slot = -1
        self._watch_canceling = False
        self._watch_told = 0  # what watches have told of
        self._large = False  # its messages are: polls, in place of a multishot receive
        self._readable = 0  # what the poll has said; 0 once it was received
        self._small_in_a_row = 0
        self._poll_first = True
        self._paused = False  # by pause_reading()
        self._stopped = False  # by a shutdown
        self._eof = False

    # ---- armed, or not -------------------------------------------------------------------

    def _wants_input(self) -> bool:
        state = self._state
        if self._eof or state > State.OPEN:
            return state is State.DISCARDING and not self._eof
        return not (self._paused or self._input_full or self._out_full or self._stopped)

    def _steer(self) -> None:
        """Have the kernel receive, or not, as things stand."""
        if self._wants_input():
            if self._recv_slot < 0:
                self._arm()
        elif self._recv_slot >= 0:
            if not self._recv_canceling:
                self._cancel_receive()
        elif self._state is State.OPEN and (self._send_slot < 0 or self._input_full):
            self._watch()  # a send tells of an error by itself, but not of the peer's end

    def _is_multishot(self) -> bool:
        """Whether it receives, when it does, with an operation that may miss an error."""
        multishot: bool = self.worker.capabilities.multishot_receive
        return multishot and not self._large

    def _arm(self) -> None:
        ring = self._ring
        if self._large:
            slot = ring.poll(self._fd, POLLIN, 1)
        elif not self._is_multishot():
            slot = ring.recv(self._fd, 0, SMALLEST_BUFFER, self._poll_first)
        else:
            # Tried at once: armed with POLL_FIRST it never learns of an end of file, or a
            # reset, that is there already behind data.
            slot = ring.recv_multishot(self._fd, 0, 0)
        self._recv_slot = self._own(slot)
        self._recv_canceling = False

    def _own(self, slot: int) -> int:
        """Enter this connection at a slot that the engine has given."""
        if slot < 0:
            raise self._ring.error(slot)
        slots = self._slots
        if slot >= len(slots):
            slots.extend([None] * len(slots))
        slots[slot] = self
        return slot

    def _cancel_receive(self) -> None:
        slot = self._recv_slot
        if self._ring.cancel(slot) == 0:
            self._slots[slot] = None
            self._recv_slot = -1
        else:
            self._recv_canceling = True

    def _watch(self) -> None:
        """Watch for errors alone, which a poll always reports."""
        if self._watch_slot < 0:
            multishot = self._eof or self._watch_told > 0
            self._watch_slot = self._own(self._ring.poll(self._fd, 0, multishot))
            self._watch_canceling = False

    def _cancel_watch(self) -> None:
        slot = self._watch_slot
        if self._ring.cancel(slot) == 0:
            self._slots[slot] = None
            self._watch_slot = -1
        else:
            self._watch_canceling = True

    # ---- what came -----------------------------------------------------------------------

    def _receive_ended(self, slot: int, res: int, flags: int) -> None:
        """The receive's last cqe: its slot is free."""
        self._slots[slot] = None
        self._recv_slot = -1
        self._recv_canceling = False
        self._poll_first = not flags & CQE_F_SOCK_NONEMPTY

    def _grow(self) -> None:
        """A piece has filled its small buffer: no more of them, once the multishot is over."""
        if not self._large:
            self._large = True
            self._small_in_a_row = 0
            if self._recv_slot >= 0 and not self._recv_canceling:
                self._cancel_receive()

    def _take_large(self, data: bytes) -> None:
        """The newest input of a stream with large messages."""
        if self._lease_size:
            self._stash()
        self._pool = data  # not the engine's: ours as long as we want it
        self._lease_at = 0
        size = self._lease_size = len(data)
        self._fresh += size
        self._small_in_a_row = 0 if size > SMALLEST_BUFFER else self._small_in_a_row + 1

    def _note_size(self, size: int) -> None:
        """Of a receive of a stream with large messages."""
        self._small_in_a_row = 0 if size > SMALLEST_BUFFER else self._small_in_a_row + 1

    def _shrink(self) -> None:
        """Nothing is leased: go back to small buffers if the messages are small now."""
        if not self._large or self._small_in_a_row < SMALL_IN_A_ROW:
            return
        if self._recv_slot < 0:
            self._large = False
            self._readable = 0
            self._pool = self.worker.slots.pool
        elif not self._recv_canceling:
            self._cancel_receive()

    def _unread(self) -> bool:
        """Whether closing now would throw input away, and so answer with a reset."""
        if self._eof:
            return False
        return self._buffered() > 0 or self._queued() > 0

    def _queued(self) -> int:
        """Bytes of input that are with the kernel."""
        try:
            answer = fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0")
        except OSError:
            return 0
        size: int = struct.unpack("i", answer)[0]
        return size


def ends(flags: int) -> bool:
    """Whether this is an operation's last cqe."""
    return not flags & CQE_F_MORE
