"""The life of a connection, without I/O: the way it ends, who has it, what it was told.

    HANDSHAKE --ready--> OPEN --close--> FLUSHING --flushed--> DISCARDING --discarded-+
        |            leave |  \\lose        |  |                   |                  |
        |          LEAVING + LOST          |  +--flushed, no unread input------------+
        +-----------------+-----------------+----------------------+-abort, reset-----+
                                                                                      v
                                             CLOSED <--quiet------------ ENDING, RESETTING

LEAVING is open until the callback that runs has come to its end: a shutdown waits for it.
LOST is open for what the peer had sent before it went, by a reset or because nothing can be
sent to it any more: in this batch, behind the completion that tells of the end; with the
kernel, if it is more than one receive takes; in the buffer, beside a callback that runs as a
task. It ends when nothing of that is left, or when it does not read. FLUSHING sends what was
written before ``close()``. DISCARDING has sent the FIN and throws input away: close(2) with
unread input would answer with a reset, and a reset takes from the peer what it has not read
yet. ENDING waits for the last completion of each operation, because until then the kernel
works on our memory and on the file; RESETTING does too, and the peer gets a reset.

Who has it
----------
One callback runs at a time. While one runs as a task, or in a thread, nobody else is called.
A thread owns the two halves until it returns: the worker then keeps what comes, and what
others want of the connection, and this table is the worker's alone.
"""

from __future__ import annotations

import enum

from uring_trio.gain._errors import EndOfStream
from uring_trio.gain._tables import Table, step


class State(enum.IntEnum):
    """Where a connection stands."""

    HANDSHAKE = 0  # with tls=: no callback yet
    OPEN = 1
    LEAVING = 2
    LOST = 3
    FLUSHING = 4
    DISCARDING = 5
    ENDING = 6
    RESETTING = 7
    CLOSED = 8


class Event(enum.IntEnum):
    """What moves it on."""

    READY = 0  # the handshake is done
    LEAVE = 1  # a shutdown, and a callback runs
    LOSE = 2  # the peer has gone
    CLOSE = 3  # we close; or the peer has ended, and all was delivered
    FLUSHED = 4  # nothing is left to be sent, and no input is unread
    FLUSHED_UNREAD = 5  # nothing is left to be sent, and there is unread input
    DISCARDED = 6  # the peer's end of file, or the time is over
    ABORT = 7  # an error, a deadline, a callback that raised
    RESET = 8  # our abort, or one who took nothing
    QUIET = 9  # no operation is in flight any more


class Holder(enum.IntEnum):
    """Which callback runs, and is no plain call."""

    NOBODY = 0
    TASK = 1
    POOL = 2  # it waits for a thread
    THREAD = 3


class HolderEvent(enum.IntEnum):
    """What changes that."""

    TASK = 0
    LEND = 1
    BORROW = 2  # there is a thread
    RETURN = 3


class Told(enum.IntEnum):
    """What the handler knows of it."""

    NOTHING = 0
    ACCEPT = 1
    CLOSE = 2


class ToldEvent(enum.IntEnum):
    """What it is told."""

    ACCEPT = 0
    CLOSE = 1


# fmt: off
_S, _H, _T = State, Holder, Told
NEXT: Table[State] = {
    #              READY    LEAVE        LOSE     CLOSE         FLUSHED      FLUSHED_UNREAD  DISCARDED   ABORT         RESET          QUIET
    _S.HANDSHAKE:  (_S.OPEN, None,       None,    _S.ENDING,    None,        None,           None,       _S.ENDING,    _S.RESETTING,  None),
    _S.OPEN:       (None,    _S.LEAVING, _S.LOST, _S.FLUSHING,  None,        None,           None,       _S.ENDING,    _S.RESETTING,  None),
    _S.LEAVING:    (None,    _S.LEAVING, _S.LOST, _S.FLUSHING,  None,        None,           None,       _S.ENDING,    _S.RESETTING,  None),
    _S.LOST:       (None,    _S.LOST,    _S.LOST, _S.ENDING,    None,        None,           None,       _S.ENDING,    _S.RESETTING,  None),
    _S.FLUSHING:   (None,    None,       None,    None,         _S.ENDING,   _S.DISCARDING,  None,       _S.ENDING,    _S.RESETTING,  None),
    _S.DISCARDING: (None,    None,       None,    None,         None,        None,           _S.ENDING,  _S.ENDING,    _S.RESETTING,  None),
    _S.ENDING:     (None,    None,       None,    None,         None,        None,           None,       None,         None,          _S.CLOSED),
    _S.RESETTING:  (None,    None,       None,    None,         None,        None,           None,       None,         None,          _S.CLOSED),
    _S.CLOSED:     (None,    None,       None,    None,         None,        None,           None,       None,         None,          None),
}
NEXT_HOLDER: Table[Holder] = {
    #            TASK     LEND     BORROW     RETURN
    _H.NOBODY:  (_H.TASK, _H.POOL, None,      None),
    _H.TASK:    (None,    None,    None,      _H.NOBODY),
    _H.POOL:    (None,    None,    _H.THREAD, _H.NOBODY),
    _H.THREAD:  (None,    None,    None,      _H.NOBODY),
}
NEXT_TOLD: Table[Told] = {
    #            ACCEPT     CLOSE
    _T.NOTHING: (_T.ACCEPT, None),
    _T.ACCEPT:  (None,      _T.CLOSE),
    _T.CLOSE:   (None,      None),
}
# fmt: on

NOBODY = -1  # no thread's ident


class Life:
    """Where a connection stands, and who may use it.

    Args:
      home: the worker's thread.

    Attributes:
      state: `State`.
      holder: `Holder`.
      told: `Told`.
      user: the thread that may use it; 0 once it is over.
      borrower: the thread that has it, or had it last.
      err: what on_close is told.
    """

    __slots__ = ("borrower", "err", "holder", "home", "state", "told", "user")

    def __init__(self, home: int) -> None:
        self.state = State.OPEN
        self.holder = Holder.NOBODY
        self.told = Told.NOTHING
        self.home = home
        self.user = home
        self.borrower = NOBODY
        self.err: BaseException | None = None

    def begin_in_handshake(self) -> None:
        """With ``tls=``: before anything else."""
        assert self.state is State.OPEN
        assert self.told is Told.NOTHING
        self.state = State.HANDSHAKE

    def step(self, event: Event) -> None:
        """Move on."""
        self.state = step(NEXT, self.state, event)
        self._choose_user()

    def _choose_user(self) -> None:
        state, holder = self.state, self.holder
        if state > State.LOST or (state is State.LOST and holder is not Holder.NOBODY):
            self.user = 0
        elif holder is Holder.POOL:
            self.user = NOBODY
        elif holder is not Holder.THREAD:
            self.user = self.home

    # ---- who has it ----------------------------------------------------------------------

    def run_as_task(self) -> None:
        """A callback begins that is an ``async def``."""
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.TASK)
        self._choose_user()

    def lend(self) -> None:
        """A callback is to have a thread; from here on the halves are its own."""
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.LEND)
        self.borrower = NOBODY
        self._choose_user()

    def borrow(self, thread: int) -> bool:
        """In that thread: it begins; False if there is nothing to begin with any more."""
        self.borrower = thread
        if self.user == 0:
            return False
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.BORROW)
        self.user = thread
        if self.state > State.LEAVING:  # since then, on the worker's thread
            self.user = 0
        return self.user != 0

    def revoke(self) -> None:
        """In that thread: it has closed the connection, and may not use it any more."""
        self.user = 0

    def give_back(self) -> None:
        """The callback is over."""
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.RETURN)
        self._choose_user()

    @property
    def is_busy(self) -> bool:
        """Whether a callback runs."""
        return self.holder is not Holder.NOBODY

    @property
    def is_lent(self) -> bool:
        """Whether a thread has it, or is to."""
        return self.holder >= Holder.POOL

    # ---- what it was told ----------------------------------------------------------------

    def tell(self, event: ToldEvent) -> None:
        """The handler is told."""
        self.told = step(NEXT_TOLD, self.told, event)

    def blame(self, exc: BaseException) -> bool:
        """What it ends with; the first is told, but an error counts for more than an end."""
        if self.err is not None and not isinstance(self.err, EndOfStream):
            return False
        self.err = exc
        return True

    # ---- the way it ends -----------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it has not begun to close."""
        return State.OPEN <= self.state <= State.LOST

    @property
    def is_over(self) -> bool:
        """Whether only the kernel is waited for, or nothing."""
        return self.state >= State.ENDING

    @property
    def in_handshake(self) -> bool:
        """Whether the handler knows nothing of it, because TLS has not begun."""
        return self.state is State.HANDSHAKE
