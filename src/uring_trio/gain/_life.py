"""The life of a connection, without I/O: the way it ends, who has it, what it was told.

And what follows from it and from the two halves (`_halves`), and from nothing else:
`callback_due`, what its handler is to be told next, or what else comes in its turn there;
`wanted`, what the engine is to do; `way_of`, whether the worker's loops may take the short way.

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
from typing import TYPE_CHECKING

from uring_trio import _hot_parts
from uring_trio._hot_parts import LifeFields
from uring_trio.gain._errors import EndOfStream
from uring_trio.gain._halves import (
    PLAIN_INPUT,
    PLAIN_OUTPUT,
    RECEIVING,
    Flight,
    Input,
    Output,
    Table,
    impossible,
    quick,
    step,
)

if TYPE_CHECKING:
    from uring_trio.gain._halves import Inbound, Outbound
    from uring_trio.gain._tls import Secure


@quick
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


@quick
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


@quick
class Holder(enum.IntEnum):
    """Which callback runs, and is no plain call."""

    NOBODY = 0
    TASK = 1
    POOL = 2  # it waits for a thread
    THREAD = 3


@quick
class HolderEvent(enum.IntEnum):
    """What changes that."""

    TASK = 0
    LEND = 1
    BORROW = 2  # there is a thread
    RETURN = 3


@quick
class Told(enum.IntEnum):
    """What the handler knows of it."""

    NOTHING = 0
    ACCEPT = 1
    CLOSE = 2


@quick
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

# The rows that are plain; see `_halves`.
PLAIN_STATE, PLAIN_HOLDER, PLAIN_TOLD = State.OPEN, Holder.NOBODY, Told.ACCEPT

NOBODY = -1  # no thread's ident


class Life(LifeFields):
    """Where a connection stands, and who may use it.

    Args:
      home: the worker's thread.
      state: OPEN, or HANDSHAKE.

    Attributes:
      state: `State`.
      holder: `Holder`.
      told: `Told`.
      user: the thread that may use it; 0 once it is over.
      borrower: the thread that has it, or had it last.
      err: what on_close is told.
    """

    __slots__ = ("borrower", "err", "holder", "home", "state", "told")

    user: int

    def __init__(self, home: int, state: State = State.OPEN) -> None:
        assert state <= State.OPEN
        self.state = state
        self.holder = Holder.NOBODY
        self.told = Told.NOTHING
        self.home = home
        self.user = home
        self.borrower = NOBODY
        self.err: BaseException | None = None

    def step(self, event: Event) -> None:
        """Move on."""
        following = NEXT[self.state][event]  # as `step`, flat
        if following is None:
            raise impossible(self.state, event)
        self.state = following
        self._choose_user()

    def _choose_user(self) -> None:
        state, holder = self.state, self.holder
        if state > State.LOST or self.is_lost_beside_task:
            self.user = 0
        elif holder <= Holder.TASK:  # else `lend` has chosen, and then the thread does
            self.user = self.home

    # ---- who has it ----------------------------------------------------------------------

    def run_as_task(self) -> None:
        """A callback begins that is an ``async def``."""
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.TASK)
        self._choose_user()

    def lend(self) -> None:
        """A callback is to have a thread; from here on the halves are its own."""
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.LEND)
        self.borrower = self.user = NOBODY

    def borrow(self, thread: int) -> bool:
        """In that thread: it begins; False if there is nothing to begin with any more."""
        self.borrower = thread
        if self.user == 0:
            return False
        self.holder = step(NEXT_HOLDER, self.holder, HolderEvent.BORROW)
        self.user = thread
        if self.state > State.LOST:  # since then, on the worker's thread
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

    @property
    def is_lost_beside_task(self) -> bool:
        """Whether the peer has gone, and a callback that runs as a task may take what it left."""
        return self.state is State.LOST and self.holder is Holder.TASK

    @property
    def whose(self) -> int:
        """The thread that may ask, also once it is over."""
        return self.borrower if self.is_lent else self.home

    # ---- what it was told ----------------------------------------------------------------

    def tell(self, event: ToldEvent) -> None:
        """The handler is told."""
        self.told = step(NEXT_TOLD, self.told, event)

    def blame(self, exc: BaseException) -> bool:
        """What it ends with; the first is told, but an error counts for more than an end."""
        if self.state is State.DISCARDING:
            return False  # all was sent: what comes now is no error
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


# ---- what is due, and what is wanted ------------------------------------------------------


@quick
class Due(enum.Enum):
    """What comes next."""

    NOTHING = enum.auto()
    ACCEPT = enum.auto()  # on_accept
    WROTE = enum.auto()  # on_write
    READ = enum.auto()  # on_read
    EOF = enum.auto()  # on_eof, or the close that is in its place
    LEAVE = enum.auto()  # the close that has waited for a callback
    BOTH_ENDED = enum.auto()  # the close, because both directions have ended
    GIVE_UP = enum.auto()  # the end of one whose peer has gone: nothing of its input is left
    CLOSED = enum.auto()  # on_close


def callback_due(inbound: Inbound, outbound: Outbound, life: Life) -> Due:
    """What is due first."""
    state = life.state
    if life.holder:  # it is busy
        # The task may take what is there, but more of it never comes.
        lost = life.is_lost_beside_task
        return (
            Due.GIVE_UP if lost and not inbound.buffered() and _is_spent(inbound) else Due.NOTHING
        )
    is_open = State.OPEN <= state <= State.LOST
    if life.told is Told.NOTHING:
        return Due.ACCEPT if is_open else Due.NOTHING
    if outbound.written:
        return Due.WROTE
    if state is State.CLOSED:
        return Due.CLOSED if life.told is Told.ACCEPT else Due.NOTHING
    if not is_open:
        return Due.NOTHING
    if state is State.LEAVING:
        return Due.LEAVE
    if inbound.fresh and inbound.announces:
        return Due.READ
    if state is State.LOST:
        return Due.GIVE_UP if _is_spent(inbound) else Due.NOTHING
    if inbound.state in (Input.ENDED, Input.ENDED_PAUSED):
        return Due.EOF if not inbound.unannounced() else Due.NOTHING
    if inbound.state is Input.TOLD and outbound.state is Output.ENDED:
        return Due.BOTH_ENDED
    return Due.NOTHING


def _is_spent(inbound: Inbound) -> bool:
    """Whether nothing from before the peer's going is still to be received."""
    return inbound.rest == 0 or inbound.state not in RECEIVING


class Wanted:
    """What the engine is to do; these are joined. Plain numbers: enum's flags take 1 us each."""

    NOTHING = 0
    RECEIVE = 1  # else what receives is to end
    WATCH = 2  # a poll for errors: beside what receives, or once nothing does
    FIN = 4  # our end of file
    FINISH = 8  # all was sent: end of file, and then close
    CLOSE = 16  # end all operations, then close the file


def wanted(
    inbound: Inbound,
    outbound: Outbound,
    life: Life,
    secure: Secure | None = None,
    *,
    unanswered: bool = False,
) -> int:
    """What is wanted now, as `Wanted` has it.

    Args:
      unanswered: an on_read was told just now; if it has not answered, nothing that is sent
        will notice a reset.
    """
    state = life.state
    if state is State.CLOSED:
        return Wanted.NOTHING
    if state >= State.ENDING:
        return Wanted.CLOSE
    want = Wanted.NOTHING
    if state is State.FLUSHING and outbound.is_out and not (secure and secure.pending()):
        want |= Wanted.FINISH
    elif outbound.state is Output.ENDING and outbound.is_out and not life.is_lent:
        want |= Wanted.FIN
    if receives(inbound, outbound, life, secure):
        want |= Wanted.RECEIVE
        if unanswered and life.is_open and outbound.is_out:
            want |= Wanted.WATCH
    elif life.is_open and (outbound.sending is None or not inbound.has_room):
        # A send tells of an error by itself, but not of the peer's end.
        want |= Wanted.WATCH
    return want


def receives(
    inbound: Inbound, outbound: Outbound, life: Life, secure: Secure | None = None
) -> bool:
    """Whether input is to be received."""
    if secure is not None and secure.handshaking:  # it needs input whatever the user needs
        return life.state <= State.FLUSHING and not inbound.has_ended
    if inbound.state not in RECEIVING or outbound.is_full or life.state is State.LEAVING:
        return False
    return not life.is_lent or inbound.has_room


@quick
class Way(enum.IntEnum):
    """How a connection goes through the worker's turn."""

    SETTLED = 0  # with a look at all that may be due
    SMALL = 1  # in the worker's loops
    LARGE = 2  # in the worker's loops, one receive after the other


def way_of(
    inbound: Inbound,
    outbound: Outbound,
    life: Life,
    secure: Secure | None = None,
    deadlines: int = 0,
) -> Way:
    """The short way, if nothing is set that needs more than input, a callback, and output.

    Args:
      deadlines: how many are set.
    """
    plain = (
        life.state is PLAIN_STATE
        and life.told is PLAIN_TOLD
        and life.holder is PLAIN_HOLDER
        and inbound.state is PLAIN_INPUT
        and inbound.receive is not Flight.IDLE
        and outbound.state is PLAIN_OUTPUT
        and secure is None
        and not (outbound.drainers or deadlines)
    )
    if not plain:
        return Way.SETTLED
    return Way.LARGE if inbound.pieces else Way.SMALL


if _hot_parts.hot is not None:
    _hot_parts.hot.know(Life=Life)
