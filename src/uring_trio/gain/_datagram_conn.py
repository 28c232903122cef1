"""`DatagramConn`: what a handler has of a datagram."""

from __future__ import annotations

import errno
import os
import socket
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._address import Address
from uring_trio.gain._due import Way
from uring_trio.gain._errors import AddressError, NotSupported
from uring_trio.gain._handle import Handle
from uring_trio.gain._inbound import Inbound
from uring_trio.gain._life import NOBODY, Holder

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    from uring_trio.gain._came_to import CameTo
    from uring_trio.gain._datagram import DatagramSocket
    from uring_trio.gain._handle import SupportsRead

# Bytes: 65,535 of an IPv4 packet, less 20 for its header and 8 for UDP's.
DATAGRAM_SIZE_MAX = 65_507
READ_SIZE = 16 << 10  # bytes that one read() of read_from() asks for


class Owner:
    """Which thread may use a datagram.

    Attributes:
      user: its ident; 0: none any more.
    """

    __slots__ = ("user",)

    def __init__(self, user: int) -> None:
        self.user = user

    def close(self) -> None:
        """No thread may."""
        self.user = 0


class DatagramConn(Handle):
    """One datagram, and the way back to its sender; made by the server.

    It has the methods of a connection, as far as they make sense: the input is the datagram,
    ``write`` replies, `send_to` goes anywhere. It is usable until the server ends, from
    callbacks and tasks of its worker. Socket options act on the socket that all share.
    """

    __slots__ = (
        "_came_to",
        "_datagrams",
        "_due_bytes",
        "_holder",
        "_kept",
        "_out_size",
        "_peer",
        "ready",
    )

    # In the worker's turn there is no short way for it.
    way = Way.SETTLED

    def __init__(
        self, datagrams: DatagramSocket, data: bytes, peer: Any, came_to: CameTo | None
    ) -> None:
        inbound = Inbound(data, len(data) + 1)
        inbound.lease(data, 0, len(data))
        super().__init__(datagrams.worker, datagrams.listener.sock, inbound, datagrams.owner)
        self._datagrams = datagrams
        self._peer = peer  # as the socket takes it: an Address is made when it is asked for
        self._came_to = came_to  # where the socket has every address
        self._holder = Holder.NOBODY
        self._kept: list[tuple[Any, tuple[Any, ...]]] | None = None  # until a thread is done
        self._out_size = 0  # bytes of its datagrams that wait in the socket's queue
        self._due_bytes = -1  # bytes that the next on_write tells of; -1: none is due
        self.ready = False

    def __repr__(self) -> str:
        return f"<DatagramConn from {self.remote_addr()!s}>"

    # ---- sending -------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Reply with one datagram, from the address that this one came to. Never blocks.

        It may be empty. Where the kernel takes nothing now it is queued. It is dropped, and counted, if
        ``write_high_water`` bytes wait already, or if the kernel refuses it later on.

        Returns:
          The number of bytes.

        Raises:
          OSError: EMSGSIZE: over 65,507 bytes.
          ConnectionClosed: the server has ended.
          OpNotAvailableInMode: on another thread.
        """
        if self._owner.user != get_ident():
            self._refuse("write")
        return self._datagrams.reply(self, _datagram(data), self._peer, self._came_to)

    def writev(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Reply with one datagram made of several buffers; see `write`."""
        if self._owner.user != get_ident():
            self._refuse("writev")
        return self._datagrams.reply(self, _datagram(b"".join(buffers)), self._peer, self._came_to)

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
        return self._datagrams.reply(self, _datagram(b"".join(chunks)), self._peer, self._came_to)

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
        peer = destination(self._sock.family, address)
        return self._datagrams.send(self, _datagram(data), peer)

    async def drain(self) -> None:
        """Return at once, as a checkpoint: a datagram has no stream to wait for."""
        if self._owner.user != get_ident():
            self._refuse("drain")
        await trio.lowlevel.checkpoint()

    # ---- who it is -----------------------------------------------------------------------

    def local_addr(self) -> Address:
        """The address that it came to; from any thread, also after the end."""
        came_to = self._came_to
        return self._datagrams.listener.address if came_to is None else came_to.address()

    def remote_addr(self) -> Address:
        """The sender's address; from any thread, also after the end."""
        return Address.from_sockaddr("udp", self._peer)

    def _name(self) -> str:
        return f"datagram from {self.remote_addr()!s}"

    def outbound_buffered(self) -> int:
        """How many bytes of its datagrams wait to be sent; also after the end."""
        if self._owner.user != get_ident():
            self._check("outbound_buffered", alive=False)
        return self._out_size

    def _whose(self) -> int:
        return self._owner.user if self.is_lent else self._datagrams.home

    # ---- closing, which does nothing, and what only streams have --------------------------

    def close(self) -> None:
        """Do nothing: nobody else uses this datagram, and all share the socket."""
        self._check("close", alive=False)

    def abort(self) -> None:
        """Do nothing, as `close`."""
        self._check("abort", alive=False)

    def send_eof(self) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        self._refuse_stream("send_eof")

    def start_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        self._refuse_stream("start_tls")

    def pause_reading(self) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        self._refuse_stream("pause_reading")

    def resume_reading(self) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        self._refuse_stream("resume_reading")

    def set_read_buffer_limit(self, size: int) -> None:
        """Raise `NotSupported`: a datagram is there as a whole."""
        self._refuse_stream("set_read_buffer_limit")

    def set_no_delay(self, no_delay: bool) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        self._refuse_stream("set_no_delay")

    def set_keep_alive_period(self, seconds: float) -> None:
        """Raise `NotSupported`: a datagram is no stream."""
        self._refuse_stream("set_keep_alive_period")

    def set_deadline(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a deadline could close."""
        self._refuse_stream("set_deadline")

    def set_read_deadline(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a deadline could close."""
        self._refuse_stream("set_read_deadline")

    def set_write_deadline(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a deadline could close."""
        self._refuse_stream("set_write_deadline")

    def set_idle_timeout(self, seconds: float | None) -> None:
        """Raise `NotSupported`: there is nothing that a timeout could close."""
        self._refuse_stream("set_idle_timeout")

    def _refuse_stream(self, name: str) -> None:
        self._check(name)
        raise NotSupported(f"{name}: a datagram is no stream, and has no connection")

    # ---- tasks and callbacks -------------------------------------------------------------

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Run a task in the worker's nursery. If it raises, that is logged."""
        self._check("start_soon")
        self.worker.nursery.start_soon(self._run_task, async_fn, args, name=name or async_fn)

    async def _run_task(
        self, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        try:
            await async_fn(*args)
        except Exception as exc:  # noqa: BLE001  the user's own code
            self._raised("a task", exc)

    def call(self, name: str, function: Callable[..., Any] | None, *args: Any) -> None:
        """Call a callback, here or as a task."""
        assert function is not None
        elsewhere = self.worker.elsewhere
        if elsewhere.runs(name):
            self._datagrams.callback_began()
            elsewhere.run(self, name, function, (self, *args))
            return
        try:
            function(self, *args)
        except Exception as exc:  # noqa: BLE001  the user's own code
            self._raised(name, exc)

    def _raised(self, name: str, exc: BaseException) -> None:
        self.worker.logger.error(
            "%s raised: %s",
            name,
            self._name(),
            exc_info=(type(exc), exc, exc.__traceback__),
        )

    @property
    def is_lent(self) -> bool:
        """Whether a thread has it, or is to."""
        return self._holder >= Holder.POOL

    def begin_elsewhere(self, *, in_thread: bool) -> None:
        """A callback begins that is no plain call."""
        if in_thread:
            self._holder = Holder.POOL
            self._owner = Owner(NOBODY)
        else:
            self._holder = Holder.TASK

    def borrow(self, thread: int) -> bool:
        """In a thread: begin."""
        self._holder = Holder.THREAD
        self._owner = Owner(thread)
        return True

    def may_tell(self, _name: str) -> bool:
        """Whether there is what a callback is to be told of: it is there as a whole."""
        return self._owner.user != 0

    def ended_elsewhere(self, name: str, exc: Exception | None) -> None:
        """It is over."""
        self._holder = Holder.NOBODY
        self._owner = self._datagrams.owner
        if exc is not None:
            self._raised(name, exc)
        kept, self._kept = self._kept, None
        for fn, args in kept or ():
            self.worker.call(fn, args)
        self._datagrams.callback_ended()
        if self._due_bytes >= 0:
            self.attend()

    def _call_soon(self, fn: Callable[..., Any], *args: Any) -> None:
        if not self.is_lent:
            self.worker.call(fn, args)
        elif self._kept is None:
            self._kept = [(fn, args)]
        else:
            self._kept.append((fn, args))

    # ---- the socket's --------------------------------------------------------------------

    def queued(self, size: int) -> None:
        """A datagram of it waits."""
        self._out_size += size

    def unqueued(self, size: int) -> None:
        """It does no longer."""
        self._out_size -= size

    def sent(self, size: int) -> bool:
        """The kernel has one of its datagrams; whether an on_write is due that was not before."""
        first = self._due_bytes < 0
        self._due_bytes = max(self._due_bytes, 0) + size
        return first

    def attend(self) -> None:
        """Have it settled, in the worker's turn."""
        if not self.ready:
            self.ready = True
            self.worker.turn.attend(self)

    def settle(self) -> None:
        """In the worker's turn: tell of what the kernel has taken."""
        # Not where it was aborted.
        if self._due_bytes >= 0 and self._holder is Holder.NOBODY and self._owner.user:
            written, self._due_bytes = self._due_bytes, -1
            self.call("on_write", self.worker.callbacks.on_write, written)
            self._datagrams.paid()


def _datagram(data: bytes | bytearray | memoryview) -> bytes:
    if type(data) is not bytes:
        data = bytes(memoryview(data))
    if len(data) > DATAGRAM_SIZE_MAX:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data


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
