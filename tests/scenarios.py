"""Each way of using the product, once, in some ms: what is cut off, and made to fail, everywhere.

A scenario is an async function that tells by itself whether it went well: it checks every byte,
descriptor and end. It is written for `test_cancel_everywhere` and `test_fail_everywhere` alike,
so it asks a `Course` how its operations are called:

- ``await course.again(fn, *args)``: an operation that does either all of it or, cut off, nothing
  at all. Where a test cuts operations off one by one it is called anew, and the scenario must
  come to the same end: nothing was lost, and nothing done twice.
- anything else is called directly. It ends with its scenario.

Whoever finds that the other side has gone before its time raises `Lost`: true only as the
consequence of an error, or of a cancel, somewhere else.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket as stdlib_socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import gain_tools
import guest_tools
import harness
import trio
from exception_groups import everything_in
from gain_tools import Recorder
from trio.testing import wait_all_tasks_blocked

import uring_trio
from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trio.socket import SocketType

SMALL, LARGE = gain_tools.pattern(10), gain_tools.pattern(100_000)
# More than the kernel's buffers of a UNIX stream hold.
BLOCKING = gain_tools.pattern(600_000)

# For one run: the slowest takes 1 s.
BOUND_S = 10.0 * harness.SLOWNESS

_names = itertools.count()


class Lost(Exception):
    """The other side has gone before its time."""


class Course:
    """How a scenario's operations are called: plainly."""

    async def again(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Call one that can be called anew where it was cut off."""
        return await fn(*args)

    async def serve(
        self, server: gain.Server, address: str, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Have a server serve."""

        class Status:
            def started(self, _server: gain.Server) -> None:
                task_status.started()

        await server.serve(address, task_status=Status())  # type: ignore[arg-type]


def same(got: Any, wanted: Any) -> None:
    """Check what was received; `Lost` if it was the end."""
    if not got:
        raise Lost("the end, too early")
    assert got == wanted


def abstract_name() -> str:
    """Of a UNIX socket, in no folder."""
    return f"\0uring-trio scenario {os.getpid()} {next(_names)}"


# ---- streams and sockets -------------------------------------------------------------------


async def connected(family: int, address: Any) -> SocketType:
    """A new socket that is connected; closed if this is cut off."""
    sock = trio.socket.socket(family)
    try:
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


async def greeted(course: Course, listener: SocketType) -> tuple[trio.SocketStream, bytes]:
    """The next connection whose other side says something, and what it says.

    That of a connect that was cut off may be there all the same, and says nothing.
    """
    while True:
        sock, _ = await course.again(listener.accept)
        stream = trio.SocketStream(sock)
        try:
            words = await course.again(stream.receive_some)
            if words:
                return stream, words
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        await stream.aclose()


async def receive_exactly(course: Course, stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """So many bytes; `Lost` if there are fewer."""
    received = bytearray()
    while len(received) < size:
        chunk = await course.again(stream.receive_some, size - len(received))
        if not chunk:
            raise Lost(f"{len(received)} of {size} bytes came")
        received += chunk
    return bytes(received)


async def send_counted(course: Course, sock: SocketType, data: bytes) -> None:
    """Send by send(), which says how much it has sent, and has sent nothing if it was cut off."""
    at = 0
    while at < len(data):
        at += await course.again(sock.send, data[at:])


async def echo(course: Course) -> None:
    """TCP: a listener, a client, a server; data both ways, readiness, half-close."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()

        async def part_server() -> None:
            stream, chunk = await greeted(course, listener)
            async with stream:
                while chunk:
                    await stream.send_all(chunk)
                    chunk = await course.again(stream.receive_some)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_server)
            sock = await course.again(connected, stdlib_socket.AF_INET, listener.getsockname())
            async with trio.SocketStream(sock) as stream:
                for data in (SMALL, LARGE):
                    await stream.send_all(data)
                    received = bytearray()
                    while len(received) < len(data):
                        await course.again(trio.lowlevel.wait_readable, sock)
                        buffer = bytearray(50_000)
                        count = await course.again(sock.recv_into, buffer)
                        if not count:
                            raise Lost(f"{len(received)} of {len(data)} bytes came back")
                        received += buffer[:count]
                    assert received == data
                await course.again(stream.wait_send_all_might_not_block)
                await stream.send_eof()
                assert await course.again(stream.receive_some) == b""


async def connects(course: Course) -> None:
    """UNIX: more clients than the listener's queue takes; and nobody at all, by TCP."""
    name, clients = abstract_name(), 4
    with trio.socket.socket(stdlib_socket.AF_UNIX) as listener:
        await listener.bind(name)
        listener.listen(0)

        async def part_client(number: int) -> None:
            words = bytes([number])
            sock = await course.again(connected, stdlib_socket.AF_UNIX, name)
            with sock:
                await send_counted(course, sock, words)
                same(await course.again(sock.recv, 10), words)

        heard = []
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(part_client, number)
            for _ in range(clients):
                stream, words = await greeted(course, listener)
                async with stream:
                    await stream.send_all(words)
                heard.append(words)
        assert sorted(heard) == [bytes([number]) for number in range(clients)]
    with trio.socket.socket() as nobody:
        await nobody.bind(("127.0.0.1", 0))
        try:
            sock = await course.again(connected, stdlib_socket.AF_INET, nobody.getsockname())
        except ConnectionRefusedError:
            pass
        else:
            sock.close()
            raise AssertionError("somebody was there")


async def blocked_senders(course: Course) -> None:
    """Sends that wait for their reader: send_all, send, and a pipe's kind of stream."""
    a, b = trio.socket.socketpair()
    c, d = (each.detach() for each in stdlib_socket.socketpair())
    left, right = trio.lowlevel.FdStream(c), trio.lowlevel.FdStream(d)

    async def part_receive(stream: trio.abc.ReceiveStream) -> None:
        assert await receive_exactly(course, stream, len(BLOCKING)) == BLOCKING

    one, two = trio.SocketStream(a), trio.SocketStream(b)
    async with one, two, left, right, trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, bytearray(BLOCKING))
        nursery.start_soon(part_receive, two)
        nursery.start_soon(send_counted, course, b, BLOCKING)
        nursery.start_soon(part_receive, one)
        nursery.start_soon(left.send_all, BLOCKING)
        await part_receive(right)


async def exchange_by_tls(end: trio.SSLStream[trio.SocketStream], data: bytes) -> None:
    """Have this come back; what TLS has begun cannot be called anew."""
    await end.send_all(data)
    received = bytearray()
    while len(received) < len(data):
        chunk = await end.receive_some(50_000)
        if not chunk:
            raise Lost("an end in order, too early")
        received += chunk
    assert received == data


async def tls(course: Course) -> None:
    """A handshake, data both ways, and an end in order."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()

        async def part_server() -> None:
            sock, _ = await course.again(listener.accept)
            async with trio.SSLStream(trio.SocketStream(sock), SERVER_TLS, server_side=True) as end:
                async for chunk in end:
                    await end.send_all(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_server)
            sock = trio.socket.socket()
            async with trio.SSLStream(
                trio.SocketStream(sock), CLIENT_TLS, server_hostname=gain_tools.NAME
            ) as end:
                await sock.connect(listener.getsockname())
                await end.do_handshake()
                for data in (SMALL, LARGE):
                    await exchange_by_tls(end, data)


async def drain(course: Course) -> None:
    """A server of streams that ends in order: no new clients, and time for those it has."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()

    async def part_serve(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    async def part_client(before: trio.Event, after: trio.Event) -> None:
        """It says something, and more when nobody new is let in."""
        sock = await course.again(connected, stdlib_socket.AF_INET, address)
        async with trio.SocketStream(sock) as stream, trio.open_nursery() as nursery:
            await stream.send_all(SMALL)
            assert await receive_exactly(course, stream, len(SMALL)) == SMALL
            before.set()
            await after.wait()
            nursery.start_soon(stream.send_all, LARGE)
            assert await receive_exactly(course, stream, len(LARGE)) == LARGE
            await stream.send_eof()
            assert await course.again(stream.receive_some) == b""

    async with trio.open_nursery() as connections:
        idle = await course.again(connected, stdlib_socket.AF_INET, address)
        async with trio.SocketStream(idle) as silent:
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as accepting:
                    serve = functools.partial(
                        trio.serve_listeners, part_serve, listeners, handler_nursery=connections
                    )
                    accepting.start_soon(serve)
                    served, closed = [trio.Event(), trio.Event()], trio.Event()
                    for event in served:
                        clients.start_soon(part_client, event, closed)
                    for event in served:
                        await event.wait()
                    accepting.cancel_scope.cancel()
                closed.set()
            # Whoever is there yet has had its time.
            connections.cancel_scope.deadline = trio.current_time()
            assert await course.again(silent.receive_some) == b""


# ---- datagrams and descriptors -------------------------------------------------------------


async def datagrams(course: Course) -> None:
    """Two UDP sockets, every method, and several senders."""
    a = trio.socket.socket(type=stdlib_socket.SOCK_DGRAM)
    b = trio.socket.socket(type=stdlib_socket.SOCK_DGRAM)
    with a, b:
        await a.bind(("127.0.0.1", 0))
        await b.bind(("127.0.0.1", 0))
        source, target = a.getsockname(), b.getsockname()

        async def part_sender(count: int) -> None:
            for _ in range(count):
                assert await course.again(a.sendto, b"xx", target) == 2
                assert await course.again(a.sendmsg, [b"x", b"x"], [], 0, target) == 2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_sender, 3)
            nursery.start_soon(part_sender, 3)
            buffer = bytearray(10)
            for _ in range(3):
                assert await course.again(b.recvfrom, 10) == (b"xx", source)
                assert (await course.again(b.recvmsg, 10))[0] == b"xx"
                assert await course.again(b.recvfrom_into, buffer) == (2, source)
                assert await course.again(b.recv, 10) == b"xx"


async def full_receiver(course: Course) -> None:
    """UNIX datagrams by name: more than the receiver's queue takes, from three senders."""
    name, each = abstract_name(), 12
    receiver = trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM)

    async def part_sender(number: int) -> None:
        with trio.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as sock:
            for count in range(each):
                await course.again(sock.sendto, bytes([number, count]), name)

    with receiver:
        await receiver.bind(name)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(part_sender, number)
            heard = [await course.again(receiver.recv, 10) for _ in range(3 * each)]
    for number in range(3):
        mine = [words for words in heard if words[0] == number]
        assert mine == [bytes([number, count]) for count in range(each)]


async def passed_descriptors(course: Course) -> None:
    """Descriptors as cargo, each of another file."""
    a, b = trio.socket.socketpair()
    cargo = [os.eventfd(number) for number in range(1, 6)]

    async def part_sender() -> None:
        for fd in cargo:
            parts = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS, fd.to_bytes(4, "little"))]
            assert await course.again(a.sendmsg, [b"x"], parts) == 1

    try:
        with a, b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(part_sender)
                for number in range(1, 6):
                    words, parts, _, _ = await course.again(
                        b.recvmsg, 1, stdlib_socket.CMSG_SPACE(4)
                    )
                    same(words, b"x")
                    [(_, _, passed)] = parts
                    fd = int.from_bytes(passed[:4], "little")
                    try:
                        assert os.eventfd_read(fd) == number
                    finally:
                        os.close(fd)
    finally:
        for fd in cargo:
            os.close(fd)


async def files(course: Course) -> None:
    """A pipe, a FIFO, which cannot be told not to wait, and an eventfd."""
    with tempfile.TemporaryDirectory() as folder:
        fifo = Path(folder, "fifo")
        os.mkfifo(fifo)
        nonblocking = os.O_NONBLOCK | os.O_CLOEXEC
        reading = os.open(fifo, os.O_RDONLY | nonblocking)
        ends = [os.pipe(), (reading, os.open(fifo, os.O_WRONLY | nonblocking))]
    event = os.eventfd(0, os.EFD_NONBLOCK)

    async def part_write(stream: trio.lowlevel.FdStream) -> None:
        async with stream:
            await stream.send_all(LARGE)

    async def part_read(stream: trio.lowlevel.FdStream) -> None:
        async with stream:
            assert await receive_exactly(course, stream, len(LARGE)) == LARGE
            assert await course.again(stream.receive_some) == b""

    async def part_event() -> None:
        await course.again(trio.lowlevel.wait_readable, event)
        assert os.eventfd_read(event) == 3

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(part_event)
            for reader, writer in [map(trio.lowlevel.FdStream, pair) for pair in ends]:
                nursery.start_soon(part_read, reader)
                nursery.start_soon(part_write, writer)
            await course.again(trio.lowlevel.wait_writable, event)
            await wait_all_tasks_blocked()
            os.eventfd_write(event, 3)
    finally:
        os.close(event)


# ---- anyio ---------------------------------------------------------------------------------


async def anyio_streams(course: Course) -> None:
    """Its listeners, streams and UDP sockets, over TCP."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    address = listener.extra(anyio.abc.SocketAttribute.local_address)

    async def part_handle(stream: Any) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, part_handle)
        async with await anyio.connect_tcp(*address) as stream:
            for data in (SMALL, LARGE):
                await stream.send(data)
                received = b""
                while len(received) < len(data):
                    try:
                        received += await course.again(stream.receive)
                    except anyio.EndOfStream:
                        raise Lost("an end too early") from None
                assert received == data
            await stream.send_eof()
            try:
                await course.again(stream.receive)
            except anyio.EndOfStream:
                pass
        group.cancel_scope.cancel()
    async with (
        await anyio.create_udp_socket(local_host="127.0.0.1") as one,
        await anyio.create_connected_udp_socket(
            *one.extra(anyio.abc.SocketAttribute.local_address)
        ) as other,
    ):
        await course.again(other.send, b"ask")
        words, sender = await course.again(one.receive)
        await course.again(one.send, (words, sender))
        assert await course.again(other.receive) == b"ask"


# ---- callback servers ----------------------------------------------------------------------


async def served(
    course: Course,
    handler: Recorder,
    client: Callable[[gain.Server], Awaitable[None]],
    address: str = gain_tools.LOOPBACK,
    *,
    starts: int = 1,
    **options: Any,
) -> None:
    """Start a server, have a client talk to it, and shut it down; perhaps start it once more."""
    server = gain.Server(handler, gain.Config(**{"workers": 1} | options))
    for _ in range(starts):
        with ended_after(server, handler):
            async with trio.open_nursery() as nursery:
                await nursery.start(course.serve, server, address)
                await client(server)
                server.async_shutdown(1)


@contextlib.contextmanager
def ended_after(server: gain.Server, handler: Recorder) -> Iterator[None]:
    """A server that is started in here has ended with it, its books in order.

    It has not where a run was lost, its caller's or a worker's: there nobody unwinds anything.
    """
    try:
        yield
    except BaseException as exc:
        lost = (trio.TrioInternalError, GeneratorExit)
        if not any(isinstance(each, lost) for each in everything_in(exc)):
            gain_tools.assert_ended(server, handler)
        raise
    gain_tools.assert_ended(server, handler)


def address_of(server: gain.Server) -> gain.Address:
    """Where it is; `Lost` if it has ended."""
    addresses = server.addresses()
    if not addresses:
        raise Lost("the server has ended")
    return addresses[0]


def told(handler: Recorder, words: str) -> Lost:
    """The exception for a client whose connection is gone, with what its server knows of it."""
    lost = Lost(words)
    for error in handler.errors():
        if error is not None and not isinstance(error, gain.EndOfStream):
            lost.__cause__ = error
    return lost


async def ask(
    course: Course,
    handler: Recorder,
    server: gain.Server,
    *,
    sizes: tuple[bytes, ...] = (SMALL, LARGE),
    family: int = stdlib_socket.AF_INET,
) -> None:
    """Have each of these come back, and then an end of file for an end of file."""
    address = address_of(server)
    to: Any = address[0] if family == stdlib_socket.AF_UNIX else tuple(address)
    sock = await course.again(connected, family, to)
    async with trio.SocketStream(sock) as stream:
        try:
            for data in sizes:
                await stream.send_all(data)
                assert await receive_exactly(course, stream, len(data)) == data
            await stream.send_eof()
            assert await course.again(stream.receive_some) == b""
        except (Lost, trio.BrokenResourceError) as exc:
            raise told(handler, str(exc)) from None


async def server_tcp(course: Course) -> None:
    """Started twice: small and large messages, over TCP."""
    handler = Recorder(on_read=gain_tools.echo)

    async def client(server: gain.Server) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, course, handler, server)
            await ask(course, handler, server)

    await served(course, handler, client, starts=2)


async def exchange(
    course: Course, handler: Recorder, stream: trio.SocketStream, data: bytes
) -> None:
    """Have this come back."""
    try:
        await stream.send_all(data)
        assert await receive_exactly(course, stream, len(data)) == data
    except (Lost, trio.BrokenResourceError) as exc:
        raise told(handler, str(exc)) from None


async def reload(course: Course, workers: int) -> None:
    """A new server takes the address over from the old one, while clients are served."""
    handlers = [Recorder(on_read=gain_tools.echo) for _ in range(2)]
    config = gain.Config(workers=workers, reuse_port=True)
    old, new = (gain.Server(handler, config) for handler in handlers)
    over = trio.Event()

    async def part_old(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await course.serve(old, gain_tools.LOOPBACK, task_status=task_status)
        finally:
            over.set()

    async def part_meanwhile() -> None:
        """Whoever waits for the old one's accept when that ends is refused, and comes again."""
        while True:
            was_over = over.is_set()
            try:
                await ask(course, handlers[1], new)
                return
            except (Lost, OSError):
                if was_over:
                    raise
            # Before it has an address there is nothing to wait for.
            await trio.lowlevel.checkpoint()

    with ended_after(old, handlers[0]), ended_after(new, handlers[1]):
        async with trio.open_nursery() as nursery:
            await nursery.start(part_old)
            address = address_of(old)
            sock = await course.again(connected, stdlib_socket.AF_INET, tuple(address))
            async with trio.SocketStream(sock) as stream, trio.open_nursery() as clients:
                await exchange(course, handlers[0], stream, SMALL)
                await nursery.start(course.serve, new, f"tcp://{address}")
                clients.start_soon(part_meanwhile)
                await exchange(course, handlers[0], stream, LARGE)
                old.async_shutdown(1)
                assert await course.again(stream.receive_some) == b""
            await over.wait()
            await ask(course, handlers[1], new)
            new.async_shutdown(1)


async def server_reload(course: Course) -> None:
    """Both with one worker, in this run."""
    await reload(course, 1)


async def server_reload_threads(course: Course) -> None:
    """Both with two, in threads."""
    await reload(course, 2)


async def server_large(course: Course) -> None:
    """Messages so large that a connection goes over to polls, and its output waits."""
    handler = Recorder(on_read=gain_tools.echo)
    data = gain_tools.pattern(700_000)

    async def client(server: gain.Server) -> None:
        sock = await course.again(connected, stdlib_socket.AF_INET, address_of(server))
        async with trio.SocketStream(sock) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            try:
                assert await receive_exactly(course, stream, len(data)) == data
            except (Lost, trio.BrokenResourceError) as exc:
                raise told(handler, str(exc)) from None

    await served(course, handler, client)


async def server_tls(course: Course) -> None:
    """A handshake, data, and an end in order."""
    handler = Recorder(on_read=gain_tools.echo)

    async def client(server: gain.Server) -> None:
        sock = await course.again(connected, stdlib_socket.AF_INET, address_of(server))
        async with trio.SSLStream(
            trio.SocketStream(sock), CLIENT_TLS, server_hostname=gain_tools.NAME
        ) as end:
            try:
                await end.do_handshake()
                await exchange_by_tls(end, LARGE)
            except (Lost, trio.BrokenResourceError) as exc:
                raise told(handler, str(exc)) from None

    await served(course, handler, client, tls=SERVER_TLS)


async def server_async(course: Course) -> None:
    """Callbacks that are tasks, over a UNIX socket; closed by the server."""
    handler = gain_tools.AsyncRecorder(on_read=gain_tools.echo)
    with tempfile.TemporaryDirectory() as folder:

        async def client(server: gain.Server) -> None:
            await ask(course, handler, server, family=stdlib_socket.AF_UNIX)

        await served(course, handler, client, f"unix://{folder}/socket")


async def server_threads(course: Course) -> None:
    """Two workers in threads, and callbacks in others."""
    handler = Recorder(on_read=gain_tools.echo)

    async def client(server: gain.Server) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, course, handler, server)
            await ask(course, handler, server)

    await served(course, handler, client, workers=2, async_handler=True)


async def _ask_by_datagram(course: Course, server: gain.Server) -> None:
    port = address_of(server)[1]
    with trio.socket.socket(type=stdlib_socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", port))
        with trio.move_on_after(0.2):
            async with trio.open_nursery() as nursery:
                # Whoever waits before there is anything is asleep, and may be cut off.
                nursery.start_soon(course.again, sock.recv, 10)
                await wait_all_tasks_blocked()
                await course.again(sock.send, bytes([0]))
        for number in range(3):
            words = bytes([number])
            answer = b""
            while answer != words:
                # Whoever asks by UDP asks again: a server may throw away what it cannot send.
                # So an earlier question may be answered twice.
                await course.again(sock.send, words)
                with trio.move_on_after(0.2):
                    while answer != words:
                        answer = await course.again(sock.recv, 10)
                        assert answer in [bytes([each]) for each in range(number + 1)]


async def server_datagrams(course: Course) -> None:
    """UDP at one address."""
    handler = Recorder(on_read=gain_tools.echo)
    await served(
        course, handler, lambda server: _ask_by_datagram(course, server), gain_tools.LOOPBACK_UDP
    )


async def server_datagrams_everywhere(course: Course) -> None:
    """UDP at every address."""
    handler = Recorder(on_read=gain_tools.echo)
    await served(
        course, handler, lambda server: _ask_by_datagram(course, server), "udp://0.0.0.0:0"
    )


# ---- a run of one --------------------------------------------------------------------------


async def audited(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    """A part of a run, bounded, and then the books of the run, however it ends."""
    assert harness.io_statistics().backend == backend
    try:
        with trio.fail_after(BOUND_S):
            await body()
    except GeneratorExit:  # the run is lost, and this is its end
        raise
    except BaseException:
        with trio.CancelScope(shield=True):
            await harness.assert_books_balance()
        raise
    await harness.assert_books_balance()


def in_its_own(
    backend: str, body: Callable[[], Awaitable[None]], instruments: Sequence[trio.abc.Instrument]
) -> None:
    """By the trio door."""
    harness.run_raw(backend, audited, backend, body, instruments=instruments)


def on_a_host(
    backend: str, body: Callable[[], Awaitable[None]], instruments: Sequence[trio.abc.Instrument]
) -> None:
    """A guest run, on a loop of this thread's own."""
    host = guest_tools.Host(backend)
    host.run(lambda: audited(backend, body), instruments=instruments)


def in_asyncio(
    backend: str, body: Callable[[], Awaitable[None]], instruments: Sequence[trio.abc.Instrument]
) -> None:
    """A guest run, with asyncio as its host."""
    guest_tools.run_in_asyncio(backend, lambda: audited(backend, body), instruments=instruments)


def by_anyio(
    backend: str, body: Callable[[], Awaitable[None]], instruments: Sequence[trio.abc.Instrument]
) -> None:
    """By anyio's door, on the ring."""
    assert backend == harness.RING
    options = uring_trio.anyio_options(backend="io_uring", instruments=instruments)
    anyio.run(audited, backend, body, backend="trio", backend_options=options)


def run(
    backend: str,
    scenario: Scenario,
    body: Callable[[], Awaitable[None]],
    instruments: Sequence[trio.abc.Instrument] = (),
) -> None:
    """Run *body*, which is the scenario's with something around it, where that belongs."""
    scenario.door(backend, body, instruments)


def evenly(count: int, most: int) -> list[int]:
    """Of 1 to *count* at most so many, with the first and the last."""
    if count <= most:
        return list(range(1, count + 1))
    if most == 1:
        return [(count + 1) // 2]
    return sorted({1 + round(each * (count - 1) / (most - 1)) for each in range(most)})


# ---- the table -----------------------------------------------------------------------------


SERVER_TLS, CLIENT_TLS = gain_tools.server_context(), gain_tools.client_context()


@dataclass(frozen=True)
class Scenario:
    """One of the table.

    Attributes:
      body: what is to be run.
      door: what it runs in.
      ring_only: there is no such thing on stock trio; or it takes a full listener's refusal for a
        connection.
      plain: whoever is cut off leaves in order: nothing but what cut it off comes out, and no
        descriptor waits for the garbage collector. Others see their peers go away.
      sound: calls of the kernel's that do not fail on its files as others' do: eventfds are
        read and written, a stream is received from where there is input; and anyio leaves a
        socket to the garbage collector whose options cannot be set.
    """

    body: Callable[[Course], Awaitable[None]]
    door: Callable[[str, Callable[[], Awaitable[None]], Sequence[trio.abc.Instrument]], None] = (
        in_its_own
    )
    ring_only: bool = False
    plain: bool = False
    sound: tuple[str, ...] = ()


EVENTFD = ("read", "write")
RECEIVING = ("recvfrom",)

SCENARIOS: dict[str, Scenario] = {
    "echo": Scenario(echo, plain=True),
    "connects": Scenario(connects, ring_only=True),
    "blocked senders": Scenario(blocked_senders, plain=True),
    "tls": Scenario(tls),
    "drain": Scenario(drain),
    "datagrams": Scenario(datagrams, plain=True),
    "full receiver": Scenario(full_receiver),
    "passed descriptors": Scenario(passed_descriptors, plain=True),
    "files": Scenario(files),
    "anyio": Scenario(anyio_streams, sound=("setsockopt",)),
    "guest echo": Scenario(echo, door=on_a_host, sound=EVENTFD),
    "guest files": Scenario(files, door=on_a_host, sound=EVENTFD),
    "server tcp": Scenario(server_tcp, ring_only=True, sound=RECEIVING),
    "server large": Scenario(server_large, ring_only=True, sound=RECEIVING),
    "server tls": Scenario(server_tls, ring_only=True, sound=RECEIVING),
    "server async": Scenario(server_async, ring_only=True, sound=RECEIVING),
    "server threads": Scenario(server_threads, ring_only=True, sound=RECEIVING),
    "server reload": Scenario(server_reload, ring_only=True, sound=RECEIVING),
    "server reload threads": Scenario(server_reload_threads, ring_only=True, sound=RECEIVING),
    "server datagrams": Scenario(server_datagrams, ring_only=True),
    "server datagrams everywhere": Scenario(server_datagrams_everywhere, ring_only=True),
    "guest server": Scenario(
        server_tcp, door=on_a_host, ring_only=True, sound=(*EVENTFD, *RECEIVING)
    ),
}
