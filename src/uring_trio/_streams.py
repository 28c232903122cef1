"""trio's streams on the ring: what `SocketStream` and `FdStream` do instead of waiting.

Both classes are final, so three methods of each are replaced in place. A replacement takes
the ring only in a run that is on it, and only for a socket that is exactly ours; otherwise
it calls the method that was there (FakeNet, users' own socket classes, epoll runs).

``send_all`` is a loop of sends that may be short, and not one with MSG_WAITALL, although
the kernel would go on by itself then: where the peer resets the connection in the middle,
that send answers with what it had sent, the socket's error is used up, and nobody hears of
the reset. The next send finds EPIPE, and a reader beside it a clean end of file.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import stat
import types
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from trio.lowlevel import enable_ki_protection

from uring_trio import _beside as beside
from uring_trio import _hot_parts
from uring_trio._beside import checked
from uring_trio._fast_ways import FAST
from uring_trio._io_manager import UringIOManager, let_go_unless_on_ring
from uring_trio._kernel import GROUP_SIZES, TRANSFER_MAX
from uring_trio._memory import pin
from uring_trio._operations import SMALLEST_BUFFER, Abort, Receive, Send
from uring_trio._socket_arguments import is_contiguous, usable_size
from uring_trio._sockets import UringSocket
from uring_trio._trio_private import (
    fd_holder,
    fd_stream_type,
    held_fd,
    hold_send_guard,
    let_go,
    manager_of,
    park,
    receive_guard,
    run_context,
    send_guard,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._endpoints import Endpoint
    from uring_trio._lines import Sender

# What receive_some() without a size asks for: as much as our largest buffer takes. (Stock
# asks for 64 KiB; "a reasonable default" is all that trio promises.)
RECEIVE_SIZE = GROUP_SIZES[-1]
SEND_ALL_FLAGS = int(socket.MSG_NOSIGNAL)

# Writing so much to a pipe that is writable does not block. (None on Windows.)
PIPE_BUF = getattr(select, "PIPE_BUF", 512)

SENT_EOF = "can't send data after sending EOF"

_socket_receive_some = trio.SocketStream.receive_some
_socket_send_all = trio.SocketStream.send_all
_socket_aclose = trio.SocketStream.aclose
_trio_aclose_forcefully = trio.aclose_forcefully
_fd_receive_some: Any = getattr(fd_stream_type, "receive_some", None)  # none on Windows
_fd_send_all: Any = getattr(fd_stream_type, "send_all", None)
_fd_close_stream: Any = getattr(fd_stream_type, "close", None)


def _raise_stream_error(exc: OSError) -> NoReturn:
    """Raise a socket's error as SocketStream shows it."""
    if exc.errno in (errno.EBADF, errno.ENOTSOCK):
        raise trio.ClosedResourceError("this socket was already closed") from None
    raise trio.BrokenResourceError(f"socket connection broken: {exc}") from exc


def _raise_send_error(sock: Any, exc: OSError) -> NoReturn:
    """The same, of one that sends."""
    if exc.errno == errno.EPIPE and sock.did_shutdown_SHUT_WR:
        # Found out by the kernel: asking first costs more than the ring does.
        raise trio.ClosedResourceError(SENT_EOF) from None
    _raise_stream_error(exc)


@enable_ki_protection
async def _receive_some(self: trio.SocketStream, max_bytes: int | None = None) -> bytes:
    sock = self.socket
    if type(sock) is not UringSocket:
        return await _socket_receive_some(self, max_bytes)
    task = getattr(run_context, "task", None)
    endpoint = sock.endpoint
    # What ring_endpoint() looks at first, without the call.
    if (
        not FAST
        or endpoint is None
        or task is None
        or endpoint.manager is not manager_of(task)
        or endpoint.owner is not sock._sock
    ):
        endpoint = sock.ring_endpoint(task)
        if endpoint is None:
            return await _socket_receive_some(self, max_bytes)
    if max_bytes is None:
        max_bytes = RECEIVE_SIZE
    elif max_bytes < 1:
        raise ValueError("max_bytes must be >= 1")
    elif not isinstance(max_bytes, int):
        return await _socket_receive_some(self, max_bytes)  # its TypeError
    elif max_bytes > RECEIVE_SIZE:
        if max_bytes > TRANSFER_MAX:
            return await _socket_receive_some(self, max_bytes)  # it may have no memory for it
        max_bytes = RECEIVE_SIZE
    try:
        receiver = endpoint.receiver
        operation: Receive = receiver.spare
        if receiver.current is not None or not FAST:
            operation = receiver.receive(max_bytes)
        else:
            # `Receiver.receive`, flat.
            if operation is None:
                operation = Receive(receiver, max_bytes)
            slots = receiver.slots
            group = receiver.group if max_bytes > SMALLEST_BUFFER else 0
            slot = receiver.prep_receive(receiver.fileno(), group, max_bytes, receiver.poll_first)
            if slot < 0:
                raise slots.ring.error(slot)
            receiver.spare = None
            receiver.current = operation
            operation.task = task
            operation.size = max_bytes
            operation.slot = slot
            operation.tick = slots.tick
            try:
                slots.table[slot] = operation
            except IndexError:
                slots.enter(operation, slot)
        value = await park(operation.trap)
        if type(value) is bytes:
            return value
        return operation.unwrap(value)
    except OSError as exc:
        _raise_stream_error(exc)


@enable_ki_protection
async def _send_all(self: trio.SocketStream, data: bytes | bytearray | memoryview) -> None:
    sock = self.socket
    if type(sock) is not UringSocket:
        await _socket_send_all(self, data)
        return
    task = getattr(run_context, "task", None)
    endpoint = sock.endpoint
    if (
        not FAST
        or endpoint is None
        or task is None
        or endpoint.manager is not manager_of(task)
        or endpoint.owner is not sock._sock
    ):
        endpoint = sock.ring_endpoint(task)
        if endpoint is None:
            await _socket_send_all(self, data)
            return
    guard = hold_send_guard(self)
    try:
        sender = endpoint.sender
        if (
            not FAST
            or sender.current is not None
            or type(data) is not bytes
            or not 0 < len(data) <= TRANSFER_MAX
        ):
            await _send_buffer(sock, sender, data)
            return
        # `Sender.send`, flat.
        operation: Send = sender.spare or Send(sender, data, SEND_ALL_FLAGS)
        slots = sender.slots
        slot = sender.prep_send(sender.fileno(), data, len(data), SEND_ALL_FLAGS)
        if slot < 0:
            raise slots.ring.error(slot)
        sender.spare = None
        sender.current = operation
        operation.task = task
        operation.pinned = data
        operation.flags = SEND_ALL_FLAGS
        operation.slot = slot
        operation.tick = slots.tick
        try:
            slots.table[slot] = operation
        except IndexError:  # of a new slot, or of one that leaves now
            operation.slot = slots.enter(operation, slot)
        value = await park(operation.trap)
        if value == len(data):
            return
        sent = operation.unwrap(value)
        operation.raise_if_cut_off()
        await _send_rest(sender, data, sent)
    except OSError as exc:
        _raise_send_error(sock, exc)
    finally:
        let_go(guard)


async def _aclose(self: trio.SocketStream) -> None:
    sock = self.socket
    if type(sock) is not UringSocket or not FAST:
        await _socket_aclose(self)
        return
    sock.close()
    # Each connection of `trio.serve_listeners` is closed in a scope that is cancelled. There a
    # checkpoint sleeps twice, and in a scope of its own: a sixth of what a short connection costs.
    if trio.current_effective_deadline() == -math.inf:
        await trio.lowlevel.wait_task_rescheduled(_abort_at_once)
    await trio.lowlevel.checkpoint()


def _abort_at_once(_: Any) -> Any:
    return Abort.SUCCEEDED


@enable_ki_protection
async def _aclose_forcefully(resource: trio.abc.AsyncResource) -> None:
    # To close such a stream takes no time. So nobody can tell whether that was in a scope that is
    # cancelled, which costs more than all else that there is to a short connection.
    stream: Any = resource
    if (
        not FAST
        or type(stream) is not trio.SocketStream
        or trio.SocketStream.aclose is not _aclose
        or type(stream.socket) is not UringSocket
    ):
        await _trio_aclose_forcefully(resource)
        return
    stream.socket.close()
    await trio.lowlevel.checkpoint()


# ---- in C ---------------------------------------------------------------------------------
#
# Where the hot paths are C (csrc/hot/call.c), a call that is plain, and ends well, comes to none of
# these; else the methods above do it, or what is here says what its end means.


@enable_ki_protection
def receive_some(operation: Receive, value: Any) -> Any:
    """A receive did not end with bytes. (By this name it is shown in tracebacks.)"""
    try:
        return operation.unwrap(value)
    except OSError as exc:
        _raise_stream_error(exc)


@enable_ki_protection
async def send_all(stream: Any, operation: Send, value: Any, data: bytes) -> None:
    """It was sent in part, or not at all."""
    try:
        sent = operation.unwrap(value)
        operation.raise_if_cut_off()
        await _send_rest(operation.line, data, sent)
    except OSError as exc:
        _raise_send_error(stream.socket, exc)


def _stream_methods() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`receive_some` and `send_all` of SocketStream."""
    hot = _hot_parts.hot
    if hot is None:
        return _receive_some, _send_all
    hot.know(
        UringSocket=UringSocket,
        receive_size=RECEIVE_SIZE,
        receive_some=_receive_some,
        send_all=_send_all,
        end_receive=receive_some,
        end_send=send_all,
    )
    methods: tuple[Callable[..., Any], Callable[..., Any]] = hot.stream_methods(trio.SocketStream)
    return methods


async def _send_buffer(sock: Any, sender: Sender, data: bytes | bytearray | memoryview) -> None:
    """Send all of a buffer that may be empty, or change after this."""
    if sock.did_shutdown_SHUT_WR:
        raise trio.ClosedResourceError(SENT_EOF)
    with memoryview(data) as view:
        if not view.c_contiguous:
            await sock.send(view)  # raises, in the standard library's words
        if view.nbytes == 0:
            if sender.fileno() < 0:
                raise trio.ClosedResourceError("socket was already closed")
            await trio.lowlevel.checkpoint()
            return
        await _send_rest(sender, view, 0)


async def _send_rest(sender: Sender, data: bytes | memoryview, sent: int) -> None:
    """Send what comes after *sent*."""
    with memoryview(data) as whole, whole.cast("B") as view:
        while sent < view.nbytes:
            with view[sent:] as rest:
                operation = sender.send(pin(rest), SEND_ALL_FLAGS)
                value = await park(operation.trap)
                sent += operation.unwrap(value)
                if sent < view.nbytes:
                    operation.raise_if_cut_off()


# ---- FdStream -----------------------------------------------------------------------------
#
# A read into one of our buffers asks the kernel for no more than the buffer takes, whatever
# the caller asked for. Of a byte stream the rest comes with the next read. Of a *message* it
# is lost: a datagram's or packet's of a socket, a frame's of a tun device, a record's of
# /dev/kmsg. And what is neither pipe nor socket may be unable to say "not now", so that the
# kernel would read in a thread of its own. So only what is known to be a stream is on the
# ring, and all else goes trio's way, with the caller's whole size: read(2), then a poll.
#
# A pipe is a stream also where its writer has made it one of packets (O_DIRECT; the flag of
# the writer's end decides, at each write, and the reader cannot know): the kernel keeps a
# packet in one page, and no packet is longer. That page must fit into our smallest buffer,
# which it does not where pages have 16 or 64 KiB.
#
# FIFOs, and before Linux 6.4 pipes and read(2) of sockets, cannot be told not to wait
# (FMODE_NOWAIT): io_uring would leave them to a poll of its own, and then to a thread. The
# first attempt finds out, and from then on such a file is read and written by hand, once a
# poll has told that it is ready. Before the first try, too, unlike stock's: its O_NONBLOCK
# is shared with other processes, and where one has taken it away, reading would block.

SO_DOMAIN = 39  # asm-generic/socket.h; not every Python names it
STREAM_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
PACKETS_FIT = os.sysconf("SC_PAGE_SIZE") <= GROUP_SIZES[0]


class Bytes(Enum):
    """What is known to be a stream of bytes: reading a part leaves the rest for the next read."""

    PIPE = auto()
    SOCKET = auto()


def _byte_stream(fd: int) -> Bytes | None:
    """Which kind of stream of bytes a file is, if it is one. It does not change."""
    mode = checked(beside.mode(fd))
    if stat.S_ISFIFO(mode):
        return Bytes.PIPE if PACKETS_FIT else None
    if stat.S_ISSOCK(mode) and (
        beside.getsockopt(fd, socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        and beside.getsockopt(fd, socket.SOL_SOCKET, SO_DOMAIN) in STREAM_FAMILIES
    ):
        return Bytes.SOCKET
    return None


def _fd_endpoint(stream: Any) -> Endpoint | None:
    try:
        manager = manager_of(run_context.task)
    except AttributeError:
        return None
    endpoint: Endpoint | None = getattr(stream, "_uring_endpoint", None)
    if endpoint is not None and endpoint.manager is manager:
        return endpoint
    if not isinstance(manager, UringIOManager):
        return None
    holder = fd_holder(stream)
    fd = held_fd(holder)
    if fd < 0:
        manager.count_stock_call("closed")
        return None
    try:
        kind: Bytes | None = stream._uring_bytes
    except AttributeError:
        try:
            kind = stream._uring_bytes = _byte_stream(fd)
        except OSError:
            kind = None  # closed behind the stream's back; read(2) says so
    if kind is None:
        manager.count_stock_call("not a byte stream")
        return None
    endpoint = manager.open_endpoint(holder, partial(held_fd, holder), is_socket=False)
    if kind is Bytes.SOCKET:
        endpoint.receiver.ask_for_low_water()
    stream._uring_endpoint = endpoint
    return endpoint


def _require_open(fd: int) -> None:
    if fd < 0:
        raise trio.ClosedResourceError("file was already closed")


def _require_way(fd: int, other: int) -> None:
    """A poll of a FIFO that was opened for the *other* way alone is never over.

    Raises:
      ClosedResourceError: as where read(2) or write(2) answers EBADF.
    """
    try:
        mode = checked(beside.status_flags(fd)) & os.O_ACCMODE
    except OSError as exc:  # closed behind the stream's back
        _raise_fd_error(exc)
    if mode == other:
        raise trio.ClosedResourceError("file was already closed")


def _raise_fd_error(exc: OSError) -> NoReturn:
    """Raise a file's error as FdStream shows it."""
    if exc.errno == errno.EBADF:
        raise trio.ClosedResourceError("file was already closed") from None
    raise trio.BrokenResourceError from exc


@enable_ki_protection
async def _fd_receive(self: Any, max_bytes: int | None = None) -> bytes:
    endpoint = _fd_endpoint(self)
    if endpoint is None:
        return await _fd_receive_some(self, max_bytes)
    if max_bytes is None:
        max_bytes = RECEIVE_SIZE
    elif not usable_size(max_bytes):
        return await _fd_receive_some(self, max_bytes)  # its words
    with receive_guard(self):
        size = min(max_bytes, RECEIVE_SIZE)
        if endpoint.can_be_tried:
            operation = endpoint.receiver.receive(size)
            value = await park(operation.trap)
            if type(value) is bytes:
                return value
            try:
                return operation.unwrap(value)
            except BlockingIOError:
                endpoint.try_no_more()
            except OSError as exc:
                _raise_fd_error(exc)
        return await _read_when_ready(endpoint, size)


async def _read_when_ready(endpoint: Endpoint, size: int) -> bytes:
    manager, fileno = endpoint.manager, endpoint.receiver.fileno
    manager.count_stock_call("cannot be tried")
    while True:
        _require_open(fileno())
        _require_way(fileno(), os.O_WRONLY)
        await manager.wait_readable(fileno())
        try:
            return beside.read(fileno(), size)
        except BlockingIOError:
            pass  # another reader was faster
        except OSError as exc:
            _raise_fd_error(exc)


@enable_ki_protection
async def _fd_send(self: Any, data: bytes | bytearray | memoryview) -> None:
    endpoint = _fd_endpoint(self)
    if endpoint is None:
        await _fd_send_all(self, data)
        return
    if not is_contiguous(data):
        await _fd_send_all(self, data)  # its words
        return
    with send_guard(self):
        _require_open(endpoint.sender.fileno())
        with memoryview(data) as whole, whole.cast("B") as view:
            if not view.nbytes:
                await trio.lowlevel.checkpoint()
            await _write_all(endpoint, data, view)


def _fd_close(self: Any) -> None:
    fd = held_fd(fd_holder(self))
    if fd != -1:
        let_go_unless_on_ring(fd)
    _fd_close_stream(self)


async def _write_all(endpoint: Endpoint, data: Any, view: memoryview) -> None:
    sent = 0
    while sent < view.nbytes:
        with view[sent:] as rest:
            if endpoint.can_be_tried:
                pinned = data if type(data) is bytes and not sent else pin(rest)
                operation = endpoint.sender.send(pinned, 0)
                try:
                    sent += operation.unwrap(await park(operation.trap))
                    if sent < view.nbytes:
                        operation.raise_if_cut_off()
                except BlockingIOError:
                    endpoint.try_no_more()
                except OSError as exc:
                    _raise_fd_error(exc)
            else:
                sent += await _write_when_ready(endpoint, rest)


async def _write_when_ready(endpoint: Endpoint, data: memoryview) -> int:
    manager, fileno = endpoint.manager, endpoint.sender.fileno
    manager.count_stock_call("cannot be tried")
    while True:
        _require_open(fileno())
        _require_way(fileno(), os.O_RDONLY)
        await manager.wait_writable(fileno())
        try:
            # What is writable has room for PIPE_BUF at least.
            fd = fileno()
            waits = not checked(beside.status_flags(fd)) & os.O_NONBLOCK
            with data[:PIPE_BUF] if waits else data[:] as part:
                return beside.write_some(fd, part)
        except BlockingIOError:
            pass  # another writer was faster
        except OSError as exc:
            _raise_fd_error(exc)


#: By class, or module: what is to be put in place of trio's, and trio's, to be put back.
REPLACEMENTS: dict[Any, dict[str, Callable[..., Any]]] = {
    trio: {"aclose_forcefully": _aclose_forcefully},
    trio.SocketStream: {
        **dict(zip(("receive_some", "send_all"), _stream_methods(), strict=True)),
        "aclose": _aclose,
    },
}
ORIGINALS: dict[Any, dict[str, Callable[..., Any]]] = {
    trio: {"aclose_forcefully": _trio_aclose_forcefully},
    trio.SocketStream: {
        "receive_some": _socket_receive_some,
        "send_all": _socket_send_all,
        "aclose": _socket_aclose,
    },
}
if fd_stream_type is not None:
    REPLACEMENTS[fd_stream_type] = {
        "receive_some": _fd_receive,
        "send_all": _fd_send,
        "close": _fd_close,
    }
    ORIGINALS[fd_stream_type] = {
        "receive_some": _fd_receive_some,
        "send_all": _fd_send_all,
        "close": _fd_close_stream,
    }

for _class, _methods in REPLACEMENTS.items():
    for _name, _method in _methods.items():
        if not isinstance(_method, types.FunctionType):
            continue  # in C they are called so
        _original = ORIGINALS[_class][_name]
        _method.__name__ = _name
        _method.__qualname__ = _original.__qualname__
        _method.__doc__ = _original.__doc__
