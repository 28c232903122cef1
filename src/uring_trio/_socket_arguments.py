"""What the callers of socket methods pass, checked and made ready for the kernel.

Every check has one purpose: to tell whether the ring may take the call. Where it may not,
the answer is False or None, and the standard library says in its own words what is wrong.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from uring_trio import _addresses
from uring_trio._kernel import INT_MAX, TRANSFER_MAX
from uring_trio._memory import Message, pin, unpin

# More buffers in one call are EMSGSIZE, but EINVAL to io_uring on Linux 6.1 and 6.12.
IOV_MAX = 1024
MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)
# Not in every Python's socket module; Linux's numbers.
MSG_FASTOPEN = 0x20000000
MSG_ZEROCOPY = 0x4000000
# Taken off (see `_sockets`), and left to stock.
IGNORED_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_WAITALL)
STOCK_FLAGS = int(socket.MSG_OOB | socket.MSG_ERRQUEUE) | MSG_FASTOPEN | MSG_ZEROCOPY


def usable_size(size: object) -> bool:
    """Whether it is a count of bytes that one operation can move; 0 is stock's."""
    return isinstance(size, int) and 0 < size <= TRANSFER_MAX


def usable_flags(flags: object) -> bool:
    """Whether they are flags (a C int) that the ring may take."""
    return isinstance(flags, int) and 0 <= flags <= INT_MAX and not flags & STOCK_FLAGS


def own_flags(flags: int) -> int:
    """The flags without those that are taken off."""
    return int(flags) & ~IGNORED_FLAGS


def into_arguments(buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[Any, int, int] | None:
    """The pinned buffer, size and flags of recv_into and recvfrom_into, if usable."""
    if not (isinstance(nbytes, int) and nbytes >= 0 and usable_flags(flags)):
        return None
    try:
        pinned = pin(buffer, writable=True)
    except (TypeError, BufferError, ValueError):
        return None
    size = nbytes or len(pinned)
    if not 1 <= size <= min(len(pinned), TRANSFER_MAX):
        unpin(pinned)
        return None
    return pinned, size, own_flags(flags)


def is_iterable(value: object) -> bool:
    """Whether it may be a list of buffers; asked without iterating it."""
    return hasattr(type(value), "__iter__")


def is_contiguous(data: object) -> bool:
    """Whether it is bytes in one piece, in order."""
    if type(data) in (bytes, bytearray):
        return True
    try:
        with memoryview(data) as view:  # type: ignore[arg-type]
            return view.c_contiguous
    except TypeError:
        return False


def try_pin(buffer: Any) -> Any:
    """Pinned memory to be sent; None if the object has none."""
    try:
        return pin(buffer)
    except (TypeError, BufferError, ValueError):
        return None


def try_control(ancillary: list[Any]) -> bytes | None:
    """Control messages as the kernel takes them; None if one is not usable."""
    try:
        return _addresses.pack_control(
            [(level, kind, bytes(memoryview(data))) for level, kind, data in ancillary]
        )
    except (TypeError, ValueError, OverflowError, struct.error):
        return None


def message_of(buffers: list[Any], control_size: int, *, writable: bool = False) -> Message | None:
    """A message over the caller's memory; None if a buffer is not usable."""
    if len(buffers) > IOV_MAX:
        return None
    message = Message(vectors=len(buffers), control_size=control_size)
    for index, buffer in enumerate(buffers):
        try:
            pinned = pin(buffer, writable=writable)
        except (TypeError, BufferError, ValueError):
            message.free()
            return None
        message.add_vector(index, pinned, len(pinned))
    if not writable:
        message.set_name(b"")
    return message
