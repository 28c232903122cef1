"""Which files can be waited for: those that epoll takes, with its words for the others.

The kernel is the judge, not the type of the file: some files of /proc and /sys are regular
and can be polled, and some descriptors without a name in the file system cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from marks import needs_ring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
FSOPEN, LANDLOCK_CREATE_RULESET = 430, 444  # system calls, the same on every architecture

# Files whose poll function tells of changes; a kernel or a sandbox may lack one or the other.
PROC_FILES = [
    *("/proc/self/mounts", "/proc/self/mountinfo", "/proc/self/mountstats", "/proc/swaps"),
    *("/proc/pressure/cpu", "/proc/pressure/memory", "/proc/kmsg", "/proc/self/status"),
    *("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/fs/cgroup/cgroup.events"),
    *("/proc/sys/kernel/hostname", "/proc/self/fd", "/sys", "/proc/1/comm"),
]


def opened(path: str, flags: int = os.O_RDONLY) -> Any:
    def opener(stack: contextlib.ExitStack, _: Path) -> int:
        return kept(stack, os.open(path, flags | os.O_NONBLOCK))

    opener.__name__ = path
    return opener


def kept(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def regular(stack: contextlib.ExitStack, folder: Path) -> int:
    return kept(stack, os.open(folder / "file", os.O_RDWR | os.O_CREAT))


def directory(stack: contextlib.ExitStack, folder: Path) -> int:
    return kept(stack, os.open(folder, os.O_RDONLY))


def memory_file(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, os.memfd_create("file"))


def empty_pipe(stack: contextlib.ExitStack, _: Path) -> int:
    r, w = os.pipe()
    kept(stack, w)
    return kept(stack, r)


def hung_up_pipe(stack: contextlib.ExitStack, _: Path) -> int:
    r, w = os.pipe()
    os.close(w)
    return kept(stack, r)


def fifo(stack: contextlib.ExitStack, folder: Path) -> int:
    os.mkfifo(folder / "fifo")
    return kept(stack, os.open(folder / "fifo", os.O_RDWR | os.O_NONBLOCK))


def terminal(stack: contextlib.ExitStack, _: Path) -> int:
    master, slave = os.openpty()
    kept(stack, master)
    return kept(stack, slave)


def idle_eventfd(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, os.eventfd(0) if hasattr(os, "eventfd") else libc.eventfd(0, 0))


def set_eventfd(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, libc.eventfd(1, 0))


def timer(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, libc.timerfd_create(1, 0))


def inotify(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, libc.inotify_init())


def process(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, os.pidfd_open(os.getpid()))


def signals(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, libc.signalfd(-1, ctypes.create_string_buffer(128), 0))


def epoll_of_epoll(stack: contextlib.ExitStack, folder: Path) -> int:
    inner, outer = select.epoll(), select.epoll()
    stack.callback(inner.close)
    stack.callback(outer.close)
    inner.register(set_eventfd(stack, folder), select.EPOLLIN)
    outer.register(inner.fileno(), select.EPOLLIN)
    return outer.fileno()


def idle_epoll(stack: contextlib.ExitStack, _: Path) -> int:
    epoll = select.epoll()
    stack.callback(epoll.close)
    return epoll.fileno()


def file_system_context(stack: contextlib.ExitStack, _: Path) -> int:
    fd = libc.syscall(FSOPEN, b"tmpfs", 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "fsopen")
    return kept(stack, fd)


def landlock_ruleset(stack: contextlib.ExitStack, _: Path) -> int:
    handled = ctypes.c_uint64(1)
    fd = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(handled), 8, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    return kept(stack, fd)


def path_only(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, os.open("/dev/null", os.O_PATH))


def path_of_a_folder(stack: contextlib.ExitStack, _: Path) -> int:
    return kept(stack, os.open("/", os.O_PATH))


def path_of_a_fifo(stack: contextlib.ExitStack, folder: Path) -> int:
    os.mkfifo(folder / "fifo")
    return kept(stack, os.open(folder / "fifo", os.O_PATH))


def udp_socket(stack: contextlib.ExitStack, _: Path) -> Any:
    return stack.enter_context(stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM))


def number_of_a_socket(stack: contextlib.ExitStack, folder: Path) -> int:
    return int(udp_socket(stack, folder).fileno())


def closed_socket(stack: contextlib.ExitStack, folder: Path) -> Any:
    sock = udp_socket(stack, folder)
    sock.close()
    return sock


def closed_number(stack: contextlib.ExitStack, folder: Path) -> int:
    # So high that the run's own files do not get it.
    high = fcntl.fcntl(number_of_a_socket(stack, folder), fcntl.F_DUPFD, 900)
    os.close(high)
    return high


def no_descriptor(value: Any) -> Any:
    def opener(_: contextlib.ExitStack, __: Path) -> Any:
        return value

    opener.__name__ = f"no descriptor {value!r}"
    return opener


class Holder:
    """An object with a fileno() that gives whatever it was made with."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def fileno(self) -> Any:
        return self._answer

    def __repr__(self) -> str:
        return f"Holder({self._answer!r})"


OPENERS: list[Any] = [
    *(regular, directory, memory_file, empty_pipe, hung_up_pipe, fifo, terminal),
    *(idle_eventfd, set_eventfd, timer, inotify, process, signals, idle_epoll, epoll_of_epoll),
    *(file_system_context, landlock_ruleset, path_only, path_of_a_folder, path_of_a_fifo),
    *(udp_socket, number_of_a_socket, closed_socket, closed_number),
    *map(opened, PROC_FILES),
    *(opened("/dev/null", os.O_RDWR), opened("/dev/zero", os.O_RDWR), opened("/dev/urandom")),
    *map(no_descriptor, (-1, -2, 1 << 31, 1 << 40, 1 << 70, None, "text", 1.5, b"x", [1])),
    *map(no_descriptor, map(Holder, (-1, 1 << 40, None, "text", 1.5))),
]


async def outcomes_on(wanted: Any) -> list[Any]:
    """What each of the two waits does with it."""
    found: list[Any] = []
    for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
        try:
            with trio.move_on_after(0.02) as scope:
                await wait(wanted)
            found.append("waits" if scope.cancelled_caught else "ready")
        except (OSError, ValueError, TypeError, OverflowError, RuntimeError) as exc:
            found.append((type(exc), str(exc)))
    return found


def compare(opener: Any, folder: Path) -> list[Any]:
    """The same outcomes on stock and on the ring, or an AssertionError."""

    def measure(backend: str) -> list[Any]:
        with contextlib.ExitStack() as stack:
            folder.mkdir(exist_ok=True)
            for left in folder.iterdir():
                left.unlink()
            return harness.run_raw(backend, outcomes_on, opener(stack, folder))

    expected = measure(harness.EPOLL)
    assert measure(harness.RING) == expected
    return expected


@needs_ring
@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_as_on_stock(opener: Any, tmp_path: Path) -> None:
    try:
        with contextlib.ExitStack() as stack:
            (tmp_path / "try").mkdir()
            opener(stack, tmp_path / "try")
    except OSError as exc:
        pytest.skip(f"cannot be opened here: {exc}")
    compare(opener, tmp_path / "files")


@needs_ring
def test_what_the_comparison_finds(tmp_path: Path) -> None:
    """The control says something: some files wait, some are ready, and some are refused."""
    assert compare(idle_eventfd, tmp_path)[0] == "waits"
    assert compare(opened("/proc/self/mounts"), tmp_path)[0] == "ready"
    assert compare(regular, tmp_path)[0][0] is PermissionError
    assert compare(path_of_a_folder, tmp_path)[0] == (OSError, "[Errno 9] Bad file descriptor")
    assert compare(no_descriptor(-1), tmp_path)[0][0] is ValueError


def test_the_mounts_can_be_waited_for_again_and_again(backend: str) -> None:
    """A file that tells of changes is readable at all times."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            mounts = kept(stack, os.open("/proc/self/mounts", os.O_RDONLY))
            for _ in range(100):
                await trio.lowlevel.wait_readable(mounts)
            assert os.read(mounts, 1)

    harness.run(backend, main)


def test_no_descriptor_stays(backend: str, tmp_path: Path) -> None:
    """A program that counts its descriptors in the middle of a run finds its own."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            event = set_eventfd(stack, tmp_path)
            mounts = opened("/proc/self/mounts")(stack, tmp_path)
            file = regular(stack, tmp_path)
            before = harness.open_fds()
            for fd in (event, mounts):
                await trio.lowlevel.wait_readable(fd)
            with pytest.raises(PermissionError):
                await trio.lowlevel.wait_readable(file)
            assert harness.open_fds() == before

    harness.run(backend, main)


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Open files of this process until there is none left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(harness.open_fds()) + 10, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_descriptor_left(backend: str, tmp_path: Path) -> None:
    """Stock needs none to wait, so neither do we."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            event = set_eventfd(stack, tmp_path)
            mounts = opened("/proc/self/mounts")(stack, tmp_path)
            file = regular(stack, tmp_path)
            folder = directory(stack, tmp_path)
            with no_more_descriptors():
                await trio.lowlevel.wait_readable(event)
                await trio.lowlevel.wait_readable(mounts)
                for fd in (file, folder):
                    with pytest.raises(PermissionError):
                        await trio.lowlevel.wait_readable(fd)
                with pytest.raises((OSError, ValueError)):
                    await trio.lowlevel.wait_readable(1 << 20)

    harness.run(backend, main)


@pytest.mark.parametrize("wait", [trio.lowlevel.wait_readable, trio.lowlevel.wait_writable])
def test_refusal_leaves_no_waiter_behind(
    backend: str, wait: Callable[[int], Awaitable[None]]
) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            file = kept(stack, os.open(__file__, os.O_RDONLY))
            for _ in range(3):
                with pytest.raises(PermissionError) as caught:
                    await wait(file)
                assert caught.value.errno == errno.EPERM

    harness.run(backend, main)


@pytest.mark.differential
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
async def test_wait_on_a_device_that_cannot_be_polled(device: str) -> None:
    """Without a poll function: refused, as epoll refuses it, and not found ready."""
    fd = os.open(device, os.O_RDWR)
    try:
        for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
            with pytest.raises(PermissionError):
                await wait(fd)
    finally:
        os.close(fd)


@pytest.mark.differential
async def test_a_terminal_can_be_waited_for() -> None:
    master, slave = os.openpty()
    try:
        await trio.lowlevel.wait_writable(slave)
        with trio.move_on_after(0.01) as scope:
            await trio.lowlevel.wait_readable(slave)
        assert scope.cancelled_caught
    finally:
        os.close(master)
        os.close(slave)
