"""What is known of each connection, from both of its sides, and what must be true of it.

Two threads write an account: that of the peers has what it has sent and how it has ended, the
server's has what its callbacks were told. Each field belongs to one of them. What is compared
is looked at only where nothing moves any more, or where it can only have grown meanwhile.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

from random_gain.faults import (
    Boom,
    BytesLost,
    NotTold,
    Unbounded,
    WrongBytes,
    WrongCounts,
    WrongEnd,
    WrongOrder,
)
from random_gain.patterns import WRITERS, pattern
from random_gain.rules import SLOWNESS
from uring_trio import gain

if TYPE_CHECKING:
    from random_gain.peers import StreamPeer
    from random_gain.rules import Rules

MIB = 1 << 20

# A turn's budget of input, which may come on top of `read_buffer_limit`; see docs/limits.md.
TURN_BYTES_MAX = MIB
# Reading stops with the tick, and what had come by then is told in the next.
CALLS_OVER_LIMIT_MAX = 3
# A clock is read before a deadline is set, and after it is over.
EARLY_S = 0.002
# Below this a handshake may take too long on a busy machine.
HANDSHAKE_S = 1.0 * SLOWNESS


class Account:
    """One connection: what its peer did, what its handler was told, and what follows.

    Attributes:
      number: its peer's, in the plan.
      rules: of the options, what the books depend on.
    """

    def __init__(self, number: int, rules: Rules) -> None:
        self.number = number
        self.rules = rules
        self.generation = 0  # of the server
        # Written by the peers' thread.
        self.peer: StreamPeer | None = None
        self.sent = 0  # bytes of its stream that the kernel has taken
        self.sent_at: list[tuple[float, int]] = []
        self.delivered_at: list[tuple[float, int]] = []  # with the server's kernel by then
        self.kept = 0  # of these, what certainly is with the server's kernel, if it resets
        self.end = ""  # how the peer has ended: "eof", "ragged", "close", "reset"
        self.gone = False  # its socket is closed
        self.stolen = False  # a stranger has it
        self.spoiled = False  # it has sent what is no TLS
        self.asked = 0  # what another thread has asked for, and was not called yet
        # Written by the handler's threads.
        self.conn: gain.Conn | None = None
        self.inside = ""  # the callback that runs
        self.history: list[str] = []
        self.taken = 0
        self.announced = 0
        self.known = 0  # bytes that were announced, or taken before
        self.buffered = 0  # when last looked at
        self.over_limit = 0  # calls of on_read in a row for what came above the limit
        self.limit = rules.read_buffer_limit
        self.limit_max = self.limit
        self.paused = False
        self.known_max = -1  # since reading has stopped: no more than this can be known; -1: it may
        self.next_number = [0] * WRITERS
        self.written = 0
        self.told_written = 0
        self.refused = False
        self.eof_told = self.eof_sent = False
        self.accepted_at = 0.0
        self.closing_at = 0.0
        self.aborted = False
        self.raised = False
        self.tasks = 0
        self.deadlines: dict[str, tuple[float, float, int]] = {}
        self.missed = False  # one was over when another was set in its place
        self.closed_at = 0.0
        self.close_over = False
        self.err: BaseException | None = None

    def __str__(self) -> str:
        return (
            f"connection {self.number} ({self.kind()}): {' '.join(self.history[-12:]) or 'nothing'}"
            f"; sent {self.sent}, known {self.known}, taken {self.taken}, buffered {self.buffered}"
            f"; written {self.written}, told {self.told_written}, received {self.received()}"
            f"; its peer's end: {self.end or 'none'}{', gone' * self.gone}"
            f"{', paused' * self.paused}{', closing' * bool(self.closing_at)}"
            f"{', aborted' * self.aborted}, limit {self.limit}"
        )

    def kind(self) -> str:
        return "?" if self.peer is None else self.peer.kind

    def received(self) -> int:
        return 0 if self.peer is None else self.peer.received()

    def moves(self) -> int:
        """A number that changes with whatever happens to it."""
        return self.sent + self.known + self.taken + self.received() + len(self.history)

    # ---- what its handler is told ----------------------------------------------------------

    def called(self, name: str, value: object = None) -> None:
        """A callback begins: it must be legal here."""
        if self.inside:
            raise WrongOrder(f"{name} inside {self.inside}: {self}")
        if self.closed_at:
            raise WrongOrder(f"{name} after on_close: {self}")
        if (name == "on_accept") is not (not self.history):
            raise WrongOrder(f"{name} behind {self.history[-1:]}: {self}")
        if name == "on_eof" and "on_eof" in self.history:
            raise WrongOrder(f"a second on_eof: {self}")
        if name == "on_read" and "on_eof" in self.history:
            raise WrongOrder(f"on_read behind on_eof: {self}")
        if name == "on_read" and self.ended_by_callback:
            raise WrongOrder(f"on_read behind close(): {self}")
        self.history.append(name)
        self.inside = name
        if name == "on_accept":
            self.accepted_at = time.monotonic()
        if name == "on_read":
            self.told_of(value)
        elif name == "on_write":
            self.told_written += self.positive(name, value)

    def returned(self) -> None:
        """It is over."""
        self.inside = ""

    def positive(self, name: str, value: object) -> int:
        if not isinstance(value, int) or value <= 0:
            raise WrongOrder(f"{name} of {value!r} bytes: {self}")
        return value

    def told_of(self, value: object) -> None:
        n = self.positive("on_read", value)
        self.look()
        self.announced += n
        # One that runs as a task begins a moment later, and others may take it by then.
        if n > self.buffered and (self.rules.only_callbacks or not self.rules.has_tasks):
            raise WrongOrder(f"on_read of {n} bytes, and {self.buffered} are there: {self}")
        if self.announced > self.taken + self.buffered:
            raise WrongBytes(f"{self.announced} bytes were announced in all: {self}")
        if self.buffered > self.limit_max + TURN_BYTES_MAX:
            raise Unbounded(f"{self.buffered} bytes of input are kept: {self}")
        # What the last call has left was at the limit, so that reading had stopped.
        self.over_limit = self.over_limit + 1 if self.buffered - n >= self.limit_max else 0
        if self.over_limit > CALLS_OVER_LIMIT_MAX:
            raise Unbounded(f"input still comes, {self.over_limit} calls over its limit: {self}")

    def look(self) -> None:
        """How much is there, on a thread that may ask."""
        assert self.conn is not None
        self.buffered = self.conn.inbound_buffered()
        self.known = max(self.known, self.taken + self.buffered)
        if 0 <= self.known_max < self.known:
            raise Unbounded(f"input of after reading had stopped has come: {self}")

    def stopped(self) -> bool:
        """Nothing moves: note that it does not read, if that is so; whether it is."""
        stops = self.paused or self.buffered >= self.limit
        if not stops or self.closed_at or self.ended_by_us or not self.accepted:
            return False
        if self.known_max < 0:
            # What has come by now may have been taken before it stopped.
            self.known_max = self.sent
        return True

    def goes_on(self) -> None:
        """Reading may."""
        self.known_max = -1

    def took(self, data: bytes) -> None:
        """A handler has consumed *data*."""
        self.check(data)
        self.goes_on()
        self.taken += len(data)
        self.buffered = max(0, self.buffered - len(data))
        self.known = max(self.known, self.taken)

    def check(self, data: bytes) -> None:
        """It is what comes next."""
        at = 0
        while at < len(data):
            part = data[at : at + MIB]
            if part != pattern(self.number, self.taken + at, len(part)):
                raise WrongBytes(f"wrong bytes at {self.taken + at}: {self}")
            at += len(part)

    def set_deadlines(self, kinds: tuple[str, ...], seconds: float | None) -> None:
        """Its user does; None: there are none any more."""
        now = time.monotonic()
        self.missed |= any(now >= at + s - EARLY_S for at, s, _ in self.deadlines.values())
        if seconds is None:
            self.deadlines.clear()
            return
        for kind in kinds:
            self.deadlines[kind] = (now, seconds, self.known)

    def wrote(self, writer: int, size: int) -> None:
        """A whole frame was taken."""
        self.next_number[writer] += 1
        self.written += size

    # ---- what follows ----------------------------------------------------------------------

    @property
    def accepted(self) -> bool:
        return bool(self.history)

    @property
    def ended_by_callback(self) -> bool:
        """A plain callback has ended it, so that nothing but on_write and on_close can follow."""
        return bool(self.closing_at or self.aborted) and self.rules.is_plain

    @property
    def ended_by_us(self) -> bool:
        return bool(self.closing_at or self.aborted or self.raised)

    def unsent(self) -> int:
        """Bytes that may be with the server still; not fewer than there are."""
        return self.written - max(self.told_written, self.received())

    def may_not_read(self) -> bool:
        """Something that is documented to stop reading may have done so."""
        return (
            self.paused
            or self.buffered >= self.limit
            or self.unsent() > self.rules.write_high_water // 4
        )

    def unsettled(self) -> str:
        """What is to happen yet, with nobody's help; "" if nothing is."""
        peer = self.peer
        if self.stolen or peer is None or peer.failed or self.generation != self.rules.generation:
            return ""
        if self.inside:
            return f"{self.inside} runs"
        if self.asked:
            return "what another thread has asked for was not called"
        if not self.accepted:
            # Also one that was reset in the kernel's queue is accepted, but where a handshake fails.
            fails = self.gone or bool(self.end) or self.rules.handshake_timeout < HANDSHAKE_S
            excused = peer.handshake_stalls() or self.spoiled
            excused = excused or (self.rules.tls and fails) or not peer.connected
            return "" if excused or self.rules.is_full() else "it is not accepted"
        if self.closed_at:
            if peer.is_reading() and not peer.saw_end:
                return "its peer is not told of the end"
            return ""
        if self.tasks:
            return "a task runs"
        if self.aborted or self.raised:
            return "it is not closed"
        may_go = peer.is_reading() or self.gone
        ended = bool(self.closing_at or self.refused or (self.eof_told and self.eof_sent))
        if ended and may_go:
            return "it has ended, and is not closed"
        if self.end == "reset" and peer.resets:
            return "its peer has reset it, and it is not closed"
        if self.closing_at:
            return ""
        return self._unsettled_input(peer) or self._unsettled_output(peer)

    def _unsettled_input(self, peer: StreamPeer) -> str:
        if self.may_not_read():
            stuck = self.buffered >= self.limit and not (
                self.paused or self.deadlines or self.eof_told
            )
            # Nobody takes any, and no more can come.
            if stuck and self.end and not self.unsent() and peer.has_delivered():
                return "its input is stuck, its peer has ended, and it is not closed"
            return ""
        if peer.may_be_at_urgent():
            return ""
        if self.known < self.sent:
            return "bytes have come that were not announced"
        # Without on_eof its connection closes, and on_close comes when all output is out.
        closes = not self.rules.tells_eof and self.unsent() and not peer.is_reading()
        if self.end and not (self.eof_told or closes or peer.pending):
            return "its peer has ended, and nobody was told"
        if peer.pending and not self.end:
            return "its peer cannot send, and it reads"
        return ""

    def _unsettled_output(self, peer: StreamPeer) -> str:
        if peer.is_reading() and not peer.saw_end and self.written > peer.received():
            return "what was written does not arrive"
        return ""

    # ---- at the end ------------------------------------------------------------------------

    def verify(self) -> None:
        """The server has ended, and all that its peer could receive has been."""
        if self.stolen or not self.accepted:
            return
        if not self.closed_at or not self.close_over:
            raise NotTold(f"on_close has not {'ended' if self.closed_at else 'come'}: {self}")
        if self.known > self.sent:
            raise WrongBytes(f"more was received than sent: {self}")
        self._verify_error()
        self._verify_input()
        self._verify_output()

    def _verify_error(self) -> None:
        err = self.err
        end_of_peer = bool(self.end)
        now = self.closed_at
        if err is None:
            fine = self.closing_at or self.aborted or self.rules.stopped(self.generation, now)
        elif isinstance(err, Boom):
            fine = self.raised
        elif isinstance(err, gain.EndOfStream):
            fine = end_of_peer
        elif isinstance(err, ssl.SSLError):
            fine = self.rules.is_tls(self) and (
                self.end in ("ragged", "close", "reset") or self.spoiled
            )
        elif isinstance(err, gain.DeadlineExceeded):
            fine = self._deadline_was_over(now)
        elif type(err).__name__ == "StuckInput":
            fine = self.buffered >= self.limit and not self.paused
        elif isinstance(err, ConnectionError):
            fine = self.gone and self._may_be_reset()
        elif isinstance(err, TimeoutError):
            closed = self.closing_at and now - self.closing_at >= self.rules.close_timeout
            fine = closed or self.eof_told or self.rules.stopped(self.generation, now)
        else:
            fine = False
        if not fine:
            raise WrongEnd(f"on_close of {err!r}: {self}") from err

    def _may_be_reset(self) -> bool:
        """Whether its peer, which has gone, has sent a reset, or answered with one."""
        peer = self.peer
        assert peer is not None
        if peer.resets or self.end == "reset" or self.rules.is_tls(self):
            return True  # TLS has words of its own at an end, which come too late as well
        return peer.left_unread or self.written > peer.received()

    def _deadline_was_over(self, now: float) -> bool:
        # A handshake is over before on_accept, or begins there.
        begins = self.peer is not None and self.peer.kind == "start_tls"
        if begins and now - self.accepted_at >= self.rules.handshake_timeout - EARLY_S:
            return True
        due = {kind: t + s for kind, (t, s, _) in self.deadlines.items() if now >= t + s - EARLY_S}
        if self.missed or set(due) != {"read"} or self.rules.is_tls(self) or self.may_not_read():
            return self.missed or bool(due)
        # Met by what comes, be it that a callback keeps it from being told.
        at, _, known = self.deadlines["read"]
        before = [sent for t, sent in self.delivered_at if t < due["read"] - EARLY_S]
        came = bool(before) and before[-1] > known and any(t > at for t, _ in self.sent_at)
        return not came

    def _verify_input(self) -> None:
        err = self.err
        ended = isinstance(err, gain.EndOfStream) or (self.eof_told and err is None)
        if ended and self.known != self.sent:
            raise BytesLost(f"the end was told before all input was: {self}")
        # What had come before a reset is input like any other, if it reads.
        cut = isinstance(err, ConnectionError)
        cut = cut and not self.rules.stopped(self.generation, self.closed_at)
        if cut and self.known < self.kept and not (self.ended_by_us or self.may_not_read()):
            raise BytesLost(f"{self.kept} bytes had come before the reset: {self}")

    def _verify_output(self) -> None:
        peer = self.peer
        assert peer is not None
        received = peer.received()
        if received > self.written:
            raise WrongBytes(f"more was received than written: {self}")
        if not self.rules.tells_written:
            told = self.written
        else:
            told = self.told_written
        if told > self.written:
            raise WrongCounts(f"on_write has told of more than was written: {self}")
        if received > told and not self.rules.was_aborted(self.generation):
            raise WrongCounts(f"on_write has told of less than has arrived: {self}")
        graceful = self.err is None or isinstance(self.err, gain.EndOfStream)
        whole = graceful and not self.aborted and not self.rules.was_aborted(self.generation)
        if not whole:
            return
        if told != self.written:
            raise WrongCounts(f"it was flushed, and on_write has not told of all: {self}")
        if peer.saw_end == "eof" and received != self.written:
            raise BytesLost(f"its peer has seen the end, and not all before it: {self}")
