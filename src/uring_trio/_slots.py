"""Slots: who stands at each, and what is asked of whoever does.

What the engine has prepared has a *slot* until its last cqe, a small number that each of its
records carries. On this side that is one table, from the slot to its *occupant*. Tasks'
operations and polls are occupants, and so is whatever else a loop of its own has in the
kernel; nobody here asks which of them it is. All that there is to know is `Occupant`.

What the kernel does, and what follows
======================================

- *The last cqe decides.* A slot is taken until then, whatever becomes of the occupant's task:
  the memory may be written to, and the number is not given out again. So the table is emptied
  by whoever reads the record without CQE_F_MORE, before the occupant is told.
- *What it does not know yet can be taken back* (`withdraw`), and then no cqe comes. All else
  can only be asked to end.
- *A ring may be lost, or its run be over*, with occupants at their slots. Then nobody is told
  any more (`lose`); what a last record has brought is disposed of, an accepted connection
  closed (`dispose`); and memory is given back once the kernel has let go of it (`release`).
  Each slot has its end by exactly one of `complete` and `dispose`.

Records for oneself
===================

A batch is completed by one call for each record. Whoever has many records in a batch may
*take* them instead (`taking`): it is given the whole batch before anybody else, and returns
what is not its own. Where the hot paths are C the records stay where the engine has put them:
it is given how many there are, marks its own, and returns the number again, or 0 if none is
another's. It is a fast way and no other: each of its occupants has a `complete` that does the
same, for records that come while nobody takes them. Who takes a last record empties the slot.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from itertools import compress
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import trio

from uring_trio import _hot_parts
from uring_trio._guest import Helper
from uring_trio._hot_parts import SlotsFields
from uring_trio._kernel import CQE_F_MORE, EINTR, OWNER_DEAD, SLOT_LEAVES
from uring_trio._remedies import DENIALS, ring_lost
from uring_trio._trio_private import run_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring_trio._kernel import Ring

Record = tuple[int, int, int, int]  # slot, result, flags, offset into the pool
Take = Callable[[Any], Any]  # of records, or of how many

# As many as the engine's table begins with.
SLOTS_AT_FIRST = 256

# Truthy, and no record: something happened that needs no record to be told.
NOTHING_TO_READ = 1 << 32

# Enters of one wait that answered with an error, within so many seconds, that are no signals
# but a seccomp filter's answer. A signal takes longer to be sent and handled, and one that
# Python handles in the main thread comes as a cqe as well, by trio's wakeup. (A wait is
# interrupted without an error, too: by each step of an operation, as often as peers like.)
INTERRUPTS_MAX, INTERRUPTS_S = 100_000, 2.0


class Occupant(Protocol):
    """What may stand at a slot."""

    @property
    def task(self) -> Any:
        """Whose task sleeps on it; None: nobody's."""

    @property
    def reading(self) -> bool:
        """Whether that task counts as one that waits to read."""

    def complete(self, slot: int, res: int, flags: int, offset: int) -> None:
        """A record has come; the slot is empty if it was the last one."""

    def lose(self) -> None:
        """The run is over: nobody is to be told of anything any more."""

    def dispose(self, res: int) -> None:
        """After `lose`: its last record has come. Get rid of what that has brought."""

    def release(self) -> None:
        """After `lose`: let go of memory; the kernel has."""


def _wake_nobody(task: Any, value: Any) -> None:
    """The run is over."""


class Slots(SlotsFields):
    """The ring of one run, and who stands at its slots.

    Attributes:
      ring: the engine.
      pool: all its receive buffers; gone with `close`.
      record_address, pool_address: where `_hot` finds the batch's records and the buffers.
      table: by slot; grows, as the engine's does.
      tick: waits so far: what was prepared in this tick was not waited for yet; whether it was
        submitted (a send in a long tick is) only the engine knows.
      closed: the run is over, and nothing of the ring may be touched.
      wake: ``wake(task, value)``: what `park` gives to the task.
      takers: who has a batch first.
      helper: of a run in guest mode, once it is needed.
      error: what ends the run at its next turn.
    """

    record_address: int
    pool: Any
    pool_address: int
    table: list[Occupant | None]
    tick: int
    wake: Callable[[Any, Any], None]

    def __init__(self, ring: Ring, wake: Callable[[Any, Any], None]) -> None:
        self.ring = ring
        self.pool = ring.pool
        self.record_address = ring.record_address
        self.pool_address = ring.pool_address
        self.table = [None] * SLOTS_AT_FIRST
        self.tick = 0
        self.closed = False
        self.wake = wake
        self.takers: tuple[Take, ...] = ()
        self.helper: Helper | None = None
        self.error: Exception | None = None

    def bind(self, wake: Callable[[Any, Any], None]) -> None:
        """The run has begun: how its tasks are woken."""
        self.wake = wake

    # ---- the table ----------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection  # `_hot` calls it from a user's frame
    def enter(self, occupant: Occupant, slot: int) -> int:
        """Stand at the slot that a preparing function gave; its negative errno is raised."""
        if slot < 0:
            raise self.ring.error(slot)
        table = self.table
        if slot >= len(table):  # for one of two reasons, and no other slot pays for the question
            if slot & SLOT_LEAVES:
                return self._enter_and_leave(occupant, slot ^ SLOT_LEAVES)
            table.extend([None] * len(table))
        assert table[slot] is None
        table[slot] = occupant
        return slot

    def _enter_and_leave(self, occupant: Occupant, slot: int) -> int:
        """The tick is long, and others wait for this: have it submitted now."""
        self.enter(occupant, slot)
        # The trap of a task that is cancelled already takes it back: nothing is sent by it.
        if not self._is_cancelled(occupant.task):
            self.ring.submit()
        return slot

    def _is_cancelled(self, task: Any) -> bool:
        """Whether a task that is about to sleep will be told at once that it is cancelled."""
        # (Whoever sleeps already would have been told.)
        if task is None or task is not getattr(run_context, "task", None):
            return False
        return trio.current_effective_deadline() == -math.inf

    def withdraw(self, slot: int) -> bool:
        """Ask for its end; True if the kernel has no part in it, so that no record will come."""
        if self.ring.cancel(slot) != 0:
            return False
        self.table[slot] = None
        return True

    def occupants(self) -> list[Occupant]:
        """Who stands at a slot; more than once, if it has more than one."""
        return list(filter(None, self.table))

    def taken(self) -> list[int]:
        """The slots at which somebody stands."""
        return list(compress(range(len(self.table)), self.table))

    # ---- what came ----------------------------------------------------------------------

    @contextlib.contextmanager
    def taking(self, take: Take) -> Iterator[None]:
        """Have *take* be given each batch first; see the top of this module."""
        self.takers = (*self.takers, take)
        try:
            yield
        finally:
            takers = list(self.takers)
            # A lost run has forgotten them all; its tasks are closed later, by a finalizer.
            with contextlib.suppress(ValueError):
                takers.remove(take)
            self.takers = tuple(takers)

    def deliver(self, records: Iterable[Record]) -> None:
        """Tell the occupants of a batch: the plain way."""
        table = self.table
        for slot, res, flags, offset in records:
            occupant = table[slot]
            assert occupant is not None
            if not flags & CQE_F_MORE:
                table[slot] = None
            occupant.complete(slot, res, flags, offset)

    # ---- into the kernel ----------------------------------------------------------------

    def wait(self, timeout_ns: int) -> int:
        """Submit, wait and drain: cqes seen << 32 | records of the batch; 0: the time is over."""
        self.tick += 1
        wait = self.ring.wait
        answer: int
        if not timeout_ns:
            answer = wait(0)
        else:
            start = monotonic()
            end = start + timeout_ns / 1e9
            # Python runs signal handlers between these calls, and the wait goes on with the
            # time that is left (PEP 475).
            interrupts, failed = 0, math.inf  # as if none had failed: asked for when it matters
            while (answer := wait(timeout_ns)) == EINTR:
                timeout_ns = max(0, math.ceil((end - monotonic()) * 1e9))
                interrupts += 1
                if interrupts == INTERRUPTS_MAX:
                    refused = self.ring.failed_enters - failed >= INTERRUPTS_MAX
                    if refused and monotonic() - start < INTERRUPTS_S:
                        self.fail(self.lost(answer, "io_uring_enter"))
                        break
                    interrupts, start = 0, monotonic()
                    failed = self.ring.failed_enters
        if answer >= 0:
            return answer
        if answer != EINTR:
            self.fail(self.lost(answer, "io_uring_enter"))
        return NOTHING_TO_READ

    def all_submitted(self) -> bool:
        """Whether the kernel has all that was prepared."""
        return not self.ring.unsubmitted()

    def release_files(self) -> None:
        """Have the kernel let go, now, of files whose polls or operations were cancelled."""
        error = self.ring.flush()
        if error < 0:
            self.fail(self.lost(error, "io_uring_enter"))
        self.wake_helper()

    def submit_for_helper(self) -> None:
        """A cancel was queued: nobody else submits it while a guest's helper sleeps."""
        if self.helper is not None:
            self.ring.flush()
            self.helper.wake()

    def lost(self, error: int, call: str) -> Exception:
        """What ends the run: the kernel refuses *call*, which worked until now."""
        if error == OWNER_DEAD:
            return self.ring.error(error)
        failure = ring_lost(-error, call)
        lost = trio.TrioInternalError(
            f"this run has lost its io_uring: {failure.reason}. {failure.remedy}"
        )
        lost.__cause__ = OSError(-error, failure.reason)
        return lost

    def fail(self, error: Exception) -> None:
        """End the run at its next turn."""
        self.error = error

    def raise_failure(self) -> None:
        """Raise what ends the run, if there is something."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    # ---- guest mode ---------------------------------------------------------------------

    def open_helper(self) -> None:
        """Prepare for helper threads; see `_guest`."""
        try:
            self.helper = Helper(self.ring)
        except OSError as exc:
            self.fail(self.refused(exc))

    def refused(self, exc: OSError) -> Exception:
        """What it means that the ring could not be prepared for a helper's sleep."""
        error = exc.errno or 0
        if error not in DENIALS:
            return exc  # there was no descriptor or memory
        registers = (exc.strerror or "").startswith("register")
        return self.lost(-error, "io_uring_register" if registers else "io_uring_enter")

    def show_to_helper(self, fd: int, *, reads: bool, writes: bool) -> None:
        """Tasks wait for *fd*, which is no socket."""
        if self.helper is None:
            self.open_helper()  # a task's first step comes before the first get_events
        if self.helper is not None:
            self.helper.show(fd, reads=reads, writes=writes)

    def wake_helper(self) -> None:
        """Have the helper thread return."""
        if self.helper is not None:
            self.helper.wake()

    def _close_helper(self) -> None:
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close()

    # ---- the end ------------------------------------------------------------------------

    def begin_end(self) -> None:
        """From now on nobody touches the ring but who closes it, and nobody is woken."""
        self.closed = True
        self.wake = _wake_nobody  # the other holds the run

    def close(self, *, leak: bool) -> bool:
        """Close the ring; whether memory was given up (see `Ring.close`)."""
        self.pool = b""
        self.record_address = self.pool_address = 0
        leaked = self.ring.close(leak=leak)
        self._close_helper()
        return leaked

    def forget(self) -> None:
        """The ring is closed: nobody stands anywhere."""
        self.table = []
        self.takers = ()

    def abandon_in_child(self) -> None:
        """In a forked child: the ring is the parent's."""
        self._close_helper()  # its eventfd would wake the parent's thread
        self.ring.abandon()


if _hot_parts.hot is not None:
    _hot_parts.hot.know(Slots=Slots)
