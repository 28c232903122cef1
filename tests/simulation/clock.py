"""One time for a whole program: the simulated kernel's.

trio asks its clock, and gets the kernel's; its loop then waits in the kernel, which moves the
time to whatever is next: a deadline of trio's, or a completion. So nothing is jumped over, as
a `trio.testing.MockClock` would jump that knows of trio's deadlines alone.

The product itself looks at the time in a few places, by the names that are listed here. They
are given this time too, or a wait would go on with what is left by the real clock, and no two
runs would be alike.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from typing import TYPE_CHECKING
from unittest import mock

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NS = 1e9

#: Modules of the product that have a name `monotonic`, a name `sleep`, and the module `time`.
WITH_MONOTONIC = ("_slots", "_draining", "_beside")
WITH_SLEEP = ("_draining",)
WITH_TIME = ("_probe", "gain._capabilities", "gain._unix_path")


class Clock(trio.abc.Clock):
    """Simulated time, for `trio.run`.

    Args:
      now_ns: asks the kernel.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns

    def start_clock(self) -> None:
        """Nothing has to be started."""

    def current_time(self) -> float:
        """Seconds."""
        return self._now_ns() / NS

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """As much as it is away."""
        return deadline - self.current_time()


@contextlib.contextmanager
def in_use(now_ns: Callable[[], int], sleep: Callable[[float], None]) -> Iterator[None]:
    """Have the product look at this time.

    Args:
      now_ns: asks the kernel.
      sleep: lets so many seconds pass.
    """

    def monotonic() -> float:
        return now_ns() / NS

    stand_in = types.SimpleNamespace(monotonic=monotonic, sleep=sleep)
    with contextlib.ExitStack() as stack:
        for modules, name, value in (
            (WITH_MONOTONIC, "monotonic", monotonic),
            (WITH_SLEEP, "sleep", sleep),
            (WITH_TIME, "time", stand_in),
        ):
            for module in modules:
                owner = importlib.import_module(f"uring_trio.{module}")
                stack.enter_context(mock.patch.object(owner, name, value))
        yield
