"""What the tests of Gain's faults need beyond ``gain_tools``: big streams and odd clients.

Nothing here looks inside the server: it is used as its documentation says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import outcome
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uring_trio import gain

MIB = 1 << 20

# Long enough for what must not happen to happen, if it is going to.
QUIET_S = 0.15

# The errors of a connection that the peer reset, by what was being done.
RESETS = (errno.ECONNRESET, errno.EPIPE)

# Every arrangement of workers that a connection can live under.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "reactor-1": {"workers": 1},
    "reactor-2": {"workers": 2},
    "sharding-2": {"workers": 2, "architecture": "sharding"},
}
architectures = pytest.mark.parametrize(
    "options", list(ARCHITECTURES.values()), ids=list(ARCHITECTURES)
)


class Sink(gain_tools.Recorder):
    """Keeps all that comes, and answers nothing by itself."""

    def __init__(self, **actions: Callable[..., Any]) -> None:
        super().__init__(**actions)
        self._received: dict[int, bytearray] = {}

    def on_read(self, conn: gain.Conn, n: int) -> None:
        with self.recorded("on_read", conn, n):
            self._received.setdefault(id(conn), bytearray()).extend(conn.next(n))
            self.act("on_read", conn, n)

    def received_size(self, conn: gain.Conn) -> int:
        return len(self._received.get(id(conn), b""))

    def received(self, conn: gain.Conn) -> bytes:
        return bytes(self._received.get(id(conn), b""))


# Clients


def connect_to(
    address: gain.Address, *, receive_buffer: int = 0, send_buffer: int = 0
) -> stdlib_socket.socket:
    """A blocking client of any family, its buffers as small as wished."""
    families = {1: stdlib_socket.AF_UNIX, 2: stdlib_socket.AF_INET, 4: stdlib_socket.AF_INET6}
    datagrams = address.network == "udp"
    client = stdlib_socket.socket(
        families[len(address)],
        stdlib_socket.SOCK_DGRAM if datagrams else stdlib_socket.SOCK_STREAM,
    )
    client.settimeout(gain_tools.BOUND_S)
    if receive_buffer:  # before connect, which fixes the window's scale
        client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, receive_buffer)
    if send_buffer:
        client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, send_buffer)
    try:
        client.connect(address[0] if len(address) == 1 else tuple(address))
    except BaseException:
        client.close()
        raise
    return client


def receive_all(client: stdlib_socket.socket) -> bytes:
    """All until the peer's FIN."""
    data = bytearray()
    while chunk := client.recv(MIB):
        data += chunk
    return bytes(data)


def round_trip(client: stdlib_socket.socket, data: bytes) -> None:
    """Send ``data`` (few bytes) and demand them back."""
    client.sendall(data)
    assert gain_tools.receive_exactly(client, len(data)) == data


def push_until_stuck(client: stdlib_socket.socket, data: bytes) -> int:
    """Send of ``data`` until nothing was taken for a while; the bytes sent."""
    view = memoryview(data)
    timeout = client.gettimeout()
    client.settimeout(2 * QUIET_S)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += client.send(view[sent : sent + 65536])
    client.settimeout(timeout)
    return sent


def is_silent(client: stdlib_socket.socket) -> bool:
    """Whether for a while neither data nor a FIN comes."""
    timeout = client.gettimeout()
    client.settimeout(QUIET_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(timeout)
    return False


def pattern(size: int) -> bytes:
    """Bytes in which every 128 KiB differ from the others, so that a moved one shows."""
    words = struct.pack("<16384Q", *range(16384))
    return b"".join(words[8 * i :] + words[: 8 * i] for i in range(size // len(words) + 1))[:size]


@contextlib.contextmanager
def in_thread(fn: Callable[..., Any], *args: Any) -> Iterator[list[Any]]:
    """Run ``fn(*args)`` beside the block; after the block, its result is in the list."""
    results: list[outcome.Outcome[Any]] = []
    thread = threading.Thread(
        target=lambda: results.append(outcome.capture(fn, *args)), name="beside the test"
    )
    thread.start()
    values: list[Any] = []
    try:
        yield values
    finally:
        thread.join(2 * gain_tools.BOUND_S)
    assert results, f"{fn} does not end"
    values.append(results[0].unwrap())


# Looking at workers


def run_in_worker(conn: gain.Conn, fn: Callable[[], Any]) -> Any:
    """What ``fn()`` returns or raises in the worker of ``conn``, from another thread."""
    results: list[outcome.Outcome[Any]] = []
    done = threading.Event()

    def call() -> None:
        results.append(outcome.capture(fn))
        done.set()

    conn.call_soon_threadsafe(call)
    assert done.wait(gain_tools.BOUND_S), "the worker does not run what was asked of it"
    return results[0].unwrap()


def ring_of(conn: gain.Conn) -> Any:
    """The counters of the ring that serves ``conn``."""
    return run_in_worker(conn, harness.io_statistics)


def bytes_buffered(server: gain.Server) -> int:
    return sum(worker.bytes_buffered for worker in server.statistics().workers)


def resident_bytes() -> int:
    """This process's memory that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
