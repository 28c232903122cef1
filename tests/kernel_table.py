"""Another kernel for the engine and all above it, or one of which some calls are ours.

Every system call goes through a table; see csrc/kernel.h. A ring keeps the table that it was
opened on, so one that is opened on another must be closed before that is taken back.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Call = Any  # of the real kernel


def names() -> list[str]:
    """Of all calls in the table."""
    ffi, _ = load_extension()
    return [name for name, _ in ffi.typeof("struct ut_kernel").fields]


@contextlib.contextmanager
def in_use(table: Any) -> Iterator[None]:
    """Have all calls go through this ``struct ut_kernel *``, whoever has made it."""
    _, lib = load_extension()
    before = lib.ut_kernel_in_use
    lib.ut_kernel_in_use = table
    try:
        yield
    finally:
        lib.ut_kernel_in_use = before


@contextlib.contextmanager
def calls(**ours: Callable[..., Any]) -> Iterator[None]:
    """Have these calls of the table go to functions of ours, by their names in it.

    Each gets the real kernel's function, and then the call's arguments.
    """
    ffi, lib = load_extension()
    real = lib.ut_kernel_in_use
    table = ffi.new("struct ut_kernel *", real[0])
    callbacks = []  # which must live as long as they may be called

    def callback(call: Call, function: Callable[..., Any]) -> Any:
        return ffi.callback(ffi.typeof(call), lambda *arguments: function(call, *arguments))

    for name, function in ours.items():
        callbacks.append(callback(getattr(real, name), function))
        setattr(table, name, callbacks[-1])
    with in_use(table):
        yield
