"""What a worker needs of an engine: the protocol under the callback servers.

An engine serves open files for the connections of one worker, on the worker's thread. A
connection asks for operations at its `Link`; what has happened comes to it in the worker's
turn, through the methods `completed`, `input_there` and `watch_completed` of its intake and
`completed` of its outlet. The rules, which the tables of `_halves` and `_life` rest on:

- An operation that was asked for has exactly one last completion, whatever becomes of it,
  unless `stop`, `stop_watch` or `stop_send` answers True: then it was taken back before
  anybody had begun it, and nothing comes of it any more.
- A receive may complete many times before its last; a watch too, if it was asked to; a send
  once. What comes for one link comes in the order in which it happened.
- To stop is to ask. The last completion decides: it may bring data all the same.
- Until a send's completion its bytes are the engine's; until the last completion of all, the
  file is.

The ring (`_ring`) is one; the tests have another, which gives every order by seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from uring_trio._kernel import POLLERR, POLLHUP, POLLRDHUP

if TYPE_CHECKING:
    import socket

    from uring_trio.gain._halves import Sizes

# What a watch may tell of, asked or not; see poll(2).
PEER_ENDED = POLLHUP | POLLRDHUP
ENDS = POLLERR | PEER_ENDED


class Link(Protocol):
    """One connection's file on an engine.

    Attributes:
      fd: its number.
      readable: what was told of large input, and not taken yet, as poll(2) names it.
    """

    fd: int
    readable: int

    # ---- operations ----------------------------------------------------------------------

    def arm(self, *, large: bool) -> None:
        """Receive, until this is stopped or ends; *large*: tell that there is input."""

    def stop(self) -> bool:
        """Have what receives end; True if it has."""

    def watch(self, *, again: bool) -> None:
        """Tell of errors and of the peer's end, once; with *again*, of each that is new."""

    def stop_watch(self) -> bool:
        """Have that end; True if it has."""

    def send(self, data: bytes, at: int, size: int) -> None:
        """Send so much of *data*; the completion may tell of less."""

    def stop_send(self) -> bool:
        """Have that end; True if it has."""

    def is_quiet(self) -> bool:
        """Whether the engine has nothing of it any more."""

    def in_flight(self) -> int:
        """How many operations of it have no last completion yet."""

    def forget(self, slot: int, res: int, flags: int) -> None:
        """Take note of a completion, and not of what it brings."""

    # ---- at once -------------------------------------------------------------------------

    def try_send(self, data: bytes, size: int) -> int:
        """How much of *data* is sent without waiting; negative: an errno."""

    def take_first(self) -> tuple[int, bytes]:
        """Input of a file that nothing was armed on yet: how much, or an errno; the bytes.

        EAGAIN: there is none, or something was; then it is to be armed.
        """

    def take(self) -> tuple[int, bytes, int]:
        """Large input: how much, or an errno; the bytes; what was told of it, if there may be more.

        More, that is, of which there will be no word.
        """

    def remember(self, told: int) -> None:
        """What was told of is to be taken once more."""

    def forget_input(self) -> None:
        """Nothing is to be taken."""

    def unread(self) -> int:
        """Bytes that have come and were not received; more than any limit where nobody can tell."""

    def error(self) -> int:
        """The errno that the file holds; 0 for none."""

    def send_fin(self) -> None:
        """Send the end of file."""

    def reset_at_close(self) -> None:
        """Have `close` send a reset."""

    def close(self) -> None:
        """Close the file. The engine has nothing of it any more."""


class Engine(Protocol):
    """Serves the connections of one worker.

    Attributes:
      pool: what is leased is in there.
      sizes: of the pieces that it receives.
      misses_errors: a receive of small pieces may miss an error, where it is there with input.
    """

    pool: Any
    sizes: Sizes
    misses_errors: bool

    def link(self, connection: Any, sock: socket.socket) -> Link:
        """Serve an open file, which is the engine's from now on."""

    def flush(self) -> None:
        """Have what was stopped end now, and not with the tick."""

    def close(self) -> None:
        """The worker ends; no file is served any more."""


class Clock(Protocol):
    """The deadlines of a worker."""

    def set_in(self, key: Any, seconds: float) -> None:
        """Have ``key[0]._timer_expired(key[1])`` called in so many seconds."""

    def cancel(self, key: Any) -> bool:
        """Forget it; whether it was set."""

    def is_set(self, key: Any) -> bool:
        """Whether it is."""

    def now(self) -> float:
        """Seconds."""
