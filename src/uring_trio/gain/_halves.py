"""The two halves of a connection, without I/O: what was received, and what is to be sent.

State machines are tables here: a row for each state, in it the next state for each event.
None in a table is what cannot happen. To step there is a fault of ours, and is raised where
it is made, before anything is done on its account.

The input
=========

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
*watch*. How each stands with the engine is a table of its own, and so is how the receive
takes what comes: in small pieces, as it does at first, or at large, once a piece has filled
its buffer (`_ring` has the reasons).

    SMALL --filled--> LARGE <--large-- SHRINKING --idle--> SMALL
                        +--dwindled-------^

While a thread has the connection this half is the thread's. What comes meanwhile is kept by
the connection; only its size is counted here, by the worker alone.

The output
==========

``write`` only appends. At the end of the worker's turn all that was written becomes one
send; what is written while it is in the kernel waits for its completion. Small pieces are
joined, since a copy of some KiB is cheaper than another operation; a large one is sent from
where it lies. One send is in flight at a time, and it is pinned until its completion.

    OPEN <-> FULL                          above high water, and not at low water since
      |end                                 send_eof(): the end of file follows the output
      +--> ENDING <-> ENDING_FULL --fin--> ENDED
      |close
      +--> DRAINING --fin--> SHUT          sent to its end, and then our end of file
      +--cut--> CUT                        nothing can be sent any more, or is to be
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from uring_trio import _hot_parts
from uring_trio._hot_parts import InboundFields, OutboundFields
from uring_trio.gain._errors import IsEmpty, ShortBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

S = TypeVar("S", bound="enum.IntEnum")
E = TypeVar("E", bound="enum.Enum")
Table = dict[S, "tuple[S | None, ...]"]


class Members:
    """The members of an enumeration, as plain attributes; see `quick`."""

    def __init__(self, enumeration: type[enum.Enum]) -> None:
        members = {**enumeration.__members__, "__module__": enumeration.__module__}
        self.__dict__.update(members)

    def __iter__(self) -> Iterator[Any]:
        return (each for name, each in vars(self).items() if name != "__module__")

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


def quick(enumeration: type[E]) -> type[E]:
    """The same, where to name a member takes as long as to read an attribute.

    Before CPython 3.12 the class of enumerations has a `__getattr__`, and to name a member
    takes 0.18 us, nine times as long. The beginning and the end of a connection name many.
    """
    if sys.version_info >= (3, 12):
        return enumeration
    members: Any = Members(enumeration)
    return members  # type: ignore[no-any-return]


def step(table: Mapping[S, tuple[S | None, ...]], state: S, event: enum.IntEnum) -> S:
    """The state after *event*.

    Raises:
      AssertionError: the table says that it cannot happen.
    """
    following = table[state][event]
    if following is None:
        raise impossible(state, event)
    return following


def impossible(state: enum.IntEnum, event: enum.IntEnum) -> AssertionError:
    """What is to be raised where a table has None."""
    return AssertionError(f"{event.name} in {state.name}")


# ---- the input: its tables ---------------------------------------------------------------


@quick
class Input(enum.IntEnum):
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


@quick
class InputEvent(enum.IntEnum):
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
_I = Input
NEXT_INPUT: Table[Input] = {
    #                PAUSE            RESUME    FILL             ROOM             END              TELL     LOSE            SHUT            DISCARD         OVER
    _I.OPEN:         (_I.PAUSED,       _I.OPEN,  _I.FULL,         _I.OPEN,         _I.ENDED,        None,    _I.LOST,        _I.SHUT,        None,           _I.OVER),
    _I.PAUSED:       (_I.PAUSED,       _I.OPEN,  _I.PAUSED_FULL,  _I.PAUSED,       _I.ENDED_PAUSED, None,    _I.LOST_PAUSED, _I.SHUT,        None,           _I.OVER),
    _I.FULL:         (_I.PAUSED_FULL,  _I.FULL,  _I.FULL,         _I.OPEN,         _I.ENDED,        None,    _I.LOST_FULL,   _I.SHUT,        None,           _I.OVER),
    _I.PAUSED_FULL:  (_I.PAUSED_FULL,  _I.FULL,  _I.PAUSED_FULL,  _I.PAUSED,       _I.ENDED_PAUSED, None,    _I.LOST_PAUSED, _I.SHUT,        None,           _I.OVER),
    _I.ENDED:        (_I.ENDED_PAUSED, _I.ENDED, _I.ENDED,        _I.ENDED,        _I.ENDED,        _I.TOLD, _I.GONE,        _I.SHUT_ENDED,  None,           _I.OVER),
    _I.ENDED_PAUSED: (_I.ENDED_PAUSED, _I.ENDED, _I.ENDED_PAUSED, _I.ENDED_PAUSED, _I.ENDED_PAUSED, _I.TOLD, _I.GONE,        _I.SHUT_ENDED,  None,           _I.OVER),
    _I.TOLD:         (_I.TOLD,         _I.TOLD,  _I.TOLD,         _I.TOLD,         _I.TOLD,         None,    _I.GONE,        _I.SHUT_ENDED,  None,           _I.OVER),
    _I.LOST:         (_I.LOST_PAUSED,  _I.LOST,  _I.LOST_FULL,    _I.LOST,         _I.GONE,         None,    _I.LOST,        _I.SHUT,        None,           _I.OVER),
    _I.LOST_PAUSED:  (_I.LOST_PAUSED,  _I.LOST,  _I.LOST_PAUSED,  _I.LOST_PAUSED,  _I.GONE,         None,    _I.LOST_PAUSED, _I.SHUT,        None,           _I.OVER),
    _I.LOST_FULL:    (_I.LOST_PAUSED,  _I.LOST_FULL, _I.LOST_FULL, _I.LOST,        _I.GONE,         None,    _I.LOST_FULL,   _I.SHUT,        None,           _I.OVER),
    _I.GONE:         (_I.GONE,         _I.GONE,  _I.GONE,         _I.GONE,         _I.GONE,         None,    _I.GONE,        _I.SHUT_ENDED,  None,           _I.OVER),
    _I.SHUT:         (_I.SHUT,         _I.SHUT,  _I.SHUT,         _I.SHUT,         _I.SHUT_ENDED,   None,    _I.SHUT,        _I.SHUT,        _I.DISCARDING,  _I.OVER),
    _I.SHUT_ENDED:   (_I.SHUT_ENDED,   _I.SHUT_ENDED, _I.SHUT_ENDED, _I.SHUT_ENDED, _I.SHUT_ENDED,  None,    _I.SHUT_ENDED,  _I.SHUT_ENDED,  None,           _I.OVER),
    _I.DISCARDING:   (None,            None,     _I.DISCARDING,   _I.DISCARDING,   _I.SHUT_ENDED,   None,    None,           None,           None,           _I.OVER),
    _I.OVER:         (None,            None,     _I.OVER,         _I.OVER,         _I.OVER,         None,    None,           None,           None,           _I.OVER),
}
# fmt: on

# The row that is *plain*: the fast ways take it, in Python and in C, and no other.
PLAIN_INPUT = _I.OPEN
# What was received is announced; nothing more can be received; more is; the limit has stopped it.
ANNOUNCING = frozenset({_I.OPEN, _I.FULL, _I.ENDED, _I.LOST, _I.LOST_PAUSED, _I.LOST_FULL, _I.GONE})
ENDED = frozenset({_I.ENDED, _I.ENDED_PAUSED, _I.TOLD, _I.GONE, _I.SHUT_ENDED})
RECEIVING = frozenset({_I.OPEN, _I.LOST, _I.DISCARDING})
AT_LIMIT = frozenset({_I.FULL, _I.PAUSED_FULL, _I.LOST_FULL})


@quick
class Flight(enum.IntEnum):
    """How an operation that brings input stands with the engine."""

    IDLE = 0
    ARMED = 1
    CANCELING = 2  # its last completion is still to come


@quick
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


@quick
class Pieces(enum.IntEnum):
    """How what comes is received."""

    SMALL = 0  # into the engine's buffers
    LARGE = 1  # the engine tells that there is input, and it is taken at once
    SHRINKING = 2  # there was little each time: small again as soon as nothing receives


@quick
class PiecesEvent(enum.IntEnum):
    """What moves it on."""

    FILLED = 0  # a piece has filled its buffer
    LARGE = 1  # what was taken would not have gone into a small one
    DWINDLED = 2  # it would have, many times in a row
    IDLE = 3  # nothing receives


_P = Pieces
NEXT_PIECES: Table[Pieces] = {
    #               FILLED    LARGE     DWINDLED       IDLE
    _P.SMALL: (_P.LARGE, None, None, _P.SMALL),
    _P.LARGE: (_P.LARGE, _P.LARGE, _P.SHRINKING, _P.LARGE),
    _P.SHRINKING: (_P.SHRINKING, _P.LARGE, _P.SHRINKING, _P.SMALL),
}


class Sizes(NamedTuple):
    """What pieces of input go by.

    Attributes:
      small: bytes that a small buffer holds.
      dwindled: so many in a row that it would have held are a change.
    """

    small: int
    dwindled: int


NO_SIZES = Sizes(0, 0)


# ---- the input --------------------------------------------------------------------------

ENDLESS = 1 << 62  # bytes; more than any limit


class Inbound(InboundFields):
    """What was received and not consumed, and whether more is to be received.

    Args:
      pool: what leases are in: the engine's buffers, or one datagram.
      limit: bytes that gather before receiving stops.
      sizes: of the engine's.

    Attributes:
      state: `Input`.
      pieces: `Pieces`.
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
        "limit",
        "noticed",
        "pieces",
        "receive",
        "rest",
        "sizes",
        "small_in_a_row",
        "small_pool",
    )

    state: Input
    watch: Flight
    pool: Any
    lease_at: int
    lease_size: int
    buffer: bytearray | None
    fresh: int

    def __init__(self, pool: Any, limit: int, sizes: Sizes = NO_SIZES) -> None:
        self.state = Input.OPEN
        self.pieces = Pieces.SMALL
        self.sizes = sizes
        self.small_in_a_row = 0
        self.small_pool = pool
        self.receive = Flight.IDLE
        self.watch = Flight.IDLE
        self.noticed = 0
        self.pool = pool
        self.lease_at = 0  # of the newest bytes, in the pool
        self.lease_size = 0
        self.buffer = None
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
            # Cut first: what is no integer, although it compares like one, takes nothing.
            data: bytes = self.pool[at : at + n]
            self.lease_at = at + n
            self.lease_size = size - n
            return data
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

    def begin_anew(self, pool: Any, size: int) -> None:
        """All that there is are the first *size* bytes of *pool*: a datagram."""
        self.pool = pool
        self.lease_at = 0
        self.lease_size = size
        self.buffer = None

    def leave_pool(self) -> None:
        """Nothing is leased: let go of what was taken, so that the next has its memory, warm."""
        assert not self.lease_size
        self.pool = b"" if self.pieces else self.small_pool

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

    def step(self, event: InputEvent) -> None:
        """Move on."""
        following = NEXT_INPUT[self.state][event]  # as `step`, flat
        if following is None:
            raise impossible(self.state, event)
        self.state = following

    def set_limit(self, size: int) -> None:
        """Let so many bytes gather."""
        self.limit = size

    def judge(self) -> None:
        """Whether as much is there as the limit allows."""
        buffer = self.buffer
        size = self.lease_size if buffer is None else self.lease_size + len(buffer)
        if size >= self.limit:
            self.step(InputEvent.FILL)
        elif self.state in AT_LIMIT:  # elsewhere it would change nothing
            self.step(InputEvent.ROOM)

    def end(self) -> None:
        """Nobody is to be told of anything any more."""
        self.step(InputEvent.OVER)
        self.lease_size = 0
        self.buffer = None
        self.fresh = 0

    def throw_away(self) -> None:
        """What is there; and what comes from now on."""
        self.step(InputEvent.DISCARD)
        self.lease_size = 0
        self.buffer = None

    @property
    def announces(self) -> bool:
        """Whether bytes are there that an on_read is to tell of now."""
        return self.fresh > 0 and self.state in ANNOUNCING and self.unannounced() > 0

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
        return self.state is Input.FULL

    @property
    def is_at_limit(self) -> bool:
        """Whether the limit stops it, whatever else does."""
        return self.state in AT_LIMIT

    # ---- how it is received --------------------------------------------------------------

    def step_pieces(self, event: PiecesEvent) -> None:
        """Move on."""
        self.pieces = step(NEXT_PIECES, self.pieces, event)

    def note_small(self, size: int) -> bool:
        """A piece has come in a small buffer; whether no more are to come so."""
        if self.pieces or size < self.sizes.small:
            return False
        self.step_pieces(PiecesEvent.FILLED)
        self.small_in_a_row = 0
        return True

    def note_large(self, size: int) -> None:
        """So many bytes were taken at once."""
        if size > self.sizes.small:
            if self.small_in_a_row:
                self.small_in_a_row = 0
                self.step_pieces(PiecesEvent.LARGE)
        else:
            self.small_in_a_row += 1
            if self.small_in_a_row >= self.sizes.dwindled:
                self.step_pieces(PiecesEvent.DWINDLED)

    def step_receive(self, event: FlightEvent) -> None:
        """Move what receives on."""
        following = NEXT_FLIGHT[self.receive][event]  # as `step`, flat
        if following is None:
            raise impossible(self.receive, event)
        self.receive = following

    def step_watch(self, event: FlightEvent) -> None:
        """Move the poll for errors on."""
        self.watch = step(NEXT_FLIGHT, self.watch, event)

    def notice(self, told: int) -> None:
        """A watch has told of something."""
        self.noticed |= told


# ---- the output: its table ----------------------------------------------------------------

# Bytes. As much is joined into one send; about what a socket's buffer takes at first.
JOIN_MAX = 64 << 10


@quick
class Output(enum.IntEnum):
    """How the output stands; up to FULL it takes more."""

    OPEN = 0
    FULL = 1
    ENDING = 2
    ENDING_FULL = 3
    ENDED = 4
    DRAINING = 5
    SHUT = 6
    CUT = 7


@quick
class OutputEvent(enum.IntEnum):
    """What moves it on."""

    FILL = 0  # over high water
    LOW = 1  # at low water
    END = 2  # send_eof()
    FIN = 3  # our end of file is sent
    CLOSE = 4
    CUT = 5


# fmt: off
_O = Output
NEXT_OUTPUT: Table[Output] = {
    #               FILL             LOW          END              FIN       CLOSE         CUT
    _O.OPEN:        (_O.FULL,        _O.OPEN,     _O.ENDING,       None,     _O.DRAINING,  _O.CUT),
    _O.FULL:        (_O.FULL,        _O.OPEN,     _O.ENDING_FULL,  None,     _O.DRAINING,  _O.CUT),
    _O.ENDING:      (_O.ENDING_FULL, _O.ENDING,   _O.ENDING,       _O.ENDED, _O.DRAINING,  _O.CUT),
    _O.ENDING_FULL: (_O.ENDING_FULL, _O.ENDING,   _O.ENDING_FULL,  None,     _O.DRAINING,  _O.CUT),
    _O.ENDED:       (None,           _O.ENDED,    _O.ENDED,        None,     _O.SHUT,      _O.CUT),
    _O.DRAINING:    (_O.DRAINING,    _O.DRAINING, None,            _O.SHUT,  None,         _O.CUT),
    _O.SHUT:        (None,           _O.SHUT,     None,            None,     None,         _O.CUT),
    _O.CUT:         (_O.CUT,         _O.CUT,      _O.CUT,          None,     _O.CUT,       _O.CUT),
}
# fmt: on


# The row that is plain.
PLAIN_OUTPUT = _O.OPEN


# ---- the output ---------------------------------------------------------------------------


class Outbound(OutboundFields):
    """What was written and not taken by the kernel.

    Args:
      high_water: bytes above which the connection stops reading.

    Attributes:
      state: `Output`.
      pieces: written, and not in the kernel yet.
      size: bytes written, and not taken by the kernel.
      sending: what the send in flight sends from; None if there is none.
      written: bytes that the kernel has taken, and no on_write has told of.
      drainers: tasks that wait for low water.
    """

    __slots__ = (
        "drainers",
        "high_water",
        "low_water",
        "send_at",
        "send_size",
    )

    state: Output
    pieces: list[bytes]
    size: int
    sending: bytes | None
    written: int

    def __init__(self, high_water: int) -> None:
        self.state = Output.OPEN
        self.high_water = high_water
        self.low_water = high_water // 4
        self.pieces = []
        self.size = 0
        self.sending = None
        self.send_at = 0  # where in it the send in flight begins
        self.send_size = 0  # of the send in flight
        self.written = 0
        self.drainers = 0

    def add(self, data: bytes, size: int) -> None:
        """Take *data*."""
        self.size += size
        self.pieces.append(data)

    def take_piece(self) -> bytes:
        """What to send next, off the queue: a large piece, or small ones joined."""
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces.pop()
        size = count = 0
        for piece in pieces:
            size += len(piece)
            if count and size > JOIN_MAX:
                break
            count += 1
        data = b"".join(pieces[:count]) if count > 1 else pieces[0]
        del pieces[:count]
        return data

    def take_all(self) -> list[bytes]:
        """All that is not in the kernel yet, off the queue."""
        pieces, self.pieces = self.pieces, []
        return pieces

    def begin(self, data: bytes) -> None:
        """*data* is what is being sent."""
        self.sending = data
        self.send_at = 0
        self.send_size = 0

    def is_unsent(self) -> bool:
        """Whether something of what is being sent is left."""
        return self.sending is not None and self.send_at < len(self.sending)

    def next_part(self, most: int) -> tuple[bytes, int, int]:
        """Of what is being sent: it, where the next send begins, and how much that is."""
        data = self.sending
        assert data is not None
        self.send_size = min(len(data) - self.send_at, most)
        return data, self.send_at, self.send_size

    def took(self, size: int) -> bool:
        """The kernel has *size* bytes more of what is being sent; whether that send is whole."""
        self.send_at += size
        return size == self.send_size

    def finish(self) -> None:
        """Nothing is being sent."""
        self.sending = None

    def account(self, size: int) -> None:
        """The kernel has *size* more bytes of what was written."""
        self.size -= size
        self.written += size
        if self.size <= self.low_water:
            self.step(OutputEvent.LOW)

    def tell(self) -> int:
        """How much an on_write is to tell of, once."""
        written, self.written = self.written, 0
        return written

    def is_over_high_water(self) -> bool:
        """Whether there is too much of it. What the socket takes at once never is."""
        return self.size > self.high_water

    def wait(self) -> None:
        """One more task waits for low water."""
        self.drainers += 1

    def wait_no_more(self) -> None:
        """One less does."""
        self.drainers -= 1

    # ---- its table -----------------------------------------------------------------------

    def step(self, event: OutputEvent) -> None:
        """Move on."""
        following = NEXT_OUTPUT[self.state][event]  # as `step`, flat
        if following is None:
            raise impossible(self.state, event)
        self.state = following

    def cut(self) -> None:
        """Nothing can be sent any more: what is not in the kernel is dropped."""
        self.step(OutputEvent.CUT)
        self.pieces.clear()

    @property
    def takes(self) -> bool:
        """Whether something may be written."""
        return self.state <= Output.FULL

    @property
    def is_cut(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.state is Output.CUT

    @property
    def is_full(self) -> bool:
        """Whether it has stopped the input."""
        return self.state in (Output.FULL, Output.ENDING_FULL)

    @property
    def is_out(self) -> bool:
        """Whether all that was written is with the kernel."""
        return not self.size and self.sending is None


if _hot_parts.hot is not None:
    _hot_parts.hot.know(
        Inbound=Inbound,
        Outbound=Outbound,
        plain_input=PLAIN_INPUT,
        plain_output=PLAIN_OUTPUT,
        idle=Flight.IDLE,
    )
