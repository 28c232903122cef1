"""Datagrams that a handler keeps stay what they were; others' objects are used again.

Whoever keeps one has it for as long as he likes: in a variable, by a method, in a task, in a call
that is asked for, by a weak reference, or with a context.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any
from unittest import mock

import harness
import pytest
import trio
from gain_tools import BOUND_S, LOOPBACK_UDP, Recorder, connect, server_in_thread, wait_until
from marks import needs_ring

from uring_trio import gain
from uring_trio.gain import _datagram

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Callable, Iterator

    from uring_trio.gain._conn import DatagramConn

pytestmark = needs_ring

EVERYWHERE = "udp://0.0.0.0:0"

addresses = pytest.mark.parametrize("address", [LOOPBACK_UDP, EVERYWHERE])


class Handler(gain.EventHandler):
    """Calls one function for each datagram, and keeps nothing of it."""

    def __init__(self, on_read: Callable[[DatagramConn, int], object]) -> None:
        self._on_read = on_read

    def on_read(self, conn: Any, n: int) -> None:
        self._on_read(conn, n)


def ask(client: stdlib_socket.socket, data: bytes) -> bytes:
    client.send(data)
    return client.recv(100)


@contextlib.contextmanager
def served(
    on_read: Callable[[DatagramConn, int], object], address: str = LOOPBACK_UDP
) -> Iterator[Callable[[], stdlib_socket.socket]]:
    """A server of one worker, and what makes a client of it."""
    with (
        contextlib.ExitStack() as clients,
        server_in_thread(Handler(on_read), address, workers=1) as server,
    ):
        yield lambda: clients.enter_context(connect(server, "127.0.0.1"))


class Keeper:
    """Keeps each datagram in one way; its answer is sent when it is asked for."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.kept: list[Any] = []

    def on_read(self, conn: DatagramConn, n: int) -> None:
        getattr(self, self.how)(conn)
        conn.write(b"kept")

    def variable(self, conn: DatagramConn) -> None:
        self.kept.append(lambda: (conn.next(), conn.remote_addr(), conn.write(b"late")))

    def method(self, conn: DatagramConn) -> None:
        read, peer, write = conn.next, conn.remote_addr, conn.write
        self.kept.append(lambda: (read(), peer(), write(b"late")))

    def task(self, conn: DatagramConn) -> None:
        conn.start_soon(self.wait, conn)

    async def wait(self, conn: DatagramConn) -> None:
        event = trio.Event()
        self.kept.append(lambda: (event.set(), conn.next(), conn.remote_addr())[1:])
        await event.wait()
        conn.write(b"late")


@addresses
@pytest.mark.parametrize("how", ["variable", "method", "task"])
def test_what_is_kept_stays_what_it_was(how: str, address: str) -> None:
    keeper = Keeper(how)
    do: list[Any] = []

    def on_read(conn: DatagramConn, n: int) -> None:
        if conn.peek() != b"now":
            keeper.on_read(conn, n)
            return
        do.extend(kept()[:2] for kept in keeper.kept)
        conn.write(b"done")

    with served(on_read, address) as client:
        clients = [client() for _ in range(4)]
        for number, each in enumerate(clients):
            assert ask(each, b"%d" % number) == b"kept"
        wait_until(lambda: len(keeper.kept) == 4, "all are kept")
        last = client()
        assert ask(last, b"now") == b"done"
        names = [each.getsockname() for each in clients]
        # (trio starts tasks in no order.)
        assert sorted(do) == [(b"%d" % number, name) for number, name in enumerate(names)]
        assert [each.recv(100) for each in clients] == [b"late"] * 4


def test_a_context_stays_with_its_datagram_alone() -> None:
    contexts: list[Any] = []

    def on_read(conn: DatagramConn, n: int) -> None:
        contexts.append(conn.context)
        conn.context = n
        conn.write(b"x")

    with served(on_read) as client:
        one = client()
        for size in (1, 2, 3):
            assert ask(one, b"x" * size) == b"x"
    assert contexts == [None, None, None]


def test_a_weak_reference_is_to_one_datagram() -> None:
    references: list[Any] = []
    alive: list[bool] = []

    def on_read(conn: DatagramConn, n: int) -> None:
        alive.append(any(reference() is not None for reference in references))
        references.append(weakref.ref(conn))
        conn.write(b"x")

    with harness.no_collection(), served(on_read) as client:
        one = client()
        for _ in range(3):
            assert ask(one, b"x") == b"x"
    # While one is told of, none before it is there.
    assert alive == [False, False, False]


def test_what_was_left_unread_is_not_the_nexts() -> None:
    read: list[bytes] = []

    def on_read(conn: DatagramConn, n: int) -> None:
        read.append(conn.next(1))
        conn.write(b"x")

    with served(on_read) as client:
        one = client()
        for data in (b"abc", b"de", b"f"):
            assert ask(one, data) == b"x"
    assert read == [b"a", b"d", b"f"]


def test_one_that_raised_is_nothing_to_the_next(caplog: pytest.LogCaptureFixture) -> None:
    def on_read(conn: DatagramConn, n: int) -> None:
        conn.write(conn.peek())
        if n == 1:
            raise ValueError("on purpose")

    with served(on_read) as client:
        one = client()
        for data in (b"a", b"bc", b"d", b"ef"):
            assert ask(one, data) == data
    assert [record.levelname for record in caplog.records].count("ERROR") == 2


@addresses
def test_each_answer_goes_to_its_own_sender(address: str) -> None:
    with served(lambda conn, n: conn.write(conn.next(n)), address) as client:
        clients = [client() for _ in range(8)]
        for turn in range(3):
            for number, each in enumerate(clients):
                each.send(b"%d of %d" % (turn, number))
            for number, each in enumerate(clients):
                assert each.recv(100) == b"%d of %d" % (turn, number)


@pytest.mark.skipif(not harness.FAST_WAYS, reason="it is a fast way")
@addresses
def test_what_nobody_keeps_is_used_again(address: str) -> None:
    made: list[Any] = []

    class Counted(_datagram.Datagram):
        __slots__ = ()

        def __init__(self, *args: Any) -> None:
            made.append(None)
            super().__init__(*args)

    with (
        mock.patch.object(_datagram, "Datagram", Counted),
        served(lambda conn, n: conn.write(conn.next(n)), address) as client,
    ):
        one = client()
        for number in range(10):
            assert ask(one, b"%d" % number) == b"%d" % number
    assert len(made) == 1


def test_with_an_on_write_each_is_told_of_by_itself() -> None:
    written: list[tuple[Any, int]] = []

    def on_write(conn: Any, n: int) -> None:
        written.append((conn.remote_addr(), n))

    handler = Recorder(on_read=lambda conn, n: conn.write(conn.next(n)), on_write=on_write)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(server_in_thread(handler, LOOPBACK_UDP, workers=1))
        clients = [stack.enter_context(connect(server)) for _ in range(3)]
        for number, client in enumerate(clients):
            client.settimeout(BOUND_S)
            assert ask(client, b"x" * (number + 1)) == b"x" * (number + 1)
        wait_until(lambda: len(written) == 3, "all are told of")
        assert written == [(c.getsockname(), number + 1) for number, c in enumerate(clients)]
