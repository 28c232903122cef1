"""A peer's reset while `send_all` waits for room is a reset to one of those who are there."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing

pytestmark = pytest.mark.differential


async def hear_of_reset(*, with_reader: bool) -> list[str]:
    """The causes of the errors of a blocked send_all, and of a receive beside it."""
    causes: list[str] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    peer = await trio.open_tcp_stream(*listener.socket.getsockname())
    stream = await listener.accept()

    async def send() -> None:
        try:
            await stream.send_all(bytes(8 << 20))  # more than both socket buffers take
        except trio.BrokenResourceError as exc:
            causes.append(type(exc.__cause__).__name__)

    async def receive() -> None:
        try:
            await stream.receive_some()
        except trio.BrokenResourceError as exc:
            causes.append(type(exc.__cause__).__name__)

    async with listener, stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        if with_reader:
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked(0.01)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await peer.aclose()
    return causes


async def test_the_sender_alone() -> None:
    assert await hear_of_reset(with_reader=False) == ["ConnectionResetError"]


async def test_the_sender_beside_a_receiver() -> None:
    assert "ConnectionResetError" in await hear_of_reset(with_reader=True)
