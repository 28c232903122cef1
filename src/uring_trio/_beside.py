"""System calls beside the ring: the one room that makes them.

What can be done at once is cheaper by a plain call than by an operation, and some calls are
none of the ring's (csrc/beside.h). They go through the table of the C core that the ring's
own go through, so that a scripted kernel sees what the program does, and not the half of it.
What stays outside, and why, is listed in tests/test_kernel_seam.py.

The functions are the C ones, as in `_kernel`: they answer what the system call answers, or a
negative errno. `checked` makes an exception of that. Those that are written here raise.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from uring_trio import _addresses, _hot_parts, _kernel
from uring_trio._kernel import EINTR, INT_MAX, os_error
from uring_trio._memory import CallMemory, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

_ffi: Any = None
_lib: Any = None
_NAME_AT = 8  # bytes in front of a struct ut_name's sockaddr
if _kernel.extension_available():
    _ffi, _lib = _kernel.load_extension()
    _NAME_AT = _ffi.offsetof("struct ut_name", "storage")

# A struct ut_name with an address of IPv4: length, family, port, host.
_IPV4_LENGTH, _IPV4_FAMILY = 16, int(socket.AF_INET)
_IPV4 = struct.Struct(f"=I{_NAME_AT - 4}xH6B")
_DECIMALS = tuple(map(str, range(256)))

# The answer of `try_accept` where nothing was tried.
MIGHT_BLOCK = -errno.EDEADLK


def _function(name: str) -> Any:
    return getattr(_lib, name, None)  # none where the extension was not built


try_send = _function("ut_try_send")
try_send_to = _function("ut_try_send_to")
try_send_with = _function("ut_try_send_with")
try_recv = _function("ut_try_recv")
try_recv_from = _function("ut_try_recv_from")
try_accept = _function("ut_try_accept")
try_poll = _function("ut_try_poll")
connect = _function("ut_connect")
shutdown = _function("ut_shutdown")
close = _function("ut_close")
getsockopt = _function("ut_getsockopt")
status_flags = _function("ut_status_flags")
queued = _function("ut_queued")
mode = _function("ut_mode")
write = _function("ut_write")

if _hot_parts.hot is not None:
    _hot_parts.hot.know(try_send=try_send, table=int(_ffi.cast("uintptr_t", _lib.ut_table())))


def checked(result: int) -> int:
    """The answer of a call.

    Raises:
      OSError: it was an error.
    """
    if result < 0:
        raise os_error(result)
    return result


class Name:
    """The memory for an address that a call tells; to be used again and again."""

    __slots__ = ("_view", "c")

    def __init__(self) -> None:
        self.c = _ffi.new("struct ut_name *")
        self._view = _ffi.buffer(self.c)

    @property
    def address(self) -> Any:
        """The same in Python's form."""
        # Each accept asks for one, so it is read with one look, at a third of the cost.
        length, family, high, low, a, b, c, d = _IPV4.unpack_from(self._view)
        if family == _IPV4_FAMILY and length == _IPV4_LENGTH:
            text = f"{_DECIMALS[a]}.{_DECIMALS[b]}.{_DECIMALS[c]}.{_DECIMALS[d]}"
            return text, high << 8 | low
        return _addresses.unpack(self.packed)

    @property
    def packed(self) -> bytes:
        """The sockaddr that the last call has told."""
        end: int = _NAME_AT + self.c.length
        return self._view[_NAME_AT:end]  # type: ignore[no-any-return]


# Bytes of a `Room`: more than a datagram of IP can have.
ROOM_SIZE = 1 << 16


class Scratch(threading.local):
    """What a call of this thread may write to, and the next one as well."""

    name: Name

    def __init__(self) -> None:
        self.name = Name()


class Room(threading.local):
    """The same, for data: what was received is copied out before the next call.

    Attributes:
      c: the memory.
      view: the same, as `Memory.view`.
    """

    def __init__(self) -> None:
        self._owner = CallMemory()
        memory = self._owner.memory(ROOM_SIZE)
        self.c = memory.c
        self.view = memory.view(ROOM_SIZE)


scratch: Any = Scratch() if _lib is not None else None
room: Any = Room() if _lib is not None else None


def own_address(fd: int) -> Any:
    """The address that a socket is bound to.

    Raises:
      OSError: as getsockname(2).
    """
    name = Name()
    checked(_lib.ut_own_name(fd, name.c))
    return name.address


def peer_address(fd: int) -> Any:
    """The address of a connection's peer, also after a reset.

    Raises:
      OSError: the kernel does not know it.
    """
    name = Name()
    checked(_lib.ut_peer_name(fd, name.c))
    return name.address


def network_of(fd: int) -> int:
    """The number of the network that a socket is in; 0: it is not known."""
    return int(_lib.ut_network_of(_lib.ut_kernel_in_use, fd))


def try_sendmsg(fd: int, message: Any, flags: int) -> int:
    """Send a `Message`."""
    return int(_lib.ut_try_sendmsg(fd, message.c, flags))


def try_recvmsg(fd: int, message: Any, flags: int) -> int:
    """Receive into a `Message`, which may be one that has received already."""
    return int(_lib.ut_try_recvmsg(fd, message.c, flags))


def _set_bytes(fd: int, level: int, option: int, value: bytes) -> int:
    return int(_lib.ut_setsockopt_bytes(fd, level, option, value, len(value)))


#: By the type of a value that is the kernel's to judge: what sets a socket's option to it.
option_setters: dict[type, Callable[[int, int, int, Any], int]] = {
    int: _function("ut_setsockopt"),
    bool: _function("ut_setsockopt"),
    bytes: _set_bytes,
}


def setsockopt(fd: int, level: int, option: int, value: int | bytes) -> None:
    """Set a socket's option.

    Raises:
      OSError: the kernel refuses it.
      OverflowError: an argument is no int of C's.
    """
    checked(option_setters.get(type(value), option_setters[int])(fd, level, option, value))


def read(fd: int, size: int) -> bytes:
    """read(2): at most *size* bytes.

    Raises:
      OSError: as read(2), but for EINTR.
    """
    memory = Memory(size)
    try:
        while (count := _lib.ut_read(fd, memory.c, size)) == EINTR:
            pass  # Python has run its signal handlers
        return memory.data(checked(count))
    finally:
        memory.free()


def write_some(fd: int, data: Any) -> int:
    """write(2) of an object with contiguous memory; how many bytes were taken.

    Raises:
      OSError: as write(2), but for EINTR.
    """
    with _ffi.from_buffer("char[]", data) as pinned:
        while (count := write(fd, pinned, len(pinned))) == EINTR:
            pass
    return checked(count)


def try_look(fd: int, events: int) -> int:
    """poll(2) without waiting: what of *events* there is now, or its error, negative.

    Not EINTR, which it has for a file that is not ready.
    """
    found: int
    while (found := try_poll(fd, events)) == EINTR:
        pass  # Python has run its signal handlers
    return found


def look(fd: int, events: int) -> int:
    """What of *events* there is now.

    Raises:
      OSError: as poll(2), but for EINTR.
    """
    return checked(try_look(fd, events))


def wait_for(fd: int, events: int, timeout: float) -> int:
    """poll(2) for at most *timeout* seconds: what of *events* there is, 0 in the end.

    Raises:
      OSError: as poll(2), but for EINTR.
    """
    end = monotonic() + timeout
    left = timeout
    while True:
        left_ms = min(max(0, math.ceil(left * 1000)), INT_MAX) if left < math.inf else -1
        found: int = _lib.ut_poll(fd, events, left_ms)
        if found != EINTR:
            return checked(found)
        left = end - monotonic()


def close_fd(fd: int) -> None:
    """Close a descriptor of ours.

    Raises:
      OSError: it was not open, or the file was not written as it should.
    """
    result = close(fd)
    if result != EINTR:  # Linux has closed it all the same
        checked(result)


Kind = tuple[int, int, int]  # family, type and protocol of what a listener accepts


def own(fd: int, kind: Kind) -> socket.socket:
    """The object that owns an accepted descriptor from now on; without one it is closed."""
    try:
        return socket.socket(*kind, fileno=fd)
    except BaseException:
        close_fd(fd)
        raise


def close_socket(sock: socket.socket) -> None:
    """Close a socket of the standard library's, as its own method does.

    Raises:
      OSError: somebody else has closed its descriptor.
    """
    if _lib is None or type(sock) is not socket.socket or sock._io_refs > 0:  # type: ignore[attr-defined]
        sock.close()  # a user's class, or somebody still reads it as a file
        return
    fd = sock.detach()
    if fd >= 0 and (result := close(fd)) != 0 and -result != errno.ECONNRESET:
        checked(result)
