"""The end of a run: the kernel finishes with everything, or is given up.

Memory that an operation works on may be freed only after its last cqe. So what is queued is
dropped, what is in flight is cancelled, and the ring is drained until nothing is left.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING

from uring_trio._kernel import CQE_F_MORE, EINTR, RECORDS_MASK
from uring_trio._operations import Operation, Routed

if TYPE_CHECKING:
    from uring_trio._io_manager import UringIOManager

# How long closing waits for operations that were cancelled. They take microseconds; one
# that does not end (a broken driver) must not hang the interpreter's exit.
CLOSE_TIMEOUT_S = 1.0


def drain(manager: UringIOManager, answer: int) -> bool:
    """End every operation and poll of a manager; nobody is woken.

    Args:
      manager: the manager, which is closed already for those who ask it.
      answer: that of the last wait, if its batch was not processed; else 0.

    Returns:
      Whether the kernel has finished with everything, within the bound.
    """
    ops, ring = manager.ops, manager.ring
    _cancel_all(manager)
    end = monotonic() + CLOSE_TIMEOUT_S
    while True:
        if answer > 0:
            for slot, res, flags, offset in ring.records(answer & RECORDS_MASK):
                if isinstance(ops[slot], Routed):
                    if not flags & CQE_F_MORE:
                        ops[slot] = None
                elif ops[slot] is not None:
                    ops[slot].complete(res, flags, offset)
        # The kernel's count too, and not ours alone: a signal handler that raises as the
        # wait returns takes with it what the wait has answered.
        in_flight = ring.statistics()[0]["in_flight"]
        if not in_flight or all(operation is None for operation in ops):
            break
        left_ns = math.ceil((end - monotonic()) * 1e9)
        if left_ns <= 0:
            return False
        answer = ring.wait(left_ns)
        if answer < 0 and answer != EINTR:
            return False
    for operation in ops:
        if isinstance(operation, Operation):
            operation.release()
    return True


def _cancel_all(manager: UringIOManager) -> None:
    manager.held.clear()
    for slot, operation in enumerate(manager.ops):
        if operation is not None:
            operation.task = None
            if isinstance(operation, Operation):
                operation.direction.waiting = ()
            if manager.ring.cancel(slot) == 0:
                manager.ops[slot] = None
                if isinstance(operation, Operation):
                    operation.release()
