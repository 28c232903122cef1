"""``anyio_options``: any number of runs on the ring, and none on epoll unseen."""

from __future__ import annotations

import pickle
import queue
import threading
from typing import TYPE_CHECKING, Any

import harness
import pytest
import sandbox
import trio
import trio.testing
from marks import needs_ring

import uring_trio
from uring_trio import _anyio_options, _hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

anyio = pytest.importorskip("anyio")


async def backend() -> str:
    return str(harness.io_statistics().backend)


def run(options: dict[str, Any], async_fn: Callable[..., Any] = backend) -> Any:
    return anyio.run(async_fn, backend="trio", backend_options=options)


@pytest.fixture
def installed() -> Iterator[None]:
    uring_trio.install()
    yield
    uring_trio.uninstall()


@pytest.fixture
def no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gave a ring to the probe, and gives none from here on."""

    def refuse(manager: Any, ring: Any) -> None:
        raise OSError(1, "io_uring_setup: Operation not permitted")

    monkeypatch.setattr(_hooks, "_make_ring", refuse)


class Started(trio.abc.Instrument):
    """Notes what each run is on, and that it began."""

    def __init__(self) -> None:
        self.backends: list[str] = []

    def before_run(self) -> None:
        self.backends.append(harness.io_statistics().backend)


@needs_ring
def test_one_dictionary_serves_many_runs_and_each_has_a_ring_of_its_own() -> None:
    options = uring_trio.anyio_options()
    before = vars(options["instruments"][0]).copy()

    async def manager() -> Any:
        return harness.io_manager()

    managers = [run(options, manager) for _ in range(3)]
    assert len({id(manager) for manager in managers}) == 3
    assert {type(manager).__name__ for manager in managers} == {"UringIOManager"}
    assert vars(options["instruments"][0]) == before
    assert trio.run(backend) == "epoll"


@needs_ring
def test_runs_in_several_threads_at_once() -> None:
    options = uring_trio.anyio_options()
    together = threading.Barrier(4)
    seen: queue.Queue[str] = queue.Queue()

    async def main() -> None:
        together.wait(10)  # all four runs are under way
        seen.put(await backend())

    threads = [threading.Thread(target=run, args=(options, main)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [seen.get_nowait() for _ in threads] == ["io_uring"] * 4


@needs_ring
def test_instruments_and_other_options_are_merged() -> None:
    mine = Started()
    given = [mine]
    clock = trio.testing.MockClock(autojump_threshold=0)
    options = uring_trio.anyio_options(instruments=iter(given), clock=clock)

    async def main() -> float:
        await anyio.sleep(1000)
        return float(anyio.current_time())

    assert run(options, main) >= 1000
    assert mine.backends == ["io_uring"]
    assert given == [mine]
    assert options["clock"] is clock


@needs_ring
def test_options_of_before_may_be_given_again_and_the_last_word_counts() -> None:
    mine = Started()
    options = uring_trio.anyio_options(instruments=[mine], backend="epoll")
    again = uring_trio.anyio_options(**options, backend="io_uring")
    assert len(again["instruments"]) == 2
    assert (run(again), run(options)) == ("io_uring", "epoll")
    assert mine.backends == ["io_uring", "epoll"]


@needs_ring
@pytest.mark.usefixtures("installed")
def test_with_install_in_force_a_run_has_one_ring_and_may_ask_for_epoll() -> None:
    runs: list[_hooks.Run] = []
    _hooks.observers.append(runs.append)
    try:
        assert run(uring_trio.anyio_options()) == "io_uring"
        assert len(runs) == 1
        assert run(uring_trio.anyio_options(backend="epoll")) == "epoll"
        assert trio.run(backend) == "io_uring"
    finally:
        _hooks.observers.remove(runs.append)


@needs_ring
def test_trio_itself_takes_them_in_guest_mode_too() -> None:
    options = uring_trio.anyio_options(backend="io_uring")
    assert trio.run(backend, **options) == "io_uring"
    todo: queue.Queue[Callable[[], Any]] = queue.Queue()
    outcomes: list[Any] = []
    trio.lowlevel.start_guest_run(
        backend,
        run_sync_soon_threadsafe=todo.put,
        done_callback=outcomes.append,
        **options,
    )
    while not outcomes:
        todo.get(timeout=10)()
    assert outcomes[0].unwrap() == "io_uring"


@needs_ring
@pytest.mark.usefixtures("no_ring")
class TestRingThatCannotBeMade:
    """It was demanded, the probe had one, and a later run gets none."""

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return uring_trio.anyio_options(backend="io_uring")

    def test_run_fails_before_its_first_step(self, options: dict[str, Any]) -> None:
        def never() -> Any:
            raise AssertionError("called")

        with pytest.raises(uring_trio.UringUnavailable, match="io_uring_setup") as caught:
            run(options, never)
        assert caught.value.remedy
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is uring_trio.UringUnavailable
        assert str(again) == str(caught.value)

    def test_plain_runs_go_on_afterwards(self, options: dict[str, Any]) -> None:
        with pytest.raises(uring_trio.UringUnavailable):
            run(options)
        assert trio.run(backend) == "epoll"

    def test_guest_run_is_not_started(self, options: dict[str, Any]) -> None:
        with pytest.raises(uring_trio.UringUnavailable):
            trio.lowlevel.start_guest_run(
                backend,
                run_sync_soon_threadsafe=lambda fn: None,
                done_callback=lambda outcome: None,
                **options,
            )

    def test_users_clock_is_not_started(self) -> None:
        clock = trio.testing.MockClock(rate=1)
        with pytest.raises(uring_trio.UringUnavailable):
            run(uring_trio.anyio_options(backend="io_uring", clock=clock))

    def test_portal_tells(self, options: dict[str, Any]) -> None:
        with (
            pytest.raises(uring_trio.UringUnavailable),
            anyio.from_thread.start_blocking_portal("trio", options),
        ):
            pass

    def test_auto_falls_back_and_tells_why(self) -> None:
        async def report() -> Any:
            return uring_trio.probe()

        told = run(uring_trio.anyio_options(), report)
        assert told.backend == "epoll"
        assert "io_uring_setup" in told.reason


@needs_ring
def test_environment_that_became_wrong_refuses_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    options = uring_trio.anyio_options()
    monkeypatch.setenv("URING_TRIO_BACKEND", "kqueue")
    with pytest.raises(uring_trio.UringUnavailable, match="not 'kqueue'") as caught:
        run(options)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="not 'kqueue'"):
        uring_trio.anyio_options()


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="kqueue"):
        uring_trio.anyio_options(backend="kqueue")  # type: ignore[arg-type]


@pytest.mark.parametrize(("installed", "refused"), [("4.13.9", True), ("4.14.0", False)])
def test_anyio_that_drops_options_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: str, refused: bool
) -> None:
    monkeypatch.setattr(_anyio_options, "version", lambda name: installed)
    if refused:
        with pytest.raises(RuntimeError, match=r"anyio 4\.13\.9 drops"):
            uring_trio.anyio_options()
    else:
        assert uring_trio.anyio_options(backend="epoll")["instruments"]


DENIED = """
import anyio, uring_trio
try:
    uring_trio.anyio_options(backend="io_uring")
except uring_trio.UringUnavailable as exc:
    print("refused", exc.reason)
async def main():
    report = uring_trio.probe()
    print(report.backend, report.reason)
anyio.run(main, backend="trio", backend_options=uring_trio.anyio_options())
anyio.run(main, backend="uring_trio")
"""


def test_where_the_ring_is_denied_a_demand_fails_at_once_and_auto_falls_back() -> None:
    done = sandbox.run_python("EPERM", DENIED)
    assert done.returncode == 0, done.stderr
    refused, *reports = done.stdout.splitlines()
    assert refused.startswith("refused")
    assert len(reports) == 2
    assert all(line.startswith("epoll") and "None" not in line for line in reports)
    assert "no io_uring, this runs on epoll" in done.stderr
