"""Many streams, to all of which something comes between two turns of the loop.

Each has a task that receives, and closes its end with its first bytes or at the end of them all.
One turn tells so many of them at once that the loop is short of what it has for all together:
the memory that it receives into, and room for what it asks of the kernel. The books:

- each receives what was sent to it, and no more;
- who closes a file has let go of it when that call returns, as on stock: its peer is told while
  the loop does not turn;
- in a quiet stretch nothing is held, takes CPU or is with a worker of the kernel's, and all that
  was sent has been received.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import harness
import process_books
import trio
from trio.testing import wait_all_tasks_blocked

from peers import conduct, ways
from peers import stranger as strangers
from peers.books import Burnt, Handed, Left, Lost, Stuck, content
from peers.files import ENDS, soon
from peers.places import SO, unix_pair
from peers.stranger import poll_says
from peers.streams import tcp_pair

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from by_seed import Plan

KINDS = ("unix", "tcp", "pipe")
# One less and one more than there are buffers of the smallest size, and far from that.
COUNTS = (3, 60, 110, 120, 127, 128, 129, 200)
COUNT_MAX = 250
SIZES = (1, 20, 100, 1000, 9000)
RECEIVED_MAX = 20_000
# Those to which something comes that another has taken, or the end: each of so many.
EVERY = (1, 2, 3, 7, 30)
ORDERS = (1, -1)
QUIET_S = 0.06


class Member:
    """One stream: our end with its task, and the peer's.

    Attributes:
      closes: with the first bytes that come.
      sent: what was sent, and not taken by others.
    """

    def __init__(self, number: int, kind: str, name: str, *, closes: bool) -> None:
        self.number = number
        self.closes = closes
        self.is_open = True
        self.sent = self.received = b""
        self._sends = 0
        self._far_sock: SO.socket | None = None
        self._kind = kind
        if kind == "pipe":
            self.fd, self.far = os.pipe()
            stream = trio.lowlevel.FdStream(self.fd)
            self._thing: Any = stream
            self._read: ways.Read = ways.receive_some
            self._close = stream.close
        else:
            ours, far = unix_pair(SO.SOCK_STREAM, 0) if kind == "unix" else tcp_pair(SO.AF_INET, 0)
            self.fd, self.far, self._far_sock = ours.fileno(), far.fileno(), far
            sock = trio.socket.from_stdlib_socket(ours)
            is_stream = name in ways.TRIO_STREAM_READS
            self._thing = trio.SocketStream(sock) if is_stream else sock
            self._read = ways.receive_some if is_stream else ways.SOCKET_READS[name]
            self._close = sock.close
        os.set_blocking(self.far, False)

    def __str__(self) -> str:
        return f"{self._kind} {self.number}"

    async def receive(self, closed: Callable[[Member], None]) -> None:
        """Its task; who looks at the peer is told when our end is closed."""
        while data := await self._read(self._thing, RECEIVED_MAX, 0):
            self.received += data
            if not self.sent.startswith(self.received):
                raise Lost(f"{self}: {len(self.received)} bytes are not what was sent")
            if self.closes:
                break
        self._close()
        self.is_open = False
        closed(self)

    def peer_is_told(self) -> bool:
        """Of our end's having gone."""
        return bool(poll_says(self.far) & ENDS)

    def put(self, size: int) -> bool:
        """The peer sends; whether it could."""
        self._sends += 1
        data = content(self.number * 1000 + self._sends, size)
        with contextlib.suppress(OSError):
            self.sent += data[: os.write(self.far, data)]
            return True
        return False

    def put_in_vain(self) -> None:
        """Something comes, and is taken by another before we have looked."""
        if not self.is_open or self.sent != self.received:
            return
        before = self.sent
        if self.put(1) and strangers.take(self.fd, 1):
            self.sent = before

    def shut(self) -> None:
        """The peer has no more to say."""
        if self._far_sock is not None:
            with contextlib.suppress(OSError):
                self._far_sock.shutdown(SO.SHUT_WR)

    def end(self) -> None:
        """The peer's end goes, and ours if it is still there."""
        if self.is_open:
            self._close()
        if self._far_sock is not None:
            self._far_sock.close()
        else:
            os.close(self.far)


class Crowd:
    """A run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._steps = plan["steps"]
        self._members: list[Member] = []
        self._failed = False
        self._nursery: trio.Nursery
        self._workers = process_books.Workers()

    async def run(self) -> None:
        """All of it."""
        assert harness.io_statistics().backend == conduct.BACKEND
        try:
            with trio.fail_after(conduct.RUN_MAX_S):
                async with trio.open_nursery() as self._nursery:
                    for step in self._steps:
                        await self._step(step)
                    await self._all_received()
                    self._nursery.cancel_scope.cancel()
        finally:
            for member in self._members:
                member.end()
        if conduct.BACKEND == harness.RING:
            await harness.assert_books_balance()

    async def _step(self, step: list[Any]) -> None:
        verb, rest = step[0], step[1:]
        if verb == "open":
            kind, count, name, closes_every = rest
            for number in range(len(self._members), min(len(self._members) + count, COUNT_MAX)):
                member = Member(number, kind, name, closes=not number % max(1, closes_every))
                self._members.append(member)
                self._nursery.start_soon(member.receive, self._closed)
            await wait_all_tasks_blocked()
        elif verb == "sleep":
            await trio.sleep(min(rest[0], 50) / 1e3)
        elif verb == "quiet":
            await self._quiet()
        elif verb == "comes":
            size, order = rest
            for member in self._members[:: order or 1]:
                member.put(size)
        elif verb in ("vain", "shut"):
            for member in self._members[:: max(1, rest[0])]:
                (member.put_in_vain if verb == "vain" else member.shut)()

    def _closed(self, member: Member) -> None:
        """Its peer hears of it before the loop turns."""
        if self._failed:
            return  # it takes a while to find out
        soon(member.peer_is_told)
        if not member.peer_is_told():
            self._failed = True
            raise Left(f"{member} is closed, and its peer not told of it in the same turn")

    async def _all_received(self) -> None:
        end = time.monotonic() + conduct.WAKE_MAX_S
        while stuck := [m for m in self._members if m.is_open and m.received != m.sent]:
            if time.monotonic() > end:
                raise Stuck(f"do not receive what is there: {', '.join(map(str, stuck[:9]))}")
            await trio.sleep(0.002)

    async def _quiet(self) -> None:
        await self._all_received()
        if conduct.BACKEND != harness.RING:
            return
        await trio.sleep(conduct.SETTLE_S)
        share, end = 1.0, time.monotonic() + conduct.REST_MAX_S
        while share > conduct.CPU_SHARE_MAX and time.monotonic() < end:
            cpu = process_books.Cpu()
            await trio.sleep(QUIET_S)
            share = cpu.most()
        if share > conduct.CPU_SHARE_MAX:
            raise Burnt(f"{share:.0%} of a core in a quiet stretch")
        if workers := self._workers.more():
            raise Handed(f"{workers} in a quiet stretch")
        if harness.io_statistics().leases_out:
            raise Left("buffers are held in a quiet stretch")


def run(plan: Plan) -> None:
    """A plan by trio's door.

    Raises:
      AssertionError: some book does not agree.
    """
    conduct.start("trio", trio.lowlevel.checkpoint)  # what is made once in a process
    books = process_books.Descriptors(), process_books.Threads()
    try:
        conduct.start("trio", Crowd(plan).run, plan["options"].get("host", ""))
    except Exception as exc:  # noqa: BLE001  the same, out of its groups
        raise conduct.sole(exc) from None
    if left := process_books.stays(*books):
        raise Left(f"left behind: {left}")


def draw(random: random.Random) -> Plan:
    """A plan, by nothing but what *random* gives."""
    options: dict[str, Any] = {"how": "crowd"}
    if random.random() < 0.2:
        options["host"] = random.choice(["guest", "thread"])
    # Half of them receive into the ring's own memory.
    names = [*ways.SOCKET_READS, *["recv", "receive_some"] * 3]
    opened = ["open", random.choice(KINDS), random.choice(COUNTS)]
    steps: list[Any] = [[*opened, random.choice(names), random.choice([1, 1, 2, 300])]]
    for _ in range(random.choice([1, 2])):
        if random.random() < 0.8:
            steps += [["vain", random.choice(EVERY)], ["sleep", random.choice([1, 3, 10])]]
        if random.random() < 0.85:
            steps.append(["comes", random.choice(SIZES), random.choice(ORDERS)])
        else:
            steps.append(["shut", random.choice(EVERY)])
        if random.random() < 0.4:
            steps.append(random.choice([["sleep", 1], ["sleep", 10], ["quiet"]]))
    return {"options": options, "steps": steps, "kernel": []}
