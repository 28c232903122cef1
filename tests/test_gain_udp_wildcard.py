"""A UDP server at every address: the answer leaves from the address that was asked.

The addresses of the loopback interface do: 127.0.0.0/8 is all this machine's. Those that it
lacks (IPv6 beside ::1, a broadcast, a second interface) are made in a namespace of the
network, by a child process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
from gain_tools import (
    BOUND_S,
    AsyncRecorder,
    Recorder,
    echo,
    needs_ipv6,
    server_in_thread,
    wait_until,
)
from marks import needs_ring

from uring_trio.gain import _came_to, _datagram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring_trio import gain

pytestmark = needs_ring

# Not the one that the kernel would answer a client on 127.0.0.1 from.
ASKED = "127.0.0.2"
WILDCARDS = ["udp://0.0.0.0:0", "udp://:0", "udp4://:0"]
IN_NAMESPACE = Path(__file__).with_name("gain_udp_namespace.py")


@contextlib.contextmanager
def client(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(BOUND_S)
        sock.bind((host, 0))
        yield sock


def port_of(server: gain.Server) -> int:
    (address,) = server.addresses()
    return int(address[1])


@pytest.mark.parametrize("address", WILDCARDS)
def test_answer_leaves_from_the_address_that_was_asked(address: str) -> None:
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, address, workers=1) as server, client() as sock:
        for host in (ASKED, "127.0.0.1", "127.3.2.1"):
            sock.sendto(b"question", (host, port_of(server)))
            assert sock.recvfrom(100) == (b"question", (host, port_of(server)))
            assert handler.conns[-1].local_addr() == (host, port_of(server))
            assert handler.conns[-1].local_addr().network == "udp"
            assert handler.conns[-1].remote_addr() == sock.getsockname()


@needs_ipv6
@pytest.mark.parametrize("address", ["udp://[::]:0", "udp6://:0", "udp://:0"])
def test_of_ipv6_too(address: str) -> None:
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, address, workers=1) as server, client("::1") as sock:
        sock.sendto(b"question", ("::1", port_of(server)))
        assert sock.recvfrom(100) == (b"question", ("::1", port_of(server), 0, 0))
        assert handler.conn.local_addr() == ("::1", port_of(server), 0, 0)


def test_client_that_is_connected_gets_its_answer() -> None:
    """It hears from nobody but whom it has asked."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, "udp://:0", workers=1) as server, client() as sock:
        sock.connect((ASKED, port_of(server)))
        sock.send(b"question")
        assert sock.recv(100) == b"question"


@pytest.mark.parametrize("reuse_port", [False, True])
def test_every_worker_answers_from_there(reuse_port: bool) -> None:
    handler = Recorder(on_read=echo)
    options: dict[str, Any] = {"reuse_port": reuse_port}
    with server_in_thread(handler, "udp://:0", workers=3, **options) as server:
        for number in range(30):
            with client() as sock:
                sock.connect((f"127.0.0.{number + 2}", port_of(server)))
                sock.send(b"question")
                assert sock.recv(100) == b"question"
        assert len({conn.worker.index for conn in handler.conns}) > 1


@pytest.mark.parametrize("mode", gain_tools.MODES)
@pytest.mark.parametrize("how", ["write", "writev", "read_from"])
def test_whichever_way_it_is_answered(mode: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "answer").write_bytes(b"answer")

    def answer(conn: gain.Conn, n: int) -> None:
        if how == "write":
            conn.write(b"answer")
        elif how == "writev":
            conn.writev([b"ans", b"wer"])
        else:
            with open(tmp_path / "answer", "rb") as file:
                conn.read_from(file)

    handler = gain_tools.make_recorder(mode, on_read=answer)
    options = gain_tools.options_for(mode)
    with server_in_thread(handler, "udp://:0", workers=1, **options) as server, client() as sock:
        sock.sendto(b"question", (ASKED, port_of(server)))
        assert sock.recvfrom(100) == (b"answer", (ASKED, port_of(server)))


def test_answer_that_comes_later_leaves_from_there() -> None:
    handler = AsyncRecorder()
    with server_in_thread(handler, "udp://:0", workers=1) as server, client() as sock:
        for host in (ASKED, "127.0.0.3"):
            sock.sendto(b"question", (host, port_of(server)))
        wait_until(lambda: len(handler.conns) == 2)
        asked = {conn.local_addr()[0]: conn for conn in handler.conns}
        for host in ("127.0.0.3", ASKED):
            conn = asked[host]
            conn.call_soon_threadsafe(conn.write, b"answer")
            assert sock.recvfrom(100) == (b"answer", (host, port_of(server)))


def test_what_waits_in_the_queue_leaves_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    full = True
    real = _datagram.DatagramSocket._send_now

    def send_now(self: Any, *args: Any) -> None:
        if full:
            raise BlockingIOError
        real(self, *args)

    monkeypatch.setattr(_datagram.DatagramSocket, "_send_now", send_now)
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, "udp://:0", workers=1) as server, client() as sock:
        sock.sendto(b"question", (ASKED, port_of(server)))
        wait_until(lambda: sum(w.bytes_buffered for w in server.statistics().workers))
        full = False
        assert sock.recvfrom(100) == (b"question", (ASKED, port_of(server)))


def test_send_to_leaves_from_where_the_route_says() -> None:
    """Also to the peer itself: it need not be an answer."""
    handler = Recorder(on_read=lambda conn, n: conn.send_to(b"news", conn.remote_addr()))
    with server_in_thread(handler, "udp://:0", workers=1) as server, client() as sock:
        sock.sendto(b"question", (ASKED, port_of(server)))
        assert sock.recvfrom(100) == (b"news", ("127.0.0.1", port_of(server)))


@pytest.mark.parametrize(("host", "asks"), [(ASKED, 0), ("0.0.0.0", 1)])
def test_only_a_socket_of_every_address_asks_which(host: str, asks: int) -> None:
    found = []

    def look(conn: gain.Conn, n: int) -> None:
        found.append(gain_tools.socket_option(conn, socket.IPPROTO_IP, _came_to.IP_PKTINFO))
        echo(conn, n)

    handler = Recorder(on_read=look)
    with server_in_thread(handler, f"udp://{host}:0", workers=1) as server, client() as sock:
        sock.sendto(b"question", (ASKED, port_of(server)))
        assert sock.recvfrom(100) == (b"question", (ASKED, port_of(server)))
        assert handler.conn.local_addr() == (ASKED, port_of(server))
    assert found == [asks]


def test_errors_of_peers_are_taken_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """Their queue tells where each came to as well, which is passed over."""
    handler = Recorder()
    with server_in_thread(handler, "udp://:0", workers=1) as server:
        with client() as gone:
            gone.sendto(b"question", (ASKED, port_of(server)))
            wait_until(lambda: handler.conns)
            address = gone.getsockname()
        handler.conn.call_soon_threadsafe(handler.conn.write, b"nobody is there")
        wait_until(lambda: "ICMP error about" in caplog.text)
        assert f"ICMP error about {address[0]}:{address[1]}" in caplog.text
        with client() as sock:
            sock.sendto(b"x", (ASKED, port_of(server)))
            wait_until(lambda: len(handler.conns) == 2)


@pytest.mark.parametrize("case", ["broadcast", "link-local", "global", "multicast", "mapped"])
def test_where_the_machine_has_other_addresses(case: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(IN_NAMESPACE), case],
        capture_output=True,
        text=True,
        timeout=10 * BOUND_S,
        check=False,
        env=os.environ | {"PYTHONPATH": str(IN_NAMESPACE.parent)},
    )
    if ended.stdout.startswith("skipped: "):
        pytest.skip(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "done\n"
