"""The simulated kernel under the product: unchanged programs, virtual time, replay."""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from typing import Any

import gain_tools
import guest_tools
import machine_speed
import pytest
import simulation
import trio

import uring_trio
from uring_trio import gain
from uring_trio.gain import _capabilities

SEEDS = 20


async def serve_echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = (trio.socket.from_stdlib_socket(sock) for sock in socket.socketpair())
    return trio.SocketStream(ours), trio.SocketStream(theirs)


async def talk(messages: int = 5, size: int = 100_000, pause: float = 3.0) -> float:
    """Say something, hear it again, and sleep, so many times."""
    ours, theirs = await pair()
    start = trio.current_time()
    async with ours, theirs, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, theirs)
        for _ in range(messages):
            await ours.send_all(bytes(size))
            left = size
            while left:
                left -= len(await ours.receive_some())
            await trio.sleep(pause)
        await ours.send_eof()
        assert await ours.receive_some() == b""
    return trio.current_time() - start


def test_a_program_runs_in_virtual_time() -> None:
    with simulation.simulated():
        pass  # it may have to be built
    began = time.monotonic()
    with simulation.simulated() as sim:
        took = sim.run(talk)
    sim.check()
    assert 15 <= took < 15.1
    assert time.monotonic() - began < 5 * machine_speed.slowness()
    assert sim.books.sqes > 20


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_what_a_seed_has_drawn_is_had_again_by_its_choices(seed: int) -> None:
    with simulation.simulated(seed=seed) as sim:
        sim.run(talk)
    sim.check()
    with simulation.simulated(sim.choices) as again:
        again.run(talk)
    assert again.trace(10_000) == sim.trace(10_000)
    assert again.choices == sim.choices


async def wait_for_a_thread() -> int:
    return await trio.to_thread.run_sync(lambda: 42)


def test_other_threads_wake_a_run() -> None:
    with simulation.simulated() as sim:
        assert sim.run(wait_for_a_thread) == 42
    sim.check()


async def wait_for_nobody() -> None:
    ours, theirs = await pair()
    async with ours, theirs:
        await ours.receive_some()


def test_a_wait_that_nothing_ends_fails() -> None:
    endless = pytest.raises(simulation.BooksError, match="would never end")
    with simulation.simulated(patience=0.05) as sim, endless:
        sim.run(wait_for_nobody)
    assert sim.books.never_ending == 1
    with pytest.raises(simulation.BooksError, match="never_ending = 1"):
        sim.check()


# ---- kernels with faults ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        (simulation.Switches(), ""),
        (simulation.Switches(no_inq_of_unix=True), ""),
        (simulation.Switches(refusal_takes_buffer=True, small_cq=True, accept_waits=True), ""),
        (simulation.Switches(no_multishot_receive=True), "was answered with"),
        (simulation.Switches(reset_is_missed=True), "a reset that came with data"),
        (simulation.Switches(end_is_missed=True), "an end that came with data"),
        (simulation.Switches(cancel_misses_multishot=True), "a cancel did not end it"),
    ],
    ids=str,
)
def test_callback_servers_find_out_what_the_kernel_gets_wrong(
    switches: simulation.Switches, reason: str
) -> None:
    with simulation.simulated(switches=switches) as sim:
        found = _capabilities.capabilities()
        counts = sim.run(serve)
    sim.check()
    assert found.multishot_receive is not bool(reason)
    assert reason in "".join(found.reasons)
    assert counts == gain_tools.Counts(accept=3, read=counts.read, write=counts.write, close=3)


@pytest.mark.parametrize("network", [False, True], ids=["machine's files", "network"])
@pytest.mark.parametrize("probing", [False, True], ids=["known", "probed"])
def test_callback_servers_run_by_any_choices(network: bool, probing: bool) -> None:
    # A probe's five bytes are sent at once, and no kernel takes fewer; and it waits for 100 ms.
    kinds = set(simulation.HARMLESS) - ({"short", "delay"} if probing else set())
    for seed in range(1, SEEDS + 1):
        with simulation.simulated(seed=seed, network=network, probing=probing, kinds=kinds) as sim:
            sim.run(serve)
        sim.check()


async def serve() -> gain_tools.Counts:
    """Three clients that say something to an echo, twice."""
    handler = gain_tools.Recorder(on_read=gain_tools.echo)

    async def ask(server: gain.Server, size: int) -> None:
        async with await gain_tools.open_client(server) as client:
            for _ in range(2):
                await client.send_all(bytes(size))
                got = 0
                while got < size:
                    got += len(await client.receive_some(size - got))

    async with gain_tools.serving(handler) as server, trio.open_nursery() as nursery:
        for size in (1, 1000, 30_000):
            nursery.start_soon(ask, server, size)
    return handler.counts()


@pytest.mark.parametrize("switch", ["no_defer_taskrun", "no_single_issuer", "no_probe"])
def test_a_kernel_without_what_is_required_has_no_ring(switch: str) -> None:
    with simulation.simulated(switches=simulation.Switches(**{switch: True})) as sim:
        assert uring_trio.probe().backend == "epoll"
        with pytest.raises(uring_trio.UringUnavailable):
            sim.run(trio.sleep, 0)
    sim.check()


def test_what_the_process_knew_of_its_own_kernel_is_kept() -> None:
    before = uring_trio.probe(), _capabilities.capabilities()
    with simulation.simulated(switches=simulation.Switches(no_probe=True)):
        assert uring_trio.probe() != before[0]
    assert (uring_trio.probe(), _capabilities.capabilities()) == before


# ---- the network ----------------------------------------------------------------------------


async def talk_over(family: int, address: Any) -> bytes:
    """A connection through a listener, there and back, and its end."""
    with trio.socket.socket(family) as listener, trio.socket.socket(family) as client:
        await listener.bind(address)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connect, listener.getsockname())
            accepted, _ = await listener.accept()
        async with trio.SocketStream(accepted) as theirs, trio.SocketStream(client) as ours:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send_all, bytes(300_000))
                left = 300_000
                while left:
                    left -= len(await theirs.receive_some())
            await theirs.send_all(b"well")
            await theirs.send_eof()
            return b"".join([data async for data in ours])


FAMILIES = {
    "tcp": (socket.AF_INET, ("127.0.0.1", 0)),
    "unix": (socket.AF_UNIX, f"\0uring-trio-{os.getpid()}".encode()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_of_the_network(family: str) -> None:
    for seed in (None, *range(1, SEEDS + 1)):
        with simulation.simulated(seed=seed, network=True) as sim:
            assert sim.run(talk_over, *FAMILIES[family]) == b"well"
        sim.check()
        books = sim.network_books
        assert books["bytes_sent"] == books["bytes_received"] == 300_004
        assert not books["bytes_queued"]


async def send_datagrams(sim: simulation.Simulation) -> list[bytes]:
    ours, theirs = map(trio.socket.from_stdlib_socket, sim.pair(kind=socket.SOCK_DGRAM))
    with ours, theirs:
        for n in range(5):
            await ours.send(bytes([n]))
        return [await theirs.recv(10) for _ in range(5)]


def test_pairs_of_the_network() -> None:
    for seed in (None, *range(1, SEEDS + 1)):
        with simulation.simulated(seed=seed, network=True) as sim:
            assert sim.run(send_datagrams, sim) == [bytes([n]) for n in range(5)]
        sim.check()


BAD_DATAGRAMS = 200  # more than the kernel's own poll is woken in vain for: 128


async def receive_beside_rubbish(sim: simulation.Simulation) -> bytes:
    """Each datagram with a wrong checksum wakes who waits, and then there is nothing."""
    with (
        trio.socket.socket(type=socket.SOCK_DGRAM) as ours,
        trio.socket.socket(type=socket.SOCK_DGRAM) as theirs,
    ):
        await ours.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def talk_rubbish() -> None:
                for _ in range(BAD_DATAGRAMS):
                    sim.bad_datagram(ours, 1000)  # (a small one is found out sooner)
                    await trio.sleep(0.1)
                await theirs.sendto(b"sense", ours.getsockname())

            return await ours.recv(100)


def test_rubbish_costs_no_thread_of_the_kernels() -> None:
    for seed in (None, 1, 2, 3, 4, 5):
        with simulation.simulated(seed=seed, network=True) as sim:
            assert sim.run(receive_beside_rubbish, sim) == b"sense"
        sim.check()
        assert sim.books.wakes > BAD_DATAGRAMS


# ---- guest mode -----------------------------------------------------------------------------


@pytest.mark.parametrize("network", [False, True], ids=["machine's files", "network"])
def test_guest_runs(network: bool) -> None:
    """A host's loop is real, and its helper's sleep is not."""
    for seed in (None, 1, 2, 3):
        with simulation.simulated(seed=seed, network=network) as sim:
            host = guest_tools.Host("io_uring")
            began = time.monotonic()
            host.run(functools.partial(talk, 2, 1000, 100.0), clock=sim.clock)
            assert time.monotonic() - began < 50
        sim.check()


# ---- several threads ------------------------------------------------------------------------


def test_runs_of_several_threads_share_the_time() -> None:
    """None is late because another computes."""
    took: list[float] = []
    with simulation.simulated() as sim:
        threads = [
            threading.Thread(target=lambda: took.append(sim.run(talk, 3, 1000))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sim.check()
    assert len(took) == 3
    assert all(9 <= each < 9.1 for each in took)
