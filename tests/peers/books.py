"""What was sent and what of it arrived: the judges of byte streams and of messages.

A stream book knows the *parts* that somebody tried to send: of each at least so many bytes were
sent and at most so many. A send that returned 5 is exactly 5; one that was cancelled is 0; a
`send_all` that was cancelled or failed is anything up to all; an urgent byte is in the stream or
is not. Two parts whose calls were one after the other are in that order, and others in any.
The *readers* took chunks, each in its own order. The question is whether there is a stream, put
together of the parts, that the readers' chunks can be put together to. As all data is random,
there is seldom more than one way to try.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

NEVER_ENDED = 1 << 62
# Bytes that a part and what comes after it may have in common by chance.
CHANCE = 4
HEADER = struct.Struct("!Q")  # of a message: its number, which no other one has
# A search that is longer than this has lost its way; the longest of a good run take hundreds.
STEPS_MAX = 200_000


class Lost(AssertionError):
    """What arrived is not what was sent."""


class Strange(AssertionError):
    """An error, or an end, that nothing explains."""


class Early(AssertionError):
    """A file is told to be ready that is not."""


class Stuck(AssertionError):
    """What could go on does not."""


class Burnt(AssertionError):
    """CPU was taken while nothing could move."""


class Handed(AssertionError):
    """The kernel has a worker for us, or would try again itself."""


class Left(AssertionError):
    """Something is left that was not there before: a descriptor, memory."""


def content(number: int, size: int) -> bytes:
    """Bytes like no others."""
    return random.Random(number).randbytes(size)


def common(a: bytes, at_a: int, b: bytes, at_b: int, most: int) -> int:
    """How many bytes are the same from there on."""
    most = min(most, len(a) - at_a, len(b) - at_b)
    if a[at_a : at_a + most] == b[at_b : at_b + most]:
        return most
    low, high = 0, most  # the same up to low, not up to high
    while high - low > 1:
        middle = (low + high) // 2
        if a[at_a + low : at_a + middle] == b[at_b + low : at_b + middle]:
            low = middle
        else:
            high = middle
    return low


class Clock:
    """Numbers what happens: of two events the later one has the larger number."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def __call__(self) -> int:
        return next(self._count)


@dataclasses.dataclass(eq=False)
class Part:
    """What one call tried to send.

    Attributes:
      data: all of it.
      began, ended: when; until it has ended it may have been sent or not.
      least, most: bytes from its front that were sent.
      divided: it is sent in pieces, and others may send in between.
    """

    data: bytes
    began: int
    divided: bool = False
    ended: int | None = None
    least: int = 0
    most: int = -1

    def __post_init__(self) -> None:
        if self.most < 0:
            self.most = len(self.data)


NOWHERE = -1


class StreamBook:
    """One direction of a byte stream."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parts: list[Part] = []
        self._chunks: dict[str, list[bytes]] = {}
        self.taken = 0

    def offer(self, data: bytes, *, divided: bool = False) -> Part:
        """Somebody begins to send."""
        part = Part(data, self._clock(), divided)
        self._parts.append(part)
        return part

    def sent(self, part: Part, least: int, most: int | None = None) -> None:
        """He has ended, and sent so much of it."""
        part.ended = self._clock()
        part.least, part.most = least, least if most is None else most

    def take(self, reader: str, chunk: bytes) -> None:
        """Somebody has received it."""
        self._chunks.setdefault(reader, []).append(chunk)
        self.taken += len(chunk)

    def sent_at_least(self) -> int:
        return sum(part.least for part in self._parts)

    def may_be_under_way(self) -> bool:
        """Whether something may have been sent that nobody has taken."""
        return any(p.ended is None for p in self._parts) or self.taken < sum(
            part.most for part in self._parts
        )

    def check(self, *, whole: bool) -> None:
        """What was taken is what was sent; *whole*: all that was surely sent.

        Raises:
          Lost: it is not.
        """
        parts = joined(self._parts)
        readers = {name: [b"".join(chunks)] for name, chunks in self._chunks.items()}
        if len(readers) > 1:
            readers = self._chunks
        readers = {name: chunks for name, chunks in readers.items() if any(chunks)}
        far = Search(parts, list(readers.values()), whole).run()
        if far is not None:
            sizes = {name: sum(map(len, chunks)) for name, chunks in readers.items()}
            raise Lost(
                f"{far} bytes are in order, of {self.taken} taken ({sizes}) and at least "
                f"{self.sent_at_least()} sent; then it is not what was sent, or too little; "
                f"{self._where(far, parts)}"
            )

    def _where(self, far: int, parts: list[Part]) -> str:
        """Where the bytes that do not fit are in what was sent: a help for whoever reads it."""
        if len(self._chunks) != 1:
            return f"parts {[(len(p.data), p.least, p.most) for p in parts][:20]}"
        received = b"".join(*self._chunks.values())
        strange = received[far : far + 16]
        if not strange:
            return "all that was taken is right"
        at, found = 0, []
        for part in parts:
            if (inside := part.data.find(strange)) >= 0:
                found.append(at + inside)
            at += part.most
        return f"what comes next was sent at {found} of {at}"


def joined(parts: list[Part]) -> list[Part]:
    """The parts that are sure, and were sent with no other at the same time, as one.

    There are less to try then.
    """
    groups: list[list[Part]] = []
    latest, alone = 0, False
    for number, part in enumerate(parts):
        following = parts[number + 1].began if number + 1 < len(parts) else NEVER_ENDED
        ended = NEVER_ENDED if part.ended is None else part.ended
        was_alone, alone = alone, latest <= part.began and ended <= following
        latest = max(latest, ended)
        last = groups[-1][-1] if groups else None
        sure = part.least == part.most
        if alone and was_alone and sure and last is not None and last.least == last.most:
            groups[-1].append(part)
        elif part.most:
            groups.append([part])
        else:
            alone = was_alone and alone
    return [group[0] if len(group) == 1 else one_of(group) for group in groups]


def one_of(parts: list[Part]) -> Part:
    data = b"".join(part.data[: part.most] for part in parts)
    return Part(data, parts[0].began, False, parts[-1].ended, len(data), len(data))


class Stand(NamedTuple):
    """Where a search stands.

    Attributes:
      read: how many of his chunks each reader has behind him.
      reader, at: whose chunk is being looked at, and how far; or `NOWHERE`.
      over: the parts that are, a bit for each.
      part, offset: the one that is being read, and how far; or `NOWHERE`.
      paused: parts that others have come between, and how far those are.
      fresh: the part has just begun or gone on, so its next byte is the right one.
      but: what has just been paused, so that it does not go on at once.
    """

    read: tuple[int, ...]
    reader: int = NOWHERE
    at: int = 0
    over: int = 0
    part: int = NOWHERE
    offset: int = 0
    paused: frozenset[tuple[int, int]] = frozenset()
    fresh: bool = False
    but: int = NOWHERE


class Search:
    """Is there a way to put it together?"""

    def __init__(self, parts: list[Part], readers: list[list[bytes]], whole: bool) -> None:
        self._parts = parts
        self._readers = readers
        self._whole = whole
        # Of each part those that had ended when it began, a bit for each.
        self._before = [0] * len(parts)
        # Whoever others may have come between: they were there at the same time.
        self._divided = [False] * len(parts)
        # Those of which something surely has to come.
        self._needed = sum(1 << number for number, part in enumerate(parts) if part.least)
        self._find_order()
        self._before_chunk = [
            list(itertools.accumulate(map(len, chunks), initial=0)) for chunks in readers
        ]
        self._best = 0

    def _find_order(self) -> None:
        """Parts are in the order in which they began."""
        by_end = sorted(
            (part.ended, number)
            for number, part in enumerate(self._parts)
            if part.ended is not None
        )
        ended, mask = 0, 0
        for number, part in enumerate(self._parts):
            while ended < len(by_end) and by_end[ended][0] <= part.began:
                mask |= 1 << by_end[ended][1]
                ended += 1
            self._before[number] = mask
        latest = 0
        for number, part in enumerate(self._parts):
            following = self._parts[number + 1].began if number + 1 < len(self._parts) else None
            end = NEVER_ENDED if part.ended is None else part.ended
            alone = latest <= part.began and (following is None or end <= following)
            self._divided[number] = part.divided and not alone
            latest = max(latest, end)

    def run(self) -> int | None:
        """None, or how far the best try came."""
        todo = [Stand((0,) * len(self._readers))]
        seen: set[Stand] = set()
        while todo:
            stand = todo.pop()
            if stand in seen:
                continue
            seen.add(stand)
            if len(seen) > STEPS_MAX:
                raise Lost("there are too many ways to put it together")
            if stand.reader != NOWHERE:
                found = self._read(stand) if stand.part != NOWHERE else self._next(stand)
            elif stand.read == tuple(map(len, self._readers)):
                if self._may_end(stand):
                    return None
                continue
            else:
                found = [
                    stand._replace(reader=reader, at=0)
                    for reader, count in enumerate(stand.read)
                    if count < len(self._readers[reader])
                ]
            todo.extend(reversed(found))  # the likeliest is the first to be tried
        return self._best

    def _may_end(self, stand: Stand) -> bool:
        self._best = max(self._best, sum(map(len, itertools.chain(*self._readers))))
        if not self._whole:
            return True
        come = dict(stand.paused) | {stand.part: stand.offset}
        return all(
            stand.over >> number & 1 or part.least <= come.get(number, 0)
            for number, part in enumerate(self._parts)
        )

    def _read(self, stand: Stand) -> list[Stand]:
        """How far the chunk is of the part, and what may be then."""
        chunk = self._readers[stand.reader][stand.read[stand.reader]]
        part = self._parts[stand.part]
        at, offset = stand.at, stand.offset
        same = common(chunk, at, part.data, offset, part.most - offset)
        self._note_progress(stand, at + same)
        if at + same == len(chunk):
            read = tuple(
                count + (reader == stand.reader) for reader, count in enumerate(stand.read)
            )
            return [
                stand._replace(
                    read=read, reader=NOWHERE, at=0, offset=offset + same, fresh=False, but=NOWHERE
                )
            ]
        found = []
        left = stand._replace(part=NOWHERE, offset=0, fresh=False, but=NOWHERE)
        for size in range(same, max(same - CHANCE, stand.fresh - 1), -1):
            here = offset + size
            if here >= part.least:
                over = stand.over | 1 << stand.part
                found.append(left._replace(at=at + size, over=over))
            if self._divided[stand.part] and here < part.most:
                paused = stand.paused | {(stand.part, here)}
                found.append(left._replace(at=at + size, paused=paused, but=stand.part))
        return found

    def _next(self, stand: Stand) -> list[Stand]:
        """Another part begins, or goes on; its next byte is the chunk's."""
        chunk = self._readers[stand.reader][stand.read[stand.reader]]
        come = dict(stand.paused)
        enough = sum(1 << n for n, offset in come.items() if offset >= self._parts[n].least)
        found = []
        to_come = ~stand.over & (1 << len(self._parts)) - 1
        while to_come:
            number = (to_come & -to_come).bit_length() - 1
            to_come &= to_come - 1
            part = self._parts[number]
            left_out = self._before[number] & ~stand.over
            if left_out & self._needed & ~enough:
                break  # nor may any that began later
            offset = come.get(number, 0)
            if number == stand.but:
                continue
            if offset >= part.most or part.data[offset] != chunk[stand.at]:
                continue
            paused = stand.paused
            if paused:
                paused = frozenset(
                    each for each in paused if each[0] != number and not left_out >> each[0] & 1
                )
            found.append(
                stand._replace(
                    over=stand.over | left_out,
                    part=number,
                    offset=offset,
                    paused=paused,
                    fresh=True,
                    but=NOWHERE,
                )
            )
        return found

    def _note_progress(self, stand: Stand, at: int) -> None:
        far = at + sum(
            before[count] for before, count in zip(self._before_chunk, stand.read, strict=True)
        )
        self._best = max(self._best, far)


# ---- messages ----------------------------------------------------------------------------

SURE, MAYBE, NEVER = "sure", "maybe", "never"


@dataclasses.dataclass(eq=False)
class Message:
    """One message: who sent it, when, and whether it was sent."""

    data: bytes
    sender: str
    began: int
    ended: int | None = None
    state: str = MAYBE


class MessageBook:
    """What was sent to one socket, each message whole and at most once."""

    def __init__(self, clock: Clock, numbers: Iterator[int]) -> None:
        self._clock = clock
        self._numbers = numbers
        self._sent: dict[int, Message] = {}
        self._taken: list[tuple[str, int]] = []
        self._nameless = 0

    def offer(self, sender: str, size: int) -> Message:
        """Somebody begins to send a message of this size, or of its header's."""
        number = next(self._numbers)
        data = HEADER.pack(number) + content(number, max(0, size - HEADER.size))
        message = Message(data, sender, self._clock())
        self._sent[number] = message
        return message

    def sent(self, message: Message, state: str) -> None:
        """He has ended: it was sent, was not, or nobody knows."""
        message.ended = self._clock()
        message.state = state

    def take(self, receiver: str, data: bytes, size: int) -> None:
        """A message was received into memory of this size."""
        if size < HEADER.size:
            self._nameless += 1
            return
        number = self.number_of(data, size)
        if any(number == earlier for _, earlier in self._taken):
            raise Lost(f"message {number} came twice, the second time to {receiver}")
        self._taken.append((receiver, number))

    def number_of(self, data: bytes, size: int) -> int:
        """Which message it is, cut to the size.

        Raises:
          Lost: it is none that was sent.
        """
        number = HEADER.unpack(data[: HEADER.size])[0] if len(data) >= HEADER.size else -1
        message = self._sent.get(number)
        if message is None:
            raise Lost(f"nobody sent {data[:40]!r} (of {len(data)} bytes)")
        if data != message.data[:size]:
            raise Lost(f"message {number} of {len(message.data)} bytes came as {len(data)} others")
        if message.state == NEVER:
            raise Lost(f"message {number} came, of which {message.sender} was told it was not sent")
        return number

    def missing(self) -> int:
        """How many were surely sent, and have come to nobody."""
        came = {number for _, number in self._taken}
        sure = sum(
            message.state == SURE and number not in came for number, message in self._sent.items()
        )
        return max(0, sure - self._nameless)

    def check(self, *, lost_max: int) -> None:
        """All have come but so many, in the order in which each sender sent them.

        Raises:
          Lost: they have not.
        """
        last: dict[tuple[str, str], Message] = {}
        for receiver, number in self._taken:
            message = self._sent[number]
            if message.state == NEVER:
                raise Lost(f"message {number} came, of which {message.sender} was told otherwise")
            before = last.get((receiver, message.sender))
            if before and message.ended is not None and message.ended <= before.began:
                raise Lost(f"message {number} came to {receiver} after one that was sent later")
            last[receiver, message.sender] = message
        if (missing := self.missing()) > lost_max:
            raise Lost(f"{missing} messages that were sent have come to nobody")
