"""SIGINT and SIGTERM while a server blocks the main thread."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handled(shut_down: Callable[[], object], abort: Callable[[], object]) -> Iterator[None]:
    """Have the first SIGINT or SIGTERM call *shut_down*, and the second *abort*.

    From the second on the old handlers are back, so that a third does what it did before:
    a callback that never returns can then be interrupted. Does nothing outside of the main
    thread, where Python lets nobody handle signals.

    Both functions are called at any bytecode of the main thread, so they may only do what
    a signal handler may.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = _StopHandlers(shut_down, abort)
    try:
        handlers.install()
        yield
    finally:
        handlers.restore()


class _StopHandlers:
    def __init__(self, shut_down: Callable[[], object], abort: Callable[[], object]) -> None:
        self._shut_down = shut_down
        self._abort = abort
        self._received = 0
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        for number in STOP_SIGNALS:
            previous = signal.getsignal(number)
            if previous is None:
                continue  # it was set by C code: Python could not put it back
            self._previous[number] = previous
            signal.signal(number, self._handle)

    def restore(self) -> None:
        for number, previous in self._previous.items():
            # Somebody may have put his own there meanwhile, in on_start for example.
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)

    def _handle(self, number: int, frame: object) -> None:
        self._received += 1
        if self._received == 1:
            self._shut_down()
        else:
            self.restore()
            self._abort()
