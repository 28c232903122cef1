"""What of multishot operations is used: found out by doing, and each fault is noticed.

The faults are those of kernels that we do not have here (docs/kernels.md), acted by a ring
that passes everything else on to a real one.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import harness
import pytest
import sandbox
from marks import needs_ring

from uring_trio._kernel import CQE_F_MORE, ECANCELED, Ring
from uring_trio.gain import _capabilities
from uring_trio.gain._capabilities import Capabilities, capabilities, try_ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_ring

Record = tuple[int, int, int, int]  # slot, res, flags, offset
RESET = -errno.ECONNRESET


class FaultyRing:
    """A real ring, with a fault once one is set.

    Attributes:
      change: makes of (res, flags) of a receive what is seen.
      edit: makes of a batch what is seen.
      multishot: whether multishot operations are.
    """

    def __init__(self) -> None:
        self.real = Ring()
        self.change: Callable[[int, int], tuple[int, int]] = lambda res, flags: (res, flags)
        self.edit: Callable[[list[Record]], list[Record]] = lambda batch: batch
        self.multishot = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def recv_multishot(self, fd: int, group: int, poll_first: int) -> int:
        if self.multishot:
            slot: int = self.real.recv_multishot(fd, group, poll_first)
        else:
            slot = self.real.recv(fd, group, 8192, poll_first)
        return slot

    def records(self, count: int) -> Iterator[Record]:
        batch = list(self.real.records(count))
        for slot, res, flags, offset in self.edit(batch):
            yield (slot, *self.change(res, flags), offset)

    def close(self, *, leak: bool) -> bool:
        return self.real.close(leak=leak)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was tried yet, and what is logged is seen."""
    monkeypatch.setattr(_capabilities, "_found", None)
    caplog.set_level(logging.INFO, "uring_trio.gain")


# The faults


def nothing_is_multishot(ring: FaultyRing) -> None:
    ring.multishot = False


def end_is_lost(ring: FaultyRing) -> None:
    """Data is delivered, and what comes behind it is not (issue 1549)."""
    ring.multishot = False
    ring.change = lambda res, flags: (res, flags | CQE_F_MORE)


def receive_is_refused(ring: FaultyRing) -> None:
    ring.change = lambda _res, _flags: (-errno.EINVAL, 0)


def cancel_finds_nothing(ring: FaultyRing) -> None:
    """It is asked for, and nothing comes of it (issue 1375)."""
    ring.edit = lambda batch: [record for record in batch if record[1] != ECANCELED]


def cancel_seems_an_end(ring: FaultyRing) -> None:
    ring.change = lambda res, flags: (0 if res == ECANCELED else res, flags)


def reset_takes_the_data(ring: FaultyRing) -> None:
    """Linux 6.16.3: of data and a reset that come to an armed receive the reset is told."""

    def edit(batch: list[Record]) -> list[Record]:
        reset = any(res == RESET for _, res, _, _ in batch)
        return [record for record in batch if not (reset and record[1] > 0)]

    ring.edit = edit


def reset_is_lost(ring: FaultyRing) -> None:
    """The data is told, and what came behind it is not."""
    ring.edit = lambda batch: [record for record in batch if record[1] != RESET]


def reset_seems_an_end(ring: FaultyRing) -> None:
    ring.change = lambda res, flags: (0 if res == RESET else res, flags)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (nothing_is_multishot, "an end that came with data was never reported"),
        (end_is_lost, "an end that came with data was never reported"),
        (receive_is_refused, "was answered with [-22"),
        (cancel_finds_nothing, "a cancel did not end it"),
        (cancel_seems_an_end, "a cancel did not end it"),
        (reset_takes_the_data, f"data that came before a reset was answered with [{RESET}]"),
        (reset_is_lost, "a reset that came with data was answered with []"),
        (reset_seems_an_end, "a reset that came with data was answered with [0]"),
    ],
)
def test_a_fault_is_noticed(
    fault: Callable[[FaultyRing], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_capabilities, "BOUND_S", 0.02)
    with harness.no_new_fds():
        ring = FaultyRing()
        fault(ring)
        try:
            found = try_ring(ring)  # type: ignore[arg-type]
            os.fstat(ring.fd)
        finally:
            ring.close(leak=False)
    assert not found.multishot_receive
    assert len(found.reasons) == 1
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
    assert found == Capabilities(True)
    assert (counters["in_flight"], counters["queued"], counters["stale_cqes"]) == (0, 0, 0)
    assert operations == {"recv": 5, "async_cancel": 1}
    assert not leaked


# Where there is no loopback to try it on


def no_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    # A host of its own range has no such address, so it cannot be bound.
    monkeypatch.setattr(_capabilities, "LOOPBACKS", ((socket.AF_INET, "192.0.2.1"),))


def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener's queue is full, so that a connect has no answer."""

    class Deaf(socket.socket):
        def listen(self, _backlog: int = 0) -> None:
            super().listen(0)
            self.others = [socket.socket(self.family) for _ in range(3)]
            for other in self.others:
                other.setblocking(False)
                other.connect_ex(self.getsockname())

        def close(self) -> None:
            for other in getattr(self, "others", ()):
                other.close()
            super().close()

    monkeypatch.setattr(socket, "socket", Deaf)
    monkeypatch.setattr(_capabilities, "LOOPBACKS", ((socket.AF_INET, "127.0.0.1"),))


def no_reset_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_capabilities, "RESET_AT_CLOSE", struct.pack("ii", 0, 0))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (no_loopback, "not tried: there is no loopback interface"),
        (nobody_answers, "not tried: there is no loopback interface"),
        (no_reset_comes, "not tried: a reset does not arrive"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_what_cannot_be_tried_is_not_used(
    what: Callable[[pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_capabilities, "BOUND_S", 0.02)
    with monkeypatch.context() as patch:
        what(patch)
        started = time.monotonic()
        assert not capabilities().multishot_receive
        assert time.monotonic() - started < 1
    assert reason in caplog.messages[0]


# Once in a process


@pytest.mark.usefixtures("fresh")
def test_it_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Ring] = []

    def nothing_works(ring: Ring) -> Capabilities:
        tried.append(ring)
        return Capabilities(False, ("multishot receive: odd",))

    monkeypatch.setattr(_capabilities, "try_ring", nothing_works)
    with harness.no_new_fds():
        assert capabilities() is capabilities()
    assert len(tried) == 1
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("uring_trio.gain", "INFO", "not used: multishot receive: odd"),
    ]


@pytest.mark.usefixtures("fresh")
def test_nothing_is_logged_where_all_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_capabilities, "try_ring", lambda _ring: Capabilities(True))
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
    assert not found.multishot_receive
    assert "Cannot allocate memory" in caplog.messages[0]
    assert capabilities() is capabilities()
    assert "not tried" not in str(capabilities().reasons)


EPOLL = """
import ctypes, select
from uring_trio.gain._capabilities import capabilities

libc = ctypes.CDLL(None, use_errno=True)
epoll = select.epoll()
event = ctypes.create_string_buffer(12)  # struct epoll_event
capabilities()
print(libc.epoll_wait(epoll.fileno(), event, 1, 300), ctypes.get_errno())
"""


def test_who_has_it_tried_is_not_signalled_when_the_ring_ends() -> None:
    """epoll_wait(2) tells of what the ring's own waits hide: it came 20 ms later on Linux 6.18."""
    done = sandbox.run_python("NONE", EPOLL)
    assert done.stdout == "0 0\n", done.stdout + done.stderr


@pytest.mark.usefixtures("fresh")
def test_where_no_thread_can_be_had_it_is_tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tried_in: list[int] = []

    def note(_ring: Ring) -> Capabilities:
        tried_in.append(threading.get_ident())
        return Capabilities(True)

    monkeypatch.setattr(_capabilities, "try_ring", note)
    monkeypatch.setattr(threading.Thread, "start", no_room)
    assert capabilities().multishot_receive
    assert tried_in == [threading.get_ident()]


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
