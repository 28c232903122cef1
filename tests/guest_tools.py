"""Hosts for guest runs: a loop of this thread's own, and asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import TYPE_CHECKING, Any

import harness
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Bounds that only make a failure of a hang; the slowest run takes 5 s on two busy cores.
HANG_S = min(15 * harness.SLOWNESS, harness.HANG_S)
HOST_TIMEOUT_S = HANG_S + 5
# Long enough for the helper thread to be asleep in the kernel, and not needed by any
# test to pass: only to make it likely that what is tested really happens.
SETTLE_S = 0.02


class Host:
    """The smallest host loop: a queue of callbacks, run on this thread."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._callbacks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._outcome: Any = None
        self.done = False

    def start(self, async_fn: Callable[[], Awaitable[Any]], **kwargs: Any) -> None:
        harness.start_guest_run(
            self._backend,
            audited(self._backend, async_fn, bounded=kwargs.get("clock") is None),
            run_sync_soon_threadsafe=self._callbacks.put,
            done_callback=self._finish,
            **kwargs,
        )

    def _finish(self, outcome: Any) -> None:
        self._outcome = outcome
        self.done = True

    def step(self) -> None:
        self._callbacks.get(timeout=HOST_TIMEOUT_S)()

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.step()

    def settle(self) -> int:
        """Run callbacks until trio's helper thread has gone to sleep; how many there were."""
        count = 0
        while True:
            try:
                callback = self._callbacks.get(timeout=SETTLE_S)
            except queue.Empty:
                return count
            callback()
            count += 1

    def result(self) -> Any:
        self.run_until(lambda: self.done)
        return self._outcome.unwrap()

    def run(self, async_fn: Callable[[], Awaitable[Any]], **kwargs: Any) -> Any:
        self.start(async_fn, **kwargs)
        return self.result()


def audited(
    backend: str, async_fn: Callable[[], Awaitable[Any]], *, bounded: bool = True
) -> Callable[[], Awaitable[Any]]:
    """*async_fn* and then the books, on the backend that is meant."""

    async def run() -> Any:
        assert harness.io_statistics().backend == backend
        # A deadline wakes a run that sleeps through everything else.
        with trio.fail_after(HANG_S) if bounded else contextlib.nullcontext():
            result = await async_fn()
        await harness.assert_books_balance()
        return result

    return run


def run_in_asyncio(backend: str, async_fn: Callable[[], Awaitable[Any]], **kwargs: Any) -> Any:
    """A guest run with asyncio as its host."""

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        harness.start_guest_run(
            backend,
            audited(backend, async_fn),
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=loop.call_soon,
            done_callback=done.set_result,
            **kwargs,
        )
        outcome = await asyncio.wait_for(done, HOST_TIMEOUT_S)
        return outcome.unwrap()

    return asyncio.run(host())


def run_in_host_loop(backend: str, async_fn: Callable[[], Awaitable[Any]]) -> Any:
    """A guest run with `Host` as its host."""
    return Host(backend).run(async_fn)


def run_without_host(backend: str, async_fn: Callable[[], Awaitable[Any]]) -> Any:
    """No guest run."""
    return harness.run(backend, async_fn)


#: Ways to run the same function.
HOSTS: dict[str, Callable[[str, Callable[[], Awaitable[Any]]], Any]] = {
    "host loop": run_in_host_loop,
    "asyncio": run_in_asyncio,
    "no host": run_without_host,
}
