"""Bytes that show where they belong: what peers send, and the frames that they are sent.

One that is lost, doubled or moved is seen where it is read.
"""

from __future__ import annotations

import random
import struct

from random_gain.faults import WrongBytes

_PERIOD = 65_521  # a prime, so that no power of two brings the same bytes again
_BYTES = random.Random("bytes of the pattern").randbytes(_PERIOD) * 18


def pattern(stream: int, at: int, size: int) -> bytes:
    """Bytes *at* to *at* + *size* of an endless stream, of which each number has its own."""
    start = (at + 7919 * stream) % _PERIOD
    assert start + size <= len(_BYTES)
    return _BYTES[start : start + size]


FRAME = struct.Struct(">BBHI")  # a mark, who has written it, its number, bytes that follow
MARK = 0xF5
# Who writes to a connection: its callbacks, its tasks, other threads, other connections.
CALLBACK, TASK, ASKED, OTHER = range(4)
WRITERS = 4


def frame(account: int, writer: int, number: int, size: int) -> bytes:
    head = FRAME.pack(MARK, writer, number & 0xFFFF, size)
    return head + pattern(100 + account * WRITERS + writer, 977 * number, size)


class FrameReader:
    """What a peer has received: frames of several writers, each writer's in their order."""

    def __init__(self, account: int) -> None:
        self.account = account
        self.received = 0
        self.next_number = [0] * WRITERS
        self._rest = bytearray()

    def add(self, data: bytes) -> None:
        """Raise if it is not what was written."""
        self.received += len(data)
        self._rest += data
        at = 0
        rest = self._rest
        while len(rest) - at >= FRAME.size:
            mark, writer, number, size = FRAME.unpack_from(rest, at)
            if mark != MARK or writer >= WRITERS:
                raise WrongBytes(
                    f"peer {self.account} received no frame: {bytes(rest[at:][:16])!r}"
                )
            wanted = self.next_number[writer]
            if number != wanted & 0xFFFF:
                raise WrongBytes(
                    f"peer {self.account} received number {number} of writer {writer}, "
                    f"and {wanted} was next"
                )
            end = at + FRAME.size + size
            whole = frame(self.account, writer, wanted, size)
            have = rest[at:end]
            if not whole.startswith(have):
                raise WrongBytes(f"peer {self.account} received wrong bytes of writer {writer}")
            if end > len(rest):
                break
            self.next_number[writer] += 1
            at = end
        del rest[:at]
