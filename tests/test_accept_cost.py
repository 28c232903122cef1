"""What an accepted connection costs in requests to the ring, so that it does not creep back."""

from __future__ import annotations

import socket as stdlib_socket

import harness
import pytest
import trio
import trio.testing

pytestmark = pytest.mark.differential

BURST = 16


def connect(listener: trio.socket.SocketType) -> stdlib_socket.socket:
    return stdlib_socket.create_connection(listener.getsockname())


def requests() -> dict[str, int]:
    return dict(harness.io_statistics().operations)


def since(before: dict[str, int]) -> dict[str, int]:
    return {
        name: n - before.get(name, 0) for name, n in requests().items() if n > before.get(name, 0)
    }


async def listening() -> trio.socket.SocketType:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(BURST)
    return listener


async def accept_one(listener: trio.socket.SocketType) -> None:
    accepted, _ = await listener.accept()
    accepted.close()


@pytest.mark.ring_only  # stock has no requests
async def test_a_burst_that_waits_costs_no_request() -> None:
    with await listening() as listener:
        clients = [connect(listener) for _ in range(BURST)]
        before = requests()
        for client in clients:
            with trio.testing.assert_checkpoints():
                accepted, address = await listener.accept()
            with accepted, client:
                assert address == client.getsockname()
        await trio.lowlevel.checkpoint()
        assert since(before) == {}


@pytest.mark.ring_only  # stock has no requests
async def test_one_that_comes_later_costs_a_poll() -> None:
    with await listening() as listener:
        before = requests()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_one, listener)
            await trio.testing.wait_all_tasks_blocked()
            with connect(listener):
                pass
        assert since(before) == {"poll_add": 1}


@pytest.mark.ring_only  # stock has no requests
async def test_sending_on_what_was_accepted_costs_one_request() -> None:
    with await listening() as listener:
        clients = [connect(listener) for _ in range(BURST)]
        before = requests()
        for client in clients:
            accepted, _ = await listener.accept()
            stream = trio.SocketStream(accepted)
            await stream.send_all(b"x")
            await stream.aclose()
            with client:
                assert client.recv(2) == b"x"
        assert since(before) == {"send": BURST}


async def test_a_cancelled_accept_leaves_what_waits() -> None:
    with await listening() as listener, connect(listener) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        accepted, address = await listener.accept()
        with accepted:
            assert address == client.getsockname()
