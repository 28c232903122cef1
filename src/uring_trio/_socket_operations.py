"""The operations of sockets that are not a stream's plain send and receive.

A receive into a provided buffer is right only for a byte stream and no flags: of a
datagram that is larger than the buffer the rest would be lost without a word, and
``recv(0)`` would eat bytes. All else here is received into pinned memory of the full
size that was asked for, and taken over from there.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING, Any

from uring_trio import _addresses
from uring_trio._memory import Memory, Message, unpin
from uring_trio._operations import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._directions import Direction

SCM_PIDFD = 4  # SO_PASSPIDFD, since 6.5: the peer's pidfd


class ReceiveBytes(Operation):
    """recv with flags, or of a datagram: ``bytes``."""

    __slots__ = ("flags", "memory", "size")

    def __init__(self, direction: Direction, size: int, flags: int) -> None:
        super().__init__(direction)
        self.size = size
        self.flags = flags
        self.memory = Memory(size)

    def prepare(self) -> int:
        direction = self.direction
        return direction.ring.recv_into(
            direction.fileno(), self.memory, self.size, self.flags, direction.poll_first
        )

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        # MSG_TRUNC answers with the datagram's length, also where it did not fit.
        return self.memory.data(min(res, self.size)) + bytes(max(0, res - self.size))

    def release(self) -> None:
        self.memory.free()


class ReceiveInto(Operation):
    """recv_into: the count of bytes."""

    __slots__ = ("flags", "pinned", "size")

    def __init__(self, direction: Direction, pinned: Any, size: int, flags: int) -> None:
        super().__init__(direction)
        self.pinned = pinned
        self.size = size
        self.flags = flags

    @property
    def on_user_memory(self) -> bool:
        return True

    def prepare(self) -> int:
        direction = self.direction
        return direction.ring.recv_into(
            direction.fileno(), self.pinned, self.size, self.flags, direction.poll_first
        )

    def release(self) -> None:
        unpin(self.pinned)


class MessageOperation(Operation):
    """Whatever has a `Message`, which is freed with the last cqe.

    *convert* makes the task's value of the count of bytes and the message.
    """

    __slots__ = ("_on_user_memory", "convert", "flags", "message")

    def __init__(
        self,
        direction: Direction,
        message: Message,
        flags: int,
        convert: Callable[[int, Message], Any] | None = None,
        *,
        on_user_memory: bool = False,
    ) -> None:
        super().__init__(direction)
        self.message = message
        self.flags = flags
        self.convert = convert
        self._on_user_memory = on_user_memory

    @property
    def on_user_memory(self) -> bool:
        return self._on_user_memory

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0 or self.convert is None:
            return res
        return self.convert(res, self.message)

    def release(self) -> None:
        self.message.free()


class ReceiveMessage(MessageOperation):
    """recvmsg, recvfrom and their ``_into``."""

    __slots__ = ()

    def prepare(self) -> int:
        direction = self.direction
        return direction.ring.recvmsg(
            direction.fileno(), self.message, self.flags, direction.poll_first
        )

    def dispose(self, res: int) -> None:
        if res < 0:
            return
        _, control, _ = self.message.result()
        for level, kind, data in _addresses.unpack_control(control):
            if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, SCM_PIDFD):
                descriptors = array.array("i")
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                for fd in descriptors:
                    os.close(fd)


class SendMessage(MessageOperation):
    """sendmsg and sendto: the count of bytes."""

    __slots__ = ()

    def prepare(self) -> int:
        direction = self.direction
        return direction.ring.sendmsg(direction.fileno(), self.message, self.flags)


class Accept(MessageOperation):
    """accept: the new stdlib socket, and the peer's address."""

    __slots__ = ("listener",)

    def __init__(self, direction: Direction, listener: socket.socket) -> None:
        super().__init__(direction, Message(), socket.SOCK_CLOEXEC)
        self.listener = listener

    def prepare(self) -> int:
        direction = self.direction
        return direction.ring.accept(
            direction.fileno(), self.message, self.flags, direction.poll_first
        )

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        listener = self.listener
        try:
            # Here and not in the task: from now on the object owns the fd.
            accepted = socket.socket(listener.family, listener.type, listener.proto, fileno=res)
        except BaseException:
            os.close(res)
            raise
        return accepted, _addresses.unpack(self.message.accepted_name())

    def dispose(self, res: int) -> None:
        if res >= 0:
            os.close(res)


class Connect(MessageOperation):
    """connect: 0."""

    __slots__ = ()

    def prepare(self) -> int:
        direction = self.direction
        return direction.ring.connect(direction.fileno(), self.message)
