"""The settings that pyproject.toml has no stable key for: the extensions and the wheel's tag."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension, setup

CSRC = Path("csrc")


def hot_paths() -> Extension:
    """What `uring_trio._hot` is built from: see csrc/hot/hot.h.

    It may be missing: then Python does the same, slower, and ``doctor`` says so. So a compiler
    that fails at it does not stop the installation.
    """
    return Extension(
        "uring_trio._hot",
        [str(path) for path in sorted((CSRC / "hot").glob("*.c"))],
        depends=[str(path) for path in sorted([*CSRC.glob("*.h"), *(CSRC / "hot").glob("*.h")])],
        define_macros=[("Py_LIMITED_API", "0x030A0000")],
        py_limited_api=True,
        extra_compile_args=[
            *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"),
            "-Werror=implicit-function-declaration",  # what is not in the stable ABI of 3.10
        ],
        optional=True,
    )


def extension_settings() -> dict[str, Any]:
    """What setuptools must know about the extensions, or nothing where they cannot be.

    io_uring is Linux's alone. Elsewhere the package is pure Python, imports, and runs
    on trio's own manager. On Linux a failing compiler fails the installation: an
    engine that is quietly absent would be found out much later.
    """
    if not sys.platform.startswith("linux") or sys.implementation.name != "cpython":
        return {}
    settings: dict[str, Any] = {"cffi_modules": ["csrc/build_ffi.py:ffibuilder"]}
    # cffi compiles against the stable ABI already; this makes the wheel's name say so,
    # and one wheel serves CPython 3.10 and every later 3.x. A free-threaded CPython has
    # no such ABI, gets a build of its own, and has the hot paths in Python.
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        settings["options"] = {"bdist_wheel": {"py_limited_api": "cp310"}}
        settings["ext_modules"] = [hot_paths()]
    return settings


setup(**extension_settings())
