"""Every kind of descriptor that a task can sleep on, and a thread that makes it ready.

``python wakeup_kinds.py BACKEND HOST ROUNDS KIND...`` runs rounds of some kinds, all at
once, in a process of their own: a signalfd wants its signal blocked in all threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import trio
import trio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds between being asked and making it ready: sometimes the waiter is asleep already.
DELAYS_S = (0.0, 0.0, 1e-5, 1e-4, 1e-3)
THREAD_TIMEOUT_S = 30

CLOCK_MONOTONIC = 1
IN_MODIFY = 2
NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC  # of timerfd, signalfd and inotify alike
EVENTFD_FULL = 2**64 - 2

# A real-time signal that nobody else here uses.
SIGNAL = signal.SIGRTMIN + 7

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Kind:
    """A descriptor, a way to make it ready from another thread, and one to take that back."""

    fd: int
    writable = False  # what is waited for

    def __init__(self, thread: Waker) -> None:
        self.thread = thread

    def open(self) -> None:
        """On the waking thread, once."""
        raise NotImplementedError

    def arm(self) -> None:
        """In the task that is about to wait, each time."""

    def put(self) -> None:
        """On the waking thread."""
        raise NotImplementedError

    def get(self) -> None:
        """In the task that has waited; raises BlockingIOError if there is nothing."""
        raise NotImplementedError

    def close(self) -> None:
        os.close(self.fd)


class Eventfd(Kind):
    def open(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self) -> None:
        os.eventfd_write(self.fd, 1)

    def get(self) -> None:
        os.eventfd_read(self.fd)


class FullEventfd(Eventfd):
    """A wait until it can be written: what wakes runs inside the read of an eventfd."""

    writable = True

    def open(self) -> None:
        super().open()
        os.eventfd_write(self.fd, EVENTFD_FULL)

    def put(self) -> None:
        os.eventfd_read(self.fd)

    def get(self) -> None:
        os.eventfd_write(self.fd, EVENTFD_FULL)


class Timerfd(Kind):
    def open(self) -> None:
        self.fd = _checked(_libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCK_CLOEXEC))

    def put(self) -> None:
        in_a_moment = struct.pack("4q", 0, 0, 0, 20_000)  # ns
        _checked(_libc.timerfd_settime(self.fd, 0, in_a_moment, None))

    def get(self) -> None:
        os.read(self.fd, 8)


class Signalfd(Kind):
    def open(self) -> None:
        mask = struct.pack("Q", 1 << (SIGNAL - 1)) + bytes(120)  # sigset_t
        self.fd = _checked(_libc.signalfd(-1, mask, NONBLOCK_CLOEXEC))

    def put(self) -> None:
        os.kill(os.getpid(), SIGNAL)

    def get(self) -> None:
        os.read(self.fd, 128)


class Pidfd(Kind):
    fd = -1
    _child: subprocess.Popen[bytes]

    def open(self) -> None:
        pass

    def arm(self) -> None:
        self._child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
        self.fd = os.pidfd_open(self._child.pid)

    def put(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()

    def get(self) -> None:
        if self._child.poll() is None:
            raise BlockingIOError("the child lives")
        trio.lowlevel.notify_closing(self.fd)
        os.close(self.fd)

    def close(self) -> None:
        pass


class Pipe(Kind):
    def open(self) -> None:
        self.fd, self.far = os.pipe2(NONBLOCK_CLOEXEC)

    def put(self) -> None:
        os.write(self.far, b"x")

    def get(self) -> None:
        os.read(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.far)


class Socket(Pipe):
    def open(self) -> None:
        a, b = socket.socketpair()
        a.setblocking(False)
        self.fd, self.far = a.detach(), b.detach()


class FullSocket(Socket):
    """A wait until it can be written."""

    writable = True

    def open(self) -> None:
        super().open()
        self.get()

    def put(self) -> None:
        while len(os.read(self.far, 1 << 20)) == 1 << 20:
            pass

    def get(self) -> None:
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += os.write(self.fd, bytes(1 << 16))
        if not sent:
            raise BlockingIOError("no room")


class Inotify(Kind):
    def open(self) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by close()
        self.fd = _checked(_libc.inotify_init1(NONBLOCK_CLOEXEC))
        _checked(_libc.inotify_add_watch(self.fd, self._file.name.encode(), IN_MODIFY))

    def put(self) -> None:
        os.pwrite(self._file.fileno(), b"x", 0)

    def get(self) -> None:
        os.read(self.fd, 4096)

    def close(self) -> None:
        super().close()
        self._file.close()


class OtherRing(Kind):
    """Another io_uring, which has a completion for its owner."""

    def open(self) -> None:
        from uring_trio._kernel import Ring

        self._ring = Ring()
        self.fd = self._ring.fd
        self._ready, self._far = os.pipe2(NONBLOCK_CLOEXEC)
        os.write(self._far, b"x")

    def put(self) -> None:
        assert self._ring.poll(self._ready, select.POLLIN, 0) >= 0
        assert self._ring.flush() == 0

    def get(self) -> None:
        if self.thread.ask(self._ring.wait, 0) == 0:
            raise BlockingIOError("no completion")

    def close(self) -> None:
        assert self.thread.ask(self._ring.wait, 0) == 0  # the last batch ends
        assert self.thread.ask(lambda: self._ring.close(leak=False)) is False
        os.close(self._ready)
        os.close(self._far)


class Epoll(Kind):
    """An epoll instance around another kind."""

    inner_type: type[Kind] = Eventfd

    def open(self) -> None:
        self._inner = self.inner_type(self.thread)
        self._inner.open()
        self._epoll = select.epoll()
        self._epoll.register(self._inner.fd, select.EPOLLIN)
        self.fd = self._epoll.fileno()

    def put(self) -> None:
        self._inner.put()

    def get(self) -> None:
        self._inner.get()

    def close(self) -> None:
        self._epoll.close()
        self._inner.close()


class EpollOfPipe(Epoll):
    inner_type = Pipe


class EpollOfEpoll(Epoll):
    inner_type = Epoll


KINDS: dict[str, type[Kind]] = {
    "eventfd": Eventfd,
    "full eventfd": FullEventfd,
    "timerfd": Timerfd,
    "signalfd": Signalfd,
    "pidfd": Pidfd,
    "pipe": Pipe,
    "socket": Socket,
    "full socket": FullSocket,
    "inotify": Inotify,
    "another ring": OtherRing,
    "epoll": Epoll,
    "epoll of a pipe": EpollOfPipe,
    "epoll of an epoll": EpollOfEpoll,
}


class Waker:
    """A thread that does what it is asked for."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def do(self, function: Callable[[], Any], delay: float = 0.0) -> None:
        """Call *function* in the thread, after *delay* seconds."""

        def call() -> None:
            if delay:
                time.sleep(delay)
            function()

        self._calls.put(call)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What *function* returns in the thread."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put(lambda: answers.put(function(*args)))
        return answers.get(timeout=THREAD_TIMEOUT_S)

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join(THREAD_TIMEOUT_S)


@contextlib.contextmanager
def waker() -> Iterator[Waker]:
    thread = Waker()
    try:
        yield thread
    finally:
        thread.end()


async def run_rounds(kind_type: type[Kind], rounds: int) -> int:
    """Wait that often; how often it was made ready. One that is lost hangs."""
    delays = random.Random(kind_type.__name__)  # the same ones each time
    done = 0
    with waker() as thread:
        kind = kind_type(thread)
        thread.ask(kind.open)
        try:
            wait = trio.lowlevel.wait_writable if kind.writable else trio.lowlevel.wait_readable
            for _ in range(rounds):
                kind.arm()
                thread.do(kind.put, delays.choice(DELAYS_S))
                await wait(kind.fd)
                kind.get()  # BlockingIOError: it was told too early
                done += 1
        finally:
            kind.close()
    return done


async def run_together(names: list[str], rounds: int) -> dict[str, int]:
    """Rounds of several kinds, beside each other."""
    done = {}

    async def one(name: str) -> None:
        done[name] = await run_rounds(KINDS[name], rounds)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(one, name)
    return done


def main(backend: str, host: str, rounds: int, names: list[str]) -> None:
    from guest_tools import HOSTS

    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    done = HOSTS[host](backend, lambda: run_together(names, rounds))
    assert done == dict.fromkeys(names, rounds), done
    print("all came")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
