"""The callbacks of a plan's server: what each call of them does.

A step of the plan that has ``on`` is one of these: the next call of that callback of that
connection does it; with ``more``, the step after it as well. A call that no step is left for
does what the options have as its default.

All is written once, as ``async def``. A plain callback is such a coroutine that is never
suspended, so what would wait is then left out, or blocks.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from random_gain import tls
from random_gain.faults import Boom, Fault, Refused
from random_gain.patterns import ASKED, CALLBACK, FRAME, OTHER, TASK, frame
from random_gain.peers import GO_AHEAD
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from random_gain.books import Account
    from random_gain.world import World

CALLBACKS = ("on_accept", "on_read", "on_write", "on_eof", "on_close")
ECHO_MAX = 20_000  # bytes of one answer
HOLD_MAX_S = 0.05
DRAIN_MAX_S = 0.02
TRIES = 20  # of a task, to use a connection that a thread has

# <linux/net_tstamp.h>: when it was sent and acknowledged, told in the queue of errors.
SO_TIMESTAMPING = 37
STAMPS = 1 << 1 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11


class Part(io.RawIOBase):
    """A file that takes so many bytes of a write."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.data = b""

    def write(self, data: Any) -> int:
        self.data = bytes(data[: self.most])
        return len(self.data)


class Script:
    """The steps of a plan that are for callbacks."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self._queues: dict[tuple[int, str], deque[dict[str, Any]]] = {}
        for step in steps:
            if "on" in step:
                self._queues.setdefault((step["of"], step["on"]), deque()).append(step)

    def next(self, number: int, name: str) -> Iterator[dict[str, Any]]:
        """What this call does; nothing if no step is left."""
        queue = self._queues.get((number, name))
        while queue:
            step = queue.popleft()
            yield step
            if not step.get("more"):
                return


def callbacks_of(handler: Handler, options: dict[str, Any]) -> Any:
    """An object with those of its callbacks that the options have."""

    class Callbacks:
        pass

    def plain(name: str) -> Callable[..., None]:
        body = getattr(handler, name)
        return lambda *args: run_plain(body(*args, can_wait=False))

    def awaited(name: str) -> Callable[..., Coroutine[Any, Any, None]]:
        body = getattr(handler, name)

        async def callback(*args: Any) -> None:
            await body(*args, can_wait=True)
            await trio.lowlevel.checkpoint()

        return callback

    made: Any = Callbacks()
    for name in CALLBACKS:
        if name not in options.get("without", []):
            is_async = name in options.get("async", [])
            setattr(made, name, awaited(name) if is_async else plain(name))
    if options.get("tick"):
        made.on_tick = handler.on_tick
    return made


def run_plain(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a plain callback was suspended")


class Handler:
    """What callbacks do."""

    def __init__(self, world: World, options: dict[str, Any]) -> None:
        self.world = world
        self.script = world.script
        self.default_read = options.get("on_read", "echo")
        self.default_eof = options.get("on_eof", "close")
        self.strict = bool(options.get("write_strict"))

    # ---- the callbacks ---------------------------------------------------------------------

    @contextlib.contextmanager
    def called(self, conn: gain.Conn, name: str, value: object = None) -> Iterator[Account]:
        """What goes wrong in here is a fault, and no exception of the handler's."""
        account = self.world.account_of(conn)
        try:
            account.called(name, value)
        except Fault as fault:
            self.world.faults.add(fault)
        try:
            yield account
            if name != "on_close":  # what was left is dropped by then
                account.look()
        except (Boom, trio.Cancelled):
            raise
        except Fault as fault:
            self.world.faults.add(fault)
        except Exception as exc:  # noqa: BLE001 - a method raised what it does not promise
            self.world.faults.add(Refused(f"{exc!r} in {name}: {account}"), exc)
        finally:
            account.returned()

    async def on_accept(self, conn: gain.Conn, *, can_wait: bool) -> None:
        account = self.world.adopt(conn)
        with self.called(conn, "on_accept"):
            peer = account.peer
            if peer is not None and peer.kind == "start_tls":
                account.written += conn.write(GO_AHEAD)
                conn.start_tls(tls.SERVER)
            for step in self.script.next(account.number, "accept"):
                await self.do(account, conn, step, can_wait=can_wait)

    async def on_read(self, conn: gain.Conn, n: int, *, can_wait: bool) -> None:
        if conn.local_addr().network == "udp":
            await self.world.datagrams.on_read(conn, n, can_wait=can_wait)
            return
        with self.called(conn, "on_read", n) as account:
            done = False
            for step in self.script.next(account.number, "read"):
                done = True
                await self.do(account, conn, step, can_wait=can_wait)
            if not done:
                self.answer(account, conn, n)

    async def on_write(self, conn: gain.Conn, n: int, *, can_wait: bool) -> None:
        if conn.local_addr().network == "udp":
            self.world.datagrams.on_write(conn, n)
            return
        with self.called(conn, "on_write", n) as account:
            for step in self.script.next(account.number, "write"):
                await self.do(account, conn, step, can_wait=can_wait)

    async def on_eof(self, conn: gain.Conn, *, can_wait: bool) -> None:
        with self.called(conn, "on_eof") as account:
            account.eof_told = True
            done = False
            for step in self.script.next(account.number, "eof"):
                done = True
                await self.do(account, conn, step, can_wait=can_wait)
            if not done:
                self.take_all(account, conn)
                await self.do(account, conn, {"do": self.default_eof}, can_wait=can_wait)

    async def on_close(self, conn: gain.Conn, err: BaseException | None, *, can_wait: bool) -> None:
        with self.called(conn, "on_close") as account:
            account.closed_at = time.monotonic()
            account.err = err
            try:
                for step in self.script.next(account.number, "close"):
                    if step["do"] in ("sleep", "raise", "hold"):
                        await self.do(account, conn, step, can_wait=can_wait)
            except Boom:
                account.close_over = True
                raise
            account.close_over = True

    def on_tick(self, server: gain.Server) -> None:
        """It comes; what that costs is looked at while nothing moves."""

    # ---- what they do ----------------------------------------------------------------------

    def answer(self, account: Account, conn: gain.Conn, n: int) -> None:
        """The default of on_read."""
        how = self.default_read
        if how == "leave":
            return
        if how == "peek":
            account.check(conn.peek(n))
            return
        if how in ("half", "one"):
            there = conn.inbound_buffered()
            self.take(account, conn, 1 if how == "one" else max(1, there // 2))
            return
        self.take_all(account, conn)
        if how == "echo":
            self.write(account, conn, CALLBACK, min(n, ECHO_MAX))

    def may_be_over(self, account: Account) -> bool:
        """Whether a method that reads may find it over, without being told before."""
        if not account.rules.is_plain or account.ended_by_us:
            return True
        return account.inside not in ("on_accept", "on_read", "on_eof")

    def take_all(self, account: Account, conn: gain.Conn) -> None:
        with self.unless_over(account):
            account.took(conn.next(-1))

    def take(self, account: Account, conn: gain.Conn, n: int) -> None:
        with self.unless_over(account):
            account.took(conn.next(min(n, conn.inbound_buffered())))

    @contextlib.contextmanager
    def unless_over(self, account: Account) -> Iterator[None]:
        try:
            yield
        except gain.ConnectionClosed as exc:
            if not self.may_be_over(account):
                raise Refused(f"{exc!r}: {account}") from exc

    def write(self, account: Account, conn: gain.Conn, writer: int, size: int) -> None:
        """One frame."""
        data = frame(account.number, writer, account.next_number[writer], size)
        self.put(account, writer, data, lambda: conn.write(data))

    def put(self, account: Account, writer: int, data: bytes, put: Callable[[], int]) -> None:
        """A whole frame goes by one call, or nothing does."""
        try:
            taken = put()
        except gain.ConnectionClosed:
            if self.strict or account.eof_sent or account.rules.legacy_writes:
                account.refused = account.refused or not account.eof_sent
                return
            raise
        if taken == len(data):
            account.wrote(writer, taken)
        elif taken == 0:
            account.refused = True
        else:
            raise Refused(f"write took {taken} of {len(data)} bytes: {account}")

    async def do(
        self,
        account: Account,
        conn: gain.Conn,
        step: dict[str, Any],
        *,
        can_wait: bool,
        writer: int = CALLBACK,
    ) -> None:
        """One thing."""
        what, n = step["do"], step.get("n", 0)
        if what in READS:
            self.read(account, conn, what, n)
        elif what in WRITES:
            self.write_by(account, conn, writer, what, n)
        elif what in OTHERS:
            self.others(account, conn, what, n)
        elif what in ENDS:
            self.end(account, conn, what, n)
        elif what in WAITS:
            await self.wait(account, conn, what, n, can_wait=can_wait)
        elif what == "look":
            account.look()
        elif what == "task":
            self.start_task(account, conn, step)
        elif what == "tell":
            self.tell_other(account, step)
        elif what == "shutdown":
            self.world.stop(n / 1000)

    def read(self, account: Account, conn: gain.Conn, what: str, n: int) -> None:
        with self.unless_over(account):
            there = conn.inbound_buffered()
            if what == "next":
                account.took(conn.next(n if n <= there else -1))
            elif what == "read" and there:
                account.took(conn.read(n))
            elif what == "into" and there:
                buffer = bytearray(n)
                size = conn.read_into(buffer)
                account.took(bytes(buffer[:size]))
            elif what == "discard":
                data = conn.peek(n)
                if conn.discard(n) != len(data):
                    raise Refused(f"discard({n}) of {len(data)} bytes: {account}")
                account.took(data)
            elif what == "peek":
                account.check(conn.peek(n))
            elif what == "file" and there:
                file = Part(n)
                conn.write_to(file)
                account.took(file.data)
            elif what == "too_much":
                self.too_much(account, conn, there)

    def too_much(self, account: Account, conn: gain.Conn, there: int) -> None:
        try:
            conn.next(there + MUCH)
        except gain.ShortBuffer:
            return
        raise Refused(f"next() of more than there is: {account}")

    def write_by(self, account: Account, conn: gain.Conn, writer: int, what: str, n: int) -> None:
        if what == "write":
            self.write(account, conn, writer, n)
            return
        data = frame(account.number, writer, account.next_number[writer], n)
        if what == "writev":
            parts: list[Any] = [
                data[:3],
                bytearray(data[3 : FRAME.size]),
                memoryview(data)[FRAME.size :],
            ]
            self.put(account, writer, data, lambda: conn.writev(parts))
        else:
            self.put(account, writer, data, lambda: conn.read_from(io.BytesIO(data)))

    def others(self, account: Account, conn: gain.Conn, what: str, n: int) -> None:
        """What changes how it goes on."""
        with self.unless_over(account):
            if what == "pause":
                conn.pause_reading()
                account.paused = True
            elif what == "resume":
                account.goes_on()
                conn.resume_reading()
                account.paused = False
            elif what == "limit" and hasattr(conn, "set_read_buffer_limit"):
                account.goes_on()
                conn.set_read_buffer_limit(max(1, n))
                account.limit = max(1, n)
                account.limit_max = max(account.limit, account.limit_max)
            elif what in DEADLINES:
                # Noted first: it may be over as soon as it is set.
                account.set_deadlines(DEADLINES[what], n / 1000)
                getattr(conn, what)(n / 1000)
            elif what == "no_deadline":
                account.set_deadlines((), None)
                conn.set_deadline(None)
                conn.set_idle_timeout(None)
            elif what == "stamps":
                with socket.socket(fileno=conn.fileno()) as sock:
                    try:
                        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, STAMPS)
                    finally:
                        sock.detach()
            elif what == "buffers":
                conn.set_read_buffer(max(1, n))
                conn.set_write_buffer(max(1, n))

    def end(self, account: Account, conn: gain.Conn, what: str, n: int) -> None:
        if what == "close":
            # Noted first, since another thread may look as soon as it is done.
            account.closing_at = account.closing_at or time.monotonic()
            conn.close()
        elif what == "abort":
            account.aborted = True
            conn.abort()
        elif what == "send_eof":
            try:
                with self.unless_over(account):
                    conn.send_eof()
                    account.eof_sent = True
            except gain.NotSupported:
                if not account.rules.is_tls(account):
                    raise
                account.closing_at = account.closing_at or time.monotonic()
                conn.close()
        elif what == "raise":
            account.raised = True
            raise Boom

    async def wait(
        self, account: Account, conn: gain.Conn, what: str, n: int, *, can_wait: bool
    ) -> None:
        if what == "hold":
            # Until so many steps of the plan are done: the worker is busy meanwhile.
            self.world.hold(n, HOLD_MAX_S)
        elif not can_wait:
            if what == "sleep":
                time.sleep(n / 1000)  # noqa: ASYNC251 - a plain callback that blocks
        elif what == "sleep":
            await trio.sleep(n / 1000)
        else:
            with trio.move_on_after(DRAIN_MAX_S), contextlib.suppress(gain.ConnectionClosed):
                await conn.drain()

    # ---- tasks, other threads, other connections ---------------------------------------------

    def start_task(self, account: Account, conn: gain.Conn, step: dict[str, Any]) -> None:
        with contextlib.suppress(gain.ConnectionClosed):
            account.rules.only_callbacks = False
            conn.start_soon(self.task, account, conn, step)

    async def task(self, account: Account, conn: gain.Conn, step: dict[str, Any]) -> None:
        account.tasks += 1
        try:
            await trio.sleep(step.get("ms", 0) / 1000)
            await self.use(account, conn, {"do": step["then"], "n": step.get("n", 0)}, TASK)
        except gain.ConnectionClosed:
            pass  # it is over, which on_close tells
        finally:
            account.tasks -= 1

    async def use(
        self, account: Account, conn: gain.Conn, step: dict[str, Any], writer: int
    ) -> None:
        """Use a connection that a thread may have just now."""
        for _ in range(TRIES):
            if account.closed_at:
                return
            try:
                await self.do(account, conn, step, can_wait=True, writer=writer)
            except gain.OpNotAvailableInMode:
                await trio.sleep(0.001)
            else:
                return

    def asked(self, account: Account, conn: gain.Conn, step: dict[str, Any]) -> None:
        """Another thread has asked for it; this is called in the worker."""
        try:
            if not account.closed_at:
                run_plain(self.do(account, conn, step, can_wait=False, writer=ASKED))
        except (gain.ConnectionClosed, Boom):
            pass
        except Fault as fault:
            self.world.faults.add(fault)
        except Exception as exc:  # noqa: BLE001 - as in a callback
            what = f"{exc!r} in what another thread asked for: {account}"
            self.world.faults.add(Refused(what), exc)
        finally:
            account.asked -= 1

    def tell_other(self, account: Account, step: dict[str, Any]) -> None:
        """Write to another connection, as a chat does."""
        other = self.world.accounts.get(step["to"])
        if other is None or other is account or other.conn is None or other.stolen:
            return
        conn, size = other.conn, step.get("n", 0)
        try:
            self.write(other, conn, OTHER, size)
        except gain.OpNotAvailableInMode:
            self.world.ask(other, {"do": "write", "n": size})


MUCH = 1 << 30
READS = {"next", "read", "into", "discard", "peek", "file", "too_much"}
WRITES = {"write", "writev", "read_from"}
DEADLINES = {
    "set_read_deadline": ("read",),
    "set_write_deadline": ("write",),
    "set_deadline": ("read", "write"),
    "set_idle_timeout": ("idle",),
}
OTHERS = {"pause", "resume", "limit", "stamps", "buffers", "no_deadline", *DEADLINES}
ENDS = {"close", "abort", "send_eof", "raise"}
WAITS = {"hold", "sleep", "drain"}
