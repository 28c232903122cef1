"""The other end of ``benchmarks.processes.ServerProcess``; imports no event loop.

A thread reads standard input, so that the loop under test has nothing more to watch.
It sleeps in read(2) and costs nothing while nobody asks.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def allow_many_connections() -> None:
    """Lift the soft limit of file descriptors, 1,024 by default, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announce(port: int, answer: Callable[[str], str] | None = None) -> None:
    """Print the port; from now on answer each line, and end when there are no more."""
    threading.Thread(target=follow, args=(answer,), daemon=True).start()
    print(port, flush=True)


def follow(answer: Callable[[str], str] | None) -> None:
    """Answer requests until the input ends, then end the process."""
    for request in sys.stdin:
        print(answer(request.strip()) if answer else "unknown", flush=True)
    os._exit(0)
