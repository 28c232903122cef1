"""A plan, from its first step to the last look at the books."""

from __future__ import annotations

import gc
import logging
import os
import select
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Any

import process_books

from random_gain.books import Account
from random_gain.datagrams import Datagrams
from random_gain.faults import (
    Faults,
    LeftBehind,
    Log,
    NotTold,
    TriedByTheKernel,
    WrongOrder,
)
from random_gain.handler import Handler, Script, callbacks_of
from random_gain.host import Host
from random_gain.peers import StreamPeer
from random_gain.places import ADDRESSES, again, make_config, name_of, ring_of, sockets_at
from random_gain.quiet import Quiet, kernel_book
from random_gain.rules import SLOWNESS, Rules
from random_gain.stranger import Stranger
from uring_trio import gain

if TYPE_CHECKING:
    from by_seed import Plan

# What is due happens within milliseconds; the bound makes a hang a failure. Above the longest
# that may take its time on purpose: input that is thrown away after a close (1 s).
BOUND_S = 4.0 * SLOWNESS
# On a busy machine, as long as something still moves: so much more.
PROGRESS_S = 8.0 * SLOWNESS
POLL_MS = 1
SLOWEST_READER = 50_000  # bytes in a turn, while all is to settle
RESTART_S = 2.0 * SLOWNESS


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
        self.quiet = Quiet(self)
        self.handler = Handler(self, options)
        callbacks = callbacks_of(self.handler, options)
        where = options.get("host", "start")
        self.host = Host(callbacks, make_config(options), where, ring_of(options))

    def __str__(self) -> str:
        return "; ".join(str(account) for account in self.accounts.values())

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
        if self.quiet.retried:
            raise TriedByTheKernel(self.quiet.retried)

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
            for a in self.mine()
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
            self._stranger.have(lambda: sockets_at(self.places))
        return self._stranger

    def _forget_listening(self) -> None:
        if self._stranger is not None:
            self._stranger.leave()

    def be_idle(self) -> None:
        """Nothing can move: look at what that costs, and at what is counted."""
        if self._looks and not self.stopping:
            self.quiet.look()

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
        for account in self.mine():
            stays = account.eof_told or account.may_not_read() or account.stolen
            stays = stays or (account.peer is not None and account.peer.may_be_at_urgent())
            if account.accepted and not (account.closed_at or stays or self.stopping):
                return f"all peers have ended: {account}"
        return ""

    def mine(self) -> list[Account]:
        """Those of the server as it is now."""
        return [a for a in self.accounts.values() if a.generation == self.rules.generation]

    def _end_peers(self) -> None:
        """Each that has not ended does, and takes all that comes."""
        for account in self.mine():
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
