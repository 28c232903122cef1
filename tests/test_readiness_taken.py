"""Readiness that is over before the loop looks wakes nobody.

A job server's pipe, an eventfd used as a semaphore, a terminal, a pre-fork server's listener:
what is told to several processes is there for one of them. epoll looks at the file when it is
asked; io_uring's poll believes the wake-up, which may be as old as the loop was busy. Who is
woken for nothing reads EAGAIN, or blocks where the file does.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket as stdlib_socket
import tty
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.lowlevel import wait_readable, wait_writable
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    # A file, what makes it ready, and what takes that.
    Kind = tuple[Any, Callable[[], object], Callable[[], object]]

pytestmark = pytest.mark.differential

ROUNDS = 20


@contextlib.contextmanager
def pipe(_: Path) -> Iterator[Kind]:
    r, w = os.pipe()
    yield r, lambda: os.write(w, b"x"), lambda: os.read(r, 1)
    os.close(r)
    os.close(w)


@contextlib.contextmanager
def fifo(folder: Path) -> Iterator[Kind]:
    os.mkfifo(folder / "fifo")
    fd = os.open(folder / "fifo", os.O_RDWR)
    yield fd, lambda: os.write(fd, b"x"), lambda: os.read(fd, 1)
    os.close(fd)


@contextlib.contextmanager
def eventfd(_: Path) -> Iterator[Kind]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd, lambda: os.eventfd_write(fd, 1), lambda: os.eventfd_read(fd)
    os.close(fd)


@contextlib.contextmanager
def terminal(_: Path) -> Iterator[Kind]:
    near, far = pty.openpty()
    tty.setraw(far)
    yield far, lambda: os.write(near, b"x"), lambda: os.read(far, 1)
    os.close(far)
    os.close(near)


@contextlib.contextmanager
def epoll(_: Path) -> Iterator[Kind]:
    r, w = os.pipe()
    with select.epoll() as epoll:
        epoll.register(r, select.EPOLLIN)
        yield epoll.fileno(), lambda: os.write(w, b"x"), lambda: os.read(r, 1)
    os.close(r)
    os.close(w)


@contextlib.contextmanager
def unix(_: Path) -> Iterator[Kind]:
    a, b = stdlib_socket.socketpair()
    with a, b:
        yield a, lambda: b.send(b"x"), lambda: a.recv(1)


@contextlib.contextmanager
def tcp(_: Path) -> Iterator[Kind]:
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        a = stdlib_socket.create_connection(listener.getsockname())
        b, _address = listener.accept()
    with a, b:
        yield b, lambda: a.send(b"x"), lambda: b.recv(1)


@contextlib.contextmanager
def udp(_: Path) -> Iterator[Kind]:
    with stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock, lambda: sock.sendto(b"x", sock.getsockname()), lambda: sock.recv(1)


@contextlib.contextmanager
def listener(_: Path) -> Iterator[Kind]:
    with stdlib_socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield (
            sock,
            lambda: stdlib_socket.create_connection(sock.getsockname()).close(),
            lambda: sock.accept()[0].close(),
        )


KINDS = [pipe, fifo, eventfd, terminal, epoll, unix, tcp, udp, listener]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@by_kind
async def test_what_was_there_and_is_gone_is_not_told(kind: Any, tmp_path: Path) -> None:
    told = 0
    with kind(tmp_path) as (fd, put, take):

        async def wait() -> None:
            nonlocal told
            await wait_readable(fd)
            told += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for _ in range(ROUNDS):
                await wait_all_tasks_blocked()
                put()  # between two looks of the loop ...
                take()  # ... somebody was faster
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                assert not told
            await wait_all_tasks_blocked()
            put()
        assert told == 1
        take()


@by_kind
async def test_a_wait_that_was_told_in_vain_can_be_cancelled(kind: Any, tmp_path: Path) -> None:
    with kind(tmp_path) as (fd, put, take):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_readable, fd)
            await wait_all_tasks_blocked()
            put()
            take()
            await wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0) as scope:  # nobody is left who would make it busy
            await wait_readable(fd)
        assert scope.cancelled_caught


async def test_room_that_was_there_and_is_gone_is_not_told() -> None:
    told = False
    with harness.nonblocking_pair() as (a, b):
        harness.fill(a)

        async def wait() -> None:
            nonlocal told
            await wait_writable(a)
            told = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for _ in range(ROUNDS):
                await wait_all_tasks_blocked()
                harness.drain(b)
                harness.fill(a)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                assert not told
            harness.drain(b)
        assert told


@contextlib.contextmanager
def other_process(take_all: Callable[[], None]) -> Iterator[None]:
    child = os.fork()
    if child == 0:
        try:
            take_all()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def test_one_token_between_two_processes() -> None:
    """The other one takes it while this one is busy: this one must not block in its read."""
    r, w = os.pipe()
    told_r, told_w = os.pipe()
    taken = 0

    def take_all() -> None:
        for _ in range(ROUNDS):
            os.read(r, 1)
            os.write(told_w, b"x")

    async def take() -> None:
        nonlocal taken
        await wait_readable(r)
        taken += 1

    with other_process(take_all):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            for _ in range(ROUNDS):
                await wait_all_tasks_blocked()
                os.write(w, b"x")
                os.read(told_r, 1)  # busy until the other has it
                await wait_all_tasks_blocked()
                assert not taken
            nursery.cancel_scope.cancel()
    for fd in (r, w, told_r, told_w):
        os.close(fd)
