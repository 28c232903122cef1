"""Which multishot operations this kernel gets right, found out by doing them.

All kernels that have rings have multishot operations, and some have them with faults that
no release number tells of: an end of file that is never reported where it came together
with data, data that is lost where a reset came behind it, a cancel that does not find its
operation (docs/kernels.md names them). Each would leave a connection open for ever, or
lose what a peer has sent. So the situations that went wrong are made here, once in a
process, on a ring of our own: over UNIX sockets, and those with a reset over the loopback
interface, because only TCP has them. Nothing in them waits for another thread, so an answer
that is not there at once is one that never comes; the bound is for a machine that is very
busy. (The kernel may deliver over loopback from a thread of its own. So what is to be there
before the ring looks is waited for by poll(2), which takes nothing away.)

Where one fails, or there is no loopback to try it on, the one-shot operation is used
instead, which costs time and nothing else.

All of it has a thread of its own. A ring that is closed tells each thread that has used it,
some 20 ms later on 6.18, by task work that comes as a signal does (io_ring_exit_work). And a
receive over TCP that is at an urgent byte answers EAGAIN if a signal is pending: a multishot
receive of the worker's would wait for what comes next then, whatever is behind the byte.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import outcome

from uring_trio._kernel import CQE_F_MORE, ECANCELED, EINTR, RECORDS_MASK, Ring
from uring_trio._probe import note_ring_given_up
from uring_trio._process import in_child, locks
from uring_trio.gain._surroundings import logger

if TYPE_CHECKING:
    from collections.abc import Callable

ECONNRESET = -errno.ECONNRESET

# Of one wait. It takes microseconds; a fault costs this much, once in a process.
BOUND_S = 0.1
DATA = b"data"
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger
LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


@dataclass(frozen=True)
class Capabilities:
    """What may be used here.

    Attributes:
      multishot_receive: one receive that stays armed.
      reasons: why not, one for each that may not.
    """

    multishot_receive: bool
    reasons: tuple[str, ...] = ()


class Fault(Exception):
    """What the kernel did wrong."""


# In this process.
_found: Capabilities | None = None


def _forget_in_child() -> None:
    global _found
    _found = None


in_child("multishot", _forget_in_child)


def capabilities() -> Capabilities:
    """What this kernel gets right: tried once in a process, and again after a fork."""
    global _found
    with locks.kernel:
        if _found is not None:
            return _found
        try:
            found = _found = _in_a_thread(_try_kernel)
        except OSError as exc:  # memory or descriptors: may be there the next time
            found = Capabilities(False, (f"multishot operations: not tried: {exc}",))
        for reason in found.reasons:
            logger.info("not used: %s", reason)
        return found


def _in_a_thread(call: Callable[[], Capabilities]) -> Capabilities:
    """What *call* answers, in a thread that is over then; see the top of this module."""
    results: list[outcome.Outcome[Capabilities]] = []

    def run() -> None:
        results.append(outcome.capture(call))

    thread = threading.Thread(target=run, name="uring_trio.gain trial")
    try:
        thread.start()
    except RuntimeError:  # there is no room for one
        return call()
    thread.join()
    return results[0].unwrap()


def _try_kernel() -> Capabilities:
    """Try it on a ring of our own.

    Raises:
      OSError: there is none to be had.
    """
    ring = Ring()
    try:
        return try_ring(ring)
    finally:
        ring.close(leak=False)
        note_ring_given_up()


def try_ring(ring: Ring) -> Capabilities:
    """Try all on a ring that is used for nothing else.

    Where the kernel has a fault, operations may be left in flight.
    """
    try:
        for trial in TRIALS:
            trial(ring)
    except (Fault, OSError) as exc:
        return Capabilities(False, (f"multishot receive: {exc}",))
    return Capabilities(True)


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


def _try_reset_before(ring: Ring) -> None:
    """Data and a reset are both there when the receive is armed."""
    _try_reset(ring, armed_first=False)


def _try_reset_after(ring: Ring) -> None:
    """Data and a reset come to an armed receive, between two waits (Linux 6.16.3)."""
    _try_reset(ring, armed_first=True)


def _try_reset(ring: Ring, *, armed_first: bool) -> None:
    ours, theirs = _connected_over_loopback()
    with ours, theirs:
        slot = _checked(ring, ring.recv_multishot(ours.fileno(), 0, 0)) if armed_first else -1
        if armed_first:
            _wait(ring, slot, 0, 0)
        theirs.sendall(DATA)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        theirs.close()
        _wait_for_reset(ours)
        if not armed_first:
            slot = _checked(ring, ring.recv_multishot(ours.fileno(), 0, 0))
        answers = _wait(ring, slot, 2)
        if answers[:1] != [len(DATA)]:
            raise Fault(f"data that came before a reset was answered with {answers}")
        if answers[1:] != [ECONNRESET]:
            raise Fault(f"a reset that came with data was answered with {answers[1:]}")


def _connected_over_loopback() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, or an OSError, soon."""
    for family, host in LOOPBACKS:
        with contextlib.suppress(OSError), socket.socket(family) as listener:
            listener.settimeout(BOUND_S)
            listener.bind((host, 0))
            listener.listen(1)
            client = socket.socket(family)
            try:
                client.settimeout(BOUND_S)
                client.connect(listener.getsockname())
                server, _ = listener.accept()
            except BaseException:
                client.close()
                raise
            return server, client
    raise OSError(errno.ENETUNREACH, "not tried: there is no loopback interface")


def _wait_for_reset(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)  # errors are reported all the same
    if not poll.poll(BOUND_S * 1000):
        raise OSError(errno.ETIMEDOUT, "not tried: a reset does not arrive")


TRIALS: tuple[Callable[[Ring], None], ...] = (
    _try_end_before,
    _try_end_after,
    _try_cancel,
    _try_reset_before,
    _try_reset_after,
)


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
