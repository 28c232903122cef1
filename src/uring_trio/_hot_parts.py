"""The hot paths: in C where the extension `_hot` can be had, in Python elsewhere.

A message of a stream, or of a callback server, costs some thousand instructions in the
interpreter, most of them to look at fields and to store them. `_hot` (csrc/hot) does that in C for
whatever is *plain*; what is not, it leaves to the Python that is here anyway. So there is one state
and one set of rules: the *hot fields* of some classes lie in C structs, and the classes inherit
them from here, whichever way it is. With Python alone they are slots like others.

It is for speed alone, and may be missing: a compiler failed at it, CPython is a free-threaded one,
which has no stable ABI, the platform has no engine either, or somebody does not want it
(`URING_TRIO_PURE=1`). ``doctor`` says which, and why.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from uring_trio._fast_ways import FAST

VARIABLE = "URING_TRIO_PURE"

T = TypeVar("T")


def _load() -> tuple[Any, str | None]:
    """The extension, or why there is none."""
    if not FAST:
        return None, "URING_TRIO_FAST_WAYS is off"
    if os.environ.get(VARIABLE) == "1":
        return None, f"{VARIABLE} is 1"
    try:
        from uring_trio import _hot
    except ModuleNotFoundError:
        return None, "it was not built"
    except ImportError as exc:
        if exc.path is None:
            return None, "it was not built"
        return None, str(exc)
    if not _hot.claim():
        return None, "an earlier import in this process has it"
    return _hot, None


#: The extension; None where Python does it.
hot: Any
#: Why it is Python; None where it is the extension.
why_python: str | None
hot, why_python = _load()


def refuse(reason: str) -> None:
    """It does not fit to what it works on: Python does it, in the fields that there are.

    Said while modules are imported, by those that know; others look at `hot` in the body of theirs,
    behind all of their imports.
    """
    global hot, why_python
    hot, why_python = None, reason


def quicker(cls: type[T]) -> type[T]:
    """Have C do what is plain of those methods that `_hot` has; see csrc/hot/method.c."""
    if hot is not None:
        hot.quicken(cls)
    return cls


if TYPE_CHECKING or hot is None:

    class OperationFields:
        """Of an `Operation`."""

        __slots__ = ("line", "raise_cancel", "slot", "task", "tick", "trap")

    class ReceiveFields(OperationFields):
        """Of a `Receive`, beside an operation's."""

        __slots__ = ("size",)

    class SendFields(OperationFields):
        """Of a `Send`, beside an operation's."""

        __slots__ = ("flags", "pinned")

    class LineFields:
        """Of a `Line`."""

        __slots__ = ("backlog", "current", "fileno", "slots", "spare", "waiting")

    class ReceiverFields(LineFields):
        """Of a `Receiver`, beside a line's."""

        __slots__ = ("group", "plain_receive", "poll_first", "prep_receive", "small_in_a_row")

    class SenderFields(LineFields):
        """Of a `Sender`, beside a line's."""

        __slots__ = ("prep_send",)

    class EndpointFields:
        """Of an `Endpoint`."""

        __slots__ = ("manager", "owner", "receiver", "sender")

    class SlotsFields:
        """Of `Slots`."""

        __slots__ = ("pool", "pool_address", "record_address", "table", "tick", "wake")

    class InboundFields:
        """Of an `Inbound`."""

        __slots__ = ("buffer", "fresh", "lease_at", "lease_size", "pool", "state", "watch")

    class OutboundFields:
        """Of an `Outbound`."""

        __slots__ = ("pieces", "sending", "size", "state", "written")

    class LifeFields:
        """Of a `Life`."""

        __slots__ = ("user",)

    class LinkFields:
        """Of a `RingLink`."""

        __slots__ = ("connection", "fd", "readable", "receive_slot")

    class TurnFields:
        """Of a `Turn`."""

        __slots__ = (
            "_callbacks",
            "_more",
            "_slots",
            "_task",
            "_try_send",
            "_wrote",
            "bytes_in",
            "bytes_out",
            "dirty",
            "parked",
            "ready",
        )

    class ConnectionFields:
        """Of a `Connection`."""

        __slots__ = ("conn", "inbound", "link", "outbound", "ready", "turn", "way")

    class HandleFields:
        """Of a `Handle`."""

        __slots__ = ("_inbound", "_owner", "_subject")

else:
    OperationFields = hot.OperationFields
    ReceiveFields = hot.ReceiveFields
    SendFields = hot.SendFields
    LineFields = hot.LineFields
    ReceiverFields = hot.ReceiverFields
    SenderFields = hot.SenderFields
    EndpointFields = hot.EndpointFields
    SlotsFields = hot.SlotsFields
    InboundFields = hot.InboundFields
    OutboundFields = hot.OutboundFields
    LifeFields = hot.LifeFields
    LinkFields = hot.LinkFields
    TurnFields = hot.TurnFields
    ConnectionFields = hot.ConnectionFields
    HandleFields = hot.HandleFields
