"""Callback servers: Gain's API on nurseries.

An `EventHandler` has the callbacks, a `Server` calls them for each `Conn`::

    class Echo(gain.EventHandler):
        def on_read(self, conn, n):
            conn.write(conn.next(n))

    gain.listen_and_serve("tcp://localhost:8080", Echo())
"""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError(
        "uring_trio.gain needs Linux: its servers are on io_uring, and fall back to nothing"
    )

from uring_trio.gain._address import Address
from uring_trio.gain._config import Architecture, Config, LoadBalancing
from uring_trio.gain._conn import Conn
from uring_trio.gain._errors import (
    AddressError,
    ConnectionClosed,
    DeadlineExceeded,
    EndOfStream,
    GainError,
    InvalidDuration,
    InvalidState,
    IsEmpty,
    NotSupported,
    OpNotAvailableInMode,
    ServerAlreadyRunning,
    ShortBuffer,
    StuckInput,
    UnsupportedProtocol,
)
from uring_trio.gain._server import EventHandler, Server, listen_and_serve, serve
from uring_trio.gain._serving import ServerStatistics
from uring_trio.gain._worker import WorkerStatistics

__all__ = [
    "Address",
    "AddressError",
    "Architecture",
    "Config",
    "Conn",
    "ConnectionClosed",
    "DeadlineExceeded",
    "EndOfStream",
    "EventHandler",
    "GainError",
    "InvalidDuration",
    "InvalidState",
    "IsEmpty",
    "LoadBalancing",
    "NotSupported",
    "OpNotAvailableInMode",
    "Server",
    "ServerAlreadyRunning",
    "ServerStatistics",
    "ShortBuffer",
    "StuckInput",
    "UnsupportedProtocol",
    "WorkerStatistics",
    "listen_and_serve",
    "serve",
]
