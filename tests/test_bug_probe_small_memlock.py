"""What ``probe()`` promises outside of runs is what a run gets, also under a small RLIMIT_MEMLOCK."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import harness
import pytest

pytestmark = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import sandbox, trio, uring_trio

async def backend():
    return trio.lowlevel.current_statistics().io_statistics.backend

sandbox.limit_memlock(int(sys.argv[2]) << 10)
promised = uring_trio.probe(refresh=True).backend
print(promised, uring_trio.run(backend))
"""
TIMEOUT_S = 20


# 24 KiB: not even the smallest. 48: the first ring that fits leaves no room for its buffer
# rings, so it takes a smaller one, and patience until the kernel has taken the first apart.
@pytest.mark.parametrize("kib", [24, 32, 48, 64])
def test_promise_is_kept(kib: int) -> None:
    command = [sys.executable, "-c", CODE, str(Path(__file__).parent), str(kib)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    promised, given = printed.stdout.split()
    assert promised == given
