"""Who is compared: names, programs, and whether each can run here."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from uring_trio._loadgen import ServerProcess
from uring_trio._probe import probe

# What ratios are relative to, and the same once more: how far apart two measurements of
# one and the same program are is the noise of all the others.
STOCK = "stock"
STOCK_AGAIN = "stock-again"
RING = "ring"


@dataclass(frozen=True)
class Peer:
    """A server to compare.

    Attributes:
      name: what it is called in options and tables.
      module: the program, in ``benchmarks.servers``.
      about: what it is, for people.
      is_trio: its program answers questions about trio's statistics.
    """

    name: str
    module: str
    about: str
    is_trio: bool = False

    def start(self, cpu: int | None) -> ServerProcess:
        """Start the server on core *cpu*."""
        return ServerProcess([sys.executable, "-m", f"benchmarks.servers.{self.module}"], cpu=cpu)

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.name == RING:
            report = probe()
            return None if report.backend == "io_uring" else f"no io_uring: {report.reason}"
        if self.module == "uvloop_streams" and importlib.util.find_spec("uvloop") is None:
            return "uvloop is not installed; it is in the extra 'bench'"
        return None


PEERS = (
    Peer(RING, "ring", "SocketStream on uring_trio", is_trio=True),
    Peer(STOCK, "stock", "SocketStream on trio's epoll", is_trio=True),
    Peer(STOCK_AGAIN, "stock", "the same once more: the noise", is_trio=True),
    Peer("asyncio", "asyncio_streams", "asyncio streams"),
    Peer("uvloop", "uvloop_streams", "asyncio streams on uvloop"),
)
