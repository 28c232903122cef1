"""Arguments of trio.socket's methods: each form does what the standard library does.

Stock trio hands its arguments on to the standard library's socket, so that is what
every call is compared with: the same value, or an exception of the same type and text,
and the same left in the socket for the next reader.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

MSG_DONTWAIT = stdlib_socket.MSG_DONTWAIT
MSG_PEEK = stdlib_socket.MSG_PEEK
MSG_TRUNC = stdlib_socket.MSG_TRUNC
MSG_WAITALL = stdlib_socket.MSG_WAITALL
STREAM = stdlib_socket.SOCK_STREAM
DGRAM = stdlib_socket.SOCK_DGRAM
PENDING = b"0123456789"


class Buffers:
    """Makes the arguments anew for each of the two calls, and remembers what they became."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def keep(self, buffer: Any) -> Any:
        self._made.append(buffer)
        return buffer

    def contents(self) -> list[bytes]:
        return [bytes(buffer) for buffer in self._made]


Case = tuple[str, "Callable[[Buffers], tuple[Any, ...]]"]


RECEIVES: list[Case] = [
    ("recv", lambda _: ()),
    ("recv", lambda _: (4,)),
    ("recv", lambda _: (0,)),
    ("recv", lambda _: (True,)),
    ("recv", lambda _: (100, 0)),
    ("recv", lambda _: (4, MSG_PEEK)),
    ("recv", lambda _: (4, MSG_DONTWAIT)),
    ("recv", lambda _: (100, MSG_WAITALL)),
    ("recv", lambda _: (-1,)),
    ("recv", lambda _: ("haha",)),
    ("recv", lambda _: (4.0,)),
    ("recv", lambda _: (None,)),
    ("recv", lambda _: (4, None)),
    ("recv", lambda _: (4, "x")),
    ("recv", lambda _: (4, 0, 0)),
    ("recv", lambda _: (1 << 80,)),
    ("recv", lambda _: (4, 1 << 40)),
    ("recv_into", lambda _: ()),
    ("recv_into", lambda b: (b.keep(bytearray(4)),)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), 3)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), 0)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), 20)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), 21)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), -1)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), None)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), 3, MSG_PEEK)),
    ("recv_into", lambda b: (b.keep(bytearray(20)), 3, MSG_TRUNC)),
    ("recv_into", lambda b: (b.keep(bytearray()),)),
    ("recv_into", lambda b: (memoryview(b.keep(bytearray(20)))[5:9],)),
    ("recv_into", lambda b: (b.keep(array.array("i", [0] * 5)),)),
    ("recv_into", lambda b: (b.keep(array.array("i", [0] * 5)), 2)),
    ("recv_into", lambda b: (memoryview(b.keep(bytearray(16))).cast("I"),)),
    ("recv_into", lambda b: (memoryview(b.keep(bytearray(20)))[::2],)),
    ("recv_into", lambda _: (memoryview(bytearray(4)).toreadonly(),)),
    ("recv_into", lambda _: (bytes(4),)),
    ("recv_into", lambda _: ("text",)),
    ("recv_into", lambda _: (None,)),
    ("recv_into", lambda _: (4,)),
    ("recvfrom", lambda _: (4,)),
    ("recvfrom", lambda _: (0,)),
    ("recvfrom", lambda _: (4, MSG_PEEK)),
    ("recvfrom", lambda _: (-1,)),
    ("recvfrom", lambda _: ("haha",)),
    ("recvfrom_into", lambda b: (b.keep(bytearray(4)),)),
    ("recvfrom_into", lambda b: (b.keep(bytearray(20)), 3)),
    ("recvfrom_into", lambda b: (b.keep(bytearray(20)), 3, MSG_PEEK)),
    ("recvfrom_into", lambda b: (b.keep(bytearray(20)), 21)),
    ("recvfrom_into", lambda b: (b.keep(bytearray(20)), -1)),
    ("recvfrom_into", lambda _: (bytes(4),)),
    ("recvmsg", lambda _: (4,)),
    ("recvmsg", lambda _: (0,)),
    ("recvmsg", lambda _: (100, 0)),
    ("recvmsg", lambda _: (4, 64, MSG_PEEK)),
    ("recvmsg", lambda _: (-1,)),
    ("recvmsg", lambda _: (4, -1)),
    ("recvmsg", lambda _: (4, 1 << 31)),
    ("recvmsg", lambda _: ("haha",)),
    ("recvmsg", lambda _: ()),
    ("recvmsg_into", lambda b: ([b.keep(bytearray(3)), b.keep(bytearray(4))],)),
    ("recvmsg_into", lambda b: ((b.keep(bytearray(1)) for _ in range(5)),)),
    ("recvmsg_into", lambda b: ([b.keep(bytearray(0)), b.keep(array.array("h", [0] * 3))],)),
    ("recvmsg_into", lambda _: ([],)),
    ("recvmsg_into", lambda b: ([b.keep(bytearray(3)), bytes(4)],)),
    ("recvmsg_into", lambda b: ([b.keep(bytearray(3))], -1)),
    ("recvmsg_into", lambda b: ([b.keep(bytearray(3))], 0, MSG_PEEK)),
    ("recvmsg_into", lambda _: (5,)),
    ("recvmsg_into", lambda b: (b.keep(bytearray(4)),)),
    ("recvmsg_into", lambda b: ([b.keep(bytearray(1)) for _ in range(1500)],)),
]

SENDS: list[Case] = [
    ("send", lambda _: (b"abc",)),
    ("send", lambda _: (b"",)),
    ("send", lambda _: (bytearray(b"abc"), 0)),
    ("send", lambda _: (memoryview(b"abcdef")[2:4],)),
    ("send", lambda _: (memoryview(b"abcdef")[::2],)),
    ("send", lambda _: (array.array("i", [1, 2, 3]),)),
    ("send", lambda _: (memoryview(array.array("i", [1, 2, 3])),)),
    ("send", lambda _: (b"abc", MSG_DONTWAIT)),
    ("send", lambda _: (b"abc", stdlib_socket.MSG_NOSIGNAL)),
    ("send", lambda _: (b"abc", stdlib_socket.MSG_OOB)),
    ("send", lambda _: ("text",)),
    ("send", lambda _: (None,)),
    ("send", lambda _: (5,)),
    ("send", lambda _: ()),
    ("send", lambda _: (b"abc", "x")),
    ("send", lambda _: (b"abc", 0, 0)),
    ("sendmsg", lambda _: ([b"abc"],)),
    ("sendmsg", lambda _: ([],)),
    ("sendmsg", lambda _: ([b"", b"ab", bytearray(b"c"), memoryview(b"de")],)),
    ("sendmsg", lambda _: ((bytes([i]) for i in range(5)),)),
    ("sendmsg", lambda _: (b"abc",)),
    ("sendmsg", lambda _: ([array.array("h", [1, 2]), b"z"],)),
    ("sendmsg", lambda _: ([b"x"] * 1024,)),
    ("sendmsg", lambda _: ([b"x"] * 1025,)),
    ("sendmsg", lambda _: ([b"abc"], [], MSG_DONTWAIT)),
    ("sendmsg", lambda _: ([b"abc"], (), 0, None)),
    ("sendmsg", lambda _: ([b"abc"], iter([]))),
    ("sendmsg", lambda _: ([b"abc"], [(1, 1)])),
    ("sendmsg", lambda _: ([b"abc"], [(1, 1, "text")])),
    ("sendmsg", lambda _: ([b"abc"], [(1, 999, b"")])),
    ("sendmsg", lambda _: ([b"abc"], 5)),
    ("sendmsg", lambda _: ([b"abc", "text"],)),
    ("sendmsg", lambda _: ([1, 2],)),
    ("sendmsg", lambda _: (5,)),
    ("sendmsg", lambda _: ([b"abc"], [], "x")),
]


def case_id(case: Any) -> str:
    return str(case[0]) if isinstance(case, tuple) else str(case)


@contextlib.contextmanager
def loaded_pair(type_: int) -> Iterator[tuple[SocketType, SocketType]]:
    """A pair of sockets with data waiting in both."""
    a, b = trio.socket.socketpair(stdlib_socket.AF_UNIX, type_)
    with a, b:
        for sock in (a, b):
            sock._sock.send(PENDING)  # type: ignore[attr-defined]
            sock._sock.send(b"more")  # type: ignore[attr-defined]
        yield a, b


def described(error: Exception) -> tuple[str, str]:
    """An exception, with what an own method of the same name may call itself left out."""
    text = str(error)
    if isinstance(error, TypeError) and ("positional argument" in text or "takes" in text):
        return "TypeError", "wrong number of arguments"
    return type(error).__name__, text


async def outcome_of(use_trio: bool, type_: int, case: Case) -> tuple[Any, ...]:
    """The value or the error, the buffers, and what is left at both ends."""
    name, make = case
    buffers = Buffers()
    with loaded_pair(type_) as (a, b):
        outcome: Any
        try:
            if use_trio:
                outcome = await getattr(a, name)(*make(buffers))
            else:
                outcome = getattr(a._sock, name)(*make(buffers))  # type: ignore[attr-defined]
        except (TypeError, ValueError, OSError, OverflowError, BufferError, SystemError) as exc:
            outcome = described(exc)
        rest = [harness.drain(sock._sock) for sock in (a, b)]  # type: ignore[attr-defined]
    return outcome, buffers.contents(), rest


@pytest.mark.parametrize("type_", [STREAM, DGRAM])
@pytest.mark.parametrize("case", RECEIVES + SENDS, ids=case_id)
async def test_like_the_standard_library(type_: int, case: Case) -> None:
    expected = await outcome_of(False, type_, case)
    assert await outcome_of(True, type_, case) == expected


async def test_wrong_arguments_are_checkpoints_too() -> None:
    with loaded_pair(STREAM) as (a, _):
        for operation in (
            lambda: a.recv("haha"),  # type: ignore[arg-type]
            lambda: a.recv(-1),
            lambda: a.recv_into(b"read only"),
            lambda: a.send("text"),  # type: ignore[arg-type]
            lambda: a.recv(0),
            lambda: a.send(b""),
        ):
            with assert_checkpoints(), contextlib.suppress(TypeError, ValueError, BufferError):
                await operation()


async def test_keywords_of_recv_into() -> None:
    with loaded_pair(STREAM) as (a, _):
        buffer = bytearray(8)
        assert await a.recv_into(buffer=buffer, nbytes=3) == 3
        assert await a.recv_into(buffer, flags=MSG_PEEK, nbytes=2) == 2
        assert (await a.recvfrom_into(buffer=buffer, nbytes=4, flags=0))[0] == 4
        assert buffer == b"3456\0\0\0\0"
        with pytest.raises(TypeError):
            await a.recv(bufsize=3)  # type: ignore[call-arg]


async def test_buffers_are_released_after_every_outcome() -> None:
    with loaded_pair(STREAM) as (a, b):
        buffer = bytearray(10)
        for operation in (
            lambda: a.recv_into(buffer),
            lambda: a.recv_into(buffer, 100),
            lambda: a.recvmsg_into([buffer]),
            lambda: a.send(buffer),
            lambda: a.sendmsg([buffer, buffer]),
            lambda: a.send(buffer, "x"),  # type: ignore[arg-type]
        ):
            with contextlib.suppress(TypeError, ValueError):
                await operation()
            buffer.extend(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await a.send(buffer)
        buffer.extend(b"x")
        b.close()
        with pytest.raises(BrokenPipeError):
            await a.send(buffer)
        buffer.extend(b"x")


async def test_mapped_memory_as_buffer() -> None:
    with mmap.mmap(-1, 4096) as memory, loaded_pair(STREAM) as (a, b):
        assert await a.recv_into(memory, 10) == 10
        assert memory[:10] == PENDING
        harness.drain(b._sock)  # type: ignore[attr-defined]
        assert await a.send(memory) == 4096
        assert (await b.recv(5000))[:10] == PENDING


@pytest.mark.parametrize("flag", [MSG_DONTWAIT, MSG_WAITALL, MSG_PEEK])
async def test_flags_do_not_keep_a_receive_from_waiting(flag: int) -> None:
    # MSG_WAITALL does nothing on a non-blocking socket, which is what trio's are.
    results: list[Any] = []
    a, b = trio.socket.socketpair()

    async def receive() -> None:
        results.append(await a.recv(100, flag))

    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            assert results == []
            await b.send(b"some")
        assert results == [b"some"]


async def test_dontwait_does_not_keep_a_send_from_waiting() -> None:
    a, b = trio.socket.socketpair()
    with a, b:
        harness.fill(a._sock)  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, b"y", MSG_DONTWAIT)
            await wait_all_tasks_blocked(0.01)
            assert len(nursery.child_tasks) == 1
            harness.drain(b._sock)  # type: ignore[attr-defined]
        assert (await b.recv(1 << 20)).endswith(b"y")


async def test_addresses_that_are_refused() -> None:
    with trio.socket.socket(type=DGRAM) as sock:
        for address in ("text", 5, None, ("127.0.0.1",), ("127.0.0.1", 1, 2)):
            with pytest.raises(ValueError, match="address should be a"):
                await sock.sendto(b"x", address)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="address should be a"):
                await sock.connect(address)
        with pytest.raises(OverflowError, match="port must be"):
            await sock.sendto(b"x", ("127.0.0.1", 1 << 17))
        with pytest.raises((TypeError, ValueError)):
            await sock.sendto(b"x")  # type: ignore[call-overload]
        with pytest.raises((TypeError, IndexError)):
            await sock.sendto()  # type: ignore[call-overload]
