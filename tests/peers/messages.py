"""Places of datagrams and packets: UDP and UNIX sockets, connected or not, and seqpacket."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio
import anyio.abc
import by_seed
import harness

from peers import stranger as strangers
from peers import ways
from peers.books import (
    MAYBE,
    NEVER,
    SURE,
    Lost,
    MessageBook,
    Strange,
)
from peers.places import (
    ACCEPT,
    GONE,
    HOSTS,
    READ,
    SO,
    SOL,
    WRITE,
    Call,
    Common,
    Pair,
    Rival,
    World,
    accept_in_vain,
    unix_pair,
    wait,
)

UDP_MAX = 65_507  # bytes of a datagram, by IPv4
OVERHEAD = 32  # of a UNIX socket's buffer


class Messages(Common):
    """Datagrams or packets: UDP and UNIX sockets, connected or not, and seqpacket."""

    KINDS = ("udp", "udp6", "udp_open", "unix_dgram", "unix_open", "seqpacket")
    PEERS = 2  # of a socket that is not connected

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        self.to_us = MessageBook(world.clock, world.numbers)
        self.peers: list[SO.socket] = []
        self.to_peers: list[MessageBook] = []
        self._address: Any = None
        self._room = ways.PACKET_MAX + OVERHEAD

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def slow(self) -> bool:
        """Whether an error queue that nobody reads takes the room of what is to come."""
        return bool(self.facts & {"stamps", "recverr", "recverr6", "zerocopy"})

    @property
    def is_open(self) -> bool:
        """Whether it is connected to nobody."""
        return self.kind.endswith("_open")

    async def open(self, shape: str, size: int) -> None:
        ours = self._sockets(size)
        if size:
            ours.setsockopt(SOL, SO.SO_SNDBUF, max(size, 4096))
        for peer in self.peers:
            peer.setblocking(False)
        self.to_peers = [MessageBook(self.world.clock, self.world.numbers) for _ in self.peers]
        targets = [peer.getsockname() for peer in self.peers] if self.is_open else []
        if self.world.anyio and self.kind != "seqpacket":
            unix = self.kind.startswith("unix")
            kind: Any = {
                (False, False): anyio.abc.ConnectedUDPSocket,
                (False, True): anyio.abc.UDPSocket,
                (True, False): anyio.abc.ConnectedUNIXDatagramSocket,
                (True, True): anyio.abc.UNIXDatagramSocket,
            }[unix, self.is_open]
            self.shape = await ways.of_anyio_packets(ours, kind, targets)
        else:
            self.shape = ways.of_socket(ours, unix=self.kind in ("unix_dgram", "seqpacket"))
            if self.is_open:
                ways.to_targets(self.shape, targets)
        self._look_for_room()

    def _sockets(self, size: int) -> SO.socket:
        """Ours; the peers are kept."""
        if self.kind in ("unix_dgram", "seqpacket"):
            type_ = SO.SOCK_SEQPACKET if self.kind == "seqpacket" else SO.SOCK_DGRAM
            ours, peer = unix_pair(type_, size and max(size, 4096))
            self.peers = [peer]
            return ours
        if self.kind == "unix_open":
            ours = SO.socket(SO.AF_UNIX, SO.SOCK_DGRAM)
            ours.bind(f"{self.world.folder}/ours-{self.number}")
            for number in range(self.PEERS):
                peer = SO.socket(SO.AF_UNIX, SO.SOCK_DGRAM)
                peer.bind(f"{self.world.folder}/peer-{self.number}-{number}")
                self.peers.append(peer)
            self._address = ours.getsockname()
            return ours
        family = SO.AF_INET6 if self.kind == "udp6" else SO.AF_INET
        ours = SO.socket(family, SO.SOCK_DGRAM)
        ours.bind((HOSTS[family], 0))
        self._address = ours.getsockname()
        for _ in range(self.PEERS if self.is_open else 1):
            peer = SO.socket(family, SO.SOCK_DGRAM)
            peer.bind((HOSTS[family], 0))
            self.peers.append(peer)
        if not self.is_open:
            ours.connect(self.peers[0].getsockname())
            self.peers[0].connect(self._address)
        return ours

    # ---- the peers

    def acts(self) -> list[str]:
        acts = ["send", "send", "send", "read", "read_all", "flood", "close"]
        if self.kind.startswith("udp"):
            acts += ["bad", "stray", "unreachable"]
        if self.kind == "seqpacket":
            acts += ["shut_write"]
        if self.kind.startswith("unix"):
            acts += ["crowd"]
        return acts

    def act(self, name: str, size: int) -> None:
        which = size % len(self.peers)
        peer = self.peers[which]
        if name == "bad":
            self._send_bad(size)
        elif name == "stray":
            self._send_stray()
        elif peer.fileno() < 0:
            return
        elif name == "send":
            self._peer_sends(which, size)
        elif name == "flood":
            while self._peer_sends(which, 1000):
                if self.kind.startswith("udp") or not self.world.has_patience():
                    return
        elif name == "crowd":
            self._crowd(which)
        elif name == "read":
            self._peer_reads(which)
        elif name == "read_all":
            while self._peer_reads(which):
                pass
        elif name == "shut_write":
            peer.shutdown(SO.SHUT_WR)
            self.facts.add("peer shut_write")
        elif name == "unreachable":
            self._send_to_nobody()
        elif name == "close":
            while self._peer_reads(which):
                pass
            peer.close()
            self.facts |= {"peer closed", f"peer {which} closed"}

    def _peer_sends(self, which: int, size: int) -> bool:
        message = self.to_us.offer(f"peer {which}", min(size, 60_000))
        peer = self.peers[which]
        try:
            if self.is_open:
                peer.sendto(message.data, SO.MSG_NOSIGNAL, self._address)
            else:
                peer.send(message.data, SO.MSG_NOSIGNAL)
        except OSError as exc:
            self.to_us.sent(message, NEVER)
            if not isinstance(exc, BlockingIOError):
                self.facts.add("peer found nobody")
            return False
        self.to_us.sent(message, SURE)
        return True

    def _crowd(self, which: int) -> None:
        """Others fill a receiver of ours."""
        if not self.is_open:
            return
        address = self.peers[which].getsockname()
        with SO.socket(SO.AF_UNIX, SO.SOCK_DGRAM) as other:
            other.setblocking(False)
            while self.world.has_patience():
                message = self.to_peers[which].offer("crowd", 20)
                try:
                    other.sendto(message.data, address)
                except OSError:
                    self.to_peers[which].sent(message, NEVER)
                    return
                self.to_peers[which].sent(message, SURE)

    def _peer_reads(self, which: int) -> bool:
        try:
            data = self.peers[which].recv(1 << 17)
        except BlockingIOError:
            return False
        except OSError:
            return True  # once: what was sent before is still there
        if not data:
            return False
        self.to_peers[which].take(f"peer {which}", data, len(data))
        self.touch()
        return True

    def _send_bad(self, size: int) -> None:
        """A datagram with a wrong checksum, which is never received."""
        if not self.kind.startswith("udp") or self._address is None or self.fd() < 0:
            return
        family = SO.AF_INET6 if self.kind == "udp6" else SO.AF_INET
        if (raw := self.world.raw_socket(family)) is None:
            by_seed.note("no raw sockets for this user: no wrong checksums")
            return
        self.facts.add("bad")
        port = 4444 if self.is_open or self.peers[0].fileno() < 0 else self._peer_port()
        with contextlib.suppress(OSError):
            raw.sendto(harness.bad_datagram(port, self._address[1]), (self._address[0], 0))

    def _peer_port(self) -> int:
        return int(self.peers[0].getsockname()[1])

    def _send_stray(self) -> None:
        """From somebody whom a connected socket does not hear."""
        # Once the peer is closed somebody else may get its port.
        if self.is_open or not self.kind.startswith("udp") or "peer closed" in self.facts:
            return
        with SO.socket(self.peers[0].family, SO.SOCK_DGRAM) as other, contextlib.suppress(OSError):
            other.sendto(b"from nobody that we know", self._address)

    def _send_to_nobody(self) -> None:
        """A datagram of our own socket to a port that is closed: an ICMP error comes back."""
        if not self.is_open or (rival := self.rivals()) is None:
            return
        sock = strangers.as_socket(rival.fd)
        assert sock is not None
        with SO.socket(sock.family, SO.SOCK_DGRAM) as nobody:
            nobody.bind((HOSTS[sock.family], 0))
            address = nobody.getsockname()
        with contextlib.suppress(OSError):
            sock.sendto(b"to nobody", SO.MSG_DONTWAIT, address)
        sock.detach()
        self.facts.add("refused")

    # ---- a rival

    def back_and_forth(self) -> list[Pair]:
        """As at a stream."""
        pairs: list[Pair] = [(("peer", "send"), ("rival", "take"))]
        if self.kind == "unix_open":
            pairs.append((("peer", "read"), ("peer", "crowd")))
        elif not self.is_open:
            pairs.append((("peer", "read"), ("rival", "fill")))
        if self.kind.startswith("udp"):
            pairs.append((("peer", "bad"), ("peer", "stray")))
        return pairs

    def rival_acts(self) -> list[str]:
        acts = ["take", "take", "take_there", "greedy", "content", "block", "unblock"]
        return acts if self.is_open else [*acts, "put", "put_there", "fill"]

    def rival_act(self, name: str, size: int) -> None:
        if (name == "content" and self.rival is None) or (rival := self.rivals()) is None:
            return
        if name.startswith("take"):
            data = rival.take(1 << 17, there=name == "take_there")
            self._rival_took(name, data)
        elif name in ("put", "put_there"):
            self._rival_puts(rival, size, name)
        elif name == "fill":
            while self._rival_puts(rival, 1000, name):
                if self.kind.startswith("udp") or not self.world.has_patience():
                    return
        elif name in ("block", "unblock"):
            rival.block(on=name == "block")
            self.facts.add("blocks")
        elif name == "greedy":
            rival.be_greedy()
        elif name == "content":
            for data in rival.content():
                self._rival_took("greedy", data)

    def _rival_took(self, name: str, data: bytes | None) -> None:
        if data:
            self.to_us.take(name, data, 1 << 17)
            self.touch()

    def _rival_puts(self, rival: Rival, size: int, name: str) -> bool:
        message = self.to_peers[0].offer(name, min(size, 60_000))
        sent = rival.put(message.data, there=name == "put_there")
        self.to_peers[0].sent(message, SURE if sent else NEVER)
        self.touch()
        return sent > 0

    # ---- our calls

    def calls(self) -> dict[str, str]:
        assert self.shape is not None
        return {
            **dict.fromkeys(self.shape.reads, READ),
            **dict.fromkeys(self.shape.writes, WRITE),
            "wait_readable": READ,
            "wait_writable": WRITE,
            **({} if self.world.anyio else {"accept": ACCEPT}),
        }

    async def call(self, call: Call) -> None:
        assert self.shape is not None
        if call.name.startswith("wait_"):
            await wait(self, call)
        elif call.way == ACCEPT:
            await accept_in_vain(self, call)
        elif call.way == READ:
            thing, read = self.shape.reads[call.name]
            size = max(1, call.size)
            if call.name == "receive_packet":
                size = ways.PACKET_MAX
            self._took(call, await read(thing, size, ways.READ_FLAGS[call.flag]), size)
        else:
            await self._write(call)

    def _target(self, call: Call) -> int:
        """Which peer a call sends to."""
        tail = call.name.rpartition("_")[2]
        return int(tail) if self.is_open and tail.isdigit() else 0

    async def _write(self, call: Call) -> None:
        assert self.shape is not None
        thing, write = self.shape.writes[call.name]
        book = self.to_peers[self._target(call)]
        message = book.offer("ours", min(call.size, ways.PACKET_MAX))
        state = NEVER
        try:
            # With MSG_MORE several make one datagram.
            flags = 0 if call.flag == "more" else ways.WRITE_FLAGS.get(call.flag, 0)
            sent = await write(thing, message.data, flags)
            if sent != len(message.data):
                raise Lost(f"{call} sent {sent} bytes of {len(message.data)}")
            state = SURE
        finally:
            if call.flag == "oob":
                state = MAYBE
            book.sent(message, state)

    def _took(self, call: Call, data: bytes, size: int) -> None:
        if call.flag == "errqueue" and self.kind.startswith("udp"):
            return
        if call.flag == "peek":
            if size >= 8 and data:
                self.to_us.number_of(data, size)
            return
        if not data:
            if not self.facts & {"peer shut_write", "peer closed", "closed"}:
                raise Strange(f"{call} told of an end, and nobody has ended anything")
            return
        self.to_us.take(call.reader, data, size)
        self.touch()

    def failed(self, call: Call, exc: BaseException) -> None:
        """A call of ours has raised: nothing else follows from it."""

    def excuses(self, call: Call) -> set[str]:
        excuses = super().excuses(call)
        if "peer closed" in self.facts:
            excuses |= GONE | {"ECONNREFUSED"}
        if "refused" in self.facts:
            excuses |= {"ECONNREFUSED", "BrokenResourceError"}
        if call.way == WRITE and call.size > min(UDP_MAX, self._room - OVERHEAD):
            excuses.add("EMSGSIZE")
            if self.world.anyio:
                excuses.add("BrokenResourceError")
        return excuses

    def option(self, name: str, size: int) -> None:
        super().option(name, size)
        self._look_for_room()

    def _look_for_room(self) -> None:
        """How large a message may be: as large as the smallest buffer that there was."""
        if self.fd() >= 0 and (sock := strangers.as_socket(self.fd())) is not None:
            self._room = min(self._room, sock.getsockopt(SOL, SO.SO_SNDBUF))
            sock.detach()

    def shut(self, name: str) -> None:
        """Not with datagrams."""

    def why_not_ended(self, call: Call) -> str | None:
        why = super().why_not_ended(call)
        if why and why.startswith("poll says") and call.way == WRITE and self.kind == "unix_open":
            return None  # poll knows nothing of its receiver
        return why

    # ---- the end

    def finish_some(self, calls: list[Call]) -> None:
        if self.rival:
            for data in self.rival.content():
                self._rival_took("greedy", data)
        for which, peer in enumerate(self.peers):
            if peer.fileno() >= 0:
                while self._peer_reads(which):
                    pass
        there = [number for number, peer in enumerate(self.peers) if peer.fileno() >= 0]
        for call in calls:
            if call.way == READ:
                if there and "peer shut_write" not in self.facts:
                    self._peer_sends(there[0], 20)
                elif self.kind != "seqpacket":  # nobody can ever send anything
                    call.scope.cancel()

    async def close(self) -> None:
        fd = self.fd()
        whole = fd >= 0 and "closed" not in self.facts
        if whole:
            self._take_the_rest(fd)
        lost_max = self._lost_by(fd) if whole else 1 << 60
        if self.kind == "unix_dgram" and "peer closed" in self.facts:
            lost_max = 1 << 60  # a send that finds nobody empties the queue
        if self.rival:
            for data in self.rival.close():
                self._rival_took("greedy", data)
        self._judge("to us", self.to_us, lost_max)
        if "closed" not in self.facts:
            await self.shut_ours("")
        for which, (peer, book) in enumerate(zip(self.peers, self.to_peers, strict=True)):
            lost_max = 1 << 60
            if peer.fileno() >= 0:
                while self._peer_reads(which):
                    pass
                if self.kind.startswith("udp"):
                    lost_max = harness.drops(peer)
                elif self.kind != "unix_dgram" or "peer found nobody" not in self.facts:
                    lost_max = 0  # otherwise as above
                peer.close()
            self._judge(f"to peer {which}", book, lost_max)

    def _lost_by(self, fd: int) -> int:
        if not self.kind.startswith("udp"):
            return 0
        sock = strangers.as_socket(fd)
        assert sock is not None
        try:
            return harness.drops(sock)
        finally:
            sock.detach()

    def _take_the_rest(self, fd: int) -> None:
        for _ in range(10_000):
            if (data := strangers.take(fd, 1 << 17)) is None:
                return
            if not data and self.kind == "seqpacket":
                return
            self._rival_took("ours", data)

    def _judge(self, which: str, book: MessageBook, lost_max: int) -> None:
        try:
            book.check(lost_max=lost_max)
        except Lost as exc:
            raise Lost(f"{self}, {which}: {exc}; {sorted(self.facts)}") from None

    async def close_early(self, how: str) -> None:
        if "closed" in self.facts or self.fd() < 0:
            return
        self.facts.add("closed early")
        await self.shut_ours(how)
