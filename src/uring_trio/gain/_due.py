"""What is due for a connection, computed from its halves and its life, and from nothing else.

`callback_due`: what its handler is to be told next, or what else comes in its turn there.
`wanted`: what the kernel is to do. `way`: whether the worker's loops may take the short way.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from uring_trio.gain import _inbound, _outbound
from uring_trio.gain._inbound import RECEIVING
from uring_trio.gain._life import Holder, State, Told

if TYPE_CHECKING:
    from uring_trio.gain._inbound import Inbound
    from uring_trio.gain._life import Life
    from uring_trio.gain._outbound import Outbound
    from uring_trio.gain._secure import Secure


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
    if life.is_busy:
        # The task may take what is there, but more of it never comes.
        lost = state is State.LOST and life.holder is Holder.TASK
        return (
            Due.GIVE_UP if lost and not inbound.buffered() and _is_spent(inbound) else Due.NOTHING
        )
    if life.told is Told.NOTHING:
        return Due.ACCEPT if life.is_open else Due.NOTHING
    if outbound.written:
        return Due.WROTE
    if state is State.CLOSED:
        return Due.CLOSED if life.told is Told.ACCEPT else Due.NOTHING
    if not life.is_open:
        return Due.NOTHING
    if state is State.LEAVING:
        return Due.LEAVE
    if inbound.announces:
        return Due.READ
    if state is State.LOST:
        return Due.GIVE_UP if _is_spent(inbound) else Due.NOTHING
    if inbound.state in (_inbound.State.ENDED, _inbound.State.ENDED_PAUSED):
        return Due.EOF if not inbound.unannounced() else Due.NOTHING
    if inbound.state is _inbound.State.TOLD and outbound.state is _outbound.State.ENDED:
        return Due.BOTH_ENDED
    return Due.NOTHING


def _is_spent(inbound: Inbound) -> bool:
    """Whether nothing from before the peer's going is still to be received."""
    return inbound.rest == 0 or inbound.state not in RECEIVING


class Wanted(enum.IntFlag):
    """What the kernel is to do."""

    NOTHING = 0
    RECEIVE = 1  # else what receives is to end
    WATCH = 2  # a poll for errors, once nothing receives
    FIN = 4  # our end of file
    FINISH = 8  # all was sent: end of file, and then close
    CLOSE = 16  # end all operations, then close the file


def wanted(
    inbound: Inbound, outbound: Outbound, life: Life, secure: Secure | None = None
) -> Wanted:
    """What is wanted now."""
    state = life.state
    if state is State.CLOSED:
        return Wanted.NOTHING
    if life.is_over:
        return Wanted.CLOSE
    want = Wanted.NOTHING
    if state is State.FLUSHING and outbound.is_out and not (secure and secure.pending()):
        want |= Wanted.FINISH
    elif outbound.state is _outbound.State.ENDING and outbound.is_out and not life.is_lent:
        want |= Wanted.FIN
    if receives(inbound, outbound, life, secure):
        want |= Wanted.RECEIVE
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


class Way(enum.IntEnum):
    """How a connection goes through the worker's turn."""

    SETTLED = 0  # with a look at all that may be due
    SMALL = 1  # in the worker's loops
    LARGE = 2  # in the worker's loops, one receive after the other


def is_plain(inbound: Inbound, outbound: Outbound, life: Life) -> bool:
    """Whether nothing is set that needs more than input, a callback, and output."""
    return (
        life.state is State.OPEN
        and life.told is Told.ACCEPT
        and life.holder is Holder.NOBODY
        and inbound.state is _inbound.State.OPEN
        and outbound.state is _outbound.State.OPEN
        and not outbound.drainers
    )
