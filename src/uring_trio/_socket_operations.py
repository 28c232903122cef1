"""The operations of sockets that `_operations` does not have already.

A receive into a provided buffer is right only for a byte stream and no flags: of a
datagram that is larger than the buffer the rest would be lost without a word, and
``recv(0)`` would eat bytes. All else here is received into pinned memory of the full
size that was asked for, and taken over from there.
"""

from __future__ import annotations

import array
import errno
import socket
from typing import TYPE_CHECKING, Any

from uring_trio import _addresses
from uring_trio._beside import (
    MIGHT_BLOCK,
    ROOM_SIZE,
    close_fd,
    connect,
    network_of,
    own,
    room,
    scratch,
    try_accept,
    try_recv_from,
)
from uring_trio._kernel import EAGAIN, ECANCELED, ETIME, POLLIN
from uring_trio._memory import Memory, Message
from uring_trio._operations import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio._beside import Kind
    from uring_trio._lines import Line, Receiver

CLOSED_AT_EXEC = int(socket.SOCK_CLOEXEC)  # an enum is dearer to hand over
# Less than what a person notices, as in csrc/ladder.c.
CONNECT_PAUSE_MIN_NS, CONNECT_PAUSE_MAX_NS = 1_000_000, 32_000_000
# Tries in vain of a tick. More than one: what refuses one may let another in after all.
CONNECT_TURNS = 2
# Of those that are not the clock: an hour, since a request has to be something.
CONNECT_PARKED_NS = 3600 * 1_000_000_000
SCM_PIDFD = 4  # SO_PASSPIDFD, since 6.5: the peer's pidfd


class ReceiveBytes(Operation):
    """recv with flags, or of a datagram: ``bytes``."""

    __slots__ = ("flags", "memory", "size")

    line: Receiver

    def __init__(self, line: Receiver, size: int, flags: int) -> None:
        super().__init__(line)
        self.size = size
        self.flags = flags
        self.memory = Memory(size)

    def prepare(self) -> int:
        line = self.line
        receive = line.slots.ring.recv_into
        return int(receive(line.fileno(), self.memory.c, self.size, self.flags, line.polls_first()))

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        # MSG_TRUNC answers with the datagram's length, also where it did not fit.
        return self.memory.data(min(res, self.size)) + bytes(max(0, res - self.size))

    def release(self) -> None:
        self.memory.free()


def receive_now(fd: int, size: int, flags: int, *, tells_peer: bool) -> tuple[int, Any]:
    """recvfrom(2) of a datagram that is there: 0, and the datagram, with who it is from.

    Returns:
      In place of the 0 a negative errno: EAGAIN if there is none.
    """
    if size <= ROOM_SIZE:
        return _receive_now(fd, room.c, room.view, size, flags, tells_peer)
    memory = Memory(size)
    try:
        return _receive_now(fd, memory.c, memory.view(size), size, flags, tells_peer)
    finally:
        memory.free()


def _receive_now(
    fd: int, memory: Any, view: Any, size: int, flags: int, tells_peer: bool
) -> tuple[int, Any]:
    peer = scratch.name
    count: int = try_recv_from(fd, memory, size, flags, peer.c)
    if count < 0:
        return count, None
    data = view[:count]
    if count > size:
        data = view[:size] + bytes(count - size)  # MSG_TRUNC, as `ReceiveBytes`
    return 0, (data, peer.address) if tells_peer else data


class MessageOperation(Operation):
    """Whatever has a `Message`, which is freed with the last cqe.

    *convert* makes the task's value of the count of bytes and the message.
    """

    __slots__ = ("_on_user_memory", "convert", "flags", "message")

    def __init__(
        self,
        line: Line,
        message: Message,
        flags: int,
        convert: Callable[[int, Message], Any] | None = None,
        *,
        on_user_memory: bool = False,
    ) -> None:
        super().__init__(line)
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

    line: Receiver

    def prepare(self) -> int:
        line = self.line
        return line.slots.ring.recvmsg(line.fileno(), self.message, self.flags, line.polls_first())

    def dispose(self, res: int) -> None:
        if res < 0:
            return
        _, control, _ = self.message.result()
        for level, kind, data in _addresses.unpack_control(control):
            if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, SCM_PIDFD):
                descriptors = array.array("i")
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                for fd in descriptors:
                    close_fd(fd)


class ReceiveDatagram(Operation):
    """recv or recvfrom of a datagram that was not there yet: it, with who it is from or without.

    As `Accept`: a poll tells that there is one, and it is then taken by recvfrom(2) at once, so
    who waits holds no memory. Where that finds nothing the engine's ladder takes over.
    """

    __slots__ = ("flags", "message", "received", "size", "tells_peer")

    def __init__(self, line: Line, size: int, flags: int, *, tells_peer: bool) -> None:
        super().__init__(line)
        self.tells_peer = tells_peer
        self.size = size
        self.flags = flags
        self.message: Message | None = None
        self.received: Any = None

    def prepare(self) -> int:
        line = self.line
        if self.message is None:
            return int(line.slots.ring.poll(line.fileno(), POLLIN, 0))
        return line.slots.ring.recvmsg(line.fileno(), self.message, self.flags, 0)

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        if res >= 0 and self.message is None:
            res = self._receive_now() if self.is_waited_for() else ECANCELED
            if res == EAGAIN:
                self.go_on()
                return
        super().complete(slot, res, flags, offset)

    def _receive_now(self) -> int:
        try:
            res, self.received = receive_now(
                self.line.fileno(), self.size, self.flags, tells_peer=self.tells_peer
            )
            if res == EAGAIN:
                self.message = Message(data_size=self.size)
        except MemoryError:
            return -errno.ENOMEM
        return res

    @property
    def was_at_once(self) -> bool:
        """After its end: whether it was received beside the ring."""
        return self.received is not None

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        if self.message is not None:
            received = received_from(res, self.message)
            return received if self.tells_peer else received[0]
        return self.received

    def release(self) -> None:
        message, self.message = self.message, None
        if message is not None:
            message.free()


def received_from(count: int, message: Message) -> tuple[bytes, Any]:
    """What a message has received, and who it is from."""
    data = message.data(count)
    return data + bytes(max(0, count - len(data))), _addresses.unpack(message.result()[0])


class SendMessage(MessageOperation):
    """sendmsg and sendto: the count of bytes."""

    __slots__ = ()

    def prepare(self) -> int:
        line = self.line
        return line.slots.ring.sendmsg(line.fileno(), self.message, self.flags)


def accept_now(fd: int) -> tuple[int, Any]:
    """accept4(2) of what is there: the new descriptor, and the peer's address.

    Cheaper than an accept on the ring, which has an operation and a message of its own.

    Returns:
      In the descriptor's place a negative errno: EAGAIN if there is nothing, and `MIGHT_BLOCK`
      if nothing was tried because another process has switched O_NONBLOCK off.
    """
    peer = scratch.name
    accepted: int = try_accept(fd, CLOSED_AT_EXEC, peer.c)
    return accepted, peer.address if accepted >= 0 else None


class Accept(Operation):
    """accept: the new stdlib socket, and the peer's address.

    A poll tells that there is a connection, and it is then taken by accept4(2) at once.
    Where that finds nothing (another process was faster) or might block (another process
    has switched O_NONBLOCK off), the engine's ladder takes over, whose watch stays armed
    while others win. Neither waits exclusively, so the wake-up of a connection that we do
    not take is nobody's loss.

    Between the look at O_NONBLOCK and accept4(2) it may be switched off, and the connection
    be taken by another. So a listener that was seen without it once is not trusted again:
    all its accepts go by the ladder, whose attempts cannot block.
    """

    __slots__ = ("kind", "message", "might_block", "on_ring", "taken")

    def __init__(self, line: Line, kind: Kind, *, on_ring: bool) -> None:
        super().__init__(line)
        self.kind = kind
        self.on_ring = on_ring
        self.might_block = False  # accept4(2)
        self.message: Message | None = None
        self.taken: tuple[int, Any] | None = None

    def prepare(self) -> int:
        line = self.line
        if not self.on_ring:
            return int(line.slots.ring.poll(line.fileno(), POLLIN, 0))
        if self.message is None:
            self.message = Message()
        return line.slots.ring.accept(line.fileno(), self.message, CLOSED_AT_EXEC, 1)

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        if res >= 0 and not self.on_ring:
            res = self._accept_now() if self.is_waited_for() else ECANCELED
            if res == EAGAIN:
                self.on_ring = True
                self.go_on()
                return
        super().complete(slot, res, flags, offset)

    def _accept_now(self) -> int:
        taken = accept_now(self.line.fileno())
        res = taken[0]
        if res == MIGHT_BLOCK:
            self.might_block = True
            return EAGAIN
        if res < 0:
            return res
        self.taken = taken
        return 0

    def finish(self, res: int, flags: int, offset: int) -> Any:
        if res < 0:
            return res
        if self.on_ring:
            assert self.message is not None
            self.taken = res, _addresses.unpack(self.message.accepted_name())
        assert self.taken is not None
        fd, address = self.taken
        # Here and not in the task: from now on the object owns the fd.
        return own(fd, self.kind), address

    def dispose(self, res: int) -> None:
        if self.on_ring and res >= 0:
            close_fd(res)

    def release(self) -> None:
        message, self.message = self.message, None
        if message is not None:
            message.free()


class Connect(MessageOperation):
    """connect: 0."""

    __slots__ = ()

    def prepare(self) -> int:
        line = self.line
        return line.slots.ring.connect(line.fileno(), self.message)


ListenerName = tuple[bytes, int]  # its path or abstract name, and the network of the latter


class FullListener:
    """The connects that the full queue of one UNIX listener has refused.

    The queue is full for all alike, so they have one clock, the timeout of one of them, and
    take turns: a pause of 1, 2, 4 ... 32 ms, and then those that have waited longest try. Who
    has its answer leaves, and the next has its turn at once, so room for many is filled in one
    tick. What it costs is a listener's 31 ticks a second, however many wait for it.
    """

    __slots__ = ("clock", "listeners", "members", "name", "pause_ns")

    def __init__(self, listeners: dict[ListenerName, FullListener], name: ListenerName) -> None:
        self.listeners = listeners
        self.name = name
        self.members: dict[ConnectLocal, None] = {}  # by their turns
        self.clock: ConnectLocal | None = None
        self.pause_ns = CONNECT_PAUSE_MIN_NS

    def join(self, operation: ConnectLocal) -> None:
        """Stand at the end."""
        self.members[operation] = None
        if self.clock is None:
            self.clock = operation

    def leave(self, operation: ConnectLocal) -> None:
        """It has its answer, or nobody waits for it any more."""
        del self.members[operation]
        if not self.members:
            del self.listeners[self.name]
        elif self.clock is operation:
            self.clock = next(filter(ConnectLocal.wants_turn, self.members), None)
            if self.clock is not None:
                self.clock.end_pause()

    def give_turns(self) -> None:
        """A pause is over."""
        self.pause_ns = min(2 * self.pause_ns, CONNECT_PAUSE_MAX_NS)
        in_vain = 0
        for operation in list(filter(ConnectLocal.wants_turn, self.members)):
            if operation.try_now():
                self.pause_ns = CONNECT_PAUSE_MIN_NS
                continue
            self.members[operation] = self.members.pop(operation)
            in_vain += 1
            if in_vain == CONNECT_TURNS:
                break


class ConnectLocal(Operation):
    """connect of a UNIX socket, after it was refused with EAGAIN: 0.

    The listener's queue is full, and the kernel has no way to tell when it is not: the
    connecting socket is writable all the while. (IORING_OP_CONNECT takes that for ready,
    128 times, and blocks a kernel thread then; stock trio takes it for connected.) So it is
    tried again after pauses, which those that wait for one listener share. On the ring it is
    a timeout: the clock of all, or one that only its end cuts short.
    """

    __slots__ = ("answer", "full", "name")

    def __init__(self, line: Line, name: bytes) -> None:
        super().__init__(line)
        self.name = name  # packed
        self.full: FullListener | None = None
        self.answer: int | None = None

    def prepare(self) -> int:
        full = self.full
        if full is None:
            listeners = self.line.backlog.full_listeners
            name = self._listener_name()
            full = self.full = listeners.get(name) or FullListener(listeners, name)
            listeners[name] = full
            full.join(self)
        pause_ns = full.pause_ns if full.clock is self else CONNECT_PARKED_NS
        return int(self.line.slots.ring.timeout(pause_ns))

    def release(self) -> None:
        full, self.full = self.full, None
        if full is not None:
            full.leave(self)

    def wants_turn(self) -> bool:
        """Whether it has no answer yet, and somebody waits for it."""
        return self.answer is None and self.is_waited_for()

    def end_pause(self) -> None:
        """Have its timeout be over now."""
        if self.line.slots.withdraw(self.slot):  # it was not even submitted
            self.complete(self.slot, ETIME, 0, 0)

    def try_now(self) -> bool:
        """Whether it has its answer."""
        answer = connect(self.line.fileno(), self.name, len(self.name))
        if answer == EAGAIN:
            return False
        self.answer = answer
        if self.full is not None and self.full.clock is not self:
            self.end_pause()
        return True

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        if self.wants_turn():
            assert self.full is not None
            if self.full.clock is self:
                self.full.give_turns()
            if self.answer is None:
                self.go_on()
                return
        res = ECANCELED if self.answer is None else self.answer
        super().complete(slot, res, flags, offset)

    def _listener_name(self) -> ListenerName:
        """What two sockets have in common that are refused by one listener."""
        if not _addresses.is_abstract(self.name):
            return self.name, 0
        return self.name, network_of(self.line.fileno())  # the name is one of its network
