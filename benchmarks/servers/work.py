"""Programs that load themselves: so many tasks that do one thing again and again.

They are no servers. They print 0 for a port, and answer ``work SECONDS`` with what they did in
that time, as JSON; CPU is that of the whole process, all threads.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from benchmarks.servers.control import announce
from benchmarks.servers.loops import TRIO, run_asyncio, run_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass
class Tally:
    """What is counted in one window.

    Attributes:
      until_ns: when it ends.
      latencies_ns: of each unit that ended inside.
    """

    until_ns: int
    latencies_ns: list[int] = field(default_factory=list)

    async def repeat(self, do: Callable[[], Awaitable[Any]]) -> None:
        """One task's work."""
        now = time.perf_counter_ns()
        while now < self.until_ns:
            began = now
            await do()
            now = time.perf_counter_ns()
            self.latencies_ns.append(now - began)


@dataclass
class Window:
    """The beginning of one: the clocks."""

    started_ns: int = field(default_factory=time.perf_counter_ns)
    cpu_ns: int = field(default_factory=time.process_time_ns)

    def report(self, tally: Tally) -> str:
        """What is answered."""
        elapsed_ns = time.perf_counter_ns() - self.started_ns
        cpu_ns = time.process_time_ns() - self.cpu_ns
        latencies = sorted(tally.latencies_ns) or [0]
        return json.dumps(
            {
                "units": len(tally.latencies_ns),
                "elapsed_ns": elapsed_ns,
                "cpu_ns": cpu_ns,
                "p50_ns": latencies[len(latencies) // 2],
                "p99_ns": latencies[len(latencies) * 99 // 100],
            }
        )


def seconds_of(request: str) -> float:
    """``work SECONDS``."""
    word, seconds = request.split()
    if word != "work":
        raise ValueError(request)
    return float(seconds)


def run(loop: str, tasks: int, do: Callable[[], Awaitable[Any]]) -> None:
    """Be such a program on a loop of that name; *do* is one unit."""
    if loop in TRIO:
        run_trio(loop, lambda: on_trio(tasks, do))
    else:
        run_asyncio(loop, lambda: on_asyncio(tasks, do))


async def on_trio(tasks: int, do: Callable[[], Awaitable[Any]]) -> None:
    """Answer until the process ends."""
    token = trio.lowlevel.current_trio_token()

    async def work(seconds: float) -> str:
        window = Window()
        tally = Tally(window.started_ns + round(seconds * 1e9))
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(tally.repeat, do)
        return window.report(tally)

    def answer(request: str) -> str:
        return trio.from_thread.run(work, seconds_of(request), trio_token=token)

    announce(0, answer)
    await trio.sleep_forever()


async def on_asyncio(tasks: int, do: Callable[[], Awaitable[Any]]) -> None:
    """The same."""
    loop = asyncio.get_running_loop()

    async def work(seconds: float) -> str:
        window = Window()
        tally = Tally(window.started_ns + round(seconds * 1e9))
        await asyncio.gather(*(tally.repeat(do) for _ in range(tasks)))
        return window.report(tally)

    def answer(request: str) -> str:
        return asyncio.run_coroutine_threadsafe(work(seconds_of(request)), loop).result()

    announce(0, answer)
    await loop.create_future()
