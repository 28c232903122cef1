"""What a server takes in: no more than it may have, nor than there are descriptors for.

A fault of Gain that a test is about stands in its docstring, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket as stdlib_socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from gain_tools import (
    BOUND_S,
    LOOPBACK,
    Recorder,
    architectures,
    connect,
    echo,
    is_silent,
    receive_exactly,
    round_trip,
    server_in_thread,
    wait_until,
)
from marks import needs_ring

from uring_trio import _beside, gain

pytestmark = needs_ring


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
def test_too_many_files_pauses_accepting_and_is_survived(arguments: list[str]) -> None:
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


def test_a_look_for_one_more_that_finds_none_takes_no_place() -> None:
    handler = Recorder()
    with server_in_thread(handler, workers=1, max_connections=2) as server, connect(server):
        wait_until(lambda: handler.counts().accept == 1)
        with connect(server):
            wait_until(lambda: handler.counts().accept == 2)


@architectures
@pytest.mark.parametrize("most", [1, 3])
def test_max_connections_holds_the_rest_back(options: dict[str, Any], most: int) -> None:
    """B19: Gain accepts what it can, whatever it can serve."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, max_connections=most, **options) as server:
        clients = [connect(server) for _ in range(most + 2)]  # the kernel's backlog takes them
        for client in clients:
            client.sendall(b"me")
        served = [client for client in clients if not is_silent(client)]
        assert len(served) == server.active_connections() == most
        waiting = [client for client in clients if client not in served]
        while waiting:
            served.pop(0).close()
            (client,) = select.select(waiting, [], [], BOUND_S)[0]  # whichever it is
            assert receive_exactly(client, 2) == b"me"
            assert server.active_connections() <= most
            waiting.remove(client)
            served.append(client)
        for client in served:
            client.close()
        wait_until(lambda: len(handler.errors()) == most + 2)


async def test_what_cannot_be_owned_is_closed_and_ends_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unavailable(stdlib_socket.socket):
        def __init__(self, *args: Any, fileno: int | None = None) -> None:
            if fileno is not None:
                raise MemoryError("no room for an object")
            super().__init__(*args)

    handler = Recorder()
    server = gain.Server(handler, gain.Config(workers=1, max_connections=1))
    with pytest.RaisesGroup(pytest.RaisesExc(MemoryError, match="no room for an object")):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, LOOPBACK)
            monkeypatch.setattr(_beside, "socket", SimpleNamespace(socket=Unavailable))
            with connect(server) as client:
                assert await trio.to_thread.run_sync(client.recv, 1) == b""
    assert handler.counts().accept == 0
    assert server.active_connections() == 0
