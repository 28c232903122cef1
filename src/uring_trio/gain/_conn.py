"""What a handler has of a connection, `Conn`, and of a datagram, `DatagramConn`.

They hold no state but `context`, which is the user's: see `_connection` and `_datagram`.
"""

from __future__ import annotations

import errno
import inspect
import os
import socket
import struct
from operator import index
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from uring_trio._addresses import pack
from uring_trio._beside import setsockopt
from uring_trio._hot_parts import HandleFields, quicker
from uring_trio.gain._config import KEEP_ALIVE_MAX_S, check_read_buffer_limit
from uring_trio.gain._datagram import address_of
from uring_trio.gain._errors import (
    AddressError,
    ConnectionClosed,
    GainError,
    InvalidDuration,
    NotSupported,
    OpNotAvailableInMode,
)
from uring_trio.gain._halves import PLAIN_INPUT, PLAIN_OUTPUT, Output
from uring_trio.gain._tls import Secure

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Protocol

    from uring_trio.gain._address import Address
    from uring_trio.gain._connection import Connection
    from uring_trio.gain._datagram import Datagram
    from uring_trio.gain._halves import Inbound
    from uring_trio.gain._server import Server

    class SupportsWrite(Protocol):
        """A file to be written to."""

        def write(self, data: bytes, /) -> int | None: ...

    class SupportsRead(Protocol):
        """A file to be read from."""

        def read(self, size: int = -1, /) -> bytes: ...

    class Owner(Protocol):
        """Says which thread may use it; 0: none any more. And whose it is, or was."""

        @property
        def user(self) -> int: ...

        @property
        def whose(self) -> int: ...

    class Subject(Protocol):
        """What a handle is of: input may be taken, and others may have something called."""

        def took(self) -> None: ...

        def call(self, fn: Callable[..., Any], /, *args: Any) -> None: ...


FULL = Output.FULL
T = TypeVar("T")

READ_FROM_SIZE = 64 << 10  # bytes that one read() of a stream's read_from() asks for
# Bytes: 65,535 of an IPv4 packet, less 20 for its header and 8 for UDP's.
DATAGRAM_SIZE_MAX = 65_507
READ_SIZE = 16 << 10  # bytes that one read() of read_from() asks for
# What takes input: also once nothing else can be done any more.
TAKING = ("next", "read", "peek", "read_into", "discard", "write_to")


def protected(cls: type[T]) -> type[T]:
    """A KeyboardInterrupt comes before a method or after it, and not in the middle of it.

    A task of a user's may call them, and what they note is the worker's. It costs nothing:
    trio asks for the code where a signal finds it.
    """
    for method in vars(cls).values():
        if inspect.isfunction(method):
            trio.lowlevel.enable_ki_protection(method)
    return cls


@protected
class Handle(HandleFields):
    """Input that is taken, and a socket with options; see `Conn` and `DatagramConn`.

    Attributes:
      context: yours.
    """

    __slots__ = ("__weakref__", "_sock", "context", "worker")

    _inbound: Inbound
    _owner: Owner
    _subject: Subject

    def __init__(
        self, worker: Any, sock: socket.socket, inbound: Inbound, owner: Owner, subject: Subject
    ) -> None:
        self.worker = worker
        self.context: Any = None
        self._sock = sock
        self._inbound = inbound
        self._owner = owner
        self._subject = subject

    @property
    def server(self) -> Server:
        """The server that has accepted it."""
        server: Server = self.worker.server
        return server

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
        if inbound.buffer is None and (n == size or n < 0) and inbound.state is PLAIN_INPUT:
            # The fast way of what follows.
            inbound.lease_size = 0
            at = inbound.lease_at
            return inbound.pool[at : at + size]  # type: ignore[no-any-return]
        data = inbound.next(n)
        if inbound.state is not PLAIN_INPUT:
            self._subject.took()
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
        if inbound.state is not PLAIN_INPUT:
            self._subject.took()
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
                self._subject.took()
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
        n = index(n)
        if n < 0 or n > buffered:
            n = buffered
        inbound.drop(n)
        if inbound.state is not PLAIN_INPUT:
            self._subject.took()
        return n

    def write_to(self, file: SupportsWrite) -> int:
        """Write all that is buffered to *file*, with one call of its ``write``.

        Returns:
          How many bytes it took; these are consumed.

        Raises:
          IsEmpty: there are none now.
          ConnectionClosed, OpNotAvailableInMode: as all data methods; and whatever
            ``write`` raises, and then nothing is consumed.
          TypeError, ValueError: ``write`` returns no integer, or says that it took less than
            nothing or more than there is. Nothing is consumed.
        """
        if self._owner.user != get_ident():
            self._refuse("write_to")
        inbound = self._inbound
        written = file.write(inbound.peek(inbound.some(-1)))
        size = 0 if written is None else index(written)
        buffered = inbound.buffered()
        if not 0 <= size <= buffered:
            raise ValueError(f"write() says that it took {size} bytes, and {buffered} are buffered")
        inbound.drop(size)
        self._subject.took()
        return size

    def inbound_buffered(self) -> int:
        """How many bytes are there to be consumed; also after the end."""
        if self._owner.user != get_ident():
            check(self._owner, "inbound_buffered", alive=False)
        return self._inbound.buffered()

    # ---- from any thread -----------------------------------------------------------------

    def call_soon_threadsafe(self, fn: Callable[..., Any], *args: Any) -> None:
        """From any thread: have the worker call ``fn(*args)``, first in, first out.

        While a thread has the connection (``async_handler=True``) it waits until that is done.

        Raises:
          ConnectionClosed: the worker has ended.
        """
        if not self.worker.post(self._subject.call, fn, *args):
            raise ConnectionClosed("call_soon_threadsafe: the server has ended")

    # ---- socket options ------------------------------------------------------------------

    def fileno(self) -> int:
        """The file descriptor; -1 once it is closed."""
        check(self._owner, "fileno", alive=False)
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
        check(self._owner, name)
        setsockopt(self._sock.fileno(), level, option, value)

    def _refuse(self, name: str) -> None:
        """Raise: this is not the thread, or not the time, to use it."""
        check(self._owner, name)


def check(owner: Owner, name: str, *, alive: bool = True) -> None:
    """Raise unless this is its thread and, with *alive*, it is open."""
    if owner.user != get_ident():
        if get_ident() != owner.whose:
            raise OpNotAvailableInMode(name)
        if alive:
            raise ConnectionClosed(f"{name}: the connection is closed")


@quicker
@protected
class Conn(Handle):
    """A connection of a callback server; made by the server.

    To be used from callbacks and tasks of its worker, at any time; from another thread only
    `call_soon_threadsafe`, `context` and the addresses.

    Attributes:
      context: yours.
    """

    __slots__ = ("_connection", "_life", "_outbound")

    def __init__(self, connection: Connection) -> None:
        life = connection.life
        super().__init__(connection.worker, connection.sock, connection.inbound, life, connection)
        self._connection = connection
        self._life = life
        self._outbound = connection.outbound

    def __repr__(self) -> str:
        return f"<Conn {self._connection.name()}, {self._life.state.name.lower()}>"

    # ---- who it is -----------------------------------------------------------------------

    def local_addr(self) -> Address:
        """Our own address; from any thread, also after the end."""
        return self._connection.local_addr()

    def remote_addr(self) -> Address:
        """The peer's address; from any thread, also after the end."""
        return self._connection.remote_addr()

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
        if self._life.user != get_ident() or (state is not PLAIN_OUTPUT and state > FULL):
            return refuse_write(self._connection, "write", data)
        size = len(data)
        if not size:
            return 0
        pieces = outbound.pieces
        if outbound.sending is None:
            is_first = not pieces and not self._connection.ready
            # The fast way of `Outbound.add`.
            outbound.size += size
            pieces.append(data)
            if is_first:
                self._connection.outlet.soon()
            return size
        # What the socket takes at once is never too much; this is behind what it refused.
        outbound.add(data, size)
        if outbound.size > outbound.high_water and state is PLAIN_OUTPUT:
            self._connection.outlet.overflow()
        return size

    def writev(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Send several buffers, one after the other; as one `write` of them all."""
        if self._life.user != get_ident():
            return refuse_write(self._connection, "writev", b"".join(buffers))
        return self.write(b"".join(buffers))

    def read_from(self, file: SupportsRead) -> int:
        """Send all that *file* gives until its end; the number of bytes.

        Its ``read`` is called in the loop, so it must not block.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as ``write``; and whatever ``read``
            raises: what it gave before is sent.
        """
        if self._life.user != get_ident() and not self._life.is_lent:
            return refuse_write(self._connection, "read_from", b"")
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
            check(self._life, "outbound_buffered", alive=False)
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
        await self._connection.outlet.drain()
        await trio.lowlevel.checkpoint()

    def send_to(self, data: bytes | bytearray | memoryview, address: Any) -> int:
        """Send a datagram to any address; for the connections of UDP.

        Raises:
          NotSupported: this is a stream.
        """
        check(self._life, "send_to")
        raise NotSupported(f"send_to: {len(data)} bytes for {address!r}; this is a stream")

    # ---- closing -------------------------------------------------------------------------

    def close(self) -> None:
        """Send what was written, then the end of file, then close. Returns at once.

        Afterwards there is no ``on_read``, and data methods raise `ConnectionClosed`. A
        second call does nothing.
        """
        check(self._life, "close", alive=False)
        self._connection.close()

    def abort(self) -> None:
        """Close at once, with a reset; output that the kernel has not sent is lost."""
        check(self._life, "abort", alive=False)
        self._connection.abort()

    def send_eof(self) -> None:
        """Send the end of file after what was written; input goes on.

        Raises:
          NotSupported: with TLS, which has no half-closed streams.
        """
        check(self._life, "send_eof")
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
        check(self._life, "start_tls")
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
        check(self._life, "pause_reading")
        self._connection.intake.pause()

    def resume_reading(self) -> None:
        """End what `pause_reading` began."""
        check(self._life, "resume_reading")
        self._connection.intake.resume()

    def set_read_buffer_limit(self, size: int) -> None:
        """The server's ``read_buffer_limit``, for this connection: *size* bytes.

        Raises:
          ValueError: it is less than 1, or no integer.
        """
        check(self._life, "set_read_buffer_limit")
        check_read_buffer_limit(size)
        self._connection.intake.set_limit(size)

    # ---- deadlines -----------------------------------------------------------------------

    def set_deadline(self, seconds: float | None) -> None:
        """Set the read and the write deadline."""
        set_deadlines(self._connection, "set_deadline", ("read", "write"), seconds)

    def set_read_deadline(self, seconds: float | None) -> None:
        """The next ``on_read`` must come within *seconds* from now; None: no deadline.

        Else the connection closes, with `DeadlineExceeded` in ``on_close``. Input that comes
        while a callback runs meets it, although its ``on_read`` has to wait for that.
        """
        set_deadlines(self._connection, "set_read_deadline", ("read",), seconds)

    def set_write_deadline(self, seconds: float | None) -> None:
        """All output must be with the kernel within *seconds* from now; None: no deadline."""
        set_deadlines(self._connection, "set_write_deadline", ("write",), seconds)

    def set_idle_timeout(self, seconds: float | None) -> None:
        """A byte must go either way at least every *seconds*; None: no timeout."""
        set_deadlines(self._connection, "set_idle_timeout", ("idle",), seconds)

    # ---- tasks and threads ---------------------------------------------------------------

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Run a task in the connection's nursery; it is cancelled when the connection closes.

        If it raises, that is logged and closes the connection, as in a callback.
        """
        check(self._life, "start_soon", alive=False)
        if self._life.is_over:
            raise ConnectionClosed("start_soon: the connection is closed")
        self._connection.calls.start_task(async_fn, args, name)

    # ---- who may use it ------------------------------------------------------------------

    def _refuse(self, name: str) -> None:
        may_take = self._connection.calls.may_take_rest
        if not (name in TAKING and get_ident() == self._life.home and may_take()):
            check(self._life, name)


def refuse_write(connection: Connection, name: str, data: bytes) -> int:
    """What becomes of *data*, which cannot be written now: 0 bytes, or an error, or later all."""
    life = connection.life
    if life.is_lent and get_ident() == life.home:
        # A task of the worker's, while a thread has it: its turn comes when that is done.
        if life.user and connection.outbound.takes:
            connection.call(write_late, connection, data)
            return len(data)
    else:
        check(life, name, alive=False)
    if life.user and not connection.outbound.is_cut:
        raise ConnectionClosed(f"{name}: send_eof() has ended the output")
    if connection.worker.config.write_strict:
        raise ConnectionClosed(f"{name}: {connection.conn!r}")
    return 0


def write_late(connection: Connection, data: bytes) -> None:
    """It was taken while a thread had the connection, which may be over by now.

    Then nobody is there for whom to raise, and ``on_close`` tells.
    """
    if connection.life.user and not connection.outbound.is_cut:
        connection.conn.write(data)


def set_deadlines(
    connection: Connection, name: str, kinds: tuple[str, ...], seconds: float | None
) -> None:
    """Set those of the user's."""
    check(connection.life, name)
    if seconds is not None and not seconds >= 0:
        raise InvalidDuration(f"{seconds!r} s is no time from now; give 0 or more, or None")
    for kind in kinds:
        connection.set_deadline(kind, seconds)


@protected
class DatagramConn(Handle):
    """One datagram, and the way back to its sender; made by the server.

    It has the methods of a connection, as far as they make sense: the input is the datagram,
    ``write`` replies, `send_to` goes anywhere. It is usable until the server ends, from
    callbacks and tasks of its worker. Socket options act on the socket that all share.
    """

    __slots__ = ("_datagram",)

    def __init__(self, datagram: Datagram) -> None:
        worker, sock = datagram.worker, datagram.socket.listener.sock
        super().__init__(worker, sock, datagram.inbound, datagram, datagram)
        self._datagram = datagram

    def __repr__(self) -> str:
        return f"<DatagramConn from {self.remote_addr()!s}>"

    # ---- sending -------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Reply with one datagram, from the address that this one came to. Never blocks.

        It may be empty. Where the kernel takes nothing now it is queued. It is dropped, and
        counted, if ``write_high_water`` bytes wait already, or if the kernel refuses it later on.

        Returns:
          The number of bytes.

        Raises:
          OSError: EMSGSIZE: over 65,507 bytes.
          ConnectionClosed: the server has ended.
          OpNotAvailableInMode: on another thread.
        """
        if self._owner.user != get_ident():
            self._refuse("write")
        if type(data) is not bytes or len(data) > DATAGRAM_SIZE_MAX:
            data = as_datagram(data)
        datagram = self._datagram
        return datagram.socket.reply(self, datagram, data)

    def writev(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Reply with one datagram made of several buffers; see `write`."""
        if self._owner.user != get_ident():
            self._refuse("writev")
        return self._datagram.socket.reply(self, self._datagram, as_datagram(b"".join(buffers)))

    def read_from(self, file: SupportsRead) -> int:
        """Reply with one datagram made of all that *file* gives until its end; see `write`."""
        if self._owner.user != get_ident():
            self._refuse("read_from")
        chunks, size = [], 0
        while chunk := file.read(READ_SIZE):
            chunks.append(chunk)
            size += len(chunk)
            if size > DATAGRAM_SIZE_MAX:
                break
        return self._datagram.socket.reply(self, self._datagram, as_datagram(b"".join(chunks)))

    def send_to(self, data: bytes | bytearray | memoryview, address: Any) -> int:
        """Send one datagram to anybody, from the address that the kernel chooses; see `write`.

        Args:
          data: of at most 65,507 bytes.
          address: an `Address`, or a tuple whose host is an address and no name; one of
            IPv4 will do where the socket has both families.

        Returns:
          The number of bytes.

        Raises:
          AddressError: the socket cannot send to such an address.
          OSError: EMSGSIZE, or what else the kernel says at once, such as ENETUNREACH.
          ConnectionClosed, OpNotAvailableInMode: as ``write``.
        """
        if self._owner.user != get_ident():
            self._refuse("send_to")
        peer = packed(self._sock.family, destination(self._sock.family, address))
        return self._datagram.socket.send(self, self._datagram, as_datagram(data), peer)

    async def drain(self) -> None:
        """Return at once, as a checkpoint: a datagram has no stream to wait for."""
        if self._owner.user != get_ident():
            self._refuse("drain")
        await trio.lowlevel.checkpoint()

    # ---- who it is -----------------------------------------------------------------------

    def local_addr(self) -> Address:
        """The address that it came to; from any thread, also after the end."""
        came_to = self._datagram.came_to
        if came_to is None:
            return self._datagram.socket.listener.address
        return came_to.address()

    def remote_addr(self) -> Address:
        """The sender's address; from any thread, also after the end."""
        return address_of(self._datagram.peer)

    def outbound_buffered(self) -> int:
        """How many bytes of its datagrams wait to be sent; also after the end."""
        if self._owner.user != get_ident():
            check(self._owner, "outbound_buffered", alive=False)
        return self._datagram.unsent

    # ---- closing, which does nothing, and what only streams have --------------------------

    def close(self) -> None:
        """Do nothing: nobody else uses this datagram, and all share the socket."""
        check(self._owner, "close", alive=False)

    def abort(self) -> None:
        """Do nothing, as `close`."""
        check(self._owner, "abort", alive=False)

    def send_eof(self) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        refuse_stream(self._owner, "send_eof")

    def start_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        refuse_stream(self._owner, "start_tls")

    def pause_reading(self) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        refuse_stream(self._owner, "pause_reading")

    def resume_reading(self) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        refuse_stream(self._owner, "resume_reading")

    def set_read_buffer_limit(self, size: int) -> None:
        """Raise `NotSupported`: a datagram is there as a whole."""
        refuse_stream(self._owner, "set_read_buffer_limit")

    def set_no_delay(self, no_delay: bool) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        refuse_stream(self._owner, "set_no_delay")

    def set_keep_alive_period(self, seconds: float) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        refuse_stream(self._owner, "set_keep_alive_period")

    def set_deadline(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a deadline could close."""
        refuse_stream(self._owner, "set_deadline")

    def set_read_deadline(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a deadline could close."""
        refuse_stream(self._owner, "set_read_deadline")

    def set_write_deadline(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a deadline could close."""
        refuse_stream(self._owner, "set_write_deadline")

    def set_idle_timeout(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a timeout could close."""
        refuse_stream(self._owner, "set_idle_timeout")

    # ---- tasks ---------------------------------------------------------------------------

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Run a task in the worker's nursery. If it raises, that is logged."""
        check(self._owner, "start_soon")
        run = self._datagram.run_task
        self.worker.nursery.start_soon(run, async_fn, args, name=name or async_fn)


def refuse_stream(owner: Owner, name: str) -> None:
    """Raise: only a stream has that."""
    check(owner, name)
    raise NotSupported(f"{name}: a datagram is no stream, and has no connection")


def as_datagram(data: bytes | bytearray | memoryview) -> bytes:
    if type(data) is not bytes:
        data = bytes(memoryview(data))
    if len(data) > DATAGRAM_SIZE_MAX:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data


def packed(family: int, peer: Any) -> bytes:
    """What the kernel takes for an address as `destination` gives it.

    Raises:
      AddressError: its port, or another number of it, is out of range.
    """
    host, *rest = peer
    name = pack(family, (host.partition("%")[0], *rest))
    if name is None:
        raise AddressError(peer, "a number of it is out of range")
    return name


def destination(family: int, address: Any) -> Any:
    """What a socket of *family* takes for a user's address.

    Raises:
      AddressError: it is none; the host may not be a name, because a look-up blocks.
    """
    try:
        host, port, *rest = address
        if family == socket.AF_INET:
            socket.inet_pton(socket.AF_INET, host)
            return host, port
        if ":" not in host:
            socket.inet_pton(socket.AF_INET, host)
            return f"::ffff:{host}", port, 0, 0
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, TypeError, ValueError) as exc:
        wanted = "IPv4" if family == socket.AF_INET else "IPv4 or IPv6"
        raise AddressError(
            address, f"this socket sends to addresses of {wanted}: (host, port)"
        ) from exc
    return host, port, *rest
