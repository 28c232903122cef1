"""What the books may find, each of a type of its own, by which a plan is shrunk."""

from __future__ import annotations

import logging


class Fault(AssertionError):
    """The books do not balance."""


class WrongBytes(Fault):
    """Other bytes than were sent."""


class BytesLost(Fault):
    """Fewer than were sent."""


class WrongOrder(Fault):
    """A callback where it cannot be."""


class WrongEnd(Fault):
    """An on_close with an error that nothing accounts for."""


class NotTold(Fault):
    """Something that is due does not happen."""


class Refused(Fault):
    """A method of a connection did what it does not promise."""


class Unbounded(Fault):
    """More is kept than may be."""


class NotAsleep(Fault):
    """CPU is taken while nothing can move."""


class LeftToTheKernel(Fault):
    """An operation has ended on a thread of the kernel's own."""


class TriedByTheKernel(Fault):
    """An operation is with the kernel's own retries, after which such a thread comes."""


class WrongCounts(Fault):
    """Statistics, and what they count."""


class LeftBehind(Fault):
    """Descriptors, threads, memory."""


class Logged(Fault):
    """The server has logged an error of its own."""


class Boom(Exception):
    """What a handler raises on purpose."""


class Faults:
    """Those that were found, on whichever thread: a callback may not raise them itself."""

    def __init__(self) -> None:
        self._found: list[Fault] = []

    def add(self, fault: Fault, cause: BaseException | None = None) -> None:
        fault.__cause__ = cause
        self._found.append(fault)

    def check(self) -> None:
        """Raise the first."""
        if self._found:
            raise self._found[0]


class Log(logging.Handler):
    """What the server logs: its own errors are faults."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(logging.WARNING)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        exc = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            if not isinstance(exc, Boom):
                self._faults.add(Logged(f"{message}: {exc!r}"), exc)
        elif "left behind" in message or "was cancelled" in message or "does not" in message:
            self._faults.add(Logged(message))
