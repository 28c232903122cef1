"""What stays set on a socket, and is no input: callback servers neither spin nor block on it.

An error queue that nobody reads keeps POLLERR set, an urgent byte POLLPRI, a half-closed
peer POLLRDHUP. To the kernel's own waiting each is a wake-up in vain, and 128 of them make
a thread of the kernel's; to a poll that is armed again each is a circle.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio
import trio.testing
from gain_tools import (
    CLOGGING,
    HalfCloser,
    Recorder,
    open_client,
    read_exactly,
    server_in_thread,
    serving,
    until,
)
from marks import ON_RING
from test_gain_asleep import WAKE_S, assert_asleep, connected

from uring_trio.gain import _worker
from uring_trio.gain._capabilities import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from uring_trio import gain

pytestmark = ON_RING

MANY = 140  # more than the 128 times that the kernel tries by itself
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000  # asm-generic/socket.h, linux/socket.h
SO_TIMESTAMPING = 37
# linux/net_tstamp.h: software times of what is sent, and they alone
TIMES = 1 << 1 | 1 << 4 | 1 << 11


@pytest.fixture(params=["multishot", "one-shot"], autouse=True)
def receives(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "one-shot":
        nothing = Capabilities(False, ("a test",))
        monkeypatch.setattr(_worker, "capabilities", lambda: nothing)
    return str(request.param)


@contextlib.contextmanager
def socket_of(conn: gain.Conn) -> Any:
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        yield sock


def stamp(conn: gain.Conn) -> None:
    """What it sends leaves a time in its error queue."""
    with socket_of(conn) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TIMES)


def zero_copy(conn: gain.Conn) -> None:
    """Leave the completion of a zero-copy send in its error queue."""
    with socket_of(conn) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        assert sock.send(b"w", MSG_ZEROCOPY) == 1


def has_errors(conn: gain.Conn) -> bool:
    with socket_of(conn) as sock:
        return bool(poll_of(sock) & 0x8)  # POLLERR


def poll_of(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock, 0)
    return next((told for _, told in poll.poll(0)), 0)


# The error queue of connections


@pytest.mark.parametrize("how", [stamp, zero_copy])
@pytest.mark.parametrize("then", ["idle", "paused", "large", "ended"])
async def test_error_queues_that_nobody_reads(how: Callable[[gain.Conn], None], then: str) -> None:
    def accept(conn: gain.Conn) -> None:
        conn.context = b"other"

    def read(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        if data == b"fill":
            how(conn)
            if how is stamp:
                conn.write(b"w")
        elif data == b"pause":
            conn.write(b"p")
            conn.pause_reading()
        elif len(data) < 1000:
            conn.write(data)

    handler = HalfCloser(on_accept=accept, on_read=read)
    async with serving(handler) as server, contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(await open_client(server))
        clients = [await stack.enter_async_context(await open_client(server)) for _ in range(MANY)]
        for client in clients:
            await client.send_all(b"fill")
        for client in clients:
            assert await read_exactly(client, 1) == b"w"
        await until(lambda: len(handler.conns) == MANY + 1)
        odd = [conn for conn in handler.conns if has_errors(conn)]
        assert len(odd) == MANY
        for client in clients:
            if then == "paused":
                await client.send_all(b"pause")
                assert await read_exactly(client, 1) == b"p"
            elif then == "large":
                await client.send_all(bytes(20_000))
            elif then == "ended":
                await client.send_eof()
        await assert_asleep()
        started = trio.current_time()
        await other.send_all(b"are you there?")
        assert await read_exactly(other, 14) == b"are you there?"
        assert trio.current_time() - started < WAKE_S
        # And those with a queue are served as ever.
        if then in ("idle", "large"):
            for client in clients:
                await client.send_all(b"echo")
            for client in clients:
                assert await read_exactly(client, 4) == b"echo"
            await assert_asleep()
        for conn in odd:
            conn.abort()


@pytest.mark.parametrize("how", [stamp, zero_copy])
async def test_error_queue_beside_output_that_waits(how: Callable[[gain.Conn], None]) -> None:
    handler = Recorder(on_read=lambda conn, n: conn.discard())
    async with gain_tools.connected(handler) as (conn, client):
        how(conn)
        if how is stamp:
            conn.write(b"w")
        await until(lambda: has_errors(conn))
        conn.write(CLOGGING)
        await until(lambda: 0 < conn.outbound_buffered() < len(CLOGGING))
        await assert_asleep()
        assert await read_exactly(client, 1 + len(CLOGGING)) == b"w" + CLOGGING


# Of datagrams


async def test_error_queues_of_datagram_servers(caplog: pytest.LogCaptureFixture) -> None:
    """Times of what was sent are no ICMP errors, and nobody is told of them."""

    def read(conn: gain.Conn, n: int) -> None:
        if conn.peek() == b"stamp":
            stamp(conn)
        conn.write(conn.next(n))

    addresses = [gain_tools.LOOPBACK_UDP] * MANY
    async with serving(Recorder(on_read=read), addresses) as server:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
            for address in server.addresses():
                for data in (b"stamp", b"x", b"y"):
                    await client.sendto(data, address)
                    assert await client.recv(100) == data
            await assert_asleep()
            with trio.fail_after(WAKE_S):
                await client.sendto(b"there?", server.addresses()[-1])
                assert await client.recv(100) == b"there?"
    assert "ICMP" not in caplog.text


async def test_icmp_errors_of_datagram_servers() -> None:
    """Clients that have gone before their answer."""
    handler = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)))
    async with serving(handler, gain_tools.LOOPBACK_UDP) as server:
        for _ in range(MANY):
            with socket.socket(type=socket.SOCK_DGRAM) as gone:
                gone.sendto(b"x", server.addresses()[0])
            await trio.lowlevel.checkpoint()
        await assert_asleep()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
            await client.sendto(b"there?", server.addresses()[0])
            with trio.fail_after(WAKE_S):
                assert await client.recv(100) == b"there?"


# Whoever shares a socket may shut it down: it is readable for ever, and there is nothing


LOOKS_MAX = 30  # turns: two for each look at it, of which there are 30 in a second


async def test_datagram_socket_that_was_shut_down() -> None:
    handler = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)))
    async with serving(handler, gain_tools.LOOPBACK_UDP) as server:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
            await client.sendto(b"x", server.addresses()[0])
            assert await client.recv(100) == b"x"
            with socket_of(handler.conns[0]) as shared, contextlib.suppress(OSError):
                shared.shutdown(socket.SHUT_RD)
            await trio.sleep(0.1)
            await assert_asleep(LOOKS_MAX)
            await client.sendto(b"y", server.addresses()[0])
            with trio.fail_after(WAKE_S):
                assert await client.recv(100) == b"y"


# Whoever shares a socket may have it wait


def test_datagram_socket_that_was_set_to_blocking() -> None:
    handler = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)))
    addresses = [gain_tools.LOOPBACK_UDP, gain_tools.LOOPBACK]
    with (
        server_in_thread(handler, addresses, workers=1) as server,
        socket.socket(type=socket.SOCK_DGRAM) as client,
        socket.socket() as other,
    ):
        udp, tcp = server.addresses()
        client.settimeout(1)
        other.settimeout(1)
        client.connect(udp)
        other.connect(tcp)
        client.send(b"x")
        assert client.recv(100) == b"x"
        (datagram,) = [event.conn for event in handler.events if event.name == "on_read"]
        shared = os.dup(datagram._sock.fileno())
        os.set_blocking(shared, True)
        try:
            for _ in range(3):
                client.send(b"y")
                assert client.recv(100) == b"y"
                other.send(b"z")
                assert other.recv(100) == b"z"
        finally:
            os.set_blocking(shared, False)
            os.close(shared)
            client.send(b"")  # whom it has blocked goes on


async def test_listener_that_was_shut_down(tmp_path: Path) -> None:
    handler = Recorder()
    async with connected("unix", handler, tmp_path) as (conn, client):
        (acceptor,) = conn.worker.admission._acceptors
        acceptor.listener.sock.shutdown(socket.SHUT_RD)
        await trio.sleep(0.1)
        await assert_asleep(LOOKS_MAX)
        await client.send(b"x")
        await until(lambda: handler.counts().read == 1)


# Urgent bytes


@pytest.mark.parametrize("network", ["tcp", "unix"])
@pytest.mark.parametrize("how", ["small", "large", "paused"])
async def test_urgent_bytes(network: str, how: str, tmp_path: Path) -> None:
    """One after the other; where a stream reads them they are no part of it."""
    data = bytearray()

    def read(conn: gain.Conn, n: int) -> None:
        data.extend(conn.next(n))

    handler = HalfCloser(on_read=read)
    async with connected(network, handler, tmp_path) as (conn, client):
        await client.send(b"a" * (20_000 if how == "large" else 1))
        await until(lambda: len(data) >= 1)
        await until(lambda: how != "large" or len(data) == 20_000)
        if how == "paused":
            conn.pause_reading()
        for _ in range(200):
            await client.raw.socket.send(b"!", socket.MSG_OOB)
            await trio.lowlevel.checkpoint()
        await assert_asleep()
        await client.send(b"b")
        conn.resume_reading()
        started = trio.current_time()
        await until(lambda: data.endswith(b"b"))
        assert trio.current_time() - started < WAKE_S
        await client.end()
        await until(lambda: "on_eof" in handler.names())
        await assert_asleep()
        assert handler.counts().close == 0
        conn.close()
        await until(lambda: handler.counts().close == 1)


@pytest.mark.parametrize("network", ["tcp", "unix"])
@pytest.mark.parametrize("how", ["small", "large"])
async def test_what_lies_behind_an_urgent_byte_is_told(
    network: str, how: str, tmp_path: Path
) -> None:
    """A receive ends before the byte, and nothing comes that would tell of the rest."""
    size = 20_000 if how == "large" else 1
    data = bytearray()

    def read(conn: gain.Conn, n: int) -> None:
        data.extend(conn.next(n))

    async with connected(network, Recorder(on_read=read), tmp_path) as (_, client):
        await client.send(b"a" * size)
        await until(lambda: len(data) == size)
        with socket.socket(fileno=os.dup(client.raw.socket.fileno())) as plain:
            plain.sendall(b"b" * size)
            plain.send(b"!", socket.MSG_OOB)
            plain.sendall(b"c" * size)
        await until(lambda: len(data) == 3 * size)
        assert data == b"a" * size + b"b" * size + b"c" * size
        await assert_asleep()


# Half-closed, and then nothing can be sent


async def test_half_closed_peers_that_read_slowly() -> None:
    """No thread for any of them, and all is delivered."""
    answer = bytes(range(256)) * 4096
    many = 50

    def eof(conn: gain.Conn) -> None:
        conn.write(answer)
        conn.close()

    handler = HalfCloser(on_read=lambda conn, n: conn.discard(), on_eof=eof)
    async with (
        serving(handler, socket_send_buffer_size=16_384) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = []
        for _ in range(many):
            raw = trio.socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            await raw.connect(server.addresses()[0])
            clients.append(await stack.enter_async_context(trio.SocketStream(raw)))
            await clients[-1].send_all(b"question")
            await clients[-1].send_eof()
        await until(lambda: handler.names().count("on_eof") == many)
        await assert_asleep()
        for client in clients:
            assert await gain_tools.read_to_end(client) == answer
        await until(lambda: handler.counts().close == many)
    assert handler.errors() == [None] * many


# Datagrams with a wrong checksum

UDP_CODE = """
import fcntl, socket, struct, sys
sys.path.insert(0, {tests!r})
from test_gain_odd_readiness import *
with socket.socket(type=socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS: up
import uring_trio
print(uring_trio.run(survive_wrong_checksums, backend="io_uring"))
"""


async def survive_wrong_checksums() -> str:
    handler = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)))
    async with serving(handler, gain_tools.LOOPBACK_UDP) as server:
        address = server.addresses()[0]
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw,
            trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client,
        ):
            await client.bind(("127.0.0.1", 0))
            payload = b"wrong"
            header = struct.pack("!HHHH", 9, address[1], 8 + len(payload), 0xBAD)
            for _ in range(3 * MANY):
                raw.sendto(header + payload, ("127.0.0.1", 0))
                await trio.lowlevel.checkpoint()
            await assert_asleep()
            for number in range(10):
                await client.sendto(b"%d" % number, address)
                with trio.fail_after(WAKE_S):
                    assert await client.recv(100) == b"%d" % number
    assert handler.counts().read == 10
    return "survived"


def test_datagrams_with_a_wrong_checksum(receives: str) -> None:
    if receives == "one-shot":
        pytest.skip("datagrams are received in one way only")
    code = UDP_CODE.format(tests=os.path.dirname(__file__))
    result = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unshare failed" in result.stderr or "Operation not permitted" in result.stderr:
        pytest.skip(f"no network namespace of our own: {result.stderr.strip()}")
    assert result.stdout == "survived\n", result.stderr
