"""Files of every type that a task can wait for, or is refused to, and what others do with them.

An *act* is done at once and never waits for long: what Linux does a moment later (a timer that
expires, a segment of TCP's) it waits for, so that two runs of the same acts see the same.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket as stdlib_socket
import threading
import time
import tty
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

import machine_speed
import wakeup_kinds

from peers import stranger as strangers
from peers.books import content
from peers.places import queued
from peers.stranger import poll_says
from peers.streams import tcp_pair

if TYPE_CHECKING:
    from collections.abc import Callable

SO = stdlib_socket
# What follows from an act at once, but for a busy machine.
SEEN_MAX_S = 0.5 * machine_speed.slowness()
TCP_BUFFER = 65_536  # bytes: large enough that TCP sends at once, and of one size
ENDS = select.POLLHUP | select.POLLRDHUP | select.POLLERR


def soon(condition: Callable[[], object]) -> None:
    """Wait for what follows from an act by itself; for what does not, not for long."""
    end = time.monotonic() + SEEN_MAX_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.0002)


class File:
    """One of them: ours, and what is at its other end.

    Attributes:
      fd: ours; whoever has opened it may close it, so it is -1 when that is done elsewhere.
      sock: the same as a socket, if it is one.
      far: the other end, -1 without one or when it is gone.
    """

    def __init__(self, kind: str, folder: str) -> None:
        self.kind = kind
        self.folder = folder
        self.fd = self.far = -1
        self.sock: SO.socket | None = None
        self._far_sock: SO.socket | None = None
        self._number = 0
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def acts(self) -> dict[str, Callable[[int], None]]:
        """By name; each takes a size, if it needs one."""
        return {}

    def act(self, name: str, size: int) -> None:
        """Do it, if it can be done still."""
        if (act := self.acts().get(name)) is not None:
            with contextlib.suppress(OSError):
                act(size)

    def far_sees(self) -> int:
        """What the other end is told of ours."""
        return poll_says(self.far, select.POLLIN | select.POLLRDHUP) if self.far >= 0 else -1

    @property
    def size_max(self) -> int:
        """More of it at a time tells of buffers, and not of what is promised."""
        return 500

    def close(self) -> None:
        """All that is open still."""
        if self._far_sock is not None:
            self._far_sock.close()
        elif self.far >= 0:
            os.close(self.far)
        self.far = -1
        if self.sock is not None:
            self.sock.close()
        elif self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def sum_of(self, data: bytes) -> int:
        """Of what was read: the same for the same."""
        return zlib.crc32(data)

    def content(self, size: int) -> bytes:
        """The same each time that the same is done."""
        self._number += 1
        return content(self._number, size)


# ---- what tells of something ---------------------------------------------------------------


class SignalOfOwnThread(wakeup_kinds.Signalfd):
    """Signals of this thread alone: others need not block them."""

    def open(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [wakeup_kinds.SIGNAL])
        super().open()

    def put(self) -> None:
        signal.pthread_kill(threading.get_ident(), wakeup_kinds.SIGNAL)


class Child(wakeup_kinds.Pidfd):
    """A process that ends: that stays so."""

    def open(self) -> None:
        self.arm()

    def put(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def get(self) -> None:
        pass

    def close(self) -> None:
        self.put()
        os.close(self.fd)


class Semaphore(wakeup_kinds.Eventfd):
    """Several takes for several puts."""

    def open(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)


TELLERS: dict[str, type[wakeup_kinds.Kind]] = {
    "eventfd": wakeup_kinds.Eventfd,
    "full_eventfd": wakeup_kinds.FullEventfd,
    "semaphore": Semaphore,
    "timerfd": wakeup_kinds.Timerfd,
    "signalfd": SignalOfOwnThread,
    "pidfd": Child,
    "inotify": wakeup_kinds.Inotify,
    "epoll": wakeup_kinds.Epoll,
    "epoll_of_pipe": wakeup_kinds.EpollOfPipe,
    "epoll_of_epoll": wakeup_kinds.EpollOfEpoll,
}


class Teller(File):
    """An eventfd, a timer, an epoll descriptor, ...: no data, but news."""

    KINDS = tuple(TELLERS)

    def open(self) -> None:
        self._teller = TELLERS[self.kind](None)  # type: ignore[arg-type]  # no thread
        self._teller.open()
        self.fd = os.dup(self._teller.fd)  # whoever has it may close it

    def acts(self) -> dict[str, Callable[[int], None]]:
        return {"put": lambda _: self._put(), "take": lambda _: self._teller.get()}

    def _put(self) -> None:
        self._teller.put()
        wanted = select.POLLOUT if self._teller.writable else select.POLLIN
        soon(lambda: poll_says(self._teller.fd, wanted))

    def close(self) -> None:
        super().close()
        self._teller.close()


# ---- what has data -------------------------------------------------------------------------


class Carrier(File):
    """A pipe, a terminal, a pair of sockets: data, room, and an end."""

    SOCKETS = ("unix", "tcp", "unix_dgram", "seqpacket")
    KINDS = (
        *("pipe_in", "pipe_out", "fifo_in", "fifo_out", "fifo_both", "tty", "pty"),
        *SOCKETS,
    )
    MESSAGES = ("unix_dgram", "seqpacket")

    def open(self) -> None:
        if self.kind in self.SOCKETS:
            if self.kind == "tcp":
                self.sock, self._far_sock = tcp_pair(SO.AF_INET, TCP_BUFFER)
            else:
                types = {"unix_dgram": SO.SOCK_DGRAM, "seqpacket": SO.SOCK_SEQPACKET}
                type_ = types.get(self.kind, SO.SOCK_STREAM)
                self.sock, self._far_sock = SO.socketpair(SO.AF_UNIX, type_)
            self.sock.setblocking(False)
            self._far_sock.setblocking(False)
            self.fd, self.far = self.sock.fileno(), self._far_sock.fileno()
            return
        if self.kind in ("tty", "pty"):
            master, slave = pty.openpty()
            tty.setraw(slave)
            self.fd, self.far = (slave, master) if self.kind == "tty" else (master, slave)
        elif self.kind.startswith("pipe"):
            ends = os.pipe()
            self.fd, self.far = ends if self.kind == "pipe_in" else ends[::-1]
        else:
            self._open_fifo()
        for fd in (self.fd, self.far):
            os.set_blocking(fd, False)

    def _open_fifo(self) -> None:
        path = f"{self.folder}/fifo-{len(os.listdir(self.folder))}"
        os.mkfifo(path)
        if self.kind == "fifo_both":
            self.fd, self.far = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for _ in range(2))
            return
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        target = os.open(path, os.O_WRONLY)
        self.fd, self.far = (source, target) if self.kind == "fifo_in" else (target, source)

    def acts(self) -> dict[str, Callable[[int], None]]:
        acts: dict[str, Callable[[int], None]] = {}
        if not self.kind.endswith("_out"):
            acts |= {"put": self._put, "take": self._take}
        # Of what TCP has taken it finds more room by its timers: nobody knows when it is full.
        if not self.kind.endswith("_in") and self.kind != "tcp":
            acts |= {"fill": lambda _: self._fill(), "room": lambda _: self._make_room()}
        if self.kind in self.SOCKETS:
            acts |= {"far_shut_write": lambda _: self._far_shut(SO.SHUT_WR)}
            acts |= {"far_shut_read": lambda _: self._far_shut(SO.SHUT_RD)}
        return {**acts, "far_close": lambda _: self._far_close()}

    @property
    def size_max(self) -> int:
        return 60_000 if self.kind in self.MESSAGES else super().size_max

    def _put(self, size: int) -> None:
        data = self.content(1 + size % self.size_max)
        before = queued(self.fd)
        if self.far < 0:
            return
        if self._far_sock is not None:
            sent = self._far_sock.send(data, SO.MSG_NOSIGNAL)
        else:
            sent = os.write(self.far, data)
        if self.kind in ("tcp", "tty", "pty"):
            soon(lambda: self.fd < 0 or queued(self.fd) >= before + sent)

    def _take(self, size: int) -> None:
        if self.fd >= 0:
            strangers.take(self.fd, 1 + size % self.size_max)

    def _fill(self) -> None:
        if self.fd < 0 or self.kind in ("tty", "pty"):
            return  # a terminal that is full is so for its echo as well
        unit = 1000 if self.kind in self.MESSAGES else 1 << 16
        while strangers.put(self.fd, bytes(unit)):
            pass
        while strangers.put(self.fd, b"x"):
            pass

    def _make_room(self) -> None:
        soon(lambda: not self._far_read() and (self.fd < 0 or poll_says(self.fd, select.POLLOUT)))

    def _far_read(self) -> int:
        if self.far < 0:
            return 0
        with contextlib.suppress(OSError):
            return len(os.read(self.far, 1 << 20))
        return 0

    def _far_shut(self, how: int) -> None:
        if self._far_sock is not None and self.far >= 0:
            self._far_sock.shutdown(how)
            if self.kind == "tcp" and how == SO.SHUT_WR:
                soon(lambda: self.fd < 0 or poll_says(self.fd, ENDS) & ENDS)

    def _far_close(self) -> None:
        if self.far < 0:
            return
        far, self.far = self.far, -1
        if self._far_sock is not None:
            self._far_sock.close()
        else:
            os.close(far)
        if self.kind == "tcp":
            soon(lambda: self.fd < 0 or poll_says(self.fd, ENDS) & ENDS)


# ---- what is always the same ---------------------------------------------------------------


class Standing(File):
    """A file of the system's: ready at all times, or such that nobody can wait for it."""

    PATHS: ClassVar[dict[str, str]] = {
        "null": "/dev/null",
        "zero": "/dev/zero",
        "random": "/dev/random",
        "urandom": "/dev/urandom",
        "full": "/dev/full",
        "mounts": "/proc/self/mounts",
        "mountinfo": "/proc/self/mountinfo",
        "hostname": "/proc/sys/kernel/hostname",
        "uevents": "/sys/kernel/uevent_seqnum",
        "stat": "/proc/self/stat",
        "folder": "/",
        "disk": "",
        "memory": "",
    }
    KINDS = tuple(PATHS)

    def open(self) -> None:
        if self.kind == "memory":
            self.fd = os.memfd_create("peers")
        elif self.kind == "disk":
            path = f"{self.folder}/disk"
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        else:
            self.fd = os.open(self.PATHS[self.kind], os.O_RDONLY | os.O_NONBLOCK)

    def sum_of(self, data: bytes) -> int:
        return 0  # what it says of this process or of chance is no matter


KINDS: dict[str, Any] = {kind: file for file in (Teller, Carrier, Standing) for kind in file.KINDS}
