"""The ends of a program's channels through anyio: the same calls by anyio's names.

It has fewer: what it lacks is left out, or is done by what it has (`programs`). Its streams and
its datagram sockets have guards of their own, so two tasks in one direction are one too many.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import trio
from anyio._backends import _trio

import uring_trio._anyio_backend  # noqa: F401 - which is else imported at the first run
from simulation.programs_ends import RESET_AT_CLOSE, End

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOM = 65536  # of a receive of messages, and of one whose size nobody says
DESCRIPTORS_MAX = 4


def wrap(sock: stdlib_socket.socket) -> Any:
    """anyio's object for a connected socket.

    Not by its own `from_socket`: that asks the socket for its peer, past the kernel's table, and
    a placeholder of the network without a kernel has none.
    """
    local = sock.family == stdlib_socket.AF_UNIX
    if sock.type == stdlib_socket.SOCK_STREAM:
        kind: Any = _trio.UNIXSocketStream if local else _trio.SocketStream
    else:
        kind = _trio.ConnectedUNIXDatagramSocket if local else _trio.ConnectedUDPSocket
    return kind(trio.socket.from_stdlib_socket(sock))


class AnyioEnd(End):
    """A stream of anyio's, or a connected datagram socket."""

    busy = (anyio.BusyResourceError, trio.BusyResourceError)  # stock's comes through as it is
    gone = anyio.ClosedResourceError
    broken = anyio.BrokenResourceError

    def __init__(
        self,
        name: str,
        sock: stdlib_socket.socket,
        incoming: Any,
        outgoing: Any,
        *,
        strict: bool,
        spare_fd: int,
    ) -> None:
        super().__init__(name, incoming, outgoing, strict=strict)
        self.sock = sock
        self.stream: Any = wrap(sock)
        self.spare_fd = spare_fd
        self.passes = self.is_stream and sock.family == stdlib_socket.AF_UNIX

    def number(self) -> int:
        return self.sock.fileno()

    # ---- receive -------------------------------------------------------------------------

    async def receive(self, size: int) -> str:
        if not self.is_stream:
            return await self.receive_any(size)
        return await self.receiving(size, self._until_end(lambda: self.stream.receive(size)))

    async def receive_any(self, _size: int) -> str:
        return await self.receiving(ROOM, self._until_end(lambda: self.stream.receive()))

    async def recvmsg(self, size: int) -> str:
        if not self.passes:
            return await self.receive(size)

        async def call() -> bytes:
            data, received = await self.stream.receive_fds(size, DESCRIPTORS_MAX)
            for fd in received:
                os.close(fd)
            return data  # type: ignore[no-any-return]

        return await self.receiving(size, self._until_end(call))

    @staticmethod
    def _until_end(call: Callable[[], Awaitable[bytes]]) -> Callable[[], Awaitable[bytes]]:
        async def receive() -> bytes:
            try:
                return await call()
            except anyio.EndOfStream:
                return b""

        return receive

    # ---- send ----------------------------------------------------------------------------

    async def send_all(self, size: int) -> str:
        return await self.sending(size, self.stream.send, is_all=self.is_stream)

    async def send_fd(self, size: int) -> str:
        if not self.passes:
            return await self.send_all(size)
        if self.writing.uses:
            return "left out"
        # It lets others run before it takes its place among those who send.
        was, self.in_turn = self.in_turn, False
        try:
            return await self.sending(
                size, lambda data: self.stream.send_fds(data, [self.spare_fd]), is_all=True
            )
        finally:
            self.in_turn = was

    # ---- readiness -----------------------------------------------------------------------

    async def readable(self, _size: int) -> str:
        if self.closed:
            return "left out"
        return await self.waiting_to_read(anyio.wait_readable, self.sock)

    async def writable(self, _size: int) -> str:
        if self.closed:
            return "left out"
        return await self.waiting_to_write(anyio.wait_writable, self.sock)

    # ---- the end -------------------------------------------------------------------------

    async def send_eof(self, _size: int) -> str:
        if self.closed or not self.is_stream:
            return "left out"
        self.shut = True
        self.touch()
        with self.writing.use() as use:
            try:
                await self.stream.send_eof()
            except self.errors as exc:
                return self.judge(exc, use, sends=True)
            return "sent"

    async def close(self, _size: int) -> str:
        if self.closed:
            return "left out"
        self.note_close()
        await self.stream.aclose()
        return "closed"

    async def leave(self, _size: int) -> str:
        """Without a checkpoint that waits."""
        if self.closed:
            return "left out"
        self.note_close()
        await anyio.aclose_forcefully(self.stream)
        return "closed"

    async def abort(self, _size: int) -> str:
        if self.closed:
            return "left out"
        with contextlib.suppress(OSError):
            self.stream.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
                stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, RESET_AT_CLOSE
            )
        self.note_close(abort=True)
        await self.stream.aclose()
        return "closed"
