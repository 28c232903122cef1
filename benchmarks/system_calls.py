"""How many system calls a server makes, counted by the kernel.

A counter of perf_event_open(2) on the tracepoint ``raw_syscalls:sys_enter`` for each thread of
the server; threads that these start are in it. An increment costs some tens of nanoseconds, and
nothing waits for anybody, so a server keeps its pace, and with it the size of its batches, on
which this number hangs. That is why there is no ptrace here: a server that stops twice at each
call is so slow that it finds many more messages ready than it would, and needs fewer calls.

It is a pass of its own all the same, and never a part of what is timed. Who may not look at
tracepoints (neither root nor CAP_PERFMON, a container, a kernel without them) has no such
figures, and is told why.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where tracefs is, on its own or within debugfs.
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
SYS_ENTER = "events/raw_syscalls/sys_enter/id"

SYSCALL_NUMBERS = {"x86_64": 298, "aarch64": 241}  # of perf_event_open
PERF_TYPE_TRACEPOINT = 2
PERF_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0, which every kernel takes
INHERIT = 1 << 1  # of the flags that follow `read_format`
FLAG_FD_CLOEXEC = 8


class CannotCount(Exception):
    """The kernel gives no such figures; the message says why."""


@functools.cache
def tracepoint() -> int:
    """The kernel's number of the tracepoint."""
    for root in TRACEFS:
        try:
            return int((root / SYS_ENTER).read_text())
        except OSError:
            continue
    raise CannotCount(f"there is no {SYS_ENTER} in {TRACEFS[0]}, or we may not read it")


def open_counter(thread: int) -> int:
    """A descriptor to read the calls of a thread from, and of those that it starts."""
    number = SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise CannotCount(f"perf_event_open has no known number on {platform.machine()}")
    # type, size, config, sample_period, sample_type, read_format, flags; the rest is zeros.
    start = struct.pack(
        "=IIQQQQQ", PERF_TYPE_TRACEPOINT, PERF_ATTR_BYTES, tracepoint(), 0, 0, 0, INHERIT
    )
    attributes = ctypes.create_string_buffer(start, PERF_ATTR_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(number, attributes, thread, -1, -1, FLAG_FD_CLOEXEC)
    if fd < 0:
        error = ctypes.get_errno()
        raise CannotCount(f"perf_event_open: {os.strerror(error)}")
    return fd


@contextmanager
def counters(pid: int) -> Iterator[tuple[int, ...]]:
    """A counter for each thread of a process."""
    with ExitStack() as stack:
        fds = []
        for thread in Path(f"/proc/{pid}/task").iterdir():
            fds.append(open_counter(int(thread.name)))
            stack.callback(os.close, fds[-1])
        yield tuple(fds)


def read(fds: tuple[int, ...]) -> int:
    """The calls until now."""
    return sum(struct.unpack("=Q", os.read(fd, 8))[0] for fd in fds)


@functools.cache
def denied() -> str | None:
    """Why there are no such figures here, or None."""
    try:
        with counters(os.getpid()):
            return None
    except CannotCount as error:
        return str(error)
