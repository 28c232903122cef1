"""Signals during I/O: EINTR, handlers while blocked, KeyboardInterrupt at any point."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket as stdlib_socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import kernel_table
import pytest
import trio
from line_signals import Lines
from marks import needs_ring
from trio.lowlevel import enable_ki_protection
from trio.testing import wait_all_tasks_blocked

import uring_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import CodeType, FrameType

STORM_INTERVAL_S = 0.001
KI_POINTS = 120  # more than one round of the scenario has lines in our modules
STORM_RUNS = 15


@contextlib.contextmanager
def alarms(interval_s: float) -> Iterator[list[float]]:
    """SIGALRM every ``interval_s``; the times at which its handler ran."""
    times: list[float] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: times.append(time.perf_counter()))
    signal.setitimer(signal.ITIMER_REAL, interval_s, interval_s)
    try:
        yield times
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def connected() -> Iterator[tuple[stdlib_socket.socket, stdlib_socket.socket]]:
    """Two TCP sockets that are closed for certain, wherever an interrupt comes."""
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        a = stdlib_socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    with a, b:
        yield a, b


def run_echo(backend: str, count: int) -> None:
    with connected() as (a, b):
        harness.run(backend, echo_rounds, a, b, count)


async def in_a_storm(main: Callable[..., Awaitable[None]], *args: Any) -> int:
    """Run *main* with signals all the time; how many there were.

    They stop before the run does: at its end trio closes the socket that Python's signal
    handler writes to before it takes it away from there, and Python would say so on stderr.
    """
    with alarms(STORM_INTERVAL_S) as times:
        await main(*args)
    return len(times)


async def echo_rounds(a: stdlib_socket.socket, b: stdlib_socket.socket, count: int) -> None:
    """Traffic through every layer: sockets, streams and readiness."""
    left = trio.SocketStream(trio.socket.from_stdlib_socket(a))
    right = trio.SocketStream(trio.socket.from_stdlib_socket(b))

    async def echo() -> None:
        async for chunk in right:
            await right.send_all(chunk)

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for i in range(count):
            message = b"%d," % i * 50
            await left.send_all(message)
            received = b""
            while len(received) < len(message):
                received += await left.socket.recv(100)
            assert received == message
            await left.wait_send_all_might_not_block()
        nursery.cancel_scope.cancel()


def test_signals_during_traffic(backend: str) -> None:
    with connected() as (a, b):
        assert harness.run(backend, in_a_storm, echo_rounds, a, b, 300) > 5


def test_interrupted_waits_keep_their_timeout(backend: str) -> None:
    async def main() -> None:
        for _ in range(3):
            start = time.perf_counter()
            await trio.sleep(0.2)
            assert 0.199 <= time.perf_counter() - start < 1

    assert harness.run(backend, in_a_storm, main) > 100


def test_interrupted_waits_of_a_thread_keep_their_timeout(backend: str) -> None:
    """No signal wakes trio there: the wait is interrupted, and goes on with what is left."""
    interrupts = 12
    slept: list[float] = []

    async def main() -> None:
        start = time.perf_counter()
        await trio.sleep(0.3)
        slept.append(time.perf_counter() - start)

    def interrupt() -> None:
        # Past the end of the sleep: one that began anew each time would go on until then.
        for _ in range(interrupts):
            if not thread.is_alive():
                return
            signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
            thread.join(0.1)

    times: list[float] = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: times.append(time.perf_counter()))
    try:
        thread = threading.Thread(target=harness.run, args=(backend, main))
        thread.start()
        interrupt()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert len(times) >= 2
    assert 0.299 <= slept[0] < 0.1 * interrupts


def test_a_handler_runs_at_once_while_trio_is_blocked(backend: str) -> None:
    async def main() -> None:
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        assert 0.05 <= times[0] - start < 0.4

    with alarms(100) as times:
        harness.run(backend, main)


def test_a_handler_can_wake_trio(backend: str) -> None:
    async def main() -> None:
        woken = trio.Event()
        token = trio.lowlevel.current_trio_token()
        signal.signal(signal.SIGALRM, lambda *_: token.run_sync_soon(woken.set))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with trio.fail_after(10):
            await woken.wait()

    with alarms(100):
        harness.run(backend, main)


def test_open_signal_receiver(backend: str) -> None:
    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGALRM) as received, trio.fail_after(10):
            for _ in range(10):
                signal.raise_signal(signal.SIGALRM)
                assert await received.__anext__() == signal.SIGALRM

    with alarms(100):
        harness.run(backend, main)


def test_keyboard_interrupt_wakes_a_blocked_run(backend: str) -> None:
    unwound: list[str] = []

    async def receiver(sock: trio.socket.SocketType) -> None:
        try:
            await sock.recv(1)
        finally:
            unwound.append("receiver")

    async def main() -> None:
        a, b = trio.socket.socketpair()
        with a, b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver, a)
                await wait_all_tasks_blocked()
                threading.Timer(0.02, signal.pthread_kill, [main_thread, signal.SIGINT]).start()
                await trio.sleep(10)

    main_thread = threading.main_thread().ident
    start = time.perf_counter()
    assert interrupted(backend, main)
    assert time.perf_counter() - start < 5
    assert unwound == ["receiver"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_keyboard_interrupt_is_raised_by_a_closing(backend: str, cancelled: bool) -> None:
    @enable_ki_protection
    async def main() -> None:
        a, b = trio.socket.socketpair()
        with b, trio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            signal.raise_signal(signal.SIGINT)
            try:
                await trio.SocketStream(a).aclose()
            except KeyboardInterrupt:
                ends.append(a.fileno())
                raise

    ends: list[int] = []
    assert interrupted(backend, main)
    assert ends == [-1]


MODULES_UNDER_TEST = {
    harness.EPOLL: ("trio/_socket.py", "trio/_highlevel_socket.py"),
    harness.RING: tuple(
        f"uring_trio/{room}.py" for room in ("_beside", "_io_manager", "_sockets", "_streams")
    ),
}


def is_under_test(backend: str) -> Callable[[CodeType], bool]:
    return lambda code: code.co_filename.endswith(MODULES_UNDER_TEST[backend])


def is_keyboard_interrupt(exc: BaseException) -> bool:
    """A KeyboardInterrupt, alone or in a group with what it broke on its way."""
    parts = getattr(exc, "exceptions", ())
    return isinstance(exc, KeyboardInterrupt) or any(map(is_keyboard_interrupt, parts))


def interrupted(
    backend: str, async_fn: Callable[..., Awaitable[Any]], *args: Any, **options: Any
) -> bool:
    """Run; whether it ended with KeyboardInterrupt. Every other error is passed on."""
    try:
        harness.run_raw(backend, async_fn, *args, **options)
    except BaseException as exc:
        if not is_keyboard_interrupt(exc):
            raise
        return True
    return False


@pytest.mark.timeout(120)
def test_keyboard_interrupt_at_any_line(backend: str) -> None:
    for point in range(1, KI_POINTS):
        lines = Lines(is_under_test(backend), [point])

        async def traced(*args: Any, lines: Lines = lines) -> None:
            with lines.counted():
                await echo_rounds(*args)

        with harness.no_new_fds(), connected() as (a, b):
            assert interrupted(backend, traced, a, b, 3), (point, lines.count)
    run_echo(backend, 3)


@pytest.mark.parametrize("how", ["close", "with"])
def test_keyboard_interrupt_at_any_line_of_a_close(backend: str, how: str) -> None:
    async def close(sock: Any, lines: Lines) -> None:
        ours = trio.socket.from_stdlib_socket(sock)
        with lines.counted():
            if how == "close":
                ours.close()
            else:
                ours.__exit__(None, None, None)
        await trio.lowlevel.checkpoint()

    for point in range(1, KI_POINTS):
        lines = Lines(is_under_test(backend), [point])
        with harness.no_new_fds(), connected() as (a, _):
            assert interrupted(backend, close, a, lines) == (lines.count >= point)
            assert a.fileno() == -1 or lines.count == point
        if lines.count < point:
            break  # it has no more
    else:
        pytest.fail("a close has more lines")


class InterruptAfterCall:
    """A profile function that sends SIGINT when the nth call into C returns."""

    def __init__(self, point: int) -> None:
        self.point = point
        self.calls = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        ours = frame.f_code.co_filename.endswith(
            ("uring_trio/_kernel.py", "_io_manager.py", "_slots.py")
        )
        if event == "c_return" and ours:
            self.calls += 1
            if self.calls == self.point:
                signal.raise_signal(signal.SIGINT)


@pytest.mark.ring_only
def test_keyboard_interrupt_while_the_ring_is_made(backend: str) -> None:
    # Before trio takes the signal over, it strikes wherever it comes.
    async def main() -> None:
        sys.setprofile(None)

    def calls_until_main(point: int) -> int:
        profile = InterruptAfterCall(point)
        gc.collect()  # what other tests left is not to be interrupted in its __del__
        with harness.no_new_fds():
            sys.setprofile(profile)
            try:
                assert interrupted(backend, main) == (0 < point <= profile.calls)
            finally:
                sys.setprofile(None)
        return profile.calls

    calls = calls_until_main(0)
    assert calls >= 3
    for point in range(1, calls + 1):
        calls_until_main(point)
    harness.run(backend, trio.sleep, 0)


STORM_SCRIPT = """
import contextlib, faulthandler, random, signal, sys, threading
faulthandler.enable()
sys.path[:0] = [{tests!r}]
import harness, trio
from test_signals import connected, echo_rounds, interrupted, run_echo
from uring_trio import _kernel

_kernel.LONG_TICK_NS = {long_ns}

class Storm(trio.abc.Instrument):
    # It begins and ends with the run's own handler of SIGINT. Before and after that any line of
    # trio.run can be left, and a second run is refused by what the first left behind.

    def __init__(self):
        self.stop = threading.Event()
        self.thread = threading.Thread(
            target=self.blow, args=(threading.get_ident(),), daemon=True
        )

    def blow(self, main_thread):
        while not self.stop.wait(random.uniform(0.001, 0.01)):
            signal.pthread_kill(main_thread, signal.SIGINT)

    def before_run(self):
        self.thread.start()

    def after_run(self):  # what the run has in the kernel is closed by now
        self.stop.set()
        self.thread.join()

async def forever(pairs):
    async with trio.open_nursery() as nursery:
        for a, b in pairs:
            nursery.start_soon(echo_rounds, a, b, 10**9)

fds = len(harness.open_fds())
for _ in range({runs}):
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connected()) for _ in range(8)]
        assert interrupted({backend!r}, forever, pairs, instruments=[Storm()])
run_echo({backend!r}, 20)
print("leaked", max(0, len(harness.open_fds()) - fds))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("long_ns", [1, 10**9], ids=["every tick is long", "none is"])
def test_storm_of_keyboard_interrupts(backend: str, long_ns: int) -> None:
    tests = str(Path(__file__).parent)
    script = STORM_SCRIPT.format(tests=tests, runs=STORM_RUNS, backend=backend, long_ns=long_ns)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "leaked 0\n", done.stderr
    assert "internal error" not in done.stderr, done.stderr


class Struck(Exception):
    """What the handler raises."""


@needs_ring
def test_closing_waits_for_no_cqe_that_a_handler_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises as the wait returns: what the kernel has ended is ended."""
    # trio unwinds nothing when its IO manager raises: its coroutines are collected.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    from uring_trio import _draining

    # Who waits for what does not come waits until then.
    monkeypatch.setattr(_draining, "CLOSE_TIMEOUT_S", 20.0)
    managers: list[Any] = []

    async def main() -> None:
        left, right = trio.socket.socketpair()
        manager = harness.io_manager()
        managers.append(manager)
        wait = manager.ring.wait

        def struck(timeout_ns: int) -> int:
            answer: int = wait(timeout_ns)
            if answer <= 0:
                return answer
            # Python runs handlers here, before the answer is in anybody's hands.
            manager.ring.wait = wait
            raise Struck

        with left, right:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.recv, 10)
                await trio.sleep(0.01)
                manager.ring.wait = struck
                await right.send(b"x")

    start = time.monotonic()
    with pytest.raises(Struck):
        harness.run_raw(harness.RING, main)
    gc.collect()  # the run was abandoned, and is closed when it is collected
    assert managers[0].closed
    assert time.monotonic() - start < 10
    assert not managers[0].leaked


@needs_ring
def test_a_signal_while_a_file_is_looked_at_is_nobodys_error() -> None:
    """poll(2) answers EINTR also where it must not wait, for a file that is not ready."""
    looks: list[int] = []

    def poll(real: kernel_table.Call, files: Any, count: int, timeout_ms: int) -> int:
        looks.append(timeout_ms)
        if len(looks) % 2:
            return -errno.EINTR
        return int(real(files, count, timeout_ms))

    async def main() -> None:
        event = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, event)
                await wait_all_tasks_blocked()
                # It is told of something that is gone when it is looked at: so it waits on.
                os.eventfd_write(event, 1)
                os.eventfd_read(event)
                await wait_all_tasks_blocked()
                assert nursery.child_tasks
                os.eventfd_write(event, 1)
        finally:
            os.close(event)

    with kernel_table.calls(poll=poll):
        uring_trio.run(main, backend="io_uring")
    assert len(looks) >= 4
    assert set(looks) == {0}
