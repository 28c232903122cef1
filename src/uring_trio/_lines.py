"""Lines: who may have an operation in the kernel, and who stands behind it.

An open file has two, a receiver's (recv, accept, read) and a sender's (send, connect,
write). The kernel runs two receives of one socket newest first, so operations of one line go
first in, first out, and only one is in the kernel at a time; the others stand in
`Line.waiting`.

trio's rule for two tasks in one line is that the second gets `BusyResourceError` as soon as
*both would block*; on stock ten tasks may ``sendto`` on one socket when there is room. So
those behind wait until the first was submitted and did not complete in that enter. One whose
cancel is pending makes nobody busy: the next is held back until its last cqe.

Receives of a stream take a buffer of the size that its messages have had. The first is tried
at once, and so is each that follows one which found its data already there (98 % at 64 busy
connections); else the kernel is told to wait for data first, and spared an attempt in vain.

Never so where SO_RCVLOWAT is set: then a poll waits for so many bytes, while an attempt, and
so stock's receive, gives what is there at the call. A socket is asked for its mark at its
first receive, and again after each setsockopt of the option through a trio socket or stream
of this process. One that was accepted here is not asked if its listener has none, from which it
would have it, and no mark was ever set in this process. A mark that is set past trio after that
look, or after such an accept (on the standard library's socket, or by another process), is not
seen until the next one: asking each time would be a system call for each receive.
"""

from __future__ import annotations

import copy
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from outcome import Error

from uring_trio import _hot_parts
from uring_trio._beside import getsockopt
from uring_trio._hot_parts import LineFields, ReceiverFields, SenderFields
from uring_trio._kernel import BUFFER_GROUPS, GROUP_SIZES, RECORD_WAITED
from uring_trio._operations import BUSY, HAD_TO_WAIT, Operation, Receive, Send

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._slots import Slots

LAST_GROUP = len(GROUP_SIZES) - 1
# Receives in a row that a smaller buffer would have held, until the stream goes back to it.
# Not tuned: so many that the short ends of large messages do not bring it down.
SMALL_IN_A_ROW = 16


def _try_at_once(plain: Callable[..., int], fd: int, group: int, size: int, _: int) -> int:
    return plain(fd, group, size, 0)


def _raise(exception: Exception) -> NoReturn:
    raise copy.copy(exception)  # no cycle through its traceback, and this frame


class Marks:
    """What is known of the SO_RCVLOWAT that sockets of this process have had."""

    were_set = False

    def note(self) -> None:
        """One was set, or taken away, through a trio socket or stream."""
        self.were_set = True


marks = Marks()


class Backlog:
    """Operations of one run that wait for something which no record tells of.

    Attributes:
      contended: lines in which somebody stands behind an operation that the kernel was not seen
        to have.
      starved: the kernel had no memory for these operations, or for others.
      held: without a slot, until a buffer comes home.
      full_listeners: of UNIX sockets, with the connects that they have refused, by name; see
        `_socket_operations.FullListener`.
    """

    def __init__(self) -> None:
        self.contended: list[tuple[Line, Operation]] = []
        self.starved = False
        self.held: deque[Operation] = deque()
        self.full_listeners: dict[Any, Any] = {}

    def take_contended(self, *, starved: bool) -> list[tuple[Line, Operation]]:
        """Those of the tick that has ended, to be found busy or not: none that is starved.

        Called before anybody is told of the batch: who is goes on, and what he asks for then
        is not with the kernel either.
        """
        self.starved = starved
        if starved:
            return []
        contended, self.contended = self.contended, []
        return contended

    def start_held(self) -> None:
        """Arm again as many held operations as there are buffers for, oldest first."""
        free = [entries for entries, _ in BUFFER_GROUPS]
        held = self.held
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
            line = operation.line
            try:
                line.start(operation)
            except (OSError, RuntimeError) as exc:
                line.advance()
                line.slots.wake(operation.take_task(), Error(exc))

    def lose(self) -> None:
        """The run is over."""
        while self.held:
            operation = self.held.popleft()
            operation.lose()
            operation.release()


class Line(LineFields):
    """One half of an open file: what it may have in the kernel; see the top of this module.

    Attributes:
      current: the operation that is in the kernel, or held.
      spare: a finished operation of its stream, to be used again.
      waiting: those behind, in their order.
    """

    __slots__ = ()

    slots: Slots
    backlog: Backlog
    fileno: Callable[[], int]
    current: Operation | None
    spare: Any
    waiting: deque[Operation] | tuple[()]
    reading: bool

    def __init__(self, slots: Slots, backlog: Backlog, fileno: Callable[[], int]) -> None:
        self.slots = slots
        self.backlog = backlog
        self.fileno = fileno
        self.current = None
        self.spare = None
        self.waiting = ()

    # ---- into the line -------------------------------------------------------------------

    def submit(self, operation: Operation) -> Operation:
        """Begin an operation."""
        if self.current is None:
            self.start(operation)
        else:
            self.queue(operation)
        return operation

    def start(self, operation: Operation) -> None:
        """Prepare it: nothing is ahead."""
        try:
            operation.start()
        except (OSError, RuntimeError):
            self.current = None
            raise
        self.current = operation
        if self.waiting:
            self.backlog.contended.append((self, operation))

    def queue(self, operation: Operation) -> None:
        """Stand behind the current operation, or find it busy."""
        current = self.current
        assert current is not None
        submitted = current.tick != self.slots.tick and self.slots.all_submitted()
        if submitted and current.is_waited_for():
            operation.take_task()
            operation.retire()
            raise trio.BusyResourceError(BUSY)
        if not self.waiting:
            self.waiting = deque()
        self.waiting.append(operation)
        self.backlog.contended.append((self, current))

    def take_spare(self) -> Any:
        """An operation to be used again, or None."""
        spare, self.spare = self.spare, None
        return spare

    @trio.lowlevel.enable_ki_protection  # `_hot` calls it from a user's frame
    def make_spare(self) -> None:
        """Have an operation for `_hot`, which has found none."""
        self.spare = self.new_operation()

    def new_operation(self) -> Operation:
        """One of its stream's, that was never used."""
        raise NotImplementedError

    # ---- out of it -----------------------------------------------------------------------

    def advance(self) -> None:
        """The current operation is over: start the next."""
        while self.waiting and self.current is None:
            operation = self.waiting.popleft()
            try:
                self.start(operation)
            except (OSError, RuntimeError) as exc:
                self.slots.wake(operation.take_task(), Error(exc))

    def end_current(self) -> None:
        """Its last cqe has come."""
        self.current = None
        if self.waiting:
            self.advance()

    def hold_current(self) -> None:
        """There was no buffer for it, or it was interrupted: to be started again."""
        assert self.current is not None
        self.backlog.held.append(self.current)

    def remove(self, operation: Operation) -> bool:
        """Take it out, unless the kernel has it, and is asked to end it then."""
        if operation is not self.current:
            self.waiting.remove(operation)  # type: ignore[union-attr]
            return True
        if operation.slot < 0:
            self.backlog.held.remove(operation)
        elif not self.slots.withdraw(operation.slot):
            return False
        self.current = None
        return True

    def find_busy(self, operation: Operation) -> None:
        """After the enter that submitted *operation*: if it waits, those behind are busy."""
        if (
            self.current is operation
            and operation.tick != self.slots.tick
            and operation.is_waited_for()
        ):
            tasks = self._clear_waiting()
            for task in tasks:  # only now: a wake may call abort functions
                self.slots.wake(task, Error(trio.BusyResourceError(BUSY)))

    def _clear_waiting(self) -> list[Any]:
        """End those behind; their tasks, to be woken."""
        waiting, self.waiting = self.waiting, ()
        tasks = [operation.take_task() for operation in waiting]
        for operation in waiting:
            operation.retire()
        return tasks

    def end(self, exception: Exception, wake: list[tuple[Any, Exception]], detach: bool) -> bool:
        """End every operation here, because the file is closed or leaves our hands.

        Args:
          exception: what the tasks get.
          wake: tasks to be woken with it are appended.
          detach: the file lives on: what was received before this is delivered.

        Returns:
          Whether the kernel must be entered, for it to let go of the file.
        """
        wake += [(task, exception) for task in self._clear_waiting()]
        current = self.current
        if current is None:
            return False
        task = current.task
        if not current.drop():
            if detach or current.on_user_memory:
                current.ask_for_end(partial(_raise, exception))
                return True
            current.take_task()
        if task is not None:
            wake.append((task, exception))
        return self.current is not None

    def lose(self) -> None:
        """The run is over: whoever stands here is never told."""
        for operation in self.waiting:
            operation.take_task()
            operation.release()
        self.waiting = ()

    def break_cycles(self) -> None:
        """Its file was dropped; see `Endpoint.__del__`."""
        spare = self.take_spare()
        if spare is not None:
            spare.retire()

    def is_busy(self) -> bool:
        """Whether it has operations."""
        return self.current is not None or bool(self.waiting)


class Receiver(Line, ReceiverFields):
    """The line of those who receive, and what a stream's next receive had better do.

    Attributes:
      plain_receive: prepares a stream's receive; of sockets and other files in one form.
      prep_receive: what is called for one: the same, or what looks for a mark, or heeds it.
      poll_first: wait for data before the first attempt.
      group: of the buffers that its messages fit into.
      small_in_a_row: receives that a smaller buffer would have held.
      may_have_low_water: it is a socket, an FdStream's too.
      has_low_water: whether it has a mark; None: it was not asked yet.
    """

    __slots__ = ("has_low_water", "may_have_low_water")

    plain_receive: Any
    prep_receive: Any
    poll_first: bool
    group: int
    small_in_a_row: int
    reading = True

    def __init__(
        self, slots: Slots, backlog: Backlog, fileno: Callable[[], int], *, is_socket: bool
    ) -> None:
        super().__init__(slots, backlog, fileno)
        self.plain_receive = slots.ring.recv if is_socket else slots.ring.read
        self.prep_receive = self.plain_receive
        # The first is tried at once: a new connection often has its request there already,
        # and a poll of a listening socket would never see that nobody can send.
        self.poll_first = False
        self.group = 0
        self.small_in_a_row = 0
        self.may_have_low_water = False
        self.has_low_water: bool | None = False

    def receive(self, size: int) -> Receive:
        """Begin to receive at most *size* bytes, 1 or more, of a stream."""
        operation: Receive | None = self.take_spare()
        if operation is None:
            operation = Receive(self, size)
        else:
            operation.receive_again(size)
        self.submit(operation)
        return operation

    def new_operation(self) -> Receive:
        return Receive(self, 0)

    def note_wait(self, flags: int) -> None:
        """Whether the next receive waits for data first, by how this one went."""
        self.poll_first = flags & HAD_TO_WAIT == RECORD_WAITED

    def expect_wait(self) -> None:
        """What was tried just now was not there."""
        self.poll_first = True

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

    def polls_first(self) -> bool:
        """Whether the next receive had better wait for data before it is tried."""
        return self.poll_first and not self._sees_low_water()

    # ---- SO_RCVLOWAT ---------------------------------------------------------------------

    def ask_for_low_water(self) -> None:
        """It is a socket."""
        self.may_have_low_water = True
        self.look_for_low_water()

    def look_for_low_water(self) -> None:
        """Ask the socket for its SO_RCVLOWAT before the next receive."""
        if self.may_have_low_water:
            self.has_low_water = None
            self.prep_receive = self._look_and_prepare  # a cycle; see `Endpoint.__del__`

    def inherit_low_water(self, listener: Receiver) -> None:
        """It is of a connection that *listener* has accepted, and has the mark that this had."""
        if not marks.were_set and not listener._sees_low_water():
            self.has_low_water = False
            self.prep_receive = self.plain_receive

    def _look_and_prepare(self, fd: int, group: int, size: int, poll_first: int) -> int:
        plain = self.plain_receive
        self.prep_receive = partial(_try_at_once, plain) if self._sees_low_water() else plain
        return int(self.prep_receive(fd, group, size, poll_first))

    def _sees_low_water(self) -> bool:
        if self.has_low_water is None:
            mark = getsockopt(self.fileno(), socket.SOL_SOCKET, socket.SO_RCVLOWAT)
            if mark < 0:
                return False  # closed: the receive will say so
            self.has_low_water = mark > 1
        return self.has_low_water

    def break_cycles(self) -> None:
        """Its file was dropped; see `Endpoint.__del__`."""
        super().break_cycles()
        self.prep_receive = None


class Sender(Line, SenderFields):
    """The line of those who send.

    Attributes:
      prep_send: prepares a stream's send; of sockets and other files in one form.
    """

    __slots__ = ()

    prep_send: Any
    reading = False

    def __init__(
        self, slots: Slots, backlog: Backlog, fileno: Callable[[], int], *, is_socket: bool
    ) -> None:
        super().__init__(slots, backlog, fileno)
        self.prep_send = slots.ring.send if is_socket else slots.ring.write

    def send(self, pinned: Any, flags: int) -> Send:
        """Begin to send pinned memory, which is unpinned with the last cqe."""
        operation: Send | None = self.take_spare()
        if operation is None:
            operation = Send(self, pinned, flags)
        else:
            operation.send_again(pinned, flags)
        self.submit(operation)
        return operation

    def new_operation(self) -> Send:
        return Send(self, b"", 0)


if _hot_parts.hot is not None:
    _hot_parts.hot.know(Receiver=Receiver, Sender=Sender)
