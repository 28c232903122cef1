"""Many streams that are busy at once: each has its share, and none is tried in vain.

More of them have data than there are buffers of any size. On the ring those for which there is
none stand, oldest first.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from functools import partial
from typing import TYPE_CHECKING

import harness
import pytest
import trio
from marks import needs_ring
from trio.testing import wait_all_tasks_blocked

import uring_trio
from uring_trio._kernel import BUFFER_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = 256  # more than there are buffers
# Round trips, over all. One of each connection comes before the count, and what decides is
# what each has after that.
ROUNDS = 10

Streams = list[tuple[trio.SocketStream, trio.SocketStream]]


@contextlib.contextmanager
def open_streams(count: int) -> Iterator[Streams]:
    with contextlib.ExitStack() as stack:
        pairs = [trio.socket.socketpair() for _ in range(count)]
        for each in itertools.chain(*pairs):
            stack.enter_context(each)
        yield [(trio.SocketStream(a), trio.SocketStream(b)) for a, b in pairs]


async def echo(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def ask(stream: trio.SocketStream, size: int, answered: Callable[[], object]) -> None:
    while True:
        await stream.send_all(bytes(size))
        missing = size
        while missing:
            missing -= len(await stream.receive_some())
        answered()


async def share_of_the_least(size: int) -> float:
    """Of the mean, of connections that all ask at once and again when they are answered."""
    counts = [0] * CONNECTIONS
    enough = trio.Event()

    def count(index: int) -> None:
        counts[index] += 1
        if sum(counts) == CONNECTIONS * ROUNDS:
            enough.set()

    with open_streams(CONNECTIONS) as pairs:
        async with trio.open_nursery() as nursery:
            for index, (server, client) in enumerate(pairs):
                nursery.start_soon(echo, server)
                nursery.start_soon(ask, client, size, partial(count, index))
            await enough.wait()
            nursery.cancel_scope.cancel()
    return min(counts) / ROUNDS


@pytest.mark.differential
@pytest.mark.parametrize("size", [64, 16 << 10])
async def test_no_busy_connection_has_less_than_half_of_the_mean(size: int) -> None:
    assert await share_of_the_least(size) >= 0.5


def receives_made() -> int:
    return harness.io_statistics().operations.get("recv", 0)  # type: ignore[no-any-return]


@needs_ring
@pytest.mark.parametrize("waiting", [False, True])
def test_each_receive_is_tried_once_where_all_have_data(waiting: bool) -> None:
    """Tried without a buffer it would be an error, and tried again."""
    count = 3 * BUFFER_GROUPS[0][0]

    async def main() -> None:
        with open_streams(count) as pairs:
            await receive_all(pairs)

    async def receive_all(pairs: Streams) -> None:
        received = []

        async def receive(stream: trio.SocketStream) -> None:
            received.append(await stream.receive_some())

        # Each has received once, so that it waits for data before its next attempt.
        for a, b in pairs if waiting else ():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, b)
                await wait_all_tasks_blocked()
                await a.send_all(b"y")
        received.clear()
        before = receives_made()
        async with trio.open_nursery() as nursery:
            if waiting:
                for _, b in pairs:
                    nursery.start_soon(receive, b)
                await wait_all_tasks_blocked()
            for a, _ in pairs:
                assert a.socket._sock.send(b"x") == 1  # type: ignore[attr-defined]
            if not waiting:
                for _, b in pairs:
                    nursery.start_soon(receive, b)
        assert received == [b"x"] * count
        assert receives_made() - before == count
        await harness.assert_books_balance()

    uring_trio.run(main, backend="io_uring")


@pytest.mark.differential
async def test_cancelled_while_they_stand_they_lose_no_byte() -> None:
    """Some of those that nobody has tried yet are cancelled; what they had is there for others."""
    chosen = random.Random(1)
    scopes = [trio.CancelScope() for _ in range(CONNECTIONS)]
    cancelled = set(chosen.sample(range(CONNECTIONS), CONNECTIONS // 3))
    received: dict[int, bytes] = {}

    with open_streams(CONNECTIONS) as pairs:

        async def receive(index: int) -> None:
            with scopes[index]:
                received[index] = await pairs[index][1].receive_some()
                if len(received) == 1:  # the first batch: all others stand, or have their bytes
                    for each in cancelled:
                        scopes[each].cancel()

        for index, (a, _) in enumerate(pairs):
            await a.send_all(b"%d" % index)
        async with trio.open_nursery() as nursery:
            for index in range(CONNECTIONS):
                nursery.start_soon(receive, index)
        for index in set(range(CONNECTIONS)) - received.keys():
            assert index in cancelled
            received[index] = await pairs[index][1].receive_some()
    assert received == {index: b"%d" % index for index in range(CONNECTIONS)}
