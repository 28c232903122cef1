"""trio's IO manager on a ring.

What trio asks, and how it is answered
======================================

trio's loop calls ``get_events(timeout)`` and hands what it returned to
``process_events``; in between, and in guest mode on another thread, anything may happen.

- *One enter a tick.* Operations are queued as tasks ask for them; ``get_events`` submits
  them and waits, in one system call. It returns a number that only ``process_events``
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
import socket
import weakref
from collections import deque
from functools import partial
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

import trio
from outcome import Error

from uring_trio._directions import Endpoint, start_held
from uring_trio._draining import drain
from uring_trio._guest import Helper
from uring_trio._kernel import EINTR, OWNER_DEAD, RECORDS_MASK, Ring
from uring_trio._operations import BUSY, CLOSED, Operation, deliver, raise_error
from uring_trio._polls import POLLIN, POLLOUT, Poll, require_pollable
from uring_trio._remedies import DENIALS, ring_lost
from uring_trio._statistics import IOStatistics, take_statistics
from uring_trio._trio_private import make_waker, manager_of, park, run_context, runner_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._directions import Direction
    from uring_trio._kernel import RingSizes
    from uring_trio._socket_operations import FullListener, ListenerName

# Of one file: polls, each with the task it had when that was asked, and endpoints.
Parts = tuple[list[tuple[Poll, Any]], list[Endpoint]]

# The answer of get_events in a helper thread: the host must enter.
HOST_MUST_ENTER = -1
# How often what came before a helper's sleep may be the engine's own business before trio
# has a tick in vain: an operation takes two steps, and many may be about to take one.
LOOKS_MAX = 8
# Truthy, and no record: something happened that needs no record to be told.
NOTHING_TO_READ = 1 << 32

# Enters of one wait that answered with an error, within so many seconds, that are no signals
# but a seccomp filter's answer. A signal takes longer to be sent and handled, and one that
# Python handles in the main thread comes as a cqe as well, by trio's wakeup. (A wait is
# interrupted without an error, too: by each step of an operation, as often as peers like.)
INTERRUPTS_MAX, INTERRUPTS_S = 100_000, 2.0

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
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        self.ops: list[Any] = [None] * 256  # by slot; grows, as the engine's table does
        self.pollers: dict[int, Poll] = {}  # by fd * 2 + direction
        self._spare_poll: Poll | None = None
        self.contended: list[tuple[Direction, Operation]] = []
        self.held: deque[Operation] = deque()  # until a buffer comes home
        self.full_listeners: dict[ListenerName, FullListener] = {}
        self.tick = 0  # waits so far: an operation of this tick is not submitted yet
        self.stock_calls: dict[str, int] = {}
        self.deliver: Callable[..., None] = deliver  # see `_operations.Routed`
        self.leaked = False
        self._endpoints: dict[int, list[weakref.ref[Endpoint]]] = {}
        self._thread = get_ident()
        self._batch = 0  # what get_events has returned and nobody has processed
        self._error: Exception | None = None
        self._runner: Any = None
        self._helper: Helper | None = None  # in guest mode
        self._last_statistics: IOStatistics | None = None
        # No bound method: a cycle would keep the ring of a refused run for the collector.
        self.wake: Callable[[Any, Any], None] = _wake_before_run
        self.ring = Ring(sizes)
        self.pool = self.ring.pool
        self._token: trio.lowlevel.TrioToken | None = None  # how other threads reach the run
        _managers[id(self)] = self

    # ---- the loop ---------------------------------------------------------------------

    def get_events(self, timeout: float) -> int:
        """Submit, wait at most *timeout* seconds, and say what came."""
        if get_ident() != self._thread:
            woken = self._helper is None or self._helper.watch(timeout)
            return HOST_MUST_ENTER if woken else 0
        if self._batch:
            return self._batch
        if self._runner is not None and self._runner.is_guest and self._helper is None:
            self._open_helper()
        if timeout <= 0 or self.contended or self.held or self._error is not None:
            timeout_ns = 0
        else:
            timeout_ns = math.ceil(timeout * 1e9)
        self._batch = self._wait(timeout_ns)
        if self._helper is not None:
            self._helper.prepared = False
            if not self._batch and not self._runner.runq:
                self._batch = self._prepare_sleep(self._helper)
        return self._batch

    def _wait(self, timeout_ns: int) -> int:
        self.tick += 1
        wait = self.ring.wait
        if not timeout_ns:
            answer: int = wait(0)
        else:
            start = monotonic()
            end = start + timeout_ns / 1e9
            # Python runs signal handlers between these calls.
            interrupts, failed = 0, math.inf  # as if none had failed: asked for when it matters
            while (answer := wait(timeout_ns)) == EINTR:
                timeout_ns = max(0, math.ceil((end - monotonic()) * 1e9))
                interrupts += 1
                if interrupts == INTERRUPTS_MAX:
                    refused = self.ring.failed_enters - failed >= INTERRUPTS_MAX
                    if refused and monotonic() - start < INTERRUPTS_S:
                        self._error = self._lost(answer, "io_uring_enter")
                        break
                    interrupts, start = 0, monotonic()
                    failed = self.ring.failed_enters
        if answer < 0 and answer != EINTR:
            self._error = self._lost(answer, "io_uring_enter")
        if answer <= 0 and (answer < 0 or self.contended or self.held or self._error is not None):
            return NOTHING_TO_READ
        return answer

    def _lost(self, error: int, call: str) -> Exception:
        """What ends the run: the kernel refuses *call*, which worked until now."""
        if error == OWNER_DEAD:
            return self.ring.error(error)
        failure = ring_lost(-error, call)
        lost = trio.TrioInternalError(
            f"this run has lost its io_uring: {failure.reason}. {failure.remedy}"
        )
        lost.__cause__ = OSError(-error, failure.reason)
        return lost

    def process_events(self, events: Any) -> None:
        """Wake the tasks whose operations are over."""
        if self._runner is None:
            self._bind(run_context.runner)
        if events == HOST_MUST_ENTER:
            self._batch = events = self._wait(0)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        contended, self.contended = self.contended, []
        if events:
            self._batch = 0
            self.deliver(self, self.ring.records(events & RECORDS_MASK))
        for direction, operation in contended:
            direction.find_busy(operation)
        if self.held:
            start_held(self)

    def _bind(self, runner: Any) -> None:
        self._runner = runner
        self._token = runner.current_trio_token()
        self.wake = make_waker(runner)

    # ---- guest mode -------------------------------------------------------------------

    def _open_helper(self) -> None:
        try:
            self._helper = Helper(self.ring)
        except OSError as exc:
            self._error = self._refused(exc)

    def _refused(self, exc: OSError) -> Exception:
        """What it means that the ring could not be prepared for a helper's sleep."""
        error = exc.errno or 0
        if error not in DENIALS:
            return exc  # there was no descriptor or memory
        registers = (exc.strerror or "").startswith("register")
        return self._lost(-error, "io_uring_register" if registers else "io_uring_enter")

    def _prepare_sleep(self, helper: Helper) -> int:
        try:
            for _ in range(LOOKS_MAX):
                if helper.prepare():
                    return 0
                if answer := self._wait(0):
                    return answer
        except OSError as exc:
            self._error = self._refused(exc)
        except RuntimeError as exc:
            self._error = exc
        return NOTHING_TO_READ

    def show_to_helper(self, fd: int) -> None:
        """Guest mode: a poll of *fd*, which is no socket, was queued; see `_guest`."""
        if self._helper is None:
            self._open_helper()  # a task's first step comes before the first get_events
        if self._helper is not None:
            self._helper.show(fd, reads=fd * 2 in self.pollers, writes=fd * 2 + 1 in self.pollers)

    def force_wakeup(self) -> None:
        """Guest mode: have the helper thread return."""
        if self._helper is not None:
            self._helper.wake()

    def release_files(self) -> None:
        """Have the kernel let go, now, of files whose polls or operations were cancelled."""
        error = self.ring.flush()
        if error < 0:
            self._error = self._lost(error, "io_uring_enter")
        self.force_wakeup()

    def after_abort(self) -> None:
        """A cancel was queued: nobody else submits it while a guest's helper sleeps."""
        if self._helper is not None:
            self.ring.flush()
            self._helper.wake()

    # ---- readiness --------------------------------------------------------------------

    async def wait_readable(self, fd: Any) -> None:
        """Sleep until *fd* is readable; see `trio.lowlevel.wait_readable`."""
        poll = self._begin_poll(fd, POLLIN)
        self._end_poll(poll, await park(poll.trap))

    async def wait_writable(self, fd: Any) -> None:
        """Sleep until *fd* is writable; see `trio.lowlevel.wait_writable`."""
        poll = self._begin_poll(fd, POLLOUT)
        self._end_poll(poll, await park(poll.trap))

    def _begin_poll(self, fd: Any, events: int) -> Poll:
        # trio's own wakeup is a socket, and waited for again with each call from a thread:
        # what is known to be pollable is not looked at, and a poll is used again.
        is_socket = type(fd) is socket.socket
        if not isinstance(fd, int):
            fd = fd.fileno()
        if not isinstance(fd, int):
            fd = require_pollable(fd)
        key = fd * 2 + (events == POLLOUT)
        if key in self.pollers:
            raise trio.BusyResourceError(BUSY)
        if not is_socket or fd < 0:
            require_pollable(fd)
        poll, self._spare_poll = self._spare_poll, None
        if poll is None:
            poll = Poll(self)
        poll.begin(fd, key, events)
        if not is_socket and run_context.runner.is_guest:
            self.show_to_helper(fd)
        return poll

    def _end_poll(self, poll: Poll, value: Any) -> None:
        if value is not None:
            poll.trap = None
            raise_error(value)
        if poll.slot < 0 and not self.closed:
            self._spare_poll = poll

    # ---- operations -------------------------------------------------------------------

    def start(self, operation: Any, slot: int) -> int:
        """Enter an operation or a poll at its slot, as the preparing function gave it."""
        if slot < 0:
            raise self.ring.error(slot)
        if slot >= len(self.ops):
            self.ops.extend([None] * len(self.ops))
        self.ops[slot] = operation
        return slot

    def open_endpoint(self, owner: Any, fileno: Callable[[], int], *, is_socket: bool) -> Endpoint:
        """The endpoint of the open file that *owner* holds; *fileno* gives -1 once closed.

        Two trio sockets around one stdlib socket share it, so that their operations stand
        in one line.
        """
        fd = fileno()
        alive = []
        for reference in self._endpoints.get(fd, ()):
            endpoint = reference()
            if endpoint is None:
                continue
            if endpoint.owner is owner:
                return endpoint
            if endpoint.is_in_use():
                alive.append(reference)
        endpoint = Endpoint(self, owner, fileno, is_socket=is_socket)
        self._endpoints[fd] = [*alive, weakref.ref(endpoint)]
        return endpoint

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
        polls = []
        for key in (fd * 2, fd * 2 + 1):
            poll = self.pollers.get(key)
            if poll is not None:
                polls.append((poll, poll.task))
        references = self._endpoints.get(fd, ())
        endpoints = [endpoint for r in references if (endpoint := r()) is not None]
        return polls, endpoints

    def end_on(self, fd: int, *, detach: bool = False) -> None:
        """End what this run has on a file, on its own thread: here, or in its next turn."""
        if self.closed:
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
                del self.pollers[poll.key]
                wake.append((task, trio.ClosedResourceError(CLOSED)))
                poll.task = None
                in_kernel |= poll.drop()
        for endpoint in endpoints:
            in_kernel |= self._end(endpoint, wake, detach=detach)
            if detach:
                self._forget_number(endpoint)
        self._let_go(wake, in_kernel)

    def _forget_number(self, endpoint: Endpoint) -> None:
        """Its number may be another file's from now on, whose closing is none of its business."""
        references = self._endpoints.get(endpoint.fd, [])
        self._endpoints[endpoint.fd] = [r for r in references if r() is not endpoint]

    def _end(self, endpoint: Endpoint, wake: list[Any], *, detach: bool = False) -> bool:
        in_kernel = False
        for direction in (endpoint.receiver, endpoint.sender):
            exception: Exception
            if detach:
                exception = OSError(errno.EBADF, os.strerror(errno.EBADF))
            else:
                exception = trio.ClosedResourceError(CLOSED)
            in_kernel |= direction.end(exception, wake, detach)
        return in_kernel

    def _let_go(self, wake: list[tuple[Any, Exception]], in_kernel: bool) -> None:
        if in_kernel:
            self.release_files()
        current = getattr(run_context, "task", None)
        for task, exception in wake:
            if task is not current:
                self.wake(task, Error(copy.copy(exception)))
        for task, exception in wake:
            if task is current:
                raise exception

    def close(self) -> None:
        """Cancel what is in flight, wait for its end within a bound, close the ring."""
        if self.closed:
            return
        self._last_statistics = self.statistics()
        self.closed = True
        _managers.pop(id(self), None)
        try:
            finished = get_ident() == self._thread and drain(self, self._batch)
            if not finished:
                _leaked.append([op for op in self.ops if op is not None])
            self.pool = b""
            self.leaked = self.ring.close(leak=not finished)
            if self._helper is not None:
                self._helper.close()
                self._helper = None
        finally:
            self._batch = 0
            self.ops = []
            self.pollers.clear()
            self._spare_poll = None
            self._end_run()

    def _end_run(self) -> None:
        self._runner = None
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def abandon_in_child(self) -> None:
        """In a forked child: the ring is the parent's; forget it."""
        if not self.closed:
            self.closed = True
            self._end_run()
            if self._helper is not None:  # its eventfd would wake the parent's thread
                self._helper.close()
                self._helper = None
            self.ring.abandon()

    def __del__(self) -> None:
        # trio closes its manager, except when setting up a run fails after it was made.
        if not getattr(self, "closed", True) and hasattr(self, "ring"):
            self.close()

    # ---- statistics -------------------------------------------------------------------

    def statistics(self) -> IOStatistics:
        """The counters of this run; after its end, those it ended with."""
        if self._last_statistics is not None:
            return self._last_statistics
        return take_statistics(
            [operation for operation in (*self.ops, *self.held) if operation is not None],
            self.ring,
            batch_is_out=self._batch != 0,
            stock_calls=self.stock_calls,
        )


def _wake_before_run(task: Any, value: Any) -> None:
    manager = manager_of(task)
    manager._bind(runner_of(task))
    manager.wake(task, value)


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
    for reference in _managers.valuerefs():
        manager = reference()
        for references in list(manager._endpoints.values()) if manager is not None else ():
            for found in references:
                endpoint = found()
                if endpoint is not None:
                    endpoint.receiver.look_for_low_water()


def _abandon_all() -> None:
    for reference in _managers.valuerefs():
        manager = reference()
        if manager is not None:
            manager.abandon_in_child()
    _managers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
