"""How long a connection waits for somebody to take its input; what there is to it is in `_stuck`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uring_trio.gain._engine import PEER_ENDED
from uring_trio.gain._errors import StuckInput
from uring_trio.gain._inbound import Flight
from uring_trio.gain._life import State
from uring_trio.gain._stuck import AFTER_END_S, Stuck, time_left
from uring_trio.gain._stuck import State as Stage

if TYPE_CHECKING:
    from uring_trio.gain._connection import Connection


class Patience:
    """That of one connection, once its input has been at its limit."""

    __slots__ = ("_connection", "_stuck")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stuck = Stuck()

    def judge(self) -> None:
        """No callback is due: note that it is stuck, or is no more; or close it."""
        connection, stuck = self._connection, self._stuck
        if not is_stuck(connection):
            self.forget()
            return
        unread, unsent = connection.inbound.buffered(), connection.outbound.size
        deadlines = connection.deadlines
        has_deadline = deadlines is not None and deadlines.has_users()
        if stuck.is_still(unread, unsent):
            if not stuck.deadline:
                if stuck.state is Stage.OVER:
                    limit = connection.inbound.limit
                    connection.fail(StuckInput(unread, limit, self._why_for_good()))
                return
            if has_deadline:
                return  # which is an end
        chosen = deadlines is not None and deadlines.is_chosen
        stuck.begin(unread, unsent, deadline=chosen and has_deadline)
        self._begin_time()
        if stuck.warn():
            self._warn()

    def forget(self) -> None:
        """It may go on, or somebody has shown that he minds it."""
        if self._stuck.state is not Stage.FREE:
            self._stuck.forget()
            connection = self._connection
            connection.when_mine(connection.timers().cancel, "stuck")

    def sent(self, size: int) -> None:
        """The kernel has *size* bytes more of what was written."""
        self._stuck.sent(size)

    def mind_deadline(self) -> None:
        """A deadline was set."""
        self._stuck.mind_deadline()

    def peer_has_ended(self) -> None:
        """There is less to be waited for."""
        if self._stuck.state is not Stage.FREE:
            self._begin_time()

    def timer_expired(self) -> None:
        """The time is over, or begins once more."""
        if self._stuck.state is Stage.FREE:
            return
        if self._stuck.timer_expired(self._connection.worker.clock.now()):
            self._connection.attend()  # after what is due before
        else:
            self._start(AFTER_END_S)

    def _begin_time(self) -> None:
        timeout = self._connection.worker.config.stuck_input_timeout
        seconds = time_left(timeout, peer_ended=self._has_peer_ended())
        if seconds is not None:
            self._start(seconds)

    def _start(self, seconds: float) -> None:
        self._stuck.start(self._connection.worker.clock.now(), seconds)
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
            connection.conn._name(),
            connection.inbound.limit,
            "" if timeout is None else f"; it is closed after {timeout:g} s (stuck_input_timeout)",
        )


def is_stuck(connection: Connection) -> bool:
    """Whether input has stopped at its limit, and nothing of this connection can take any."""
    inbound, outbound, life = connection.inbound, connection.outbound, connection.life
    return (
        inbound.is_full
        and life.state is State.OPEN
        and not (life.is_busy or life.err is not None)
        and not (outbound.is_full or outbound.drainers)
        and not (connection.secure is not None and connection.secure.handshaking)
        and not (connection.tasks is not None and connection.tasks.running)
        and inbound.receive is Flight.IDLE  # what is on its way has come
        and not inbound.unannounced()
    )
