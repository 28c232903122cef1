"""A server's states: a table without I/O, and a lock."""

from __future__ import annotations

import enum
import threading

from uring_trio.gain._errors import InvalidState, ServerAlreadyRunning


class State(enum.Enum):
    """Where a server is between two starts."""

    INACTIVE = "inactive"
    STARTING = "starting"  # it binds its addresses, and its workers start
    RUNNING = "running"  # all addresses are bound; from on_start on
    CLOSING = "closing"  # somebody has stopped it


class Event(enum.Enum):
    """What moves a server from one state to the next."""

    START = "start"
    BOUND = "bound"
    STOP = "stop"
    ENDED = "ended"  # also after a failure


# Every pair has its line: the next state, or what is raised.
NEXT: dict[tuple[State, Event], State | type[InvalidState]] = {
    (State.INACTIVE, Event.START): State.STARTING,
    (State.INACTIVE, Event.BOUND): InvalidState,
    (State.INACTIVE, Event.STOP): State.INACTIVE,
    (State.INACTIVE, Event.ENDED): InvalidState,
    (State.STARTING, Event.START): InvalidState,
    (State.STARTING, Event.BOUND): State.RUNNING,
    (State.STARTING, Event.STOP): State.CLOSING,
    (State.STARTING, Event.ENDED): State.INACTIVE,
    (State.RUNNING, Event.START): ServerAlreadyRunning,
    (State.RUNNING, Event.BOUND): InvalidState,
    (State.RUNNING, Event.STOP): State.CLOSING,
    (State.RUNNING, Event.ENDED): State.INACTIVE,
    (State.CLOSING, Event.START): InvalidState,
    (State.CLOSING, Event.BOUND): State.CLOSING,  # stopped while it was starting
    (State.CLOSING, Event.STOP): State.CLOSING,
    (State.CLOSING, Event.ENDED): State.INACTIVE,
}


class Lifecycle:
    """The state of one server; any thread may ask and tell."""

    def __init__(self) -> None:
        # Re-entrant, because a signal handler may stop the server while its thread is in here.
        self._lock = threading.RLock()
        self._state = State.INACTIVE

    @property
    def state(self) -> State:
        return self._state

    def tell(self, event: Event) -> State:
        """Move on; the state that is reached.

        Raises:
          ServerAlreadyRunning: it runs, so it cannot be started.
          InvalidState: *event* makes no sense in this state.
        """
        with self._lock:
            reached = NEXT[self._state, event]
            if not isinstance(reached, State):
                raise reached(_refusal(self._state, event))
            self._state = reached
            return reached


def _refusal(state: State, event: Event) -> str:
    if (state, event) == (State.RUNNING, Event.START):
        return "server already running"
    return f"invalid state: the server is {state.value}, so there can be no {event.value!r} now"
