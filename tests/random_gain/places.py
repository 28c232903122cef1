"""Where a plan's server listens, and what it is made with."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import harness

from random_gain import tls
from random_gain.stranger import is_listening
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

try:  # another release may have none
    from uring_trio import RingOptions
except ImportError:
    RingOptions = None  # type: ignore[assignment, misc]

ADDRESSES = {
    "tcp4": "tcp4://127.0.0.1:0",
    "tcp6": "tcp6://[::1]:0",
    "tcp": "tcp://127.0.0.1:0",
    "every": "tcp://:0",
    "udp4": "udp4://127.0.0.1:0",
    "udp6": "udp6://[::1]:0",
    "udp": "udp://:0",
}
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
CONFIG = {field.name for field in fields(gain.Config)}
RING = ("max_sq_entries", "max_cq_events")


def make_config(options: dict[str, Any]) -> gain.Config:
    """Of the options those that this release has."""
    known = {name: value for name, value in options.items() if name in CONFIG}
    known.setdefault("workers", 1)
    if known.get("cbpf") and known.get("architecture") != "sharding":
        del known["cbpf"]
    known["tls"] = tls.SERVER if options.get("tls") else None
    tick = known.get("tick")
    known["tick"] = tick if tick else None
    if options.get("host") == "serve" and known["workers"] == 1:
        for name in RING:  # the run's own are meant: see `ring_of`
            known.pop(name, None)
    return gain.Config(**known)


def ring_of(options: dict[str, Any]) -> Any:
    """The sizes of the run's ring, if the server's worker is in it."""
    if RingOptions is None or not any(options.get(name) for name in RING):
        return None
    sq_entries = options.get("max_sq_entries") or 256
    cq_entries = max(options.get("max_cq_events") or 4096, sq_entries)
    return RingOptions(sq_entries=sq_entries, cq_entries=cq_entries)


def name_of(address: Any) -> Any:
    """An address to be looked up by, however it is written."""
    if isinstance(address, (str, bytes)):
        address = (address,)
    first, *rest = address
    if isinstance(first, bytes):
        first = first.decode(errors="surrogateescape")
    first = first.replace("\0", "@", 1).removeprefix("::ffff:")
    return (first, rest[0] if rest else None)


def again(place: gain.Address) -> str:
    """What a server listens at that is to be where one was."""
    if place.network == "unix":
        return f"unix://{place[0]}".replace("\0", "@")
    return f"{place.network}://{place}" if place[0] != "::" else f"{place.network}://:{place[1]}"


def is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as exc:
        return exc.errno not in (errno.ENOTCONN, errno.EINVAL)
    return True


def sockets_at(places: Sequence[gain.Address]) -> Iterator[socket.socket]:
    """What this process listens and receives with there, by descriptors of their own."""
    names = {name_of(place) for place in places}
    for fd, what in harness.open_fds().items():
        if not what.startswith("socket:"):
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            own = sock.family in FAMILIES and name_of(sock.getsockname()) in names
            udp = sock.type == socket.SOCK_DGRAM
            if own and (udp or is_listening(sock)) and not is_connected(sock):
                yield sock
