"""Input that nobody will ever take, and the end of a connection that waits for it.

A handler may leave its input in the buffer until a whole message is there. One that waits
for a message longer than ``read_buffer_limit`` waits for ever: reading has stopped, so no
more comes, so its ``on_read`` is not called again. Nor is the peer's end of file seen, which
lies behind what is not read; the connection, its descriptor and its memory would stay.

Whether a connection is stuck is asked after each of its callbacks, and is no state of its
own: `Connection._is_stuck` computes it. It is stuck while the limit alone has stopped its
reading, its handler has been told of every byte, and nothing of its own runs or is due that
could take one. What may still free it is somebody else: another connection's callback, a
task of the program. So there is a time, which begins anew when anybody takes or writes
something, or says by a pause that input is kept on purpose; who sets a deadline has chosen
an end of his own. Time in which the process did not run (it was stopped, or the machine is
busy) is nobody's to use: a timer that late begins once more. When the peer has ended its stream nothing more can come, and only those
who were woken together with the handler are waited for.
"""

from __future__ import annotations

# Seconds, once the peer has ended its stream: a task that was woken by the handler, or a
# thread that calls back, has its turn before.
AFTER_END_S = 0.1
LATE_S = 0.02  # a timer that is this late was not the only one that had to wait


class Stuck:
    """How a connection stood when it was found to be stuck.

    Attributes:
      unread: bytes that its handler has left.
      unsent: bytes that were written and not sent, less what was sent since.
      deadline: one was set since.
      due: when the time is over.
      over: the time is.
      was_late: its timer was, and has begun once more.
    """

    __slots__ = ("deadline", "due", "over", "unread", "unsent", "was_late")

    def __init__(self, unread: int, unsent: int) -> None:
        self.unread = unread
        self.unsent = unsent
        self.deadline = False
        self.due = 0.0
        self.over = False
        self.was_late = False

    def is_still(self, unread: int, unsent: int) -> bool:
        """Whether nobody has taken or written anything since."""
        return (unread, unsent) == (self.unread, self.unsent)


def time_left(timeout: float | None, *, peer_ended: bool) -> float | None:
    """Seconds until a stuck connection is closed; None: never."""
    if not peer_ended:
        return timeout
    return AFTER_END_S if timeout is None else min(timeout, AFTER_END_S)
