"""What the tests of ``uring_trio.gain`` share: handlers, servers, clients, books, scenarios.

A server runs either in threads of its own, with blocking clients in the test
(``server_in_thread``), or in the test's own run, where the test is a task of the worker
and may use connections as it likes (``serving``). When either ends, the books must balance.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import socket as stdlib_socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import harness
import outcome
import process_books
import pytest
import trio
import trio.lowlevel
import trustme

from uring_trio import gain
from uring_trio.gain._address import parse_all
from uring_trio.gain._config import make_config
from uring_trio.gain._listen import Listener, bind_copies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from uring_trio.gain._address import Spec

# Everything waited for here comes within milliseconds; the bound makes a hang a failure. On an
# idle machine it is less than what would end a hang in the end: a stuck input's 10 s.
BOUND_S = 5.0 * harness.SLOWNESS
WORKERS = 4
LOOPBACK = "tcp://127.0.0.1:0"
LOOPBACK_UDP = "udp://127.0.0.1:0"
PAGE = 4096
CLOGGING = bytes(8 << 20)  # more than the kernel's buffers of one connection hold
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


class Sink(Recorder):
    """Keeps all that comes, and answers nothing by itself."""

    def __init__(self, **actions: Callable[..., Any]) -> None:
        super().__init__(**actions)
        self._received: dict[int, bytearray] = {}

    def on_read(self, conn: gain.Conn, n: int) -> None:
        with self.recorded("on_read", conn, n):
            self._received.setdefault(id(conn), bytearray()).extend(conn.next(n))
            self.act("on_read", conn, n)

    def received_size(self, conn: gain.Conn | None = None) -> int:
        """The bytes of a connection, or of all."""
        found = self._received if conn is None else [id(conn)]
        return sum(len(self._received.get(key, b"")) for key in found)

    def received(self, conn: gain.Conn) -> bytes:
        return bytes(self._received.get(id(conn), b""))


class HalfCloser(Recorder):
    """Has the connection stay open behind the peer's end, and notes what of its input is left."""

    def on_eof(self, conn: gain.Conn) -> Any:
        with self.recorded("on_eof", conn, conn.inbound_buffered()):
            self.act("on_eof", conn)


def make_recorder(mode: Mode, **actions: Callable[..., Any]) -> Recorder:
    return AsyncRecorder(**actions) if mode == "async def" else Recorder(**actions)


def options_for(mode: Mode) -> dict[str, Any]:
    return {"async_handler": True} if mode == "async_handler" else {}


def echo(conn: gain.Conn, n: int) -> None:
    conn.write(conn.next(n))


def consume(conn: gain.Conn, n: int) -> None:
    conn.next(n)


def echo_and_close(conn: gain.Conn, n: int) -> None:
    conn.write(conn.next(n))
    conn.close()


def close_now(conn: gain.Conn, *_: object) -> None:
    conn.close()


def writer_of(data: bytes, *, close: bool = False) -> Recorder:
    """A handler that writes ``data`` to every client at once, and then perhaps closes."""

    def write(conn: gain.Conn) -> None:
        conn.write(data)
        if close:
            conn.close()

    return Recorder(on_accept=write)


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


def wait_errors(handler: Recorder, count: int = 1) -> list[BaseException | None]:
    wait_until(lambda: len(handler.errors()) >= count, f"{count} on_close")
    return handler.errors()


def the_error(handler: Recorder) -> BaseException | None:
    """With which the only connection closes."""
    (error,) = wait_errors(handler)
    return error


# Servers


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), stdlib_socket.socket(stdlib_socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no ::1 on this machine")


busy_threads = process_books.busy_threads


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
    threads = process_books.Threads()
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
    assert process_books.stays(threads, bound_s=BOUND_S) == []


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


def connect(
    to: gain.Server | gain.Address | Listener | stdlib_socket.socket,
    host: str | None = None,
    *,
    receive_buffer: int = 0,
    send_buffer: int = 0,
) -> stdlib_socket.socket:
    """A blocking client of a server's first address, of a listener, or of an address.

    It goes to *host* instead of the address's own, where one is named, and its buffers are as
    small as wished.
    """
    network, address = address_of(to)
    families = {1: stdlib_socket.AF_UNIX, 2: stdlib_socket.AF_INET, 4: stdlib_socket.AF_INET6}
    family = families[len(address)]
    if host is not None:
        address = (host, *address[1:2])
        family = stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET
    client = stdlib_socket.socket(
        family, stdlib_socket.SOCK_DGRAM if network == "udp" else stdlib_socket.SOCK_STREAM
    )
    client.settimeout(BOUND_S)
    if receive_buffer:  # before connect, which fixes the window's scale
        client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, receive_buffer)
    if send_buffer:
        client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, send_buffer)
    try:
        client.connect(address[0] if family == stdlib_socket.AF_UNIX else address)
    except BaseException:
        client.close()
        raise
    return client


def address_of(
    to: gain.Server | gain.Address | Listener | stdlib_socket.socket,
) -> tuple[str, tuple[Any, ...]]:
    """The network and the tuple of what a client is to connect to."""
    if isinstance(to, stdlib_socket.socket):
        name = to.getsockname()
        return "stream", name if isinstance(name, tuple) else (name,)
    if isinstance(to, gain.Server):
        address = to.addresses()[0]
    else:
        address = to.address if isinstance(to, Listener) else to
    return address.network, tuple(address)


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


def receive_all(client: stdlib_socket.socket) -> bytes:
    """All until the peer's FIN."""
    data = bytearray()
    while chunk := client.recv(MIB):
        data += chunk
    return bytes(data)


def round_trip(client: stdlib_socket.socket, data: bytes) -> None:
    """Send ``data`` (few bytes) and demand them back."""
    client.sendall(data)
    assert receive_exactly(client, len(data)) == data


def assert_echoes(server: gain.Server) -> None:
    """A client of its own has its answer."""
    with connect(server) as client:
        round_trip(client, b"question")


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
        thread.join(2 * BOUND_S)
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
    assert done.wait(BOUND_S), "the worker does not run what was asked of it"
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


# TLS


TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3
NAME = "gain.example.org"

versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


# At import, because server and client ask for it on different threads.
AUTHORITY = trustme.CA()


def server_context(version: ssl.TLSVersion = TLS_1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    AUTHORITY.issue_cert(NAME).configure_cert(context)
    return context


def client_context(*, trusting: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusting:
        AUTHORITY.configure_trust(context)
    return context


CHUNK = 1 << 16


def secure(
    raw: stdlib_socket.socket,
    context: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """Make a blocking client one of TLS; an end without close_notify raises."""
    return (context or client_context()).wrap_socket(
        raw, server_hostname=NAME, suppress_ragged_eofs=False, session=session
    )


def connect_tls(
    server: gain.Server,
    context: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    raw = connect(server)
    try:
        return secure(raw, context, session)
    except BaseException:
        raw.close()
        raise


class Peer:
    """A client that leaves it to the test when which of its bytes are sent."""

    def __init__(self, raw: stdlib_socket.socket, context: ssl.SSLContext | None = None) -> None:
        self.raw = raw
        self._received = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = (context or client_context()).wrap_bio(
            self._incoming, self._outgoing, server_hostname=NAME
        )

    def advance(self) -> bytes:
        """What the handshake wants to have sent; ``b""`` and done, or ``b""`` and waiting."""
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def shake_hands(self, *, at_once: int = CHUNK) -> None:
        """Shake hands, so many bytes a packet."""
        while True:
            self.send(self.advance(), at_once=at_once)
            if self.ssl.version() is not None and self.is_done():
                return
            self.feed()

    def is_done(self) -> bool:
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def send(self, data: bytes, *, at_once: int = CHUNK) -> None:
        for start in range(0, len(data), at_once):
            self.raw.sendall(data[start : start + at_once])

    def alert(self) -> bytes:
        """What is to be sent after an error."""
        return self._outgoing.read()

    def seal(self, plaintext: bytes) -> bytes:
        self.ssl.write(plaintext)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        self._read()  # or OpenSSL says that it came after close_notify
        try:
            self.ssl.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def feed(self) -> bool:
        """Take in what the server has sent; False at its FIN."""
        ciphertext = self.raw.recv(CHUNK)
        self._incoming.write(ciphertext)
        return bool(ciphertext)

    def read_exactly(self, size: int) -> bytes:
        """So many bytes, or as many as there are before the server's close_notify."""
        while self._read() and len(self._received) < size:
            if not self.feed():
                raise ssl.SSLEOFError("no close_notify")
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def read_to_end(self) -> bytes:
        """All until the server's close_notify; raises if it sends none."""
        return self.read_exactly(1 << 40)

    def _read(self) -> bool:
        """Decrypt what has come; False if the last of it was a close_notify."""
        try:
            while data := self.ssl.read(CHUNK):
                self._received += data
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLZeroReturnError:
            pass
        return False


def speak_an_old_version(raw: stdlib_socket.socket) -> None:
    """To a server that wants TLS 1.3, and says so."""
    old = client_context()
    old.maximum_version = TLS_1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"):
        Peer(raw, old).shake_hands()


# Listening sockets


def bind(specs: Sequence[Spec], config: gain.Config, copies: int = 1) -> list[list[Listener]]:
    """At each address as many sockets."""
    return bind_copies(specs, config, [copies] * len(specs))


@contextlib.contextmanager
def bound(address: Any, copies: int = 1, **options: Any) -> Iterator[list[list[Listener]]]:
    workers = bind(parse_all(address), make_config(**options), copies)
    try:
        assert len(workers) == copies
        yield workers
    finally:
        for worker in workers:
            for listener in worker:
                listener.close()


@contextlib.contextmanager
def one(address: str, **options: Any) -> Iterator[Listener]:
    with bound(address, **options) as [[listener]]:
        yield listener


@contextlib.contextmanager
def refused(number: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    """What is in here must raise that error of the kernel, and leave no socket open."""
    with harness.no_new_fds(), pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        yield caught
    assert caught.value.errno == number


def again(listener: Listener) -> str:
    """The address of a second server at the same place."""
    return f"{listener.network}://{listener.address}"


def accepted(listener: Listener) -> stdlib_socket.socket:
    listener.sock.settimeout(BOUND_S)
    return listener.sock.accept()[0]


# What Gain tests in both of its architectures, as functions of the architecture


REQUEST = b"cindex%04dtestdata1234567890"
REPLY = b"cindex%04dTESTpayload12345"
REQUEST_SIZE = len(REQUEST % 0)
ROUNDTRIPS = 1000
SMALL = 128  # bytes; with ROUNDTRIPS, many times around any ring of buffers
MESSAGE = bytes(range(256)) * 2


@contextlib.contextmanager
def clients_of(server: gain.Server, count: int) -> Iterator[list[stdlib_socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server)) for _ in range(count)]


def address_for(network: str) -> str:
    return f"{network}://127.0.0.1:0"


def reply(conn: gain.Conn, n: int) -> None:
    request = conn.next(n)
    assert len(request) == REQUEST_SIZE
    conn.write(REPLY % int(request[6:10]))


def request_response(
    *,
    network: str = "tcp",
    clients: int = 8,
    workers: int = WORKERS,
    rounds: int = 1,
    mode: str = "def",
    **options: Any,
) -> Recorder:
    """Each client sends a request and has its own reply, in every round."""
    recorder = make_recorder(mode, on_read=reply)
    options |= options_for(mode)
    total = clients * rounds
    connections = clients if network == "tcp" else 0
    expected = Counts(connections, total, total, connections)
    with server_in_thread(recorder, address_for(network), workers=workers, **options) as server:
        with clients_of(server, clients) as sockets:
            for _ in range(rounds):
                for number, client in enumerate(sockets):
                    client.sendall(REQUEST % number)
                for number, client in enumerate(sockets):
                    assert receive_exactly(client, len(REPLY % 0)) == REPLY % number
        wait_until(lambda: recorder.reached(expected), "all callbacks")
    assert recorder.counts() == expected
    return recorder


def dialled_clients_are_counted(**options: Any) -> None:
    recorder = Recorder()
    with server_in_thread(recorder, **options) as server, clients_of(server, 8):
        wait_until(lambda: recorder.counts().accept == 8)
        assert server.active_connections() == 8


def connections_are_counted_until_they_close(**options: Any) -> None:
    recorder = Recorder(on_read=echo)
    with server_in_thread(recorder, **options) as server:
        with clients_of(server, 10):
            wait_until(lambda: server.active_connections() == 10)
        wait_until(lambda: server.active_connections() == 0)
        assert recorder.counts() == Counts(10, 0, 0, 10)


def ping_pong(network: str = "tcp", **options: Any) -> None:
    """A thousand small messages on one connection."""
    recorder = Recorder(on_read=echo)
    with server_in_thread(recorder, address_for(network), **options) as server:
        with connect(server) as client:
            for i in range(ROUNDTRIPS):
                message = b"%08d" % i * (SMALL // 8)
                client.sendall(message)
                assert receive_exactly(client, SMALL) == message
        wait_until(lambda: sum(recorder.values("on_write")) == ROUNDTRIPS * SMALL)
        assert recorder.values("on_read") == [SMALL] * ROUNDTRIPS


def shutdown_after_clients(network: str, *, times: int = 1, **options: Any) -> None:
    """Ten clients have their echo and close; then the server ends, however often it is told."""
    recorder = Recorder(on_read=echo)
    with server_in_thread(recorder, address_for(network), **options) as server:
        with clients_of(server, 10) as sockets:
            for client in sockets:
                client.sendall(MESSAGE)
            for client in sockets:
                assert receive_exactly(client, len(MESSAGE)) == MESSAGE
        for _ in range(times):
            server.shutdown()
            assert not server.is_running()
            assert server.active_connections() == 0
    connections = 10 if network == "tcp" else 0
    assert recorder.counts()._replace(write=10) == Counts(connections, 10, 10, connections)


def shutdown_with_connected_clients(**options: Any) -> None:
    recorder = Recorder()
    with (
        server_in_thread(recorder, **options) as server,
        clients_of(server, 10) as sockets,
    ):
        wait_until(lambda: recorder.counts().accept == 10)
        server.shutdown()
        assert recorder.errors() == [None] * 10
        assert [client.recv(1) for client in sockets] == [b""] * 10
    assert recorder.counts() == Counts(10, 0, 0, 10)


def close_in_on_read(mode: str, *, with_answer: bool, **options: Any) -> None:
    """The answer arrives, a later write of the client is no error, then comes the end."""

    def read(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        if with_answer:
            conn.write(data)
        conn.close()

    recorder = make_recorder(mode, on_read=read)
    options |= options_for(mode)
    with server_in_thread(recorder, **options) as server:
        with connect(server) as client:
            client.sendall(MESSAGE)
            if with_answer:
                assert receive_exactly(client, len(MESSAGE)) == MESSAGE
                client.sendall(MESSAGE)
            assert client.recv(1) == b""
        wait_until(lambda: recorder.counts().close == 1)
    assert recorder.counts() == Counts(1, 1, int(with_answer), 1)
    assert recorder.errors() == [None]


def addresses_of_connections(network: str, **options: Any) -> None:
    seen = []

    def read(conn: gain.Conn, n: int) -> None:
        seen.append((conn.local_addr(), conn.remote_addr()))
        echo(conn, n)

    recorder = Recorder(on_read=read)
    with server_in_thread(recorder, address_for(network), **options) as server:
        with connect(server) as client:
            client.sendall(MESSAGE)
            assert receive_exactly(client, len(MESSAGE)) == MESSAGE
            here, there = client.getsockname(), client.getpeername()
        assert server.addresses()[0] == there
    ((local, remote),) = seen
    assert (local, remote) == (there, here)
    assert str(local) == f"127.0.0.1:{there[1]}"
    assert str(remote) == f"127.0.0.1:{here[1]}"
    assert local.network == remote.network == network


def large_read(**options: Any) -> None:
    """What one send gave the kernel is one call, and can be had whole."""
    message = bytes(range(256)) * (4 * PAGE // 256)
    recorder = Recorder(on_read=echo)
    with (
        server_in_thread(recorder, **options) as server,
        connect(server) as client,
    ):
        client.sendall(message)
        assert receive_exactly(client, len(message)) == message
    assert recorder.values("on_read") == [len(message)]


def multiple_reads(mode: str, **options: Any) -> None:
    """Ten pages, each sent when the one before was read: ten calls of a page each."""
    pages = [bytes([i]) * PAGE for i in range(10)]
    received = []

    def read(conn: gain.Conn, n: int) -> None:
        received.append(conn.read(n))

    recorder = make_recorder(mode, on_read=read)
    options |= options_for(mode)
    with server_in_thread(recorder, **options) as server:
        with connect(server) as client:
            for count, page in enumerate(pages, start=1):
                client.sendall(page)
                wait_until(lambda: len(received) == count)  # noqa: B023  # waits in this turn
        wait_until(lambda: recorder.counts().close == 1)
    assert received == pages
    assert recorder.values("on_read") == [PAGE] * 10
    assert recorder.counts() == Counts(1, 10, 0, 1)


def shutdown_under_traffic(network: str, **options: Any) -> None:
    """Clients keep sending while the server ends."""
    stop = threading.Event()

    def traffic(client: stdlib_socket.socket) -> None:
        with contextlib.suppress(OSError):  # the server's end is not hidden from its clients
            while not stop.is_set():
                client.send(MESSAGE)
                if not client.recv(len(MESSAGE)):
                    client.close()

    recorder = Recorder(on_read=echo)
    with (
        server_in_thread(recorder, address_for(network), **options) as server,
        clients_of(server, 4) as sockets,
    ):
        threads = [threading.Thread(target=traffic, args=[client]) for client in sockets]
        try:
            for client, thread in zip(sockets, threads, strict=True):
                client.settimeout(0.1)
                thread.start()
            wait_until(lambda: recorder.counts().read >= 100)
            if network == "udp":
                assert server.active_connections() == 0
            server.shutdown()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
