"""A forked child closes its copy of the ring's descriptor once.

It closed it right after the fork, and again when the manager was collected: by then the
number may be a file of the child's own.
"""

from __future__ import annotations

import gc
import os

import harness
import pytest

from uring_trio._io_manager import UringIOManager


@pytest.mark.skipif(harness.ring_denied() is not None, reason="no io_uring here")
def test_collecting_the_parents_manager_closes_no_file_of_the_child() -> None:
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
