"""anyio's backend ``"uring_trio"``: its trio backend, whose runs are started on the ring.

anyio asks for a backend by name only to start a run. Inside of it the library's name is
``"trio"``, for anyio itself, httpx and whoever else asks, and all calls go to anyio's own
trio backend: what makes them completions is below trio, not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from anyio._backends._trio import TestRunner, TrioBackend
from anyio._core._eventloop import reset_current_async_library, set_current_async_library

from uring_trio._anyio_options import anyio_options, refuse_old_anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Self

T = TypeVar("T")

try:
    refuse_old_anyio()
except RuntimeError as exc:
    raise ImportError(str(exc)) from exc


class UringTestRunner(TestRunner):
    """What anyio's pytest plugin runs tests and fixtures in: one guest run."""

    def __enter__(self) -> Self:
        # The plugin has set the backend's name, for code that is not in the run.
        self._name_before = set_current_async_library("trio")
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:  # noqa: PYI036  handed on
        try:
            super().__exit__(*exc_info)
        finally:
            reset_current_async_library(self._name_before)


class UringTrioBackend(TrioBackend):
    """Starts runs on the ring; their options are those of ``anyio_options``."""

    @classmethod
    def run(
        cls,
        func: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> T:
        """Run ``await func(*args)``; as ``anyio.run`` calls it."""
        name_before = set_current_async_library("trio")
        try:
            return super().run(func, args, kwargs, anyio_options(**options))
        finally:
            reset_current_async_library(name_before)

    @classmethod
    def create_test_runner(cls, options: dict[str, Any]) -> UringTestRunner:
        """As anyio's pytest plugin calls it."""
        return UringTestRunner(**anyio_options(**options))


backend_class = UringTrioBackend
