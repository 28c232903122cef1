"""What a program can show to be wrong: a type for each book, so that shrinking keeps to one fault."""

from __future__ import annotations


class WrongBytes(AssertionError):
    """Something was received that was never sent, or not there."""


class BytesLost(AssertionError):
    """What was sent, and said to be, did not come, or comes behind what was sent later."""


class WrongCount(AssertionError):
    """A send says that it has sent what it has not, or the other way round."""


class WrongEnd(AssertionError):
    """The end of a stream is told before it is there."""


class WrongError(AssertionError):
    """An error that has no cause, or a call that should have failed."""


class ToldForNothing(AssertionError):
    """A wait for readiness ended where nothing is ready."""


class NotTold(AssertionError):
    """Somebody sleeps over what is there: a lost wake-up."""


class TooLate(AssertionError):
    """Somebody was told of what is there, but waited for longer than anything justifies."""


class NotAsleep(AssertionError):
    """More was asked of the kernel than what happened justifies."""


class LeftBehind(AssertionError):
    """Descriptors or threads are left when all is over."""


class StillHeld(AssertionError):
    """A file was closed, and something still keeps it open."""


class ErrorUntold(AssertionError):
    """The kernel has failed for good, and the program was not told."""


class WrongOrder(AssertionError):
    """A callback where it cannot be."""


class Refused(AssertionError):
    """A method did what it does not promise."""


class Unbounded(AssertionError):
    """More is kept than may be."""


class Logged(AssertionError):
    """The product has logged an error of its own."""


def require(holds: object, fault: type[AssertionError], words: str) -> None:
    """Hold that something is so."""
    if not holds:
        raise fault(words)
