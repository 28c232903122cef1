"""``run`` and ``install``: trio's own entry points, with a choice of backend.

Nothing here touches trio unless its release is known to have what the hooks need:
``_hooks`` is imported only then, so that an unknown trio is a reason to fall back and
not an ImportError.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from uring_trio import _probe
from uring_trio._process import locks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import ModuleType

    from uring_trio._probe import Backend, ProbeReport
    from uring_trio._ring_options import RingOptions

T = TypeVar("T")

# As they were at import, so that `trio.run = uring_trio.run` does not go round in circles.
_trio_run = trio.run
_trio_start_guest_run = trio.lowlevel.start_guest_run


def run(
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    backend: Backend = "auto",
    ring: RingOptions | None = None,
    instruments: Iterable[trio.abc.Instrument] = (),
    **options: Any,
) -> T:
    """Run ``await async_fn(*args)`` in trio, on io_uring; only this run, in any thread.

    Takes all that ``trio.run`` takes.

    Args:
      async_fn: the main task.
      *args: its arguments.
      backend: ``"auto"`` falls back to trio's own manager where there is no ring, and logs
        why; ``"io_uring"`` raises instead; ``"epoll"`` does not try.
      ring: how large its ring is; None: as ``install`` was told, or as usual.
      instruments: as in ``trio.run``.
      **options: as in ``trio.run``.

    Returns:
      What *async_fn* returned.

    Raises:
      UringUnavailable: the ring is demanded, and cannot be had.
      ValueError: *backend*, or the environment variable, is none of the three.
    """
    __tracebackhide__ = True
    choice = _probe.choose(backend)
    hooks = _hooks_of_known_trio()
    instruments = list(instruments)
    if hooks is None:
        warn_of_fallback(choice)
        return _trio_run(async_fn, *args, instruments=instruments, **options)
    entrance = hooks.Entrance(choice, ring)
    while True:
        try:
            entrance.open()
            result = _trio_run(async_fn, *args, instruments=[entrance, *instruments], **options)
            break
        except (OSError, MemoryError) as exc:
            if not entrance.gives_way(exc):
                raise
        finally:
            entrance.close()
    entrance.check()
    return result


def start_guest_run(
    async_fn: Callable[..., Awaitable[Any]],
    *args: Any,
    backend: Backend = "auto",
    ring: RingOptions | None = None,
    instruments: Iterable[trio.abc.Instrument] = (),
    **options: Any,
) -> None:
    """Start a guest run on io_uring; otherwise as ``trio.lowlevel.start_guest_run``.

    To be called on the host loop's thread: the ring is made here, and belongs to it.

    Args:
      async_fn: the main task.
      *args: its arguments.
      backend: as in ``run``.
      ring: as in ``run``.
      instruments: as in ``trio.run``.
      **options: as in ``trio.lowlevel.start_guest_run``.

    Raises:
      UringUnavailable: the ring is demanded, and cannot be had.
      ValueError: *backend*, or the environment variable, is none of the three.
    """
    choice = _probe.choose(backend)
    hooks = _hooks_of_known_trio()
    instruments = list(instruments)
    if hooks is None:
        warn_of_fallback(choice)
        _trio_start_guest_run(async_fn, *args, instruments=instruments, **options)
        return
    entrance = hooks.Entrance(choice, ring)
    while True:
        try:
            entrance.open()
            _trio_start_guest_run(async_fn, *args, instruments=[entrance, *instruments], **options)
            break
        except (OSError, MemoryError) as exc:
            if not entrance.gives_way(exc):
                raise
        finally:
            entrance.close()
    entrance.check()


def install(*, backend: Backend = "auto", ring: RingOptions | None = None) -> ProbeReport:
    """Put trio on io_uring for all runs that start later, in every thread.

    To be undone with ``uninstall``. A second call with the same arguments does nothing.

    Args:
      backend: as in ``run``. With ``"auto"`` each run falls back by itself.
      ring: how large the rings are of runs that say nothing about theirs.

    Returns:
      What ``probe()`` says from now on, outside of runs.

    Raises:
      RuntimeError: installed already with another backend or other sizes, or somebody else
        has replaced trio's manager.
      UringUnavailable: the ring is demanded, and cannot be had.
      ValueError: *backend*, or the environment variable, is none of the three.
    """
    with locks.install:
        installed = _probe.installed_demand()
        if installed is None:
            choice = _probe.choose(backend)
            if choice.demand == "io_uring":
                # Also for a failure that may have passed when a run starts.
                _probe.raise_if_denied_now()
            try:
                _probe.remember_demand(backend, ring)
                hooks = _hooks_of_known_trio()
                if hooks is not None:
                    hooks.install(choice)
            except BaseException:
                _uninstall()
                raise
            warn_of_fallback(choice)
        elif installed != backend:
            raise RuntimeError(
                f"uring_trio is installed already with backend={installed!r}; "
                "call uring_trio.uninstall() first"
            )
        elif _probe.installed_ring() != ring:
            raise RuntimeError(
                f"uring_trio is installed already with ring={_probe.installed_ring()!r}; "
                "call uring_trio.uninstall() first"
            )
    return _probe.outlook()


def uninstall() -> None:
    """Put trio back as it was; runs under way keep their manager until they end."""
    with locks.install:
        if _probe.installed_demand() is not None:
            _uninstall()


def _uninstall() -> None:
    hooks = _hooks_of_known_trio()
    if hooks is not None:
        hooks.uninstall()
    _probe.remember_demand(None)


def _hooks_of_known_trio() -> ModuleType | None:
    """The module that hooks trio, or None where this trio or platform cannot be hooked."""
    if _probe.trio_failure() is not None:
        return None
    from uring_trio import _hooks

    return _hooks


def warn_of_fallback(choice: _probe.Choice) -> None:
    """Log that runs fall back, if that is known and was not asked for."""
    if choice.failure is not None and choice.demand != "epoll":
        _probe.warn_once(choice.failure)


def _signature_with_backend(trios: Callable[..., Any]) -> inspect.Signature:
    """The signature of trio's function plus what is ours: what help() and editors show."""
    signature = inspect.signature(trios)
    ours = inspect.signature(run).parameters
    return signature.replace(
        parameters=[*signature.parameters.values(), ours["backend"], ours["ring"]]
    )


start_guest_run.__signature__ = _signature_with_backend(_trio_start_guest_run)  # type: ignore[attr-defined]
run.__signature__ = _signature_with_backend(_trio_run)  # type: ignore[attr-defined]

# A program may give up its rights, its root or its memory after its imports: nothing of ours
# is left to be imported then.
_hooks_of_known_trio()
