"""The public names, loaded all at once when the first of them is used."""

from __future__ import annotations

from typing import Any

from uring_trio._anyio_options import anyio_options
from uring_trio._errors import UringUnavailable
from uring_trio._probe import ProbeReport, probe
from uring_trio._ring_options import RingOptions
from uring_trio._run import install, run, start_guest_run, uninstall
from uring_trio._statistics import IOStatistics

NAMES: dict[str, Any] = {
    thing.__name__: thing
    for thing in (
        IOStatistics,
        ProbeReport,
        RingOptions,
        UringUnavailable,
        anyio_options,
        install,
        probe,
        run,
        start_guest_run,
        uninstall,
    )
}

# Users see one module: `uring_trio.run`, not `uring_trio._run.run`.
for _thing in NAMES.values():
    _thing.__module__ = "uring_trio"
