"""What a user of the callback servers can meet: one base class, and one class for each fault.

Each has the standard class that fits as its second base, so that a program which knows
nothing of Gain catches it too. All of them survive pickling.
"""

from __future__ import annotations

import sys
from typing import Any

import trio

if sys.version_info >= (3, 11):
    from builtins import BaseExceptionGroup as BaseExceptionGroup  # noqa: PLC0414 - for others
else:
    # What trio itself needs there; not for the type checker, which runs on later ones too.
    from exceptiongroup import (  # type: ignore[import-not-found,unused-ignore]
        BaseExceptionGroup as BaseExceptionGroup,  # noqa: PLC0414
    )


class GainError(Exception):
    """Base of everything that `uring_trio.gain` raises by itself."""

    # What the error says when it is raised without words.
    text = "a gain server failed"

    def __str__(self) -> str:
        return super().__str__() if self.args else self.text


class AddressError(GainError, ValueError):
    """The address is none of those that a server can listen on.

    Attributes:
      address: what was given, unchanged.
      reason: what is wrong with it.
    """

    def __init__(self, address: Any, reason: str) -> None:
        super().__init__(f"address {address!r}: {reason}")
        self.address = address
        self.reason = reason

    def __reduce__(self) -> tuple[type[AddressError], tuple[Any, str]]:
        # Exceptions are rebuilt from .args, which here are not the parameters.
        return type(self), (self.address, self.reason)


class UnsupportedProtocol(AddressError):
    """The scheme of the address is none of tcp, tcp4, tcp6, udp, udp4, udp6 and unix."""


class IsEmpty(GainError, BlockingIOError):
    """There is nothing to read yet; this is not the end of the stream."""

    text = "the input buffer is empty; on_read tells when there is more"


class ShortBuffer(GainError, BufferError):
    """Fewer bytes are buffered than were asked for; none was consumed."""

    text = "fewer bytes are buffered than were asked for; none was consumed"


class StuckInput(GainError, BufferError):
    """The handler waits for more input than ``read_buffer_limit`` lets it have.

    Attributes:
      buffered: bytes that it has left unread.
      limit: the connection's ``read_buffer_limit``.
      reason: why nothing can change any more.
    """

    def __init__(self, buffered: int, limit: int, reason: str) -> None:
        super().__init__(
            f"{buffered} bytes are left unread at a read_buffer_limit of {limit}, and {reason}; "
            "take input as it comes, raise read_buffer_limit, or say pause_reading()"
        )
        self.buffered = buffered
        self.limit = limit
        self.reason = reason

    def __reduce__(self) -> tuple[type[StuckInput], tuple[int, int, str]]:
        return type(self), (self.buffered, self.limit, self.reason)


class ConnectionClosed(GainError, ConnectionError):
    """The connection, or the worker that it lived in, is closed on our side."""

    text = "the connection is closed"


class OpNotAvailableInMode(GainError, RuntimeError):
    """The operation was called in a thread other than that of the connection's worker.

    Attributes:
      op: the operation's name.
    """

    def __init__(self, op: str) -> None:
        super().__init__(
            f"{op} is not available outside the worker's thread; "
            f"call_soon_threadsafe(fn, *args) runs fn there"
        )
        self.op = op

    def __reduce__(self) -> tuple[type[OpNotAvailableInMode], tuple[str]]:
        return type(self), (self.op,)


class EndOfStream(GainError, EOFError):
    """The peer has sent everything: its FIN came after the last byte."""

    text = "the peer has ended its stream"


class DeadlineExceeded(GainError, TimeoutError):
    """A read deadline, a write deadline or an idle timeout has passed."""

    text = "a deadline of the connection has passed"


class InvalidDuration(GainError, ValueError):
    """The duration is outside of what the kernel can be told."""

    text = "the duration is not allowed"


class InvalidState(GainError, RuntimeError):
    """The server is starting or closing, and can do neither of them twice at once."""

    text = "the server is starting or closing"


class ServerAlreadyRunning(InvalidState):
    """The server is running already."""

    text = "the server is already running"


class NotSupported(GainError, ValueError):
    """The choice does not exist, such as an unknown load balancing."""

    text = "not supported"


def alone(error: BaseException) -> BaseException | None:
    """An exception out of the groups that hold nothing else, nurseries' cancellations aside."""
    found: BaseException | None = error
    if isinstance(found, BaseExceptionGroup):
        found = found.split(trio.Cancelled)[1]
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return None if isinstance(found, trio.Cancelled) else found


def parted(group: BaseExceptionGroup) -> tuple[Exception | None, BaseException]:
    """What a user's code has raised, and what came with it and is none of its errors.

    A task that fails while it is cancelled raises both in one group. The rest is a cancellation
    or an interrupt, or all of a group that is no Exception though it holds nothing else: of a
    class of the user's.
    """
    raised, rest = group.split(Exception)
    return (None, group) if rest is None else (raised, rest)
