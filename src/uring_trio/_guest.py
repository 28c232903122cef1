"""Guest mode: how a helper thread waits for a ring that it must not enter.

The host thread polls with ``get_events(0)``. When there is nothing, trio has a thread of its
cache wait in its place, not always the same one. A ring of DEFER_TASKRUN answers EEXIST to
any thread but its own, and its fd does not even wake a thread that is blocked in poll(2) on
it (measured on 6.18: it slept out timeouts of 1 s and 3 s in every round). An eventfd that
is registered with the ring does, within 0.2 to 10 ms, so the helper watches that one.
``force_wakeup`` writes to it as well.

The host registers it, once, at its first ``get_events`` of a guest run. Only the host reads
it, before it enters; a signal that is left over costs one empty tick.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uring_trio._kernel import Ring


class Helper:
    """The eventfd between a guest run's host thread and its helper threads.

    Raises:
      OSError: no eventfd can be made, or the ring does not take it.
    """

    def __init__(self, ring: Ring) -> None:
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            ring.register_eventfd(self._event_fd)
        except OSError:
            os.close(self._event_fd)
            raise

    def watch(self, timeout: float) -> bool:
        """In a helper thread: sleep at most *timeout* seconds; whether the host must enter."""
        watcher = select.poll()
        watcher.register(self._event_fd, select.POLLIN)
        return bool(watcher.poll(max(0, math.ceil(timeout * 1000))))

    def wake(self) -> None:
        """Have the helper thread return."""
        os.eventfd_write(self._event_fd, 1)

    def clear(self) -> None:
        """Take note: what was signalled until now is about to be seen."""
        with contextlib.suppress(BlockingIOError):  # force_wakeup raced with the timeout
            os.eventfd_read(self._event_fd)

    def close(self) -> None:
        """Give the descriptor back; the ring is closed."""
        os.close(self._event_fd)
