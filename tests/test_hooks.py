"""What is exchanged in trio: all of it, only while it has a user, and put back the same."""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from marks import needs_ring

import uring_trio
from uring_trio import _hooks, _probe, _trio_private
from uring_trio._io_manager import UringIOManager
from uring_trio._sockets import UringSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_ring

# Where trio keeps what we exchange: taken from trio itself, when nothing is exchanged.
PLACES: list[tuple[Any, str]] = [
    (trio._core._run, "TheIOManager"),
    (trio._socket, "_SocketType"),
    *((cls, name) for cls, methods in _hooks.REPLACEMENTS.items() for name in methods),
]
STOCK = [getattr(owner, name) for owner, name in PLACES]


def places() -> list[Any]:
    return [getattr(owner, name) for owner, name in PLACES]


def are_stock() -> bool:
    return all(now is then for now, then in zip(places(), STOCK, strict=True))


def are_ours() -> bool:
    return all(now is not then for now, then in zip(places(), STOCK, strict=True))


@pytest.fixture(autouse=True)
def stock_afterwards() -> Iterator[None]:
    assert are_stock()
    yield
    uring_trio.uninstall()
    assert are_stock()


def test_streams_are_among_the_places() -> None:
    assert {cls for cls, _ in PLACES} >= {trio.SocketStream, _trio_private.stock_socket_type}
    assert len(PLACES) > 3


def test_install_exchanges_everything_and_uninstall_puts_back_the_same_objects() -> None:
    uring_trio.install()
    assert are_ours()
    uring_trio.uninstall()
    assert are_stock()


def test_uninstall_without_install_does_nothing() -> None:
    uring_trio.uninstall()
    assert are_stock()


def test_run_exchanges_sockets_and_streams_but_not_the_manager_and_puts_them_back() -> None:
    async def main() -> list[bool]:
        return [now is not then for now, then in zip(places(), STOCK, strict=True)]

    assert uring_trio.run(main) == [False] + [True] * (len(PLACES) - 1)
    assert are_stock()
    assert uring_trio.run(main, backend="epoll") == [False] * len(PLACES)


def test_sockets_stay_until_the_last_of_several_runs_has_ended() -> None:
    first_may_end, second_may_end = threading.Event(), threading.Event()
    both_run = threading.Barrier(3)

    async def main(may_end: threading.Event) -> None:
        await trio.to_thread.run_sync(both_run.wait)
        await trio.to_thread.run_sync(may_end.wait)

    first = threading.Thread(target=uring_trio.run, args=(main, first_may_end))
    second = threading.Thread(target=uring_trio.run, args=(main, second_may_end))
    first.start()
    second.start()
    both_run.wait()
    first_may_end.set()
    first.join()
    assert _trio_private.bound_socket_type() is UringSocket
    second_may_end.set()
    second.join()
    assert are_stock()


def test_run_under_way_keeps_its_manager_and_sockets_after_uninstall() -> None:
    async def main() -> None:
        uring_trio.uninstall()
        assert harness.io_statistics().backend == "io_uring"
        assert _trio_private.bound_io_manager() is _trio_private.stock_io_manager
        a, b = await harness.stream_pair()
        assert type(a.socket) is UringSocket
        async with a, b:
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
        assert harness.io_statistics().operations["recv"] == 1

    uring_trio.install()
    trio.run(main)
    assert are_stock()


def test_sockets_from_before_install_and_from_outside_of_runs_work() -> None:
    async def exchange(a: trio.socket.SocketType, b: trio.socket.SocketType) -> None:
        with a, b:
            await a.send(b"x")
            assert await b.recv(10) == b"x"

    before = trio.socket.socketpair()
    assert type(before[0]) is _trio_private.stock_socket_type
    uring_trio.install()
    outside = trio.socket.socketpair()
    assert type(outside[0]) is UringSocket
    trio.run(exchange, *before)
    trio.run(exchange, *outside)
    ours_on_epoll = trio.socket.socketpair()
    uring_trio.run(exchange, *ours_on_epoll, backend="epoll")
    left_over = trio.socket.socketpair()
    uring_trio.uninstall()
    trio.run(exchange, *left_over)


def test_run_on_epoll_beside_a_ring_is_not_disturbed() -> None:
    async def on_epoll() -> None:
        a, b = await harness.stream_pair()
        assert type(a.socket) is UringSocket  # the other run's doing
        async with a, b:
            await a.send_all(b"x" * 100_000)
            received = b""
            while len(received) < 100_000:
                received += await b.receive_some()
        assert harness.io_statistics().backend == "epoll"

    async def main() -> None:
        await trio.to_thread.run_sync(trio.run, on_epoll)

    uring_trio.run(main)


def test_manager_is_a_python_class_whose_attributes_can_be_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """trio's tests patch methods on the class, and expect runs to obey."""
    uring_trio.install()
    manager_class = _trio_private.bound_io_manager()
    assert isinstance(manager_class, type)
    assert issubclass(manager_class, UringIOManager)
    called = []
    original = manager_class.force_wakeup

    def get_events(self: Any, timeout: float) -> Any:
        called.append(type(self))
        return UringIOManager.get_events(self, timeout)

    monkeypatch.setattr(manager_class, "get_events", get_events)
    trio.run(trio.sleep, 0)
    assert set(called) == {manager_class}
    monkeypatch.undo()
    assert manager_class.force_wakeup is original
    trio.run(trio.sleep, 0)


def test_what_others_have_put_in_place_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class TheirSocket(trio._socket._SocketType):
        pass

    async def their_send_all(self: trio.SocketStream, data: bytes) -> None:
        raise NotImplementedError

    with monkeypatch.context() as patch:
        patch.setattr(trio._socket, "_SocketType", TheirSocket)
        patch.setattr(trio.SocketStream, "send_all", their_send_all)
        uring_trio.run(trio.sleep, 0)
        uring_trio.install()
        uring_trio.uninstall()
        assert trio._socket._SocketType is TheirSocket
        assert trio.SocketStream.send_all is their_send_all
        assert trio.SocketStream.receive_some in STOCK


def test_somebody_elses_manager_is_not_replaced_by_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class TheirManager(_trio_private.stock_io_manager):  # type: ignore[misc]
        __slots__ = ()

    with monkeypatch.context() as patch:
        patch.setattr(trio._core._run, "TheIOManager", TheirManager)
        with pytest.raises(RuntimeError, match="TheirManager"):
            uring_trio.install()
        assert _trio_private.bound_io_manager() is TheirManager
        assert _probe.installed_demand() is None


def test_manager_that_trio_drops_unclosed_is_no_user_any_more() -> None:
    """trio closes nothing when it fails between making the manager and starting the run."""
    uring_trio.install()
    manager = _trio_private.bound_io_manager()()
    assert len(_hooks._users) == 2
    gone = weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None
    assert list(_hooks._users) == [_hooks._INSTALL]


def test_forked_child_has_no_users_but_keeps_the_installation() -> None:
    def child() -> int:
        signal.set_wakeup_fd(-1)  # the parent's, of which trio would warn
        if _hooks._users:
            return 1
        if not are_stock():
            return 2
        if uring_trio.run(main, backend="io_uring") != "io_uring":
            return 3
        uring_trio.install()
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if trio.run(main) == "io_uring" and are_ours() else 1)
        return 4 * os.waitpid(grandchild, 0)[1]

    async def main() -> str:
        return str(harness.io_statistics().backend)

    async def parent() -> int:
        # On a thread of its own, because trio's own state says that this one has a run.
        def fork() -> int:
            pid = os.fork()
            if pid == 0:
                try:
                    os._exit(child())
                except BaseException:  # noqa: BLE001  a child must end here
                    traceback.print_exc()
                    os._exit(99)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        return await trio.to_thread.run_sync(fork)

    assert uring_trio.run(parent) == 0


def test_observers_see_each_run_with_its_backend_and_statistics() -> None:
    async def main() -> None:
        a, b = await harness.stream_pair()
        async with a, b:
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"

    seen: list[_hooks.Run] = []
    _hooks.observers.append(seen.append)
    try:
        uring_trio.run(main)
        uring_trio.run(main, backend="epoll")
        trio.run(main)  # not ours, and not installed
        uring_trio.install()
        trio.run(main)
        with pytest.raises(TypeError):
            uring_trio.run(lambda: None)  # type: ignore[arg-type, return-value]
    finally:
        _hooks.observers.remove(seen.append)
    assert [run.backend for run in seen[:3]] == ["io_uring", "epoll", "io_uring"]
    assert [run.demand for run in seen[:3]] == ["auto", "epoll", "auto"]
    on_ring, on_epoll, plain = seen[:3]
    for run in (on_ring, plain):
        assert run.statistics is not None
        assert run.statistics.operations["recv"] == 1
        assert run.statistics.operations["connect"] == 1
    assert on_epoll.statistics is None
    assert on_epoll.failure is not None
