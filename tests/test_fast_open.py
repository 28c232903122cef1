"""TCP_FASTOPEN_CONNECT: connect() is over at once, and the first send opens the connection.

So a send may be told that the connection is being made (EINPROGRESS), which means the same as
EAGAIN: wait, and try again.
"""

from __future__ import annotations

import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

TCP_FASTOPEN_CONNECT = 30  # <linux/tcp.h>
TCP_FASTOPEN_NO_COOKIE = 34
FIN_S = 5 * harness.SLOWNESS

FIRST: dict[str, tuple[Callable[[SocketType], Awaitable[Any]], bytes]] = {
    "send of nothing": (lambda sock: sock.send(b""), b""),
    "sendmsg of nothing": (lambda sock: sock.sendmsg([b""]), b""),
    "send": (lambda sock: sock.send(b"first"), b"first"),
    "sendmsg": (lambda sock: sock.sendmsg([b"fi", b"rst"]), b"first"),
    "send_all": (lambda sock: trio.SocketStream(sock).send_all(b"first"), b"first"),
    "send_all of much": (
        lambda sock: trio.SocketStream(sock).send_all(b"first" * 20_000),
        b"first" * 20_000,
    ),
}


@pytest.mark.parametrize("first", FIRST)
async def test_the_first_send_opens_the_connection(first: str) -> None:
    call, expected = FIRST[first]
    with (
        stdlib_socket.create_server(("127.0.0.1", 0)) as listener,
        trio.socket.socket() as sock,
    ):
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        await sock.connect(listener.getsockname())
        # send_all sends it all, and returns nothing.
        assert await call(sock) == (None if "send_all" in first else len(expected))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(FIN_S)
            found = bytearray()
            while len(found) < len(expected):
                found += accepted.recv(1 << 16)
            assert found == expected
            await sock.send(b"second")
            assert accepted.recv(10) == b"second"
