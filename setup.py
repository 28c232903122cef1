"""The settings that pyproject.toml has no stable key for: the extension and the wheel's tag."""

from __future__ import annotations

import sys
import sysconfig
from typing import Any

from setuptools import setup


def extension_settings() -> dict[str, Any]:
    """What setuptools must know about the extension, or nothing where it cannot be.

    io_uring is Linux's alone. Elsewhere the package is pure Python, imports, and runs
    on trio's own manager. On Linux a failing compiler fails the installation: an
    extension that is quietly absent would be found out much later.
    """
    if not sys.platform.startswith("linux") or sys.implementation.name != "cpython":
        return {}
    settings: dict[str, Any] = {"cffi_modules": ["csrc/build_ffi.py:ffibuilder"]}
    # cffi compiles against the stable ABI already; this makes the wheel's name say so,
    # and one wheel serves CPython 3.10 and every later 3.x. A free-threaded CPython has
    # no such ABI, and gets a build of its own.
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        settings["options"] = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return settings


setup(**extension_settings())
