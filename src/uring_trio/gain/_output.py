"""A connection's output: what was written, and what the kernel has of it.

``write`` only appends. At the end of the worker's turn all that was written becomes one
send; what is written while it is in the kernel waits for its completion. Small pieces are
joined, since a copy of some KiB is cheaper than another operation; a large one is sent from
where it lies.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._errors import ConnectionClosed
from uring_trio.gain._input import Input

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class SupportsRead(Protocol):
        """A file to be read from."""

        def read(self, size: int = -1, /) -> bytes: ...


# Bytes. As much is joined into one send; about what a socket's buffer takes at first.
JOIN_MAX = 64 << 10
READ_FROM_SIZE = 64 << 10  # bytes that one read() of read_from() asks for


class Output(Input):
    """The writing half of a connection's API, and its queue."""

    __slots__ = (
        "_dirty",
        "_drained",
        "_ended",
        "_high_water",
        "_low_water",
        "_out",
        "_out_full",
        "_out_size",
        "_ready",
        "_send_at",
        "_send_size",
        "_send_slot",
        "_sending",
        "_special",
        "_written",
    )

    def _init_output(self, high_water: int) -> None:
        self._high_water = high_water
        self._low_water = high_water // 4
        self._out: list[bytes] = []  # not in the kernel yet
        self._out_size = 0  # bytes written, and not taken by the kernel
        self._out_full = False  # over high water, and not at low water since
        self._send_slot = -1
        self._sending: bytes | None = None  # pinned: what the kernel sends from
        self._send_at = 0  # where in it the send in flight begins
        self._send_size = 0  # of the send in flight
        self._written = 0  # bytes that no on_write has told of
        self._ended = False  # send_eof() was called
        self._ready = False  # the worker's turn comes to it, and sends what is written then
        self._drained: trio.Event | None = None
        self._dirty: list[Any] = self.worker.dirty  # who has output and no send in flight

    # ---- for users -----------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Send *data*, after what was written before. Never blocks, and is never short.

        ``bytes`` are sent from where they lie; any other buffer is copied.

        Returns:
          The number of bytes.

        Raises:
          ConnectionClosed: after ``close()``, ``send_eof()``, or the connection's end.
          OpNotAvailableInMode: on another thread.
        """
        if self._thread != get_ident():
            self._refuse("write")
        if self._ended:
            raise ConnectionClosed("write: send_eof() has ended the output")
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        size = len(data)
        if not size:
            return 0
        out = self._out
        if self._send_slot < 0:
            if not out and not self._ready:
                self._dirty.append(self)
                if self.worker.parked:
                    self._wake_worker()
            self._out_size += size
        else:
            # What the socket takes at once is never too much; this is behind what it refused.
            total = self._out_size = self._out_size + size
            if total > self._high_water and not self._out_full:
                self._output_full()
        out.append(data)
        return size

    def writev(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Send several buffers, one after the other; the number of bytes of all."""
        if self._thread != get_ident():
            self._refuse("writev")
        return self.write(b"".join(buffers))

    def read_from(self, file: SupportsRead) -> int:
        """Send all that *file* gives until its end; the number of bytes.

        Its ``read`` is called in the loop, so it must not block.

        Raises:
          ConnectionClosed, OpNotAvailableInMode: as ``write``; and whatever ``read``
            raises: what it gave before is sent.
        """
        if self._thread != get_ident():
            self._refuse("read_from")
        total = 0
        while data := file.read(READ_FROM_SIZE):
            total += self.write(data)
        return total

    def outbound_buffered(self) -> int:
        """How many written bytes the kernel has not taken yet; also after the end."""
        if self._thread != get_ident():
            self._check("outbound_buffered", alive=False)
        return self._out_size

    async def drain(self) -> None:
        """Sleep until the output is down at low water, a quarter of ``write_high_water``.

        Cancelling it changes nothing.

        Raises:
          ConnectionClosed: the connection is closed, or ended before.
          OpNotAvailableInMode: on another thread.
        """
        if self._thread != get_ident():
            self._refuse("drain")
        while self._out_size > self._low_water:
            if self._is_cut_off():
                raise ConnectionClosed("drain: the connection ended with output unsent")
            if self._drained is None:
                self._drained = trio.Event()
                self._special = True
            drained = self._drained
            try:
                await drained.wait()
            except BaseException:
                if drained is self._drained and not drained.statistics().tasks_waiting:
                    self._drained = None
                    self._drain_given_up()
                raise
        await trio.lowlevel.checkpoint()

    # ---- for the worker ------------------------------------------------------------------

    def _next_output(self) -> bytes:
        """What to send next, off the queue: a large piece, or small ones joined."""
        out = self._out
        if len(out) == 1:
            return out.pop()
        size = count = 0
        for piece in out:
            size += len(piece)
            if count and size > JOIN_MAX:
                break
            count += 1
        data = b"".join(out[:count]) if count > 1 else out[0]
        del out[:count]
        return data

    def _wake_drainers(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set()

    def _drain_given_up(self) -> None:
        """Nobody waits for the output any more."""
        raise NotImplementedError

    def _wake_worker(self) -> None:
        """There is something to send, and the worker sleeps."""
        raise NotImplementedError

    def _output_full(self) -> None:
        """The output went over high water."""
        raise NotImplementedError

    def _is_cut_off(self) -> bool:
        """Whether the connection ended before its output was sent."""
        raise NotImplementedError
