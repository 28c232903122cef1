"""What a user has of a callback server: a handler's callbacks, and the server that calls them.

It is started here, and may be asked from anywhere. What a start is, from its addresses to its
end, is `_serving`; a server has at most one.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from typing import TYPE_CHECKING, Any

import trio

from uring_trio import _run
from uring_trio._trio_private import run_context
from uring_trio.gain._address import parse_all
from uring_trio.gain._callbacks import ON_CLOSE_S, Callbacks
from uring_trio.gain._config import Config, make_config
from uring_trio.gain._conn import Conn, DatagramConn
from uring_trio.gain._errors import InvalidDuration, InvalidState, ServerAlreadyRunning
from uring_trio.gain._serving import LEAVE_BEHIND_S, ServerStatistics, Serving
from uring_trio.gain._surroundings import logger, signals_handled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from uring_trio._probe import Backend
    from uring_trio.gain._address import Address, Spec

DRAIN_TIMEOUT_S = 5.0


class EventHandler:
    """The callbacks of a server; define those that you need, as ``def`` or ``async def``.

    A ``def`` runs in the worker's loop and must not block. An ``async def`` runs as a task;
    no two callbacks of one connection ever overlap. One that is not defined costs nothing.
    All workers share one handler: with more than one it is called from several threads.

    A callback that raises is logged, and closes its connection, which gets the exception
    in ``on_close``.
    """

    def on_start(self, server: Server) -> Any:
        """The addresses are bound, and nothing is accepted yet. To raise stops the start."""

    def on_accept(self, conn: Conn) -> Any:
        """A connection was accepted; with ``tls=`` its handshake is done. Not for UDP."""

    def on_read(self, conn: Conn, n: int) -> Any:
        """*n* bytes have come that no ``on_read`` has announced and nobody has consumed."""

    def on_write(self, conn: Conn, n: int) -> Any:
        """The kernel has taken *n* bytes since the last ``on_write``; at most once a tick."""

    def on_close(self, conn: Conn, err: BaseException | None) -> Any:
        """The connection is closed; called exactly once for each that was accepted.

        Args:
          conn: its data methods raise `ConnectionClosed` now.
          err: None after our ``close()``, ``abort()`` or shutdown; `EndOfStream` after the
            peer's end of file; an OSError; `DeadlineExceeded`; or what a callback raised.
        """

    def on_eof(self, conn: Conn) -> Any:
        """The peer has sent its end of file; the connection stays open for writing.

        Where a handler does not define it the connection flushes and closes by itself.
        """

    def on_tick(self, server: Server) -> Any:
        """Called every ``tick`` seconds, in worker 0 only."""


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
        self._callbacks = Callbacks(handler, Conn, DatagramConn, EventHandler)
        self._config = config or Config()
        # Two may start it at once; whoever stops it asks what is there.
        self._claiming = threading.Lock()
        self._serving: Serving | None = None  # from a start to its end
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
        backend: Backend = "io_uring" if self._config.worker_count == 1 else "epoll"
        handled = signals_handled(self.async_shutdown, self._abort)
        with self._claimed(specs) as serving, handled:
            ring = self._config.ring
            _run.run(serving.run, trio.TASK_STATUS_IGNORED, backend=backend, ring=ring)

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
          task_status: gets this server once it accepts. Of one that is stopped before that
            ``nursery.start`` raises trio's RuntimeError.

        Raises:
          NotSupported: the options ask for a ring of other sizes than that of this run.
          AddressError: and all the others of `start`, which see.
        """
        with self._claimed(parse_all(address)) as serving:
            await serving.run(task_status)

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
          InvalidDuration: *drain_timeout* is negative, no number, or too large for a float.
        """
        serving = self._stop(drain_timeout)
        if serving is not None and not serving.is_in_callback() and not _in_trio_run():
            _wait_for(serving, drain_timeout)

    def async_shutdown(self, drain_timeout: float = DRAIN_TIMEOUT_S) -> None:
        """As `shutdown`, without waiting for the end.

        Raises:
          InvalidDuration: *drain_timeout* is negative, no number, or too large for a float.
        """
        self._stop(drain_timeout)

    # --- To ask ---

    def active_connections(self) -> int:
        """How many connections are open now, of all workers; a datagram is none."""
        serving = self._serving
        return 0 if serving is None else serving.active()

    def is_running(self) -> bool:
        """Whether all addresses are bound and nobody has stopped the server."""
        serving = self._serving
        return serving is not None and serving.is_running()

    def addresses(self) -> tuple[Address, ...]:
        """What the server is bound to, with the ports that the kernel chose; else empty."""
        serving = self._serving
        return () if serving is None else serving.addresses

    def statistics(self) -> ServerStatistics:
        """What each worker does and has done; those of the last run when it is over."""
        serving = self._serving
        return self._last_statistics if serving is None else serving.statistics()

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task in the nursery of the calling worker; from elsewhere, of worker 0.

        If the task raises, the server is stopped, and the exception raised from `start`
        or `serve`. Shutdown cancels it.

        Raises:
          InvalidState: the server does not run.
        """
        serving = self._serving
        if serving is None:
            raise InvalidState("there is no worker to run a task: the server does not run")
        serving.start_soon(async_fn, *args)

    # --- Inside ---

    @contextlib.contextmanager
    def _claimed(self, specs: Sequence[Spec]) -> Iterator[Serving]:
        """Be started, and inactive again whatever comes of it."""
        serving = Serving(self, self._callbacks, self._config, specs)
        with self._claiming:
            current = self._serving
            if current is not None:
                raise _refusal(current)
            self._serving = serving
        try:
            yield serving
        finally:
            self._last_statistics = serving.final_statistics()
            self._serving = None
            serving.ended.set()

    def _stop(self, drain_timeout: float) -> Serving | None:
        """Have the server stop; what there is to wait for."""
        try:
            seconds = 0.0 + drain_timeout
        except (TypeError, OverflowError):  # no number, or one that no clock can have
            seconds = math.nan
        if not seconds >= 0:
            raise InvalidDuration(f"drain_timeout must be seconds from 0, not {drain_timeout!r}")
        serving = self._serving
        if serving is not None:
            serving.stop(seconds)
        return serving

    def _abort(self) -> None:
        self._stop(0)


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


def _refusal(serving: Serving) -> InvalidState:
    """Why a server cannot be started that has been."""
    if serving.is_running():
        return ServerAlreadyRunning("server already running")
    state = "closing" if serving.stopped else "starting"
    return InvalidState(f"invalid state: the server is {state}, so it cannot be started now")


def _wait_for(serving: Serving, drain_timeout: float) -> None:
    if serving.ended.wait(min(drain_timeout, threading.TIMEOUT_MAX)):
        return
    connections = -1
    # Twice, because as long is waited for threads before they are left behind.
    while not serving.ended.wait(2 * LEAVE_BEHIND_S):
        before, connections = connections, serving.active()
        if connections == before and serving.is_closing():
            serving.ended.wait(ON_CLOSE_S)
            connections = serving.active()
        if connections == before and not serving.ended.is_set():
            logger.warning("shutdown() returns, but a callback of the server does not")
            return


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
