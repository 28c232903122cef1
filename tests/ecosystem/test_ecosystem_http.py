"""HTTP as people run it: httpx and its pool, hypercorn's trio worker, starlette, quart-trio."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from ecosystem_tools import AUTHORITY, HOST, client_context, hypercorn, marks, need, on_ring

need("h2", "httpx", "hypercorn", "quart_trio", "starlette", "trio_websocket")

import httpcore
import httpx
from httpcore._backends.trio import TrioBackend
from quart import request as quart_request
from quart import websocket as quart_socket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from trio.testing import wait_all_tasks_blocked
from trio_websocket import open_websocket_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request

pytestmark = marks()

MIB = bytes(range(256)) * 4096
CHUNK = 16384


async def hello(_request: Request) -> Response:
    return Response(b"hello")


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def streamed(_request: Request) -> Response:
    async def chunks() -> Any:
        for start in range(0, len(MIB), CHUNK):
            yield MIB[start : start + CHUNK]

    return StreamingResponse(chunks())


def starlette_app(*more: Route) -> Starlette:
    routes = [Route("/", hello), Route("/echo", echo, methods=["POST"]), Route("/stream", streamed)]
    return Starlette(routes=[*routes, *more])


def plain_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False)


async def exercise(client: httpx.AsyncClient, version: str) -> None:
    """Requests one after the other, large bodies, and many requests at once."""
    for _ in range(50):
        response = await client.get("/")
        assert (response.content, response.http_version) == (b"hello", version)
    assert (await client.post("/echo", content=MIB)).content == MIB
    assert (await client.get("/stream")).content == MIB
    good = []

    async def get() -> None:
        good.append((await client.get("/")).content == b"hello")

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(get)
    assert good == [True] * 50


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_httpx_to_hypercorn_over_tls(tmp_path: Path, version: str) -> None:
    certificate = AUTHORITY.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "certificate.pem"), append=True)

    async def main() -> None:
        files = {"certfile": tmp_path / "certificate.pem", "keyfile": tmp_path / "key.pem"}
        async with hypercorn(starlette_app(), **files) as url:
            assert url.startswith("https://")
            client = httpx.AsyncClient(
                base_url=url, verify=client_context(), http2=version == "HTTP/2", trust_env=False
            )
            async with client:
                await exercise(client, version)

    # 100 requests and their responses, of which one flight may carry several with HTTP/2.
    on_ring(main, poll_add=1, connect=1, recv=150, send=150)


def test_httpx_to_hypercorn_in_plain_text() -> None:
    async def main() -> None:
        async with hypercorn(starlette_app()) as url, plain_client(url) as client:
            await exercise(client, "HTTP/1.1")

    on_ring(main, poll_add=2, connect=2, recv=200, send=200)


def test_starlette_sends_files_and_parts_of_files(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(MIB)

    async def file(_request: Request) -> Response:
        return FileResponse(path)

    async def main() -> None:
        app = starlette_app(Route("/file", file))
        async with hypercorn(app) as url, plain_client(url) as client:
            whole = await client.get("/file")
            assert whole.content == MIB
            assert whole.headers["content-length"] == str(len(MIB))
            part = await client.get("/file", headers={"range": "bytes=1000-500999"})
            assert (part.status_code, part.content) == (206, MIB[1000:501000])
            head = await client.head("/file")
            assert (head.status_code, head.content) == (200, b"")

    # starlette reads files in blocks of 64 KiB, which hypercorn sends one by one.
    on_ring(main, poll_add=1, connect=1, recv=20, send=24)


def test_quart_trio_serves_requests_and_websockets() -> None:
    app = QuartTrio(__name__)

    async def quart_echo() -> Any:
        return await quart_request.get_data()

    async def socket_echo() -> None:
        while True:
            await quart_socket.send(await quart_socket.receive())

    app.add_url_rule("/echo", view_func=quart_echo, methods=["POST"])
    app.add_websocket("/socket", view_func=socket_echo)

    async def main() -> None:
        async with hypercorn(app) as url:
            async with plain_client(url) as client:
                for size in (0, 1, 100_000):
                    assert (await client.post("/echo", content=MIB[:size])).content == MIB[:size]
            async with open_websocket_url(url.replace("http", "ws") + "/socket") as ws:
                for number in range(50):
                    await ws.send_message(str(number))
                    assert await ws.get_message() == str(number)

    on_ring(main, poll_add=2, connect=2, recv=100, send=100)


# A client's pool asks is_readable() whether the server has closed an idle connection.


async def answer_and_hang_up(
    listener: trio.SocketListener, hang_up: trio.Event, closed: trio.Event
) -> None:
    """Close the first connection at *hang_up*, with no word about that; answer on the next."""
    for _ in range(2):
        async with await listener.accept() as served:
            assert (await served.receive_some()).startswith(b"GET / ")
            await served.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            await hang_up.wait()
        closed.set()


def test_pool_drops_the_connection_that_the_server_has_closed() -> None:
    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        hang_up, closed = trio.Event(), trio.Event()
        url = f"http://{HOST}:{listener.socket.getsockname()[1]}/"
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(answer_and_hang_up, listener, hang_up, closed)
            async with httpcore.AsyncConnectionPool(keepalive_expiry=60) as pool:
                assert (await pool.request("GET", url)).content == b"hello"
                (connection,) = pool.connections
                assert connection.is_idle()
                assert not connection.has_expired()
                hang_up.set()
                await closed.wait()
                assert connection.has_expired()
                # On the dead connection this would fail.
                assert (await pool.request("GET", url)).content == b"hello"
                assert connection not in pool.connections

    on_ring(main, poll_add=2, connect=2, recv=4, send=4)


@contextlib.asynccontextmanager
async def pool_stream() -> AsyncIterator[tuple[Any, socket.socket]]:
    """A stream as httpcore's pool has it, and its peer, which does at once what it is told."""
    with socket.create_server((HOST, 0)) as listener:
        stream = await TrioBackend().connect_tcp(HOST, listener.getsockname()[1])
        peer, _ = listener.accept()
    with peer:
        try:
            yield stream, peer
        finally:
            await stream.aclose()


@pytest.mark.parametrize("in_flight", ["nothing", "receive", "send", "receive and send"])
def test_is_readable_is_right_while_operations_are_in_flight(backend: str, in_flight: str) -> None:
    async def main() -> None:
        received: list[bytes] = []

        async def receive() -> None:
            for _ in range(2):
                received.append(await stream.read(100))

        async def send() -> None:
            await stream.write(bytes(64 << 20))

        async with pool_stream() as (stream, peer), trio.open_nursery() as nursery:
            reading, writing = "receive" in in_flight, "send" in in_flight
            if reading:
                nursery.start_soon(receive)
            if writing:
                nursery.start_soon(send)
            await wait_all_tasks_blocked(0.01)
            if backend == harness.RING:
                expected = harness.internal_polls() + reading + writing
                assert harness.io_statistics().in_flight == expected
            assert not stream.get_extra_info("is_readable")
            peer.send(b"unasked")
            # Before the run takes a turn: not read by anybody, whatever is in flight.
            assert stream.get_extra_info("is_readable")
            await wait_all_tasks_blocked(0.01)
            assert received == [b"unasked"] * reading
            assert stream.get_extra_info("is_readable") is not reading
            if not reading:
                assert await stream.read(100) == b"unasked"
            assert not stream.get_extra_info("is_readable")
            peer.shutdown(socket.SHUT_WR)
            assert stream.get_extra_info("is_readable")
            await wait_all_tasks_blocked(0.01)
            assert received == [b"unasked", b""] * reading
            # An end is there for ever.
            assert stream.get_extra_info("is_readable")
            nursery.cancel_scope.cancel()

    harness.run(backend, main)


def test_is_readable_after_a_read_that_timed_out(backend: str) -> None:
    """A receive that was cancelled takes nothing from the connection afterwards."""

    async def main() -> None:
        async with pool_stream() as (stream, peer):
            for _ in range(20):
                with pytest.raises(httpcore.ReadTimeout):
                    await stream.read(100, timeout=0.001)
                assert not stream.get_extra_info("is_readable")
                peer.send(b"late")
                assert stream.get_extra_info("is_readable")
                await trio.lowlevel.checkpoint()
                assert stream.get_extra_info("is_readable")
                assert await stream.read(100) == b"late"

    harness.run(backend, main)
