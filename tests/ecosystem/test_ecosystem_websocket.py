"""trio-websocket: client and server, messages of all sizes."""

from __future__ import annotations

import os
from functools import partial

import trio
from ecosystem_tools import HOST, marks, need, on_ring

need("trio_websocket")

from trio_websocket import (
    ConnectionClosed,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)

pytestmark = marks()

MESSAGES = 1000
LARGEST = 2 << 20
CLIENTS = 20


async def echo(request: WebSocketRequest) -> None:
    socket = await request.accept()
    try:
        while True:
            await socket.send_message(await socket.get_message())
    except ConnectionClosed:
        pass


def message(number: int) -> str | bytes:
    """Text and bytes by turns, up to 5 kB; each differs from the others."""
    if number % 2:
        return f"{number}: ".encode() + bytes([number % 256]) * (number * 37 % 5000)
    return f"text {number}"


async def talk(url: str, count: int) -> None:
    async with open_websocket_url(url, max_message_size=LARGEST) as socket:
        for number in range(count):
            await socket.send_message(message(number))
            assert await socket.get_message() == message(number)


def test_trio_websocket_echoes_a_thousand_messages() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            serve = partial(serve_websocket, echo, HOST, 0, None, max_message_size=LARGEST)
            server = await nursery.start(serve)
            url = f"ws://{HOST}:{server.port}/"
            await talk(url, MESSAGES)
            async with trio.open_nursery() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(talk, url, MESSAGES // CLIENTS)
            async with open_websocket_url(url, max_message_size=LARGEST) as socket:
                large = os.urandom(LARGEST)
                await socket.send_message(large)
                assert await socket.get_message() == large
            nursery.cancel_scope.cancel()

    # Two thousand messages, there and back.
    on_ring(main, poll_add=CLIENTS, connect=CLIENTS, recv=4 * MESSAGES, send=4 * MESSAGES)
