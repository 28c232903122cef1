"""Tests that must fail, each for an operation that it gives to a worker of the kernel.

Not collected with the others: `test_kernel_workers` runs them, in a pytest of their own. All but
the first plant it in a thread or process of its own, because a thread's workers outlive its runs,
and an operation that is given to one which is there already is seen by nobody.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import queue
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import gain_tools
import harness
import kernel_workers
import pytest
import trio

import uring_trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# <linux/io_uring.h>
IORING_OFF_SQES = 0x10000000
IORING_OP_READ, IOSQE_ASYNC = 22, 0x10
IO_URING_SETUP, IO_URING_ENTER = 425, 426
SQ_OFFSETS = 40  # of `struct io_uring_params`: where its offsets of the SQ stand
SQE_BYTES, PARAMS_BYTES = 64, 120

BOUND_S = 10.0


class Offender:
    """A read of an empty pipe that is given to a worker at once, by a ring beside the run's.

    Workers belong to a thread and not to a ring, so it makes no difference to them.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        params = ctypes.create_string_buffer(PARAMS_BYTES)
        self.ring = libc.syscall(IO_URING_SETUP, 1, params)
        assert self.ring >= 0
        # struct io_sqring_offsets: head, tail, ring_mask, ring_entries, flags, dropped, array
        _, tail, _, _, _, _, array = struct.unpack_from("7I", params, SQ_OFFSETS)
        self.pipe = os.pipe()
        sqe = struct.pack("BBHiQQI", IORING_OP_READ, IOSQE_ASYNC, 0, self.pipe[0], 0, 0, 0)
        with mmap.mmap(self.ring, SQE_BYTES, offset=IORING_OFF_SQES) as sqes:
            sqes[: len(sqe)] = sqe
        with mmap.mmap(self.ring, array + 4) as shared:
            struct.pack_into("I", shared, array, 0)
            struct.pack_into("I", shared, tail, 1)
        assert libc.syscall(IO_URING_ENTER, self.ring, 1, 0, 0, None, 0) == 1

    def close(self) -> None:
        for fd in (self.ring, *self.pipe):
            os.close(fd)


offenders: list[Offender] = []  # kept, and with them their workers


@pytest.fixture(autouse=True)
def close_offenders() -> Iterator[None]:
    yield
    while offenders:
        offenders.pop().close()


async def offend(*_: Any) -> None:
    """Have a worker at the run's end, and no look before, however slow the machine is."""
    harness.io_manager()._watch.next_look = math.inf
    offenders.append(Offender())
    await trio.lowlevel.checkpoint()


async def offend_and_be_seen() -> None:
    """Have one that is looked at before the run's end, which then has nothing new to tell."""
    book = trio.Path(os.environ[kernel_workers.BOOK])
    before = await book.read_bytes()
    offenders.append(Offender())
    with trio.fail_after(BOUND_S):
        while await book.read_bytes() == before:
            await trio.lowlevel.checkpoint()


def in_thread(fn: Callable[..., Any], *args: Any) -> None:
    thread = threading.Thread(target=fn, args=args, name="a worker thread")
    thread.start()
    thread.join()


def in_child(statements: str) -> None:
    program = f"import planted_offenders as planted, trio, uring_trio; {statements}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=os.path.dirname(__file__))


def test_main_thread() -> None:
    harness.run_raw(harness.RING, offend)


def test_worker_thread() -> None:
    in_thread(harness.run_raw, harness.RING, offend)


def test_worker_thread_by_install() -> None:
    uring_trio.install(backend="io_uring")
    in_thread(trio.run, offend)
    uring_trio.uninstall()


def test_worker_thread_by_anyio() -> None:
    in_thread(lambda: anyio.run(offend, backend="uring_trio"))


def test_worker_thread_in_a_guest_run() -> None:
    def host() -> None:
        calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ends: list[Any] = []
        harness.start_guest_run(
            harness.RING, offend, run_sync_soon_threadsafe=calls.put, done_callback=ends.append
        )
        while not ends:
            calls.get()()

    in_thread(host)


def test_worker_thread_of_a_callback_server() -> None:
    def plant(*_: Any) -> None:
        harness.io_manager()._watch.next_look = math.inf
        offenders.append(Offender())

    recorder = gain_tools.Recorder(on_accept=plant)
    with (
        gain_tools.server_in_thread(recorder, workers=2) as server,
        gain_tools.connect(server),
    ):
        # Named: a worker that has not run yet is whoever's sees it, so the other thread's too.
        gain_tools.wait_until(
            lambda: bool(offenders) and None not in kernel_workers.workers().values()
        )


def test_worker_thread_before_its_end() -> None:
    in_thread(harness.run_raw, harness.RING, offend_and_be_seen)


def test_child_process() -> None:
    in_child("uring_trio.run(planted.offend, backend='io_uring')")


def test_child_process_by_install() -> None:
    in_child("uring_trio.install(backend='io_uring'); trio.run(planted.offend)")


def test_child_process_by_launcher() -> None:
    command = [sys.executable, "-m", "uring_trio", "run", "--backend", "io_uring", __file__]
    subprocess.run(command, check=True)


def test_forked_child() -> None:
    child = os.fork()
    if child == 0:
        harness.run_raw(harness.RING, offend)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_of_two_runs_only_the_first() -> None:
    """The second finds the first one's worker still there, and does not count it."""

    def both() -> None:
        harness.run_raw(harness.RING, offend)
        assert kernel_workers.workers()
        harness.run_raw(harness.RING, trio.lowlevel.checkpoint)

    in_thread(both)


@pytest.mark.xfail(reason="hides nothing from the book", strict=True)
def test_expected_failure() -> None:
    in_thread(harness.run_raw, harness.RING, offend)
    raise AssertionError


if __name__ == "__main__":  # by the launcher
    trio.run(offend)
