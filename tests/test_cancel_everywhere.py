"""Cancel at every checkpoint: a scenario is run once for each step that its tasks take."""

from __future__ import annotations

import socket as stdlib_socket
from typing import TYPE_CHECKING

import harness
import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.socket import SocketType


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the nth step of any task inside it."""

    def __init__(self, step: int | None) -> None:
        self.steps = 0
        self.scope = trio.CancelScope()
        self._step = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        # Only the scenario's own tasks: those of trio take steps of their own.
        if "scenario" not in task.name and "part" not in task.name:
            return
        self.steps += 1
        if self.steps == self._step:
            self.scope.cancel()


async def scenario_tcp() -> None:
    """A listener, a client and a server; data both ways, half-close, readiness."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()

        async def part_server() -> None:
            sock, _ = await listener.accept()
            async with trio.SocketStream(sock) as stream:
                async for chunk in stream:
                    await stream.send_all(chunk)

        async def part_client() -> None:
            with trio.socket.socket() as sock:
                await sock.connect(listener.getsockname())
                stream = trio.SocketStream(sock)
                for size in (10, 100_000):
                    await stream.send_all(bytes(size))
                    received = 0
                    while received < size:
                        await trio.lowlevel.wait_readable(sock)
                        received += await sock.recv_into(bytearray(50_000))
                await stream.wait_send_all_might_not_block()
                await stream.send_eof()
                assert await stream.receive_some() == b""

        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_server)
            nursery.start_soon(part_client)


async def scenario_datagrams() -> None:
    """Two UDP sockets, every method, and several senders."""
    a = trio.socket.socket(type=stdlib_socket.SOCK_DGRAM)
    b = trio.socket.socket(type=stdlib_socket.SOCK_DGRAM)

    async def part_sender(count: int) -> None:
        for _ in range(count):
            await a.sendto(b"x", b.getsockname())
            await a.sendmsg([b"y", b"z"], [], 0, b.getsockname())

    async def part_receiver() -> None:
        for _ in range(4):
            await b.recvfrom(10)
            await b.recvmsg(10)
            await b.recvfrom_into(bytearray(10))

    with a, b:
        await a.bind(("127.0.0.1", 0))
        await b.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_sender, 3)
            nursery.start_soon(part_sender, 3)
            nursery.start_soon(part_receiver)


async def scenario_blocked_senders() -> None:
    """Sends that have to wait for their reader, through sockets and a pipe's kind of stream."""
    a, b = trio.socket.socketpair()
    c, d = stdlib_socket.socketpair()
    left, right = trio.lowlevel.FdStream(c.detach()), trio.lowlevel.FdStream(d.detach())
    total = 1 << 20

    async def part_send(stream: trio.abc.SendStream) -> None:
        await stream.send_all(bytes(total))

    async def part_receive(stream: trio.abc.ReceiveStream) -> None:
        received = 0
        while received < total:
            received += len(await stream.receive_some(100_000))

    one, two = trio.SocketStream(a), trio.SocketStream(b)
    async with one, two, left, right, trio.open_nursery() as nursery:
        for source, target in ((one, two), (two, one), (left, right)):
            nursery.start_soon(part_send, source)
            nursery.start_soon(part_receive, target)


async def scenario_passed_descriptors() -> None:
    """Descriptors as cargo: a cancelled receiver must not swallow them."""
    a, b = trio.socket.socketpair()

    async def part_send() -> None:
        for _ in range(5):
            await a.sendmsg([b"x"], [(1, 1, a.fileno().to_bytes(4, "little"))])

    async def part_receive(sock: SocketType) -> None:
        for _ in range(5):
            data, cargo, _, _ = await sock.recvmsg(1, stdlib_socket.CMSG_SPACE(4))
            assert data == b"x"
            for _, _, fd in cargo:
                stdlib_socket.socket(fileno=int.from_bytes(fd[:4], "little")).close()

    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_receive, b)
            nursery.start_soon(part_send)


SCENARIOS: list[Callable[[], Awaitable[None]]] = [
    scenario_tcp,
    scenario_datagrams,
    scenario_blocked_senders,
    scenario_passed_descriptors,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda fn: fn.__name__)
def test_cancel_at_every_step(backend: str, scenario: Callable[[], Awaitable[None]]) -> None:
    async def main_scenario(instrument: CancelAt) -> None:
        with instrument.scope:
            await scenario()

    def run(step: int | None) -> CancelAt:
        instrument = CancelAt(step)
        with harness.no_new_fds():
            harness.run(backend, main_scenario, instrument, instruments=[instrument])
        return instrument

    steps = run(None).steps
    assert steps > 10
    cancelled = 0
    for step in range(1, steps + 1):
        # The order of tasks is trio's lot, so a run may take fewer steps than the first.
        cancelled += run(step).scope.cancelled_caught
    assert cancelled > steps // 2
