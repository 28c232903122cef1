"""The ends of a program's channels: what a task can do with each, and what may come of it.

An end has two directions, and a model of each (`programs_model`). Its calls are the verbs of the
program language; each says in a few words how it ended, for the notes, or raises what no rule
allows. Four things are held against the model at every call:

- what was received is what comes next, and the end of a stream comes after all of it;
- a send took as much as it says, and a cancelled one nothing, or, of send_all, a beginning;
- an error has its cause in what was done before;
- nobody sleeps over what is there: a call that ends by its deadline had nothing to do for as
  long as `SLACK_S`. It is the lost wake-up that a program shows in no other way.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket as stdlib_socket
import struct
from typing import TYPE_CHECKING, Any

import trio

from simulation.faults import (
    NotTold,
    StillHeld,
    ToldForNothing,
    TooLate,
    WrongEnd,
    WrongError,
    require,
)
from simulation.programs_model import HEADER, ByteQueue, MessageQueue
from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from simulation.programs_model import Message, Piece

# Seconds of the program's clock. A simulated network has no segment under way for so long.
SLACK_S = 5.0
# ... less than the shortest pause; and longer than the longest takes.
LATE_S = 0.0005
RUBBISH_S = 0.07

# Of the smallest buffer that a program gives a socket (`programs.ROOMS`), which Linux doubles.
UDP_HOLDS = 4608

PEEK = int(stdlib_socket.MSG_PEEK)
DONT_WAIT = int(stdlib_socket.MSG_DONTWAIT) | int(stdlib_socket.MSG_NOSIGNAL)
FROM_ERRORS = DONT_WAIT | int(stdlib_socket.MSG_ERRQUEUE)
STAMPS_MAX = 8  # entries that are taken at once
STAMP_ROOM = 64  # bytes
NETWORKS = ("tcp", "tcp-raw", "udp")  # of which an error queue has nothing but stamps and errors
URGENT = DONT_WAIT | int(stdlib_socket.MSG_OOB)
# SO_TIMESTAMPING, which the standard library lacks, and: when it left, by software, without it.
STAMPING, WHEN_IT_LEFT = 37, 1 << 1 | 1 << 4 | 1 << 11
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
DESCRIPTORS_MAX = 4
CONTROL_SIZE = stdlib_socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)

BROKEN = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED})
NO_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})
GONE = frozenset({errno.ECONNREFUSED, *BROKEN})  # of messages


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))


class Use:
    """One call in one direction of an end.

    Attributes:
      is_all: it is a send_all, which may be more than one send.
      overlapped: another call was in this direction at the same time.
      alone: since when there is no other.
    """

    def __init__(self, *, is_all: bool = False) -> None:
        self.is_all = is_all
        self.overlapped = False
        self.began = self.alone = trio.current_time()


class Way:
    """One direction of an end: who is in it."""

    def __init__(self, when_free: Callable[[], None]) -> None:
        self.uses: list[Use] = []
        self._when_free = when_free

    @contextlib.contextmanager
    def use(self, *, is_all: bool = False) -> Iterator[Use]:
        use = Use(is_all=is_all)
        if self.uses:
            for each in (use, *self.uses):
                each.overlapped = True
        self.uses.append(use)
        try:
            yield use
        finally:
            self.uses.remove(use)
            for each in self.uses:
                each.alone = trio.current_time()
            if not self.uses:
                self._when_free()


class End:
    """One end of a channel, whoever holds it.

    Attributes:
      name: for the notes.
      incoming, outgoing: what the peer has sent and we have not received, and the other way.
      is_stream: it has bytes, and no messages.
      closed, shut: it, and its writing half.
      aborted: it was closed with a reset.
      left_unread: it was closed with input that it had not received, or may have had.
      changed: when something was done last that the peer may learn of.
      ended: the end of the stream was received.
      reads, writes: what it can be used for.
      takes_all: nothing but its peer's sends fills its buffers, and its receives empty them.
      in_turn: sends are done in the order of their calls (not so on stock).
      no_memory: the kernel may have none for what is sent.
      has_low_water: it may sleep over what is there.
      sends_later: what it has written may leave when nobody looks: a server's.
      is_left: nobody used it when it was closed, so nothing keeps its file open.
      rubbish_at: when it was sent what cannot be received.
      is_socket: and no pipe.
      has_stamps: its error queue has entries that nobody of ours reads.
      stamp_taken_at: when somebody else has.
    """

    peer: End
    sends_later = False
    world: Any  # where the program runs: `programs.World`

    # What the door's calls raise.
    busy: tuple[type[Exception], ...] = (trio.BusyResourceError,)
    gone: type[Exception] = trio.ClosedResourceError
    broken: type[Exception] = trio.BrokenResourceError

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        return (OSError, *self.busy, self.gone, self.broken)

    def __init__(self, name: str, incoming: Any, outgoing: Any, *, strict: bool) -> None:
        self.name = name
        self.incoming: Any = incoming
        self.outgoing: Any = outgoing
        self.is_stream = isinstance(incoming, ByteQueue)
        self.strict = strict
        self.closed = self.shut = self.aborted = self.left_unread = self.ended = False
        self.has_low_water = self.no_memory = False
        self.reads = self.writes = self.in_turn = self.takes_all = True
        self.changed = 0.0
        self.is_left = False
        self.rubbish_at: list[float] = []
        self.is_socket = True
        self.has_stamps = False
        self.stamp_taken_at = -math.inf
        self.reading = Way(self._settle)
        self.writing = Way(lambda: None)

    # ---- what may be ---------------------------------------------------------------------

    def may_be_reset(self) -> bool:
        """Whether the peer's closing may have taken away what it had sent before."""
        peer = self.peer
        return peer.was_reset() or (peer.closed and (peer.left_unread or peer.incoming.may_hold()))

    def was_reset(self) -> bool:
        """Whether it was closed with a reset."""
        return self.aborted

    def may_have_ended(self) -> bool:
        """Whether its peer may receive the end of the stream."""
        return self.shut or self.closed

    def has_ended(self) -> bool:
        """Whether its peer must receive the end of the stream, behind all that it was sent."""
        return self.shut or self.closed

    def touch(self) -> None:
        self.changed = trio.current_time()

    def note_close(self, *, abort: bool = False) -> None:
        self.left_unread = self.incoming.may_hold()
        self.is_left = not self.reading.uses and not self.writing.uses
        self.closed = True
        self.aborted = abort
        self.touch()

    def _settle(self) -> None:
        """Nobody receives any more."""
        if self.closed:
            self.incoming.loose.clear()
            return
        self.incoming.settle()
        if self.ended and not self.may_be_reset():
            self.incoming.end()

    # ---- what came of a call -------------------------------------------------------------

    def got(self, data: bytes, room: int) -> str:
        """This was received."""
        self.touch()
        if self.is_stream:
            assert len(data) <= room
            if not data:
                require(self.peer.may_have_ended(), WrongEnd, f"{self.name}: an end that is none")
                self.ended = True
                return "end"
            self.incoming.loose.append(data)
            if len(self.reading.uses) > 1:
                self.incoming.place_certain()
        else:
            if not data and self.peer.may_have_ended():
                self.ended = True
                return "end"
            self.incoming.loose.append((data, room))
        return f"{len(data)} bytes {data[:4].hex()}"

    def judge(self, exc: Exception, use: Use, *, sends: bool) -> str:
        """What an error is called that may be.

        Raises:
          AssertionError: it may not be.
        """
        number = getattr(exc, "errno", None) or getattr(exc.__cause__, "errno", None)
        what = type(exc).__name__ if number is None else name_of(number)
        if self.may_fail(exc, number, use, sends=sends):
            return what
        raise WrongError(f"{self.name}: {what} when it {'sends' if sends else 'receives'}")

    def judge_answer(self, answer: int, use: Use, *, sends: bool) -> str:
        """The same of a call of the kernel's table, which may have had to wait."""
        if answer == -errno.EAGAIN:
            return "EAGAIN"
        return self.judge(OSError(-answer, os.strerror(-answer)), use, sends=sends)

    def may_fail(self, exc: Exception, number: int | None, use: Use, *, sends: bool) -> bool:
        peer = self.peer
        if isinstance(exc, self.busy):
            return use.overlapped
        if isinstance(exc, self.gone):
            return self.closed or (sends and self.shut)
        if number == errno.EBADF:
            return self.closed
        if number in NO_MEMORY:
            return sends and self.no_memory
        if self.is_stream:
            if number not in BROKEN:
                return False
            return self.may_be_reset() or (sends and (peer.closed or self.shut or self.closed))
        if number == errno.EMSGSIZE:
            return sends
        if number == errno.ECONNREFUSED:
            # A send to one that is gone throws away what it has sent before (Linux, of UNIX).
            self.incoming.loses = True
        return number in GONE and (peer.may_have_ended() or (sends and self.shut))

    def check_awake(self, use: Use, *, sends: Piece | Message | None = None) -> None:
        """A call was cancelled: it had nothing to do, or not for long."""
        way = self.reading if sends is None else self.writing
        if not self.strict or len(way.uses) > 1 or self.closed or self.has_low_water:
            return
        if sends is None:
            self.incoming.settle()  # what others have received: this one has nothing
        since = max(use.alone, self.changed, self.peer.changed)
        if trio.current_time() - since < SLACK_S:
            return
        peer = self.peer
        if sends is None:
            if not self.may_be_reset():
                there = self.incoming.must_hold()
                require(not there, NotTold, f"{self.name}: slept over what is there")
            over = self.is_stream and peer.has_ended()
            require(not over, NotTold, f"{self.name}: slept over the end")
        else:
            closed = self.is_stream and peer.closed
            require(not closed, NotTold, f"{self.name}: slept over the peer's close")
            # Of a send_all some may lie there already, however small it is.
            if peer.takes_all and not use.is_all:
                full = self.outgoing.may_hold_before(sends)
                require(full, NotTold, f"{self.name}: slept over room")

    def check_writable(self, use: Use) -> None:
        """A wait for room was cancelled: there was none, or not for long."""
        if not self.strict or len(self.writing.uses) > 1 or self.closed:
            return
        since = max(use.alone, self.changed, self.peer.changed)
        if trio.current_time() - since < SLACK_S or not self.peer.takes_all:
            return
        full = self.outgoing.may_hold()
        require(full, NotTold, f"{self.name}: waits until it can write, and there is room")

    def is_told_of(self) -> bool:
        """Whether what nobody receives lies there, and poll(2) tells of it.

        Rubbish does until a receive looks at it, if the socket does not block: stock is told,
        too. An error queue does while it has an entry.
        """
        if self.closed or not (self.rubbish_at or self.has_stamps):
            return False
        if trio.current_time() - self.stamp_taken_at < LATE_S:
            return True  # when it was told
        return bool(self.world.simulation.is_readable(self.number()))

    # ---- what others do to it ------------------------------------------------------------

    def number(self) -> int:
        """Of its descriptor; -1: nobody else has it (a server's)."""
        return -1

    def is_no_socket(self) -> bool:
        return not self.is_socket or self.number() < 0

    async def stranger(self, size: int) -> str:
        """Another process that has the file takes what lies there: nobody of ours knows of it."""
        if self.closed or self.is_no_socket() or not self.world.is_simulated:
            return "left out"
        ffi, lib = load_extension()
        size = max(1 if self.is_stream else HEADER, size)
        memory = ffi.new("char[]", size)
        null = ffi.NULL
        with self.reading.use() as use:
            number = self.number()
            answer = lib.ut_kernel_in_use.recvfrom(number, memory, size, DONT_WAIT, null, null)
            if answer < 0:
                return self.judge_answer(answer, use, sends=False)
            return self.got(bytes(ffi.buffer(memory, answer)), size)

    async def urgent(self, _size: int) -> str:
        """A byte that is none of the stream: unless another urgent one follows before it is met."""
        if self.closed or self.shut or "tcp" not in self.name or self.writing.uses:
            return "left out"
        if self.is_no_socket() or not self.outgoing.has_mark():
            return "left out"
        ffi, lib = load_extension()
        piece = self.outgoing.begin(1)
        with self.writing.use() as use:
            answer = lib.ut_kernel_in_use.sendto(self.number(), piece.data, 1, URGENT, ffi.NULL, 0)
            if answer < 0:
                piece.sent(0)
                return self.judge_answer(answer, use, sends=True)
            piece.cut_off()
        self.touch()
        return "sent"

    async def stamps(self, _size: int) -> str:
        """From now on its error queue tells when what it sends has left. Nobody reads it.

        (Who asks for it by MSG_ERRQUEUE goes stock's way, which spins beside ordinary input.)
        """
        if self.closed or self.is_no_socket() or not self.world.is_simulated:
            return "left out"
        sock = stdlib_socket.socket(fileno=os.dup(self.number()))
        with sock:
            sock.setsockopt(stdlib_socket.SOL_SOCKET, STAMPING, WHEN_IT_LEFT)
        self.has_stamps = True
        self.takes_all = False  # they take room that was what it receives'
        if not self.is_stream:
            self.incoming.loses = True
        return "set"

    async def take_stamps(self, size: int) -> str:
        """Another process that has the file takes entries of its error queue."""
        if self.closed or not self.has_stamps or not self.name.endswith(NETWORKS):
            return "left out"
        ffi, lib = load_extension()
        memory = ffi.new("char[]", STAMP_ROOM)
        null = ffi.NULL
        taken = 0
        for _ in range(1 + size % STAMPS_MAX):
            answer = lib.ut_kernel_in_use.recvfrom(
                self.number(), memory, STAMP_ROOM, FROM_ERRORS, null, null
            )
            if answer < 0:
                break
            taken += 1
            self.stamp_taken_at = trio.current_time()
        return f"{taken} taken"

    # ---- the directions ------------------------------------------------------------------

    async def receiving(self, room: int, call: Callable[[], Awaitable[bytes]]) -> str:
        with self.reading.use() as use:
            try:
                data = await call()
            except trio.Cancelled:
                self.check_awake(use)
                raise
            except self.errors as exc:
                return self.judge(exc, use, sends=False)
            self.check_prompt(use)
            return self.got(data, room)

    def check_prompt(self, use: Use) -> None:
        """A receive has got something: it was there for no longer than it takes.

        What cannot be received (rubbish) is looked at once; whoever sends it again and again has
        a receiver pause. So has a poll that ends by itself, beside an error queue that is not read:
        that counts as told of, and is told of again at once.
        """
        now = trio.current_time()
        if not self.world.is_prompt or use.overlapped or self.has_low_water:
            return
        if self.peer.sends_later:
            return
        if self.peer.writing.uses:
            return  # it may be what is just being sent
        if sum(now - at < RUBBISH_S for at in self.rubbish_at) > 1:
            return
        pauses = self.has_stamps and self.world.ends_polls
        since = max(use.began, self.peer.changed)
        late_s = now - since - self.world.computed_since(since)
        words = f"{self.name}: what was there was received after {late_s * 1e3:.3f} ms"
        require(late_s <= (RUBBISH_S if pauses else LATE_S), TooLate, words)

    async def sending(
        self, size: int, call: Callable[[bytes], Awaitable[int | None]], *, is_all: bool = False
    ) -> str:
        others = self.writing.uses
        if any(use.is_all is not is_all for use in others) or (others and not self.in_turn):
            return "left out"  # one would come in the middle of the other
        if self.is_stream and not self.outgoing.has_mark():
            return "left out"  # too many were cut off
        with self.writing.use(is_all=is_all) as use:
            piece = self.outgoing.begin(size)
            try:
                count = await call(piece.data)
            except trio.Cancelled:
                if is_all:
                    piece.cut_off()
                else:
                    piece.sent(0)
                self.check_awake(use, sends=piece)
                raise
            except self.busy as exc:
                if is_all:
                    piece.cut_off()  # a part may be written when it finds who waits for room
                else:
                    piece.sent(0)
                return self.judge(exc, use, sends=True)
            except self.errors as exc:
                piece.cut_off()
                return self.judge(exc, use, sends=True)
            piece.sent(len(piece.data) if count is None else count)
            self.touch()
            return "all" if count is None else f"{count}"

    async def waiting_to_read(self, call: Callable[[Any], Awaitable[None]], file: Any) -> str:
        """Until there is something to receive."""
        with self.reading.use() as use:
            try:
                await call(file)
            except trio.Cancelled:
                self.check_awake(use)
                raise
            except self.errors as exc:
                return self.judge(exc, use, sends=False)
            there = self.incoming.may_hold() or self.peer.may_have_ended() or self.is_told_of()
            justified = there or use.overlapped or self.closed
            require(justified, ToldForNothing, f"{self.name}: readable for nothing")
            return "readable"

    async def waiting_to_write(self, call: Callable[[Any], Awaitable[None]], file: Any) -> str:
        """Until there is room."""
        with self.writing.use() as use:
            try:
                await call(file)
            except trio.Cancelled:
                self.check_writable(use)
                raise
            except self.errors as exc:
                return self.judge(exc, use, sends=True)
            return "writable"


class TrioEnd(End):
    """A socket of trio's, and its stream if it is one of bytes."""

    def __init__(
        self, name: str, sock: Any, incoming: Any, outgoing: Any, *, strict: bool, spare_fd: int
    ) -> None:
        super().__init__(name, incoming, outgoing, strict=strict)
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.stream: Any = trio.SocketStream(self.sock) if self.is_stream else None
        self.spare_fd = spare_fd
        self.passes = sock.family == stdlib_socket.AF_UNIX

    def number(self) -> int:
        return int(self.sock.fileno())

    # ---- receive -------------------------------------------------------------------------

    async def receive(self, size: int) -> str:
        if not self.is_stream:
            return await self.recv(size)
        return await self.receiving(size, lambda: self.stream.receive_some(size))

    async def receive_any(self, size: int) -> str:
        if not self.is_stream:
            return await self.recv(size)
        return await self.receiving(1 << 20, lambda: self.stream.receive_some())

    async def recv(self, size: int) -> str:
        size = self.room(size)
        return await self.receiving(size, lambda: self.sock.recv(size))

    async def recv_into(self, size: int) -> str:
        size = self.room(size)
        buffer = bytearray(size)

        async def call() -> bytes:
            return bytes(buffer[: await self.sock.recv_into(buffer)])

        return await self.receiving(size, call)

    async def recvfrom(self, size: int) -> str:
        size = self.room(size)

        async def call() -> bytes:
            return (await self.sock.recvfrom(size))[0]

        return await self.receiving(size, call)

    async def recvmsg(self, size: int) -> str:
        size = self.room(size)

        async def call() -> bytes:
            data, control, _, _ = await self.sock.recvmsg(size, CONTROL_SIZE)
            close_received(control)
            return data

        return await self.receiving(size, call)

    async def recvmsg_into(self, size: int) -> str:
        size = self.room(size)
        buffers = [bytearray(size // 2), bytearray(size - size // 2)]

        async def call() -> bytes:
            count, control, _, _ = await self.sock.recvmsg_into(buffers, CONTROL_SIZE)
            close_received(control)
            return b"".join(buffers)[:count]

        return await self.receiving(size, call)

    async def peek(self, size: int) -> str:
        size = self.room(size)
        if self.reading.uses:
            return "left out"
        with self.reading.use() as use:
            try:
                data = await self.sock.recv(size, PEEK)
            except trio.Cancelled:
                self.check_awake(use)
                raise
            except self.errors as exc:
                return self.judge(exc, use, sends=False)
            if not data and self.is_stream:
                require(self.peer.may_have_ended(), WrongEnd, f"{self.name}: an end that is none")
                return "end"
            if use.overlapped:
                return "overlapped"
            if self.is_stream:
                self.incoming.peek(data)
            elif data:
                self.incoming.peek(data, size)
            return f"{len(data)} bytes"

    def room(self, size: int) -> int:
        """A message says in its first bytes which it is."""
        return max(1 if self.is_stream else HEADER, size)

    # ---- send ----------------------------------------------------------------------------

    async def send_all(self, size: int) -> str:
        if not self.is_stream:
            return await self.send(size)
        return await self.sending(size, self.stream.send_all, is_all=True)

    async def send_all_changing(self, size: int) -> str:
        """Of memory that the caller may change: as soon as the call is over, it does."""
        if not self.is_stream:
            return await self.send(size)

        async def call(data: bytes) -> None:
            buffer = bytearray(data)
            try:
                await self.stream.send_all(buffer)
            finally:
                buffer[:] = bytes(len(buffer))  # raises where it is still exported
                buffer.clear()

        return await self.sending(size, call, is_all=True)

    async def send(self, size: int) -> str:
        return await self.sending(size, self.sock.send)

    async def sendmsg(self, size: int) -> str:
        def call(data: bytes) -> Any:
            half = len(data) // 2
            return self.sock.sendmsg([data[:half], bytearray(data[half:])])

        return await self.sending(size, call)

    async def send_fd(self, size: int) -> str:
        if not self.passes:
            return await self.send(size)
        rights = struct.pack("i", self.spare_fd)
        control = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS, rights)]
        return await self.sending(size, lambda data: self.sock.sendmsg([data], control))

    # ---- readiness -----------------------------------------------------------------------

    async def readable(self, _size: int) -> str:
        try:
            return await self.waiting_to_read(trio.lowlevel.wait_readable, self.sock)
        except ValueError:
            assert self.closed
            return "ValueError"

    async def writable(self, _size: int) -> str:
        try:
            return await self.waiting_to_write(trio.lowlevel.wait_writable, self.sock)
        except ValueError:
            assert self.closed
            return "ValueError"

    # ---- the end -------------------------------------------------------------------------

    async def send_eof(self, _size: int) -> str:
        if self.closed or not self.is_stream:
            return "left out"
        was, self.shut = self.shut, True
        self.touch()
        with self.writing.use() as use:
            try:
                await self.stream.send_eof()
            except trio.Cancelled:
                self.shut = was
                raise
            except self.busy as exc:
                self.shut = was
                return self.judge(exc, use, sends=True)
            except self.errors as exc:
                return self.judge(exc, use, sends=True)
            self.touch()
            return "sent"

    async def close(self, _size: int) -> str:
        if self.closed:
            return "left out"
        self.note_close()
        self.sock.close()
        return "closed"

    async def aclose(self, _size: int) -> str:
        if self.closed or not self.is_stream:
            return await self.close(0)
        self.note_close()
        await self.stream.aclose()
        return "closed"

    async def leave(self, _size: int) -> str:
        """Closed as a context manager does: without a word to trio."""
        if self.closed:
            return "left out"
        self.note_close()
        with self.sock:
            pass
        return "closed"

    async def abort(self, _size: int) -> str:
        if self.closed:
            return "left out"
        with contextlib.suppress(OSError):
            self.sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, RESET_AT_CLOSE)
        self.note_close(abort=True)
        self.sock.close()
        return "closed"

    async def rubbish(self, size: int) -> str:
        """A datagram comes whose checksum is wrong."""
        if self.closed or self.sock.family != stdlib_socket.AF_INET or self.is_stream:
            return "left out"
        if not self.world.is_simulated:
            return "left out"
        self.rubbish_at.append(trio.current_time())
        self.world.simulation.bad_datagram(self.sock, min(size, 1000))
        return "sent"

    async def low_water(self, size: int) -> str:
        if self.closed or not self.is_stream:
            return "left out"
        self.has_low_water = True
        self.sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVLOWAT, size % 64 or 1)
        return "set"


def unwrapped(sock: Any) -> stdlib_socket.socket:
    return stdlib_socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def close_received(control: Any) -> None:
    for level, kind, data in control:
        if (level, kind) == (stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS):
            for (fd,) in struct.iter_unpack("i", data[: len(data) // 4 * 4]):
                os.close(fd)


class FdEnd(End):
    """An FdStream over one way of a pipe, or over a stream socket."""

    def __init__(
        self, name: str, fd: int, incoming: Any, outgoing: Any, *, strict: bool, is_socket: bool
    ) -> None:
        super().__init__(name, incoming, outgoing, strict=strict)
        self.stream = trio.lowlevel.FdStream(fd)
        self.is_socket = is_socket

    def number(self) -> int:
        return self.stream.fileno()

    def may_fail(self, exc: Exception, number: int | None, use: Use, *, sends: bool) -> bool:
        if number == errno.EBADF and isinstance(exc, self.gone):
            return self.closed
        return super().may_fail(exc, number, use, sends=sends)

    async def receive(self, size: int) -> str:
        return await self.receiving(size, lambda: self.stream.receive_some(size))

    async def send_all(self, size: int) -> str:
        return await self.sending(size, self.stream.send_all, is_all=True)

    async def readable(self, _size: int) -> str:
        if self.closed:
            return "left out"
        return await self.waiting_to_read(trio.lowlevel.wait_readable, self.number())

    async def writable(self, _size: int) -> str:
        if self.closed:
            return "left out"
        return await self.waiting_to_write(trio.lowlevel.wait_writable, self.number())

    async def send_eof(self, _size: int) -> str:
        """An FdStream has none: the socket is shut beside it."""
        if self.closed or not self.is_socket:
            return await self.close(0)
        self.shut = True
        self.touch()
        _, lib = load_extension()
        answer = lib.ut_kernel_in_use.shutdown(self.stream.fileno(), stdlib_socket.SHUT_WR)
        if answer < 0:
            return self.judge(OSError(-answer, os.strerror(-answer)), Use(), sends=True)
        return "sent"

    async def close(self, _size: int) -> str:
        if self.closed:
            return "left out"
        self.note_close()
        await self.stream.aclose()
        return "closed"


class RawEnd(End):
    """A peer that is no trio program: its calls never wait. They go through the kernel's table."""

    def __init__(
        self, name: str, fd: int, incoming: Any, outgoing: Any, *, strict: bool, is_socket: bool
    ) -> None:
        super().__init__(name, incoming, outgoing, strict=strict)
        self.fd = fd
        self.is_socket = is_socket
        self.ffi, self.lib = load_extension()

    def number(self) -> int:
        return self.fd

    @property
    def kernel(self) -> Any:
        return self.lib.ut_kernel_in_use

    async def receive(self, size: int) -> str:
        if self.closed:
            return "left out"
        size = max(1 if self.is_stream else HEADER, size)
        memory = self.ffi.new("char[]", size)
        null = self.ffi.NULL
        if self.is_socket:
            answer = self.kernel.recvfrom(self.fd, memory, size, DONT_WAIT, null, null)
        else:
            answer = self.kernel.read(self.fd, memory, size)
        if answer == -errno.EAGAIN:
            self.check_held()
        if answer < 0:
            return self.judge_answer(answer, Use(), sends=False)
        how = self.got(bytes(self.ffi.buffer(memory, answer)), size)
        self._settle()
        return how

    def check_held(self) -> None:
        """There is neither anything to receive nor an end: the peer's file is open."""
        peer = self.peer
        held = peer.is_left and self.is_stream and self.world.is_simulated and self.world.is_prompt
        words = f"{self.name}: its peer is closed, and something holds the file"
        require(not held, StillHeld, words)

    async def send_all(self, size: int) -> str:
        return await self.send(size)

    async def send(self, size: int) -> str:
        if self.closed:
            return "left out"
        piece = self.outgoing.begin(size)
        data = piece.data
        if self.is_socket:
            answer = self.kernel.sendto(self.fd, data, len(data), DONT_WAIT, self.ffi.NULL, 0)
        else:
            answer = self.kernel.write(self.fd, data, len(data))
        piece.sent(max(answer, 0))
        if answer < 0:
            return self.judge_answer(answer, Use(), sends=True)
        self.touch()
        return f"{answer}"

    async def send_eof(self, _size: int) -> str:
        if self.closed or not self.is_stream or not self.is_socket:
            return await self.close(0)
        self.shut = True
        self.touch()
        answer = self.kernel.shutdown(self.fd, stdlib_socket.SHUT_WR)
        return "sent" if answer >= 0 else self.judge_answer(answer, Use(), sends=True)

    async def close(self, _size: int) -> str:
        if self.closed:
            return "left out"
        self.note_close()
        self.kernel.close_fd(self.fd)
        return "closed"

    async def abort(self, _size: int) -> str:
        if self.closed or not self.is_socket:
            return await self.close(0)
        linger = self.ffi.new("char[]", RESET_AT_CLOSE)
        self.kernel.setsockopt(
            self.fd, stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, linger, len(RESET_AT_CLOSE)
        )
        self.note_close(abort=True)
        self.kernel.close_fd(self.fd)
        return "closed"


def queue(stream: int, kind: str, network_kinds: Any = ()) -> ByteQueue | MessageQueue:
    """Of one direction of a channel."""
    if kind.endswith("udp"):
        loses = {"losses", "order"}.intersection(network_kinds)
        return MessageQueue(stream, loses=bool(loses), holds=UDP_HOLDS)
    if kind.endswith(("dgram", "seqpacket")):
        return MessageQueue(stream)
    return ByteQueue(stream)
