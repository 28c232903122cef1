"""Callbacks that do not run in the worker's turn: ``async def``, and ``on_read`` in a thread.

Each runs as a task of the worker's nursery. The connection is busy meanwhile: what comes
for it gathers, and is looked at when the callback has ended.

Where a server is aborted they are cancelled, so that it ends. ``on_close`` is not: it is a
connection's last word, and has `ON_CLOSE_S` from then on, or from its beginning.
"""

from __future__ import annotations

from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

import trio

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from uring_trio.gain._config import Config
    from uring_trio.gain._handler import Callbacks

# Seconds that an async on_close has once its worker is aborted: as a server's drain has.
ON_CLOSE_S = 5.0


class Host(Protocol):
    """What a callback is of: a connection, or a datagram."""

    def begin_elsewhere(self, *, in_thread: bool) -> None: ...

    def borrow(self, thread: int) -> bool: ...

    def may_tell(self, name: str) -> bool: ...

    def ended_elsewhere(self, name: str, exc: Exception | None) -> None: ...


class Elsewhere:
    """Runs callbacks as tasks and in threads, for one worker."""

    def __init__(self, callbacks: Callbacks, config: Config, logger: logging.Logger) -> None:
        self._config = config
        self._logger = logger
        self._nursery: trio.Nursery | None = None
        self._limiter: trio.CapacityLimiter | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._closing: set[trio.CancelScope] = set()  # of on_close
        self._deadline_s = inf  # of an on_close that begins now
        self._names = {
            name
            for name in ("on_accept", "on_read", "on_write", "on_close", "on_eof")
            if callbacks.is_async(name)
        }
        self._in_threads = config.async_handler and not callbacks.is_async("on_read")
        if self._in_threads:
            self._names.add("on_read")

    def begin(self, nursery: trio.Nursery) -> None:
        """The worker runs."""
        self._nursery = nursery

    @property
    def closing(self) -> int:
        """How many on_close run."""
        return len(self._closing)

    def runs(self, name: str) -> bool:
        """Whether this callback is no plain call."""
        return name in self._names

    def run(
        self, host: Host, name: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        """Run a callback as a task; its host's `ended_elsewhere` is called at its end."""
        assert self._nursery is not None
        in_thread = name == "on_read" and self._in_threads
        host.begin_elsewhere(in_thread=in_thread)
        if in_thread:
            self._nursery.start_soon(self._run_in_thread, host, function, args)
        elif name == "on_close":
            self._nursery.start_soon(self._run_on_close, host, function, args)
        else:
            self._nursery.start_soon(self._run_async, host, name, function, args)

    async def _run_async(
        self, host: Host, name: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        raised: Exception | None = None
        try:
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    # What it would be told of went with the connection.
                    if host.may_tell(name):
                        await function(*args)
                finally:
                    self._scopes.discard(scope)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            raised = exc
        finally:
            host.ended_elsewhere(name, raised)

    async def _run_on_close(
        self, host: Host, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        raised: Exception | None = None
        try:
            # It is called whatever happens, also when the server is cancelled.
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + self._deadline_s
                self._closing.add(scope)
                try:
                    await function(*args)
                finally:
                    self._closing.discard(scope)
            if scope.cancelled_caught:
                self._logger.warning(
                    "on_close was cancelled, since it ran for %g s after its server was "
                    "aborted: %r",
                    ON_CLOSE_S,
                    args[0],
                )
        except Exception as exc:  # noqa: BLE001 - logged
            raised = exc
        finally:
            host.ended_elsewhere("on_close", raised)

    async def _run_in_thread(
        self, host: Host, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self._config.pool)

        def call() -> None:
            if host.borrow(get_ident()):
                function(*args)

        raised: Exception | None = None
        try:
            await trio.to_thread.run_sync(call, limiter=self._limiter)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            raised = exc
        finally:
            host.ended_elsewhere("on_read", raised)

    def cancel(self) -> None:
        """The time is over: cancel the callbacks that run as tasks, on_close after a while."""
        self._deadline_s = ON_CLOSE_S
        deadline = trio.current_time() + ON_CLOSE_S
        for scope in self._scopes:
            scope.cancel()
        for scope in self._closing:
            scope.deadline = min(scope.deadline, deadline)
