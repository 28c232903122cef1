"""A receive on a listening socket fails at once; nobody will ever send anything there."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio

pytestmark = pytest.mark.differential


@pytest.mark.parametrize(
    ("name", "args"), [("recv", (10,)), ("recv_into", (bytearray(10),)), ("recvmsg", (10,))]
)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_receive_on_a_listening_socket(
    family: socket.AddressFamily, name: str, args: tuple[Any, ...]
) -> None:
    with trio.socket.socket(family) as listener:
        await listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else b"\0" + os.urandom(8))
        listener.listen()
        for _ in range(2):
            with (
                pytest.raises(OSError, match=r"not connected|Invalid argument"),
                trio.fail_after(5),
            ):
                await getattr(listener, name)(*args)
