"""What of multishot operations is used: found out by doing, and each fault is noticed.

The faults are those of kernels that we do not have here (docs/kernels.md), acted by a ring
that passes everything else on to a real one.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import warnings
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest

from uring_trio._kernel import CQE_F_MORE, ECANCELED, Ring
from uring_trio.gain import _capabilities
from uring_trio.gain._capabilities import Capabilities, capabilities, try_ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = gain_tools.needs_ring

NO_DESCRIPTOR = 1 << 20


class FaultyRing:
    """A real ring, with a fault once one is set.

    Attributes:
      change: makes of ("receive" or "accept", res, flags) the result that is seen.
      multishot: whether multishot operations are.
      stranger: a socket that was accepted by nobody.
    """

    def __init__(self) -> None:
        self.real = Ring()
        self.change: Callable[[str, int, int], tuple[int, int]] = lambda _, res, flags: (res, flags)
        self.multishot = True
        self.stranger = socket.socket()
        self._kinds: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def recv_multishot(self, fd: int, group: int, poll_first: int) -> int:
        if self.multishot:
            slot: int = self.real.recv_multishot(fd, group, poll_first)
        else:
            slot = self.real.recv(fd, group, 8192, poll_first)
        self._kinds[slot] = "receive"
        return slot

    def accept_fd(self, fd: int, flags: int, multishot: int) -> int:
        slot: int = self.real.accept_fd(fd, flags, multishot and self.multishot)
        self._kinds[slot] = "accept"
        return slot

    def records(self, count: int) -> Iterator[tuple[int, int, int, int]]:
        for slot, res, flags, offset in self.real.records(count):
            yield (slot, *self.change(self._kinds[slot], res, flags), offset)

    def close(self, *, leak: bool) -> bool:
        self.stranger.close()
        return self.real.close(leak=leak)


# The faults


def nothing_is_multishot(ring: FaultyRing) -> None:
    ring.multishot = False


def end_is_lost(ring: FaultyRing) -> None:
    """Data is delivered, and what comes behind it is not (issue 1549)."""
    ring.multishot = False
    ring.change = lambda _, res, flags: (res, flags | CQE_F_MORE)


def receive_is_refused(ring: FaultyRing) -> None:
    ring.change = lambda kind, res, flags: (res, flags) if kind == "accept" else (-errno.EINVAL, 0)


def cancel_finds_nothing(ring: FaultyRing) -> None:
    """Issue 1375."""
    ring.cancel = lambda _slot: 1  # type: ignore[attr-defined]


def cancel_seems_an_end(ring: FaultyRing) -> None:
    ring.change = lambda _, res, flags: (0 if res == ECANCELED else res, flags)


def accepts_no_descriptor(ring: FaultyRing) -> None:
    """Issue 1062."""
    accepts(ring, NO_DESCRIPTOR)


def accepts_what_is_no_socket(ring: FaultyRing) -> None:
    accepts(ring, ring.fd)


def accepts_a_stranger(ring: FaultyRing) -> None:
    accepts(ring, ring.stranger.fileno())


def accepts(ring: FaultyRing, fd: int) -> None:
    def change(kind: str, res: int, flags: int) -> tuple[int, int]:
        if kind == "accept" and res >= 0:
            os.close(res)
            res = fd
        return res, flags

    ring.change = change


@pytest.mark.parametrize(
    ("fault", "receive", "accept", "reason"),
    [
        (nothing_is_multishot, False, False, "an end that came with data was never reported"),
        (end_is_lost, False, False, "an end that came with data was never reported"),
        (receive_is_refused, False, True, "was answered with [-22"),
        (cancel_finds_nothing, False, False, "a cancel did not end it"),
        (cancel_seems_an_end, False, False, "a cancel did not end it"),
        (accepts_no_descriptor, True, False, "three connections were answered with"),
        (accepts_what_is_no_socket, True, False, "three connections were answered with"),
        (accepts_a_stranger, True, False, "three connections were answered with"),
    ],
)
def test_a_fault_is_noticed(
    fault: Callable[[FaultyRing], None],
    receive: bool,
    accept: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_capabilities, "BOUND_S", 0.02)
    with harness.no_new_fds():
        ring = FaultyRing()
        fault(ring)
        try:
            found = try_ring(ring)  # type: ignore[arg-type]
            assert ring.stranger.fileno() >= 0
            os.fstat(ring.stranger.fileno())  # what was not accepted was not closed
            os.fstat(ring.fd)
        finally:
            ring.close(leak=False)
    assert (found.multishot_receive, found.multishot_accept) == (receive, accept)
    assert len(found.reasons) == (not receive) + (not accept)
    assert reason in found.reasons[0]


def test_without_a_fault_all_is_tried_and_nothing_is_left() -> None:
    with harness.no_new_fds():
        ring = FaultyRing()
        try:
            found = try_ring(ring)  # type: ignore[arg-type]
            counters, operations = ring.statistics()
        finally:
            leaked = ring.close(leak=False)
    if found.reasons:
        pytest.skip(f"this kernel has faults: {found.reasons}")
    assert found == Capabilities(True, True)
    assert (counters["in_flight"], counters["queued"], counters["stale_cqes"]) == (0, 0, 0)
    assert operations == {"recv": 3, "accept": 1, "async_cancel": 2}
    assert not leaked


# Once in a process


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was tried yet, and what is logged is seen."""
    monkeypatch.setattr(_capabilities, "_state", _capabilities._State())
    caplog.set_level(logging.INFO, "uring_trio.gain")


@pytest.mark.usefixtures("fresh")
def test_it_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Ring] = []

    def nothing_works(ring: Ring) -> Capabilities:
        tried.append(ring)
        return Capabilities(False, False, ("multishot receive: odd", "multishot accept: ill"))

    monkeypatch.setattr(_capabilities, "try_ring", nothing_works)
    with harness.no_new_fds():
        assert capabilities() is capabilities()
    assert len(tried) == 1
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("uring_trio.gain", "INFO", "not used: multishot receive: odd"),
        ("uring_trio.gain", "INFO", "not used: multishot accept: ill"),
    ]


@pytest.mark.usefixtures("fresh")
def test_nothing_is_logged_where_all_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_capabilities, "try_ring", lambda _ring: Capabilities(True, True))
    capabilities()
    assert caplog.records == []


@pytest.mark.usefixtures("fresh")
def test_a_ring_that_cannot_be_had_now_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory() -> Ring:
        raise OSError(errno.ENOMEM, "io_uring_setup: Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(_capabilities, "Ring", no_memory)
        found = capabilities()
    assert (found.multishot_receive, found.multishot_accept) == (False, False)
    assert "Cannot allocate memory" in caplog.messages[0]
    assert capabilities() is capabilities()
    assert "not tried" not in str(capabilities().reasons)


def test_a_forked_child_tries_again() -> None:
    found = capabilities()
    with warnings.catch_warnings():
        # CPython 3.12 warns of any fork of a process with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            again = capabilities()
            os._exit(0 if again == found and again is not found else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
