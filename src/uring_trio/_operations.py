"""Operations of tasks: each ends once, with its last cqe.

Until then its slot and its memory are taken, whatever becomes of the task:

- A *cancel* of trio's before submission drops it: ``Abort.SUCCEEDED``, no cqe will come.
- After submission a cancel is a request: ``Abort.FAILED``, and the operation's own cqe
  decides. ``-ECANCELED`` and we asked: the cancel. Anything else was done, and is delivered:
  no byte and no connection is lost because somebody changed his mind.
- *Closing* wakes the task at once and leaves the operation an orphan, which disposes of
  what it may still bring (an accepted connection is closed). Only an operation on the
  user's own memory keeps its task asleep, because the kernel may still write there.
- ``-ENOBUFS`` of a receive into a provided buffer is back-pressure. The engine has it tried
  when there is a buffer (csrc/engine.c), but others take some, too. Nothing was read; the
  operation is *held*: without a slot, but still the current one of its line, and armed again
  as buffers come home.

A stream's plain send and receive, and a socket's recv_into, are completed in a fast way beside
the plain one: `deliver`, at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import trio
from outcome import Error

from uring_trio import _hot_parts
from uring_trio._hot_parts import OperationFields, ReceiveFields, SendFields
from uring_trio._kernel import (
    CQE_F_MORE,
    CQE_F_SOCK_NONEMPTY,
    ECANCELED,
    EINTR,
    ENOBUFS,
    GROUP_SIZES,
    RECORD_WAITED,
    TRANSFER_MAX,
    os_error,
)
from uring_trio._memory import unpin, unpin_memory
from uring_trio._trio_private import WaitTaskRescheduled, run_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uring_trio._lines import Line, Receiver, Sender
    from uring_trio._slots import Record, Slots

Abort = trio.lowlevel.Abort

SMALLEST_BUFFER = GROUP_SIZES[0]

# Of a record: nothing was there when it was asked for, and nothing was left afterwards.
HAD_TO_WAIT = RECORD_WAITED | CQE_F_SOCK_NONEMPTY

BUSY = "another task is already reading / writing this fd"
CLOSED = "another task closed this fd"


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


class Operation(OperationFields):
    """An operation of one line, from a task's call to its last cqe."""

    __slots__ = ()

    line: Line
    task: Any
    slot: int
    tick: int
    raise_cancel: Callable[[], Any] | None
    trap: Any

    def __init__(self, line: Line) -> None:
        self.line = line
        self.task = run_context.task
        self.slot = -1
        self.tick = -1
        # Raises what its end was asked for with: a cancel, or a closing.
        self.raise_cancel = None
        self.trap = WaitTaskRescheduled(self.abort)

    # ---- what kinds of it differ in ------------------------------------------------------

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

    def group(self) -> int:
        """Which buffers it takes one of; -1 for none."""
        return -1

    # ---- its beginning -------------------------------------------------------------------

    def use_again(self) -> None:
        """It has ended well, and begins anew for the task that is running."""
        self.task = run_context.task

    def start(self) -> None:
        """Have the kernel do it, as soon as the next enter.

        Raises:
          OSError, RuntimeError: it cannot be had; the operation is retired.
        """
        slot = self.prepare()
        slots = self.line.slots
        if slot < 0:
            self.retire()
            raise slots.ring.error(slot)
        self.slot = slots.enter(self, slot)
        self.tick = slots.tick

    def go_on(self) -> None:
        """Its request is over, and another one follows: prepare that."""
        slot = self.prepare()
        if slot < 0:
            Operation.complete(self, -1, slot, 0, 0)
            return
        slots = self.line.slots
        self.slot = slots.enter(self, slot)
        self.tick = slots.tick

    # ---- its end -------------------------------------------------------------------------

    @property
    def reading(self) -> bool:
        """Whether its task counts as one that waits to read."""
        return self.line.reading

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take the last cqe; there is only one."""
        line = self.line
        self.slot = -1
        task = self.take_task()
        value: Any
        if task is None:
            self.dispose(res)
        elif res == EINTR or (res == ENOBUFS and self.group() >= 0):
            # Nothing was done. (ENOBUFS without a provided buffer is an error like any
            # other: a sendmsg with more control data than the kernel takes.)
            if self.raise_cancel is None:
                self.task = task
                line.hold_current()
                return
            value = ECANCELED
        else:
            try:
                value = self.finish(res, flags, offset)
            except (OSError, MemoryError) as exc:
                value = Error(exc)
        self.retire()
        line.end_current()
        if task is not None:
            line.slots.wake(task, value)

    def retire(self) -> None:
        """It will not be used again: let go of memory, and of the cycle through the trap."""
        self.release()
        self.trap = None

    def take_task(self) -> Any:
        """The task, which is the caller's to wake from now on; None if it has none."""
        task, self.task = self.task, None
        return task

    def lose(self) -> None:
        """The run is over: nobody is told of anything any more, nor of those behind it."""
        self.task = None
        self.line.lose()

    # ---- cut off -------------------------------------------------------------------------

    def is_waited_for(self) -> bool:
        """Whether a task sleeps on it, and nobody has asked for its end."""
        return self.task is not None and self.raise_cancel is None

    def drop(self) -> bool:
        """End it where the kernel has no part in it; False if the kernel has."""
        if not self.line.remove(self):
            return False
        self.slot = -1
        self.task = None
        self.retire()
        return True

    def ask_for_end(self, raise_cancel: Callable[[], Any]) -> None:
        """Its last cqe decides; if it was cut off its task raises what this raises."""
        if self.raise_cancel is None:
            self.raise_cancel = raise_cancel

    def abort(self, raise_cancel: Callable[[], Any]) -> Any:
        """trio's abort function."""
        line = self.line
        slots = line.slots
        if slots.closed:
            return Abort.SUCCEEDED
        if self.task is None:
            # An instrument cancels while a closing is about to wake this task, too.
            return Abort.FAILED
        if self.drop():
            line.advance()
            return Abort.SUCCEEDED
        self.raise_cancel = raise_cancel
        slots.submit_for_helper()
        return Abort.FAILED

    # ---- in the task ---------------------------------------------------------------------

    def unwrap(self, value: Any) -> Any:
        """What `park` gave, or the exception that it means."""
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

    def raise_if_cut_off(self) -> None:
        """After a short count: raise what its end was asked for with, if it was.

        An operation that ended well may be in use again by now; one that did not is retired.
        """
        if self.trap is None and self.raise_cancel is not None:
            self.raise_cancel()


class Receive(Operation, ReceiveFields):
    """recv or read of a stream, into a provided buffer."""

    __slots__ = ()

    line: Receiver
    size: int

    def __init__(self, line: Receiver, size: int) -> None:
        super().__init__(line)
        self.size = size

    def receive_again(self, size: int) -> None:
        """Begin anew, for another size."""
        self.use_again()
        self.size = size

    def prepare(self) -> int:
        line = self.line
        return int(line.prep_receive(line.fileno(), self.group(), self.size, line.poll_first))

    def group(self) -> int:
        """Of buffers: as large as the stream's messages, no larger than what was asked for."""
        return self.line.group if self.size > SMALLEST_BUFFER else 0

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        line = self.line
        line.note_wait(flags)
        line.fit_buffers(res)
        return line.slots.pool[offset : offset + res] if res else b""


class ReceiveInto(Operation):
    """recv_into of a socket: the count of bytes."""

    __slots__ = ("flags", "pinned", "size")

    line: Receiver

    def __init__(self, line: Receiver, pinned: Any, size: int, flags: int) -> None:
        super().__init__(line)
        self.pinned = pinned
        self.size = size
        self.flags = flags

    @property
    def on_user_memory(self) -> bool:
        return True

    def prepare(self) -> int:
        line = self.line
        poll_first = line.poll_first and line.polls_first()
        receive = line.slots.ring.recv_into
        return int(receive(line.fileno(), self.pinned, self.size, self.flags, poll_first))

    def release(self) -> None:
        unpin(self.pinned)


class Send(Operation, SendFields):
    """send or write of pinned memory."""

    __slots__ = ()

    line: Sender
    flags: int
    pinned: Any

    def __init__(self, line: Sender, pinned: Any, flags: int) -> None:
        super().__init__(line)
        self.pinned = pinned
        self.flags = flags

    def send_again(self, pinned: Any, flags: int) -> None:
        """Begin anew, with other memory."""
        self.use_again()
        self.pinned = pinned
        self.flags = flags

    @property
    def on_user_memory(self) -> bool:
        return type(self.pinned) is not bytes

    def prepare(self) -> int:
        line = self.line
        pinned = self.pinned
        size = min(len(pinned), TRANSFER_MAX)
        return int(line.prep_send(line.fileno(), pinned, size, self.flags))

    def release(self) -> None:
        pinned, self.pinned = self.pinned, b""
        if type(pinned) is not bytes:
            unpin(pinned)


def deliver(slots: Slots, records: Iterable[Record]) -> None:
    """Tell the occupants of a batch: the fast way of `Slots.deliver`.

    For one that went well, and that nobody stands behind or has cancelled, this says once more,
    flat, what `Operation.complete` does: a third of a microsecond less for each, and a stream's
    operation object is used again.
    """
    table = slots.table
    wake = slots.wake
    pool = slots.pool
    for slot, res, flags, offset in records:
        operation: Any = table[slot]
        kind = type(operation)
        if (
            (kind is not Receive or res <= 0)
            and (kind is not Send or res < 0)
            and (kind is not ReceiveInto or res < 0)
        ):
            if not flags & CQE_F_MORE:
                table[slot] = None
            operation.complete(slot, res, flags, offset)
            continue
        table[slot] = None
        line = operation.line
        task = operation.task
        if task is None or line.waiting or operation.raise_cancel is not None:
            operation.complete(slot, res, flags, offset)
            continue
        # In each branch by itself: a line that stores to objects of one class is cheaper.
        if kind is Receive:
            operation.slot = -1
            operation.task = None
            line.current = None
            line.spare = operation
            line.poll_first = flags & HAD_TO_WAIT == RECORD_WAITED
            if line.group or res >= SMALLEST_BUFFER:
                line.fit_buffers(res)
            wake(task, pool[offset : offset + res])
        elif kind is Send:
            operation.slot = -1
            operation.task = None
            line.current = None
            line.spare = operation
            if type(operation.pinned) is not bytes:
                unpin(operation.pinned)
            operation.pinned = b""
            wake(task, res)
        else:
            operation.slot = -1
            operation.task = None
            line.current = None
            operation.trap = None
            unpin_memory(operation.pinned)
            wake(task, res)


if _hot_parts.hot is not None:
    _hot_parts.hot.know(
        Receive=Receive,
        ReceiveInto=ReceiveInto,
        Send=Send,
        smallest_buffer=SMALLEST_BUFFER,
        unpin=unpin,
        unpin_memory=unpin_memory,
    )
