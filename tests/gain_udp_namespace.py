"""A UDP server at every address, in a namespace of the network with addresses of its own.

    python gain_udp_namespace.py CASE

It prints ``done``, or ``skipped: `` and why there can be no such namespace here.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from gain_tools import BOUND_S, Recorder, echo, server_in_thread

if TYPE_CHECKING:
    from uring_trio import gain

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
INTERFACE = "pair0"
COMMANDS = """
link set lo up
link add pair0 type veth peer name pair1
addr add 10.9.8.1/24 brd 10.9.8.255 dev pair0
addr add 10.9.8.2/24 dev pair0
addr add fd98::1/64 dev pair0 nodad
addr add fd98::2/64 dev pair0 nodad
addr add fe80::98:1/64 dev pair0 nodad
addr add fe80::98:2/64 dev pair0 nodad
link set pair0 up
link set pair1 up
"""
# Of IPv6, that have to be there: those of the machine's own addresses, and of groups.
ROUTES = (b"local fd98::2 ", b"local fe80::98:2 ", b"multicast ff00::/8 ")


def make_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if libc.unshare(kinds) != 0:
        skip(os.strerror(ctypes.get_errno()))
    for command in COMMANDS.strip().splitlines():
        try:
            ip(*command.split())
        except (OSError, subprocess.CalledProcessError) as exc:
            skip(f"ip {command}: {exc}")
    # The kernel tells of the carrier later, and makes the routes by it later still.
    deadline = time.monotonic() + BOUND_S
    while not is_up():
        if time.monotonic() > deadline:
            skip(f"{INTERFACE} does not come up")
        time.sleep(0.01)


def ip(*arguments: str) -> bytes:
    """What ip(8) says; a sanitizer that is preloaded for our C finds faults in its own."""
    without = {**os.environ, "LD_PRELOAD": ""}
    return subprocess.check_output(["ip", *arguments], stderr=subprocess.STDOUT, env=without)


def is_up() -> bool:
    routes = ip("-6", "route", "show", "table", "all", "dev", INTERFACE)
    link = ip("link", "show", INTERFACE)
    return (
        b"state UP" in link
        and b"linkdown" not in routes
        and all(route in routes for route in ROUTES)
    )


def skip(why: str) -> None:
    print(f"skipped: {why}")
    sys.exit()


def ask(bound: Any, asked: Any, expected: Any, address: str = "udp://:9898") -> gain.Conn:
    """The datagram from *bound* to *asked* is answered from *expected*."""
    handler = Recorder(on_read=echo)
    family = socket.AF_INET6 if ":" in asked[0] else socket.AF_INET
    with (
        server_in_thread(handler, address, workers=1),
        socket.socket(family, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(BOUND_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind(bound)
        sock.sendto(b"question", asked)
        answer, peer = sock.recvfrom(100)
    assert answer == b"question"
    assert peer == expected, peer
    return handler.conns[0]  # the other end of the pair hears what goes to a group, too


def main(case: str) -> None:
    make_namespace()
    scope = socket.if_nametoindex(INTERFACE)
    if case == "global":
        asked: Any = ("fd98::2", 9898, 0, 0)
        assert ask(("fd98::1", 0), asked, asked).local_addr() == asked
    elif case == "link-local":
        asked = ("fe80::98:2", 9898, 0, scope)
        conn = ask(("fe80::98:1", 0, 0, scope), asked, asked)
        assert conn.local_addr() == asked
    elif case == "broadcast":
        for address in ("udp://:9898", "udp://0.0.0.0:9898"):
            conn = ask(("10.9.8.2", 0), ("10.9.8.255", 9898), ("10.9.8.1", 9898), address)
            assert conn.local_addr() == ("10.9.8.1", 9898)
    elif case == "multicast":
        # All nodes of the link; the kernel chooses the source of the answer.
        asked = ("ff02::1", 9898, 0, scope)
        conn = ask(("fe80::98:1", 0, 0, scope), asked, ("fe80::98:1", 9898, 0, scope))
        assert conn.local_addr() == ("::", 9898, 0, 0)
    else:
        asked = ("::ffff:10.9.8.2", 9898, 0, 0)
        conn = ask(("::ffff:10.9.8.1", 0), asked, asked)
        assert conn.local_addr() == ("10.9.8.2", 9898)
        assert conn.remote_addr()[0] == "10.9.8.1"
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
