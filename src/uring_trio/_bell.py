"""The bell: how other threads wake a run.

trio's own way is a pair of sockets: a byte is sent, a task waits until it can be read, looks
what else there is, and waits anew. That is six system calls for each call of a thread. The pair
has to be a pair, because a signal's wake-up is one byte (`signal.set_wakeup_fd`), and an eventfd
wants eight. So the bell is an eventfd, and the pair is left to the signals.

Nobody reads it
===============

A multishot poll tells of each write, and not of what the count is. So the eventfd is never read,
and the poll is made once in a run: a call from a thread is a write, and a cqe. No operation waits
in the kernel that could be handed to a thread of its own. Writes that come together are one cqe,
and the count has room for those of 500,000 years; if somebody else has filled it it is emptied,
for a write that is refused wakes nobody.

No ring is lost
===============

trio's task of the entry queue calls what is in the queue, and when it is empty it waits. Whoever
puts something into the queue rings afterwards, with the queue's lock in his hands. He writes
only if it is not `rung` already; the task takes that back when it has woken, before it looks into
the queue:

- who rings before that has put his call into the queue before the look;
- who rings after it finds it not rung, and writes.

What was written is told by a record. The task sleeps on it, or it was awake; then it is noted
(`_told`), and the next wait is none. So one write is under way at most, however many ring. The
poll looks at the count when it is made: one that has ended (a full CQ) is made anew, and tells of
what was written in between.

Two threads must agree on the order of two stores and two loads. Under the GIL they do; without
one the task passes through the queue's lock in between.

A handler of a signal may ring while its thread rings, and it may raise. So `rung` is set before
the write, and who is torn away in between writes all the same.

Where there is none
===================

In guest mode: the ring's own eventfd is not signalled from inside another eventfd's wake-up
(`_guest`). Where the kernel gives no eventfd or the ring no poll; where this trio wakes its runs
otherwise; and with the fast ways off, since trio's pair is the plain way. A poll that fails later
gives the run back to the pair.

The signals' poll is there if the run is told of them, in the main thread. Its record is enough:
the wait ends with it, and Python runs its handlers.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import trio

from uring_trio import _beside as beside
from uring_trio._fast_ways import FAST
from uring_trio._kernel import CQE_F_MORE, POLLIN
from uring_trio._operations import Abort, raise_error
from uring_trio._trio_private import WaitTaskRescheduled, park, run_context, wakeup_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._slots import Slots
    from uring_trio._trio_private import Wakeup

GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


class Clapper:
    """What rings. Whoever has it in his hands may outlive the run.

    Attributes:
      rung: somebody has rung, and the run has not looked into its queue since.
    """

    __slots__ = ("_fd", "rung")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.rung = False

    @trio.lowlevel.enable_ki_protection
    def ring(self) -> None:
        """Have the run look into its queue: with the queue's lock in one's hands."""
        if self.rung or self._fd < 0:
            return
        try:
            self.rung = True
            self._write()
        except BaseException:  # it cannot be written, or a signal's handler raises
            self.rung = False
            self._write()
            raise

    def _write(self) -> None:
        # As with the pair, this call is one of its thread's own, and no run's: it does not go
        # through the kernel's table (`_beside`), which is for one thread at a time.
        try:
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:  # it is full
            os.eventfd_read(self._fd)
            os.eventfd_write(self._fd, 1)

    def heard(self) -> None:
        """The run is about to look into its queue."""
        self.rung = False

    def close(self) -> None:
        """From now on it is silent."""
        self._fd = -1


class LastingPoll:
    """A multishot poll, made once for a run, and the occupant of its slot.

    Attributes:
      task: the task that sleeps until it tells something.

    Raises:
      OSError: it cannot be had.
    """

    reading = True

    def __init__(self, slots: Slots, fd: int, tell: Callable[[bool], None]) -> None:
        self.task: Any = None
        self._slots = slots
        self._fd = fd
        self._tell: Callable[[bool], None] | None = tell  # called with whether it goes on
        self._begin()

    def _begin(self) -> None:
        slots = self._slots
        self._slot = slots.enter(self, slots.ring.poll(self._fd, POLLIN, True))

    def _go_on(self) -> bool:
        try:
            self._begin()
        except OSError:
            return False
        return True

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """There is something, or it is over."""
        goes_on = bool(flags & CQE_F_MORE)
        if not goes_on:
            self._slot = -1
        if self._tell is not None:
            self._tell(goes_on or (res >= 0 and self._go_on()))

    def put_to_sleep(self) -> None:
        """The task that is running sleeps until it tells something."""
        self.task = run_context.task

    def take_task(self) -> Any:
        """The task, which is the caller's to wake; None if none sleeps."""
        task, self.task = self.task, None
        return task

    def end(self) -> None:
        """Have it tell nothing any more, and the kernel let go of it."""
        self._tell = None
        if self._slot >= 0:
            self._slots.withdraw(self._slot)

    def lose(self) -> None:
        """The run is over: nobody is to be told."""
        self.task = self._tell = None

    def dispose(self, res: int) -> None:
        """It brings nothing."""

    def release(self) -> None:
        """It has no memory."""


class Bell:
    """The bell of one run, from before its first task's first step.

    Raises:
      OSError: there is no eventfd, or no poll.
    """

    def __init__(self, slots: Slots, wakeup: Wakeup) -> None:
        self._slots = slots
        self._wakeup = wakeup
        self._told = False
        self._trap = WaitTaskRescheduled(self._abort)
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._clapper = Clapper(self._fd)
        self._polls: list[LastingPoll] = []
        try:
            self._poll = LastingPoll(slots, self._fd, self._tell)
            self._polls.append(self._poll)
            if wakeup.has_signals:
                self._polls.append(LastingPoll(slots, wakeup.signals_fd, self._take_signals))
        except OSError:
            self._end_polls()
            self._close_fd()
            raise
        wakeup.replace(self._clapper.ring, self._wait)

    # ---- in trio's task of the entry queue ---------------------------------------------------

    async def _wait(self) -> None:
        """Sleep until somebody has rung."""
        if not self._told:
            self._poll.put_to_sleep()
            value = await park(self._trap)
            if value is not None:
                self._trap = None  # its frame is about to be held by a traceback
                raise_error(value)
        self._told = False
        self._clapper.heard()
        if not GIL:
            self._wakeup.pass_lock()

    def _abort(self, _raise_cancel: Any) -> Any:
        # The run is about to end, and nobody can ring any more: the queue is closed.
        self._poll.take_task()
        if not self._slots.closed:
            self._end_polls()
        return Abort.SUCCEEDED

    # ---- what the polls tell ---------------------------------------------------------------

    def _tell(self, goes_on: bool) -> None:
        if not goes_on:
            self._retire()
        task = self._poll.take_task()
        if task is None:
            self._told = True
        else:
            self._slots.wake(task, None)

    def _take_signals(self, goes_on: bool) -> None:
        self._wakeup.drain()
        if not goes_on:
            self._retire()
            self._tell(True)

    # ---- its end -----------------------------------------------------------------------------

    def _retire(self) -> None:
        """No poll is to be had any more: the run is woken by trio's pair from now on."""
        self._wakeup.give_back()
        self._end_polls()

    def _end_polls(self) -> None:
        for poll in self._polls:
            poll.end()

    def _close_fd(self) -> None:
        self._clapper.close()
        beside.close_fd(self._fd)

    def close(self) -> None:
        """The ring is closed."""
        self._wakeup.give_back()
        self._close_fd()
        self._trap = None

    def abandon_in_child(self) -> None:
        """In a forked child: it would wake the parent. (The queue's lock may be held for ever.)"""
        self._close_fd()


def hang(slots: Slots, runner: Any) -> Bell | None:
    """A bell for a run that is about to begin; None where trio's own way stays."""
    wakeup = wakeup_of(runner)
    if not FAST or runner.is_guest or wakeup is None:
        return None
    try:
        return Bell(slots, wakeup)
    except OSError:
        return None
