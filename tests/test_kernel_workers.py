"""The book of the kernel's workers finds all that are planted, and says whose each is."""

from __future__ import annotations

import re
import socket as stdlib_socket
import subprocess
import sys
from pathlib import Path

import harness
import kernel_workers
import pytest

from uring_trio._kernel import Ring

PLANTED = Path(__file__).parent / "planted_offenders.py"
TIMEOUT_S = 50
TESTS = re.findall(r"^def (test_\w+)", PLANTED.read_text(), re.MULTILINE)

RECV = 27  # <linux/io_uring.h>
CANCEL_MAX_NS = 1_000_000_000

FIND = re.compile(
    r"1 of the kernel's workers \(iou-wrk\) (at its end|while it ran) "
    r"in the run of thread (.+) \(\d+\) of (this process|process \d+), "
    r"after the operations (\{.*\})"
)


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """By planted test: what pytest says of it when all is over."""
    denied = harness.ring_denied()
    if denied is not None:
        pytest.skip(denied)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLANTED)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
    )
    parts = re.split(r"^_+ ERROR at teardown of (test_\w+) _+$", done.stdout, flags=re.MULTILINE)
    outcome = f"{len(TESTS) - 1} passed, 1 xfailed, {len(TESTS)} errors"
    assert outcome in done.stdout, done.stdout
    # In CI pytest's summary, behind the last part, has every word again.
    parts[-1] = re.split(r"^=+ short test summary info", parts[-1], flags=re.MULTILINE)[0]
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", TESTS)
def test_offender_is_caught(reports: dict[str, str], name: str) -> None:
    found = FIND.findall(reports[name])
    assert len(found) == 1, reports[name]
    when, thread, process, operations = found[0]
    assert when == ("while it ran" if "before_its_end" in name else "at its end")
    assert (process == "this process") == ("child" not in name)
    assert "'poll_add': " in operations
    if "callback_server" in name:
        assert "gain" in thread
    elif "worker_thread" in name:
        assert thread == "a worker thread"
    elif "child" in name or "main" in name:
        assert thread == "MainThread"


def test_what_the_kernel_would_try_again_is_told() -> None:
    denied = harness.ring_denied()
    if denied is not None:
        pytest.skip(denied)
    a, b = stdlib_socket.socketpair()
    ring = Ring()
    try:
        with a, b:
            assert kernel_workers.retried() == []
            slot = ring.recv_multishot(a.fileno(), 0, 0)
            ring.flush()
            assert kernel_workers.retried() == [RECV]
            ring.cancel(slot)
            ring.wait(CANCEL_MAX_NS)
            assert kernel_workers.retried() == []
    finally:
        ring.close(leak=False)
