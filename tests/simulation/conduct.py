"""The books of conduct: was what a program asked of the simulated kernel justified?

The kernel writes down all that happens, in virtual time: each request that it takes, each try,
each wake-up and each cqe. So what an operation may ask for can be counted, and how long it may
take can be measured, and neither depends on the machine. What is held here is what ladder.c and
line.c promise, seen from the kernel's side:

- *Attempts.* An operation is tried again for a reason: a wake-up from outside, an answer to
  another of its line, or a pause that is over; pauses double, from 1 to 32 ms. A wake-up that its
  own try has made (an echo) is no reason.
- *Watches.* One is armed once, which the kernel itself holds; and it is not armed anew because of
  its own end, before its operation has been told something else.
- *Pauses.* A wake-up cuts a pause that is older than its half: at once; and no timeout is asked
  for that is taken back with the next breath, in the same enter.
- *Lines.* Whom one UNIX receiver refuses does not pause for himself, and when one of them has his
  answer, two others have their turn at once.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NamedTuple

from simulation.build import load
from simulation.faults import NotAsleep, TooLate, require
from simulation.trace import CANCEL, EVENT, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MORE = 2  # IORING_CQE_F_MORE
POLL_ADD, TIMEOUT, ASYNC_CANCEL = 6, 11, 14
NOTHING = -1
REFUSALS = (-errno.EAGAIN, -errno.EINPROGRESS, -errno.EALREADY)

# Without any reason: a try, one after its poll, those after what its watch and two looks tell at
# once; and the first pauses, which are short, twice (they begin anew after a sleep).
ATTEMPTS_MAX = 16
# An operation that is refused for as long as it lives; 32 ms at last, 16 on the way.
ATTEMPT_EVERY_NS = 12_000_000
# An answer lets two others try, and has the line's pauses begin anew.
ATTEMPTS_AN_ANSWER = 8
AT_ONCE_NS = 300_000  # less than the shortest pause
TURNS = 2
OWN_PAUSES_MAX = 2
BEFORE_LINE = 2  # attempts: the first, and one after its poll


class Operation:
    """One operation of the product's, as the kernel sees it."""

    def __init__(self, now_ns: int, fd: int) -> None:
        self.began_ns = self.seen_ns = now_ns
        self.fd = fd
        self.request = NOTHING  # of its own, in the kernel: its opcode
        self.attempts = self.wakes = self.pauses = 0
        self.is_refused = self.is_over = False
        self.old_ns = 0  # when its pause is no longer young
        self.change_ns = 0  # when a change came that cuts it
        self.watch_ended = False
        self.pause_enter = NOTHING  # in which enter its pause was asked for, and
        self.is_taken_back = False  # whether it was cancelled in that one
        self.is_ended = False  # its pause was cancelled, and the kernel may be late to say so


class Turns(NamedTuple):
    """What one answer in a line has others have.

    Attributes:
      now_ns: when it came.
      waiting: who stood in the line for certain, and
      unsure: who may have, but may also have left it without a word to the kernel.
      had: those of both who have had a turn since.
    """

    now_ns: int
    waiting: set[int]
    unsure: set[int]
    had: set[int]


class Conduct:
    """What all operations of a run have done."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.operations: dict[int, Operation] = {}
        self.trying = NOTHING
        self.enters = 0
        self.answers = 0
        self.cuts: set[int] = set()
        self.turns: list[Turns] = []
        lib = load()[1]
        self.events: dict[int, Callable[[int, int, int, int, int], None]] = {
            lib.SIM_NOTE_ENTERED: self.entered,
            lib.SIM_NOTE_TAKEN: self.taken,
            lib.SIM_NOTE_TRIED: self.tried,
            lib.SIM_NOTE_WOKEN: self.woken,
            lib.SIM_NOTE_POSTED: self.posted,
            lib.SIM_NOTE_SLEPT: self.pass_to,
        }

    def members(self) -> Iterator[tuple[int, Operation]]:
        """Those of the crowd that wait for their turn.

        One whose watch has ended may be none: it leaves the line without a word to the kernel
        when its task is cancelled.
        """
        for token, op in self.operations.items():
            is_here = op.fd in self.world.crowd_fds and op.attempts > BEFORE_LINE
            if is_here and op.is_refused and op.request == NOTHING:
                yield token, op

    # ---- what happens --------------------------------------------------------------------

    def entered(self, _now: int, _token: int, _fd: int, _a: int, _b: int) -> None:
        self.enters += 1

    def taken(self, now: int, token: int, fd: int, opcode: int, said: int) -> None:
        key = token & ~(CANCEL | WATCH)
        if opcode == ASYNC_CANCEL:
            if not token & WATCH:
                self.cuts.discard(key)
                op = self.operations.get(key)
                if op is not None and op.request == TIMEOUT:
                    op.is_ended = True
                    op.is_taken_back = op.pause_enter == self.enters
            elif key in self.operations:
                self.operations[key].is_refused = False  # it is cancelled, or has its answer
            self.has_turn(key)
            return
        if opcode == TIMEOUT and key not in self.operations:
            return  # a line's clock
        op = self.operations.get(key)
        if op is None or op.is_over:
            op = self.operations[key] = Operation(now, fd)
        op.seen_ns = now
        if token & WATCH:
            # (A turn has one armed anew, and is told of by the line's clock or another's answer.)
            # (Nor where a pause was no longer young when it began: its cut is the pause's end.)
            blind = self.world.is_blurred or op.fd in self.world.crowd_fds
            words = "a watch is armed again because it has ended"
            require(blind or not op.watch_ended, NotAsleep, words)
            return
        op.request = opcode
        op.is_refused = op.is_ended = False
        self.has_turn(key)
        if opcode == TIMEOUT:
            op.pauses += 1
            op.pause_enter = self.enters
            op.is_taken_back = False
            op.old_ns = now + said * 1000 // 2
        elif opcode != POLL_ADD:
            op.attempts += 1
            # (Of one that its task has cancelled there is no further attempt. Where an enter
            # takes less than it is given, what was meant for two comes in one.)
            words = "a pause that was cut is asked for, and taken back in the same enter"
            require(not op.is_taken_back or not self.world.is_heard, NotAsleep, words)
            op.is_taken_back = False
            self.trying = key

    def tried(self, _now: int, _token: int, _fd: int, _res: int, _b: int) -> None:
        self.trying = NOTHING

    def woken(self, _now: int, token: int, _fd: int, _key: int, _more: int) -> None:
        key = token & ~(CANCEL | WATCH)
        op = self.operations.get(key)
        if op is not None and self.trying != key:
            op.wakes += 1

    def posted(self, now: int, token: int, _fd: int, res: int, flags: int) -> None:
        key = token & ~(CANCEL | WATCH)
        op = self.operations.get(key)
        if token & CANCEL or op is None:
            return
        op.seen_ns = now
        if token & WATCH:
            op.watch_ended = not flags & MORE
            pauses = op.request == TIMEOUT and not op.is_ended
            if pauses and now >= op.old_ns and flags & MORE:
                op.change_ns = now
                self.cuts.add(key)
            return
        request = op.request
        op.request, op.watch_ended = NOTHING, False
        self.cuts.discard(key)
        if request in (NOTHING, POLL_ADD, TIMEOUT) or flags & MORE:
            return
        op.is_refused = res in REFUSALS
        op.is_over = not op.is_refused
        if op.is_over:
            self.judge(op)
            if op.fd in self.world.crowd_fds:
                self.answered(now, op)

    def answered(self, now: int, op: Operation) -> None:
        self.answers += 1
        waiting: set[int] = set()
        unsure: set[int] = set()
        for token, other in self.members():
            (unsure if other.watch_ended else waiting).add(token)
        # (It stands in the line if an attempt more than those before it was refused.)
        if op.attempts > BEFORE_LINE + 1 and waiting:
            self.turns.append(Turns(now, waiting, unsure, set()))

    def has_turn(self, key: int) -> None:
        for turns in self.turns:
            if key in turns.waiting or key in turns.unsure:
                turns.had.add(key)

    # ---- what must be --------------------------------------------------------------------

    def judge(self, op: Operation) -> None:
        """How often it was tried."""
        life_ns = op.seen_ns - op.began_ns
        reasons = ATTEMPTS_MAX + life_ns // ATTEMPT_EVERY_NS + op.wakes
        if op.fd in self.world.crowd_fds:
            reasons += self.answers * ATTEMPTS_AN_ANSWER
            words = f"one of a crowd has paused {op.pauses} times by itself"
            require(op.pauses <= OWN_PAUSES_MAX, NotAsleep, words)
        words = f"{op.attempts} attempts within {life_ns / 1e6:.3f} ms, and {op.wakes} wake-ups"
        require(op.attempts <= reasons, NotAsleep, words)

    def pass_to(self, now: int, _token: int, _fd: int, _a: int, _b: int) -> None:
        """Time has gone on."""
        if not self.world.is_heard:
            self.cuts.clear()
        if not self.world.is_prompt:
            self.turns.clear()
        for key in self.cuts:
            late = now - self.operations[key].change_ns > AT_ONCE_NS
            require(not late, TooLate, "a change comes late in a pause, and does not cut it")
        while self.turns and now - self.turns[0].now_ns > AT_ONCE_NS:
            _, waiting, _, had = self.turns.pop(0)
            few = len(had) < min(TURNS, len(waiting))
            words = f"one of a crowd is through, and {len(had)} of {len(waiting)} have a turn"
            require(not few, TooLate, words)


def check(happened: bytes, world: Any) -> None:
    """Hold a run against these books."""
    conduct = Conduct(world)
    for now, token, what, fd, a, b in EVENT.iter_unpack(happened):
        if (event := conduct.events.get(what)) is not None:
            event(now, token, fd, a, b)
    for op in conduct.operations.values():
        if not op.is_over:
            conduct.judge(op)
