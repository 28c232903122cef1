"""trio.socket over UDP: whole datagrams, addresses, truncation, errors."""

from __future__ import annotations

import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.socket import SocketType

    Udp = tuple[SocketType, SocketType]

pytestmark = pytest.mark.differential

MSG_TRUNC = stdlib_socket.MSG_TRUNC


async def bound(family: int = stdlib_socket.AF_INET, host: str = "127.0.0.1") -> SocketType:
    sock = trio.socket.socket(family, stdlib_socket.SOCK_DGRAM)
    await sock.bind((host, 0))
    return sock


@pytest.fixture
async def udp() -> AsyncIterator[Udp]:
    """Two bound UDP sockets, not connected."""
    a, b = await bound(), await bound()
    yield a, b
    a.close()
    b.close()


@pytest.fixture
async def connected(udp: Udp) -> Udp:
    a, b = udp
    await a.connect(b.getsockname())
    await b.connect(a.getsockname())
    return udp


async def test_sendto_and_recvfrom(udp: Udp) -> None:
    a, b = udp
    with assert_checkpoints():
        assert await a.sendto(b"hello", b.getsockname()) == 5
    with assert_checkpoints():
        assert await b.recvfrom(100) == (b"hello", a.getsockname())


async def test_blocked_recvfrom(udp: Udp) -> None:
    a, b = udp
    results: list[Any] = []

    async def receive() -> None:
        results.append(await b.recvfrom(100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await a.sendto(b"late", b.getsockname())
    assert results == [(b"late", a.getsockname())]


@pytest.mark.parametrize("size", [1, 1472, 8193, 20_000, 65_507])
async def test_a_whole_datagram_arrives_whatever_its_size(connected: Udp, size: int) -> None:
    a, b = connected
    payload = bytes(i % 251 for i in range(size))
    received: list[Any] = []

    async def receive() -> None:
        received.append(await b.recv(65_536))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        assert await a.send(payload) == size
    assert received == [payload]
    await a.send(payload)
    assert await b.recv(65_536) == payload


async def test_too_large_a_datagram_is_refused(connected: Udp) -> None:
    a, _ = connected
    with pytest.raises(OSError, match="Message too long"):
        await a.send(bytes(65_508))


async def test_a_datagram_larger_than_the_buffer_loses_its_rest(connected: Udp) -> None:
    a, b = connected
    for text in (b"0123456789", b"next"):
        await a.send(text)
    assert await b.recv(4) == b"0123"
    assert await b.recv(100) == b"next"
    buffer = bytearray(b"." * 6)
    for text in (b"0123456789", b"next"):
        await a.send(text)
    assert await b.recv_into(buffer, 4) == 4
    assert buffer == b"0123.."
    assert await b.recvfrom(100) == (b"next", a.getsockname())


async def test_truncated_datagram_is_told_by_recvmsg(connected: Udp) -> None:
    a, b = connected
    await a.send(b"0123456789")
    assert await b.recvmsg(4) == (b"0123", [], MSG_TRUNC, a.getsockname())
    await a.send(b"0123456789")
    assert await b.recvmsg(10) == (b"0123456789", [], 0, a.getsockname())


async def test_real_length_with_msg_trunc(connected: Udp) -> None:
    a, b = connected
    buffer = bytearray(4)
    await a.send(b"0123456789")
    assert await b.recv_into(buffer, 4, MSG_TRUNC) == 10
    assert buffer == b"0123"
    await a.send(b"0123456789")
    assert await b.recvmsg_into([buffer], 0, MSG_TRUNC) == (10, [], MSG_TRUNC, a.getsockname())


async def test_peek(connected: Udp) -> None:
    a, b = connected
    await a.send(b"0123456789")
    assert await b.recv(4, stdlib_socket.MSG_PEEK) == b"0123"
    assert await b.recvfrom(100, stdlib_socket.MSG_PEEK) == (b"0123456789", a.getsockname())
    assert await b.recv(100) == b"0123456789"
    assert not b.is_readable()


async def test_receive_of_nothing(connected: Udp) -> None:
    # CPython makes no call for recv of 0 bytes, and one for recvfrom and recvmsg.
    a, b = connected
    assert await b.recv(0) == b""
    assert await b.recv_into(bytearray()) == 0
    for text in (b"first", b"second", b"third"):
        await a.send(text)
    assert await b.recv(0) == b""
    assert await b.recv_into(bytearray()) == 0
    assert await b.recvfrom(0) == (b"", a.getsockname())
    assert await b.recvmsg(0) == (b"", [], MSG_TRUNC, a.getsockname())
    assert await b.recv(10) == b"third"


async def test_empty_datagram_is_not_the_end(connected: Udp) -> None:
    a, b = connected
    assert await a.send(b"") == 0
    assert await b.recv(10) == b""
    assert await a.sendto(b"", b.getsockname()) == 0
    assert await b.recvfrom(10) == (b"", a.getsockname())
    results: list[Any] = []

    async def receive() -> None:
        results.append(await b.recv(10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        assert await a.sendmsg([]) == 0
    assert results == [b""]


async def test_recvfrom_into(udp: Udp) -> None:
    a, b = udp
    buffer = bytearray(b"." * 8)
    await a.sendto(b"abc", b.getsockname())
    assert await b.recvfrom_into(buffer) == (3, a.getsockname())
    await a.sendto(b"defgh", b.getsockname())
    assert await b.recvfrom_into(memoryview(buffer)[4:], 2) == (2, a.getsockname())
    assert buffer == b"abc.de.."


async def test_sendmsg_and_recvmsg(udp: Udp) -> None:
    a, b = udp
    assert await a.sendmsg([b"ab", b"", b"cd"], [], 0, b.getsockname()) == 4
    assert await b.recvmsg(10) == (b"abcd", [], 0, a.getsockname())


async def test_refused_datagram_is_told_on_a_connected_socket(connected: Udp) -> None:
    a, b = connected
    b.close()
    await a.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        await a.recv(10)
    await a.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        await a.send(b"x")
    results: list[type[BaseException]] = []

    async def receive() -> None:
        try:
            await a.recvfrom(10)
        except OSError as exc:
            results.append(type(exc))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await a.send(b"x")
    assert results == [ConnectionRefusedError]


async def test_many_tasks_may_send_on_one_socket(udp: Udp) -> None:
    a, b = udp
    expected = {b"%d/%d" % (task, i) for task in range(10) for i in range(20)}

    async def send(task: int) -> None:
        for i in range(20):
            await a.sendto(b"%d/%d" % (task, i), b.getsockname())

    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        for task in range(10):
            nursery.start_soon(send, task)
        while len(received) < len(expected):
            received.append(await b.recv(100))
    assert set(received) == expected
    for task in range(10):  # and those of one task in its order
        own = [text for text in received if text.startswith(b"%d/" % task)]
        assert own == sorted(own, key=lambda text: int(text.split(b"/")[1]))


async def test_tasks_may_receive_when_the_data_is_there(connected: Udp) -> None:
    a, b = connected
    results: list[bytes] = []

    async def receive() -> None:
        results.append(await b.recv(100))

    for i in range(5):
        await a.send(b"%d" % i)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(receive)
    assert sorted(results) == [b"0", b"1", b"2", b"3", b"4"]


async def test_second_blocked_receive_is_busy(connected: Udp) -> None:
    a, b = connected
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.recvfrom, 10)
        await wait_all_tasks_blocked()
        for operation in (lambda: b.recv(1), lambda: b.recvmsg(1), lambda: b.recvfrom(1)):
            with pytest.raises(trio.BusyResourceError):
                await operation()
        await a.send(b"x")


async def test_echo_between_many_sockets() -> None:
    server = await bound()
    clients = [await bound() for _ in range(20)]

    async def echo() -> None:
        while True:
            data, address = await server.recvfrom(2000)
            await server.sendto(data, address)

    async def client(sock: SocketType, name: int) -> None:
        for i in range(20):
            text = b"%d/%d" % (name, i)
            await sock.sendto(text, server.getsockname())
            assert await sock.recvfrom(2000) == (text, server.getsockname())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        async with trio.open_nursery() as inner:
            for name, sock in enumerate(clients):
                inner.start_soon(client, sock, name)
        nursery.cancel_scope.cancel()
    for sock in [server, *clients]:
        sock.close()


async def test_ipv6_addresses_have_four_parts() -> None:
    if not stdlib_socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        a = await bound(stdlib_socket.AF_INET6, "::1")
    except OSError as exc:
        pytest.skip(f"no IPv6 on loopback: {exc}")
    b = await bound(stdlib_socket.AF_INET6, "::1")
    with a, b:
        host, port, *_ = b.getsockname()
        for address in ((host, port), (host, port, 0), (host, port, 0, 0), (host, port, 5, 0)):
            assert await a.sendto(b"x", address) == 1
            assert await b.recvfrom(10) == (b"x", a.getsockname())
            assert await a.sendmsg([b"y"], [], 0, address) == 1
            data, _, _, sender = await b.recvmsg(10)
            assert (data, sender) == (b"y", a.getsockname())
        with pytest.raises((OverflowError, OSError)):
            await a.sendto(b"x", (host, port, 1 << 20, 0))
        await a.connect((host, port, 0, 0))
        assert a.getpeername() == b.getsockname()
    # A dual-stack socket sees IPv4 peers as mapped addresses.
    dual = await bound(stdlib_socket.AF_INET6, "::")
    with dual, await bound() as plain:
        await plain.sendto(b"x", ("127.0.0.1", dual.getsockname()[1]))
        data, sender = await dual.recvfrom(10)
        assert (data, sender[0]) == (b"x", "::ffff:127.0.0.1")
