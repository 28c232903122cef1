"""What trio's loop asks at each step, asked without a call.

Before and after each step of a task trio looks whether an instrument wants to know, and the
answer is nearly always no. Its collection of instruments is a `UserDict`, by the names of
their methods, whose ``in`` is a function in Python: 1,100 instructions an operation, a
twentieth of a small send. (In older releases it is a dict.)

So a run on the ring has another collection in its place, from its first turn to its end. It is
trio's own class and has trio's own dict, of the collection that was there before: who still
holds that one sees the same. Only ``in`` is answered by a list of the names, of which there are
eleven at most: a list's ``in`` is the type's own also where it is subclassed, whereas a dict's
is then looked for as a method, and costs twice as much.
"""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

from uring_trio._fast_ways import FAST
from uring_trio._trio_private import stock_instruments

if TYPE_CHECKING:
    from collections.abc import Callable

# A dict, which is as fast, where this trio has that.
_MADE_FLAT = FAST and issubclass(stock_instruments, UserDict)
_list: Any = list  # a base beside which type checkers take no UserDict

if _MADE_FLAT:

    class FlatInstruments(stock_instruments, _list):  # type: ignore[misc]
        """trio's instruments of one run; see the top of this module."""

        # Not the first in the order of the bases, and so to be named.
        __contains__ = list.__contains__

        def __init__(self, trios: Any) -> None:
            self.data = trios.data
            self._note_names()

        def _note_names(self) -> None:
            list.clear(self)
            list.extend(self, self.data)

        def add_instrument(self, instrument: Any) -> None:
            """As trio's; what fails has removed it again."""
            try:
                super().add_instrument(instrument)
            finally:
                self._note_names()

        def remove_instrument(self, instrument: Any) -> None:
            """As trio's, and called by it for one that has raised."""
            super().remove_instrument(instrument)
            self._note_names()

        def __setitem__(self, name: str, instruments: Any) -> None:
            super().__setitem__(name, instruments)
            self._note_names()

        def __delitem__(self, name: str) -> None:
            super().__delitem__(name)
            self._note_names()


def make_flat(runner: Any) -> Callable[[], None]:
    """Give a run the flat collection; returns what gives it trio's back.

    Not while an instrument is called: what is called for is trio's collection, which would
    remove one that raises from itself, and not from the list.
    """
    trios = runner.instruments
    # Not a collection of somebody else's, who may have changed what it does.
    if not _MADE_FLAT or type(trios) is not stock_instruments:
        return _nothing
    flat = runner.instruments = FlatInstruments(trios)

    def give_back() -> None:
        if runner.instruments is flat:
            runner.instruments = trios

    return give_back


def _nothing() -> None:
    """There is nothing to give back."""
