"""Which trio a server is on, by the name on its command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

import uring_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run_on(name: str, main: Callable[[], Awaitable[Any]]) -> None:
    """Run *main* on the ``ring``, and nowhere else, or on ``stock`` trio.

    Raises:
      ValueError: the name is neither.
    """
    if name == "ring":
        uring_trio.run(main, backend="io_uring")
    elif name == "stock":
        trio.run(main)
    else:
        raise ValueError(f"ring or stock, not {name!r}")
