"""How slow this machine is at the moment, for limits that make a failure of a hang.

A limit in seconds is right on one machine and wrong on the next, and on a machine that has
other work: beside four busy loops two cores do a third. So limits are given for the machine
that they were measured on, and stretched by what the same piece of work takes here and now.
Nothing else is stretched: what a test asserts of time stays as it is.
"""

from __future__ import annotations

import os
import time

# Set by ``run_all.py`` for what it starts, so that one measurement serves all.
VARIABLE = "URING_TRIO_SLOWNESS"

# What the work below takes where the limits were measured (two cores of an EPYC at 2.4 GHz, idle).
REFERENCE_S = 0.0100
LOOPS = 200_000
# More would be another fault than a busy machine.
SLOWNESS_MAX = 10.0


def work() -> float:
    """Seconds that a piece of plain Python takes."""
    started = time.perf_counter()
    total = 0
    for number in range(LOOPS):
        total += number & 7
    return time.perf_counter() - started


def measure(rounds: int = 15) -> float:
    """How many times slower than the reference the machine is now, 1.0 to `SLOWNESS_MAX`.

    The mean, and not the best: what others take of the CPU is meant to be in it.
    """
    mean = sum(work() for _ in range(rounds)) / rounds
    return min(max(1.0, mean / REFERENCE_S), SLOWNESS_MAX)


def cpu_slowness(rounds: int = 15) -> float:
    """How many times more CPU the same takes now than on the reference, 1.0 or more.

    Beside other work a core is slower, and caches are colder, without any waiting in line.
    """
    started = time.process_time()
    for _ in range(rounds):
        work()
    return max(1.0, (time.process_time() - started) / rounds / REFERENCE_S)


def slowness() -> float:
    """The factor for this process: what its parent has measured, or what it measures itself."""
    told = os.environ.get(VARIABLE)
    if told is None:
        told = os.environ[VARIABLE] = f"{measure():.2f}"
    return float(told)
