"""A connection's input: what was received and not consumed yet.

Received bytes lie in the engine's buffers for the tick in which they came: a *lease*. An
`on_read` that takes what it was told of takes it from there, with one copy. What it leaves
is copied into a buffer of the connection's own as soon as it returns, so that no idle
connection holds a buffer that others could use.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

from uring_trio.gain._errors import IsEmpty, ShortBuffer

if TYPE_CHECKING:
    from typing import Protocol

    class SupportsWrite(Protocol):
        """A file to be written to."""

        def write(self, data: bytes, /) -> int | None: ...


class Input:
    """The reading half of a connection's API, and its buffer."""

    __slots__ = (
        "_buffer",
        "_fresh",
        "_input_full",
        "_lease_at",
        "_lease_size",
        "_pool",
        "_thread",
        "worker",
    )

    worker: Any
    # As an occupant of slots: no task sleeps on a connection.
    reading = False
    task = None

    def _init_input(self, pool: Any, thread: int) -> None:
        self._pool = pool
        self._thread = thread  # who may use it; 0: nobody any more
        self._buffer: bytearray | None = None
        self._lease_at = 0  # of the newest bytes, in the pool
        self._lease_size = 0
        self._fresh = 0  # bytes that no on_read has announced
        self._input_full = False  # over read_buffer_limit: nothing is received

    # ---- for users -----------------------------------------------------------------------

    def next(self, n: int = -1) -> bytes:
        """Consume exactly *n* bytes; all that there are if it is negative.

        Raises:
          ShortBuffer: there are fewer; nothing is consumed.
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._thread != get_ident():
            self._refuse("next")
        size = self._lease_size
        if self._buffer is None and (n == size or n < 0):
            self._lease_size = 0
            at = self._lease_at
            return self._pool[at : at + size]  # type: ignore[no-any-return]
        buffered = self._buffered()
        if n > buffered:
            raise ShortBuffer(f"{n} bytes were asked for, and {buffered} are buffered")
        return self._take(n)

    def read(self, n: int = -1) -> bytes:
        """Consume at most *n* bytes; all that there are if it is negative.

        Raises:
          IsEmpty: there are none now. It is not the end of the stream.
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._thread != get_ident():
            self._refuse("read")
        return self._take(n) if n == 0 else self._take(self._some(n))

    def peek(self, n: int = -1) -> bytes:
        """At most *n* bytes, or all, without consuming them.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._thread != get_ident():
            self._refuse("peek")
        buffered = self._buffered()
        if n < 0 or n > buffered:
            n = buffered
        if self._buffer is None:
            return self._pool[self._lease_at : self._lease_at + n]  # type: ignore[no-any-return]
        self._stash()
        return bytes(self._buffer[:n])

    def read_into(self, buffer: Any) -> int:
        """Consume as many bytes as *buffer* holds, into it; how many these were.

        Raises:
          IsEmpty: there are none now.
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._thread != get_ident():
            self._refuse("read_into")
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise TypeError(f"a writable buffer is needed, not {type(buffer).__name__}")
            size = len(target)
            if size:
                data = self._take(self._some(size))
                size = len(data)
                target[:size] = data
        return size

    def discard(self, n: int = -1) -> int:
        """Consume at most *n* bytes, or all, and drop them; how many these were.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as all data methods.
        """
        if self._thread != get_ident():
            self._refuse("discard")
        buffered = self._buffered()
        if n < 0 or n > buffered:
            n = buffered
        self._drop(n)
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
        if self._thread != get_ident():
            self._refuse("write_to")
        written = file.write(self.peek(self._some(-1)))
        size = 0 if written is None else written
        self._drop(size)
        return size

    def inbound_buffered(self) -> int:
        """How many bytes are there to be consumed; also after the end."""
        if self._thread != get_ident():
            self._check("inbound_buffered", alive=False)
        return self._buffered()

    # ---- for the worker ------------------------------------------------------------------

    def _buffered(self) -> int:
        buffer = self._buffer  # once: statistics ask while a thread has it, which may empty it
        return self._lease_size if buffer is None else self._lease_size + len(buffer)

    def _check(self, name: str, *, alive: bool = True) -> None:
        """Raise unless this is the connection's thread and, with *alive*, it is open."""
        raise NotImplementedError

    def _refuse(self, name: str) -> None:
        """Raise: this is not the thread, or not the time, to use the connection."""
        self._check(name)

    def _some(self, n: int) -> int:
        """*n*, cut to what is buffered; IsEmpty if that is nothing."""
        buffered = self._buffered()
        if not buffered:
            raise IsEmpty("no input is buffered now")
        return buffered if n < 0 or n > buffered else n

    def _stash(self) -> None:
        """Copy what is leased into a buffer of our own: the batch is about to end."""
        size = self._lease_size
        if size:
            at = self._lease_at
            self._lease_size = 0
            if self._buffer is None:
                self._buffer = bytearray()
            self._buffer += self._pool[at : at + size]

    def _take(self, n: int) -> bytes:
        """Consume *n* bytes, which are there; all if it is negative."""
        if self._buffer is None:
            size = self._lease_size
            if n < 0:
                n = size
            at = self._lease_at
            self._lease_at = at + n
            self._lease_size = size - n
            return self._pool[at : at + n]  # type: ignore[no-any-return]
        self._stash()
        if n < 0:
            n = len(self._buffer)
        data = bytes(memoryview(self._buffer)[:n])
        self._drop(n)
        return data

    def _drop(self, n: int) -> None:
        if self._buffer is None:
            self._lease_at += n
            self._lease_size -= n
            return
        self._stash()
        if n == len(self._buffer):
            self._buffer = None
        else:
            del self._buffer[:n]  # CPython moves a pointer, not the bytes
        if self._input_full:
            self._input_consumed()

    def _unannounced(self) -> int:
        """How many bytes the next on_read tells of."""
        return min(self._fresh, self._buffered())

    def _input_consumed(self) -> None:
        """Receiving was stopped because the buffer was full; it may be no more."""
        raise NotImplementedError
