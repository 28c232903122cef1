"""Sockets of several workers at one address, and who else may come there."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import BOUND_S, accepted, again, bind, bound, connect, one, refused

from uring_trio.gain import _listen
from uring_trio.gain._address import parse_all
from uring_trio.gain._config import make_config

if TYPE_CHECKING:
    from uring_trio.gain._listen import Listener

TCP = "tcp://127.0.0.1:0"
UDP = "udp://127.0.0.1:0"
CLIENTS = 64  # of which none of 4 workers gets all, but once in 10**38


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


def ready(workers: list[list[Listener]]) -> int:
    """The index of the worker at whose first socket something has arrived."""
    socks = [worker[0].sock for worker in workers]
    readable, _, _ = select.select(socks, [], [], BOUND_S)
    assert len(readable) == 1
    return socks.index(readable[0])


# --- One server to an address ---


@pytest.mark.parametrize("address", [TCP, UDP])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("later_copies", [1, 3])
def test_a_second_server_is_refused(address: str, copies: int, later_copies: int) -> None:
    with bound(address, copies=copies) as workers:
        text = again(workers[0][0])
        for _ in range(2):
            with refused(errno.EADDRINUSE):
                bind(parse_all(text), make_config(), later_copies)


@pytest.mark.parametrize("address", [TCP, UDP])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_second_server_is_refused_by_one_that_allows_others(address: str, copies: int) -> None:
    with bound(address, copies=copies, reuse_port=True) as workers, refused(errno.EADDRINUSE):
        bind(parse_all(again(workers[0][0])), make_config(), copies)


@pytest.mark.parametrize("address", [TCP, UDP])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_second_server_gets_in_if_both_reuse_the_port(address: str, copies: int) -> None:
    with (
        bound(address, copies=copies, reuse_port=True) as first,
        bound(again(first[0][0]), copies=copies, reuse_port=True) as second,
    ):
        assert second[0][0].address == first[0][0].address


@pytest.mark.parametrize("address", [TCP, UDP])
def test_one_that_reuses_the_port_is_refused_by_one_that_does_not(address: str) -> None:
    with one(address) as listener, refused(errno.EADDRINUSE):
        bind(parse_all(again(listener)), make_config(reuse_port=True))


@pytest.mark.parametrize("address", [TCP, UDP])
def test_a_wildcard_is_refused_beside_one_of_its_addresses(address: str) -> None:
    with bound(address, copies=2) as workers, refused(errno.EADDRINUSE):
        text = again(workers[0][0]).replace("127.0.0.1", "0.0.0.0")
        bind(parse_all(text), make_config(), 2)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_address_is_free_after_closing_with_connections_in_time_wait(copies: int) -> None:
    with bound(TCP, copies=copies) as workers:
        text = again(workers[0][0])
        client = connect(workers[0][0])
        conn = accepted(workers[ready(workers)][0])
        conn.close()  # first, so that TIME_WAIT is here
        assert client.recv(1) == b""
        client.close()
    with bound(text, copies=copies):
        pass


@pytest.mark.parametrize("copies", [1, 3])
def test_the_address_is_free_after_closing_with_connections_alive(copies: int) -> None:
    with bound(TCP, copies=copies) as workers:
        text = again(workers[0][0])
        client = connect(workers[0][0])
        conn = accepted(workers[ready(workers)][0])
    with client, conn, bound(text, copies=copies):
        pass


@pytest.mark.parametrize("address", [TCP, UDP])
def test_threads_that_bind_one_address_at_once_get_it_once(address: str) -> None:
    with one(address) as listener:
        text = again(listener)
    start = threading.Barrier(8)
    results: list[Any] = []

    def server() -> None:
        start.wait()
        try:
            results.append(bind(parse_all(text), make_config(), 2))
        except OSError as exc:
            results.append(exc.errno)

    threads = [threading.Thread(target=server) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [result for result in results if not isinstance(result, int)]
    for worker in (worker for workers in winners for worker in workers):
        worker[0].close()
    assert len(winners) == 1
    assert results.count(errno.EADDRINUSE) == 7


# --- Spreading ---


def test_connections_are_spread_over_the_workers() -> None:
    with bound(TCP, copies=4) as workers, contextlib.ExitStack() as stack:
        used = set()
        for _ in range(CLIENTS):
            stack.enter_context(connect(workers[0][0]))
            index = ready(workers)
            stack.enter_context(accepted(workers[index][0]))
            used.add(index)
        assert len(used) > 1


@pytest.mark.parametrize("address", [UDP, "udp://:0"])
def test_datagrams_are_spread_over_the_workers(address: str) -> None:
    with bound(address, copies=4) as workers:
        used = set()
        for _ in range(CLIENTS):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", workers[0][0].address[1]))
                index = ready(workers)
                workers[index][0].sock.recv(1)
                used.add(index)
        assert len(used) > 1


@pytest.fixture
def pinned() -> Any:
    """Pins this thread to a CPU, and gives back its freedom."""
    cpus = os.sched_getaffinity(0)
    yield lambda cpu: os.sched_setaffinity(0, {cpu})
    os.sched_setaffinity(0, cpus)


@pytest.mark.parametrize("copies", [2, 3])
def test_cbpf_gives_connections_to_the_worker_of_their_cpu(pinned: Any, copies: int) -> None:
    cpus = os.sched_getaffinity(0)
    with bound(TCP, copies=copies, cbpf=True, architecture="sharding") as workers:
        for cpu in sorted(cpus) * 8:
            pinned(cpu)  # over loopback a SYN comes in on the CPU that sends it
            with connect(workers[0][0]):
                assert ready(workers) == cpu % copies
                accepted(workers[cpu % copies][0]).close()


def test_cbpf_gives_datagrams_to_the_worker_of_their_cpu(pinned: Any) -> None:
    cpus = os.sched_getaffinity(0)
    with bound(UDP, copies=2, cbpf=True, architecture="sharding") as workers:
        for cpu in sorted(cpus) * 8:
            pinned(cpu)
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"x", workers[0][0].address)
                assert ready(workers) == cpu % 2
                workers[cpu % 2][0].sock.recv(1)


@pytest.mark.parametrize("address", [TCP, UDP])
def test_cbpf_of_one_worker_does_nothing(address: str) -> None:
    with one(address, cbpf=True, architecture="sharding") as listener:
        assert option(listener.sock, socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_a_refused_program_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listen, "BPF_RET_A", 0xFFFF)  # no instruction
    config = make_config(cbpf=True, architecture="sharding")
    with refused(errno.EINVAL):
        bind(parse_all(TCP), config, 2)


# --- Options ---


def test_accepted_sockets_inherit_what_was_asked_for() -> None:
    options: dict[str, Any] = {
        "tcp_keep_alive": 61.9,
        "socket_recv_buffer_size": 20000,
        "socket_send_buffer_size": 30000,
    }
    expected = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 61),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 61),
        # The kernel doubles them for its own books, see socket(7).
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 40000),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, 60000),
    ]
    with bound(TCP, copies=2, **options) as workers:
        for [listener] in workers:
            assert [option(listener.sock, *item[:2]) for item in expected] == [
                value for _, _, value in expected
            ]
        with connect(workers[0][0]), accepted(workers[ready(workers)][0]) as conn:
            # A sending buffer grows by itself only where nobody has set it.
            assert [option(conn, *item[:2]) for item in expected] == [
                value for _, _, value in expected
            ]


def test_options_that_are_not_asked_for_are_left_to_the_kernel() -> None:
    with one(TCP) as listener, socket.socket() as plain:
        assert option(listener.sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            assert option(listener.sock, socket.SOL_SOCKET, name) == option(
                plain, socket.SOL_SOCKET, name
            )
        # Gain sets it; cookies of clients in a middlebox's way are trouble of their own.
        assert option(listener.sock, socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == 0
        assert option(listener.sock, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize("address", [UDP, "unix://@uring-trio-test-buffers"])
def test_buffers_of_other_networks_are_set_too(address: str) -> None:
    with one(address, socket_recv_buffer_size=20000, socket_send_buffer_size=30000) as listener:
        assert option(listener.sock, socket.SOL_SOCKET, socket.SO_RCVBUF) == 40000
        assert option(listener.sock, socket.SOL_SOCKET, socket.SO_SNDBUF) == 60000


def test_backlog_is_what_was_asked_for() -> None:
    with one("unix://@uring-trio-test-backlog", backlog=1) as listener, contextlib.ExitStack() as s:
        # The kernel lets one more in than it was told.
        for expected in (0, 0, errno.EAGAIN):
            client = s.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            assert client.connect_ex(listener.address[0]) == expected
