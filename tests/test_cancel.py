"""Cancellation of each operation: before submit, in flight, racing its completion.

Whatever the order, an operation either happened and says so, or was cancelled and did
not happen. The tests keep count of every byte, message and connection.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket as stdlib_socket
import threading
import time
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.lowlevel import FdStream
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.differential

ROUNDS = 200
STREAM = stdlib_socket.SOCK_STREAM
DGRAM = stdlib_socket.SOCK_DGRAM


class Receiver:
    """Something that receives, its peer, and one operation on it."""

    def __init__(self, kind: str) -> None:
        self._kind, _, name = kind.partition(".")
        self.buffer = bytearray(100)
        self.a, self.b = stdlib_socket.socketpair(
            stdlib_socket.AF_UNIX, DGRAM if self._kind == "datagram" else STREAM
        )
        self.b.setblocking(False)
        self._object = self._wrapped()
        self._name = name

    def _wrapped(self) -> Any:
        if self._kind == "FdStream":
            return FdStream(self.a.detach())
        sock = trio.socket.from_stdlib_socket(self.a)
        return trio.SocketStream(sock) if self._kind == "SocketStream" else sock

    async def receive(self) -> bytes:
        """Run the operation; the bytes that it received."""
        method = getattr(self._object, self._name)
        arguments: dict[str, tuple[Any, ...]] = {
            "recv_into": (self.buffer,),
            "recvfrom_into": (self.buffer,),
            "recvmsg_into": ([self.buffer],),
        }
        result = await method(*arguments.get(self._name, (100,)))
        if isinstance(result, tuple):
            result = result[0]
        return bytes(self.buffer[:result]) if isinstance(result, int) else bytes(result)

    def close(self) -> None:
        self.b.close()
        if self._kind == "FdStream":
            self._object._fd_holder.close()
        else:
            getattr(self._object, "socket", self._object).close()


RECEIVES = [
    *(
        f"{kind}.{name}"
        for kind in ("stream", "datagram")
        for name in ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into")
    ),
    "SocketStream.receive_some",
    "FdStream.receive_some",
]

every_receive = pytest.mark.parametrize("receiver", RECEIVES, indirect=True)


@pytest.fixture
def receiver(request: pytest.FixtureRequest, backend: str) -> Iterator[Receiver]:
    kinds: list[Receiver] = []

    class Lazy:
        """Made inside the run, because FdStream and the sockets belong to a run."""

        def __getattr__(self, name: str) -> Any:
            if not kinds:
                kinds.append(Receiver(request.param))
            return getattr(kinds[0], name)

    yield Lazy()  # type: ignore[misc]
    for made in kinds:
        made.b.close()


@every_receive
async def test_cancelled_before_it_starts(receiver: Receiver) -> None:
    receiver.b.send(b"kept")
    with trio.CancelScope() as scope:
        scope.cancel()
        await receiver.receive()
    assert scope.cancelled_caught
    assert await receiver.receive() == b"kept"
    receiver.close()


@every_receive
async def test_cancelled_in_the_tick_in_which_it_starts(receiver: Receiver) -> None:
    # Queued, and not yet submitted; or not even queued: the order is trio's lot.
    for i in range(20):
        received: list[bytes] = []

        async def receive(received: list[bytes] = received) -> None:
            received.append(await receiver.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.lowlevel.cancel_shielded_checkpoint()
            nursery.cancel_scope.cancel()
        assert received == []
        receiver.b.send(b"%d" % i)
        assert await receiver.receive() == b"%d" % i
    receiver.close()


@every_receive
async def test_cancelled_in_flight(receiver: Receiver) -> None:
    for i in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        receiver.b.send(b"%d" % i)
        assert await receiver.receive() == b"%d" % i
        receiver.buffer.extend(b"x")  # nobody holds it any more
    receiver.close()


async def race(operation: Callable[[], Awaitable[Any]], act: Callable[[], Any], order: str) -> Any:
    """What the operation returned if it was not cancelled, with ``act`` at the same moment."""
    results: list[Any] = []
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            results.append(await operation())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        if order == "act first":
            act()
            scope.cancel()
        elif order == "cancel first":
            scope.cancel()
            act()
        elif order == "a tick between":
            act()
            await trio.lowlevel.checkpoint()
            scope.cancel()
        else:
            thread = threading.Thread(target=act)
            thread.start()
            deadline = time.perf_counter() + random.uniform(0, 0.0003)
            while time.perf_counter() < deadline:
                await trio.lowlevel.checkpoint()
            scope.cancel()
            thread.join()
    assert len(results) + scope.cancelled_caught == 1
    return results[0] if results else None


ORDERS = ["act first", "cancel first", "a tick between", "another thread"]


@every_receive
@pytest.mark.parametrize("order", ORDERS)
async def test_cancel_races_arriving_data(receiver: Receiver, order: str) -> None:
    for i in range(ROUNDS // 4):
        message = b"message %d" % i

        def act(message: bytes = message) -> None:
            receiver.b.send(message)

        received = await race(receiver.receive, act, order)
        if received is None:
            received = await receiver.receive()
        assert received == message
    receiver.close()


@pytest.mark.parametrize("order", ORDERS)
async def test_cancel_races_the_end_of_the_stream(order: str) -> None:
    for _ in range(20):
        a, b = trio.socket.socketpair()
        with a, b:
            received = await race(
                lambda a=a: a.recv(10),  # type: ignore[misc]
                b._sock.close,  # type: ignore[attr-defined]
                order,
            )
            assert received in (None, b"")
            assert await a.recv(10) == b""


@pytest.mark.parametrize("order", ORDERS)
async def test_cancelled_accept_loses_no_connection(order: str) -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(ROUNDS // 4):
            with stdlib_socket.socket() as client:
                address = listener.getsockname()
                accepted = await race(
                    listener.accept,
                    lambda c=client, a=address: c.connect(a),  # type: ignore[misc]
                    order,
                )
                server, peer = accepted or await listener.accept()
                with server:
                    assert peer == client.getsockname()


class Sender:
    """A UNIX socket that is full, and one operation that sends on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        type_ = DGRAM if name.startswith("datagram") else STREAM
        self.sock, self.peer = trio.socket.socketpair(stdlib_socket.AF_UNIX, type_)
        self.unit = 1000 if type_ == DGRAM else 64 << 10
        self.filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filled += self.sock._sock.send(bytes(self.unit))  # type: ignore[attr-defined]

    async def send(self, data: bytes) -> int:
        if self.name.endswith("sendmsg"):
            return await self.sock.sendmsg([data[:10], data[10:]])
        return await self.sock.send(data)

    def make_room(self) -> int:
        """Take everything out of the peer; how much there was."""
        return len(harness.drain(self.peer._sock))  # type: ignore[attr-defined]

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.mark.parametrize(
    "name", ["stream.send", "stream.sendmsg", "datagram.send", "datagram.sendmsg"]
)
@pytest.mark.parametrize("order", ORDERS)
async def test_cancelled_send_sent_nothing(name: str, order: str) -> None:
    for _ in range(10):
        sender = Sender(name)
        taken: list[int] = []
        sent = await race(
            lambda s=sender: s.send(b"y" * 900),  # type: ignore[misc]
            lambda s=sender, t=taken: t.append(s.make_room()),  # type: ignore[misc]
            order,
        )
        await wait_all_tasks_blocked()
        assert sum(taken) + sender.make_room() == sender.filled + (sent or 0)
        sender.close()


@pytest.mark.parametrize("kind", ["SocketStream", "FdStream"])
async def test_cancelled_send_all_has_sent_a_prefix(kind: str) -> None:
    payload = os.urandom(4 << 20)
    for delay_ticks in range(0, 40, 3):
        a, b = trio.socket.socketpair()
        stream: Any = trio.SocketStream(a) if kind == "SocketStream" else FdStream(a.detach())
        received = bytearray()
        async with stream, trio.SocketStream(b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, payload)
                for _ in range(delay_ticks):
                    received += harness.drain(b._sock)  # type: ignore[attr-defined]
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            received += harness.drain(b._sock)  # type: ignore[attr-defined]
            assert payload.startswith(received)
            # It was told Cancelled, and what it had not sent it does not send later.
            await wait_all_tasks_blocked(0.005)
            assert not b.is_readable()


async def test_send_all_that_was_half_done_raises_cancelled() -> None:
    left, right = await harness.stream_pair()
    async with left, right:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.send_all, bytes(32 << 20))
                await wait_all_tasks_blocked(0.01)
                assert right.socket.is_readable()
                scope.cancel()
        assert scope.cancelled_caught


async def test_cancelled_connect_closes_the_socket() -> None:
    with stdlib_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with stdlib_socket.create_connection(listener.getsockname()):
            # The queue of connections is full, so that this one stays half open.
            sock = trio.socket.socket()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sock.connect, listener.getsockname())
                await wait_all_tasks_blocked(0.01)
                if not nursery.child_tasks:
                    pytest.skip("this kernel accepts more than listen(0) says")
                nursery.cancel_scope.cancel()
            assert sock.fileno() == -1
        sock = trio.socket.socket()
        with trio.CancelScope() as scope:
            scope.cancel()
            await sock.connect(listener.getsockname())
        assert scope.cancelled_caught
        assert sock.fileno() == -1


async def test_next_receive_is_held_back_while_the_first_is_cancelled() -> None:
    for _ in range(ROUNDS // 4):
        a, b = trio.socket.socketpair()
        received: list[bytes] = []

        async def receive(a: Any = a, received: list[bytes] = received) -> None:
            received.append(await a.recv(10))

        with a, b:
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as first:
                    first.start_soon(receive)
                    await wait_all_tasks_blocked()
                    first.cancel_scope.cancel()
                    nursery.start_soon(receive)  # no BusyResourceError
                await b.send(b"x")
            assert received == [b"x"]


async def test_a_task_behind_one_in_flight_can_be_cancelled_alone() -> None:
    a, b = trio.socket.socketpair()
    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.recv, 1)
            await wait_all_tasks_blocked()
            for _ in range(5):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    with contextlib.suppress(trio.BusyResourceError):
                        await a.recv(1)
            assert len(nursery.child_tasks) == 1
            await b.send(b"x")


async def test_shielded_operations_are_not_cancelled() -> None:
    a, b = trio.socket.socketpair()
    received: list[bytes] = []

    async def receive() -> None:
        with trio.CancelScope(shield=True):
            received.append(await a.recv(10))

    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert received == []
                await b.send(b"x")
    assert received == [b"x"]


async def test_many_operations_cancelled_in_one_tick() -> None:
    pairs = [trio.socket.socketpair() for _ in range(400)]
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for a, b in pairs:
                nursery.start_soon(a.recv, 10)
                nursery.start_soon(b.recv_into, bytearray(10))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    for a, b in pairs:
        await a.send(b"x")
        assert await b.recv(10) == b"x"
        a.close()
        b.close()
