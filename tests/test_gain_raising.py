"""What becomes of a callback that raises: its connection ends, and the server goes on."""

from __future__ import annotations

import contextlib
import logging

import gain_tools
import pytest
import trio
from gain_tools import (
    BOUND_S,
    AsyncRecorder,
    Boom,
    Recorder,
    connect,
    connected,
    echo,
    open_client,
    read_exactly,
    read_to_end,
    receive_all,
    round_trip,
    server_in_thread,
    serving,
    until,
    wait_until,
)
from marks import ON_RING

from uring_trio import gain

pytestmark = ON_RING

both_kinds = pytest.mark.parametrize("kind", [Recorder, AsyncRecorder], ids=["def", "async def"])


def boom(*_: object) -> None:
    raise Boom


@both_kinds
@pytest.mark.parametrize("name", ["on_accept", "on_read", "on_write"])
async def test_raising_closes_that_connection_alone(
    kind: type[Recorder], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = kind(on_read=echo)
    async with serving(recorder) as server, await open_client(server) as other:
        await other.send_all(b"before")
        assert await read_exactly(other, 6) == b"before"
        await until(lambda: recorder.counts().write == 1)
        recorder.actions[name] = boom
        async with await open_client(server) as client:
            with contextlib.suppress(trio.BrokenResourceError):
                await client.send_all(b"trouble")
                await read_to_end(client)
            await until(lambda: recorder.counts().close == 1)
        (err,) = recorder.errors()
        assert isinstance(err, Boom)
        recorder.actions = {"on_read": echo}
        await other.send_all(b"after")
        assert await read_exactly(other, 5) == b"after"
    logged = [r for r in caplog.records if r.exc_info and r.exc_info[0] is Boom]
    assert len(logged) == 1
    assert logged[0].levelno == logging.ERROR
    assert logged[0].name.startswith("uring_trio.gain")


@both_kinds
async def test_raising_on_close_is_only_logged(
    kind: type[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = kind(on_close=boom)
    async with connected(recorder) as (conn, client):
        conn.close()
        assert await read_to_end(client) == b""
        await until(lambda: recorder.counts().close == 1)
    assert [r.exc_info[0] for r in caplog.records if r.exc_info] == [Boom]


@both_kinds
async def test_raising_on_start_makes_the_start_fail(kind: type[Recorder]) -> None:
    recorder = kind(on_start=boom)
    server = gain.Server(recorder, gain.Config(workers=1))
    with pytest.raises(Boom):
        await server.serve(gain_tools.LOOPBACK)
    assert not server.is_running()
    del recorder.actions["on_start"]
    async with trio.open_nursery() as nursery:  # and it can be started again
        await nursery.start(server.serve, gain_tools.LOOPBACK)
        assert server.is_running()
        server.async_shutdown()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_callback_stops_the_server(error: type, workers: int) -> None:
    def interrupt(conn: gain.Conn, n: int) -> None:
        raise error

    recorder = Recorder(on_read=interrupt)

    def serve() -> None:
        with (
            gain_tools.server_in_thread(recorder, workers=workers) as server,
            gain_tools.connect(server) as client,
        ):
            client.sendall(b"x")
            gain_tools.wait_until(lambda: not server.is_running())

    with pytest.raises(error):
        serve()
    assert recorder.counts().close == 1


def test_faults_of_callbacks_go_to_the_programs_own_logging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B19, B2: Gain writes to stdout, and a panic in a handler ends the process."""

    def fail(conn: gain.Conn, n: int) -> None:
        raise Boom("on purpose")

    handler = Recorder(on_read=fail)
    with (
        caplog.at_level(logging.WARNING, "uring_trio.gain"),
        server_in_thread(handler, workers=1) as server,
        connect(server) as one,
        connect(server) as other,
    ):
        one.sendall(b"x")
        one.settimeout(BOUND_S)
        assert receive_all(one) == b""
        handler.actions["on_read"] = echo
        round_trip(other, b"unharmed")
        wait_until(handler.errors)
        (error,) = handler.errors()
        assert isinstance(error, Boom)
    records = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[1] for record in records if record.exc_info] == [error]
    assert all(record.name.startswith("uring_trio.gain") for record in records)
