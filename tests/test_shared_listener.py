"""Several processes on one listening socket: no connection waits beside an idle one.

One process is the *victim*: its accept is armed first, and then it cannot or will not take
the connection that comes. The other, idle, must serve it, as soon as on stock trio.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import harness
import kernel_table
import pytest
import trio
import trio.testing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.differential

# A worker: serves each connection with its name. What it does on SIGUSR1 is its third argument.
WORKER = """
import os, signal, socket, sys, time
import trio, uring_trio
backend, name, how, fd, ready = sys.argv[1], sys.argv[2].encode(), sys.argv[3], *map(int, sys.argv[4:])
listener = socket.socket(fileno=fd)

async def serve(stream):
    async with stream:
        await stream.send_all(name)

async def main():
    asked = []
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            sock = trio.socket.from_stdlib_socket(listener)
            if how == "blocking":
                listener.setblocking(True)
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
            await trio.testing.wait_all_tasks_blocked()
            os.write(ready, b"r")
            async for _ in signals:
                os.write(ready, b"b")
                if how in ("busy", "killed"):
                    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
                    signal.sigwait({signal.SIGUSR2})  # its only thread, until the test is over
                elif how == "cancel":
                    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
                    signal.sigwait({signal.SIGUSR2})  # the connection comes now
                    nursery.cancel_scope.cancel()

import trio.testing
if backend == "epoll":
    trio.run(main)
else:
    uring_trio.run(main, backend="io_uring")
os.write(ready, b"e")
time.sleep(60)
"""

# Stock serves within some milliseconds; a lost wake-up is served by the next client, or never.
SERVED_LIMIT_S = 3.0


class Workers:
    """Processes that accept on one listener."""

    def __init__(self, backend: str, listener: socket.socket) -> None:
        self.backend = backend
        self.listener = listener
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pipes: list[int] = []

    def start(self, name: str, how: str) -> subprocess.Popen[bytes]:
        """One more; back when its accept is in the kernel."""
        read, write = os.pipe()
        self.pipes.append(read)
        fd = self.listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, self.backend, name, how, str(fd), str(write)],
            pass_fds=[fd, write],
        )
        os.close(write)
        self.processes.append(process)
        self.expect(len(self.processes) - 1, b"r")
        return process

    def expect(self, index: int, word: bytes) -> None:
        """Wait until a worker says so."""
        said = os.read(self.pipes[index], 1)
        assert said == word

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for pipe in self.pipes:
            os.close(pipe)


@contextlib.contextmanager
def workers_on(backend: str) -> Iterator[Workers]:
    if backend == harness.RING and (reason := harness.ring_denied()):
        pytest.skip(reason)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        listener.setblocking(False)
        workers = Workers(backend, listener)
        try:
            yield workers
        finally:
            workers.close()


def served_by(listener: socket.socket, limit_s: float = SERVED_LIMIT_S) -> bytes:
    with socket.create_connection(listener.getsockname(), timeout=limit_s) as client:
        return client.recv(1)


@pytest.mark.parametrize("how", ["busy", "stopped", "killed", "cancel"])
def test_an_idle_process_serves_what_another_does_not_take(backend: str, how: str) -> None:
    with workers_on(backend) as workers:
        victim = workers.start("A", how)
        workers.start("B", "serve")
        if how == "stopped":
            victim.send_signal(signal.SIGSTOP)
        else:
            victim.send_signal(signal.SIGUSR1)
            workers.expect(0, b"b")
        address = workers.listener.getsockname()
        with socket.create_connection(address, timeout=SERVED_LIMIT_S) as client:
            if how == "killed":
                victim.kill()
            assert client.recv(1) == b"B"
            if how == "cancel":
                victim.send_signal(signal.SIGUSR2)
                workers.expect(0, b"e")
        # And what comes later, as well.
        assert served_by(workers.listener) == b"B"


@pytest.mark.ring_only  # stock trio blocks there
def test_a_blocking_listener_does_not_block_the_loop(backend: str) -> None:
    """Somebody has switched O_NONBLOCK off; another process takes the connection first."""
    with workers_on(backend) as workers:
        workers.start("A", "serve")
        workers.start("B", "blocking")
        for _ in range(50):
            assert served_by(workers.listener) in (b"A", b"B")
        workers.processes[0].send_signal(signal.SIGSTOP)
        for _ in range(10):
            assert served_by(workers.listener) == b"B"


@pytest.mark.ring_only
def test_idle_processes_share_the_connections(backend: str) -> None:
    """None of four gets more than a half, in bursts and one by one."""
    with workers_on(backend) as workers:
        for name in "ABCD":
            workers.start(name, "serve")
        address = workers.listener.getsockname()
        served: Counter[bytes] = Counter()
        for burst, total in ((1, 400), (16, 2000)):
            for _ in range(total // burst):
                clients = [
                    socket.create_connection(address, timeout=SERVED_LIMIT_S) for _ in range(burst)
                ]
                for client in clients:
                    served[client.recv(1)] += 1
                    client.close()
        assert sum(served.values()) == 2400
        assert max(served.values()) <= 1200, served


async def test_what_a_cancelled_accept_would_have_taken_is_for_the_next() -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await trio.testing.wait_all_tasks_blocked()
            with socket.create_connection(listener.getsockname()) as client:
                nursery.cancel_scope.cancel()
                expected = client.getsockname()
        with trio.fail_after(5):
            accepted, address = await listener.accept()
        with accepted:
            assert address == expected


async def test_others_that_take_each_connection_first_do_not_end_an_accept() -> None:
    """More often than the kernel retries by itself (128)."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        accepted: list[trio.socket.SocketType] = []
        done = trio.Event()

        async def accept() -> None:
            accepted.append((await listener.accept())[0])
            done.set()

        taker = socket.socket(fileno=os.dup(listener.fileno()))
        taker.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(200):
                with socket.create_connection(listener.getsockname()):
                    taker.accept()[0].close()
                await trio.lowlevel.checkpoint()
            assert not accepted
            with socket.create_connection(listener.getsockname()) as last:
                with trio.fail_after(5):
                    await done.wait()
                with accepted[0]:
                    assert accepted[0].getpeername() == last.getsockname()
        taker.close()


def test_serving_takes_no_cpu_while_nothing_comes(backend: str) -> None:
    with workers_on(backend) as workers:
        for name in "AB":
            workers.start(name, "serve")
        for _ in range(50):  # each of them has wake-ups in vain
            served_by(workers.listener)
        before = [cpu_s(process.pid) for process in workers.processes]
        time.sleep(0.5)
        for process, was in zip(workers.processes, before, strict=True):
            assert cpu_s(process.pid) - was <= 0.025


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, in seconds, to 10 ms."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.ring_only
@pytest.mark.parametrize("when", ["before it is tried", "while it is waited for"])
async def test_a_listener_that_was_seen_blocking_is_not_trusted_again(when: str) -> None:
    """O_NONBLOCK may be switched off between a look at it and accept4(2)."""
    with trio.socket.socket() as listener, contextlib.ExitStack() as undo:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        fd = listener.fileno()

        async def accept_one() -> None:
            (await listener.accept())[0].close()

        os.set_blocking(fd, when == "before it is tried")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_one)
            await trio.testing.wait_all_tasks_blocked()
            os.set_blocking(fd, True)
            socket.create_connection(listener.getsockname()).close()

        looks: list[int] = []

        def a_moment_ago(_real: Any, fd: int) -> int:
            looks.append(fd)
            return os.O_NONBLOCK

        undo.enter_context(kernel_table.calls(status_flags=a_moment_ago))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_one)
            await trio.testing.wait_all_tasks_blocked()
            with socket.create_connection(listener.getsockname()):
                with socket.socket(fileno=os.dup(fd)) as rival:
                    rival.accept()[0].close()
                with trio.fail_after(5):
                    await trio.testing.wait_all_tasks_blocked(0.01)  # the loop turns
            socket.create_connection(listener.getsockname()).close()
        assert not looks


@pytest.mark.ring_only
async def test_an_accept_that_was_closed_keeps_no_connection() -> None:
    """The kernel has accepted one when its listener is closed, and its task is told of that."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        os.set_blocking(listener.fileno(), True)  # so that it is accepted on the ring
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.expect_exception, trio.ClosedResourceError, listener.accept)
            await trio.testing.wait_all_tasks_blocked()

            def close_if_taken() -> None:
                fd = listener.fileno()
                if fd >= 0 and not select.select([fd], [], [], 0)[0]:
                    listener.close()

            with socket.create_connection(listener.getsockname(), timeout=5) as client:
                with harness.before_wakes(close_if_taken):
                    while nursery.child_tasks:
                        await trio.lowlevel.checkpoint()
                assert client.recv(1) == b""
