"""`DatagramConn`: what a handler has of a datagram."""

from __future__ import annotations

import errno
import os
import socket
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._address import Address
from uring_trio.gain._conn import Conn
from uring_trio.gain._errors import AddressError, NotSupported
from uring_trio.gain._states import State

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    from uring_trio.gain._datagram import DatagramSocket
    from uring_trio.gain._output import SupportsRead

# Bytes: 65,535 of an IPv4 packet, less 20 for its header and 8 for UDP's.
DATAGRAM_SIZE_MAX = 65_507
READ_SIZE = 16 << 10  # bytes that one read() of read_from() asks for


class DatagramConn(Conn):
    """One datagram, and the way back to its sender; made by the server.

    It has the methods of a connection, as far as they make sense: the input is the datagram,
    ``write`` replies, `send_to` goes anywhere. It is usable until the server ends, from
    callbacks and tasks of its worker. Socket options act on the socket that all share.
    """

    __slots__ = ("_datagrams", "_owed", "_owner", "_peer")

    # It is never closed; what runs callbacks elsewhere asks.
    _state = State.OPEN
    _close_when_idle = False

    def __init__(self, datagrams: DatagramSocket, data: bytes, peer: Any) -> None:
        worker = datagrams.worker
        self.worker = worker
        self.context: Any = None
        self._datagrams = datagrams
        self._sock = datagrams.listener.sock
        self._network = "udp"
        self._local = datagrams.listener.address
        self._peer = peer  # as the socket takes it: an Address is made when it is asked for
        self._home = datagrams.thread
        self._init_input(data, self._home)
        self._lease_size = len(data)
        self._out_size = 0  # bytes of its datagrams that wait in the socket's queue
        self._written = 0
        self._owed = False  # a datagram has gone that no on_write has told of
        self._special = True
        self._ready = False
        self._busy = False
        self._in_thread = False

    def __repr__(self) -> str:
        return f"<DatagramConn from {self.remote_addr()!s}>"

    # The base class keeps here who may use it. All datagrams of a socket end with it.

    @property
    def _thread(self) -> int:
        return self._owner if self._datagrams.thread else 0

    @_thread.setter
    def _thread(self, thread: int) -> None:
        self._owner = thread

    # ---- sending -------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Reply with one datagram, which may be empty. Never blocks.

        Where the kernel takes nothing now it is queued. It is dropped, and counted, if
        ``write_high_water`` bytes wait already, or if the kernel refuses it later on.

        Returns:
          The number of bytes.

        Raises:
          OSError: EMSGSIZE: over 65,507 bytes.
          ConnectionClosed: the server has ended.
          OpNotAvailableInMode: on another thread.
        """
        if self._thread != get_ident():
            self._refuse("write")
        return self._datagrams.reply(self, _datagram(data), self._peer)

    def writev(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Reply with one datagram made of several buffers; see `write`."""
        if self._thread != get_ident():
            self._refuse("writev")
        return self._datagrams.reply(self, _datagram(b"".join(buffers)), self._peer)

    def read_from(self, file: SupportsRead) -> int:
        """Reply with one datagram made of all that *file* gives until its end; see `write`."""
        if self._thread != get_ident():
            self._refuse("read_from")
        chunks, size = [], 0
        while chunk := file.read(READ_SIZE):
            chunks.append(chunk)
            size += len(chunk)
            if size > DATAGRAM_SIZE_MAX:
                break
        return self._datagrams.reply(self, _datagram(b"".join(chunks)), self._peer)

    def send_to(self, data: bytes | bytearray | memoryview, address: Any) -> int:
        """Send one datagram to anybody; see `write`.

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
        if self._thread != get_ident():
            self._refuse("send_to")
        peer = destination(self._sock.family, address)
        return self._datagrams.send(self, _datagram(data), peer)

    async def drain(self) -> None:
        """Return at once, as a checkpoint: a datagram has no stream to wait for."""
        if self._thread != get_ident():
            self._refuse("drain")
        await trio.lowlevel.checkpoint()

    # ---- who it is -----------------------------------------------------------------------

    def local_addr(self) -> Address:
        """The address of the socket; from any thread, also after the end."""
        return self._datagrams.listener.address

    def remote_addr(self) -> Address:
        """The sender's address; from any thread, also after the end."""
        return Address.from_sockaddr("udp", self._peer)

    def _may_take_rest(self) -> bool:
        return False  # it is there as a whole

    def _name(self) -> str:
        return f"datagram from {self.remote_addr()!s}"

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

    def _call(self, name: str, function: Callable[..., Any] | None, *args: Any) -> bool:
        """Call a callback, here or as a task; whether it is over."""
        assert function is not None
        if self.worker.runs_elsewhere(name):
            self._busy = True
            self._datagrams.callback_began()
            self.worker.run_elsewhere(self, name, function, args)
            return False
        try:
            function(self, *args)
        except Exception as exc:  # noqa: BLE001  the user's own code
            self._raised(name, exc)
        return True

    def _raised(self, name: str, exc: BaseException) -> None:
        self.worker.logger.error(
            "%s raised: %s",
            name,
            self._name(),
            exc_info=(type(exc), exc, exc.__traceback__),
        )

    def _callback_ended(self, _name: str) -> None:
        self._busy = False
        self._datagrams.callback_ended()
        if self._owed:
            self._attend()

    def _settle(self) -> None:
        """In the worker's turn: tell of what the kernel has taken."""
        if self._owed and not self._busy and self._thread:  # it was not aborted
            self._owed = False
            written, self._written = self._written, 0
            self._call("on_write", self.worker.callbacks.on_write, written)
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
