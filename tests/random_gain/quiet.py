"""What is looked at while nothing can move: what it costs, and what is counted."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import process_books

from random_gain.faults import LeftToTheKernel, NotAsleep, WrongCounts
from random_gain.rules import SLOWNESS

if TYPE_CHECKING:
    from random_gain.world import World

try:  # another release may have none of these
    import kernel_workers

    from uring_trio._io_manager import UringIOManager
    from uring_trio.gain._capabilities import capabilities
except ImportError:
    kernel_workers = None  # type: ignore[assignment]

# While nothing can move: a stretch, and how much of a core it may take. What is still to be
# done of the work before, and a busy machine's soft interrupts, are over after the first.
IDLE_S = 0.04
IDLE_SHARE_MAX = 0.05
IDLE_STRETCHES = 8  # what spins does so in each of them
TICK_S = 1e-3  # of a core, that a tick may take beside: a busy machine's caches are cold
COUNTS_MAX_S = 1.0 * SLOWNESS  # for a worker that the machine gives no time to
RECV = 27  # <linux/io_uring.h>


class Quiet:
    """A plan's looks.

    Attributes:
      retried: what the kernel itself would have tried again, when it was first seen.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.retried = ""

    def look(self) -> None:
        """Nothing can move: look at what that costs, and then at what is counted.

        Raises:
          NotAsleep: it costs CPU.
        """
        if self._world.stopping:
            return
        tick = self._world.options.get("tick")
        share_max = IDLE_SHARE_MAX + (TICK_S / tick if tick else 0.0)
        with process_books.no_collection():
            for stretch in range(1, IDLE_STRETCHES + 1):
                cpu = process_books.Cpu()
                time.sleep(IDLE_S * stretch)
                if (share := cpu.most()) <= share_max:
                    break
            else:
                raise NotAsleep(f"{share:.0%} of a core while nothing can move: {self._world}")
        self._world.faults.check()
        self._look_at_the_kernel()
        self._look_at_counts()
        self._look_at_those_who_stopped()
        for account in self._world.mine():
            if account.peer is not None:
                account.peer.note_quiet()

    def _look_at_those_who_stopped(self) -> None:
        """Each that does not read is asked what it has: a look that wakes its worker."""
        # TLS has bytes of its own, in records that are not whole.
        for account in self._world.mine():
            may_be_asked = not (self._world.stopping or self._world.rules.is_tls(account))
            if may_be_asked and account.stopped():
                self._world.ask(account, {"do": "look"})

    def _look_at_the_kernel(self) -> None:
        if kernel_workers is None:
            return
        if workers := kernel_workers.workers():
            raise LeftToTheKernel(f"{len(workers)} of the kernel's workers: {self._world}")
        # A receive that is multishot is the kernel's to try again: each wake-up brings its data.
        # Each connection has no more than one, of whichever kind.
        retried = Counter(kernel_workers.retried())
        if capabilities().multishot_receive:
            retried -= Counter({RECV: sum(not a.close_over for a in self._world.mine())})
        if retried and not self.retried:
            self.retried = f"the kernel itself tries {dict(retried)} again: {self._world}"

    def _look_at_counts(self) -> None:
        # It answers with what it last knew.
        deadline = time.monotonic() + COUNTS_MAX_S
        while (what := self._wrong_count()) and time.monotonic() < deadline:
            time.sleep(IDLE_S)
        if not what or self._world.stopping:
            return
        raise WrongCounts(f"{what}: {self._world}")

    def _wrong_count(self) -> str:
        """What of the statistics is not as it should be while nothing moves; "" if all is."""
        # A timer may close one at any moment.
        open_before = self._open()
        workers = self._world.host.server.statistics().workers
        open_after = self._open()
        if any(worker.buffers_leased for worker in workers):
            return f"buffers are leased: {workers}"
        here = self._world.mine()
        # One whose handshake is not over is a connection already.
        hidden = sum(not a.accepted for a in here)
        counted = sum(worker.connections for worker in workers)
        if not min(open_before, open_after) <= counted <= max(open_before, open_after) + hidden:
            return f"{counted} connections, and {open_after} are open"
        if self._world.rules.tls or self._world.datagrams.peers or self._world.rules.generation:
            return ""
        secured = any(a.peer is not None and a.peer.is_tls for a in here)
        received = sum(a.known for a in here)
        if not secured and sum(worker.bytes_in for worker in workers) < received:
            return f"bytes_in is less than {received}: {workers}"
        return ""

    def _open(self) -> int:
        return sum(a.accepted and not a.close_over for a in self._world.mine())


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
