"""A forked child of a guest run does not signal the parent's helper thread."""

from __future__ import annotations

import os
import queue
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)

TIMEOUT_S = 20
SETTLE_S = 0.05  # long enough for the helper thread to be asleep in the kernel


def test_cancel_in_the_child_does_not_wake_the_parent() -> None:
    callbacks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    outcomes: list[Any] = []
    scope = trio.CancelScope()

    async def main() -> None:
        with scope:
            await trio.sleep_forever()

    harness.start_guest_run(
        harness.RING, main, run_sync_soon_threadsafe=callbacks.put, done_callback=outcomes.append
    )
    run_while_busy(callbacks)
    child = os.fork()
    if child == 0:
        scope.cancel()
        os._exit(0)
    os.waitpid(child, 0)
    woken = run_while_busy(callbacks)
    scope.cancel()
    while not outcomes:
        callbacks.get(timeout=TIMEOUT_S)()
    outcomes[0].unwrap()
    assert not woken


def run_while_busy(callbacks: queue.SimpleQueue[Callable[[], Any]]) -> int:
    """Run the host's callbacks until none comes; how many there were."""
    count = 0
    while True:
        try:
            callback = callbacks.get(timeout=SETTLE_S)
        except queue.Empty:
            return count
        callback()
        count += 1
