"""A server: its states, what may be asked of it from anywhere, and the steps of its start."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

import trio

from uring_trio import _probe, _run
from uring_trio._trio_private import current_runner, run_context
from uring_trio.gain import _signals
from uring_trio.gain._address import parse_all
from uring_trio.gain._config import Config, make_config
from uring_trio.gain._errors import InvalidDuration, InvalidState, NotSupported
from uring_trio.gain._handler import Callbacks
from uring_trio.gain._lifecycle import Event, Lifecycle, State
from uring_trio.gain._logging import configured, logger
from uring_trio.gain._session import Session
from uring_trio.gain._statistics import ServerStatistics
from uring_trio.gain._supervisor import LEAVE_BEHIND_S, Supervisor
from uring_trio.gain._worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from uring_trio.gain._address import Address, Spec

DRAIN_TIMEOUT_S = 5.0


class Server:
    """Serves addresses with the callbacks of a handler; one start at a time.

    All methods but `start` and `serve` may be called from any thread, callback or task.

    Args:
      handler: an `EventHandler`, or any object that has some of its callbacks.
      config: the options; None is all defaults.

    Raises:
      TypeError: *handler* has no callback, or *config* is no `Config`.
    """

    def __init__(self, handler: Any, config: Config | None = None) -> None:
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config must be a gain.Config, not {config!r}")
        self._callbacks = Callbacks(handler)
        self._config = config or Config()
        self._lifecycle = Lifecycle()
        self._ended = threading.Event()  # a new one for each start
        self._session: Session | None = None
        self._last_statistics = ServerStatistics()

    # --- To start ---

    def start(self, address: str | Iterable[str]) -> None:
        """Serve until the server is shut down; blocks.

        One worker runs in the calling thread; more are threads, which do not keep the
        interpreter from exiting. In the main thread the first SIGINT or SIGTERM shuts the
        server down, the second aborts it, and either way this returns normally; then the
        old handlers are back.

        Args:
          address: one or several, such as ``"tcp://localhost:8080"`` or ``"unix://path"``.

        Raises:
          AddressError: an address is none, or does not resolve.
          OSError: an address cannot be bound; then none is.
          UringUnavailable: there is no ring here; it says why, and what to do about it.
          InvalidState: the server is started already; `ServerAlreadyRunning` if it runs.
          RuntimeError: called inside a trio run or an asyncio loop, which it would block.
          BaseException: what ``on_start``, a worker or a task of `start_soon` has raised;
            KeyboardInterrupt and SystemExit of any callback.
        """
        _refuse_inside_a_loop()
        specs = parse_all(address)
        # The supervisor of threads has nothing to do with a ring of its own.
        backend: _probe.Backend = "io_uring" if self._config.worker_count == 1 else "epoll"
        with self._claimed(), _signals.handled(self.async_shutdown, self._abort):
            serve = functools.partial(self._serve, specs, trio.TASK_STATUS_IGNORED)
            _run.run(serve, backend=backend, ring=self._config.ring)

    async def serve(
        self,
        address: str | Iterable[str],
        *,
        task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until the server is shut down, in a trio run of yours.

        One worker runs in this run if that is on the ring, so that callbacks may use its
        channels and events; else it is a thread. More workers are threads. Signals are left
        alone. If it is cancelled, connections are aborted without a drain; ``on_close`` is
        still called for each.

        Args:
          address: as for `start`.
          task_status: gets this server once it accepts.

        Raises:
          NotSupported: the options ask for a ring of other sizes than that of this run.
          AddressError: and all the others of `start`, which see.
        """
        specs = parse_all(address)
        with self._claimed():
            await self._serve(specs, task_status)

    # --- To stop ---

    def shutdown(self, drain_timeout: float = DRAIN_TIMEOUT_S) -> None:
        """Stop accepting and reading at once, flush, then close; returns when all is closed.

        In a trio task, and so in a callback, it does not block: like `async_shutdown`.
        Does nothing if the server does not run. If it is called again, the earlier of the
        two deadlines counts. Where a callback does not return in time, this does, with a
        logged warning.

        Args:
          drain_timeout: seconds for running callbacks to end and output to be taken; what
            is left is aborted then.

        Raises:
          InvalidDuration: *drain_timeout* is negative, or NaN.
        """
        ended = self._ended
        session = self._session
        if not self._stop(drain_timeout):
            return
        inside = session is not None and session.supervisor.is_in_callback()
        if not inside and not _in_trio_run():
            self._wait_for(ended, drain_timeout)

    def async_shutdown(self, drain_timeout: float = DRAIN_TIMEOUT_S) -> None:
        """As `shutdown`, without waiting for the end.

        Raises:
          InvalidDuration: *drain_timeout* is negative, or NaN.
        """
        self._stop(drain_timeout)

    # --- To ask ---

    def active_connections(self) -> int:
        """How many connections are open now, of all workers; a datagram is none."""
        session = self._session
        return 0 if session is None else sum(worker.active for worker in session.workers)

    def is_running(self) -> bool:
        """Whether all addresses are bound and nobody has stopped the server."""
        return self._lifecycle.state is State.RUNNING

    def addresses(self) -> tuple[Address, ...]:
        """What the server is bound to, with the ports that the kernel chose; else empty."""
        session = self._session
        return () if session is None else session.addresses

    def statistics(self) -> ServerStatistics:
        """What each worker does and has done; those of the last run when it is over."""
        session = self._session
        return self._last_statistics if session is None else session.statistics()

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task in the nursery of the calling worker; from elsewhere, of worker 0.

        If the task raises, the server is stopped, and the exception raised from `start`
        or `serve`. Shutdown cancels it.

        Raises:
          InvalidState: the server does not run.
        """
        session = self._session
        if session is None or self._lifecycle.state is State.STARTING:
            raise InvalidState("there is no worker to run a task: the server does not run")
        session.start_soon(async_fn, *args)

    # --- Inside ---

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Be started, and inactive again whatever comes of it."""
        self._lifecycle.tell(Event.START)
        self._ended = threading.Event()
        try:
            yield
        finally:
            self._lifecycle.tell(Event.ENDED)
            self._ended.set()

    async def _serve(self, specs: Sequence[Spec], task_status: trio.TaskStatus[Server]) -> None:
        count = self._config.worker_count
        inline = count == 1 and _probe.running_backend() == "io_uring"
        if inline:
            self._refuse_another_ring()
        else:
            _probe.choose("io_uring")  # raises here, before anything is bound
        workers = [Worker(i, self._callbacks, self._config, self) for i in range(count)]
        supervisor = Supervisor(workers, self._config, inline=inline)
        session = Session(workers, supervisor, specs, self._config)
        self._session = session
        try:
            # Else it was stopped before there was anybody to tell.
            if self._lifecycle.state is State.STARTING:
                with configured(self._config):
                    await supervisor.run(_Steps(self, session, task_status))
        finally:
            self._last_statistics = session.close()
            self._session = None

    def _refuse_another_ring(self) -> None:
        """Raise if the options ask for a ring that the run of the caller does not have."""
        wanted, there = self._config.ring, current_runner().io_manager.ring.options
        if wanted is not None and wanted != there:
            raise NotSupported(
                f"max_sq_entries and max_cq_events: the worker runs in your run, whose ring is "
                f"{there}; give ring={wanted} to uring_trio.run"
            )

    def _stop(self, drain_timeout: float) -> bool:
        """Have the server stop; whether there is anything to wait for."""
        if not drain_timeout >= 0:  # NaN too
            raise InvalidDuration(f"drain_timeout must be seconds from 0, not {drain_timeout!r}")
        if self._lifecycle.tell(Event.STOP) is State.INACTIVE:
            return False
        session = self._session
        if session is not None:
            session.supervisor.request_shutdown(drain_timeout)
        return True

    def _abort(self) -> None:
        self._stop(0)

    def _wait_for(self, ended: threading.Event, drain_timeout: float) -> None:
        if ended.wait(min(drain_timeout, threading.TIMEOUT_MAX)):
            return
        connections = -1
        # Twice, because the supervisor waits as long before it leaves threads behind.
        while not ended.wait(2 * LEAVE_BEHIND_S):
            before, connections = connections, self.active_connections()
            if connections == before:
                logger.warning("shutdown() returns, but a callback of the server does not")
                return


class _Steps:
    """What the supervisor has a server do at each step of its start."""

    def __init__(
        self, server: Server, session: Session, task_status: trio.TaskStatus[Server]
    ) -> None:
        self._server = server
        self._session = session
        self._task_status = task_status
        self.bind = session.bind
        self.listeners = session.listeners
        self.assign = session.assign

    def bound(self) -> bool:
        return self._server._lifecycle.tell(Event.BOUND) is State.RUNNING

    async def on_start(self) -> None:
        callbacks = self._server._callbacks
        if callbacks.on_start is not None:
            result = callbacks.on_start(self._server)
            if callbacks.is_async("on_start"):
                await result

    def started(self) -> None:
        self._task_status.started(self._server)


def listen_and_serve(address: str | Iterable[str], handler: Any, **options: Any) -> None:
    """Serve *address* with the callbacks of *handler* until the server is shut down.

    Args:
      address: one or several, as for `Server.start`.
      handler: as for `Server`.
      **options: the fields of `Config`.

    Raises:
      TypeError: there is no such option, or *handler* has no callback.
      ValueError: an option has a value that is not allowed.
      BaseException: as `Server.start`, which see.
    """
    Server(handler, make_config(**options)).start(address)


async def serve(
    address: str | Iterable[str],
    handler: Any,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve *address* with the callbacks of *handler*, in a trio run of yours.

    Args:
      address: one or several, as for `Server.start`.
      handler: as for `Server`.
      task_status: gets the `Server` once it accepts.
      **options: the fields of `Config`.

    Raises:
      TypeError: there is no such option, or *handler* has no callback.
      ValueError: an option has a value that is not allowed.
      BaseException: as `Server.serve`, which see; also for what cancellation leaves.
    """
    await Server(handler, make_config(**options)).serve(address, task_status=task_status)


def _in_trio_run() -> bool:
    return hasattr(run_context, "runner")  # trio's own in_trio_run() came with 0.29


def _refuse_inside_a_loop() -> None:
    """Raise if to block would stop a loop that runs in this thread."""
    asyncio = sys.modules.get("asyncio")  # if nobody has imported it, none of its loops runs
    if _in_trio_run():
        where = "a trio run"
    elif asyncio is not None and asyncio._get_running_loop() is not None:
        where = "an asyncio loop"
    else:
        return
    raise RuntimeError(
        f"start() blocks, and was called inside {where}; use `await serve(...)` in a trio run, "
        "or call start() in a thread of its own"
    )
