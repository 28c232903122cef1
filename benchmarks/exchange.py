"""Load by Python: ping-pong with a server that speaks a protocol, TLS too.

One request is under way on each connection.

The load is bytes that were made beforehand, from a process that is pinned to the load's core,
and an answer is over when it ends as every answer does: so what Python costs here is a send, a
receive and a comparison. It is the load that limits the rate, not what limits the server's CPU.
"""

from __future__ import annotations

import base64
import contextlib
import selectors
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import system_calls
from benchmarks.measurement import Measurement
from benchmarks.observe import cpu_ns, peak_rss_kib
from benchmarks.processes import cores_for_server_and_load, pinned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers import Peer

WARMUP_S = 0.5  # hypercorn's and h11's caches, and CPython's
LIMIT_S = 10.0  # for an answer
RECEIVE_BYTES = 65536

HTTP_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MESSAGE = b"x" * 64


@dataclass(frozen=True)
class Exchange:
    """What goes to and fro on a connection.

    Attributes:
      greeting: sent first, and answered up to a blank line; nothing for no greeting.
      request: sent again and again.
      answer_end: how every answer ends.
      is_secret: it is under TLS.
      unit: what an exchange is called.
    """

    greeting: bytes
    request: bytes
    answer_end: bytes
    is_secret: bool = False
    unit: str = "request"


def masked_frame(message: bytes) -> bytes:
    """A WebSocket client's text frame, RFC 6455 section 5.2; the mask is all zeros."""
    assert len(message) < 126
    return bytes([0x81, 0x80 | len(message)]) + bytes(4) + message


WEBSOCKET_GREETING = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % base64.b64encode(bytes(16))
)
HTTP = Exchange(b"", HTTP_REQUEST, b"\r\n\r\nhello")
WEBSOCKET = Exchange(WEBSOCKET_GREETING, masked_frame(MESSAGE), MESSAGE, unit="message")
TLS = Exchange(b"", MESSAGE, MESSAGE, is_secret=True, unit="message")


@dataclass
class Client:
    """A connection, what has come of an answer, and when its request left."""

    conn: socket.socket
    received: bytes = b""
    sent_ns: int = 0


@contextlib.contextmanager
def connected(port: int, count: int, exchange: Exchange) -> Iterator[list[Client]]:
    """Connections that have been greeted, and were answered that; closed at the end."""
    with contextlib.ExitStack() as stack:
        clients = []
        context = client_context() if exchange.is_secret else None
        for _ in range(count):
            conn = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                conn = context.wrap_socket(conn)
            stack.enter_context(conn)
            if exchange.greeting:
                conn.sendall(exchange.greeting)
                receive_until(conn, b"\r\n\r\n")
            clients.append(Client(conn))
        yield clients


def client_context() -> ssl.SSLContext:
    """TLS with whoever is there: the server is our own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def receive_until(conn: socket.socket, end: bytes) -> bytes:
    """All that comes, up to and with *end*, after which nothing may come.

    Raises:
      RuntimeError: the server closed the connection.
    """
    received = b""
    while not received.endswith(end):
        chunk = conn.recv(RECEIVE_BYTES)
        if not chunk:
            raise RuntimeError(f"the server hung up after {received[:200]!r}")
        received += chunk
    return received


class Load:
    """Requests on all connections, and what is counted meanwhile."""

    def __init__(self, clients: list[Client], exchange: Exchange) -> None:
        self.exchange = exchange
        self.selector = selectors.EpollSelector()
        self.latencies_ns: list[int] = []
        self.errors = 0
        for client in clients:
            self.selector.register(client.conn, selectors.EVENT_READ, client)
            client.conn.setblocking(False)
            self.send(client)

    def send(self, client: Client) -> None:
        """The next request."""
        client.sent_ns = time.perf_counter_ns()
        client.conn.send(self.exchange.request)

    def run(self, seconds: float) -> int:
        """Answer by answer, for so long; the time that it took, in nanoseconds."""
        self.latencies_ns.clear()
        started = now = time.perf_counter_ns()
        end = started + round(seconds * 1e9)
        while now < end and not self.errors:
            ready = self.selector.select(LIMIT_S)
            if not ready:
                self.errors += 1  # nobody answers
            for key, _ in ready:
                self.receive(key.data)
            now = time.perf_counter_ns()
        return now - started

    def receive(self, client: Client) -> None:
        """What has come; if it is the whole answer, the next request."""
        try:
            chunk = client.conn.recv(RECEIVE_BYTES)
        except ssl.SSLWantReadError:
            return  # of TLS itself, a session ticket, or a part of a record
        client.received += chunk
        if client.received.endswith(self.exchange.answer_end):
            client.received = b""
            self.latencies_ns.append(time.perf_counter_ns() - client.sent_ns)
            self.send(client)
        elif not chunk:
            self.errors += 1


@dataclass(frozen=True)
class Spoken:
    """An exchange on so many connections."""

    exchange: Exchange
    connections: int

    @property
    def unit(self) -> str:
        """As the protocol calls it."""
        return self.exchange.unit

    @property
    def about(self) -> str:
        """With the number."""
        return f"ping-pong by a client in Python; {self.connections:,} connections"

    def missing(self) -> str | None:
        """It needs nothing."""
        return None

    def seconds(self, seconds: float) -> float:
        """Warm-up and window."""
        return WARMUP_S + seconds

    def measure(self, peer: Peer, seconds: float, *, count_calls: bool = False) -> Measurement:
        """Start a server, warm it up, load it, and stop it."""
        _, load_core = cores_for_server_and_load()
        with (
            peer.start() as server,
            pinned([load_core]),
            connected(server.port, self.connections, self.exchange) as clients,
            contextlib.ExitStack() as stack,
        ):
            load = Load(clients, self.exchange)
            with load.selector:
                load.run(WARMUP_S)
                fds: tuple[int, ...] = ()
                if count_calls:
                    fds = stack.enter_context(system_calls.counters(server.pid))
                before = cpu_ns(server.pid)
                elapsed_ns = load.run(seconds)
                server_cpu_ns = cpu_ns(server.pid) - before
                calls = system_calls.read(fds) if count_calls else None
            latencies = sorted(load.latencies_ns)
            return Measurement(
                units=len(latencies),
                elapsed_ns=elapsed_ns,
                cpu_ns=server_cpu_ns,
                errors=load.errors,
                p50_ns=latencies[len(latencies) // 2] if latencies else 0,
                p99_ns=latencies[len(latencies) * 99 // 100] if latencies else 0,
                peak_kib=peak_rss_kib(server.pid),
                calls=calls,
            )
