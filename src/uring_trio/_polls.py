"""Readiness on the ring: what ``wait_readable`` and ``wait_writable`` sleep on.

A poll is no operation of a line: trio lets its task go at once when it is cancelled or
its file is closed, and the kernel's part becomes an orphan whose cqe is expected and ignored.
The orphan must not keep the file open: nobody waits, so a program may close it without a word,
and go on with no turn of the loop in between. So the kernel is told at once, by an enter, as
stock tells its epoll by a call.

A poll of io_uring's believes the wake-up: what it was told of is told to us, though the loop was
busy for a second since, and another process has taken it. epoll looks when it is asked. So do
we, once more, before a task is woken: who wakes for nothing may block in its read. Where the
look finds nothing the poll begins anew. Not so where the look itself may have taken the news
away, as that at a perf event does: only files whose readiness stays until somebody reads or
writes are known not to (`stays_ready`). It costs a poll(2) for each wait, 0.7 us on Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import TYPE_CHECKING, Any

import trio
from outcome import Error

from uring_trio import _beside as beside
from uring_trio._beside import checked
from uring_trio._fast_ways import FAST
from uring_trio._kernel import (
    CQE_F_MORE,
    ECANCELED,
    INT_MAX,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLNVAL,
    POLLOUT,
    os_error,
)
from uring_trio._operations import BUSY, CLOSED, Abort, raise_error
from uring_trio._trio_private import WaitTaskRescheduled, run_context

if TYPE_CHECKING:
    from uring_trio._slots import Slots

# What a file without a poll function answers: the last two are POLLRDNORM, POLLWRNORM.
ALL_READY = POLLIN | POLLOUT | 0x40 | 0x100

# What has no type of its own, and whose readiness stays, however often it is looked at.
STEADY = (
    *("anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:[signalfd]"),
    *("anon_inode:[eventpoll]", "anon_inode:inotify", "anon_inode:[fanotify]"),
    "anon_inode:[io_uring]",
)


def require_pollable(fd: Any) -> int:
    """A file's number, if it can be waited for: the kernel is asked, in epoll's place.

    A file without a poll function (one on disk, /dev/null, a landlock ruleset) is EPERM to
    epoll, and always ready to POLL_ADD. Its type does not tell: files of /proc and /sys are
    regular, and some can be polled (mounts, pressure). But such a file is ready in all
    directions, so poll(2) clears nearly every other, and for the rest epoll itself is asked,
    one that lives no longer than this call: a run has no descriptor that stock's has not.

    Raises:
      PermissionError, OSError, ValueError, OverflowError, TypeError: what epoll, and so
        stock trio, says to a file or an object that cannot be waited for.
    """
    mode = 0
    if isinstance(fd, int) and 0 <= fd <= INT_MAX:
        mode = checked(beside.mode(fd))
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
            return fd
    select.poll().register(fd, ALL_READY)  # has words for what is no file, and asks nobody
    number = fd if isinstance(fd, int) else int(fd.fileno())
    found = beside.look(number, ALL_READY)
    if found & POLLNVAL:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if found == ALL_READY:
        _ask_epoll(number, mode)
    return number


def _ask_epoll(fd: int, mode: int) -> None:
    try:
        epoll = select.epoll()
    except OSError:  # no descriptor is left for it
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None
    else:
        with epoll:
            epoll.register(fd, 0)


def stays_ready(fd: int) -> bool:
    """Whether a file is known to be ready until somebody reads or writes it."""
    try:
        mode = checked(beside.mode(fd))
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or os.isatty(fd):
            return True
        return os.readlink(f"/proc/self/fd/{fd}") in STEADY
    except OSError:
        return False  # closed behind our back, or no /proc


class Poll:
    """`wait_readable` or `wait_writable` of one task."""

    __slots__ = ("events", "fd", "key", "polls", "slot", "task", "trap")

    fd: int
    key: int
    events: int

    def __init__(self, polls: Polls) -> None:
        self.polls = polls
        self.task: Any = None
        self.slot = -1
        self.trap = WaitTaskRescheduled(self.abort)

    def begin(self, fd: int, key: int, events: int) -> None:
        """Have the kernel watch *fd* for the task that is running."""
        polls = self.polls
        slots = polls.slots
        self.slot = slots.enter(self, slots.ring.poll(fd, events, 0))
        self.fd = fd
        self.key = key
        self.events = events
        self.task = run_context.task
        polls.by_key[key] = self

    @property
    def reading(self) -> bool:
        """Whether it counts as a task that waits to read."""
        return self.events == POLLIN

    def leave(self) -> Any:
        """Its wait is over: the task, which is the caller's to wake."""
        self.polls.by_key.pop(self.key, None)
        task, self.task = self.task, None
        return task

    def abort(self, _raise_cancel: Any) -> Any:
        """trio's abort function. The kernel's poll is orphaned, as epoll's would be."""
        slots = self.polls.slots
        if not slots.closed:
            if self.task is None:
                return Abort.FAILED  # as in Operation.abort
            self.leave()
            if not self.drop():
                slots.release_files()
        return Abort.SUCCEEDED

    def drop(self) -> bool:
        """End it where the kernel has no part in it; False if the kernel has, and is asked."""
        if self.slot >= 0:
            if not self.polls.slots.withdraw(self.slot):
                return False
            self.slot = -1
        return True

    def unwrap(self, value: Any) -> None:
        """In the task: raise what its wait has ended with, if it is an error."""
        if value is not None:
            self.trap = None  # its frame is about to be held by a traceback
            raise_error(value)

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take a cqe."""
        slots = self.polls.slots
        if not flags & CQE_F_MORE:
            self.slot = -1
        if self.task is None:
            return  # an orphan; a multishot one was cancelled when it was left
        if res >= 0:
            # POLL_ADD always reports POLLRDHUP: a peer that has half-closed completes a wait
            # for POLLOUT at once, while nothing can be written. Asked again one-shot it would
            # spin; a multishot poll reports only what changes.
            half_closed = not res & (self.events | POLLERR | POLLHUP)
            if half_closed or self._was_too_early():
                res = self._go_on(multishot=half_closed)
                if res >= 0:
                    return
        task = self.leave()
        if not self.drop():
            slots.release_files()
        if res >= 0:
            slots.wake(task, None)
        elif res == ECANCELED:
            slots.wake(task, Error(trio.ClosedResourceError(CLOSED)))
        else:
            slots.wake(task, Error(os_error(res)))

    def _was_too_early(self) -> bool:
        """Whether what it was told of is over, and will be told again."""
        return not beside.try_look(self.fd, self.events) and stays_ready(self.fd)

    def _go_on(self, *, multishot: bool) -> int:
        """Wait on, after it was told in vain: its slot, or the errno of why it cannot."""
        slots = self.polls.slots
        if self.slot < 0:
            slot: int = slots.ring.poll(self.fd, self.events, multishot)
            if slot < 0:
                return slot
            self.slot = slots.enter(self, slot)
            self.polls.show_to_helper(self.fd)
        return self.slot

    # ---- the end of the run --------------------------------------------------------------

    def lose(self) -> None:
        """Nobody is to be told."""
        self.task = None

    def dispose(self, res: int) -> None:
        """It brings nothing."""

    def release(self) -> None:
        """It has no memory."""


class Polls:
    """Those of one run: at most one for each file and direction.

    Attributes:
      by_key: those that are waited for, by fd * 2 + whether it is for writing.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.by_key: dict[int, Poll] = {}
        self._spare: Poll | None = None

    def begin(self, fd: Any, events: int) -> Poll:
        """Begin to wait for POLLIN or POLLOUT of *fd*."""
        # trio's own wakeup is a socket, and where there is no bell it is waited for again with
        # each call from a thread: what is known to be pollable is not looked at, and a poll is
        # used again.
        is_socket = type(fd) is socket.socket
        if not isinstance(fd, int):
            fd = fd.fileno()
        if not isinstance(fd, int):
            fd = require_pollable(fd)
        key = fd * 2 + (events == POLLOUT)
        if key in self.by_key:
            raise trio.BusyResourceError(BUSY)
        if not is_socket or fd < 0:
            require_pollable(fd)
        poll, self._spare = self._spare, None
        if poll is None:
            poll = Poll(self)
        poll.begin(fd, key, events)
        if not is_socket:
            self.show_to_helper(fd)
        return poll

    def end(self, poll: Poll, value: Any) -> None:
        """In the task, which has slept on it: *value* is what it was woken with."""
        poll.unwrap(value)
        if FAST and poll.slot < 0 and not self.slots.closed:
            self._spare = poll

    def show_to_helper(self, fd: int) -> None:
        """In guest mode the helper sees some kinds of files with its own eyes; see `_guest`."""
        if run_context.runner.is_guest:
            keys = self.by_key
            self.slots.show_to_helper(fd, reads=fd * 2 in keys, writes=fd * 2 + 1 in keys)

    def on(self, fd: int) -> list[tuple[Poll, Any]]:
        """Those of a file, with the task that each has; from any thread."""
        found = (self.by_key.get(key) for key in (fd * 2, fd * 2 + 1))
        return [(poll, poll.task) for poll in found if poll is not None]

    def forget(self) -> None:
        """The ring is closed: nobody waits."""
        self.by_key.clear()
        self._spare = None
