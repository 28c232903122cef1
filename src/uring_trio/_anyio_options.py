"""``anyio_options``: what to give to anyio so that its trio backend runs on the ring."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from uring_trio import _probe, _run

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from uring_trio._probe import Backend
    from uring_trio._ring_options import RingOptions

# Releases before it drop what `anyio.run` is given for trio, and say nothing.
ANYIO_MIN = (4, 14)


def anyio_options(
    *,
    backend: Backend = "auto",
    ring: RingOptions | None = None,
    instruments: Iterable[trio.abc.Instrument] = (),
    **trio_options: Any,
) -> dict[str, Any]:
    """Make *backend_options* for anyio's backend ``"trio"`` that put its runs on io_uring.

    To be used as ``anyio.run(main, backend="trio", backend_options=anyio_options())``, and
    wherever else anyio takes options. The same dictionary serves any number of runs, one
    after the other and in several threads at once; each run has a ring of its own.

    A run whose ring is demanded and cannot be made fails with ``UringUnavailable``, which
    ``anyio.run`` raises before the program has made a step.

    Args:
      backend: as in ``run``.
      ring: as in ``run``.
      instruments: as in ``trio.run``; they are called after ours.
      **trio_options: as in ``trio.run``.

    Returns:
      Keyword arguments for ``trio.run`` or ``trio.lowlevel.start_guest_run``.

    Raises:
      RuntimeError: the anyio that is installed is older than 4.14 and would drop them.
      UringUnavailable: the ring is demanded, and cannot be had.
      ValueError: *backend*, or the environment variable, is none of the three.
    """
    refuse_old_anyio()
    choice = _probe.choose(backend)
    if choice.demand == "io_uring":
        # Also for a failure that may have passed when a run starts.
        _probe.raise_if_denied_now()
    ours: list[trio.abc.Instrument] = []
    if _probe.trio_failure() is None:
        from uring_trio._each_run import EachRun

        ours.append(EachRun(backend, ring))
        # Of options that came from here before: the last word counts.
        instruments = [other for other in instruments if not isinstance(other, EachRun)]
    else:
        _run.warn_of_fallback(choice)
    return {**trio_options, "instruments": [*ours, *instruments]}


def refuse_old_anyio() -> None:
    """Raise RuntimeError if there is an anyio here that loses the options of its backends."""
    try:
        installed = version("anyio")
    except PackageNotFoundError:
        return
    numbers = tuple(int(part) for part in installed.split(".")[:2] if part.isdecimal())
    if numbers < ANYIO_MIN:
        wanted = ".".join(map(str, ANYIO_MIN))
        raise RuntimeError(
            f"anyio {installed} drops the options of its trio backend, so that its runs would "
            f"be on epoll unseen; uring_trio needs anyio {wanted} or later"
        )
