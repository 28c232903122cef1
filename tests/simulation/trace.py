"""What happened in a simulation, as text: the end of a failure's message."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any

from uring_trio._kernel_names import opcode_name

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENT = struct.Struct("QQiiii")  # struct sim_event
CALLS = (
    *("sendto", "recvfrom", "sendmsg", "recvmsg", "accept4", "connect", "shutdown"),
    *("getsockopt", "setsockopt", "getsockname", "getpeername", "read", "write", "poll"),
    *("status_flags", "queued", "mode", "close"),
)
CHOICES = (
    *("order", "delay", "short", "refuse", "enter", "submit", "buffers", "end", "cancel"),
    *("network", "fatal", "stale", "clock"),
)
POLL_BITS = {1: "IN", 2: "PRI", 4: "OUT", 8: "ERR", 16: "HUP", 0x20: "NVAL", 0x2000: "RDHUP"}
CQE_FLAGS = {1: "BUFFER", 2: "MORE", 4: "NONEMPTY"}
CANCEL, WATCH = 1 << 63, 1 << 62


def bits(value: int, names: dict[int, str]) -> str:
    """``IN|OUT``."""
    return "|".join(name for bit, name in names.items() if value & bit) or "0"


def result(value: int) -> str:
    """A count, or an errno by its name."""
    return f"-{errno.errorcode.get(-value, -value)}" if value < 0 else str(value)


def token(value: int) -> str:
    """An operation: its slot and generation, and what the cqe is of."""
    mark = "cancel of " * bool(value & CANCEL) + "watch of " * bool(value & WATCH)
    return f"{mark}{value & 0xFFFFFFFF}.{value >> 32 & 0x3FFFFFFF}"


def lines(events: Any, lib: Any) -> Iterator[str]:
    """One for each event, oldest first; `events`: struct sim_event."""
    for event in events:
        what, fd, a, b, of = event.what, event.fd, event.a, event.b, event.token
        if what == lib.SIM_NOTE_SETUP:
            text = f"ring {fd}: {a} sqes, {b} cqes"
        elif what == lib.SIM_NOTE_CLOSED:
            text = f"ring {fd} closed, {a} requests in flight"
        elif what == lib.SIM_NOTE_ENTERED:
            text = f"enter ring {fd}: submit {a}, wait for {b}"
        elif what == lib.SIM_NOTE_LEFT:
            text = f"  = {result(a)}"
        elif what == lib.SIM_NOTE_TAKEN:
            how = f", {b} us" if opcode_name(a) == "timeout" else f", ioprio {b}" * bool(b)
            text = f"  {token(of)}: {opcode_name(a)} of {fd}{how}"
        elif what == lib.SIM_NOTE_TRIED:
            text = f"    tried: {result(a)}"
        elif what == lib.SIM_NOTE_ARMED:
            text = f"    {token(of)} waits for {bits(a, POLL_BITS)}"
        elif what == lib.SIM_NOTE_WOKEN:
            text = f"  {token(of)} is woken: {bits(a, POLL_BITS)}"
        elif what == lib.SIM_NOTE_POSTED:
            text = f"  cqe of {token(of)}: {result(a)} {bits(b & 7, CQE_FLAGS)}"
        elif what == lib.SIM_NOTE_HANDED:
            text = f"  {token(of)} is handed over to a worker"
        elif what == lib.SIM_NOTE_CALLED:
            text = f"{CALLS[of]}({fd}) = {result(a)}"
        elif what == lib.SIM_NOTE_CHOSEN:
            text = f"  chosen: {CHOICES[of]} {a} of {b}"
        elif what == lib.SIM_NOTE_SLEPT:
            text = "  time goes on"
        else:
            text = f"  FAULT {of}"
        yield f"{event.now_ns / 1e9:.9f} {text}"
