"""Socket addresses: Python's form to the kernel's sockaddr, and back.

Only for the families whose operations go to the ring; every other goes trio's own way.
The forms are those of CPython's `socket` module.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

# Hosts with a meaning of their own, in Python's socket module.
NOT_NUMERIC = ("", "<broadcast>")

_FAMILY = struct.Struct("=H")
_INET, _UNIX = int(socket.AF_INET), int(socket.AF_UNIX)  # an enum is dearer to compare
_INET_START = _FAMILY.pack(_INET)
_INET_REST = struct.Struct("!H4s8x")  # port, host
PORT_MAX = 0xFFFF
_UNIX_PATH_MAX = 108  # bytes of sun_path
_UNIX_PATH_AT = 2  # bytes before it: the family


def pack_plain(family: int, address: Any) -> bytes | None:
    """The sockaddr of an address that stock resolves to itself, without asking anybody.

    Returns:
      None where it may be another, or where stock has its own word for what is wrong with it.
    """
    kind = type(address)
    if family == _UNIX:
        return pack(family, address) if kind is str or kind is bytes else None
    if kind is not tuple or len(address) < 2:
        return None
    host, port = address[:2]
    if type(host) is not str or type(port) is not int or host in NOT_NUMERIC:
        return None
    if family == _INET and len(address) == 2 and 0 <= port <= PORT_MAX:
        try:
            return _INET_START + _INET_REST.pack(port, socket.inet_pton(_INET, host))
        except (OSError, ValueError):
            return None
    return pack(family, address)


def pack(family: int, address: Any) -> bytes | None:
    """The sockaddr of an address whose names are resolved.

    Returns:
      None where stock has its own word for what is wrong with the address.
    """
    try:
        if family == socket.AF_INET:
            host, port = address
            return _INET_START + _INET_REST.pack(port, _ipv4(host))
        if family == socket.AF_INET6:
            host, port, flow, scope = (*address, 0, 0)[:4]
            if len(address) > 4 or not 0 <= flow <= 0xFFFFF or "%" in host:
                return None
            return (
                _FAMILY.pack(family)
                + struct.pack("!HI", port, flow)
                + socket.inet_pton(family, host)
                + struct.pack("=I", scope)
            )
        return _pack_unix(address)
    except (OSError, TypeError, ValueError, struct.error):
        return None


def _ipv4(host: str) -> bytes:
    if host == "":
        return bytes(4)
    if host == "<broadcast>":
        return b"\xff" * 4
    return socket.inet_pton(socket.AF_INET, host)


def _pack_unix(address: Any) -> bytes | None:
    path = os.fsencode(address) if isinstance(address, str) else bytes(address)
    if not path:
        return None  # EINVAL; with a terminator it would be an abstract name of one NUL
    if path[:1] == b"\0":  # abstract: the length counts, no terminator
        if len(path) > _UNIX_PATH_MAX:
            return None
        return _FAMILY.pack(socket.AF_UNIX) + path
    if len(path) >= _UNIX_PATH_MAX or b"\0" in path:
        return None
    return _FAMILY.pack(socket.AF_UNIX) + path + b"\0"


def is_abstract(name: bytes) -> bool:
    """Whether a packed sockaddr of a UNIX socket is no path."""
    return name[_UNIX_PATH_AT : _UNIX_PATH_AT + 1] == b"\0"


def unpack(name: bytes) -> Any:
    """Python's form of a sockaddr that the kernel wrote; None where it wrote none."""
    if len(name) < _UNIX_PATH_AT:
        return None
    (family,) = _FAMILY.unpack_from(name)
    if family == socket.AF_INET:
        port, host = struct.unpack_from("!H4s", name, 2)
        return socket.inet_ntop(family, host), port
    if family == socket.AF_INET6:
        port, flow, host = struct.unpack_from("!HI16s", name, 2)
        (scope,) = struct.unpack_from("=I", name, 24)
        return socket.inet_ntop(family, host), port, flow, scope
    path = name[_UNIX_PATH_AT:]
    if path[:1] == b"\0":
        return path
    return os.fsdecode(path.split(b"\0", 1)[0])


_CONTROL = struct.Struct("Nii")  # struct cmsghdr: length with header, level, type


def _aligned(size: int) -> int:
    word = struct.calcsize("N")
    return (size + word - 1) // word * word


def pack_control(items: list[tuple[int, int, bytes]]) -> bytes:
    """Control messages (level, type, data) as the kernel takes them."""
    packed = bytearray()
    for level, kind, data in items:
        packed += _CONTROL.pack(_aligned(_CONTROL.size) + len(data), level, kind)
        packed += bytes(_aligned(_CONTROL.size) - _CONTROL.size) + data
        packed += bytes(_aligned(len(packed)) - len(packed))
    return bytes(packed)


def unpack_control(control: bytes) -> list[tuple[int, int, bytes]]:
    """Control messages as `socket.socket.recvmsg` returns them; the last may be cut."""
    items = []
    at = 0
    header = _aligned(_CONTROL.size)
    while at + _CONTROL.size <= len(control):
        length, level, kind = _CONTROL.unpack_from(control, at)
        if length < header:
            break
        items.append((level, kind, control[at + header : at + length]))
        at += _aligned(length)
    return items
