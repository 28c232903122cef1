"""A seccomp filter comes while a run is on the ring: the run ends, and says by what."""

from __future__ import annotations

import errno
import json
import os
import types
from functools import partial

import harness
import pytest
import sandbox
import trio
from marks import needs_ring

import uring_trio
from uring_trio._kernel import EINTR, RING_CLOSED, Ring

pytestmark = needs_ring

# What the run does when the filter comes, by name; then how the run ended, and what the
# next one is on. A run that goes on or spins meets the limit on CPU time.
CODE = """
import json, queue, resource, sys, threading, sandbox, trio, uring_trio
how, moment = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))

async def sleep():
    sandbox.deny_io_uring(how)
    await trio.sleep(60)

async def sleep_forever():
    sandbox.deny_io_uring(how)
    await trio.sleep_forever()

async def receive():
    a, b = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.recv, 10)
        await trio.sleep(0.01)
        sandbox.deny_io_uring(how)
        await b.send(b"x")
        await trio.sleep_forever()

async def cancel():
    a, b = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.recv, 10)
        await trio.sleep(0.01)
        sandbox.deny_io_uring(how)
        nursery.cancel_scope.cancel()

async def close():
    a, b = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.recv, 10)
        await trio.sleep(0.01)
        sandbox.deny_io_uring(how)
        a.close()

async def poll():
    a, b = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.wait_readable, a)
        await trio.sleep(0.01)
        sandbox.deny_io_uring(how)
        await b.send(b"x")
        await trio.sleep_forever()

async def end():
    sandbox.deny_io_uring(how)

async def in_guest():
    sandbox.deny_io_uring(how)
    await trio.sleep_forever()

async def guest_register():
    await trio.sleep_forever()

def guest(main):
    todo, done = queue.Queue(), []
    uring_trio.start_guest_run(
        main, run_sync_soon_threadsafe=todo.put, done_callback=done.append, backend="io_uring"
    )
    if main is guest_register:
        sandbox.deny_io_uring(how, sandbox.IO_URING_REGISTER)
    while not done:
        todo.get(timeout=10)()
    done[0].unwrap()

async def backend():
    return trio.lowlevel.current_statistics().io_statistics.backend

def tell():
    main = globals()[moment.removeprefix("thread_")]
    try:
        guest(main) if "guest" in moment else uring_trio.run(main, backend="io_uring")
    except trio.TrioInternalError as exc:
        cause = exc.__cause__
        seen = {"text": str(exc), "cause": str(cause), "errno": cause.errno}
    else:
        seen = {}
    seen["next"] = uring_trio.run(backend)
    seen["promised"] = uring_trio.probe().backend
    print(json.dumps(seen))

if moment.startswith("thread_"):  # the filter is that thread's alone
    thread = threading.Thread(target=tell)
    thread.start()
    thread.join()
else:
    tell()
"""
MOMENTS = [
    *("sleep", "sleep_forever", "receive", "cancel", "close", "poll", "end", "in_guest"),
    "thread_receive",
]


def check(how: str, moment: str, call: str) -> None:
    done = sandbox.run_python("NONE", CODE, how, moment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    number = getattr(errno, how)
    assert seen["errno"] == number
    for word in (call, os.strerror(number), how, "seccomp filter came", "Seccomp is 2"):
        assert word in seen["text"]
        assert word in seen["cause"]
    assert "before the run starts" in seen["text"]  # the remedy
    if call == "io_uring_enter":
        assert seen["next"] == seen["promised"] == "epoll"


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_ends_with_the_cause_and_a_remedy(moment: str) -> None:
    check("EPERM", moment, "io_uring_enter")


@pytest.mark.parametrize("how", ["ENOSYS", "EACCES", "EINVAL", "EOPNOTSUPP"])
def test_whatever_the_filter_answers(how: str) -> None:
    check(how, "receive", "io_uring_enter")


@pytest.mark.parametrize("how", ["EINTR", "ETIME", "EBUSY", "EAGAIN", "EIO"])
@pytest.mark.parametrize("moment", ["sleep_forever", "receive"])
def test_filter_that_answers_like_a_kernel_with_a_passing_trouble(how: str, moment: str) -> None:
    """None of them is a spin: the limit on CPU time would end the process."""
    done = sandbox.run_python("NONE", CODE, how, moment)
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)["text"]
    assert "io_uring_enter" in text
    assert "a seccomp filter did that came into force meanwhile" in text


def test_register_of_a_guest_run_is_named() -> None:
    check("EPERM", "guest_register", "io_uring_register")


def test_filter_that_lets_io_uring_alone_ends_nothing() -> None:
    """The control: a filter is there, and denies other calls."""
    code = """
import sandbox, trio, uring_trio
async def main():
    sandbox.deny_io_uring("EPERM", 100_000, 100_001)
    await trio.sleep(0.01)
    print(trio.lowlevel.current_statistics().io_statistics.backend)
uring_trio.run(main)
"""
    done = sandbox.run_python("NONE", code)
    assert (done.stdout, done.stderr) == ("io_uring\n", "")


def test_steps_of_operations_are_no_refusals() -> None:
    """A wait is interrupted by them, too, and a peer may cause as many as it likes."""
    steps = 250_000  # twice what may fail

    async def main() -> bool:
        ring = harness.io_manager().ring
        token = trio.lowlevel.current_trio_token()
        real = ring.wait
        left = steps

        def wait(timeout_ns: int) -> int:
            nonlocal left
            if left and timeout_ns:
                left -= 1
                if not left:
                    token.run_sync_soon(over.set)
                return EINTR
            return int(real(timeout_ns))

        over = trio.Event()
        ring.wait = wait
        try:
            with trio.fail_after(60):
                await over.wait()  # one wait
        finally:
            ring.wait = real
        return over.is_set()

    assert uring_trio.run(main, backend="io_uring")


# How programs begin in which the kernel has no memory for some enters of a ring.
REFUSING = """
import errno, gc, harness, kernel_table, threading, time, trio, uring_trio
from collections import Counter
from uring_trio import gain

refused = Counter()  # so many, by the ring's descriptor

def enter(real, fd, *arguments):
    if refused[fd]:
        refused[fd] -= 1
        return -errno.ENOMEM
    return real(fd, *arguments)

class Echo(gain.EventHandler):
    def on_read(self, conn, n):
        conn.write(conn.next(n))
"""

SERVER = """
from uring_trio._slots import Slots

withdraw = Slots.withdraw

def watched(slots, slot):
    if not slots.pool:
        print("a ring that is closed is asked")
    return withdraw(slots, slot)

Slots.withdraw = watched

class Handler(Echo):
    async def on_accept(self, conn):
        try:
            await trio.sleep_forever()
        finally:
            conn.write(b"x")
            conn.close()

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain.serve, ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], Handler())
        client = await trio.open_tcp_stream(*server.addresses()[0])
        await trio.sleep(0.01)
        refused[harness.io_manager().ring.fd] = 1
        await trio.sleep_forever()

try:
    with kernel_table.calls(enter=enter):
        uring_trio.run(main, backend="io_uring")
except trio.TrioInternalError as exc:
    print(exc.__cause__.errno)
gc.collect()
print("collected")
"""


def test_a_server_of_a_run_that_was_lost_is_collected_and_touches_nothing() -> None:
    done = sandbox.run_python("NONE", REFUSING + SERVER)
    assert (done.stdout, done.returncode) == (f"{errno.ENOMEM}\ncollected\n", 0), done.stderr


WORKERS = """
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(gain.Server(Echo(), gain.Config(workers=2)).serve, "tcp://127.0.0.1:0")
        refused[harness.io_manager().ring.fd] = 1
        await trio.sleep_forever()

def workers():
    return [thread.name for thread in threading.enumerate() if "worker" in thread.name]

with kernel_table.calls(enter=enter):
    try:
        uring_trio.run(main, backend="io_uring")
    except trio.TrioInternalError as exc:
        print(exc.__cause__.errno)
    deadline = time.monotonic() + 5 * harness.SLOWNESS
    while workers() and time.monotonic() < deadline:
        time.sleep(0.001)
    print(workers())
"""


def test_workers_in_threads_end_with_the_run_that_was_lost() -> None:
    """Nobody else could stop them."""
    done = sandbox.run_python("NONE", REFUSING + WORKERS)
    assert done.stdout == f"{errno.ENOMEM}\n[]\n", done.stderr


WORKER = """
async def main():
    server = gain.Server(Echo(), gain.Config(workers=2))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, "tcp://127.0.0.1:0")
            worker = server._serving.workers[1]
            refused[worker.slots.ring.fd] = 1
            worker.post(print)
            await trio.sleep_forever()
    except BaseException as exc:
        while hasattr(exc, "exceptions"):
            exc = exc.exceptions[0]
        print(exc.__cause__.errno)
        print(worker.post(print), worker.statistics().connections)

with kernel_table.calls(enter=enter):
    uring_trio.run(main, backend="io_uring")
"""


def test_a_worker_that_has_lost_its_ring_has_ended_for_others() -> None:
    """Nothing can be asked of it any more, and that is nobody's error."""
    done = sandbox.run_python("NONE", REFUSING + WORKER)
    assert done.stdout.endswith(f"{errno.ENOMEM}\nFalse 0\n"), done.stdout + done.stderr


def test_a_ring_that_is_closed_refuses() -> None:
    ring = Ring()
    kinds = (partial, types.BuiltinMethodType)  # what calls cffi, and what is in C
    names = [name for name, function in vars(ring).items() if isinstance(function, kinds)]
    ring.close(leak=False)
    assert {"wait", "cancel", "recv", "poll"} <= set(names)
    for name in names:
        assert getattr(ring, name)(0, 0, 0, 0) == RING_CLOSED, name


MANY = """
from uring_trio import _io_manager

async def main():
    a, b = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.recv, 10)
        await trio.sleep(0.01)
        refused[harness.io_manager().ring.fd] = 5
        await trio.sleep_forever()

try:
    with kernel_table.calls(enter=enter):
        uring_trio.run(main, backend="io_uring")
except trio.TrioInternalError as exc:
    print(exc.__cause__.errno)
print(refused.total(), len(_io_manager._leaked))
"""


def test_a_kernel_without_memory_for_a_moment_costs_none_of_ours() -> None:
    """The ring is lost, and what it works on is not given up: it is asked again to let go."""
    done = sandbox.run_python("NONE", REFUSING + MANY)
    assert done.stdout == f"{errno.ENOMEM}\n0 0\n", done.stderr


UNWAKEABLE = """
import errno, time, trio, uring_trio
from uring_trio._bell import LastingPoll
from uring_trio._polls import Polls

begin = Polls.begin

def refuse_bell(*args):
    raise OSError(errno.ENOMEM, "no memory")

def refuse(*args):  # the first: trio's own, where there is no bell
    Polls.begin = begin
    raise OSError(errno.ENOMEM, "no memory")

async def main():
    await trio.to_thread.run_sync(time.sleep, 0.1)

LastingPoll._begin, Polls.begin = refuse_bell, refuse
try:
    uring_trio.run(main, backend="io_uring")
except trio.TrioInternalError as exc:
    print(exc.__cause__.errno)
"""


def test_a_run_that_no_thread_can_wake_ends() -> None:
    """It would sleep for ever beside the thread that it waits for."""
    done = sandbox.run_python("NONE", UNWAKEABLE)
    assert done.stdout == f"{errno.ENOMEM}\n", done.stderr
