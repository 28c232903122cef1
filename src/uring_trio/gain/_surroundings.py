"""What a server changes of the process that it is in, and puts back when it ends.

Three things belong to others as well: the logger of all servers, the handlers of SIGINT and
SIGTERM, and the thread that a worker runs in. A server's options, or its way of blocking the
main thread, change them while it runs. Each change is a context manager here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uring_trio.gain._config import Config

logger = logging.getLogger("uring_trio.gain")

# ---- the logger ------------------------------------------------------------------------

# What every record has; whatever else is there was given as `extra`.
PLAIN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

_lock = threading.Lock()
_levels: dict[object, int] = {}  # of the servers that run, in the order of their starts
_pretty: set[object] = set()  # the servers that run and want the handler
_level_before = logging.NOTSET  # of any server
_handler: logging.Handler | None = None


@contextlib.contextmanager
def configured(config: Config) -> Iterator[None]:
    """Have the logger as *config* says; as it was before, once all such servers have ended.

    Of several that run at once the one that started last decides the level.
    """
    server = object()
    _add(server, config)
    try:
        yield
    finally:
        _remove(server)


class PrettyFormatter(logging.Formatter):
    """One readable line for each record: time, level, message, then what came as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        extra = [
            f"{name}={value}"
            for name, value in vars(record).items()
            if name not in PLAIN_ATTRIBUTES
        ]
        return " ".join([super().formatMessage(record), *extra])


def _add(server: object, config: Config) -> None:
    global _handler, _level_before
    with _lock:
        if config.logger_level is not None:
            if not _levels:
                _level_before = logger.level
            _levels[server] = config.logger_level
            logger.setLevel(config.logger_level)
        if config.pretty_logger:
            if _handler is None:
                _handler = logging.StreamHandler()  # to stderr
                _handler.setFormatter(PrettyFormatter())
                logger.addHandler(_handler)
            _pretty.add(server)


def _remove(server: object) -> None:
    global _handler
    with _lock:
        if _levels.pop(server, None) is not None:
            logger.setLevel(list(_levels.values())[-1] if _levels else _level_before)
        _pretty.discard(server)
        if not _pretty and _handler is not None:
            logger.removeHandler(_handler)
            _handler = None


# ---- SIGINT and SIGTERM, while a server blocks the main thread --------------------------

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def signals_handled(shut_down: Callable[[], object], abort: Callable[[], object]) -> Iterator[None]:
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


# ---- on which CPU a worker's thread runs, and how urgently ------------------------------

# Gain's: one short of the most urgent, -20, which is left to whoever must get in between.
NICENESS = -19


@contextlib.contextmanager
def placed(index: int, config: Config, cpus: list[int]) -> Iterator[None]:
    """Have the calling thread, worker *index*, run as *config* says; taken back at the end.

    What the system refuses is a logged warning, and the worker runs all the same.
    """
    with contextlib.ExitStack() as undo:
        if config.cpu_affinity:
            _pin(index, cpus[index % len(cpus)], undo)
        if config.process_priority:
            _hurry(index, undo)
        yield


def _pin(index: int, cpu: int, undo: contextlib.ExitStack) -> None:
    before = os.sched_getaffinity(0)  # 0: this thread
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as exc:
        logger.warning("CPU affinity refused: worker %d cannot run on CPU %d: %s", index, cpu, exc)
    else:
        undo.callback(_restore_affinity, before)


def _restore_affinity(cpus: set[int]) -> None:
    with contextlib.suppress(OSError):  # CPUs were taken away meanwhile
        os.sched_setaffinity(0, cpus)


def _hurry(index: int, undo: contextlib.ExitStack) -> None:
    # On Linux niceness is each thread's own; the process's id would mean its main thread.
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
    except OSError as exc:
        logger.warning("process priority refused: worker %d keeps %d: %s", index, before, exc)
    else:
        undo.callback(os.setpriority, os.PRIO_PROCESS, thread, before)
