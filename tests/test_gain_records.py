"""A callback server has the records of a batch for itself while it serves, and no longer."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import trio
from gain_tools import LOOPBACK, Boom, Recorder, echo, open_client, read_exactly, serving
from marks import ON_RING

from uring_trio import gain
from uring_trio.gain import _ring

# To have them for oneself is a fast way: without it there is nothing to be taken off.
pytestmark = [*ON_RING, pytest.mark.fast_ways]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each batch that goes through the callback servers."""
    seen: list[int] = []
    name = "route" if _ring.route_in_c is None else "route_in_c"
    route = getattr(_ring, name)

    def counted(*args: Any) -> Any:
        seen.append(1)
        return route(*args)

    monkeypatch.setattr(_ring, name, counted)
    return seen


async def ping(server: gain.Server) -> None:
    async with await open_client(server) as client:
        await client.send_all(b"ping")
        assert await read_exactly(client, 4) == b"ping"


async def talk_beside_it(batches: list[int]) -> int:
    """How many batches go through a server while others use the ring."""
    before = len(batches)
    left, right = await harness.stream_pair()
    async with left, right:
        for _ in range(5):
            await left.send_all(b"x")
            assert await right.receive_some(10) == b"x"
    return len(batches) - before


async def test_a_server_that_has_ended_has_no_batch_any_more(batches: list[int]) -> None:
    assert await talk_beside_it(batches) == 0
    async with serving(Recorder(on_read=echo)) as server:
        await ping(server)
        assert await talk_beside_it(batches) > 0
    assert await talk_beside_it(batches) == 0
    async with serving(Recorder(on_read=echo)) as server:
        await ping(server)
    assert await talk_beside_it(batches) == 0


@pytest.mark.parametrize("first", [0, 1])
async def test_one_of_two_servers_in_a_run_ends(batches: list[int], first: int) -> None:
    async with trio.open_nursery() as nursery:
        servers = [
            await nursery.start(gain.serve, LOOPBACK, Recorder(on_read=echo)) for _ in range(2)
        ]
        for server in servers:
            await ping(server)
        servers.pop(first).async_shutdown()
        for _ in range(3):
            await ping(servers[0])
        servers[0].async_shutdown()
    assert await talk_beside_it(batches) == 0


class FailsToStart(gain.EventHandler):
    def on_start(self, server: gain.Server) -> None:
        raise Boom


async def test_a_server_that_fails_or_is_cancelled(batches: list[int]) -> None:
    with pytest.raises(Boom):
        await gain.serve(LOOPBACK, FailsToStart())
    assert await talk_beside_it(batches) == 0
    with trio.move_on_after(0.05):
        await gain.serve(LOOPBACK, Recorder())
    assert await talk_beside_it(batches) == 0
