"""A tick that takes long holds nothing back that somebody else waits for.

Each test makes a tick long, and then has it stand still until the peer, a thread that blocks, has
what was sent. So what is held back until the tick's end never comes, and what leaves at once comes
however slow the machine is.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
import threading
import time
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from guest_tools import Host
from trio.lowlevel import FdStream
from trio.testing import MockClock

import uring_trio
from uring_trio import _kernel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.differential

# More than what counts as long. How much more does not matter.
BUSY_S = 2e-9 * _kernel.LONG_TICK_NS
DATA = b"answer"


def compute() -> None:
    """A task that does not give its tick away."""
    end = time.monotonic() + BUSY_S
    while time.monotonic() < end:
        pass


class Standstill(trio.abc.Instrument):
    """A tick's end: it does not come until the peer has received.

    Args:
      receive: what the peer does, in a thread of its own; it blocks until something has come.
      then: called in the same tick, once it has come.
    """

    def __init__(self, receive: Callable[[], object], then: Callable[[], object]) -> None:
        self.has_begun = False
        self.came: list[bool] = []
        self.got: list[Any] = []
        self._receive = receive
        self._then = then
        self._over = threading.Event()
        self.peer = threading.Thread(target=self._be_peer, daemon=True)

    def _be_peer(self) -> None:
        with contextlib.suppress(OSError):
            self.got.append(self._receive())
            self._over.set()

    def before_io_wait(self, timeout: float) -> None:
        if self.has_begun and not self.came:
            self.came.append(self._over.wait(harness.HANG_S / 4))
            self._then()
            # Whom that wakes has not been seen when it was decided how long to sleep.
            trio.lowlevel.current_trio_token().run_sync_soon(lambda: None)


async def standstill(
    act: Callable[[], Awaitable[object]],
    receive: Callable[[], object],
    then: Callable[[], object] = lambda: None,
    *,
    busy: bool = True,
    beside: Callable[[int], Awaitable[object]] | None = None,
) -> Any:
    """Have *act* begin in a tick that stands still behind it; see `Standstill`.

    Args:
      act: what is looked at.
      receive: see there.
      then: see there.
      busy: the tick is long already when it begins.
      beside: what two others do in that tick, who compute nothing, whether they come before it
        or behind it.

    Returns:
      What the peer has received.
    """
    still = Standstill(receive, then)

    async def actor() -> None:
        if busy:
            compute()
        still.has_begun = True
        await act()

    still.peer.start()
    trio.lowlevel.add_instrument(still)
    try:
        async with trio.open_nursery() as nursery:
            if beside is not None:
                nursery.start_soon(beside, 0)
            nursery.start_soon(actor)
            if beside is not None:
                nursery.start_soon(beside, 1)
    finally:
        trio.lowlevel.remove_instrument(still)
    assert still.came == [True], "it was held back"
    still.peer.join(harness.HANG_S)
    return still.got[0]


@contextlib.contextmanager
def sockets(kind: int = stdlib_socket.SOCK_STREAM) -> Iterator[tuple[Any, stdlib_socket.socket]]:
    """One of trio's, and its peer, which blocks."""
    ours, peer = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, kind)
    peer.settimeout(harness.HANG_S / 2)
    with trio.socket.from_stdlib_socket(ours) as sock, peer:
        yield sock, peer


@contextlib.contextmanager
def udp() -> Iterator[tuple[Any, stdlib_socket.socket]]:
    with trio.socket.socket(type=stdlib_socket.SOCK_DGRAM) as sock:
        peer = stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM)
        with peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(harness.HANG_S / 2)
            yield sock, peer


async def send_all_of_bytes(sock: Any, _peer: Any) -> None:
    await trio.SocketStream(sock).send_all(DATA)


async def send_all_of_a_buffer(sock: Any, _peer: Any) -> None:
    await trio.SocketStream(sock).send_all(bytearray(DATA))


async def send(sock: Any, _peer: Any) -> None:
    await sock.send(DATA)


async def sendto(sock: Any, peer: stdlib_socket.socket) -> None:
    await sock.sendto(DATA, peer.getsockname())


async def sendmsg(sock: Any, _peer: Any) -> None:
    await sock.sendmsg([DATA[:2], DATA[2:]])


@pytest.mark.parametrize(
    ("pair", "act"),
    [
        (sockets, send_all_of_bytes),
        (sockets, send_all_of_a_buffer),
        (sockets, send),
        (sockets, sendmsg),
        (udp, sendto),
    ],
)
async def test_what_is_sent_leaves_at_once(
    pair: Callable[[], Any], act: Callable[[Any, Any], Awaitable[None]]
) -> None:
    with pair() as (sock, peer):
        assert await standstill(lambda: act(sock, peer), lambda: peer.recv(99)) == DATA


# Stock's FdStream gives the tick away before it writes.
@pytest.mark.ring_only
@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_what_is_written_leaves_at_once(kind: str) -> None:
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = (sock.detach() for sock in stdlib_socket.socketpair())
    with open(reading, "rb", buffering=0) as peer:  # noqa: ASYNC230 - opens nothing
        async with FdStream(writing) as stream:
            got = await standstill(lambda: stream.send_all(DATA), lambda: peer.read(99))
    assert got == DATA


async def test_a_connect_begins_at_once() -> None:
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener, trio.socket.socket() as sock:
        listener.settimeout(harness.HANG_S / 2)
        name = listener.getsockname()
        accepted, _ = await standstill(lambda: sock.connect(name), listener.accept)
        accepted.close()


async def test_what_is_queued_beside_it_leaves_too() -> None:
    """Before it, when the tick was not long yet, and right behind it, when it had just left."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(sockets()) for _ in range(3)]
        got = await standstill(
            lambda: send(pairs[2][0], None),
            lambda: [peer.recv(99) for _, peer in pairs],
            beside=lambda number: send(pairs[number][0], None),
        )
        assert got == [DATA] * 3


async def test_who_sends_ahead_of_one_that_computes_is_not_held_back() -> None:
    """The tick is not long yet when this is sent; but such ticks have been before."""
    with sockets() as (sock, peer):
        for _ in range(3):
            compute()
            await trio.lowlevel.checkpoint()
        got = await standstill(lambda: send(sock, None), lambda: peer.recv(99), busy=False)
        assert got == DATA


@pytest.mark.parametrize(
    ("pair", "act"),
    [
        (sockets, send_all_of_bytes),
        (sockets, send_all_of_a_buffer),
        (sockets, send),
        (sockets, sendmsg),
        (udp, sendto),
    ],
)
async def test_who_is_cancelled_already_sends_nothing(
    pair: Callable[[], Any], act: Callable[[Any, Any], Awaitable[None]]
) -> None:
    with pair() as (sock, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            compute()
            await act(sock, peer)
        assert scope.cancelled_caught
        await act(sock, peer)
        assert peer.recv(99) == DATA
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(99)


# ---- what has left cannot be taken back ----------------------------------------------------


async def test_a_cancel_in_the_same_tick_comes_too_late() -> None:
    """As on stock: what was sent was sent, and its task is told so."""
    told: list[int] = []
    scope = trio.CancelScope()

    with sockets() as (sock, peer):

        async def act() -> None:
            with scope:
                told.append(await sock.send(DATA))

        assert await standstill(act, lambda: peer.recv(99), scope.cancel) == DATA
        assert told == [len(DATA)]
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):  # it is sent once
            peer.recv(99)


async def test_a_cancel_of_what_found_no_room_is_one() -> None:
    scope = trio.CancelScope()
    with sockets() as (sock, peer):
        harness.fill(sock._sock)
        peer.setblocking(False)

        async def act() -> None:
            with scope:
                await sock.send(DATA)

        await standstill(act, lambda: None, scope.cancel)
        assert scope.cancelled_caught
        assert DATA not in harness.drain(peer)
        await sock.send(DATA)  # nobody is in the way
        assert harness.drain(peer) == DATA


async def test_a_close_in_the_same_tick() -> None:
    """The peer has what was sent, and the end behind it."""
    with sockets() as (sock, peer):

        async def act() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                await sock.send(DATA)

        assert await standstill(act, lambda: peer.recv(99), sock.close) == DATA
        assert peer.recv(99) == b""


async def test_who_stands_behind_it_comes_behind_it() -> None:
    with sockets() as (sock, peer):
        async with trio.open_nursery() as nursery:
            got = await standstill(
                lambda: send(sock, None),
                lambda: peer.recv(99),
                lambda: nursery.start_soon(sock.send, b"second"),
            )
        assert (got, peer.recv(99)) == (DATA, b"second")


async def test_who_stands_behind_one_that_found_no_room_is_busy() -> None:
    """It had left early, which is no reason to take it for done."""
    behind: list[str] = []
    with sockets() as (sock, peer):
        harness.fill(sock._sock)
        peer.setblocking(False)

        async def second() -> None:
            with pytest.raises(trio.BusyResourceError):
                await sock.send(b"second")
            behind.append("busy")
            harness.drain(peer)

        async with trio.open_nursery() as nursery:
            await standstill(
                lambda: sock.send(DATA), lambda: None, lambda: nursery.start_soon(second)
            )
        assert behind == ["busy"]


# ---- other runs ------------------------------------------------------------------------------


@pytest.mark.ring_only
def test_more_than_the_queues_hold(backend: str) -> None:
    """All of one tick, which is long: none waits, and each is told of its own."""
    count = 100

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(sockets()) for _ in range(count)]
            told = []

            async def act() -> None:
                async with trio.open_nursery() as nursery:
                    for number, (sock, _) in enumerate(pairs, 1):
                        nursery.start_soon(one, sock, number)

            async def one(sock: Any, number: int) -> None:
                if number % 10 == 0:
                    compute()
                told.append((number, await sock.send(bytes(number))))

            await act()
            assert sorted(told) == [(number, number) for number in range(1, count + 1)]
            assert [len(peer.recv(999)) for _, peer in pairs] == list(range(1, count + 1))

    for sizes in ((1, 1), (2, 4), (8, 32)):
        options = uring_trio.RingOptions(sq_entries=sizes[0], cq_entries=sizes[1])
        harness.run_raw(backend, main, ring=options)


def test_of_a_guest_run(backend: str) -> None:
    async def main() -> None:
        with sockets() as (sock, peer):
            for _ in range(3):
                assert await standstill(lambda: send(sock, None), lambda: peer.recv(99)) == DATA
                await trio.sleep(0.001)  # its helper thread sleeps, and is woken by the ring
                await trio.to_thread.run_sync(peer.send, DATA)
                assert await sock.recv(99) == DATA

    Host(backend).run(main)


def test_with_a_clock_that_stands_still(backend: str) -> None:
    async def main() -> None:
        with sockets() as (sock, peer):
            assert await standstill(lambda: send(sock, None), lambda: peer.recv(99)) == DATA
            await trio.sleep(3600)

    harness.run(backend, main, clock=MockClock(autojump_threshold=0))


def test_of_two_runs_one_answers_the_other(backend: str) -> None:
    """Each in a thread of its own, and both with long ticks."""
    ours, theirs = stdlib_socket.socketpair()
    rounds = 20

    async def ask() -> None:
        with trio.socket.from_stdlib_socket(ours) as sock:
            for number in range(rounds):
                compute()
                await sock.send(b"%4d" % number)
                assert await sock.recv(4) == b"%4d" % number

    async def answer() -> None:
        with trio.socket.from_stdlib_socket(theirs) as sock:
            for _ in range(rounds):
                data = await sock.recv(4)
                compute()
                await sock.send(data)

    other = threading.Thread(target=harness.run, args=(backend, answer), daemon=True)
    other.start()
    harness.run(backend, ask)
    other.join(harness.HANG_S)
    assert not other.is_alive()
