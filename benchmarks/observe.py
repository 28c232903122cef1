"""What can be seen of a server from outside, and idle connections to it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import contextlib

MESSAGE = b"x" * 64
SOCKET_LIMIT_S = 10.0

CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the scheduler's count, in nanoseconds


def cpu_ns(pid: int) -> int:
    """User and system time of all threads of a process, as clock_getcpuclockid(3) has it."""
    return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)


class Others:
    """What this machine's CPUs did from here on that was not for this process and its children.

    Interrupts are left out, since those of our own connections are among them; what a host
    took from a virtual machine is in it. Children count when they have been waited for.
    """

    def __init__(self) -> None:
        self._started = self._busy_and_all()
        self._ours = sum(os.times()[:4])

    @staticmethod
    def _busy_and_all() -> tuple[float, float]:
        """Seconds of all CPUs: at work for somebody, and in all."""
        line = Path("/proc/stat").read_text().partition("\n")[0]
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
        busy = user + nice + system + steal
        tick = os.sysconf("SC_CLK_TCK")
        return busy / tick, (busy + idle + iowait + irq + softirq) / tick

    def part(self) -> float:
        """Their part of all that the CPUs could have done until now."""
        busy, total = self._busy_and_all()
        ours = sum(os.times()[:4]) - self._ours
        elapsed = total - self._started[1]
        return max(0.0, busy - self._started[0] - ours) / elapsed if elapsed else 0.0


def voluntary_switches(pid: int) -> int:
    """Of all threads of a process, the sleeping one that answers questions included."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def rss_kib(pid: int) -> int:
    """The resident set; smaps_rollup counts it, where status has an estimate."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} shows no resident set")


def peak_rss_kib(pid: int) -> int:
    """The largest that the resident set was until now; the kernel's count, exact to some pages."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} shows no peak of its resident set")


def open_fds(pid: int) -> int:
    """How many file descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def round_trip(conn: socket.socket) -> bool:
    """Whether a message comes back."""
    conn.sendall(MESSAGE)
    return conn.recv(len(MESSAGE), socket.MSG_WAITALL) == MESSAGE


def connect(port: int, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Make connections, and one round trip on each: the server has read and waits again.

    Raises:
      RuntimeError: the server did not echo.
      OSError: it refused, or did nothing for 10 s.
    """
    conns = []
    for _ in range(count):
        conn = socket.create_connection(("127.0.0.1", port), timeout=SOCKET_LIMIT_S)
        conns.append(stack.enter_context(conn))
        if not round_trip(conn):
            raise RuntimeError("the server did not echo")
    return conns
