"""The end of a run: the kernel finishes with everything, or is given up.

Memory that an operation works on may be freed only after its last cqe. So what is queued is
withdrawn, what is in flight is cancelled, and the ring is drained until nothing is left.
Whoever stands at a slot is told so as `_slots.Occupant` has it, and nobody is woken.
"""

from __future__ import annotations

import math
from time import monotonic, sleep
from typing import TYPE_CHECKING

from uring_trio._kernel import CQE_F_MORE, EINTR, RECORDS_MASK, RETRY_S
from uring_trio._remedies import DENIALS

if TYPE_CHECKING:
    from uring_trio._slots import Slots

# How long closing waits for operations that were cancelled. They take microseconds; one
# that does not end (a broken driver) must not hang the interpreter's exit.
CLOSE_TIMEOUT_S = 1.0


def drain(slots: Slots, answer: int) -> bool:
    """End whatever stands at the slots of a run.

    Args:
      slots: closed already for those who ask.
      answer: that of the last wait, if its batch was not processed; else 0.

    Returns:
      Whether the kernel has finished with everything, within the bound.
    """
    table, ring = slots.table, slots.ring
    for each in slots.occupants():  # first all: one that is released may turn to the next
        each.lose()
    for slot in slots.taken():
        occupant = table[slot]
        if occupant is not None and slots.withdraw(slot):
            occupant.release()
    end = monotonic() + CLOSE_TIMEOUT_S
    while True:
        if answer > 0:
            for slot, res, flags, _ in ring.records(answer & RECORDS_MASK):
                occupant = table[slot]
                if occupant is not None and not flags & CQE_F_MORE:
                    table[slot] = None
                    occupant.dispose(res)
                    occupant.release()
        # The kernel's count too, and not ours alone: a signal handler that raises as the
        # wait returns takes with it what the wait has answered.
        if not ring.in_flight() or not slots.occupants():
            break
        left_ns = math.ceil((end - monotonic()) * 1e9)
        if left_ns <= 0:
            return False
        answer = ring.wait(left_ns)
        if answer < 0 and answer != EINTR:
            if -answer in DENIALS:
                return False
            sleep(RETRY_S)  # the kernel has no memory, or a cqe is lost: others have an end
    for each in slots.occupants():
        each.release()
    return True
