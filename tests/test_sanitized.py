"""A small part of ``make sanitize`` (`sanitize`), and that each of its looks sees something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import builds
import pytest
import sandbox
import sanitize
from marks import needs_ring

pytestmark = needs_ring

TESTS = Path(__file__).parent

BEGIN = "from uring_trio import _kernel\nffi, lib = _kernel.load_extension()\n"

LOST = "lib.ut_memory_new(100)"
READ_BEYOND = "lib.ut_message_set_name(lib.ut_message_new(1, 0, 0), b'x' * 50, 120)"
FREED_TWICE = """
memory = lib.ut_memory_new(100)
lib.ut_memory_free(memory)
lib.ut_memory_free(memory)
"""
MISALIGNED = """
memory = ffi.cast("char *", lib.ut_memory_new(1000))
lib.ut_message_read(ffi.cast("struct ut_message *", memory + 1), ffi.new("struct ut_message_result *"))
"""


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (LOST, "leak of 100 byte"),
        (READ_BEYOND, "heap-buffer-overflow"),
        (FREED_TWICE, "attempting double-free"),
        (MISALIGNED, "misaligned address"),
    ],
    ids=["lost", "read beyond", "freed twice", "misaligned"],
)
def test_a_sanitizer_tells_of_faults(program: str, told: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        builds.command("address", ["-c", BEGIN + program]),
        env=builds.environment("address", reports=tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        timeout=sandbox.CHILD_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode > 0
    assert any(told in line for line in [ended.stderr, *builds.Reports(tmp_path).news()])


OF_TWO_THREADS = """
import threading
ring = _kernel.Ring()
timer = threading.Timer(0.1, ring.statistics)
timer.start()
ring.wait(300_000_000)
timer.join()
"""


def test_a_sanitizer_tells_of_a_race(tmp_path: Path) -> None:
    subprocess.run(
        builds.command("thread", ["-c", BEGIN + OF_TWO_THREADS]),
        env=builds.environment("thread", reports=tmp_path),
        timeout=sandbox.CHILD_TIMEOUT_S,
        check=False,
    )
    assert any("data race" in line for line in builds.Reports(tmp_path).news())


@pytest.mark.parametrize("variant", ["address", "guard"])
def test_what_uses_memory_in_every_way_has_nothing_to_report(variant: str) -> None:
    command = [sys.executable, "tests/builds.py", variant, "-m", "pytest", "-q"]
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider", "tests/test_given_memory.py"],
        cwd=sanitize.ROOT,
        env={name: value for name, value in os.environ.items() if name != builds.REPORTS},
        capture_output=True,
        text=True,
        timeout=sandbox.CHILD_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith(f"{variant}: 0 lines of reports\n")


def test_each_file_of_the_whole_is_there() -> None:
    for name in (*sanitize.TESTED, *sanitize.THREADED):
        assert sanitize.files((name,))
    for name in sanitize.MEASURES:
        assert (TESTS / f"{name}.py").exists()
