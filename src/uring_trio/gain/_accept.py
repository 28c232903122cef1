"""Accepting: who is let in, how many, and by which worker they are served.

A poll, and then as many connections as are there, a few at a time
==================================================================

Several processes, and several workers of one server, may accept on one listener. The
kernel's own wait for a connection (IORING_OP_ACCEPT, multishot above all) is exclusive: one
of those who wait is woken, and if that one is busy, stopped, killed, or about to leave, its
wake-up is lost, and the connection waits beside idle workers until the next one comes.
A multishot accept takes connections even while its worker is in a callback, where others
could serve them. So here a poll waits, which is not exclusive, and a connection leaves the
kernel's queue in the turn that serves it, by an accept4(2) that finds it or goes on.
What is paid for that: an idle worker is woken for a connection that another one takes.

Only some are taken in a turn, because other connections want theirs too; and only two where
others accept as well, so that they have their part of a burst. (That they do shows where a
poll has told of a connection that is not there any more; as long as that does not happen
the number grows again.) The poll is armed again afterwards, and tells at once of what is left.

accept4(2) has no flag that says "do not wait". The file has one, which others who share the
listener may switch off; then the ring accepts, one at a time, by the engine's own way of
waiting, which is not exclusive either. It keeps a place under ``max_connections``, so it does
not wait long: what it was told of may be somebody else's by then, and others want the place.

How many
========
A worker counts those that it serves. One that accepts keeps a place under
``max_connections`` for each that is about to be accepted, so that none is taken that there
is no room for; whoever serves it takes the place over. The limit is the server's, over all
workers.

By whom
=======
Where one worker accepts for all a balancer chooses, by the workers' counts and the peer. It
is called in the thread that accepts, and there is one of those, so what it remembers needs no
lock.

What goes wrong
===============
A poll may tell of a connection, and there is none: another worker was faster; or somebody
who shares a UNIX listener has shut it down, and then it tells so again, and again. So after
many times in a row accepting rests for a moment.

A connection that was reset in the queue is one: what came before the reset is there to be
read, and the reset behind it. Only getpeername(2) does not know its peer any more; accept4(2)
does.

When the process has no descriptor left the kernel's accept fails at once, and would fail
again at once: accepting pauses until a connection has closed, or a while has passed.
"""

from __future__ import annotations

import errno
import itertools
import operator
import os
import socket
import threading
import zlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from uring_trio._beside import (
    MIGHT_BLOCK,
    close_fd,
    close_socket,
    own,
    peer_address,
    scratch,
    try_accept,
)
from uring_trio._kernel import EAGAIN, POLLIN
from uring_trio.gain._address import Address
from uring_trio.gain._config import Architecture, LoadBalancing
from uring_trio.gain._surroundings import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uring_trio._slots import Slots
    from uring_trio.gain._config import Balancer, Config
    from uring_trio.gain._engine import Clock
    from uring_trio.gain._listen import Listener

# Out of descriptors or memory: not the listener's fault, and over when something is closed.
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listener will never accept again.
FATAL = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
RETRY_S = 0.5  # after EXHAUSTED, if no connection of ours closes before
ACCEPT_FLAGS = int(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
IN_VAIN_MAX = 100  # times in a row: some ms, and more than fall to who is slower than others
REST_S = 0.032  # then: 30 times a second cost nothing, and nobody notices the delay
PLACE_S = 0.032  # for which an accept that waits keeps one; the same holds for it
ACCEPTS_MAX = 16  # in a turn
ACCEPTS_SHARED = 2  # in a turn, where others accept too

# Connections are counted by the worker that accepts as well as by the one that serves.
_counting = threading.Lock()


class SomeWorker(Protocol):
    """A worker: one that accepts, or one that serves."""

    slots: Slots
    admission: Admission

    @property
    def clock(self) -> Clock: ...

    @property
    def active(self) -> int: ...

    def wake(self) -> None: ...

    def post(self, fn: Callable[..., Any], *args: Any) -> bool: ...

    def adopt(
        self, sock: socket.socket, network: str, local: Address | None, peer: Any
    ) -> None: ...


WorkerT = TypeVar("WorkerT", bound=SomeWorker)


class Admission:
    """Lets connections into one worker: from its listeners, and as many as there may be.

    Args:
      worker: whose connections they are.
      limit: of all workers; None is none.

    Attributes:
      active: connections that the worker serves, or is about to.
      claimed: places for connections that are about to be accepted.
      accepted: what listeners are to be told of in the worker's turn.
    """

    def __init__(self, worker: SomeWorker, limit: int | None) -> None:
        self._worker = worker
        self._limit = limit
        self._peers: Sequence[Admission] = (self,)
        self._acceptors: list[Acceptor] = []
        self.active = 0
        self.claimed = 0
        self.accepted: list[tuple[Acceptor, int]] = []

    def share_with(self, peers: Sequence[Admission]) -> None:
        """The limit is for all of these."""
        self._peers = peers

    # ---- listeners -----------------------------------------------------------------------

    def listen(self, listener: Listener, assign: Callable[[Address], SomeWorker] | None) -> None:
        """Accept from a listener, which is ours from now on; see `make_assign`."""
        acceptor = Acceptor(self._worker, listener, assign)
        self._acceptors.append(acceptor)
        acceptor.arm()

    def note(self, acceptor: Acceptor, res: int) -> None:
        """Something came for it, which it is to be told of in the worker's turn."""
        self.accepted.append((acceptor, res))
        self._worker.wake()

    def admit(self) -> None:
        """In the worker's turn: take in who is there."""
        accepted, self.accepted = self.accepted, []
        for acceptor, res in accepted:
            acceptor.accepted(res)

    def close(self) -> None:
        """Accept nobody any more."""
        for acceptor in tuple(self._acceptors):
            acceptor.close()

    def closed(self, acceptor: Acceptor) -> None:
        """A listener is."""
        self._acceptors.remove(acceptor)

    def is_over(self) -> bool:
        """Whether all are, and nothing is to be told."""
        return not (self._acceptors or self.accepted)

    def in_flight(self) -> int:
        """How many of them wait for a connection."""
        return sum(acceptor.slot >= 0 for acceptor in self._acceptors)

    # ---- places --------------------------------------------------------------------------

    def is_free(self) -> bool:
        """Whether one more connection is allowed."""
        limit = self._limit
        return limit is None or sum(each.active + each.claimed for each in self._peers) < limit

    def claim(self) -> bool:
        """Keep a place for a connection that is to be accepted here, if there is one."""
        if self._limit is None:
            return True
        with _counting:
            allowed = self.is_free()
            self.claimed += allowed
        return allowed

    def unclaim(self) -> None:
        """Give it back: there was no connection."""
        if self._limit is not None:
            with _counting:
                self.claimed -= 1
            self._tell_of_room()

    def use_claim(self, admission: Admission) -> None:
        """A connection was accepted here: it takes the place, and is counted there."""
        with _counting:
            if self._limit is not None:
                self.claimed -= 1
            admission._enter()

    def _enter(self) -> None:
        self.active += 1

    def leave(self) -> None:
        """One connection less."""
        with _counting:
            self.active -= 1

    # ---- where there was none ------------------------------------------------------------

    def tell(self) -> None:
        """A connection is closed: there is a descriptor for another one, and a place."""
        for each in self._peers:
            if each is self:
                self._retry()
            elif any(acceptor.exhausted for acceptor in tuple(each._acceptors)):
                each._worker.post(each._retry)
        self._tell_of_room()

    def _tell_of_room(self) -> None:
        for each in self._peers:
            if each is self:
                self._resume()
            elif any(acceptor.paused for acceptor in tuple(each._acceptors)):
                each._worker.post(each._resume)

    def _retry(self) -> None:
        for acceptor in self._acceptors:
            if acceptor.exhausted:
                acceptor.arm()

    def _resume(self) -> None:
        for acceptor in self._acceptors:
            if acceptor.paused:
                acceptor.arm()


class Acceptor:
    """Accepts from one listener, and hands each connection on.

    Attributes:
      paused: nothing is armed: as many connections as are allowed.
      exhausted: nothing is armed for a while: out of descriptors.
    """

    # As an occupant of a slot: no task sleeps on it.
    reading = False
    task = None

    def __init__(
        self, worker: SomeWorker, listener: Listener, assign: Callable[[Address], SomeWorker] | None
    ) -> None:
        self.worker = worker
        self.admission = worker.admission
        self.listener = listener
        self.assign = assign
        self.slot = -1
        self.paused = True
        self.exhausted = False
        self._on_ring = False  # what is armed is an accept, with a place claimed, and no poll
        self._closed = False
        self._let_go = False  # of the listener
        self._told = False  # that descriptors are used up
        self._most = ACCEPTS_MAX  # that are taken in a turn
        self._in_vain = 0  # times in a row that a poll has told of nothing
        sock = listener.sock
        self._fd = sock.fileno()
        self._kind = (int(sock.family), int(sock.type), sock.proto)
        self._local: Address | None = listener.address
        host = listener.address[0]
        if listener.network != "unix" and host in ("0.0.0.0", "::"):
            self._local = None  # known for each connection only

    # ---- armed, or not -------------------------------------------------------------------

    def arm(self) -> None:
        """Wait for a connection, unless it does or must not."""
        if self._closed or self.slot >= 0:
            return
        self.exhausted = False
        # First this, then the look: who makes room on another thread looks after that.
        self.paused = True
        if self.admission.is_free():
            self._start(self.worker.slots.ring.poll(self._fd, POLLIN, 0), on_ring=False)

    def _start(self, slot: int, *, on_ring: bool) -> None:
        self.slot = self.worker.slots.enter(self, slot)
        self._on_ring = on_ring
        self.paused = False

    def close(self) -> None:
        """Stop; the listener is closed when the kernel has let go of it."""
        if self._closed:
            return
        self._closed = True
        for kind in ("retry", "place"):
            self.worker.clock.cancel((self, kind))
        if self.slot >= 0 and self.worker.slots.withdraw(self.slot):
            self.slot = -1
            self._give_place_back()
        if self.slot < 0:
            self._close_listener()

    def _give_place_back(self) -> None:
        """An accept on the ring is over, without a connection."""
        if self._on_ring:
            self._on_ring = False
            self.admission.unclaim()

    def _close_listener(self) -> None:
        if not self._let_go:  # a poll's end may still be on its way to `accepted`
            self._let_go = True
            self.listener.close()
            self.admission.closed(self)

    # ---- what came -----------------------------------------------------------------------

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take a cqe, in the scheduler: the worker's turn does the rest."""
        self.slot = -1
        self.admission.note(self, res)

    def lose(self) -> None:
        """The run is over: nobody is served any more."""

    def dispose(self, res: int) -> None:
        """Close a connection that was accepted for nobody."""
        if self._on_ring and res >= 0:
            close_fd(res)

    def release(self) -> None:
        """It has no memory in the kernel."""

    def accepted(self, res: int) -> None:
        """In the worker's turn: there are connections, or is one; or an error."""
        if self._on_ring:
            if res >= 0:
                self._on_ring = False
                self._adopt(res, None)
            else:
                self._give_place_back()
        elif res >= 0 and not self._closed:
            res = self._accept_now()
        if self._closed:
            if self.slot < 0:
                self._close_listener()
        elif res == EAGAIN and self._in_vain >= IN_VAIN_MAX:
            self._rest(REST_S)
        elif -res in EXHAUSTED:
            self._exhausted(-res)
        elif -res in FATAL:
            logger.error("accepting on %s ended: %s", self.listener.address, os.strerror(-res))
            self.close()
        else:
            self.arm()

    def _accept_now(self) -> int:
        """Take what is there, up to a bound; 0, or an error, such as that there was nothing."""
        peer = scratch.name
        for taken in range(self._most):
            if not self.admission.claim():
                break
            res = try_accept(self._fd, ACCEPT_FLAGS, peer.c)
            if res == MIGHT_BLOCK:
                slot = self.worker.slots.ring.accept_fd(self._fd, ACCEPT_FLAGS)
                self._start(slot, on_ring=True)
                self.worker.clock.set_in((self, "place"), PLACE_S)
                break
            if res < 0:
                self.admission.unclaim()
                if taken:
                    self._in_vain = 0
                    return 0 if res == EAGAIN else int(res)
                self._in_vain += 1
                self._most = ACCEPTS_SHARED
                return int(res)
            self._adopt(res, peer.address)
        else:
            self._in_vain = 0
            self._most = min(self._most + 1, ACCEPTS_MAX)
        return 0

    def _adopt(self, fd: int, peer: Any) -> None:
        """Give a connection, for which a place is claimed, to its worker.

        Args:
          fd: its descriptor.
          peer: its peer's address; None: nobody was told of it yet.
        """
        worker = self.worker
        try:
            sock = own(fd, self._kind)
        except BaseException:
            self.admission.unclaim()
            raise
        network = self.listener.network
        try:
            peer = peer_address(fd) if peer is None else peer
        except OSError:  # nobody knows it
            close_socket(sock)
            self.admission.unclaim()
            return
        if self._closed:
            close_socket(sock)
            self.admission.unclaim()
            return
        self._told = False
        chosen = worker
        if self.assign is not None:
            chosen = self.assign(Address.from_sockaddr(network, peer))
        self.admission.use_claim(chosen.admission)
        if chosen is worker:
            worker.adopt(sock, network, self._local, peer)
        elif not chosen.post(chosen.adopt, sock, network, self._local, peer):
            chosen.admission.leave()
            close_socket(sock)

    def _exhausted(self, error: int) -> None:
        if not self._told:
            self._told = True
            logger.error("accepting on %s pauses: %s", self.listener.address, os.strerror(error))
        # Not `paused`: a place that others leave, or do not take, is no descriptor.
        self.exhausted = True
        self._rest(RETRY_S)

    def _rest(self, seconds: float) -> None:
        self.worker.clock.set_in((self, "retry"), seconds)

    def _timer_expired(self, kind: str) -> None:
        if kind == "retry":
            self.arm()
        elif self._on_ring and self.slot >= 0 and self.worker.slots.withdraw(self.slot):
            # Nobody has come, whose place it keeps.
            self.slot = -1
            self._give_place_back()
            self.arm()
        # Else it has come; or its end is on the way, after which it is armed.


# ---- by which worker they are served ---------------------------------------------------


def make_assign(workers: Sequence[WorkerT], config: Config) -> Callable[[Address], WorkerT] | None:
    """The reactor's choice of a worker, or None where each keeps what it accepts."""
    if config.architecture is Architecture.SHARDING:
        return None
    balance = make_balancer(config)

    def assign(remote: Address) -> WorkerT:
        try:
            return workers[balance([worker.active for worker in workers], remote)]
        except Exception:  # noqa: BLE001  the user's own balancer: no client is to pay
            logger.exception("load_balancing failed for %s; worker 0 takes it", remote)
            return workers[0]

    return assign


def make_balancer(config: Config) -> Balancer:
    """The balancer that ``config`` asks for, with a memory of its own.

    It takes the number of active connections of each worker, of which there is at least one,
    and the address of the peer, and returns the worker's index. One that the user gave may
    raise anything; if it returns no index of a worker, the balancer made of it raises
    IndexError, or TypeError for what is no integer.
    """
    choice = config.load_balancing
    if choice is LoadBalancing.ROUND_ROBIN:
        return _round_robin()
    if choice is LoadBalancing.LEAST_CONNECTIONS:
        return _least_connections
    if choice is LoadBalancing.SOURCE_IP_HASH:
        return _source_hash(_gain_key if config.gain_compatible else _host_key)
    assert callable(choice)
    return _checked(choice)


def _round_robin() -> Balancer:
    turns = itertools.count()

    def round_robin(counts: Sequence[int], remote: Address) -> int:
        return next(turns) % len(counts)

    return round_robin


def _least_connections(counts: Sequence[int], remote: Address) -> int:
    return counts.index(min(counts))


def _source_hash(key: Callable[[Address], str]) -> Balancer:
    def source_hash(counts: Sequence[int], remote: Address) -> int:
        if remote.network == "unix":
            # UNIX peers rarely have a name: a hash would send all of them to one worker.
            return _least_connections(counts, remote)
        return zlib.crc32(key(remote).encode()) % len(counts)

    return source_hash


def _host_key(remote: Address) -> str:
    return str(remote[0])


def _gain_key(remote: Address) -> str:
    # With the port, so that a client's next connection goes elsewhere (gain's load_balancer.go).
    return str(remote)


def _checked(balancer: Balancer) -> Balancer:
    def checked(counts: Sequence[int], remote: Address) -> int:
        answer = balancer(counts, remote)
        try:
            index = operator.index(answer)
        except TypeError:
            raise TypeError(
                f"load_balancing must return the index of a worker, not {answer!r}"
            ) from None
        if not 0 <= index < len(counts):
            raise IndexError(
                f"load_balancing returned {index}, but the workers are 0 to {len(counts) - 1}"
            )
        return index

    return checked
