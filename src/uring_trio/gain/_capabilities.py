"""Which multishot operations this kernel gets right, found out by doing them.

All kernels that have rings have multishot operations, and some have them with faults that
no release number tells of: an end of file that is never reported where it came together
with data, a cancel that does not find its operation, an accept that gives a number which is
no descriptor (docs/kernels.md names them). Each would leave a connection open for ever, or
end the server. So the situations that went wrong are made here, once in a process, on a ring
of our own, over UNIX sockets (where most went wrong). Nothing in them waits for another
thread, so an answer that is not there at once is one that never comes; the bound is for a
machine that is very busy.

Where one fails the one-shot operation is used instead, which costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uring_trio._kernel import CQE_F_MORE, ECANCELED, EINTR, RECORDS_MASK, Ring
from uring_trio._probe import note_ring_given_up

if TYPE_CHECKING:
    from collections.abc import Callable

# Of one wait. It takes microseconds; a fault costs this much, once in a process.
BOUND_S = 0.1
DATA = b"data"
ACCEPT_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

logger = logging.getLogger("uring_trio.gain")


@dataclass(frozen=True)
class Capabilities:
    """What may be used here.

    Attributes:
      multishot_receive: one receive that stays armed.
      multishot_accept: one accept that stays armed.
      reasons: why not, one for each that may not.
    """

    multishot_receive: bool
    multishot_accept: bool
    reasons: tuple[str, ...] = ()


class Fault(Exception):
    """What the kernel did wrong."""


class _State:
    """What is known in this process; a forked child begins anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: Capabilities | None = None


_state = _State()


def _forget_in_child() -> None:
    global _state
    _state = _State()


os.register_at_fork(after_in_child=_forget_in_child)


def capabilities() -> Capabilities:
    """What this kernel gets right: tried once in a process, and again after a fork."""
    state = _state
    with state.lock:
        if state.found is not None:
            return state.found
        try:
            ring = Ring()
        except OSError as exc:  # memory or descriptors: may be there the next time
            found = Capabilities(False, False, (f"multishot operations: not tried: {exc}",))
        else:
            try:
                found = state.found = try_ring(ring)
            finally:
                ring.close(leak=False)
                note_ring_given_up()
        for reason in found.reasons:
            logger.info("not used: %s", reason)
        return found


def try_ring(ring: Ring) -> Capabilities:
    """Try all on a ring that is used for nothing else.

    Where the kernel has a fault, operations may be left in flight.
    """
    reasons = []

    def works(name: str, *trials: Callable[[Ring], None]) -> bool:
        try:
            for trial in trials:
                trial(ring)
        except (Fault, OSError) as exc:
            reasons.append(f"{name}: {exc}")
            return False
        return True

    receive = works("multishot receive", _try_end_before, _try_end_after, _try_cancel)
    accept = works("multishot accept", _try_accept)
    return Capabilities(receive, accept, tuple(reasons))


# ---- receiving ---------------------------------------------------------------------------


def _try_end_before(ring: Ring) -> None:
    """Data and the end are both there when the receive is armed."""
    _try_end(ring, armed_first=False)


def _try_end_after(ring: Ring) -> None:
    """Data and the end come to an armed receive, between two waits."""
    _try_end(ring, armed_first=True)


def _try_end(ring: Ring, *, armed_first: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        slot = _checked(ring, ring.recv_multishot(ours.fileno(), 0, 0))
        if armed_first:
            _wait(ring, slot, 0, 0)
        theirs.sendall(DATA)
        theirs.shutdown(socket.SHUT_WR)
        answers = _wait(ring, slot, 2)
        if answers[:1] != [len(DATA)]:
            raise Fault(f"data that came with the end was answered with {answers}")
        if answers[1:] != [0]:
            raise Fault("an end that came with data was never reported")


def _try_cancel(ring: Ring) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        slot = _checked(ring, ring.recv_multishot(ours.fileno(), 0, 0))
        _wait(ring, slot, 0, 0)
        _cancel(ring, slot)


# ---- accepting ---------------------------------------------------------------------------


def _try_accept(ring: Ring) -> None:
    """One connection before the accept is armed, two at once after; then it is cancelled."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind("")  # the kernel gives it an abstract name
        listener.listen(3)

        def connect() -> None:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(BOUND_S)
            client.connect(listener.getsockname())

        connect()
        slot = _checked(ring, ring.accept_fd(listener.fileno(), ACCEPT_FLAGS, 1))
        answers = _wait(ring, slot, 1)
        connect()
        connect()
        answers += _wait(ring, slot, 2)
        wrong = [fd for fd in answers if not _close_accepted(fd, listener)]
        if wrong or len(answers) != 3:
            raise Fault(f"three connections were answered with {answers}, of these wrong: {wrong}")
        _cancel(ring, slot)


def _close_accepted(fd: int, listener: socket.socket) -> bool:
    """Close what was accepted; False if it was not accepted from there, and is left alone."""
    try:
        sock = socket.socket(listener.family, listener.type, fileno=fd)
    except (OSError, ValueError):
        return False
    try:
        ours = bool(sock.getsockname() == listener.getsockname())
    except OSError:  # no socket
        ours = False
    if not ours:
        sock.detach()
    sock.close()
    return ours


# ---- the ring ----------------------------------------------------------------------------


def _checked(ring: Ring, slot: int) -> int:
    if slot < 0:
        raise ring.error(slot)
    return slot


def _wait(ring: Ring, slot: int, count: int, bound_s: float = BOUND_S) -> list[int]:
    """The results of an operation, until there are so many, or its last, or time is up."""
    results: list[int] = []
    ended = False
    deadline = time.monotonic() + bound_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        answer = ring.wait(int(left_s * 1e9))
        if answer < 0 and answer != EINTR:
            raise ring.error(answer)
        for record_slot, res, flags, _ in ring.records(max(0, answer) & RECORDS_MASK):
            if record_slot == slot:
                results.append(res)
                ended = ended or not flags & CQE_F_MORE
        if ended or left_s == 0 or 0 < count <= len(results):
            return results


def _cancel(ring: Ring, slot: int) -> None:
    """End an operation that is idle."""
    asked = ring.cancel(slot)
    if asked < 0:  # its last result is in the batch
        raise Fault("it ended by itself")
    if asked and _wait(ring, slot, 1) != [ECANCELED]:
        raise Fault("a cancel did not end it")
