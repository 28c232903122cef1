"""trio on Linux io_uring.

``uring_trio.run(main)`` instead of ``trio.run(main)``, or ``uring_trio.install()`` once
and then plain ``trio.run``: the program is the same, and its socket, stream and pipe
operations are completions.
"""

from __future__ import annotations

from importlib.metadata import version

from uring_trio._errors import UringUnavailable
from uring_trio._probe import ProbeReport, probe
from uring_trio._run import install, run, start_guest_run, uninstall
from uring_trio._statistics import IOStatistics

__all__ = [
    "IOStatistics",
    "ProbeReport",
    "UringUnavailable",
    "__version__",
    "install",
    "probe",
    "run",
    "start_guest_run",
    "uninstall",
]

__version__ = version("uring_trio")

# Users see one module: `uring_trio.run`, not `uring_trio._run.run`.
for _name in __all__:
    if _name != "__version__":
        globals()[_name].__module__ = __name__
