"""Signals at single lines: the nth line of chosen code that a thread runs, whatever it is."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uring_trio

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from types import CodeType, FrameType

SOURCES = str(Path(uring_trio.__file__).parent)


def is_ours(code: CodeType) -> bool:
    """Whether it is the product's."""
    return code.co_filename.startswith(SOURCES)


class Lines:
    """Counts the lines that this thread runs of chosen code, and signals at some.

    Attributes:
      count: how many there were.
    """

    def __init__(
        self,
        chosen: Callable[[CodeType], bool],
        at: Container[int | None],
        number: signal.Signals = signal.SIGINT,
    ) -> None:
        self.count = 0
        self._chosen = chosen
        self._at = at
        self._number = number

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._line if self._chosen(frame.f_code) else None

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count in self._at:
                signal.raise_signal(self._number)
        return self._line
