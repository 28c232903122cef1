"""The extension built otherwise: that it is the one that runs, also in children."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import builds
import pytest
import sandbox

TESTS = str(Path(__file__).parent)


def run(name: str, program: str, **more: str) -> str:
    """What a program prints that has a variant."""
    environment = builds.environment(name, os.environ | more)
    environment["PYTHONPATH"] += os.pathsep + TESTS
    ended = subprocess.run(
        builds.command(name, ["-c", program]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=sandbox.CHILD_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


TELL = "import builds; print(builds.loaded())"

TELL_OF_A_CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {TELL!r}], check=True)
"""


@pytest.mark.parametrize("program", [TELL, TELL_OF_A_CHILD], ids=["program", "child"])
def test_a_program_and_its_children_have_the_variant(program: str) -> None:
    assert run("alloc", program) == "alloc\n"


def test_this_process_has_the_installed_engine() -> None:
    if builds.ENGINE in os.environ:
        pytest.skip("these tests run on a variant")
    assert builds.loaded() == ""


def test_a_variant_is_built_once() -> None:
    engine = builds.build("alloc") / builds.FILE
    before = engine.stat().st_mtime_ns
    builds.build.cache_clear()
    assert builds.build("alloc") / builds.FILE == engine
    assert engine.stat().st_mtime_ns == before


ALLOCATE = """
from uring_trio import _kernel, _memory

_, lib = _kernel.load_extension()
lib.fail_alloc_at(0)
_memory.Memory(100).free()
assert (lib.fail_alloc_count(), lib.fail_alloc_happened()) == (1, 0)

lib.fail_alloc_at(2)
_memory.Memory(100).free()
try:
    _memory.Memory(100)
except MemoryError:
    print("no memory")
assert lib.fail_alloc_happened()
_memory.Memory(100).free()
"""


def test_an_allocation_fails_on_demand() -> None:
    assert run("alloc", ALLOCATE) == "no memory\n"
