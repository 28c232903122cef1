"""The books of a process: what it has more of than before, and what it uses while it sleeps.

    books = process_books.Descriptors(), process_books.Threads()
    ...
    left = process_books.stays(*books, bound_s=2.0)

What the kernel and Python do, and what follows
===============================================
- A number is no file: one that was closed and opened anew has another file under the same
  number, and as many are open as before. So descriptors are compared by what they are: device
  and inode, and for those that have no inode of their own (an epoll, an eventfd, a ring) the
  kind. Of each there may be as many as there were, under any number.
- A thread that Python has joined is in /proc for a moment yet, since it says that it has ended
  before it has; and so is a process's file that is being closed. So what is more is given time.
  trio keeps a thread that has done its work for the next one, and for ten seconds: that is
  named as it was made, and is nobody's.
- A worker of the kernel's is a thread of this process that nobody here has started. With nothing
  to do it ends by itself after some seconds: there is no time to be given, or it passes for none.
- A ring whose descriptor is closed lives on as long as its memory is mapped.
- CPU is counted by thread: what all take together is hidden by no one's sleep, but a spin takes
  as much as its thread is given, and that is little where other work stands in line. So each
  thread's time on a CPU is held against the time that it was not in line for one, which the
  kernel counts as well.
- Memory is Python's blocks, and the bytes that malloc has given out and not taken back: Python's
  larger blocks and all of C's. Only some rounds of the same tell of a leak, since tables grow and
  caches fill; see `growth`. One cache fills for thousands of rounds, and is emptied before each
  count: that of methods, which keeps the name that each was looked up by, and C makes a new one
  for every call by a name (so does each split of a group of exceptions).

It uses nothing of the product, so that it serves with another release's as well
(``fuzz.py --against``), and needs a Linux with /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import kernel_workers
import machine_speed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A bound that makes a failure of what stays; what goes is gone within milliseconds.
GOES_S = 2.0 * machine_speed.slowness()
LOOK_S = 0.002
# Of what a thread could have run: less tells nothing of a share, as one tick of its own is more.
COULD_MIN_S = 0.06

TASKS = "/proc/self/task"
IDLE_OF_TRIO = re.compile(r"Trio thread \d+")


class Book(Protocol):
    """What there was when it was opened, and what is more now.

    Attributes:
      goes: whether what is more may be on its way out, and is given time.
    """

    goes: bool

    def more(self) -> list[str]:
        """What is more, in words."""


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected that is part of a cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def stays(*books: Book, bound_s: float = GOES_S, collecting: bool = False) -> list[str]:
    """What is more and stays so, each in words; with *collecting* the collector's is no one's."""
    end = time.monotonic() + bound_s
    # What a look itself drops into a cycle is not what is looked for.
    with no_collection():
        if now := [told for book in books if not book.goes for told in book.more()]:
            return now
        while left := [told for book in books if book.goes for told in book.more()]:
            if time.monotonic() > end:
                return left
            if collecting:
                gc.collect()
            time.sleep(LOOK_S)
    return []


# ---- descriptors -------------------------------------------------------------------------


class File(NamedTuple):
    """What a descriptor leads to.

    Attributes:
      words: as /proc has it.
      identity: the same for the same file, and for none but it where it has an inode.
    """

    words: str
    identity: tuple[int, int, str]


def open_files() -> dict[int, File]:
    """This process's, by their numbers, without the one that is used to look."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it is closed by now
            words = os.readlink(f"/proc/self/fd/{name}")
            stat = os.fstat(int(name))
            kind = words if words.startswith("anon_inode:") else ""
            found[int(name)] = File(words, (stat.st_dev, stat.st_ino, kind))
    return found


class Descriptors:
    """Open files."""

    goes = True

    def __init__(self) -> None:
        self._before = open_files()

    def more(self) -> list[str]:
        now = open_files()
        files = Counter(file.identity for file in now.values())
        files -= Counter(file.identity for file in self._before.values())
        found = []
        # Of two numbers of one file that is open once more the new one is told.
        for fd, file in sorted(now.items(), key=lambda each: each[1] == self._before.get(each[0])):
            if files[file.identity] > 0:
                files[file.identity] -= 1
                found.append(f"descriptor {fd}: {file.words}")
        return found


def mapped_rings() -> int:
    """How many parts of rings are in this process's memory."""
    maps = Path("/proc/self/maps").read_text(errors="replace")
    return maps.count("anon_inode:[io_uring]")


class MappedRings:
    """Rings in memory; to look for them takes 2 ms in a process that has loaded much."""

    goes = True

    def __init__(self) -> None:
        self._before = mapped_rings()

    def more(self) -> list[str]:
        more = mapped_rings() - self._before
        return [f"{more} parts of rings are mapped"] if more > 0 else []


# ---- threads -----------------------------------------------------------------------------


def busy_threads() -> set[threading.Thread]:
    """All of Python's but the idle ones that trio keeps for later."""
    return {each for each in threading.enumerate() if not IDLE_OF_TRIO.fullmatch(each.name)}


def tasks() -> dict[int, str]:
    """All threads by the kernel's numbers; neither its own workers nor those that trio keeps."""
    known = {each.native_id: each.name for each in threading.enumerate()}
    # In this order: one that the kernel starts in between is a thread of ours for once.
    numbers = [int(name) for name in os.listdir(TASKS)]
    kernels = kernel_workers.workers()
    found = {}
    for number in numbers:
        with contextlib.suppress(OSError):  # it has ended
            name = known.get(number)
            words = name or f"{Path(f'{TASKS}/{number}/comm').read_text().strip()}, not Python's"
            if number not in kernels and not IDLE_OF_TRIO.fullmatch(words):
                found[number] = words
    return found


class Threads:
    """Whoever runs, Python's or not."""

    goes = True

    def __init__(self) -> None:
        self._before = tasks().keys()

    def more(self) -> list[str]:
        return [
            f"thread {number}: {words}"
            for number, words in tasks().items()
            if number not in self._before
        ]


class Workers:
    """The kernel's own threads in this process: see `kernel_workers`."""

    goes = False

    def __init__(self) -> None:
        self._before = kernel_workers.workers().keys()

    def more(self) -> list[str]:
        return [
            f"a worker of the kernel's: {number}"
            for number in kernel_workers.workers().keys() - self._before
        ]


# ---- CPU ---------------------------------------------------------------------------------


class Times(NamedTuple):
    """Of a thread, in seconds."""

    on_cpu: float
    in_line: float


def times_of_threads() -> dict[str, Times]:
    """Of each thread, the kernel's workers as well."""
    found = {}
    for thread in os.listdir(TASKS):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"{TASKS}/{thread}/schedstat").read_text().split()
            found[thread] = Times(int(words[0]) / 1e9, int(words[1]) / 1e9)
    return found


class Cpu:
    """What is used from its making on."""

    def __init__(self) -> None:
        self._before = times_of_threads()
        self._started = time.monotonic()

    def shares(self) -> list[float]:
        """Of each thread, how much of a core it took, of the time that it was given one."""
        took_s = time.monotonic() - self._started
        shares = []
        for thread, (on_cpu, in_line) in times_of_threads().items():
            before = self._before.get(thread, Times(0.0, 0.0))
            could_s = max(took_s - (in_line - before.in_line), min(took_s, COULD_MIN_S))
            shares.append((on_cpu - before.on_cpu) / could_s)
        return shares

    def most(self) -> float:
        """The share of the one that took most."""
        return max(self.shares())

    def sum(self) -> float:
        """What all took together."""
        return sum(self.shares())


# ---- memory ------------------------------------------------------------------------------


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc's, since 2.33
if _mallinfo2 is not None:
    _mallinfo2.restype = _Mallinfo2


class Memory(NamedTuple):
    """What is in use: Python's blocks, and the bytes of malloc's, 0 where it does not tell."""

    blocks: int
    malloc_bytes: int


if sys.version_info >= (3, 13):
    _forget_methods = sys._clear_internal_caches
else:
    _forget_methods = sys._clear_type_cache


def memory() -> Memory:
    """In use now, after a collection."""
    gc.collect()
    _forget_methods()
    info = _mallinfo2() if _mallinfo2 is not None else None
    in_use = info.uordblks + info.hblkhd if info is not None else 0
    return Memory(sys.getallocatedblocks(), in_use)


def growth(rounds: Sequence[Memory], *, blocks: int, malloc_bytes: int) -> str:
    """In words, if every round took more than the one before by so much; rounds of the same.

    What is bought once, a cache or a larger table, is not bought in each round; so the first
    rounds, in which much is, are left out by whoever asks.
    """
    steps = [
        (after.blocks - before.blocks, after.malloc_bytes - before.malloc_bytes)
        for before, after in itertools.pairwise(rounds)
    ]
    if steps and min(step[0] for step in steps) > blocks:
        return f"each round takes more blocks than the one before: {[r.blocks for r in rounds]}"
    if steps and min(step[1] for step in steps) > malloc_bytes:
        told = [r.malloc_bytes for r in rounds]
        return f"each round takes more of malloc's bytes than the one before: {told}"
    return ""
