"""The nursery of one connection: from its first task to the connection's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from uring_trio.gain._errors import alone

if TYPE_CHECKING:
    from collections.abc import Callable


class Tasks:
    """The tasks of one connection.

    Args:
      failed: called with what one of them has raised.
      ended: called when one is over.

    Attributes:
      running: how many there are.
    """

    __slots__ = ("_ended", "_failed", "_nursery", "_over", "_waiting", "running")

    def __init__(
        self, failed: Callable[[str, BaseException], None], ended: Callable[[], None]
    ) -> None:
        self._failed = failed
        self._ended = ended
        self._nursery: trio.Nursery | None = None
        self._waiting: list[tuple[Any, tuple[Any, ...], object]] = []
        self._over = False
        self.running = 0

    def start(self, host: trio.Nursery, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        """Run one more, in a nursery in *host*."""
        self.running += 1
        if self._nursery is not None:
            self._nursery.start_soon(self._run, async_fn, args, name=name)
            return
        if not self._waiting:
            host.start_soon(self._host)
        self._waiting.append((async_fn, args, name))

    def cancel(self) -> None:
        """The connection is closed."""
        self._over = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _host(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                waiting, self._waiting = self._waiting, []
                for async_fn, args, name in waiting:
                    nursery.start_soon(self._run, async_fn, args, name=name)
                self._nursery = nursery
                try:
                    if not self._over:
                        await trio.sleep_forever()
                finally:
                    self._nursery = None  # closed to new tasks from here on
                nursery.cancel_scope.cancel()
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            self._failed("a task", alone(exc) or exc)

    async def _run(self, async_fn: Any, args: tuple[Any, ...]) -> None:
        try:
            await async_fn(*args)
        finally:
            self.running -= 1
            self._ended()
