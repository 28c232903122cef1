"""Datagrams to and from peers of all kinds: both families, elsewhere, gone, and too many."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any

import gain_tools
import kernel_table
import pytest
import trio
from gain_tools import (
    BOUND_S,
    LOOPBACK,
    LOOPBACK_UDP,
    AsyncRecorder,
    Recorder,
    echo,
    needs_ipv6,
    serving,
    until,
)
from marks import ON_RING

from uring_trio import gain
from uring_trio.gain import _datagram

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = ON_RING

DATAGRAM = stdlib_socket.SOCK_DGRAM


@contextlib.contextmanager
def client_of(family: int = stdlib_socket.AF_INET) -> Iterator[trio.socket.SocketType]:
    with trio.socket.socket(family, DATAGRAM) as client:
        yield client


async def answer(client: trio.socket.SocketType) -> tuple[bytes, Any]:
    with trio.fail_after(BOUND_S):
        return await client.recvfrom(1 << 16)


def unused_address() -> tuple[str, int]:
    with stdlib_socket.socket(type=DATAGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address: tuple[str, int] = sock.getsockname()
    return address


async def received(recorder: Recorder) -> Any:
    await until(lambda: recorder.conns)
    return recorder.conns[-1]


# Families


@needs_ipv6
async def test_ipv6() -> None:
    async with serving(Recorder(on_read=echo), "udp://[::1]:0") as server:
        address = server.addresses()[0]
        with client_of(stdlib_socket.AF_INET6) as client:
            for message in (b"", b"hello", bytes(65_507)):
                await client.sendto(message, address)
                assert await answer(client) == (message, address)


@needs_ipv6
async def test_peers_of_ipv4_on_a_socket_of_both_families() -> None:
    recorder = Recorder(on_read=echo)
    async with serving(recorder, "udp://:0") as server:
        port = server.addresses()[0][1]
        with client_of() as client, client_of() as other:
            await client.sendto(b"four", ("127.0.0.1", port))
            assert await answer(client) == (b"four", ("127.0.0.1", port))
            conn = await received(recorder)
            assert conn.remote_addr() == ("127.0.0.1", client.getsockname()[1])
            assert str(conn.remote_addr()) == f"127.0.0.1:{client.getsockname()[1]}"
            # What remote_addr() gives is what send_to() takes.
            assert conn.send_to(b"again", conn.remote_addr()) == 5
            assert await answer(client) == (b"again", ("127.0.0.1", port))
            await other.bind(("127.0.0.1", 0))
            conn.send_to(b"elsewhere", other.getsockname())
            assert (await answer(other))[0] == b"elsewhere"
        with client_of(stdlib_socket.AF_INET6) as client:
            await client.sendto(b"six", ("::1", port))
            assert (await answer(client))[0] == b"six"
            assert recorder.conns[-1].remote_addr() == ("::1", *client.getsockname()[1:])


@pytest.mark.parametrize(
    "address",
    [
        ("localhost", 80),  # a look-up would block
        ("", 80),
        ("<broadcast>", 80),
        ("::1", 80),  # on a socket of IPv4
        ("127.0.0.1",),
        "127.0.0.1:80",
        None,
    ],
)
async def test_send_to_refuses_what_is_no_address_for_the_socket(address: Any) -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with client_of() as client:
            await client.sendto(b"x", server.addresses()[0])
            conn = await received(recorder)
            with pytest.raises(gain.AddressError) as caught:
                conn.send_to(b"x", address)
            assert caught.value.address == address


# What the network, or the kernel, refuses


async def test_send_to_raises_what_the_kernel_says_at_once() -> None:
    recorder = Recorder()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with client_of() as client:
            await client.sendto(b"x", server.addresses()[0])
            conn = await received(recorder)
            with pytest.raises(OSError, match="Invalid") as caught:
                conn.send_to(b"x", ("127.0.0.1", 0))
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(OSError, match="long"):
                conn.send_to(bytes(65_508), client.getsockname())
            assert server.statistics().workers[0].datagrams_dropped == 0


async def test_icmp_errors_are_logged_and_fail_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gone = unused_address()
    recorder = Recorder(on_read=echo)
    async with serving(recorder, LOOPBACK_UDP) as server:
        address = server.addresses()[0]
        with client_of() as client:
            await client.sendto(b"x", address)
            assert (await answer(client))[0] == b"x"
            conn: Any = recorder.conn
            for _ in range(20):
                conn.send_to(b"nobody there", gone)
                # The error of the one before is reported to this one, which is not to blame.
                assert conn.write(b"to you") == 6
                assert (await answer(client))[0] == b"to you"
            await client.sendto(b"and back", address)
            assert (await answer(client))[0] == b"and back"
            await until(lambda: "ICMP" in caplog.text)
        assert server.statistics().workers[0].datagrams_dropped == 0
    lines = [r.getMessage() for r in caplog.records if "ICMP" in r.getMessage()]
    assert f"{gone[0]}:{gone[1]}" in lines[0]
    assert "Connection refused" in lines[0]
    assert str(address) in lines[0]
    # Whoever causes such errors must not fill a disk: one line a second.
    assert len(lines) <= 2
    assert not [r for r in caplog.records if r.levelno > logging.WARNING]


async def test_an_error_that_found_no_room_in_the_queue_fails_nothing() -> None:
    """The kernel queues none where the receive buffer is full, and has one call fail for it."""
    recorder = Recorder()
    answers = [-errno.ECONNREFUSED]
    tried = 0

    def sendto(real: kernel_table.Call, *arguments: Any) -> int:
        nonlocal tried
        tried += 1
        return answers[tried - 1] if tried <= len(answers) else int(real(*arguments))

    async with serving(recorder, LOOPBACK_UDP) as server:
        with client_of() as client:
            await client.sendto(b"x", server.addresses()[0])
            conn = await received(recorder)
            with kernel_table.calls(sendto=sendto):
                assert conn.send_to(b"to you", client.getsockname()) == 6
                assert tried == 2
                tried, answers[:] = 0, [-errno.EHOSTUNREACH] * 4
                with pytest.raises(OSError, match="No route to host"):
                    conn.send_to(b"to blame", client.getsockname())
                assert tried == 2
            assert (await answer(client))[0] == b"to you"


async def test_icmp_error_wakes_an_idle_server_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is taken out of the socket's queue; or the poll would be over again at once."""
    recorder = Recorder()
    gone = unused_address()
    async with serving(recorder, LOOPBACK_UDP) as server:
        with client_of() as client:
            await client.sendto(b"x", server.addresses()[0])
            conn = await received(recorder)
            conn.send_to(b"nobody there", gone)
            await until(lambda: "ICMP" in caplog.text)
            worker = conn.worker
            watch = worker._sockets[0]._input
            slots = set()
            for _ in range(50):
                await trio.lowlevel.checkpoint()
                slots.add(watch.slot)
            assert slots == {watch.slot} != {-1}


# Many at once


async def test_flood_starves_no_connection() -> None:
    recorder = Recorder(on_read=echo)
    async with (
        serving(recorder, [LOOPBACK, LOOPBACK_UDP]) as server,
        trio.open_nursery() as nursery,
    ):
        tcp, udp = server.addresses()

        async def flood() -> None:
            with stdlib_socket.socket(type=DATAGRAM) as sock:
                sock.setblocking(False)
                while True:
                    for _ in range(2 * _datagram.RECEIVES_MAX):
                        sock.sendto(bytes(100), udp)
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(flood)
        async with await trio.open_tcp_stream(*tcp) as stream:
            for _ in range(20):
                await stream.send_all(b"still there?")
                assert await gain_tools.read_exactly(stream, 12) == b"still there?"
        nursery.cancel_scope.cancel()


async def test_burst_is_taken_over_several_turns() -> None:
    recorder = Recorder()
    burst = 3 * _datagram.RECEIVES_MAX
    async with serving(recorder, LOOPBACK_UDP) as server:
        with stdlib_socket.socket(type=DATAGRAM) as sock:
            for _ in range(burst):
                sock.sendto(b"x", server.addresses()[0])
        taken = 0
        with trio.fail_after(BOUND_S):
            while taken < burst:
                await trio.lowlevel.checkpoint()
                before, taken = taken, len(recorder.events)
                # The worker may have had a turn before us in this tick and after us in the last.
                assert taken - before <= 2 * _datagram.RECEIVES_MAX


async def test_async_callbacks_have_a_bound_and_none_is_lost() -> None:
    """Beyond it the datagrams stay in the kernel, and memory does not grow."""
    released = trio.Semaphore(0)
    running = 0

    class Slow(gain.EventHandler):
        async def on_read(self, conn: gain.Conn, n: int) -> None:
            nonlocal running
            running += 1
            await released.acquire()
            conn.write(conn.next(n))

    many = _datagram.CALLBACKS_MAX + 20  # the rest fits into a receive buffer of any default
    async with serving(Slow(), LOOPBACK_UDP) as server:
        raw = stdlib_socket.socket(type=DATAGRAM)
        with trio.socket.from_stdlib_socket(raw) as client:
            sent = 0
            for burst in [10, *[50] * 6]:  # none ends just at the bound
                for i in range(sent, min(sent + burst, many)):
                    raw.sendto(b"%d" % i, server.addresses()[0])
                sent += burst
                await trio.testing.wait_all_tasks_blocked()
            await until(lambda: running >= _datagram.CALLBACKS_MAX)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert running == _datagram.CALLBACKS_MAX
            answers = set()
            for _ in range(many):
                released.release()
                answers.add(int((await answer(client))[0]))
    assert answers == set(range(many))


# The end


@pytest.mark.parametrize("mode", ["async def", "async_handler"])
async def test_shutdown_lets_callbacks_end_and_sends_their_answers(mode: str) -> None:
    recorder = gain_tools.make_recorder(mode)
    begun, released = trio.Event(), trio.Event()

    async def hold(conn: gain.Conn, n: int) -> None:
        begun.set()
        await released.wait()

    def hold_thread(conn: gain.Conn, n: int) -> None:
        trio.from_thread.run(hold, conn, n)
        conn.write(conn.next(n))

    async def hold_task(conn: gain.Conn, n: int) -> None:
        await hold(conn, n)
        conn.write(conn.next(n))

    recorder.actions["on_read"] = hold_task if mode == "async def" else hold_thread
    async with serving(recorder, LOOPBACK_UDP, **gain_tools.options_for(mode)) as server:
        address = server.addresses()[0]
        with client_of() as client:
            await client.sendto(b"last", address)
            await begun.wait()
            server.async_shutdown(BOUND_S)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            conn: Any = recorder.conn
            assert not conn._datagram.socket.closed
            # Nothing is received any more.
            await client.sendto(b"too late", address)
            released.set()
            assert await answer(client) == (b"last", address)
    assert recorder.values("on_read") == [4]
    assert recorder.values("on_write") == [4]
    with stdlib_socket.socket(type=DATAGRAM) as sock:
        sock.bind(address)  # the port is free


async def test_cancelled_server_leaves_nothing() -> None:
    async def hang(conn: gain.Conn, n: int) -> None:
        await trio.sleep_forever()

    recorder = AsyncRecorder(on_read=hang)
    server = gain.Server(recorder, gain.Config(workers=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, LOOPBACK_UDP)
        address = server.addresses()[0]
        with client_of() as client:
            await client.sendto(b"x", address)
            await until(lambda: recorder.conns)
        nursery.cancel_scope.cancel()
    gain_tools.assert_ended(server, recorder)
    with stdlib_socket.socket(type=DATAGRAM) as sock:
        sock.bind(address)


async def test_callback_in_a_thread_answers_before_it_is_over() -> None:
    begun, released = trio.Event(), threading.Event()

    def answer_and_wait(conn: Any, n: int) -> None:
        conn.write(b"at once")
        with pytest.raises(OSError, match="long"):
            conn.write(bytes(65_508))
        trio.from_thread.run_sync(begun.set)
        assert released.wait(BOUND_S)
        conn.send_to(b"impossible", ("127.0.0.1", 0))
        conn.write(conn.next(n))

    recorder = Recorder(on_read=answer_and_wait)
    async with serving(recorder, LOOPBACK_UDP, async_handler=True) as server:
        with client_of() as client:
            await client.sendto(b"question", server.addresses()[0])
            await begun.wait()
            try:
                assert (await answer(client))[0] == b"at once"
                assert recorder.values("on_write") == []  # no two callbacks overlap
            finally:
                released.set()
            assert (await answer(client))[0] == b"question"
            await until(lambda: sum(recorder.values("on_write")) == 15)
        # Nobody is there to be told, so it is logged and counted.
        assert server.statistics().workers[0].datagrams_dropped == 1
