"""``max_sq_entries`` and ``max_cq_events`` are sizes of the rings that a server makes."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import trio
from gain_tools import (
    LOOPBACK,
    Recorder,
    architectures,
    connect,
    echo,
    pattern,
    receive_all,
    receive_exactly,
    round_trip,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

import uring_trio
from uring_trio import _kernel, gain

pytestmark = ON_RING


@pytest.mark.parametrize("workers", [1, 2])
def test_rings_have_the_entries_that_were_asked_for(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    original = _kernel.Ring.__init__

    def init(ring: Any, *args: Any) -> None:
        original(ring, *args)
        made.append((ring.options.sq_entries, ring._engine.record_capacity))

    monkeypatch.setattr(_kernel.Ring, "__init__", init)
    with server_in_thread(Recorder(), workers=workers, max_sq_entries=2, max_cq_events=16):
        pass
    assert made.count((2, 16)) == workers


@pytest.mark.parametrize("cq_events", [1, 2])
def test_the_smallest_rings_lose_nothing(cq_events: int) -> None:
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, workers=1, max_sq_entries=1, max_cq_events=cq_events) as server:
        clients = [connect(server) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"%04d" % number * 5000)
        for number, client in enumerate(clients):
            assert receive_exactly(client, 20_000) == b"%04d" % number * 5000
            client.close()


@pytest.mark.parametrize(
    "options", [{"max_sq_entries": 8}, {"max_cq_events": 64}, {"max_sq_entries": 8192}]
)
async def test_a_run_of_the_callers_with_another_ring_is_refused(options: dict[str, Any]) -> None:
    server = gain.Server(Recorder(), gain.Config(workers=1, **options))
    [(name, value)] = options.items()
    with pytest.raises(gain.NotSupported, match=f"^{name}={value}: .*ring=RingOptions"):
        await server.serve(LOOPBACK)
    assert not server.is_running()


def test_a_run_of_the_callers_with_that_ring_is_not() -> None:
    config = gain.Config(workers=1, max_sq_entries=8, max_cq_events=64)

    async def main() -> None:
        async with serving(Recorder(on_read=echo), workers=1, max_sq_entries=8, max_cq_events=64):
            assert harness.io_manager().ring.options == config.ring

    uring_trio.run(main, backend="io_uring", ring=config.ring)


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_beside_a_run_have_rings_of_their_own(workers: int) -> None:
    """Of stock trio's run, which has none; with two workers of any run."""
    found = set()

    def look(conn: gain.Conn) -> None:
        found.add(harness.io_manager().ring.options)
        conn.close()

    async def main() -> None:
        handler = Recorder(on_accept=look)
        options: dict[str, Any] = {"max_sq_entries": 8, "max_cq_events": 64}
        async with serving(handler, workers=workers, **options) as server:
            for _ in range(2 * workers):
                await trio.to_thread.run_sync(lambda: connect(server).close())
            await until(lambda: handler.counts().close == 2 * workers)

    trio.run(main)
    if workers == 2:
        uring_trio.run(main, backend="io_uring")
    assert found == {gain.Config(max_sq_entries=8, max_cq_events=64).ring}


def test_more_completions_than_submissions_is_what_the_kernel_wants() -> None:
    gain.Server(Recorder(), gain.Config(max_sq_entries=64, max_cq_events=1))
    with server_in_thread(Recorder(), max_sq_entries=64, max_cq_events=1) as server:
        assert server.addresses()[0][0] in LOOPBACK


@architectures
@pytest.mark.parametrize("entries", [1, 2, 4])
def test_full_sq_is_waited_out(options: dict[str, Any], entries: int) -> None:
    """B2: with 4 entries the sixth connection ends a Gain worker, and Shutdown never returns."""
    handler = Recorder(on_read=echo)
    message = pattern(20_000)
    with server_in_thread(handler, max_sq_entries=entries, **options) as server:
        clients = [connect(server) for _ in range(64)]
        for client in clients:
            client.sendall(message)
        for client in clients:
            assert receive_exactly(client, len(message)) == message
        assert server.active_connections() == 64
        for client in clients:
            client.close()
        wait_until(lambda: server.active_connections() == 0)
        with connect(server) as client:
            round_trip(client, b"still here")


def test_one_callback_may_start_more_than_the_sq_holds() -> None:
    """B2: the same where all the sends and closes come from one callback."""

    def tell_all(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        for other in handler.conns:
            other.write(data)
            other.close()

    handler = Recorder(on_read=tell_all)
    with server_in_thread(handler, workers=1, max_sq_entries=2) as server:
        clients = [connect(server) for _ in range(64)]
        wait_until(lambda: len(handler.conns) == 64)
        clients[0].sendall(b"good-bye")
        for client in clients:
            assert receive_all(client) == b"good-bye"
            client.close()
        wait_until(lambda: handler.errors() == [None] * 64)
