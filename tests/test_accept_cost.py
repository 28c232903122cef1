"""What an accepted connection costs in requests to the ring, so that it does not creep back."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from collections import Counter
from typing import TYPE_CHECKING

import harness
import pytest
import trio
import trio.testing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.differential

BURST = 16


def connect(listener: trio.socket.SocketType) -> stdlib_socket.socket:
    return stdlib_socket.create_connection(listener.getsockname())


def requests() -> Counter[str]:
    return Counter(harness.io_statistics().operations)


async def listening() -> trio.socket.SocketType:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(BURST)
    return listener


@contextlib.asynccontextmanager
async def burst() -> AsyncIterator[tuple[trio.socket.SocketType, list[stdlib_socket.socket]]]:
    """A listener, and connections that wait to be accepted, in their order."""
    with await listening() as listener, contextlib.ExitStack() as stack:
        yield listener, [stack.enter_context(connect(listener)) for _ in range(BURST)]


async def accept_one(listener: trio.socket.SocketType) -> None:
    accepted, _ = await listener.accept()
    accepted.close()


@pytest.mark.fast_ways
@pytest.mark.ring_only  # stock has no requests
async def test_a_burst_that_waits_costs_no_request() -> None:
    async with burst() as (listener, clients):
        before = requests()
        for client in clients:
            with trio.testing.assert_checkpoints():
                accepted, address = await listener.accept()
            with accepted:
                assert address == client.getsockname()
        await trio.lowlevel.checkpoint()
        assert requests() == before


@pytest.mark.ring_only  # stock has no requests
async def test_one_that_comes_later_costs_a_poll() -> None:
    with await listening() as listener:
        before = requests()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_one, listener)
            await trio.testing.wait_all_tasks_blocked()
            with connect(listener):
                pass
        assert requests() - before == {"poll_add": 1}


@pytest.mark.fast_ways
@pytest.mark.ring_only  # stock has no requests
async def test_sending_on_what_was_accepted_costs_one_request() -> None:
    async with burst() as (listener, clients):
        before = requests()
        for client in clients:
            accepted, _ = await listener.accept()
            async with trio.SocketStream(accepted) as stream:
                await stream.send_all(b"x")
            assert client.recv(2) == b"x"
        assert requests() - before == {"send": BURST}


async def test_a_cancelled_accept_leaves_what_waits() -> None:
    with await listening() as listener, connect(listener) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        accepted, address = await listener.accept()
        with accepted:
            assert address == client.getsockname()
