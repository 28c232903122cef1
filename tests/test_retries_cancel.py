"""Whatever ends an operation between two of its tries: nothing is lost, and nothing done twice.

An operation that was woken in vain waits again, for a change or for a pause to end. Each of these
waits goes through the ways that an operation can be ended: a cancel, closing by another task,
`notify_closing`, a second task, the end of the run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket as stdlib_socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import pytest
import retries_tools as tools
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.differential

# When the end comes: after wake-ups in vain, and how long after them, in seconds. The pauses are
# 1, 2, 4 ms and so on to 32; with none of either the operation is hardly submitted.
MOMENTS = [(0, 0.0), (1, 0.0), (200, 0.0), (1, 0.002), (1, 0.04)]


@dataclass
class Waiting:
    """An operation that cannot go on, and how to see what it has done.

    Attributes:
      thing: the socket or stream, to be closed.
      start: the operation; returns *result* when it went well.
      vain: wakes it for nothing, if something can.
      make: makes it possible, once more.
      done: how often it was done, as others see it, and `start` has said.
    """

    thing: Any
    start: Callable[[], Awaitable[Any]]
    result: Any
    vain: Callable[[], None]
    make: Callable[[], None]
    done: Callable[[], int]

    async def be_woken_in_vain(self, times: int, after_s: float) -> None:
        for _ in range(times):
            self.vain()
            await trio.lowlevel.checkpoint()
        if after_s:
            await trio.sleep(after_s)

    async def close(self) -> None:
        if hasattr(self.thing, "aclose"):
            await self.thing.aclose()
        else:
            self.thing.close()


def nothing() -> None:
    """Needs no more waking: poll(2) goes on saying that it can."""


# ---- the operations -----------------------------------------------------------------------


@contextlib.contextmanager
def stolen_receive(make: Any, how: Any) -> Iterator[Waiting]:
    """A receive whose data another reader takes."""
    client, server = make()
    server.setblocking(False)

    def vain() -> None:
        client.send(b"x")
        server.recv(100)

    def left_over() -> int:
        return 1 if not harness.drain_messages(server) else 2

    with client, server, tools.ours(server.dup()) as sock:
        yield Waiting(
            thing=sock,
            start=lambda: how(sock, 100, 0),
            result=b"data",
            vain=vain,
            make=lambda: client.sendall(b"data"),
            done=left_over,
        )


@contextlib.contextmanager
def stolen_read() -> Iterator[Waiting]:
    source, target = os.pipe()
    os.set_blocking(source, False)
    stream = trio.lowlevel.FdStream(os.dup(source))

    def vain() -> None:
        os.write(target, b"x")
        os.read(source, 100)

    def make() -> None:
        os.write(target, b"data")

    def left_over() -> int:
        try:
            return 1 + len(os.read(source, 100))
        except BlockingIOError:
            return 1

    yield Waiting(
        thing=stream,
        start=stream.receive_some,
        result=b"data",
        vain=vain,
        make=make,
        done=left_over,
    )
    os.close(source)
    os.close(target)


@contextlib.contextmanager
def receive_beside_error_queue() -> Iterator[Waiting]:
    """A receive with POLLERR set all the time."""
    client, server = tools.tcp_connection()
    tools.time_stamps(server)
    server.send(b"answer")
    assert client.recv(100) == b"answer"
    server.setblocking(False)
    with client, server, tools.ours(server.dup()) as sock:
        yield Waiting(
            thing=sock,
            start=lambda: sock.recv(100),
            result=b"data",
            vain=nothing,
            make=lambda: client.sendall(b"data"),
            done=lambda: 1 if not harness.drain(server) else 2,
        )


@contextlib.contextmanager
def peek_at_urgent_byte() -> Iterator[Waiting]:
    client, server = tools.tcp_connection()
    client.send(b"!", stdlib_socket.MSG_OOB)
    with client, server, tools.ours(server.dup()) as sock:

        async def peek() -> bytes:
            return await sock.recv(4, stdlib_socket.MSG_PEEK)

        yield Waiting(
            thing=sock,
            start=peek,
            result=b"data",
            vain=nothing,
            make=lambda: client.sendall(b"data"),
            done=lambda: server.recv(100).count(b"data"),
        )


@contextlib.contextmanager
def send_to_half_closed(how: str) -> Iterator[Waiting]:
    """A send to a peer that has ended its stream and does not read."""
    client, server = tools.unix_connection()
    client.shutdown(stdlib_socket.SHUT_WR)
    server.setblocking(False)
    client.setblocking(False)
    while harness.fill(server):
        pass
    received = b""

    def make_room() -> None:
        nonlocal received
        received += harness.drain(client)

    def done() -> int:
        # What is under way comes within the connection's end.
        server.shutdown(stdlib_socket.SHUT_WR)
        client.settimeout(tools.BOUND_S)
        rest = b""
        while chunk := client.recv(1 << 20):
            rest += chunk
        return (received + rest).count(b"y")

    with client, server, tools.ours(server.dup()) as sock:
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "send": lambda: sock.send(b"y"),
            "send_user_memory": lambda: sock.send(bytearray(b"y")),
            "sendmsg": lambda: sock.sendmsg([b"y"]),
            "send_all": lambda: trio.SocketStream(sock).send_all(b"y"),
        }
        yield Waiting(
            thing=sock,
            start=operations[how],
            result=None if how == "send_all" else 1,
            vain=nothing,
            make=make_room,
            done=done,
        )


@contextlib.contextmanager
def send_to_full_receiver(folder: Path, how: str) -> Iterator[Waiting]:
    """A datagram to a UNIX receiver whose queue is full."""
    path = str(folder / "receiver")
    receiver, other = (
        stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) for _ in range(2)
    )
    receiver.bind(path)
    receiver.setblocking(False)
    other.setblocking(False)
    received: list[bytes] = []
    sender = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    if how == "send":
        sender.connect(path)

    def fill() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"x", path)

    def vain() -> None:
        received.append(receiver.recv(100))
        fill()

    with receiver, other, tools.ours(sender) as sock:
        fill()
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "send": lambda: sock.send(b"message"),
            "sendto": lambda: sock.sendto(b"message", path),
            "sendmsg": lambda: sock.sendmsg([b"mess", b"age"], [], 0, path),
        }
        yield Waiting(
            thing=sock,
            start=operations[how],
            result=len(b"message"),
            vain=vain,
            make=lambda: received.append(receiver.recv(100)),
            done=lambda: [*received, *harness.drain_messages(receiver)].count(b"message"),
        )


@contextlib.contextmanager
def stolen_accept() -> Iterator[Waiting]:
    listener = stdlib_socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    clients = []

    def connect() -> None:
        clients.append(stdlib_socket.create_connection(listener.getsockname()))

    def vain() -> None:
        connect()
        listener.accept()[0].close()
        clients.pop().close()

    def in_queue() -> int:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return 1
        return 2

    with listener, tools.ours(listener.dup()) as sock:

        async def accept() -> Any:
            server, address = await sock.accept()
            server.close()
            return address == clients[-1].getsockname()

        yield Waiting(thing=sock, start=accept, result=True, vain=vain, make=connect, done=in_queue)
    for client in clients:
        client.close()


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "recv_tcp": lambda _: stolen_receive(tools.tcp_connection, tools.RECEIVES["recv"]),
    "receive_some": lambda _: stolen_receive(
        tools.unix_connection, tools.STREAM_RECEIVES["receive_some"]
    ),
    "recvfrom_udp": lambda _: stolen_receive(tools.udp_connection, tools.RECEIVES["recvfrom"]),
    "recv_into_udp": lambda _: stolen_receive(tools.udp_connection, tools.RECEIVES["recv_into"]),
    "recvmsg_into_tcp": lambda _: stolen_receive(
        tools.tcp_connection, tools.RECEIVES["recvmsg_into"]
    ),
    "read": lambda _: stolen_read(),
    "recv_beside_error_queue": lambda _: receive_beside_error_queue(),
    "peek_at_urgent_byte": lambda _: peek_at_urgent_byte(),
    "send_unix": lambda _: send_to_half_closed("send"),
    "send_all_unix": lambda _: send_to_half_closed("send_all"),
    "send_user_memory_unix": lambda _: send_to_half_closed("send_user_memory"),
    "sendmsg_unix": lambda _: send_to_half_closed("sendmsg"),
    "send_datagram": lambda path: send_to_full_receiver(path, "send"),
    "sendto_datagram": lambda path: send_to_full_receiver(path, "sendto"),
    "sendmsg_datagram": lambda path: send_to_full_receiver(path, "sendmsg"),
    "accept": lambda _: stolen_accept(),
}
ALL = pytest.mark.parametrize("name", OPERATIONS)
SPIN_ON_STOCK = ["recv_beside_error_queue", "sendto_datagram", "sendmsg_datagram"]


def operation(name: str, tmp_path: Path) -> Any:
    """One that waits, afresh."""
    return OPERATIONS[name](Path(tempfile.mkdtemp(dir=tmp_path)))


class Outcome:
    """What became of an operation in a task of its own."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.value: Any = self  # nothing yet

    async def of(self, waiting: Waiting) -> None:
        with self.scope:
            self.value = await waiting.start()

    @property
    def went_well(self) -> bool:
        return self.value is not self


# ---- how they end -------------------------------------------------------------------------


@ALL
async def test_cancel(name: str, tmp_path: Path) -> None:
    for times, after_s in MOMENTS:
        with operation(name, tmp_path) as waiting:
            outcome = Outcome()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outcome.of, waiting)
                if times:
                    await tools.settle()
                await waiting.be_woken_in_vain(times, after_s)
                outcome.scope.cancel()
            assert outcome.scope.cancelled_caught
            waiting.make()
            assert await waiting.start() == waiting.result
            assert waiting.done() == 1


@ALL
async def test_cancel_as_it_becomes_possible(name: str, tmp_path: Path) -> None:
    """It was done and says so, or it was not done: at each distance from the cancel."""
    for (times, after_s), ticks in itertools.product([(0, 0.0), (3, 0.0), (1, 0.01)], range(4)):
        with operation(name, tmp_path) as waiting:
            outcome = Outcome()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outcome.of, waiting)
                await tools.settle()
                await waiting.be_woken_in_vain(times, after_s)
                waiting.make()
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                outcome.scope.cancel()
            if not outcome.went_well:
                assert outcome.scope.cancelled_caught
                outcome.value = await waiting.start()
            assert outcome.value == waiting.result
            assert waiting.done() == 1


async def wait_for_closing(waiting: Waiting) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await waiting.start()


async def check_close(name: str, tmp_path: Path) -> None:
    for times, after_s in MOMENTS:
        with operation(name, tmp_path) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_closing, waiting)
                await tools.settle()
                await waiting.be_woken_in_vain(times, after_s)
                await waiting.close()
            with pytest.raises((trio.ClosedResourceError, OSError)):
                await waiting.start()


async def check_notify_closing(name: str, tmp_path: Path) -> None:
    for times, after_s in MOMENTS:
        with operation(name, tmp_path) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_closing, waiting)
                await tools.settle()
                await waiting.be_woken_in_vain(times, after_s)
                trio.lowlevel.notify_closing(waiting.thing)
            waiting.make()
            assert await waiting.start() == waiting.result
            assert waiting.done() == 1


async def check_second_task(name: str, tmp_path: Path) -> None:
    for times, after_s in MOMENTS:
        with operation(name, tmp_path) as waiting:
            outcome = Outcome()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outcome.of, waiting)
                await tools.settle()
                await waiting.be_woken_in_vain(times, after_s)
                with pytest.raises(trio.BusyResourceError), trio.fail_after(5):
                    await waiting.start()
                assert not outcome.went_well
                waiting.make()
            assert outcome.value == waiting.result
            assert waiting.done() == 1


CHECKS = pytest.mark.parametrize(
    "check",
    [check_close, check_notify_closing, check_second_task],
    ids=["close", "notify_closing", "second_task"],
)


@CHECKS
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in SPIN_ON_STOCK])
async def test_another_task(name: str, check: Any, tmp_path: Path) -> None:
    await check(name, tmp_path)


# There the operation is now waiting, now trying, and it is chance who is told of what.
@pytest.mark.ring_only
@CHECKS
@pytest.mark.parametrize("name", SPIN_ON_STOCK)
async def test_another_task_where_stock_spins(name: str, check: Any, tmp_path: Path) -> None:
    await check(name, tmp_path)


@ALL
def test_end_of_the_run(name: str, backend: str, tmp_path: Path) -> None:
    """A run that ends with it on its way, and another one; the books are looked at by others."""
    with contextlib.ExitStack() as stack:

        async def first() -> Waiting:
            waiting: Waiting = stack.enter_context(operation(name, tmp_path))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.start)
                await tools.settle()
                await waiting.be_woken_in_vain(3, 0.01)
                nursery.cancel_scope.cancel()
            return waiting

        waiting = harness.run(backend, first)
        waiting.make()

        async def second() -> None:
            assert await waiting.start() == waiting.result
            if isinstance(waiting.thing, trio.lowlevel.FdStream):
                await waiting.thing.aclose()  # others are closed by who made them

        harness.run(backend, second)
        assert waiting.done() == 1


# ---- how much of a long send --------------------------------------------------------------

CONNECTIONS: dict[str, Callable[[], Any]] = {
    "tcp": tools.tcp_connection,
    "unix": tools.unix_connection,
}


@pytest.mark.parametrize("kind", CONNECTIONS)
@pytest.mark.parametrize("ending", ["cancel", "notify_closing"])
async def test_ended_send_all_leaves_a_prefix(kind: str, ending: str) -> None:
    """And nothing of it comes later: what is sent next follows at once."""
    data = tools.data_of(300_000)
    for drains, after_s in itertools.product(range(3), (0.0, 0.003, 0.05)):
        client, server = CONNECTIONS[kind]()
        client.shutdown(stdlib_socket.SHUT_WR)
        received = b""
        client.setblocking(False)
        async with trio.SocketStream(tools.ours(server)) as stream:
            ended = False

            async def send(scope: trio.CancelScope, stream: trio.SocketStream) -> None:
                nonlocal ended
                with scope:
                    try:
                        await stream.send_all(data)
                    except trio.ClosedResourceError:
                        ended = True
                ended |= scope.cancelled_caught

            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, scope, stream)
                for _ in range(drains):
                    await trio.testing.wait_all_tasks_blocked()
                    received += harness.drain(client)
                await tools.settle()
                await trio.sleep(after_s)
                if ending == "cancel":
                    scope.cancel()
                else:
                    trio.lowlevel.notify_closing(stream.socket)
            assert ended
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, b"next")
                received += await read_until(client, b"next")
        client.close()
        assert received[-4:] == b"next"
        assert received[:-4] == data[: len(received) - 4]


async def read_until(client: Any, end: bytes) -> bytes:
    def read() -> bytes:
        client.settimeout(tools.BOUND_S)
        received = b""
        while not received.endswith(end):
            chunk = client.recv(1 << 20)
            assert chunk
            received += chunk
        return received

    return await trio.to_thread.run_sync(read)


@pytest.mark.parametrize("kind", CONNECTIONS)
@pytest.mark.parametrize("how", ["send", "sendmsg"])
async def test_counts_of_cancelled_sends_add_up(kind: str, how: str) -> None:
    """The peer receives what was told to have been sent, in order, and no more."""
    data = tools.data_of(400_000)
    client, server = CONNECTIONS[kind]()
    client.shutdown(stdlib_socket.SHUT_WR)
    client.setblocking(False)
    received = b""
    cancelled = sent = 0
    with client, tools.ours(server) as sock:
        for number in itertools.count():
            with trio.move_on_after((0.0005, 0.003, 0.012, 0.04)[number % 4]) as scope:
                part = data[sent : sent + 50_000]
                sent += await (sock.send(part) if how == "send" else sock.sendmsg([part]))
            cancelled += scope.cancelled_caught
            if number % 3 == 2:
                received += harness.drain(client)
            assert len(received) <= sent
            if sent == len(data):
                break
        sock.shutdown(stdlib_socket.SHUT_WR)
        received += await tools.read_all(client)
    assert received == data
    assert cancelled > 3
