"""A run that trio cannot set up gives its ring back at once, as epoll's file is given back."""

from __future__ import annotations

import gc
from typing import Any

import harness
import pytest
import trio

import uring_trio

pytestmark = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)


async def nothing() -> None:
    await trio.lowlevel.checkpoint()


def test_ring_is_closed_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_files_left() -> Any:
        raise OSError(24, "Too many open files")

    uring_trio.install(backend="io_uring")
    gc.disable()
    try:
        # What trio makes after its IO manager: its wakeup socketpair takes two files.
        monkeypatch.setattr("socket.socketpair", no_files_left)
        before = harness.open_fds()
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                trio.run(nothing)
        assert harness.open_fds() == before
    finally:
        gc.enable()
        uring_trio.uninstall()
