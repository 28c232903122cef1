"""Which backend a run gets here, and why.

Three things decide. *Demand*: the argument, else the environment variable, else what
``install()`` was asked for. *Trio*: an unknown release, where a private name is missing,
gets no ring. *The kernel*: tried by doing, once for each process.

Where the demand is epoll the kernel is not tried at all: a seccomp filter may kill the
process at the first io_uring call, and then even asking is fatal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import math
import os
import platform
import sys
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import trio

from uring_trio import _hot_parts, _kernel, _trio_private
from uring_trio._errors import UringUnavailable
from uring_trio._process import in_child, locks
from uring_trio._remedies import (
    Failure,
    explain,
    extension_missing,
    process_limits,
    trio_unknown,
)
from uring_trio._shortage import (
    LARGEST_CQ_BYTES,
    RING_BYTES,
    counts_rings,
    in_kib,
    room_for_the_program,
    soft_limit,
)

if TYPE_CHECKING:
    from uring_trio._kernel import KernelProbe
    from uring_trio._ring_options import RingOptions

Backend = Literal["auto", "io_uring", "epoll"]

BACKENDS: tuple[Backend, ...] = ("auto", "io_uring", "epoll")
ENVIRONMENT_VARIABLE = "URING_TRIO_BACKEND"

# trio's own manager, for the words of a report.
STOCK_BACKENDS = {"linux": "epoll", "win32": "windows"}  # elsewhere kqueue

# Failures of the moment: other rings of this user or process were in the way, or the
# machine was too busy, and that may be over when the next run starts. So then the kernel
# is asked again, and what it says holds for that run alone.
PASSING_ERRORS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ETIME}

# When there is not even memory to say what there is no memory for.
NO_MEMORY = Failure("memory", "there is no memory to find out why", "Free memory.")

# Waits for a ring's memory to come back, 700 ms in all. After 32 ms it was there in each of
# 60 runs (Linux 6.18, 64 KiB); the kernel's worker that gives it back waits for a CPU as all
# do, and with 13 others in line for two of them 190 ms were too few once. Growing, and not at
# a fixed pace, because an attempt that fails half-way is charged too: at 0.5 ms it took seconds.
MEMORY_WAITS_S = (0.002, 0.004, 0.008, 0.016, 0.032, 0.128, 0.512)

logger = logging.getLogger("uring_trio")


@dataclass(frozen=True)
class ProbeReport:
    """Which backend runs get here, and why.

    Attributes:
      backend: ``"io_uring"``, or trio's own, ``"epoll"``. Inside a run, that run's;
        outside, what a run with ``backend="auto"`` would get.
      reason: why it is not the ring; None on the ring.
      remedy: what to do about it; None on the ring.
      kernel: system and release.
      setup_flags: the flags that rings are made with.
      features: what the kernel says of its rings, and what was seen to work.
      opcodes: the operations that the kernel knows.
      limits: sizes of a ring in entries, and this process's limits.
      trio_version: the version of trio.
      hot_paths: ``"C"``, or that they are Python's, and why.
      problems: everything found that stands in the way, now or later.
    """

    backend: str
    reason: str | None
    remedy: str | None
    kernel: str
    setup_flags: tuple[str, ...]
    features: tuple[str, ...]
    opcodes: tuple[str, ...]
    limits: dict[str, int]
    trio_version: str
    hot_paths: str
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True)
class Choice:
    """What a run was asked to be on, and why it is not on the ring, if that is known already."""

    demand: Backend
    failure: Failure | None


class ProcessState:
    """What is known in this process; a forked child begins anew.

    Attributes:
      kernel_probe: what the kernel did when it was tried; None: it was not, or not lately.
      ring_given_up_at: when the last ring was closed, by `time.monotonic`.
      warned: by cause, whose warning it was.
    """

    def __init__(self) -> None:
        self.kernel_probe: KernelProbe | None = None
        self.ring_given_up_at = -math.inf
        self.warned: dict[str, object] = {}
        self._explained: tuple[KernelProbe, Failure] | None = None

    def remember_probe(self, found: KernelProbe | None) -> None:
        """What the kernel did just now; None: it is to be asked anew."""
        self.kernel_probe = found

    def note_ring_given_up(self) -> None:
        """A ring was closed just now."""
        self.ring_given_up_at = time.monotonic()

    def explained(self, kernel: KernelProbe) -> Failure:
        """Why the kernel gave no ring; looked into once, since it takes some looking."""
        explained = self._explained
        if explained is None or explained[0] is not kernel:
            explained = self._explained = (kernel, why_no_ring(kernel.error, kernel.stage))
        return explained[1]


_state = ProcessState()

# What install() was asked for, here because probe() must tell of it. A forked child keeps it.
_installed_demand: Backend | None = None
_installed_ring: RingOptions | None = None

# IO manager of a run that was started through us -> why it is not a ring (None: it is one).
_runs: weakref.WeakKeyDictionary[Any, Failure | None] = weakref.WeakKeyDictionary()


def _forget_in_child() -> None:
    global _state
    _state = ProcessState()


in_child("kernel", _forget_in_child)


def probe(refresh: bool = False) -> ProbeReport:
    """Tell which backend a run gets here, and why.

    The kernel is asked once in a process, and again after a fork. With the environment
    variable ``URING_TRIO_BACKEND=epoll`` it is not asked at all.

    Args:
      refresh: ask the kernel again, because a limit or a sysctl was changed.

    Raises:
      ValueError: the environment variable has a value that is none of the three.
    """
    running = running_backend()
    if running is None:
        return outlook(refresh=refresh)
    failure = None if running == "io_uring" else _failure_of_this_run()
    may_ask = failure is None or choose_demand("auto")[0] != "epoll"
    return _report(running, failure, kernel_probe(again=refresh) if may_ask else None)


def outlook(*, refresh: bool = False) -> ProbeReport:
    """The report on runs that start from now on."""
    if refresh and choose_demand("auto")[0] != "epoll":
        kernel_probe(again=True)
    choice = choose("auto", failing=False)
    if choice.demand == "epoll":
        return _report(stock_backend(), choice.failure, None)
    backend = "io_uring" if choice.failure is None else stock_backend()
    return _report(backend, choice.failure, kernel_probe())


def choose(backend: str, *, failing: bool = True) -> Choice:
    """Decide what a run that was asked to be on *backend* will try.

    Args:
      backend: the argument of ``run`` and the others.
      failing: raise where the ring is demanded and cannot be had.

    Raises:
      UringUnavailable: the ring is demanded, and cannot be had.
      ValueError: *backend* or the environment variable is none of the three.
    """
    demand, why_epoll = choose_demand(backend)
    if demand == "epoll":
        if backend == "io_uring" and failing:
            raise UringUnavailable(why_epoll.reason, why_epoll.remedy)
        return Choice("epoll", why_epoll)
    failure = trio_failure()
    if failure is None:
        kernel_probe(again=_has_passing_error(_state.kernel_probe))
        failure = kernel_failure()
    if failure is None and demand == "auto":
        failure = _no_room()
    if failure is not None and demand == "io_uring" and failing:
        raise UringUnavailable(failure.reason, failure.remedy)
    return Choice(demand, failure)


def _no_room() -> Failure | None:
    """Why there is no room for a program beside a ring, or None.

    Who demands the ring has decided what its memory is for, and is not asked.
    """
    try:
        with room_for_the_program(RING_BYTES):
            return None
    except (OSError, MemoryError) as exc:
        return why_refused(exc)


ASKED_FOR = Failure("asked for", "epoll was asked for", "Ask for backend='auto'.")


def choose_demand(backend: str) -> tuple[Backend, Failure]:
    """What is demanded, all considered, and why it is not the ring, if it is epoll.

    Raises:
      ValueError: *backend* or the environment variable is none of the three.
    """
    for known in BACKENDS:
        if backend == known:
            demand = known
            break
    else:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    environment = backend_from_environment()
    if environment == "epoll":
        return "epoll", Failure(
            "environment",
            f"the environment variable {ENVIRONMENT_VARIABLE} is 'epoll'",
            f"Unset {ENVIRONMENT_VARIABLE}, or set it to 'auto'.",
        )
    if demand == "auto":
        demand = environment or _installed_demand or "auto"
    return demand, ASKED_FOR


def backend_from_environment() -> Backend | None:
    """The environment variable's value; None where it is not set, empty or ``auto``."""
    value = os.environ.get(ENVIRONMENT_VARIABLE, "")
    for backend in BACKENDS:
        if value == backend:
            return None if backend == "auto" else backend
    if value:
        raise ValueError(
            f"the environment variable {ENVIRONMENT_VARIABLE} must be one of "
            f"{', '.join(BACKENDS)}, not {value!r}"
        )
    return None


# A look at some 60 names, for each run twice; a trio that is imported does not lose any.
_missing_names = functools.cache(_trio_private.missing_names)


def trio_failure() -> Failure | None:
    """Why this trio cannot be hooked, or None. Asks nothing of the kernel."""
    if not _kernel.extension_available():
        return extension_missing()
    missing = _missing_names()
    return trio_unknown(missing, trio.__version__) if missing else None


def kernel_failure() -> Failure | None:
    """Why this kernel gave no ring when it was asked, or None."""
    return _failure_of(kernel_probe())


def _failure_of(kernel: KernelProbe) -> Failure | None:
    """The same of an answer of the kernel's."""
    return _state.explained(kernel) if kernel.error else None


def why_no_ring(error: int, stage: str) -> Failure:
    """What it means that *stage* failed with *error*, a positive errno."""
    try:
        return explain(error, stage)
    except MemoryError:
        return NO_MEMORY


def why_refused(exc: OSError | MemoryError) -> Failure:
    """What it means that a ring could not be made, or a run not be started beside it.

    A text of ours names the step before its colon.
    """
    if isinstance(exc, OSError):
        step, colon, _ = (exc.strerror or "").partition(": ")
        return why_no_ring(exc.errno or 0, step if colon else "start trio beside a ring")
    return why_no_ring(errno.ENOMEM, _kernel.PYTHON_MEMORY)


def forget_kernel() -> None:
    """Ask anew at the next question: the kernel does no longer what it said."""
    _state.remember_probe(None)


def kernel_probe(*, again: bool = False) -> KernelProbe:
    """What the kernel can do; it is asked once in a process, unless *again*."""
    state = _state
    with locks.kernel:
        if state.kernel_probe is None or again:
            found = _probe_with_patience(first=state.kernel_probe is None)
            state.remember_probe(found)
            if found.stage != "io_uring_setup":
                note_ring_given_up()
            return found
        return state.kernel_probe


def _probe_with_patience(*, first: bool) -> KernelProbe:
    """Probe, and wait for memory that is on its way, as a run does for its ring.

    Other rings of this user may be going too, but only the first time is it waited for
    them: a lasting lack of memory is told at once. A kernel that did not answer in time is
    asked once more.
    """
    try:
        sizes = _kernel.RingSizes()
        for wait_s in (*MEMORY_WAITS_S, None):
            found = _kernel.probe_kernel(sizes)
            on_its_way = first or sizes.halved or gave_up_a_ring_just_now()
            if found.error != errno.ENOMEM or wait_s is None or not on_its_way:
                break
            time.sleep(wait_s)
        if found.error == errno.ETIME and first:
            found = _kernel.probe_kernel(sizes)
    except MemoryError:
        return _kernel.KernelProbe(error=errno.ENOMEM, stage=_kernel.PYTHON_MEMORY)
    return found


def raise_if_denied_now() -> None:
    """Raise UringUnavailable if a run that started now would get no ring."""
    kernel_probe(again=_has_passing_error(_state.kernel_probe))
    failure = trio_failure() or kernel_failure()
    if failure is not None:
        raise UringUnavailable(failure.reason, failure.remedy)


def _has_passing_error(kernel: KernelProbe | None) -> bool:
    return kernel is not None and kernel.error in PASSING_ERRORS


def note_ring_given_up() -> None:
    """A ring of this process was closed just now; the kernel frees its memory later."""
    _state.note_ring_given_up()


def gave_up_a_ring_just_now() -> bool:
    """Whether the memory of a closed ring of this process may be on its way back."""
    # Twice what is waited for it: some of that has passed while we wait.
    return time.monotonic() - _state.ring_given_up_at < 2 * sum(MEMORY_WAITS_S)


def warn_once(failure: Failure) -> None:
    """Log that a run falls back, once for each process and cause."""
    mine = object()
    if _state.warned.setdefault(failure.cause, mine) is not mine:
        return  # in one step, because runs start in several threads at once
    with contextlib.suppress(MemoryError):  # then nothing is told, and it runs all the same
        logger.warning(
            "no io_uring, this runs on %s: %s. %s",
            stock_backend(),
            failure.reason,
            failure.remedy,
        )


def remember_demand(demand: Backend | None, ring: RingOptions | None = None) -> None:
    """Note what ``install()`` was asked for; None: it is no more."""
    global _installed_demand, _installed_ring
    _installed_demand, _installed_ring = demand, ring


def installed_demand() -> Backend | None:
    return _installed_demand


def installed_ring() -> RingOptions | None:
    """The sizes of the rings that ``install()`` makes, if it was given any."""
    return _installed_ring


def remember_run(io_manager: Any, failure: Failure | None) -> None:
    """Note why the run on *io_manager* has no ring; None: it has one."""
    _runs[io_manager] = failure


def stock_backend() -> str:
    """The name of trio's own manager on this platform."""
    return STOCK_BACKENDS.get(sys.platform, "kqueue")


def running_backend() -> str | None:
    """The backend of the run that the caller is in, or None outside of any."""
    try:
        statistics = trio.lowlevel.current_statistics()
    except RuntimeError:
        return None
    return str(statistics.io_statistics.backend)


def _failure_of_this_run() -> Failure:
    """Why the run that the caller is in is not on the ring."""
    trio_unusable = trio_failure()
    if trio_unusable is not None:
        return trio_unusable
    failure = _runs.get(_trio_private.current_runner().io_manager)
    return failure or Failure(
        "plain trio.run",
        "this run was started by trio.run while uring_trio was not installed",
        "Start it with uring_trio.run, or call uring_trio.install() before it.",
    )


def _report(backend: str, failure: Failure | None, kernel: KernelProbe | None) -> ProbeReport:
    return ProbeReport(
        backend=backend,
        reason=failure.reason if failure else None,
        remedy=failure.remedy if failure else None,
        kernel=f"{platform.system()} {platform.release()}",
        setup_flags=kernel.setup_flags if kernel else (),
        features=kernel.features if kernel else (),
        opcodes=kernel.opcodes if kernel else (),
        limits={**(kernel.limits if kernel else {}), **process_limits()},
        trio_version=trio.__version__,
        hot_paths="C" if _hot_parts.hot is not None else f"Python: {_hot_parts.why_python}",
        problems=tuple(_problems(failure, kernel)),
    )


def _problems(failure: Failure | None, kernel: KernelProbe | None) -> list[str]:
    """All that stands in the way, each once; the reason of the fallback first."""
    found = [failure.reason] if failure else []
    unusable = trio_failure()
    if unusable:
        found.append(unusable.reason)
    refused = _failure_of(kernel) if kernel is not None else None
    if refused:
        found.append(refused.reason)
    memlock = soft_limit("RLIMIT_MEMLOCK")
    # Under it the second or third ring of a user may fail where the first was made.
    if kernel is not None and 0 <= memlock < LARGEST_CQ_BYTES and counts_rings():
        found.append(
            f"RLIMIT_MEMLOCK is {in_kib(memlock)}, and this kernel counts rings against it: "
            "later rings of this user may fail, and their runs fall back"
        )
    return list(dict.fromkeys(found))
