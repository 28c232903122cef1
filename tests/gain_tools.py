"""What the tests of ``uring_trio.gain`` share: a recording handler, servers, clients, books.

A server runs either in threads of its own, with blocking clients in the test
(``server_in_thread``), or in the test's own run, where the test is a task of the worker
and may use connections as it likes (``serving``). When either ends, the books must balance.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import socket as stdlib_socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import harness
import outcome
import pytest
import trio
import trio.lowlevel

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

needs_ring = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)
# For modules: async tests run on the ring, and all are skipped where there is none.
ON_RING = [needs_ring, pytest.mark.differential, pytest.mark.ring_only]

# Everything waited for here comes within milliseconds; the bound makes a hang a failure.
BOUND_S = 5.0
WORKERS = 4
LOOPBACK = "tcp://127.0.0.1:0"
LOOPBACK_UDP = "udp://127.0.0.1:0"
PAGE = 4096
CLOGGING = bytes(8 << 20)  # more than the kernel's buffers of one connection hold
PER_CONNECTION = ("on_accept", "on_read", "on_write", "on_eof", "on_close")

MODES = ("def", "async def", "async_handler")
Mode = str


class Boom(Exception):
    """What tests raise on purpose."""


class Event(NamedTuple):
    name: str
    conn: gain.Conn
    value: Any = None


class Counts(NamedTuple):
    accept: int
    read: int
    write: int
    close: int


class Recorder(gain.EventHandler):
    """Notes every call, checks that no two of a connection overlap, and acts as told.

    ``Recorder(on_read=echo)`` calls ``echo(conn, n)`` in its ``on_read``.
    """

    def __init__(self, **actions: Callable[..., Any]) -> None:
        self.actions = actions
        self.events: list[Event] = []
        self.starts = 0
        self.faults: list[BaseException] = []
        self._inside: dict[int, str] = {}

    @contextlib.contextmanager
    def recorded(self, name: str, conn: gain.Conn, value: Any = None) -> Iterator[None]:
        other = self._inside.setdefault(id(conn), name)
        if other is not name:
            self.faults.append(AssertionError(f"{name} of {conn!r} called inside {other}"))
        self.events.append(Event(name, conn, value))
        try:
            yield
        except Boom:
            raise
        except Exception as exc:
            self.faults.append(exc)
            raise
        finally:
            self._inside.pop(id(conn), None)

    def act(self, name: str, *args: Any) -> Any:
        action = self.actions.get(name)
        return None if action is None else action(*args)

    def on_start(self, server: gain.Server) -> Any:
        self.starts += 1
        return self.act("on_start", server)

    def on_accept(self, conn: gain.Conn) -> Any:
        with self.recorded("on_accept", conn):
            self.act("on_accept", conn)

    def on_read(self, conn: gain.Conn, n: int) -> Any:
        with self.recorded("on_read", conn, n):
            self.act("on_read", conn, n)

    def on_write(self, conn: gain.Conn, n: int) -> Any:
        with self.recorded("on_write", conn, n):
            self.act("on_write", conn, n)

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> Any:
        with self.recorded("on_close", conn, err):
            self.act("on_close", conn, err)

    def values(self, name: str, conn: gain.Conn | None = None) -> list[Any]:
        events = list(self.events)
        return [e.value for e in events if e.name == name and (conn is None or e.conn is conn)]

    def names(self, conn: gain.Conn | None = None) -> list[str]:
        return [e.name for e in list(self.events) if conn is None or e.conn is conn]

    @property
    def conns(self) -> list[gain.Conn]:
        """All connections, in the order of their first callback."""
        return list({id(e.conn): e.conn for e in list(self.events)}.values())

    @property
    def conn(self) -> gain.Conn:
        (conn,) = self.conns
        return conn

    def counts(self) -> Counts:
        names = self.names()
        return Counts(*(names.count(f"on_{field}") for field in Counts._fields))

    def reached(self, counts: tuple[int, int, int, int]) -> bool:
        return all(have >= want for have, want in zip(self.counts(), counts, strict=True))

    def errors(self) -> list[BaseException | None]:
        return self.values("on_close")

    def verify(self) -> None:
        """What is true of every handler once its server has ended."""
        if self.faults:
            raise self.faults[0]
        for conn in self.conns:
            names = self.names(conn)
            if conn.local_addr().network == "udp":
                assert not {"on_accept", "on_close", "on_eof"} & set(names), names
            else:
                assert names.count("on_accept") == names.count("on_close") == 1, names
                assert names[0] == "on_accept", names
                assert names[-1] == "on_close", names


class AsyncRecorder(Recorder):
    """The same with ``async def``, each of which yields before and after it acts."""

    async def _call(self, name: str, conn: gain.Conn, *values: Any) -> None:
        with self.recorded(name, conn, *values):
            await trio.lowlevel.checkpoint()
            result = self.act(name, conn, *values)
            if inspect.isawaitable(result):
                await result
            await trio.lowlevel.checkpoint()

    async def on_start(self, server: gain.Server) -> None:
        await trio.lowlevel.checkpoint()
        super().on_start(server)

    async def on_accept(self, conn: gain.Conn) -> None:
        await self._call("on_accept", conn)

    async def on_read(self, conn: gain.Conn, n: int) -> None:
        await self._call("on_read", conn, n)

    async def on_write(self, conn: gain.Conn, n: int) -> None:
        await self._call("on_write", conn, n)

    async def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        await self._call("on_close", conn, err)


def make_recorder(mode: Mode, **actions: Callable[..., Any]) -> Recorder:
    return AsyncRecorder(**actions) if mode == "async def" else Recorder(**actions)


def options_for(mode: Mode) -> dict[str, Any]:
    return {"async_handler": True} if mode == "async_handler" else {}


def echo(conn: gain.Conn, n: int) -> None:
    conn.write(conn.next(n))


def echo_and_close(conn: gain.Conn, n: int) -> None:
    conn.write(conn.next(n))
    conn.close()


def close_now(conn: gain.Conn, *_: object) -> None:
    conn.close()


# Waiting


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """For tests in a thread: poll until it is so, or fail."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {BOUND_S} s: {what or inspect.getsource(condition)}")
        time.sleep(0.001)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """For tests in a run."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {BOUND_S} s: {what or inspect.getsource(condition)}")
        await trio.sleep(0.0005)


# Servers


def busy_threads() -> set[threading.Thread]:
    """All threads but the idle ones that trio keeps for later."""
    return {t for t in threading.enumerate() if not re.fullmatch(r"Trio thread \d+", t.name)}


def left_over(server: gain.Server) -> dict[str, int]:
    """What a worker still holds; nothing of it may be left when it has ended."""
    held = ("connections", "buffers_leased", "bytes_buffered", "operations_in_flight")
    found = {}
    for index, worker in enumerate(server.statistics().workers):
        for name in held:
            if value := getattr(worker, name):
                found[f"{name} of worker {index}"] = value
    return found


def assert_ended(server: gain.Server, handler: gain.EventHandler) -> None:
    assert not server.is_running()
    assert server.active_connections() == 0
    assert left_over(server) == {}
    if isinstance(handler, Recorder):
        handler.verify()


@contextlib.contextmanager
def server_in_thread(
    handler: gain.EventHandler,
    address: str | list[str] = LOOPBACK,
    *,
    workers: int = WORKERS,
    **options: Any,
) -> Iterator[gain.Server]:
    """A started server, shut down at the end if the test did not; then its books."""
    threads = busy_threads()
    server = gain.Server(handler, gain.Config(workers=workers, **options))
    ends: list[outcome.Outcome[None]] = []
    thread = threading.Thread(
        target=lambda: ends.append(outcome.capture(server.start, address)), name="server.start"
    )
    thread.start()
    try:
        wait_until(lambda: server.is_running() or not thread.is_alive(), "server runs")
        for end in ends:
            end.unwrap()
        yield server
    finally:
        server.shutdown(1)
        thread.join(BOUND_S)
    assert not thread.is_alive(), "start() does not return"
    for end in ends:
        end.unwrap()
    assert_ended(server, handler)
    wait_until(lambda: busy_threads() <= threads, f"threads are left: {busy_threads() - threads}")


@contextlib.asynccontextmanager
async def serving(
    handler: gain.EventHandler,
    address: str | list[str] = LOOPBACK,
    *,
    workers: int = 1,
    **options: Any,
) -> AsyncIterator[gain.Server]:
    """A server with one worker in the test's own run; the test's task is one of the worker's."""
    server = gain.Server(handler, gain.Config(workers=workers, **options))
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, address)
        try:
            yield server
        except trio.Cancelled:
            raise
        except BaseException as exc:  # noqa: BLE001 - raised below, without a group around it
            failure = exc
            nursery.cancel_scope.cancel()
        else:
            server.async_shutdown(1)
    if failure is not None:
        raise failure
    assert_ended(server, handler)


# Clients


def connect(server: gain.Server) -> stdlib_socket.socket:
    """A blocking client, of TCP or UDP."""
    address = server.addresses()[0]
    if address.network == "tcp":
        return stdlib_socket.create_connection(address[:2], timeout=BOUND_S)
    client = stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
    client.settimeout(BOUND_S)
    client.connect(address)
    return client


async def open_client(server: gain.Server) -> trio.SocketStream:
    """A TCP client in the server's own run."""
    client = trio.socket.socket()
    await client.connect(server.addresses()[0])
    return trio.SocketStream(client)


@contextlib.asynccontextmanager
async def connected(
    handler: Recorder, **options: Any
) -> AsyncIterator[tuple[gain.Conn, trio.SocketStream]]:
    """A server in this run, a client, and the server's connection to it, accepted."""
    async with serving(handler, **options) as server, await open_client(server) as client:
        await until(lambda: handler.conns, "a connection is accepted")
        await until(lambda: not handler._inside, "on_accept returns")
        yield handler.conn, client


def receive_exactly(client: stdlib_socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = client.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


async def read_exactly(client: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    with trio.fail_after(BOUND_S):
        while len(data) < size:
            chunk = await client.receive_some(size - len(data))
            if not chunk:
                break
            data += chunk
    return bytes(data)


async def read_to_end(client: trio.SocketStream) -> bytes:
    with trio.fail_after(BOUND_S):
        return b"".join([chunk async for chunk in client])


def reset(client: stdlib_socket.socket | trio.socket.SocketType) -> None:
    """Close with RST."""
    linger = struct.pack("ii", 1, 0)
    client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, linger)
    client.close()


def socket_option(conn: gain.Conn, level: int, option: int) -> int:
    """Of the very socket, whatever it is set up for."""
    with stdlib_socket.socket(fileno=os.dup(conn.fileno())) as sock:
        return sock.getsockopt(level, option)
