"""Options and addresses that crash, hang or fool Gain, and must not this server.

Each test is about B18 of the faults of Gain, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket as stdlib_socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import (
    LOOPBACK,
    Recorder,
    architectures,
    connect,
    echo,
    in_thread,
    needs_ring,
    receive_all,
    round_trip,
    run_in_worker,
    server_in_thread,
    socket_option,
    wait_until,
)

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_ring


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), stdlib_socket.socket(stdlib_socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no ::1 on this machine")


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port of 127.0.0.1 that another program listens on."""
    with stdlib_socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("tcp_keep_alive", 0.5),
        ("tcp_keep_alive", 0),
        ("max_sq_entries", 0),
        ("max_sq_entries", 32769),
        ("max_cq_events", 0),
        ("load_balancing", 10),
        ("architecture", "neither"),
        ("cbpf", True),  # without sharding
    ],
)
def test_b18_option_that_cannot_work_is_refused_when_it_is_given(option: str, value: Any) -> None:
    """B18: with some of them Gain panics at the first connection, with others it is deaf."""
    with pytest.raises(ValueError, match=option):
        gain.Config(**{option: value})
    with pytest.raises(ValueError, match=option):
        gain.listen_and_serve(LOOPBACK, Recorder(), **{option: value})


def test_b18_keep_alive_of_a_second_is_set() -> None:
    """B18: below it Gain's acceptor dies; here one that is too short changes nothing."""
    handler = Recorder(on_read=echo)
    refusals = []

    def try_options(conn: gain.Conn) -> None:
        with pytest.raises(gain.InvalidDuration) as caught:
            conn.set_keep_alive_period(0.5)
        refusals.append(caught.value)

    handler.actions["on_accept"] = try_options
    with (
        server_in_thread(handler, workers=1, tcp_keep_alive=1) as server,
        connect(server) as client,
    ):
        round_trip(client, b"hello")
        conn = handler.conn
        for level, option in (
            (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE),
            (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE),
            (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPINTVL),
        ):
            ask = functools.partial(socket_option, conn, level, option)
            assert run_in_worker(conn, ask) == 1
    assert len(refusals) == 1


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1", "tcp://127.0.0.1:99999", "foo://127.0.0.1:0", "tcp6://127.0.0.1:0", ""],
)
def test_b18_address_that_is_none_is_refused_by_name(address: str) -> None:
    """B18: Gain changes the text that it complains about, or complains about another thing."""
    server = gain.Server(Recorder(), gain.Config(workers=1))
    with pytest.raises(gain.AddressError) as caught:
        server.start(address)
    assert caught.value.address == address
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, gain.GainError)


class StartFault(Exception):
    pass


@architectures
def test_b18_server_starts_after_starts_that_failed(options: dict[str, Any]) -> None:
    """B18: after a failed Start a Gain server is neither started nor stopped, for ever."""

    def fail(server: gain.Server) -> None:
        raise StartFault

    handler = Recorder(on_read=echo)
    server = gain.Server(handler, gain.Config(**options))
    with pytest.raises(gain.AddressError):
        server.start("no such thing")
    with taken_port() as port, pytest.raises(OSError, match="use") as caught:
        # The first could be bound, and must not stay so.
        server.start([LOOPBACK, f"tcp://127.0.0.1:{port}"])
    assert caught.value.errno == errno.EADDRINUSE
    handler.actions["on_start"] = fail
    with pytest.raises(StartFault):
        server.start(LOOPBACK)
    assert not server.is_running()
    del handler.actions["on_start"]
    with in_thread(server.start, LOOPBACK):
        wait_until(server.is_running)
        with connect(server) as client:
            round_trip(client, b"at last")
        server.shutdown()
    handler.verify()


@architectures
def test_b18_second_server_on_an_address_is_told(options: dict[str, Any]) -> None:
    """B18: in Gain it starts, and each of the two gets some of the clients."""
    with server_in_thread(Recorder(), **options) as server:
        address = f"tcp://127.0.0.1:{server.addresses()[0][1]}"
        for other in (options, {"workers": 1}, {"workers": 2, "architecture": "sharding"}):
            second = gain.Server(Recorder(), gain.Config(**other))
            with pytest.raises(OSError, match="use") as caught:
                second.start(address)
            assert caught.value.errno == errno.EADDRINUSE
            assert not second.is_running()


@architectures
def test_b18_reuse_port_allows_a_second_server(options: dict[str, Any]) -> None:
    """B18: which is a wish that has to be said."""
    one, two = Recorder(on_read=echo), Recorder(on_read=echo)
    with (
        server_in_thread(one, reuse_port=True, **options) as server,
        contextlib.ExitStack() as stack,
    ):
        address = f"tcp://127.0.0.1:{server.addresses()[0][1]}"
        stack.enter_context(server_in_thread(two, address, reuse_port=True, **options))
        for _ in range(500):
            if one.conns and two.conns:
                break
            with connect(server) as client:
                round_trip(client, b"which?")
        else:
            pytest.fail("only one of the servers gets connections")


@pytest.mark.parametrize(
    "address",
    [
        ":0",
        "0.0.0.0:0",
        "TCP://LOCALHOST:0",
        "tcp4://127.0.0.1:0",
        pytest.param("[::1]:0", marks=needs_ipv6),
        pytest.param("tcp://[::1]:0", marks=needs_ipv6),
        pytest.param("tcp6://[::1]:0", marks=needs_ipv6),
        "udp4://127.0.0.1:0",
        pytest.param("udp6://[::1]:0", marks=needs_ipv6),
        pytest.param("udp://:0", marks=needs_ipv6),
    ],
)
def test_b18_every_form_of_address_is_served_and_its_port_is_known(address: str) -> None:
    """B18: in Gain IPv6 and ":port" fail, udp4 spins, and nobody can learn the port."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, address, workers=1) as server:
        for found in server.addresses():
            assert found.network == ("udp" if address.startswith("udp") else "tcp")
            assert found[1] > 0
            with connect(found) as client:  # to 0.0.0.0 and :: is to this machine
                round_trip(client, b"hello")
                conn = handler.conns[-1]
                assert conn.local_addr()[1] == found[1]
                assert conn.remote_addr()[1] == client.getsockname()[1]
                if len(found) == 2:
                    assert conn.remote_addr() == client.getsockname()
                if not address.startswith("udp"):
                    assert conn.local_addr() == client.getpeername()
        assert len({found[1] for found in server.addresses()}) == 1


@needs_ipv6
@pytest.mark.parametrize("workers", [1, 2])
def test_b18_wildcard_serves_both_families_and_shows_ipv4_as_ipv4(workers: int) -> None:
    """B18: LocalAddr in Gain is what was configured, so for this one nothing."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, ":0", workers=workers) as server:
        port = server.addresses()[0][1]
        for family, host in (
            (stdlib_socket.AF_INET, "127.0.0.1"),
            (stdlib_socket.AF_INET6, "::1"),
        ):
            with stdlib_socket.socket(family) as client:
                client.settimeout(5)
                client.connect((host, port))
                round_trip(client, b"hello")
                conn = handler.conns[-1]
                assert conn.remote_addr() == client.getsockname()
                assert conn.local_addr() == client.getpeername()
                shown = f"{host}:{port}" if family == stdlib_socket.AF_INET else f"[{host}]:{port}"
                assert str(conn.local_addr()) == shown


def test_b18_close_in_on_accept_is_the_end_of_one_connection_only() -> None:
    """B18, B2: for instance of what a user's callback refuses."""
    handler = Recorder(on_accept=lambda conn: conn.close())
    with server_in_thread(handler, workers=2) as server:
        for _ in range(20):
            with connect(server) as client:
                assert receive_all(client) == b""
        start = time.monotonic()
        wait_until(lambda: server.active_connections() == 0)
        assert time.monotonic() - start < 1
    assert handler.errors() == [None] * 20
