"""What there is once in a process, and what a forked child makes of it.

A fork copies the one thread that called it, in the middle of whatever the others did. So in
the child locks may be held for ever; rings are the parent's, which goes on with them; and
limits, filters and rights may be others from now on. Of all this the child begins anew, in
the order of `IN_CHILD`, and with one handler: several would run in the order in which their
modules happened to be imported.

Whoever keeps something for the whole process gives its step a name there, and what it keeps
stays with its subject. What `install()` was asked for is kept: a forked server's child is on
the ring as its parent was.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: The steps of a forked child, in their order.
IN_CHILD = (
    "locks",  # first: the steps that follow take them
    "managers",  # the rings are closed here, and their runs are over
    "users",  # so sockets and streams are trio's again, unless installed
    "kernel",  # what it can do is asked anew
    "multishot",  # and which of its operations have no fault
)

_steps: dict[str, Callable[[], None]] = {}


class Locks:
    """One for each thing that several threads change.

    All are re-entrant: a signal handler may do the same as the thread that it has interrupted,
    and a manager may be closed by the garbage collector, at any allocation.

    Attributes:
      install: what ``install()`` was asked for.
      users: who uses our sockets and streams, and what is in trio's places.
      kernel: what is known of it. Rings that are tried at once may be in each other's way.
    """

    def __init__(self) -> None:
        self.make_anew()

    def make_anew(self) -> None:
        """Nobody holds them."""
        self.install = threading.RLock()
        self.users = threading.RLock()
        self.kernel = threading.RLock()


locks = Locks()


def in_child(step: str, call: Callable[[], None]) -> None:
    """Have *call* called in each forked child, as the *step* of `IN_CHILD`."""
    assert step in IN_CHILD, step
    assert step not in _steps, step
    _steps[step] = call


def _begin_anew() -> None:
    for step in IN_CHILD:
        if step in _steps:  # else its module was not imported: there is nothing of it
            _steps[step]()


in_child("locks", locks.make_anew)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_anew)
