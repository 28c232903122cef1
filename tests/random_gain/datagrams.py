"""The peers of UDP, and their books: which datagrams have come, and which answers.

A datagram may be lost where a buffer is full, and nowhere else on loopback. So what is on its
way is counted as the kernel counts it; a plan in which it may have been too much for a buffer
has no rule of loss from then on. One that came twice, late, or changed is always wrong.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import harness
import trio

from random_gain.faults import Boom, Fault, Refused, WrongBytes, WrongOrder
from random_gain.patterns import pattern
from uring_trio import gain

if TYPE_CHECKING:
    from random_gain.world import World

HEAD = struct.Struct(">IIH")  # whose it is, its number, bytes that follow
# What the kernel counts for one, above its bytes; and what all may be in a buffer of 208 KiB.
OVERHEAD = 1280
ON_ITS_WAY_MAX = 120_000
SIZE_MAX = 60_000
LOOPBACKS = ("127.0.0.1", "::1")
ANSWER = 1 << 20  # added to a peer's number: the stream of the answers' patterns


def datagram(stream: int, number: int, size: int) -> bytes:
    return HEAD.pack(stream, number, size) + pattern(stream & 0xFFFF, 977 * number, size)


def parse(data: bytes) -> tuple[int, int]:
    """Whose it is, and its number.

    Raises:
      WrongBytes: nobody has sent it so.
    """
    if len(data) < HEAD.size:
        raise WrongBytes(f"a datagram of {len(data)} bytes")
    stream, number, size = HEAD.unpack_from(data)
    if data != datagram(stream, number, size):
        raise WrongBytes(f"datagram {number} of {stream & 0xFFFF} was changed")
    return stream, number


class DatagramPeer:
    """One of them: a socket that is connected to the server's."""

    def __init__(
        self, number: int, host: str, port: int, step: dict[str, Any], *, may_overtake: bool
    ) -> None:
        self.number = number
        self.may_overtake = may_overtake
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.asked = (host, port)
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        if step.get("rcv"):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, step["rcv"])
        self.sock.connect((host, port))
        self.name = self.sock.getsockname()[:2]
        self.reads = bool(step.get("reads", -1))
        self.sent = 0
        self.sizes: dict[int, int] = {}  # of those on their way
        self.stolen: set[int] = set()
        self.got_last = -1  # by the server
        self.got: set[int] = set()
        self.answered = 0  # by the server
        self.answer_last = -1
        self.answers = 0
        self._seen: set[int] = set()
        self.lossy = bool(step.get("rcv"))
        self.closed = False

    def events(self) -> int:
        return select.POLLIN if self.reads and not self.closed else 0

    def turn(self, _at_least: int = 0) -> None:
        """Take the answers that are there."""
        if self.closed or not self.reads:
            return
        while True:
            try:
                data = self.sock.recv(65_536)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ECONNREFUSED:
                    raise
                continue  # the server was away
            self.answers += 1
            stream, number = parse(data)
            if stream != self.number + ANSWER:
                raise WrongBytes(f"an answer for {stream}, at {self.number}")
            if number in self._seen:
                raise WrongOrder(f"answer {number} came twice, at {self.number}")
            self._seen.add(number)
            if number < self.answer_last and not self.may_overtake:
                raise WrongOrder(f"answer {number} behind {self.answer_last}, at {self.number}")
            self.answer_last = number

    def close(self) -> None:
        self.closed = True
        self.sock.close()


class Datagrams:
    """All of them, and the server's side of their books."""

    def __init__(self, world: World, options: dict[str, Any]) -> None:
        self._world = world
        self.peers: dict[int, DatagramPeer] = {}
        self.lossy = bool(options.get("socket_recv_buffer_size"))
        self._lock = threading.Lock()

    # ---- peers -----------------------------------------------------------------------------

    def connect(self, number: int, address: gain.Address, step: dict[str, Any]) -> None:
        if number in self.peers:
            return
        host = address[0]
        if host in ("::", "0.0.0.0"):
            # Any of this machine's, and the answer is to come from there.
            host = f"127.0.0.{2 + number % 5}"
        self.peers[number] = DatagramPeer(
            number, host, address[1], step, may_overtake=self._world.may_overtake
        )

    def send(self, number: int, size: int, count: int) -> None:
        peer = self.peers.get(number)
        if peer is None or peer.closed:
            return
        for _ in range(count):
            data = datagram(number, peer.sent, min(size, SIZE_MAX))
            with self._lock:
                peer.sizes[peer.sent] = len(data) + OVERHEAD
            try:
                peer.sock.send(data)
            except BlockingIOError:
                pass
            except ConnectionRefusedError:
                self.lossy = True  # the server was away, and then nothing is promised
            peer.sent += 1
            with self._lock:
                if sum(sum(each.sizes.values()) for each in self.peers.values()) > ON_ITS_WAY_MAX:
                    self.lossy = True

    def send_bad(self, number: int, count: int) -> None:
        """Datagrams with a wrong checksum, as anybody can send them."""
        peer = self.peers.get(number)
        if peer is None or peer.closed or ":" in peer.asked[0]:
            return
        try:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        except PermissionError:
            return  # this user may have none
        with raw:
            bad = harness.bad_datagram(peer.name[1], peer.asked[1])
            for _ in range(count):
                with contextlib.suppress(OSError):
                    raw.sendto(bad, (peer.asked[0], 0))

    def stolen(self, data: bytes) -> None:
        """Another process has received it."""
        with contextlib.suppress(WrongBytes):
            stream, number = parse(data)
            if stream in self.peers:
                with self._lock:
                    self.peers[stream].stolen.add(number)
                    self.peers[stream].sizes.pop(number, None)

    # ---- the server's side -----------------------------------------------------------------

    async def on_read(self, conn: gain.Conn, n: int, *, can_wait: bool) -> None:
        try:
            await self._on_read(conn, n, can_wait=can_wait)
        except Fault as fault:
            self._world.faults.add(fault)

    async def _on_read(self, conn: gain.Conn, n: int, *, can_wait: bool) -> None:
        if conn.inbound_buffered() != n:
            raise WrongOrder(f"on_read of {n}, and {conn.inbound_buffered()} bytes are there")
        data = conn.next(n)
        stream, number = parse(data)
        peer = self.peers[stream]
        with self._lock:
            if number in peer.got:
                raise WrongOrder(f"datagram {number} of {stream} came twice")
            peer.got.add(number)
            peer.sizes.pop(number, None)
        # Callbacks that are tasks or threads may overtake each other.
        if not self._world.may_overtake and number < peer.got_last:
            raise WrongOrder(f"datagram {number} of {stream} behind {peer.got_last}")
        peer.got_last = number
        if conn.local_addr()[:2] != peer.asked:
            raise WrongBytes(f"it came to {peer.asked}, and not to {conn.local_addr()}")
        if conn.remote_addr()[:2] != peer.name:
            raise WrongBytes(f"it came from {peer.name}, and not from {conn.remote_addr()}")
        done = False
        for step in self._world.script.next(stream, "read"):
            done = True
            await self._do(conn, peer, step, can_wait=can_wait)
        if not done:
            self.answer(conn, peer, min(n, 1000))

    async def _do(
        self, conn: gain.Conn, peer: DatagramPeer, step: dict[str, Any], *, can_wait: bool
    ) -> None:
        what, n = step["do"], step.get("n", 0)
        if what in ("write", "writev", "read_from"):
            self.answer(conn, peer, min(n, SIZE_MAX))
        elif what == "hold":
            self._world.hold(n, 0.05)
        elif what == "sleep" and can_wait:
            await trio.sleep(n / 1000)
        elif what == "tell":
            other = self.peers.get(step["to"])
            # One that is closed as well: the error that comes of it is nobody else's.
            if other is not None and (":" in other.name[0]) is (":" in peer.name[0]):
                # It hears from the address alone that it has asked; elsewhere the kernel chooses.
                other.lossy |= other.asked != peer.asked or other.asked[0] not in LOOPBACKS
                self.answer(conn, other, min(n, SIZE_MAX), to=other)
        elif what == "raise":
            raise Boom
        elif what == "task":
            conn.call_soon_threadsafe(self.answer_later, conn, peer, min(n, SIZE_MAX))
        elif what == "pause":
            try:
                conn.pause_reading()
            except gain.NotSupported:
                return
            raise Refused("pause_reading of a datagram")

    def answer_later(self, conn: gain.Conn, peer: DatagramPeer, size: int) -> None:
        """As another thread has asked for it."""
        try:
            self.answer(conn, peer, size)
        except gain.ConnectionClosed:
            if not self._world.stopping:
                raise

    def answer(
        self, conn: gain.Conn, peer: DatagramPeer, size: int, to: DatagramPeer | None = None
    ) -> None:
        """One answer, to its sender or to another."""
        with self._lock:
            number, peer.answered = peer.answered, peer.answered + 1
            waiting = (number - peer.answers) * (size + OVERHEAD)
            if waiting > ON_ITS_WAY_MAX or peer.closed:
                peer.lossy = True
        data = datagram(peer.number + ANSWER, number, size)
        taken = conn.write(data) if to is None else conn.send_to(data, to.name)
        if taken != len(data):
            self._world.faults.add(Refused(f"{taken} of a datagram of {len(data)} bytes"))

    def on_write(self, conn: gain.Conn, n: int) -> None:
        if n < HEAD.size:
            self._world.faults.add(WrongOrder(f"on_write of {n} bytes of a datagram"))

    # ---- what follows ----------------------------------------------------------------------

    def unsettled(self) -> str:
        if self.lossy:
            return ""
        for peer in self.peers.values():
            missing = peer.sent - len(peer.got | peer.stolen)
            if missing:
                return f"{missing} datagrams of {peer.number} have not come"
            if peer.lossy or peer.closed or not peer.reads or self._world.may_overtake:
                continue
            if peer.answers < peer.answered:
                return f"{peer.answered - peer.answers} answers to {peer.number} have not come"
        return ""
