"""Connections that somebody else takes first, and listeners that take none.

Processes that share a listener are all woken for a connection, and one gets it. And a connect
to a UNIX listener with a full backlog waits for room, which no poll of its socket can tell.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

TIMES = 200  # more than the kernel's 128 retries


def listener_of(kind: str, path: Path, backlog: int = 100) -> stdlib_socket.socket:
    if kind == "tcp":
        listener = stdlib_socket.create_server(("127.0.0.1", 0), backlog=backlog)
    else:
        type_ = stdlib_socket.SOCK_STREAM if kind == "unix" else stdlib_socket.SOCK_SEQPACKET
        listener = stdlib_socket.socket(stdlib_socket.AF_UNIX, type_)
        listener.bind(str(path / "listener"))
        listener.listen(backlog)
    listener.setblocking(False)
    return listener


def connect(listener: stdlib_socket.socket) -> stdlib_socket.socket:
    client = stdlib_socket.socket(listener.family, listener.type)
    client.connect(listener.getsockname())
    return client


async def lose_races(listener: stdlib_socket.socket, times: int) -> int:
    """Connections that wake our accept, and are gone when it looks; how many it was faster for."""
    lost = 0
    for _ in range(times):
        with connect(listener):
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                lost += 1
        await trio.lowlevel.checkpoint()
    return lost


@pytest.mark.parametrize("kind", ["tcp", "unix", "seqpacket"])
async def test_accept_goes_on(kind: str, tmp_path: Path) -> None:
    accepted: list[SocketType] = []

    async def accept(sock: SocketType) -> None:
        accepted.append((await sock.accept())[0])

    listener = listener_of(kind, tmp_path)
    with tools.ours(listener.dup()) as sock, listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, sock)
            await trio.testing.wait_all_tasks_blocked()
            assert await lose_races(listener, TIMES) == 0
            await tools.nothing_moves()
            assert not accepted
            client = connect(listener)
        with client, accepted[0] as server:
            await server.send(b"served")
            assert client.recv(10) == b"served"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_serve_listeners_goes_on(kind: str, tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"served")

    listener = listener_of(kind, tmp_path)
    with listener:
        async with trio.open_nursery() as nursery:
            ours = trio.SocketListener(tools.ours(listener.dup()))
            await nursery.start(trio.serve_listeners, serve, [ours])
            await trio.testing.wait_all_tasks_blocked()
            assert await lose_races(listener, TIMES) == 0
            for _ in range(3):
                with connect(listener) as client:
                    assert await tools.read_all(client) == b"served"
            nursery.cancel_scope.cancel()


async def test_accept_is_woken_at_once_after_lost_races(tmp_path: Path) -> None:
    wakes = tools.Wakes()
    accepted = 0
    listener = listener_of("tcp", tmp_path)

    async def accept(sock: SocketType) -> None:
        nonlocal accepted
        while accepted < 5:
            server, _ = await sock.accept()
            wakes.woken()
            server.close()
            accepted += 1

    with tools.ours(listener.dup()) as sock, listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, sock)
            for number in range(5):
                await trio.testing.wait_all_tasks_blocked()
                assert await lose_races(listener, 30) == 0
                wakes.possible()
                with connect(listener):
                    await tools.until_over(lambda: accepted, number)
    wakes.check()


GREEDY = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""


@pytest.fixture
def greedy() -> Iterator[tuple[stdlib_socket.socket, subprocess.Popen[bytes]]]:
    """A listener, and a process that sleeps in accept(2) of it."""
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        command = [sys.executable, "-c", GREEDY, str(fd)]
        with subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield listener, process
            process.kill()


async def test_another_process_takes_them(
    greedy: tuple[stdlib_socket.socket, subprocess.Popen[bytes]],
) -> None:
    """It is woken with us each time, and mostly faster."""
    listener, process = greedy
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served
        async with stream:
            served += 1

    async with trio.open_nursery() as nursery:
        ours = trio.SocketListener(tools.ours(listener.dup()))
        await nursery.start(trio.serve_listeners, serve, [ours])
        for _ in range(TIMES):
            with connect(listener) as client:
                assert await tools.read_all(client) == b""
        process.kill()
        process.wait()
        before = served
        with connect(listener) as client:
            assert await tools.read_all(client) == b""
        assert served == before + 1
        nursery.cancel_scope.cancel()


# ---- connect ------------------------------------------------------------------------------


@pytest.mark.ring_only  # stock says that they are connected, which they are not
@pytest.mark.parametrize("kind", ["unix", "seqpacket"])
async def test_connect_waits_for_room_in_the_backlog(kind: str, tmp_path: Path) -> None:
    clients = 20
    listener = listener_of(kind, tmp_path, backlog=1)
    connected = 0

    async def client() -> None:
        nonlocal connected
        with trio.socket.socket(listener.family, listener.type) as sock:
            await sock.connect(listener.getsockname())
            connected += 1
            await sock.send(b"hello")
            assert await sock.recv(10) == b"served"

    with listener:
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(client)
            await tools.nothing_moves()
            assert connected == 2  # the backlog, and one
            for _ in range(clients):
                server = await trio.to_thread.run_sync(accept_blocking, listener)
                with server:
                    assert await trio.to_thread.run_sync(server.recv, 10) == b"hello"
                    server.send(b"served")


@pytest.mark.ring_only  # as above
async def test_many_connects_wait_for_one_backlog(tmp_path: Path) -> None:
    clients = 400
    listener = listener_of("unix", tmp_path, backlog=1)
    wakes = tools.Wakes()
    connected = 0

    async def client(scope: trio.CancelScope) -> None:
        nonlocal connected
        with scope, trio.socket.socket(listener.family, listener.type) as sock:
            await sock.connect(listener.getsockname())
            wakes.woken()
            connected += 1

    with listener:
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(clients)]
            for scope in scopes:
                nursery.start_soon(client, scope)
            await tools.settle()
            await trio.sleep(0.5)  # the pauses are at their longest
            await tools.nothing_moves(1.0)
            assert connected == 2  # the backlog, and one

            async def let_in(count: int) -> None:
                wakes.delays_s.clear()
                for done in range(connected, connected + count):
                    wakes.possible()
                    accept_blocking(listener).close()
                    await tools.until_over(lambda: connected, done)
                    await trio.sleep(0.05)
                    assert connected == done + 1
                wakes.check()

            await let_in(7)
            # The first, whose clock is that of all; many at once; and some in no order.
            for gone in (scopes[:20], scopes[100:], scopes[20:100:7]):
                for scope in gone:
                    scope.cancel()
                await trio.sleep(0.1)
                await let_in(3)
            with trio.fail_after(tools.BOUND_S):
                while nursery.child_tasks:
                    with contextlib.suppress(BlockingIOError):
                        accept_at_once(listener).close()
                    await trio.sleep(0.001)


@pytest.mark.ring_only  # as above
@pytest.mark.parametrize("form", ["text", "bytes", "path", "abstract"])
async def test_connects_that_wait_are_closed_or_find_nobody(form: str, tmp_path: Path) -> None:
    path = f"\0uring-trio-{tmp_path.name}" if form == "abstract" else str(tmp_path / "backlog")
    address: Any = {"bytes": path.encode(), "path": tmp_path / "backlog"}.get(form, path)
    outcomes: list[Any] = []

    async def client(sock: SocketType) -> None:
        try:
            await sock.connect(address)
            outcomes.append("connected")
        except (trio.ClosedResourceError, ConnectionRefusedError) as exc:
            outcomes.append(type(exc).__name__)

    listener = stdlib_socket.socket(stdlib_socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    with listener, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(trio.socket.socket(stdlib_socket.AF_UNIX)) for _ in range(12)]
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(client, sock)
                await trio.testing.wait_all_tasks_blocked()
            assert outcomes == ["connected"]
            for sock in socks[1:4]:  # the first of them has the clock of all
                sock.close()
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes[1:] == ["ClosedResourceError"] * 3
            listener.close()
            await tools.until_over(lambda: len(outcomes), 11)
    assert outcomes[4:] == ["ConnectionRefusedError"] * 8


def accept_at_once(listener: stdlib_socket.socket) -> Any:
    listener.setblocking(False)
    return listener.accept()[0]


def accept_blocking(listener: stdlib_socket.socket) -> Any:
    with listener.dup() as same:
        same.settimeout(tools.BOUND_S)
        server, _ = same.accept()
        server.setblocking(True)
        return server


@pytest.mark.stock_only
async def test_what_stock_does_with_a_full_backlog(tmp_path: Path) -> None:
    """It takes EAGAIN for EINPROGRESS, and a socket without a connection for writable."""
    listener = listener_of("unix", tmp_path, backlog=0)
    with listener, connect(listener), trio.socket.socket(stdlib_socket.AF_UNIX) as sock:
        await sock.connect(listener.getsockname())
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()


@pytest.mark.ring_only
async def test_connect_goes_on_as_soon_as_there_is_room(tmp_path: Path) -> None:
    wakes = tools.Wakes()
    connected = 0
    listener = listener_of("unix", tmp_path, backlog=0)

    async def client() -> None:
        nonlocal connected
        for _ in range(3):
            with trio.socket.socket(stdlib_socket.AF_UNIX) as sock:
                await sock.connect(listener.getsockname())
                wakes.woken()
                connected += 1

    with listener, connect(listener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            for number in range(3):
                await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(0.12)  # until the pauses are at their longest
                assert connected == number
                wakes.possible()
                listener.accept()[0].close()
                await tools.until_over(lambda: connected, number)
    wakes.check()


@pytest.mark.ring_only
async def test_waiting_connect_is_cancelled(tmp_path: Path) -> None:
    with listener_of("unix", tmp_path, backlog=0) as listener, connect(listener):
        with trio.socket.socket(stdlib_socket.AF_UNIX) as sock:
            with trio.move_on_after(0.05) as scope:
                await sock.connect(listener.getsockname())
            assert scope.cancelled_caught
            assert sock.fileno() == -1
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_tcp_connect_with_time_stamps() -> None:
    """Of the SYN, on the error queue, while the connect waits for its answer."""
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(50):
            with trio.socket.socket() as sock:
                tools.time_stamps(sock)
                await sock.connect(listener.getsockname())
                server, _ = listener.accept()
                with server:
                    await sock.send(b"x")
                    assert server.recv(10) == b"x"


async def test_tcp_connect_to_a_full_backlog_with_time_stamps() -> None:
    """The kernel asks again after a second: until then there are time stamps, and no answer."""
    listener = stdlib_socket.create_server(("127.0.0.1", 0), backlog=0)
    with listener, connect(listener), trio.socket.socket() as sock:
        tools.time_stamps(sock)

        async def client() -> None:
            await sock.connect(listener.getsockname())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await tools.nothing_moves()
            listener.accept()[0].close()
        assert sock.getpeername() == listener.getsockname()
