"""With ``auto`` a run starts wherever stock trio starts, however little is left to start with."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import harness
import pytest
import sandbox
import trio
from marks import needs_ring

import uring_trio

pytestmark = needs_ring

# One process, warm, that forks a child for each amount of what is left: [left, what a run of
# stock was on, what ours was], each with the error's name in place of the backend.
CODE = """
import json, logging, os, queue, re, resource, sys, traceback
import anyio, anyio._backends._trio, trio, uring_trio
door, scarce, *amounts = sys.argv[1:]
logging.basicConfig(stream=open(os.devnull, "w"))
options = uring_trio.anyio_options()

async def main():
    a, b = trio.socket.socketpair()
    with a, b:
        await a.send(b"x")
        await b.recv(1)
    with trio.move_on_after(while_s):
        await trio.sleep_forever()
    return trio.lowlevel.current_statistics().io_statistics.backend

async def without_files():
    with trio.move_on_after(while_s):
        await trio.sleep_forever()
    return trio.lowlevel.current_statistics().io_statistics.backend

def guest(start, main):
    todo, done = queue.Queue(), []
    start(main, run_sync_soon_threadsafe=todo.put, done_callback=done.append)
    while not done:
        todo.get(timeout=10)()
    return done[0].unwrap()

def run_installed(run):
    uring_trio.install()
    return run()

program = main if scarce == "memory" else without_files
is_guest = "guest" in door
# A guest needs a thread for a wait, and none where its time is over before the wait begins.
while_s = 0.1 if is_guest else 0.001
stock = {
    False: lambda: trio.run(program),
    True: lambda: guest(trio.lowlevel.start_guest_run, program),
}[is_guest]
ours = {
    "run": lambda: uring_trio.run(program),
    "guest": lambda: guest(uring_trio.start_guest_run, program),
    "installed": lambda: run_installed(stock),
    "installed guest": lambda: run_installed(stock),
    "anyio": lambda: anyio.run(program, backend="uring_trio"),
    "anyio options": lambda: anyio.run(program, backend="trio", backend_options=options),
}[door]

def leave_files(count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept = []
    while True:
        try:
            kept.append(os.dup(0))
        except OSError:
            break
    for fd in kept[:count]:
        os.close(fd)

def leave_memory(kib):
    used = int(re.search(r"VmSize:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
    resource.setrlimit(resource.RLIMIT_AS, ((used + kib) << 10, (used + kib) << 10))

def outcome_with(amount, run):
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            {"files": leave_files, "memory": leave_memory}[scarce](amount)
            os.write(writable, run().encode())
        except BaseException as exc:
            os.write(writable, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(writable)
    outcome = os.read(readable, 1000).decode()
    os.close(readable)
    os.waitpid(child, 0)
    return outcome

anyio.run(program, backend="uring_trio", backend_options={"backend": "epoll"})
trio.run(program)
print(json.dumps([[n, outcome_with(n, stock), outcome_with(n, ours)] for n in map(int, amounts)]))
"""
DOORS = ["run", "guest", "installed", "installed guest", "anyio", "anyio options"]


def outcomes(door: str, scarce: str, amounts: range) -> list[tuple[int, str, str]]:
    done = sandbox.run(
        "NONE",
        sys.executable,
        "-c",
        CODE,
        door,
        scarce,
        *map(str, amounts),
        PYTHONWARNINGS="ignore",
    )
    assert done.returncode == 0, done.stderr
    return [(amount, stock, ours) for amount, stock, ours in json.loads(done.stdout)]


def check(found: list[tuple[int, str, str]]) -> None:
    for _, stock, ours in found:
        if stock == "epoll":
            assert ours in ("epoll", "io_uring")
    # From the least to the most: stock does not start, or ours is not on the ring; it is.
    assert found[0][2] != "io_uring"
    assert found[-1][1:] == ("epoll", "io_uring")


@pytest.mark.parametrize("door", DOORS)
def test_with_as_many_descriptors_as_stock_needs(door: str) -> None:
    found = outcomes(door, "files", range(9))
    check(found)
    # The control: stock does not start with fewer.
    needed = next(count for count, stock, _ in found if stock == "epoll")
    assert needed > 0
    assert all("Too many open files" in stock for _, stock, _ in found[:needed])


@pytest.mark.parametrize("door", DOORS)
def test_with_as_much_address_space_as_stock_needs(door: str) -> None:
    # Finely by one door: what fails with a little more or less is another allocation.
    step_kib = 256 if door == "run" else 2048
    check(outcomes(door, "memory", range(0, 24 << 10, step_kib)))


def test_ring_that_is_demanded_and_stands_in_trios_way_is_unavailable() -> None:
    code = """
import os, resource, trio, uring_trio
async def main():
    print(trio.lowlevel.current_statistics().io_statistics.backend)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
uring_trio.run(main, backend="io_uring")
kept = []
while True:
    try:
        kept.append(os.dup(0))
    except OSError:
        break
for fd in kept[:5]:
    os.close(fd)
trio.run(main)
try:
    uring_trio.run(main, backend="io_uring")
except uring_trio.UringUnavailable as exc:
    print(exc.reason, isinstance(exc.__cause__, OSError))
"""
    done = sandbox.run_python("NONE", code)
    assert done.returncode == 0, done.stderr
    first, stock, refused = done.stdout.splitlines()
    assert (first, stock) == ("io_uring", "epoll")
    assert refused.startswith("start trio beside a ring: Too many open files (EMFILE)")
    assert refused.endswith("True")


def test_error_of_the_program_is_not_taken_for_one_of_the_start() -> None:
    """It is raised once, and the program is not run a second time."""
    code = """
import uring_trio
begun = []
async def main():
    begun.append(1)
    raise OSError(24, "Too many open files")
for error in (OSError(24, "mine"), MemoryError("mine")):
    async def main():
        begun.append(1)
        raise error
    try:
        uring_trio.run(main)
    except (OSError, MemoryError) as exc:
        print(exc is error, exc.__context__, exc.__cause__)
print(len(begun))
"""
    done = sandbox.run_python("NONE", code)
    assert done.stdout.splitlines() == ["True None None", "True None None", "2"], done.stderr
    assert done.stderr == ""


async def nothing() -> None:
    await trio.lowlevel.checkpoint()


def test_ring_of_a_refused_run_is_closed_without_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that trio cannot set up gives its ring back at once, as epoll's file is given back."""

    def no_files_left() -> Any:
        raise OSError(24, "Too many open files")

    uring_trio.install(backend="io_uring")
    gc.disable()
    try:
        # What trio makes after its IO manager: its wakeup socketpair takes two files.
        monkeypatch.setattr("socket.socketpair", no_files_left)
        before = harness.open_fds()
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                trio.run(nothing)
        assert harness.open_fds() == before
    finally:
        gc.enable()
        uring_trio.uninstall()
