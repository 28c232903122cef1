"""Random sequences on two connected sockets, against a model of two byte queues.

The model knows what each end has sent and received, and which ends are shut. Every
answer of the real sockets must be one that the model allows.
"""

from __future__ import annotations

import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from trio.socket import SocketType

EXAMPLES = 60
PEEK = stdlib_socket.MSG_PEEK

ends = st.integers(0, 1)
sizes = st.one_of(st.integers(1, 40), st.sampled_from([4096, 8192, 8193, 70_000, 200_000]))

steps = st.one_of(
    st.tuples(st.just("send"), ends, sizes),
    st.tuples(st.just("receive"), ends, sizes, st.sampled_from(["recv", "recv_into", "recvmsg"])),
    st.tuples(st.just("peek"), ends, sizes),
    st.tuples(st.just("start_receive"), ends, sizes),
    st.tuples(st.just("cancel_receive"), ends),
    st.tuples(st.just("cancel_and_send"), ends, sizes),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("half_close"), ends),
    st.tuples(st.just("close"), ends),
)


class End:
    """One socket, and what the model knows of it."""

    def __init__(self, sock: SocketType) -> None:
        self.sock = sock
        self.incoming = b""  # sent by the peer, not yet received here
        self.closed = False
        self.shut = False  # its writing half
        self.blocked: BlockedReceive | None = None


class BlockedReceive:
    """A task that receives on its own while the sequence goes on."""

    def __init__(self, end: End, size: int) -> None:
        self._end = end
        self._size = size
        self.scope = trio.CancelScope()
        self.outcome: Any = None

    async def run(self) -> None:
        with self.scope:
            try:
                self.outcome = await self._end.sock.recv(self._size)
            except (trio.ClosedResourceError, OSError) as exc:
                self.outcome = exc
        if self.scope.cancelled_caught:
            self.outcome = "cancelled"


class Machine:
    """Runs a sequence of steps, and checks each answer."""

    def __init__(self, nursery: trio.Nursery, ends: list[End]) -> None:
        self._nursery = nursery
        self._ends = ends
        self._counter = 0

    def payload(self, size: int) -> bytes:
        """Bytes that are never the same twice, so that mixed-up order shows."""
        start = self._counter
        self._counter += size
        return bytes((i * 7 + i // 251) % 256 for i in range(start, start + size))

    def peer(self, end: End) -> End:
        return self._ends[1] if end is self._ends[0] else self._ends[0]

    def collect(self, end: End) -> None:
        """If its blocked receive has ended, hold the outcome against the model."""
        blocked = end.blocked
        if blocked is None or blocked.outcome is None:
            return
        end.blocked = None
        if isinstance(blocked.outcome, bytes):
            self.check_received(end, blocked.outcome)
        elif blocked.outcome != "cancelled":
            assert end.closed or self.peer(end).closed

    def check_received(self, end: End, data: bytes) -> None:
        if data:
            assert end.incoming.startswith(data)
            end.incoming = end.incoming[len(data) :]
        else:
            assert end.incoming == b""
            assert self.peer(end).shut or self.peer(end).closed

    async def step(self, name: str, index: int, *args: Any) -> None:
        for end in self._ends:
            self.collect(end)
        await getattr(self, name)(self._ends[index], *args)

    async def send(self, end: End, size: int) -> None:
        data = self.payload(size)
        if len(self.peer(end).incoming) > 50_000 and not self.peer(end).closed:
            return  # it might block, and nobody would read
        try:
            sent = await end.sock.send(data)
        except OSError:
            assert end.closed or end.shut or self.peer(end).closed
        else:
            assert 0 < sent <= size
            assert not end.closed
            assert not end.shut
            self.peer(end).incoming += data[:sent]

    async def receive(self, end: End, size: int, method: str) -> None:
        if end.blocked is not None and not end.closed:
            await self.settle(end)
            if end.blocked is not None:
                with pytest.raises(trio.BusyResourceError):
                    await end.sock.recv(size)
                return
        peer = self.peer(end)
        if not (end.incoming or end.closed or peer.closed or peer.shut):
            return  # it would block
        buffer = bytearray(size)
        try:
            if method == "recv":
                data = await end.sock.recv(size)
            elif method == "recv_into":
                data = bytes(buffer[: await end.sock.recv_into(buffer)])
            else:
                data = (await end.sock.recvmsg(size))[0]
        except OSError:
            assert end.closed or peer.closed
        else:
            assert not end.closed
            self.check_received(end, data)

    async def peek(self, end: End, size: int) -> None:
        if end.closed or end.blocked is not None or not end.incoming:
            return
        data = await end.sock.recv(size, PEEK)
        assert data
        assert end.incoming.startswith(data)

    async def start_receive(self, end: End, size: int) -> None:
        if end.closed or end.blocked is not None:
            return
        end.blocked = BlockedReceive(end, size)
        self._nursery.start_soon(end.blocked.run)
        if size % 2:
            await wait_all_tasks_blocked()

    async def cancel_receive(self, end: End) -> None:
        if end.blocked is not None:
            end.blocked.scope.cancel()

    async def cancel_and_send(self, end: End, size: int) -> None:
        await self.cancel_receive(end)
        await self.send(self.peer(end), size)

    async def settle(self, _: End) -> None:
        await wait_all_tasks_blocked()
        for end in self._ends:
            self.collect(end)

    async def half_close(self, end: End) -> None:
        if not end.closed:
            try:
                end.sock.shutdown(stdlib_socket.SHUT_WR)
            except OSError:  # with both halves shut, TCP is no more connected
                assert self.peer(end).closed or (end.shut and self.peer(end).shut)
            end.shut = True

    async def close(self, end: End) -> None:
        end.sock.close()
        end.closed = True

    async def finish(self) -> None:
        """What was sent and not received must still come, in order."""
        await self.settle(self._ends[0])
        for end in self._ends:
            await self.cancel_receive(end)
        await self.settle(self._ends[0])
        for end in self._ends:
            assert end.blocked is None
            if not end.closed and not self.peer(end).closed:
                while end.incoming:
                    self.check_received(end, await end.sock.recv(100_000))
                assert not end.sock.is_readable() or self.peer(end).shut


@pytest.mark.parametrize("family", ["tcp", "unix"])
@given(sequence=st.lists(steps, max_size=40))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    # The autouse fixture that counts fds spans all the examples, as it should.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_two_byte_queues(backend: str, family: str, sequence: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        if family == "tcp":
            socks = await harness.tcp_pair()
        else:
            socks = trio.socket.socketpair()
        both = [End(sock) for sock in socks]
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                machine = Machine(nursery, both)
                for name, index, *args in sequence:
                    await machine.step(name, index, *args)
                await machine.finish()
        for sock in socks:
            sock.close()

    with harness.no_new_fds():
        harness.run(backend, main)
