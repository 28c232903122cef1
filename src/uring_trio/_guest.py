"""Guest mode: how a helper thread waits for a ring that it must not enter.

What must be waited for
=======================

The host thread polls with ``get_events(0)``. When there is nothing, trio has a thread of its
cache wait in its place, not always the same one. A ring of DEFER_TASKRUN answers EEXIST to
any thread but its own, and its fd does not even wake a thread that is blocked in poll(2) on
it (measured on 6.18: it slept out timeouts of 1 s and 3 s in every round). An eventfd that
is registered with the ring does, so the helper watches that one. ``force_wakeup`` writes to
it as well.

When the kernel does not signal it
==================================

Work for the ring goes onto a list that the next enter runs. The eventfd is signalled

- *only by work that finds the list empty*. One lost signal is all that come after it lost.
- *only if no eventfd's wake-up is running on that processor's task*: one eventfd is not
  signalled from inside another. What a write to an eventfd wakes runs inside that write, and
  so does a poll of ours on it, or on an epoll descriptor that has it. The signal is then put
  off until RCU's next grace period: 16 ms in the middle, 32 at most (6.18, HZ=250).
- *put off once for each registration* (6.18): the mark that says so is never taken away
  again. Every later one of the kind is lost, with the work that stands behind it.

No other descriptor's wake-up can have that effect: it would have to run inside an eventfd's.

What follows
============

A signal that was given stays in the eventfd until somebody reads it, and one that was put
off comes. So a registration is good for one signal of any kind, and no more must be asked of
it. `Helper.prepare` runs on the host before each sleep:

1. what is in the eventfd is read;
2. if there was anything, the eventfd is registered anew: the signal of the old registration
   may have been its last;
3. the ring is entered, and if that brings anything, nobody sleeps.

In this order, because work that comes before 2 is seen by 3, and work that comes after 2
finds an empty list and a registration with its one signal, given, put off or still to give.
Nothing is read from then on until the helper has returned. The engine has a full barrier
between 2 and 3, and the kernel one between the list and its look for the eventfd.

A helper that was not prepared for does not sleep. Where the kernel had no memory for an
operation nothing tells when there is some, so the helper sleeps 1 ms, as a plain run does.

What is put off should come at once all the same, so the helper sees the eventfds and epoll
descriptors that tasks wait for with its own eyes (`show`): by an epoll instance, one-shot.
What it sees there only makes the host enter; what the ring says decides. So one that is
still shown after its wait is over costs one empty tick, and one that could not be shown, or
was seen too early, waits for the signal that was put off. Other kinds are not shown:
looking at a perf event, at /proc/self/mounts or /proc/pressure takes the news away from the
ring's own poll.

What it costs: a read(2) and an enter for each sleep, about 1 us each; after a signal two
more calls for the registration, 1 to 3 us together. It saves the tick in vain that signals
used to leave behind which were given while the host was awake: about 100 us. For each wait
for an eventfd or an epoll descriptor a readlink(2) and an epoll_ctl(2). An idle helper sleeps.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING

from uring_trio import _beside as beside
from uring_trio._kernel import LOOK_NO_MEMORY, LOOK_NOTHING, POLLIN, RETRY_S

if TYPE_CHECKING:
    from uring_trio._kernel import Ring

EVENT_BYTES = 8  # what a read of an eventfd gives, and a write takes: a count
ONE_EVENT = (1).to_bytes(EVENT_BYTES, sys.byteorder)

# How many shown descriptors one look of the helper takes; the rest are seen by the next.
SEEN_MAX = 64

# What a wake-up may run inside: an eventfd, and what may have one in it.
_SHOWN = ("anon_inode:[eventfd]", "anon_inode:[eventpoll]")


class Helper:
    """The eventfd between a guest run's host thread and its helper threads.

    Raises:
      OSError: no eventfd can be made, or the ring does not take it.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.prepared = False  # whether a helper may sleep
        self._no_memory = False
        self._eyes: select.epoll | None = None  # the eventfd, and what is shown
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            ring.register_eventfd(self._event_fd)
        except OSError:
            beside.close_fd(self._event_fd)
            raise

    def prepare(self) -> bool:
        """On the host, which has found nothing: whether a helper may sleep now.

        Raises:
          OSError: the eventfd could not be registered anew, or the ring not entered.
          RuntimeError: the ring is another process's.
        """
        try:
            beside.read(self._event_fd, EVENT_BYTES)
        except BlockingIOError:
            pass  # the registration's signal is still to come
        else:
            self._ring.register_eventfd(self._event_fd)
        found = self._ring.look()
        if found < 0:
            raise self._ring.error(found)
        self._no_memory = found == LOOK_NO_MEMORY
        self.prepared = found == LOOK_NOTHING or self._no_memory
        return self.prepared

    def forget_preparation(self) -> None:
        """On the host, which is awake: nobody may sleep until it has prepared for that again."""
        self.prepared = False

    def show(self, fd: int, *, reads: bool, writes: bool) -> None:
        """On the host: tasks wait for *fd*, which is no socket; see the theory above."""
        events = select.EPOLLONESHOT | reads * select.EPOLLIN | writes * select.EPOLLOUT
        with contextlib.suppress(OSError):  # no /proc, no descriptor left: without eyes
            if os.readlink(f"/proc/self/fd/{fd}") not in _SHOWN:
                return
            if self._eyes is None:
                eyes = select.epoll()
                eyes.register(self._event_fd, select.EPOLLIN)
                self._eyes = eyes
            try:
                self._eyes.register(fd, events)
            except FileExistsError:
                self._eyes.modify(fd, events)

    def watch(self, timeout: float) -> bool:
        """In a helper thread: sleep at most *timeout* seconds; whether the host must enter."""
        if not self.prepared:
            return True
        if self._no_memory:
            timeout = min(timeout, RETRY_S)
        if self._eyes is not None:
            return bool(self._eyes.poll(max(0, timeout), SEEN_MAX)) or self._no_memory
        return bool(beside.wait_for(self._event_fd, POLLIN, timeout)) or self._no_memory

    def wake(self) -> None:
        """Have the helper thread return."""
        with contextlib.suppress(BlockingIOError):  # it is full: the thread returns anyway
            beside.write_some(self._event_fd, ONE_EVENT)

    def close(self) -> None:
        """Give the descriptors back; the ring is closed."""
        beside.close_fd(self._event_fd)
        if self._eyes is not None:
            self._eyes.close()
