"""Sockets in rarer company: several tasks, closed under way, few descriptors, many events."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket as stdlib_socket
import struct
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio.socket import SocketType

    Pair = tuple[SocketType, SocketType]

pytestmark = pytest.mark.differential


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    a, b = trio.socket.socketpair()
    yield a, b
    a.close()
    b.close()


async def outcome_into(results: list[Any], operation: Callable[[], Awaitable[Any]]) -> None:
    """Await an operation, and note what it returned or the name of its error."""
    try:
        results.append(await operation())
    except (trio.ClosedResourceError, trio.BusyResourceError, OSError) as exc:
        results.append(type(exc).__name__)


def need_descriptors(count: int) -> None:
    """Skip where not so many files may be open; conftest.py has raised the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < count + 100:
        pytest.skip(f"needs {count} descriptors, RLIMIT_NOFILE is {soft}, at most {hard}")


async def test_two_receives_that_start_in_one_tick(pair: Pair) -> None:
    a, b = pair
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(outcome_into, results, lambda: a.recv(10))
        await wait_all_tasks_blocked()
        assert results == ["BusyResourceError"]
        await b.send(b"for the other")
    assert results == ["BusyResourceError", b"for the ot"]


@pytest.mark.parametrize("used_before", [False, True])
async def test_two_sockets_around_one_open_file_share_a_line(used_before: bool) -> None:
    """Else the kernel would run the newer receive first, and bytes change their order."""
    left, right = stdlib_socket.socketpair()
    with left, right:
        one, two = (trio.socket.from_stdlib_socket(left) for _ in range(2))
        if used_before:
            for sock in (one, two, one):
                right.send(b"x")
                assert await sock.recv(1) == b"x"
        received: list[Any] = []

        async def receive(sock: trio.socket.SocketType) -> None:
            try:
                received.append(await sock.recv(10))
            except trio.BusyResourceError:
                received.append("busy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, one)
            await wait_all_tasks_blocked()
            nursery.start_soon(receive, two)
            await wait_all_tasks_blocked()
            assert received == ["busy"]
            right.send(b"first")
        assert received == ["busy", b"first"]
        # In one tick they stand in line, and get what there is in the order they came.
        right.send(b"abcdef")
        received.clear()

        async def receive_three(sock: trio.socket.SocketType) -> None:
            received.append(await sock.recv(3))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_three, one)
            nursery.start_soon(receive_three, two)
        assert sorted(received) == [b"abc", b"def"]


async def test_second_blocked_send_is_busy(pair: Pair) -> None:
    a, b = pair
    harness.fill(a._sock)  # type: ignore[attr-defined]
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_into, results, lambda: a.send(b"1"))
        await wait_all_tasks_blocked(0.01)
        await outcome_into(results, lambda: a.send(b"2"))
        await outcome_into(results, lambda: a.sendmsg([b"2"]))
        assert results == ["BusyResourceError"] * 2
        received = b""
        while not received.endswith(b"1"):
            received += await b.recv(1 << 20)
    assert results[-1] == 1


async def test_many_tasks_send_on_one_stream_socket(pair: Pair) -> None:
    a, b = pair
    async with trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(a.send, b"%03d," % i)
        received = b""
        while len(received) < 200:
            received += await b.recv(1000)
    assert sorted(received.split(b",")[:-1]) == [b"%03d" % i for i in range(50)]


async def test_tasks_may_accept_when_connections_are_there() -> None:
    results: list[Any] = []
    with trio.socket.socket() as listener, contextlib.ExitStack() as stack:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(5):
            address = listener.getsockname()
            stack.enter_context(stdlib_socket.create_connection(address))
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(outcome_into, results, listener.accept)
        assert len({peer for _, peer in results}) == 5
        for sock, _ in results:
            sock.close()


async def test_notify_closing_ends_a_receive_and_leaves_the_socket_usable(pair: Pair) -> None:
    a, b = pair
    for operation in (lambda: a.recv(10), lambda: a.recv_into(bytearray(10))):
        results: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_into, results, operation)
            await wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(a)
        assert results == ["ClosedResourceError"]
        await b.send(b"x")
        assert await a.recv(10) == b"x"


@pytest.mark.parametrize("later", ["recv", "recv_into", "recvmsg", "accept", "send", "sendmsg"])
async def test_an_operation_after_close_in_the_same_tick(pair: Pair, later: str) -> None:
    # The receive that was in flight may not have ended yet: nobody is busy, though.
    a, _ = pair
    arguments: dict[str, tuple[Any, ...]] = {
        "recv_into": (bytearray(1),),
        "accept": (),
        "send": (b"x",),
        "sendmsg": ([b"x"],),
    }
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_into, results, lambda: a.recv_into(bytearray(10)))
        await wait_all_tasks_blocked()
        a.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await getattr(a, later)(*arguments.get(later, (10,)))
    assert results == ["ClosedResourceError"]


async def test_close_lets_go_of_the_users_buffers(pair: Pair) -> None:
    a, b = pair
    incoming, outgoing = bytearray(10), bytearray(32 << 20)
    results: list[Any] = []
    harness.fill(a._sock)  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_into, results, lambda: a.recv_into(incoming))
        nursery.start_soon(outcome_into, results, lambda: a.send(outgoing))
        await wait_all_tasks_blocked(0.01)
        a.close()
    assert results == ["ClosedResourceError"] * 2
    with contextlib.suppress(OSError):
        await b.send(b"too late")
    incoming.extend(b"x")
    outgoing.extend(b"x")
    assert incoming == bytes(10) + b"x"


async def test_shutdown_of_the_reading_half_ends_a_receive(pair: Pair) -> None:
    a, _ = pair
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_into, results, lambda: a.recv(10))
        await wait_all_tasks_blocked()
        a.shutdown(stdlib_socket.SHUT_RD)
    assert results == [b""]


async def test_shutdown_of_the_writing_half_ends_a_send() -> None:
    a, b = await harness.tcp_pair()  # between UNIX sockets nobody is told
    results: list[Any] = []
    with a, b:
        harness.fill(a._sock)  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_into, results, lambda: a.send(b"x"))
            await wait_all_tasks_blocked(0.01)
            a.shutdown(stdlib_socket.SHUT_WR)
    assert results == ["BrokenPipeError"]


async def test_unnotified_close_with_a_receive_in_flight(pair: Pair) -> None:
    a, b = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_into, [], lambda: a.recv(10))
        await wait_all_tasks_blocked()
        a._sock.close()  # type: ignore[attr-defined]
        c, d = trio.socket.socketpair()  # one of them has the number of a
        with c, d:
            await c.send(b"x")
            await d.send(b"y")
            assert await d.recv(10) == b"x"
            assert await c.recv(10) == b"y"
            nursery.cancel_scope.cancel()
    assert b.fileno() != -1


@pytest.mark.parametrize("size", [1, 60_000, 130_000])
async def test_more_ready_receives_than_any_pool_has_buffers(size: int) -> None:
    count = 1000 if size == 1 else 100
    need_descriptors(2 * count)
    pairs = [trio.socket.socketpair() for _ in range(count)]
    for a, b in pairs:
        b.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 1 << 20)
        a.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 1 << 20)
    results: dict[int, bytes] = {}

    async def receive(index: int) -> None:
        results[index] = b""
        while len(results[index]) < size:
            results[index] += await pairs[index][0].recv(1 << 20)

    for blocked_first in (True, False):
        results.clear()
        async with trio.open_nursery() as nursery:
            if blocked_first:
                for index in range(count):
                    nursery.start_soon(receive, index)
                await wait_all_tasks_blocked()
            for index, (_, b) in enumerate(pairs):
                message = bytes([index % 256]) * size
                assert b._sock.send(message) == size  # type: ignore[attr-defined]
            if not blocked_first:
                for index in range(count):
                    nursery.start_soon(receive, index)
        assert results == {index: bytes([index % 256]) * size for index in range(count)}
    for a, b in pairs:
        a.close()
        b.close()


async def test_more_events_in_a_tick_than_a_completion_queue_holds() -> None:
    count = 5000
    need_descriptors(count)
    with harness.nonblocking_pair() as (a, b):
        fds = [os.dup(a.fileno()) for _ in range(count)]
        try:
            async with trio.open_nursery() as nursery:
                for fd in fds:
                    nursery.start_soon(trio.lowlevel.wait_readable, fd)
                await wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == count
                b.send(b"x")
        finally:
            for fd in fds:
                os.close(fd)


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Lower the limit so that the next new descriptor is refused."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_accept_without_descriptors_left_loses_no_connection() -> None:
    results: list[Any] = []
    errors: list[int | None] = []

    async def accept() -> None:
        try:
            results.append(await listener.accept())
        except OSError as exc:
            errors.append(exc.errno)

    with trio.socket.socket() as listener, stdlib_socket.socket() as client:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            with no_descriptors_left():
                client.connect(listener.getsockname())
                await wait_all_tasks_blocked()
                await wait_all_tasks_blocked(0.01)
        # The kernel may have taken its descriptor before the limit fell.
        assert results or errors == [errno.EMFILE]
        if not results:
            await accept()
        ((server, peer),) = results
        assert peer == client.getsockname()
        server.close()
        with no_descriptors_left():
            errors.clear()
            with stdlib_socket.socket(fileno=client.detach()):
                await listener_refuses(listener, errors)


NOT_LISTENING = {
    "tcp, connected": (stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM, errno.EINVAL),
    "tcp, bound": (stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM, errno.EINVAL),
    "udp": (stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM, errno.EOPNOTSUPP),
    "unix, connected": (stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM, errno.EINVAL),
    "unix, bound": (stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM, errno.EINVAL),
    "packets, connected": (stdlib_socket.AF_UNIX, stdlib_socket.SOCK_SEQPACKET, errno.EINVAL),
    "datagrams": (stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM, errno.EOPNOTSUPP),
}


@pytest.mark.parametrize("kind", NOT_LISTENING)
async def test_accept_where_nobody_listens_fails_at_once(kind: str) -> None:
    family, type_, error = NOT_LISTENING[kind]
    with contextlib.ExitStack() as stack:
        if kind == "tcp, connected":
            sock, other = await harness.tcp_pair()
            stack.enter_context(other)
        elif family == stdlib_socket.AF_UNIX and kind != "unix, bound":
            sock, other = trio.socket.socketpair(family, type_)
            stack.enter_context(other)
        else:
            sock = trio.socket.socket(family, type_)
            name = ("127.0.0.1", 0) if family == stdlib_socket.AF_INET else b"\0" + os.urandom(8)
            await sock.bind(name)
        stack.enter_context(sock)
        for _ in range(2):
            with pytest.raises(OSError, match="Errno") as caught, trio.fail_after(5):
                await sock.accept()
            assert caught.value.errno == error


async def test_accept_as_soon_as_somebody_has_made_it_a_listener() -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="Invalid argument"):
            await sock.accept()
        sock.listen()
        with stdlib_socket.create_connection(sock.getsockname()) as client, trio.fail_after(5):
            accepted, peer = await sock.accept()
            accepted.close()
            assert peer == client.getsockname()


async def test_connect_that_another_program_has_begun() -> None:
    """It is under way (EALREADY), and waited for."""
    with (
        stdlib_socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        stdlib_socket.create_connection(listener.getsockname()),
        trio.socket.socket() as sock,
    ):
        address = listener.getsockname()
        assert sock._sock.connect_ex(address) == errno.EINPROGRESS  # type: ignore[attr-defined]

        async def connect() -> None:
            await sock.connect(address)
            assert sock.getpeername() == address

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                await wait_all_tasks_blocked(0.01)
                listener.accept()[0].close()  # then the next handshake goes through


async def listener_refuses(listener: SocketType, errors: list[int | None]) -> None:
    """With nothing to accept, a lack of descriptors is no reason to hang for ever."""
    with trio.move_on_after(0.01):
        try:
            await listener.accept()
        except OSError as exc:
            errors.append(exc.errno)
    assert errors in ([], [errno.EMFILE])


async def test_netlink_socket() -> None:
    # A family whose addresses only the standard library knows.
    sock = trio.socket.socket(stdlib_socket.AF_NETLINK, stdlib_socket.SOCK_RAW, 0)
    with sock:
        await sock.bind((0, 0))
        get_links, dump = 18, 0x301
        header = struct.pack("=IHHII", 20, get_links, dump, 7, 0)
        request = header + struct.pack("=Bxxx", 0)
        assert await sock.sendto(request, (0, 0)) == 20
        data, sender = await sock.recvfrom(65536)
        assert sender == (0, 0)
        assert struct.unpack_from("=IHHI", data)[3] == 7
        await sock.sendmsg([request], [], 0, (0, 0))
        _, _, _, sender = await sock.recvmsg(65536)
        assert sender == (0, 0)


async def test_a_used_socket_that_is_dropped_is_closed_at_once() -> None:
    a, b = trio.socket.socketpair()
    await a.send(b"x")
    await b.send(b"y")
    assert (await b.recv(10), await a.recv(10)) == (b"x", b"y")
    with trio.move_on_after(0.001):
        await a.recv(10)
    await wait_all_tasks_blocked()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del a
    assert await b.recv(10) == b""
    b.close()


def test_a_system_task_may_still_receive_when_the_run_ends(backend: str) -> None:
    async def main() -> None:
        socks.extend(trio.socket.socketpair())
        trio.lowlevel.spawn_system_task(outcome_into, results, lambda: socks[0].recv(10))
        trio.lowlevel.spawn_system_task(
            outcome_into, results, lambda: socks[1].recv_into(bytearray(10))
        )
        await wait_all_tasks_blocked()

    socks: list[SocketType] = []
    results: list[Any] = []
    harness.run_raw(backend, main)
    assert results == []
    for sock in socks:
        sock._sock.close()  # type: ignore[attr-defined]


def test_an_instrument_that_cancels_while_events_are_processed(backend: str) -> None:
    # task_scheduled runs in the middle of process_events, and may call abort functions.
    class Canceller(trio.abc.Instrument):
        def task_scheduled(self, task: trio.lowlevel.Task) -> None:
            for scope in scopes:
                scope.cancel()

    async def main() -> None:
        pairs = [trio.socket.socketpair() for _ in range(50)]

        async def receive(a: SocketType, scope: trio.CancelScope) -> None:
            with scope:
                received.append(await a.recv(10))
            if scope.cancelled_caught:
                cancelled.append(a)

        async with trio.open_nursery() as nursery:
            new = [trio.CancelScope() for _ in pairs]
            for (a, _), scope in zip(pairs, new, strict=True):
                nursery.start_soon(receive, a, scope)
            await wait_all_tasks_blocked()
            for _, b in pairs:
                b._sock.send(b"x")  # type: ignore[attr-defined]
            scopes.extend(new)
        for a in cancelled:
            received.append(await a.recv(10))
        assert received == [b"x"] * 50
        for a, b in pairs:
            a.close()
            b.close()

    scopes: list[trio.CancelScope] = []
    received: list[bytes] = []
    cancelled: list[SocketType] = []
    harness.run(backend, main, instruments=[Canceller()])


MORE_THAN_OPTMEM_MAX = 1 << 20  # bytes; the sysctl is 20 or 128 KiB by default


async def test_sendmsg_with_too_much_control_data() -> None:
    """ENOBUFS without a buffer ring is an error like any other, not back-pressure.

    The kernel answers it to a sendmsg with more control data than it takes. Held back and
    tried again, as a receive that found no buffer is, it would spin for ever.
    """
    a, b = trio.socket.socketpair(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    with a, b:
        with pytest.raises(OSError, match="buffer space") as caught, trio.fail_after(5):
            await a.sendmsg([b"x"], [(stdlib_socket.SOL_SOCKET, 99, bytes(MORE_THAN_OPTMEM_MAX))])
        assert caught.value.errno == errno.ENOBUFS
        await a.send(b"still works")
        assert await b.recv(100) == b"still works"


@pytest.mark.parametrize(
    ("name", "args"), [("recv", (10,)), ("recv_into", (bytearray(10),)), ("recvmsg", (10,))]
)
@pytest.mark.parametrize("family", [stdlib_socket.AF_INET, stdlib_socket.AF_UNIX])
async def test_receive_on_a_listening_socket(
    family: stdlib_socket.AddressFamily, name: str, args: tuple[Any, ...]
) -> None:
    """It fails at once; nobody will ever send anything there."""
    with trio.socket.socket(family) as listener:
        await listener.bind(
            ("127.0.0.1", 0) if family == stdlib_socket.AF_INET else b"\0" + os.urandom(8)
        )
        listener.listen()
        for _ in range(2):
            with (
                pytest.raises(OSError, match=r"not connected|Invalid argument"),
                trio.fail_after(5),
            ):
                await getattr(listener, name)(*args)
