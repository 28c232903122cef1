"""Addresses: the text that a user writes, and the one that a socket has.

Parsing does no look-up, so it tells a mistake from a name that does not resolve, and it is
strict: what `getaddrinfo` would guess at (``127.1``, ``0x7f.1``, blanks, service names) is
refused. The forms:

* ``tcp://host:port`` and ``host:port``; ``tcp4://`` and ``tcp6://`` take one family only.
* ``udp://``, ``udp4://``, ``udp6://`` likewise.
* ``:port``, or an empty host after tcp:// and udp://, is every address of both families;
  with tcp4:// and so on, of that family. ``[::]`` is IPv6 alone, so that a program may
  listen on ``0.0.0.0`` beside it.
* ``[::1]:port``, ``[fe80::1%eth0]:port``: a literal of IPv6 wants its brackets. One that maps
  an address of IPv4 (``[::ffff:127.0.0.1]``) is that address of IPv4.
* ``unix://path``, absolute or not; ``unix://@name`` is in Linux's abstract namespace, as in
  Go. A file of that name is ``unix://./@name``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from uring_trio.gain._errors import AddressError, UnsupportedProtocol

# The families that a scheme allows: None is both of the internet's.
SCHEMES: dict[str, tuple[str, int | None]] = {
    "tcp": ("tcp", None),
    "tcp4": ("tcp", socket.AF_INET),
    "tcp6": ("tcp", socket.AF_INET6),
    "udp": ("udp", None),
    "udp4": ("udp", socket.AF_INET),
    "udp6": ("udp", socket.AF_INET6),
    "unix": ("unix", socket.AF_UNIX),
}
FORMS = "tcp://host:port, udp://host:port, unix://path, host:port, :port or [::1]:port"

PORT_MAX = 65535
HOST_MAX = 253  # characters of a name in the DNS, without the last dot
UNIX_PATH_MAX = 107  # bytes of sun_path before its NUL; an abstract name has a NUL in front

_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_MAPPED = "::ffff:"


@final
class Address(tuple[Any, ...]):
    """The address of a socket: Python's own tuple for it, and the network it is in.

    It is ``(host, port)`` for IPv4, ``(host, port, flow, scope)`` for IPv6 and ``(path,)`` for
    UNIX, equal to that tuple, and may be given to `socket.socket.connect` where that takes a
    tuple. Its `str` is ``127.0.0.1:80``, ``[::1]:80`` or the path; an abstract UNIX name
    (bytes, as Python has it) is shown as ``@name``, a UNIX peer without a name as nothing.

    Attributes:
      network: ``"tcp"``, ``"udp"`` or ``"unix"``.
    """

    network: str

    def __new__(cls, network: str, sockaddr: Iterable[Any]) -> Address:
        self = super().__new__(cls, sockaddr)
        self.network = network
        return self

    @classmethod
    def from_sockaddr(cls, network: str, sockaddr: Any) -> Address:
        """The address that `socket.socket.getsockname` and the like return.

        A peer of IPv4 on a socket of both families, ``::ffff:1.2.3.4``, becomes IPv4.
        """
        if network == "unix":
            return cls(network, (sockaddr,) if isinstance(sockaddr, (str, bytes)) else sockaddr)
        host = sockaddr[0]
        # inet_ntop writes dots after this prefix for mapped addresses, and for no other.
        if host.startswith(_MAPPED) and "." in host:
            return cls(network, (host[len(_MAPPED) :], sockaddr[1]))
        return cls(network, sockaddr)

    def __str__(self) -> str:
        if self.network == "unix":
            path = self[0]
            if isinstance(path, bytes):
                return "@" + os.fsdecode(path[1:]) if path[:1] == b"\0" else os.fsdecode(path)
            return str(path)
        if len(self) == 2:
            return f"{self[0]}:{self[1]}"
        host, port, _, scope = self
        zone = f"%{scope}" if scope and "%" not in host else ""
        return f"[{host}{zone}]:{port}"

    def __repr__(self) -> str:
        return f"Address({self.network!r}, {tuple(self)!r})"

    def __reduce__(self) -> tuple[type[Address], tuple[str, tuple[Any, ...]]]:
        return type(self), (self.network, tuple(self))


@dataclass(frozen=True)
class Spec:
    """Where to listen, as far as the text alone tells.

    Attributes:
      network: ``"tcp"``, ``"udp"`` or ``"unix"``.
      family: the only family allowed, or None for both of the internet's.
      host: a name or a literal without brackets; ``""`` is every address.
      port: 0 is for the kernel to choose.
      path: of a UNIX socket; bytes with a NUL in front are an abstract name.
      text: what the user wrote.
    """

    network: str
    family: int | None
    host: str
    port: int
    path: str | bytes
    text: str

    @property
    def may_block(self) -> bool:
        """Whether to bind there may take its time: a name's look-up, or a lock on a directory."""
        if self.network == "unix":
            return isinstance(self.path, str)
        # No top level domain is a number, and no name has a colon.
        last = self.host.rpartition(".")[2]
        return self.host != "" and ":" not in self.host and _NUMBER.fullmatch(last) is None


def parse_all(address: Any) -> list[Spec]:
    """Parse one address or several.

    Raises:
      AddressError: for the first that is wrong, and where there is none at all.
    """
    if isinstance(address, (str, bytes)) or not isinstance(address, Iterable):
        return [parse(address)]
    texts = list(address)
    if not texts:
        raise AddressError(address, "there is none to listen on")
    return [parse(text) for text in texts]


def parse(text: Any) -> Spec:
    """Parse one address, without a look-up.

    Raises:
      UnsupportedProtocol: its scheme is unknown.
      AddressError: anything else is wrong with it.
    """
    if not isinstance(text, str):
        raise AddressError(text, f"it must be a string: {FORMS}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "tcp", text
    if scheme.lower() not in SCHEMES:
        names = ", ".join(SCHEMES)
        raise UnsupportedProtocol(text, f"the scheme {scheme!r} is none of {names}")
    network, family = SCHEMES[scheme.lower()]
    if network == "unix":
        return Spec(network, family, "", 0, _unix_path(text, rest), text)
    host, port = _split(text, rest)
    if host.startswith("["):
        family, host = _ipv6(text, host[1:-1], family)
    elif host:
        family = _name_or_ipv4(text, host, family)
    return Spec(network, family, host, port, "", text)


def _unix_path(text: str, path: str) -> str | bytes:
    if not path:
        raise AddressError(text, "the path is missing")
    if "\0" in path:
        raise AddressError(text, "a path has no NUL; an abstract socket is unix://@name")
    if path == "@":
        raise AddressError(text, "the name of the abstract socket is missing")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as exc:
        raise AddressError(text, f"the path cannot be encoded: {exc}") from exc
    abstract = path.startswith("@")
    # The NUL before an abstract name takes the place of its "@", and none comes after it.
    longest = UNIX_PATH_MAX + 1 if abstract else UNIX_PATH_MAX
    if len(encoded) > longest:
        raise AddressError(text, f"the path has {len(encoded)} bytes, {longest} are allowed")
    return b"\0" + encoded[1:] if abstract else path


def _split(text: str, rest: str) -> tuple[str, int]:
    """Host, an IPv6 literal still in its brackets, and port."""
    host, colon, port = rest.rpartition(":")
    if rest.endswith("]") or not colon:
        raise AddressError(text, f"the port is missing; allowed are {FORMS}")
    if host.startswith("[") != host.endswith("]") or host == "[":
        raise AddressError(text, "the brackets of the host do not match")
    if ":" in host and not host.startswith("["):
        raise AddressError(text, "an IPv6 address is written in brackets, as in [::1]:80")
    if not port:
        raise AddressError(text, "the port is missing after the colon")
    if _PORT.fullmatch(port) is None or int(port) > PORT_MAX:
        raise AddressError(text, f"the port must be a number from 0 to {PORT_MAX}")
    return host, int(port)


def _ipv6(text: str, host: str, family: int | None) -> tuple[int, str]:
    """Family and host of what was in brackets."""
    try:
        literal = ipaddress.IPv6Address(host)
    except ValueError as exc:
        raise AddressError(text, f"the host in brackets is no IPv6 address: {exc}") from exc
    if re.search(r"[\s\0/]", host) is not None:
        raise AddressError(text, "the zone of the IPv6 address is no interface")
    mapped = literal.ipv4_mapped
    actual = socket.AF_INET6 if mapped is None else socket.AF_INET
    _demand(text, family, actual)
    return actual, host if mapped is None else str(mapped)


def _name_or_ipv4(text: str, host: str, family: int | None) -> int | None:
    """The family of an IPv4 literal; that of the scheme for a name."""
    labels = _ascii_name(text, host).removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressError(text, "the host is neither a name nor an address")
    if _NUMBER.fullmatch(labels[-1]) is None:
        return family
    # No top level domain is a number, so this is meant to be IPv4.
    try:
        ipaddress.IPv4Address(host)
    except ValueError as exc:
        raise AddressError(text, f"the host is no IPv4 address: {exc}") from exc
    _demand(text, family, socket.AF_INET)
    return socket.AF_INET


def _ascii_name(text: str, host: str) -> str:
    """The name as the DNS has it."""
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError as exc:
        raise AddressError(text, f"the host is no name: {exc}") from exc
    if len(name.removesuffix(".")) > HOST_MAX:
        raise AddressError(text, f"the host has over {HOST_MAX} characters")
    return name


def _demand(text: str, family: int | None, actual: int) -> None:
    if family is not None and family != actual:
        wanted = "IPv4" if family == socket.AF_INET else "IPv6"
        raise AddressError(text, f"no suitable address: the scheme demands {wanted}")
