"""A worker's turn: three sweeps over the connections that something has happened to.

1. What the engine has done, but for plain input, which `_ring.route` has noted already; it is
   announced to nobody yet.
2. What handlers are to be told, once for each connection, whatever has come for it; and
   what it has written then, as one send. That is tried at once, because a socket's buffer
   nearly always has room, and what it does not take is an operation on the ring. (An
   operation for each small answer costs its slot, its sqe and its cqe, and a look at its
   completion: 0.7 us, a tenth of an echo's CPU.)
3. What was written by others than its ``on_read``. Then ``on_write`` is called.

Where the turn, or the tick, is long that is sent earlier (csrc/tick.c says when): what is
written in a turn before the next connection has its callback, what a task writes at once.

The plain way through it is `Connection.settle` and `Outlet.send_next`. The fast way, for
connections of which nothing is set that would need more, says the same once more, flat, with
the fields of the halves in line: a call of a Python function costs a tenth of what a small
message may cost altogether. One with large messages is received from, told and sent for in
one go. Where fast ways are switched off all go the plain way, with the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from uring_trio import _hot_parts
from uring_trio._hot_parts import TurnFields, quicker
from uring_trio._kernel import EAGAIN
from uring_trio._trio_private import WaitTaskRescheduled, park, run_context
from uring_trio.gain._halves import Pieces
from uring_trio.gain._life import Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._slots import Slots
    from uring_trio.gain._callbacks import Callbacks
    from uring_trio.gain._connection import Connection


@quicker
class Turn(TurnFields):
    """Goes over a worker's connections, and sleeps until there is something to go over.

    Args:
      callbacks: the handler's.

    Attributes:
      batch: what the engine has done; see `_ring.route`.
      ready: to be settled, or told of input.
      dirty: with output, and no send in flight.
      parked: the worker's task sleeps.
      bytes_in: received until now.
      bytes_out: taken by the kernel until now.
    """

    bytes_in: int
    bytes_out: int
    ready: list[Any]
    dirty: list[Connection]
    parked: bool
    _callbacks: Callbacks
    _wrote: list[Connection]
    _more: list[tuple[Connection, int]]
    _slots: Slots | None
    _task: Any
    _try_send: Callable[[int, bytes, int], int] | None

    def __init__(self, callbacks: Callbacks) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.batch: list[tuple[Any, int, int, int, int]] = []
        self.ready = []
        self.dirty = []
        self.parked = False
        self._callbacks = callbacks
        self._wrote = []  # the kernel has taken output of theirs
        self._more = []  # there may be more than was received
        self._slots = None  # of the run, which wakes tasks
        self._try_send = None
        self._task = None
        self._trap: Any = None
        self._token: trio.lowlevel.TrioToken | None = None

    def serve(self, try_send: Callable[[int, bytes, int], int]) -> None:
        """Files are sent to by this, without waiting; else as `Link.try_send`."""
        self._try_send = try_send

    # ---- the worker's sleep --------------------------------------------------------------

    def begin(self, slots: Slots) -> None:
        """In the worker's task, before it sleeps."""
        self._slots = slots
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._trap = WaitTaskRescheduled(self._abort_sleep)

    async def sleep(self) -> None:
        """Until there is something to do."""
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
            assert self._slots is not None
            self.parked = False
            self._slots.wake(self._task, None)

    def wake_soon(self) -> None:
        """The same, from any thread.

        Raises:
          trio.RunFinishedError: the run is over.
        """
        assert self._token is not None
        self._token.run_sync_soon(self.wake, idempotent=True)

    @property
    def is_due(self) -> bool:
        """Whether the next turn has connections to go over, whatever the engine does."""
        return bool(self.ready or self.dirty)

    # ---- what is to be done --------------------------------------------------------------

    def attend(self, connection: Any) -> None:
        """Come to it, in this turn or the next."""
        self.ready.append(connection)
        if self.parked:
            self.wake()

    def add_dirty(self, connection: Connection) -> None:
        """It has something to send."""
        self.dirty.append(connection)
        if self.parked:
            self.wake()
        # By a task, or else in the turn, which has its own looks between two connections.
        if getattr(run_context, "task", None) is not self._task and self._leaves():
            self._sweep_dirty()

    def _leaves(self) -> bool:
        """Whether what was written is to be sent now, and not with the rest; see csrc/tick.c."""
        # (Asked of the ring each time: a closed one refuses.)
        return self._slots is not None and self._slots.ring.leaves()

    def add_wrote(self, connection: Connection) -> None:
        """The kernel has taken something of it."""
        if self._callbacks.on_write is not None:
            self._wrote.append(connection)

    def add_more(self, connection: Connection, told: int) -> None:
        """There may be more than was received, and no word of it."""
        self._more.append((connection, told))

    def count_in(self, size: int) -> None:
        """So many bytes were received."""
        self.bytes_in += size

    def count_out(self, size: int) -> None:
        """The kernel has taken so many."""
        self.bytes_out += size

    def add_happened(self, link: Any, slot: int, res: int, flags: int, offset: int) -> None:
        """The engine has done something that has no short way."""
        self.batch.append((link, slot, res, flags, offset))
        if self.parked:
            self.wake()

    def lose_batch(self) -> None:
        """Look at what is over in it, and not at what it brings; what was sent counts.

        What the engine has ended must not be cancelled: the slots may be others' by now, and
        the buffers, too, because a cancelled task may be late for its batch.
        """
        for link, slot, res, flags, _ in self.batch:
            link.forget(slot, res, flags)
        self.batch.clear()

    # ---- the sweeps ----------------------------------------------------------------------

    def sweep_completions(self) -> None:
        """What the engine has done, but for what was noted already."""
        for link, slot, res, flags, offset in self.batch:
            link.happened(slot, res, flags, offset)
        self.batch.clear()

    def sweep(self) -> None:
        """What handlers are to be told, what they answer, and what was written elsewhere."""
        if self.ready:
            self._sweep_ready()
        if self.dirty:
            self._sweep_dirty()
        if self._wrote:
            self._sweep_wrote()

    def _sweep_ready(self) -> None:
        on_read, try_send = self._callbacks.on_read, self._try_send
        assert try_send is not None
        tells_of_writes = self._callbacks.on_write is not None
        total = 0
        dirty = self.dirty
        for connection in self.ready:  # grows meanwhile: who is appended is seen to as well
            if dirty and self._leaves():
                self._sweep_dirty()
            if connection.way is not SMALL:
                connection.ready = False
                if connection.way is LARGE:
                    self._serve_large(connection)
                else:
                    connection.settle()
                continue
            # The fast way of `Connection.settle`.
            inbound = connection.inbound
            n = inbound.fresh
            if n:
                if n != inbound.lease_size:
                    n = inbound.unannounced()
                inbound.fresh = 0
                if n and on_read is not None:
                    try:
                        on_read(connection.conn, n)
                    except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
                        connection.calls.raised("on_read", exc)
                elif n:
                    inbound.drop(inbound.buffered())
            connection.ready = False  # until here a write relies on what follows
            if connection.way is not SMALL:
                connection.settle()
                continue
            outbound = connection.outbound
            pieces = outbound.pieces
            if pieces:
                if outbound.sending is None:
                    data = pieces.pop() if len(pieces) == 1 else outbound.take_piece()
                    size = len(data)
                    sent = try_send(connection.link.fd, data, size)
                    if sent == size:
                        outbound.size -= size
                        total += size
                        if tells_of_writes:
                            self._wrote.append(connection)
                            outbound.written += size
                        if pieces:  # more than one send's worth: others have their turn first
                            self.dirty.append(connection)
                    else:
                        connection.outlet.send_rest_of(data, sent)
            elif not inbound.watch and outbound.sending is None:
                connection.intake.watch()  # see `_ring`: nothing that is sent will notice a reset
            # A look at input that lay there already joins what has come to it: see `_halves`.
            if inbound.lease_size or inbound.buffer is not None:
                self._keep_input(connection)
        self.ready.clear()
        self.bytes_out += total
        if self._more:
            more, self._more = self._more, []
            for connection, told in more:  # in the next turn
                connection.look_at_more(told)

    def _keep_input(self, connection: Connection) -> None:
        """The handler has left input where it was: the engine wants its buffer back."""
        inbound = connection.inbound
        inbound.stash()
        inbound.judge()
        if inbound.state or connection.way is SETTLED:
            connection.attend()

    def _serve_large(self, connection: Connection) -> None:
        """The fast way of `Connection.settle` for large messages: receive, tell, and send.

        What was received is sent while it is in the CPU's cache; three sweeps over several
        connections with large messages would go through memory three times.
        """
        inbound, outbound, link = connection.inbound, connection.outbound, connection.link
        if link.readable:
            size, data, more = link.take()
            if size > 0:
                self.bytes_in += size
                inbound.lease(data, 0, size)
                inbound.note_large(size)
                if more:
                    self._more.append((connection, more))
            elif size != EAGAIN:
                connection.intake.failed(size)
                connection.attend()
                return
        n = inbound.fresh
        if n:
            if n != inbound.lease_size:
                n = inbound.unannounced()
            inbound.fresh = 0
            if n and self._callbacks.on_read is not None:
                try:
                    self._callbacks.on_read(connection.conn, n)
                except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
                    connection.calls.raised("on_read", exc)
            elif n:
                inbound.drop(inbound.buffered())
        if inbound.lease_size or inbound.buffer is not None:
            self._keep_input(connection)
        inbound.pool = b""  # so that the next one has the same memory, which is warm
        if outbound.pieces and outbound.sending is None and connection.way is not SETTLED:
            self._send_now(connection)
        if connection.way is SETTLED or inbound.pieces is SHRINKING:
            connection.attend()

    def _send_now(self, connection: Connection) -> None:
        """The fast way of `Outlet.send_next`."""
        outbound = connection.outbound
        pieces = outbound.pieces
        data = pieces.pop() if len(pieces) == 1 else outbound.take_piece()
        size = len(data)
        assert self._try_send is not None
        sent = self._try_send(connection.link.fd, data, size)
        if sent != size:
            connection.outlet.send_rest_of(data, sent)
            return
        outbound.size -= size
        self.bytes_out += size
        if self._callbacks.on_write is not None:
            self._wrote.append(connection)
            outbound.written += size
        if pieces:
            self.dirty.append(connection)

    def _sweep_dirty(self) -> None:
        dirty, self.dirty[:] = self.dirty[:], []
        for connection in dirty:
            outbound = connection.outbound
            if outbound.sending is not None:
                continue
            if connection.way is SETTLED:
                connection.outlet.send_next()
            elif outbound.pieces:
                self._send_now(connection)

    def _sweep_wrote(self) -> None:
        """What the kernel has taken, to be told of once a tick."""
        on_write = self._callbacks.on_write
        wrote, self._wrote = self._wrote, []
        for connection in wrote:
            if connection.way is SETTLED:
                connection.attend()
            elif connection.outbound.written and on_write is not None:
                n = connection.outbound.tell()
                try:
                    on_write(connection.conn, n)
                except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
                    connection.calls.raised("on_write", exc)


SMALL, LARGE, SETTLED = Way.SMALL, Way.LARGE, Way.SETTLED
SHRINKING = Pieces.SHRINKING

if _hot_parts.hot is not None:
    _hot_parts.hot.know(Turn=Turn, way_small=SMALL, way_large=LARGE, way_settled=SETTLED)
