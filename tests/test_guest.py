"""Guest mode: trio under a host loop, which acts while trio's helper thread waits."""

from __future__ import annotations

import gc
import queue
import socket as stdlib_socket
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.lowlevel
from guest_tools import SETTLE_S, Host
from trio.testing import MockClock, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture
def host(backend: str) -> Host:
    return Host(backend)


def test_returns_the_result(host: Host) -> None:
    async def main() -> str:
        await trio.lowlevel.checkpoint()
        return "done"

    assert host.run(main) == "done"


def test_many_echo_rounds(host: Host) -> None:
    async def main() -> int:
        left, right = await harness.stream_pair()
        rounds = 0

        async def echo() -> None:
            async for chunk in right:
                await right.send_all(chunk)

        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for i in range(200):
                await left.send_all(b"%6d" % i)
                assert await left.receive_some() == b"%6d" % i
                rounds += 1
            nursery.cancel_scope.cancel()
        return rounds

    assert host.run(main) == 200


def test_data_from_outside_wakes_the_helper_thread(host: Host) -> None:
    a, b = stdlib_socket.socketpair()
    received: list[bytes] = []

    async def main() -> None:
        sock = trio.socket.from_stdlib_socket(a)
        while (data := await sock.recv(10)) != b"end":
            received.append(data)

    with a, b:
        host.start(main)
        for i in range(20):
            host.settle()
            b.send(b"%d" % i)
            host.run_until(lambda i=i: len(received) == i + 1)  # type: ignore[misc]
        b.send(b"end")
        host.result()
    assert received == [b"%d" % i for i in range(20)]


@pytest.mark.parametrize("operation", ["recv", "recv_into", "accept", "wait_readable"])
def test_host_cancels_while_the_helper_thread_waits(host: Host, operation: str) -> None:
    scope = trio.CancelScope()

    async def main() -> None:
        a, b = trio.socket.socketpair()
        listener = trio.socket.socket()
        with a, b, listener:
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            with scope:
                if operation == "recv":
                    await a.recv(10)
                elif operation == "recv_into":
                    await a.recv_into(bytearray(10))
                elif operation == "accept":
                    await listener.accept()
                else:
                    await trio.lowlevel.wait_readable(a)
            await b.send(b"still here")
            assert await a.recv(10) == b"still here"

    host.start(main)
    host.settle()
    start = time.perf_counter()
    scope.cancel()
    host.result()
    assert scope.cancelled_caught
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("operation", ["recv", "recv_into", "wait_readable"])
def test_host_closes_a_socket_while_the_helper_thread_waits(host: Host, operation: str) -> None:
    sockets: list[trio.socket.SocketType] = []

    async def main() -> None:
        sockets.extend(trio.socket.socketpair())
        a = sockets[0]
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "recv": lambda: a.recv(10),
            "recv_into": lambda: a.recv_into(bytearray(10)),
            "wait_readable": lambda: trio.lowlevel.wait_readable(a),  # noqa: ASYNC105
        }
        with pytest.raises(trio.ClosedResourceError):
            await operations[operation]()

    host.start(main)
    host.settle()
    sockets[0].close()
    sockets[1]._sock.setblocking(True)  # type: ignore[attr-defined]
    assert sockets[1]._sock.recv(10) == b""  # type: ignore[attr-defined]
    host.result()
    sockets[1]._sock.close()  # type: ignore[attr-defined]  # the run is over


def test_host_closes_between_get_events_and_process_events(host: Host) -> None:
    # The helper thread has reported the event; before trio looks at it, the host closes.
    a, b = stdlib_socket.socketpair()
    ends: list[str] = []

    async def main() -> None:
        try:
            await trio.lowlevel.wait_readable(a)
        except trio.ClosedResourceError:
            ends.append("closed")
        else:
            ends.append("ready")

    with a, b:
        a.setblocking(False)
        host.start(main)
        host.settle()
        b.send(b"x")
        time.sleep(SETTLE_S)  # now the helper's callback is in the queue
        harness_close(a)
        host.result()
    assert ends == ["closed"]


def harness_close(sock: stdlib_socket.socket) -> None:
    """What SocketType.close does, for a socket of the standard library."""
    trio.lowlevel.notify_closing(sock)
    sock.close()


def test_host_cancels_between_get_events_and_process_events(host: Host) -> None:
    a, b = stdlib_socket.socketpair()
    scope = trio.CancelScope()
    received: list[bytes] = []

    async def main() -> None:
        sock = trio.socket.from_stdlib_socket(a)
        with scope:
            received.append(await sock.recv(10))
        received.append(await sock.recv(10))

    with a, b:
        host.start(main)
        host.settle()
        b.send(b"first")
        time.sleep(SETTLE_S)
        scope.cancel()
        host.settle()
        b.send(b"second")
        host.result()
    # Cancelled or not, no byte is lost.
    assert b"".join(received) in (b"firstsecond", b"first")
    assert received[0].startswith(b"first")


def test_host_moves_a_deadline(host: Host) -> None:
    scope = trio.CancelScope()
    start = time.perf_counter()

    async def main() -> None:
        with scope:
            await trio.sleep(3600)

    host.start(main)
    host.settle()
    scope.deadline = trio.current_time() + 0.05
    host.settle()
    host.result()
    assert scope.cancelled_caught
    assert time.perf_counter() - start < 5


def test_wake_from_the_hosts_own_code(host: Host) -> None:
    event = trio.Event()

    async def main() -> None:
        for _ in range(5):
            await event.wait()
            await trio.sleep(0.001)

    host.start(main)
    host.settle()
    event.set()
    host.result()


def test_threads_and_timeouts(host: Host) -> None:
    async def main() -> list[int]:
        results = [await trio.to_thread.run_sync(lambda i=i: i) for i in range(10)]  # type: ignore[misc]
        await trio.sleep(0.01)
        return results

    assert host.run(main) == list(range(10))


def test_autojump(host: Host) -> None:
    async def main() -> None:
        start = trio.current_time()
        await trio.sleep(1000)
        assert trio.current_time() - start == 1000

    host.run(main, clock=MockClock(autojump_threshold=0))


def test_wait_all_tasks_blocked_sees_ready_data(host: Host) -> None:
    async def main() -> None:
        a, b = trio.socket.socketpair()
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await a.recv(10))

        with a, b:
            for _ in range(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    await wait_all_tasks_blocked()
                    await b.send(b"x")
                    await wait_all_tasks_blocked()
                    assert received.pop() == b"x"

    host.run(main)


def test_an_error_ends_the_guest_run(host: Host) -> None:
    async def main() -> None:
        a, b = trio.socket.socketpair()
        with a, b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.recv, 1)
                await wait_all_tasks_blocked()
                raise ZeroDivisionError

    host.start(main)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group of one
        host.result()
    assert "ZeroDivisionError" in repr(caught.value)


@pytest.mark.parametrize("waiting", [False, True])
def test_abandoned_guest_run(
    host: Host, backend: str, waiting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its manager is closed by the garbage collector, with operations in flight.
    a, b = stdlib_socket.socketpair()
    unraisable: list[type[BaseException] | None] = []

    async def main() -> None:
        sock = trio.socket.from_stdlib_socket(a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recv, 10)
            nursery.start_soon(sock.wait_writable)
            await trio.sleep_forever()

    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_type))
    with a, b:
        host.start(main)
        if waiting:
            host.settle()
            b.send(b"x")  # lets the helper thread go, with a callback that is never run
            time.sleep(SETTLE_S)
        else:
            host.step()
        host._callbacks = queue.SimpleQueue()
        del host
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                gc.collect()
    assert any("abandoned" in str(warning.message) for warning in caught)
    if backend == harness.RING:
        assert not {OSError, ValueError, AttributeError, SystemError} & set(unraisable)
    harness.run(backend, trio.sleep, 0)
