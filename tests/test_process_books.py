"""Each book of a process sees what is planted, tells what it is, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import harness
import process_books
import pytest
import sandbox
from process_books import (
    Cpu,
    Descriptors,
    MappedRings,
    Memory,
    Threads,
    growth,
    memory,
    stays,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 0.05


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_a_descriptor_that_is_left_is_told_by_number_and_kind() -> None:
    book = Descriptors()
    with pipe() as (reading, writing):
        told = stays(book, bound_s=SOON_S)
        assert [words.rpartition(":")[0] for words in told] == [
            f"descriptor {reading}: pipe",
            f"descriptor {writing}: pipe",
        ]
    assert stays(book, bound_s=SOON_S) == []


def test_another_file_under_the_same_number_is_more() -> None:
    with pipe() as (reading, writing), pipe() as others:
        book = Descriptors()
        os.dup2(others[0], reading)
        # The first pipe's end is gone, and that of the second is there twice.
        (told,) = stays(book, bound_s=SOON_S)
        assert told.startswith(f"descriptor {reading}: pipe:")
        assert writing  # which is there still


def test_the_same_file_under_another_number_is_not() -> None:
    with pipe() as (reading, writing):
        book = Descriptors()
        moved = os.dup(reading)
        assert len(stays(book, bound_s=SOON_S)) == 1
        os.close(reading)
        assert stays(book, bound_s=SOON_S) == []
        os.dup2(moved, reading)
        os.close(moved)
        assert writing


def test_files_without_an_inode_are_counted_by_kind() -> None:
    book = Descriptors()
    event = os.eventfd(0)
    assert stays(book, bound_s=SOON_S) == [f"descriptor {event}: anon_inode:[eventfd]"]
    os.close(event)
    assert stays(book, bound_s=SOON_S) == []


@pytest.mark.skipif(harness.ring_denied() is not None, reason="no io_uring here")
def test_a_ring_is_there_as_long_as_it_is_mapped() -> None:
    book = MappedRings()

    async def look() -> None:
        (told,) = book.more()
        assert told.endswith(" parts of rings are mapped")

    harness.run(harness.RING, look)
    assert stays(book) == []


def test_what_only_a_collection_closes_is_more_unless_it_is_meant() -> None:
    class Holder:
        def __init__(self) -> None:
            self.file = os.fdopen(os.eventfd(0), "rb", closefd=True, buffering=0)
            self.me = self

        def __del__(self) -> None:
            self.file.close()

    book = Descriptors()
    with process_books.no_collection():
        Holder()
        assert len(stays(book, bound_s=SOON_S)) == 1
        assert stays(book, bound_s=SOON_S, collecting=True) == []


def test_a_thread_that_is_left_is_told_by_its_name_and_one_that_ends_is_waited_for() -> None:
    book = Threads()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="the one that stays")
    thread.start()
    assert stays(book, bound_s=SOON_S) == [f"thread {thread.native_id}: the one that stays"]
    threading.Timer(SOON_S, end.set).start()
    assert stays(book) == []
    thread.join()


def test_a_thread_that_trio_keeps_is_nobodys() -> None:
    end = threading.Event()
    kept = threading.Thread(target=end.wait, name="Trio thread 17")
    book = Threads()
    kept.start()
    assert stays(book, bound_s=SOON_S) == []
    kept.name = "its new work"
    assert stays(book, bound_s=SOON_S) == [f"thread {kept.native_id}: its new work"]
    end.set()
    kept.join()


def test_the_only_thread_that_there_was_is_no_new_one() -> None:
    alone = (
        "import process_books, threading\n"
        "book = process_books.Threads()\n"
        "kept = threading.Thread(target=threading.Event().wait, name='Trio thread 0', daemon=True)\n"
        "kept.start()\n"
        "print(process_books.stays(book, bound_s=0.05))\n"
    )
    done = sandbox.run_python("NONE", alone)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_what_does_not_go_by_itself_is_told_at_once() -> None:
    class Never:
        goes = False

        def more(self) -> list[str]:
            return ["a worker"]

    began = time.monotonic()
    assert stays(Never(), Descriptors(), bound_s=60.0) == ["a worker"]
    assert time.monotonic() - began < 30.0


def test_a_thread_that_spins_takes_its_share_and_a_sleeper_none() -> None:
    cpu = Cpu()
    time.sleep(0.1)
    assert cpu.most() < 0.3
    end = threading.Event()

    def spin() -> None:
        while not end.is_set():
            pass

    spinner = threading.Thread(target=spin)
    spinner.start()
    cpu = Cpu()
    time.sleep(0.3)
    together, most = cpu.sum(), cpu.most()
    end.set()
    spinner.join()
    # Two looks, one after the other: a share may be some thousandths less by then.
    assert most > 0.5
    assert together > 0.9 * most


def rounds_of(leak: Any) -> list[Memory]:
    rounds = []
    for _ in range(4):
        leak()
        rounds.append(memory())
    return rounds


def test_memory_that_grows_with_each_round_is_told() -> None:
    kept: list[Any] = []
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]

    def blocks() -> None:
        kept.append([object() for _ in range(1000)])

    def of_c() -> None:
        kept.append(libc.malloc(100_000))

    assert "blocks" in growth(rounds_of(blocks), blocks=500, malloc_bytes=1 << 30)
    if memory().malloc_bytes:
        started = len(kept)
        assert "malloc" in growth(rounds_of(of_c), blocks=500, malloc_bytes=50_000)
        for address in kept[started:]:
            libc.free(address)
    assert growth(rounds_of(gc.collect), blocks=500, malloc_bytes=50_000) == ""


def test_the_names_that_methods_were_looked_up_by_are_no_growth() -> None:
    call = ctypes.pythonapi.PyObject_CallMethod
    call.restype = ctypes.py_object

    def by_name() -> None:
        between = []  # of the same size, so that each name is in another place
        for _ in range(50):
            call(ctypes.py_object(""), b"strip", None)
            between.append(bytes(22))

    assert growth(rounds_of(by_name), blocks=10, malloc_bytes=1 << 30) == ""


def test_what_is_bought_once_is_no_growth() -> None:
    rounds = [Memory(1, 1), Memory(900, 900), Memory(900, 900), Memory(1800, 1800)]
    assert growth(rounds, blocks=10, malloc_bytes=10) == ""
    assert growth(rounds[:2], blocks=10, malloc_bytes=10)
    assert growth(rounds[:1], blocks=10, malloc_bytes=10) == ""
