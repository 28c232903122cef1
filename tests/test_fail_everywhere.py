"""Fail everywhere: each scenario, once for each of its calls and allocations that may fail.

What is run is `fail_everywhere`, in a process of its own for each subject. Of the calls that a
scenario makes most often only some fail here; all do in the long one, also several times in a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import builds
import fail_everywhere
import harness
import pytest
from marks import needs_ring
from scenarios import SCENARIOS

pytestmark = needs_ring

PROGRAM = str(Path(fail_everywhere.__file__))

#: What is run in one process.
SUBJECTS = {
    "streams": ("echo", "connects", "blocked senders", "tls"),
    "datagrams": ("datagrams", "full receiver", "passed descriptors"),
    "files": ("files", "anyio"),
    "guests": ("guest echo", "guest files", "guest server"),
    "servers": ("server tcp", "server large", "server tls", "server async", "server threads"),
    "datagram servers": ("server datagrams", "server datagrams everywhere"),
}
# On an idle machine the longest takes 9 s.
TIMEOUT_S, LONG_TIMEOUT_S = 45 * harness.SLOWNESS, 1800

# Of each kind of failure that a scenario can have.
SAMPLE = 2


def run(*arguments: str, timeout_s: float) -> None:
    """Run the program: it must find nothing."""
    ended = subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        env=builds.environment(fail_everywhere.VARIANT),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"{lines[-1:]} {ended.stderr}"
    found = json.loads(lines[-1])
    assert found["problems"] == []
    # Else nothing has failed, and nothing was tried.
    ends = found["ends"]
    assert sum(n for end, n in ends.items() if end.endswith("an error")) > 0
    assert sum(n for end, n in ends.items() if end.endswith("the result")) > 0


def test_each_scenario_has_its_subject() -> None:
    assert sorted(name for names in SUBJECTS.values() for name in names) == sorted(SCENARIOS)


@pytest.mark.timeout(TIMEOUT_S + 10)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_some_calls_and_most_allocations_fail(subject: str) -> None:
    run(*SUBJECTS[subject], "--most", str(SAMPLE), timeout_s=TIMEOUT_S)


@pytest.mark.long
@pytest.mark.timeout(LONG_TIMEOUT_S)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_each_call_fails(name: str, times: int) -> None:
    run(name, "--times", str(times), timeout_s=LONG_TIMEOUT_S)
