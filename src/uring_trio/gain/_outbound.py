"""The output half of a connection, without I/O: what is to be sent, and who was told.

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

from uring_trio.gain._tables import Table, step

# Bytes. As much is joined into one send; about what a socket's buffer takes at first.
JOIN_MAX = 64 << 10


class State(enum.IntEnum):
    """How the output stands; up to FULL it takes more."""

    OPEN = 0
    FULL = 1
    ENDING = 2
    ENDING_FULL = 3
    ENDED = 4
    DRAINING = 5
    SHUT = 6
    CUT = 7


class Event(enum.IntEnum):
    """What moves it on."""

    FILL = 0  # over high water
    LOW = 1  # at low water
    END = 2  # send_eof()
    FIN = 3  # our end of file is sent
    CLOSE = 4
    CUT = 5


# fmt: off
_S = State
NEXT: Table[State] = {
    #               FILL             LOW          END              FIN       CLOSE         CUT
    _S.OPEN:        (_S.FULL,        _S.OPEN,     _S.ENDING,       None,     _S.DRAINING,  _S.CUT),
    _S.FULL:        (_S.FULL,        _S.OPEN,     _S.ENDING_FULL,  None,     _S.DRAINING,  _S.CUT),
    _S.ENDING:      (_S.ENDING_FULL, _S.ENDING,   _S.ENDING,       _S.ENDED, _S.DRAINING,  _S.CUT),
    _S.ENDING_FULL: (_S.ENDING_FULL, _S.ENDING,   _S.ENDING_FULL,  None,     _S.DRAINING,  _S.CUT),
    _S.ENDED:       (None,           _S.ENDED,    _S.ENDED,        None,     _S.SHUT,      _S.CUT),
    _S.DRAINING:    (_S.DRAINING,    _S.DRAINING, None,            _S.SHUT,  None,         _S.CUT),
    _S.SHUT:        (None,           _S.SHUT,     None,            None,     None,         _S.CUT),
    _S.CUT:         (_S.CUT,         _S.CUT,      _S.CUT,          None,     _S.CUT,       _S.CUT),
}
# fmt: on

OPEN = State.OPEN
FULL = State.FULL


class Outbound:
    """What was written and not taken by the kernel.

    Args:
      high_water: bytes above which the connection stops reading.

    Attributes:
      state: `State`.
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
        "pieces",
        "send_at",
        "send_size",
        "sending",
        "size",
        "state",
        "written",
    )

    def __init__(self, high_water: int) -> None:
        self.state = OPEN
        self.high_water = high_water
        self.low_water = high_water // 4
        self.pieces: list[bytes] = []
        self.size = 0
        self.sending: bytes | None = None
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
            self.step(Event.LOW)

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

    def step(self, event: Event) -> None:
        """Move on."""
        self.state = step(NEXT, self.state, event)

    def cut(self) -> None:
        """Nothing can be sent any more: what is not in the kernel is dropped."""
        self.step(Event.CUT)
        self.pieces.clear()

    @property
    def takes(self) -> bool:
        """Whether something may be written."""
        return self.state <= FULL

    @property
    def is_cut(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.state is State.CUT

    @property
    def is_full(self) -> bool:
        """Whether it has stopped the input."""
        return self.state in (State.FULL, State.ENDING_FULL)

    @property
    def is_out(self) -> bool:
        """Whether all that was written is with the kernel."""
        return not self.size and self.sending is None
