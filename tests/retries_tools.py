"""What the tests of retries share: waits in which nothing can move, and what they may cost.

An operation whose wake-up was in vain must wait again: on no thread of the kernel's, asleep, and
back soon after it can go on. Stock trio is the control of what is delivered; it is none of what
the wait costs, since stock itself spins where a wanted bit of poll stays set.
"""

from __future__ import annotations

import array
import contextlib
import socket as stdlib_socket
import statistics
import time
from typing import TYPE_CHECKING, Any

import harness
import kernel_workers
import trio
import trio.testing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.socket import SocketType

# Long against the longest pause between two tries, 32 ms, and against the kernel's own 128.
WINDOW_S = 0.25
CPU_SHARE_MAX = 0.05
WAKE_MAX_S = 0.05
SHORT_WINDOW_S = 0.05  # where a sibling of the test has the long one
BOUND_S = 20.0

SMALL_BUFFER = 16 << 10  # bytes, so that little data clogs a connection


def on_the_ring() -> bool:
    return bool(harness.io_statistics().backend == harness.RING)


async def settle() -> None:
    """Until the other tasks wait; where stock spins, for some ticks."""
    if on_the_ring():
        await trio.testing.wait_all_tasks_blocked()
    else:
        for _ in range(5):
            await trio.lowlevel.checkpoint()


async def nothing_moves(window_s: float = WINDOW_S) -> None:
    """Sleep for a while in which no operation of the run can go on; on the ring, at no cost.

    In a shorter while than the usual one the CPU is not looked at: a few milliseconds of it say
    nothing.
    """
    await settle()
    share = await harness.cpu_share_asleep(window_s, CPU_SHARE_MAX)
    if on_the_ring():
        assert not kernel_workers.workers()
        assert not kernel_workers.retried()
        assert harness.io_statistics().leases_out == 0
        if window_s >= WINDOW_S:
            assert share <= CPU_SHARE_MAX, f"{share:.0%} of a core while nothing can move"


class Wakes:
    """How long after it could go on each of some waits has ended."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self._possible_at = 0.0

    def possible(self) -> None:
        """What is waited for has just become possible."""
        self._possible_at = time.monotonic()

    def woken(self) -> None:
        """The task that waited runs again."""
        self.delays_s.append(time.monotonic() - self._possible_at)

    def check(self) -> None:
        """Most of them were soon: the machine may be late for one, the pauses are never."""
        if on_the_ring():
            assert statistics.median(self.delays_s) < WAKE_MAX_S, self.delays_s


def small_buffers(*sockets: Any) -> None:
    for sock in sockets:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, SMALL_BUFFER)
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, SMALL_BUFFER)


def tcp_connection(family: int = stdlib_socket.AF_INET) -> tuple[Any, Any]:
    """Two connected TCP sockets of the standard library, with small buffers: client, server."""
    host = "127.0.0.1" if family == stdlib_socket.AF_INET else "::1"
    with stdlib_socket.socket(family) as listener:
        small_buffers(listener)
        listener.bind((host, 0))
        listener.listen()
        client = stdlib_socket.socket(family)
        small_buffers(client)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def unix_connection(type_: int = stdlib_socket.SOCK_STREAM) -> tuple[Any, Any]:
    pair = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, type_)
    small_buffers(*pair)
    return pair


def udp_connection() -> tuple[Any, Any]:
    a, b = (stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) for _ in range(2))
    for sock in (a, b):
        sock.bind(("127.0.0.1", 0))
    a.connect(b.getsockname())
    b.connect(a.getsockname())
    return a, b


def ours(sock: Any) -> SocketType:
    """The socket as trio's; it may be of any run."""
    return trio.socket.from_stdlib_socket(sock)


def data_of(size: int, seed: int = 0) -> bytes:
    """Bytes of which no part is like another: a hole or a repetition changes them."""
    numbers = array.array("I", range(seed << 20, (seed << 20) + size // 4))
    return numbers.tobytes()


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for thing in things:
            stack.callback(thing.close)
        yield


# TCP sends less than a segment into a small window only after its shortest timeout, 0.2 s.
QUIET_S = {stdlib_socket.AF_UNIX: 0.0, stdlib_socket.AF_INET: 0.3}


async def clog(sock: Any) -> None:
    """Send until the connection takes no more, also after a while."""
    quiet_since = time.monotonic()
    while True:
        if harness.fill(sock):
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since >= QUIET_S[sock.family]:
            return
        await trio.sleep(0.01)


async def read_all(peer: Any) -> bytes:
    """All that a socket of the standard library receives, read by a thread that may block."""

    def read() -> bytes:
        peer.setblocking(True)
        chunks = []
        while chunk := peer.recv(1 << 20):
            chunks.append(chunk)
        return b"".join(chunks)

    return await trio.to_thread.run_sync(read)


def time_stamps(sock: Any) -> None:
    """Have the kernel queue an error, so called, for everything that is sent."""
    so_timestamping, tx_software, software = 37, 1 << 1, 1 << 4
    sock.setsockopt(stdlib_socket.SOL_SOCKET, so_timestamping, tx_software | software)


async def until(condition: Callable[[], Any]) -> None:
    """Let the other tasks run until it is true."""
    with trio.fail_after(BOUND_S):
        while not condition():
            await trio.lowlevel.checkpoint()


async def until_over(value: Callable[[], int], limit: int) -> None:
    """Let the other tasks run until it is more than that."""
    await until(lambda: value() > limit)


# ---- every way to receive -----------------------------------------------------------------


async def _recv(sock: SocketType, size: int, flags: int) -> bytes:
    return await sock.recv(size, flags)


async def _recv_into(sock: SocketType, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await sock.recv_into(buffer, size, flags)])


async def _recvfrom(sock: SocketType, size: int, flags: int) -> bytes:
    return (await sock.recvfrom(size, flags))[0]


async def _recvfrom_into(sock: SocketType, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: (await sock.recvfrom_into(buffer, size, flags))[0]])


async def _recvmsg(sock: SocketType, size: int, flags: int) -> bytes:
    return (await sock.recvmsg(size, 0, flags))[0]


async def _recvmsg_into(sock: SocketType, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: (await sock.recvmsg_into([buffer], 0, flags))[0]])


RECEIVES: dict[str, Any] = {
    "recv": _recv,
    "recv_into": _recv_into,
    "recvfrom": _recvfrom,
    "recvfrom_into": _recvfrom_into,
    "recvmsg": _recvmsg,
    "recvmsg_into": _recvmsg_into,
}


async def _receive_some(sock: SocketType, size: int, flags: int) -> bytes:
    assert not flags
    return await trio.SocketStream(sock).receive_some(size)


#: Those of a byte stream as well.
STREAM_RECEIVES: dict[str, Any] = {"receive_some": _receive_some, **RECEIVES}
