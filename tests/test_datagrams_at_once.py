"""Datagrams that are sent and received at once, by a plain call: what an operation has, too.

A schedule point for each call, nothing for who is cancelled, a place in the line, and every error
once. What a plain call cannot do is an operation, as it is with the fast ways off.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import harness
import kernel_table
import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from uring_trio import _beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from trio.socket import SocketType

    Receive = Callable[[SocketType, int, int], Awaitable[bytes]]
    Send = Callable[[SocketType, Any, Any], Awaitable[int]]

pytestmark = pytest.mark.differential

DGRAM, SEQPACKET = stdlib_socket.SOCK_DGRAM, stdlib_socket.SOCK_SEQPACKET
MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC = (
    stdlib_socket.MSG_DONTWAIT,
    stdlib_socket.MSG_PEEK,
    stdlib_socket.MSG_TRUNC,
)

only_on_the_ring = pytest.mark.ring_only
by_plain_calls = pytest.mark.skipif(not harness.FAST_WAYS, reason="they are a fast way")


async def recv(sock: SocketType, size: int, flags: int = 0) -> bytes:
    return await sock.recv(size, flags)


async def recv_into(sock: SocketType, size: int, flags: int = 0) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await sock.recv_into(buffer, size, flags)])


async def recvfrom(sock: SocketType, size: int, flags: int = 0) -> bytes:
    return (await sock.recvfrom(size, flags))[0]


async def recvfrom_into(sock: SocketType, size: int, flags: int = 0) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: (await sock.recvfrom_into(buffer, size, flags))[0]])


async def recvmsg(sock: SocketType, size: int, flags: int = 0) -> bytes:
    return (await sock.recvmsg(size, 0, flags))[0]


async def recvmsg_into(sock: SocketType, size: int, flags: int = 0) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: (await sock.recvmsg_into([buffer], 0, flags))[0]])


async def send(sock: SocketType, data: Any, _address: Any) -> int:
    return await sock.send(data)


async def sendto(sock: SocketType, data: Any, address: Any) -> int:
    return await sock.sendto(data, address)


async def sendmsg(sock: SocketType, data: Any, address: Any) -> int:
    return await sock.sendmsg([data], [], 0, address)


RECEIVES = {
    "recv": recv,
    "recv_into": recv_into,
    "recvfrom": recvfrom,
    "recvfrom_into": recvfrom_into,
    "recvmsg": recvmsg,
    "recvmsg_into": recvmsg_into,
}
OPCODES = {name: "recv" if name in ("recv", "recv_into") else "recvmsg" for name in RECEIVES}
SENDS = {"send": send, "sendto": sendto, "sendmsg": sendmsg}

each_receive = pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
each_send = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)


@contextlib.contextmanager
def udp_pair() -> Iterator[tuple[SocketType, SocketType]]:
    """Two that are connected to each other."""
    ends = [stdlib_socket.socket(type=DGRAM) for _ in range(2)]
    for end in ends:
        end.bind(("127.0.0.1", 0))
    ends[0].connect(ends[1].getsockname())
    ends[1].connect(ends[0].getsockname())
    a, b = map(trio.socket.from_stdlib_socket, ends)
    with a, b:
        yield a, b


@contextlib.contextmanager
def seqpacket_pair() -> Iterator[tuple[SocketType, SocketType]]:
    a, b = trio.socket.socketpair(stdlib_socket.AF_UNIX, SEQPACKET)
    with a, b:
        yield a, b


def made() -> tuple[dict[str, int], dict[str, int]]:
    """Operations, without those that wait, and plain calls."""
    statistics = harness.io_statistics()
    operations = {k: n for k, n in statistics.operations.items() if k != "poll_add"}
    return operations, statistics.plain_calls


# ---- that they are --------------------------------------------------------------------------


@only_on_the_ring
@by_plain_calls
@pytest.mark.parametrize("pair", [udp_pair, seqpacket_pair])
@pytest.mark.parametrize("name", RECEIVES)
async def test_what_is_there_is_no_operation(name: str, pair: Any) -> None:
    with pair() as (a, b):
        await a.send(b"there")
        assert await RECEIVES[name](b, 10, 0) == b"there"
        assert made() == ({}, {"send": 1, OPCODES[name]: 1})


@only_on_the_ring
@by_plain_calls
async def test_sends_to_an_address_are_counted_as_messages() -> None:
    with udp_pair() as (a, b):
        await a.sendto(b"1", b.getsockname())
        await a.sendmsg([b"2", b"3"])
        assert [await b.recv(10), await b.recv(10)] == [b"1", b"23"]
        assert made() == ({}, {"sendmsg": 2, "recv": 2})


@only_on_the_ring
@by_plain_calls
@pytest.mark.parametrize("name", ["recv", "recvfrom"])
async def test_who_waits_has_a_poll_and_then_a_plain_call(name: str) -> None:
    with udp_pair() as (a, b):
        polls = harness.io_statistics().operations["poll_add"]
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await RECEIVES[name](b, 10, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await a.send(b"late")
        assert received == [b"late"]
        assert made() == ({}, {"send": 1, OPCODES[name]: 1})
        assert harness.io_statistics().operations["poll_add"] == polls + 1


@only_on_the_ring
@by_plain_calls
async def test_an_accept_and_a_connect_are_counted_too(tmp_path: Any) -> None:
    with trio.socket.socket(stdlib_socket.AF_UNIX) as listener:
        await listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with trio.socket.socket(stdlib_socket.AF_UNIX) as client:
            await client.connect(str(tmp_path / "socket"))
            accepted, _ = await listener.accept()
            accepted.close()
        assert made() == ({}, {"accept": 1, "connect": 1})

        async def accept() -> None:
            (await listener.accept())[0].close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            with trio.socket.socket(stdlib_socket.AF_UNIX) as client:
                await client.connect(str(tmp_path / "socket"))
        assert made() == ({}, {"accept": 2, "connect": 2})


# ---- checkpoints and cancellation -----------------------------------------------------------


@each_receive
async def test_a_receive_is_one_checkpoint(receive: Receive) -> None:
    with udp_pair() as (a, b):
        await a.send(b"x")
        before = trio.lowlevel.current_task()._schedule_points
        with assert_checkpoints():
            assert await receive(b, 10, 0) == b"x"
        after = trio.lowlevel.current_task()._schedule_points
        assert after - before == 1


@each_send
async def test_a_send_is_one_checkpoint(send: Send) -> None:
    with udp_pair() as (a, b):
        before = trio.lowlevel.current_task()._schedule_points
        with assert_checkpoints():
            assert await send(a, b"x", b.getsockname()) == 1
        after = trio.lowlevel.current_task()._schedule_points
        assert after - before == 1
        assert await b.recv(10) == b"x"


@each_receive
async def test_who_is_cancelled_takes_nothing(receive: Receive) -> None:
    with udp_pair() as (a, b):
        await a.send(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive(b, 10, 0)
        assert scope.cancelled_caught
        assert await b.recv(10) == b"x"


@each_send
async def test_who_is_cancelled_sends_nothing(send: Send) -> None:
    with udp_pair() as (a, b):
        with trio.CancelScope() as scope:
            scope.cancel()
            await send(a, b"x", b.getsockname())
        assert scope.cancelled_caught
        await a.send(b"next")
        assert await b.recv(10) == b"next"


@each_receive
async def test_a_cancel_of_who_waits_leaves_what_comes(receive: Receive) -> None:
    with udp_pair() as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, b, 10, 0)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await a.send(b"x")
        assert await b.recv(10) == b"x"


@each_send
async def test_memory_is_let_go_whatever_happens(send: Send) -> None:
    data, large = bytearray(b"x"), bytearray(65_508)
    with udp_pair() as (a, b):
        with trio.CancelScope() as scope:
            scope.cancel()
            await send(a, data, b.getsockname())
        assert await send(a, data, b.getsockname()) == 1
        with pytest.raises(OSError, match="Message too long"):
            await send(a, large, b.getsockname())
    data.clear()  # BufferError: it is pinned
    large.clear()


@pytest.mark.parametrize("receive", ["recv_into", "recvfrom_into", "recvmsg_into"])
async def test_room_is_let_go_whatever_happens(receive: str) -> None:
    buffer = bytearray(10)
    argument: Any = [buffer] if receive == "recvmsg_into" else buffer
    with udp_pair() as (a, b):
        await a.send(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await getattr(b, receive)(argument)
            except trio.Cancelled:  # whose traceback has all that the call had
                buffer.append(0)  # BufferError: it is pinned
                del buffer[10]
                raise
        await getattr(b, receive)(argument)
        assert buffer[:1] == b"x"
        b.close()
        await a.send(b"nobody there")
        with pytest.raises(ConnectionRefusedError):
            await getattr(a, receive)(argument)
    buffer.clear()  # BufferError: it is pinned


@each_receive
async def test_an_error_at_once_is_a_checkpoint_and_is_told_once(receive: Receive) -> None:
    with udp_pair() as (a, b):
        b.close()
        await a.send(b"nobody there")
        with assert_checkpoints(), pytest.raises(ConnectionRefusedError) as caught:
            await receive(a, 10, 0)
        assert caught.value.args == (errno.ECONNREFUSED, "Connection refused")
        assert await a.send(b"again") == 5  # not an error: it was told
        with pytest.raises(ConnectionRefusedError):
            await a.send(b"x")


async def test_an_error_of_a_send_is_told_once() -> None:
    with udp_pair() as (a, b):
        b.close()
        await a.send(b"nobody there")
        with assert_checkpoints(), pytest.raises(ConnectionRefusedError):
            await a.send(b"x")
        assert await a.send(b"x") == 1


# ---- flags, sizes, addresses ----------------------------------------------------------------


@each_receive
@pytest.mark.parametrize("flags", [0, MSG_DONTWAIT])
async def test_dontwait_waits_as_ever(receive: Receive, flags: int) -> None:
    with udp_pair() as (a, b):
        received: list[bytes] = []

        async def wait() -> None:
            received.append(await receive(b, 10, flags))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            assert await a.send(b"late", MSG_DONTWAIT) == 4
        assert received == [b"late"]


@each_receive
async def test_a_look_takes_nothing(receive: Receive) -> None:
    with udp_pair() as (a, b):
        await a.send(b"x")
        assert await receive(b, 10, MSG_PEEK) == b"x"
        assert await receive(b, 10, 0) == b"x"


@each_receive
async def test_empty_datagrams_are_datagrams(receive: Receive) -> None:
    with udp_pair() as (a, b):
        assert await a.send(b"") == 0
        await a.send(b"x")
        assert await receive(b, 10, 0) == b""
        assert await receive(b, 10, 0) == b"x"


@pytest.mark.parametrize("receive", [recv, recvfrom])
@pytest.mark.parametrize("size", [_beside.ROOM_SIZE - 1, _beside.ROOM_SIZE, 100_000])
async def test_a_datagram_of_any_size(receive: Receive, size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    with seqpacket_pair() as (a, b):
        a.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 200_000)
        for room in (size, size + 1):
            assert await a.send(payload) == size
            assert await receive(b, room, 0) == payload
        assert await a.send(payload) == size
        assert await receive(b, size - 1, 0) == payload[:-1]


@pytest.mark.parametrize("receive", [recv, recvfrom])
async def test_a_length_that_did_not_fit(receive: Receive) -> None:
    with udp_pair() as (a, b):
        for waits in (False, True):
            if not waits:
                await a.send(b"0123456789")
                data = await receive(b, 4, MSG_TRUNC)
            else:
                found: list[bytes] = []

                async def wait(found: list[bytes] = found) -> None:
                    found.append(await receive(b, 4, MSG_TRUNC))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await wait_all_tasks_blocked()
                    await a.send(b"0123456789")
                (data,) = found
            # Of the standard library the rest is whatever its memory holds.
            assert (data[:4], len(data)) == (b"0123", 10)


@each_receive
async def test_the_end_of_a_seqpacket_stream(receive: Receive) -> None:
    with seqpacket_pair() as (a, b):
        await a.send(b"last")
        a.close()
        assert await receive(b, 10, 0) == b"last"
        assert await receive(b, 10, 0) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
@pytest.mark.parametrize("send", [sendto, sendmsg])
async def test_hosts_that_are_resolved_and_that_need_not_be(send: Send, host: str) -> None:
    with await bound() as a, await bound() as b:
        assert await send(a, b"x", (host, b.getsockname()[1])) == 1
        assert await b.recvfrom(10) == (b"x", a.getsockname())


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (["127.0.0.1", 9], ValueError),
        (("127.0.0.1",), ValueError),
        (("127.0.0.1", 9, 0), ValueError),
        (("127.0.0.1", 1 << 16), OverflowError),
        (("127.0.0.1", -1), OverflowError),
        (("127.0.0.1", 9.0), OSError),
        ((b"127.0.0.1", 9.0), OSError),
        (("no host", 9), OSError),
    ],
)
@pytest.mark.parametrize("send", [sendto, sendmsg])
async def test_what_is_no_address(send: Send, address: Any, error: type[Exception]) -> None:
    with await bound() as a, pytest.raises(error):
        await send(a, b"x", address)


async def bound() -> SocketType:
    sock = trio.socket.socket(type=DGRAM)
    await sock.bind(("127.0.0.1", 0))
    return sock


# ---- beside others --------------------------------------------------------------------------


@only_on_the_ring
async def test_who_stands_in_the_line_is_not_overtaken(tmp_path: Any) -> None:
    path = str(tmp_path / "receiver")
    with stdlib_socket.socket(stdlib_socket.AF_UNIX, DGRAM) as receiver:
        receiver.bind(path)
        receiver.setblocking(False)
        with trio.socket.socket(stdlib_socket.AF_UNIX, DGRAM) as sender:
            await sender.connect(path)
            count = 0
            with trio.move_on_after(0.01):
                while True:
                    await sender.send(b"full")
                    count += 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send, b"first")
                await wait_all_tasks_blocked()
                receiver.recv(10)
                # There is room now, and it is the other's.
                with assert_no_checkpoints(), pytest.raises(trio.BusyResourceError):
                    await sender.send(b"second")
            for _ in range(count - 1):
                assert receiver.recv(10) == b"full"
            assert receiver.recv(10) == b"first"
            with pytest.raises(BlockingIOError):
                receiver.recv(10)


@each_receive
async def test_two_that_wait_are_busy(receive: Receive) -> None:
    with udp_pair() as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, b, 10, 0)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await receive(b, 10, 0)
            await a.send(b"x")


@each_receive
async def test_closed_while_it_waits(receive: Receive) -> None:
    with udp_pair() as (_, b):
        errors: list[BaseException] = []

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError) as caught:
                await receive(b, 10, 0)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            b.close()
        assert len(errors) == 1
        with pytest.raises(OSError, match="Bad file") as caught:
            await receive(b, 10, 0)
        assert caught.value.errno == errno.EBADF


@only_on_the_ring
@each_receive
async def test_a_socket_that_somebody_has_set_to_block(receive: Receive) -> None:
    with udp_pair() as (a, b):
        os.set_blocking(b.fileno(), True)
        received: list[bytes] = []

        async def wait() -> None:
            received.append(await receive(b, 10, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await a.send(b"late")
        assert received == [b"late"]


@contextlib.contextmanager
def first_in_vain(errors: Iterable[int], *names: str) -> Iterator[None]:
    """The first of these system calls fail like this, and no others."""
    answers = [-error for error in errors]

    def call(real: kernel_table.Call, *arguments: Any) -> int:
        return answers.pop(0) if answers else int(real(*arguments))

    with kernel_table.calls(**dict.fromkeys(names, call)):
        yield
    assert answers == []


@only_on_the_ring
@by_plain_calls
@pytest.mark.parametrize("name", ["recv", "recvfrom"])
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
async def test_another_process_was_faster(name: str, error: int) -> None:
    """The first attempt finds nothing, and so does the one after the poll."""
    with udp_pair() as (a, b), first_in_vain([errno.EAGAIN, error], "recvfrom"):
        await a.send(b"x")
        assert await RECEIVES[name](b, 10, 0) == b"x"
    operations, plain_calls = made()
    by_ladder = error == errno.EAGAIN
    assert operations == ({"recvmsg": 1} if by_ladder else {})
    assert plain_calls == ({"send": 1} if by_ladder else {"send": 1, OPCODES[name]: 1})


@only_on_the_ring
@by_plain_calls
@each_receive
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
async def test_an_attempt_in_vain_is_an_operation(receive: Receive, error: int) -> None:
    with udp_pair() as (a, b), first_in_vain([error], "recvfrom", "recvmsg"):
        await a.send(b"x")
        assert await receive(b, 10, 0) == b"x"


@only_on_the_ring
@by_plain_calls
@pytest.mark.parametrize("name", SENDS)
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
async def test_a_send_in_vain_is_an_operation(name: str, error: int) -> None:
    with udp_pair() as (a, b), first_in_vain([error], "sendto", "sendmsg"):
        assert await SENDS[name](a, b"x", b.getsockname()) == 1
        assert await b.recv(10) == b"x"
    assert made() == ({"send" if name == "send" else "sendmsg": 1}, {"recv": 1})


@only_on_the_ring
@by_plain_calls
@pytest.mark.parametrize("name", ["recv", "recvfrom"])
async def test_a_cancel_that_meets_a_datagram_leaves_it(name: str) -> None:
    """It is cancelled after the poll has told of it, and before it was taken."""
    with udp_pair() as (a, b):
        with trio.CancelScope() as scope, harness.before_wakes(scope.cancel):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(RECEIVES[name], b, 10, 0)
                await wait_all_tasks_blocked()
                a._sock.send(b"x")  # type: ignore[attr-defined]
        assert scope.cancelled_caught
        assert await b.recv(10) == b"x"
