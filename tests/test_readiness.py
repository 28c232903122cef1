"""wait_readable, wait_writable, notify_closing: as on epoll, for every kind of file."""

from __future__ import annotations

import os
import socket as stdlib_socket
from typing import TYPE_CHECKING

import harness
import pytest
import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    Wait = Callable[[stdlib_socket.socket | int], Awaitable[None]]
    Pair = tuple[stdlib_socket.socket, stdlib_socket.socket]

pytestmark = pytest.mark.differential

both_directions = pytest.mark.parametrize("wait", [wait_readable, wait_writable])


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected UNIX sockets, the first neither readable nor writable."""
    with harness.nonblocking_pair() as (a, b):
        harness.fill(a)
        yield a, b


@pytest.fixture
def tcp() -> Iterator[Pair]:
    """Two connected TCP sockets: shutdown means more there than on a UNIX socket."""
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        a = stdlib_socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


class Waiter:
    """A task in ``wait(fd)``; knows how it ended."""

    def __init__(self, wait: Wait, fd: stdlib_socket.socket | int) -> None:
        self._wait = wait
        self._fd = fd
        self.scope = trio.CancelScope()
        self.outcome: str | None = None

    async def run(self) -> None:
        with self.scope:
            try:
                await self._wait(self._fd)
                self.outcome = "ready"
            except (trio.ClosedResourceError, trio.BusyResourceError, OSError) as exc:
                self.outcome = type(exc).__name__
        if self.scope.cancelled_caught:
            self.outcome = "cancelled"


async def start(nursery: trio.Nursery, *waiters: Waiter) -> None:
    for waiter in waiters:
        nursery.start_soon(waiter.run)
    await wait_all_tasks_blocked()


async def test_both_directions_of_one_socket_are_independent(pair: Pair) -> None:
    a, b = pair
    reader, writer = Waiter(wait_readable, a), Waiter(wait_writable, a)
    async with trio.open_nursery() as nursery:
        await start(nursery, reader, writer)
        assert (reader.outcome, writer.outcome) == (None, None)
        b.send(b"x")
        await wait_all_tasks_blocked()
        assert (reader.outcome, writer.outcome) == ("ready", None)
        a.recv(1)
        again = Waiter(wait_readable, a)
        await start(nursery, again)
        harness.drain(b)
        await wait_all_tasks_blocked()
        assert (again.outcome, writer.outcome) == (None, "ready")
        nursery.cancel_scope.cancel()


@both_directions
async def test_a_ready_wait_is_a_checkpoint(wait: Wait) -> None:
    with harness.nonblocking_pair() as (a, b):
        b.send(b"x")
        for _ in range(3):
            with assert_checkpoints():
                await wait(a)
        with trio.CancelScope() as scope:
            scope.cancel()
            await wait(a)
        assert scope.cancelled_caught


@both_directions
async def test_two_waits_in_one_direction_are_busy(pair: Pair, wait: Wait) -> None:
    a, _ = pair
    first = Waiter(wait, a)
    async with trio.open_nursery() as nursery:
        await start(nursery, first)
        with pytest.raises(trio.BusyResourceError):
            await wait(a)
        with pytest.raises(trio.BusyResourceError):
            await wait(a.fileno())
        assert first.outcome is None
        first.scope.cancel()
        await wait_all_tasks_blocked()
        successor = Waiter(wait, a)
        await start(nursery, successor)
        assert successor.outcome is None
        nursery.cancel_scope.cancel()


@both_directions
async def test_bad_fd(wait: Wait) -> None:
    with stdlib_socket.socket() as sock:
        number = sock.fileno()
    for fd in (number, 1 << 20):
        with pytest.raises(OSError, match=r"^\[\w+ \d+] Bad file descriptor$|^\[WinError 10038\]"):
            await wait(fd)


@pytest.mark.ring_only  # epoll raises ValueError too, and then believes in a waiter
@both_directions
async def test_a_negative_fd_is_refused(wait: Wait) -> None:
    for _ in range(2):
        with pytest.raises((OSError, ValueError)):
            await wait(-1)


@both_directions
async def test_notify_closing_has_woken_the_waiters_when_it_returns(pair: Pair, wait: Wait) -> None:
    a, b = pair
    waiter = Waiter(wait, a)
    async with trio.open_nursery() as nursery:
        await start(nursery, waiter)
        notify_closing(a)
        # What happens from now on comes too late, even in the same tick.
        b.send(b"x")
        harness.drain(b)
        waiter.scope.cancel()
    assert waiter.outcome == "ClosedResourceError"


async def test_notify_closing_wakes_both_directions(pair: Pair) -> None:
    a, _ = pair
    waiters = [Waiter(wait_readable, a), Waiter(wait_writable, a)]
    async with trio.open_nursery() as nursery:
        await start(nursery, *waiters)
        notify_closing(a.fileno())
    assert [waiter.outcome for waiter in waiters] == ["ClosedResourceError"] * 2


async def test_notify_closing_after_the_fd_was_closed(pair: Pair) -> None:
    a, _ = pair
    waiter = Waiter(wait_readable, a)
    async with trio.open_nursery() as nursery:
        await start(nursery, waiter)
        number = a.detach()
        os.close(number)
        notify_closing(number)
    assert waiter.outcome == "ClosedResourceError"


async def test_notify_closing_of_an_unknown_fd_does_nothing() -> None:
    for fd in (-1, 1 << 20, 0):
        notify_closing(fd)
    with harness.nonblocking_pair() as (a, b):
        notify_closing(a)
        b.send(b"x")
        await wait_readable(a)


async def test_hang_up_wakes_both_directions(pair: Pair) -> None:
    a, b = pair
    waiters = [Waiter(wait_readable, a), Waiter(wait_writable, a)]
    async with trio.open_nursery() as nursery:
        await start(nursery, *waiters)
        b.close()
    assert [waiter.outcome for waiter in waiters] == ["ready"] * 2


async def test_an_error_wakes_both_directions(tcp: Pair) -> None:
    a, b = tcp
    harness.fill(a)
    waiters = [Waiter(wait_readable, a), Waiter(wait_writable, a)]
    async with trio.open_nursery() as nursery:
        await start(nursery, *waiters)
        assert [waiter.outcome for waiter in waiters] == [None, None]
        b.close()  # with data unread, so the peer gets a reset
    assert [waiter.outcome for waiter in waiters] == ["ready"] * 2


async def test_pipe_write_end_wakes_when_its_reader_is_gone() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    assert os.write(writing, b"x" * (1 << 20)) < 1 << 20
    waiter = Waiter(wait_writable, writing)
    async with trio.open_nursery() as nursery:
        await start(nursery, waiter)
        assert waiter.outcome is None
        os.close(reading)
    assert waiter.outcome == "ready"
    os.close(writing)


async def test_half_closed_peer_does_not_make_a_full_socket_writable(tcp: Pair) -> None:
    # io_uring's poll reports POLLRDHUP though nobody asked for it.
    a, b = tcp
    waiter = Waiter(wait_writable, a)
    harness.fill(a)
    async with trio.open_nursery() as nursery:
        await start(nursery, waiter)
        b.shutdown(stdlib_socket.SHUT_WR)
        await wait_all_tasks_blocked(0.01)
        assert waiter.outcome is None
        harness.drain(b)
    assert waiter.outcome == "ready"


async def test_waiting_on_a_half_closed_full_socket_blocks_and_can_be_cancelled(tcp: Pair) -> None:
    a, b = tcp
    harness.fill(a)
    b.shutdown(stdlib_socket.SHUT_WR)
    waiters = [Waiter(wait_writable, a) for _ in range(3)]
    for waiter in waiters[:2]:
        async with trio.open_nursery() as nursery:
            await start(nursery, waiter)
            assert waiter.outcome is None
            waiter.scope.cancel()
        assert waiter.outcome == "cancelled"
    async with trio.open_nursery() as nursery:
        await start(nursery, waiters[2])
        notify_closing(a)
    assert waiters[2].outcome == "ClosedResourceError"


@pytest.mark.ring_only  # stock's epoll looks at what is asked for
async def test_waiting_on_a_half_closed_full_socket_costs_nothing(tcp: Pair) -> None:
    """POLLRDHUP is told again and again to a poll that is armed again and again."""
    a, b = tcp
    harness.fill(a)
    b.shutdown(stdlib_socket.SHUT_WR)
    async with trio.open_nursery() as nursery:
        await start(nursery, Waiter(wait_writable, a))
        before = harness.io_statistics().enters
        await trio.sleep(0.1)
        assert harness.io_statistics().enters - before < 20
        nursery.cancel_scope.cancel()


async def test_half_closed_peer_is_readable(tcp: Pair) -> None:
    a, b = tcp
    b.shutdown(stdlib_socket.SHUT_WR)
    await wait_readable(a)
    assert a.recv(1) == b""


@both_directions
async def test_regular_file_does_not_hang(tmp_path: Path, wait: Wait) -> None:
    # epoll refuses such files with EPERM; a poll of the ring finds them ready.
    with (tmp_path / "file").open("wb") as file, trio.fail_after(5):
        try:
            await wait(file.fileno())
        except PermissionError:
            pass


async def test_terminal_eventfd_and_pipe_can_be_waited_for() -> None:
    main, terminal = os.openpty()
    reading, writing = os.pipe()
    try:
        for fd, writer in ((terminal, main), (reading, writing)):
            waiter = Waiter(wait_readable, fd)
            async with trio.open_nursery() as nursery:
                await start(nursery, waiter)
                assert waiter.outcome is None
                os.write(writer, b"x\n")
            assert waiter.outcome == "ready"
    finally:
        for fd in (main, terminal, reading, writing):
            os.close(fd)


async def test_unnotified_close_while_waiting(pair: Pair) -> None:
    # The user closes behind trio's back. The waiter need not notice, but the run goes
    # on, and the fd's next owner is not disturbed.
    a, _b = pair
    waiter = Waiter(wait_readable, a)
    async with trio.open_nursery() as nursery:
        await start(nursery, waiter)
        number = a.fileno()
        a.close()
        with harness.nonblocking_pair() as (c, d):
            assert number in (c.fileno(), d.fileno())
            mine, other = (c, d) if c.fileno() == number else (d, c)
            waiter.scope.cancel()
            await wait_all_tasks_blocked()
            successor = Waiter(wait_readable, mine)
            await start(nursery, successor)
            assert successor.outcome is None
            other.send(b"x")
            await wait_all_tasks_blocked()
            assert successor.outcome == "ready"
    assert waiter.outcome == "cancelled"


async def test_an_fd_number_used_again_in_the_same_tick() -> None:
    for _ in range(50):
        with harness.nonblocking_pair() as (a, b):
            old = Waiter(wait_readable, a)
            async with trio.open_nursery() as nursery:
                await start(nursery, old)
                number = a.fileno()
                notify_closing(a)
                a.close()
                with harness.nonblocking_pair() as (c, d):
                    assert number in (c.fileno(), d.fileno())
                    mine, other = (c, d) if c.fileno() == number else (d, c)
                    new = Waiter(wait_readable, mine)
                    nursery.start_soon(new.run)
                    b.close()  # an event for the old file
                    await wait_all_tasks_blocked()
                    assert (old.outcome, new.outcome) == ("ClosedResourceError", None)
                    other.send(b"x")
                    await wait_all_tasks_blocked()
                    assert new.outcome == "ready"


async def test_a_wait_that_starts_and_is_closed_in_one_tick() -> None:
    async def close_if_waiting(sock: stdlib_socket.socket) -> None:
        statistics = harness.io_statistics()
        closed_in_time.append(statistics.tasks_waiting_read > harness.INTERNAL_READERS)
        if closed_in_time[-1]:
            notify_closing(sock)
            sock.close()
        else:  # trio ran this task first, by lot
            nursery.cancel_scope.cancel()

    closed_in_time: list[bool] = []
    while closed_in_time.count(True) < 10:
        with harness.nonblocking_pair() as (a, _):
            waiter = Waiter(wait_readable, a)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.run)
                nursery.start_soon(close_if_waiting, a)
            assert waiter.outcome == ("ClosedResourceError" if closed_in_time[-1] else None)


async def test_a_thousand_waits_and_cancels_in_one_tick() -> None:
    with harness.nonblocking_pair() as (a, b):
        harness.fill(a)
        fds = [os.dup(a.fileno()) for _ in range(500)]
        waiters = [Waiter(wait, fd) for wait in (wait_readable, wait_writable) for fd in fds]
        for round_ in range(3):
            async with trio.open_nursery() as nursery:
                for waiter in waiters:
                    waiter.scope = trio.CancelScope()
                    nursery.start_soon(waiter.run)
                if round_ != 1:  # in the second round nothing was submitted yet
                    await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert harness.io_statistics().tasks_waiting_read == harness.INTERNAL_READERS
        async with trio.open_nursery() as nursery:
            for waiter in waiters:
                waiter.scope = trio.CancelScope()
            await start(nursery, *waiters)
            b.send(b"x")
            harness.drain(b)
        assert {waiter.outcome for waiter in waiters} == {"ready"}
        for fd in fds:
            os.close(fd)


async def test_wait_and_cancel_at_once_many_times(pair: Pair) -> None:
    # No cancelled poll may eat the event of the next one.
    a, b = pair
    for _ in range(300):
        with trio.CancelScope() as scope:
            scope.cancel()
            await wait_readable(a)
        b.send(b"x")
        with trio.fail_after(5):
            await wait_readable(a)
        assert a.recv(10) == b"x"


async def test_file_objects_and_numbers_are_the_same() -> None:
    sock = trio.socket.socketpair()
    with sock[0] as a, sock[1] as b:
        await wait_writable(a)
        await b.send(b"x")
        await wait_readable(a)
        await wait_readable(a.fileno())
        assert await a.recv(1) == b"x"
