"""A crowd: many who send to one UNIX datagram receiver, by its name.

Nothing tells of room there: poll(2) says of each sender that it can write, and each attempt is
refused. So what is promised is a matter of time, and of how much is asked of the kernel: the
first is held here, the second by `conduct`, which looks at what was asked.

Stock trio spins beside a full receiver, so there is no crowd on the machine's own kernel.
"""

from __future__ import annotations

import itertools
import socket as stdlib_socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from simulation.faults import (
    BytesLost,
    NotTold,
    TooLate,
    WrongBytes,
    WrongCount,
    WrongError,
    require,
)
from simulation.programs_ends import DONT_WAIT, NO_MEMORY, SLACK_S
from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from simulation.programs import Program

VERBS = ("crowd_send", "crowd_rush", "crowd_take")
SENDERS_MAX = 64
HEADER = struct.Struct("!I")
ROOM = 1 << 17
SIZE_MAX = 1000  # far less than a sender's own buffer: else that would be full, and tell of room

# The longest pause (ladder.c), and what a program takes.
LATE_S = 0.033


def datagrams_queued() -> int:
    """One more than that fit into a receiver's queue."""
    return int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())


class Crowd:
    """The receiver, which never waits, and the senders.

    Attributes:
      busy: senders that send.
      sent: messages whose send has said so, and
      waiting: those whose send has not returned, and since when there is room for each.
      received: what has come.
      changed: when the receiver took something last, or somebody began or ended.
    """

    def __init__(self, program: Program, count: int) -> None:
        self.program = program
        self.numbers = itertools.count()
        self.busy: set[int] = set()
        self.sent: set[int] = set()
        self.waiting: dict[int, float | None] = {}
        self.received: set[int] = set()
        self.changed = 0.0
        self.limit = datagrams_queued()
        self.ffi, self.lib = load_extension()
        self.receiver = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
        self.receiver.bind("")  # the kernel has a name that is nobody's
        self.address = self.receiver.getsockname()
        self.senders = [
            trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
            for _ in range(min(count, SENDERS_MAX))
        ]
        self.fds = {sender.fileno() for sender in self.senders}

    # ---- steps ---------------------------------------------------------------------------

    async def do(self, verb: str, place: int, size: int) -> str:
        if verb == "crowd_take":
            return self.take(1 + size % 32)
        if verb == "crowd_send":
            return await self.send(place % len(self.senders), min(size, SIZE_MAX))
        free = [index for index in range(len(self.senders)) if index not in self.busy]
        rush = free[: 1 + size % SENDERS_MAX]
        async with trio.open_nursery() as nursery:
            for index in rush:
                nursery.start_soon(self.send, index, 1 + size % 64)
        return f"{len(rush)}"

    async def send(self, index: int, size: int) -> str:
        if index in self.busy:
            return "left out"
        number = next(self.numbers)
        began = trio.current_time()
        self.busy.add(index)
        self.waiting[number] = None if self.is_full() else began
        try:
            await self.senders[index].sendto(HEADER.pack(number) + bytes(size), self.address)
        except trio.Cancelled:
            came = number in self.received
            require(not came, WrongCount, "a cancelled send to a crowd's receiver was received")
            self.check_awake(began)
            raise
        except OSError as exc:
            memory = exc.errno in NO_MEMORY and "no_buffers" in self.program.network_kinds
            require(memory, WrongError, f"{exc} when it sends to a crowd's receiver")
            return "no memory"
        finally:
            self.busy.discard(index)
            room_since = self.waiting.pop(number)
        self.check_prompt(room_since)
        self.sent.add(number)
        self.note_change()
        return "sent"

    def take(self, count: int) -> str:
        taken = 0
        memory = self.ffi.new("char[]", ROOM)
        null = self.ffi.NULL
        for _ in range(count):
            answer = self.lib.ut_kernel_in_use.recvfrom(
                self.receiver.fileno(), memory, ROOM, DONT_WAIT, null, null
            )
            if answer < 0:
                break
            (number,) = HEADER.unpack(self.ffi.buffer(memory, HEADER.size))
            known = number in self.sent or number in self.waiting
            require(known, WrongBytes, "a crowd's receiver has what nobody sent")
            require(number not in self.received, WrongBytes, "a crowd's message came twice")
            self.received.add(number)
            taken += 1
        if taken:
            self.note_change()
        return f"{taken}"

    # ---- books ---------------------------------------------------------------------------

    def is_full(self) -> bool:
        """As far as is told: who waits may have been sent just now."""
        return len(self.sent - self.received) > self.limit

    def note_change(self) -> None:
        self.changed = trio.current_time()
        full = self.is_full()
        for number, since in self.waiting.items():
            self.waiting[number] = None if full else self.changed if since is None else since

    def check_awake(self, began: float) -> None:
        """A send was cancelled: there was no room, or not for long."""
        if trio.current_time() - max(began, self.changed) >= SLACK_S:
            require(self.is_full(), NotTold, "slept over room at a crowd's receiver")

    def check_prompt(self, room_since: float | None) -> None:
        """A send has got through."""
        if room_since is not None and self.program.world.is_prompt:
            late_s = trio.current_time() - room_since
            words = f"room at a crowd's receiver was found after {late_s * 1e3:.1f} ms"
            require(late_s <= LATE_S, TooLate, words)

    async def finish(self) -> None:
        """Nobody sends any more."""
        while self.take(32) != "0":
            pass
        lost = len(self.sent - self.received)
        require(not lost, BytesLost, f"{lost} messages to a crowd's receiver are lost")
        more = len(self.received - self.sent)
        require(not more, WrongCount, f"{more} messages came whose send has failed")
        for sender in self.senders:
            sender.close()
        self.lib.ut_kernel_in_use.close_fd(self.receiver.detach())


def make(program: Program, count: Any) -> Crowd | None:
    """What a plan says."""
    if not count or not program.world.is_simulated:
        return None
    return Crowd(program, int(count))
