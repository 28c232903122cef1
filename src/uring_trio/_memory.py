"""Memory that the kernel works on: messages, receive buffers, pinned objects of users.

Whoever makes one keeps it until the operation's last cqe, and frees it then. As in
`_kernel`, cffi stays in here: the attribute ``c`` and what `pin` returns are handed to a
`Ring`, or to a call of `_beside`, and looked at by nobody else.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from uring_trio import _kernel

_ffi: Any = None
_lib: Any = None
if _kernel.extension_available():
    _ffi, _lib = _kernel.load_extension()


class Message:
    """The memory of a recvmsg, sendmsg, accept or connect. Valid until `free`."""

    __slots__ = ("_vectors", "c")

    def __init__(self, vectors: int = 0, control_size: int = 0, data_size: int = 0) -> None:
        self.c = _lib.ut_message_new(vectors, control_size, data_size)
        if not self.c:
            raise MemoryError(f"no memory for a message of {data_size + control_size} bytes")
        self._vectors: list[Any] = []

    def add_vector(self, index: int, pin: Any, size: int) -> None:
        """Point vector *index* at pinned memory (see `pin`); it is kept until `free`."""
        self._vectors.append(pin)
        _lib.ut_message_set_vector(self.c, index, pin, size)

    def set_name(self, name: bytes) -> None:
        """Set the address to connect or to send to; a packed sockaddr."""
        if _lib.ut_message_set_name(self.c, name, len(name)) < 0:
            raise ValueError(f"address of {len(name)} bytes is too long: {name!r}")

    def set_control(self, control: bytes) -> None:
        """Fill the control data; as long as the message was made for."""
        _ffi.memmove(self.c.control, control, len(control))

    def result(self) -> tuple[bytes, bytes, int]:
        """Name, control data and flags as the kernel left them."""
        found = _ffi.new("struct ut_message_result *")
        _lib.ut_message_read(self.c, found)
        name = self._bytes(_ffi.addressof(self.c, "name"), found.name_length, 128)
        control = self._bytes(self.c.control, found.control_length, self.c.control_size)
        return name, control, found.flags

    def accepted_name(self) -> bytes:
        """The peer's address, after an accept."""
        return self._bytes(_ffi.addressof(self.c, "name"), self.c.name_length, 128)

    def data(self, size: int) -> bytes:
        """The first *size* bytes of what was received."""
        return self._bytes(self.c.data, size, self.c.data_size)

    @staticmethod
    def _bytes(start: Any, size: int, room: int) -> bytes:
        return bytes(_ffi.buffer(start, min(size, room)))

    def free(self) -> None:
        """Give the memory back, and the pins; after the last cqe."""
        for pin in self._vectors:
            unpin(pin)
        self._vectors.clear()
        _lib.ut_message_free(self.c)
        self.c = None


def pin(buffer: Any, *, writable: bool = False) -> Any:
    """Hold an object's memory where it is until `unpin`; ``len()`` of it counts bytes.

    A ``bytes`` object never moves, and a reference is enough. Any other is exported
    through the buffer protocol: meanwhile a bytearray cannot be resized.

    Raises:
      TypeError, BufferError: the object has no contiguous (writable) memory.
    """
    if type(buffer) is bytes and not writable:
        return buffer
    return _ffi.from_buffer("char[]", buffer, require_writable=writable)


def unpin(pinned: Any) -> None:
    """End what `pin` began."""
    if type(pinned) is not bytes:
        _ffi.release(pinned)


#: ``pin_memory(buffer)`` is ``pin(buffer, writable=True)``, and `unpin_memory` ends it: the
#: same without a function of Python's.
pin_memory: Any = None
unpin_memory: Any = None
if _ffi is not None:
    pin_memory = partial(_ffi.from_buffer, "char[]", require_writable=True)
    unpin_memory = _ffi.release


class Memory:
    """Memory of our own for one receive, on a 64-byte boundary (see csrc/bufring.c)."""

    __slots__ = ("c",)

    def __init__(self, size: int) -> None:
        self.c = _lib.ut_memory_new(size)
        if not self.c:
            raise MemoryError(f"no memory for a receive of {size} bytes")

    def data(self, size: int) -> bytes:
        """The first *size* bytes."""
        return bytes(_ffi.buffer(self.c, size))

    def view(self, size: int) -> Any:
        """The first *size* bytes as they are at any time, until `free`: slices are copies."""
        return _ffi.buffer(self.c, size)

    def free(self) -> None:
        """Give the memory back; after the last cqe."""
        _lib.ut_memory_free(self.c)
        self.c = None


class CallMemory:
    """Memory of one owner's for calls beside the ring, which have ended when they return.

    So it can be freed at any time, and is, at the latest, when it is dropped: with the owner of a
    run that was lost, or with one that found no memory for all that it needs.
    """

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: list[Memory | Message] = []

    def memory(self, size: int) -> Memory:
        """More of it."""
        memory = Memory(size)
        self._all.append(memory)
        return memory

    def message(self, *, control_size: int = 0, data_size: int = 0) -> Message:
        """More of it, for a message."""
        message = Message(control_size=control_size, data_size=data_size)
        self._all.append(message)
        return message

    def free(self) -> None:
        """Give it all back."""
        while self._all:
            self._all.pop().free()

    def __del__(self) -> None:
        if _lib is not None:  # else the interpreter has let go of this module already
            self.free()
