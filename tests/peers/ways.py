"""Every way of ours to receive and to send, by each door: one shape for all of them.

A *shape* is what stands on a file: trio's socket, stream or `FdStream`, or an object of anyio's.
The ways of a shape are functions of a size and flags; what they return has one form, whatever
form the call gives it in.
"""

from __future__ import annotations

import array
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Read = Callable[[Any, int, int], Awaitable[bytes]]
    Write = Callable[[Any, bytes, int], Awaitable[int]]

CONTROL = 1024  # bytes for what comes beside the data
MSG_ERRQUEUE, MSG_ZEROCOPY = 0x2000, 0x4000000
READ_FLAGS = {
    "": 0,
    "peek": stdlib_socket.MSG_PEEK,
    "dontwait": stdlib_socket.MSG_DONTWAIT,
    "waitall": stdlib_socket.MSG_WAITALL,
    "oob": stdlib_socket.MSG_OOB,
    "errqueue": MSG_ERRQUEUE,
}
WRITE_FLAGS = {
    "": 0,
    "dontwait": stdlib_socket.MSG_DONTWAIT,
    "waitall": stdlib_socket.MSG_WAITALL,
    "more": stdlib_socket.MSG_MORE,
    "nosignal": stdlib_socket.MSG_NOSIGNAL,
    "oob": stdlib_socket.MSG_OOB,
    "zerocopy": MSG_ZEROCOPY,
}
# They go trio's own way, which is busy while such a file is ready: never for long.
OWN_WAY = {"oob", "errqueue", "zerocopy"}


def close_descriptors(control: Iterable[tuple[int, int, bytes]]) -> None:
    for level, kind, data in control:
        if (level, kind) == (stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS):
            fds = array.array("i", data[: len(data) - len(data) % 4])
            for fd in fds:
                os.close(fd)


# ---- trio's sockets ----------------------------------------------------------------------


async def recv(sock: Any, size: int, flags: int) -> bytes:
    return bytes(await sock.recv(size, flags))


async def recv_into(sock: Any, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await sock.recv_into(buffer, 0, flags)])


async def recvfrom(sock: Any, size: int, flags: int) -> bytes:
    return bytes((await sock.recvfrom(size, flags))[0])


async def recvfrom_into(sock: Any, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: (await sock.recvfrom_into(buffer, 0, flags))[0]])


async def recvmsg(sock: Any, size: int, flags: int) -> bytes:
    return bytes((await sock.recvmsg(size, 0, flags))[0])


async def recvmsg_control(sock: Any, size: int, flags: int) -> bytes:
    data, control, _, _ = await sock.recvmsg(size, CONTROL, flags)
    close_descriptors(control)
    return bytes(data)


async def recvmsg_into(sock: Any, size: int, flags: int) -> bytes:
    buffers = [bytearray(size // 2), bytearray(size - size // 2)]
    count, control, _, _ = await sock.recvmsg_into(buffers, CONTROL, flags)
    close_descriptors(control)
    return b"".join(buffers)[:count]


async def send(sock: Any, data: bytes, flags: int) -> int:
    return int(await sock.send(data, flags))


async def send_user_memory(sock: Any, data: bytes, flags: int) -> int:
    return int(await sock.send(memoryview(bytearray(data)), flags))


async def sendmsg(sock: Any, data: bytes, flags: int) -> int:
    cut = len(data) // 3
    return int(await sock.sendmsg([data[:cut], bytearray(data[cut:])], [], flags))


async def sendmsg_descriptor(sock: Any, data: bytes, flags: int) -> int:
    """With a descriptor, which a UNIX socket takes."""
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        control = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS, array.array("i", [fd]))]
        return int(await sock.sendmsg([data], control, flags))
    finally:
        os.close(fd)


SOCKET_READS: dict[str, Read] = {
    each.__name__: each
    for each in (
        recv,
        recv_into,
        recvfrom,
        recvfrom_into,
        recvmsg,
        recvmsg_control,
        recvmsg_into,
    )
}
SOCKET_WRITES: dict[str, Write] = {
    each.__name__: each for each in (send, send_user_memory, sendmsg)
}


# ---- trio's streams, and anyio's ---------------------------------------------------------


async def receive_some(stream: Any, size: int, flags: int) -> bytes:
    return bytes(await stream.receive_some(size))


async def receive_any(stream: Any, size: int, flags: int) -> bytes:
    return bytes(await stream.receive_some())


async def send_all(stream: Any, data: bytes, flags: int) -> int:
    await stream.send_all(data)
    return len(data)


async def send_all_user_memory(stream: Any, data: bytes, flags: int) -> int:
    await stream.send_all(bytearray(data))
    return len(data)


async def receive(stream: Any, size: int, flags: int) -> bytes:
    try:
        return bytes(await stream.receive(size))
    except anyio.EndOfStream:
        return b""


async def receive_fds(stream: Any, size: int, flags: int) -> bytes:
    try:
        data, fds = await stream.receive_fds(size, 4)
    except anyio.EndOfStream:
        return b""
    for fd in fds:
        os.close(fd)
    return bytes(data)


async def anyio_send(stream: Any, data: bytes, flags: int) -> int:
    await stream.send(data)
    return len(data)


async def send_fds(stream: Any, data: bytes, flags: int) -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        await stream.send_fds(data, [fd])
    finally:
        os.close(fd)
    return len(data)


TRIO_STREAM_READS: dict[str, Read] = {
    "receive_some": receive_some,
    "receive_any": receive_any,
}
TRIO_STREAM_WRITES: dict[str, Write] = {
    "send_all": send_all,
    "send_all_user_memory": send_all_user_memory,
}
# All that a message may be sent or received by; what has no address takes none.
PACKET_MAX = 70_000


async def receive_packet(sock: Any, size: int, flags: int) -> bytes:
    received = await sock.receive()
    return bytes(received[0] if isinstance(received, tuple) else received)


# ---- shapes ------------------------------------------------------------------------------


class Shape:
    """One of our objects: how to read, write, wait for and close it."""

    def __init__(
        self,
        thing: Any,
        *,
        reads: dict[str, tuple[Any, Read]],
        writes: dict[str, tuple[Any, Write]],
        fileno: Callable[[], int],
        closes: dict[str, Callable[[], Any]],
        raw: Any = None,
    ) -> None:
        self.thing = thing
        self.reads = reads
        self.writes = writes
        self.closes = closes
        self.raw = raw
        self._fileno = fileno

    @property
    def exact(self) -> bool:
        """Whether a send tells how much of it was sent."""
        return not any("all" in name or name.startswith("anyio") for name in self.writes)

    def fileno(self) -> int:
        """-1 after its end."""
        try:
            return self._fileno()
        except (OSError, ValueError, anyio.ClosedResourceError, trio.ClosedResourceError):
            return -1


def leave(sock: Any) -> None:
    with sock:
        pass


def take_apart(sock: Any) -> None:
    if (fd := sock.detach()) >= 0:
        trio.lowlevel.notify_closing(fd)  # waits for readiness are the file's
        os.close(fd)


def of_socket(sock: stdlib_socket.socket, *, unix: bool) -> Shape:
    """trio's socket itself."""
    ours = trio.socket.from_stdlib_socket(sock)
    writes = dict(SOCKET_WRITES)
    if unix:
        writes["sendmsg_descriptor"] = sendmsg_descriptor
    return Shape(
        ours,
        reads={name: (ours, each) for name, each in SOCKET_READS.items()},
        writes={name: (ours, each) for name, each in writes.items()},
        fileno=ours.fileno,
        closes={
            "close": ours.close,
            "leave": lambda: leave(ours),
            "detach": lambda: take_apart(ours),
        },
        raw=ours,
    )


def of_stream(sock: stdlib_socket.socket) -> Shape:
    """A SocketStream, read as a stream or as a socket."""
    ours = trio.socket.from_stdlib_socket(sock)
    stream = trio.SocketStream(ours)
    return Shape(
        stream,
        reads={
            **{name: (stream, each) for name, each in TRIO_STREAM_READS.items()},
            **{name: (ours, each) for name, each in SOCKET_READS.items()},
        },
        writes={name: (stream, each) for name, each in TRIO_STREAM_WRITES.items()},
        fileno=ours.fileno,
        closes={"aclose": stream.aclose, "close": ours.close},
        raw=ours,
    )


def of_file(fd: int) -> Shape:
    """An FdStream."""
    stream = trio.lowlevel.FdStream(fd)
    return Shape(
        stream,
        reads={name: (stream, each) for name, each in TRIO_STREAM_READS.items()},
        writes={name: (stream, each) for name, each in TRIO_STREAM_WRITES.items()},
        fileno=stream.fileno,
        closes={"aclose": stream.aclose},
    )


async def of_anyio(sock: stdlib_socket.socket) -> Shape:
    """anyio's stream."""
    unix = sock.family == stdlib_socket.AF_UNIX
    kind: Any = anyio.abc.UNIXSocketStream if unix else anyio.abc.SocketStream
    stream = await kind.from_socket(sock)
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    reads: dict[str, tuple[Any, Read]] = {"receive": (stream, receive)}
    writes: dict[str, tuple[Any, Write]] = {"anyio_send": (stream, anyio_send)}
    if unix:
        reads["receive_fds"] = (stream, receive_fds)
        writes["anyio_send_fds"] = (stream, send_fds)
    return Shape(
        stream,
        reads=reads,
        writes=writes,
        fileno=raw.fileno,
        closes={"aclose": stream.aclose},
        raw=raw,
    )


async def of_anyio_packets(sock: stdlib_socket.socket, kind: Any, targets: list[Any]) -> Shape:
    """anyio's UDP and UNIX datagram sockets, connected (*targets* is empty) or not."""
    packets = await kind.from_socket(sock)
    raw = packets.extra(anyio.abc.SocketAttribute.raw_socket)

    async def send_packet(_: Any, data: bytes, flags: int) -> int:
        await packets.send(data)
        return len(data)

    def sender_to(target: Any) -> Write:
        async def send_packet_to(_: Any, data: bytes, flags: int) -> int:
            await packets.send((data, target))
            return len(data)

        return send_packet_to

    writes: dict[str, tuple[Any, Write]] = {"anyio_send": (packets, send_packet)}
    if targets:
        writes = {
            f"anyio_send_{number}": (packets, sender_to(target))
            for number, target in enumerate(targets)
        }
    return Shape(
        packets,
        reads={"receive_packet": (packets, receive_packet)},
        writes=writes,
        fileno=raw.fileno,
        closes={"aclose": packets.aclose},
        raw=raw,
    )


def to_targets(shape: Shape, targets: list[Any]) -> Shape:
    """trio's socket that is not connected: each send has an address."""
    sock = shape.thing

    def sendto(target: Any) -> Write:
        async def call(_: Any, data: bytes, flags: int) -> int:
            return int(await sock.sendto(data, flags, target))

        return call

    def sendmsg_to(target: Any) -> Write:
        async def call(_: Any, data: bytes, flags: int) -> int:
            return int(await sock.sendmsg([data[:5], data[5:]], [], flags, target))

        return call

    shape.writes.clear()
    for number, target in enumerate(targets):
        shape.writes[f"sendto_{number}"] = (sock, sendto(target))
        shape.writes[f"sendmsg_{number}"] = (sock, sendmsg_to(target))
    return shape


def takes_flags(name: str) -> bool:
    """Of a call, by its name."""
    kind = name.partition("_")[0]
    return name in SOCKET_READS or name in SOCKET_WRITES or kind in ("sendto", "sendmsg")
