"""trio.socket over UNIX sockets: every type, names, and file descriptors as cargo."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.socket import SocketType

    Cargo = list[tuple[int, int, bytes]]

pytestmark = pytest.mark.differential

AF_UNIX = stdlib_socket.AF_UNIX
SOL_SOCKET = stdlib_socket.SOL_SOCKET
SCM_RIGHTS = stdlib_socket.SCM_RIGHTS
STREAM = stdlib_socket.SOCK_STREAM
DGRAM = stdlib_socket.SOCK_DGRAM
SEQPACKET = stdlib_socket.SOCK_SEQPACKET

every_type = pytest.mark.parametrize("type_", [STREAM, DGRAM, SEQPACKET])


@contextlib.contextmanager
def pair_of(type_: int) -> Iterator[tuple[SocketType, SocketType]]:
    a, b = trio.socket.socketpair(AF_UNIX, type_)
    with a, b:
        yield a, b


def rights(*fds: int) -> list[tuple[int, int, bytes]]:
    return [(SOL_SOCKET, SCM_RIGHTS, array.array("i", fds).tobytes())]


def fds_in(cargo: Cargo) -> list[int]:
    """The descriptors that arrived; now ours to close."""
    fds = array.array("i")
    for level, type_, data in cargo:
        assert (level, type_) == (SOL_SOCKET, SCM_RIGHTS)
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


@every_type
async def test_every_method(type_: int) -> None:
    with pair_of(type_) as (a, b):
        buffer = bytearray(10)
        await a.send(b"1")
        assert await b.recv(10) == b"1"
        await a.sendmsg([b"2", b"3"])
        assert await b.recv_into(buffer) == 2
        await a.send(b"4")
        data, address = await b.recvfrom(10)
        assert (data, bool(address)) == (b"4", False)
        await a.send(b"5")
        count, address = await b.recvfrom_into(buffer)
        assert (count, bool(address)) == (1, False)
        await a.send(b"6")
        data, cargo, flags, address = await b.recvmsg(10, 100)
        assert (data, cargo, flags & stdlib_socket.MSG_TRUNC, bool(address)) == (b"6", [], 0, False)
        await a.send(b"78")
        small = [bytearray(1), bytearray(5)]
        count, cargo, _, _ = await b.recvmsg_into(small)
        assert (count, cargo) == (2, [])
        assert b"".join(small) == b"78\0\0\0\0"


@every_type
async def test_every_receive_blocks_until_data_comes(type_: int) -> None:
    buffer = bytearray(10)
    with pair_of(type_) as (a, b):
        for operation in (
            lambda: b.recv(10),
            lambda: b.recv_into(buffer),
            lambda: b.recvfrom(10),
            lambda: b.recvfrom_into(buffer),
            lambda: b.recvmsg(10),
            lambda: b.recvmsg_into([buffer]),
        ):
            results: list[Any] = []

            async def receive(operation: Any = operation, results: list[Any] = results) -> None:
                results.append(await operation())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await wait_all_tasks_blocked()
                assert results == []
                await a.send(b"x")
            assert results[0] in (b"x", 1) or results[0][0] in (b"x", 1)


@pytest.mark.parametrize("type_", [DGRAM, SEQPACKET])
@pytest.mark.parametrize("size", [1, 8192, 20_000, 100_000])
async def test_messages_keep_their_borders(type_: int, size: int) -> None:
    with pair_of(type_) as (a, b):
        messages = [bytes([i]) * size for i in range(5)]

        async def send() -> None:
            for message in messages:
                assert await a.send(message) == size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert [await b.recv(200_000) for _ in messages] == messages


async def test_seqpacket_is_cut_and_ends() -> None:
    with pair_of(SEQPACKET) as (a, b):
        await a.send(b"0123456789")
        await a.send(b"next")
        assert (await b.recvmsg(4))[2] & stdlib_socket.MSG_TRUNC
        data, _, flags, _ = await b.recvmsg(10)
        assert data == b"next"
        assert flags & stdlib_socket.MSG_EOR == 0
        assert flags & stdlib_socket.MSG_TRUNC == 0
        a.close()
        assert await b.recv(10) == b""


@every_type
async def test_file_descriptors_are_passed(type_: int) -> None:
    reading, writing = os.pipe()
    with pair_of(type_) as (a, b):
        await a.sendmsg([b"x"], rights(writing, reading))
        data, cargo, flags, _ = await b.recvmsg(10, stdlib_socket.CMSG_SPACE(8))
        assert data == b"x"
        assert not flags & stdlib_socket.MSG_CTRUNC
        received = fds_in(cargo)
        assert len(received) == 2
        assert not set(received) & {reading, writing}
        os.write(received[0], b"through the copy")
        assert os.read(reading, 100) == b"through the copy"
        assert all(os.get_inheritable(fd) for fd in received)  # as in the standard library
        await a.sendmsg([b"x"], rights(writing))
        space = stdlib_socket.CMSG_SPACE(4)
        _, cargo, _, _ = await b.recvmsg(10, space, stdlib_socket.MSG_CMSG_CLOEXEC)
        received += fds_in(cargo)
        assert not os.get_inheritable(received[-1])
    for fd in [reading, writing, *received]:
        os.close(fd)


@every_type
async def test_blocked_recvmsg_receives_file_descriptors(type_: int) -> None:
    cargo: Cargo = []

    async def receive(sock: SocketType) -> None:
        buffer = bytearray(10)
        count, received, _, _ = await sock.recvmsg_into([buffer], stdlib_socket.CMSG_SPACE(4))
        assert bytes(buffer[:count]) == b"x"
        cargo.extend(received)

    with pair_of(type_) as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, b)
            await wait_all_tasks_blocked()
            await a.sendmsg([b"x"], rights(a.fileno()))
        (fd,) = fds_in(cargo)
        assert harness.open_fds()[fd] == harness.open_fds()[a.fileno()]
        os.close(fd)


@every_type
@pytest.mark.parametrize("room", [0, stdlib_socket.CMSG_SPACE(4), stdlib_socket.CMSG_LEN(4) - 1])
async def test_truncated_control_data_leaks_no_descriptor(type_: int, room: int) -> None:
    with pair_of(type_) as (a, b):
        before = len(harness.open_fds())
        await a.sendmsg([b"x"], rights(*[a.fileno()] * 3))
        data, cargo, flags, _ = await b.recvmsg(10, room)
        assert data == b"x"
        assert flags & stdlib_socket.MSG_CTRUNC
        for fd in fds_in(cargo):
            os.close(fd)
        assert len(harness.open_fds()) == before


@pytest.mark.ring_only
async def test_descriptors_that_nobody_receives_are_closed() -> None:
    """The receive has brought them when its socket is closed, and its task is told of that."""
    a, b = trio.socket.socketpair(AF_UNIX, DGRAM)
    read_end, write_end = os.pipe()
    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                harness.expect_exception,
                trio.ClosedResourceError,
                a.recvmsg,
                100,
                stdlib_socket.CMSG_SPACE(4),
            )
            await wait_all_tasks_blocked()

            def close_if_taken() -> None:
                if a.fileno() >= 0 and not select.select([a.fileno()], [], [], 0)[0]:
                    a.close()

            b._sock.sendmsg([b"x"], rights(read_end))  # type: ignore[attr-defined]
            os.close(read_end)
            with harness.before_wakes(close_if_taken):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b"x")
    os.close(write_end)


async def test_truncated_control_data_is_as_from_the_standard_library() -> None:
    for room in range(0, 60, 3):
        answers = []
        for use_trio in (False, True):
            with pair_of(STREAM) as (a, b):
                await a.sendmsg([b"x"], rights(*[a.fileno()] * 3))
                if use_trio:
                    data, cargo, flags, _ = await b.recvmsg(10, room)
                else:
                    data, cargo, flags, _ = b._sock.recvmsg(10, room)  # type: ignore[attr-defined]
                answers.append((data, [len(item[2]) for item in cargo], flags))
                for fd in fds_in(cargo):
                    os.close(fd)
        assert answers[0] == answers[1], room


async def test_send_fds_helpers_through_dup() -> None:
    with pair_of(STREAM) as (a, b):
        for round_ in range(50):
            await a.sendmsg([b"%d" % round_], rights(a.fileno(), b.fileno()))
            data, cargo, _, _ = await b.recvmsg(10, stdlib_socket.CMSG_SPACE(8))
            assert data == b"%d" % round_
            for fd in fds_in(cargo):
                os.close(fd)


async def test_credentials_of_the_sender() -> None:
    with pair_of(STREAM) as (a, b):
        b.setsockopt(SOL_SOCKET, stdlib_socket.SO_PASSCRED, 1)
        await a.send(b"x")
        _, cargo, _, _ = await b.recvmsg(10, stdlib_socket.CMSG_SPACE(12))
        ((level, type_, data),) = cargo
        assert (level, type_) == (SOL_SOCKET, stdlib_socket.SCM_CREDENTIALS)
        assert array.array("i", data).tolist() == [os.getpid(), os.getuid(), os.getgid()]


@pytest.mark.parametrize("as_type", [str, os.fsencode, lambda path: path])
async def test_listen_and_connect_by_path(tmp_path: Path, as_type: Any) -> None:
    path = as_type(tmp_path / "socket")
    with trio.socket.socket(AF_UNIX) as listener, trio.socket.socket(AF_UNIX) as client:
        await listener.bind(path)
        listener.listen()
        await client.connect(path)
        server, address = await listener.accept()
        with server:
            assert address == ""
            assert client.getpeername() == str(tmp_path / "socket")
            await client.send(b"x")
            assert await server.recv(10) == b"x"


async def test_blocked_accept_of_a_bound_client(tmp_path: Path) -> None:
    name = str(tmp_path / "client")
    accepted: list[Any] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    with trio.socket.socket(AF_UNIX) as listener, trio.socket.socket(AF_UNIX) as client:
        await listener.bind(str(tmp_path / "listener"))
        listener.listen()
        await client.bind(name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            await client.connect(str(tmp_path / "listener"))
        ((server, address),) = accepted
        with server:
            assert address == server.getpeername() == name


async def test_abstract_names() -> None:
    name = b"\0uring-trio-test-%d" % os.getpid()
    a = trio.socket.socket(AF_UNIX, DGRAM)
    b = trio.socket.socket(AF_UNIX, DGRAM)
    with a, b:
        await a.bind(name + b"-a")
        await b.bind(name + b"-b")
        await a.sendto(b"bytes", name + b"-b")
        assert await b.recvfrom(10) == (b"bytes", name + b"-a")
        await a.sendto(b"text", (name + b"-b").decode())
        assert await b.recvfrom(10) == (b"text", name + b"-a")
        await a.sendmsg([b"msg"], [], 0, name + b"-b")
        assert (await b.recvmsg(10))[3] == name + b"-a"
        await a.connect(name + b"-b")
        assert a.getpeername() == name + b"-b"


async def test_datagrams_by_path(tmp_path: Path) -> None:
    a = trio.socket.socket(AF_UNIX, DGRAM)
    b = trio.socket.socket(AF_UNIX, DGRAM)
    with a, b:
        await a.bind(tmp_path / "a")
        await b.bind(tmp_path / "b")
        await a.sendto(b"x", os.fsencode(tmp_path / "b"))
        assert await b.recvfrom(10) == (b"x", str(tmp_path / "a"))


async def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    a = trio.socket.socket(AF_UNIX, DGRAM)
    b = trio.socket.socket(AF_UNIX, DGRAM)
    with a, b:
        await a.bind(name)
        await a.sendto(b"x", name)
        assert await a.recvfrom(10) == (b"x", os.fsdecode(name))
        await b.sendto(b"y", name)
        data, address = await a.recvfrom(10)
        assert (data, bool(address)) == (b"y", False)


async def test_names_that_do_not_fit_or_do_not_exist(tmp_path: Path) -> None:
    with trio.socket.socket(AF_UNIX, DGRAM) as sock:
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            await sock.sendto(b"x", "/" + "x" * 200)
        with pytest.raises(FileNotFoundError):
            await sock.sendto(b"x", str(tmp_path / "nobody"))
    with trio.socket.socket(AF_UNIX) as sock, pytest.raises(FileNotFoundError):
        await sock.connect(str(tmp_path / "nobody"))


async def test_full_datagram_socket_blocks_the_sender() -> None:
    with pair_of(DGRAM) as (a, b):
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                a._sock.send(b"x")  # type: ignore[attr-defined]
                count += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, b"last")
            await wait_all_tasks_blocked(0.01)
            received = [await b.recv(10) for _ in range(count + 1)]
        assert received == [b"x"] * count + [b"last"]
