"""``run``, ``start_guest_run``, ``install``: which run is where, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import inspect
import linecache
import logging
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import harness
import outcome
import pytest
import trio
from marks import needs_ring
from trio.testing import MockClock

import uring_trio
from uring_trio import _hooks, _process, _run, _trio_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

pytestmark = [
    needs_ring,
]


@pytest.fixture(autouse=True)
def trio_is_stock_afterwards() -> Iterator[None]:
    assert_stock()
    yield
    uring_trio.uninstall()
    assert_stock()


def assert_stock() -> None:
    assert not _hooks._users
    assert not _hooks._thread.entrance_waiting
    assert _trio_private.bound_io_manager() is _trio_private.stock_io_manager
    assert _trio_private.bound_socket_type() is _trio_private.stock_socket_type


async def backend() -> str:
    await trio.lowlevel.checkpoint()
    return str(harness.io_statistics().backend)


class Witness(trio.abc.Instrument):
    """A user's instrument: what it has seen."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before_run(self) -> None:
        self.seen.append(f"before_run on {harness.io_statistics().backend}")

    def after_run(self) -> None:
        self.seen.append("after_run")


def test_run_is_on_the_ring_and_returns_what_main_returns() -> None:
    async def main(a: int, b: int) -> tuple[int, str]:
        return a + b, await backend()

    assert uring_trio.run(main, 1, 2) == (3, "io_uring")
    assert uring_trio.run(main, 1, 2, backend="io_uring") == (3, "io_uring")
    assert uring_trio.run(main, 1, 2, backend="epoll") == (3, "epoll")
    assert trio.run(main, 1, 2) == (3, "epoll")


def test_exception_of_main_comes_through() -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        uring_trio.run(main)


def test_options_of_trio_run_are_passed_on_and_instruments_kept() -> None:
    async def main() -> float:
        await trio.sleep(3600)
        return trio.current_time()

    witness = Witness()
    clock = MockClock(autojump_threshold=0)
    assert uring_trio.run(main, clock=clock, instruments=(witness,)) >= 3600
    assert witness.seen == ["before_run on io_uring", "after_run"]


def test_our_instrument_is_gone_when_the_run_has_begun() -> None:
    async def main() -> list[object]:
        return list(_trio_private.current_runner().instruments)

    assert uring_trio.run(main) == ["_all"]


@pytest.mark.parametrize(
    "bad_run",
    [
        lambda run: run(lambda: None),
        lambda run: run(backend),  # and one argument too many below
        lambda run: run(backend, strange_option=1),
        lambda run: run(backend, instruments=5),
    ],
    ids=["not async", "good", "unknown option", "instruments not iterable"],
)
def test_trios_own_errors_come_through(bad_run: Callable[[Any], object]) -> None:
    ours = outcome.capture(bad_run, uring_trio.run)
    trios = outcome.capture(bad_run, trio.run)
    assert type(ours) is type(trios)
    if isinstance(ours, outcome.Error):
        assert isinstance(trios, outcome.Error)
        assert type(ours.error) is type(trios.error)


def test_run_inside_a_run_is_refused_by_trio_and_the_ring_closed() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="from inside a run"):
            uring_trio.run(backend)
        assert await backend() == "io_uring"

    uring_trio.run(main)


def test_unknown_backend_is_a_value_error() -> None:
    for function in (uring_trio.run, uring_trio.start_guest_run):
        with pytest.raises(ValueError, match="'uring'"):
            function(backend, backend="uring")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'uring'"):
        uring_trio.install(backend="uring")  # type: ignore[arg-type]


def test_trio_run_may_be_replaced_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "run", uring_trio.run)
    assert trio.run(backend) == "io_uring"


def test_signature_is_trios_plus_what_is_ours() -> None:
    for ours, trios in (
        (uring_trio.run, trio.run),
        (uring_trio.start_guest_run, trio.lowlevel.start_guest_run),
    ):
        parameters = dict(inspect.signature(ours).parameters)
        assert parameters.pop("backend").default == "auto"
        assert parameters.pop("ring").default is None
        assert parameters == dict(inspect.signature(trios).parameters)


def test_runs_in_several_threads_are_each_where_they_asked_to_be() -> None:
    wanted = ["io_uring", "epoll", "auto", "stock"] * 3
    together = threading.Barrier(len(wanted))
    found: dict[int, str] = {}

    async def main(index: int) -> None:
        await trio.to_thread.run_sync(together.wait)
        a, b = await harness.stream_pair()
        async with a, b:
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
        found[index] = await backend()

    def start(index: int) -> None:
        if wanted[index] == "stock":
            trio.run(main, index)
        else:
            uring_trio.run(main, index, backend=wanted[index])  # type: ignore[arg-type]

    threads = [threading.Thread(target=start, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {"io_uring": "io_uring", "auto": "io_uring", "epoll": "epoll", "stock": "epoll"}
    assert [found[i] for i in range(len(wanted))] == [expected[name] for name in wanted]


# ---- guest mode ---------------------------------------------------------------------------


def run_as_guest(start: Callable[..., None], *args: Any, **options: Any) -> Any:
    """Start a guest run under the smallest of host loops."""
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    done: list[outcome.Outcome[Any]] = []
    start(*args, run_sync_soon_threadsafe=todo.put, done_callback=done.append, **options)
    while not done:
        todo.get()()
    return done[0].unwrap()


def test_guest_run_is_where_it_asked_to_be() -> None:
    async def main() -> str:
        await trio.sleep(0.01)
        return await backend()

    assert run_as_guest(uring_trio.start_guest_run, main) == "io_uring"
    assert run_as_guest(uring_trio.start_guest_run, main, backend="epoll") == "epoll"
    witness = Witness()
    run_as_guest(uring_trio.start_guest_run, main, instruments=[witness])
    assert witness.seen[0] == "before_run on io_uring"


def test_guest_run_that_trio_refuses_leaves_nothing() -> None:
    with pytest.raises(TypeError):
        uring_trio.start_guest_run(backend)  # no callbacks


def test_plain_guest_run_is_on_the_ring_when_installed() -> None:
    uring_trio.install()
    assert run_as_guest(trio.lowlevel.start_guest_run, backend) == "io_uring"


# ---- install ------------------------------------------------------------------------------


def test_install_puts_plain_runs_of_every_thread_on_the_ring_until_uninstall() -> None:
    report = uring_trio.install()
    assert report.backend == "io_uring"
    found = [trio.run(backend)]
    thread = threading.Thread(target=lambda: found.append(trio.run(backend)))
    thread.start()
    thread.join()
    assert found == ["io_uring", "io_uring"]
    uring_trio.uninstall()
    assert trio.run(backend) == "epoll"


def test_install_of_epoll_is_a_choice_for_auto_but_not_for_who_asks() -> None:
    report = uring_trio.install(backend="epoll")
    assert (report.backend, report.reason) == ("epoll", "epoll was asked for")
    assert uring_trio.probe().backend == "epoll"
    assert trio.run(backend) == "epoll"
    assert uring_trio.run(backend) == "epoll"
    assert uring_trio.run(backend, backend="io_uring") == "io_uring"


def test_installing_twice_does_nothing_and_with_another_backend_is_refused() -> None:
    uring_trio.install(backend="io_uring")
    uring_trio.install(backend="io_uring")
    with pytest.raises(RuntimeError, match="installed already with backend='io_uring'"):
        uring_trio.install(backend="auto")
    uring_trio.uninstall()
    assert_stock()


def test_run_inside_an_installation_has_its_own_choice_and_one_ring() -> None:
    rings: list[object] = []

    async def main() -> str:
        rings.extend(user for user in _hooks._users if user is not _hooks._INSTALL)
        return await backend()

    uring_trio.install()
    assert uring_trio.run(main, backend="epoll") == "epoll"
    assert not rings
    assert uring_trio.run(main) == "io_uring"
    assert len(rings) == 1


def test_installing_in_a_run_leaves_that_run_where_it_is() -> None:
    async def main() -> str:
        assert uring_trio.install(backend="io_uring").backend == "io_uring"
        return await backend()

    assert trio.run(main) == "epoll"
    assert trio.run(backend) == "io_uring"


# ---- what goes wrong ----------------------------------------------------------------------


def test_swap_that_fails_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """trio swallows what an instrument raises, so the run itself would not tell."""

    def broken() -> object:
        raise AttributeError("trio has changed")

    monkeypatch.setattr(_trio_private, "current_runner", broken)

    async def main() -> str:
        return str(harness.io_statistics().backend)

    with pytest.raises(uring_trio.UringUnavailable, match="trio has changed"):
        uring_trio.run(main, backend="io_uring")
    with caplog.at_level(logging.ERROR, logger="uring_trio"):
        assert uring_trio.run(main) == "epoll"
    assert "trio has changed" in caplog.text


class InterruptAt:
    """Raises KeyboardInterrupt at the Nth line of our own code that is run.

    Not while a run exists: there trio holds it back from code that is not a task's.
    """

    def __init__(self, line: int) -> None:
        self.left = line
        self.files = {module.__file__ for module in (_hooks, _run)}

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line" and self.may_interrupt(frame):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace

    def may_interrupt(self, frame: FrameType) -> bool:
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return False
        # Python goes through a `with` line again on its way out, and through a `try` within it
        # before that is in force: an exception of the trace function would keep the lock for
        # ever there. Signals are not handled at either.
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return not line.lstrip().startswith(("with ", "try:"))


def interrupt_everywhere(action: Callable[[], object]) -> int:
    """Interrupt *action* at each of its lines in turn, and check the books after each."""
    action()  # imports, and what else is kept
    gc.collect()
    gc.freeze()  # what is older need not be looked through after each line
    try:
        return interrupt_lines(action)
    finally:
        gc.unfreeze()


def locks_are_free() -> bool:
    """Whether another thread gets each lock of the process."""
    found = []

    def take() -> None:
        for lock in (_process.locks.install, _process.locks.users, _process.locks.kernel):
            found.append(lock.acquire(timeout=1))
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found == [True] * 3


def interrupt_lines(action: Callable[[], object]) -> int:
    line = 1
    while True:
        interrupt = InterruptAt(line)
        with harness.no_new_fds():
            with contextlib.suppress(KeyboardInterrupt), interrupt:
                action()
            uring_trio.uninstall()
            gc.collect()
            assert_stock()
            assert locks_are_free()
        if interrupt.left > 0:
            return line
        line += 1


@pytest.mark.timeout(120)
def test_keyboard_interrupt_at_any_line_of_run_leaves_the_books_right() -> None:
    assert interrupt_everywhere(lambda: uring_trio.run(backend)) > 40


@pytest.mark.timeout(120)
def test_keyboard_interrupt_at_any_line_of_install_leaves_the_books_right() -> None:
    def install_and_run() -> None:
        uring_trio.install()
        trio.run(backend)
        uring_trio.uninstall()

    assert interrupt_everywhere(install_and_run) > 40
