"""A worker: one task that serves all connections of one engine.

The IO manager does not wake a task for each completion. It puts the completions of all of
a worker's connections into one batch and wakes the worker's task once (`_ring`), in the
tick in which they came, so that received bytes can be taken straight from the engine's
buffers. What the task does then is its turn (`_turn`). What other tasks of this run write
or close wakes it for a turn as well. Other threads reach it through `Worker.post`.

Its parts are objects with fields of their own: the engine, the turn, the clock, callbacks
that run elsewhere, and who is let in.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections import deque
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio._beside import close_socket, try_send
from uring_trio._fast_ways import FAST
from uring_trio._trio_private import current_runner
from uring_trio.gain._accept import Admission
from uring_trio.gain._callbacks import Elsewhere
from uring_trio.gain._capabilities import capabilities
from uring_trio.gain._connection import Connection
from uring_trio.gain._deadlines import WorkerClock
from uring_trio.gain._errors import BaseExceptionGroup, parted
from uring_trio.gain._ring import RingEngine
from uring_trio.gain._surroundings import logger
from uring_trio.gain._tls import Secure
from uring_trio.gain._turn import Turn

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from uring_trio._slots import Slots
    from uring_trio.gain._address import Address
    from uring_trio.gain._callbacks import Callbacks, Host
    from uring_trio.gain._config import Config
    from uring_trio.gain._listen import Listener

# How long a call from another thread waits for a worker's counters: a callback may be running.
STATISTICS_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class WorkerStatistics:
    """One worker, at one moment; the byte counts only grow.

    Attributes:
      connections: open now; datagrams are none.
      bytes_in: received from peers since the worker started; with TLS, ciphertext.
      bytes_out: accepted by the kernel since the worker started; with TLS, ciphertext.
      buffers_leased: provided buffers that are out of the ring.
      bytes_buffered: received and not consumed, or written and not accepted by the kernel.
      operations_in_flight: operations whose last cqe has not been seen.
      datagrams_dropped: not sent, because `write_high_water` bytes were queued already.
    """

    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    buffers_leased: int = 0
    bytes_buffered: int = 0
    operations_in_flight: int = 0
    datagrams_dropped: int = 0


@types.coroutine
def checkpoint_if_cancelled(before: Callable[[], object]) -> Generator[Any, Any, None]:
    """trio's; if it is one, *before* is called before others have their tick.

    To ask trio first whether the task is cancelled takes several times as long, the longer the
    more nurseries it is in.
    """
    steps = trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC105 - its steps are ours to make
    try:
        trap = steps.send(None)
    except StopIteration:
        return
    before()
    while True:  # until it raises
        try:
            answer = yield trap
        except BaseException as exc:  # noqa: BLE001 - not ours
            trap = steps.throw(exc)
        else:
            trap = steps.send(answer)


class Worker:
    """Serves connections on the ring of the trio run that it is run in.

    Args:
      index: its number in the server.
      callbacks: the handler's.
      config: the server's.
      server: for handlers.

    Attributes:
      thread: its thread's ident, once there is one.
      calls: what is to be called in its turn.
      admission: lets connections in.
    """

    nursery: trio.Nursery
    slots: Slots
    engine: RingEngine

    def __init__(self, index: int, callbacks: Callbacks, config: Config, server: Any) -> None:
        self.index = index
        self.callbacks = callbacks
        self.config = config
        self.server = server
        self.logger = logger
        self.turn = Turn(callbacks)
        self.clock = WorkerClock(self.turn.wake)
        self.elsewhere = Elsewhere(callbacks, config, logger)
        self.admission = Admission(self, config.max_connections)
        self.plain = not callbacks.any_async() and not config.async_handler
        self.thread: int | None = None
        self.calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.ended = False
        self._posting = threading.Lock()  # between a post and the end
        self._conns: set[Connection] = set()
        self._sockets: list[Any] = []  # of datagrams
        self._ending = False
        self._ticks: float | None = None  # seconds between them, once they have begun
        self._final = WorkerStatistics()
        self._short_ways = contextlib.ExitStack()  # what `_ring.route` notes; see `_yield`

    # ---- the loop ------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until a shutdown has come to its end; see the top of this module.

        Cancelling it aborts all connections without a drain; ``on_close`` is called.
        """
        self.slots = current_runner().io_manager.slots
        self.engine = RingEngine(self.slots, multishot=capabilities().multishot_receive)
        self.thread = get_ident()
        self.turn.serve(try_send)
        self.turn.begin(self.slots)
        try:
            with self._short_ways:
                if FAST:
                    self._short_ways.enter_context(self.engine.serving())
                async with trio.open_nursery() as self.nursery:
                    self.clock.begin(self.nursery)
                    self.elsewhere.begin(self.nursery)
                    try:
                        task_status.started()
                        await self._serve()
                    finally:
                        self.nursery.cancel_scope.cancel()
        finally:
            self._finish()

    async def _serve(self) -> None:
        try:
            while not (self._ending and self._is_empty()):
                if self._is_due():
                    await self._yield()
                elif not self.turn.batch:
                    await self.turn.sleep()
                self._take_turn()
        except BaseException as exc:
            if self.slots.closed:
                raise  # the run was lost, and this is its coroutine's end: nobody is left to tell
            self.abort()
            with trio.CancelScope(shield=True):
                raised = await self._close_all()
            if raised and isinstance(exc, trio.Cancelled):
                raise raised.pop(0) from None
            raise

    async def _close_all(self) -> list[BaseException]:
        """After an abort: until everything is closed; what an ``on_close`` has raised for it.

        That is a KeyboardInterrupt or a SystemExit, and the others are to be called all the same.
        """
        raised = []
        while not self._is_empty():
            open_before = len(self._conns)
            try:
                self._take_turn()
            except BaseException as exc:
                # Each on_close comes once, so these have an end; anything else may have none.
                if len(self._conns) >= open_before:
                    raise
                logger.error("on_close raised, and others are still to be called", exc_info=exc)
                raised.append(exc)
            if self._is_due():
                await self._yield()
            elif not self._is_empty():
                await self.turn.sleep()
        return raised

    def _is_due(self) -> bool:
        return bool(self.turn.is_due or self.calls or self.admission.accepted)

    async def _yield(self) -> None:
        """Let others have their tick: exactly one, or the next batch would be stale."""
        # Cancelled, it is told so in more than one. What a batch has brought may be noted only
        # for a turn that comes before the next: its buffers go home.
        await checkpoint_if_cancelled(self._short_ways.close)
        await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.enable_ki_protection
    def _take_turn(self) -> None:
        turn = self.turn
        if turn.batch:
            turn.sweep_completions()
        if self.admission.accepted:
            self.admission.admit()
        if self.calls:
            self._make_calls()
        turn.sweep()

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task among its own, unless it is ending; on the worker's thread."""
        if not self._ending:
            self.nursery.start_soon(async_fn, *args)

    def wake(self) -> None:
        """Have a turn in this tick, or in the next; on the worker's thread."""
        self.turn.wake()

    # ---- other threads -------------------------------------------------------------------

    def post(self, fn: Callable[..., Any], *args: Any) -> bool:
        """From any thread: call ``fn(*args)`` in the worker, first in, first out.

        Returns:
          False if the worker has ended, or has not begun.
        """
        with self._posting:
            if self.ended or self.thread is None:
                return False
            self.calls.append((fn, args))
        try:
            self.turn.wake_soon()
        except (trio.RunFinishedError, OSError):  # a run that was lost has no wakeup any more
            return False
        return True

    def _make_calls(self) -> None:
        for _ in range(len(self.calls)):  # what these post is for the next turn
            self.call(*self.calls.popleft())

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Make one; if it raises, that is logged."""
        try:
            fn(*args)
        except Exception:  # noqa: BLE001 - logged
            logger.exception("a call from another thread raised: %r", fn)

    # ---- callbacks -----------------------------------------------------------------------

    def tell(self, host: Host, name: str, function: Callable[..., Any] | None, *args: Any) -> None:
        """Call a callback, here or elsewhere; what it raises here is its host's to tell of."""
        if function is None:
            return
        elsewhere = self.elsewhere
        if name in elsewhere.names:
            elsewhere.run(host, name, function, args)
            return
        try:
            function(*args)
        except Exception as exc:  # noqa: BLE001 - its host logs it
            host.raised(name, exc)

    # ---- connections ---------------------------------------------------------------------

    def listen(self, listener: Listener, assign: Callable[[Address], Worker] | None = None) -> None:
        """Accept from a listener, which is the worker's own from now on.

        Args:
          listener: bound and listening; for UDP, bound.
          assign: chooses a connection's worker by the peer's address; None: this one.
        """
        if self._ending:  # aborted while it was started: nobody would end what begins now
            listener.close()
            return
        if self._ticks is None and self.index == 0 and self.callbacks.on_tick is not None:
            self._ticks = self.config.tick
            if self._ticks is not None:
                self.nursery.start_soon(self._run_ticks, self._ticks)
        if listener.network == "udp":
            from uring_trio.gain._datagram import DatagramSocket

            datagrams = DatagramSocket(self, listener)
            self._sockets.append(datagrams)
            datagrams.start()
            return
        self.admission.listen(listener, assign)

    async def _run_ticks(self, seconds: float) -> None:
        """Call ``on_tick`` every so many seconds, and never two at once."""
        on_tick = self.callbacks.on_tick
        assert on_tick is not None
        is_async = self.callbacks.is_async("on_tick")
        at = trio.current_time()
        while True:
            at = max(at + seconds, trio.current_time())
            await trio.sleep_until(at)
            try:
                result = on_tick(self.server)
                if is_async:
                    await result
            except Exception:  # noqa: BLE001 - logged
                logger.exception("on_tick raised")
            except BaseExceptionGroup as group:
                raised, rest = parted(group)
                if raised is not None:
                    logger.error("on_tick raised", exc_info=raised)
                raise rest from None

    @property
    def active(self) -> int:
        """How many connections it serves; from any thread."""
        return self.admission.active

    def adopt(self, sock: socket.socket, network: str, local: Address | None, peer: Any) -> None:
        """Serve a connection that was claimed for this worker."""
        if self._ending:
            close_socket(sock)
            self.admission.leave()
            return
        secure = None if self.config.tls is None else Secure(self.config.tls)
        connection = Connection(self, sock, network, local, peer, secure)
        self._conns.add(connection)
        connection.attend()

    def forget(self, connection: Connection) -> None:
        """A connection is closed, and nobody is to be told of it any more."""
        if connection in self._conns:
            self._conns.remove(connection)
            self.admission.leave()
            if self._ending:
                self.wake()
            self.admission.tell()

    def meet(self, peers: Sequence[Worker]) -> None:
        """These are all workers of the server."""
        self.admission.share_with([worker.admission for worker in peers])

    # ---- the end -------------------------------------------------------------------------

    def begin_shutdown(self, drain_timeout: float) -> None:
        """Stop accepting and reading, let callbacks end, send what was written, close."""
        if self._ending:
            return
        self._begin_end()
        for connection in tuple(self._conns):
            connection.leave()
        if self._conns or self._sockets:
            self.clock.set_in((self, "drain"), drain_timeout)
        self.wake()

    def _timer_expired(self, _kind: str) -> None:
        self.abort()

    def abort(self) -> None:
        """Close all connections at once, with resets; callbacks that run are cancelled."""
        self._begin_end()
        self.turn.lose_batch()
        for connection in tuple(self._conns):
            connection.end_now()
        for datagrams in self._sockets:
            datagrams.close()
        self.elsewhere.cancel()
        self.engine.flush()
        self.wake()

    def _begin_end(self) -> None:
        if not self._ending:
            self._ending = True
            logger.warning("Closing connections", extra={"worker": self.index})
            self.admission.close()
            for datagrams in self._sockets:
                datagrams.begin_shutdown()

    def _is_empty(self) -> bool:
        if self._conns or not self.admission.is_over():
            return False
        return all(datagrams.closed for datagrams in self._sockets)

    def _finish(self) -> None:
        self.engine.close()
        with self._posting:
            self.ended = True
        while self.calls:
            fn, args = self.calls.popleft()
            if fn == self.adopt:
                close_socket(args[0])
                self.admission.leave()
        self._final = self._statistics()  # without what was never adopted

    # ---- statistics ----------------------------------------------------------------------

    def statistics(self) -> WorkerStatistics:
        """The counters; from any thread."""
        if self.ended or self.thread is None:
            return self._final
        if self.thread == get_ident():
            return self._statistics()
        answer: list[WorkerStatistics] = []
        there = threading.Event()

        def take() -> None:
            answer.append(self._statistics())
            there.set()

        if self.post(take):
            there.wait(STATISTICS_TIMEOUT_S)
        return answer[0] if answer else self._final

    def _statistics(self) -> WorkerStatistics:
        conns = self._conns
        return WorkerStatistics(
            connections=self.active,
            bytes_in=self.turn.bytes_in,
            bytes_out=self.turn.bytes_out,
            buffers_leased=sum(c.inbound.lease_size > 0 for c in conns),
            bytes_buffered=sum(c.inbound.buffered() + c.outbound.size for c in conns)
            + sum(s.queued for s in self._sockets),
            operations_in_flight=sum(c.link.in_flight() for c in conns)
            + self.admission.in_flight()
            + sum(s.operations_in_flight for s in self._sockets),
            datagrams_dropped=sum(s.dropped for s in self._sockets),
        )
