"""The guard's side of Python: which of a user's memory is pinned, and until when.

csrc/tests/guard.c sees what a request works on, and when the kernel is done with it. That its
user has pinned the memory, and lets go of it, goes through cffi: so the extension's `ffi` is
stood before by one that tells the guard. `child_processes/sitecustomize.py` does that as the
extension is loaded, before anybody else has its `ffi`.
"""

from __future__ import annotations

from typing import Any


class GuardedFFI:
    """An ``ffi`` that tells the guard of all that is pinned and unpinned by it."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ffi, name)

    def from_buffer(self, *arguments: Any, **options: Any) -> Any:
        """As cffi's."""
        pinned = self._ffi.from_buffer(*arguments, **options)
        self._lib.guard_pin(pinned, len(pinned))
        return pinned

    def release(self, pinned: Any) -> None:
        """As cffi's; in the order that matters: the guard looks while it is still pinned."""
        self._lib.guard_unpin(pinned)
        self._ffi.release(pinned)


def wrap(module: Any) -> None:
    """Stand before the ``ffi`` of the extension, which was just loaded."""
    module.ffi = GuardedFFI(module.ffi, module.lib)


def counts() -> tuple[int, int, int]:
    """Requests that had memory so far in this process, buffers that were filled, and faults."""
    from uring_trio import _kernel

    ffi, lib = _kernel.load_extension()
    found = ffi.new("struct guard_counts *")
    lib.guard_count(found)
    return found.requests, found.buffers, found.faults
