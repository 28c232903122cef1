"""Who is compared: names, programs, and whether each can run here."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import c_programs
from benchmarks.processes import ServerProcess, pinned
from uring_trio._probe import probe

if TYPE_CHECKING:
    from collections.abc import Sequence

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
      program: a module of ``benchmarks.servers``, or one of ``c_programs.SOURCES``.
      about: what it is, for people.
      arguments: its command line.
      cores: on how many it runs.
      is_trio: its program answers questions about trio's statistics.
      is_c: its program is one in C.
      needs: what it cannot run without: "io_uring", "uvloop".
    """

    name: str
    program: str
    about: str
    arguments: tuple[str, ...] = ()
    cores: int = 1
    is_trio: bool = False
    is_c: bool = False
    needs: tuple[str, ...] = ()

    def start(self) -> ServerProcess:
        """Start the server on the first cores that this process may use."""
        if self.is_c:
            command = [str(c_programs.build(self.program))]
        else:
            command = [sys.executable, "-m", f"benchmarks.servers.{self.program}"]
        with pinned(sorted(os.sched_getaffinity(0))[: self.cores]):
            return ServerProcess([*command, *self.arguments])

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if "io_uring" in self.needs:
            report = probe()
            if report.backend != "io_uring":
                return f"no io_uring: {report.reason}"
        if "uvloop" in self.needs and importlib.util.find_spec("uvloop") is None:
            return "uvloop is not installed; it is in the extra 'bench'"
        return c_programs.missing(self.program) if self.is_c else None


PEERS = (
    Peer(RING, "ring", "SocketStream on uring_trio", is_trio=True, needs=("io_uring",)),
    Peer(STOCK, "stock", "SocketStream on trio's epoll", is_trio=True),
    Peer(STOCK_AGAIN, "stock", "the same once more: the noise", is_trio=True),
    Peer("asyncio", "asyncio_streams", "asyncio streams"),
    Peer("uvloop", "uvloop_streams", "asyncio streams on uvloop", needs=("uvloop",)),
)


def choose_peers(peers: Sequence[Peer], names: Sequence[str] | None = None) -> list[Peer]:
    """Those that were asked for, or all, and can run here; say why for the others."""
    chosen = []
    for peer in peers:
        if names is not None and peer.name not in names:
            continue
        reason = peer.missing()
        if reason is None:
            chosen.append(peer)
        else:
            print(f"without {peer.name}: {reason}")
    return chosen
