"""A server on a kernel whose multishot operations cannot be used: all is done one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import test_gain_lost_end
import trio
from gain_tools import MODES, Counts, Recorder, connected, echo, read_exactly, serving, until
from marks import ON_RING, needs_ring

from uring_trio._trio_private import current_runner
from uring_trio.gain import EndOfStream, _worker
from uring_trio.gain._capabilities import Capabilities

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_ring

NOTHING = Capabilities(False, ("a test",))
SMALLEST_BUFFER = 8192
architectures = pytest.mark.parametrize("architecture", ["reactor", "sharding"])


@pytest.fixture(autouse=True)
def one_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "capabilities", lambda: NOTHING)


def operations_of_this_ring(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is armed from now on in this run: poll and its multishot flag, or recv and 0."""
    armed: list[tuple[str, int]] = []
    ring: Any = current_runner().io_manager.ring
    real_poll, real_recv = ring.poll, ring.recv

    def recv_multishot(*_args: int) -> int:
        raise AssertionError("a multishot receive")

    def poll(fd: int, events: int, multishot: int) -> int:
        armed.append(("poll", multishot))
        return int(real_poll(fd, events, multishot))

    def recv(*args: int) -> int:
        armed.append(("recv", 0))
        return int(real_recv(*args))

    monkeypatch.setattr(ring, "recv_multishot", recv_multishot)
    monkeypatch.setattr(ring, "poll", poll)
    monkeypatch.setattr(ring, "recv", recv)
    return armed


# The plain scenarios


@architectures
@pytest.mark.parametrize("mode", MODES)
def test_requests_and_responses(architecture: str, mode: str) -> None:
    gain_tools.request_response(architecture=architecture, mode=mode, workers=2, rounds=3)


def test_more_connections_than_there_are_buffers() -> None:
    gain_tools.request_response(clients=200, workers=1, rounds=2)


@architectures
def test_ping_pong(architecture: str) -> None:
    gain_tools.ping_pong(architecture=architecture)


@architectures
@pytest.mark.parametrize("times", [1, 2])
def test_shutdown(architecture: str, times: int) -> None:
    gain_tools.shutdown_after_clients("tcp", times=times, architecture=architecture)


def test_shutdown_with_connected_clients() -> None:
    gain_tools.shutdown_with_connected_clients()


def test_shutdown_under_traffic() -> None:
    gain_tools.shutdown_under_traffic("tcp")


@pytest.mark.parametrize("with_answer", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_close_in_on_read(mode: str, with_answer: bool) -> None:
    gain_tools.close_in_on_read(mode, with_answer=with_answer)


@pytest.mark.parametrize("mode", MODES)
def test_multiple_reads(mode: str) -> None:
    gain_tools.multiple_reads(mode)


def test_connections_are_counted_until_they_close() -> None:
    gain_tools.connections_are_counted_until_they_close()


# In one run


class TestOnTheRing:
    pytestmark = ON_RING

    async def test_nothing_is_multishot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        armed = operations_of_this_ring(monkeypatch)
        async with connected(Recorder(on_read=echo)) as (_conn, client):
            for i in range(5):
                await client.send_all(b"%d" % i)
                assert await read_exactly(client, 1) == b"%d" % i
        assert armed.count(("poll", 0)) >= 2  # for one connection, and the next
        assert ("poll", 1) not in armed
        assert ("recv", 0) in armed

    @pytest.mark.parametrize(
        "size", [1, SMALLEST_BUFFER - 1, SMALLEST_BUFFER, SMALLEST_BUFFER + 1, 1 << 20, 5 << 20]
    )
    async def test_messages_of_any_size_come_back(self, size: int) -> None:
        """Through small buffers, and what is used for large messages, and back."""
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        async with (
            connected(Recorder(on_read=echo)) as (_conn, client),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.send_all, data)
            assert await read_exactly(client, size) == data
            for _ in range(40):
                await client.send_all(b"small")
                assert await read_exactly(client, 5) == b"small"
            nursery.start_soon(client.send_all, data)
            assert await read_exactly(client, size) == data

    async def test_pausing_and_resuming(self) -> None:
        recorder = Recorder(on_read=echo)
        async with connected(recorder) as (conn, client):
            for i in range(3):
                conn.pause_reading()
                await client.send_all(b"%d" % i)
                await trio.testing.wait_all_tasks_blocked(0.005)
                assert recorder.counts().read == i
                conn.resume_reading()
                assert await read_exactly(client, 1) == b"%d" % i

    async def test_a_paused_connection_is_reset(self) -> None:
        recorder = Recorder()
        async with connected(recorder) as (conn, client):
            conn.pause_reading()
            gain_tools.reset(client.socket)
            await until(lambda: recorder.counts().close == 1)
        assert isinstance(recorder.errors()[0], ConnectionResetError)

    async def test_a_silent_connection_is_reset_behind_its_data(self) -> None:
        """The watch must not cut off what the receive still finds."""
        recorder = Recorder(on_read=lambda conn, n: received.append(conn.next(n)))
        received: list[bytes] = []
        data = bytes(50_000)  # what the client has sent is all with our kernel
        async with connected(recorder) as (_conn, client):
            await client.send_all(b"first")
            await until(lambda: received == [b"first"])
            await client.send_all(data)
            gain_tools.reset(client.socket)
            await until(lambda: recorder.counts().close == 1)
        assert b"".join(received) == b"first" + data
        assert isinstance(recorder.errors()[0], ConnectionResetError)

    async def test_accepting_goes_on_after_each(self) -> None:
        recorder = Recorder()
        async with serving(recorder) as server:
            for count in range(1, 11):
                async with await gain_tools.open_client(server):
                    await until(lambda: recorder.counts().accept == count)  # noqa: B023
            await until(lambda: recorder.counts() == Counts(10, 0, 0, 10))

    @pytest.mark.parametrize("where", ["on_accept", "hold", "pause"])
    @pytest.mark.parametrize("size", [1, 50_000])
    @pytest.mark.parametrize(
        ("network", "how"), [("tcp", "reset"), ("tcp", "close"), ("unix", "close")]
    )
    async def test_an_end_behind_data(
        self, network: str, how: str, where: str, size: int, tmp_path: Path
    ) -> None:
        handler = test_gain_lost_end.Holding(where)
        first = b"" if where == "on_accept" else where.encode()
        address = gain_tools.LOOPBACK if network == "tcp" else f"unix://{tmp_path}/s"
        await test_gain_lost_end.end_of(address, handler, first, b"x" * size, how)
        expected = ConnectionResetError if how == "reset" else EndOfStream
        assert isinstance(handler.err, expected)
