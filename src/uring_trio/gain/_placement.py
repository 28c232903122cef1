"""On which CPU a worker's thread runs, and how urgently."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from uring_trio.gain._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring_trio.gain._config import Config

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
