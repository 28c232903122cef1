"""Hostile clients, and for each a well-behaved one that is as busy.

``python -m benchmarks.gain.clients OPTIONS`` is one of them, in a process of its own. It
prints "started" when it works, goes on until its standard input ends, and prints what it
did as JSON.

A hostile client does what it does as fast as its kind allows. The well-behaved one in its
place is given the pace that the hostile one had, counted in the same operations of the
same size, so that both load the server, and the core that all clients share, alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOCKET_LIMIT_S = 10.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s

# A client that closes first keeps its port for a minute: 100 addresses times the 28,000
# ports of an unchanged ip_local_port_range are enough for 60 s at this pace, and others.
SOURCES = [f"127.0.1.{number}" for number in range(1, 101)]
CONNECTIONS_PER_S = 1000.0

STREAMS = 8  # connections of a hostile client that keeps them
WAITING_STREAMS = 64  # of one that waits for its answers, to be as busy
PIECE_BYTES = 64 << 10
STALLED = 32
STALL_S = 2.0  # then it goes, and another takes its place
STALL_LOOK_S = 0.05
BYTES_A_TURN = 64  # single sends on one connection before the next has its turn


@dataclass(frozen=True)
class ClientReport:
    """What a client did.

    Attributes:
      operations: connections made, or pieces sent.
      failures: operations whose answer was wrong or missing.
      elapsed_s: how long it worked.
      cpu_s: its CPU time, user and system.
    """

    operations: int
    failures: int
    elapsed_s: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        """The pace."""
        return self.operations / self.elapsed_s

    @property
    def busy(self) -> float:
        """The part of one core that it took."""
        return self.cpu_s / self.elapsed_s


class Clock:
    """Counts operations, paces them, and knows when it is over."""

    def __init__(self, pace: float | None) -> None:
        self.operations = 0
        self.failures = 0
        self._pace = pace
        self._ended = threading.Event()
        self._started = time.monotonic()
        self._cpu_started = time.process_time()
        threading.Thread(target=self._watch_input, daemon=True).start()

    def _watch_input(self) -> None:
        sys.stdin.read()
        self._ended.set()

    def running(self) -> bool:
        """Wait until the next operation is due; False when there is to be none."""
        if self._pace is not None:
            early = self.operations / self._pace - (time.monotonic() - self._started)
            if early > 0:
                self._ended.wait(early)
        return not self._ended.is_set()

    def wait(self, seconds: float) -> None:
        """Let time pass, but not beyond the end."""
        self._ended.wait(seconds)

    def report(self) -> ClientReport:
        """All until now."""
        return ClientReport(
            self.operations,
            self.failures,
            time.monotonic() - self._started,
            time.process_time() - self._cpu_started,
        )


def connect(port: int, source: str = "") -> socket.socket:
    """A connection without Nagle's delay."""
    conn = socket.create_connection(
        ("127.0.0.1", port), timeout=SOCKET_LIMIT_S, source_address=(source, 0)
    )
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return conn


def receive_exactly(conn: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at end of file.

    Not MSG_WAITALL: with a time-out Python's sockets are non-blocking, and that returns
    what there is.
    """
    pieces, missing = [], size
    while missing and (piece := conn.recv(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


# Clients that connect again for each operation.


def connect_often(clock: Clock, port: int, converse: Callable[[socket.socket, int], bool]) -> None:
    """Converse on one new connection after the other; it is closed afterwards."""
    while clock.running():
        number = clock.operations
        clock.operations += 1
        try:
            with connect(port, SOURCES[number % len(SOURCES)]) as conn:
                fine = converse(conn, number)
        except OSError:
            fine = False
        clock.failures += not fine


MESSAGE = bytes(range(256)) * 4


def reset(conn: socket.socket, number: int) -> bool:
    """Reset the connection: after its answer, or with the message still under way."""
    conn.sendall(MESSAGE)
    fine = number % 2 == 0 or receive_exactly(conn, len(MESSAGE)) == MESSAGE
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return fine


def half_close(conn: socket.socket, number: int) -> bool:
    """Send the end of file right behind the message; all of the answer must come."""
    conn.sendall(MESSAGE)
    conn.shutdown(socket.SHUT_WR)
    return receive_exactly(conn, len(MESSAGE) + 1) == MESSAGE


def ask_and_leave(conn: socket.socket, number: int) -> bool:
    """What is expected of a client: it waits for its answer, and closes then."""
    conn.sendall(MESSAGE)
    return receive_exactly(conn, len(MESSAGE)) == MESSAGE


# Clients that keep their connections.


@contextlib.contextmanager
def connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many, closed at the end whatever is under way on them."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(port)) for _ in range(count)]


def send_some(conn: socket.socket, data: bytes) -> int:
    """How many bytes the socket takes now."""
    try:
        return conn.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0


def discard_some(conn: socket.socket) -> int:
    """How many bytes there are to be thrown away now."""
    try:
        return len(conn.recv(4 * PIECE_BYTES, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return 0


def flood(clock: Clock, port: int) -> None:
    """Send on all connections as fast as the server takes it, and read what comes."""
    piece = bytes(PIECE_BYTES)
    sent = 0
    with connections(port, STREAMS) as conns:
        while clock.running():
            readable, writable, _ = select.select(conns, conns, [], STALL_LOOK_S)
            sent += sum(send_some(conn, piece) for conn in writable)
            for conn in readable:
                discard_some(conn)
            clock.operations = sent // PIECE_BYTES


def byte_at_a_time(clock: Clock, port: int) -> None:
    """Send each byte by itself, and do not wait for its answer."""
    with connections(port, STREAMS) as conns:
        while clock.running():
            for conn in conns:
                for _ in range(BYTES_A_TURN):
                    clock.operations += send_some(conn, b"x")
                discard_some(conn)


def stall(clock: Clock, port: int) -> None:
    """Send until nothing more is taken, never read, and leave at last."""
    piece = bytes(PIECE_BYTES)
    sent = 0
    while clock.running():
        until = time.monotonic() + STALL_S
        with connections(port, STALLED) as conns:
            while clock.running() and time.monotonic() < until:
                for conn in conns:
                    sent += send_some(conn, piece)
                clock.operations = sent // PIECE_BYTES
                clock.wait(STALL_LOOK_S)


def ping_pong(clock: Clock, port: int, count: int, size: int) -> None:
    """A message on each connection, and the next when all answers are there."""
    message = bytes(size)
    with connections(port, count) as conns:
        while clock.running():
            for conn in conns:
                conn.sendall(message)
            for conn in conns:
                clock.failures += receive_exactly(conn, size) != message
            clock.operations += count


@dataclass(frozen=True)
class Kind:
    """A sort of hostile client.

    Attributes:
      name: as options and tables have it.
      hostile: the client.
      well_behaved: the one that does as much in its place.
      pace: operations a second of the hostile one; None is as fast as it can.
    """

    name: str
    hostile: Callable[[Clock, int], None]
    well_behaved: Callable[[Clock, int], None]
    pace: float | None = None


KINDS = (
    Kind(
        "resetting",
        lambda clock, port: connect_often(clock, port, reset),
        lambda clock, port: connect_often(clock, port, ask_and_leave),
        CONNECTIONS_PER_S,
    ),
    Kind(
        "half-closing",
        lambda clock, port: connect_often(clock, port, half_close),
        lambda clock, port: connect_often(clock, port, ask_and_leave),
        CONNECTIONS_PER_S,
    ),
    Kind("stalling", stall, lambda clock, port: ping_pong(clock, port, STALLED, PIECE_BYTES)),
    Kind(
        "flooding", flood, lambda clock, port: ping_pong(clock, port, WAITING_STREAMS, PIECE_BYTES)
    ),
    Kind(
        "a byte at a time",
        byte_at_a_time,
        lambda clock, port: ping_pong(clock, port, WAITING_STREAMS, 1),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Be one client until the input ends; options are one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gain.clients")
    parser.add_argument("options", help="kind, hostile, port, pace")
    options = json.loads(parser.parse_args(argv).options)
    kind = next(each for each in KINDS if each.name == options["kind"])
    client = kind.hostile if options["hostile"] else kind.well_behaved
    print("started", flush=True)
    clock = Clock(options["pace"])
    # A server that breaks a kept connection is found out by the count, not by a traceback.
    try:
        client(clock, options["port"])
    except OSError:
        clock.failures += 1
    print(json.dumps(asdict(clock.report())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
