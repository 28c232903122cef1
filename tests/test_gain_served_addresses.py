"""Addresses of all forms, served: who is let in, and what a connection says of itself.

A fault of Gain that a test is about stands in its docstring, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import contextlib
import errno
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import (
    LOOPBACK,
    LOOPBACK_UDP,
    Recorder,
    architectures,
    connect,
    echo,
    needs_ipv6,
    round_trip,
    server_in_thread,
)
from marks import needs_ring

from uring_trio import gain

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_ring


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1", "tcp://127.0.0.1:99999", "foo://127.0.0.1:0", "tcp6://127.0.0.1:0", ""],
)
def test_address_that_is_none_is_refused_by_name(address: str) -> None:
    """B18: Gain changes the text that it complains about, or complains about another thing."""
    server = gain.Server(Recorder(), gain.Config(workers=1))
    with pytest.raises(gain.AddressError) as caught:
        server.start(address)
    assert caught.value.address == address
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, gain.GainError)


@architectures
def test_second_server_on_an_address_is_told(options: dict[str, Any]) -> None:
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
def test_reuse_port_allows_a_second_server(options: dict[str, Any]) -> None:
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
def test_every_form_of_address_is_served_and_its_port_is_known(address: str) -> None:
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
def test_wildcard_serves_both_families_and_shows_ipv4_as_ipv4(workers: int) -> None:
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


def test_server_has_several_addresses_of_all_kinds(tmp_path: Path) -> None:
    """B19: a Gain server has one address, and no UNIX socket."""
    path = tmp_path / "socket"
    handler = Recorder(on_read=echo)
    with server_in_thread(
        handler, [LOOPBACK, f"unix://{path}", LOOPBACK_UDP, LOOPBACK], workers=1
    ) as server:
        addresses = server.addresses()
        assert [address.network for address in addresses] == ["tcp", "unix", "udp", "tcp"]
        assert str(addresses[1]) == str(path)
        for address in addresses:
            with connect(address) as client:
                round_trip(client, str(address).encode())
                assert handler.conns[-1].local_addr().network == address.network
        with pytest.raises(OSError, match="use"):
            gain.listen_and_serve(f"unix://{path}", Recorder())  # it is alive
    assert not path.exists()
