"""Gain's tests of its event handler, row for row, with the exact number of callbacks.

Each runs with a plain handler, with ``async def`` callbacks, and with ``async_handler=True``,
which calls a plain ``on_read`` in a thread; over TCP in both architectures, and over UDP.
"""

from __future__ import annotations

import contextlib
import itertools
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import gain_tools
import pytest
from gain_tools import MODES, Counts, Recorder, close_now, echo, echo_and_close
from marks import needs_ring

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_ring

MESSAGE = bytes(range(256)) * 2
ANSWER = MESSAGE[::-1]
KEEP_ALIVE = stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE
KEEP_IDLE = stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE
KEEP_INTERVAL = stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPINTVL
NO_DELAY = stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY
RECEIVE_BUFFER = stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF
SEND_BUFFER = stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF

NO_REPLY_S = 0.03  # how long a client waits for what must not come


class Served(NamedTuple):
    server: gain.Server
    recorder: Recorder
    client: stdlib_socket.socket

    def exchange(self, size: int = len(MESSAGE)) -> bytes:
        self.client.sendall(MESSAGE)
        return gain_tools.receive_exactly(self.client, size)


class Case(NamedTuple):
    architecture: str
    network: str
    mode: str

    def counts(self, tcp: tuple[int, ...], udp: tuple[int, ...] = ()) -> Counts:
        return Counts(*(tcp if self.network == "tcp" else udp))

    @contextlib.contextmanager
    def served(self, counts: Counts, **actions: Callable[..., Any]) -> Iterator[Served]:
        """One client of four workers; afterwards the number of calls must be as given."""
        recorder = gain_tools.make_recorder(self.mode, **actions)
        address = f"{self.network}://127.0.0.1:0"
        options = gain_tools.options_for(self.mode)
        with gain_tools.server_in_thread(
            recorder, address, architecture=self.architecture, **options
        ) as server:
            with gain_tools.connect(server) as client:
                yield Served(server, recorder, client)
            gain_tools.wait_until(lambda: recorder.reached(counts), f"{recorder.events} {counts}")
        assert recorder.counts() == counts
        assert recorder.starts == 1


def cases(*networks: str) -> pytest.MarkDecorator:
    every = [Case(*case) for case in itertools.product(("sharding", "reactor"), networks, MODES)]
    return pytest.mark.parametrize("case", every, ids="-".join)


tcp_and_udp = cases("tcp", "udp")
tcp_only = cases("tcp")
udp_only = cases("udp")


# on_read


@tcp_and_udp
def test_on_read_just_read(case: Case) -> None:
    received = []

    def read(conn: gain.Conn, n: int) -> None:
        received.append(conn.next(n))

    with case.served(case.counts((1, 1, 0, 1), (0, 1, 0, 0)), on_read=read) as served:
        served.client.sendall(MESSAGE)
        served.client.settimeout(NO_REPLY_S)
        with pytest.raises(TimeoutError):
            served.client.recv(1)
    assert received == [MESSAGE]
    assert served.recorder.values("on_read") == [len(MESSAGE)]


@tcp_and_udp
def test_on_read_read_and_write(case: Case) -> None:
    left = []

    def wrote(conn: gain.Conn, n: int) -> None:
        left.append(conn.next(-1))

    counts = case.counts((1, 1, 1, 1), (0, 1, 1, 0))
    with case.served(counts, on_read=echo, on_write=wrote) as served:
        assert served.exchange() == MESSAGE
    assert left == [b""]
    assert served.recorder.values("on_write") == [len(MESSAGE)]


@tcp_only
def test_on_read_read_write_and_close(case: Case) -> None:
    refused = []

    def read(conn: gain.Conn, n: int) -> None:
        conn.write(conn.next(-1))
        conn.close()

    def wrote(conn: gain.Conn, n: int) -> None:
        with pytest.raises(gain.ConnectionClosed) as caught:
            conn.next(-1)
        refused.append(caught.value)

    with case.served(case.counts((1, 1, 1, 1)), on_read=read, on_write=wrote) as served:
        assert served.exchange() == MESSAGE
        assert served.client.recv(1) == b""
    assert len(refused) == 1
    assert served.recorder.errors() == [None]


# on_accept


@tcp_only
def test_on_accept_just_close(case: Case) -> None:
    connected = threading.Event()  # else connect() may fail already

    def accept(conn: gain.Conn) -> None:
        assert connected.wait(gain_tools.BOUND_S)
        conn.set_linger(0)
        conn.close()

    with case.served(case.counts((1, 0, 0, 1)), on_accept=accept) as served:
        connected.set()
        gain_tools.wait_until(lambda: served.recorder.counts().close == 1)

        def refused() -> bool:
            try:
                served.client.sendall(MESSAGE)
            except OSError:
                return True
            return False

        gain_tools.wait_until(refused)
    assert served.recorder.errors() == [None]


@udp_only
def test_close_of_a_datagram_does_nothing(case: Case) -> None:
    counts = case.counts((), (0, 1, 1, 0))
    with case.served(counts, on_accept=close_now, on_read=echo_and_close) as served:
        assert served.exchange() == MESSAGE


@tcp_only
def test_on_accept_write(case: Case) -> None:
    def accept(conn: gain.Conn) -> None:
        conn.write(MESSAGE)

    with case.served(case.counts((1, 0, 1, 1)), on_accept=accept) as served:
        assert gain_tools.receive_exactly(served.client, len(MESSAGE)) == MESSAGE
    assert isinstance(served.recorder.errors()[0], gain.EndOfStream)


@tcp_only
def test_on_accept_write_and_close(case: Case) -> None:
    def accept(conn: gain.Conn) -> None:
        conn.write(MESSAGE)
        conn.close()

    with case.served(case.counts((1, 0, 1, 1)), on_accept=accept) as served:
        assert gain_tools.receive_exactly(served.client, len(MESSAGE) + 1) == MESSAGE
    assert served.recorder.errors() == [None]


# on_write


@tcp_only
def test_on_write_additional_write(case: Case) -> None:
    def accept(conn: gain.Conn) -> None:
        conn.context = [ANSWER]

    def wrote(conn: gain.Conn, n: int) -> None:
        if conn.context:
            conn.write(conn.context.pop())

    counts = case.counts((1, 1, 2, 1))
    with case.served(counts, on_accept=accept, on_read=echo, on_write=wrote) as served:
        assert served.exchange(2 * len(MESSAGE)) == MESSAGE + ANSWER
    assert served.recorder.values("on_write") == [len(MESSAGE), len(ANSWER)]


# The socket's properties


@tcp_and_udp
def test_connection_properties_in_every_callback(case: Case) -> None:
    kept = []

    def set_all(conn: gain.Conn, *_: object) -> None:
        conn.set_linger(30)
        conn.set_read_buffer(2048)
        conn.set_write_buffer(2048)
        if case.network == "tcp":
            conn.set_keep_alive_period(60)
            conn.set_no_delay(True)
            assert gain_tools.socket_option(conn, *KEEP_ALIVE) == 1
            assert gain_tools.socket_option(conn, *KEEP_IDLE) == 60
            assert gain_tools.socket_option(conn, *KEEP_INTERVAL) == 60
            assert gain_tools.socket_option(conn, *NO_DELAY) == 1
        kept.append(
            (
                gain_tools.socket_option(conn, *RECEIVE_BUFFER),
                gain_tools.socket_option(conn, *SEND_BUFFER),
            )
        )

    def read(conn: gain.Conn, n: int) -> None:
        set_all(conn)
        echo(conn, n)

    def wrote(conn: gain.Conn, n: int) -> None:
        set_all(conn)
        conn.close()

    counts = case.counts((1, 1, 1, 1), (0, 1, 1, 0))
    with case.served(counts, on_accept=set_all, on_read=read, on_write=wrote) as served:
        assert served.exchange() == MESSAGE
    with stdlib_socket.socket() as sock:  # the kernel rounds, so ask it what 2048 becomes
        sock.setsockopt(*RECEIVE_BUFFER, 2048)
        sock.setsockopt(*SEND_BUFFER, 2048)
        rounded = sock.getsockopt(*RECEIVE_BUFFER), sock.getsockopt(*SEND_BUFFER)
    assert set(kept) == {rounded}
    assert len(kept) == sum(counts) - counts.close


# Shutdown


@tcp_and_udp
def test_async_shutdown_from_outside(case: Case) -> None:
    counts = case.counts((1, 1, 1, 1), (0, 1, 1, 0))
    with case.served(counts, on_read=echo) as served:
        assert served.exchange() == MESSAGE
        served.client.close()
        gain_tools.wait_until(lambda: served.recorder.reached(counts))
        served.server.async_shutdown()
        gain_tools.wait_until(lambda: not served.server.is_running())
