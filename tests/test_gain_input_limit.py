"""``read_buffer_limit`` bounds what gathers, however a handler looks at its input.

The peer is slow enough that each of its pieces is a turn of the server's: input that comes
all at once is bounded by what the ring's buffers hold, whoever looks at it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from gain_tools import Recorder, until
from marks import ON_RING
from test_gain_asleep import Client, connected

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = ON_RING

KIB = 1024
LIMIT = 16 * KIB
SLACK = 128 * KIB  # what is on its way when the limit is reached: small buffers, or a large one
TOTAL = 2 << 20


class OneByteFile(io.RawIOBase):
    """Takes a byte of whatever it is given."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return min(1, len(data))


def next_of_too_many(conn: gain.Conn, _n: int) -> None:
    with pytest.raises(gain.ShortBuffer):
        conn.next(2 * TOTAL)


def readline(conn: gain.Conn, _n: int) -> None:
    assert b"\n" not in conn.peek()


def peek_and_take(conn: gain.Conn, _n: int) -> None:
    conn.peek(2)
    conn.next(1)
    conn.peek(3)


WAYS: dict[str, Callable[[gain.Conn, int], Any]] = {
    "nothing": lambda conn, n: None,
    "inbound_buffered": lambda conn, n: conn.inbound_buffered(),
    "peek(4)": lambda conn, n: conn.peek(4),
    "peek(0)": lambda conn, n: conn.peek(0),
    "peek()": lambda conn, n: conn.peek(),
    "peek(n)": lambda conn, n: conn.peek(n),
    "a line": readline,
    "next(0)": lambda conn, n: conn.next(0),
    "next(1)": lambda conn, n: conn.next(1),
    "next of too many": next_of_too_many,
    "read(1)": lambda conn, n: conn.read(1),
    "read_into": lambda conn, n: conn.read_into(bytearray(1)),
    "discard(1)": lambda conn, n: conn.discard(1),
    "write_to": lambda conn, n: conn.write_to(OneByteFile()),
    "peek and next": peek_and_take,
    "set_read_buffer_limit": lambda conn, n: conn.set_read_buffer_limit(LIMIT),
}
SOME = ["nothing", "peek(4)", "next(1)"]


class Looker(Recorder):
    """Looks at its input in one way, until it is told to take all."""

    def __init__(self, look: Callable[[gain.Conn, int], Any]) -> None:
        super().__init__(on_read=look)
        self.taken = 0

    def take(self, conn: gain.Conn, _n: int = 0) -> None:
        self.taken += conn.discard()


class AsyncLooker(Looker):
    async def on_read(self, conn: gain.Conn, n: int) -> None:
        await trio.lowlevel.checkpoint()
        self.act("on_read", conn, n)
        await trio.lowlevel.checkpoint()


async def send_slowly(client: Client, piece: int) -> None:
    """As much as is taken of `TOTAL`, a turn of the server's for each piece."""
    sent = 0
    while sent < TOTAL:
        size = min(piece, TOTAL - sent)
        await client.send(bytes(size))
        sent += size
        for _ in range(4):
            await trio.lowlevel.checkpoint()


async def assert_bounded(handler: Looker, conn: gain.Conn, client: Client, piece: int) -> None:
    own = 0 if handler.actions["on_read"] not in TAKING else 1  # a byte at each call
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_slowly, client, piece)
        highest = calls = -1
        while (conn.inbound_buffered(), len(handler.events)) != (highest, calls):
            highest, calls = conn.inbound_buffered(), len(handler.events)
            await trio.sleep(0.1)
        assert LIMIT <= highest <= LIMIT + SLACK
        taken = sum(handler.values("on_read")) - highest
        assert taken >= own
        handler.actions["on_read"] = handler.take
        handler.take(conn)
        await until(lambda: taken + handler.taken == TOTAL)


TAKING = {WAYS[name] for name in ("next(1)", "read(1)", "read_into", "discard(1)")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("piece", [900, 4000, 9000])
async def test_any_way_of_looking(way: str, piece: int, tmp_path: Path) -> None:
    handler = Looker(WAYS[way])
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=None
    ) as (conn, client):
        await assert_bounded(handler, conn, client, piece)


@pytest.mark.parametrize("way", SOME)
@pytest.mark.parametrize("network", ["unix", "tls"])
@pytest.mark.parametrize("piece", [900, 9000])
async def test_any_network(way: str, network: str, piece: int, tmp_path: Path) -> None:
    handler = Looker(WAYS[way])
    async with connected(
        network, handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=None
    ) as (conn, client):
        await assert_bounded(handler, conn, client, piece)


@pytest.mark.parametrize("way", SOME)
@pytest.mark.parametrize("piece", [900, 9000])
async def test_async_handlers(way: str, piece: int, tmp_path: Path) -> None:
    handler = AsyncLooker(WAYS[way])
    async with (
        connected("tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=None) as (
            conn,
            client,
        ),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_slowly, client, piece)
        await until(lambda: conn.inbound_buffered() >= LIMIT)
        await trio.sleep(0.1)
        assert conn.inbound_buffered() <= LIMIT + SLACK
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", SOME)
@pytest.mark.parametrize("piece", [900, 9000])
async def test_handlers_in_threads(way: str, piece: int, tmp_path: Path) -> None:
    handler = Looker(WAYS[way])
    async with (
        connected(
            "tcp",
            handler,
            tmp_path,
            read_buffer_limit=LIMIT,
            stuck_input_timeout=None,
            async_handler=True,
        ) as (conn, client),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_slowly, client, piece)
        await trio.sleep(0.4)
        server = conn.server
        buffered = server.statistics().workers[0].bytes_buffered
        assert LIMIT <= buffered <= LIMIT + SLACK
        nursery.cancel_scope.cancel()


async def test_looking_from_outside_its_callbacks(tmp_path: Path) -> None:
    """A task peeks all the time, and the handler does nothing."""
    handler = Looker(WAYS["nothing"])
    async with (
        connected("tcp", handler, tmp_path, read_buffer_limit=LIMIT, stuck_input_timeout=None) as (
            conn,
            client,
        ),
        trio.open_nursery() as nursery,
    ):

        async def look() -> None:
            while True:
                conn.peek(1)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(look)
        await assert_bounded(handler, conn, client, 4000)
        nursery.cancel_scope.cancel()


# For one connection alone


@pytest.mark.parametrize("piece", [900, 9000])
async def test_limit_of_one_connection(piece: int, tmp_path: Path) -> None:
    handler = Looker(WAYS["nothing"])
    async with connected(
        "tcp", handler, tmp_path, read_buffer_limit=1000, stuck_input_timeout=None
    ) as (conn, client):
        conn.set_read_buffer_limit(LIMIT)
        await assert_bounded(handler, conn, client, piece)


@pytest.mark.parametrize("network", ["tcp", "tls"])
async def test_raising_the_limit_goes_on_reading(network: str, tmp_path: Path) -> None:
    message = bytes(300_000)
    handler = Looker(WAYS["nothing"])
    async with connected(
        network, handler, tmp_path, read_buffer_limit=1000, stuck_input_timeout=None
    ) as (conn, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, message)
            await until(lambda: conn.inbound_buffered() >= 1000)
            await trio.sleep(0.05)
            assert conn.inbound_buffered() < 200_000
            conn.set_read_buffer_limit(len(message) + 1)
            await until(lambda: conn.inbound_buffered() == len(message))
        conn.set_read_buffer_limit(1)  # and lowering it stops
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(b"more")
        await trio.sleep(0.05)
        assert conn.inbound_buffered() == len(message)
        conn.discard()
        await until(lambda: conn.inbound_buffered() == 4)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True, None, 2**31])
async def test_limits_that_are_none(value: Any, tmp_path: Path) -> None:
    async with connected("tcp", Recorder(), tmp_path) as (conn, _):
        with pytest.raises(ValueError, match="read_buffer_limit must be an integer from 1"):
            conn.set_read_buffer_limit(value)


async def test_a_closed_connection_has_no_limit(tmp_path: Path) -> None:
    handler = Recorder()
    async with connected("tcp", handler, tmp_path) as (conn, _):
        conn.abort()
        with pytest.raises(gain.ConnectionClosed):
            conn.set_read_buffer_limit(1)
