"""What one measurement of one program gives, whatever loads it, and what is read off it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers import Peer


@dataclass(frozen=True)
class Measurement:
    """What was seen in the measured window; times in nanoseconds.

    Attributes:
      units: messages, requests, connections, calls: what the load says.
      elapsed_ns: the length of the window, as it really was.
      cpu_ns: CPU time, user and system, of the whole program.
      errors: what broke, did not come or was wrong.
      p50_ns: median latency of a unit; 0 where there is none.
      p99_ns: 99th percentile of it; 0 where there is none.
      fewest_of_mean: units of the connection that had the fewest, of what all had in the mean;
        None where that is not known.
      peak_kib: the largest resident set, read when the load is over.
      calls: system calls in the window; None unless they were counted.
    """

    units: int
    elapsed_ns: int
    cpu_ns: int
    errors: int
    p50_ns: int = 0
    p99_ns: int = 0
    fewest_of_mean: float | None = None
    peak_kib: int = 0
    calls: int | None = None

    @property
    def calls_per_unit(self) -> float | None:
        """System calls for a unit, if they were counted."""
        if self.calls is None or not self.units:
            return None
        return self.calls / self.units


# With the unit in the name; 0 is: there is no such figure.
METRICS: dict[str, Callable[[Measurement], float]] = {
    "cpu_us": lambda each: each.cpu_ns / 1000 / each.units if each.units else math.nan,
    "per_second": lambda each: each.units * 1e9 / each.elapsed_ns if each.elapsed_ns else 0.0,
    "p50_us": lambda each: each.p50_ns / 1000,
    "p99_us": lambda each: each.p99_ns / 1000,
    "fewest": lambda each: each.fewest_of_mean or 0.0,
    "peak_mib": lambda each: each.peak_kib / 1024,
}


class Load(Protocol):
    """What is done to a program, and counted."""

    @property
    def unit(self) -> str:
        """What is counted, in the singular."""

    @property
    def about(self) -> str:
        """What it does, for people."""

    def missing(self) -> str | None:
        """Why it cannot be made here, or None."""

    def seconds(self, seconds: float) -> float:
        """How long one measurement takes where *seconds* was asked for, the warm-up included."""

    def measure(self, peer: Peer, seconds: float, *, count_calls: bool = False) -> Measurement:
        """Start a program, load it for so long, and stop it.

        Raises:
          OSError, RuntimeError: there was nothing to measure; the message says why.
        """
