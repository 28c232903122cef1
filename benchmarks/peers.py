"""Who is compared: names, programs, and whether each can run here."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks import c_programs
from benchmarks.certificate import certificate
from benchmarks.processes import ServerProcess, pinned
from benchmarks.servers.control import CERTIFICATE
from uring_trio._probe import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

# What ratios are relative to, and the same once more: how far apart two measurements of
# one and the same program are is the noise of all the others.
STOCK = "stock"
STOCK_AGAIN = "stock-again"
UVLOOP_PROTOCOL = "uvloop-protocol"
UVLOOP_PROTOCOL_AGAIN = "uvloop-protocol-again"
AGAIN = {STOCK: STOCK_AGAIN, UVLOOP_PROTOCOL: UVLOOP_PROTOCOL_AGAIN}

# What this is about, in two ways of writing a server.
RING = "ring"
GAIN = "gain"
OURS = (RING, GAIN)
# ... of another tree, see `of_tree`.
BEFORE = "-before"

ANYIO = "anyio"
ASYNCIO = "asyncio"
UVLOOP = "uvloop"
RLOOP = "rloop"
ASYNCIO_PROTOCOL = "asyncio-protocol"
RLOOP_PROTOCOL = "rloop-protocol"
C_EPOLL = "c-epoll"
C_RING = "c-ring"

IO_URING = "io_uring"
NOISE = "the same once more: the noise"


@dataclass(frozen=True)
class Peer:
    """A program to compare.

    Attributes:
      name: what it is called in options and tables.
      program: a module of ``benchmarks.servers``, or one of ``c_programs.SOURCES``.
      about: what it is, for people.
      arguments: its command line.
      cores: on how many it runs.
      is_trio: its program answers questions about trio's statistics.
      is_c: its program is one in C.
      needs: what it cannot run without: "io_uring", or modules.
      cannot: why it does not do what the scenario is about, or None if it does.
      tree: a built source tree whose ``uring_trio`` it runs on, or None for the one at hand.
    """

    name: str
    program: str
    about: str
    arguments: tuple[str, ...] = ()
    cores: int = 1
    is_trio: bool = False
    is_c: bool = False
    needs: tuple[str, ...] = ()
    cannot: str | None = None
    tree: Path | None = None

    def start(self, *arguments: str) -> ServerProcess:
        """Start it on the first cores that this process may use; *arguments* come last."""
        return self.start_on(sorted(os.sched_getaffinity(0))[: self.cores], *arguments)

    def start_on(self, cores: Sequence[int], *arguments: str) -> ServerProcess:
        """The same on other cores."""
        if self.is_c:
            command = [str(c_programs.build(self.program))]
        else:
            command = [sys.executable, "-m", f"benchmarks.servers.{self.program}"]
        with pinned(cores):
            return ServerProcess([*command, *self.arguments, *arguments], self.environment())

    def environment(self) -> dict[str, str]:
        """What its process finds there beside what we have."""
        found = {}
        if self.tree is not None:
            found["PYTHONPATH"] = str(self.tree / "src")
        if "trustme" in self.needs:
            found[CERTIFICATE] = certificate()
        return found

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.cannot is not None:
            return self.cannot
        for need in self.needs:
            if need == IO_URING:
                report = probe()
                if report.backend != IO_URING:
                    return f"no io_uring: {report.reason}"
            elif importlib.util.find_spec(need) is None:
                return f"{need} is not installed; it is in the extra 'bench'"
        if self.tree is not None and (reason := tree_missing(self.tree)):
            return reason
        return c_programs.missing(self.program) if self.is_c else None


@functools.cache
def tree_missing(tree: Path) -> str | None:
    """Why there is no ring to be had from a tree, or None."""
    source = str(tree / "src")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import uring_trio as u; print(u.__file__); print(u.probe().backend)",
        ],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    match result.stdout.split("\n"):
        case [path, backend, ""] if path.startswith(source):
            return None if backend == IO_URING else f"{tree}: it is on {backend} here"
    return f"{tree} is no built tree: {(result.stderr or result.stdout).strip()[-300:]}"


def of_tree(peers: Iterable[Peer], tree: Path) -> list[Peer]:
    """Ours among *peers*, as they are in another tree."""
    return [
        replace(peer, name=peer.name + BEFORE, about=f"{peer.about}, of the other tree", tree=tree)
        for peer in peers
        if peer.name in OURS
    ]


# Programs by the way they are written.


def trio_pair(program: str, *arguments: str, needs: tuple[str, ...] = ()) -> tuple[Peer, ...]:
    """A program on the ring, and twice on stock trio; which, is its first argument."""
    make = functools.partial(Peer, program=program, is_trio=program == "trio_streams")
    on_ring, on_stock = (RING, *arguments), (STOCK, *arguments)
    return (
        make(RING, about="trio on io_uring", arguments=on_ring, needs=(IO_URING, *needs)),
        make(STOCK, about="trio on its own epoll", arguments=on_stock, needs=needs),
        make(STOCK_AGAIN, about=NOISE, arguments=on_stock, needs=needs),
    )


def asyncio_loops(
    program: str,
    *arguments: str,
    about: str,
    needs: tuple[str, ...] = (),
    names: Callable[[str], str] = str,
    loops: Sequence[str] = (ASYNCIO, UVLOOP, RLOOP),
    cannot: Mapping[str, str] | None = None,
) -> tuple[Peer, ...]:
    """A program on asyncio's loop and on others; which, is its first argument.

    *cannot* has the reasons of the loops on which it cannot be done.
    """
    return tuple(
        Peer(
            names(loop),
            program,
            f"{about} on {loop}",
            (loop, *arguments),
            needs=needs if loop == ASYNCIO else (*needs, loop),
            cannot=(cannot or {}).get(loop),
        )
        for loop in loops
    )


def needs_of(service: str) -> tuple[str, ...]:
    """What a service takes, whoever serves."""
    return ("trustme",) if service == "tls" else ()


NOT_SENT = "rloop 0.5 does not send what is written just before a close"
RLOOP_CANNOT = {
    "unix": "rloop 0.5 has no UNIX sockets",
    "tls": "rloop 0.5 has no TLS",
    "accept": NOT_SENT,
    "ask": NOT_SENT,
}


def cannot_of(service: str) -> dict[str, str]:
    """Which loops of asyncio cannot do it, and why."""
    reason = RLOOP_CANNOT.get(service)
    return {} if reason is None else {RLOOP: reason}


def stream_servers(service: str) -> tuple[Peer, ...]:
    """A server as a task for each connection."""
    needs = needs_of(service)
    return (
        *trio_pair("trio_streams", service, needs=needs),
        Peer(
            ANYIO,
            "anyio_streams",
            "anyio's streams on asyncio",
            (ASYNCIO, service),
            needs=(ANYIO, *needs),
        ),
        *asyncio_loops(
            "asyncio_streams", service, about="streams", needs=needs, cannot=cannot_of(service)
        ),
    )


def datagram_servers() -> tuple[Peer, ...]:
    """One socket: trio's, anyio's; asyncio has protocols alone."""
    return (
        *trio_pair("trio_streams", "udp"),
        Peer(ANYIO, "anyio_streams", "anyio's socket on asyncio", (ASYNCIO, "udp"), needs=(ANYIO,)),
    )


def callback_servers(service: str) -> tuple[Peer, ...]:
    """A server of callbacks."""
    needs = needs_of(service)
    on_uvloop = Peer(
        UVLOOP_PROTOCOL_AGAIN,
        "asyncio_protocols",
        NOISE,
        (UVLOOP, service),
        needs=(UVLOOP, *needs),
    )
    return (
        Peer(GAIN, "gain_callbacks", "gain's callbacks", (service,), needs=(IO_URING, *needs)),
        *asyncio_loops(
            "asyncio_protocols",
            service,
            about="a protocol",
            needs=needs,
            names=lambda loop: f"{loop}-protocol",
            cannot=cannot_of(service),
        ),
        on_uvloop,
    )


C_SERVERS = (
    Peer(C_EPOLL, "echo_epoll", "plain C on epoll", is_c=True),
    Peer(C_RING, "echo_uring", "plain C on io_uring", is_c=True, needs=(IO_URING,)),
)


def echo_servers() -> tuple[Peer, ...]:
    """All that can echo over TCP."""
    return (*stream_servers("echo"), *callback_servers("echo"), *C_SERVERS)


def find(peers: Iterable[Peer], name: str) -> Peer:
    """The one of that name."""
    return next(peer for peer in peers if peer.name == name)


def sort_out(
    peers: Iterable[Peer], names: Sequence[str] | None = None
) -> tuple[list[Peer], dict[str, str]]:
    """Those that were asked for, or all, and can run here; and why the others cannot."""
    chosen, without = [], {}
    for peer in peers:
        if names is not None and peer.name not in names:
            continue
        reason = peer.missing()
        if reason is None:
            chosen.append(peer)
        else:
            without[peer.name] = reason
    return chosen, without


def choose_peers(peers: Sequence[Peer], names: Sequence[str] | None = None) -> list[Peer]:
    """Those that were asked for, or all, and can run here; say why for the others."""
    chosen, without = sort_out(peers, names)
    for name, reason in without.items():
        print(f"without {name}: {reason}")
    return chosen
