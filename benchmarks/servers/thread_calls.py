"""Calls in threads: ``thread_calls.py LOOP TASKS``; anyio's way is ``anyio`` in LOOP's place."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import anyio.to_thread
import trio

from benchmarks.servers import work
from benchmarks.servers.loops import TRIO

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def nothing() -> None:
    """What is called."""


def trio_call() -> Awaitable[None]:
    """From a task and back to it."""
    return trio.to_thread.run_sync(nothing)


def anyio_call() -> Awaitable[None]:
    """The same by anyio."""
    return anyio.to_thread.run_sync(nothing)


def asyncio_call() -> Awaitable[None]:
    """The same by asyncio."""
    return asyncio.to_thread(nothing)


def call_of(loop: str) -> Callable[[], Awaitable[None]]:
    """How it is done there."""
    if loop in TRIO:
        return trio_call
    return anyio_call if loop == "anyio" else asyncio_call


if __name__ == "__main__":
    name = sys.argv[1]
    work.run("asyncio" if name == "anyio" else name, int(sys.argv[2]), call_of(name))
