"""Places where connections come to us: a listener of ours, and others who accept there."""

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
    HOSTS,
    SO,
    SOL,
    Call,
    Common,
    Pair,
    Rival,
    World,
    set_option,
    wait,
)

NEVER = 0  # of the books' clock
MAIN, OTHER = "main", "other"  # of two sockets of ours on one file


class Listener(Common):
    """A listener of ours, with clients, and perhaps with others who accept there.

    A *late* one only has an address at first, so nothing can be accepted there. What is known
    of a file that blocks: an `accept` has taken a connection that came after it was switched, and
    so has seen it. From then on whoever switches it back and forth does no harm.
    """

    KINDS = (
        "listen_tcp",
        "listen_tcp6",
        "listen_unix",
        "listen_seqpacket",
        "late_tcp",
        "late_unix",
    )

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        self._clients: dict[bytes, SO.socket] = {}
        self._sure: set[bytes] = set()
        self._accepted: list[bytes] = []
        self._address: Any = None
        self._family = SO.AF_INET
        self._type = SO.SOCK_STREAM
        self._other: trio.socket.SocketType | None = None  # ours, too, on the same file
        self._accepting: list[Call] = []
        self._came: dict[bytes, int] = {}  # by the clock of the books
        self._listens_since = self._blocks_since = NEVER
        self._known = {MAIN: NEVER, OTHER: NEVER}

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    async def open(self, shape: str, size: int) -> None:
        if self.kind == "listen_seqpacket":
            self._type = SO.SOCK_SEQPACKET
        self._family = {
            "listen_tcp": SO.AF_INET,
            "listen_tcp6": SO.AF_INET6,
            "late_tcp": SO.AF_INET,
        }.get(self.kind, SO.AF_UNIX)
        listener = SO.socket(self._family, self._type)
        if self._family == SO.AF_UNIX:
            listener.bind(f"{self.world.folder}/listener-{self.number}")
        else:
            listener.bind((HOSTS[self._family], 0))
        of_stream = self._type == SO.SOCK_STREAM and not self.is_late
        if not self.is_late:
            listener.listen(CLIENTS_MAX + 10)
        self._address = listener.getsockname()
        if self.world.anyio and of_stream:
            ours: Any = await anyio.abc.SocketListener.from_socket(listener)
            raw = ours.extra(anyio.abc.SocketAttribute.raw_socket)
            closes = {"aclose": ours.aclose}
        else:
            raw = trio.socket.from_stdlib_socket(listener)
            ours = trio.SocketListener(raw) if of_stream else raw
            closes = {"close": raw.close, "leave": lambda: ways.leave(raw)}
            if ours is not raw:
                closes["aclose"] = ours.aclose
        self.shape = ways.Shape(
            ours, reads={}, writes={}, fileno=raw.fileno, closes=closes, raw=raw
        )

    @property
    def is_late(self) -> bool:
        """Whether it does not listen from the beginning."""
        return self.kind.startswith("late")

    @property
    def listens(self) -> bool:
        return not self.is_late or self._listens_since > NEVER

    def acts(self) -> list[str]:
        acts = ["connect", "connect", "connect", "connect_close", "connect_reset"]
        return [*acts, "listen"] if self.is_late else acts

    def act(self, name: str, size: int) -> None:
        if self.fd() < 0:
            return
        if name == "listen":
            assert self.shape is not None
            self._listens_since = self._listens_since or self.world.clock()
            self.shape.raw.listen(CLIENTS_MAX + 10)
        elif len(self._clients) < CLIENTS_MAX:
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
        self._came[label] = self.world.clock()
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
            self._blocks_since = self.world.clock() if name == "block" else NEVER
        elif name == "greedy" and self.listens:
            rival.be_greedy()
        elif name == "content":
            self._be_content(rival)

    def may_flip(self) -> bool:
        """Whether whoever may accept has seen it block, and so will not trust it."""
        since = [self._known[MAIN], *([self._known[OTHER]] if self._other else [])]
        return min(since) > NEVER and all(call.began > max(since) for call in self._accepting)

    def _be_content(self, rival: Rival) -> None:
        for label in rival.content():
            self._rival_took(label)

    def _rival_took(self, label: bytes | None) -> None:
        if label:
            self._note(label)
            self.touch()

    def _note(self, label: bytes, by: str | None = None) -> None:
        if label == bytes(len(label)):
            return
        self._accepted.append(label)
        if by and NEVER < self._blocks_since < self._came[label]:
            self._known[by] = self.world.clock()

    @staticmethod
    def names(kind: str) -> list[str]:
        """The calls that such a place may have."""
        if kind.startswith("late"):
            return ["accept", "accept", "accept_other", "wait_readable"]
        names = ["accept", "accept", "accept", "accept_other", "accept_stream"]
        return [*names, "serve", "wait_readable"]

    def calls(self) -> dict[str, str]:
        assert self.shape is not None
        names = ["wait_readable", "accept_other"]
        if self.shape.raw is self.shape.thing:
            names.append("accept")
        elif self.world.anyio:
            names.append("serve")
        else:
            names += ["accept", "accept_stream", "serve"]
        if "flips" in self.facts and not self._known[OTHER]:
            names.remove("accept_other")
        return dict.fromkeys(names, ACCEPT)

    async def call(self, call: Call) -> None:
        assert self.shape is not None
        if call.name.startswith("wait_"):
            await wait(self, call)
            return
        self._accepting.append(call)
        try:
            await self._accept(call)
        finally:
            self._accepting.remove(call)

    async def _accept(self, call: Call) -> None:
        assert self.shape is not None
        if call.name == "accept":
            sock, _ = await self.shape.raw.accept()
            self._ours_took(sock, MAIN)
        elif call.name == "accept_other":
            sock, _ = await self._other_of_ours().accept()
            self._ours_took(sock, OTHER)
        elif call.name == "accept_stream":
            stream = await self.shape.thing.accept()
            self._ours_took(stream.socket, MAIN)
        else:
            await self._serve()

    def _other_of_ours(self) -> trio.socket.SocketType:
        if self._other is None:
            same = SO.socket(fileno=os.dup(self.fd()))
            self._other = trio.socket.from_stdlib_socket(same)
        return self._other

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
                self._close_other()

    def excuses(self, call: Call) -> set[str]:
        excuses = super().excuses(call)
        if "served" in self.facts:
            excuses |= CLOSED
        if self.is_late and call.began < self._listens_since:
            excuses.add("EINVAL")
        return excuses

    async def _handle(self, stream: trio.SocketStream) -> None:
        self._ours_took(stream.socket, MAIN)

    async def _handle_anyio(self, stream: Any) -> None:
        label = self._name_at(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno())
        self._note(label, MAIN)
        self.touch()
        await stream.aclose()

    def _ours_took(self, sock: Any, by: str) -> None:
        label = self._name_at(sock.fileno())
        sock.close()
        self._note(label, by)
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
            self._be_content(self.rival)
        for call in calls:
            if call.name == "serve":
                call.scope.cancel()
            elif self.fd() >= 0:
                self._connect("connect")

    async def close(self) -> None:
        fd = self.fd()
        whole = fd >= 0 and "closed" not in self.facts and self.listens
        if self.rival:
            self._be_content(self.rival)
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

    async def shut_ours(self, how: str) -> None:
        self._close_other()
        await super().shut_ours(how)

    def _close_other(self) -> None:
        if self._other:
            self._other.close()

    async def close_early(self, how: str) -> None:
        if "closed" in self.facts or self.fd() < 0:
            return
        self.facts.add("closed early")
        await self.shut_ours(how)
