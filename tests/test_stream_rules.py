"""The rules of trio's streams, one test each, on SocketStream and on FdStream.

trio's own checkers are run too; these tests name the single rules, so that a failure
says which one it was.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
import struct
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.testing
from trio.lowlevel import FdStream
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    Stream = trio.SocketStream | FdStream
    Streams = tuple[Stream, Stream]

pytestmark = pytest.mark.differential

CLOGGING = bytes(8 << 20)  # more than any of the kernel's buffers


def make_fd_streams() -> tuple[FdStream, FdStream]:
    """A pair of UNIX sockets, as nothing but file descriptors."""
    a, b = stdlib_socket.socketpair()
    return FdStream(a.detach()), FdStream(b.detach())


SOCKET_STREAMS = ("SocketStream over TCP", "SocketStream over UNIX")

# FdStream has no send_eof.
socket_streams_only = pytest.mark.parametrize("streams", SOCKET_STREAMS, indirect=True)


@pytest.fixture(params=[*SOCKET_STREAMS, "FdStream"])
async def streams(request: pytest.FixtureRequest) -> AsyncIterator[Streams]:
    pair: Streams
    if request.param == "FdStream":
        pair = make_fd_streams()
    elif request.param == "SocketStream over TCP":
        pair = await harness.stream_pair()
    else:
        a, b = trio.socket.socketpair()
        pair = trio.SocketStream(a), trio.SocketStream(b)
    yield pair
    with trio.CancelScope(shield=True):
        for stream in pair:
            await trio.aclose_forcefully(stream)


async def end_of(stream: Stream, name: str, *args: Any, ends: list[str]) -> None:
    """Call a method, and note how it ended."""
    try:
        result = await getattr(stream, name)(*args)
        ends.append("returned" if result is None else f"returned {len(result)} bytes")
    except (trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError) as exc:
        ends.append(type(exc).__name__)


async def clog(stream: Stream) -> None:
    """Send until nothing is taken any more: not for a time, which a busy machine has not."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, CLOGGING)
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def test_data_passes_both_ways(streams: Streams) -> None:
    for source, target in (streams, streams[::-1]):
        with assert_checkpoints():
            await source.send_all(b"abc")
        with assert_checkpoints():
            assert await target.receive_some(2) == b"ab"
        with assert_checkpoints():
            assert await target.receive_some() == b"c"


async def test_what_is_received_is_bytes_of_its_own(streams: Streams) -> None:
    left, right = streams
    received = []
    for i in range(10):
        await left.send_all(bytes([i]) * 1000)
        received.append(await right.receive_some())
    assert [type(chunk) for chunk in received] == [bytes] * 10
    assert [bytes(chunk) for chunk in received] == [bytes([i]) * 1000 for i in range(10)]


@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), (0, ValueError), (1.5, TypeError), ("x", TypeError)]
)
async def test_bad_sizes(streams: Streams, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await streams[0].receive_some(size)


@pytest.mark.parametrize("data", [None, "text", 5])
async def test_bad_data(streams: Streams, data: Any) -> None:
    with pytest.raises(TypeError):
        await streams[0].send_all(data)


@pytest.mark.parametrize("data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd")])
async def test_kinds_of_data(streams: Streams, data: Any) -> None:
    left, right = streams
    await left.send_all(data)
    assert await right.receive_some() == b"abcd"


async def test_empty_send_is_a_checkpoint(streams: Streams) -> None:
    left, right = streams
    with assert_checkpoints():
        await left.send_all(b"")
    with assert_checkpoints():
        await left.send_all(bytearray())
    await left.send_all(b"x")
    assert await right.receive_some() == b"x"


async def test_buffer_can_be_resized_after_send_all(streams: Streams) -> None:
    left, _ = streams
    data = bytearray(b"abc")
    await left.send_all(data)
    data.extend(b"x")
    await left.send_all(memoryview(data)[1:])
    data.extend(b"x")
    with trio.move_on_after(0.01):
        await left.send_all(data * (1 << 22))
    data.extend(b"x")


async def test_two_receivers_are_busy(streams: Streams) -> None:
    left, right = streams
    ends: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: end_of(right, "receive_some", ends=ends))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await right.receive_some(1)
        await left.send_all(b"abc")
    assert ends == ["returned 3 bytes"]


@pytest.mark.parametrize("first", ["send_all", "wait_send_all_might_not_block"])
@pytest.mark.parametrize("second", ["send_all", "wait_send_all_might_not_block"])
async def test_two_senders_are_busy(streams: Streams, first: str, second: str) -> None:
    await assert_second_is_busy(streams, first, second)


@socket_streams_only
@pytest.mark.parametrize("first", ["send_all", "wait_send_all_might_not_block"])
async def test_send_eof_is_busy_behind_a_sender(streams: Streams, first: str) -> None:
    await assert_second_is_busy(streams, first, "send_eof")


async def assert_second_is_busy(streams: Streams, first: str, second: str) -> None:
    left, _ = streams
    arguments: dict[str, tuple[Any, ...]] = {"send_all": (CLOGGING,)}
    await clog(left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(getattr(left, first), *arguments.get(first, ()))
        await wait_all_tasks_blocked(0.01)
        with pytest.raises(trio.BusyResourceError):
            await getattr(left, second)(*arguments.get(second, ()))
        nursery.cancel_scope.cancel()


async def test_receiving_and_sending_at_once_is_fine(streams: Streams) -> None:
    left, right = streams
    ends: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: end_of(left, "receive_some", ends=ends))
        await wait_all_tasks_blocked()
        await left.send_all(b"to the right")
        assert await right.receive_some() == b"to the right"
        await right.send_all(b"to the left")
    assert ends == ["returned 11 bytes"]


async def test_sending_to_a_closed_peer_breaks_and_stays_broken(streams: Streams) -> None:
    left, right = streams
    await right.aclose()
    with contextlib.suppress(trio.BrokenResourceError):
        for _ in range(100):
            await left.send_all(b"x" * 1000)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await left.send_all(b"x")
    assert isinstance(caught.value.__cause__, OSError)


async def test_own_end_closed(streams: Streams) -> None:
    left, _ = streams
    await left.aclose()
    for name, args in (
        ("receive_some", ()),
        ("receive_some", (5,)),
        ("send_all", (b"x",)),
        ("send_all", (b"",)),
        ("wait_send_all_might_not_block", ()),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await getattr(left, name)(*args)
    with assert_checkpoints():
        await left.aclose()


async def test_data_then_the_end_for_ever(streams: Streams) -> None:
    left, right = streams
    await left.send_all(b"last words")
    await left.aclose()
    assert await right.receive_some(4) == b"last"
    assert await right.receive_some() == b" words"
    for _ in range(3):
        with assert_checkpoints():
            assert await right.receive_some() == b""
    assert await right.receive_some(1 << 20) == b""


async def test_blocked_receiver_sees_the_end(streams: Streams) -> None:
    left, right = streams
    ends: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: end_of(right, "receive_some", ends=ends))
        await wait_all_tasks_blocked()
        await left.aclose()
    assert ends == ["returned 0 bytes"]


async def test_forceful_close_by_the_peer(streams: Streams) -> None:
    left, right = streams
    await right.send_all(b"unread")
    await trio.aclose_forcefully(left)
    try:
        while await right.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


async def test_cancelled_close_still_closes(streams: Streams) -> None:
    left, right = streams
    with trio.CancelScope() as scope:
        scope.cancel()
        await left.aclose()
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await left.receive_some()
    assert await right.receive_some() == b""


async def test_cancelled_before_it_starts(streams: Streams) -> None:
    left, right = streams
    await left.send_all(b"abc")
    for name, args in (
        ("receive_some", ()),
        ("send_all", (b"never sent",)),
        ("wait_send_all_might_not_block", ()),
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await getattr(right, name)(*args)
        assert scope.cancelled_caught
    assert await right.receive_some() == b"abc"
    await right.aclose()
    assert await left.receive_some() == b""


@pytest.mark.parametrize(
    ("name", "args"),
    [("receive_some", ()), ("send_all", (CLOGGING,)), ("wait_send_all_might_not_block", ())],
)
async def test_close_by_another_task(streams: Streams, name: str, args: tuple[Any, ...]) -> None:
    left, _ = streams
    ends: list[str] = []
    if name != "receive_some":
        await clog(left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: end_of(left, name, *args, ends=ends))
        await wait_all_tasks_blocked(0.01)
        assert ends == []
        await left.aclose()
    assert ends == ["ClosedResourceError"]


async def test_waiting_sender_wakes_when_the_receiver_closes(streams: Streams) -> None:
    left, right = streams
    ends: list[str] = []
    await clog(left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: end_of(left, "wait_send_all_might_not_block", ends=ends))
        await wait_all_tasks_blocked(0.01)
        await right.aclose()
    assert ends == ["returned"]  # to be told of it by the next send


async def test_blocked_send_all_breaks_when_the_receiver_closes(streams: Streams) -> None:
    left, right = streams
    ends: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: end_of(left, "send_all", CLOGGING, ends=ends))
        await wait_all_tasks_blocked(0.01)
        await right.aclose()
    assert ends == ["BrokenResourceError"]


@socket_streams_only
async def test_send_eof(streams: Streams) -> None:
    left, right = streams
    assert isinstance(left, trio.SocketStream)
    await left.send_all(b"all")
    with assert_checkpoints():
        await left.send_eof()
    with assert_checkpoints():
        await left.send_eof()
    for data in (b"x", b""):
        with pytest.raises(trio.ClosedResourceError):
            await left.send_all(data)
    assert await right.receive_some() == b"all"
    assert await right.receive_some() == b""
    await right.send_all(b"answer")
    assert await left.receive_some() == b"answer"


async def test_asynchronous_iteration(streams: Streams) -> None:
    left, right = streams
    await left.send_all(b"abc")
    await left.aclose()
    assert [bytes(chunk) async for chunk in right] == [b"abc"]


async def test_closed_behind_the_streams_back() -> None:
    # The socket under a stream is closed: its methods say Closed, not Broken.
    left, right = await harness.stream_pair()
    async with right:
        left.socket.close()
        with pytest.raises(trio.ClosedResourceError):
            await left.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await left.send_all(b"x")


async def test_errors_of_fd_streams(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    async with FdStream(reading) as source, FdStream(writing) as target:
        for coroutine in (source.send_all(b"x"), target.receive_some()):
            with pytest.raises(trio.ClosedResourceError):  # the wrong end is EBADF
                await coroutine
        await source.aclose()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await target.send_all(b"x")
        assert isinstance(caught.value.__cause__, BrokenPipeError)
    async with FdStream(os.open(tmp_path, os.O_RDONLY)) as directory:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await directory.receive_some()
        assert isinstance(caught.value.__cause__, IsADirectoryError)


async def test_listener_rules() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    ends: list[str] = []

    async def accept() -> None:
        try:
            await listener.accept()
        except trio.ClosedResourceError:
            ends.append("closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.accept()
        await listener.aclose()
    assert ends == ["closed"]
    with assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with assert_checkpoints():
        await listener.aclose()


MORE_THAN_BUFFERS_TAKE = 1 << 24


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_half_done_send_all_ends_when_another_task_notifies(kind: type) -> None:
    a, b = await harness.stream_pair()
    async with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                harness.expect_exception,
                trio.ClosedResourceError,
                a.send_all,
                kind(MORE_THAN_BUFFERS_TAKE),
            )
            await wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(a.socket)
            with trio.fail_after(5):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
        # Nobody closed it, so it still works, and a cancel is a cancel.
        with trio.move_on_after(0.05) as scope:
            await a.send_all(bytearray(MORE_THAN_BUFFERS_TAKE))
        assert scope.cancelled_caught


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_half_done_send_of_an_fd_stream_ends_when_another_task_notifies(kind: type) -> None:
    read_end, write_end = os.pipe()
    async with FdStream(read_end), FdStream(write_end) as writer, trio.open_nursery() as nursery:
        nursery.start_soon(
            harness.expect_exception,
            trio.ClosedResourceError,
            writer.send_all,
            kind(MORE_THAN_BUFFERS_TAKE),
        )
        await wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(write_end)
        with trio.fail_after(5):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()


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
        peer.socket.setsockopt(
            stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        await peer.aclose()
    return causes


async def test_reset_while_send_all_waits_is_a_reset_to_the_sender_alone() -> None:
    assert await hear_of_reset(with_reader=False) == ["ConnectionResetError"]


async def test_reset_while_send_all_waits_is_a_reset_to_one_of_those_who_are_there() -> None:
    assert "ConnectionResetError" in await hear_of_reset(with_reader=True)
