"""Places where connections are made: a listener of the peer's, and sockets of ours."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import trio

from peers import stranger as strangers
from peers.books import Lost
from peers.places import CONNECT, GONE, HOSTS, SO, Call, Common, Pair, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOM = 128  # connections that a listener which is not full takes
TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34  # <linux/tcp.h>


async def send_nothing(sock: Any, data: bytes) -> None:
    """It connects, too."""
    await sock.send(b"")
    await sock.send(data)


async def sendmsg_nothing(sock: Any, data: bytes) -> None:
    await sock.sendmsg([b"", b""])
    await sock.sendmsg([data])


# The first send of a socket whose connect() was over at once.
FIRST_SENDS: list[Callable[[Any, bytes], Awaitable[Any]]] = [
    send_nothing,
    sendmsg_nothing,
    lambda sock, data: sock.send(data),
    lambda sock, data: sock.sendmsg([data[:3], data[3:]]),
    lambda sock, data: trio.SocketStream(sock).send_all(data),
    lambda sock, data: trio.SocketStream(sock).send_all(bytearray(data)),
]


class Connects(Common):
    """A listener of the peer's, with little room, and sockets of ours that connect to it."""

    KINDS = ("connect_tcp", "connect_tcp_full", "connect_unix", "connect_seqpacket")

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        self._family = SO.AF_INET if kind.startswith("connect_tcp") else SO.AF_UNIX
        self._type = SO.SOCK_SEQPACKET if kind == "connect_seqpacket" else SO.SOCK_STREAM
        self._listener = SO.socket(self._family, self._type)
        self._connected: dict[bytes, Any] = {}
        self._sure: set[bytes] = set()
        self._servers: list[SO.socket] = []
        self._address: Any = None

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def slow(self) -> bool:
        """Whether who finds no room asks again after a second."""
        return self.kind == "connect_tcp_full"

    async def open(self, shape: str, size: int) -> None:
        if self._family == SO.AF_UNIX:
            self._listener.bind(f"{self.world.folder}/connects-{self.number}")
        else:
            self._listener.bind((HOSTS[SO.AF_INET], 0))
        self._listener.listen(ROOM if self.kind == "connect_tcp" else size % 4)
        self._listener.setblocking(False)
        self._address = self._listener.getsockname()

    # ---- the peer

    def acts(self) -> list[str]:
        return ["accept", "accept", "accept", "gone"]

    def act(self, name: str, size: int) -> None:
        if self._listener.fileno() < 0:
            return
        if name == "gone":
            self._listener.close()
            self.facts.add("gone")
            return
        try:
            server, _ = self._listener.accept()
        except OSError:
            return
        self._servers.append(server)
        self.touch()

    def back_and_forth(self) -> list[Pair]:
        """There is nobody who takes it away."""
        return []

    def rival_acts(self) -> list[str]:
        return []

    def rival_act(self, name: str, size: int) -> None:
        """There is none."""

    def option(self, name: str, size: int) -> None:
        """There is no socket yet."""

    # ---- our calls

    @staticmethod
    def names(kind: str, door: str) -> list[str]:
        """The calls that such a place may have."""
        names = ["connect", "connect_begun"]
        if kind.startswith("connect_tcp"):
            names.append("connect_fast_open")
        if door == "anyio" and kind != "connect_seqpacket":
            names += ["connect_anyio", "connect_anyio"]
        return names

    def calls(self) -> dict[str, str]:
        door = "anyio" if self.world.anyio else "trio"
        return dict.fromkeys(self.names(self.kind, door), CONNECT)

    async def call(self, call: Call) -> None:
        label = struct.pack("!Q", next(self.world.numbers))
        connect = self._connect_anyio if call.name == "connect_anyio" else self._connect
        self._connected[label] = await connect(call, label)

    async def _connect_anyio(self, call: Call, label: bytes) -> Any:
        stream: Any
        if self._family == SO.AF_UNIX:
            stream = await anyio.connect_unix(self._address)
        else:
            stream = await anyio.connect_tcp(*self._address)
        self._send_at_once(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno(), label)
        self._sure.add(label)
        return stream

    async def _connect(self, call: Call, label: bytes) -> Any:
        sock = trio.socket.socket(self._family, self._type)
        try:
            if call.name == "connect_begun":
                self._begin(sock.fileno())
            if call.name == "connect_fast_open":
                for option in (TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE):
                    sock.setsockopt(SO.IPPROTO_TCP, option, 1)
                await sock.connect(self._address)
                # It may be over when the data is with the kernel, and nobody has answered.
                await FIRST_SENDS[call.size % len(FIRST_SENDS)](sock, label)
            else:
                await sock.connect(self._address)
                self._send_at_once(sock.fileno(), label)
                sock.getpeername()
                self._sure.add(label)
        except BaseException:
            sock.close()
            raise
        return sock

    def _begin(self, fd: int) -> None:
        """Somebody else, who has the same socket, begins to connect it."""
        with SO.socket(fileno=os.dup(fd)) as same, contextlib.suppress(OSError):
            same.setblocking(False)
            same.connect(self._address)

    def _send_at_once(self, fd: int, label: bytes) -> None:
        with contextlib.suppress(OSError), SO.socket(fileno=os.dup(fd)) as same:
            same.send(label, SO.MSG_DONTWAIT | SO.MSG_NOSIGNAL)

    def excuses(self, call: Call) -> set[str]:
        excuses = super().excuses(call)
        if "gone" in self.facts:
            excuses |= {"ECONNREFUSED", *GONE}
            if call.name == "connect_anyio":
                excuses.add("OSError")  # of all addresses together
        if call.name == "connect_begun" and self._family == SO.AF_UNIX:
            excuses.add("EISCONN")  # who had begun has ended, too
        return excuses

    def failed(self, call: Call, exc: BaseException) -> None:
        """Nothing follows from it."""

    def shut(self, name: str) -> None:
        """There is no socket of ours."""

    def why_not_ended(self, call: Call) -> str | None:
        return "it was cancelled" if call.scope.cancel_called else None

    # ---- the end

    def finish_some(self, calls: list[Call]) -> None:
        for _ in range(10):
            self.act("accept", 0)

    async def close(self) -> None:
        if "gone" not in self.facts:
            for _ in range(1000):
                before = len(self._servers)
                self.act("accept", 0)
                if len(self._servers) == before:
                    break
        names = [strangers.name_of(server) for server in self._servers]
        for ours in self._connected.values():
            if isinstance(ours, anyio.abc.AsyncResource):
                await ours.aclose()
            else:
                ours.close()
        for sock in [*self._servers, self._listener]:
            sock.close()
        for label in self._connected:
            lost = label in self._sure and "gone" not in self.facts and label not in names
            if names.count(label) > 1 or lost:
                raise Lost(f"{self}: a connection is there {names.count(label)} times")

    async def close_early(self, how: str) -> None:
        """There is no socket of ours."""
