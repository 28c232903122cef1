"""Gain's tests of socket sharding: a listener for each worker, and UDP, which is always so."""

from __future__ import annotations

import os
import socket as stdlib_socket
from typing import Any

import gain_tools
import pytest
from gain_tools import MODES, Recorder, wait_until
from marks import needs_ring

pytestmark = needs_ring

SHARDING: dict[str, Any] = {"architecture": "sharding"}
KEEP_ALIVE = [
    (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPINTVL),
]
BUFFERS = [
    (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF),
    (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF),
]
both_networks = pytest.mark.parametrize("network", ["tcp", "udp"])
modes = pytest.mark.parametrize("mode", MODES)


@both_networks
@pytest.mark.parametrize(
    ("clients", "workers"), [(1, 1), (8, 1), (16, 8)], ids=["1-1", "8-1", "16-8"]
)
def test_requests_and_responses(network: str, clients: int, workers: int) -> None:
    gain_tools.request_response(
        **SHARDING, network=network, clients=clients, workers=workers, rounds=2
    )


@both_networks
def test_async_def_handler(network: str) -> None:
    gain_tools.request_response(**SHARDING, network=network, mode="async def", workers=2)


@both_networks
def test_async_handler(network: str) -> None:
    gain_tools.request_response(**SHARDING, network=network, mode="async_handler", workers=2)


@both_networks
def test_async_handler_with_a_small_pool(network: str) -> None:
    gain_tools.request_response(
        **SHARDING, network=network, mode="async_handler", workers=2, pool=2
    )


def test_dialled_clients_are_counted() -> None:
    gain_tools.dialled_clients_are_counted(**SHARDING)


@both_networks
def test_ping_pong(network: str) -> None:
    gain_tools.ping_pong(network, **SHARDING)


def test_connections_are_counted_until_they_close() -> None:
    gain_tools.connections_are_counted_until_they_close(**SHARDING)


@both_networks
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_shutdown(network: str, times: int) -> None:
    gain_tools.shutdown_after_clients(network, times=times, **SHARDING)


def test_shutdown_with_connected_clients() -> None:
    gain_tools.shutdown_with_connected_clients(**SHARDING)


@both_networks
def test_shutdown_under_traffic(network: str) -> None:
    """For UDP this is Gain's test that no connection is counted for a datagram."""
    gain_tools.shutdown_under_traffic(network, **SHARDING)


@modes
@pytest.mark.parametrize("with_answer", [True, False], ids=["answer", "no answer"])
def test_close_in_on_read(mode: str, with_answer: bool) -> None:
    gain_tools.close_in_on_read(mode, with_answer=with_answer, **SHARDING)


@both_networks
def test_addresses_of_connections(network: str) -> None:
    gain_tools.addresses_of_connections(network, **SHARDING)


def test_large_read() -> None:
    gain_tools.large_read(**SHARDING)


@modes
def test_multiple_reads(mode: str) -> None:
    gain_tools.multiple_reads(mode, **SHARDING)


def options_of_accepted(names: list[tuple[int, int]], **options: Any) -> list[list[int]]:
    """What the sockets of four clients are set to, when they are accepted."""
    recorder = Recorder(
        on_accept=lambda conn: found.append([gain_tools.socket_option(conn, *n) for n in names])
    )
    found: list[list[int]] = []
    with (
        gain_tools.server_in_thread(recorder, **SHARDING, **options) as server,
        gain_tools.clients_of(server, 4),
    ):
        wait_until(lambda: recorder.counts().accept == 4)
    return found


def test_keep_alive() -> None:
    assert options_of_accepted(KEEP_ALIVE, tcp_keep_alive=60.0) == [[1, 60, 60]] * 4


def test_socket_buffers() -> None:
    with stdlib_socket.socket() as sock:  # the kernel rounds, so ask it what 2048 becomes
        for level, option in BUFFERS:
            sock.setsockopt(level, option, 2048)
        rounded = [sock.getsockopt(level, option) for level, option in BUFFERS]
    sizes: dict[str, Any] = {"socket_recv_buffer_size": 2048, "socket_send_buffer_size": 2048}
    assert options_of_accepted(BUFFERS, **sizes) == [rounded] * 4
    gain_tools.request_response(**SHARDING, **sizes, clients=16, workers=8)


def test_cbpf() -> None:
    gain_tools.request_response(**SHARDING, cbpf=True, clients=16, workers=8)


def test_cpu_affinity() -> None:
    cpus = set()

    def accept(conn: object) -> None:
        cpus.add(frozenset(os.sched_getaffinity(0)))

    recorder = Recorder(on_accept=accept)
    with (
        gain_tools.server_in_thread(recorder, **SHARDING, cpu_affinity=True) as server,
        gain_tools.clients_of(server, 16),
    ):
        wait_until(lambda: recorder.counts().accept == 16)
    assert {len(one) for one in cpus} == {1}
    assert frozenset.union(*cpus) <= os.sched_getaffinity(0)
