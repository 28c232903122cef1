"""Input that nobody will ever take, and the end of a connection that waits for it.

A handler may leave its input in the buffer until a whole message is there. One that waits
for a message longer than ``read_buffer_limit`` waits for ever: reading has stopped, so no
more comes, so its ``on_read`` is not called again. Nor is the peer's end of file seen, which
lies behind what is not read; the connection, its descriptor and its memory would stay.

Whether a connection is stuck is asked after each of its callbacks, and is no state of its
own: `is_stuck` computes it. It is stuck while the limit alone has stopped its
reading, its handler has been told of every byte, and nothing of its own runs or is due that
could take one. What may still free it is somebody else: another connection's callback, a
task of the program. So there is a time, which begins anew when anybody takes or writes
something, or says by a pause that input is kept on purpose; who sets a deadline has chosen
an end of his own. Time in which the process did not run (it was stopped, or the machine is
busy) is nobody's to use: a timer that late begins once more. When the peer has ended its
stream nothing more can come, and only those who were woken together with the handler are
waited for.

    FREE --begin--> WAITING --over--> OVER --begin, forget--> WAITING, FREE
"""

from __future__ import annotations

import enum

# Seconds, once the peer has ended its stream: a task that was woken by the handler, or a
# thread that calls back, has its turn before.
AFTER_END_S = 0.1
LATE_S = 0.02  # a timer that is this late was not the only one that had to wait


class State(enum.IntEnum):
    """How far it is."""

    FREE = 0
    WAITING = 1
    OVER = 2


class Stuck:
    """How a connection stood when it was found to be stuck.

    Attributes:
      state: `State`.
      deadline: one was set since.
      warned: somebody was told, which is once for each connection.
    """

    __slots__ = ("_due", "_unread", "_unsent", "_was_late", "deadline", "state", "warned")

    def __init__(self) -> None:
        self.state = State.FREE
        self.warned = False
        self.deadline = False
        self._unread = 0  # bytes that its handler has left
        self._unsent = 0  # bytes that were written and not sent, less what was sent since
        self._due = 0.0
        self._was_late = False

    def begin(self, unread: int, unsent: int, *, deadline: bool) -> None:
        """It is stuck from now on."""
        self.state = State.WAITING
        self.deadline = deadline
        self._unread = unread
        self._unsent = unsent
        self._was_late = False

    def forget(self) -> None:
        """It may go on, or somebody has shown that he minds it."""
        self.state = State.FREE

    def warn(self) -> bool:
        """Whether somebody is to be told now."""
        warned, self.warned = self.warned, True
        return not warned

    def mind_deadline(self) -> None:
        """A deadline was set."""
        self.deadline = True

    def sent(self, size: int) -> None:
        """The kernel has *size* bytes more of what was written."""
        self._unsent -= size

    def is_still(self, unread: int, unsent: int) -> bool:
        """Whether it is, and nobody has taken or written anything since."""
        here = self.state is not State.FREE
        return here and (unread, unsent) == (self._unread, self._unsent)

    def start(self, now: float, seconds: float) -> None:
        """A timer of so many seconds has begun."""
        self._due = now + seconds

    def timer_expired(self, now: float) -> bool:
        """Whether the time is over; else it begins once more, with `AFTER_END_S`."""
        if now - self._due > LATE_S and not self._was_late:
            self._was_late = True
            return False
        self.state = State.OVER
        return True


def time_left(timeout: float | None, *, peer_ended: bool) -> float | None:
    """Seconds until a stuck connection is closed; None: never."""
    if not peer_ended:
        return timeout
    return AFTER_END_S if timeout is None else min(timeout, AFTER_END_S)
