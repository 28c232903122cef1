"""The life of a connection, as a table.

    HANDSHAKE --ready--> OPEN --close--> FLUSHING --flushed--> DISCARDING --discarded-+
        |                 |                 |  |                   |                  |
        |                 |                 |  +--flushed, no unread input------------+
        +-----------------+-----------------+----------------------+----abort---------+
                                                                                      v
                                                        CLOSED <--quiet------------ ENDING

FLUSHING sends what was written before ``close()``. DISCARDING has sent the FIN and throws
input away: close(2) with unread input would answer with a reset, and a reset takes from the
peer what it has not read yet. ENDING waits for the last cqe of each operation, because
until then the kernel works on our memory and on the file.
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """Where a connection stands."""

    HANDSHAKE = 0  # with tls=: no callback yet
    OPEN = 1
    FLUSHING = 2
    DISCARDING = 3
    ENDING = 4
    CLOSED = 5


class Event(enum.IntEnum):
    """What moves it on."""

    READY = 0  # the handshake is done
    CLOSE = 1  # we close; or the peer has ended, and all was delivered
    FLUSHED = 2  # nothing is left to be sent, and no input is unread
    FLUSHED_UNREAD = 3  # nothing is left to be sent, and there is unread input
    DISCARDED = 4  # the peer's end of file, or the time is over
    ABORT = 5  # our abort, an error, a deadline, a callback that raised
    QUIET = 6  # no operation is in flight any more


_NEXT: dict[tuple[State, Event], State] = {
    (State.HANDSHAKE, Event.READY): State.OPEN,
    (State.HANDSHAKE, Event.CLOSE): State.ENDING,
    (State.HANDSHAKE, Event.ABORT): State.ENDING,
    (State.OPEN, Event.CLOSE): State.FLUSHING,
    (State.OPEN, Event.ABORT): State.ENDING,
    (State.FLUSHING, Event.FLUSHED): State.ENDING,
    (State.FLUSHING, Event.FLUSHED_UNREAD): State.DISCARDING,
    (State.FLUSHING, Event.ABORT): State.ENDING,
    (State.DISCARDING, Event.DISCARDED): State.ENDING,
    (State.DISCARDING, Event.ABORT): State.ENDING,
    (State.ENDING, Event.QUIET): State.CLOSED,
}


def next_state(state: State, event: Event) -> State | None:
    """The state after *event*, or None where it means nothing any more."""
    return _NEXT.get((state, event))
