"""A UDP socket of a worker: datagrams in, one callback each; datagrams out.

A one-shot poll on the ring tells when there is something to receive; then recvfrom(2) takes
at most `RECEIVES_MAX` datagrams in a turn, into one buffer that is large enough for any. A
receive on the ring would need a message, an address and 64 KiB for each operation in flight,
and tells of a datagram no sooner. Sending is sendto(2) at once: a datagram waits only if the
socket's send buffer is full, in a queue with a bound, and then a poll tells when to go on.
Each call says that it does not wait: what the file says is for everybody who shares it to
change.

A socket that is bound to every address answers from the one that was asked (`_came_to`),
which costs a recvmsg and a sendmsg in place of recvfrom and sendto.

ICMP errors: with IP_RECVERR the kernel keeps them in a queue of the socket, with the address
they are about. Each also makes the next call on the socket fail, whomever it is for. So a
call that failed is tried again if it was not to blame, that is, if there were errors in the
queue; they are logged, and end nothing. Where the receive buffer is full the kernel queues none,
and has the next call fail all the same, once: so a call is to blame if it fails twice in the same
way, with nothing in the queue.

A poll reports errors whether or not it was asked to, for as long as the queue holds any. So
everything is taken out of it, also what is no error: times of what was sent, and completions
of zero-copy sends, where somebody has asked the socket for them.

    OPEN --stop--> STOPPED --close--> CLOSING --release--> CLOSED
      +--------------close---------------^

STOPPED receives nothing, sends what waits, and lets callbacks end; CLOSING drops what waits.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import struct
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import trio

from uring_trio._addresses import unpack, unpack_control
from uring_trio._beside import (
    Name,
    checked,
    setsockopt,
    try_recv_from,
    try_recvmsg,
    try_send_to,
    try_send_with,
)
from uring_trio._fast_ways import FAST
from uring_trio._kernel import EAGAIN, ECANCELED, POLLERR, POLLIN, POLLOUT
from uring_trio._memory import CallMemory
from uring_trio.gain._address import Address
from uring_trio.gain._came_to import INFO_SIZE, came_to, is_every_address
from uring_trio.gain._errors import BaseExceptionGroup, parted
from uring_trio.gain._halves import Inbound, Table, quick, step
from uring_trio.gain._life import NEXT_HOLDER, NOBODY, Holder, HolderEvent, Way

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable

    from uring_trio._memory import Message
    from uring_trio._slots import Slots
    from uring_trio.gain._callbacks import Host
    from uring_trio.gain._came_to import CameTo
    from uring_trio.gain._config import Config
    from uring_trio.gain._engine import Clock
    from uring_trio.gain._listen import Listener

# How many references to an object there are.
getrefcount = sys.getrefcount

BUFFER_SIZE = 65_535  # bytes; no datagram of either family is longer
RECEIVES_MAX = 64  # in one turn: a flood must not keep the worker from its connections
SENDS_MAX = 64  # from the queue, in one turn
QUEUE_LENGTH_MAX = 1024  # datagrams that wait to be sent: empty ones have no bytes to count
# Callbacks that run as tasks or wait for a thread. Beyond it nothing is received, and the
# kernel drops what does not fit into its buffer: at most 16 MiB of datagrams are held.
CALLBACKS_MAX = 256
# A poll may tell of input, and there is none: a datagram with a wrong checksum, or somebody
# who shares the socket was faster, or has shut it down (and then it tells so for ever). After
# so many times in a row receiving rests for so many seconds, which nobody notices.
IN_VAIN_MAX = 100
REST_S = 0.032
ERRORS_MAX = 64  # taken from the queue of errors at once
ATTEMPTS = 4  # to send, each but the last ended by somebody else's error
NO_FLAGS = 0
LOG_INTERVAL_S = 1.0  # between two lines about errors: whoever causes them must not fill a disk

# Python names these from 3.14 on; linux/in.h, linux/in6.h.
IP_RECVERR = 11
IPV6_RECVERR = 25
# linux/errqueue.h, struct sock_extended_err: errno, origin, type, code, pad, info, data
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
ANCILLARY_SIZE = 512
ERROR_ORIGINS = (1, 2, 3)  # SO_EE_ORIGIN_LOCAL, _ICMP, _ICMP6


@quick
class SocketState(enum.IntEnum):
    """Where a socket stands."""

    OPEN = 0
    STOPPED = 1
    CLOSING = 2  # the kernel may have polls of it
    CLOSED = 3


@quick
class SocketEvent(enum.IntEnum):
    """What moves it on."""

    STOP = 0  # a shutdown
    CLOSE = 1  # nothing is left to be done, or is to be done any more
    RELEASE = 2  # the kernel has no poll of it


OPEN, NOBODY_HAS = SocketState.OPEN, Holder.NOBODY
_S = SocketState
NEXT_SOCKET: Table[SocketState] = {
    #            STOP        CLOSE       RELEASE
    _S.OPEN: (_S.STOPPED, _S.CLOSING, None),
    _S.STOPPED: (_S.STOPPED, _S.CLOSING, None),
    _S.CLOSING: (_S.CLOSING, _S.CLOSING, _S.CLOSED),
    _S.CLOSED: (_S.CLOSED, _S.CLOSED, None),
}


class Workplace(Protocol):
    """The worker that has them; see `_worker`."""

    slots: Slots
    nursery: trio.Nursery
    thread: int | None
    config: Config

    @property
    def callbacks(self) -> Any: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def logger(self) -> logging.Logger: ...

    @property
    def turn(self) -> Any: ...

    @property
    def calls(self) -> deque[tuple[Callable[..., Any], tuple[Any, ...]]]: ...

    def wake(self) -> None: ...

    def post(self, fn: Callable[..., Any], *args: Any) -> bool: ...

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None: ...

    def tell(
        self, host: Host, name: str, function: Callable[..., Any] | None, *args: Any
    ) -> None: ...


class Watch:
    """A one-shot poll of the socket; tells the worker in its turn."""

    # As an occupant of a slot: no task sleeps on it.
    reading = False
    task = None

    def __init__(
        self, worker: Workplace, fd: int, events: int, tell: Callable[[int], None]
    ) -> None:
        self._worker = worker
        self._fd = fd
        self._events = events
        self._tell = tell
        self.slot = -1

    def arm(self) -> None:
        """Watch, unless it does already."""
        if self.slot < 0:
            slots = self._worker.slots
            self.slot = slots.enter(self, slots.ring.poll(self._fd, self._events, 0))

    def disarm(self) -> None:
        """Stop watching; the slot is -1 once the kernel has let go of the file."""
        if self.slot >= 0 and self._worker.slots.withdraw(self.slot):
            self.slot = -1

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """Take the cqe, in the scheduler: the worker's turn does the rest."""
        self.slot = -1
        self._worker.calls.append((self._tell, (res,)))
        self._worker.wake()

    def lose(self) -> None:
        """The run is over: nobody is told."""

    def dispose(self, res: int) -> None:
        """It brings nothing."""

    def release(self) -> None:
        """It has no memory in the kernel."""


class Datagram:
    """One datagram of a socket, as long as anybody has it or an ``on_write`` is due.

    Attributes:
      conn: what its handler has of it, from an answer on of which an on_write is to tell. Else
        it is the handler's alone: a cycle would keep each datagram for the collector.
      inbound: what is in it.
      peer: who has sent it, as the kernel takes it: an Address is made when it is asked for.
      came_to: where, if the socket has every address.
      unsent: bytes of its answers that wait in the socket's queue.
      ready: it stands in the list of those that the worker's turn comes to.
    """

    __slots__ = (
        "_due_bytes",
        "_holder",
        "_kept",
        "_thread",
        "came_to",
        "conn",
        "inbound",
        "peer",
        "ready",
        "socket",
        "unsent",
        "worker",
    )

    # In the worker's turn there is no short way for it.
    way = Way.SETTLED

    def __init__(
        self,
        datagrams: DatagramSocket,
        data: bytes,
        peer: bytes,
        came_to: CameTo | None,
    ) -> None:
        self.socket = datagrams
        self.inbound = Inbound(data, len(data) + 1)
        self.inbound.lease(data, 0, len(data))
        self.worker = datagrams.worker
        self.peer = peer
        self.came_to = came_to
        self.unsent = 0
        self.ready = False
        self._holder = NOBODY_HAS
        self._thread = NOBODY  # that has it
        self._kept: list[tuple[Any, tuple[Any, ...]]] | None = None  # until a thread is done
        self._due_bytes = -1  # bytes that the next on_write tells of; -1: none is due
        self.conn: Any = None

    def use_again(self, data: bytes, size: int, peer: bytes, came_to: CameTo | None) -> None:
        """Begin anew, as the next one: nobody has kept it."""
        self.peer = peer
        self.came_to = came_to
        self.inbound.begin_anew(data, size)

    def name(self) -> str:
        """For logs."""
        return f"datagram from {address_of(self.peer)!s}"

    # ---- who may use it ------------------------------------------------------------------

    @property
    def user(self) -> int:
        """The thread that may; 0: none any more."""
        if self._holder is NOBODY_HAS:
            return self.socket.thread
        return self._thread if self._holder >= Holder.POOL else self.socket.thread

    @property
    def whose(self) -> int:
        """The thread that may ask, also once it is over."""
        return self._thread if self._holder >= Holder.POOL else self.socket.home

    @property
    def is_lent(self) -> bool:
        """Whether a thread has it, or is to."""
        return self._holder is not NOBODY_HAS and self._holder >= Holder.POOL

    # ---- callbacks -----------------------------------------------------------------------

    def raised(self, name: str, exc: BaseException) -> None:
        """A callback or a task of it raised."""
        self.worker.logger.error(
            "%s raised: %s", name, self.name(), exc_info=(type(exc), exc, exc.__traceback__)
        )

    def begin_elsewhere(self, *, in_thread: bool) -> None:
        """A callback begins that is no plain call."""
        self.socket.callback_began()
        event = HolderEvent.LEND if in_thread else HolderEvent.TASK
        self._holder = step(NEXT_HOLDER, self._holder, event)

    def borrow(self, thread: int) -> bool:
        """In a thread: begin."""
        self._thread = thread
        self._holder = step(NEXT_HOLDER, self._holder, HolderEvent.BORROW)
        return True

    def may_tell(self, _name: str) -> bool:
        """Whether there is what a callback is to be told of: it is there as a whole."""
        return self.user != 0

    def ended_elsewhere(self, name: str, exc: Exception | None) -> None:
        """It is over."""
        self._holder = step(NEXT_HOLDER, self._holder, HolderEvent.RETURN)
        self._thread = NOBODY
        if exc is not None:
            self.raised(name, exc)
        kept, self._kept = self._kept, None
        for fn, args in kept or ():
            self.worker.call(fn, args)
        self.socket.callback_ended()
        if self._due_bytes >= 0:
            self.attend()

    def call(self, fn: Callable[..., Any], *args: Any) -> None:
        """What another thread has asked for; while a thread has the datagram it waits."""
        if not self.is_lent:
            self.worker.call(fn, args)
        elif self._kept is None:
            self._kept = [(fn, args)]
        else:
            self._kept.append((fn, args))

    async def run_task(
        self, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        """One of its user's."""
        try:
            await async_fn(*args)
        except Exception as exc:  # noqa: BLE001  the user's own code
            self.raised("a task", exc)
        except BaseExceptionGroup as group:
            raised, rest = parted(group)
            if raised is not None:
                self.raised("a task", raised)
            raise rest from None

    # ---- what the socket has done --------------------------------------------------------

    def tell_of(self, conn: Any) -> None:
        """What its handler has of it, for an on_write."""
        self.conn = conn

    def took(self) -> None:
        """Its user has consumed input: nobody waits for that."""

    def queued(self, size: int) -> None:
        """An answer waits."""
        self.unsent += size

    def unqueued(self, size: int) -> None:
        """It does no longer."""
        self.unsent -= size

    def sent(self, size: int) -> bool:
        """The kernel has one of its answers; whether an on_write is due that was not before."""
        first = self._due_bytes < 0
        self._due_bytes = max(self._due_bytes, 0) + size
        return first

    def attend(self) -> None:
        """Have it settled, in the worker's turn."""
        if not self.ready:
            self.ready = True
            self.worker.turn.attend(self)

    def settle(self) -> None:
        """In the worker's turn: tell of what the kernel has taken."""
        # Not where it was aborted.
        if self._due_bytes >= 0 and self._holder is Holder.NOBODY and self.user:
            written, self._due_bytes = self._due_bytes, -1
            worker = self.worker
            worker.tell(self, "on_write", worker.callbacks.on_write, self.conn, written)
            self.socket.paid()


class DatagramSocket:
    """Receives and sends on one bound socket, which is its own from now on.

    Attributes:
      home: the worker's thread.
      thread: who may use its datagrams; 0 once it closes.
      dropped: datagrams that were to be sent, and were not.
      queued: bytes that wait to be sent.
    """

    def __init__(self, worker: Workplace, listener: Listener) -> None:
        assert worker.thread is not None
        self.worker = worker
        self.listener = listener
        self.thread = worker.thread
        self.home = worker.thread
        self.dropped = 0
        self.queued = 0
        self._fd = listener.sock.fileno()
        self._memory = CallMemory()
        block = self._memory.memory(BUFFER_SIZE)
        self._block = block.c, block.view(BUFFER_SIZE)
        self._peer = Name()  # of the datagram in it
        self._message: Message | None = None  # in place of these, with where it came to
        if is_every_address(listener.address):
            self._message = self._memory.message(control_size=INFO_SIZE, data_size=BUFFER_SIZE)
        # The last one of the queue of errors.
        self._error = self._memory.message(control_size=ANCILLARY_SIZE)
        self._queue: deque[tuple[Datagram, bytes, bytes, CameTo | None]] = deque()
        self._state = SocketState.OPEN
        self._receiving = False  # in the loop that receives
        self._callbacks = 0  # that run elsewhere
        self._spare: tuple[Datagram, Any] | None = None  # that nobody has kept; and its conn
        is_plain = not (worker.config.async_handler or worker.callbacks.is_async("on_read"))
        # The handler's, where it is a plain call.
        self._on_read = worker.callbacks.on_read if FAST and is_plain else None
        self._owing = 0  # datagrams that were sent and whose on_write is due
        self._in_vain = 0  # times in a row that a poll has told of nothing
        self._logged_at = -LOG_INTERVAL_S
        self._unlogged = 0
        self._input = Watch(worker, self._fd, POLLIN, self._readable)
        self._output = Watch(worker, self._fd, POLLOUT, self._writable)

    def __repr__(self) -> str:
        return f"<DatagramSocket {self.listener.address!s}>"

    @property
    def closed(self) -> bool:
        """Whether the kernel has let go of it, and so have we."""
        return self._state is SocketState.CLOSED

    @property
    def operations_in_flight(self) -> int:
        """Polls whose cqe has not been seen."""
        return (self._input.slot >= 0) + (self._output.slot >= 0)

    # ---- beginning and end ---------------------------------------------------------------

    def start(self) -> None:
        """Begin to receive."""
        options = [(socket.IPPROTO_IP, IP_RECVERR)]
        if self.listener.sock.family == socket.AF_INET6:  # also for IPv4 peers the first one
            options.append((socket.IPPROTO_IPV6, IPV6_RECVERR))
        for level, option in options:
            with contextlib.suppress(OSError):  # errors stay unseen then
                setsockopt(self._fd, level, option, 1)
        self._input.arm()

    def begin_shutdown(self) -> None:
        """Stop receiving, let callbacks end, send what waits, and then close."""
        self._step(SocketEvent.STOP)
        self.worker.clock.cancel((self, "retry"))
        self._input.disarm()
        self._close_when_idle()

    def close(self) -> None:
        """Close at once: what waits to be sent is dropped."""
        self._spare = None
        self._step(SocketEvent.CLOSE)
        self.thread = 0
        self.dropped += len(self._queue)
        for datagram, data, _, _ in self._queue:
            datagram.unqueued(len(data))
        self._queue.clear()
        self.queued = 0
        self.worker.clock.cancel((self, "retry"))
        self._input.disarm()
        self._output.disarm()
        self._close_when_released()

    def _close_when_idle(self) -> None:
        busy = self._queue or self._callbacks or self._owing
        if self._state is SocketState.STOPPED and not busy:
            self.close()

    def _close_when_released(self) -> None:
        if self._state is SocketState.CLOSING and not self.operations_in_flight:
            self._step(SocketEvent.RELEASE)
            self.listener.close()
            self._memory.free()
            self.worker.wake()

    def _step(self, event: SocketEvent) -> None:
        self._state = step(NEXT_SOCKET, self._state, event)

    # ---- receiving -----------------------------------------------------------------------

    def _readable(self, res: int) -> None:
        """In the worker's turn: the poll is over."""
        if self._is_over(res):
            return
        received = self._take_errors() if res & POLLERR else 0
        if self._state is SocketState.OPEN:
            self._receiving = True
            try:
                received += self._receive()
            finally:
                self._receiving = False
        self._in_vain = 0 if received else self._in_vain + 1
        if self._in_vain > IN_VAIN_MAX:
            self.worker.clock.set_in((self, "retry"), REST_S)
        else:
            self._watch_input()

    def _timer_expired(self, _kind: Any) -> None:
        self._watch_input()

    def _is_over(self, res: int) -> bool:
        """Whether a poll has ended without telling what to do."""
        if self._state >= SocketState.CLOSING:
            self._close_when_released()
        elif res < 0 and res != ECANCELED:
            # Somebody has closed the descriptor: nothing can be received or sent any more.
            self.worker.logger.error(
                "%s cannot be watched and is closed: %s", self, os.strerror(-res)
            )
            self.close()
        return self._state >= SocketState.CLOSING

    def _receive(self) -> int:
        """Take what is there, up to a bound; how often something was."""
        fd, (memory, view), message = self._fd, self._block, self._message
        name = self._peer
        source: CameTo | None = None
        worker = self.worker
        turn = worker.turn
        on_read, plain_on_read = worker.callbacks.on_read, self._on_read
        for count in range(RECEIVES_MAX):
            if self._callbacks >= CALLBACKS_MAX or self._state is not SocketState.OPEN:
                return count
            if message is None:
                size = try_recv_from(fd, memory, BUFFER_SIZE, NO_FLAGS, name.c)
            else:
                size = try_recvmsg(fd, message, NO_FLAGS)
            if size == EAGAIN:
                return count
            if size < 0:
                if not self._take_errors():
                    self._complain("receiving failed: %s", os.strerror(-size))
                continue
            turn.count_in(size)
            if on_read is None:
                continue
            if message is None:
                data, peer = view[:size], name.packed
            else:
                data = message.data(size)
                peer, control, _ = message.result()
                source = came_to(control, self.listener.address[1])
            if plain_on_read is not None:
                self._tell_plainly(plain_on_read, data, size, peer, source)
                continue
            datagram = Datagram(self, data, peer, source)
            worker.tell(datagram, "on_read", on_read, worker.callbacks.datagram(datagram), size)
        return RECEIVES_MAX

    def _tell_plainly(
        self,
        on_read: Callable[[Any, int], object],
        data: bytes,
        size: int,
        peer: bytes,
        source: CameTo | None,
    ) -> None:
        """Call a handler that is a plain call, with objects that the last one has not kept.

        To make them is a quarter of an echo's instructions. Whoever keeps a datagram, in a
        variable, a task or a queue, holds its objects, so their references are counted. One with
        a context or a weak reference is its user's, too.
        """
        spare, self._spare = self._spare, None
        if spare is None:
            datagram = Datagram(self, data, peer, source)
            conn = self.worker.callbacks.datagram(datagram)
        else:
            datagram, conn = spare
            spare = None
            datagram.use_again(data, size, peer, source)
        held, conn_held = getrefcount(datagram), getrefcount(conn)
        try:
            on_read(conn, size)
        except Exception as exc:  # noqa: BLE001 - logged
            datagram.raised("on_read", exc)
        if (
            self._state is OPEN
            and datagram.conn is None
            and conn.context is None
            and conn.__weakref__ is None
            and getrefcount(datagram) == held
            and getrefcount(conn) == conn_held
        ):
            self._spare = datagram, conn

    def _watch_input(self) -> None:
        if self._state is SocketState.OPEN and self._callbacks < CALLBACKS_MAX:
            self._input.arm()

    # ---- sending -------------------------------------------------------------------------

    def reply(self, conn: Any, datagram: Datagram, data: bytes) -> int:
        """Send to a peer that we have not chosen: if that is impossible it is logged."""
        peer, source = datagram.peer, datagram.came_to
        if self.worker.callbacks.on_write is not None:
            datagram.tell_of(conn)
        elif (
            FAST
            and source is None
            and not self._queue
            and self._state is OPEN
            and datagram._holder is NOBODY_HAS
        ):
            # What follows, flat; which tries again what is refused, and finds out why.
            size = len(data)
            if try_send_to(self._fd, data, size, NO_FLAGS, peer, len(peer)) >= 0:
                self.worker.turn.count_out(size)
                return size
        if datagram.is_lent:
            self.worker.post(self._reply, datagram, data, peer, source)
        else:
            self._reply(datagram, data, peer, source)
        return len(data)

    def send(self, conn: Any, datagram: Datagram, data: bytes, peer: bytes) -> int:
        """Send, or queue, or drop; the size.

        Raises:
          OSError: the kernel refuses it at once; for a callback in a thread it is logged.
        """
        if self.worker.callbacks.on_write is not None:
            datagram.tell_of(conn)
        if datagram.is_lent:
            self.worker.post(self._reply, datagram, data, peer, None)
        else:
            self._send(datagram, data, peer, None)
        return len(data)

    # What follows is for the worker's thread alone, also where another one has the datagram.

    def _reply(self, datagram: Datagram, data: bytes, peer: bytes, source: CameTo | None) -> None:
        if self._state >= SocketState.CLOSING:  # since it was posted
            self.dropped += 1
            return
        try:
            self._send(datagram, data, peer, source)
        except OSError as exc:
            self._lose(peer, exc)

    def _send(self, datagram: Datagram, data: bytes, peer: bytes, source: CameTo | None) -> None:
        if self._queue:
            self._enqueue(datagram, data, peer, source)
            return
        try:
            self._send_now(data, peer, source)
        except BlockingIOError:
            self._enqueue(datagram, data, peer, source)
        else:
            self._sent(datagram, len(data))

    def _send_now(self, data: bytes, peer: bytes, source: CameTo | None) -> None:
        before = 0
        for attempt in range(ATTEMPTS):
            if source is None:
                sent = try_send_to(self._fd, data, len(data), NO_FLAGS, peer, len(peer))
            else:
                told = source.control
                sent = try_send_with(self._fd, data, len(data), peer, len(peer), told, len(told))
            if sent >= 0:
                return
            taken = self._take_errors() if sent != EAGAIN else 0
            to_blame = not taken and sent in (EAGAIN, before)
            if to_blame or attempt == ATTEMPTS - 1:
                checked(sent)
            before = sent

    def _enqueue(self, datagram: Datagram, data: bytes, peer: bytes, source: CameTo | None) -> None:
        high_water = self.worker.config.write_high_water
        if self.queued >= high_water or len(self._queue) >= QUEUE_LENGTH_MAX:
            self.dropped += 1
            return
        self._queue.append((datagram, data, peer, source))
        self.queued += len(data)
        datagram.queued(len(data))
        self._output.arm()

    def _writable(self, res: int) -> None:
        """In the worker's turn: the poll is over."""
        if self._is_over(res):
            return
        if res & POLLERR:
            self._take_errors()
        for _ in range(SENDS_MAX):
            if not self._queue:
                break
            datagram, data, peer, source = self._queue[0]
            try:
                self._send_now(data, peer, source)
            except BlockingIOError:
                break
            except OSError as exc:
                self._lose(peer, exc)
            else:
                self._sent(datagram, len(data))
            self._queue.popleft()
            self.queued -= len(data)
            datagram.unqueued(len(data))
        if self._queue:
            self._output.arm()
        self._close_when_idle()

    def _sent(self, datagram: Datagram, size: int) -> None:
        """The kernel has a datagram; on_write is told in the worker's turn."""
        worker = self.worker
        worker.turn.count_out(size)
        if worker.callbacks.on_write is None:
            return
        if not datagram.sent(size):
            return
        self._owing += 1
        if self._receiving:
            datagram.attend()
        else:
            # Not in this turn: two on_write that write to each other would never end it.
            worker.calls.append((datagram.attend, ()))
            worker.wake()

    def _lose(self, peer: bytes, exc: OSError) -> None:
        self.dropped += 1
        self._complain("sending to %s failed: %s", address_of(peer), exc)

    # ---- callbacks that run elsewhere ----------------------------------------------------

    def callback_began(self) -> None:
        """One more runs as a task or in a thread."""
        self._callbacks += 1

    def callback_ended(self) -> None:
        """One is over; what it wrote in a thread may still be on its way here."""
        self.worker.calls.append((self._callback_over, ()))
        self.worker.wake()

    def _callback_over(self) -> None:
        self._callbacks -= 1
        self._watch_input()
        self._close_when_idle()

    def paid(self) -> None:
        """An on_write that was due has been called."""
        self._owing -= 1
        self._close_when_idle()

    # ---- errors --------------------------------------------------------------------------

    def _take_errors(self) -> int:
        """Empty the queue of errors, up to a bound; how many there were."""
        for count in range(ERRORS_MAX):
            if try_recvmsg(self._fd, self._error, socket.MSG_ERRQUEUE) < 0:
                return count  # EAGAIN: there are no more
            peer, control, _ = self._error.result()
            for level, kind, data in unpack_control(control):
                if (level, kind) in (
                    (socket.IPPROTO_IP, IP_RECVERR),
                    (socket.IPPROTO_IPV6, IPV6_RECVERR),
                ):
                    error, origin, *_ = _EXTENDED_ERROR.unpack_from(data)
                    if origin not in ERROR_ORIGINS:
                        continue
                    about = address_of(peer) if peer else "an unknown peer"
                    self._complain("ICMP error about %s: %s", about, os.strerror(error))
        return ERRORS_MAX

    def _complain(self, message: str, *args: Any) -> None:
        """Log, but not more than a line each `LOG_INTERVAL_S`."""
        now = trio.current_time()
        if now - self._logged_at < LOG_INTERVAL_S:
            self._unlogged += 1
            return
        more = f" (and {self._unlogged} errors before)" if self._unlogged else ""
        self._logged_at = now
        self._unlogged = 0
        self.worker.logger.warning(f"%s: {message}{more}", self.listener.address, *args)


def address_of(peer: bytes) -> Address:
    """The address of a packed sockaddr."""
    return Address.from_sockaddr("udp", unpack(peer))
