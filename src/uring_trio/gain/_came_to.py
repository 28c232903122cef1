"""Which of the machine's addresses a datagram came to, and that its answer leaves from there.

A socket that is bound to every address sends from the one that the route to the peer
prefers. A peer that has asked another one does not know that for an answer, and if its
socket is connected the kernel throws it away. So the kernel is asked to tell with each
datagram which address it came to (IP_PKTINFO, IPV6_RECVPKTINFO), and is told with the answer
to send from there. It notes that as a datagram arrives, so it is asked before the socket is
bound: of one that came earlier it says nothing, or that it came to 0.0.0.0.

For a broadcast of IPv4 it is the address of the interface that it came in on. One to a
group of IPv6 came to no address of ours, and the kernel chooses, as for `send_to`. A socket of
both families is told of a peer of IPv4 twice, and what is said in IPv4's terms counts.
"""

from __future__ import annotations

import functools
import socket
import struct
from typing import Any

from uring_trio._addresses import pack_control, unpack_control
from uring_trio.gain._address import Address

IP_PKTINFO = 8  # Python names it from 3.14 on; linux/in.h
# struct in_pktinfo: interface, our address, that of the header; linux/in.h
_INFO_OF_IPV4 = struct.Struct("=i4s4s")
# struct in6_pktinfo: address, interface; linux/ipv6.h
_INFO_OF_IPV6 = struct.Struct("=16si")
INFO_SIZE = 128  # bytes of both with their headers, 28 + 36 and padding

EVERY_ADDRESS = ("0.0.0.0", "::")
NO_IPV4 = bytes(4)
KNOWN_MAX = 256  # addresses of this machine that are remembered
MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an address of IPv4
GROUPS = 0xFF  # ff00::/8
OF_A_LINK = b"\xfe\x80"  # fe80::/10


class CameTo:
    """The address that a datagram came to.

    Attributes:
      control: the packed control messages that have an answer leave from there.
    """

    __slots__ = ("_interface", "_packed", "_port", "control")

    def __init__(self, control: bytes, packed: bytes, port: int, interface: int) -> None:
        self.control = control
        self._packed = packed
        self._port = port
        self._interface = interface

    def address(self) -> Address:
        """As the socket would have it; made when it is asked for."""
        if len(self._packed) == 4:
            return Address("udp", (socket.inet_ntop(socket.AF_INET, self._packed), self._port))
        host = socket.inet_ntop(socket.AF_INET6, self._packed)
        return Address("udp", (host, self._port, 0, self._interface))


def is_every_address(sockaddr: Any) -> bool:
    """Whether a socket that is bound to this is bound to all of them."""
    return sockaddr[0] in EVERY_ADDRESS


def ask_which(sock: socket.socket) -> None:
    """Have the kernel tell it with each datagram; before the socket is bound."""
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, True)  # of peers of IPv4, on any socket
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, True)


# Nearly all datagrams come to the same few addresses.
@functools.lru_cache(maxsize=KNOWN_MAX)
def came_to(control: bytes, port: int) -> CameTo | None:
    """Where a datagram came to, by its packed control messages.

    Returns:
      None: the kernel is to choose where its answer leaves.
    """
    found = None
    for level, kind, data in unpack_control(control):
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return _in_ipv4(data, port)
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            found = _in_ipv6(data, port)
    return found


def _in_ipv4(data: bytes, port: int) -> CameTo | None:
    _, ours, _ = _INFO_OF_IPV4.unpack(data)
    if ours == NO_IPV4:
        return None
    # No interface: the answer goes where any other packet to its peer would go.
    control = (socket.IPPROTO_IP, IP_PKTINFO, _INFO_OF_IPV4.pack(0, ours, NO_IPV4))
    return CameTo(pack_control([control]), ours, port, 0)


def _in_ipv6(data: bytes, port: int) -> CameTo | None:
    ours, interface = _INFO_OF_IPV6.unpack(data)
    if ours[0] == GROUPS or ours.startswith(MAPPED):
        return None
    if ours[0] != OF_A_LINK[0] or ours[1] & 0xC0 != OF_A_LINK[1]:
        interface = 0  # only an address of a link is none without its interface
    control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _INFO_OF_IPV6.pack(ours, interface))
    return CameTo(pack_control([control]), ours, port, interface)
