"""Several runs in several threads, and what a fork leaves to the child."""

from __future__ import annotations

import gc
import os
import queue
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.lowlevel
import trio.testing
from marks import needs_ring

from uring_trio._io_manager import UringIOManager

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 4
ROUNDS = 100
CHILD_TIMEOUT_S = 20


async def echo_traffic(rounds: int = ROUNDS) -> None:
    left, right = await harness.stream_pair()

    async def echo() -> None:
        async for chunk in right:
            await right.send_all(chunk)

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for i in range(rounds):
            await left.send_all(b"%6d" % i)
            assert await left.receive_some() == b"%6d" % i
        nursery.cancel_scope.cancel()


def run_in_threads(*functions: Callable[[], Any]) -> None:
    """Run all at the same time; raise the first error."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as exc:
            errors.append(exc)
            raise

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_runs_in_many_threads(backend: str) -> None:
    run_in_threads(*[lambda: harness.run(backend, echo_traffic)] * THREADS)


@pytest.mark.ring_only
def test_runs_on_the_ring_and_on_epoll_at_the_same_time(backend: str) -> None:
    run_in_threads(
        *[lambda: harness.run(backend, echo_traffic)] * 2,
        *[lambda: harness.run(harness.EPOLL, echo_traffic)] * 2,
    )


@pytest.mark.ring_only
def test_a_run_on_the_ring_starts_and_ends_inside_one_on_epoll(backend: str) -> None:
    async def main() -> None:
        a, b = trio.socket.socketpair()
        with a, b:
            for _ in range(3):
                await trio.to_thread.run_sync(lambda: harness.run(backend, echo_traffic, 10))
                await a.send(b"x")
                assert await b.recv(1) == b"x"
                assert harness.io_statistics().backend == harness.EPOLL

    harness.run(harness.EPOLL, main)


@pytest.mark.ring_only
def test_a_socket_made_on_the_ring_works_in_a_later_run_on_epoll_and_back(backend: str) -> None:
    pair: list[trio.socket.SocketType] = []

    async def make() -> None:
        pair.extend(trio.socket.socketpair())

    async def use() -> None:
        for _ in range(3):
            await pair[0].send(b"x")
            assert await pair[1].recv(10) == b"x"

    harness.run(backend, make)
    harness.run(harness.EPOLL, use)
    harness.run(backend, use)
    for sock in pair:
        sock._sock.close()  # type: ignore[attr-defined]  # trio's close wants a run


def test_from_thread_and_to_thread(backend: str) -> None:
    def worker() -> list[int]:
        return [trio.from_thread.run(answer, i) for i in range(20)]

    async def answer(i: int) -> int:
        await trio.lowlevel.checkpoint()
        return i

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(THREADS):
                nursery.start_soon(call)

    async def call() -> None:
        assert await trio.to_thread.run_sync(worker) == list(range(20))

    harness.run(backend, main)


def in_child(function: Callable[[], str]) -> str:
    """Fork; what ``function`` returned, or how it failed, in the child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # CPython 3.12 warns of any fork of a process with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            answer = function()
        except BaseException:  # noqa: BLE001 - the child must never come back from here
            answer = traceback.format_exc()
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return answer


def run_in_new_thread(function: Callable[[], Any]) -> str:
    """trio refuses a run inside a run, and that is what the forking thread is in."""
    result: list[str] = ["timed out"]

    def body() -> None:
        try:
            function()
        except BaseException:  # noqa: BLE001 - reported through the pipe
            result[0] = traceback.format_exc()
        else:
            result[0] = "ok"

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(CHILD_TIMEOUT_S)
    return result[0]


def test_a_new_run_in_a_forked_child(backend: str) -> None:
    async def main() -> None:
        await echo_traffic(3)
        answer = in_child(lambda: run_in_new_thread(lambda: harness.run(backend, echo_traffic, 3)))
        assert answer == "ok"
        await echo_traffic(3)

    harness.run(backend, main)


def test_a_new_run_in_a_child_forked_between_runs(backend: str) -> None:
    def child() -> str:
        harness.run(backend, echo_traffic, 3)
        return "ok"

    harness.run(backend, echo_traffic, 3)
    assert in_child(child) == "ok"
    harness.run(backend, echo_traffic, 3)


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "recv": lambda a, _: a.recv(1),
    "send": lambda a, _: a.send(b"x"),
    "wait_readable": lambda a, _: trio.lowlevel.wait_readable(a),  # noqa: ASYNC105
    "receive_some": lambda _, stream: stream.receive_some(1),
    "send_all": lambda _, stream: stream.send_all(b"x"),
}


@pytest.mark.ring_only
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_the_parents_ring_is_refused(backend: str, name: str) -> None:
    def child(coroutine: Any) -> str:
        # Driven by hand: it has to refuse before it ever yields to the parent's loop.
        try:
            coroutine.send(None)
        except RuntimeError as exc:
            return str(exc)
        return "not refused"

    async def main() -> None:
        a, b = trio.socket.socketpair()
        left, right = await harness.stream_pair()
        async with left, right:
            with a, b:
                answer = in_child(lambda: child(OPERATIONS[name](a, left)))
                assert answer == (
                    f"this io_uring belongs to process {os.getpid()}; start a new run after fork"
                )
                await b.send(b"x")
                assert await a.recv(10) == b"x"

    harness.run(backend, main)


@pytest.mark.ring_only
def test_closing_in_the_child_does_not_disturb_the_parent(backend: str) -> None:
    async def receive(sock: trio.socket.SocketType, received: list[bytes]) -> None:
        received.append(await sock.recv(10))

    async def main() -> None:
        received: list[bytes] = []
        a, b = trio.socket.socketpair()
        manager = harness.io_manager()

        def child() -> str:
            a.close()
            trio.lowlevel.notify_closing(b)
            nursery.cancel_scope.cancel()
            manager.force_wakeup()
            manager.close()
            return "ok"

        with a, b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, a, received)
                await trio.testing.wait_all_tasks_blocked()
                assert in_child(child) == "ok"
                await b.send(b"hello")
            assert received == [b"hello"]

    harness.run(backend, main)


def test_subprocesses_do_not_inherit_the_managers_files(backend: str) -> None:
    async def main() -> None:
        done = await trio.run_process(["ls", "-l", "/proc/self/fd"], capture_stdout=True)
        assert b"anon_inode" not in done.stdout

    harness.run(backend, main)


@needs_ring
def test_collecting_the_parents_manager_closes_no_file_of_the_child() -> None:
    """A forked child closes its copy of the ring's descriptor once.

    Closed right after the fork, it must not be closed again when the manager is collected: by
    then the number may be a file of the child's own.
    """
    read_end, write_end = os.pipe()
    managers = [UringIOManager()]
    pid = os.fork()
    if pid == 0:
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
        managers.clear()
        gc.collect()
        still_open = set(map(int, os.listdir("/proc/self/fd")))
        os.write(write_end, b"closed" if set(files) - still_open else b"ok")
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answers:
        assert answers.read() == b"ok"
    os.waitpid(pid, 0)
    managers.pop().close()


@needs_ring
def test_a_child_is_not_told_that_its_parents_run_was_lost() -> None:
    """What is done about that takes locks, which threads of the parent may hold at the fork."""
    told: list[None] = []

    async def main() -> str:
        with harness.io_manager().when_lost(lambda: told.append(None)):
            return in_child(lambda: f"told {len(told)} times")

    assert harness.run(harness.RING, main) == "told 0 times"
    assert told == []


CALLBACK_TIMEOUT_S = 20
SETTLE_S = 0.05  # long enough for the helper thread to be asleep in the kernel


@needs_ring
def test_cancel_in_the_child_of_a_guest_run_does_not_wake_the_parent() -> None:
    """A forked child does not signal the parent's helper thread."""
    callbacks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    outcomes: list[Any] = []
    scope = trio.CancelScope()

    async def main() -> None:
        with scope:
            await trio.sleep_forever()

    harness.start_guest_run(
        harness.RING, main, run_sync_soon_threadsafe=callbacks.put, done_callback=outcomes.append
    )
    run_while_busy(callbacks)
    child = os.fork()
    if child == 0:
        scope.cancel()
        os._exit(0)
    os.waitpid(child, 0)
    woken = run_while_busy(callbacks)
    scope.cancel()
    while not outcomes:
        callbacks.get(timeout=CALLBACK_TIMEOUT_S)()
    outcomes[0].unwrap()
    assert not woken


def run_while_busy(callbacks: queue.SimpleQueue[Callable[[], Any]]) -> int:
    """Run the host's callbacks until none comes; how many there were."""
    count = 0
    while True:
        try:
            callback = callbacks.get(timeout=SETTLE_S)
        except queue.Empty:
            return count
        callback()
        count += 1
