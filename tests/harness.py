"""How the tests run trio, and what must be true when a run ends.

Most tests here are differential: they run once on stock trio (``"epoll"``, plain
``trio.run``), which is the reference, and once on the ring (``"io_uring"``).
The helpers below are all that such a test needs.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import socket as stdlib_socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import builds
import machine_speed
import process_books
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

try:
    import uring_trio
except ImportError as exc:  # the extension was not built; conftest.py says what follows
    IMPORT_ERROR: ImportError | None = exc
else:
    IMPORT_ERROR = None

no_collection = process_books.no_collection

# Off in a second run of the tests: see `_fast_ways`.
FAST_WAYS = os.environ.get("URING_TRIO_FAST_WAYS") != "off"

T = TypeVar("T")

EPOLL = "epoll"
RING = "io_uring"

# Bounds that only make a failure of a hang are those of an idle machine, stretched.
SLOWNESS = machine_speed.slowness()

# A cqe that is still owed (an orphaned poll, say) comes within microseconds. The
# bound is only there so that a lost one fails the test instead of hanging it.
BOOKS_TIMEOUT_S = 2.0 * SLOWNESS
FDS_TIMEOUT_S = 2.0 * SLOWNESS

# For one run on the real clock; the slowest takes 2 s on two busy cores. pytest's own
# timeout, which is longer (`sanitize` has its own), is for what trio cannot cancel.
HANG_S = min(30.0 * SLOWNESS, 50.0 * builds.slower())

# trio's entry queue always has one task that waits to be woken.
INTERNAL_READERS = 1


def internal_polls() -> int:
    """How many polls the current run has on the ring for being woken: by threads, by signals.

    With trio's own pair of sockets, one serves both.
    """
    is_told_of_signals = threading.current_thread() is threading.main_thread()
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    return 2 if is_told_of_signals and FAST_WAYS and not runner.is_guest else 1


class BooksError(AssertionError):
    """A run ended with something still in the kernel, leased or waiting."""


def ring_denied() -> str | None:
    """Why no test can run on the ring here, or None."""
    if IMPORT_ERROR is not None:
        return f"uring_trio cannot be imported: {IMPORT_ERROR}"
    report = uring_trio.probe()
    if report.backend == RING:
        return None
    return f"no io_uring here: {report.reason} ({report.remedy})"


def run(backend: str, async_fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Run ``async_fn`` on ``backend``; fail if it ran elsewhere or its books do not balance."""

    async def audited() -> T:
        assert io_statistics().backend == backend
        # A test that hangs is unwound in order, and does not disturb those after it.
        with trio.fail_after(HANG_S) if kwargs.get("clock") is None else contextlib.nullcontext():
            result = await async_fn(*args)
        await assert_books_balance()
        return result

    return run_raw(backend, audited, **kwargs)


def run_raw(backend: str, async_fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Run without the audit, for tests that break the run on purpose."""
    if backend == EPOLL:
        return trio.run(async_fn, *args, **kwargs)
    assert backend == RING
    return uring_trio.run(async_fn, *args, backend="io_uring", **kwargs)


def start_guest_run(backend: str, async_fn: Callable[..., Awaitable[Any]], **kwargs: Any) -> None:
    if backend == EPOLL:
        trio.lowlevel.start_guest_run(async_fn, **kwargs)
    else:
        uring_trio.start_guest_run(async_fn, backend="io_uring", **kwargs)


def io_statistics() -> Any:
    return trio.lowlevel.current_statistics().io_statistics


def io_manager() -> Any:
    """The manager of the current run: private, and the very thing under test."""
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager


@contextlib.contextmanager
def before_wakes(act: Callable[[], object]) -> Iterator[None]:
    """Have ``act()`` called each time that something has come, and nobody is woken yet."""
    manager = io_manager()
    process = manager.process_events

    def act_and_process(events: Any) -> None:
        if events:
            act()
        process(events)

    manager.process_events = act_and_process
    try:
        yield
    finally:
        del manager.process_events


class Sitter:
    """An occupant of slots that notes what it is told."""

    task = None
    reading = False

    def __init__(self) -> None:
        self.told: list[Any] = []

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        self.told.append((slot, res, flags, offset))

    def lose(self) -> None:
        self.told.append("lose")

    def dispose(self, res: int) -> None:
        self.told.append(("dispose", res))

    def release(self) -> None:
        self.told.append("release")


async def assert_books_balance() -> None:
    """Nothing in flight, no lease out, no waiter; gives late cqes time to arrive."""
    deadline = time.monotonic() + BOOKS_TIMEOUT_S
    while problems := unbalanced():
        if time.monotonic() > deadline:
            raise BooksError(f"{problems} in {io_statistics()}")
        await trio.lowlevel.checkpoint()


class Canary:
    """Counts how many of them are alive: in a frame, a field or a cycle of whoever holds it."""

    alive = 0

    def __init__(self) -> None:
        Canary.alive += 1

    def __del__(self) -> None:
        Canary.alive -= 1


def unbalanced() -> list[str]:
    """What is still open in the current run, apart from trio's own waiting reader."""
    statistics = io_statistics()
    limits = {"tasks_waiting_read": INTERNAL_READERS, "tasks_waiting_write": 0}
    if statistics.backend == RING:
        limits |= {"in_flight": internal_polls(), "leases_out": 0, "stale_cqes": 0}
    return [name for name, limit in limits.items() if getattr(statistics, name) > limit]


def open_fds() -> dict[int, str]:
    """This process's file descriptors and what they are, without the one used to look."""
    return {fd: file.words for fd, file in process_books.open_files().items()}


def running_time() -> float:
    """A clock, in seconds, that stands still while this thread waits in line for a CPU.

    For bounds of how late something is: what other work takes of the machine is not late.
    """
    in_line_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.monotonic() - in_line_ns / 1e9


@contextlib.contextmanager
def no_new_fds(*, collecting: bool = False) -> Iterator[None]:
    """Fail if a file is open at the end that was not at the start, or once more than then.

    What only the garbage collector would close counts as open, as it is to everybody else
    until some later collection: who holds a file must not be part of a cycle. So there is no
    collection meanwhile, but with *collecting*.
    """
    book = process_books.Descriptors()
    with no_collection():
        yield
        left = process_books.stays(book, bound_s=FDS_TIMEOUT_S, collecting=collecting)
    if left:
        gc.collect()
        how = "closed by the garbage collector alone" if book.more() != left else "left open"
        raise AssertionError(f"file descriptors {how}: {left}")


async def cpu_share_asleep(window_s: float, allowed: float) -> float:
    """Sleep for *window_s* while nothing can move: how much of a core this process took.

    What a wait costs it costs all the time, so more than is *allowed* must be so twice. What was
    still to be done of the work before it (a busy machine's soft interrupts are accounted to us)
    is done after the first time. A collection takes more than what is allowed, in a pytest that
    has seen many tests.
    """
    share = 1.0
    with no_collection():
        for _ in range(2):
            cpu = process_books.Cpu()
            await trio.sleep(window_s)
            share = cpu.sum()
            if share <= allowed:
                break
    return share


def fill(sock: stdlib_socket.socket) -> int:
    """Send until the kernel takes no more; the number of bytes that it took."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 65536)
    return sent


def drain(sock: stdlib_socket.socket) -> bytes:
    """Receive all that is there."""
    chunks = []
    with contextlib.suppress(BlockingIOError):
        while chunk := sock.recv(1 << 20):
            chunks.append(chunk)
    return b"".join(chunks)


def drain_messages(sock: stdlib_socket.socket) -> list[bytes]:
    """Receive all messages that are there, each by itself."""
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(sock.recv(1 << 20))
    return messages


SO_MEMINFO, SK_MEMINFO_DROPS, SK_MEMINFO_VARS = 55, 8, 9  # <linux/sock_diag.h>


def drops(sock: Any) -> int:
    """Datagrams that came to this socket and were not for its user: no room, or wrong."""
    size = 4 * SK_MEMINFO_VARS
    numbers = array.array("I", sock.getsockopt(stdlib_socket.SOL_SOCKET, SO_MEMINFO, size))
    return int(numbers[SK_MEMINFO_DROPS])


BAD_SIZE = 100  # bytes; up to 76 are verified before anybody is woken


def bad_datagram(source_port: int, port: int) -> bytes:
    """A datagram of UDP, with its header, for a raw socket: its checksum is wrong."""
    header = struct.pack("!HHHH", source_port, port, 8 + BAD_SIZE, 0xBEEF)
    return header + bytes(BAD_SIZE)


@contextlib.contextmanager
def nonblocking_pair(
    type_: int = stdlib_socket.SOCK_STREAM,
) -> Iterator[tuple[stdlib_socket.socket, stdlib_socket.socket]]:
    """Two connected stdlib UNIX sockets, for tests of readiness."""
    a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, type_)
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


async def tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Two connected trio TCP sockets over loopback: the connecting and the accepted one."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = trio.socket.socket()
        await client.connect(listener.getsockname())
        server, _ = await listener.accept()
    return client, server


async def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two connected SocketStreams over loopback TCP."""
    client, server = await tcp_pair()
    return trio.SocketStream(client), trio.SocketStream(server)


async def expect_exception(
    error: type[BaseException], fn: Callable[..., Awaitable[Any]], *args: Any
) -> None:
    """For nurseries: ``fn(*args)`` must raise ``error``."""
    try:
        await fn(*args)
    except error:
        return
    raise AssertionError(f"{fn} did not raise {error.__name__}")
