"""trio-asyncio drives asyncio's libraries on the ring: aiohttp, streams, a subprocess.

It emulates asyncio's loop by ``wait_readable`` and ``wait_writable``, so what the ring does
here is to poll, exactly; asyncio's transports move the bytes themselves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ecosystem_tools import HOST, marks, need, on_ring

need("aiohttp", "trio_asyncio")

import aiohttp
import trio_asyncio
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = marks()

MIB = bytes(1 << 20)
CLIENTS = 20
LINES = 50


def run_asyncio(async_fn: Callable[[], Awaitable[None]], **at_least: int) -> None:
    async def main() -> None:
        async with trio_asyncio.open_loop():
            await trio_asyncio.aio_as_trio(async_fn)()

    on_ring(main, **at_least)


def test_aiohttp_server_and_client() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def chat(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def main() -> None:
        app = web.Application(client_max_size=2 * len(MIB))
        app.add_routes([web.post("/echo", echo), web.get("/chat", chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        ((_, port),) = runner.addresses
        async with aiohttp.ClientSession(f"http://{HOST}:{port}") as session:
            for size in (0, 1, 100_000, len(MIB)):
                async with session.post("/echo", data=MIB[:size]) as response:
                    assert await response.read() == MIB[:size]
            async with session.ws_connect("/chat") as socket:
                for number in range(LINES):
                    await socket.send_str(str(number))
                    assert (await socket.receive_str()) == str(number)
        await runner.cleanup()

    run_asyncio(main, poll_add=2 * LINES)


def test_asyncio_streams_and_a_subprocess() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def talk(port: int, client: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for number in range(LINES):
            line = f"{client}-{number}".encode() + b"x" * (number * 100) + b"\n"
            writer.write(line)
            await writer.drain()
            assert await reader.readline() == line
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(echo, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(talk(port, client) for client in range(CLIENTS)))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
        output, _ = await process.communicate(MIB)
        assert (output, process.returncode) == (MIB, 0)
        server.close()
        await server.wait_closed()

    run_asyncio(main, poll_add=2 * CLIENTS)
