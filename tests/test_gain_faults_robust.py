"""Storms, shortages, idleness and latency: what stops or slows a Gain worker, and not this one.

Each test names the fault of Gain that it is about, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket as stdlib_socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import (
    ARCHITECTURES,
    BOUND_S,
    LOOPBACK_UDP,
    MODES,
    Recorder,
    architectures,
    connect,
    echo,
    in_thread,
    make_recorder,
    needs_ring,
    options_for,
    pattern,
    receive_all,
    receive_exactly,
    reset,
    ring_of,
    round_trip,
    run_in_worker,
    server_in_thread,
    wait_until,
)

if TYPE_CHECKING:
    from uring_trio import gain

pytestmark = needs_ring


# --- B2 ---------------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("entries", [1, 2, 4])
def test_b2_full_sq_is_waited_out(options: dict[str, Any], entries: int) -> None:
    """B2: with 4 entries the sixth connection ends a Gain worker, and Shutdown never returns."""
    handler = Recorder(on_read=echo)
    message = pattern(20_000)
    with server_in_thread(handler, max_sq_entries=entries, **options) as server:
        clients = [connect(server) for _ in range(64)]
        for client in clients:
            client.sendall(message)
        for client in clients:
            assert receive_exactly(client, len(message)) == message
        assert server.active_connections() == 64
        for client in clients:
            client.close()
        wait_until(lambda: server.active_connections() == 0)
        with connect(server) as client:
            round_trip(client, b"still here")


def test_b2_one_callback_may_start_more_than_the_sq_holds() -> None:
    """B2: the same where all the sends and closes come from one callback."""

    def tell_all(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        for other in handler.conns:
            other.write(data)
            other.close()

    handler = Recorder(on_read=tell_all)
    with server_in_thread(handler, workers=1, max_sq_entries=2) as server:
        clients = [connect(server) for _ in range(64)]
        wait_until(lambda: len(handler.conns) == 64)
        clients[0].sendall(b"good-bye")
        for client in clients:
            assert receive_all(client) == b"good-bye"
            client.close()
        wait_until(lambda: handler.errors() == [None] * 64)


# --- B1b, B2: too many files ------------------------------------------------------------

FEW_FILES = """
import resource, sys, threading, time
from uring_trio import gain

class Echo(gain.EventHandler):
    def on_read(self, conn, n):
        conn.write(conn.next(n))

# Before the start: the kernel looks at the limit when an accept is prepared.
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
workers, architecture, *limited = sys.argv[1:]
server = gain.Server(Echo(), gain.Config(
    workers=int(workers), architecture=architecture, max_connections=1000 if limited else None))
# With two listeners, and places: one must not wake the other by the place that it gives back.
addresses = ["tcp://127.0.0.1:0"] * (2 if limited else 1)
thread = threading.Thread(target=server.start, args=(addresses,))
thread.start()
while not server.is_running():
    time.sleep(0.001)
print(*[port for _, port in server.addresses()], flush=True)
sys.stdin.read()
server.shutdown(1)
thread.join()
"""


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "arguments", [["1", "reactor"], ["2", "sharding"], ["1", "reactor", "limited"]], ids=" ".join
)
def test_b1b_too_many_files_pauses_accepting_and_is_survived(arguments: list[str]) -> None:
    """B1b: Gain's ACCEPT fails with EMFILE, is armed again at once, and spins."""
    command = [sys.executable, "-c", FEW_FILES, *arguments]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        contextlib.ExitStack() as stack,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        stack.callback(child.stdin.close)
        ports = itertools.cycle(int(port) for port in child.stdout.readline().split())

        def new_client() -> stdlib_socket.socket:
            address = ("127.0.0.1", next(ports))
            client = stdlib_socket.create_connection(address, timeout=BOUND_S)
            return stack.enter_context(client)

        waiting = [new_client() for _ in range(60)]
        for client in waiting:
            client.sendall(b"me")
        served: list[stdlib_socket.socket] = []
        while ready := select.select(waiting, [], [], 0.3)[0]:
            for client in ready:
                assert client.recv(10) == b"me"
                waiting.remove(client)
                served.append(client)
        assert 10 <= len(served) <= 40
        before = cpu_seconds(child.pid)
        time.sleep(0.5)
        assert cpu_seconds(child.pid) - before <= 0.1
        for client in served:
            round_trip(client, b"those who are in are served")
        while waiting:
            for client in served:
                client.close()
            served, _, _ = select.select(waiting, [], [], BOUND_S)
            assert served
            for client in served:
                assert client.recv(10) == b"me"
                waiting.remove(client)
        round_trip(new_client(), b"and all is as before")
        stack.close()
        assert child.wait(BOUND_S) == 0


# --- B13 --------------------------------------------------------------------------------


def usual_round_trip(client: stdlib_socket.socket, count: int = 150) -> float:
    """Seconds; the first quartile, which other programs on the machine spoil less."""
    took = []
    for _ in range(count):
        start = time.perf_counter()
        round_trip(client, b"ping")
        took.append(time.perf_counter() - start)
    return sorted(took)[count // 4]


def test_b13_latency_after_a_burst_is_as_before() -> None:
    """B13: after a burst of 80 a single client of Gain waits 2.3 ms, where it was 0.16."""
    with (
        server_in_thread(Recorder(on_read=echo), workers=1) as server,
        connect(server) as client,
        contextlib.ExitStack() as stack,
    ):
        before = usual_round_trip(client)
        crowd = [stack.enter_context(connect(server)) for _ in range(100)]
        for _ in range(3):
            for one in crowd:
                one.sendall(b"all at once")
            for one in crowd:
                assert receive_exactly(one, 11) == b"all at once"
        assert usual_round_trip(client) < 2 * before + 0.0005


def test_b13_async_handlers_answer_at_once() -> None:
    """B13: an async handler of Gain is polled for: a millisecond more for every message."""
    usual = {}
    for mode in MODES:
        handler = make_recorder(mode, on_read=echo)
        with (
            server_in_thread(handler, workers=1, **options_for(mode)) as server,
            connect(server) as client,
        ):
            usual[mode] = usual_round_trip(client)
    assert usual["async def"] < usual["def"] + 0.0005, usual
    assert usual["async_handler"] < usual["def"] + 0.0008, usual  # a thread, there and back


# --- B16 --------------------------------------------------------------------------------


def threads_of_this_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def wait_conns(handler: Recorder, count: int) -> list[gain.Conn]:
    wait_until(lambda: len(handler.conns) == count)
    return handler.conns


def voluntary_switches(thread: str) -> int:
    with open(f"/proc/self/task/{thread}/status") as file:
        (line,) = (line for line in file if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


def test_b16_idle_workers_sleep() -> None:
    """B16: two idle Gain workers take 17 % of a core, and wake 8,700 times a second."""
    others = threads_of_this_process()
    with contextlib.ExitStack() as stack:
        conns = []
        for options in ARCHITECTURES.values():
            handler = Recorder(on_accept=lambda conn: conn.set_idle_timeout(600), on_read=echo)
            server = stack.enter_context(server_in_thread(handler, **options))
            for _ in range(3):
                round_trip(stack.enter_context(connect(server)), b"not always idle")
            conns += wait_conns(handler, 3)
        datagrams = server_in_thread(Recorder(on_read=echo), LOOPBACK_UDP, workers=2)
        server = stack.enter_context(datagrams)
        round_trip(stack.enter_context(connect(server)), b"nor this one")
        enters = [ring_of(conn).enters for conn in conns]
        time.sleep(0.05)  # until all of them sleep
        threads = threads_of_this_process() - others
        assert len(threads) >= 7  # the workers
        before = {thread: voluntary_switches(thread) for thread in threads}
        time.sleep(2)
        woken = {thread: voluntary_switches(thread) - before[thread] for thread in threads}
        assert all(count <= 2 for count in woken.values()), woken
        # To be asked wakes a worker: that, and the asking of up to two others on its ring.
        asked = [ring_of(conn).enters - count for conn, count in zip(conns, enters, strict=True)]
        assert max(asked) <= 12, asked


# --- B17 --------------------------------------------------------------------------------


def do_as_told(conn: gain.Conn, n: int) -> None:
    data = conn.next()
    conn.write(data)
    if data.endswith(b"close"):
        conn.close()
    elif data.endswith(b"abort"):
        conn.abort()


def storm(server: gain.Server, name: int) -> None:
    """Connections that end in every way, as fast as they come."""
    for i in range(60):
        client = connect(server)
        mine = b"%d of %d, " % (i, name)
        if i % 6 == 0:
            client.sendall(mine + b"close")
            assert receive_all(client) == mine + b"close"
        elif i % 6 == 1:
            client.sendall(mine + b"abort")
        elif i % 6 == 2:
            round_trip(client, mine)
            reset(client)
        elif i % 6 == 3:
            client.sendall(mine)
            reset(client)
        elif i % 6 == 4:
            client.sendall(mine)
        else:
            round_trip(client, mine)
        client.close()


@architectures
def test_b17_no_completion_is_ever_stale(options: dict[str, Any]) -> None:
    """B17: Gain knows operations by their fd; what ends late hits the fd's next owner."""
    handler = Recorder(on_read=do_as_told)
    with server_in_thread(handler, **options) as server:
        with contextlib.ExitStack() as stack:
            for name in range(4):
                stack.enter_context(in_thread(storm, server, name))
        wait_until(lambda: server.active_connections() == 0)
        accepted = len(handler.conns)
        clients = [connect(server) for _ in range(8)]
        wait_until(lambda: len(handler.conns) == accepted + 8)
        rings = [ring_of(conn) for conn in handler.conns[-8:]]
        assert [ring.stale_cqes for ring in rings] == [0] * 8
        workers = {run_in_worker(conn, threading.get_ident) for conn in handler.conns[-8:]}
        if options.get("architecture") != "sharding":  # there the kernel chooses
            assert len(workers) == options["workers"]
        for client in clients:
            client.close()
        wait_until(lambda: server.active_connections() == 0)
    assert 4 * 50 <= accepted <= 4 * 60  # some are reset before they are accepted
