"""Runs the workers of one server from one task, until all of them have ended.

One task, and what it waits for
-------------------------------
A worker runs in a thread with a ring and a trio run of its own, or, if there is only one
and the caller's run is on the ring, in that run. Either way it is the same to us: orders go
to it through ``worker.post``, news comes back through the caller's trio token. So all that
is known here is read and changed in the caller's run alone, and needs no lock; each piece
of news sets ``_changed``, and the one task looks whether what it waits for has come true.

How it ends
-----------
*Stopped*: the workers drain until the deadline, which a later stop may bring forward. Then
what is left is aborted. *Failed*, because a worker, its start or ``on_start`` has raised:
all are aborted, and the first error is raised. *Cancelled*: all are aborted; the waiting
for their end is shielded, so that ``on_close`` still runs.

Nobody can end a thread that is inside a plain callback. So after an abort we wait as long
as workers end, or connections close, at least every `LEAVE_BEHIND_S`; then the rest is
left behind with a warning. Its threads are daemons, and end when their callbacks do.
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import outcome
import trio

from uring_trio import _run
from uring_trio.gain._errors import GainError
from uring_trio.gain._logging import logger
from uring_trio.gain._placement import placed, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from uring_trio.gain._address import Address
    from uring_trio.gain._config import Config
    from uring_trio.gain._listen import Listener
    from uring_trio.gain._worker import Worker

if sys.version_info < (3, 11):
    # What trio itself needs there; not for the type checker, which runs on later ones too.
    from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found,unused-ignore]

# A worker that answers closes 10,000 connections in well under a second, so one in which
# nothing closes for as long is in somebody's callback.
LEAVE_BEHIND_S = 1.0


# Set in all that a worker runs, its tasks and the threads of `trio.to_thread` included.
_runs_in: ContextVar[Supervisor | None] = ContextVar("_runs_in", default=None)


class Site(Protocol):
    """What a server does at each step of its start, in the supervisor's task."""

    async def bind(self) -> None:
        """Bind all addresses; cancelled if the server is stopped meanwhile."""

    def bound(self) -> bool:
        """All workers run; whether the server does now, and was not stopped."""

    async def on_start(self) -> None:
        """Called in the first worker's run."""

    def listeners(self) -> list[list[Listener]]:
        """For each worker what it is to listen on; those taken are not given again."""

    def assign(self) -> Callable[[Address], Worker] | None:
        """What chooses the worker of an accepted connection."""

    def started(self) -> None:
        """Everything listens."""


class _Supervised:
    """One worker, as its supervisor sees it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.ready = False
        self.aborted = False
        self.left_behind = False
        self.listeners: list[Listener] = []
        self.result: outcome.Outcome[None] | None = None

    @property
    def ended(self) -> bool:
        return self.result is not None

    def abort(self) -> None:
        """Abort it, at once or as soon as it is ready."""
        self.aborted = True
        if self.ready:
            self.worker.post(self.worker.abort)


class _TaskStatus:
    """Calls a function when a worker says that it has started."""

    def __init__(self, ready: Callable[[], object]) -> None:
        self._ready = ready

    def started(self, value: Any = None) -> None:
        self._ready()


class Supervisor:
    """To be made and run in the caller's trio run; the requests may come from any thread.

    Args:
      workers: made and inert.
      config: of the server.
      inline: run the only worker in the caller's run.
    """

    def __init__(self, workers: Sequence[Worker], config: Config, *, inline: bool) -> None:
        assert workers
        assert len(workers) == 1 or not inline
        self._workers = [_Supervised(worker) for worker in workers]
        self._launched: list[_Supervised] = []
        self._config = config
        self._inline = inline
        self._cpus = usable_cpus()
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()
        self._starting = trio.CancelScope()
        self._waiting = trio.CancelScope()
        self._serving = False
        self._stopped = False
        self._deadline = math.inf  # of the drain, by the clock of the caller's run
        self._failure: BaseException | None = None
        self._on_start_done = False

    # --- From any thread, signal handlers included ---

    def request_shutdown(self, drain_timeout: float) -> None:
        """Stop, and abort what has not drained after *drain_timeout* seconds."""
        self._tell(self._stop, drain_timeout)

    def request_abort(self) -> None:
        """Stop without a drain."""
        self._tell(self._stop, 0.0)

    def is_in_callback(self) -> bool:
        """Whether the caller is one of the workers' callbacks or tasks, in whatever thread."""
        return _runs_in.get() is self

    def _tell(self, news: Callable[..., None], *args: Any) -> bool:
        """Have *news* called in the caller's run; False if that has ended."""
        try:
            self._token.run_sync_soon(news, *args)
        except trio.RunFinishedError:
            return False
        return True

    # --- The one task ---

    @trio.lowlevel.enable_ki_protection
    async def run(self, site: Site) -> None:
        """Run the workers, until the server is stopped or fails.

        Raises:
          BaseException: what *site* or a worker has raised, the first if there are several.
        """
        async with trio.open_nursery() as nursery:
            result = await outcome.acapture(self._operate, site, nursery)
            error = result.error if isinstance(result, outcome.Error) else None
            cancelled = isinstance(error, trio.Cancelled)
            with trio.CancelScope(shield=True):
                # In the caller's run it is cancelled as we are, and aborts by itself.
                await self._abort_the_rest(told=self._inline and cancelled)
        if self._failure is not None and (error is None or cancelled):
            raise self._failure
        result.unwrap()

    async def _operate(self, site: Site, nursery: trio.Nursery) -> None:
        with self._starting:
            await site.bind()
            self._launch(nursery)
            await self._until(lambda: all(each.ready for each in self._workers))
        if self._stopped or not site.bound():
            return
        self._in_first_worker(site.on_start)
        await self._until_deadline(lambda: self._on_start_done)
        if not self._stopped:
            self._hand_out(site)
            await self._until(lambda: self._stopped or not any(map(len, site.listeners())))
        site.started()
        if self._stopped:
            self._drain()
        self._serving = True
        await self._until_deadline(self._all_ended)

    async def _until(self, condition: Callable[[], bool], *, failing: bool = True) -> None:
        """Wait for *condition*; raises what has failed, if *failing*."""
        while True:
            if failing and self._failure is not None:
                raise self._failure
            if condition():
                return
            self._changed = trio.Event()
            await self._changed.wait()

    async def _until_deadline(self, condition: Callable[[], bool]) -> None:
        """Wait for *condition*, or until the deadline of a stop, which may be yet to come."""
        self._waiting = trio.CancelScope(deadline=self._deadline)
        with self._waiting:
            await self._until(condition)

    def _all_ended(self) -> bool:
        return all(each.ended for each in self._launched)

    def _hand_out(self, site: Site) -> None:
        assign = site.assign()
        for each, listeners in zip(self._workers, site.listeners(), strict=True):
            each.listeners = list(listeners)
            each.worker.post(self._listen, each, listeners, assign)

    async def _abort_the_rest(self, *, told: bool) -> None:
        rest = [each for each in self._launched if not each.ended]
        for each in rest:
            if not told:
                each.abort()
        while rest:
            connections = sum(each.worker.active for each in rest)
            with trio.move_on_after(LEAVE_BEHIND_S):
                await self._until(self._all_ended, failing=False)
            ended = [each for each in rest if each.ended]
            rest = [each for each in rest if not each.ended]
            stuck = not ended and connections == sum(each.worker.active for each in rest)
            # In the caller's own run there is no leaving: a nursery waits for its tasks.
            if stuck and not self._inline:
                for each in rest:
                    self._leave_behind(each)
                return

    def _leave_behind(self, each: _Supervised) -> None:
        each.left_behind = True
        logger.warning(
            "Worker %d is left behind: its thread is still in a callback", each.worker.index
        )
        for listener in each.listeners:
            # What it holds it cannot close, so at least nobody connects to it any more.
            refuse_clients(listener)

    def _drain(self) -> None:
        timeout = max(0.0, self._deadline - trio.current_time())
        for each in self._workers:
            each.worker.post(each.worker.begin_shutdown, timeout)

    # --- News, in the caller's run ---

    def _stop(self, drain_timeout: float) -> None:
        first, self._stopped = not self._stopped, True
        self._deadline = min(self._deadline, trio.current_time() + drain_timeout)
        self._waiting.deadline = self._deadline
        self._starting.cancel()
        if first and self._serving:
            self._drain()  # here, and not in the task: it is to stop at once
        self._changed.set()

    def _note_ready(self, each: _Supervised) -> None:
        each.ready = True
        if each.aborted:
            each.abort()
        self._changed.set()

    def _note_end(self, each: _Supervised, result: outcome.Outcome[None]) -> None:
        each.result = result
        error = error_of(result)
        if error is not None:
            self._fail(error)
        elif not self._stopped and not each.aborted and isinstance(result, outcome.Value):
            self._fail(GainError(f"worker {each.worker.index} ended, and nobody had stopped it"))
        self._changed.set()

    def _note_on_start(self, error: BaseException | None) -> None:
        self._on_start_done = True
        if error is not None:
            self._fail(error)
        self._changed.set()

    def _note_listening(self) -> None:
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        else:
            logger.error("another failure, after %r", self._failure, exc_info=error)
        self._changed.set()

    # --- The workers ---

    def _launch(self, nursery: trio.Nursery) -> None:
        for each in self._workers:
            if self._inline:
                nursery.start_soon(self._run_inline, each)
            else:
                threading.Thread(
                    target=self._run_in_thread,
                    args=(each,),
                    name=f"uring_trio.gain worker {each.worker.index}",
                    daemon=True,  # one that is left behind does not keep the program
                ).start()
            self._launched.append(each)

    async def _run_inline(self, each: _Supervised) -> None:
        with placed(each.worker.index, self._config, self._cpus):
            result = await outcome.acapture(self._run_worker, each)
        self._note_end(each, result)

    def _run_in_thread(self, each: _Supervised) -> None:
        result: outcome.Outcome[None]
        config = self._config
        with placed(each.worker.index, config, self._cpus):
            result = outcome.capture(
                _run.run, self._run_worker, each, backend="io_uring", ring=config.ring
            )
        if not self._tell(self._note_end, each, result):
            error = error_of(result)
            if error is not None:
                logger.error("worker %d failed", each.worker.index, exc_info=error)

    async def _run_worker(self, each: _Supervised) -> None:
        _runs_in.set(self)
        ready = functools.partial(self._tell, self._note_ready, each)
        await each.worker.run(task_status=_TaskStatus(ready))

    def _in_first_worker(self, on_start: Callable[[], Awaitable[None]]) -> None:
        worker = self._workers[0].worker
        worker.post(lambda: worker.nursery.start_soon(self._run_on_start, on_start))

    async def _run_on_start(self, on_start: Callable[[], Awaitable[None]]) -> None:
        error: BaseException | None = None
        try:
            await on_start()
        except trio.Cancelled:
            raise
        except BaseException as exc:  # noqa: BLE001  raised in the caller's run
            error = exc
        self._tell(self._note_on_start, error)

    def _listen(
        self,
        each: _Supervised,
        listeners: list[Listener],
        assign: Callable[[Address], Worker] | None,
    ) -> None:
        """In the worker's run: it owns each listener that it has taken."""
        try:
            while listeners and not each.left_behind:
                each.worker.listen(listeners[0], assign)
                del listeners[0]
        except BaseException as exc:  # noqa: BLE001  raised in the caller's run
            self._tell(self._fail, exc)
        else:
            self._tell(self._note_listening)


def error_of(result: outcome.Outcome[None]) -> BaseException | None:
    """What a worker has failed with, out of its groups if it is alone; no cancellation."""
    if not isinstance(result, outcome.Error):
        return None
    error: BaseException | None = result.error
    if isinstance(error, BaseExceptionGroup):
        error = error.split(trio.Cancelled)[1]
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return None if isinstance(error, trio.Cancelled) else error


def refuse_clients(listener: Listener) -> None:
    """Have the kernel take no more connections, although the socket stays open."""
    with contextlib.suppress(OSError):  # UDP, or closed in this moment
        listener.sock.shutdown(socket.SHUT_RDWR)
