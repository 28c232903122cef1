"""Who waits no more holds no file: closed right after its wait, it is closed at once.

Nobody waits, so nobody need be told: os.close(fd) is enough on stock, whose epoll holds no file
open. A poll on the ring does until the kernel has been told to end it. A program that goes on
without a checkpoint (it reaps the child that reads from the pipe, say) must find the file closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING

import harness
import pytest
import trio
from trio.lowlevel import wait_readable, wait_writable
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Callable

    # The file that is waited for, and its other end.
    Ends = tuple[int, int]

pytestmark = pytest.mark.differential

END_MS = 1000
END = select.POLLIN | select.POLLRDHUP | select.POLLHUP | select.POLLERR


def sees_end(far: int) -> bool:
    """Whether the other end is told, with no turn of the loop in between."""
    poll = select.poll()
    poll.register(far, END)
    return bool(poll.poll(END_MS))


def reader() -> Ends:
    r, w = os.pipe()
    return r, w


def writer() -> Ends:
    r, w = os.pipe()
    os.set_blocking(w, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(w, bytes(4096))
    os.set_blocking(r, False)
    return w, r


def unix() -> Ends:
    a, b = stdlib_socket.socketpair()
    return a.detach(), b.detach()


def tcp() -> Ends:
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        a = stdlib_socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    return b.detach(), a.detach()


by_file = pytest.mark.parametrize("ends", [reader, unix, tcp])


@by_file
async def test_after_a_deadline(ends: Callable[[], Ends]) -> None:
    near, far = ends()
    with trio.move_on_after(0.01):
        await wait_readable(near)
    os.close(near)
    assert sees_end(far)
    os.close(far)


@by_file
async def test_right_after_somebody_has_cancelled_it(ends: Callable[[], Ends]) -> None:
    near, far = ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, near)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        os.close(near)  # nobody waits any more
        assert sees_end(far)
    os.close(far)


async def test_after_a_deadline_of_a_writer() -> None:
    near, far = writer()
    with trio.move_on_after(0.01):
        await wait_writable(near)
    os.close(near)
    while os.read(far, 1 << 20):  # to the end; BlockingIOError: there is still a writer
        pass
    os.close(far)


async def test_many_at_once() -> None:
    pairs = [reader() for _ in range(100)]
    async with trio.open_nursery() as nursery:
        for near, _ in pairs:
            nursery.start_soon(wait_readable, near)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        for near, far in pairs:
            os.close(near)
            assert sees_end(far)
            os.close(far)


@pytest.mark.parametrize("seconds", [0.0, 0.001])
async def test_after_it_was_ready_at_last(seconds: float) -> None:
    """A peer that has half-closed: the wait was told often, and its poll stays armed."""
    near, far = (stdlib_socket.socket(fileno=fd) for fd in tcp())
    near.setblocking(False)
    far.shutdown(stdlib_socket.SHUT_WR)
    harness.fill(near)

    async def read_slowly() -> None:
        await wait_all_tasks_blocked()
        far.setblocking(False)
        while True:
            with contextlib.suppress(BlockingIOError):
                far.recv(1 << 18)
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        await wait_writable(near)
        near.close()
        far.setblocking(True)
        far.settimeout(END_MS / 1000)
        with far:
            while far.recv(1 << 20):
                pass
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ends", [tcp, unix])
async def test_after_an_operation_that_was_cancelled(ends: Callable[[], Ends]) -> None:
    near, far = ends()
    sock = trio.socket.from_stdlib_socket(stdlib_socket.socket(fileno=near))
    for _ in range(2):  # the first is tried, the second polls first
        with trio.move_on_after(0.01):
            await sock.recv(10)
        with trio.move_on_after(0.01):
            await sock.recv_into(bytearray(10))
    sock._sock.close()  # type: ignore[attr-defined]
    assert sees_end(far)
    os.close(far)
