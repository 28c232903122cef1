"""Accepting, one at a time.

The kernel's multishot accept waits exclusively: it swallows the wake-up of a connection
that it does not take, because its process is busy, stopped or gone; and what it takes while
we are busy waits for us, beside others who are idle.

When the process has no descriptor left the kernel's accept fails at once, and would fail
again at once: accepting pauses until a connection has closed, or a while has passed.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from uring_trio._kernel import CQE_F_MORE
from uring_trio.gain._address import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio.gain._listen import Listener
    from uring_trio.gain._worker import Worker

# Out of descriptors or memory: not the listener's fault, and over when something is closed.
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listener will never accept again.
FATAL = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
RETRY_S = 0.5  # after EXHAUSTED, if no connection of ours closes before
ACCEPT_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class Acceptor:
    """Accepts from one listener, and hands each connection on.

    Attributes:
      paused: nothing is armed: out of descriptors, or as many connections as are allowed.
    """

    reading = False
    task = None

    def __init__(
        self, worker: Worker, listener: Listener, assign: Callable[[Address], Worker] | None
    ) -> None:
        self.worker = worker
        self.listener = listener
        self.assign = assign
        self.slot = -1
        self.paused = True
        self._held: tuple[socket.socket, Address] | None = None  # accepted, and no room
        self._closed = False
        self._told = False  # that descriptors are used up
        sock = listener.sock
        self._fd = sock.fileno()
        self._kind = (sock.family, sock.type, sock.proto)
        self._local: Address | None = listener.address
        host = listener.address[0]
        if listener.network != "unix" and host in ("0.0.0.0", "::"):
            self._local = None  # known for each connection only

    # ---- armed, or not -------------------------------------------------------------------

    def arm(self) -> None:
        """Accept, unless it does or must not."""
        worker = self.worker
        if self._closed or self.slot >= 0:
            return
        # First this, then the look: who makes room on another thread looks after that.
        self.paused = True
        if self._held is not None and worker.may_accept():
            held, self._held = self._held, None
            self._hand_on(*held)
        if self._held is not None or not worker.may_accept():
            return
        slot = worker.manager.ring.accept_fd(self._fd, ACCEPT_FLAGS, 0)
        self.slot = worker.manager.start(self, slot)
        self.paused = False

    def close(self) -> None:
        """Stop; the listener is closed when the kernel has let go of it."""
        if self._closed:
            return
        self._closed = True
        self.worker.timers.cancel((self, "retry"))
        if self._held is not None:
            self._held[0].close()
            self._held = None
        if self.slot >= 0 and self.worker.manager.ring.cancel(self.slot) == 0:
            self.worker.manager.ops[self.slot] = None
            self.slot = -1
        if self.slot < 0:
            self._close_listener()

    def _close_listener(self) -> None:
        self.listener.close()
        self.worker.acceptor_closed(self)

    # ---- what came -----------------------------------------------------------------------

    def complete(self, res: int, flags: int, _offset: int) -> None:
        """Take a cqe, in the scheduler: the worker's turn does the rest."""
        if not flags & CQE_F_MORE:
            self.worker.manager.ops[self.slot] = None
            self.slot = -1
        self.worker.accepted.append((self, res))
        self.worker.wake()

    def accepted(self, res: int) -> None:
        """In the worker's turn: a descriptor, or an error."""
        if res >= 0:
            self._adopt(res)
        elif -res in EXHAUSTED:
            self._exhausted(-res)
            return
        elif -res in FATAL and not self._closed:
            self.worker.logger.error(
                "accepting on %s ended: %s", self.listener.address, os.strerror(-res)
            )
            self.close()
        if self._closed:
            if self.slot < 0:
                self._close_listener()
        else:
            self.arm()

    def _adopt(self, fd: int) -> None:
        sock = socket.socket(*self._kind, fileno=fd)
        network = self.listener.network
        try:
            remote = Address.from_sockaddr(network, sock.getpeername())
        except OSError:  # it was reset before it was accepted: nobody was told of it
            sock.close()
            return
        if self._closed:
            sock.close()
            return
        self._told = False
        self._hand_on(sock, remote)

    def _hand_on(self, sock: socket.socket, remote: Address) -> None:
        """Give a connection to its worker, or hold it until there is room."""
        worker = self._choose(remote)
        if not worker.claim():
            self._held = (sock, remote)
            return
        network = self.listener.network
        if worker is self.worker:
            worker.adopt(sock, network, self._local, remote)
        elif not worker.post(worker.adopt, sock, network, self._local, remote):
            worker.unclaim()
            sock.close()

    def _choose(self, remote: Address) -> Worker:
        if self.assign is None:
            return self.worker
        try:
            return self.assign(remote)
        except Exception:  # a balancer of the user's
            self.worker.logger.exception("the balancer raised; worker 0 serves %s", remote)
            return self.worker.peers[0]

    def _exhausted(self, error: int) -> None:
        if self._closed:
            if self.slot < 0:
                self._close_listener()
            return
        if self.slot >= 0:
            return  # still armed
        self.paused = True
        if not self._told:
            self._told = True
            self.worker.logger.error(
                "accepting on %s pauses: %s", self.listener.address, os.strerror(error)
            )
        self.worker.set_timer_in((self, "retry"), RETRY_S)

    def _timer_expired(self, _kind: Any) -> None:
        self.arm()
