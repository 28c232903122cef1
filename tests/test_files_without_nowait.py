"""Files that cannot be told not to wait (no FMODE_NOWAIT): `FdStream` reads them after a poll.

A named pipe is one on every kernel. Before Linux 6.4 all pipes are, and sockets that are read as
files, so these are asked the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import kernel_workers
import pytest
import trio
import trio.testing
from trio.lowlevel import FdStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.differential

TIMES = 200  # more than the kernel's 128 retries
MIB = 1 << 20


class Ends:
    """The two ends of a file, the standard library's way."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing

    def streams(self) -> tuple[FdStream, FdStream]:
        """A stream for each, of descriptors of their own; the files are the same."""
        return FdStream(os.dup(self.reading)), FdStream(os.dup(self.writing))

    def close(self) -> None:
        for fd in (self.reading, self.writing):
            with contextlib.suppress(OSError):  # a test may have closed it
                os.close(fd)


def fifo(folder: Path) -> Ends:
    path = folder / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return Ends(reading, os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def pipe(_folder: Path) -> Ends:
    return Ends(*os.pipe2(os.O_NONBLOCK))


def socket_as_file(_folder: Path) -> Ends:
    a, b = stdlib_socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    return Ends(a.detach(), b.detach())


KINDS: list[Callable[[Path], Ends]] = [fifo, pipe, socket_as_file]


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    made = request.param(tmp_path)
    yield made
    made.close()


def fill(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))


def empty(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            os.read(fd, MIB)


class Receiving:
    """A task that receives once, or is closed."""

    def __init__(self, stream: FdStream) -> None:
        self._stream = stream
        self.received: list[bytes] = []
        self.error: trio.ClosedResourceError | None = None

    async def run(self) -> None:
        try:
            self.received.append(await self._stream.receive_some())
        except trio.ClosedResourceError as exc:
            self.error = exc


# ---- nothing is left to the kernel's own retries ------------------------------------------


@pytest.mark.ring_only
async def test_waiting_to_read_is_a_poll(ends: Ends) -> None:
    reader, writer = ends.streams()
    async with reader, writer, trio.open_nursery() as nursery:
        nursery.start_soon(Receiving(reader).run)
        await trio.testing.wait_all_tasks_blocked()
        assert not kernel_workers.retried()
        nursery.cancel_scope.cancel()


@pytest.mark.ring_only
async def test_waiting_to_write_is_a_poll(ends: Ends) -> None:
    reader, writer = ends.streams()
    fill(ends.writing)
    async with reader, writer, trio.open_nursery() as nursery:
        nursery.start_soon(writer.send_all, b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert not kernel_workers.retried()
        nursery.cancel_scope.cancel()


async def test_another_reader_is_faster(ends: Ends) -> None:
    reader, writer = ends.streams()
    receiving = Receiving(reader)
    async with reader, writer, trio.open_nursery() as nursery:
        nursery.start_soon(receiving.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(TIMES):
            os.write(ends.writing, b"x")
            assert os.read(ends.reading, 10) == b"x"
            await trio.lowlevel.checkpoint()
        assert not receiving.received
        os.write(ends.writing, b"last")
    assert receiving.received == [b"last"]


async def test_another_writer_is_faster(ends: Ends) -> None:
    reader, writer = ends.streams()
    fill(ends.writing)
    async with reader, writer, trio.open_nursery() as nursery:
        nursery.start_soon(writer.send_all, b"ours")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(TIMES):
            os.read(ends.reading, 4096)
            fill(ends.writing)
            await trio.lowlevel.checkpoint()
        received = bytearray()
        while not received.endswith(b"ours"):
            received += await reader.receive_some()


# ---- who shares the file has taken O_NONBLOCK away -----------------------------------------


@pytest.mark.ring_only
async def test_blocking_file_gives_what_is_there(ends: Ends) -> None:
    reader, writer = ends.streams()
    async with reader, writer:
        os.set_blocking(ends.reading, True)
        os.write(ends.writing, b"data")
        assert await reader.receive_some() == b"data"
        os.write(ends.writing, b"more")
        assert await reader.receive_some(2) == b"mo"
        assert await reader.receive_some() == b"re"


@pytest.mark.ring_only
async def test_blocking_file_does_not_block_the_loop(ends: Ends) -> None:
    reader, writer = ends.streams()
    receiving = Receiving(reader)
    async with reader, writer, trio.open_nursery() as nursery:
        os.set_blocking(ends.reading, True)
        nursery.start_soon(receiving.run)
        await trio.testing.wait_all_tasks_blocked()
        assert await harness.cpu_share_asleep(0.2, 0.25) <= 0.25
        assert not receiving.received
        os.write(ends.writing, b"late")
    assert receiving.received == [b"late"]


@pytest.mark.ring_only
async def test_blocking_file_is_written(ends: Ends) -> None:
    data = os.urandom(MIB)
    received = bytearray()
    reader, writer = ends.streams()

    async def receive() -> None:
        while len(received) < len(data):
            received.extend(await reader.receive_some())

    async with reader, writer:
        os.set_blocking(ends.writing, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.send_all, data)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(receive)
    assert received == data


# ---- what holds for every stream -----------------------------------------------------------


async def test_much_data_in_order(ends: Ends) -> None:
    data = os.urandom(2 * MIB)
    received = bytearray()
    reader, writer = ends.streams()

    async def send() -> None:
        async with writer:
            await writer.send_all(data[:MIB])
            await writer.send_all(memoryview(bytearray(data))[MIB:])

    async with reader, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(received) < len(data):
            received += await reader.receive_some(MIB)
    assert received == data


async def test_end_of_file(ends: Ends) -> None:
    reader, writer = ends.streams()
    receiving = Receiving(reader)
    async with reader, writer, trio.open_nursery() as nursery:
        nursery.start_soon(receiving.run)
        await trio.testing.wait_all_tasks_blocked()
        await writer.aclose()
        os.close(ends.writing)
    assert receiving.received == [b""]


async def test_nobody_reads_any_more(ends: Ends) -> None:
    reader, writer = ends.streams()
    fill(ends.writing)
    async with reader, writer, trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await writer.send_all(b"x")
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno in (errno.EPIPE, errno.ECONNRESET)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await reader.aclose()
        os.close(ends.reading)


async def test_closed_while_it_waits(ends: Ends) -> None:
    reader, writer = ends.streams()
    receiving = Receiving(reader)
    fill(ends.writing)
    errors: list[Exception] = []

    async def send() -> None:
        try:
            await writer.send_all(b"x")
        except trio.ClosedResourceError as exc:
            errors.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await writer.aclose()
    assert errors
    empty(ends.reading)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiving.run)
        await trio.testing.wait_all_tasks_blocked()
        await reader.aclose()
    assert receiving.error is not None
    with pytest.raises(trio.ClosedResourceError):
        await reader.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await writer.send_all(b"x")


async def test_one_task_at_a_time(ends: Ends) -> None:
    reader, writer = ends.streams()
    async with reader, writer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await reader.receive_some()
            nursery.cancel_scope.cancel()
        fill(ends.writing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.send_all, b"x")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await writer.send_all(b"x")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("warm", [False, True], ids=["first", "waited before"])
@pytest.mark.parametrize("make", [fifo, pipe], ids=["fifo", "pipe"])
async def test_the_wrong_end(make: Callable[[Path], Ends], tmp_path: Path, warm: bool) -> None:
    """A poll of it would never be over: it is refused at once, as by read(2) and write(2)."""
    ends = make(tmp_path)
    reader, writer = ends.streams()
    async with reader, writer:
        if warm:
            with trio.move_on_after(0.01):
                await reader.receive_some()
            fill(ends.writing)
            with trio.move_on_after(0.01):
                await writer.send_all(b"x")
        with trio.fail_after(5):
            with pytest.raises(trio.ClosedResourceError):
                await reader.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                await writer.receive_some()
    ends.close()


async def test_cancelled_receive_takes_nothing(ends: Ends) -> None:
    reader, writer = ends.streams()
    async with reader, writer:
        for _ in range(2):  # the attempt that finds out, and one that knows
            with trio.move_on_after(0.02) as scope:
                await reader.receive_some()
            assert scope.cancelled_caught
        await writer.send_all(b"data")
        with trio.CancelScope() as scope:
            scope.cancel()
            await reader.receive_some()
        assert scope.cancelled_caught
        assert await reader.receive_some() == b"data"


async def test_cancelled_send_all_has_sent_a_beginning(ends: Ends) -> None:
    data = os.urandom(4 * MIB)
    reader, writer = ends.streams()
    received = bytearray()

    async def cancel_once_full(scope: trio.CancelScope) -> None:
        while select.select([], [ends.writing], [], 0)[1]:
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with reader, writer, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_once_full, scope)
            await writer.send_all(data)
        assert scope.cancelled_caught
        while select.select([ends.reading], [], [], 0)[0]:
            received += await reader.receive_some()
    assert received
    assert data.startswith(received)


@pytest.mark.ring_only
async def test_it_is_counted(tmp_path: Path) -> None:
    ends = fifo(tmp_path)
    reader, writer = ends.streams()

    def counted() -> int:
        calls: dict[str, Any] = harness.io_statistics().stock_calls
        return int(calls.get("cannot be tried", 0))

    async with reader, writer:
        before = counted()
        await writer.send_all(b"data")
        assert await reader.receive_some() == b"data"
        assert counted() == before + 2
    ends.close()
