"""The places: a file of ours, its other end, and whoever else has it.

Each kind says what can be done there: calls of ours, acts of the peer and of a rival. An act does
what it can, at once, and never waits. What was done is kept as *facts*, and they are all that an
error may be excused with.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import fcntl
import itertools
import os
import select
import socket as stdlib_socket
import struct
import tempfile
import termios
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import harness
import trio

from peers import stranger as strangers
from peers import ways
from peers.books import (
    Clock,
    Early,
    Strange,
    content,
)
from peers.stranger import poll_says

if TYPE_CHECKING:
    from peers.between import Between
    from peers.stranger import Stranger

SOL, SO = stdlib_socket.SOL_SOCKET, stdlib_socket
SIZE_MAX = 300_000  # bytes that one act or call is about
BYTES_MAX = 16 << 20  # of one round; after that it goes on in small
PATIENCE = 3000  # sends of one round that are made only to fill something
HOSTS = {SO.AF_INET: "127.0.0.1", SO.AF_INET6: "::1"}
CLIENTS_MAX = 90
FULL_TO = 20  # tries of a byte, after what is large finds no room any more
READ, WRITE, ACCEPT, CONNECT = "read", "write", "accept", "connect"

Pair = tuple[tuple[str, str], tuple[str, str]]  # (who, what) and (who, what)
CLOSED = {"ClosedResourceError", "EBADF"}
NOT_SUPPORTED = errno.errorcode[errno.EOPNOTSUPP]
GONE = {"EPIPE", "ECONNRESET", "BrokenResourceError", "ENOTCONN"}


@dataclasses.dataclass(eq=False)
class Call:
    """One call of ours, from its start to its end.

    Attributes:
      place, name, way: what it is; the way is READ, WRITE, ACCEPT or CONNECT.
      size, flag: its arguments.
      scope: what cancels it.
      began: by the clock of the books.
      hindered: another call of the same direction was there meanwhile.
      done: it has ended.
    """

    place: Any
    name: str
    way: str
    size: int
    flag: str
    scope: trio.CancelScope
    began: int
    hindered: bool = False
    before: bool = False
    done: bool = False

    @property
    def reader(self) -> str:
        """For the books: of two calls at a time nobody knows which was first."""
        return f"ours {self.began}" if self.hindered else "ours"

    def __str__(self) -> str:
        return f"{self.name}({self.size}{', ' + self.flag if self.flag else ''}) at {self.place}"


class World:
    """What all places share.

    Attributes:
      clock: of the books.
      anyio: by anyio's door, not by trio's.
      stranger: another process, or None.
      between: who acts between our system calls.
      raw: for datagrams with a wrong checksum; None where this user may not have one.
    """

    def __init__(self, *, door: str, stranger: Stranger | None, between: Between) -> None:
        self.clock = Clock()
        self.between = between
        self.anyio = door == "anyio"
        self.stranger = stranger
        self.numbers = itertools.count(1)
        self._bytes = self._spent = 0
        self.raw: dict[int, SO.socket] = {}
        self.folder = tempfile.mkdtemp(prefix="peers-")

    def content(self, size: int) -> bytes:
        """So many new bytes, or few if there were very many."""
        if self._bytes > BYTES_MAX:
            size = min(size, 1000)
        self._bytes += size
        return content(next(self.numbers), size)

    def looks(self) -> int:
        """How often the loop has looked what is ready; on stock nobody counts."""
        return int(getattr(harness.io_statistics(), "enters", 0))

    def has_patience(self) -> bool:
        """Whether what is done until there is no more room is done: not for ever."""
        self._spent += 1
        return self._spent < PATIENCE

    def raw_socket(self, family: int) -> SO.socket | None:
        if family not in self.raw:
            try:
                self.raw[family] = SO.socket(family, SO.SOCK_RAW, SO.IPPROTO_UDP)
            except PermissionError:
                return None
        return self.raw[family]

    def close(self) -> None:
        for raw in self.raw.values():
            raw.close()
        for name in os.listdir(self.folder):
            os.unlink(f"{self.folder}/{name}")
        os.rmdir(self.folder)


# ---- options -----------------------------------------------------------------------------

TIMESTAMPING, RAW_AND_SENT = 37, 1 << 1 | 1 << 4
OPTIONS: dict[str, tuple[int, int, Any]] = {  # None: the size of the step
    "stamps": (SOL, TIMESTAMPING, RAW_AND_SENT),
    "received_stamps": (SOL, 29, 1),
    "recverr": (SO.IPPROTO_IP, 11, 1),
    "recverr6": (SO.IPPROTO_IPV6, 25, 1),
    "zerocopy": (SOL, 60, 1),
    "lowat": (SOL, SO.SO_RCVLOWAT, None),
    "oobinline": (SOL, SO.SO_OOBINLINE, 1),
    "nodelay": (SO.IPPROTO_TCP, SO.TCP_NODELAY, 1),
    "cork": (SO.IPPROTO_TCP, SO.TCP_CORK, 1),
    "uncork": (SO.IPPROTO_TCP, SO.TCP_CORK, 0),
    "notsent": (SO.IPPROTO_TCP, 25, None),
    "sndbuf": (SOL, SO.SO_SNDBUF, None),
    "rcvbuf": (SOL, SO.SO_RCVBUF, None),
    "linger": (SOL, SO.SO_LINGER, struct.pack("ii", 1, 0)),
    "rcvtimeo": (SOL, SO.SO_RCVTIMEO, struct.pack("ll", 0, 10_000)),
    "sndtimeo": (SOL, SO.SO_SNDTIMEO, struct.pack("ll", 0, 10_000)),
    "passcred": (SOL, SO.SO_PASSCRED, 1),
}


def set_option(sock: Any, name: str, size: int) -> bool:
    level, option, value = OPTIONS[name]
    try:
        sock.setsockopt(level, option, max(1, size) if value is None else value)
    except OSError:
        return False
    return True


# ---- what all kinds do alike -------------------------------------------------------------


def queued(fd: int) -> int:
    """Bytes that could be read; of no file, or of one that does not tell, 0."""
    answer = array.array("i", [0])
    with contextlib.suppress(OSError):
        if fd >= 0:
            fcntl.ioctl(fd, termios.FIONREAD, answer)
    return answer[0]


def name_of(exc: BaseException) -> str:
    """An error in one word: an errno's name or a class's."""
    if isinstance(exc, OSError) and exc.errno is not None:
        return errno.errorcode[exc.errno]
    return type(exc).__name__


class Rival:
    """Who has our file as well: here, or in the stranger's process.

    Attributes:
      greedy: the stranger takes what comes by himself.
    """

    def __init__(self, world: World, key: int, fd: int) -> None:
        self._world = world
        self._key = key
        self.fd = os.dup(fd)
        self._stranger = False
        self.greedy = False

    def close(self) -> list[bytes]:
        """He has it no longer; what he had taken by himself."""
        taken = self.content()
        if self._stranger:
            self._ask("leave")
        os.close(self.fd)
        return taken

    def _ask(self, do: str, data: bytes = b"", **more: Any) -> tuple[Any, bytes]:
        stranger = self._world.stranger
        assert stranger is not None
        if not self._stranger:
            self._stranger = True
            stranger.ask({"do": "have", "key": self._key}, fd=self.fd)
        answer: tuple[Any, bytes] = stranger.ask({"do": do, "key": self._key, **more}, data)
        return answer

    def take(self, size: int, *, there: bool) -> bytes | None:
        # Where he takes by himself nobody else can look first and then take.
        if (there or self.greedy) and self._world.stranger is not None:
            came, data = self._ask("take", size=size)
            return data if came else None
        return strangers.take(self.fd, size)

    def put(self, data: bytes, *, there: bool) -> int:
        if there and self._world.stranger is not None:
            return int(self._ask("put", data)[0])
        return strangers.put(self.fd, data)

    def block(self, *, on: bool) -> None:
        """Switch O_NONBLOCK off, or on, for all who have the file."""
        strangers.set_blocking(self.fd, on)

    def be_greedy(self) -> None:
        if self._world.stranger is not None and not self.greedy:
            self._ask("greedy")
            self.greedy = True

    def content(self) -> list[bytes]:
        """Greedy no more: what was taken."""
        if not self.greedy:
            return []
        self.greedy = False
        sizes, data = self._ask("content")
        ends = list(itertools.accumulate(sizes, initial=0))
        return [data[start:end] for start, end in itertools.pairwise(ends)]


class Common:
    """The part of a place that is the same for all kinds.

    Attributes:
      facts: what was done here, and may be the reason of an error.
      ours: our object on the file.
      rival: who has it too, or None.
      waits: how many of our calls wait for readiness.
      touched: after which look of the loop somebody last took something, or made room.
    """

    def __init__(self, world: World, number: int, kind: str) -> None:
        self.world = world
        self.number = number
        self.kind = kind
        self.facts: set[str] = set()
        self.shape: ways.Shape | None = None
        self.rival: Rival | None = None
        self.touched = -1
        self.waits = 0

    @property
    def slow(self) -> bool:
        """Whether it may take seconds until all has gone through."""
        return False

    @property
    def listens(self) -> bool:
        """Whether it takes connections."""
        return False

    def fd(self) -> int:
        return self.shape.fileno() if self.shape else -1

    def touch(self) -> None:
        if self.waits:  # it takes a while to ask
            self.touched = self.world.looks()

    def rivals(self) -> Rival | None:
        """The rival; there is one from now on, if there still can be."""
        if self.rival is None and self.fd() >= 0:
            self.rival = Rival(self.world, self.number, self.fd())
            self.facts.add("shared")
        return self.rival

    def may_flip(self) -> bool:
        """Whether somebody may switch O_NONBLOCK off between a look at it and what follows."""
        return True

    def between(self, name: str, size: int, times: int) -> None:
        """From now on a rival acts right after each look at our file, so many times."""
        if (rival := self.rivals()) is None:
            return
        if name != "flip":

            def act() -> None:
                self.rival_act(name, size)
                self.touch()  # also where nothing came of it: it drops what has a bad checksum

            self.world.between.act(self.fd(), times, act)
        elif self.may_flip():
            block, unblock = (partial(rival.block, on=on) for on in (True, False))
            self.world.between.act(self.fd(), times, block, unblock)
            self.facts |= {"blocks", "flips"}

    def rival_act(self, name: str, size: int) -> None:
        """A rival does something; each kind has its own."""
        raise NotImplementedError

    def option(self, name: str, size: int) -> None:
        if name == "passcred" and self.world.anyio:
            return  # anyio's receive_fds raises for what comes then, and it is lost
        raw = self.shape.raw if self.shape else None
        if raw is not None and self.fd() >= 0 and set_option(raw, name, size):
            self.facts.add(name)

    async def shut_ours(self, how: str) -> None:
        """Close our side in one of the ways that its shape has."""
        assert self.shape is not None
        names = sorted(self.shape.closes)
        close = self.shape.closes.get(how) or self.shape.closes[names[0]]
        self.facts.add("closed")
        if isinstance(awaitable := close(), object) and hasattr(awaitable, "__await__"):
            await awaitable

    def why_not_ended(self, call: Call) -> str | None:
        """Why this call should have ended, if it should."""
        if call.scope.cancel_called:
            return "it was cancelled"
        fd = self.fd()
        if fd < 0:
            return "its file was closed"
        if call.name.startswith("accept") and not self.listens:
            return "nobody listens"
        events = poll_says(fd)
        if call.way in (READ, ACCEPT) and events & (select.POLLIN | select.POLLHUP):
            return f"poll says {events:#x}"
        if call.way == WRITE and events & select.POLLOUT:
            return f"poll says {events:#x}"
        return None

    def excuses(self, call: Call) -> set[str]:
        """Errors that what was done here explains."""
        excuses: set[str] = set()
        if call.hindered:
            excuses.add("BusyResourceError")
        if "closed" in self.facts:
            excuses |= CLOSED
        if call.way == ACCEPT and not self.listens:
            excuses |= {"EINVAL", NOT_SUPPORTED}
        if call.flag in ways.OWN_WAY:
            excuses |= {"EINVAL", NOT_SUPPORTED, "EAGAIN", "ENOBUFS"}
        return excuses


async def wait(place: Any, call: Call) -> None:
    """One of the waits for readiness, and whether the file is ready then."""
    if (fd := place.fd()) < 0:
        await trio.lowlevel.checkpoint()
        return
    if call.name == "wait_send_all_might_not_block":
        await place.shape.thing.wait_send_all_might_not_block()
        return
    door: Any = anyio if place.world.anyio else trio.lowlevel
    place.waits += 1
    try:
        await getattr(door, call.name)(fd if call.size % 2 else place.shape.raw or fd)
    finally:
        place.waits -= 1
    if call.hindered or place.touched == place.world.looks() or "closed" in place.facts:
        return
    if place.rival and place.rival.greedy:
        return
    if {"bad", "blocks"} <= place.facts:
        return  # only of a file that blocks does poll(2) look at checksums
    events = poll_says(fd)
    wanted = select.POLLIN if call.way in (READ, ACCEPT) else select.POLLOUT
    if not events & (wanted | select.POLLERR | select.POLLHUP | select.POLLRDHUP | select.POLLPRI):
        raise Early(f"{call} told that it is ready, and poll says {events:#x}")


async def accept_in_vain(place: Any, call: Call) -> None:
    """Of a socket that does not listen."""
    await place.shape.raw.accept()
    raise Strange(f"{call} has accepted something")


def unix_pair(type_: int, size: int) -> tuple[SO.socket, SO.socket]:
    pair = SO.socketpair(SO.AF_UNIX, type_)
    if size:
        for sock in pair:
            sock.setsockopt(SOL, SO.SO_SNDBUF, size)
    return pair
