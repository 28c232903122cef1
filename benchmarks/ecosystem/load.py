"""Ping-pong with a server that speaks a protocol: one request under way on each connection.

The load is bytes that were made beforehand, from a process that is pinned to the load's core,
and an answer is over when it ends as every answer does: so what Python costs here is a send, a
receive and a comparison. It is the load that limits the rate, not what limits the server's CPU.
"""

from __future__ import annotations

import base64
import contextlib
import math
import selectors
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.observe import cpu_ns
from benchmarks.processes import cores_for_server_and_load, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    """

    greeting: bytes
    request: bytes
    answer_end: bytes


def masked_frame(message: bytes) -> bytes:
    """A WebSocket client's text frame, RFC 6455 section 5.2; the mask is all zeros."""
    assert len(message) < 126
    return bytes([0x81, 0x80 | len(message)]) + bytes(4) + message


WEBSOCKET_GREETING = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % base64.b64encode(bytes(16))
)
HTTP = Exchange(b"", HTTP_REQUEST, b"\r\n\r\nhello")
WEBSOCKET = Exchange(WEBSOCKET_GREETING, masked_frame(MESSAGE), MESSAGE)


@dataclass(frozen=True)
class ExchangeReport:
    """What was seen in the measured window.

    Attributes:
      requests: answered.
      elapsed_ns: the length of the window, as it really was.
      errors: connections that broke, and answers that did not come; the first ends the run.
      server_cpu_ns: CPU time, user and system, of the whole server process.
      p50_ns: median of the time to an answer.
    """

    requests: int
    elapsed_ns: int
    errors: int
    server_cpu_ns: int
    p50_ns: int


METRICS: dict[str, Callable[[ExchangeReport], float]] = {
    "cpu_us": lambda each: each.server_cpu_ns / 1000 / each.requests if each.requests else math.nan,
    "per_second": lambda each: each.requests * 1e9 / each.elapsed_ns if each.elapsed_ns else 0.0,
    "p50_us": lambda each: each.p50_ns / 1000,
}


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
        for _ in range(count):
            conn = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
            stack.enter_context(conn)
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if exchange.greeting:
                conn.sendall(exchange.greeting)
                receive_until(conn, b"\r\n\r\n")
            clients.append(Client(conn))
        yield clients


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
        chunk = client.conn.recv(RECEIVE_BYTES)
        client.received += chunk
        if client.received.endswith(self.exchange.answer_end):
            client.received = b""
            self.latencies_ns.append(time.perf_counter_ns() - client.sent_ns)
            self.send(client)
        elif not chunk:
            self.errors += 1


def measure(peer: Peer, exchange: Exchange, connections: int, seconds: float) -> ExchangeReport:
    """Start a server, warm it up, load it, and stop it."""
    _, load_core = cores_for_server_and_load()
    with (
        peer.start() as server,
        pinned([load_core]),
        connected(server.port, connections, exchange) as clients,
    ):
        load = Load(clients, exchange)
        with load.selector:
            load.run(WARMUP_S)
            before = cpu_ns(server.pid)
            elapsed_ns = load.run(seconds)
            server_cpu_ns = cpu_ns(server.pid) - before
        latencies = sorted(load.latencies_ns)
        return ExchangeReport(
            requests=len(latencies),
            elapsed_ns=elapsed_ns,
            errors=load.errors,
            server_cpu_ns=server_cpu_ns,
            p50_ns=latencies[len(latencies) // 2] if latencies else 0,
        )
