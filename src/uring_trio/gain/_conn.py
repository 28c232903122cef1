"""`Conn`: what a handler has of a connection. It holds no state: see `_connection`."""

from __future__ import annotations

import contextlib
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._address import Address
from uring_trio.gain._config import check_read_buffer_limit
from uring_trio.gain._errors import ConnectionClosed, GainError, InvalidDuration, NotSupported
from uring_trio.gain._handle import TAKING, Handle
from uring_trio.gain._outbound import FULL, OPEN
from uring_trio.gain._secure import Secure

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    from uring_trio.gain._connection import Connection
    from uring_trio.gain._handle import SupportsRead

READ_FROM_SIZE = 64 << 10  # bytes that one read() of read_from() asks for


class Conn(Handle):
    """A connection of a callback server; made by the server.

    To be used from callbacks and tasks of its worker, at any time; from another thread only
    `call_soon_threadsafe`, `context` and the addresses.

    Attributes:
      context: yours.
    """

    __slots__ = ("_connection", "_life", "_local", "_network", "_outbound", "_remote")

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        network: str,
        local: Address | None,
        remote: Address,
    ) -> None:
        super().__init__(connection.worker, sock, connection.inbound, connection.life)
        self._connection = connection
        self._life = connection.life
        self._outbound = connection.outbound
        self._network = network
        self._local = local
        self._remote = remote

    def __repr__(self) -> str:
        return f"<Conn {self._name()}, {self._life.state.name.lower()}>"

    # ---- who it is -----------------------------------------------------------------------

    def local_addr(self) -> Address:
        """Our own address; from any thread, also after the end."""
        local = self._local
        if local is None:
            local = self._local = Address.from_sockaddr(self._network, self._sock.getsockname())
        return local

    def remote_addr(self) -> Address:
        """The peer's address; from any thread, also after the end."""
        return self._remote

    def _name(self) -> str:
        return f"{self._network} connection from {self._remote!s:.120}"

    def _remember_addresses(self) -> None:
        if self._local is None:
            with contextlib.suppress(OSError):
                self.local_addr()

    # ---- writing -------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Send *data*, after what was written before. Never blocks, and is never short.

        ``bytes`` are sent from where they lie; any other buffer is copied.

        Returns:
          The number of bytes; 0 once the connection is over, which ``on_close`` tells.

        Raises:
          ConnectionClosed: after ``send_eof()``; with ``write_strict=True`` also once the
            connection is over.
          OpNotAvailableInMode: on another thread.
        """
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        outbound = self._outbound
        state = outbound.state
        if self._life.user != get_ident() or (state is not OPEN and state > FULL):
            return self._refuse_write("write", data)
        size = len(data)
        if not size:
            return 0
        pieces = outbound.pieces
        if outbound.sending is None:
            if not pieces and not self._connection.ready:
                self._connection.send_soon()
            # The fast way of `Outbound.add`.
            outbound.size += size
            pieces.append(data)
            return size
        # What the socket takes at once is never too much; this is behind what it refused.
        outbound.add(data, size)
        if outbound.size > outbound.high_water and state is OPEN:
            self._connection.overflow()
        return size

    def _refuse_write(self, name: str, data: bytes) -> int:
        life = self._life
        if life.is_lent and get_ident() == life.home:
            # A task of the worker's, while a thread has it: its turn comes when that is done.
            if life.user:
                self._connection.call(self.write, data)
                return len(data)
        else:
            self._check(name, alive=False)
        if life.user and not self._outbound.is_cut:
            raise ConnectionClosed(f"{name}: send_eof() has ended the output")
        if self.worker.config.write_strict:
            raise ConnectionClosed(f"{name}: {self!r}")
        return 0

    def writev(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Send several buffers, one after the other; as one `write` of them all."""
        if self._life.user != get_ident():
            return self._refuse_write("writev", b"".join(buffers))
        return self.write(b"".join(buffers))

    def read_from(self, file: SupportsRead) -> int:
        """Send all that *file* gives until its end; the number of bytes.

        Its ``read`` is called in the loop, so it must not block.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as ``write``; and whatever ``read``
            raises: what it gave before is sent.
        """
        if self._life.user != get_ident() and not self._life.is_lent:
            return self._refuse_write("read_from", b"")
        total = 0
        while data := file.read(READ_FROM_SIZE):
            taken = self.write(data)
            total += taken
            if not taken:
                break
        return total

    def outbound_buffered(self) -> int:
        """How many written bytes the kernel has not taken yet; also after the end."""
        if self._life.user != get_ident():
            self._check("outbound_buffered", alive=False)
        return self._outbound.size

    async def drain(self) -> None:
        """Sleep until the output is down at low water, a quarter of ``write_high_water``.

        Cancelling it changes nothing.

        Raises:
          ConnectionClosed: the connection is closed, or ended before.
          OpNotAvailableInMode: on another thread.
        """
        if self._life.user != get_ident():
            self._refuse("drain")
        await self._connection.drain()
        await trio.lowlevel.checkpoint()

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
        self._connection.close()

    def abort(self) -> None:
        """Close at once, with a reset; output that the kernel has not sent is lost."""
        self._check("abort", alive=False)
        self._connection.abort()

    def send_eof(self) -> None:
        """Send the end of file after what was written; input goes on.

        Raises:
          NotSupported: with TLS, which has no half-closed streams.
        """
        self._check("send_eof")
        if self._connection.secure is not None:
            raise NotSupported("send_eof: a TLS stream cannot be half-closed")
        self._connection.send_eof()

    def start_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Go over to TLS, as the server's side. Returns at once.

        What was written before leaves in clear, what is written later is encrypted.

        Raises:
          GainError: input that was received in clear is still buffered, or it is TLS already.
          ConnectionClosed: after ``close()``, ``send_eof()``, or the connection's end.
          ssl.SSLError: the context is not one for servers.
        """
        self._check("start_tls")
        if self._connection.secure is not None:
            raise GainError("start_tls: the connection has TLS already")
        if self.inbound_buffered():
            raise GainError(
                f"start_tls: {self.inbound_buffered()} bytes of plaintext are still buffered"
            )
        if not self._outbound.takes:
            raise ConnectionClosed("start_tls: send_eof() has ended the output")
        secure = Secure(ssl_context)
        secure.take_over(self._outbound.take_all(), in_flight=self._outbound.sending is not None)
        self._connection.use_tls(secure)

    # ---- reading, or not -----------------------------------------------------------------

    def pause_reading(self) -> None:
        """Stop receiving. What is on its way still comes, and a reset is noticed."""
        self._check("pause_reading")
        self._connection.pause()

    def resume_reading(self) -> None:
        """End what `pause_reading` began."""
        self._check("resume_reading")
        self._connection.resume()

    def set_read_buffer_limit(self, size: int) -> None:
        """The server's ``read_buffer_limit``, for this connection: *size* bytes.

        Raises:
          ValueError: it is less than 1, or no integer.
        """
        self._check("set_read_buffer_limit")
        check_read_buffer_limit(size)
        self._connection.set_limit(size)

    def _took(self) -> None:
        self._connection.took()

    # ---- deadlines -----------------------------------------------------------------------

    def set_deadline(self, seconds: float | None) -> None:
        """Set the read and the write deadline."""
        self._set_deadlines("set_deadline", ("read", "write"), seconds)

    def set_read_deadline(self, seconds: float | None) -> None:
        """The next ``on_read`` must come within *seconds* from now; None: no deadline.

        Else the connection closes, with `DeadlineExceeded` in ``on_close``. Input that comes
        while a callback runs meets it, although its ``on_read`` has to wait for that.
        """
        self._set_deadlines("set_read_deadline", ("read",), seconds)

    def set_write_deadline(self, seconds: float | None) -> None:
        """All output must be with the kernel within *seconds* from now; None: no deadline."""
        self._set_deadlines("set_write_deadline", ("write",), seconds)

    def set_idle_timeout(self, seconds: float | None) -> None:
        """A byte must go either way at least every *seconds*; None: no timeout."""
        self._set_deadlines("set_idle_timeout", ("idle",), seconds)

    def _set_deadlines(self, name: str, kinds: tuple[str, ...], seconds: float | None) -> None:
        self._check(name)
        if seconds is not None and not seconds >= 0:
            raise InvalidDuration(f"{seconds!r} s is no time from now; give 0 or more, or None")
        for kind in kinds:
            self._connection.set_deadline(kind, seconds)

    # ---- tasks and threads ---------------------------------------------------------------

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Run a task in the connection's nursery; it is cancelled when the connection closes.

        If it raises, that is logged and closes the connection, as in a callback.
        """
        self._check("start_soon", alive=False)
        if self._life.is_over:
            raise ConnectionClosed("start_soon: the connection is closed")
        self._connection.start_task(async_fn, args, name)

    def _call_soon(self, fn: Callable[..., Any], *args: Any) -> None:
        self._connection.call(fn, *args)

    # ---- who may use it ------------------------------------------------------------------

    def _whose(self) -> int:
        life = self._life
        return life.borrower if life.is_lent else life.home

    def _refuse(self, name: str) -> None:
        if name in TAKING and get_ident() == self._life.home and self._connection.may_take_rest():
            return
        self._check(name)
