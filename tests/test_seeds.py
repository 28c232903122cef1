"""Each generator's first seeds, and every plan that has once shown a fault: see `by_seed.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import by_seed
import fuzz
import harness
import pytest

TESTS = Path(__file__).resolve().parent
DENIED = harness.ring_denied()
PLANS = sorted(fuzz.FAILED_PLANS.glob("*.json"))


def call(program: str, *arguments: object) -> None:
    """Fails with all that was printed: it has the commands that replay."""
    command = [sys.executable, str(TESTS / program), *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def skip_if_denied(name: str) -> None:
    if DENIED is not None and by_seed.entry(name).real:
        pytest.skip(DENIED)


@pytest.mark.parametrize("name", by_seed.names())
def test_first_seeds(name: str) -> None:
    skip_if_denied(name)
    call("fuzz.py", "--generator", name, "--from", 0, "--quick", "--jobs", 1)


@pytest.mark.parametrize("file", PLANS, ids=[file.stem for file in PLANS])
def test_plan_that_once_failed(file: Path) -> None:
    skip_if_denied(by_seed.read(file)[0])
    call("by_seed.py", "--plan", file, "--apart")
