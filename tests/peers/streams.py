"""Places of byte streams, one or both ways: TCP, UNIX, pipes, named pipes, terminals."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import tty

import anyio
import anyio.abc
import machine_speed
import trio

from peers import stranger as strangers
from peers import ways
from peers.books import (
    Lost,
    Strange,
    StreamBook,
)
from peers.places import (
    ACCEPT,
    FULL_TO,
    GONE,
    HOSTS,
    READ,
    SIZE_MAX,
    SO,
    SOL,
    WRITE,
    Call,
    Common,
    Pair,
    Rival,
    World,
    accept_in_vain,
    name_of,
    queued,
    set_option,
    unix_pair,
    wait,
)

SLOWNESS = machine_speed.slowness()
SOCKETS = ("tcp", "tcp6", "unix")
PIPES = ("pipe_in", "pipe_out", "fifo_in", "fifo_out")
# One end of a terminal that is closed takes what is there with it; what comes then it echoes.
TERMINALS = ("tty", "pty")
# Until the peer hears that our end is closed; by TCP's timers it may be long after.
END_MAX_S, SLOW_END_MAX_S = 2.0 * SLOWNESS, 0.1


def tcp_pair(family: int, size: int) -> tuple[SO.socket, SO.socket]:
    with SO.socket(family) as listener:
        peer = SO.socket(family)
        if size:
            for sock in (listener, peer):
                sock.setsockopt(SOL, SO.SO_SNDBUF, size)
                sock.setsockopt(SOL, SO.SO_RCVBUF, size)
        listener.bind((HOSTS[SO.AddressFamily(family)], 0))
        listener.listen()
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
    return ours, peer


class Stream(Common):
    """A stream of bytes, one or both ways: TCP, UNIX, a pipe, a named pipe, a terminal."""

    KINDS = (*SOCKETS, *PIPES, *TERMINALS)

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        self.to_us = StreamBook(world.clock)
        self.to_peer = StreamBook(world.clock)
        self.peer: SO.socket | None = None
        self._peer_fd = -1
        self._arrived = 0  # bytes for us that were here when the peer went
        self._ended = False  # we were told of the end, by a call of ours
        self._error_seen = False
        self._sending = 0  # calls that have not ended

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def slow(self) -> bool:
        """Whether TCP sends by its timers only: into a window that is smaller than a segment."""
        return "small" in self.facts

    async def open(self, shape: str, size: int) -> None:
        """The files, and our object on one of them: by its *shape*."""
        if size and self.kind in ("tcp", "tcp6"):
            self.facts.add("small")
        if self.kind in SOCKETS:
            if self.kind == "unix":
                ours, self.peer = unix_pair(SO.SOCK_STREAM, size)
            else:
                family = SO.AF_INET if self.kind == "tcp" else SO.AF_INET6
                ours, self.peer = tcp_pair(family, size)
            self.peer.setblocking(False)
            self._peer_fd = self.peer.fileno()
            if self.world.anyio:
                self.shape = await ways.of_anyio(ours)
            elif shape == "file":
                self.shape = ways.of_file(ours.detach())
            elif shape == "stream":
                self.shape = ways.of_stream(ours)
            else:
                self.shape = ways.of_socket(ours, unix=self.kind == "unix")
            return
        ours_fd, self._peer_fd = self._files()
        os.set_blocking(self._peer_fd, False)
        self.shape = ways.of_file(ours_fd)
        if self.kind.endswith("_in"):
            self.shape.writes.clear()
        elif self.kind.endswith("_out"):
            self.shape.reads.clear()

    def _files(self) -> tuple[int, int]:
        """Ours and the peer's, that are no sockets."""
        if self.kind in TERMINALS:
            master, slave = pty.openpty()
            tty.setraw(slave)
            return (slave, master) if self.kind == "tty" else (master, slave)
        if self.kind.startswith("pipe"):
            source, target = os.pipe()
        else:
            path = f"{self.world.folder}/fifo-{self.number}"
            os.mkfifo(path)
            source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            target = os.open(path, os.O_WRONLY)
        return (source, target) if self.kind.endswith("_in") else (target, source)

    # ---- the peer

    def acts(self) -> list[str]:
        both = self.kind in SOCKETS
        acts = ["close"]
        if both or not self.kind.endswith("_out"):
            acts += ["send", "send", "send"]
        if both or not self.kind.endswith("_in"):
            acts += ["read", "read", "read_all"]
        if both:
            acts += ["urgent", "shut_write", "shut_read", "reset", "small"]
        if self.kind == "unix":
            acts += ["pass"]
        return acts

    def act(self, name: str, size: int) -> None:
        """The peer does something, if it still can."""
        if self._peer_fd < 0:
            return
        if name == "send":
            self._peer_sends(self.world.content(size), 0)
        elif name == "urgent" and self.peer:
            self._peer_sends(self.world.content(1), SO.MSG_OOB)
        elif name == "pass" and self.peer:
            self._peer_passes(self.world.content(max(1, size % 1000)))
        elif name == "read":
            self._peer_reads(max(1, size))
        elif name == "read_all":
            while self._peer_reads(SIZE_MAX):
                pass
        elif name in ("shut_write", "shut_read") and self.peer:
            with contextlib.suppress(OSError):
                self.peer.shutdown(SO.SHUT_WR if name == "shut_write" else SO.SHUT_RD)
            self.facts.add(f"peer {name}")
            if {"peer shut_read", "peer shut_write"} <= self.facts and self.kind != "unix":
                self.facts.add("peer reset")  # by whatever comes now
        elif name == "small" and self.peer:
            self.peer.setsockopt(SOL, SO.SO_RCVBUF, max(1, size))
            self.facts.add("small")
        elif name in ("close", "reset"):
            self._peer_goes(hard=name == "reset")

    def _peer_sends(self, data: bytes, flags: int) -> None:
        part = self.to_us.offer(data)
        sent = 0
        try:
            if self.peer:
                sent = self.peer.send(data, flags | SO.MSG_NOSIGNAL) if data else 0
            elif data:
                sent = os.write(self._peer_fd, data)
        except BlockingIOError:
            pass
        except OSError:
            self.facts.add("peer was told")
        # An urgent byte is taken out of the stream, or is in it, as the kernel likes.
        self.to_us.sent(part, 0 if flags else sent, sent)
        if flags:
            self.facts.add("urgent")
        if "closed" in self.facts:
            self.facts.add("sent after the end")

    def _peer_passes(self, data: bytes) -> None:
        assert self.peer is not None
        part = self.to_us.offer(data)
        sent = 0
        with open(os.devnull, "rb") as file, contextlib.suppress(OSError):
            sent = SO.send_fds(self.peer, [data], [file.fileno()])
        self.to_us.sent(part, sent)

    def _peer_reads(self, size: int) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(self._peer_fd, size)
        except BlockingIOError:
            return False
        except OSError:
            self.facts.add("peer was told")
            return False
        if data:
            self.to_peer.take("peer", data)
            self.touch()
        else:
            self.facts.add("peer saw the end")
        return bool(data)

    def _peer_goes(self, *, hard: bool) -> None:
        if self.fd() >= 0 and "closed" not in self.facts and not self.kind.endswith("_out"):
            self._arrived = max(self._arrived, self.to_us.taken + queued(self.fd()))
        if hard and self.peer:
            set_option(self.peer, "linger", 0)
            self.facts.add("peer reset")
        if queued(self._peer_fd):
            self.facts.add("peer reset")
        self.facts.add("peer closed")
        if self.to_peer.may_be_under_way():
            self.facts.add("sent to nobody")
        if self.peer:
            self.peer.close()
            self.peer = None
        else:
            os.close(self._peer_fd)
        self._peer_fd = -1

    # ---- a rival

    def back_and_forth(self) -> list[Pair]:
        """What makes a call of ours possible, and what makes it impossible again."""
        pairs: list[Pair] = []
        if self.kind in TERMINALS:
            return pairs
        if not self.kind.endswith("_out"):
            pairs += [(("peer", "send"), ("rival", take)) for take in ("take", "take_there")]
        if not self.kind.endswith("_in"):
            pairs += [(("peer", read), ("rival", "fill")) for read in ("read", "read_all")]
        return pairs

    def rival_acts(self) -> list[str]:
        if self.kind in TERMINALS:
            return []
        acts = ["block", "unblock"]
        if not self.kind.endswith("_out"):
            acts += ["take", "take", "take_there", "greedy", "content"]
        if not self.kind.endswith("_in"):
            acts += ["put", "put", "put_there", "fill"]
        return acts

    def may_flip(self) -> bool:
        return not self.kind.startswith("fifo")

    def rival_act(self, name: str, size: int) -> None:
        if (name == "content" and self.rival is None) or (rival := self.rivals()) is None:
            return
        if name.startswith("take"):
            data = rival.take(max(1, size), there=name == "take_there")
            if data:
                self.to_us.take(name, data)
                self.touch()
            elif data is not None:
                self._error_seen = True
        elif name in ("put", "put_there"):
            self._rival_puts(rival, self.world.content(max(1, size)), name)
        elif name == "fill":
            unit = 65_536 if self.peer else select.PIPE_BUF
            while self._rival_puts(rival, self.world.content(unit), name):
                if not self.world.has_patience():
                    return
            for _ in range(FULL_TO):
                if self.world.has_patience():
                    self._rival_puts(rival, self.world.content(1), name)
        elif name == "block" and self.kind.startswith("fifo"):
            # A named pipe cannot be told for one call not to wait: where it is set to blocking, and
            # another writer fills it between poll(2) and write(2), the loop blocks, as stock does.
            return
        elif name in ("block", "unblock"):
            rival.block(on=name == "block")
            self.facts.add("blocks")
        elif name == "greedy":
            rival.be_greedy()
            self.facts.add("greedy")
        elif name == "content":
            self._be_content(rival)

    def _rival_puts(self, rival: Rival, data: bytes, name: str) -> int:
        part = self.to_peer.offer(data)
        if "peer closed" in self.facts:
            self.facts.add("sent to nobody")
        sent = rival.put(data, there=name == "put_there")
        self.to_peer.sent(part, sent)
        if not sent and "peer closed" in self.facts:
            self._error_seen = True  # by the rival
        self.touch()
        return sent

    def _be_content(self, rival: Rival) -> None:
        for data in rival.content():
            if data:
                self.to_us.take("greedy", data)
            else:
                self._error_seen = True

    # ---- our calls

    def calls(self) -> dict[str, str]:
        """By name: the way."""
        assert self.shape is not None
        calls = dict.fromkeys(self.shape.reads, READ) | dict.fromkeys(self.shape.writes, WRITE)
        if self.shape.reads:
            calls["wait_readable"] = READ
        if self.shape.writes:
            calls["wait_writable"] = WRITE
        if self.shape.writes and isinstance(self.shape.thing, trio.SocketStream):
            calls["wait_send_all_might_not_block"] = WRITE
        if self.shape.raw and not self.world.anyio:
            calls["accept"] = ACCEPT
        return calls

    async def call(self, call: Call) -> None:
        """Do it, and tell the books; raises what it raises."""
        assert self.shape is not None
        if call.name.startswith("wait_"):
            await wait(self, call)
        elif call.way == ACCEPT:
            await accept_in_vain(self, call)
        elif call.way == READ:
            thing, read = self.shape.reads[call.name]
            size = max(1, call.size)
            data = await read(thing, size, ways.READ_FLAGS[call.flag])
            self._took(call, data)
        else:
            await self._write(call)

    async def _write(self, call: Call) -> None:
        assert self.shape is not None
        thing, write = self.shape.writes[call.name]
        data = self.world.content(max(1, call.size))
        exact = not ("all" in call.name or call.name.startswith("anyio"))
        # What it sends in pieces others may come between.
        part = self.to_peer.offer(data, divided=not exact)
        if "peer closed" in self.facts:
            self.facts.add("sent to nobody")
        least, most = 0, 0 if exact else len(data)
        # Beside another send one is refused at once. Whoever is refused later has sent a part:
        # it waits for readiness in between, as others may.
        beside, self._sending = self._sending, self._sending + 1
        try:
            least = most = await write(thing, data, ways.WRITE_FLAGS.get(call.flag, 0))
            if not 0 < least <= len(data):
                raise Lost(f"{call} returned {least}")
        except (trio.BusyResourceError, anyio.BusyResourceError):
            if beside:
                most = 0
            raise
        finally:
            self._sending -= 1
            if call.flag == "oob":
                least = max(0, most - 1)
            self.to_peer.sent(part, least, most)

    def _took(self, call: Call, data: bytes) -> None:
        # UNIX sockets have no queue of errors, and give data.
        if call.flag == "oob" or (call.flag == "errqueue" and self.kind != "unix"):
            return
        if call.flag == "peek":
            if not data:
                self._end(call)
            return
        if len(data) > call.size >= 1 and call.name != "receive_any":
            raise Lost(f"{call} gave {len(data)} bytes")
        if data:
            if self._ended and not self.facts & {"peer reset", "we shut read"}:
                raise Lost(f"{call}: {len(data)} bytes after the end")
            self.to_us.take(call.reader, data)
            self.touch()
        else:
            self._end(call)

    def _end(self, call: Call) -> None:
        """We were told that there is no more."""
        reasons = {"peer shut_write", "peer closed", "we shut read", "closed"}
        if not self.facts & reasons:
            raise Strange(f"{call} told of an end, and nobody has ended anything")
        self._ended = True

    def failed(self, call: Call, exc: BaseException) -> None:
        """A call of ours has raised."""
        if not isinstance(exc, trio.Cancelled) and name_of(exc) in GONE:
            self._error_seen = True

    def excuses(self, call: Call) -> set[str]:
        excuses = super().excuses(call)
        # A peer that has read all and closes says so by an end; what comes after that it resets.
        answered = self.kind in TERMINALS or call.way == WRITE or "sent to nobody" in self.facts
        if "peer reset" in self.facts or ("peer closed" in self.facts and answered):
            excuses |= GONE | {"EIO"}
        if call.way == WRITE and self.facts & {"peer shut_read", "we shut write"}:
            excuses |= GONE | {"ClosedResourceError"}
        return excuses

    def option(self, name: str, size: int) -> None:
        # It makes an urgent byte that is there readable, and wakes nobody: not on stock, either,
        # but for a UNIX socket, of which poll(2) says all the time that it is.
        if name != "oobinline" or "urgent" not in self.facts or self.kind == "unix":
            super().option(name, size)

    def shut(self, name: str) -> None:
        """Our side shuts down a direction."""
        raw = self.shape.raw if self.shape else None
        if raw is None or self.fd() < 0:
            return
        with contextlib.suppress(OSError):
            raw.shutdown(SO.SHUT_WR if name == "write" else SO.SHUT_RD)
        self.facts.add(f"we shut {name}")

    # ---- the end

    def finish_some(self, calls: list[Call]) -> None:
        """The peer reads all, and when nothing is to be written any more it ends."""
        if self.rival:
            self._be_content(self.rival)
        if self._peer_fd >= 0:
            self.act("read_all", 0)
        if not any(call.way == WRITE for call in calls):
            if self.peer:
                self.act("shut_write", 0)
            elif self._peer_fd >= 0 and not self.kind.endswith("_out"):
                self.act("close", 0)

    async def close(self) -> None:
        """Take what is left, close both sides, and look at the books."""
        fd = self.fd()
        if self.rival:
            self._be_content(self.rival)
        if fd >= 0 and "closed" not in self.facts:
            await self._take_the_rest(fd)
        unread = self.to_us.sent_at_least() - self.to_us.taken
        if self.rival:
            for data in self.rival.close():
                self.to_us.take("greedy", data)
        if "closed" not in self.facts:
            if unread > 0:
                self.facts.add("left unread")
            await self.shut_ours("")
        if self._peer_fd >= 0:
            await self._peer_sees_the_end()
            if self.peer:
                self.peer.close()
            else:
                os.close(self._peer_fd)
            self._peer_fd = -1
        self._check()

    async def _take_the_rest(self, fd: int) -> None:
        """To the end that the peer has made."""
        if self.kind.endswith("_out"):
            return
        if self.peer:
            self.act("shut_write", 0)
        with trio.move_on_after(SLOW_END_MAX_S if self.slow else END_MAX_S):
            while True:
                try:
                    data = strangers.receive(fd, SIZE_MAX)
                except OSError:
                    return
                if data:
                    self.to_us.take("ours", data)
                elif data is not None:
                    self._ended = True
                    return
                elif self._peer_fd >= 0 and not self.peer:
                    return
                else:
                    self.act("read_all", 0)
                    await trio.sleep(0.001)

    async def _peer_sees_the_end(self) -> None:
        """The peer of what is closed hears of it; before that, of all that was sent."""
        if self.kind.endswith("_in") or self.kind in TERMINALS:
            return
        with trio.move_on_after(SLOW_END_MAX_S if self.slow else END_MAX_S):
            while not self.facts & {"peer saw the end", "peer was told"}:
                self.act("read_all", 0)
                await trio.sleep(0.001)
            return
        # Through a small window TCP sends by its timers.
        if not self.facts & {"peer shut_read", "small"}:
            raise Lost(f"the peer of {self} does not hear that it was closed")

    def _check(self) -> None:
        ours_to_the_end = self._ended and not self.facts & {
            "closed early",
            "we shut read",
            "peer reset",
        }
        if self.kind in TERMINALS:
            ours_to_the_end = False
        self._judge("to us", self.to_us, whole=ours_to_the_end and not self._error_seen)
        gone = self.facts & {"closed early", "we shut read", "urgent"}
        if self._arrived > self.to_us.taken and not gone and self.kind not in TERMINALS:
            raise Lost(
                f"{self}: {self._arrived} bytes were here when the peer went, "
                f"and {self.to_us.taken} were received"
            )
        reset = self.facts & {
            "peer closed",
            "peer shut_read",
            "peer reset",
            "linger",
            "left unread",
            "sent after the end",
            "closed with unread",
        }
        whole = "peer saw the end" in self.facts and not reset
        if self.kind in TERMINALS:
            whole = False
            if "closed early" in self.facts:
                return
        self._judge("to the peer", self.to_peer, whole=whole)

    def _judge(self, which: str, book: StreamBook, *, whole: bool) -> None:
        try:
            book.check(whole=whole)
        except Lost as exc:
            raise Lost(f"{self}, {which}: {exc}; {sorted(self.facts)}") from None

    async def close_early(self, how: str) -> None:
        """Our side closes while there may be calls and data."""
        if "closed" in self.facts or self.fd() < 0:
            return
        self.facts.add("closed early")
        if self.to_us.sent_at_least() > self.to_us.taken or "urgent" in self.facts:
            self.facts.add("closed with unread")
        await self.shut_ours(how)
