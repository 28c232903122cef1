"""A signal handler that raises as the wait returns: what the kernel has ended is ended."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import harness
import pytest
import trio

pytestmark = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)


class Struck(Exception):
    """What the handler raises."""


def test_closing_waits_for_no_cqe_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # trio unwinds nothing when its IO manager raises: its coroutines are collected.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    from uring_trio import _draining

    # Who waits for what does not come waits until then.
    monkeypatch.setattr(_draining, "CLOSE_TIMEOUT_S", 20.0)
    managers: list[Any] = []

    async def main() -> None:
        left, right = trio.socket.socketpair()
        manager = harness.io_manager()
        managers.append(manager)
        wait = manager.ring.wait

        def struck(timeout_ns: int) -> int:
            answer: int = wait(timeout_ns)
            if answer <= 0:
                return answer
            # Python runs handlers here, before the answer is in anybody's hands.
            manager.ring.wait = wait
            raise Struck

        with left, right:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.recv, 10)
                await trio.sleep(0.01)
                manager.ring.wait = struck
                await right.send(b"x")

    start = time.monotonic()
    with pytest.raises(Struck):
        harness.run_raw(harness.RING, main)
    gc.collect()  # the run was abandoned, and is closed when it is collected
    assert managers[0].closed
    assert time.monotonic() - start < 10
    assert not managers[0].leaked
