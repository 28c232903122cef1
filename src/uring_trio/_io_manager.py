"""trio's IO manager on a ring.

What trio asks, and how it is answered
======================================

trio's loop calls ``get_events(timeout)`` and hands what it returned to
``process_events``; in between, and in guest mode on another thread, anything may happen.

- *One enter a tick.* Operations are queued as tasks ask for them; ``get_events`` submits
  them and waits, in one system call. (What somebody else waits for leaves earlier where the
  tick is long: csrc/tick.c.) It returns a number that only ``process_events``
  understands: cqes seen << 32 | records of the batch. It is falsy if, and only if, the time
  is over and no cqe at all was seen: `trio.testing.wait_all_tasks_blocked` and mock clocks
  take a falsy answer for "nothing is going on".
- *Never raising.* What escapes from ``get_events`` leaves `trio.run` raw, with no task
  unwound. So an error is kept, the answer is truthy, and ``process_events`` raises it,
  which trio turns into a clean `trio.TrioInternalError`.
- *Signals.* The kernel's -EINTR comes back to Python, whose handlers then run, and the wait
  goes on with the time that is left (PEP 475).
- *Guest mode.* Only the thread that made the ring may enter it: the helper thread watches
  an eventfd, which the host prepares for each sleep (`_guest`); the enter follows in
  ``process_events``. What the host's callbacks cancel meanwhile is submitted at once.
- *After the end.* Abort functions and ``notify_closing`` may be called after ``close``, when
  coroutines of a crashed or abandoned run are collected, and in a forked child. Then they
  touch nothing.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import math
import os
import weakref
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio
from outcome import Error

from uring_trio import _bell, _hot_parts
from uring_trio._draining import drain
from uring_trio._endpoints import Endpoint, Endpoints
from uring_trio._fast_ways import FAST
from uring_trio._instruments import make_flat
from uring_trio._kernel import (
    POLLIN,
    POLLOUT,
    RECORD_SIZE,
    RECORDS_MASK,
    RETRY_S,
    Ring,
    unpack_records,
)
from uring_trio._lines import Backlog, marks
from uring_trio._operations import CLOSED, deliver
from uring_trio._polls import Poll, Polls
from uring_trio._process import in_child
from uring_trio._slots import NOTHING_TO_READ, Slots
from uring_trio._statistics import IOStatistics, take_statistics
from uring_trio._trio_private import is_wakeup, make_waker, manager_of, park, run_context, runner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from uring_trio._guest import Helper
    from uring_trio._kernel import RingSizes
    from uring_trio._lines import Line
    from uring_trio._operations import Operation
    from uring_trio._slots import Record

# Of one file: polls, each with the task it had when that was asked, and endpoints.
Parts = tuple[list[tuple[Poll, Any]], list[Endpoint]]

# The answer of get_events in a helper thread: the host must enter.
HOST_MUST_ENTER = -1
# How often what came before a helper's sleep may be the engine's own business before trio
# has a tick in vain: an operation takes two steps, and many may be about to take one.
LOOKS_MAX = 8
# How a batch is told to those whom it is about.
_tell: Callable[[Slots, Iterable[Record]], None] = deliver if FAST else Slots.deliver
# The same in C, of the first so many of the batch.
_tell_in_c: Callable[[Slots, int], None] | None = None
if _hot_parts.hot is not None:
    _tell_in_c = _hot_parts.hot.deliver

# Memory that the kernel may write to after its ring was closed: given up on purpose.
_leaked: list[Any] = []
# By id; of all threads. Not a WeakSet, which must not be iterated while another thread adds.
_managers: weakref.WeakValueDictionary[int, UringIOManager] = weakref.WeakValueDictionary()


class UringIOManager:
    """trio's IO manager on a ring; made, used and closed by trio.

    Raises:
      OSError: this run's ring could not be made.
    """

    def __init__(self, sizes: RingSizes | None = None) -> None:
        self.backlog = Backlog()
        self.endpoints = Endpoints()
        self.plain_calls = dict.fromkeys(
            ("accept", "connect", "recv", "recvmsg", "send", "sendmsg"), 0
        )
        self.stock_calls: dict[str, int] = {}
        self.leaked = False
        self._when_closed: list[Callable[[], None]] = []
        self._when_lost: list[Callable[[], None]] = []
        self._thread = get_ident()
        self._batch = 0  # what get_events has returned and nobody has processed
        self._runner: Any = None
        self._last_statistics: Callable[[], IOStatistics] | None = None
        self._token: trio.lowlevel.TrioToken | None = None  # how other threads reach the run
        self._bell: _bell.Bell | None = None  # how they wake it, if not by trio's sockets
        # No bound method: a cycle would keep the ring of a refused run for the collector.
        slots = Slots(Ring(sizes), _wake_before_run)
        self.ring = slots.ring
        self.polls = Polls(slots)
        # Last, since who has them can be closed: a KeyboardInterrupt may come anywhere here.
        self.slots = slots
        _managers[id(self)] = self

    @property
    def closed(self) -> bool:
        """Whether the run is over, and nothing of its ring may be touched."""
        return self.slots.closed

    # ---- the loop ---------------------------------------------------------------------

    def get_events(self, timeout: float) -> int:
        """Submit, wait at most *timeout* seconds, and say what came."""
        slots = self.slots
        if get_ident() != self._thread:
            woken = slots.helper is None or slots.helper.watch(timeout)
            return HOST_MUST_ENTER if woken else 0
        if self._batch:
            return self._batch
        if self._runner is not None and self._runner.is_guest and slots.helper is None:
            slots.open_helper()
        backlog = self.backlog
        if timeout <= 0 or backlog.held or slots.error is not None:
            timeout_ns = 0
        elif not backlog.contended:
            timeout_ns = math.ceil(timeout * 1e9)
        else:
            timeout_ns = math.ceil(min(RETRY_S, timeout) * 1e9) if backlog.starved else 0
        answer = slots.wait(timeout_ns)
        if not answer and self._must_not_sleep():
            answer = NOTHING_TO_READ
        self._batch = answer
        helper = slots.helper
        if helper is not None:
            helper.forget_preparation()
            if not self._batch and not self._runner.runq:
                self._batch = self._prepare_sleep(helper)
        return self._batch

    def _must_not_sleep(self) -> bool:
        """Whether something is to be done that no record will tell of."""
        backlog = self.backlog
        return bool(backlog.contended or backlog.held or self.slots.error is not None)

    def _look(self) -> int:
        """Submit, and see what is there."""
        answer = self.slots.wait(0)
        return NOTHING_TO_READ if not answer and self._must_not_sleep() else answer

    def process_events(self, events: Any) -> None:
        """Wake the tasks whose operations are over."""
        if self._runner is None:
            runner = run_context.runner
            self.when_closed(make_flat(runner))
            self._bind(runner)
            self._bell = _bell.hang(self.slots, runner)
        if events == HOST_MUST_ENTER:
            self._batch = events = self._look()
        slots = self.slots
        if slots.error is not None:
            slots.raise_failure()
        backlog = self.backlog
        contended: Iterable[tuple[Line, Operation]] = ()
        if backlog.contended:
            contended = backlog.take_contended(starved=not slots.all_submitted())
        if events:
            self._batch = 0
            if _tell_in_c is not None:
                count = events & RECORDS_MASK
                for take in slots.takers:
                    count = take(count)
                if count:  # takers have left some
                    _tell_in_c(slots, count)
                events = 0
        if events:
            # `Ring.records`, flat.
            area = self.ring.record_area
            records: Iterable[Record]
            records = unpack_records(area[: (events & RECORDS_MASK) * RECORD_SIZE])
            for take in slots.takers:
                records = take(records)
            if records:  # no list, or one in which takers have left something
                _tell(slots, records)
        for line, operation in contended:
            line.find_busy(operation)
        if backlog.held:
            backlog.start_held()

    def _bind(self, runner: Any) -> None:
        self._runner = runner
        self._token = runner.current_trio_token()
        self.slots.bind(make_waker(runner))

    # ---- guest mode -------------------------------------------------------------------

    def _prepare_sleep(self, helper: Helper) -> int:
        slots = self.slots
        try:
            for _ in range(LOOKS_MAX):
                if helper.prepare():
                    return 0
                if answer := self._look():
                    return answer
        except OSError as exc:
            slots.fail(slots.refused(exc))
        except RuntimeError as exc:
            slots.fail(exc)
        return NOTHING_TO_READ

    def force_wakeup(self) -> None:
        """Guest mode: have the helper thread return."""
        self.slots.wake_helper()

    # ---- readiness --------------------------------------------------------------------

    async def wait_readable(self, fd: Any) -> None:
        """Sleep until *fd* is readable; see `trio.lowlevel.wait_readable`."""
        try:
            poll = self.polls.begin(fd, POLLIN)
        except OSError as exc:
            if is_wakeup(fd):
                self._lose_wakeup(exc)
            raise
        self.polls.end(poll, await park(poll.trap))

    async def wait_writable(self, fd: Any) -> None:
        """Sleep until *fd* is writable; see `trio.lowlevel.wait_writable`."""
        poll = self.polls.begin(fd, POLLOUT)
        self.polls.end(poll, await park(poll.trap))

    def _lose_wakeup(self, exc: OSError) -> None:
        """End the run: it would sleep for ever beside a thread that it waits for."""
        try:
            raise trio.TrioInternalError(f"no thread can wake this run any more: {exc}") from exc
        except trio.TrioInternalError as lost:
            self.slots.fail(lost)

    # ---- operations -------------------------------------------------------------------

    def open_endpoint(self, owner: Any, fileno: Callable[[], int], *, is_socket: bool) -> Endpoint:
        """The endpoint of the open file that *owner* holds; see `Endpoints.open`."""
        return self.endpoints.open(self, owner, fileno, is_socket=is_socket)

    def count_stock_call(self, reason: str) -> None:
        """An operation went stock's way."""
        self.stock_calls[reason] = self.stock_calls.get(reason, 0) + 1

    # ---- closing ----------------------------------------------------------------------

    def notify_closing(self, fd: Any) -> None:
        """End whatever waits on *fd*; see `trio.lowlevel.notify_closing`.

        When it returns the kernel has let go of the file: close(2) after it sends the FIN.
        The fd is not looked at, and may be closed already.
        """
        if not isinstance(fd, int):
            fd = fd.fileno()
        self.end_on(fd)
        if len(_managers) > 1:
            let_go_elsewhere(fd, self)

    def end_operations(self, endpoint: Endpoint, *, detach: bool = False) -> None:
        """The file is closed without a word to trio, or leaves our hands open.

        With *detach* no byte is lost: what was received until now is delivered, and other
        tasks get EBADF, as they do on stock when they try again.
        """
        if not self.closed and get_ident() == self._thread:
            self._end_parts([], [endpoint], detach=detach)

    def _parts_on(self, fd: int) -> Parts:
        """What this run has on a file, as any thread may ask: dicts and lists only read."""
        return self.polls.on(fd), self.endpoints.on(fd)

    def _has_nothing_on(self, fd: int) -> bool:
        """As `_parts_on`, flat: most files that are closed have nothing under way."""
        polls = self.polls.by_key
        if fd * 2 in polls or fd * 2 + 1 in polls:
            return False
        for endpoint in self.endpoints.on(fd):
            receiver, sender = endpoint.receiver, endpoint.sender
            if receiver.current or receiver.waiting or sender.current or sender.waiting:
                return False
        return True

    def end_on(self, fd: int, *, detach: bool = False) -> None:
        """End what this run has on a file, on its own thread: here, or in its next turn."""
        if self.closed or (FAST and self._has_nothing_on(fd)):
            return
        polls, endpoints = self._parts_on(fd)
        if detach:
            polls = []  # the file lives on, and so does epoll's interest in it
        if not polls and not any(map(Endpoint.is_busy, endpoints)):
            return
        if get_ident() == self._thread:
            self._end_parts(polls, endpoints, detach=detach)
        elif self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(partial(self._end_parts, polls, endpoints, detach=detach))

    def _end_parts(
        self, polls: list[tuple[Poll, Any]], endpoints: list[Endpoint], *, detach: bool = False
    ) -> None:
        if self.closed:
            return
        wake: list[tuple[Any, Exception]] = []
        in_kernel = False
        for poll, task in polls:
            if task is not None and poll.task is task:  # else it is over meanwhile
                wake.append((task, trio.ClosedResourceError(CLOSED)))
                poll.leave()
                in_kernel |= not poll.drop()
        exception: Exception = trio.ClosedResourceError(CLOSED)
        if detach:
            exception = OSError(errno.EBADF, os.strerror(errno.EBADF))
        for endpoint in endpoints:
            in_kernel |= endpoint.end(exception, wake, detach=detach)
            if detach:
                self.endpoints.forget_number(endpoint)
        self._let_go(wake, in_kernel)

    def _let_go(self, wake: list[tuple[Any, Exception]], in_kernel: bool) -> None:
        slots = self.slots
        if in_kernel:
            slots.release_files()
        current = getattr(run_context, "task", None)
        for task, exception in wake:
            if task is not current:
                slots.wake(task, Error(copy.copy(exception)))
        for task, exception in wake:
            if task is current:
                raise exception

    def close(self) -> None:
        """Cancel what is in flight, wait for its end within a bound, close the ring."""
        if self.closed:
            return
        self._last_statistics = self._take_statistics()
        slots = self.slots
        slots.begin_end()
        _managers.pop(id(self), None)
        try:
            self.backlog.lose()
            finished = get_ident() == self._thread and drain(slots, self._batch)
            if not finished:
                _leaked.append(slots.occupants())
            self.leaked = slots.close(leak=not finished)
        finally:
            self._batch = 0
            slots.forget()
            self.polls.forget()
            if self._bell is not None:
                self._bell.close()
            self._end_run()
            while self._when_lost:
                self._when_lost.pop()()

    def when_closed(self, call: Callable[[], None]) -> None:
        """Have *call* called once the run is over; the last one that was given first."""
        self._when_closed.append(call)

    @contextlib.contextmanager
    def when_lost(self, call: Callable[[], None]) -> Iterator[None]:
        """Have *call* called if the run is lost in here, where nothing is unwound.

        Not in a forked child: what it is about is the parent's, and may be locked for ever.
        """
        self._when_lost.append(call)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # it was called
                self._when_lost.remove(call)

    def _end_run(self) -> None:
        self._runner = None
        while self._when_closed:
            self._when_closed.pop()()

    def abandon_in_child(self) -> None:
        """In a forked child: the ring is the parent's; forget it."""
        if not self.closed:
            self.slots.begin_end()
            self._end_run()
            if self._bell is not None:
                self._bell.abandon_in_child()
            self.slots.abandon_in_child()

    def __del__(self) -> None:
        # trio closes its manager, except when setting up a run fails after it was made.
        if hasattr(self, "slots") and not self.closed:
            self.close()

    # ---- statistics -------------------------------------------------------------------

    def statistics(self) -> IOStatistics:
        """The counters of this run; after its end, those it ended with."""
        take = self._last_statistics
        return self._take_statistics()() if take is None else take()

    def _take_statistics(self) -> Callable[[], IOStatistics]:
        return take_statistics(
            (*self.slots.occupants(), *self.backlog.held),
            self.ring,
            batch_is_out=self._batch != 0,
            plain_calls=self.plain_calls,
            stock_calls=self.stock_calls,
        )


def _wake_before_run(task: Any, value: Any) -> None:
    manager = manager_of(task)
    manager._bind(runner_of(task))
    manager.slots.wake(task, value)


def let_go_everywhere(fd: int, *, detach: bool = False) -> None:
    """A file is closed, or leaves our hands, without a word to trio.

    A socket may have been used in several runs, and each ring that has an operation or a
    poll on it holds the file open. A ring is entered by its own thread only, so the runs of
    other threads are told, and the file is free as soon as the last of them had a turn.
    """
    let_go_elsewhere(fd, None, detach=detach)


def let_go_unless_on_ring(fd: int) -> None:
    """A file is about to be closed with a word to this run's manager, which may be trio's.

    Ours passes the word on to other runs; trio's does not know of them.
    """
    runner = getattr(run_context, "runner", None)
    if runner is not None and not isinstance(runner.io_manager, UringIOManager):
        let_go_everywhere(fd)


def let_go_elsewhere(fd: int, here: UringIOManager | None, *, detach: bool = False) -> None:
    """As above, in all runs but *here*."""
    for reference in _managers.valuerefs():
        manager = reference()
        if manager is not None and manager is not here:
            manager.end_on(fd, detach=detach)


def look_for_low_water() -> None:
    """SO_RCVLOWAT was set, of a socket that others may hold, too: all look again."""
    marks.note()
    for reference in _managers.valuerefs():
        manager = reference()
        for endpoint in manager.endpoints if manager is not None else ():
            endpoint.receiver.look_for_low_water()


def _abandon_all() -> None:
    for reference in _managers.valuerefs():
        manager = reference()
        if manager is not None:
            manager.abandon_in_child()
    _managers.clear()


in_child("managers", _abandon_all)
