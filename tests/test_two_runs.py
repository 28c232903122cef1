"""One socket in two runs: whichever lets go of it ends what is in flight in both.

Each run that has an operation or a poll on a file holds it open in the kernel. On stock the
file is closed at once, whoever sleeps on it elsewhere, and its peer sees the end.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.lowlevel import FdStream
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.socket import SocketType
    from typing_extensions import Self

SEEN_WITHIN_S = 5  # the peer's end, or the thread's

HOWS: dict[str, Callable[[SocketType], Any]] = {
    "close": lambda sock: sock.close(),
    "with": lambda sock: sock.__exit__(None, None, None),
    "notify_closing": lambda sock: (
        trio.lowlevel.notify_closing(sock),
        sock._sock.close(),  # type: ignore[attr-defined]
    ),
    "detach": lambda sock: os.close(sock.detach()),
}

WAITS: dict[str, Callable[[SocketType], Awaitable[Any]]] = {
    "recv": lambda sock: sock.recv(10),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recvmsg": lambda sock: sock.recvmsg(10),
    "receive_some": lambda sock: trio.SocketStream(sock).receive_some(),
    "wait_readable": trio.lowlevel.wait_readable,
    "send_all": lambda sock: trio.SocketStream(sock).send_all(bytes(8 << 20)),
}
# On the ring these tasks are woken, with which error; on stock they sleep on, or are woken.
ENDED = (trio.ClosedResourceError, trio.BrokenResourceError, OSError)


def sees_end(peer: stdlib_socket.socket) -> bool:
    """Whether the peer's receive comes to the end of the stream."""
    peer.settimeout(SEEN_WITHIN_S)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while peer.recv(1 << 20):
            pass
        return True
    return False


class OtherRun:
    """A run in another thread, in which a task of it waits on the socket."""

    def __init__(self, backend: str, wait: Callable[[], Awaitable[Any]]) -> None:
        self._backend = backend
        self._wait = wait
        self._began = threading.Event()
        self._scope = trio.CancelScope()
        self._token: Any = None
        self.ended: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        harness.run_raw(self._backend, self._main)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._task)
                await wait_all_tasks_blocked()
                self._began.set()
                await trio.sleep_forever()

    async def _task(self) -> None:
        try:
            await self._wait()
            self.ended.put("value")
        except ENDED as exc:
            self.ended.put(type(exc).__name__)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._began.wait(SEEN_WITHIN_S)
        return self

    def __exit__(self, *args: object) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(SEEN_WITHIN_S)
        assert not self._thread.is_alive()


def wrapped(plain: stdlib_socket.socket) -> SocketType:
    return trio.socket.from_stdlib_socket(plain)


@pytest.mark.parametrize("closer", [harness.EPOLL, harness.RING])
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("how", HOWS)
def test_ending_what_sleeps_in_another_threads_run(
    backend: str, how: str, wait: str, closer: str
) -> None:
    """*backend* is that of the run that waits, *closer* that of the run that lets go."""
    if closer == harness.RING and harness.ring_denied():
        pytest.skip("no io_uring here")
    if (how, closer) == ("notify_closing", harness.EPOLL) and backend == harness.RING:
        pytest.skip("trio's own manager is told a number; it does not know of other runs")
    if (how, wait) == ("detach", "wait_readable") and backend == harness.RING:
        pytest.skip("the file lives on, and so does the wait: os.close() ends none on the ring")

    async def let_go() -> None:
        HOWS[how](sock)

    plain, peer = stdlib_socket.socketpair()
    with peer:
        sock = wrapped(plain)
        with OtherRun(backend, lambda: WAITS[wait](sock)) as other:
            harness.run_raw(closer, let_go)
            assert sock.fileno() == -1
            assert sees_end(peer)
            if backend == harness.RING:
                assert other.ended.get(timeout=SEEN_WITHIN_S) in {
                    "ClosedResourceError",
                    "BrokenResourceError",
                    "OSError",
                }


@pytest.mark.parametrize("how", HOWS)
def test_ending_in_the_first_run_what_a_second_has_used(backend: str, how: str) -> None:
    """The socket was used elsewhere meanwhile, and is ended where its task sleeps."""
    ended: list[str] = []

    async def receive(sock: SocketType) -> None:
        try:
            await sock.recv(10)
        except ENDED as exc:
            ended.append(type(exc).__name__)

    async def elsewhere(sock: SocketType) -> None:
        await sock.send(b"from elsewhere")

    async def main() -> None:
        a, b = trio.socket.socketpair()
        with b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, a)
                await wait_all_tasks_blocked()
                for kind in (harness.EPOLL, backend):
                    await trio.to_thread.run_sync(harness.run_raw, kind, elsewhere, a)
                    assert await b.recv(20) == b"from elsewhere"
                HOWS[how](a)
                with trio.fail_after(SEEN_WITHIN_S):
                    assert await b.recv(1) == b""
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    harness.run(backend, main)
    if backend == harness.RING:
        assert ended == ["OSError" if how == "detach" else "ClosedResourceError"]


def test_a_socket_goes_on_in_both_runs(backend: str) -> None:
    """Neither run's use of it disturbs the other's, in turns and at the same time."""
    rounds = 200

    async def send(sock: SocketType) -> None:
        for i in range(rounds):
            await sock.send(b"%04d" % i)

    async def receive(sock: SocketType) -> bytes:
        received = b""
        while len(received) < 4 * rounds:
            received += await sock.recv(100)
        return received

    expected = b"".join(b"%04d" % i for i in range(rounds))
    plain_a, plain_b = stdlib_socket.socketpair()
    with plain_a, plain_b:
        a, b = wrapped(plain_a), wrapped(plain_b)
        for source, target in ((a, b), (b, a), (a, b)):
            sender = threading.Thread(target=harness.run_raw, args=(backend, send, source))
            sender.start()
            assert harness.run(backend, receive, target) == expected
            sender.join()


@pytest.mark.parametrize("closer", [harness.EPOLL, harness.RING])
def test_ending_an_fd_stream_in_another_run(backend: str, closer: str) -> None:
    if closer == harness.RING and harness.ring_denied():
        pytest.skip("no io_uring here")

    async def let_go() -> None:
        stream.close()

    a, peer = stdlib_socket.socketpair()
    with peer:
        stream = FdStream(a.detach())
        with OtherRun(backend, stream.receive_some) as other:
            harness.run_raw(closer, let_go)
            assert sees_end(peer)
            if backend == harness.RING:
                assert other.ended.get(timeout=SEEN_WITHIN_S) == "ClosedResourceError"


@pytest.mark.ring_only  # stock goes on by number
def test_a_number_that_is_used_again_is_left_alone(backend: str) -> None:
    """What is told to another run is about a file, and not about the number it had."""

    async def let_go_and_make_another() -> None:
        fd = sock.fileno()
        sock.close()
        again, other_end = stdlib_socket.socketpair()
        assert fd in (again.fileno(), other_end.fileno())
        made.extend([again, other_end])

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_quietly, sock)
            await wait_all_tasks_blocked()
            # This run has no turn until the other one has closed and made anew.
            thread = threading.Thread(
                target=harness.run_raw, args=(harness.EPOLL, let_go_and_make_another)
            )
            thread.start()
            thread.join()
            a, b = map(wrapped, made)
            await trio.to_thread.run_sync(bool)  # the message of the other run comes past
            async with trio.open_nursery() as inner:
                inner.start_soon(receive_one, a)
                await wait_all_tasks_blocked()
                await b.send(b"x")
            a.close()
            b.close()
            nursery.cancel_scope.cancel()

    async def end_quietly(sock: SocketType) -> None:
        with contextlib.suppress(*ENDED):
            await sock.recv(1)

    async def receive_one(sock: SocketType) -> None:
        assert await sock.recv(10) == b"x"

    made: list[stdlib_socket.socket] = []
    plain, peer = stdlib_socket.socketpair()
    with peer:
        sock = wrapped(plain)
        harness.run(backend, main)


def test_leaving_with_while_a_task_waits_for_readiness(backend: str) -> None:
    """A poll holds the file open, too."""

    async def wait(sock: SocketType) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(sock)

    async def main() -> None:
        a, b = trio.socket.socketpair()
        with b:
            async with trio.open_nursery() as nursery:
                with a:
                    nursery.start_soon(wait, a)
                    await wait_all_tasks_blocked()
                with trio.fail_after(SEEN_WITHIN_S):
                    assert await b.recv(1) == b""
                nursery.cancel_scope.cancel()

    harness.run(backend, main)


def test_a_run_that_is_over_is_not_told(backend: str) -> None:
    async def use() -> None:
        await sock.send(b"x")

    plain, peer = stdlib_socket.socketpair()
    with peer:
        sock = wrapped(plain)
        harness.run(backend, use)

        async def close() -> None:
            sock.close()

        harness.run(backend, close)
        peer.settimeout(SEEN_WITHIN_S)
        assert (peer.recv(10), peer.recv(10)) == (b"x", b"")


def test_ending_outside_of_any_run(backend: str) -> None:
    """``with`` needs no run, on stock as here."""
    plain, peer = stdlib_socket.socketpair()
    with peer:
        sock = wrapped(plain)
        with OtherRun(backend, lambda: sock.recv(10)):
            sock.__exit__(None, None, None)
            assert sees_end(peer)
