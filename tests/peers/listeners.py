"""Places where connections are made: a listener of ours, and one that ours connect to."""

from __future__ import annotations

import contextlib
import os
import select
import struct
from typing import Any

import anyio
import anyio.abc
import trio

from peers import stranger as strangers
from peers import ways
from peers.books import (
    Lost,
)
from peers.places import (
    ACCEPT,
    CLIENTS_MAX,
    CLOSED,
    CONNECT,
    HOSTS,
    SO,
    SOL,
    Call,
    Common,
    Pair,
    World,
    set_option,
    wait,
)


class Listener(Common):
    """A listener of ours, with clients, and perhaps with others who accept there."""

    KINDS = ("listen_tcp", "listen_tcp6", "listen_unix", "listen_seqpacket")

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        self._clients: dict[bytes, SO.socket] = {}
        self._sure: set[bytes] = set()
        self._accepted: list[bytes] = []
        self._address: Any = None
        self._family = SO.AF_INET
        self._type = SO.SOCK_STREAM

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    async def open(self, shape: str, size: int) -> None:
        if self.kind == "listen_seqpacket":
            self._type = SO.SOCK_SEQPACKET
        self._family = {
            "listen_tcp": SO.AF_INET,
            "listen_tcp6": SO.AF_INET6,
        }.get(self.kind, SO.AF_UNIX)
        listener = SO.socket(self._family, self._type)
        if self._family == SO.AF_UNIX:
            listener.bind(f"{self.world.folder}/listener-{self.number}")
        else:
            listener.bind((HOSTS[self._family], 0))
        listener.listen(CLIENTS_MAX + 10)
        self._address = listener.getsockname()
        if self.world.anyio and self._type == SO.SOCK_STREAM:
            ours: Any = await anyio.abc.SocketListener.from_socket(listener)
            raw = ours.extra(anyio.abc.SocketAttribute.raw_socket)
            closes = {"aclose": ours.aclose}
        else:
            raw = trio.socket.from_stdlib_socket(listener)
            ours = trio.SocketListener(raw) if self._type == SO.SOCK_STREAM else raw
            closes = {"close": raw.close, "leave": lambda: ways.leave(raw)}
            if ours is not raw:
                closes["aclose"] = ours.aclose
        self.shape = ways.Shape(
            ours, reads={}, writes={}, fileno=raw.fileno, closes=closes, raw=raw
        )

    def acts(self) -> list[str]:
        return ["connect", "connect", "connect", "connect_close", "connect_reset"]

    def act(self, name: str, size: int) -> None:
        if len(self._clients) < CLIENTS_MAX and self.fd() >= 0:
            self._connect(name)

    def _connect(self, name: str) -> None:
        client = SO.socket(self._family, self._type)
        client.setblocking(False)
        label = struct.pack("!Q", next(self.world.numbers))
        try:
            with contextlib.suppress(BlockingIOError):
                client.connect(self._address)
            client.send(label)
        except OSError:
            client.close()
            return
        if name == "connect":
            self._sure.add(label)
            self._clients[label] = client
            return
        if name == "connect_reset":
            set_option(client, "linger", 0)
        elif self._family == SO.AF_UNIX:
            self._sure.add(label)
        client.close()

    def back_and_forth(self) -> list[Pair]:
        """As at a stream."""
        acts = ("connect", "connect_close")
        return [(("peer", act), ("rival", "take")) for act in acts]

    def rival_acts(self) -> list[str]:
        return ["take", "take", "take_there", "greedy", "greedy", "content", "block", "unblock"]

    def rival_act(self, name: str, size: int) -> None:
        if (name == "content" and self.rival is None) or (rival := self.rivals()) is None:
            return
        if name.startswith("take"):
            self._rival_took(rival.take(0, there=name == "take_there"))
        elif name in ("block", "unblock"):
            rival.block(on=name == "block")
            self.facts.add("blocks")
        elif name == "greedy":
            rival.be_greedy()
        elif name == "content":
            for label in rival.content():
                self._rival_took(label)

    def _rival_took(self, label: bytes | None) -> None:
        if label:
            self._note(label)
            self.touch()

    def _note(self, label: bytes) -> None:
        if label != bytes(len(label)):
            self._accepted.append(label)

    def calls(self) -> dict[str, str]:
        assert self.shape is not None
        calls = {"serve": ACCEPT, "wait_readable": ACCEPT}
        if self.shape.raw is self.shape.thing or not self.world.anyio:
            calls["accept"] = ACCEPT
            if self.shape.raw is self.shape.thing:
                del calls["serve"]
            else:
                calls["accept_stream"] = ACCEPT
        return calls

    async def call(self, call: Call) -> None:
        assert self.shape is not None
        thing = self.shape.thing
        if call.name.startswith("wait_"):
            await wait(self, call)
        elif call.name == "accept":
            sock, _ = await self.shape.raw.accept()
            self._ours_took(sock)
        elif call.name == "accept_stream":
            stream = await thing.accept()
            self._ours_took(stream.socket)
        else:
            await self._serve()

    async def _serve(self) -> None:
        """Whoever serves closes the listener in the end."""
        assert self.shape is not None
        if not self.world.anyio:
            self.facts.add("served")
        try:
            if self.world.anyio:
                await self.shape.thing.serve(self._handle_anyio)
            else:
                await trio.serve_listeners(self._handle, [self.shape.thing])
        finally:
            if not self.world.anyio:
                self.facts |= {"closed", "closed early"}

    def excuses(self, call: Call) -> set[str]:
        return super().excuses(call) | (CLOSED if "served" in self.facts else set())

    async def _handle(self, stream: trio.SocketStream) -> None:
        self._ours_took(stream.socket)

    async def _handle_anyio(self, stream: Any) -> None:
        label = self._name_at(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno())
        self._note(label)
        self.touch()
        await stream.aclose()

    def _ours_took(self, sock: Any) -> None:
        label = self._name_at(sock.fileno())
        sock.close()
        self._note(label)
        self.touch()

    def _name_at(self, fd: int) -> bytes:
        with SO.socket(fileno=os.dup(fd)) as same:
            same.setsockopt(SOL, SO.SO_RCVLOWAT, 1)
            poll = select.poll()
            poll.register(same, select.POLLIN)
            poll.poll(strangers.NAME_MAX_S * 1e3)
            try:
                return same.recv(strangers.NAME, SO.MSG_DONTWAIT) or bytes(strangers.NAME)
            except OSError:
                return bytes(strangers.NAME)

    def failed(self, call: Call, exc: BaseException) -> None:
        """Nothing follows from it."""

    def shut(self, name: str) -> None:
        """Not here."""

    def finish_some(self, calls: list[Call]) -> None:
        if self.rival:
            for label in self.rival.content():
                self._rival_took(label)
        for call in calls:
            if call.name == "serve":
                call.scope.cancel()
            elif self.fd() >= 0:
                self._connect("connect")

    async def close(self) -> None:
        fd = self.fd()
        whole = fd >= 0 and "closed" not in self.facts
        if whole:
            while (label := strangers.take(fd, 0)) is not None:
                self._note(label)
        if self.rival:
            for label in self.rival.close():
                self._rival_took(label)
        if "closed" not in self.facts:
            await self.shut_ours("")
        for client in self._clients.values():
            client.close()
        for label in self._accepted:
            if self._accepted.count(label) > 1:
                raise Lost(f"{self}: a connection was accepted twice")
        if whole and (missing := self._sure - set(self._accepted)):
            raise Lost(f"{self}: {len(missing)} connections of {len(self._sure)} got to nobody")

    async def close_early(self, how: str) -> None:
        if "closed" in self.facts or self.fd() < 0:
            return
        self.facts.add("closed early")
        await self.shut_ours(how)


class Connects(Common):
    """A listener of the peer's, with little room, and sockets of ours that connect to it."""

    KINDS = ("connect_tcp", "connect_unix", "connect_seqpacket")

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        self._listener = SO.socket()
        self._type = SO.SOCK_STREAM
        self._connected: dict[bytes, Any] = {}
        self._accepted: list[bytes] = []
        self._servers: list[SO.socket] = []
        self._address: Any = None

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    async def open(self, shape: str, size: int) -> None:
        if self.kind != "connect_tcp":
            self._listener.close()
            if self.kind == "connect_seqpacket":
                self._type = SO.SOCK_SEQPACKET
            self._listener = SO.socket(SO.AF_UNIX, self._type)
            self._listener.bind(f"{self.world.folder}/connects-{self.number}")
        else:
            self._listener.bind((HOSTS[SO.AF_INET], 0))
        # A TCP client whose SYN finds no room asks again after a second.
        self._listener.listen(size % 4 if self.kind != "connect_tcp" else 128)
        self._listener.setblocking(False)
        self._address = self._listener.getsockname()

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

    def calls(self) -> dict[str, str]:
        return {"connect": CONNECT}

    async def call(self, call: Call) -> None:
        sock = trio.socket.socket(self._listener_family(), self._type)
        try:
            await sock.connect(self._address)
            sock.getpeername()
        except BaseException:
            sock.close()
            raise
        label = struct.pack("!Q", next(self.world.numbers))
        self._connected[label] = sock
        with contextlib.suppress(OSError), SO.socket(fileno=os.dup(sock.fileno())) as same:
            same.send(label, SO.MSG_DONTWAIT | SO.MSG_NOSIGNAL)

    def _listener_family(self) -> int:
        return SO.AF_INET if self.kind == "connect_tcp" else SO.AF_UNIX

    def excuses(self, call: Call) -> set[str]:
        excuses = super().excuses(call)
        if "gone" in self.facts:
            excuses |= {"ECONNREFUSED", "ECONNRESET", "ENOTCONN"}
        return excuses

    def failed(self, call: Call, exc: BaseException) -> None:
        """Nothing follows from it."""

    def shut(self, name: str) -> None:
        """There is no socket of ours."""

    def why_not_ended(self, call: Call) -> str | None:
        return "it was cancelled" if call.scope.cancel_called else None

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
        for sock in [*self._connected.values(), *self._servers, self._listener]:
            sock.close()
        for label in self._connected:
            if names.count(label) > 1 or ("gone" not in self.facts and label not in names):
                raise Lost(f"{self}: a connection is there {names.count(label)} times")

    async def close_early(self, how: str) -> None:
        """There is no socket of ours."""
