"""Input that nobody will ever take, and the end of a connection that waits for it.

A handler may leave its input in the buffer until a whole message is there. One that waits
for a message longer than ``read_buffer_limit`` waits for ever: reading has stopped, so no
more comes, so its ``on_read`` is not called again. Nor is the peer's end of file seen, which
lies behind what is not read; the connection, its descriptor and its memory would stay.

Whether a connection is stuck is asked after each of its callbacks, and is no state of its
own: `is_stuck` computes it. It is stuck while the limit alone has stopped its reading, its
handler has been told of every byte, and nothing of its own runs or is due that could take
one. What may still free it is somebody else: another connection's callback, a task of the
program. So there is a time, which begins anew when anybody takes or writes something, or says
by a pause that input is kept on purpose; who sets a deadline has chosen an end of his own.
Time in which the process did not run (it was stopped, or the machine is busy) is nobody's to
use: a timer that late begins once more. When the peer has ended its stream nothing more can
come, and only those who were woken together with the handler are waited for.

    FREE --begin--> WAITING --over--> OVER
                       +--late--> AGAIN --over--^
                       +--deadline--> LEFT          its user has chosen an end of its own
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from uring_trio.gain._engine import PEER_ENDED
from uring_trio.gain._errors import StuckInput
from uring_trio.gain._halves import Flight, Table, quick, step
from uring_trio.gain._life import State as LifeState

if TYPE_CHECKING:
    from uring_trio.gain._connection import Connection

# Seconds, once the peer has ended its stream: a task that was woken by the handler, or a
# thread that calls back, has its turn before.
AFTER_END_S = 0.1
LATE_S = 0.02  # a timer that is this late was not the only one that had to wait


@quick
class Stage(enum.IntEnum):
    """How far it is."""

    FREE = 0
    WAITING = 1
    AGAIN = 2  # the timer was late, and has begun once more
    OVER = 3
    LEFT = 4


@quick
class StageEvent(enum.IntEnum):
    """What moves it on."""

    BEGIN = 0  # it is stuck from now on
    BEGIN_LEFT = 1  # it is, and a deadline is set
    DEADLINE = 2  # one is set now
    LATE = 3
    OVER = 4  # the time
    FORGET = 5  # it may go on, or somebody has shown that he minds it


# fmt: off
_S = Stage
NEXT_STAGE: Table[Stage] = {
    #            BEGIN        BEGIN_LEFT  DEADLINE  LATE      OVER      FORGET
    _S.FREE:    (_S.WAITING,  _S.LEFT,    _S.FREE,  _S.FREE,  _S.FREE,  _S.FREE),
    _S.WAITING: (_S.WAITING,  _S.LEFT,    _S.LEFT,  _S.AGAIN, _S.OVER,  _S.FREE),
    _S.AGAIN:   (_S.WAITING,  _S.LEFT,    _S.LEFT,  _S.OVER,  _S.OVER,  _S.FREE),
    _S.OVER:    (_S.WAITING,  _S.LEFT,    _S.LEFT,  _S.OVER,  _S.OVER,  _S.FREE),
    _S.LEFT:    (_S.WAITING,  _S.LEFT,    _S.LEFT,  _S.LEFT,  _S.LEFT,  _S.FREE),
}
# fmt: on


class Patience:
    """That of one connection, once its input has been at its limit.

    Attributes:
      stage: `Stage`.
      warned: somebody was told, which is once for each connection.
    """

    __slots__ = ("_connection", "_due", "_unread", "_unsent", "stage", "warned")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.stage = Stage.FREE
        self.warned = False
        self._unread = 0  # bytes that its handler has left
        self._unsent = 0  # bytes that were written and not sent, less what was sent since
        self._due = 0.0  # on the clock: when the timer should expire

    def step(self, event: StageEvent) -> None:
        """Move on."""
        self.stage = step(NEXT_STAGE, self.stage, event)

    def judge(self) -> None:
        """No callback is due: note that it is stuck, or is no more; or close it."""
        connection = self._connection
        if not is_stuck(connection):
            self.forget()
            return
        unread, unsent = connection.inbound.buffered(), connection.outbound.size
        deadlines = connection.deadlines
        has_deadline = deadlines is not None and deadlines.has_users()
        is_still = self.stage is not Stage.FREE and (unread, unsent) == (self._unread, self._unsent)
        if is_still and self.stage is Stage.OVER:
            limit = connection.inbound.limit
            connection.fail(StuckInput(unread, limit, self._why_for_good()))
            return
        if is_still and (has_deadline or self.stage is not Stage.LEFT):
            return
        chosen = deadlines is not None and deadlines.chosen > 0
        left = chosen and has_deadline
        self.step(StageEvent.BEGIN_LEFT if left else StageEvent.BEGIN)
        self._unread, self._unsent = unread, unsent
        self._begin_time()
        if not self.warned:
            self.warned = True
            self._warn()

    def forget(self) -> None:
        """It may go on, or somebody has shown that he minds it."""
        if self.stage is not Stage.FREE:
            self.step(StageEvent.FORGET)
            connection = self._connection
            connection.when_mine(connection.timers().cancel, "stuck")

    def sent(self, size: int) -> None:
        """The kernel has *size* bytes more of what was written."""
        self._unsent -= size

    def peer_has_ended(self) -> None:
        """There is less to be waited for."""
        if self.stage is not Stage.FREE:
            self._begin_time()

    def timer_expired(self) -> None:
        """The time is over, or begins once more."""
        late = self._connection.worker.clock.now() - self._due > LATE_S
        self.step(StageEvent.LATE if late else StageEvent.OVER)
        if self.stage is Stage.AGAIN:
            self._start(AFTER_END_S)
        else:
            self._connection.attend()  # after what is due before

    def _begin_time(self) -> None:
        timeout = self._connection.worker.config.stuck_input_timeout
        seconds = time_left(timeout, peer_ended=self._has_peer_ended())
        if seconds is not None:
            self._start(seconds)

    def _start(self, seconds: float) -> None:
        self._due = self._connection.worker.clock.now() + seconds
        self._connection.timers().start("stuck", seconds)

    def _has_peer_ended(self) -> bool:
        """Whether the peer's end was seen, behind whatever is unread."""
        return bool(self._connection.inbound.noticed & PEER_ENDED)

    def _why_for_good(self) -> str:
        if self._has_peer_ended():
            return "the peer has ended its stream"
        seconds = self._connection.worker.config.stuck_input_timeout
        return f"nobody took any for {seconds:g} s (stuck_input_timeout)"

    def _warn(self) -> None:
        connection = self._connection
        timeout = connection.worker.config.stuck_input_timeout
        connection.worker.logger.warning(
            "receiving stops: the handler has left %d bytes unread of a %s; for messages as "
            "long as that, raise read_buffer_limit (%d)%s",
            connection.inbound.buffered(),
            connection.name(),
            connection.inbound.limit,
            "" if timeout is None else f"; it is closed after {timeout:g} s (stuck_input_timeout)",
        )


def time_left(timeout: float | None, *, peer_ended: bool) -> float | None:
    """Seconds until a stuck connection is closed; None: never."""
    if not peer_ended:
        return timeout
    return AFTER_END_S if timeout is None else min(timeout, AFTER_END_S)


def is_stuck(connection: Connection) -> bool:
    """Whether input has stopped at its limit, and nothing of this connection can take any."""
    inbound, outbound, life = connection.inbound, connection.outbound, connection.life
    return (
        inbound.is_full
        and life.state is LifeState.OPEN
        and not (life.is_busy or life.err is not None)
        and not (outbound.is_full or outbound.drainers)
        and not (connection.secure is not None and connection.secure.handshaking)
        and not connection.calls.running
        and inbound.receive is Flight.IDLE  # what is on its way has come
        and not inbound.unannounced()
    )
