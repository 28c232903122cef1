"""Many senders of UNIX datagrams that wait for one full receiver.

poll(2) of a socket that is not connected knows nothing of the receiver, so whoever waits for it
must try. That each of a thousand does so for itself is a burden; that some do so for all must
leave nobody behind, whoever is cancelled, closed or moved on meanwhile.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import random
import socket as stdlib_socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import harness
import pytest
import retries_tools as tools
import trio

import uring_trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.differential

SENDERS_MAX = 900  # an ordinary user has 1,024 descriptors
SENDERS = 100
COST_WINDOW_S = 1.0
SEEDS = [1, 2, 3]


def datagram_socket() -> stdlib_socket.socket:
    sock = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


def fill(address: Any) -> None:
    with datagram_socket() as other, contextlib.suppress(BlockingIOError):
        while True:
            other.sendto(b"fill", address)


@contextlib.contextmanager
def full_receiver(address: Any) -> Iterator[stdlib_socket.socket]:
    with datagram_socket() as receiver:
        receiver.bind(address)
        fill(address)
        yield receiver


class Senders:
    """Tasks that send a message each, with a socket of their own."""

    def __init__(self, address: Any, count: int) -> None:
        self.address = address
        self.count = count
        self.sent: list[int] = []
        self.errors: dict[int, BaseException] = {}
        self.sockets: dict[int, Any] = {}
        self.scopes = [trio.CancelScope() for _ in range(count)]
        self.on_sent: Callable[[], None] = lambda: None

    def start(self, nursery: trio.Nursery) -> None:
        for number in range(self.count):
            nursery.start_soon(self._send, number)

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """All of them wait now, and are over in the end."""
        async with trio.open_nursery() as nursery:
            self.start(nursery)
            await tools.until(lambda: len(self.sockets) == self.count)
            await tools.settle()
            assert not self.sent
            assert not self.errors
            yield

    async def _send(self, number: int) -> None:
        message = b"%d" % number
        with trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as sock:
            self.sockets[number] = sock
            with self.scopes[number]:
                try:
                    assert await sock.sendto(message, self.address) == len(message)
                except (OSError, trio.ClosedResourceError) as exc:
                    self.errors[number] = exc
                else:
                    self.sent.append(number)
                    self.on_sent()

    def over(self) -> int:
        stopped = sum(scope.cancelled_caught for scope in self.scopes)
        return len(self.sent) + len(self.errors) + stopped

    async def finish(self, *receivers: stdlib_socket.socket) -> list[bytes]:
        """Read until all are over: what they have sent."""
        messages: list[bytes] = []
        with trio.fail_after(tools.BOUND_S):
            while self.over() < self.count:
                for receiver in receivers:
                    messages += harness.drain_messages(receiver)
                await trio.sleep(0.001)
        for receiver in receivers:
            messages += harness.drain_messages(receiver)
        return [message for message in messages if message != b"fill"]

    def expected(self) -> collections.Counter[bytes]:
        return collections.Counter(b"%d" % number for number in self.sent)


async def test_they_cost_little_and_all_get_through(tmp_path: Path) -> None:
    senders = Senders(str(tmp_path / "log"), SENDERS_MAX)
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            await trio.sleep(0.2)  # the pauses are at their longest
            await tools.nothing_moves(COST_WINDOW_S)
            messages = await senders.finish(receiver)
    assert collections.Counter(messages) == senders.expected()
    assert len(senders.sent) == SENDERS_MAX


@pytest.mark.parametrize("count", [2, 16, 17, SENDERS_MAX])
async def test_one_goes_on_as_soon_as_there_is_room_for_one(count: int, tmp_path: Path) -> None:
    senders = Senders(str(tmp_path / "log"), count)
    wakes = tools.Wakes()
    senders.on_sent = wakes.woken
    drained = min(count, 9)
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            for done in range(drained):
                await trio.sleep(0.12)
                assert len(senders.sent) == done
                wakes.possible()
                receiver.recv(1000)
                await tools.until_over(lambda: len(senders.sent), done)
            await senders.finish(receiver)
    wakes.delays_s = wakes.delays_s[:drained]
    wakes.check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_whoever_leaves_holds_up_nobody(how: str, seed: int, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    senders = Senders(str(tmp_path / "log"), SENDERS)
    leaving = random_.sample(range(SENDERS), SENDERS * 3 // 4)
    messages: list[bytes] = []
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            for position, number in enumerate(leaving):
                if how == "cancel":
                    senders.scopes[number].cancel()
                else:
                    senders.sockets[number].close()
                if position % 5 == 0:
                    await trio.sleep(random_.choice([0, 0.001, 0.01, 0.04]))
                if position % 20 == 0:
                    messages += harness.drain_messages(receiver)
            messages += await senders.finish(receiver)
    messages = [message for message in messages if message != b"fill"]
    assert collections.Counter(messages) == senders.expected()
    assert set(senders.sent) >= set(range(SENDERS)) - set(leaving)
    if tools.on_the_ring():  # stock, which spins, may find the descriptor closed at its next try
        for exc in senders.errors.values():
            assert isinstance(exc, trio.ClosedResourceError)


async def test_the_first_ones_leave_and_the_rest_wait_on(tmp_path: Path) -> None:
    senders = Senders(str(tmp_path / "log"), 40)
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            for number in range(39):
                senders.scopes[number].cancel()
                await trio.sleep(0.003)
            await tools.nothing_moves(tools.SHORT_WINDOW_S)
            assert await senders.finish(receiver) == [b"39"]


async def test_a_receiver_in_another_process(tmp_path: Path) -> None:
    senders = Senders(str(tmp_path / "log"), SENDERS)
    code = f"""
import os, socket, sys
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind({senders.address!r})
os.write(1, b"bound\\n")
sys.stdin.readline()
while (message := receiver.recv(1000)) != b"end":
    if message != b"fill":
        print(message.decode(), flush=True)
"""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        assert await process.stdout.receive_some() == b"bound\n"
        fill(senders.address)
        async with senders.waiting():
            await tools.nothing_moves(tools.SHORT_WINDOW_S)
            await process.stdin.send_all(b"go\n")
        with trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as last:
            await last.sendto(b"end", senders.address)
        lines = b"".join([part async for part in process.stdout]).split()
        await process.wait()
    assert collections.Counter(lines) == senders.expected()
    assert len(lines) == SENDERS


async def test_who_waits_for_another_receiver_has_no_part_in_it(tmp_path: Path) -> None:
    one = Senders(str(tmp_path / "one"), 30)
    two = Senders(str(tmp_path / "two"), 30)
    with full_receiver(one.address) as first, full_receiver(two.address) as second:
        async with one.waiting(), two.waiting():
            assert collections.Counter(await two.finish(second)) == two.expected()
            await tools.nothing_moves(tools.SHORT_WINDOW_S)
            assert not one.sent
            assert collections.Counter(await one.finish(first)) == one.expected()


async def test_abstract_names() -> None:
    senders = Senders(b"\0uring-trio many senders", 40)
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            await tools.nothing_moves(tools.SHORT_WINDOW_S)
            assert collections.Counter(await senders.finish(receiver)) == senders.expected()


async def test_a_relative_path_is_that_of_each_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "b")
    with datagram_socket() as free, contextlib.ExitStack() as stack:
        free.bind("log")
        monkeypatch.chdir(tmp_path / "a")
        stack.enter_context(full_receiver("log"))
        senders = Senders("log", 40)
        async with senders.waiting():
            monkeypatch.chdir(tmp_path / "b")
            assert collections.Counter(await senders.finish(free)) == senders.expected()
    assert len(senders.sent) == 40


async def test_a_receiver_that_goes_away_ends_all_waits(tmp_path: Path) -> None:
    senders = Senders(str(tmp_path / "log"), SENDERS)
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            receiver.close()
    assert len(senders.errors) == SENDERS
    for exc in senders.errors.values():
        assert isinstance(exc, ConnectionRefusedError)


async def test_another_receiver_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "log"
    senders = Senders(str(path), SENDERS)
    with full_receiver(senders.address), datagram_socket() as other:
        other.bind(str(tmp_path / "next"))
        async with senders.waiting():
            (tmp_path / "next").rename(path)
            assert collections.Counter(await senders.finish(other)) == senders.expected()
    assert len(senders.sent) == SENDERS


async def test_who_may_not_send_any_more_is_told(tmp_path: Path) -> None:
    senders = Senders(str(tmp_path / "log"), 30)
    with full_receiver(senders.address) as receiver:
        async with senders.waiting():
            await trio.sleep(0.12)
            for number in (0, 17, 29):
                senders.sockets[number].shutdown(stdlib_socket.SHUT_WR)
            await tools.until(lambda: len(senders.errors) == 3)
            assert not senders.sent
            await senders.finish(receiver)
    assert set(senders.errors) == {0, 17, 29}
    for exc in senders.errors.values():
        assert isinstance(exc, OSError)
        assert exc.errno == errno.EPIPE


async def test_who_has_filled_his_own_buffer_waits_for_that(tmp_path: Path) -> None:
    """The receiver has room, but not the sender: that is what poll(2) knows of."""
    path = str(tmp_path / "log")
    large = bytes(tools.SMALL_BUFFER)
    with datagram_socket() as receiver:
        receiver.bind(path)
        with trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as sender:
            tools.small_buffers(sender)
            sent = 0

            async def send_them() -> None:
                nonlocal sent
                for _ in range(8):
                    await sender.sendto(large, path)
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_them)
                await tools.nothing_moves()
                assert 0 < sent < 8
                fill(path)  # now the receiver is full as well
                await tools.nothing_moves()
                with trio.fail_after(tools.BOUND_S):
                    while sent < 8:
                        harness.drain_messages(receiver)
                        await trio.sleep(0.001)


async def test_two_threads_each_have_their_own(backend: str, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    results: list[list[int]] = []

    def run_another() -> None:
        senders = Senders(path, 40)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                senders.start(nursery)

        (trio.run if backend == harness.EPOLL else uring_trio.run)(main)
        results.append(senders.sent)

    messages: list[bytes] = []
    with full_receiver(path) as receiver:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, run_another)
            await trio.sleep(0.1)
            with trio.fail_after(tools.BOUND_S):
                while len(results) < 2:
                    messages += harness.drain_messages(receiver)
                    await trio.sleep(0.001)
        messages += harness.drain_messages(receiver)
    counted = collections.Counter(message for message in messages if message != b"fill")
    assert counted == collections.Counter({b"%d" % number: 2 for number in range(40)})
