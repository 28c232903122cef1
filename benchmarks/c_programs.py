"""The programs in C, peers and the load: built when a benchmark starts, by the system's ``cc``."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
CSRC = HERE.parent / "csrc"

# The ring's server stands on the engine's own ring, so that both open it alike.
SOURCES = {
    "loadgen": [
        HERE / name for name in ("loadgen.c", "loadgen_echo.c", "loadgen_bulk.c", "loadgen_short.c")
    ],
    "echo_epoll": [SERVERS / "echo_epoll.c"],
    "echo_uring": [
        SERVERS / "echo_uring.c",
        *(CSRC / name for name in ("ring.c", "bufring.c", "kernel.c")),
    ],
}
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", f"-I{CSRC}", "-pthread")


@functools.cache
def build_directory() -> Path:
    """A directory for this process's builds, gone when it ends."""
    path = Path(tempfile.mkdtemp(prefix="uring_trio-benchmarks-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def build(name: str) -> Path:
    """Compile a program, once in this process, and return the program.

    Raises:
      RuntimeError: there is no compiler, or it refused; what it said is in the message.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("there is no C compiler: `cc` is not in PATH")
    program = build_directory() / name
    sources = [str(source) for source in SOURCES[name]]
    command = [compiler, *FLAGS, "-o", str(program), *sources]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"cc could not build {name}: {result.stderr.strip()[-2000:]}")
    return program


def missing(name: str) -> str | None:
    """Why a program cannot be had here, or None; builds it."""
    try:
        build(name)
    except RuntimeError as error:
        return str(error)
    return None
