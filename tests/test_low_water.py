"""SO_RCVLOWAT: what is there at the call is given at once; who waits, waits for the mark.

So it is on stock, which tries first and then waits. A receive on the ring that polls first
would wait for the mark with data already there.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.socket import SocketType

pytestmark = pytest.mark.differential

MARK = 10
PEEK = stdlib_socket.MSG_PEEK


async def into(sock: SocketType, name: str, *args: Any) -> bytes:
    buffer = bytearray(100)
    found = await getattr(sock, name)([buffer] if name == "recvmsg_into" else buffer, *args)
    return bytes(buffer[: found if isinstance(found, int) else found[0]])


async def message(sock: SocketType, name: str, *args: Any) -> bytes:
    return bytes((await getattr(sock, name)(100, *args))[0])


RECEIVES: dict[str, Callable[[SocketType], Awaitable[bytes]]] = {
    "recv": lambda sock: sock.recv(100),
    "recv with a flag": lambda sock: sock.recv(100, stdlib_socket.MSG_CMSG_CLOEXEC),
    "recv_into": lambda sock: into(sock, "recv_into"),
    "recvfrom": lambda sock: message(sock, "recvfrom"),
    "recvfrom_into": lambda sock: into(sock, "recvfrom_into"),
    "recvmsg": lambda sock: message(sock, "recvmsg"),
    "recvmsg_into": lambda sock: into(sock, "recvmsg_into"),
    "receive_some": lambda sock: trio.SocketStream(sock).receive_some(100),
    "receive_some without a size": lambda sock: trio.SocketStream(sock).receive_some(),
}
PEEKS: dict[str, Callable[[SocketType], Awaitable[bytes]]] = {
    "recv": lambda sock: sock.recv(100, PEEK),
    "recv_into": lambda sock: into(sock, "recv_into", 0, PEEK),
    "recvfrom": lambda sock: message(sock, "recvfrom", PEEK),
    "recvmsg": lambda sock: message(sock, "recvmsg", 0, PEEK),
}


def set_on_duplicate(sock: SocketType) -> None:
    with sock.dup()._sock as copy:  # type: ignore[attr-defined]
        trio.socket.from_stdlib_socket(copy).setsockopt(*MARKED)


def set_on_another_trio_socket(sock: SocketType) -> None:
    other = trio.socket.from_stdlib_socket(sock._sock)  # type: ignore[attr-defined]
    other.setsockopt(*MARKED)


def set_in_another_run(sock: SocketType) -> None:
    async def set_it() -> None:
        sock.setsockopt(*MARKED)

    thread = threading.Thread(target=trio.run, args=(set_it,))
    thread.start()
    thread.join()


MARKED = (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVLOWAT, MARK)
SETTERS: dict[str, Callable[[SocketType], None]] = {
    "socket": lambda sock: sock.setsockopt(*MARKED),
    "socket, as bytes": lambda sock: sock.setsockopt(*MARKED[:2], MARK.to_bytes(4, "little")),
    "stream": lambda sock: trio.SocketStream(sock).setsockopt(*MARKED),
    "duplicate": set_on_duplicate,
    "another trio socket": set_on_another_trio_socket,
    "another run": set_in_another_run,
}


class Ends:
    """A connection: the end under test, and its peer as the standard library's socket."""

    def __init__(self, sock: SocketType, peer: stdlib_socket.socket) -> None:
        self.sock = sock
        self.peer = peer
        self.log: list[Any] = []

    async def receive_waiting(self, receive: Callable[[SocketType], Awaitable[bytes]]) -> None:
        with trio.fail_after(5):
            self.log.append(await receive(self.sock))

    async def warm_up(self) -> None:
        """From now on a receive polls first: the last one had to wait."""
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.receive_waiting, lambda sock: sock.recv(100))
                await wait_all_tasks_blocked()
                self.peer.send(b"w")
            assert self.log.pop() == b"w"


@pytest.fixture(params=["TCP", "UNIX"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    if request.param == "TCP":
        a, b = await harness.tcp_pair()
    else:
        a, b = trio.socket.socketpair()
    with a, stdlib_socket.socket(fileno=b.detach()) as peer:
        peer.setblocking(True)
        yield Ends(a, peer)


@pytest.mark.parametrize("warm", [False, True], ids=["first", "polls first"])
@pytest.mark.parametrize("name", RECEIVES)
async def test_what_is_there_is_given_at_once(ends: Ends, name: str, warm: bool) -> None:
    if warm:
        await ends.warm_up()
    ends.sock.setsockopt(*MARKED)
    for _ in range(3):
        ends.peer.send(b"less")
        await trio.lowlevel.checkpoint()
        await ends.receive_waiting(RECEIVES[name])
    assert ends.log == [b"less"] * 3


@pytest.mark.parametrize("name", PEEKS)
async def test_a_look_ahead_at_what_is_there(ends: Ends, name: str) -> None:
    await ends.warm_up()
    ends.sock.setsockopt(*MARKED)
    ends.peer.send(b"less")
    for _ in range(3):
        await ends.receive_waiting(PEEKS[name])
    await ends.receive_waiting(RECEIVES["recv"])
    assert ends.log == [b"less"] * 4


@pytest.mark.parametrize("how", SETTERS)
async def test_each_way_to_set_it(ends: Ends, how: str) -> None:
    await ends.warm_up()
    for _ in range(2):
        SETTERS[how](ends.sock)
        assert ends.sock.getsockopt(*MARKED[:2]) == MARK
        ends.peer.send(b"less")
        await ends.receive_waiting(RECEIVES["recv"])
        ends.sock.setsockopt(*MARKED[:2], 1)
        await ends.warm_up()
    assert ends.log == [b"less"] * 2


async def test_set_on_the_standard_librarys_socket_before_the_first_receive(ends: Ends) -> None:
    ends.sock._sock.setsockopt(*MARKED)  # type: ignore[attr-defined]
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.receive_waiting, RECEIVES["recv"])
            await wait_all_tasks_blocked()
            ends.peer.send(b"as much as the mark")
        ends.peer.send(b"less")
        await ends.receive_waiting(RECEIVES["recv"])
    assert ends.log == [b"as much as the mark", b"less"] * 2


async def test_inherited_from_the_listener() -> None:
    with trio.socket.socket() as listener:
        listener.setsockopt(*MARKED)
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        with stdlib_socket.create_connection(listener.getsockname()) as peer:
            sock, _ = await listener.accept()
            with sock:
                assert sock.getsockopt(*MARKED[:2]) == MARK
                ends = Ends(sock, peer)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ends.receive_waiting, RECEIVES["recv"])
                    await wait_all_tasks_blocked()
                    peer.send(b"as much as the mark")
                peer.send(b"less")
                await ends.receive_waiting(RECEIVES["recv"])
                assert ends.log == [b"as much as the mark", b"less"]


@pytest.mark.parametrize("when", ["before the first receive", "through a trio socket"])
async def test_of_a_socket_under_an_fd_stream(when: str) -> None:
    near, far = await harness.tcp_pair()
    peer = stdlib_socket.socket(fileno=far.detach())
    copy = near.dup()
    async with trio.lowlevel.FdStream(near.detach()) as stream:
        with peer, copy:
            if when == "before the first receive":
                copy._sock.setsockopt(*MARKED)  # type: ignore[attr-defined]
            for _ in range(2):
                async with trio.open_nursery() as nursery:  # the next would poll first
                    nursery.start_soon(stream.receive_some, 100)
                    await wait_all_tasks_blocked()
                    peer.send(b"as much as the mark")
                copy.setsockopt(*MARKED)
                peer.send(b"less")
                await trio.lowlevel.checkpoint()
                with trio.fail_after(5):
                    assert await stream.receive_some(100) == b"less"


@pytest.mark.parametrize("name", RECEIVES)
def test_what_comes_later_as_on_stock(name: str) -> None:
    """TCP waits for the mark or the end, a UNIX socket for anything: the kernel's poll says."""

    async def measure(kind: str) -> list[Any]:
        if kind == "TCP":
            a, b = await harness.tcp_pair()
        else:
            a, b = trio.socket.socketpair()
        with a, stdlib_socket.socket(fileno=b.detach()) as peer:
            peer.setblocking(True)
            ends = Ends(a, peer)
            await ends.warm_up()
            a.setsockopt(*MARKED)
            for parts in ([b"less", b"and more"], [b"just the m", b"ark"], [b"a", b"b", b"end"]):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ends.receive_waiting, RECEIVES[name])
                    for part in parts:
                        await wait_all_tasks_blocked(0.01)
                        if part == b"end":
                            peer.shutdown(stdlib_socket.SHUT_WR)
                        else:
                            peer.send(part)
                        await wait_all_tasks_blocked(0.01)
                        ends.log.append(("after", part, list(ends.log)[-1:]))
                # What was left, at once.
                ends.log.append(("rest", await drained(a)))
            return ends.log

    async def drained(sock: SocketType) -> bytes:
        with trio.move_on_after(0.02):
            return await sock.recv(100)
        return b"nothing"

    if harness.ring_denied():
        pytest.skip("no io_uring here")
    for kind in ("TCP", "UNIX"):
        expected = harness.run(harness.EPOLL, measure, kind)
        assert harness.run(harness.RING, measure, kind) == expected, kind
        assert any(b"less" in entry for entry in expected if isinstance(entry, bytes))


@pytest.mark.ring_only
async def test_without_a_mark_the_socket_is_asked_once(backend: str) -> None:
    """And the hot path is the C function itself again."""
    del backend
    a, b = await harness.tcp_pair()
    with a, stdlib_socket.socket(fileno=b.detach()) as peer:
        ends = Ends(a, peer)
        await ends.warm_up()
        receiver = a.endpoint.receiver  # type: ignore[attr-defined]
        assert receiver.prep_receive is receiver.slots.ring.recv
        assert receiver.has_low_water is False
        a.setsockopt(*MARKED)
        assert receiver.has_low_water is None
        peer.send(b"less")
        await ends.receive_waiting(RECEIVES["recv"])
        assert receiver.has_low_water is True


async def test_an_option_that_is_refused_changes_nothing(ends: Ends) -> None:
    await ends.warm_up()
    with pytest.raises((OSError, TypeError)):
        ends.sock.setsockopt(*MARKED[:2], b"")
    with pytest.raises(TypeError):
        ends.sock.setsockopt()  # type: ignore[call-overload]
    ends.sock.setsockopt(optname=MARKED[1], value=MARK, level=MARKED[0])
    ends.peer.send(b"less")
    await ends.receive_waiting(RECEIVES["recv"])
    assert ends.log == [b"less"]


@pytest.mark.parametrize("receives", [True, False])
async def test_a_stream_that_is_dropped_is_closed_at_once(ends: Ends, receives: bool) -> None:
    """What watches for the mark holds nothing that only a collection would free."""
    sock = ends.sock.dup()
    if receives:
        ends.peer.send(b"x")
        assert await sock.recv(10) == b"x"
    else:
        await sock.send(b"x")
    fd = sock.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del sock
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
