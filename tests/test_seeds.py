"""Each generator's first seeds, and every plan that has once shown a fault: see `by_seed.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import by_seed
import children
import fuzz
import harness
import machine_speed
import pytest

TESTS = Path(__file__).resolve().parent
DENIED = harness.ring_denied()
PLANS = sorted(fuzz.FAILED_PLANS.glob("*.json"))

# Of an idle machine. All of a generator's seeds: ring-gain's take 20 s of a busy one.
LIMIT_S = 50
# CPU of one seed in the simulation, of user and kernel, as the median of the first ones: what
# makes it worth while to run 10^5 of them.
MEDIAN_CPU_MS = 50.0


def call(program: str, *arguments: object) -> None:
    """Fails with all that was printed: it has the commands that replay."""
    done = children.run([sys.executable, TESTS / program, *arguments], LIMIT_S)
    assert done.status == 0, f"{done.status}: {done.output}"


def skip_if_denied(name: str) -> None:
    if DENIED is not None and by_seed.entry(name).real:
        pytest.skip(DENIED)


@pytest.mark.parametrize("name", by_seed.names())
def test_first_seeds(name: str, tmp_path: Path) -> None:
    skip_if_denied(name)
    report = tmp_path / "report.json"
    slowness = machine_speed.cpu_slowness()
    call(*("fuzz.py", "--generator", name, "--from", 0, "--quick", "--jobs", 1), "--report", report)
    told = json.loads(report.read_text())[name]
    which = by_seed.entry(name)
    assert told["plans"] == which.seeds
    # Measured before and after: other work comes and goes meanwhile.
    slowness = max(slowness, machine_speed.cpu_slowness())
    assert which.real or told["median_cpu_ms"] <= MEDIAN_CPU_MS * slowness


@pytest.mark.parametrize("file", PLANS, ids=[file.stem for file in PLANS])
def test_plan_that_once_failed(file: Path) -> None:
    skip_if_denied(by_seed.read(file)[0])
    call("by_seed.py", "--plan", file, "--apart")
