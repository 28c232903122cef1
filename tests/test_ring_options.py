"""Sizes of rings are arguments, in each way of starting a run, and of that run alone."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import harness
import pytest
import trio
from marks import needs_ring

import uring_trio
from uring_trio import RingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

USUAL = RingOptions()
SMALL = RingOptions(sq_entries=4, cq_entries=16)
OTHER = RingOptions(sq_entries=8, cq_entries=32)


@pytest.fixture
def uninstalled() -> Iterator[None]:
    yield
    uring_trio.uninstall()


def sizes_here() -> tuple[RingOptions, int]:
    """What this run's ring was asked to be, and the completions that a sweep of it takes."""
    ring = harness.io_manager().ring
    return ring.options, ring._engine.record_capacity


async def sizes() -> tuple[RingOptions, int]:
    """The same, of a run that does something."""
    left, right = await harness.stream_pair()
    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(await right.receive_some())
    return sizes_here()


def expected(options: RingOptions) -> tuple[RingOptions, int]:
    return options, options.cq_entries


@needs_ring
def test_of_one_run() -> None:
    assert uring_trio.run(sizes, backend="io_uring", ring=SMALL) == expected(SMALL)
    assert uring_trio.run(sizes, backend="io_uring") == expected(USUAL)


@needs_ring
def test_of_runs_in_several_threads_at_once() -> None:
    found: dict[int, Any] = {}
    both = threading.Barrier(2)

    def run(number: int, ring: RingOptions) -> None:
        async def main() -> Any:
            both.wait(10)
            return await sizes()

        found[number] = uring_trio.run(main, backend="io_uring", ring=ring)

    threads = [threading.Thread(target=run, args=each) for each in enumerate((SMALL, OTHER))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: expected(SMALL), 1: expected(OTHER)}


@needs_ring
@pytest.mark.usefixtures("uninstalled")
def test_of_all_runs_once_installed() -> None:
    uring_trio.install(backend="io_uring", ring=SMALL)
    assert trio.run(sizes) == expected(SMALL)
    assert uring_trio.run(sizes) == expected(SMALL)
    assert uring_trio.run(sizes, ring=OTHER) == expected(OTHER)
    uring_trio.install(backend="io_uring", ring=RingOptions(sq_entries=4, cq_entries=16))
    with pytest.raises(RuntimeError, match="installed already with ring="):
        uring_trio.install(backend="io_uring", ring=OTHER)
    uring_trio.uninstall()
    uring_trio.install(backend="io_uring")
    assert trio.run(sizes) == expected(USUAL)


@needs_ring
def test_of_a_guest_run() -> None:
    async def host() -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        uring_trio.start_guest_run(
            sizes,
            backend="io_uring",
            ring=SMALL,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=done.set_result,
        )
        return (await done).unwrap()

    assert asyncio.run(host()) == expected(SMALL)


@needs_ring
@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("name", ["trio", "uring_trio"])
def test_of_a_run_of_anyio(name: str, installed: bool) -> None:
    if installed:
        uring_trio.install(backend="io_uring", ring=OTHER)
    options: dict[str, Any] = {"backend": "io_uring", "ring": SMALL}
    if name == "trio":
        options = uring_trio.anyio_options(**options)
    assert anyio.run(sizes, backend=name, backend_options=options) == expected(SMALL)
    options = {"backend": "io_uring"}
    if name == "trio":
        options = uring_trio.anyio_options(**options)
    usual = OTHER if installed else USUAL
    assert anyio.run(sizes, backend=name, backend_options=options) == expected(usual)


def test_on_epoll_they_mean_nothing() -> None:
    async def main() -> str:
        return str(harness.io_statistics().backend)

    assert uring_trio.run(main, backend="epoll", ring=SMALL) == harness.EPOLL


@pytest.mark.parametrize(
    "wrong",
    [
        {"sq_entries": 0},
        {"sq_entries": -1},
        {"sq_entries": 32769, "cq_entries": 65536},
        {"sq_entries": True},
        {"sq_entries": 4.0},
        {"sq_entries": None},
        {"cq_entries": 255},
        {"cq_entries": 65537},
        {"cq_entries": "4096"},
    ],
)
def test_sizes_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be an integer from"):
        RingOptions(**wrong)


@pytest.mark.parametrize(
    "right", [{"sq_entries": 1, "cq_entries": 1}, {"sq_entries": 32768, "cq_entries": 65536}]
)
def test_the_smallest_and_the_largest(right: dict[str, int]) -> None:
    options = RingOptions(**right)
    assert (options.sq_entries, options.cq_entries) == tuple(right.values())
