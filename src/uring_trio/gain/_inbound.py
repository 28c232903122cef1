"""The input half of a connection, without I/O: what was received, and what is to come.

Received bytes lie in the engine's buffers for the tick in which they came: a *lease*. An
`on_read` that takes what it was told of takes it from there, with one copy. What it leaves
is copied into a buffer of the connection's own as soon as it returns, so that no idle
connection holds a buffer that others could use.

    OPEN <-> PAUSED, FULL, PAUSED_FULL     received and announced, or not for now
      |end                                 the peer's end of file, behind what it sent
      +--> ENDED, ENDED_PAUSED --tell--> TOLD
      |lose                                the peer has gone: what it had sent is still input
      +--> LOST, LOST_PAUSED, LOST_FULL --end--> GONE, where nothing more can come
      |shut                                we end it: nothing is announced any more
      +--> SHUT, SHUT_ENDED --discard--> DISCARDING, which receives and throws away
      +--over--> OVER

Two operations bring it: the receive, and beside it at times a poll for errors alone, the
*watch*. How each stands with the kernel is the second table.

While a thread has the connection this half is the thread's. What comes meanwhile is kept by
the connection; only its size is counted here, by the worker alone.
"""

from __future__ import annotations

import enum
from typing import Any

from uring_trio.gain._errors import IsEmpty, ShortBuffer
from uring_trio.gain._tables import Table, step


class State(enum.IntEnum):
    """How the input stands."""

    OPEN = 0
    PAUSED = 1  # by pause_reading()
    FULL = 2  # as much as the limit allows lies there
    PAUSED_FULL = 3
    ENDED = 4  # the peer has ended its stream; nobody was told yet
    ENDED_PAUSED = 5
    TOLD = 6  # on_eof was called, or the close that is in its place begun
    LOST = 7
    LOST_PAUSED = 8
    LOST_FULL = 9
    GONE = 10
    SHUT = 11
    SHUT_ENDED = 12
    DISCARDING = 13
    OVER = 14


class Event(enum.IntEnum):
    """What moves it on."""

    PAUSE = 0
    RESUME = 1
    FILL = 2  # as much is there as the limit allows, or more
    ROOM = 3  # less is
    END = 4  # the peer's end of file
    TELL = 5
    LOSE = 6
    SHUT = 7
    DISCARD = 8  # our end of file is sent, and there is unread input
    OVER = 9


# fmt: off
_S = State
NEXT: Table[State] = {
    #                PAUSE            RESUME    FILL             ROOM             END              TELL     LOSE            SHUT            DISCARD         OVER
    _S.OPEN:         (_S.PAUSED,       _S.OPEN,  _S.FULL,         _S.OPEN,         _S.ENDED,        None,    _S.LOST,        _S.SHUT,        None,           _S.OVER),
    _S.PAUSED:       (_S.PAUSED,       _S.OPEN,  _S.PAUSED_FULL,  _S.PAUSED,       _S.ENDED_PAUSED, None,    _S.LOST_PAUSED, _S.SHUT,        None,           _S.OVER),
    _S.FULL:         (_S.PAUSED_FULL,  _S.FULL,  _S.FULL,         _S.OPEN,         _S.ENDED,        None,    _S.LOST_FULL,   _S.SHUT,        None,           _S.OVER),
    _S.PAUSED_FULL:  (_S.PAUSED_FULL,  _S.FULL,  _S.PAUSED_FULL,  _S.PAUSED,       _S.ENDED_PAUSED, None,    _S.LOST_PAUSED, _S.SHUT,        None,           _S.OVER),
    _S.ENDED:        (_S.ENDED_PAUSED, _S.ENDED, _S.ENDED,        _S.ENDED,        _S.ENDED,        _S.TOLD, _S.GONE,        _S.SHUT_ENDED,  None,           _S.OVER),
    _S.ENDED_PAUSED: (_S.ENDED_PAUSED, _S.ENDED, _S.ENDED_PAUSED, _S.ENDED_PAUSED, _S.ENDED_PAUSED, _S.TOLD, _S.GONE,        _S.SHUT_ENDED,  None,           _S.OVER),
    _S.TOLD:         (_S.TOLD,         _S.TOLD,  _S.TOLD,         _S.TOLD,         _S.TOLD,         None,    _S.GONE,        _S.SHUT_ENDED,  None,           _S.OVER),
    _S.LOST:         (_S.LOST_PAUSED,  _S.LOST,  _S.LOST_FULL,    _S.LOST,         _S.GONE,         None,    _S.LOST,        _S.SHUT,        None,           _S.OVER),
    _S.LOST_PAUSED:  (_S.LOST_PAUSED,  _S.LOST,  _S.LOST_PAUSED,  _S.LOST_PAUSED,  _S.GONE,         None,    _S.LOST_PAUSED, _S.SHUT,        None,           _S.OVER),
    _S.LOST_FULL:    (_S.LOST_PAUSED,  _S.LOST_FULL, _S.LOST_FULL, _S.LOST,        _S.GONE,         None,    _S.LOST_FULL,   _S.SHUT,        None,           _S.OVER),
    _S.GONE:         (_S.GONE,         _S.GONE,  _S.GONE,         _S.GONE,         _S.GONE,         None,    _S.GONE,        _S.SHUT_ENDED,  None,           _S.OVER),
    _S.SHUT:         (_S.SHUT,         _S.SHUT,  _S.SHUT,         _S.SHUT,         _S.SHUT_ENDED,   None,    _S.SHUT,        _S.SHUT,        _S.DISCARDING,  _S.OVER),
    _S.SHUT_ENDED:   (_S.SHUT_ENDED,   _S.SHUT_ENDED, _S.SHUT_ENDED, _S.SHUT_ENDED, _S.SHUT_ENDED,  None,    _S.SHUT_ENDED,  _S.SHUT_ENDED,  None,           _S.OVER),
    _S.DISCARDING:   (None,            None,     _S.DISCARDING,   _S.DISCARDING,   _S.SHUT_ENDED,   None,    None,           None,           None,           _S.OVER),
    _S.OVER:         (None,            None,     _S.OVER,         _S.OVER,         _S.OVER,         None,    None,           None,           None,           _S.OVER),
}
# fmt: on

OPEN = State.OPEN
# What was received is announced; and nothing more can be received; and the limit has stopped it.
ANNOUNCING = frozenset({_S.OPEN, _S.FULL, _S.ENDED, _S.LOST, _S.LOST_PAUSED, _S.LOST_FULL, _S.GONE})
ENDED = frozenset({_S.ENDED, _S.ENDED_PAUSED, _S.TOLD, _S.GONE, _S.SHUT_ENDED})
RECEIVING = frozenset({_S.OPEN, _S.LOST, _S.DISCARDING})


class Flight(enum.IntEnum):
    """How an operation that brings input stands with the engine."""

    IDLE = 0
    ARMED = 1
    CANCELING = 2  # its last completion is still to come


class FlightEvent(enum.IntEnum):
    """What moves it on."""

    ARM = 0
    CANCEL = 1
    LAST = 2  # its last completion; or it was taken back before the kernel had it


_F = Flight
NEXT_FLIGHT: Table[Flight] = {
    #            ARM       CANCEL         LAST
    _F.IDLE: (_F.ARMED, None, None),
    _F.ARMED: (None, _F.CANCELING, _F.IDLE),
    _F.CANCELING: (None, None, _F.IDLE),
}


ENDLESS = 1 << 62  # bytes; more than any limit


class Inbound:
    """What was received and not consumed, and whether more is to be received.

    Args:
      pool: what leases are in: the engine's buffers, or one datagram.
      limit: bytes that gather before receiving stops.

    Attributes:
      state: `State`.
      receive: the `Flight` of what receives.
      watch: that of the poll for errors alone.
      noticed: what watches have told of, as poll(2) names it.
      fresh: bytes that no on_read has announced.
      rest: bytes that a peer had sent before it went, and that are not received yet; -1 is
        not known.
      aside: bytes that the connection keeps while a thread has it.
    """

    __slots__ = (
        "aside",
        "buffer",
        "fresh",
        "lease_at",
        "lease_size",
        "limit",
        "noticed",
        "pool",
        "receive",
        "rest",
        "state",
        "watch",
    )

    def __init__(self, pool: Any, limit: int) -> None:
        self.state = OPEN
        self.receive = Flight.IDLE
        self.watch = Flight.IDLE
        self.noticed = 0
        self.pool = pool
        self.lease_at = 0  # of the newest bytes, in the pool
        self.lease_size = 0
        self.buffer: bytearray | None = None
        self.fresh = 0
        self.limit = limit
        self.rest = -1
        self.aside = 0

    # ---- to be consumed ------------------------------------------------------------------

    def buffered(self) -> int:
        """How many bytes are there."""
        buffer = self.buffer  # once: statistics ask while a thread has it, which may empty it
        return self.lease_size if buffer is None else self.lease_size + len(buffer)

    def unannounced(self) -> int:
        """How many bytes the next on_read tells of."""
        return min(self.fresh, self.buffered())

    def next(self, n: int) -> bytes:
        """Consume exactly *n* bytes, all if it is negative."""
        size = self.lease_size
        if self.buffer is None and (n == size or n < 0):
            self.lease_size = 0
            at = self.lease_at
            return self.pool[at : at + size]  # type: ignore[no-any-return]
        buffered = self.buffered()
        if n > buffered:
            raise ShortBuffer(f"{n} bytes were asked for, and {buffered} are buffered")
        return self.take(n)

    def some(self, n: int) -> int:
        """*n*, cut to what is buffered; IsEmpty if that is nothing."""
        buffered = self.buffered()
        if not buffered:
            raise IsEmpty("no input is buffered now")
        return buffered if n < 0 or n > buffered else n

    def take(self, n: int) -> bytes:
        """Consume *n* bytes, which are there; all if it is negative."""
        if self.buffer is None:
            size = self.lease_size
            if n < 0:
                n = size
            at = self.lease_at
            self.lease_at = at + n
            self.lease_size = size - n
            return self.pool[at : at + n]  # type: ignore[no-any-return]
        self.stash()
        if n < 0:
            n = len(self.buffer)
        data = bytes(memoryview(self.buffer)[:n])
        self.drop(n)
        return data

    def peek(self, n: int) -> bytes:
        """At most *n* bytes, or all, without consuming them."""
        buffered = self.buffered()
        if n < 0 or n > buffered:
            n = buffered
        if self.buffer is None:
            return self.pool[self.lease_at : self.lease_at + n]  # type: ignore[no-any-return]
        self.stash()
        return bytes(self.buffer[:n])

    def drop(self, n: int) -> None:
        """Consume *n* bytes, which are there."""
        if self.buffer is None:
            self.lease_at += n
            self.lease_size -= n
            return
        self.stash()
        if n == len(self.buffer):
            self.buffer = None
        else:
            del self.buffer[:n]  # CPython moves a pointer, not the bytes

    # ---- what comes ----------------------------------------------------------------------

    def stash(self) -> None:
        """Copy what is leased into a buffer of our own: the batch is about to end."""
        size = self.lease_size
        if size:
            at = self.lease_at
            self.lease_size = 0
            if self.buffer is None:
                self.buffer = bytearray()
            self.buffer += self.pool[at : at + size]

    def keep(self, data: bytes) -> None:
        """Input as its own bytes."""
        self.stash()
        if self.buffer is None:
            self.buffer = bytearray(data)
        else:
            self.buffer += data
        self.fresh += len(data)
        self.judge()

    def lease(self, pool: Any, at: int, size: int) -> None:
        """The newest input, which stays where it is for as long as its pool is there."""
        if self.lease_size:
            self.stash()
        self.pool = pool
        self.lease_at = at
        self.lease_size = size
        self.fresh += size

    def leave_pool(self, pool: Any) -> None:
        """Nothing is leased: the next lease is in *pool*."""
        assert not self.lease_size
        self.pool = pool

    def announced(self) -> int:
        """An on_read tells of so many bytes, which are fresh no longer."""
        n = self.unannounced()
        self.fresh = 0
        return n

    def note_rest(self, queued: int) -> None:
        """The peer has gone, and *queued* bytes are with the kernel.

        Measured once, and less from then on: the peer of a UNIX socket may go on for ever.
        """
        self.rest = queued if self.rest < 0 else min(self.rest, queued)

    def set_aside(self, size: int) -> None:
        """The connection keeps *size* bytes more, while a thread has it."""
        self.aside += size

    def set_end_aside(self) -> None:
        """It keeps an end, or an error: there is no room for anything behind that."""
        self.aside += ENDLESS

    def take_back(self) -> None:
        """The thread is done: what was kept comes now."""
        self.aside = 0

    def received_rest(self, size: int) -> None:
        """*size* bytes more were received."""
        if self.rest >= 0:
            self.rest = max(self.rest - size, 0)

    # ---- its table -----------------------------------------------------------------------

    def step(self, event: Event) -> None:
        """Move on."""
        self.state = step(NEXT, self.state, event)

    def set_limit(self, size: int) -> None:
        """Let so many bytes gather."""
        self.limit = size

    def judge(self) -> None:
        """Whether as much is there as the limit allows."""
        full = self.buffered() >= self.limit
        self.step(Event.FILL if full else Event.ROOM)

    def end(self) -> None:
        """Nobody is to be told of anything any more."""
        self.step(Event.OVER)
        self.lease_size = 0
        self.buffer = None
        self.fresh = 0

    def throw_away(self) -> None:
        """What is there; and what comes from now on."""
        self.step(Event.DISCARD)
        self.lease_size = 0
        self.buffer = None

    @property
    def announces(self) -> bool:
        """Whether bytes are there that an on_read is to tell of now."""
        return self.state in ANNOUNCING and self.unannounced() > 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more can be received."""
        return self.state in ENDED

    @property
    def has_room(self) -> bool:
        """Whether the limit allows for more, with what is kept for it."""
        return self.aside + self.buffered() < self.limit

    @property
    def is_full(self) -> bool:
        """Whether the limit alone has stopped it."""
        return self.state is State.FULL

    @property
    def is_paused(self) -> bool:
        """Whether pause_reading() has stopped it."""
        return self.state in (State.PAUSED, State.PAUSED_FULL)

    # ---- its operations ------------------------------------------------------------------

    def step_receive(self, event: FlightEvent) -> None:
        """Move what receives on."""
        self.receive = step(NEXT_FLIGHT, self.receive, event)

    def step_watch(self, event: FlightEvent) -> None:
        """Move the poll for errors on."""
        self.watch = step(NEXT_FLIGHT, self.watch, event)

    def notice(self, told: int) -> None:
        """A watch has told of something."""
        self.noticed |= told
