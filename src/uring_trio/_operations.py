"""Operations of tasks: who sleeps on what, in which order, and who is woken with what.

How it works
============

A *direction* is one half of an open file: receiving (recv, accept, read) or sending (send,
connect, write). The kernel runs two receives of one socket newest first, so operations of
one direction go first in, first out, and only one is in the kernel at a time; the others
stand in `Direction.waiting`.

trio's rule for two tasks in one direction is that the second gets `BusyResourceError` as
soon as *both would block*; on stock ten tasks may ``sendto`` on one socket when there is
room. So those behind wait until the first was submitted and did not complete in that enter.
One whose cancel is pending makes nobody busy: the next is held back until its last cqe.

An operation ends once, with its last cqe. Until then its slot and its memory are taken:

- A *cancel* of trio's before submission drops it: ``Abort.SUCCEEDED``, no cqe will come.
- After submission a cancel is a request: ``Abort.FAILED``, and the operation's own cqe
  decides. ``-ECANCELED`` and we asked: the cancel. Anything else was done, and is delivered:
  no byte and no connection is lost because somebody changed his mind.
- *Closing* wakes the task at once and leaves the operation an orphan, which disposes of
  what it may still bring (an accepted connection is closed). Only an operation on the
  user's own memory keeps its task asleep, because the kernel may still write there.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

import trio
from outcome import Error

from uring_trio._kernel import (
    CQE_F_MORE,
    CQE_F_SOCK_NONEMPTY,
    ECANCELED,
    EINTR,
    ENOBUFS,
    GROUP_SIZES,
    TRANSFER_MAX,
    unpin,
)
from uring_trio._trio_private import WaitTaskRescheduled, run_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._io_manager import UringIOManager

Abort = trio.lowlevel.Abort

SMALLEST_BUFFER = GROUP_SIZES[0]
LAST_GROUP = len(GROUP_SIZES) - 1
# Receives in a row that a smaller buffer would have held, until the stream goes back to it.
SMALL_IN_A_ROW = 16

# poll(2)
POLLIN, POLLOUT, POLLERR, POLLHUP = 0x1, 0x4, 0x8, 0x10

BUSY = "another task is already reading / writing this fd"
CLOSED = "another task closed this fd"


def os_error(result: int) -> OSError:
    """The exception for a cqe's negative result."""
    return OSError(-result, os.strerror(-result))


class Poll:
    """`wait_readable` or `wait_writable` of one task."""

    __slots__ = ("events", "fd", "key", "manager", "slot", "task")

    def __init__(self, manager: UringIOManager, fd: int, key: int, events: int, task: Any) -> None:
        self.manager = manager
        self.fd = fd
        self.key = key
        self.events = events
        self.task = task
        self.slot = manager.start(self, manager.ring.poll(fd, events, 0))

    @property
    def reading(self) -> bool:
        """Whether it counts as a task that waits to read."""
        return self.events == POLLIN

    def abort(self, _raise_cancel: Any) -> Any:
        """trio's abort function. The kernel's poll is orphaned, as epoll's would be."""
        manager = self.manager
        if not manager.closed:
            manager.pollers.pop(self.key, None)
            self.task = None
            self.drop()
            manager.after_abort()
        return Abort.SUCCEEDED

    def drop(self) -> bool:
        """End the kernel's part; True if it is still in the kernel."""
        if self.slot < 0:
            return False
        if self.manager.ring.cancel(self.slot) != 0:
            return True
        self.manager.ops[self.slot] = None
        self.slot = -1
        return False

    def complete(self, res: int, flags: int, _offset: int) -> None:
        """Take a cqe."""
        manager = self.manager
        if not flags & CQE_F_MORE:
            manager.ops[self.slot] = None
            self.slot = -1
        if self.task is None:
            return  # an orphan; a multishot one was cancelled when it was left
        if res >= 0 and not res & (self.events | POLLERR | POLLHUP):
            # POLL_ADD always reports POLLRDHUP: a peer that has half-closed completes a
            # wait for POLLOUT at once, while nothing can be written. Asked again one-shot
            # it would spin; a multishot poll reports only what changes.
            if self.slot >= 0:
                return
            res = manager.ring.poll(self.fd, self.events, 1)
            if res >= 0:
                self.slot = manager.start(self, res)
                return
        del manager.pollers[self.key]
        task, self.task = self.task, None
        self.drop()
        if res >= 0:
            manager.wake(task, None)
        elif res == ECANCELED:
            manager.wake(task, Error(trio.ClosedResourceError(CLOSED)))
        else:
            manager.wake(task, Error(os_error(res)))


class Operation:
    """An operation of one direction, from a task's call to its last cqe."""

    __slots__ = ("closing", "direction", "raise_cancel", "slot", "task", "tick", "trap")

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.task: Any = run_context.task
        self.slot = -1
        self.tick = -1
        self.raise_cancel: Callable[[], Any] | None = None
        self.closing: Exception | None = None
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
        """What the task gets; an int below 0 is an error."""
        return res

    def dispose(self, res: int) -> None:
        """Nobody waits any more: get rid of what a successful operation has brought."""

    def release(self) -> None:
        """Let go of memory; the kernel has."""

    def retire(self) -> None:
        """It will not be used again: let go of memory, and of the cycle through the trap."""
        self.release()
        self.trap = None

    def is_waited_for(self) -> bool:
        """Whether a task sleeps on it, and nobody has asked for its end."""
        return self.task is not None and self.raise_cancel is None and self.closing is None

    def abort(self, raise_cancel: Callable[[], Any]) -> Any:
        """trio's abort function."""
        direction = self.direction
        manager = direction.manager
        if manager.closed:
            return Abort.SUCCEEDED
        if self.slot < 0:
            direction.waiting.remove(self)  # type: ignore[union-attr]
            self.task = None
            self.retire()
            return Abort.SUCCEEDED
        if manager.ring.cancel(self.slot) == 0:
            self.task = None
            manager.ops[self.slot] = None
            self.slot = -1
            self.retire()
            direction.current = None
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
        elif res in (ENOBUFS, EINTR) and self.raise_cancel is None and self.closing is None:
            # ENOBUFS: more receives completed than there are buffers. Nothing was read;
            # buffers come home with this batch, before the next enter.
            self.task = task
            try:
                direction.start(self)
            except (OSError, RuntimeError) as exc:
                self.task, value = None, Error(exc)
            else:
                return
        elif res in (ENOBUFS, EINTR, ECANCELED) and self.closing is not None:
            value = Error(self.closing)
        elif res in (ENOBUFS, EINTR):
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

    def unwrap(self, value: Any) -> Any:
        """In the task: what `park` gave, or the exception that it means."""
        if type(value) is Error:
            return value.unwrap()
        if type(value) is int and value < 0:
            if value == ECANCELED:
                raise_cancel, self.raise_cancel = self.raise_cancel, None
                if raise_cancel is None:
                    raise trio.ClosedResourceError("another task closed this resource")
                raise_cancel()
            raise os_error(value)
        return value


class Receive(Operation):
    """recv or read of a stream, into a provided buffer."""

    __slots__ = ("size",)

    size: int

    def prepare(self) -> int:
        direction = self.direction
        group = direction.group
        if self.size <= SMALLEST_BUFFER:
            group = 0
        fd = direction.fileno()
        return int(direction.prep_receive(fd, group, self.size, direction.poll_first))

    def complete(self, res: int, flags: int, offset: int) -> None:
        direction = self.direction
        task = self.task
        if res <= 0 or task is None or direction.waiting or self.raise_cancel is not None:
            super().complete(res, flags, offset)
            return
        # The common case, at full speed; finish() and complete() say the same.
        manager = direction.manager
        manager.ops[self.slot] = None
        self.slot = -1
        self.task = None
        direction.current = None
        direction.spare = self
        direction.poll_first = self.tick != manager.last_tick and not flags & CQE_F_SOCK_NONEMPTY
        if direction.group or res >= SMALLEST_BUFFER:
            direction.fit_buffers(res)
        manager.wake(task, manager.pool[offset : offset + res])

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        direction = self.direction
        direction.poll_first = not flags & CQE_F_SOCK_NONEMPTY
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

    def complete(self, res: int, flags: int, offset: int) -> None:
        direction = self.direction
        task = self.task
        if res < 0 or task is None or direction.waiting or self.raise_cancel is not None:
            super().complete(res, flags, offset)
            return
        manager = direction.manager
        manager.ops[self.slot] = None
        self.slot = -1
        self.task = None
        pinned, self.pinned = self.pinned, b""
        if type(pinned) is not bytes:
            unpin(pinned)
        direction.current = None
        direction.spare = self
        manager.wake(task, res)

    def release(self) -> None:
        pinned, self.pinned = self.pinned, b""
        if type(pinned) is not bytes:
            unpin(pinned)


class Direction:
    """One half of an open file; see the top of this module."""

    __slots__ = (
        "current",
        "fileno",
        "group",
        "manager",
        "poll_first",
        "prep_receive",
        "prep_send",
        "reading",
        "ring",
        "small_in_a_row",
        "spare",
        "waiting",
    )

    def __init__(
        self,
        manager: UringIOManager,
        fileno: Callable[[], int],
        *,
        reading: bool,
        is_socket: bool,
    ) -> None:
        self.manager = manager
        self.ring = manager.ring
        self.fileno = fileno
        self.reading = reading
        # Of a stream. The functions have the same form for sockets and for other files.
        self.prep_receive = manager.ring.recv if is_socket else manager.ring.read
        self.prep_send = manager.ring.send if is_socket else manager.ring.write
        self.current: Operation | None = None
        self.spare: Any = None  # a finished Receive or Send, to be used again
        self.waiting: deque[Operation] | tuple[()] = ()
        self.group = 0
        self.small_in_a_row = 0
        self.poll_first = True

    def receive(self, size: int, task: Any) -> Receive:
        """Begin to receive at most *size* bytes, 1 or more, of a stream."""
        operation: Receive = self.spare
        if operation is None or self.current is not None:
            operation = Receive(self)
            operation.size = size
            self.submit(operation)
            return operation
        # The common case, at full speed; start() and prepare() say the same.
        manager = self.manager
        group = self.group if size > SMALLEST_BUFFER else 0
        slot = self.prep_receive(self.fileno(), group, size, self.poll_first)
        if slot < 0:
            raise manager.ring.error(slot)
        self.spare = None
        self.current = operation
        operation.task = task
        operation.size = size
        operation.slot = slot
        operation.tick = manager.tick
        try:
            manager.ops[slot] = operation
        except IndexError:
            manager.start(operation, slot)
        return operation

    def send(self, pinned: Any, flags: int, task: Any) -> Send:
        """Begin to send pinned memory, which is unpinned with the last cqe."""
        operation: Send = self.spare
        if operation is None or self.current is not None:
            operation = Send(self)
            operation.pinned = pinned
            operation.flags = flags
            self.submit(operation)
            return operation
        manager = self.manager
        size = len(pinned)
        size = min(size, TRANSFER_MAX)
        slot = self.prep_send(self.fileno(), pinned, size, flags)
        if slot < 0:
            unpin(pinned)
            raise manager.ring.error(slot)
        self.spare = None
        self.current = operation
        operation.task = task
        operation.pinned = pinned
        operation.flags = flags
        operation.slot = slot
        operation.tick = manager.tick
        try:
            manager.ops[slot] = operation
        except IndexError:
            manager.start(operation, slot)
        return operation

    def submit(self, operation: Operation) -> Operation:
        """Begin any other operation."""
        if self.current is None:
            self.start(operation)
        else:
            self.queue(operation)
        return operation

    def start(self, operation: Operation) -> None:
        """Prepare it: nothing is ahead."""
        slot = operation.prepare()
        manager = self.manager
        if slot < 0:
            operation.retire()
            self.current = None
            raise manager.ring.error(slot)
        self.current = operation
        operation.slot = slot
        operation.tick = manager.tick
        try:
            manager.ops[slot] = operation
        except IndexError:
            manager.start(operation, slot)
        if self.waiting:
            manager.contended.append((self, operation))

    def queue(self, operation: Operation) -> None:
        """Stand behind the current operation, or find it busy."""
        current = self.current
        manager = self.manager
        assert current is not None
        if current.tick != manager.tick and current.is_waited_for():
            operation.task = None
            operation.retire()
            raise trio.BusyResourceError(BUSY)
        if not self.waiting:
            self.waiting = deque()
        self.waiting.append(operation)
        manager.contended.append((self, current))

    def advance(self) -> None:
        """The current operation is over: start the next."""
        while self.waiting and self.current is None:
            operation = self.waiting.popleft()
            try:
                self.start(operation)
            except (OSError, RuntimeError) as exc:
                task, operation.task = operation.task, None
                self.manager.wake(task, Error(exc))

    def find_busy(self, operation: Operation) -> None:
        """After the enter that submitted *operation*: if it waits, those behind are busy."""
        if (
            self.current is operation
            and operation.tick != self.manager.tick
            and operation.is_waited_for()
        ):
            waiting, self.waiting = self.waiting, ()
            for other in waiting:
                task, other.task = other.task, None
                other.retire()
                self.manager.wake(task, Error(trio.BusyResourceError(BUSY)))

    def end(self, exception: Exception, wake: list[tuple[Any, Exception]], detach: bool) -> bool:
        """End every operation here, because the file is closed or leaves our hands.

        Args:
          exception: what the tasks get.
          wake: tasks to be woken with it are appended.
          detach: the file lives on: what was received before this is delivered.

        Returns:
          Whether the kernel must be entered, for it to let go of the file.
        """
        waiting, self.waiting = self.waiting, ()
        for operation in waiting:
            wake.append((operation.task, exception))
            operation.task = None
            operation.retire()
        current = self.current
        if current is None:
            return False
        if self.ring.cancel(current.slot) == 0:
            self.manager.ops[current.slot] = None
            current.slot = -1
            current.retire()
            self.current = None
        elif detach or current.on_user_memory:
            current.closing = exception
            return True
        if current.task is not None:
            wake.append((current.task, exception))
            current.task = None
        return self.current is not None

    def fit_buffers(self, received: int) -> None:
        """Choose the buffers of the next receive by the size of this one."""
        if received >= GROUP_SIZES[self.group]:
            self.small_in_a_row = 0
            if self.group < LAST_GROUP:
                self.group += 1
        elif self.group and received <= GROUP_SIZES[self.group - 1]:
            self.small_in_a_row += 1
            if self.small_in_a_row >= SMALL_IN_A_ROW:
                self.small_in_a_row = 0
                self.group -= 1
        else:
            self.small_in_a_row = 0


class Endpoint:
    """An open file in one run: its two directions."""

    __slots__ = ("__weakref__", "fd", "manager", "owner", "receiver", "sender")

    def __init__(
        self, manager: UringIOManager, owner: Any, fileno: Callable[[], int], *, is_socket: bool
    ) -> None:
        self.manager = manager
        self.owner = owner
        self.fd = fileno()
        self.receiver = Direction(manager, fileno, reading=True, is_socket=is_socket)
        self.sender = Direction(manager, fileno, reading=False, is_socket=is_socket)

    def __del__(self) -> None:
        # A spare operation and its direction hold each other, and with them the file. A
        # socket that nobody closed is closed when it is dropped, as on stock, not at some
        # later collection.
        for direction in (self.receiver, self.sender):
            spare, direction.spare = direction.spare, None
            if spare is not None:
                spare.trap = None
