"""An instrument that may be given to any number of runs, and puts each on a ring of its own.

For callers who cannot make an ``Entrance`` for each run, because somebody else calls trio
later with options that they were given now: anyio, from its own ``run`` or its test runner.

trio logs and swallows what an instrument raises, and would run on with epoll. So a run that
must not go on is stopped by the next thing that trio does with it: it starts its clock, and
that is no longer under the instruments' guard. What the clock raises leaves ``trio.run``, and
``start_guest_run`` before that returns, since a host that was told of a run waits for it.
Not one step of the program was made then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

from uring_trio import _probe, _trio_private
from uring_trio._errors import UringUnavailable
from uring_trio._hooks import Entrance
from uring_trio._io_manager import UringIOManager

if TYPE_CHECKING:
    from uring_trio._probe import Backend
    from uring_trio._ring_options import RingOptions


class EachRun(trio.abc.Instrument):
    """Brings a ring into each run that it is given to; keeps nothing of any of them."""

    def __init__(self, backend: Backend, ring: RingOptions | None = None) -> None:
        self._backend = backend
        self._ring = ring

    def before_run(self) -> None:
        """Called by trio when the run exists and nothing is registered with its manager."""
        runner = _trio_private.current_runner()
        try:
            choice = _probe.choose(self._backend)
            if choice.failure is not None or not self._is_on_its_ring(runner.io_manager):
                _enter(Entrance(choice, self._ring))
        except BaseException as exc:  # noqa: BLE001  trio would swallow it
            runner.clock = RefusingClock(exc)

    def _is_on_its_ring(self, manager: object) -> bool:
        """Whether ``install()`` has put the run where it is to be."""
        if not isinstance(manager, UringIOManager):
            return False
        return self._ring is None or manager.ring.options == self._ring


def _enter(entrance: Entrance) -> None:
    try:
        entrance.open()
        entrance.enter()
    finally:
        entrance.close()
    entrance.check()


class RefusedRun(UringUnavailable, trio.TrioInternalError):
    """The same error in a form that trio lets through; anything else it takes for its own bug."""

    def __reduce__(self) -> tuple[type[UringUnavailable], tuple[str, str]]:
        return UringUnavailable, (self.reason, self.remedy)


# In a traceback it is what users catch.
RefusedRun.__qualname__ = UringUnavailable.__qualname__
RefusedRun.__module__ = UringUnavailable.__module__


class RefusingClock(trio.abc.Clock):
    """In place of the clock of a run that must not begin."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def _refuse(self) -> NoReturn:
        error = self._error
        if isinstance(error, UringUnavailable):
            raise RefusedRun(error.reason, error.remedy) from error
        reason = f"the run could not be put where it was asked to be: {error!r}"
        raise RefusedRun(reason, "The cause is above.") from error

    def start_clock(self) -> None:
        """Raise, instead of starting."""
        self._refuse()

    def current_time(self) -> float:
        """Raise: there is no time in a run that did not begin."""
        self._refuse()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Raise, as above."""
        self._refuse()
