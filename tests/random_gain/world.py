"""A plan, from its first step to the last look at the books."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import shutil
import socket
import tempfile
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import harness
import process_books

from random_gain import tls
from random_gain.books import (
    SLOWNESS,
    Account,
    Faults,
    LeftBehind,
    LeftToTheKernel,
    Log,
    NotAsleep,
    NotTold,
    Rules,
    TriedByTheKernel,
    WrongCounts,
    WrongOrder,
)
from random_gain.datagrams import Datagrams
from random_gain.handler import Handler, Script, callbacks_of
from random_gain.host import Host
from random_gain.peers import StreamPeer
from random_gain.stranger import Stranger, is_listening
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from by_seed import Plan

try:  # another release may have none of these
    import kernel_workers

    from uring_trio._io_manager import UringIOManager
except ImportError:
    kernel_workers = None  # type: ignore[assignment]
try:
    from uring_trio import RingOptions
except ImportError:
    RingOptions = None  # type: ignore[assignment, misc]

# What is due happens within milliseconds; the bound makes a hang a failure. Above the longest
# that may take its time on purpose: input that is thrown away after a close (1 s).
BOUND_S = 4.0 * SLOWNESS
# On a busy machine, as long as something still moves: so much more.
PROGRESS_S = 8.0 * SLOWNESS
# While nothing can move: a stretch, and how much of a core it may take. What is still to be
# done of the work before, and a busy machine's soft interrupts, are over after the first.
IDLE_S = 0.04
IDLE_SHARE_MAX = 0.05
IDLE_STRETCHES = 4
POLL_MS = 1
COUNTS_MAX_S = 1.0 * SLOWNESS  # for a worker that the machine gives no time to
SLOWEST_READER = 50_000  # bytes in a turn, while all is to settle
RESTART_S = 2.0 * SLOWNESS

ADDRESSES = {
    "tcp4": "tcp4://127.0.0.1:0",
    "tcp6": "tcp6://[::1]:0",
    "tcp": "tcp://127.0.0.1:0",
    "every": "tcp://:0",
    "udp4": "udp4://127.0.0.1:0",
    "udp6": "udp6://[::1]:0",
    "udp": "udp://:0",
}


class World:
    """All that a plan has.

    Args:
      plan: it.
      looks: be idle where the plan says so, and look.

    Attributes:
      accounts: of the streams, by their number in the plan.
      stopping: the server was told to end, by whomever.
    """

    def __init__(self, plan: Plan, *, looks: bool = True) -> None:
        options = plan["options"]
        self.options = options
        self._looks = looks
        self.steps: list[dict[str, Any]] = plan["steps"]
        self.faults = Faults()
        self.rules = Rules(options)
        self.script = Script(self.steps)
        self.done = 0  # steps
        self.accounts: dict[int, Account] = {}
        self.stopping = False
        is_async = bool(options.get("async") or options.get("async_handler"))
        self.may_overtake = is_async or options.get("workers", 1) > 1
        self.datagrams = Datagrams(self, options)
        self.places: list[gain.Address] = []
        self._by_name: dict[Any, Account] = {}
        self._names: set[Any] = set()
        strange = any(step.get("do") in STRANGE for step in self.steps)
        self._stranger = Stranger() if strange else None
        self._is_shut = False
        self._folder = tempfile.mkdtemp(prefix="random-gain-")
        self._log = Log(self.faults)
        self._retried = ""  # what the kernel itself would have tried again
        self.handler = Handler(self, options)
        callbacks = callbacks_of(self.handler, options)
        where = options.get("host", "start")
        self.host = Host(callbacks, make_config(options), where, ring_of(options))

    # ---- the whole ---------------------------------------------------------------------------

    def run(self) -> None:
        """Do all of it."""
        if self.options.get("collects"):
            gc.collect()
        before = process_books.Descriptors(), process_books.Threads()
        logger = logging.getLogger("uring_trio.gain")
        logger.addHandler(self._log)
        try:
            with kernel_book():
                self._serve()
                self.faults.check()
        finally:
            self.done += 1_000_000  # nobody is held any more
            self.host.give_up()
            logger.removeHandler(self._log)
            for account in self.accounts.values():
                if account.peer is not None:
                    account.peer.shut()
            for peer in self.datagrams.peers.values():
                peer.close()
            if self._stranger is not None:
                self._stranger.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        if left := process_books.stays(*before):
            raise LeftBehind("; ".join(left))
        # The last to be told, for it would be the only one where all is left to the kernel.
        if self._retried:
            raise TriedByTheKernel(self._retried)

    def _serve(self) -> None:
        self.host.start(self._addresses())
        self.places = list(self.host.server.addresses())
        for step in self.steps:
            if "do" in step and "on" not in step:
                STEPS[step["do"]](self, step)
                self.done += 1
                self.move(step.get("ms", 0) / 1000)
                self.faults.check()
        self.done += 1_000_000  # nobody is held any more
        self._wind_up()

    def _addresses(self) -> list[str]:
        names = self.options.get("listeners") or ["tcp4"]
        return [self._address(name, place) for place, name in enumerate(names)]

    def _address(self, name: str, place: int) -> str:
        if name == "unix":
            return f"unix://{self._folder}/{place}"
        if name == "abstract":
            return f"unix://@random-gain-{os.getpid()}-{place}"
        return ADDRESSES[name]

    # ---- for the handler ---------------------------------------------------------------------

    def adopt(self, conn: gain.Conn) -> Account:
        """A connection was accepted."""
        account = self._by_name[name_of(conn.remote_addr())]
        if account.conn is not None:
            self.faults.add(WrongOrder(f"a second connection of one: {account}"))
        account.conn = conn
        conn.context = account
        account.generation = self.rules.generation
        if account.stolen:
            self.faults.add(WrongOrder(f"accepted, and a stranger has it: {account}"))
        return account

    def account_of(self, conn: gain.Conn) -> Account:
        account = conn.context
        assert isinstance(account, Account)
        return account

    def hold(self, steps: int, most_s: float) -> None:
        """Block this thread until so many more steps are done."""
        until, deadline = self.done + max(1, steps), time.monotonic() + most_s
        while self.done < until and time.monotonic() < deadline:
            time.sleep(0.0002)

    def stop(self, drain_timeout: float) -> None:
        """Have the server end; from any thread."""
        self.stopping = True
        self.rules.stop(drain_timeout)
        self.host.server.async_shutdown(drain_timeout)

    def ask(self, account: Account, step: dict[str, Any]) -> None:
        """From any thread: have a worker do something with a connection."""
        conn = account.conn
        if conn is None:
            return
        account.asked += 1
        self.rules.only_callbacks &= step["do"] == "look"
        try:
            conn.call_soon_threadsafe(self.handler.asked, account, conn, step)
        except gain.ConnectionClosed:
            account.asked -= 1

    # ---- moving ------------------------------------------------------------------------------

    def move(self, seconds: float = 0.0, at_least: int = 0) -> None:
        """Have the peers send and receive, for so long; who reads takes *at_least* so much."""
        end = time.monotonic() + seconds
        while True:
            for peer in self._peers():
                peer.turn(at_least)
            left = end - time.monotonic()
            if left <= 0:
                return
            self._wait(min(left * 1e3, POLL_MS))

    def _peers(self) -> list[Any]:
        streams = [a.peer for a in self.accounts.values() if a.peer is not None]
        live = [peer for peer in streams if not (peer.account.gone or peer.failed)]
        return [*live, *self.datagrams.peers.values()]

    def _wait(self, ms: float) -> None:
        poller = select.poll()
        for peer in self._peers():
            if peer.sock.fileno() >= 0 and (events := peer.events()):
                poller.register(peer.sock, events)
        poller.poll(max(ms, 0.1))

    def settle(self, *, to_the_end: bool = False) -> None:
        """Until all that can happen has; nobody is woken for it.

        Args:
          to_the_end: and all connections that can have ended.

        Raises:
          NotTold: something that is due does not happen.
        """
        self.done += 1_000_000
        moved = 0
        deadline = latest = time.monotonic() + BOUND_S
        latest += PROGRESS_S
        while True:
            self.move(at_least=SLOWEST_READER)
            if (moves := sum(a.moves() for a in self.accounts.values())) != moved:
                moved, deadline = moves, min(time.monotonic() + BOUND_S, latest)
            self.faults.check()
            what = self.unsettled() or (self._unended() if to_the_end else "")
            if not what:
                return
            if time.monotonic() > deadline:
                raise NotTold(what)
            self._wait(POLL_MS)

    def unsettled(self) -> str:
        """What is to happen yet; "" if nothing is."""
        if self.stopping:
            return ""
        self.rules.contenders = sum(
            a.peer is not None and a.peer.connected and not (a.closed_at or a.stolen)
            for a in self._mine()
        )
        for account in self.accounts.values():
            if what := account.unsettled():
                return f"{what}: {account}"
        return self.datagrams.unsettled()

    # ---- the steps ---------------------------------------------------------------------------

    def step_connect(self, step: dict[str, Any]) -> None:
        number = step["peer"]
        if not self.places or number in self.accounts or number in self.datagrams.peers:
            return
        place = self.places[step.get("to", 0) % len(self.places)]
        if place.network == "udp":
            self.datagrams.connect(number, place, step)
            return
        account = Account(number, self.rules)
        account.generation = self.rules.generation
        step = {**step, "kind": self._kind(step.get("kind", "plain"))}
        address = place
        if place.network == "tcp" and place[0] in ("::", "0.0.0.0"):
            address = gain.Address("tcp", ("127.0.0.1", place[1]))
        account.peer = StreamPeer(account, address, step, self._names)
        self._by_name[name_of(account.peer.name)] = account
        self.accounts[number] = account
        account.peer.turn()

    def _kind(self, kind: str) -> str:
        if not self.rules.tls:
            return kind if kind == "start_tls" else "plain"
        return kind if kind in ("garbage", "stall") else "tls"

    def _peer(self, step: dict[str, Any]) -> StreamPeer | None:
        account = self.accounts.get(step["peer"])
        return None if account is None else account.peer

    def step_send(self, step: dict[str, Any]) -> None:
        if step["peer"] in self.datagrams.peers:
            self.datagrams.send(step["peer"], step.get("n", 0), step.get("count", 1))
        elif peer := self._peer(step):
            peer.send(step.get("n", 0))
            peer.turn()

    def step_reads(self, step: dict[str, Any]) -> None:
        if peer := self._peer(step):
            peer.reads = step.get("n", -1)

    def step_urgent(self, step: dict[str, Any]) -> None:
        if peer := self._peer(step):
            peer.send_urgent()

    def step_garbage(self, step: dict[str, Any]) -> None:
        if peer := self._peer(step):
            peer.send_garbage()

    def step_end(self, step: dict[str, Any]) -> None:
        if step["peer"] in self.datagrams.peers:
            self.datagrams.peers[step["peer"]].close()
        elif peer := self._peer(step):
            peer.finish(step.get("how", "eof"), flush=bool(step.get("flush")))
            peer.turn()

    def step_bad(self, step: dict[str, Any]) -> None:
        self.datagrams.send_bad(step["peer"], step.get("n", 1))

    def step_ask(self, step: dict[str, Any]) -> None:
        account = self.accounts.get(step["of"])
        if account is not None:
            self.ask(account, {"do": step["what"], "n": step.get("n", 0)})

    def step_thread(self, step: dict[str, Any]) -> None:
        """Another thread uses a connection, which it may not."""
        account = self.accounts.get(step["of"])
        if account is None or account.conn is None:
            return
        try:
            account.conn.write(b"x")
        except gain.OpNotAvailableInMode:
            return
        raise WrongOrder(f"a write on another thread: {account}")

    def step_wait(self, step: dict[str, Any]) -> None:
        pass  # its time passes as that of any step

    def step_settle(self, step: dict[str, Any]) -> None:
        self.settle()

    def step_idle(self, step: dict[str, Any]) -> None:
        self.settle()
        self.be_idle()

    def step_steal(self, step: dict[str, Any]) -> None:
        """A stranger accepts one, or receives a datagram."""
        if (stranger := self._informed()) is not None:
            name, data = stranger.take()
            if data:
                self.datagrams.stolen(data)
            elif name is not None and name_of(name) in self._by_name:
                self._by_name[name_of(name)].stolen = True

    def step_block(self, step: dict[str, Any]) -> None:
        """A stranger says how calls on the listeners are to wait."""
        if (stranger := self._informed()) is not None and not self._is_shut:
            stranger.block(on=bool(step.get("n")))

    def step_rival(self, step: dict[str, Any]) -> None:
        """A stranger waits for connections, and takes none."""
        if (stranger := self._informed()) is not None:
            stranger.wait()

    def step_shut(self, step: dict[str, Any]) -> None:
        """A stranger shuts down what tells of input from then on, for ever."""
        if (stranger := self._informed()) is not None:
            # One that blocks and is shut down has ended, and that is said.
            stranger.block(on=False)
            stranger.shut()
            self._is_shut = True

    def step_restart(self, step: dict[str, Any]) -> None:
        """The server ends, and begins anew at the same place."""
        if self.stopping:
            return
        self._forget_listening()
        self._is_shut = False
        self.datagrams.lossy = True  # those that come meanwhile
        self.stop(step.get("n", 0) / 1000)
        self._see_it_end(step.get("n", 0) / 1000 + RESTART_S)
        self.host.verify()
        self.rules.generation += 1
        self.stopping = False
        self.host.start([again(place) for place in self.places])
        self.places = list(self.host.server.addresses())

    # ---- the stranger --------------------------------------------------------------------------

    def _informed(self) -> Stranger | None:
        """It, and it has the server's sockets, as one has them who has inherited them."""
        if self._stranger is not None and not self.stopping:
            self._stranger.have(self._sockets)
        return self._stranger

    def _sockets(self) -> Iterator[socket.socket]:
        """What the server listens and receives with, by descriptors of their own."""
        names = {name_of(place) for place in self.places}
        for fd, what in harness.open_fds().items():
            if not what.startswith("socket:"):
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                own = sock.family in FAMILIES and name_of(sock.getsockname()) in names
                udp = sock.type == socket.SOCK_DGRAM
                if own and (udp or is_listening(sock)) and not is_connected(sock):
                    yield sock

    def _forget_listening(self) -> None:
        if self._stranger is not None:
            self._stranger.leave()

    # ---- looking -------------------------------------------------------------------------------

    def be_idle(self) -> None:
        """Nothing can move: look at what that costs, and then at what is counted.

        Raises:
          NotAsleep: it costs CPU.
        """
        if self.stopping or not self._looks:
            return
        with process_books.no_collection():
            for stretch in range(1, IDLE_STRETCHES + 1):
                cpu = process_books.Cpu()
                time.sleep(IDLE_S * stretch)
                if (share := cpu.most()) <= IDLE_SHARE_MAX:
                    break
            else:
                raise NotAsleep(f"{share:.0%} of a core while nothing can move: {self}")
        self.faults.check()
        self._look_at_the_kernel()
        self._look_at_counts()
        self._look_at_those_who_stopped()
        for account in self._mine():
            if account.peer is not None:
                account.peer.note_quiet()

    def _look_at_those_who_stopped(self) -> None:
        """Each that does not read is asked what it has: a look that wakes its worker."""
        # TLS has bytes of its own, in records that are not whole.
        for account in self._mine():
            may_be_asked = not (self.stopping or self.rules.is_tls(account))
            if may_be_asked and account.stopped():
                self.ask(account, {"do": "look"})

    def __str__(self) -> str:
        return "; ".join(str(account) for account in self.accounts.values())

    def _look_at_the_kernel(self) -> None:
        if kernel_workers is None:
            return
        if workers := kernel_workers.workers():
            raise LeftToTheKernel(f"{len(workers)} of the kernel's workers: {self}")
        # A receive that is multishot is the kernel's to try again: each wake-up brings its data.
        retried = [opcode for opcode in kernel_workers.retried() if opcode != RECV]
        if retried and not self._retried:
            self._retried = f"the kernel itself tries {retried} again: {self}"

    def _look_at_counts(self) -> None:
        # It answers with what it last knew.
        deadline = time.monotonic() + COUNTS_MAX_S
        while (what := self._wrong_count()) and time.monotonic() < deadline:
            time.sleep(IDLE_S)
        if not what or self.stopping:
            return
        raise WrongCounts(f"{what}: {self}")

    def _wrong_count(self) -> str:
        """What of the statistics is not as it should be while nothing moves; "" if all is."""
        # A timer may close one at any moment.
        open_before = self._open()
        workers = self.host.server.statistics().workers
        open_after = self._open()
        if any(worker.buffers_leased for worker in workers):
            return f"buffers are leased: {workers}"
        here = self._mine()
        # One whose handshake is not over is a connection already.
        hidden = sum(not a.accepted for a in here)
        counted = sum(worker.connections for worker in workers)
        if not min(open_before, open_after) <= counted <= max(open_before, open_after) + hidden:
            return f"{counted} connections, and {open_after} are open"
        if self.rules.tls or self.datagrams.peers or self.rules.generation:
            return ""
        secured = any(a.peer is not None and a.peer.is_tls for a in here)
        received = sum(a.known for a in here)
        if not secured and sum(worker.bytes_in for worker in workers) < received:
            return f"bytes_in is less than {received}: {workers}"
        return ""

    def _open(self) -> int:
        return sum(a.accepted and not a.close_over for a in self._mine())

    # ---- the end -------------------------------------------------------------------------------

    def _wind_up(self) -> None:
        """The end of the plan: of its peers, of its server, and of the books."""
        end = self.options.get("end", "peers")
        drain_s = self.options.get("drain_ms", 1000) / 1000
        if self.options.get("idle_at_end") and not self.stopping:
            self.settle()
            self.be_idle()
        if end == "peers" and not self.stopping:
            self._end_peers()
            self.settle(to_the_end=True)
        if end == "cancel" and self.host.can_be_cancelled() and not self.stopping:
            self.stopping = True
            self.rules.stop(0.0)
            self.host.cancel()
            drain_s = 0.0
        elif end == "abort":
            self.stop(0)
            drain_s = 0.0
        else:
            self.stop(drain_s)
        self._see_it_end(drain_s + RESTART_S)
        self._forget_listening()
        self.host.verify()
        self._hear_the_last()
        for account in self.accounts.values():
            account.verify()

    def _unended(self) -> str:
        """All peers have ended: what has not, and has no reason to stay."""
        for account in self._mine():
            stays = account.eof_told or account.may_not_read() or account.stolen
            stays = stays or (account.peer is not None and account.peer.may_be_at_urgent())
            if account.accepted and not (account.closed_at or stays or self.stopping):
                return f"all peers have ended: {account}"
        return ""

    def _mine(self) -> list[Account]:
        return [a for a in self.accounts.values() if a.generation == self.rules.generation]

    def _end_peers(self) -> None:
        """Each that has not ended does, and takes all that comes."""
        for account in self._mine():
            peer = account.peer
            if peer is None or account.gone:
                continue
            peer.reads = -1
            if account.paused and account.accepted and not account.closed_at:
                self.ask(account, {"do": "resume"})
            if not account.end:
                peer.finish("eof", flush=True)
            peer.turn()

    def _see_it_end(self, bound_s: float) -> None:
        deadline = time.monotonic() + bound_s + BOUND_S
        while not self.host.has_ended():
            self.move()
            self._wait(POLL_MS)
            if time.monotonic() > deadline:
                raise NotTold(f"the server does not end: {self}")
        self.rules.has_ended(self.host.ended_at)
        self.faults.check()

    def _hear_the_last(self) -> None:
        """What is with the peers' kernel yet."""
        for account in self.accounts.values():
            peer = account.peer
            if peer is not None and not account.gone:
                peer.reads = -1
        deadline = time.monotonic() + BOUND_S
        while any(
            a.accepted and a.peer is not None and not (a.gone or a.peer.failed or a.peer.saw_end)
            for a in self.accounts.values()
        ):
            self.move()
            if time.monotonic() > deadline:
                raise NotTold(f"a peer is not told of the end: {self}")
            self._wait(POLL_MS)


STEPS = {
    name.removeprefix("step_"): step for name, step in vars(World).items() if name[:5] == "step_"
}
STRANGE = ("steal", "block", "rival", "shut")
RECV = 27  # <linux/io_uring.h>
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
CONFIG = {field.name for field in fields(gain.Config)}
RING = ("max_sq_entries", "max_cq_events")


def make_config(options: dict[str, Any]) -> gain.Config:
    """Of the options those that this release has."""
    known = {name: value for name, value in options.items() if name in CONFIG}
    known.setdefault("workers", 1)
    if known.get("cbpf") and known.get("architecture") != "sharding":
        del known["cbpf"]
    known["tls"] = tls.SERVER if options.get("tls") else None
    tick = known.get("tick")
    known["tick"] = tick if tick else None
    if options.get("host") == "serve" and known["workers"] == 1:
        for name in RING:  # the run's own are meant: see `ring_of`
            known.pop(name, None)
    return gain.Config(**known)


def ring_of(options: dict[str, Any]) -> Any:
    """The sizes of the run's ring, if the server's worker is in it."""
    if RingOptions is None or not any(options.get(name) for name in RING):
        return None
    sq_entries = options.get("max_sq_entries") or 256
    cq_entries = max(options.get("max_cq_events") or 4096, sq_entries)
    return RingOptions(sq_entries=sq_entries, cq_entries=cq_entries)


def name_of(address: Any) -> Any:
    """An address to be looked up by, however it is written."""
    if isinstance(address, (str, bytes)):
        address = (address,)
    first, *rest = address
    if isinstance(first, bytes):
        first = first.decode(errors="surrogateescape")
    first = first.replace("\0", "@", 1).removeprefix("::ffff:")
    return (first, rest[0] if rest else None)


def again(place: gain.Address) -> str:
    """What a server listens at that is to be where one was."""
    if place.network == "unix":
        return f"unix://{place[0]}".replace("\0", "@")
    return f"{place.network}://{place}" if place[0] != "::" else f"{place.network}://:{place[1]}"


def is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as exc:
        return exc.errno not in (errno.ENOTCONN, errno.EINVAL)
    return True


@contextlib.contextmanager
def kernel_book() -> Any:
    """The kernel's workers of all runs in here are looked for."""
    if kernel_workers is None:
        yield
        return
    book = kernel_workers.Book()
    try:
        kernel_workers.watch_runs(UringIOManager)
        yield
        if found := book.news():
            raise LeftToTheKernel("; ".join(found))
    finally:
        book.close()
