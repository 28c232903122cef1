"""The ring as an engine of callback servers; see `_engine`.

How a connection receives: one multishot operation, or polls where messages are large
=====================================================================================

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
stream's end together with its input, and one that has left some. Over TCP a receive takes
nothing from behind an urgent byte, which POLLPRI tells of until it is passed; of a UNIX stream
none from behind what came with descriptors, where the kernel counts what is left. That is
asked after each receive that does not fill the block: to receive once more instead would take
the stream's end in another order than it comes. (FIONREAD, by which unread input is counted when
the peer has gone or before a close, ends before an urgent byte too.) The stream comes back when
its messages have been small for a while.

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

The first look at a batch
=========================

While trio's scheduler has the batch's records, what every tick has most of, input of a plain
connection that stays armed (or that there is some, where messages are large), is noted in the
connection there and then; a tuple and a list for the worker to look through again would cost
as much as all that is to be noted. Everything else goes to the worker's batch.

The order of what comes for one connection must not change. So one of whose cqes is in the
batch is settled before it takes that short way again: what comes for it later goes to the
batch as well.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from uring_trio import _hot_parts
from uring_trio._beside import (
    checked,
    close_socket,
    getsockopt,
    queued,
    setsockopt,
    shutdown,
    try_look,
    try_recv,
    try_send,
)
from uring_trio._hot_parts import LinkFields
from uring_trio._kernel import (
    CQE_F_BUFFER,
    CQE_F_MORE,
    CQE_F_SOCK_NONEMPTY,
    EAGAIN,
    GROUP_SIZES,
    POLLIN,
    POLLPRI,
)
from uring_trio._memory import CallMemory
from uring_trio.gain._engine import ENDS
from uring_trio.gain._halves import ENDLESS, Sizes
from uring_trio.gain._life import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uring_trio._kernel import Ring
    from uring_trio._slots import Occupant, Record, Slots

SMALLEST_BUFFER = GROUP_SIZES[0]
# Bytes that one receive of a stream with large messages takes at most; about as much as
# loopback and fast networks deliver at once, and with its copy small against an L2 cache.
LARGE_SIZE = GROUP_SIZES[-1]
# As `_lines.SMALL_IN_A_ROW`: receives that a small buffer would have held.
SMALL_IN_A_ROW = 16

MSG_NOSIGNAL = socket.MSG_NOSIGNAL
LINGER_OFF_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: close(2) sends a reset

DATA_AND_MORE = CQE_F_BUFFER | CQE_F_MORE

# In the place of a receive's slot; once it was armed it is -1 where it is not.
NOT_ARMED_YET = -2


class RingEngine:
    """The ring of the run that the worker is in.

    Attributes:
      pool: the ring's buffers.
      slots: the run's.
      ring: the engine of these.
      sizes: when messages are large, and when small again.
      misses_errors: a receive may be multishot.
      block: what large messages are received into.
    """

    def __init__(self, slots: Slots, *, multishot: bool) -> None:
        self.slots = slots
        self.ring: Ring = slots.ring
        self.pool: Any = slots.pool
        self.sizes = Sizes(SMALLEST_BUFFER, SMALL_IN_A_ROW)
        self.misses_errors = multishot
        self._memory = CallMemory()
        self.block = self._memory.memory(LARGE_SIZE)

    def serving(self) -> contextlib.AbstractContextManager[None]:
        """Take the connections' records out of each batch, as long as it is entered."""
        if route_in_c is not None:
            return self.slots.taking(partial(route_in_c, self.slots))
        return self.slots.taking(partial(route, self.slots.table))

    def link(self, connection: Any, sock: socket.socket) -> RingLink:
        """Serve an open file."""
        return RingLink(self, connection, sock)

    def flush(self) -> None:
        """Submit now what was cancelled."""
        self.ring.flush()

    def close(self) -> None:
        """Let go of the block."""
        self._memory.free()


def left_of_unix(fd: int) -> bool:
    """Whether a receive has left something behind descriptors; see the top of this module."""
    return int(queued(fd)) > 0


def left_of_tcp(fd: int) -> bool:
    """Whether a receive has stopped before an urgent byte."""
    told = try_look(fd, POLLPRI)  # which tells of a reset, too
    return told > 0 and bool(told & POLLPRI)


def unread_of_unix(fd: int) -> int:
    """Bytes that have come and were not received."""
    return max(0, int(queued(fd)))


def unread_of_tcp(fd: int) -> int:
    """The same; what is behind an urgent byte is not counted, so there it is endless."""
    return ENDLESS if left_of_tcp(fd) else unread_of_unix(fd)


class RingLink(LinkFields):
    """The operations of one connection's file; it stands at their slots."""

    __slots__ = (
        "engine",
        "has_left",
        "poll_first",
        "ring",
        "send_slot",
        "slots",
        "sock",
        "unread_at",
        "watch_slot",
    )

    connection: Any
    fd: int
    readable: int
    receive_slot: int

    # As an occupant of slots: no task sleeps on it.
    reading = False
    task = None

    def __init__(self, engine: RingEngine, connection: Any, sock: socket.socket) -> None:
        self.engine = engine
        self.connection = connection
        self.sock = sock
        self.fd = sock.fileno()
        self.ring = engine.ring
        self.slots = engine.slots
        self.receive_slot = NOT_ARMED_YET
        self.watch_slot = self.send_slot = -1
        self.readable = 0
        self.poll_first = True
        is_unix = connection.network == "unix"
        self.has_left = left_of_unix if is_unix else left_of_tcp
        self.unread_at = unread_of_unix if is_unix else unread_of_tcp

    # ---- operations ----------------------------------------------------------------------

    def arm(self, *, large: bool) -> None:
        """Receive, or poll for large input."""
        ring = self.ring
        if large:
            slot = ring.poll(self.fd, POLLIN, 1)
        elif not self.engine.misses_errors:
            slot = ring.recv(self.fd, 0, SMALLEST_BUFFER, self.poll_first)
        else:
            # Tried at once: armed with POLL_FIRST it never learns of an end of file, or a
            # reset, that is there already behind data.
            slot = ring.recv_multishot(self.fd, 0, 0)
        self.receive_slot = self.slots.enter(self, slot)

    def stop(self) -> bool:
        """Cancel what receives."""
        if self.slots.withdraw(self.receive_slot):
            self.receive_slot = -1
            return True
        return False

    def watch(self, *, again: bool) -> None:
        """Poll for errors alone, which a poll always reports."""
        self.watch_slot = self.slots.enter(self, self.ring.poll(self.fd, 0, again))

    def stop_watch(self) -> bool:
        """Cancel that."""
        if self.slots.withdraw(self.watch_slot):
            self.watch_slot = -1
            return True
        return False

    def send(self, data: bytes, at: int, size: int) -> None:
        """Send. Without MSG_WAITALL: see `_connection`."""
        self.send_slot = self.slots.enter(
            self, self.ring.send_from(self.fd, data, at, size, MSG_NOSIGNAL)
        )

    def stop_send(self) -> bool:
        """Cancel that."""
        # A second cancel of the same operation is refused, and harmless.
        if self.send_slot < 0 or not self.slots.withdraw(self.send_slot):
            return False
        self.send_slot = -1
        return True

    def is_quiet(self) -> bool:
        """Whether no operation is in flight."""
        return self.receive_slot < 0 and self.send_slot < 0 and self.watch_slot < 0

    def in_flight(self) -> int:
        """How many operations are."""
        return (self.receive_slot >= 0) + (self.send_slot >= 0) + (self.watch_slot >= 0)

    # ---- what has happened ---------------------------------------------------------------

    def happened(self, slot: int, res: int, flags: int, offset: int) -> None:
        """In the worker's turn: a cqe that `route` has no short way for."""
        last = not flags & CQE_F_MORE
        if slot == self.receive_slot:
            intake = self.connection.intake
            if last:
                self.receive_slot = -1
                self.poll_first = not flags & CQE_F_SOCK_NONEMPTY
            if res <= 0:
                intake.completed(res, b"", last=last)
            elif flags & CQE_F_BUFFER:
                data = self.engine.pool[offset : offset + res]
                intake.completed(res, data, last=last)
            else:
                self.readable |= res
                intake.input_there(last=last)
        elif slot == self.send_slot:
            self.send_slot = -1
            self.connection.outlet.completed(res)
        else:
            if last:
                self.watch_slot = -1
            self.connection.intake.watch_completed(res, last=last)

    def forget(self, slot: int, res: int, flags: int) -> None:
        """Take note of a cqe, and not of what it brings."""
        if flags & CQE_F_MORE:
            return
        if slot == self.receive_slot:
            self.receive_slot = -1
            self.connection.intake.lost()
        elif slot == self.send_slot:
            self.send_slot = -1
            self.connection.outlet.lost(res)
        elif slot == self.watch_slot:
            self.watch_slot = -1
            self.connection.intake.watch_lost()

    # ---- as an occupant of slots ---------------------------------------------------------

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take a cqe, in the scheduler: the worker's turn does the rest."""
        self.connection.happened(slot, res, flags, offset)

    def lose(self) -> None:
        """The run is over: there is nobody to be told."""

    def dispose(self, res: int) -> None:
        """What was received is in the engine's memory, and goes with it."""

    def release(self) -> None:
        """What is sent from is let go of with the connection."""

    # ---- at once -------------------------------------------------------------------------

    def try_send(self, data: bytes, size: int) -> int:
        """Send without waiting."""
        return int(try_send(self.fd, data, size))

    def take_first(self) -> tuple[int, bytes]:
        """Receive what there is already, without waiting; once, before it is armed."""
        if self.receive_slot != NOT_ARMED_YET:
            return EAGAIN, b""
        self.receive_slot = -1
        block = self.engine.block
        size: int = try_recv(self.fd, block.c, LARGE_SIZE)
        return size, block.data(size) if size > 0 else b""

    def take(self) -> tuple[int, bytes, int]:
        """Receive what there is of a large stream, without waiting."""
        told, self.readable = self.readable, 0
        block = self.engine.block
        size: int = try_recv(self.fd, block.c, LARGE_SIZE)
        if size <= 0:
            return size, b"", 0
        more = told & ENDS or size == LARGE_SIZE or self.has_left(self.fd)
        return size, block.data(size), told if more else 0

    def remember(self, told: int) -> None:
        """What was told of is to be taken once more."""
        self.readable |= told

    def forget_input(self) -> None:
        """Nothing is to be taken."""
        self.readable = 0

    def unread(self) -> int:
        """Bytes of input that are with the kernel."""
        return self.unread_at(self.fd)

    def error(self) -> int:
        """SO_ERROR."""
        return checked(getsockopt(self.sock.fileno(), socket.SOL_SOCKET, socket.SO_ERROR))

    def send_fin(self) -> None:
        """Shut down the sending side."""
        shutdown(self.sock.fileno(), socket.SHUT_WR)  # it fails where the peer has gone

    def reset_at_close(self) -> None:
        """No lingering."""
        with contextlib.suppress(OSError):
            setsockopt(self.sock.fileno(), socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF_AT_ONCE)

    def close(self) -> None:
        """Close the socket."""
        close_socket(self.sock)


def route(table: list[Occupant | None], records: Iterable[Record]) -> list[Record]:
    """Give connections' cqes to their workers; what is left is others'."""
    others = []
    for record in records:
        slot, res, flags, offset = record
        link: Any = table[slot]
        if type(link) is not RingLink:
            others.append(record)
            continue
        connection = link.connection
        if (
            flags & DATA_AND_MORE == DATA_AND_MORE
            and res < SMALLEST_BUFFER
            and connection.way is SMALL
        ):
            inbound = connection.inbound
            if inbound.lease_size:
                inbound.stash()
            inbound.lease_at = offset
            inbound.lease_size = res
            inbound.fresh += res
            turn = connection.turn
            turn.bytes_in += res
        elif flags == CQE_F_MORE and res > 0 and slot == link.receive_slot and connection.way:
            link.readable |= res  # the poll of a stream with large messages
            turn = connection.turn
        else:
            if not flags & CQE_F_MORE:
                table[slot] = None
            link.complete(slot, res, flags, offset)
            continue
        if not connection.ready:
            connection.ready = True
            turn.ready.append(connection)
            if turn.parked:
                turn.wake()
    return others


SMALL = Way.SMALL

#: The same in C, where the batch's first so many records lie; see `_slots`.
route_in_c: Callable[[Slots, int], int] | None = None
if _hot_parts.hot is not None:
    route_in_c = _hot_parts.hot.route
    _hot_parts.hot.know(RingLink=RingLink)
