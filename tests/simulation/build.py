"""The extension that has the simulated kernel: built on first use, out of csrc/tests.

`builds` does it, and has the engine beside it: under a sanitizer's engine, the simulated kernel
is built with the sanitizer as well.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from typing import Any

import builds

SOURCES = (
    *("draw.c", "kring.c"),
    *("sim.c", "sim_beside.c", "sim_choices.c", "sim_files.c", "sim_requests.c"),
    *("net.c", "net_errors.c", "net_message.c", "net_names.c", "net_tcp.c", "net_udp.c"),
    *("net_unix.c", "net_unix_message.c", "net_unix_stream.c"),
)
HEADERS = ("sim.h", "net.h")
# What both headers name and neither declares.
FOREIGN = """
struct ut_kernel;
typedef int... socklen_t;
struct sockaddr;
struct msghdr;
"""
NAME = "_uring_trio_simulation"


def declarations() -> str:
    """The headers as cffi reads them: no lines of the preprocessor's, and no variables."""
    text = "".join((builds.C_TESTS / name).read_text(encoding="utf-8") for name in HEADERS)
    return FOREIGN + "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith(("#", "extern"))
    )


@functools.cache
def load() -> tuple[Any, Any]:
    """The extension's ``(ffi, lib)``."""
    path = builds.build_beside(
        builds.Extension(
            NAME,
            tuple(f"tests/{name}" for name in SOURCES),
            tuple(f"tests/{name}" for name in HEADERS),
            declarations(),
        ),
        "simulation",
    )
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module.ffi, module.lib
