"""The extension that has the simulated kernel: built on first use, out of csrc/tests.

It is kept below build/, which git and wheels leave alone, by a hash of all that it is built
from; so it is never stale, and building it again is deleting it. Several processes may come
here at once: each builds for itself, and the first to finish is everybody's.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from cffi import FFI

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = (
    *("kring.c", "sim.c", "sim_beside.c", "sim_choices.c", "sim_files.c", "sim_requests.c"),
    *("net.c", "net_errors.c", "net_message.c", "net_names.c", "net_tcp.c", "net_udp.c"),
    *("net_unix.c", "net_unix_message.c", "net_unix_stream.c"),
)
# What both headers name and neither declares.
FOREIGN = """
struct ut_kernel;
typedef int... socklen_t;
struct sockaddr;
struct msghdr;
"""
NAME = "_uring_trio_simulation"
ARGUMENTS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


def declarations() -> str:
    """The headers as cffi reads them: no lines of the preprocessor's, and no variables."""
    text = "".join(
        (CSRC / "tests" / name).read_text(encoding="utf-8") for name in ("sim.h", "net.h")
    )
    return FOREIGN + "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith(("#", "extern"))
    )


def key() -> str:
    """What the extension is built from, and for."""
    found = hashlib.sha256()
    for path in (*sorted(CSRC.glob("*.h")), *sorted((CSRC / "tests").glob("*.h"))):
        found.update(path.read_bytes())
    for name in SOURCES:
        found.update((CSRC / "tests" / name).read_bytes())
    found.update(Path(__file__).read_bytes())
    found.update(f"{sys.version} {sysconfig.get_config_var('CFLAGS')}".encode())
    return found.hexdigest()[:16]


def compile_into(place: Path) -> Path:
    """Build it."""
    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source(
        NAME,
        '#include "sim.h"\n#include "net.h"\n',
        sources=[str(CSRC / "tests" / name) for name in SOURCES],
        include_dirs=[str(CSRC), str(CSRC / "tests")],
        extra_compile_args=list(ARGUMENTS),
        extra_link_args=["-pthread"],
    )
    return Path(ffi.compile(tmpdir=str(place)))


def built() -> Path:
    """The extension's file."""
    place = ROOT / "build" / "simulation"
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    path = place / key() / (NAME + suffix)
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as own:
            made = compile_into(Path(own))
            path.parent.mkdir(exist_ok=True)
            os.replace(made, path)
    return path


@functools.cache
def load() -> tuple[Any, Any]:
    """The extension's ``(ffi, lib)``."""
    path = built()
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module.ffi, module.lib
