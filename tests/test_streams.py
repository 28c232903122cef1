"""What is built on streams: trio's checkers, TLS, DTLS, servers, processes, much data."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import ssl
import sys
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.testing
from trio.lowlevel import FdStream
from trio.testing import check_half_closeable_stream, check_one_way_stream, check_two_way_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.differential

MIB = 1 << 20


async def tcp_maker() -> tuple[trio.SocketStream, trio.SocketStream]:
    return await harness.stream_pair()


async def unix_maker() -> tuple[trio.SocketStream, trio.SocketStream]:
    a, b = trio.socket.socketpair()
    return trio.SocketStream(a), trio.SocketStream(b)


async def pipe_maker() -> tuple[FdStream, FdStream]:
    reading, writing = os.pipe()
    return FdStream(writing), FdStream(reading)


def clogged(
    maker: Callable[[], Awaitable[tuple[Any, Any]]],
) -> Callable[[], Awaitable[tuple[Any, Any]]]:
    """The same pair with both directions full, so that wait_send_all blocks."""

    async def make() -> tuple[Any, Any]:
        pair = await maker()
        for stream in pair:
            if isinstance(stream, trio.SocketStream):
                harness.fill(stream.socket._sock)  # type: ignore[attr-defined]
        if isinstance(pair[0], FdStream):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(pair[0].fileno(), bytes(65536))
        return pair

    return make


@pytest.mark.parametrize("maker", [tcp_maker, unix_maker])
async def test_trios_checkers_of_two_way_streams(maker: Any) -> None:
    await check_two_way_stream(maker, clogged(maker))
    await check_half_closeable_stream(maker, clogged(maker))


async def test_trios_checker_of_one_way_streams() -> None:
    await check_one_way_stream(pipe_maker, clogged(pipe_maker))


def random_chunks(total: int, seed: int) -> list[bytes]:
    """Messages of all sizes that add up to ``total`` bytes."""
    source = random.Random(seed)
    chunks = []
    while total:
        size = min(total, int(2 ** source.uniform(0, 21)))
        chunks.append(source.randbytes(size))
        total -= size
    return chunks


async def send_chunks(stream: Any, chunks: list[bytes]) -> None:
    for chunk in chunks:
        await stream.send_all(chunk)
    if hasattr(stream, "send_eof"):
        await stream.send_eof()
    else:
        await stream.aclose()


async def assert_receives(stream: Any, chunks: list[bytes], seed: int) -> None:
    source = random.Random(seed)
    expected, received = hashlib.sha256(), hashlib.sha256()
    for chunk in chunks:
        expected.update(chunk)
    while data := await stream.receive_some(int(2 ** source.uniform(0, 20))):
        received.update(data)
    assert received.digest() == expected.digest()


@pytest.mark.parametrize("maker", [tcp_maker, unix_maker])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_large_transfers_both_ways(maker: Any, seed: int) -> None:
    left, right = await maker()
    one, two = random_chunks(16 * MIB, seed), random_chunks(16 * MIB, seed + 100)
    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(send_chunks, left, one)
        nursery.start_soon(send_chunks, right, two)
        nursery.start_soon(assert_receives, right, one, seed)
        nursery.start_soon(assert_receives, left, two, seed)


async def test_large_transfer_through_a_pipe() -> None:
    left, right = await pipe_maker()
    chunks = random_chunks(4 * MIB, 5)
    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(send_chunks, left, chunks)
        nursery.start_soon(assert_receives, right, chunks, 5)


@pytest.mark.parametrize("size", [1, 100, 8192, 8193, 65536, 131072, 131073, MIB])
async def test_ping_pong_at_every_size(size: int) -> None:
    left, right = await harness.stream_pair()
    message = os.urandom(size)

    async def receive_exactly(stream: trio.SocketStream) -> bytes:
        received = b""
        while len(received) < size:
            received += await stream.receive_some()
        return received

    async def echo() -> None:
        for _ in range(5):
            await right.send_all(await receive_exactly(right))

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for _ in range(5):
            await left.send_all(message)
            assert await receive_exactly(left) == message


async def test_many_connections_at_once() -> None:
    count = 500

    async def echo(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    async def client(port: int, name: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            connected.append(name)
            if len(connected) == count:
                all_connected.set()
            await all_connected.wait()
            for i in range(3):
                message = b"%d/%d" % (name, i)
                await stream.send_all(message)
                assert await stream.receive_some() == message

    connected: list[int] = []
    all_connected = trio.Event()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=count)
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        async with trio.open_nursery() as clients:
            for name in range(count):
                clients.start_soon(client, port, name)
        nursery.cancel_scope.cancel()


async def test_slow_readers_do_not_hold_up_the_others() -> None:
    # Enough blocked senders and waiting data to exhaust any pool of buffers.
    slow = [await harness.stream_pair() for _ in range(30)]
    fast_left, fast_right = await harness.stream_pair()
    payload = os.urandom(4 * MIB)

    async def send(stream: trio.SocketStream) -> None:
        await stream.send_all(payload)

    async with trio.open_nursery() as nursery:
        for left, _ in slow:
            nursery.start_soon(send, left)
        for i in range(100):
            await fast_left.send_all(b"%d" % i)
            assert await fast_right.receive_some() == b"%d" % i
        assert len(nursery.child_tasks) == len(slow)
        async with trio.open_nursery() as readers:
            for _, right in slow:
                readers.start_soon(assert_receives_exactly, right, payload)
    for stream in [fast_left, fast_right, *(stream for pair in slow for stream in pair)]:
        await stream.aclose()


async def assert_receives_exactly(stream: trio.SocketStream, payload: bytes) -> None:
    received = bytearray()
    while len(received) < len(payload):
        received += await stream.receive_some(100_000)
    assert received == payload


async def test_tls() -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)

    async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    tcp_client, tcp_server = await harness.stream_pair()
    server = trio.SSLStream(tcp_server, server_context, server_side=True)
    client = trio.SSLStream(tcp_client, client_context, server_hostname="example.org")
    payload = os.urandom(MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        nursery.start_soon(client.send_all, payload)
        received = bytearray()
        while len(received) < len(payload):
            received += await client.receive_some()
        assert received == payload
        await client.aclose()
    await server.aclose()


async def test_dtls() -> None:
    trustme = pytest.importorskip("trustme")
    openssl = pytest.importorskip("OpenSSL.SSL")
    authority = trustme.CA()
    server_context = openssl.Context(openssl.DTLS_METHOD)
    authority.issue_cert("example.org").configure_cert(server_context)
    client_context = openssl.Context(openssl.DTLS_METHOD)
    authority.configure_trust(client_context)

    async def echo(channel: trio.DTLSChannel) -> None:
        async for packet in channel:
            await channel.send(packet)

    def endpoint() -> trio.DTLSEndpoint:
        return trio.DTLSEndpoint(trio.socket.socket(type=trio.socket.SOCK_DGRAM))

    with endpoint() as server, endpoint() as client:
        await server.socket.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, server_context, echo)
            channel = client.connect(server.socket.getsockname(), client_context)
            with channel:
                await channel.do_handshake()
                for i in range(20):
                    await channel.send(b"packet %d" % i)
                    assert await channel.receive() == b"packet %d" % i
            nursery.cancel_scope.cancel()


async def test_run_process() -> None:
    payload = os.urandom(3 * MIB)
    done = await trio.run_process(["cat"], stdin=payload, capture_stdout=True)
    assert done.stdout == payload
    script = "import sys; sys.stderr.write('e' * 200000); sys.exit(3)"
    done = await trio.run_process([sys.executable, "-c", script], capture_stderr=True, check=False)
    assert (done.returncode, len(done.stderr)) == (3, 200_000)


async def test_conversation_with_a_process() -> None:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            functools.partial(trio.run_process, ["cat"], stdin=-1, stdout=-1)
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for i in range(20):
            await process.stdin.send_all(b"%d" % i)
            assert await process.stdout.receive_some() == b"%d" % i
        await process.stdin.aclose()
        assert await process.stdout.receive_some() == b""
    assert process.returncode == 0
    await process.stdout.aclose()


async def test_cancelled_process_is_killed() -> None:
    with trio.move_on_after(0.05) as scope:
        await trio.run_process(["sleep", "100"])
    assert scope.cancelled_caught


async def test_standard_streams_of_a_terminal() -> None:
    main, terminal = os.openpty()
    async with FdStream(main) as left, FdStream(terminal) as right:
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await right.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await left.send_all(b"typed\n")
        assert received == [b"typed\n"]


async def test_closing_in_a_cancelled_scope_is_the_checkpoint_that_it_is_elsewhere() -> None:
    a, b = await tcp_maker()
    words = []
    for checkpoint in (a.aclose, trio.lowlevel.checkpoint):
        with trio.CancelScope() as scope, trio.testing.assert_checkpoints():
            scope.cancel()
            try:
                await checkpoint()
            except trio.Cancelled as exc:
                words.append(str(exc))
                raise
        assert scope.cancelled_caught
    assert words[0] == words[1]
    async with b:
        assert a.socket.fileno() == -1
        assert await b.receive_some() == b""
