"""The callbacks of a handler: which are there, and those that are no plain calls; and tasks.

An ``async def`` does not run in the worker's turn, nor does ``on_read`` in a thread. Each
runs as a task of the worker's nursery. The connection is busy meanwhile: what comes
for it gathers, and is looked at when the callback has ended.

Where a server is aborted they are cancelled, so that it ends. ``on_close`` is not: it is a
connection's last word, and has `ON_CLOSE_S` from then on, or from its beginning.
"""

from __future__ import annotations

import inspect
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

import trio

from uring_trio.gain._errors import BaseExceptionGroup, alone, parted

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from uring_trio.gain._config import Config

CALLBACKS = (
    "on_start",
    "on_accept",
    "on_read",
    "on_write",
    "on_close",
    "on_eof",
    "on_tick",
)

# Seconds that an async on_close has once its worker is aborted: as a server's drain has.
ON_CLOSE_S = 5.0


class Callbacks:
    """A handler's callbacks: the bound method of each, or None where it is not defined.

    Args:
      handler: of the user.
      base: a class whose own callbacks count as not defined.

    Attributes:
      stream: makes of a connection what they get.
      datagram: makes that of a datagram.

    Raises:
      TypeError: a callback is there and cannot be called.
    """

    on_start: Callable[..., Any] | None
    on_accept: Callable[..., Any] | None
    on_read: Callable[..., Any] | None
    on_write: Callable[..., Any] | None
    on_close: Callable[..., Any] | None
    on_eof: Callable[..., Any] | None
    on_tick: Callable[..., Any] | None

    def __init__(
        self,
        handler: Any,
        stream: Callable[[Any], Any],
        datagram: Callable[[Any], Any],
        base: type,
    ) -> None:
        self.stream = stream
        self.datagram = datagram
        self._async: set[str] = set()
        for name in CALLBACKS:
            method = getattr(handler, name, None)
            if getattr(method, "__func__", None) is getattr(base, name, self):
                method = None
            if method is not None and not callable(method):
                raise TypeError(f"{name} of {handler!r} must be callable, not {method!r}")
            if method is not None and is_async(method):
                self._async.add(name)
            setattr(self, name, method)
        if all(getattr(handler, name, None) is None for name in CALLBACKS):
            raise TypeError(f"a handler defines callbacks such as on_read; {handler!r} has none")

    def is_async(self, name: str) -> bool:
        """Whether the callback is an ``async def``."""
        return name in self._async

    def any_async(self) -> bool:
        """Whether a callback of a connection is an ``async def``."""
        return bool(self._async - {"on_start", "on_tick"})


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine; an object with ``async def __call__`` too."""
    call = getattr(function, "__call__", None)  # noqa: B004 - the method is wanted
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class Host(Protocol):
    """What a callback is of: a connection, or a datagram."""

    def begin_elsewhere(self, *, in_thread: bool) -> None: ...

    def borrow(self, thread: int) -> bool: ...

    def may_tell(self, name: str) -> bool: ...

    def raised(self, name: str, exc: BaseException) -> None: ...

    def ended_elsewhere(self, name: str, exc: Exception | None) -> None: ...


@trio.lowlevel.disable_ki_protection
async def interruptible(async_fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call what is a user's: a KeyboardInterrupt may come in it, and not in what is around it."""
    await async_fn(*args)


class Elsewhere:
    """Runs callbacks as tasks and in threads, for one worker.

    Attributes:
      names: of the callbacks that are no plain calls.
    """

    def __init__(self, callbacks: Callbacks, config: Config, logger: logging.Logger) -> None:
        self._config = config
        self._logger = logger
        self._nursery: trio.Nursery | None = None
        self._limiter: trio.CapacityLimiter | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._closing: set[trio.CancelScope] = set()  # of on_close
        self._deadline_s = inf  # of an on_close that begins now
        self.names = {
            name
            for name in ("on_accept", "on_read", "on_write", "on_close", "on_eof")
            if callbacks.is_async(name)
        }
        self._in_threads = config.async_handler and not callbacks.is_async("on_read")
        if self._in_threads:
            self.names.add("on_read")

    def begin(self, nursery: trio.Nursery) -> None:
        """The worker runs."""
        self._nursery = nursery

    @property
    def closing(self) -> int:
        """How many on_close run."""
        return len(self._closing)

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

    @trio.lowlevel.enable_ki_protection
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
                        await interruptible(function, args)
                finally:
                    self._scopes.discard(scope)
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            raised = exc
        except BaseExceptionGroup as group:
            raised, rest = parted(group)
            raise rest from None
        finally:
            host.ended_elsewhere(name, raised)

    @trio.lowlevel.enable_ki_protection
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
                    await interruptible(function, args)
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
        except BaseExceptionGroup as group:
            raised, rest = parted(group)
            raise rest from None
        finally:
            host.ended_elsewhere("on_close", raised)

    @trio.lowlevel.enable_ki_protection
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
        except BaseExceptionGroup as group:  # it has come back to trio, and was cancelled there
            raised, rest = parted(group)
            raise rest from None
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


class Tasks:
    """The tasks of one connection: their nursery lives from the first to the connection's end.

    Args:
      failed: called with what one of them has raised.
      ended: called when one is over.

    Attributes:
      running: how many there are.
    """

    __slots__ = ("_ended", "_failed", "_nursery", "_scope", "_waiting", "running")

    def __init__(
        self, failed: Callable[[str, BaseException], None], ended: Callable[[], None]
    ) -> None:
        self._failed = failed
        self._ended = ended
        self._nursery: trio.Nursery | None = None
        self._waiting: list[tuple[Any, tuple[Any, ...], object]] = []
        self._scope = trio.CancelScope()
        self.running = 0

    def start(self, host: trio.Nursery, async_fn: Any, args: tuple[Any, ...], name: object) -> None:
        """Run one more, in a nursery in *host*."""
        if self._scope.cancel_called:
            return  # the connection or the worker ends, or one has failed: no task begins now
        self.running += 1
        if self._nursery is not None:
            self._nursery.start_soon(self._run, async_fn, args, name=name)
            return
        if not self._waiting:
            host.start_soon(self._host)
        self._waiting.append((async_fn, args, name))

    def cancel(self) -> None:
        """The connection is closed."""
        self._scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _host(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    waiting, self._waiting = self._waiting, []
                    for async_fn, args, name in waiting:
                        nursery.start_soon(self._run, async_fn, args, name=name)
                    self._nursery = nursery
                    try:
                        await trio.sleep_forever()
                    finally:
                        self._nursery = None
                        self._scope.cancel()  # nor can it be opened again
        except Exception as exc:  # noqa: BLE001 - logged, and told in on_close
            self._failed("a task", alone(exc) or exc)
        except BaseExceptionGroup as group:
            raised, rest = parted(group)
            if raised is not None:
                self._failed("a task", alone(raised) or raised)
            raise rest from None

    @trio.lowlevel.enable_ki_protection
    async def _run(self, async_fn: Any, args: tuple[Any, ...]) -> None:
        try:
            await interruptible(async_fn, args)
        finally:
            self.running -= 1
            self._ended()
