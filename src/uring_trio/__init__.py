"""trio on Linux io_uring.

``uring_trio.run(main)`` instead of ``trio.run(main)``, or ``uring_trio.install()`` once
and then plain ``trio.run``: the program is the same, and its socket, stream and pipe
operations are completions. anyio programs have ``anyio.run(main, backend="uring_trio")``.

PYTEST_DONT_REWRITE (or pytest, since it loads us, warns programs that did so before it)
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from uring_trio import _anyio_name

if TYPE_CHECKING:
    from uring_trio._anyio_options import anyio_options
    from uring_trio._errors import UringUnavailable
    from uring_trio._probe import ProbeReport, probe
    from uring_trio._ring_options import RingOptions
    from uring_trio._run import install, run, start_guest_run, uninstall
    from uring_trio._statistics import IOStatistics

__all__ = [
    "IOStatistics",
    "ProbeReport",
    "RingOptions",
    "UringUnavailable",
    "__version__",
    "anyio_options",
    "install",
    "probe",
    "run",
    "start_guest_run",
    "uninstall",
]

__version__ = version("uring_trio")

_anyio_name.make_known()

# pytest imports this package in every session, for the line above. So where nobody has
# imported trio yet, that is left to the first public name that is used.
if not TYPE_CHECKING:  # or every misspelt name would have a type

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from uring_trio import _api

        globals().update(_api.NAMES)
        return _api.NAMES[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    if "trio" in sys.modules:
        # A program that gives up its rights, or its root, after its imports needs no more then.
        __getattr__(__all__[0])
