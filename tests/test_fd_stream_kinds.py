"""FdStream over every kind of file: streams are on the ring, and no message is cut.

A read that asks for less than the caller did loses the rest of a message. So the caller's
whole size is asked for wherever a file may have messages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket as stdlib_socket
import struct
import subprocess
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.lowlevel import FdStream
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.differential

libc = ctypes.CDLL(None, use_errno=True)
SEQPACKET, DGRAM, STREAM = (
    stdlib_socket.SOCK_SEQPACKET,
    stdlib_socket.SOCK_DGRAM,
    stdlib_socket.SOCK_STREAM,
)
PAGE = os.sysconf("SC_PAGE_SIZE")
SIZES = [1, 8191, 8192, 8193, 20_000, 32_769, 60_000, 65_536]


def pattern(size: int) -> bytes:
    return b"".join(b"%07d\n" % i for i in range(size // 8 + 1))[:size]


async def assert_idle(stream: FdStream) -> None:
    """Nothing is left over for the next receive."""
    with trio.move_on_after(0.01) as scope:
        raise AssertionError(f"left over: {await stream.receive_some()!r}")
    assert scope.cancelled_caught


def assert_on_ring(operation: str, count: int = 1) -> None:
    """So many of these, or more, went to the ring, if this is one."""
    statistics = harness.io_statistics()
    if statistics.backend == harness.RING:
        assert statistics.operations.get(operation, 0) >= count


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
@pytest.mark.parametrize("max_bytes", [65_536, None])
@pytest.mark.parametrize("type_", [SEQPACKET, DGRAM])
async def test_messages_of_a_socket(type_: int, max_bytes: int | None, waits: bool) -> None:
    a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, type_)
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await stream.receive_some(max_bytes))

    with a:
        async with FdStream(b.detach()) as stream:
            for size in SIZES * 2:
                message = pattern(size)
                if not waits:
                    a.send(message)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    if waits:
                        await wait_all_tasks_blocked()
                        a.send(message)
                assert received.pop() == message
            await assert_idle(stream)


@pytest.mark.parametrize("type_", [SEQPACKET, DGRAM])
async def test_a_message_that_the_caller_cuts(type_: int) -> None:
    """Who asks for less gets less, and the next receive begins with the next message."""
    a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, type_)
    with a:
        async with FdStream(b.detach()) as stream:
            for size in (1, 5, 9_000, 40_000):
                a.send(pattern(60_000))
                a.send(b"next")
                assert await stream.receive_some(size) == pattern(size)
                assert await stream.receive_some() == b"next"


@pytest.mark.parametrize("type_", [SEQPACKET, DGRAM])
async def test_a_message_is_sent_in_one_piece(type_: int) -> None:
    a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, type_)
    with b:
        async with FdStream(a.detach()) as stream:
            for size in SIZES:
                await stream.send_all(pattern(size))
                assert b.recv(1 << 20) == pattern(size)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.send_all(bytes(8 << 20))
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EMSGSIZE


async def test_udp_of_a_descriptor() -> None:
    with stdlib_socket.socket(type=DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        plain = stdlib_socket.socket(type=DGRAM)
        plain.connect(sock.getsockname())
        sock.connect(plain.getsockname())
        async with FdStream(plain.detach()) as stream:
            for size in (0, 1, 8193, 60_000):
                sock.send(pattern(size))
                assert await stream.receive_some() == pattern(size)


@pytest.mark.parametrize("type_", [SEQPACKET, DGRAM])
async def test_a_cancel_loses_no_message(type_: int) -> None:
    a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, type_)
    received: list[bytes] = []

    async def receive() -> None:
        with scope:
            received.append(await stream.receive_some(65_536))

    with a:
        async with FdStream(b.detach()) as stream:
            for i in range(100):
                scope = trio.CancelScope()
                message = pattern(20_000 + i)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    if i % 2:
                        await wait_all_tasks_blocked()
                    for step in ((0, 1), (1, 0))[i % 3 == 0]:
                        if step:
                            scope.cancel()
                        else:
                            a.send(message)
                if not received:
                    received.append(await stream.receive_some(65_536))
                assert received.pop() == message
                assert not received


# ---- pipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [None, 3, 100, 65_536])
async def test_a_pipe_of_packets(max_bytes: int | None) -> None:
    """Each read brings one packet, and what is not asked for of it is gone, as on stock."""
    r, w = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    async with FdStream(r) as stream:
        for size in (1, 100, PAGE - 1, PAGE):
            os.write(w, pattern(size))
            os.write(w, b"next")
            limit = size if max_bytes is None else min(size, max_bytes)
            assert await stream.receive_some(max_bytes) == pattern(limit)
            assert await stream.receive_some() == b"next"
        await assert_idle(stream)
    os.close(w)


async def test_a_pipe_whose_writer_begins_with_packets_later() -> None:
    """The writer's flag decides, at each write; the reader has none, and cannot know."""
    r, w = os.pipe2(os.O_NONBLOCK)
    async with FdStream(r) as stream:
        os.write(w, b"one")
        os.write(w, b"two")
        assert await stream.receive_some() == b"onetwo"
        fcntl.fcntl(w, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK)
        assert not fcntl.fcntl(r, fcntl.F_GETFL) & os.O_DIRECT
        for size in (PAGE, 100):
            os.write(w, pattern(size))
            os.write(w, b"two")
            assert await stream.receive_some() == pattern(size)
            assert await stream.receive_some() == b"two"
    os.close(w)


async def test_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    r = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    w = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    async with FdStream(r) as reader:
        async with FdStream(w) as writer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.send_all, pattern(50_000))
                received = b""
                while len(received) < 50_000:
                    received += await reader.receive_some()
            assert received == pattern(50_000)
            assert_on_ring("write")
        assert await reader.receive_some() == b""


async def test_streams_are_on_the_ring() -> None:
    a, b = stdlib_socket.socketpair()
    r, w = os.pipe()
    for read, write in ((a.detach(), b.detach()), (r, w)):
        async with FdStream(read) as reader, FdStream(write) as writer:
            await writer.send_all(b"x")
            assert await reader.receive_some() == b"x"
    assert_on_ring("read", 2)
    assert_on_ring("write", 2)
    assert getattr(harness.io_statistics(), "stock_calls", {}) == {}


# ---- other files ----------------------------------------------------------------------------


@pytest.mark.ring_only
async def test_what_may_have_messages_is_counted(backend: str) -> None:
    del backend
    a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, DGRAM)
    async with FdStream(a.detach()) as left, FdStream(b.detach()) as right:
        for _ in range(3):
            await left.send_all(b"x")
            assert await right.receive_some() == b"x"
    assert harness.io_statistics().stock_calls == {"not a byte stream": 6}


async def test_counters_of_an_eventfd() -> None:
    async with FdStream(libc.eventfd(0, os.O_NONBLOCK)) as stream:
        for value in (1, 7, 1 << 40):
            await stream.send_all(struct.pack("Q", value))
            assert await stream.receive_some() == struct.pack("Q", value)
        await assert_idle(stream)
        with pytest.raises(trio.BrokenResourceError):  # less than its 8 bytes
            await stream.receive_some(7)


async def test_events_of_inotify(tmp_path: Path) -> None:
    """A read that has no room for an event is EINVAL; each brings whole events only."""
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, bytes(tmp_path), 0x100)  # IN_CREATE
    async with FdStream(fd) as stream:
        names = [f"{i:04}" + "x" * 200 for i in range(300)]
        for name in names:
            (tmp_path / name).touch()
        received = b""
        while len(received) < 300 * (16 + 208):
            received += await stream.receive_some(65_536)
        assert [received[at + 16 : at + 16 + 204].decode() for at in range(0, 300 * 224, 224)] == (
            names
        )
        (tmp_path / ("y" * 200)).touch()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(100)


async def test_a_terminal_line_by_line() -> None:
    master, slave = os.openpty()
    received: list[bytes] = []
    came = trio.Event()

    async def receive(count: int) -> None:
        for _ in range(count):
            received.append(await stream.receive_some())
            came.set()

    async with FdStream(slave) as stream, FdStream(master) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, 2)
            await wait_all_tasks_blocked()
            await other.send_all(b"first\nsec")
            await came.wait()  # a kernel thread carries it over
            await wait_all_tasks_blocked(0.01)
            assert received == [b"first\n"]
            await other.send_all(b"ond\n")
        assert received == [b"first\n", b"second\n"]
        await other.send_all(b"third\n")
        assert await stream.receive_some(2) == b"th"
        assert await stream.receive_some() == b"ird\n"


async def test_a_raw_terminal_with_much_to_tell() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    payload = pattern(100_000)
    async with FdStream(slave) as stream, FdStream(master) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.send_all, payload)
            received = b""
            while len(received) < len(payload):
                received += await stream.receive_some()
        assert received == payload


async def test_packets_of_a_terminals_master() -> None:
    """In packet mode each read of the master begins with a byte that says what follows."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    tty.setraw(slave)
    async with FdStream(master) as stream:
        await stream.receive_some()  # raw mode switches flow control off: a packet
        os.write(slave, b"hello")
        assert await stream.receive_some() == b"\0hello"
        termios.tcflush(slave, termios.TCIFLUSH)
        assert await stream.receive_some() == b"\1"
    os.close(slave)


async def test_records_of_the_kernels_log() -> None:
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.read(fd, 8192)
    except OSError as exc:
        pytest.skip(f"/dev/kmsg: {exc}")
    async with FdStream(fd) as stream:
        assert b";" in await stream.receive_some(65_536)
        with pytest.raises(trio.BrokenResourceError):  # a record needs more
            await stream.receive_some(1)


TUN = """
import fcntl, os, socket, struct, subprocess, sys
import trio
sys.path.insert(0, {tests!r})
import harness

MTU = 60_000

async def main():
    fd = os.open("/dev/net/tun", os.O_RDWR)
    # IFF_TUN | IFF_NO_PI
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH14x", b"tun7", 0x1001))
    for command in ("link set tun7 mtu %d up" % MTU, "addr add 10.77.0.1/24 dev tun7"):
        subprocess.run(["ip", *command.split()], check=True)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("10.77.0.1", 7))
        async with trio.lowlevel.FdStream(fd) as stream:
            for size in (10, 8164, 8165, 30_000, 59_000):
                sock.sendto(b"x" * size, ("10.77.0.2", 7))
                while True:
                    frame = await stream.receive_some(65_536)
                    if frame[0] >> 4 == 4:
                        break
                assert len(frame) == size + 28, (size, len(frame))
                assert frame.endswith(b"x" * size)
                # The same frame in the other direction, from where it was sent to.
                # From here on it is a frame of ours.
                back = bytearray(frame)
                back[12:16], back[16:20] = frame[16:20], frame[12:16]
                back[22:24] = (7).to_bytes(2, "big")
                back[26:28] = b"\\0\\0"
                await stream.send_all(back)
                await trio.lowlevel.wait_readable(sock)
                assert sock.recv(65_536) == b"x" * size

harness.run({backend!r}, main)
print("done")
"""


def test_frames_of_a_tunnel(backend: str) -> None:
    """In a network of its own. As a user who may not make one this is skipped."""
    program = TUN.format(tests=os.path.dirname(__file__), backend=backend)
    tried = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", "open('/dev/net/tun', 'r+b', 0)"],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"no tunnel here: {tried.stderr.decode().splitlines()[-1:]}")
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


# ---- arguments ------------------------------------------------------------------------------

SIZES_OF_RECEIVES: list[Any] = [
    *(0, -1, 1, True, False, None, 1.0, "1", b"1", 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64),
    -(2**63),
]
DATA: list[tuple[str, Callable[[], Any]]] = [
    ("bytes", lambda: b"abc"),
    ("bytearray", lambda: bytearray(b"abc")),
    ("empty", lambda: b""),
    ("text", lambda: "abc"),
    ("None", lambda: None),
    ("int", lambda: 3),
    ("list", lambda: [1]),
    ("part", lambda: memoryview(b"abcdef")[2:5]),
    ("strided", lambda: memoryview(b"abcdef")[::2]),
    ("backwards", lambda: memoryview(b"abcdef")[::-1]),
    ("empty strided", lambda: memoryview(b"")[::2]),
    ("two dimensions", lambda: memoryview(bytes(6)).cast("B", (2, 3))),
    ("numbers", lambda: memoryview(b"abcdefgh").cast("I")),
    ("a released view", lambda: released_view()),
    ("a map", lambda: ctypes.create_string_buffer(b"abc")),
]


def released_view() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


async def outcome(call: Callable[[], Any]) -> Any:
    """What comes of it, or that it waits while nothing else happens."""
    value: Any = "waits"

    async def give_up() -> None:
        await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        try:
            value = await call()
        except (OSError, TypeError, ValueError, OverflowError, MemoryError, BufferError) as exc:
            value = type(exc), str(exc)
        except (trio.BrokenResourceError, trio.ClosedResourceError, NotImplementedError) as exc:
            value = type(exc), str(exc), repr(exc.__cause__)
        nursery.cancel_scope.cancel()
    return value


def compare(measure: Callable[[], Any]) -> None:
    if harness.ring_denied():
        pytest.skip("no io_uring here")
    assert harness.run(harness.RING, measure) == harness.run(harness.EPOLL, measure)


@pytest.mark.parametrize("size", SIZES_OF_RECEIVES, ids=repr)
@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_sizes_of_receives_are_taken_as_on_stock(kind: int, size: Any) -> None:
    async def measure() -> Any:
        a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, kind)
        with a:
            a.send(b"0123456789")
            async with FdStream(b.detach()) as stream:
                first = await outcome(lambda: stream.receive_some(size))
                return first, await outcome(lambda: stream.receive_some())

    compare(measure)


@pytest.mark.parametrize("end", ["open", "closed", "peer closed"])
@pytest.mark.parametrize("name", [name for name, _ in DATA])
@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_data_to_be_sent_is_taken_as_on_stock(kind: int, name: str, end: str) -> None:
    make = dict(DATA)[name]

    async def measure() -> Any:
        a, b = stdlib_socket.socketpair(stdlib_socket.AF_UNIX, kind)
        with a:
            async with FdStream(b.detach()) as stream:
                if end == "closed":
                    stream.close()
                elif end == "peer closed":
                    a.close()
                result = await outcome(lambda: stream.send_all(make()))
                with contextlib.suppress(OSError):  # nothing there, or closed
                    return result, a.recv(100, stdlib_socket.MSG_DONTWAIT)
                return result

    compare(measure)
