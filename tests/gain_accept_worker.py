"""A process that serves on a listener which it shares: a callback server on an inherited socket.

    python gain_accept_worker.py FD NAME HOW

It answers each connection with its name. HOW says what happens once it listens:

- ``idle``: it serves;
- ``busy``: a task of its own holds the loop until something comes on stdin, or its end;
- ``closing``: the same, and then the server shuts down, and all is over.

``r`` on stdout says that it listens; on SIGTERM it prints how many it has served.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import trio

import uring_trio
from uring_trio import gain
from uring_trio.gain import _listen
from uring_trio.gain._address import Address
from uring_trio.gain._listen import Listener


class Named(gain.EventHandler):
    def __init__(self, name: bytes) -> None:
        self.name = name
        self.served = 0

    def on_accept(self, conn: gain.Conn) -> None:
        self.served += 1
        conn.write(self.name)
        conn.close()


def share(listener: socket.socket) -> None:
    """Have the next server listen there, instead of at its address."""
    network = "unix" if listener.family == socket.AF_UNIX else "tcp"
    address = Address.from_sockaddr(network, listener.getsockname())

    def bind(_specs: Any, _config: Any, workers: int) -> list[list[Listener]]:
        return [[Listener(listener.dup(), address, network)] for _ in range(workers)]

    _listen.bind = bind  # type: ignore[assignment]


async def serve(handler: Named, how: str) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, "tcp://127.0.0.1:1", handler)
        await trio.testing.wait_all_tasks_blocked(0.05)
        sys.stdout.write("r")
        sys.stdout.flush()
        if how in ("busy", "closing"):
            os.read(0, 1)  # since it said that it listens no other task has run
        if how == "closing":
            server.async_shutdown()
            return
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await anext(signals)
        server.async_shutdown()


def main(fd: str, name: str, how: str) -> None:
    listener = socket.socket(fileno=int(fd))
    share(listener)
    handler = Named(name.encode())
    uring_trio.run(serve, handler, how, backend="io_uring")
    print(handler.served)


if __name__ == "__main__":
    import trio.testing

    main(*sys.argv[1:])
