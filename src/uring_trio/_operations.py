"""Operations of tasks: each ends once, with its last cqe.

Until then its slot and its memory are taken, whatever becomes of the task:

- A *cancel* of trio's before submission drops it: ``Abort.SUCCEEDED``, no cqe will come.
- After submission a cancel is a request: ``Abort.FAILED``, and the operation's own cqe
  decides. ``-ECANCELED`` and we asked: the cancel. Anything else was done, and is delivered:
  no byte and no connection is lost because somebody changed his mind.
- *Closing* wakes the task at once and leaves the operation an orphan, which disposes of
  what it may still bring (an accepted connection is closed). Only an operation on the
  user's own memory keeps its task asleep, because the kernel may still write there.
- ``-ENOBUFS`` of a receive into a provided buffer is back-pressure: more were ready than
  there are buffers. Nothing was read; the operation is *held*: without a slot, but still the
  current one of its direction, and armed again as buffers come home.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from outcome import Error

from uring_trio._kernel import (
    CQE_F_SOCK_NONEMPTY,
    ECANCELED,
    EINTR,
    ENOBUFS,
    GROUP_SIZES,
    RECORD_WAITED,
    TRANSFER_MAX,
)
from uring_trio._memory import unpin
from uring_trio._trio_private import WaitTaskRescheduled, run_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uring_trio._directions import Direction
    from uring_trio._io_manager import UringIOManager

Abort = trio.lowlevel.Abort

SMALLEST_BUFFER = GROUP_SIZES[0]

# Of a record: nothing was there when it was asked for, and nothing was left afterwards.
HAD_TO_WAIT = RECORD_WAITED | CQE_F_SOCK_NONEMPTY

BUSY = "another task is already reading / writing this fd"
CLOSED = "another task closed this fd"


def os_error(result: int) -> OSError:
    """The exception for a cqe's negative result."""
    return OSError(-result, os.strerror(-result))


def raise_error(error: Any) -> NoReturn:
    """Raise what an `outcome.Error` holds, and leave it empty.

    The callers' frames hold it, and the exception's traceback holds their frames: a cycle,
    which would keep the user's locals until some later collection.
    """
    exception = error.error
    object.__setattr__(error, "error", None)  # as outcome does: it is frozen
    try:
        raise exception
    finally:
        del exception


class Operation:
    """An operation of one direction, from a task's call to its last cqe."""

    __slots__ = ("direction", "raise_cancel", "slot", "task", "tick", "trap")

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.task: Any = run_context.task
        self.slot = -1
        self.tick = -1
        # Raises what its end was asked for with: a cancel, or a closing.
        self.raise_cancel: Callable[[], Any] | None = None
        self.trap = WaitTaskRescheduled(self.abort)

    @property
    def reading(self) -> bool:
        """Whether its task counts as one that waits to read."""
        return self.direction.reading

    @property
    def on_user_memory(self) -> bool:
        """Whether the kernel works on memory that the caller may change or free."""
        return False

    def prepare(self) -> int:
        """Queue the operation; its slot, or a negative errno."""
        raise NotImplementedError

    def finish(self, res: int, flags: int, offset: int) -> Any:
        """What the task gets for its last cqe; an int below 0 is an error."""
        return res

    def dispose(self, res: int) -> None:
        """Nobody waits any more: get rid of what a successful operation has brought."""

    def release(self) -> None:
        """Let go of memory; the kernel has."""

    def retire(self) -> None:
        """It will not be used again: let go of memory, and of the cycle through the trap."""
        self.release()
        self.trap = None

    def group(self) -> int:
        """Which buffers it takes one of; -1 for none."""
        return -1

    def raise_if_cut_off(self) -> None:
        """In the task, after a short count: raise what its end was asked for with, if it was.

        An operation that ended well may be in use again by now; one that did not is retired.
        """
        if self.trap is None and self.raise_cancel is not None:
            self.raise_cancel()

    def is_waited_for(self) -> bool:
        """Whether a task sleeps on it, and nobody has asked for its end."""
        return self.task is not None and self.raise_cancel is None

    def drop(self) -> bool:
        """End it where the kernel has no part in it; False if the kernel has."""
        direction = self.direction
        manager = direction.manager
        if self is not direction.current:
            direction.waiting.remove(self)  # type: ignore[union-attr]
        elif self.slot < 0:
            manager.held.remove(self)
            direction.current = None
        elif manager.ring.cancel(self.slot) == 0:
            manager.ops[self.slot] = None
            self.slot = -1
            direction.current = None
        else:
            return False
        self.task = None
        self.retire()
        return True

    def abort(self, raise_cancel: Callable[[], Any]) -> Any:
        """trio's abort function."""
        direction = self.direction
        manager = direction.manager
        if manager.closed:
            return Abort.SUCCEEDED
        if self.task is None:
            # An instrument cancels while a closing is about to wake this task, too.
            return Abort.FAILED
        if self.drop():
            direction.advance()
            return Abort.SUCCEEDED
        self.raise_cancel = raise_cancel
        manager.after_abort()
        return Abort.FAILED

    def complete(self, res: int, flags: int, offset: int) -> None:
        """Take the last cqe; there is only one."""
        direction = self.direction
        manager = direction.manager
        manager.ops[self.slot] = None
        self.slot = -1
        task, self.task = self.task, None
        value: Any
        if task is None:
            self.dispose(res)
        elif res == EINTR or (res == ENOBUFS and self.group() >= 0):
            # Nothing was done. (ENOBUFS without a provided buffer is an error like any
            # other: a sendmsg with more control data than the kernel takes.)
            if self.raise_cancel is None:
                self.task = task
                manager.held.append(self)
                return
            value = ECANCELED
        else:
            try:
                value = self.finish(res, flags, offset)
            except (OSError, MemoryError) as exc:
                value = Error(exc)
        self.retire()
        direction.current = None
        if direction.waiting:
            direction.advance()
        if task is not None:
            manager.wake(task, value)

    def go_on(self) -> None:
        """Its request is over, and another one follows: prepare that."""
        manager = self.direction.manager
        manager.ops[self.slot] = None
        slot = self.prepare()
        if slot < 0:
            Operation.complete(self, slot, 0, 0)
            return
        self.slot = manager.start(self, slot)
        self.tick = manager.tick

    def unwrap(self, value: Any) -> Any:
        """In the task: what `park` gave, or the exception that it means."""
        if type(value) is Error:
            raise_error(value)
        if type(value) is int and value < 0:
            if value == ECANCELED:
                raise_cancel, self.raise_cancel = self.raise_cancel, None
                if raise_cancel is None:
                    raise trio.ClosedResourceError("another task closed this resource")
                raise_cancel()
            raise os_error(value)
        return value


class Routed:
    """Owns operations whose cqes go to a loop of its own, and not to a task each.

    For the callback servers, whose workers serve many files by themselves. The loop puts a
    function in the manager's `deliver` that tells its own operations from the others.

    Attributes:
      worker: the loop.
      task: None, always: nobody sleeps on one.
    """

    __slots__ = ("task", "worker")

    task: None
    worker: Any

    reading = False


class Receive(Operation):
    """recv or read of a stream, into a provided buffer."""

    __slots__ = ("size",)

    size: int

    def prepare(self) -> int:
        direction = self.direction
        group = self.group()
        fd = direction.fileno()
        return int(direction.prep_receive(fd, group, self.size, direction.poll_first))

    def group(self) -> int:
        """Of buffers: as large as the stream's messages, no larger than what was asked for."""
        return self.direction.group if self.size > SMALLEST_BUFFER else 0

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        direction = self.direction
        direction.poll_first = flags & HAD_TO_WAIT == RECORD_WAITED
        direction.fit_buffers(res)
        return direction.manager.pool[offset : offset + res] if res else b""


class Send(Operation):
    """send or write of pinned memory."""

    __slots__ = ("flags", "pinned")

    pinned: Any
    flags: int

    @property
    def on_user_memory(self) -> bool:
        return type(self.pinned) is not bytes

    def prepare(self) -> int:
        direction = self.direction
        pinned = self.pinned
        size = min(len(pinned), TRANSFER_MAX)
        return int(direction.prep_send(direction.fileno(), pinned, size, self.flags))

    def release(self) -> None:
        pinned, self.pinned = self.pinned, b""
        if type(pinned) is not bytes:
            unpin(pinned)


def deliver(manager: UringIOManager, records: Iterator[tuple[int, int, int, int]]) -> None:
    """Complete the operations of a batch.

    For a stream's send or receive that went well, and that nobody stands behind or has
    cancelled, this says once more, flat, what `Operation.complete` does: a third of a
    microsecond less for each, and the operation object is used again.
    """
    ops = manager.ops
    wake = manager.wake
    pool = manager.pool
    for slot, res, flags, offset in records:
        operation = ops[slot]
        kind = type(operation)
        if (kind is not Receive or res <= 0) and (kind is not Send or res < 0):
            operation.complete(res, flags, offset)
            continue
        direction = operation.direction
        task = operation.task
        if task is None or direction.waiting or operation.raise_cancel is not None:
            operation.complete(res, flags, offset)
            continue
        ops[slot] = None
        operation.slot = -1
        operation.task = None
        direction.current = None
        direction.spare = operation
        if kind is Receive:
            direction.poll_first = flags & HAD_TO_WAIT == RECORD_WAITED
            if direction.group or res >= SMALLEST_BUFFER:
                direction.fit_buffers(res)
            wake(task, pool[offset : offset + res])
        else:
            if type(operation.pinned) is not bytes:
                unpin(operation.pinned)
            operation.pinned = b""
            wake(task, res)
