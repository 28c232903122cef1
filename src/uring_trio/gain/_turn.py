"""A worker's turn: three sweeps over the connections that something has happened to.

1. What the kernel has done, but for plain input, which `_routing` has noted already; it is
   announced to nobody yet.
2. What handlers are to be told, once for each connection, whatever has come for it; and
   what it has written then, as one send. That is tried at once, because a socket's buffer
   nearly always has room, and what it does not take is an operation on the ring. (An
   operation for each small answer costs its slot, its sqe and its cqe, and a look at its
   completion: 0.7 us, a tenth of an echo's CPU.)
3. What was written by others than its ``on_read``. Then ``on_write`` is called.

Each sweep treats the plain case in line, because a call of a Python function costs a tenth
of what a small message may cost altogether; a connection that is *special* goes through
`Connection._settle`. One with large messages is received from, told and sent for in one go.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from uring_trio._kernel import BUFFER_GROUPS, EAGAIN
from uring_trio.gain._clock import Clock
from uring_trio.gain._receiving import ENDS, LARGE_SIZE

if TYPE_CHECKING:
    import trio

    from uring_trio._memory import Memory
    from uring_trio._slots import Slots
    from uring_trio.gain._config import Config
    from uring_trio.gain._conn import Conn
    from uring_trio.gain._handler import Callbacks


class Turn(Clock):
    """The part of a worker that goes over its connections."""

    slots: Slots
    block: Memory  # that large messages are received into; see `_receiving`
    _block_bytes: Any
    _token: trio.lowlevel.TrioToken

    def __init__(self, callbacks: Callbacks, config: Config) -> None:
        super().__init__(callbacks, config)
        self.bytes_in = 0
        self.bytes_out = 0
        self.batch: list[Any] = []  # what the kernel has done; see `_routing`
        self.ready: list[Conn] = []  # to be settled, or told of input
        self.dirty: list[Conn] = []  # with output, and no send in flight
        self.wrote: list[Conn] = []  # the kernel has taken output of theirs
        self.more: list[tuple[Conn, int]] = []  # there may be more than was received
        self.starved: deque[Conn] = deque()  # no buffer was left for their receive

    def _sweep_completions(self) -> None:
        """What the kernel has done, but for what `_routing` has noted already."""
        for conn, slot, res, flags, offset in self.batch:
            conn._completed(slot, res, flags, offset)
        self.batch.clear()

    def _sweep_ready(self) -> None:
        """What handlers are to be told, and what they answer."""
        on_read, try_send = self.callbacks.on_read, self.slots.ring.try_send
        tells_of_writes = self.callbacks.on_write is not None
        total = 0
        for conn in self.ready:  # grows meanwhile: who is appended is seen to as well
            if conn._special or conn._large:
                conn._ready = False
                if conn._special:
                    conn._settle()
                else:
                    self._serve_large(conn)
                continue
            n = conn._fresh
            if n:
                if n != conn._lease_size:
                    n = conn._unannounced()
                conn._fresh = 0
                if n and on_read is not None:
                    try:
                        on_read(conn, n)
                    except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
                        conn._raised("on_read", exc)
                elif n:
                    conn._drop(conn._buffered())
            conn._ready = False  # until here a write relies on what follows
            if conn._special:
                conn._settle()
                continue
            out = conn._out
            if out:
                if conn._send_slot < 0:
                    data = out.pop() if len(out) == 1 else conn._next_output()
                    size = len(data)
                    sent = try_send(conn._fd, data, size)
                    if sent == size:
                        conn._out_size -= size
                        total += size
                        if tells_of_writes:
                            self.wrote.append(conn)
                            conn._written += size
                        if out:  # more than one send's worth: others have their turn first
                            self.dirty.append(conn)
                    else:
                        conn._send_what_is_left(data, sent)
            elif conn._watch_slot < 0 and conn._send_slot < 0:
                conn._watch()  # see _receiving: nothing that is sent will notice a reset
            # A look at input that lay there already joins what has come to it: see `_input`.
            if conn._lease_size or conn._buffer is not None:
                self._keep_input(conn)
        self.ready.clear()
        self.bytes_out += total
        if self.more:
            more, self.more = self.more, []
            for conn, told in more:  # in the next turn
                conn._readable |= told
                if not conn._ready:
                    conn._ready = True
                    self.ready.append(conn)

    def _keep_input(self, conn: Conn) -> None:
        """The handler has left input where it was: the engine wants its buffer back."""
        conn._stash()
        conn._limit_input()
        if conn._special:
            conn._attend()

    def _serve_large(self, conn: Conn) -> None:
        """Receive, tell, and send, one connection after the other.

        What was received is sent while it is in the CPU's cache; three sweeps over several
        connections with large messages would go through memory three times.
        """
        told = conn._readable
        if told:
            conn._readable = 0
            size = self.slots.ring.try_recv(conn._fd, self.block.c, LARGE_SIZE)
            if size > 0:
                self.bytes_in += size
                conn._take_large(self._block_bytes[:size])
                if size == LARGE_SIZE or told & ENDS:
                    self.more.append((conn, told))
            elif size != EAGAIN:
                conn._receive_failed(size)
                conn._attend()
                return
        n = conn._fresh
        if n:
            if n != conn._lease_size:
                n = conn._unannounced()
            conn._fresh = 0
            if n and self.callbacks.on_read is not None:
                try:
                    self.callbacks.on_read(conn, n)
                except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
                    conn._raised("on_read", exc)
            elif n:
                conn._drop(conn._buffered())
        if conn._lease_size or conn._buffer is not None:
            conn._stash()
            conn._limit_input()
        conn._pool = b""  # so that the next one has the same memory, which is warm
        if conn._out and conn._send_slot < 0 and not conn._special:
            self._send_now(conn)
        if conn._special:
            conn._attend()
        elif conn._small_in_a_row:
            conn._shrink()
            conn._steer()

    def _send_now(self, conn: Conn) -> None:
        """Send what a plain connection has written, as far as the socket takes it."""
        out = conn._out
        data = out.pop() if len(out) == 1 else conn._next_output()
        size = len(data)
        sent = self.slots.ring.try_send(conn._fd, data, size)
        if sent != size:
            conn._send_what_is_left(data, sent)
            return
        conn._out_size -= size
        self.bytes_out += size
        if self.callbacks.on_write is not None:
            self.wrote.append(conn)
            conn._written += size
        if out:
            self.dirty.append(conn)

    def _sweep_dirty(self) -> None:
        """What was written outside of ``on_read``."""
        dirty, self.dirty[:] = self.dirty[:], []
        for conn in dirty:
            if conn._send_slot >= 0:
                continue
            if conn._special:
                conn._send_next()
            elif conn._out:
                self._send_now(conn)

    def _sweep_wrote(self) -> None:
        """What the kernel has taken, to be told of once a tick."""
        on_write = self.callbacks.on_write
        wrote, self.wrote = self.wrote, []
        for conn in wrote:
            if conn._special:
                conn._attend()
            elif conn._written and on_write is not None:
                n, conn._written = conn._written, 0
                try:
                    on_write(conn, n)
                except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
                    conn._raised("on_write", exc)

    def _arm_starved(self) -> None:
        """Arm receives that found no buffer: as many as there are of the scarcest."""
        for _ in range(min(len(self.starved), BUFFER_GROUPS[0][0])):
            self.starved.popleft()._steer()
        if self.starved:
            self._token.run_sync_soon(self.wake, idempotent=True)
