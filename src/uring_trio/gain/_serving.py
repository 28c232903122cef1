"""One start of a server, from its addresses to its end; `Serving.run` tells it in order.

What runs where
---------------
A worker runs in a thread with a ring and a trio run of its own, or, if there is only one
and the caller's run is on the ring, in that run. Either way it is one task of the caller's
run: the task ends when the worker has, and when it is cancelled it aborts the worker and
waits for its end. So a nursery is all the supervision there is, and one cancel scope around
it all that ends it early.

Orders go to a worker through ``worker.post``, news comes back through the caller's trio
token, both directly where it is the same run; so all that is known here is read and changed
in the caller's run alone. What other threads have to do with is behind `Serving._lock`:
whether somebody has stopped the server, who has which listener, and which worker has begun,
or is to be aborted.

How it ends
-----------
*Stopped*: the workers drain until the deadline, which a later stop may bring forward. It is
the scope's: what is left then is cancelled, and so aborted. One that comes before all
addresses are bound, or all workers run, gives the start up. *Failed*, because a worker, its
start or ``on_start`` has raised: the scope is cancelled, and the first error is raised.
*Cancelled* by the caller: the same, without an error. The waiting for the workers' end is
shielded, so that ``on_close`` still runs. *Lost*, with the caller's run, where that loses its
ring: nothing is unwound then, and no news arrives. The workers in threads are aborted all the
same, one that has not begun by itself, and nobody waits for them.

Nobody can end a thread that is inside a plain callback. So after an abort we wait as long
as workers end, or connections close, at least every `LEAVE_BEHIND_S`, or once the time is
over that an async ``on_close`` has; then what is left is left behind with a warning. Its
threads are daemons, and end when their callbacks do.
"""

from __future__ import annotations

import contextlib
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import outcome
import trio

from uring_trio import _probe, _run
from uring_trio._trio_private import current_runner, run_context
from uring_trio.gain import _listen
from uring_trio.gain._accept import make_assign
from uring_trio.gain._callbacks import ON_CLOSE_S
from uring_trio.gain._config import usable_cpus
from uring_trio.gain._errors import GainError, InvalidState, NotSupported, alone
from uring_trio.gain._surroundings import configured, logger, placed
from uring_trio.gain._worker import Worker, WorkerStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from uring_trio._ring_options import RingOptions
    from uring_trio.gain._address import Address, Spec
    from uring_trio.gain._callbacks import Callbacks
    from uring_trio.gain._config import Config
    from uring_trio.gain._listen import Listener

# A worker that answers closes 10,000 connections in well under a second, so one in which
# nothing closes for as long is in somebody's callback.
LEAVE_BEHIND_S = 1.0

# Set in all that a worker runs, its tasks and the threads of `trio.to_thread` included.
_runs_in: ContextVar[Serving | None] = ContextVar("_runs_in", default=None)


@dataclass(frozen=True, kw_only=True)
class ServerStatistics:
    """All workers of a server; of its last run while it is not running.

    Attributes:
      workers: one entry for each worker, in the order of their indices.
    """

    workers: tuple[WorkerStatistics, ...] = ()


class Serving:
    """One start of a server; made in any thread, and run once in the caller's trio run.

    Args:
      server: for its callbacks.
      callbacks: the handler's.
      config: of the server.
      specs: where to listen.

    Attributes:
      workers: by index; inert until `run` has them run.
      addresses: what is bound; empty until everything is.
      bound: everything is, and all workers run: from ``on_start`` on.
      stopped: somebody has stopped it.
      ended: set when all is over, and the server may be started again.
    """

    def __init__(
        self, server: Any, callbacks: Callbacks, config: Config, specs: Sequence[Spec]
    ) -> None:
        self._server = server
        self._callbacks = callbacks
        self._config = config
        self._specs = specs
        self.workers = [Worker(i, callbacks, config, server) for i in range(config.worker_count)]
        for worker in self.workers:
            worker.meet(self.workers)
        self.addresses: tuple[Address, ...] = ()
        self.bound = False
        self.stopped = False
        self.ended = threading.Event()
        # Re-entrant, because a signal handler may stop the server while its thread is in here.
        self._lock = threading.RLock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._failure: BaseException | None = None
        # Of each worker what it is to listen on, and who has taken that.
        self._listeners: list[list[Listener]] = []
        self._taken: set[Worker] = set()
        self._closed = False
        self._left_behind: set[Worker] = set()

    # --- The one task ---

    @trio.lowlevel.enable_ki_protection
    async def run(self, task_status: trio.TaskStatus[Any]) -> None:
        """Serve until the server is stopped or fails.

        Raises:
          NotSupported: the options ask for a ring that the caller's run does not have.
          BaseException: what a step of the start or a worker has raised, the first if there
            are several.
        """
        # What raises here does so before anything is bound.
        manager: Any = current_runner().io_manager
        ring: Any = getattr(manager, "ring", None)  # of the caller's run
        self._inline = ring is not None and len(self.workers) == 1
        if not self._inline:
            _probe.choose("io_uring")
        elif self._config.ring not in (None, ring.options):
            raise NotSupported(refusal_of_ring(self._config, ring.options))
        self._scope = trio.CancelScope()
        self._stop_wanted = trio.Event()
        self._ready = {worker: trio.Event() for worker in self.workers}
        self._on_start_over = trio.Event()
        self._listening = {worker: trio.Event() for worker in self.workers}
        self._aborted: set[Worker] = set()
        self._begun: set[Worker] = set()  # can be told to abort
        self._cpus = usable_cpus()
        with self._lock:
            self._token = trio.lowlevel.current_trio_token()
            if self.stopped:  # before there was anybody to tell
                return
        told = False
        if_lost: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if ring is not None and not self._inline:
            if_lost = manager.when_lost(self._lose_caller)
        try:
            run_worker = self._run_here if self._inline else self._run_in_thread
            with self._logging(), if_lost, self._scope:
                slow = [spec for spec in self._specs if spec.may_block]
                if slow:
                    # A look-up may take minutes, and cannot be interrupted. The lock of a path
                    # may take a second, and until then the path may come to be there.
                    looks_up = any(spec.network != "unix" for spec in slow)
                    await trio.to_thread.run_sync(self._bind, abandon_on_cancel=looks_up)
                    await trio.lowlevel.checkpoint_if_cancelled()
                else:
                    self._bind()

                async with trio.open_nursery() as nursery:
                    for worker in self.workers:
                        nursery.start_soon(run_worker, worker)
                    for ready in self._ready.values():
                        await ready.wait()

                    self.bound = not self.stopped
                    if not self.bound:
                        nursery.cancel_scope.cancel()
                        return
                    if self._callbacks.on_start is not None:
                        first = self.workers[0]
                        self._order(first, first.start_soon, self._call_on_start)
                        await self._on_start_over.wait()

                    if not self.stopped:
                        many = len(self.workers) > 1
                        assign = make_assign(self.workers, self._config) if many else None
                        for worker in self.workers:
                            self._order(worker, worker.start_soon, self._listen, worker, assign)
                        for listening in self._listening.values():
                            await listening.wait()
                    told = True
                    task_status.started(self._server)

                    await self._stop_wanted.wait()
                    timeout = max(0.0, self._scope.deadline - trio.current_time())
                    for worker in self.workers:
                        self._order(worker, worker.begin_shutdown, timeout)
        finally:
            self._close()
            failure, self._failure = self._failure, None
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure  # its traceback holds this frame
        if self.bound and not told:
            task_status.started(self._server)  # stopped, and on_start took too long

    def _stop(self, drain_timeout: float) -> None:
        """In the caller's run: give the start up, or begin to drain."""
        if self.bound:
            deadline = trio.current_time() + drain_timeout
            self._scope.deadline = min(self._scope.deadline, deadline)
        else:
            self._scope.cancel()
        self._stop_wanted.set()

    def _lose_caller(self) -> None:
        """The caller's run was lost, and is not unwound: nobody could stop the workers any more."""
        for worker in self.workers:
            self._order_abort(worker)

    def _order_abort(self, worker: Worker) -> None:
        """Have it aborted once: now, or by itself, as soon as it can be."""
        with self._lock:
            if worker in self._aborted:
                return
            self._aborted.add(worker)
            begun = worker in self._begun
        if begun:
            worker.post(worker.abort)

    def _fail(self, error: BaseException) -> None:
        """In the caller's run: abort all, and raise the first error at the end."""
        if self._failure is None:
            self._failure = error
            self._scope.cancel()
        else:
            logger.error("another failure, after %r", self._failure, exc_info=error)

    # --- What only those have who ask for it ---

    def _logging(self) -> contextlib.AbstractContextManager[None]:
        config = self._config
        asked = config.logger_level is not None or config.pretty_logger
        return configured(config) if asked else contextlib.nullcontext()

    def _placed(self, worker: Worker) -> contextlib.AbstractContextManager[None]:
        config = self._config
        asked = config.cpu_affinity or config.process_priority
        return placed(worker.index, config, self._cpus) if asked else contextlib.nullcontext()

    # --- Sockets ---

    def _bind(self) -> None:
        """Bind everything; in a thread if that may take its time."""
        listeners = _listen.bind(self._specs, self._config, len(self.workers))
        with self._lock:
            if not self._closed:
                self._listeners = listeners
                # The first worker has them all: what is shared, and its own of what is not.
                self.addresses = tuple(listener.address for listener in listeners[0])
                return
        for each in listeners:  # the start was given up meanwhile
            for listener in each:
                listener.close()

    def _take(self, worker: Worker) -> list[Listener]:
        """What a worker is to listen on, which is its own from now on."""
        with self._lock:
            if self._closed:
                return []
            self._taken.add(worker)
            return self._listeners[worker.index]

    def _close(self) -> None:
        """Close what is in no worker's hands, or not any more."""
        with self._lock:
            self._closed = True
        for worker, listeners in zip(self.workers, self._listeners, strict=False):
            for listener in listeners:
                if worker in self._left_behind and worker in self._taken:
                    # It cannot be closed under it, so at least nobody connects to it any more.
                    listener.refuse_clients()
                else:
                    listener.close()

    # --- A worker, as a task of the caller's run ---

    async def _run_here(self, worker: Worker) -> None:
        """A worker in the caller's run: cancelled, it aborts by itself."""
        with self._placed(worker):
            result = await outcome.acapture(self._run_worker, worker)
        self._note_end(worker, result)

    @trio.lowlevel.enable_ki_protection
    async def _run_in_thread(self, worker: Worker) -> None:
        """A worker in a thread with a run of its own: cancelled, it is aborted and waited for."""
        ended = trio.Event()
        results: list[outcome.Outcome[None]] = []

        def run() -> None:
            with self._placed(worker):
                results.append(
                    outcome.capture(
                        _run.run,
                        self._run_worker,
                        worker,
                        backend="io_uring",
                        ring=self._config.ring,
                    )
                )
            if worker in self._left_behind or not self._tell(ended.set):
                log_failure(worker, results[0])

        # A daemon, so that one that is left behind keeps no program from exiting; and not one
        # of trio's, which would be there for some seconds more when the server has ended.
        name = f"uring_trio.gain worker {worker.index}"
        try:
            threading.Thread(target=run, name=name, daemon=True).start()
        except RuntimeError as exc:  # there is no room for one
            self._fail(exc)
            return
        try:
            await ended.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._abort(worker, ended)
            if not ended.is_set():
                return
        self._note_end(worker, results[0])

    async def _abort(self, worker: Worker, ended: trio.Event) -> None:
        """Abort it, at once or as soon as it is ready; wait, but not for ever."""
        self._order_abort(worker)
        while not ended.is_set():
            before = self._progress()
            with trio.move_on_after(LEAVE_BEHIND_S):
                await ended.wait()
            if self._progress() == before and worker.elsewhere.closing:
                # The worker itself ends an on_close that takes longer, if it can.
                with trio.move_on_after(ON_CLOSE_S):
                    await ended.wait()
            if not ended.is_set() and self._progress() == before:
                self._left_behind.add(worker)
                logger.warning(
                    "Worker %d is left behind: its thread is still in a callback", worker.index
                )
                return

    def _progress(self) -> tuple[int, int]:
        """What changes while workers close connections, and end."""
        return sum(worker.active for worker in self.workers), sum(w.ended for w in self.workers)

    def _note_end(self, worker: Worker, result: outcome.Outcome[None]) -> None:
        error = error_of(result)
        if error is not None:
            self._fail(error)
        elif isinstance(result, outcome.Value) and not self.stopped and worker not in self._aborted:
            self._fail(GainError(f"worker {worker.index} ended, and nobody had stopped it"))

    def _order(self, worker: Worker, fn: Callable[..., object], *args: Any) -> None:
        """Have *fn* called in the worker's run."""
        if self._inline:
            fn(*args)
        else:
            worker.post(fn, *args)

    # --- In a worker's run ---

    def _report(self, worker: Worker, news: Callable[..., None], *args: Any) -> None:
        """Have *news* called in the caller's run; if that is over, so is the worker."""
        if self._inline:
            news(*args)
        elif not self._tell(news, *args):
            self._order_abort(worker)

    @trio.lowlevel.enable_ki_protection
    async def _run_worker(self, worker: Worker) -> None:
        _runs_in.set(self)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            self._report(worker, self._ready[worker].set)
            # What a run that is lost is told does not arrive, so this is known on both sides.
            with self._lock:
                self._begun.add(worker)
                aborted = worker in self._aborted
            if aborted:
                worker.abort()

    async def _call_on_start(self) -> None:
        """To raise ends the worker, and so the start."""
        assert self._callbacks.on_start is not None
        result = self._callbacks.on_start(self._server)
        if self._callbacks.is_async("on_start"):
            await result
        self._report(self.workers[0], self._on_start_over.set)

    @trio.lowlevel.enable_ki_protection
    async def _listen(self, worker: Worker, assign: Callable[[Address], Worker] | None) -> None:
        for listener in self._take(worker):
            worker.listen(listener, assign)
        self._report(worker, self._listening[worker].set)

    # --- From any thread, signal handlers included ---

    def _tell(self, news: Callable[..., None], *args: Any) -> bool:
        """Have *news* called in the caller's run; False if that has ended."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(news, *args)
        except (trio.RunFinishedError, OSError):  # a run that was lost has no wakeup any more
            return False
        return True

    def stop(self, drain_timeout: float) -> None:
        """Stop, and abort what has not drained after *drain_timeout* seconds."""
        with self._lock:
            self.stopped = True
            begun = self._token is not None
        if begun:
            self._tell(self._stop, drain_timeout)

    def is_running(self) -> bool:
        """Whether all is bound, and nobody has stopped it."""
        return self.bound and not self.stopped

    def is_in_callback(self) -> bool:
        """Whether the caller is one of the workers' callbacks or tasks, in whatever thread."""
        return _runs_in.get() is self

    def is_closing(self) -> bool:
        """Whether an async ``on_close`` runs, which has its time."""
        return any(worker.elsewhere.closing for worker in self.workers)

    def active(self) -> int:
        """How many connections are open now."""
        return sum(worker.active for worker in self.workers)

    def statistics(self) -> ServerStatistics:
        """What the workers say; one that is busy answers between two callbacks."""
        return ServerStatistics(workers=tuple(worker.statistics() for worker in self.workers))

    def final_statistics(self) -> ServerStatistics:
        """What the workers have done; none of them is asked any more."""
        return ServerStatistics(workers=tuple(map(_final_statistics, self.workers)))

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task in the nursery of the calling worker, or of worker 0.

        Raises:
          InvalidState: there is no worker yet, or none any more.
        """
        if not self.bound:
            raise InvalidState("there is no worker to run a task: the server does not run")
        # In guest mode the host loop has this thread too, and is in no task of ours.
        # trio's own in_trio_task() came with 0.29.
        here = threading.get_ident() if hasattr(run_context, "task") else None
        for worker in self.workers:
            if here is not None and worker.thread == here:
                worker.nursery.start_soon(async_fn, *args)
                return
        worker = self.workers[0]
        if not worker.post(worker.nursery.start_soon, async_fn, *args):
            raise InvalidState("there is no worker to run a task: it has ended")


def refusal_of_ring(config: Config, there: RingOptions) -> str:
    """Why a server with these options cannot be served by a run with that ring."""
    wanted = " and ".join(
        f"{name}={value}"
        for name in ("max_sq_entries", "max_cq_events")
        if (value := getattr(config, name)) is not None
    )
    return (
        f"{wanted}: the worker runs in your run, whose ring is {there}; "
        f"give ring={config.ring} to uring_trio.run, or workers=2 for rings of their own"
    )


def error_of(result: outcome.Outcome[None]) -> BaseException | None:
    """What a worker has failed with; no cancellation."""
    return alone(result.error) if isinstance(result, outcome.Error) else None


def log_failure(worker: Worker, result: outcome.Outcome[None]) -> None:
    """Tell of a worker that nobody waits for any more."""
    error = error_of(result)
    if error is not None:
        logger.error("worker %d failed", worker.index, exc_info=error)


def _final_statistics(worker: Worker) -> WorkerStatistics:
    if worker.ended:
        return worker.statistics()
    # It never ran, or was left behind in a callback and cannot be asked.
    return WorkerStatistics(
        connections=worker.active, bytes_in=worker.turn.bytes_in, bytes_out=worker.turn.bytes_out
    )
