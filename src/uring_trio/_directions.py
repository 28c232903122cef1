"""Directions: who may have an operation in the kernel, and who stands behind it.

A *direction* is one half of an open file: receiving (recv, accept, read) or sending (send,
connect, write). The kernel runs two receives of one socket newest first, so operations of
one direction go first in, first out, and only one is in the kernel at a time; the others
stand in `Direction.waiting`.

trio's rule for two tasks in one direction is that the second gets `BusyResourceError` as
soon as *both would block*; on stock ten tasks may ``sendto`` on one socket when there is
room. So those behind wait until the first was submitted and did not complete in that enter.
One whose cancel is pending makes nobody busy: the next is held back until its last cqe.

Receives of a stream take a buffer of the size that its messages have had. The first is tried
at once, and so is each that follows one which found its data already there (98 % at 64 busy
connections); else the kernel is told to wait for data first, and spared an attempt in vain.

Never so where SO_RCVLOWAT is set: then a poll waits for so many bytes, while an attempt, and
so stock's receive, gives what is there at the call. A socket is asked for its mark at its
first receive, and again after each setsockopt of the option through a trio socket or stream
of this process. A mark that is set past trio after that look (on the standard library's
socket, or by another process) is not seen until the next one: asking each time would be a
system call for each receive.
"""

from __future__ import annotations

import copy
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from outcome import Error

from uring_trio._kernel import BUFFER_GROUPS, GROUP_SIZES
from uring_trio._operations import BUSY, Operation, Receive, Send
from uring_trio._trio_private import run_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._io_manager import UringIOManager

LAST_GROUP = len(GROUP_SIZES) - 1
# Receives in a row that a smaller buffer would have held, until the stream goes back to it.
# Not tuned: so many that the short ends of large messages do not bring it down.
SMALL_IN_A_ROW = 16


def _try_at_once(plain: Callable[..., int], fd: int, group: int, size: int, _: int) -> int:
    return plain(fd, group, size, 0)


def _raise(exception: Exception) -> NoReturn:
    raise copy.copy(exception)  # no cycle through its traceback, and this frame


class Direction:
    """One half of an open file; see the top of this module."""

    __slots__ = (
        "current",
        "fileno",
        "getsockopt",
        "group",
        "has_low_water",
        "manager",
        "plain_receive",
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
        self.plain_receive: Any = manager.ring.recv if is_socket else manager.ring.read
        self.prep_receive: Any = self.plain_receive
        # Of a socket that is read, an FdStream's too: its getsockopt, to ask it for its mark.
        self.getsockopt: Callable[[int, int], int] | None = None
        self.has_low_water: bool | None = False  # None: it was not asked yet
        self.prep_send = manager.ring.send if is_socket else manager.ring.write
        self.current: Operation | None = None
        self.spare: Any = None  # a finished Receive or Send, to be used again
        self.waiting: deque[Operation] | tuple[()] = ()
        self.group = 0
        self.small_in_a_row = 0
        # The first is tried at once: a new connection often has its request there already,
        # and a poll of a listening socket would never see that nobody can send.
        self.poll_first = False

    def look_for_low_water(self) -> None:
        """Ask the socket for its SO_RCVLOWAT before the next receive."""
        if self.getsockopt is not None:
            self.has_low_water = None
            self.prep_receive = self._look_and_prepare  # a cycle; see `Endpoint.__del__`

    def _look_and_prepare(self, fd: int, group: int, size: int, poll_first: int) -> int:
        plain = self.plain_receive
        self.prep_receive = partial(_try_at_once, plain) if self._sees_low_water() else plain
        return int(self.prep_receive(fd, group, size, poll_first))

    def _sees_low_water(self) -> bool:
        if self.has_low_water is None:
            assert self.getsockopt is not None
            try:
                mark = self.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
            except OSError:
                return False  # closed: the receive will say so
            self.has_low_water = mark > 1
        return self.has_low_water

    def polls_first(self) -> bool:
        """Whether the next receive had better wait for data before it is tried."""
        return self.poll_first and not self._sees_low_water()

    def receive(self, size: int) -> Receive:
        """Begin to receive at most *size* bytes, 1 or more, of a stream."""
        operation: Receive = self.spare
        if operation is None:
            operation = Receive(self)
        else:
            self.spare = None
            operation.task = run_context.task
        operation.size = size
        self.submit(operation)
        return operation

    def send(self, pinned: Any, flags: int) -> Send:
        """Begin to send pinned memory, which is unpinned with the last cqe."""
        operation: Send = self.spare
        if operation is None:
            operation = Send(self)
        else:
            self.spare = None
            operation.task = run_context.task
        operation.pinned = pinned
        operation.flags = flags
        self.submit(operation)
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
            tasks = [other.task for other in waiting]
            for other in waiting:
                other.task = None
                other.retire()
            for task in tasks:  # only now: a wake may call abort functions
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
        task = current.task
        if not current.drop():
            if detach or current.on_user_memory:
                if current.raise_cancel is None:
                    current.raise_cancel = partial(_raise, exception)
                return True
            current.task = None
        if task is not None:
            wake.append((task, exception))
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


def start_held(manager: UringIOManager) -> None:
    """Arm again as many held operations as there are buffers for, oldest first."""
    free = [entries for entries, _ in BUFFER_GROUPS]
    held = manager.held
    for _ in range(len(held)):
        if not held:
            return  # an instrument of a woken task has cancelled the rest
        operation = held.popleft()
        group = operation.group()
        if group >= 0 and not free[group]:
            held.append(operation)
            continue
        if group >= 0:
            free[group] -= 1
        direction = operation.direction
        try:
            direction.start(operation)
        except (OSError, RuntimeError) as exc:
            direction.advance()
            task, operation.task = operation.task, None
            manager.wake(task, Error(exc))


class Endpoint:
    """An open file in one run: its two directions."""

    __slots__ = ("__weakref__", "can_be_tried", "fd", "manager", "owner", "receiver", "sender")

    def __init__(
        self, manager: UringIOManager, owner: Any, fileno: Callable[[], int], *, is_socket: bool
    ) -> None:
        self.manager = manager
        self.owner = owner
        self.fd = fileno()
        # By a call of the standard library's or on the ring: see `_streams`, `Accept`.
        self.can_be_tried = True
        self.receiver = Direction(manager, fileno, reading=True, is_socket=is_socket)
        self.sender = Direction(manager, fileno, reading=False, is_socket=is_socket)
        if is_socket:
            self.ask_for_low_water(owner.getsockopt)

    def ask_for_low_water(self, getsockopt: Callable[[int, int], int]) -> None:
        """It is a socket, whose options *getsockopt* tells."""
        self.receiver.getsockopt = getsockopt
        self.receiver.look_for_low_water()

    def is_in_use(self) -> bool:
        """Whether its file is open, as far as its owner knows, or has operations."""
        if self.receiver.fileno() == self.fd:
            return True
        return self.receiver.current is not None or self.sender.current is not None

    def is_busy(self) -> bool:
        """Whether it has operations."""
        receiver, sender = self.receiver, self.sender
        return (
            receiver.current is not None
            or sender.current is not None
            or bool(receiver.waiting or sender.waiting)
        )

    def __del__(self) -> None:
        # A spare operation and its direction hold each other, and with them the file. A
        # socket that nobody closed is closed when it is dropped, as on stock, not at some
        # later collection.
        for direction in (self.receiver, self.sender):
            spare, direction.spare = direction.spare, None
            if spare is not None:
                spare.trap = None
            direction.prep_receive = None  # so may this
