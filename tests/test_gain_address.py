"""Addresses as users write them and as sockets have them, right and wrong."""

from __future__ import annotations

import copy
import os
import pickle
import socket
from typing import Any

import pytest

from uring_trio.gain._address import Address, Spec, parse, parse_all
from uring_trio.gain._errors import AddressError, GainError, UnsupportedProtocol

V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX

# text, network, family, host, port
INTERNET = [
    ("127.0.0.1:8080", "tcp", V4, "127.0.0.1", 8080),
    ("localhost:8080", "tcp", None, "localhost", 8080),
    ("tcp://localhost:8080", "tcp", None, "localhost", 8080),
    ("tcp4://127.0.0.1:1", "tcp", V4, "127.0.0.1", 1),
    ("tcp4://localhost:1", "tcp", V4, "localhost", 1),
    ("tcp6://localhost:1", "tcp", V6, "localhost", 1),
    ("TCP://LOCALHOST:1", "tcp", None, "LOCALHOST", 1),
    ("Udp4://127.0.0.1:1", "udp", V4, "127.0.0.1", 1),
    ("tcp://0.0.0.0:0", "tcp", V4, "0.0.0.0", 0),
    ("tcp://[::1]:1", "tcp", V6, "::1", 1),
    ("tcp6://[::1]:1", "tcp", V6, "::1", 1),
    ("[::1]:65535", "tcp", V6, "::1", 65535),
    ("[::]:0", "tcp", V6, "::", 0),
    ("[FE80::1%eth0]:1", "tcp", V6, "FE80::1%eth0", 1),
    ("udp://[fe80::1%2]:1", "udp", V6, "fe80::1%2", 1),
    ("[::ffff:127.0.0.1]:1", "tcp", V4, "127.0.0.1", 1),
    ("tcp4://[::ffff:127.0.0.1]:1", "tcp", V4, "127.0.0.1", 1),
    (":80", "tcp", None, "", 80),
    (":0", "tcp", None, "", 0),
    ("tcp://:80", "tcp", None, "", 80),
    ("tcp4://:80", "tcp", V4, "", 80),
    ("tcp6://:80", "tcp", V6, "", 80),
    ("udp://:53", "udp", None, "", 53),
    ("udp4://:53", "udp", V4, "", 53),
    ("udp6://[::1]:53", "udp", V6, "::1", 53),
    ("example.com.:00080", "tcp", None, "example.com.", 80),
    ("my_host-1:80", "tcp", None, "my_host-1", 80),
    ("1.example:80", "tcp", None, "1.example", 80),
    ("bücher.example:80", "tcp", None, "bücher.example", 80),
]

# text, path
PATHS: list[tuple[str, str | bytes]] = [
    ("unix:///run/x.sock", "/run/x.sock"),
    ("unix://x.sock", "x.sock"),
    ("UNIX:///Run/X.sock", "/Run/X.sock"),
    ("unix:// /a b", " /a b"),
    ("unix:///tmp/ü://:80", "/tmp/ü://:80"),
    ("unix://./@x", "./@x"),
    ("unix://@x", b"\0x"),
    ("unix:///" + "x" * 106, "/" + "x" * 106),
    ("unix://@" + "x" * 107, b"\0" + b"x" * 107),
    (os.fsdecode(b"unix:///tmp/\xff"), os.fsdecode(b"/tmp/\xff")),
]

# text, part of the reason
REFUSED: list[tuple[Any, str]] = [
    ("", "port is missing"),
    (":", "port is missing"),
    ("80", "port is missing"),
    ("localhost", "port is missing"),
    ("tcp://", "port is missing"),
    ("tcp://127.0.0.1", "port is missing"),
    ("tcp://127.0.0.1:", "port is missing"),
    ("tcp://[::1]", "port is missing"),
    ("[::1]", "port is missing"),
    ("[::1]:", "port is missing"),
    ("127.0.0.1:99999", "number from 0 to 65535"),
    ("127.0.0.1:65536", "number from 0 to 65535"),
    ("127.0.0.1:" + "9" * 5000, "number from 0 to 65535"),
    ("127.0.0.1:-1", "number from 0 to 65535"),
    ("127.0.0.1:+1", "number from 0 to 65535"),
    ("127.0.0.1:1_0", "number from 0 to 65535"),
    ("127.0.0.1:0x50", "number from 0 to 65535"),
    ("127.0.0.1:http", "number from 0 to 65535"),
    ("127.0.0.1:٨٠", "number from 0 to 65535"),
    ("127.0.0.1:80 ", "number from 0 to 65535"),
    ("127.0.0.1: 80", "number from 0 to 65535"),
    ("127.0.0.1:80\n", "number from 0 to 65535"),
    ("127.0.0.1:80\0", "number from 0 to 65535"),
    ("tcp://127.0.0.1:80/", "number from 0 to 65535"),
    ("unix:/tmp/x", "number from 0 to 65535"),
    (" 127.0.0.1:80", "neither a name nor an address"),
    ("local host:80", "neither a name nor an address"),
    ("localhost\0:80", "neither a name nor an address"),
    ("user@localhost:80", "neither a name nor an address"),
    ("a/b:80", "neither a name nor an address"),
    ("*:80", "neither a name nor an address"),
    ("fe80%1:80", "neither a name nor an address"),
    ("a..b:80", "no name"),
    (".:80", "no name|neither"),
    ("a" * 64 + ":80", "no name|neither"),
    ("ü" * 64 + ":80", "no name"),
    ("a\ud800:80", "no name"),
    (".".join(["a" * 62] * 5) + ":80", "over 253 characters"),
    ("256.0.0.1:80", "no IPv4 address"),
    ("127.1:80", "no IPv4 address"),
    ("127.0.0.01:80", "no IPv4 address"),
    ("2130706433:80", "no IPv4 address"),
    ("0x7f000001:80", "no IPv4 address"),
    ("127.0.0.1.:80", "no IPv4 address"),
    ("::1:80", "in brackets"),
    ("tcp://::1:80", "in brackets"),
    ("tcp://tcp://localhost:80", "in brackets|neither"),
    ("[::1:80", "brackets"),
    ("::1]:80", "brackets"),
    ("[]:80", "no IPv6 address"),
    ("[127.0.0.1]:80", "no IPv6 address"),
    ("[localhost]:80", "no IPv6 address"),
    ("[::1::]:80", "no IPv6 address"),
    ("[ ::1]:80", "no IPv6 address"),
    ("[fe80::1%]:80", "no IPv6 address"),
    ("[fe80::1%a b]:80", "no interface"),
    ("[fe80::1%a\0]:80", "no interface"),
    ("[[::1]]:80", "no IPv6 address"),
    ("tcp6://127.0.0.1:80", "no suitable address"),
    ("udp6://0.0.0.0:80", "no suitable address"),
    ("tcp4://[::1]:80", "no suitable address"),
    ("tcp6://[::ffff:127.0.0.1]:80", "no suitable address"),
    ("unix://", "path is missing"),
    ("unix://@", "name of the abstract socket is missing"),
    ("unix:///a\0b", "NUL"),
    ("unix://\0x", "NUL"),
    ("unix:///\ud800", "cannot be encoded"),
    ("unix:///" + "x" * 107, "108 bytes, 107 are allowed"),
    ("unix:///" + "ü" * 60, "121 bytes, 107 are allowed"),
    ("unix://@" + "x" * 108, "109 bytes, 108 are allowed"),
    (b"127.0.0.1:80", "must be a string"),
    (None, "must be a string"),
    (80, "must be a string"),
    (("127.0.0.1", 80), "must be a string"),
]

SCHEMES_REFUSED = ["foo://x:1", "http://x:80", "://x:80", " tcp://x:80", "tcp5://x:80", "t\0://x:1"]


@pytest.mark.parametrize(("text", "network", "family", "host", "port"), INTERNET)
def test_addresses_of_the_internet(
    text: str, network: str, family: int | None, host: str, port: int
) -> None:
    assert parse(text) == Spec(network, family, host, port, "", text)


@pytest.mark.parametrize(("text", "path"), PATHS)
def test_paths_of_unix_sockets(text: str, path: str | bytes) -> None:
    assert parse(text) == Spec("unix", UNIX, "", 0, path, text)


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=lambda value: repr(value)[:60])
def test_anything_else_is_refused_with_the_input_unchanged(text: Any, reason: str) -> None:
    with pytest.raises(AddressError, match=reason) as caught:
        parse(text)
    assert caught.value.address is text
    assert isinstance(caught.value, GainError)
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, UnsupportedProtocol)


@pytest.mark.parametrize("text", SCHEMES_REFUSED)
def test_other_schemes_are_refused_by_name(text: str) -> None:
    with pytest.raises(UnsupportedProtocol, match=r"none of tcp, tcp4, .*unix") as caught:
        parse(text)
    assert caught.value.address is text


def test_one_address_or_several() -> None:
    one, two = "127.0.0.1:1", "unix:///x"
    assert parse_all(one) == [parse(one)]
    assert parse_all([one, two]) == parse_all((one, two)) == [parse(one), parse(two)]
    assert parse_all(text for text in [one, two]) == [parse(one), parse(two)]


@pytest.mark.parametrize("address", [[], (), None, 80, b"127.0.0.1:80"])
def test_none_at_all_is_refused(address: object) -> None:
    with pytest.raises(AddressError) as caught:
        parse_all(address)
    assert caught.value.address is address


def test_the_wrong_one_of_several_is_named() -> None:
    with pytest.raises(AddressError, match="'x'") as caught:
        parse_all(["127.0.0.1:1", "x"])
    assert caught.value.address == "x"


# network, what the socket says, the tuple, the text
ADDRESSES: list[tuple[str, Any, tuple[Any, ...], str]] = [
    ("tcp", ("127.0.0.1", 80), ("127.0.0.1", 80), "127.0.0.1:80"),
    ("udp", ("::1", 80, 0, 0), ("::1", 80, 0, 0), "[::1]:80"),
    ("tcp", ("fe80::1", 80, 0, 2), ("fe80::1", 80, 0, 2), "[fe80::1%2]:80"),
    ("tcp", ("fe80::1%2", 80, 0, 2), ("fe80::1%2", 80, 0, 2), "[fe80::1%2]:80"),
    ("tcp", ("::ffff:1.2.3.4", 80, 0, 0), ("1.2.3.4", 80), "1.2.3.4:80"),
    ("tcp", ("::ffff:0:1", 80, 0, 0), ("::ffff:0:1", 80, 0, 0), "[::ffff:0:1]:80"),
    ("unix", "/run/x", ("/run/x",), "/run/x"),
    ("unix", ("/run/x",), ("/run/x",), "/run/x"),
    ("unix", "", ("",), ""),
    ("unix", b"\0x", (b"\0x",), "@x"),
]


@pytest.mark.parametrize(("network", "sockaddr", "plain", "text"), ADDRESSES)
def test_address_is_the_sockets_tuple(
    network: str, sockaddr: Any, plain: tuple[Any, ...], text: str
) -> None:
    address = Address.from_sockaddr(network, sockaddr)
    assert address == plain
    assert hash(address) == hash(plain)
    assert {plain: 1}[address] == 1
    assert str(address) == f"{address}" == text
    assert address.network == network
    assert eval(repr(address)) == address


@pytest.mark.parametrize(("network", "sockaddr", "plain", "text"), ADDRESSES)
def test_address_survives_copies(
    network: str, sockaddr: Any, plain: tuple[Any, ...], text: str
) -> None:
    address = Address.from_sockaddr(network, sockaddr)
    for again in (pickle.loads(pickle.dumps(address)), copy.copy(address), copy.deepcopy(address)):
        assert type(again) is Address
        assert again == address
        assert again.network == network


def test_address_is_unequal_to_another() -> None:
    assert Address("tcp", ("127.0.0.1", 80)) != Address("tcp", ("127.0.0.1", 81))


def test_address_goes_back_to_a_socket() -> None:
    with socket.socket(V4, socket.SOCK_DGRAM) as one, socket.socket(V4, socket.SOCK_DGRAM) as two:
        one.bind(("127.0.0.1", 0))
        address = Address.from_sockaddr("udp", one.getsockname())
        two.sendto(b"x", address)
        two.connect(address)
        assert two.getpeername() == address == one.getsockname()
    with socket.socket(UNIX) as listener, socket.socket(UNIX) as client:
        listener.bind("")  # the kernel gives it a name
        listener.listen()
        client.connect(Address.from_sockaddr("unix", listener.getsockname())[0])


@pytest.mark.parametrize(
    ("text", "may_block"),
    [
        ("127.0.0.1:0", False),
        ("tcp4://10.1.2.3:80", False),
        ("[::1]:80", False),
        ("[fe80::1%lo]:80", False),
        ("[::ffff:1.2.3.4]:80", False),
        (":80", False),
        ("udp6://:80", False),
        ("unix://@name", False),
        ("localhost:80", True),
        ("tcp4://example.org:80", True),
        ("tcp://1.example:80", True),
        ("example.:80", True),
        ("unix://x", True),
    ],
)
def test_only_names_and_paths_may_block(text: str, may_block: bool) -> None:
    assert parse(text).may_block is may_block
