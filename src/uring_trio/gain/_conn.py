"""`Conn`: what a handler has of a connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._address import Address
from uring_trio.gain._config import check_read_buffer_limit
from uring_trio.gain._connection import Connection
from uring_trio.gain._errors import (
    ConnectionClosed,
    DeadlineExceeded,
    GainError,
    InvalidDuration,
    NotSupported,
    OpNotAvailableInMode,
)
from uring_trio.gain._secure import Secure
from uring_trio.gain._states import Event, State

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from uring_trio.gain._server import Server
    from uring_trio.gain._worker import Worker


KEEP_ALIVE_MAX_S = 32767  # MAX_TCP_KEEPIDLE of the kernel
# What takes input: also once nothing else can be done any more.
TAKING = ("next", "read", "peek", "read_into", "discard", "write_to")
DEADLINES = ("read", "write", "idle")


class Conn(Connection):
    """A connection of a callback server; made by the server.

    To be used from callbacks and tasks of its worker, at any time; from another thread only
    `call_soon_threadsafe`, `context` and the addresses.

    Attributes:
      context: yours.
    """

    __slots__ = ("__weakref__", "_home", "_local", "_network", "_remote", "context")

    def __init__(
        self, worker: Worker, sock: socket.socket, network: str, local: Address, remote: Address
    ) -> None:
        slots = worker.slots
        self.worker = worker
        self.context: Any = None
        self._home = worker.ident
        self._network = network
        self._local: Address | None = local
        self._remote = remote
        self._ring = slots.ring
        self._slots = slots.table
        self._deferred = []
        self._init_input(slots.pool, worker.ident)
        self._init_output(worker.config.write_high_water)
        self._init_receiving(sock.fileno())
        self._init_sending()
        self._init_closing(sock)
        self._init_connection()

    def __repr__(self) -> str:
        return f"<Conn {self._name()}, {self._state.name.lower()}>"

    # ---- who it is -----------------------------------------------------------------------

    @property
    def server(self) -> Server:
        """The server that has accepted it."""
        server: Server = self.worker.server
        return server

    def local_addr(self) -> Address:
        """Our own address; from any thread, also after the end."""
        local = self._local
        if local is None:
            local = self._local = Address.from_sockaddr(self._network, self._sock.getsockname())
        return local

    def remote_addr(self) -> Address:
        """The peer's address; from any thread, also after the end."""
        return self._remote

    def fileno(self) -> int:
        """The file descriptor; -1 once it is closed."""
        self._check("fileno", alive=False)
        return self._sock.fileno()

    def _name(self) -> str:
        return f"{self._network} connection from {self._remote!s:.120}"

    def _remember_addresses(self) -> None:
        if self._local is None:
            with contextlib.suppress(OSError):
                self.local_addr()

    def send_to(self, data: bytes | bytearray | memoryview, address: Any) -> int:
        """Send a datagram to any address; for the connections of UDP.

        Raises:
          NotSupported: this is a stream.
        """
        self._check("send_to")
        raise NotSupported(f"send_to: {len(data)} bytes for {address!r}; this is a stream")

    # ---- closing -------------------------------------------------------------------------

    def close(self) -> None:
        """Send what was written, then the end of file, then close. Returns at once.

        Afterwards there is no ``on_read``, and data methods raise `ConnectionClosed`. A
        second call does nothing.
        """
        self._check("close", alive=False)
        if self._state is State.OPEN:
            if self._in_thread:
                self._close_when_idle = True
                self._thread = 0
            else:
                self._begin_close()

    def abort(self) -> None:
        """Close at once, with a reset; output that the kernel has not sent is lost."""
        self._check("abort", alive=False)
        if self._state < State.ENDING:
            self._reset = True
            if self._in_thread:
                self._close_when_idle = True
                self._thread = 0
            else:
                self._apply(Event.ABORT)
                self._attend()

    def send_eof(self) -> None:
        """Send the end of file after what was written; input goes on.

        Raises:
          NotSupported: with TLS, which has no half-closed streams.
        """
        self._check("send_eof")
        if self._secure is not None:
            raise NotSupported("send_eof: a TLS stream cannot be half-closed")
        if not self._ended:
            self._ended = True
            if not self._in_thread:
                self._attend()

    def start_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Go over to TLS, as the server's side. Returns at once.

        What was written before leaves in clear, what is written later is encrypted.

        Raises:
          GainError: input that was received in clear is still buffered, or it is TLS already.
          ConnectionClosed: after ``close()``, ``send_eof()``, or the connection's end.
          ssl.SSLError: the context is not one for servers.
        """
        self._check("start_tls")
        if self._secure is not None:
            raise GainError("start_tls: the connection has TLS already")
        if self.inbound_buffered():
            raise GainError(
                f"start_tls: {self.inbound_buffered()} bytes of plaintext are still buffered"
            )
        if self._ended:
            raise ConnectionClosed("start_tls: send_eof() has ended the output")
        secure = Secure(ssl_context)
        secure.take_over(self._out[:], in_flight=self._sending is not None)
        self._out.clear()
        self._use_tls(secure, self._state)
        self._when_mine(self._begin_handshake)
        if secure.pending() and self._send_slot < 0:
            self._begin_output()  # it is not in the queue any more, where it would be seen

    # ---- reading, or not -----------------------------------------------------------------

    def pause_reading(self) -> None:
        """Stop receiving. What is on its way still comes, and a reset is noticed."""
        self._check("pause_reading")
        self._paused = True
        self._forget_stuck()
        if not self._in_thread:
            self._attend()

    def resume_reading(self) -> None:
        """End what `pause_reading` began."""
        self._check("resume_reading")
        self._paused = False
        self._forget_stuck()
        if not self._in_thread:
            self._attend()

    def set_read_buffer_limit(self, size: int) -> None:
        """The server's ``read_buffer_limit``, for this connection: *size* bytes.

        Raises:
          ValueError: it is less than 1, or no integer.
        """
        self._check("set_read_buffer_limit")
        check_read_buffer_limit(size)
        self._input_limit = size
        self._forget_stuck()
        if not self._in_thread:
            self._attend()

    # ---- deadlines -----------------------------------------------------------------------

    def set_deadline(self, seconds: float | None) -> None:
        """Set the read and the write deadline."""
        self._check("set_deadline")
        self._set_deadline("read", seconds)
        self._set_deadline("write", seconds)

    def set_read_deadline(self, seconds: float | None) -> None:
        """The next ``on_read`` must come within *seconds* from now; None: no deadline.

        Else the connection closes, with `DeadlineExceeded` in ``on_close``.
        """
        self._check("set_read_deadline")
        self._set_deadline("read", seconds)

    def set_write_deadline(self, seconds: float | None) -> None:
        """All output must be with the kernel within *seconds* from now; None: no deadline."""
        self._check("set_write_deadline")
        self._set_deadline("write", seconds)

    def set_idle_timeout(self, seconds: float | None) -> None:
        """A byte must go either way at least every *seconds*; None: no timeout."""
        self._check("set_idle_timeout")
        self._set_deadline("idle", seconds)
        self._idle_s = seconds

    def _set_deadline(self, kind: str, seconds: float | None) -> None:
        if seconds is None:
            self._when_mine(self._cancel_timer, kind)
            self._look_again()
        elif not seconds >= 0:
            raise InvalidDuration(f"{seconds!r} s is no time from now; give 0 or more, or None")
        else:
            self._deadline_set = True
            self._when_mine(self._start_timer, kind, seconds)
            if self._stuck is not None:
                self._stuck.deadline = True

    def _when_mine(self, fn: Callable[..., Any], *args: Any) -> None:
        """Call it; if a thread has the connection, when that is done."""
        if self._in_thread:
            self._deferred.append((fn, args))
        else:
            fn(*args)

    def _start_timer(self, kind: str, seconds: float) -> None:
        timers = self.worker.timers
        if (self, kind) not in timers:
            self._timed += 1
        self.worker.set_timer((self, kind), trio.current_time() + seconds)
        self._special = True

    def _cancel_timer(self, kind: str) -> None:
        if self.worker.timers.cancel((self, kind)):
            self._timed -= 1

    def _meet(self, kind: str) -> None:
        self._cancel_timer(kind)

    def _restart_idle(self) -> None:
        seconds = self._idle_s  # once: a thread may set it
        if seconds is not None and (self, "idle") in self.worker.timers:
            self._start_timer("idle", seconds)

    def _forget_deadlines(self) -> None:
        if self._timed:
            for kind in (*DEADLINES, "handshake", "close", "discard", "stuck"):
                self._cancel_timer(kind)
        self._idle_s = None

    def _look_again(self) -> None:
        """It may be stuck from now on; see `_stuck`."""
        if self._input_full and self._state is State.OPEN and not self._in_thread:
            self._forget_stuck()
            self._attend()

    def _drain_given_up(self) -> None:
        self._look_again()

    def _has_deadline(self) -> bool:
        timers = self.worker.timers
        return any((self, kind) in timers for kind in DEADLINES)

    def _start_close_timeout(self) -> None:
        self._start_timer("close", self.worker.config.close_timeout)

    def _restart_close_timeout(self) -> None:
        if self._out_size or self._secure is not None:  # a close_notify follows
            self._start_close_timeout()
        else:
            self._cancel_timer("close")

    def _timer_expired(self, kind: str) -> None:
        self._timed -= 1
        if kind == "discard":
            self._apply(Event.DISCARDED)
            self._attend()
        elif kind == "close":
            seconds = self.worker.config.close_timeout
            self._reset = True
            self._fail(TimeoutError(f"the peer took nothing for {seconds:g} s while closing"))
        elif kind == "handshake":
            self._fail(DeadlineExceeded("the TLS handshake took too long"))
        elif kind == "stuck":
            self._stuck_timer_expired()
        elif kind == "write" and not self._out_size:
            self._look_again()
        else:
            self._fail(DeadlineExceeded(f"the {kind} deadline is over"))

    # ---- tasks ---------------------------------------------------------------------------

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Run a task in the connection's nursery; it is cancelled when the connection closes.

        If it raises, that is logged and closes the connection, as in a callback.
        """
        self._check("start_soon", alive=False)
        if self._state >= State.ENDING:
            raise ConnectionClosed("start_soon: the connection is closed")
        self._when_mine(self._start_task, async_fn, args, name)

    def _start_task(self, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        if self._state >= State.ENDING:
            return  # it would be cancelled at once
        self._tasks_running += 1
        self._forget_stuck()
        name = name or async_fn
        if self._nursery is not None:
            self._nursery.start_soon(self._run_task, async_fn, args, name=name)
            return
        if self._tasks is None:
            self._tasks = []
            self.worker.nursery.start_soon(self._host_tasks)
        self._tasks.append((async_fn, args, name))

    async def _host_tasks(self) -> None:
        """The connection's nursery, from its first task to the connection's end."""
        try:
            async with trio.open_nursery() as nursery:
                tasks, self._tasks = self._tasks, None
                for async_fn, args, name in tasks or ():
                    nursery.start_soon(self._run_task, async_fn, args, name=name)
                self._nursery = nursery
                try:
                    if self._state is not State.CLOSED:
                        await trio.sleep_forever()
                finally:
                    self._nursery = None  # closed to new tasks from here on
                nursery.cancel_scope.cancel()
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            cause: BaseException = exc
            while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
                cause = cause.exceptions[0]
            self._raised("a task", cause)

    async def _run_task(self, async_fn: Any, args: tuple[Any, ...]) -> None:
        try:
            await async_fn(*args)
        finally:
            self._tasks_running -= 1
            self._look_again()

    def call_soon_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None:
        """From any thread: have the worker call ``fn(*args)``, first in, first out.

        Raises:
          ConnectionClosed: the worker has ended.
        """
        if not self.worker.post(fn, *args):
            raise ConnectionClosed("call_soon_threadsafe: the server has ended")

    # ---- socket options ------------------------------------------------------------------

    def set_read_buffer(self, size: int) -> None:
        """SO_RCVBUF, in bytes."""
        self._set_option("set_read_buffer", socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def set_write_buffer(self, size: int) -> None:
        """SO_SNDBUF, in bytes."""
        self._set_option("set_write_buffer", socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def set_linger(self, seconds: int) -> None:
        """SO_LINGER: with 0, closing sends a reset; negative: off, the default."""
        linger = struct.pack("ii", seconds >= 0, max(seconds, 0))
        self._set_option("set_linger", socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def set_no_delay(self, no_delay: bool) -> None:
        """TCP_NODELAY; on by default."""
        self._set_option("set_no_delay", socket.IPPROTO_TCP, socket.TCP_NODELAY, int(no_delay))

    def set_keep_alive_period(self, seconds: float) -> None:
        """Keep-alive, with this time before the first probe and between probes; 1 s or more.

        Raises:
          InvalidDuration: it is less than 1 s.
        """
        if not 1 <= seconds <= KEEP_ALIVE_MAX_S:
            raise InvalidDuration(
                f"a keep-alive period is 1 to {KEEP_ALIVE_MAX_S} s, not {seconds!r} s"
            )
        period = int(seconds)
        name = "set_keep_alive_period"
        self._set_option(name, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._set_option(name, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, period)
        self._set_option(name, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, period)

    def _may_take_rest(self) -> bool:
        """Whether the peer has gone while a callback runs as a task, and left input."""
        if self._err is None or self._in_thread or self._state is not State.OPEN:
            return False
        return self._buffered() > 0

    def _refuse(self, name: str) -> None:
        if name in TAKING and get_ident() == self._home and self._may_take_rest():
            return
        self._check(name)

    def _set_option(self, name: str, level: int, option: int, value: Any) -> None:
        self._check(name)
        self._sock.setsockopt(level, option, value)

    def _check(self, name: str, *, alive: bool = True) -> None:
        """Raise unless this is the connection's thread and, with *alive*, it is open."""
        if self._thread != get_ident():
            if get_ident() != (self._user if self._in_thread else self._home):
                raise OpNotAvailableInMode(name)
            if alive:
                raise ConnectionClosed(f"{name}: the connection is closed")
