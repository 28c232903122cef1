"""What others do between two system calls of ours: right after a look, before what it was for.

Our own calls beside the ring go through a table (csrc/kernel.h), and each that only looks may be
followed by somebody's act there. So a moment that two processes meet in once in many thousand
times is had each time. Another release's product may have no such table, and is left alone.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import kernel_table

from uring_trio._kernel import load_extension

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOKS = ("status_flags", "poll", "queued", "getsockopt")


def nothing() -> None:
    """No act."""


class Between:
    """Who acts after a look at which file, and how often yet."""

    def __init__(self) -> None:
        self._acts: dict[int, tuple[int, Callable[[], Any], Callable[[], Any]]] = {}
        self._acting = False
        self._thread = 0
        self._failed: BaseException | None = None

    def here(self) -> None:
        """The run is in this thread; others that look there, such as a guest's, are let be."""
        self._thread = threading.get_ident()

    def act(
        self, fd: int, times: int, after: Callable[[], Any], before: Callable[[], Any] = nothing
    ) -> None:
        """Around each of so many looks at a file."""
        self._acts[fd] = times, before, after

    def forget(self) -> None:
        """Nobody acts any more.

        Raises:
          BaseException: what an act has raised.
        """
        self._acts.clear()
        if self._failed:
            raise self._failed

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For runs in here."""
        ffi, lib = load_extension()
        if not hasattr(lib, "ut_kernel_in_use"):
            yield
            return
        looks = {name: partial(self._look, lambda fd: fd) for name in LOOKS}
        # The descriptor is the first of what poll(2) is given.
        looks["poll"] = partial(self._look, lambda files: ffi.cast("int *", files)[0])
        with kernel_table.calls(**looks):
            yield

    def _look(self, fd_of: Callable[[Any], int], call: Any, *arguments: Any) -> Any:
        fd = fd_of(arguments[0])
        times, before, after = self._acts.get(fd, (0, nothing, nothing))
        if not times or self._acting or threading.get_ident() != self._thread:
            return call(*arguments)
        self._acts[fd] = times - 1, before, after
        self._acting = True
        try:
            self._try(before)
            answer = call(*arguments)
            self._try(after)
        finally:
            self._acting = False
        return answer

    def _try(self, act: Callable[[], Any]) -> None:
        """What is raised here would be printed and lost."""
        try:
            act()
        except BaseException as exc:  # noqa: BLE001  raised again by `forget`
            self._failed = exc
