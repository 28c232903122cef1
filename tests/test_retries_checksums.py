"""UDP datagrams with a wrong checksum, which anybody can send.

The kernel verifies the checksum of all but the shortest when they are received: each wakes the
receiver, and is dropped as it is looked at. After 128 of those io_uring tried no more.

The tests need raw sockets. Where this user may not have one, they are run in a network namespace
of their own, where he may.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket as stdlib_socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import harness
import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

BAD = 200  # more than the kernel's 128 retries
HOSTS = {stdlib_socket.AF_INET: "127.0.0.1", stdlib_socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", HOSTS, ids=["IPv4", "IPv6"])
INSIDE = "URING_TRIO_TESTS_OWN_NETWORK"  # in the environment of the tests in a namespace
IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]


def why_no_raw_socket() -> str | None:
    try:
        stdlib_socket.socket(
            stdlib_socket.AF_INET, stdlib_socket.SOCK_RAW, stdlib_socket.IPPROTO_UDP
        ).close()
    except PermissionError:
        return "no raw sockets for this user: see test_in_a_network_of_its_own"
    return None


NO_RAW_SOCKET = why_no_raw_socket()
needs_raw_socket = pytest.mark.skipif(NO_RAW_SOCKET is not None, reason=str(NO_RAW_SOCKET))


class BadSender:
    """Sends datagrams with a wrong checksum to a socket."""

    def __init__(self, target: Any) -> None:
        self.target = target
        host, self.port = target.getsockname()[:2]
        self.address = (host, 0)
        self.raw = stdlib_socket.socket(
            target.family, stdlib_socket.SOCK_RAW, stdlib_socket.IPPROTO_UDP
        )
        self.source_port = 4444
        with contextlib.suppress(OSError):  # only a connected socket has one
            self.source_port = target.getpeername()[1]

    def send(self) -> None:
        self.raw.sendto(harness.bad_datagram(self.source_port, self.port), self.address)

    async def send_one_by_one(self, count: int) -> None:
        """Until all have been looked at, and dropped."""
        before = harness.drops(self.target)
        for _ in range(count):
            self.send()
            await trio.lowlevel.checkpoint()
        await tools.until_over(lambda: harness.drops(self.target), before + count - 1)

    def close(self) -> None:
        self.raw.close()


@contextlib.contextmanager
def receiver(family: int, *, connected: bool) -> Iterator[tuple[Any, Any]]:
    """A UDP socket of ours, and one of the standard library that sends to it."""
    target, source = (stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM) for _ in range(2))
    with target, source:
        target.bind((HOSTS[stdlib_socket.AddressFamily(family)], 0))
        source.connect(target.getsockname())
        if connected:
            target.connect(source.getsockname())
        yield target, source


@needs_raw_socket
@FAMILIES
@pytest.mark.parametrize("connected", [False, True], ids=["free", "connected"])
@pytest.mark.parametrize("how", tools.RECEIVES)
async def test_receive_goes_on(family: int, connected: bool, how: str) -> None:
    received: list[bytes] = []

    async def receive(sock: SocketType) -> None:
        received.append(await tools.RECEIVES[how](sock, 1000, 0))

    with receiver(family, connected=connected) as (target, source):
        sock = tools.ours(target)
        bad = BadSender(sock)
        with tools.closing(bad):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, sock)
                await trio.testing.wait_all_tasks_blocked()
                await bad.send_one_by_one(BAD)
                assert not received
                await tools.nothing_moves(tools.SHORT_WINDOW_S)
                source.send(b"good")
        sock.close()
    assert received == [b"good"]


@needs_raw_socket
@FAMILIES
async def test_bad_ones_between_good_ones(family: int) -> None:
    with receiver(family, connected=False) as (target, source):
        sock = tools.ours(target)
        bad = BadSender(sock)
        with tools.closing(bad):
            for number in range(BAD):
                bad.send()
                source.send(b"%d" % number)
                bad.send()
                assert await sock.recv(1000) == b"%d" % number
        sock.close()


@needs_raw_socket
async def test_good_one_is_received_at_once_after_bad_ones() -> None:
    wakes = tools.Wakes()
    received = 0

    async def receive(sock: SocketType) -> None:
        nonlocal received
        while received < 5:
            await sock.recvfrom(1000)
            wakes.woken()
            received += 1

    with receiver(stdlib_socket.AF_INET, connected=False) as (target, source):
        sock = tools.ours(target)
        bad = BadSender(sock)
        with tools.closing(bad):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, sock)
                for number in range(5):
                    await trio.testing.wait_all_tasks_blocked()
                    await bad.send_one_by_one(30)
                    wakes.possible()
                    source.send(b"good")
                    await tools.until_over(lambda: received, number)
        sock.close()
    wakes.check()


@needs_raw_socket
def test_anyio_udp_server_goes_on(backend: str) -> None:
    async def main() -> None:
        received: list[bytes] = []

        async def serve(server: anyio.abc.UDPSocket) -> None:
            async for data, _ in server:
                received.append(data)
                if len(received) == 2:
                    return

        async with await anyio.create_udp_socket(local_host="127.0.0.1") as server:
            target = server.extra(anyio.abc.SocketAttribute.raw_socket)
            source = stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
            bad = BadSender(target)
            with source, tools.closing(bad):
                source.connect(target.getsockname())
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(serve, server)
                    await trio.testing.wait_all_tasks_blocked()
                    for number in range(2):
                        await bad.send_one_by_one(BAD)
                        source.send(b"good")
                        await tools.until_over(lambda: len(received), number)
        assert received == [b"good"] * 2

    anyio.run(main, backend="trio" if backend == harness.EPOLL else "uring_trio")


# ---- where raw sockets are not permitted --------------------------------------------------


def run_in_namespace() -> None:
    """In the namespace: have a loopback, and run the tests above."""
    siocsifflags, iff_up = 0x8914, 1
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", iff_up)
        fcntl.ioctl(any_socket, siocsifflags, request)
    # A new program: what is imported already pytest could not rewrite.
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    os.execv(sys.executable, pytest_here)


@pytest.mark.skipif(NO_RAW_SOCKET is None, reason="raw sockets are permitted: the others were run")
def test_in_a_network_of_its_own() -> None:
    if INSIDE in os.environ or shutil.which("unshare") is None:
        pytest.skip("no raw sockets for this user, and no way to a namespace of his own")
    program = "import test_retries_checksums as here; here.run_in_namespace()"
    tried = subprocess.run([*IN_NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"neither raw sockets nor user namespaces here: {tried.stderr.strip()}")
    done = subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        env={**os.environ, INSIDE: "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
