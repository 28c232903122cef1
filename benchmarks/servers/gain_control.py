"""What both gain servers have in common: the port, the figures, and the command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from typing import TYPE_CHECKING

from benchmarks.servers.control import allow_many_connections, announce
from uring_trio import gain

if TYPE_CHECKING:
    from uring_trio.gain import Server


def answer(server: Server, request: str) -> str:
    """The sums over all workers, as JSON; called by the thread that reads the requests."""
    if request != "statistics":
        return "unknown"
    workers = [dataclasses.asdict(each) for each in server.statistics().workers]
    return json.dumps({name: sum(each[name] for each in workers) for name in workers[0]})


class Announcing(gain.EventHandler):
    """Tells its port as every server here does."""

    def on_start(self, server: Server) -> None:
        """Bound, and not accepting yet: clients wait in the backlog."""
        announce(server.addresses()[0][1], functools.partial(answer, server))


def serve(handler: gain.EventHandler) -> None:
    """Serve on a free port of 127.0.0.1 until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    allow_many_connections()
    gain.listen_and_serve("tcp://127.0.0.1:0", handler, workers=arguments.workers)
