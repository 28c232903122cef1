"""What handlers have in common of a connection and of a datagram."""

from __future__ import annotations

import socket
import struct
from threading import get_ident
from typing import TYPE_CHECKING, Any

from uring_trio.gain._config import KEEP_ALIVE_MAX_S
from uring_trio.gain._errors import ConnectionClosed, InvalidDuration, OpNotAvailableInMode
from uring_trio.gain._inbound import OPEN, Inbound

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from uring_trio.gain._address import Address
    from uring_trio.gain._server import Server

    class SupportsWrite(Protocol):
        """A file to be written to."""

        def write(self, data: bytes, /) -> int | None: ...

    class SupportsRead(Protocol):
        """A file to be read from."""

        def read(self, size: int = -1, /) -> bytes: ...

    class Owner(Protocol):
        """Says which thread may use it; 0: none any more."""

        user: int


# What takes input: also once nothing else can be done any more.
TAKING = ("next", "read", "peek", "read_into", "discard", "write_to")


class Handle:
    """Input that is taken, and a socket with options; see `Conn` and `DatagramConn`.

    Attributes:
      context: yours.
    """

    __slots__ = ("__weakref__", "_inbound", "_owner", "_sock", "context", "worker")

    _owner: Owner

    def __init__(self, worker: Any, sock: socket.socket, inbound: Inbound, owner: Any) -> None:
        self.worker = worker
        self.context: Any = None
        self._sock = sock
        self._inbound = inbound
        self._owner = owner

    @property
    def server(self) -> Server:
        """The server that has accepted it."""
        server: Server = self.worker.server
        return server

    def local_addr(self) -> Address:
        """Our own address; from any thread, also after the end."""
        raise NotImplementedError

    # ---- reading -------------------------------------------------------------------------

    def next(self, n: int = -1) -> bytes:
        """Consume exactly *n* bytes; all that there are if it is negative.

        Raises:
          ShortBuffer: there are fewer; nothing is consumed.
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._owner.user != get_ident():
            self._refuse("next")
        inbound = self._inbound
        size = inbound.lease_size
        if inbound.buffer is None and (n == size or n < 0) and inbound.state is OPEN:
            # The fast way of what follows.
            inbound.lease_size = 0
            at = inbound.lease_at
            return inbound.pool[at : at + size]  # type: ignore[no-any-return]
        data = inbound.next(n)
        if inbound.state is not OPEN:
            self._took()
        return data

    def read(self, n: int = -1) -> bytes:
        """Consume at most *n* bytes; all that there are if it is negative.

        Raises:
          IsEmpty: there are none now. It is not the end of the stream.
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._owner.user != get_ident():
            self._refuse("read")
        inbound = self._inbound
        data = inbound.take(inbound.some(n) if n else 0)
        if inbound.state is not OPEN:
            self._took()
        return data

    def peek(self, n: int = -1) -> bytes:
        """At most *n* bytes, or all, without consuming them.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._owner.user != get_ident():
            self._refuse("peek")
        return self._inbound.peek(n)

    def read_into(self, buffer: Any) -> int:
        """Consume as many bytes as *buffer* holds, into it; how many these were.

        Raises:
          IsEmpty: there are none now.
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._owner.user != get_ident():
            self._refuse("read_into")
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise TypeError(f"a writable buffer is needed, not {type(buffer).__name__}")
            size = len(target)
            if size:
                data = self._inbound.take(self._inbound.some(size))
                size = len(data)
                target[:size] = data
                self._took()
        return size

    def discard(self, n: int = -1) -> int:
        """Consume at most *n* bytes, or all, and drop them; how many these were.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._owner.user != get_ident():
            self._refuse("discard")
        inbound = self._inbound
        buffered = inbound.buffered()
        if n < 0 or n > buffered:
            n = buffered
        inbound.drop(n)
        if inbound.state is not OPEN:
            self._took()
        return n

    def write_to(self, file: SupportsWrite) -> int:
        """Write all that is buffered to *file*, with one call of its ``write``.

        Returns:
          How many bytes it took; these are consumed.

        Raises:
          IsEmpty: there are none now.
          ConnectionClosed, OpNotAvailableInMode: as all data methods; and whatever
            ``write`` raises, and then nothing is consumed.
        """
        if self._owner.user != get_ident():
            self._refuse("write_to")
        written = file.write(self._inbound.peek(self._inbound.some(-1)))
        size = 0 if written is None else written
        self._inbound.drop(size)
        self._took()
        return size

    def inbound_buffered(self) -> int:
        """How many bytes are there to be consumed; also after the end."""
        if self._owner.user != get_ident():
            self._check("inbound_buffered", alive=False)
        return self._inbound.buffered()

    def _took(self) -> None:
        """Input was consumed."""

    # ---- from any thread -----------------------------------------------------------------

    def call_soon_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None:
        """From any thread: have the worker call ``fn(*args)``, first in, first out.

        While a thread has the connection (``async_handler=True``) it waits until that is done.

        Raises:
          ConnectionClosed: the worker has ended.
        """
        if not self.worker.post(self._call_soon, fn, *args):
            raise ConnectionClosed("call_soon_threadsafe: the server has ended")

    def _call_soon(self, fn: Callable[..., Any], *args: Any) -> None:
        """In the worker's turn."""
        raise NotImplementedError

    # ---- socket options ------------------------------------------------------------------

    def fileno(self) -> int:
        """The file descriptor; -1 once it is closed."""
        self._check("fileno", alive=False)
        return self._sock.fileno()

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

    def _set_option(self, name: str, level: int, option: int, value: Any) -> None:
        self._check(name)
        self._sock.setsockopt(level, option, value)

    # ---- who may use it ------------------------------------------------------------------

    def _whose(self) -> int:
        """The thread that may ask, also once it is over."""
        raise NotImplementedError

    def _refuse(self, name: str) -> None:
        """Raise: this is not the thread, or not the time, to use it."""
        self._check(name)

    def _check(self, name: str, *, alive: bool = True) -> None:
        """Raise unless this is its thread and, with *alive*, it is open."""
        if self._owner.user != get_ident():
            if get_ident() != self._whose():
                raise OpNotAvailableInMode(name)
            if alive:
                raise ConnectionClosed(f"{name}: the connection is closed")
