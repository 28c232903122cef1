"""Which event loop a program is on, by its name on the command line."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine

TRIO = ("ring", "stock")


def run_trio(name: str, main: Callable[[], Awaitable[Any]]) -> None:
    """Run *main* on the ``ring``, and nowhere else, or on ``stock`` trio.

    Raises:
      ValueError: the name is neither.
    """
    import trio

    import uring_trio

    if name == "ring":
        uring_trio.run(main, backend="io_uring")
    elif name == "stock":
        trio.run(main)
    else:
        raise ValueError(f"ring or stock, not {name!r}")


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A loop of ``asyncio``, or of the module of that name: ``uvloop``, ``rloop``."""
    loop: asyncio.AbstractEventLoop = importlib.import_module(name).new_event_loop()
    return loop


def run_asyncio(name: str, main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run *main* on a loop of that name until it ends."""
    new_loop(name).run_until_complete(main())
