"""A worker: one task that serves all connections of one ring.

The IO manager does not wake a task for each completion. It puts the completions of all of
a worker's connections into one batch and wakes the worker's task once (`_routing`), in the
tick in which they came, so that received bytes can be taken straight from the engine's
buffers. What the task does then is its turn (`_turn`). What other tasks of this run write
or close wakes it for a turn as well. Other threads reach it through `Worker.post`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio._fast_ways import FAST
from uring_trio._memory import Memory
from uring_trio._trio_private import WaitTaskRescheduled, current_runner, park
from uring_trio.gain._accept import Acceptor
from uring_trio.gain._capabilities import capabilities
from uring_trio.gain._conn import Conn
from uring_trio.gain._receiving import LARGE_SIZE
from uring_trio.gain._routing import route
from uring_trio.gain._secure import Secure
from uring_trio.gain._states import State
from uring_trio.gain._statistics import WorkerStatistics
from uring_trio.gain._turn import Turn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from uring_trio.gain._address import Address
    from uring_trio.gain._config import Config
    from uring_trio.gain._handler import Callbacks
    from uring_trio.gain._listen import Listener
    from uring_trio.gain._server import Server

# How long a call from another thread waits for a worker's counters: a callback may be running.
STATISTICS_TIMEOUT_S = 1.0

logger = logging.getLogger("uring_trio.gain")

# Connections are counted by the worker that accepts as well as by the one that serves.
_counting = threading.Lock()


class Worker(Turn):
    """Serves connections on the ring of the trio run that it is run in.

    Args:
      index: its number in the server.
      callbacks: the handler's.
      config: the server's.
      server: for handlers.
    """

    ident: int  # of its thread, once there is one

    def __init__(self, index: int, callbacks: Callbacks, config: Config, server: Server) -> None:
        super().__init__(callbacks, config)
        self.index = index
        self.server = server
        self.logger = logger
        self.plain = not callbacks.any_async() and not config.async_handler
        self.peers: Sequence[Worker] = (self,)  # all workers of the server
        self.thread: int | None = None
        self.active = 0
        self.claimed = 0  # places for connections that are about to be accepted
        self.accepted: list[tuple[Acceptor, int]] = []
        self.calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.parked = False
        self.ended = False
        self._posting = threading.Lock()  # between a post and the end
        self._conns: set[Conn] = set()
        self._acceptors: list[Acceptor] = []
        self._sockets: list[Any] = []  # of datagrams
        self._ending = False
        self._ticks: float | None = None  # seconds between them, once they have begun
        self._final = WorkerStatistics()

    # ---- the loop ------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until a shutdown has come to its end; see the top of this module.

        Cancelling it aborts all connections without a drain; ``on_close`` is called.
        """
        runner = current_runner()
        self.slots = runner.io_manager.slots
        self.capabilities = capabilities()
        self.thread = self.ident = get_ident()
        self.block = Memory(LARGE_SIZE)
        self._block_bytes = self.block.view(LARGE_SIZE)
        self._token = trio.lowlevel.current_trio_token()
        self._task = trio.lowlevel.current_task()
        self._trap = WaitTaskRescheduled(self._abort_sleep)
        try:
            take = self.slots.taking(partial(route, self.slots.table))
            with take if FAST else contextlib.nullcontext():
                async with trio.open_nursery() as self.nursery:
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
                if self.ready or self.dirty or self.calls or self.accepted:
                    await self._yield()
                elif not self.batch:
                    await self._sleep()
                self._turn()
        except BaseException:
            self.abort()
            with trio.CancelScope(shield=True):
                while not self._is_empty():
                    self._turn()
                    if self.ready or self.dirty or self.calls or self.accepted:
                        await self._yield()
                    elif not self._is_empty():
                        await self._sleep()
            raise

    async def _yield(self) -> None:
        """Let others have their tick: exactly one, or the next batch would be stale."""
        await trio.lowlevel.checkpoint_if_cancelled()  # if it is, in more than one
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _sleep(self) -> None:
        self._task = trio.lowlevel.current_task()
        self.parked = True
        value = await park(self._trap)
        self.parked = False
        if value is not None:
            value.unwrap()

    def _abort_sleep(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        self.parked = False
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Have a turn in this tick, or in the next; on the worker's thread."""
        if self.parked:
            self.parked = False
            self.slots.wake(self._task, None)

    @trio.lowlevel.enable_ki_protection
    def _turn(self) -> None:
        if self.batch:
            self._sweep_completions()
        if self.accepted:
            accepted, self.accepted = self.accepted, []
            for acceptor, res in accepted:
                acceptor.accepted(res)
        if self.calls:
            self._make_calls()
        if self.ready:
            self._sweep_ready()
        if self.dirty:
            self._sweep_dirty()
        if self.wrote:
            self._sweep_wrote()
        if self.starved:
            self._arm_starved()

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
            self._token.run_sync_soon(self.wake, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True

    def _make_calls(self) -> None:
        for _ in range(len(self.calls)):  # what these post is for the next turn
            fn, args = self.calls.popleft()
            try:
                fn(*args)
            except Exception:
                logger.exception("a call from another thread raised: %r", fn)

    # ---- connections ---------------------------------------------------------------------

    def listen(self, listener: Listener, assign: Callable[[Address], Worker] | None = None) -> None:
        """Accept from a listener, which is the worker's own from now on.

        Args:
          listener: bound and listening; for UDP, bound.
          assign: chooses a connection's worker by the peer's address; None: this one.
        """
        if self._ticks is None and self.index == 0 and self.callbacks.on_tick is not None:
            self._ticks = self.config.tick
            if self._ticks is not None:
                self.nursery.start_soon(self.run_ticks, self._ticks, self.server)
        if listener.network == "udp":
            from uring_trio.gain._datagram import DatagramSocket

            datagrams = DatagramSocket(self, listener)
            self._sockets.append(datagrams)
            datagrams.start()
            return
        acceptor = Acceptor(self, listener, assign)
        self._acceptors.append(acceptor)
        acceptor.arm()

    def may_accept(self) -> bool:
        """Whether one more connection is allowed."""
        limit = self.config.max_connections
        return limit is None or sum(each.active + each.claimed for each in self.peers) < limit

    def claim(self) -> bool:
        """Keep a place for a connection that is to be accepted here, if there is one."""
        if self.config.max_connections is None:
            return True
        with _counting:
            allowed = self.may_accept()
            self.claimed += allowed
        return allowed

    def unclaim(self) -> None:
        """Give the place back: there was no connection."""
        if self.config.max_connections is not None:
            with _counting:
                self.claimed -= 1
            self._tell_of_room()

    def use_claim(self, worker: Worker) -> None:
        """A connection was accepted here for *worker*: it takes the place, and is counted there."""
        with _counting:
            if self.config.max_connections is not None:
                self.claimed -= 1
            worker.active += 1

    def leave(self) -> None:
        """Count one connection less."""
        with _counting:
            self.active -= 1

    def adopt(self, sock: socket.socket, network: str, local: Any, remote: Address) -> None:
        """Serve a connection that was claimed for this worker."""
        if self._ending:
            sock.close()
            self.leave()
            return
        conn = Conn(self, sock, network, local, remote)
        self._conns.add(conn)
        tls = self.config.tls
        if tls is not None:
            conn._use_tls(Secure(tls), State.HANDSHAKE)
            conn._begin_handshake()
        conn._attend()

    def forget(self, conn: Conn) -> None:
        """A connection is closed, and nobody is to be told of it any more."""
        if conn in self._conns:
            self._conns.remove(conn)
            self.leave()
            if self._ending:
                self.wake()
            self._tell_of_descriptor()
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        """Accepting may go on, here and in the other workers, where it was paused for room."""
        for worker in self.peers:
            if worker is self:
                self.resume_accepting()
            elif worker.is_accepting_paused():
                worker.post(worker.resume_accepting)

    def resume_accepting(self) -> None:
        """There may be room again."""
        for acceptor in self._acceptors:
            if acceptor.paused:
                acceptor.arm()

    def _tell_of_descriptor(self) -> None:
        """One is free: accepting may go on where there was none."""
        for worker in self.peers:
            if worker is self:
                self._retry_accepting()
            elif any(acceptor.exhausted for acceptor in tuple(worker._acceptors)):
                worker.post(worker._retry_accepting)

    def _retry_accepting(self) -> None:
        for acceptor in self._acceptors:
            if acceptor.exhausted:
                acceptor.arm()

    def is_accepting_paused(self) -> bool:
        """Whether a listener waits for room; from any thread."""
        return any(acceptor.paused for acceptor in tuple(self._acceptors))

    def acceptor_closed(self, acceptor: Acceptor) -> None:
        """A listener is closed."""
        self._acceptors.remove(acceptor)

    # ---- the end -------------------------------------------------------------------------

    def begin_shutdown(self, drain_timeout: float) -> None:
        """Stop accepting and reading, let callbacks end, send what was written, close."""
        if self._ending:
            return
        self._begin_end()
        for conn in tuple(self._conns):
            conn._stopped = True
            if conn._state is State.HANDSHAKE:
                conn._begin_close()
            elif conn._busy:
                conn._close_when_idle = True
                conn._attend()
            elif conn._state is State.OPEN:
                conn._begin_close()
        if self._conns or self._sockets:
            self.set_timer_in((self, "drain"), drain_timeout)
        self.wake()

    def _timer_expired(self, _kind: str) -> None:
        self.abort()

    def abort(self) -> None:
        """Close all connections at once, with resets; callbacks that run are cancelled."""
        self._begin_end()
        # What the kernel has ended must not be cancelled: the slots may be others' by now,
        # and the buffers, too, because a cancelled task may be late for its batch.
        for conn, slot, _, flags, _ in self.batch:
            conn._lost(slot, flags)
        self.batch.clear()
        for conn in tuple(self._conns):
            conn._end_now()
        for datagrams in self._sockets:
            datagrams.close()
        self.cancel_callbacks()
        self.slots.ring.flush()
        self.wake()

    def _begin_end(self) -> None:
        if not self._ending:
            self._ending = True
            logger.warning("Closing connections", extra={"worker": self.index})
            for acceptor in tuple(self._acceptors):
                acceptor.close()
            for datagrams in self._sockets:
                datagrams.begin_shutdown()

    def _is_empty(self) -> bool:
        if self._conns or self._acceptors or self.accepted:
            return False
        return all(datagrams.closed for datagrams in self._sockets)

    def _finish(self) -> None:
        self.block.free()
        with self._posting:
            self.ended = True
        while self.calls:
            fn, args = self.calls.popleft()
            if fn == self.adopt:
                args[0].close()
                self.leave()
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
        slots = [a.slot for a in self._acceptors]
        for conn in conns:
            slots += (conn._recv_slot, conn._send_slot, conn._watch_slot)
        return WorkerStatistics(
            connections=self.active,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            buffers_leased=sum(conn._lease_size > 0 for conn in conns),
            bytes_buffered=sum(c._buffered() + c._out_size for c in conns)
            + sum(s.queued for s in self._sockets),
            operations_in_flight=sum(slot >= 0 for slot in slots)
            + sum(s.operations_in_flight for s in self._sockets),
            datagrams_dropped=sum(s.dropped for s in self._sockets),
        )
