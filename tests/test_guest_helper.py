"""The helper of a guest run: when it sleeps, what ends its sleep, and what it costs."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket as stdlib_socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.lowlevel
from guest_tools import Host
from marks import needs_ring
from wakeup_kinds import KINDS, waker

from uring_trio._guest import Helper
from uring_trio._kernel import LOOK_NO_MEMORY, LOOK_NOTHING, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREVER_S = 30.0  # a sleep that nothing ends fails the test by its length
AT_ONCE_S = 5.0
IDLE_S = 0.5


@pytest.fixture
def host(backend: str) -> Host:
    return Host(backend)


# ---- the helper alone ----------------------------------------------------------------------


class Scripted:
    """A ring that answers looks as it is told."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.registered: list[int] = []

    def register_eventfd(self, event_fd: int) -> None:
        self.registered.append(event_fd)

    def look(self) -> int:
        return self.answers.pop(0)

    def error(self, result: int) -> Exception:
        return OSError(-result, os.strerror(-result))


@contextlib.contextmanager
def helper_of(ring: Any) -> Iterator[Helper]:
    helper = Helper(ring)
    try:
        yield helper
    finally:
        helper.close()


def seconds_asleep(helper: Helper, timeout: float = FOREVER_S) -> float:
    begin = time.monotonic()
    assert helper.watch(timeout) is True
    return time.monotonic() - begin


def test_does_not_sleep_unprepared() -> None:
    with helper_of(Scripted(LOOK_NOTHING)) as helper:
        assert seconds_asleep(helper) < AT_ONCE_S
        assert helper.prepare() is True
        assert helper.watch(0.01) is False  # prepared, it sleeps its time out


def test_registers_anew_only_after_a_signal() -> None:
    ring = Scripted(*[LOOK_NOTHING] * 4)
    with helper_of(ring) as helper:
        assert len(ring.registered) == 1
        helper.prepare()
        helper.prepare()
        assert len(ring.registered) == 1
        helper.wake()
        assert seconds_asleep(helper) < AT_ONCE_S
        assert seconds_asleep(helper) < AT_ONCE_S  # nothing but `prepare` takes it away
        helper.prepare()
        assert len(ring.registered) == 2
        helper.prepare()
        assert len(ring.registered) == 2
        assert helper.watch(0.01) is False


@pytest.mark.parametrize("timeout", [0.0, 0.0005, FOREVER_S])
def test_tries_again_when_operations_found_no_memory(timeout: float) -> None:
    with helper_of(Scripted(LOOK_NO_MEMORY, LOOK_NOTHING)) as helper:
        assert helper.prepare() is True
        assert seconds_asleep(helper, timeout) < AT_ONCE_S
        helper.prepare()
        assert helper.watch(0.01) is False


def test_a_look_that_fails_is_told() -> None:
    with helper_of(Scripted(-5)) as helper:
        with pytest.raises(OSError, match="Input/output error"):
            helper.prepare()
        assert seconds_asleep(helper) < AT_ONCE_S


@pytest.mark.parametrize("kind", ["eventfd", "epoll", "epoll of an epoll"])
def test_sees_what_the_ring_might_be_late_with(kind: str) -> None:
    with waker() as thread, helper_of(Scripted(*[LOOK_NOTHING] * 10)) as helper:
        shown = KINDS[kind](thread)
        shown.open()
        helper.show(shown.fd, reads=True, writes=False)
        for _ in range(3):
            helper.prepare()
            thread.do(shown.put, 0.01)
            assert seconds_asleep(helper) < AT_ONCE_S
            helper.prepare()
            assert helper.watch(0.01) is False  # once, though it is still readable
            shown.get()
            helper.show(shown.fd, reads=True, writes=False)
        shown.close()


def test_sees_a_full_eventfd_with_room_again() -> None:
    with waker() as thread, helper_of(Scripted(LOOK_NOTHING)) as helper:
        shown = KINDS["full eventfd"](thread)
        shown.open()
        helper.show(shown.fd, reads=False, writes=True)
        helper.prepare()
        thread.do(shown.put, 0.01)
        assert seconds_asleep(helper) < AT_ONCE_S
        shown.close()


@pytest.mark.parametrize("kind", ["pipe", "timerfd", "inotify", "socket"])
def test_looks_at_no_other_kind(kind: str) -> None:
    # Looking at some takes the news away from the ring's own poll.
    with waker() as thread, helper_of(Scripted(LOOK_NOTHING)) as helper:
        other = KINDS[kind](thread)
        other.open()
        before = len(harness.open_fds())
        helper.show(other.fd, reads=True, writes=False)
        assert len(harness.open_fds()) == before
        other.put()
        assert select.select([other.fd], [], [], AT_ONCE_S)[0]
        helper.prepare()
        assert helper.watch(0.01) is False
        other.close()


def test_closed_and_shown_is_forgotten() -> None:
    with waker() as thread, helper_of(Scripted(*[LOOK_NOTHING] * 3)) as helper:
        for _ in range(2):
            shown = KINDS["eventfd"](thread)
            shown.open()
            helper.show(shown.fd, reads=True, writes=False)
            shown.put()
            shown.close()
            helper.prepare()
            assert helper.watch(0.01) is False
        helper.show(shown.fd, reads=True, writes=False)  # no descriptor: no error
        helper.prepare()
        assert helper.watch(0.01) is False


@needs_ring
def test_is_told_in_each_round_without_seeing() -> None:
    # What the kernel puts off comes, too: the poll is on the ring and not shown.
    ring = Ring()
    with waker() as thread, helper_of(ring) as helper:
        eventfd = KINDS["eventfd"](thread)
        eventfd.open()
        for _ in range(30):
            assert ring.poll(eventfd.fd, select.POLLIN, 0) >= 0
            assert ring.wait(0) == 0
            assert helper.prepare() is True
            thread.do(eventfd.put)
            assert seconds_asleep(helper) < AT_ONCE_S
            assert ring.wait(0) == (1 << 32 | 1)
            eventfd.get()
        eventfd.close()
        ring.wait(0)
        ring.close(leak=False)


@needs_ring
def test_an_eventfd_that_cannot_be_registered_anew_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host(harness.RING)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what trio could not unwind

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        harness.io_manager().force_wakeup()  # a signal that no work is behind
        await trio.sleep_forever()

    def refuse(_ring: Ring, _event_fd: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    host.start(main)
    host.step()  # main is in its checkpoint, and the eventfd is registered
    monkeypatch.setattr(Ring, "register_eventfd", refuse)
    with pytest.raises(trio.TrioInternalError) as caught:
        host.result()
    assert "no memory" in repr(caught.value.__cause__)
    del host, caught
    gc.collect()


# ---- what it costs -------------------------------------------------------------------------


def context_switches() -> dict[str, int]:
    """By thread of this process, but for the one that asks: how often it went to sleep."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        if int(task) == threading.get_native_id():
            continue
        with contextlib.suppress(FileNotFoundError):
            status = Path(f"/proc/self/task/{task}/status").read_text()
            found[task] = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return found


def test_idle_is_asleep(host: Host) -> None:
    """Whatever tasks wait for: no thread of the process moves, and no callback comes."""
    a, b = stdlib_socket.socketpair()
    scope = trio.CancelScope()

    async def main() -> None:
        sock = trio.socket.from_stdlib_socket(a)
        with waker() as thread:
            kinds = [KINDS[name](thread) for name in ("eventfd", "full eventfd", "epoll", "pipe")]
            for kind in kinds:
                thread.ask(kind.open)
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sock.recv, 10)
                    for kind in kinds:
                        for _ in range(3):  # make use of them before
                            kind.arm()
                            thread.do(kind.put)
                            await waiter(kind)
                            kind.get()
                        nursery.start_soon(waiter, kind)
            for kind in kinds:
                kind.close()

    with a, b:
        host.start(main)
        host.settle()
        time.sleep(0.1)  # a signal that was put off comes within 32 ms
        host.settle()
        before = context_switches()
        cpu = time.process_time()
        time.sleep(IDLE_S)
        after = context_switches()
        lasting = before.keys() & after.keys()  # trio ends threads that it has no use for
        assert lasting
        assert {task: after[task] - before[task] for task in lasting} == dict.fromkeys(lasting, 0)
        assert time.process_time() - cpu < 0.05 * IDLE_S
        assert host.settle() == 0
        scope.cancel()
        host.result()


async def waiter(kind: Any) -> None:
    if kind.writable:
        await trio.lowlevel.wait_writable(kind.fd)
    else:
        await trio.lowlevel.wait_readable(kind.fd)


class Sleeps(trio.abc.Instrument):
    """Counts the times that trio was about to sleep."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += timeout > 0


@pytest.mark.parametrize("what", ["recv", "wait_readable", "eventfd"])
def test_one_sleep_for_each_wakeup(host: Host, what: str) -> None:
    """No tick in vain: not for a signal that came while the host was awake, not for one
    that came both ways."""
    rounds = 100
    sleeps = Sleeps()
    a, b = stdlib_socket.socketpair()
    a.setblocking(False)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    async def main() -> int:
        sock = trio.socket.from_stdlib_socket(a)
        with waker() as thread:
            await trio.to_thread.run_sync(thread.ask, len, "")  # all threads are there
            before = sleeps.count
            for _ in range(rounds):
                if what == "eventfd":
                    thread.do(lambda: os.eventfd_write(eventfd, 1), 0.001)
                    await trio.lowlevel.wait_readable(eventfd)
                    os.eventfd_read(eventfd)
                else:
                    thread.do(lambda: b.send(b"x"), 0.001)
                    if what == "wait_readable":
                        await trio.lowlevel.wait_readable(a)
                        a.recv(10)
                    else:
                        await sock.recv(10)
            return sleeps.count - before

    with a, b:
        count = host.run(main, instruments=[sleeps])
    os.close(eventfd)
    # One of an eventfd may be told a second time, when the kernel gives what it has put off.
    limit = rounds * (2 if what == "eventfd" else 1.1)
    assert 0 < count <= limit


# ---- descriptors ---------------------------------------------------------------------------


@needs_ring
def test_a_forked_child_has_nothing_of_it() -> None:
    host = Host(harness.RING)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    readable: list[int] = []
    before = set(harness.open_fds())

    async def main() -> None:
        await trio.lowlevel.wait_readable(eventfd)
        readable.append(os.eventfd_read(eventfd))

    host.start(main)
    host.settle()
    mine = {fd: what for fd, what in harness.open_fds().items() if fd not in before}
    assert sorted(what for what in mine.values() if what.startswith("anon")) == [
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[io_uring]",
    ]
    child = os.fork()
    if child == 0:
        left = {what for fd, what in harness.open_fds().items() if fd in mine}
        os._exit(any(what.startswith("anon_inode") for what in left))
    assert os.waitpid(child, 0)[1] == 0
    assert host.settle() == 0  # the child has woken nobody
    os.eventfd_write(eventfd, 1)
    host.result()
    assert readable == [1]
    os.close(eventfd)
