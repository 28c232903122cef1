"""What a program's streams and queues may hold: the model beside it.

Each byte of a stream says where it belongs. What one call sends is a *piece*: its first byte is
a mark, 240 + its number modulo 16, and its further bytes, below 240, depend on the stream, the
piece and their place in it. So a received byte that is another one than the next is seen at
once, and so is the end of a piece of which only a beginning was sent.

How much of a piece was sent is known from its call: all of it, so many bytes, nothing (a
cancelled send), or, of a send_all that was cut off, some beginning, which the receiver tells.
A piece has a place in its queue from the moment of its call, since calls of one direction are
first in, first out; what is known of its size comes later. As long as nothing of it may have
been sent, no later piece gets the same mark, or that one's first byte would be taken for its.

A message is whole, or it is not there; what of it does not fit into a receive is lost.
"""

from __future__ import annotations

import itertools
from collections import deque

from simulation.faults import BytesLost, WrongBytes, WrongCount, require

MARKS, FIRST_MARK = 16, 240
PIECE_MAX = 1 << 19
_SHIFTS = 4096
# No period of its own that a lost or doubled part might have as its length: 240 rows of 240.
_TABLE = bytes((7 * i + 11 * (i // 240)) % 240 for i in range(240 * 240)) * 10
# What several tasks receive at once is put in order by its contents. A chunk of so many bytes
# has one place.
CERTAIN = 8
OVERHEAD = 1500  # bytes of a datagram's memory beside its own, at most
HEADER = 4  # bytes of a message that say which it is
ENDLESS = 1 << 62  # bytes: room for all


def content(stream: int, number: int, size: int) -> bytes:
    """The bytes of a piece."""
    shift = (stream * 1009 + number * 131) % _SHIFTS
    return bytes((FIRST_MARK + number % MARKS,)) + _TABLE[shift : shift + size - 1]


def common(a: bytes | memoryview, b: bytes | memoryview) -> int:
    """How many bytes two sequences begin with in common."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    low = 0  # equal so far
    while size - low > 1:
        middle = (low + size) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            size = middle
    return low


class Piece:
    """What one call sends of a stream.

    Attributes:
      data: the bytes of it.
      least, most: how many of them were sent, as far as is known.
      taken: were received.
      under_way: its call has not returned.
      over: what comes after it was received.
    """

    def __init__(self, stream: int, number: int, size: int) -> None:
        self.stream = stream
        self.mark = number % MARKS
        self.data = content(stream, number, size)
        self.least, self.most = 0, size
        self.taken = 0
        self.under_way = True
        self.over = False

    def sent(self, count: int) -> None:
        """Its call has told: so many bytes."""
        self.under_way = False
        size = len(self.data)
        require(0 <= count <= size, WrongCount, f"{count} bytes sent of {size}")
        words = f"{self.taken} bytes received of {count} that were sent"
        require(self.taken <= count, WrongCount, words)
        words = f"{count} bytes sent, and after {self.taken} of them came others"
        require(not self.over or self.taken == count, BytesLost, words)
        self.least = self.most = count

    def cut_off(self) -> None:
        """Some beginning of it was sent."""
        self.under_way = False


class ByteQueue:
    """One direction of a stream: what was sent and not received yet."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.pieces: deque[Piece] = deque()
        self.loose: list[bytes] = []  # received by several at once
        self.total = 0  # received
        self._numbers = itertools.count()

    def begin(self, size: int) -> Piece:
        """A call sends *size* bytes."""
        piece = Piece(self.stream, self._number(), size)
        self.pieces.append(piece)
        return piece

    def has_mark(self) -> bool:
        """Whether there is a mark for one piece more."""
        return len(self._marks()) < MARKS

    def _marks(self) -> set[int]:
        """Those of pieces of which nothing may have been sent, or something."""
        return {piece.mark for piece in self.pieces if piece.least == 0 < piece.most}

    def _number(self) -> int:
        """The next whose mark says which piece begins."""
        taken = self._marks()
        number = next(self._numbers)
        while number % MARKS in taken and len(taken) < MARKS:
            number = next(self._numbers)
        return number

    # ---- what it may hold ----------------------------------------------------------------

    def may_hold(self) -> bool:
        """Whether there may be something to receive, now or soon."""
        return any(piece.most > piece.taken for piece in self.pieces)

    def must_hold(self) -> bool:
        """Whether there is something to receive."""
        return any(piece.least > piece.taken for piece in self.pieces)

    def may_hold_before(self, last: Piece) -> bool:
        """Whether something may lie in front of this piece, or some of it was sent."""
        for piece in self.pieces:
            if piece is last:
                return piece.taken > 0
            if piece.most > piece.taken:
                return True
        return True  # it was received, or others behind it

    # ---- what came -----------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """These bytes were received, and are the next ones."""
        self._walk(data, keep=True)
        self.total += len(data)

    def peek(self, data: bytes) -> None:
        """These bytes are the next ones, and stay."""
        self._walk(data, keep=False)

    def _fits(self, data: bytes) -> bool:
        try:
            self._walk(data, keep=False)
        except AssertionError:
            return False
        return True

    def _is_certain(self, data: bytes) -> bool:
        """Whether it is the next, and nobody may have in hand what was sent before it."""
        try:
            return len(data) >= CERTAIN and not self._walk(data, keep=False)
        except AssertionError:
            return False

    def _walk(self, data: bytes, *, keep: bool) -> bool:
        """Whether it passes over what may have been sent."""
        at = 0
        passes = False
        gone = 0
        for piece in self.pieces:
            taken = piece.taken
            here = common(data[at:], memoryview(piece.data)[taken : piece.most])
            at += here
            if keep:
                piece.taken += here
            if at == len(data):
                break
            if taken + here < piece.least:
                raise BytesLost(
                    f"stream {self.stream}: after {taken + here} bytes of a piece of "
                    f"{piece.least} comes {data[at : at + 12].hex()}, not "
                    f"{piece.data[taken + here : taken + here + 12].hex()}"
                )
            passes = passes or taken + here < piece.most
            if keep:
                piece.over = True
                gone += 1
        else:
            raise WrongBytes(
                f"stream {self.stream}: {data[at : at + 12].hex()} of {len(data)} bytes was "
                f"never sent"
            )
        for _ in range(gone):
            self.pieces.popleft()
        return passes

    def place_certain(self) -> None:
        """What is loose and can be nothing but the next has its place."""
        while found := next((chunk for chunk in self.loose if self._is_certain(chunk)), None):
            self.loose.remove(found)
            self.receive(found)

    def settle(self) -> None:
        """Nobody receives any more: all that is loose has its place."""
        loose, self.loose = self.loose, []
        if loose:
            self.receive(self._in_order(b"", loose) or b"".join(loose))

    def _in_order(self, before: bytes, loose: list[bytes]) -> bytes | None:
        """All of it in an order that fits."""
        if not loose:
            return before
        for index, chunk in enumerate(loose):
            if self._fits(before + chunk):
                rest = loose[:index] + loose[index + 1 :]
                if (found := self._in_order(before + chunk, rest)) is not None:
                    return found
        return None

    def end(self) -> None:
        """The end of the stream was received: all that was sent has been."""
        assert not self.loose
        for piece in self.pieces:
            lost = piece.least - piece.taken
            words = f"stream {self.stream}: {lost} bytes of a piece of {len(piece.data)} are lost"
            require(lost <= 0, BytesLost, words)


class Message:
    """One message of a queue.

    Attributes:
      is_sent: its call has said so; None: it has not returned, or it cannot be known.
      received: it was.
      passed: one behind it was.
    """

    def __init__(self, stream: int, number: int, size: int) -> None:
        self.data = bytes((stream % 256, number // 256 % 256, number % 256, size % 256))
        self.data += content(stream, number, size)
        self.is_sent: bool | None = None
        self.received = self.passed = False

    def sent(self, count: int) -> None:
        """Its call has told."""
        size = len(self.data)
        require(count in (0, size), WrongCount, f"{count} bytes sent of a message of {size}")
        require(count or not self.received, WrongCount, "received, though it was not sent")
        require(not count or not self.passed, BytesLost, "one behind it was received")
        self.is_sent = bool(count)

    def cut_off(self) -> None:
        """It was sent, or not."""


class MessageQueue:
    """One direction of messages.

    Attributes:
      loses: messages may be lost, come twice, and overtake each other (UDP).
      holds: bytes that fit into it for certain; UDP throws away what does not.
    """

    def __init__(self, stream: int, *, loses: bool = False, holds: int = ENDLESS) -> None:
        self.stream = stream
        self.loses = loses
        self.holds = holds
        self.messages: deque[Message] = deque()
        self.loose: list[tuple[bytes, int]] = []
        self.total = 0  # received
        self._numbers = itertools.count()

    def begin(self, size: int) -> Message:
        """A call sends a message of *size* bytes behind its header."""
        message = Message(self.stream, next(self._numbers), size)
        self.messages.append(message)
        self.loses |= sum(len(each.data) + OVERHEAD for each in self.messages) > self.holds
        return message

    # ---- what it may hold ----------------------------------------------------------------

    def may_hold(self) -> bool:
        return any(message.is_sent is not False for message in self.messages)

    def must_hold(self) -> bool:
        return not self.loses and any(message.is_sent for message in self.messages)

    def may_hold_before(self, last: Message) -> bool:
        """Whether something may lie in front of this message."""
        return self.loses or any(
            message.is_sent is not False for message in self.messages if message is not last
        )

    # ---- what came -----------------------------------------------------------------------

    def _find(self, data: bytes, room: int) -> Message:
        """The message that was received in *room* bytes.

        Raises:
          AssertionError: there is none, or those in front of it are lost.
        """
        for message in self.messages:
            if message.is_sent is not False and message.data[:room] == data:
                return message
            if message.is_sent and not self.loses:
                raise BytesLost(
                    f"queue {self.stream}: {data[:12].hex()} ({len(data)} bytes) comes in front "
                    f"of {message.data[:12].hex()} ({len(message.data)})"
                )
        raise WrongBytes(f"queue {self.stream}: {data[:12].hex()} was never sent")

    def receive(self, data: bytes, room: int) -> None:
        """This was received, in *room* bytes, and is the next one."""
        message = self._find(data, room)
        message.received = True
        self.total += 1
        while not self.loses and (first := self.messages.popleft()) is not message:
            first.passed = True

    def peek(self, data: bytes, room: int) -> None:
        self._find(data, room)

    def settle(self) -> None:
        """Nobody receives any more: all that is loose has its place."""
        loose, self.loose = self.loose, []
        while loose:
            # The one that stands in front: each says which it is.
            found = min(loose, key=lambda each: each[0][1:3])
            loose.remove(found)
            self.receive(*found)

    def end(self) -> None:
        lost = [message for message in self.messages if message.is_sent]
        words = f"queue {self.stream}: {len(lost)} messages are lost"
        require(self.loses or not lost, BytesLost, words)
