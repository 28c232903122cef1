"""Handlers that define some callbacks, in any mixture of ``def`` and ``async def``."""

from __future__ import annotations

from typing import Any

import gain_tools
import pytest
import trio
from gain_tools import open_client, read_exactly, read_to_end, serving, until
from marks import ON_RING

from uring_trio import gain

pytestmark = ON_RING


async def test_only_on_read() -> None:
    class Echo(gain.EventHandler):
        def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.write(conn.next(n))

    async with serving(Echo()) as server, await open_client(server) as client:
        await client.send_all(b"hello")
        assert await read_exactly(client, 5) == b"hello"
        await client.send_eof()
        assert await read_to_end(client) == b""
        await until(lambda: server.active_connections() == 0)


async def test_only_on_accept() -> None:
    """Input that nobody is told of does not stop the peer."""

    class Greeter(gain.EventHandler):
        def on_accept(self, conn: gain.Conn) -> None:
            conn.write(b"hello")

    async with serving(Greeter()) as server, await open_client(server) as client:
        with trio.fail_after(gain_tools.BOUND_S):
            await client.send_all(gain_tools.CLOGGING)
        assert await read_exactly(client, 5) == b"hello"


async def test_only_on_close() -> None:
    errors = []

    class Closer(gain.EventHandler):
        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            errors.append(err)

    async with serving(Closer()) as server:
        client = await open_client(server)
        await client.aclose()
        await until(lambda: errors)
    assert isinstance(errors[0], gain.EndOfStream)


async def test_any_object_with_callbacks_is_a_handler() -> None:
    class Plain:
        def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.write(conn.next(n))

    handler: Any = Plain()
    async with serving(handler) as server, await open_client(server) as client:
        await client.send_all(b"hello")
        assert await read_exactly(client, 5) == b"hello"


def test_what_has_no_callback_is_no_handler() -> None:
    handlers: list[Any] = [object(), None]
    for handler in handlers:
        with pytest.raises(TypeError):
            gain.Server(handler)


async def test_def_and_async_def_side_by_side() -> None:
    order = []

    class Mixed(gain.EventHandler):
        async def on_accept(self, conn: gain.Conn) -> None:
            await trio.sleep(0.01)
            order.append("on_accept")

        def on_read(self, conn: gain.Conn, n: int) -> None:
            order.append("on_read")
            conn.write(conn.next(n))

        async def on_write(self, conn: gain.Conn, n: int) -> None:
            await trio.lowlevel.checkpoint()
            order.append("on_write")
            conn.close()

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            order.append("on_close")

    async with serving(Mixed()) as server, await open_client(server) as client:
        await client.send_all(b"hello")  # while on_accept still runs
        assert await read_to_end(client) == b"hello"
        await until(lambda: len(order) == 4)
    assert order == ["on_accept", "on_read", "on_write", "on_close"]


async def test_async_callable_object_as_a_callback() -> None:
    class Read:
        async def __call__(self, conn: gain.Conn, n: int) -> None:
            await trio.lowlevel.checkpoint()
            conn.write(conn.next(n))

    class Handler(gain.EventHandler):
        on_read: Any = Read()

    async with serving(Handler()) as server, await open_client(server) as client:
        await client.send_all(b"hello")
        assert await read_exactly(client, 5) == b"hello"


async def test_an_async_def_on_accept_comes_before_everything_else() -> None:
    gate = trio.Event()

    async def accept(conn: gain.Conn) -> None:
        await gate.wait()

    recorder = gain_tools.AsyncRecorder(on_accept=accept)
    async with serving(recorder) as server, await open_client(server) as client:
        await client.send_all(b"hello")
        await client.send_eof()
        await until(lambda: recorder.conns)
        await trio.sleep(0.01)
        assert recorder.names() == ["on_accept"]
        gate.set()
        await until(lambda: recorder.counts().close == 1)
    assert recorder.names() == ["on_accept", "on_read", "on_close"]


async def test_cancelling_serve_still_calls_on_close_of_each() -> None:
    recorder = gain_tools.AsyncRecorder()
    server = gain.Server(recorder, gain.Config(workers=1))
    clients = []
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, gain_tools.LOOPBACK)
        for _ in range(5):
            clients.append(await open_client(server))
        await until(lambda: recorder.counts().accept == 5)
        await until(lambda: not recorder._inside)
        nursery.cancel_scope.cancel()
    assert recorder.errors() == [None] * 5
    gain_tools.assert_ended(server, recorder)
    for client in clients:
        with pytest.raises(trio.BrokenResourceError):  # without drain is with a reset
            await client.receive_some()
        await client.aclose()
