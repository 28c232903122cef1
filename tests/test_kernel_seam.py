"""Every system call beside the ring goes through the kernel's table, on both doors' steady paths.

A scripted kernel behind the table (csrc/kernel.h) sees what goes through it, and no more. So
each program of `trapped` runs with a seccomp filter that lets these calls through from its
own kernel alone. What each must have made is listed: a program that goes another way proves
nothing.

Outside of the table stay, and are no part of these programs after their traps:

- what is done once, to set up: sockets made, bound and listening (trio's, `gain._listen`,
  `gain._unix_path`, `gain._came_to`), a probe of the kernel and of what it can do (csrc/probe.c,
  `gain._capabilities`), /proc and limits read (`_shortage`), CPUs and priorities
  (`gain._placement`), a run's own eventfds made;
- other threads' own: what they write to wake a run (`_bell`);
- trio's own: its wakeup's socket pair, an FdStream's close(2), and what its sockets hand on to
  the standard library by the user's wish (bind, listen, getsockopt, getsockname, ...), also
  setsockopt of a value that is neither an int nor bytes;
- Python's own: the getsockname(2) in the constructor of `socket.socket`, the ioctl(2) that
  switches blocking off, `ssl`, the resolver;
- what kind a foreign file is, which no kernel changes its mind about: readlink(2) and isatty(3)
  in `_polls` and `_guest`, and epoll, which knows who cannot be polled, and which in guest mode
  is a helper thread's to wait on.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kernel_table
import kernel_workers
import pytest
import sandbox
import trio
import trio.testing
from marks import needs_ring

import uring_trio
from uring_trio import _beside

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    needs_ring,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86-64's"),
]

PROGRAM = str(Path(__file__).with_name("trapped.py"))

#: By program: what it has made through the table.
MADE = {
    "sockets": {
        *("accept4", "status_flags", "getsockopt", "setsockopt", "shutdown", "close_fd"),
    },
    "local_sockets": {"connect", "getsockopt", "shutdown", "close_fd"},
    "datagrams": {"setsockopt", "close_fd"},
    "readiness": {"mode", "poll"},
    "file_streams": {"mode", "status_flags", "poll", "read", "write"},
    "guest": {"read", "write", "poll"},
    "served_datagrams": {"recvfrom", "sendto", "recvmsg"},
    "served_datagrams_of_every_address": {"recvmsg", "sendmsg"},
    "connections": {
        *("accept4", "status_flags", "sendto", "recvfrom", "getsockopt", "setsockopt"),
        *("queued", "shutdown", "close_fd"),
    },
}


#: Those of the table that a ring is opened, driven and closed with.
THE_RINGS_OWN = {
    *("setup", "enter", "register_op", "map", "allocate", "unmap", "close_fd", "now_ns"),
}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without who reads /proc in each turn of a child's run, to count the kernel's threads.
    environment = {k: v for k, v in os.environ.items() if k != kernel_workers.BOOK}
    return subprocess.run(
        [sys.executable, PROGRAM, name, *arguments],
        env=environment | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=sandbox.CHILD_TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("name", MADE)
def test_all_calls_go_through_the_table(name: str, tmp_path: Path) -> None:
    ended = run(name, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout)
    assert MADE[name] <= made.keys()


def test_a_call_past_the_table_is_a_trap() -> None:
    ended = run("past_the_table")
    assert ended.returncode == -signal.SIGSYS
    assert "in past_the_table" in ended.stderr
    assert not ended.stdout


def test_a_call_of_ours_is_asked_and_the_kernel_behind_it() -> None:
    asked = []

    def mode(real: kernel_table.Call, fd: int) -> int:
        asked.append(fd)
        return int(real(fd)) | 1 << 20

    plain = _beside.mode(0)
    with kernel_table.calls(mode=mode):
        assert _beside.mode(0) == plain | 1 << 20
    assert _beside.mode(0) == plain
    assert asked == [0]


async def talk_through_a_connection() -> None:
    with trio.socket.socket() as listener, trio.socket.socket() as client:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        await client.connect(listener.getsockname())
        accepted, _ = await listener.accept()
        with accepted:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accepted.recv, 10)
                await trio.testing.wait_all_tasks_blocked()
                await client.send(b"x")


def test_a_run_has_the_whole_of_its_kernel_from_the_table() -> None:
    """Its ring as well: opened, entered and closed by what stands in the table meanwhile."""
    made: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        def call(real: kernel_table.Call, *arguments: Any) -> Any:
            made[name] += 1
            return real(*arguments)

        return call

    with kernel_table.calls(**{name: counted(name) for name in kernel_table.names()}):
        uring_trio.run(talk_through_a_connection, backend="io_uring")
    assert THE_RINGS_OWN | {"accept4", "status_flags", "getsockopt"} <= made.keys()
    uring_trio.run(talk_through_a_connection, backend="io_uring")  # by the real one again
