"""Gain's tests of its reactor: an acceptor hands connections to the workers."""

from __future__ import annotations

import socket as stdlib_socket
import threading
from typing import Any

import gain_tools
import pytest
from gain_tools import MODES, Recorder, wait_until
from marks import needs_ring

from uring_trio import gain

pytestmark = needs_ring

REACTOR: dict[str, Any] = {"architecture": "reactor"}
both_networks = pytest.mark.parametrize("network", ["tcp", "udp"])
modes = pytest.mark.parametrize("mode", MODES)
KEEP_ALIVE = [
    (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPINTVL),
]
BALANCERS = ("round_robin", "least_connections", "source_ip_hash")


def balancing(name: str) -> gain.LoadBalancing:
    return gain.LoadBalancing[name.upper()]


@pytest.mark.parametrize(
    ("clients", "workers"), [(1, 1), (8, 1), (16, 8)], ids=["1-1", "8-1", "16-8"]
)
def test_requests_and_responses(clients: int, workers: int) -> None:
    gain_tools.request_response(**REACTOR, clients=clients, workers=workers, rounds=2)


def test_async_def_handler() -> None:
    gain_tools.request_response(**REACTOR, mode="async def", workers=2)


def test_async_handler() -> None:
    gain_tools.request_response(**REACTOR, mode="async_handler", workers=2)


def test_async_handler_with_a_small_pool() -> None:
    gain_tools.request_response(**REACTOR, mode="async_handler", workers=2, pool=2)


def test_dialled_clients_are_counted() -> None:
    gain_tools.dialled_clients_are_counted(**REACTOR)


def test_ping_pong() -> None:
    gain_tools.ping_pong(**REACTOR)


def test_connections_are_counted_until_they_close() -> None:
    gain_tools.connections_are_counted_until_they_close(**REACTOR)


@both_networks
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_shutdown(network: str, times: int) -> None:
    gain_tools.shutdown_after_clients(network, times=times, **REACTOR)


def test_shutdown_with_connected_clients() -> None:
    gain_tools.shutdown_with_connected_clients(**REACTOR)


@both_networks
def test_shutdown_under_traffic(network: str) -> None:
    gain_tools.shutdown_under_traffic(network, **REACTOR)


@modes
@pytest.mark.parametrize("with_answer", [True, False], ids=["answer", "no answer"])
def test_close_in_on_read(mode: str, with_answer: bool) -> None:
    gain_tools.close_in_on_read(mode, with_answer=with_answer, **REACTOR)


def test_addresses_of_connections() -> None:
    gain_tools.addresses_of_connections("tcp", **REACTOR)


def test_large_read() -> None:
    gain_tools.large_read(**REACTOR)


@modes
def test_multiple_reads(mode: str) -> None:
    gain_tools.multiple_reads(mode, **REACTOR)


@pytest.mark.parametrize("name", BALANCERS)
def test_load_balancing(name: str) -> None:
    gain_tools.request_response(**REACTOR, clients=16, workers=8, load_balancing=balancing(name))


def workers_of(load_balancing: object, connections: int) -> list[int]:
    """Which worker, by the order of their first use, has which connection."""
    threads: list[int] = []
    recorder = Recorder(on_accept=lambda conn: threads.append(threading.get_ident()))
    with gain_tools.server_in_thread(
        recorder, workers=4, architecture="reactor", load_balancing=load_balancing
    ) as server:
        clients = []
        for count in range(connections):
            clients.append(gain_tools.connect(server))
            wait_until(lambda: recorder.counts().accept == count + 1)  # noqa: B023
            wait_until(lambda: server.active_connections() == count + 1)  # noqa: B023
        for client in clients:
            client.close()
    order = list(dict.fromkeys(threads))
    return [order.index(thread) for thread in threads]


def test_round_robin_takes_the_workers_in_turn() -> None:
    assert workers_of(gain.LoadBalancing.ROUND_ROBIN, 8) == [0, 1, 2, 3] * 2


def test_least_connections_fills_all_workers_alike() -> None:
    workers = workers_of(gain.LoadBalancing.LEAST_CONNECTIONS, 8)
    assert sorted(workers) == sorted([0, 1, 2, 3] * 2)


def test_source_ip_hash_keeps_a_client_with_one_worker() -> None:
    assert workers_of(gain.LoadBalancing.SOURCE_IP_HASH, 4) == [0] * 4


def test_users_balancer_has_its_way() -> None:
    chosen = iter([2, 0, 2, 2])
    remotes = []

    def balance(workers: object, remote: gain.Address) -> int:
        remotes.append(remote.network)
        return next(chosen)

    assert workers_of(balance, 4) == [0, 1, 0, 0]
    assert remotes == ["tcp"] * 4


def test_keep_alive() -> None:
    options = []

    def accept(conn: gain.Conn) -> None:
        options.append([gain_tools.socket_option(conn, *names) for names in KEEP_ALIVE])

    recorder = Recorder(on_accept=accept)
    with (
        gain_tools.server_in_thread(recorder, **REACTOR, tcp_keep_alive=60.0) as server,
        gain_tools.clients_of(server, 4),
    ):
        wait_until(lambda: recorder.counts().accept == 4)
    assert options == [[1, 60, 60]] * 4
