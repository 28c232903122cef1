"""Sockets made before there was a ring: they are on it where their kind is."""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
import subprocess
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from marks import needs_ring
from trio.testing import wait_all_tasks_blocked

import uring_trio
from uring_trio import _adoption, _trio_private
from uring_trio._sockets import UringSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.socket import SocketType

    Pair = tuple[SocketType, SocketType]

pytestmark = needs_ring

stock_type = _trio_private.stock_socket_type
StockSocket: Any = stock_type


@pytest.fixture(autouse=True)
def stock_afterwards() -> Iterator[None]:
    methods = dict(vars(stock_type))
    yield
    uring_trio.uninstall()
    assert dict(vars(stock_type)) == methods


def made_in_a_stock_run() -> Pair:
    async def make() -> Pair:
        return trio.socket.socketpair()

    return trio.run(make)


def made_outside_of_runs() -> Pair:
    return trio.socket.socketpair()


def made_from_stdlib_sockets() -> Pair:
    a, b = stdlib_socket.socketpair()
    return trio.socket.from_stdlib_socket(a), trio.socket.from_stdlib_socket(b)


def made_from_descriptors() -> Pair:
    a, b = stdlib_socket.socketpair()
    return trio.socket.socket(fileno=a.detach()), trio.socket.socket(fileno=b.detach())


def duplicated() -> Pair:
    a, b = made_outside_of_runs()
    with a._sock, b._sock:  # type: ignore[attr-defined]
        return a.dup(), b.dup()


MAKERS = [
    made_in_a_stock_run,
    made_outside_of_runs,
    made_from_stdlib_sockets,
    made_from_descriptors,
    duplicated,
]


def run_on_ring(how: str, async_fn: Any, *args: Any) -> Any:
    if how == "install":
        uring_trio.install(backend="io_uring")
        try:
            return trio.run(async_fn, *args)
        finally:
            uring_trio.uninstall()
    return uring_trio.run(async_fn, *args, backend="io_uring")


@pytest.mark.parametrize("how", ["run", "install"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_each_way_to_make_one(how: str, make: Callable[[], Pair]) -> None:
    async def main(a: SocketType, b: SocketType) -> Any:
        with a, b:
            for _ in range(5):
                await a.send(b"x")
                assert await b.recv(10) == b"x"
            return harness.io_statistics()

    pair = make()
    assert [type(sock) for sock in pair] == [stock_type] * 2
    statistics = run_on_ring(how, main, *pair)
    assert (statistics.operations["send"], statistics.operations["recv"]) == (5, 5)
    assert statistics.stock_calls == {}


OPERATIONS: dict[str, Callable[[SocketType, Any], Any]] = {
    "recv": lambda sock, _: sock.recv(10),
    "recv_into": lambda sock, _: sock.recv_into(bytearray(10)),
    "recvfrom": lambda sock, _: sock.recvfrom(10),
    "recvfrom_into": lambda sock, _: sock.recvfrom_into(bytearray(10)),
    "recvmsg": lambda sock, _: sock.recvmsg(10),
    "recvmsg_into": lambda sock, _: sock.recvmsg_into([bytearray(10)]),
    "send": lambda sock, _: sock.send(b"x"),
    "sendto": lambda sock, to: sock.sendto(b"x", to),
    "sendmsg": lambda sock, to: sock.sendmsg([b"x"], [], 0, to),
    "connect": lambda sock, to: sock.connect(to),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_may_be_the_first(name: str) -> None:
    async def main(sock: SocketType, peer: stdlib_socket.socket) -> Any:
        assert type(sock) is stock_type
        await OPERATIONS[name](sock, peer.getsockname())
        assert type(sock) is UringSocket
        return harness.io_statistics()

    with stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        with stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) as plain:
            sock = trio.socket.from_stdlib_socket(plain)
            plain.bind(("127.0.0.1", 0))
            if name == "send":
                plain.connect(peer.getsockname())
            if name.startswith("recv"):
                peer.sendto(b"x", plain.getsockname())
            statistics = uring_trio.run(main, sock, peer)
    assert statistics.stock_calls == {}
    of_sockets = sum(n for op, n in statistics.operations.items() if op != "poll_add")
    assert of_sockets + sum(statistics.plain_calls.values()) == 1


@pytest.mark.parametrize("how", ["run", "install"])
def test_a_listener_and_what_it_accepts(how: str) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async def main(listener: trio.SocketListener) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            async with await trio.open_tcp_stream(*listener.socket.getsockname()) as stream:
                for _ in range(5):
                    await stream.send_all(b"x")
                    assert await stream.receive_some(10) == b"x"
            nursery.cancel_scope.cancel()
        return harness.io_statistics()

    sock = stdlib_socket.create_server(("127.0.0.1", 0))
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    statistics = run_on_ring(how, main, listener)
    assert type(listener.socket) is UringSocket
    assert statistics.operations["recv"] >= 10
    assert statistics.stock_calls == {}


def test_streams_that_are_older_than_the_ring() -> None:
    async def main(left: trio.SocketStream, right: trio.SocketStream) -> Any:
        async with left, right:
            for size in (1, 100_000):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(left.send_all, bytes(size))
                    received = 0
                    while received < size:
                        received += len(await right.receive_some())
            await left.send_eof()
            assert await right.receive_some() == b""
        return harness.io_statistics()

    left, right = map(trio.SocketStream, trio.socket.socketpair())
    statistics = uring_trio.run(main, left, right)
    assert statistics.operations["send"] >= 2
    assert statistics.operations["recv"] >= 3
    assert statistics.stock_calls == {}


LISTEN_FDS_PROGRAM = """
import os, sys, trio, uring_trio
listener = trio.SocketListener(trio.socket.socket(fileno=int(os.environ["LISTEN_FD"])))
async def main():
    stream = await listener.accept()
    async with stream:
        await stream.send_all(await stream.receive_some())
    statistics = trio.lowlevel.current_statistics().io_statistics
    print(type(listener.socket).__name__, statistics.stock_calls)
uring_trio.run(main, backend="io_uring")
"""


def test_a_listener_that_was_inherited() -> None:
    """As of a service manager: its descriptor's number comes in the environment."""
    with stdlib_socket.create_server(("127.0.0.1", 0)) as sock:
        child = subprocess.Popen(
            [sys.executable, "-c", LISTEN_FDS_PROGRAM],
            pass_fds=[sock.fileno()],
            env={**os.environ, "LISTEN_FD": str(sock.fileno())},
            stdout=subprocess.PIPE,
            text=True,
        )
        with stdlib_socket.create_connection(sock.getsockname(), timeout=20) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"
        assert child.communicate(timeout=20)[0] == "UringSocket {}\n"


def in_child(function: Callable[[], None]) -> int:
    """The exit status of a forked child that calls it: 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:  # noqa: BLE001  a child must end here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_pre_fork_server() -> None:
    """One listener, made by the parent, and a ring in each child; the parent has one, too."""

    async def serve_one(listener: trio.SocketListener) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, listener.socket.getsockname())
            async with await listener.accept() as stream:
                assert await stream.receive_some() == b"hello"
        return harness.io_statistics()

    async def connect(address: Any) -> None:
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"hello")

    def serve() -> None:
        statistics = uring_trio.run(serve_one, listener, backend="io_uring")
        assert type(listener.socket) is UringSocket
        assert statistics.stock_calls == {}, statistics

    sock = stdlib_socket.create_server(("127.0.0.1", 0))
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    with sock:
        assert in_child(serve) == 0
        serve()
        assert in_child(serve) == 0  # also where the parent's run has used it


def test_a_socket_that_comes_out_of_a_ring_run_works_on_epoll_and_back() -> None:
    async def exchange(a: SocketType, b: SocketType) -> str:
        await a.send(b"x")
        assert await b.recv(10) == b"x"
        return str(harness.io_statistics().backend)

    a, b = made_outside_of_runs()
    backends = [
        run(exchange, a, b)
        for run in (trio.run, uring_trio.run, trio.run, uring_trio.run, trio.run)
    ]
    assert backends == ["epoll", "io_uring", "epoll", "io_uring", "epoll"]
    for sock in (a, b):
        sock._sock.close()  # type: ignore[attr-defined]


class Subclass(StockSocket):  # type: ignore[misc]
    """A user's own: its methods are its own, and what it calls is trio's."""

    calls = 0

    async def recv(self, *args: Any) -> bytes:
        self.calls += 1
        return bytes(await super().recv(*args))


def test_a_users_subclass_stays_and_is_counted() -> None:
    async def main(a: SocketType, b: Subclass) -> Any:
        await a.send(b"x")
        assert await b.recv(10) == b"x"
        await b.send(b"y")
        assert await a.recv(10) == b"y"
        with pytest.raises(FileNotFoundError):
            await b.connect("/nowhere")
        stream = trio.SocketStream(b)
        await a.send(b"z")
        assert await stream.receive_some() == b"z"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.recv, 10)
            await wait_all_tasks_blocked()
            await a.send(b"z")
        return harness.io_statistics()

    stdlib_a, stdlib_b = stdlib_socket.socketpair()
    a, b = trio.socket.from_stdlib_socket(stdlib_a), Subclass(stdlib_b)
    with stdlib_a, stdlib_b:
        statistics = uring_trio.run(main, a, b)
    assert type(b) is Subclass
    assert b.calls == 3
    assert statistics.stock_calls == {"subclass": 5}
    assert statistics.operations["send"] == 3  # of the other end


@pytest.mark.parametrize("family", ["AF_NETLINK", "AF_PACKET"])
def test_other_kinds_are_counted(family: str) -> None:
    async def main(sock: SocketType) -> Any:
        with trio.move_on_after(0.01):
            await sock.recv(10)
        return harness.io_statistics()

    try:
        plain = stdlib_socket.socket(getattr(stdlib_socket, family), stdlib_socket.SOCK_RAW)
    except PermissionError:
        pytest.skip(f"no {family} for this user")
    with plain:
        statistics = uring_trio.run(main, trio.socket.from_stdlib_socket(plain))
    assert statistics.stock_calls == {"family": 1}


def test_calls_that_are_not_the_rings_are_counted_as_ever() -> None:
    async def main(a: SocketType, b: SocketType) -> Any:
        with a, b:
            assert await a.recv(0) == b""
            with pytest.raises(ValueError, match="negative"):
                await a.recv(-1)
            b.close()
            with pytest.raises(OSError, match="Bad file"):
                await b.recv(1)
        return harness.io_statistics()

    statistics = uring_trio.run(main, *made_outside_of_runs())
    assert statistics.stock_calls == {"arguments": 2, "closed": 1}


@pytest.mark.parametrize("sender", ["epoll", "io_uring"])
def test_runs_of_both_kinds_use_one_at_the_same_time(sender: str) -> None:
    """One sends and the other receives on the same object; the peer sends all back."""
    payload = b"".join(b"%06d" % i for i in range(2_000))

    def send_back() -> None:
        with peer:
            while data := peer.recv(1000):
                peer.sendall(data)

    async def send() -> Any:
        for i in range(0, len(payload), 6):
            await sock.send(payload[i : i + 6])
        return harness.io_statistics()

    async def receive() -> Any:
        received = b""
        while len(received) < len(payload):
            received += await sock.recv(1000)
        assert received == payload
        return harness.io_statistics()

    plain, peer = stdlib_socket.socketpair()
    sock = trio.socket.from_stdlib_socket(plain)
    on_epoll, on_ring = (send, receive) if sender == "epoll" else (receive, send)
    results: list[Any] = []
    threads = [
        threading.Thread(target=send_back),
        threading.Thread(target=lambda: results.append(trio.run(on_epoll))),
    ]
    for thread in threads:
        thread.start()
    with plain:
        statistics = uring_trio.run(on_ring, backend="io_uring")
        threads[1].join()
    threads[0].join()
    assert [result.backend for result in results] == ["epoll"]
    assert statistics.operations["send" if sender == "io_uring" else "recv"] > 1
    assert statistics.stock_calls == {}


def test_a_receive_under_way_on_epoll_ends_as_it_began() -> None:
    async def on_epoll(sock: SocketType) -> bytes:
        return await sock.recv(10)

    async def on_ring(sock: SocketType, peer: SocketType) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, sock)
            await trio.sleep(0.05)
            await sock.send(b"to the peer")  # now the object is ours
            assert type(sock) is UringSocket
            assert await peer.recv(20) == b"to the peer"
            await peer.send(b"answer")

    async def collect(sock: SocketType) -> None:
        received.append(await trio.to_thread.run_sync(trio.run, on_epoll, sock))

    received: list[bytes] = []
    a, b = made_outside_of_runs()
    with a._sock, b._sock:  # type: ignore[attr-defined]
        uring_trio.run(on_ring, a, b)
    assert received == [b"answer"]


@pytest.mark.parametrize("end", ["close", "__exit__"])
def test_ending_one_that_is_only_waited_for(end: str) -> None:
    """A poll on the ring would hold the file open, and the peer would see no end."""

    async def wait(sock: SocketType) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(sock)

    async def main(a: SocketType, b: stdlib_socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, a)
            await wait_all_tasks_blocked()
            getattr(a, end)(*(None,) * 3 if end == "__exit__" else ())
            assert b.recv(1) == b""

    plain_a, b = stdlib_socket.socketpair()
    with b:
        b.settimeout(5)
        uring_trio.run(main, trio.socket.from_stdlib_socket(plain_a), b)


def test_what_stands_in_for_trios_methods_is_protected_as_ours_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a KeyboardInterrupt between the ring's answer and the task loses what was received."""
    seen: list[bool] = []
    belongs_on_ring = _adoption._belongs_on_ring

    def look(sock: Any) -> bool:
        seen.append(trio.lowlevel.currently_ki_protected())
        return belongs_on_ring(sock)

    async def main(a: SocketType, b: SocketType) -> None:
        assert not trio.lowlevel.currently_ki_protected()
        with a, b:
            await b.send(b"x")
            assert await a.recv(10) == b"x"

    monkeypatch.setattr(_adoption, "_belongs_on_ring", look)
    uring_trio.run(main, *made_outside_of_runs())
    assert seen == [True, True]
