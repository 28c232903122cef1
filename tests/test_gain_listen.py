"""Listening sockets: all or none, one server to an address, and the options on them."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
from gain_tools import BOUND_S, accepted, again, bind, bound, connect, needs_ipv6, one, refused

from uring_trio.gain import _listen
from uring_trio.gain._address import Address, parse_all
from uring_trio.gain._config import make_config
from uring_trio.gain._errors import AddressError

if TYPE_CHECKING:
    from collections.abc import Callable

TCP = "tcp://127.0.0.1:0"
UDP = "udp://127.0.0.1:0"


def resolver(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """A name server that knows these addresses of every name, and tells each twice."""

    def getaddrinfo(host: str, port: int, family: int, kind: int) -> list[Any]:
        found = [
            (item[0], item[1], item[2], item[3], item[4])
            for name in hosts * 2
            for item in REAL_GETADDRINFO(name, port, 0, kind, 0, socket.AI_NUMERICHOST)
            if family in (0, item[0])
        ]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


REAL_GETADDRINFO: Callable[..., Any] = socket.getaddrinfo


# --- One address ---


def test_tcp_listens_at_the_port_that_the_kernel_chose() -> None:
    with one(TCP) as listener:
        assert listener.network == listener.address.network == "tcp"
        assert listener.address == listener.sock.getsockname()
        assert listener.address[1] != 0
        with connect(listener), accepted(listener):
            pass


def test_udp_is_bound() -> None:
    with one(UDP) as listener, socket.socket(type=socket.SOCK_DGRAM) as client:
        assert listener.network == listener.address.network == "udp"
        client.sendto(b"x", listener.address)
        listener.sock.settimeout(BOUND_S)
        assert listener.sock.recv(9) == b"x"
        assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1


@pytest.mark.parametrize("address", [TCP, UDP, "unix://@uring-trio-test-flags"])
def test_sockets_do_not_block_and_are_not_inherited(address: str) -> None:
    with bound(address, copies=2) as workers:
        for [listener] in workers:
            assert listener.sock.gettimeout() == 0
            assert not os.get_inheritable(listener.sock.fileno())


@needs_ipv6
def test_port_alone_is_both_families_and_shows_peers_of_ipv4_as_such() -> None:
    with one(":0") as listener:
        assert listener.address[0] == "::"
        for host in ("127.0.0.1", "::1"):
            with connect(listener, host), accepted(listener) as conn:
                peer = Address.from_sockaddr("tcp", conn.getpeername())
                assert peer[0] == host


@needs_ipv6
@pytest.mark.parametrize(
    ("address", "host", "other"),
    [
        ("tcp4://:0", "127.0.0.1", "::1"),
        ("tcp6://:0", "::1", "127.0.0.1"),
        ("[::]:0", "::1", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1", "::1"),
        ("tcp6://[::1]:0", "::1", "127.0.0.1"),
    ],
)
def test_one_family_alone(address: str, host: str, other: str) -> None:
    with one(address) as listener:
        with connect(listener, host), accepted(listener):
            pass
        with pytest.raises(ConnectionRefusedError):
            connect(listener, other)


@needs_ipv6
def test_both_wildcards_may_be_given_beside_each_other() -> None:
    with one("0.0.0.0:0") as first, bound(f"[::]:{first.address[1]}"):
        pass


def test_without_ipv6_port_alone_is_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listen, "_has_ipv6", lambda host: False)
    with one(":0") as listener:
        assert listener.address[0] == "0.0.0.0"


def test_a_mapped_literal_is_ipv4() -> None:
    with one("[::ffff:127.0.0.1]:0") as listener:
        assert listener.address[0] == "127.0.0.1"
        assert listener.sock.family == socket.AF_INET


@needs_ipv6
@pytest.mark.parametrize("zone", ["lo", "1"])
def test_zone_ids_become_scopes(zone: str) -> None:
    # No link-local address need be here: what the kernel is asked for is what matters.
    [(family, sockaddr)] = _listen._resolve(parse_all(f"[fe80::1%{zone}]:7")[0])
    assert (family, sockaddr) == (
        socket.AF_INET6,
        ("fe80::1", 7, 0, socket.if_nametoindex("lo")),
    )


def test_an_unknown_zone_is_an_address_error() -> None:
    text = "[fe80::1%nosuchif0]:0"
    with harness.no_new_fds(), pytest.raises(AddressError, match="does not resolve") as caught:
        bind(parse_all([TCP, text]), make_config())
    assert caught.value.address is text


# --- Names ---


@pytest.mark.parametrize("network", ["tcp", "udp"])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_name_is_bound_at_each_address_with_one_port(
    monkeypatch: pytest.MonkeyPatch, network: str, copies: int
) -> None:
    resolver(monkeypatch, "127.0.0.1", "127.0.0.2")
    with bound(f"{network}://name:0", copies=copies) as workers:
        for worker in workers:
            assert [listener.address[0] for listener in worker] == ["127.0.0.1", "127.0.0.2"]
        ports = {listener.address[1] for worker in workers for listener in worker}
        assert len(ports) == 1
        assert 0 not in ports


@needs_ipv6
def test_a_name_is_bound_in_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, "::1", "127.0.0.1")
    with bound("name:0") as [[v6, v4]]:
        assert str(v6.address) == f"[::1]:{v4.address[1]}"
    with one("tcp4://name:0") as listener:
        assert listener.address[0] == "127.0.0.1"


def test_a_name_leaves_out_ipv6_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, "::1", "127.0.0.1")
    monkeypatch.setattr(_listen, "_has_ipv6", lambda host: False)
    with one("name:0") as listener:
        assert listener.address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "hosts"), [("tcp6://name:0", ["127.0.0.1"]), ("udp://name:0", [])]
)
def test_a_name_without_addresses_is_an_address_error(
    monkeypatch: pytest.MonkeyPatch, text: str, hosts: list[str]
) -> None:
    resolver(monkeypatch, *hosts)
    with pytest.raises(AddressError, match="does not resolve") as caught:
        bind(parse_all(text), make_config())
    assert caught.value.address is text
    assert isinstance(caught.value.__cause__, socket.gaierror)


def block_second_address(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Have the port that the kernel chose be taken at 127.0.0.2, so often; the ports."""
    taken: list[int] = []
    real = _listen._bound_socket

    def bound_socket(undo: Any, spec: Any, family: int, sockaddr: Any, *rest: Any) -> Any:
        if sockaddr[0] == "127.0.0.2" and len(taken) < times:
            taken.append(sockaddr[1])
            kind = socket.SOCK_STREAM if spec.network == "tcp" else socket.SOCK_DGRAM
            with socket.socket(type=kind) as blocker:
                # Not listening, and reusable: the hardest to notice.
                blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
                blocker.bind(sockaddr)
                return real(undo, spec, family, sockaddr, *rest)
        return real(undo, spec, family, sockaddr, *rest)

    monkeypatch.setattr(_listen, "_bound_socket", bound_socket)
    return taken


@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_another_common_port_is_chosen_if_one_is_taken_meanwhile(
    monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    resolver(monkeypatch, "127.0.0.1", "127.0.0.2")
    taken = block_second_address(monkeypatch, 2)
    with bound(f"{network}://name:0") as [[first, second]]:
        assert first.address[1] == second.address[1]
        assert first.address[1] != taken[1]
    assert len(taken) == 2


def test_a_common_port_is_not_looked_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, "127.0.0.1", "127.0.0.2")
    taken = block_second_address(monkeypatch, 1000)
    with refused(errno.EADDRINUSE):
        bind(parse_all("name:0"), make_config())
    assert len(taken) == _listen.COMMON_PORT_ATTEMPTS


# --- All or nothing ---


def test_several_addresses_come_in_their_order(tmp_path: Any) -> None:
    texts = [UDP, f"unix://{tmp_path}/x", TCP]
    with bound(texts, copies=2) as workers:
        for worker in workers:
            assert [listener.network for listener in worker] == ["udp", "unix", "tcp"]
        assert [x.address for x in workers[0]] == [x.address for x in workers[1]]


@pytest.mark.parametrize("copies", [1, 3])
def test_nothing_is_left_if_the_last_address_fails(tmp_path: Any, copies: int) -> None:
    with one(TCP) as busy, one(TCP) as probe:
        probe.close()
        texts = [f"unix://{tmp_path}/x", "unix://@uring-trio-test-undo", UDP, again(probe)]
        with refused(errno.EADDRINUSE) as caught:
            bind(parse_all([*texts, again(busy)]), make_config(), copies)
        assert f"cannot listen on {again(busy)!r} ({busy.address})" in str(caught.value)
        assert os.strerror(errno.EADDRINUSE) in str(caught.value)
        assert os.listdir(tmp_path) == []
        with bound(texts, copies=copies):
            pass


@pytest.mark.parametrize("copies", [1, 3])
def test_nothing_is_left_if_a_path_fails_last(tmp_path: Any, copies: int) -> None:
    texts = [TCP, f"unix://{tmp_path}/x", f"unix://{tmp_path}/none/x"]
    with refused(errno.ENOENT):
        bind(parse_all(texts), make_config(), copies)
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_if_a_later_copy_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    real, calls = _listen._bound_socket, []

    def bound_socket(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENFILE, "full")
        return real(*args, **kwargs)

    monkeypatch.setattr(_listen, "_bound_socket", bound_socket)
    with refused(errno.ENFILE):
        bind(parse_all([f"unix://{tmp_path}/x", TCP]), make_config(), 3)
    assert os.listdir(tmp_path) == []


def test_an_address_that_is_not_ours_is_refused() -> None:
    with refused(errno.EADDRNOTAVAIL) as caught:
        bind(parse_all("192.0.2.1:0"), make_config())  # an address for documentation
    assert "192.0.2.1:0" in str(caught.value)


def test_the_same_address_twice_is_refused() -> None:
    with one(TCP) as listener:
        text = again(listener)
    with refused(errno.EADDRINUSE):
        bind(parse_all([text, text]), make_config())


def test_closing_twice_is_fine() -> None:
    with one(TCP) as listener:
        listener.close()
        listener.close()
