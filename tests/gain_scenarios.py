"""What Gain tests in both of its architectures, as functions of the architecture."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import gain_tools
from gain_tools import PAGE, WORKERS, Counts, Recorder, echo, receive_exactly, wait_until

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Iterator

    from uring_trio import gain

REQUEST = b"cindex%04dtestdata1234567890"
REPLY = b"cindex%04dTESTpayload12345"
REQUEST_SIZE = len(REQUEST % 0)
ROUNDTRIPS = 1000
SMALL = 128  # bytes; with ROUNDTRIPS, many times around any ring of buffers
MESSAGE = bytes(range(256)) * 2


@contextlib.contextmanager
def clients_of(server: gain.Server, count: int) -> Iterator[list[stdlib_socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(gain_tools.connect(server)) for _ in range(count)]


def address_for(network: str) -> str:
    return f"{network}://127.0.0.1:0"


def reply(conn: gain.Conn, n: int) -> None:
    request = conn.next(n)
    assert len(request) == REQUEST_SIZE
    conn.write(REPLY % int(request[6:10]))


def request_response(
    *,
    network: str = "tcp",
    clients: int = 8,
    workers: int = WORKERS,
    rounds: int = 1,
    mode: str = "def",
    **options: Any,
) -> Recorder:
    """Each client sends a request and has its own reply, in every round."""
    recorder = gain_tools.make_recorder(mode, on_read=reply)
    options |= gain_tools.options_for(mode)
    total = clients * rounds
    connections = clients if network == "tcp" else 0
    expected = Counts(connections, total, total, connections)
    with gain_tools.server_in_thread(
        recorder, address_for(network), workers=workers, **options
    ) as server:
        with clients_of(server, clients) as sockets:
            for _ in range(rounds):
                for number, client in enumerate(sockets):
                    client.sendall(REQUEST % number)
                for number, client in enumerate(sockets):
                    assert receive_exactly(client, len(REPLY % 0)) == REPLY % number
        wait_until(lambda: recorder.reached(expected), "all callbacks")
    assert recorder.counts() == expected
    return recorder


def dialled_clients_are_counted(**options: Any) -> None:
    recorder = Recorder()
    with gain_tools.server_in_thread(recorder, **options) as server, clients_of(server, 8):
        wait_until(lambda: recorder.counts().accept == 8)
        assert server.active_connections() == 8


def connections_are_counted_until_they_close(**options: Any) -> None:
    recorder = Recorder(on_read=echo)
    with gain_tools.server_in_thread(recorder, **options) as server:
        with clients_of(server, 10):
            wait_until(lambda: server.active_connections() == 10)
        wait_until(lambda: server.active_connections() == 0)
        assert recorder.counts() == Counts(10, 0, 0, 10)


def ping_pong(network: str = "tcp", **options: Any) -> None:
    """A thousand small messages on one connection."""
    recorder = Recorder(on_read=echo)
    with gain_tools.server_in_thread(recorder, address_for(network), **options) as server:
        with gain_tools.connect(server) as client:
            for i in range(ROUNDTRIPS):
                message = b"%08d" % i * (SMALL // 8)
                client.sendall(message)
                assert receive_exactly(client, SMALL) == message
        wait_until(lambda: sum(recorder.values("on_write")) == ROUNDTRIPS * SMALL)
        assert recorder.values("on_read") == [SMALL] * ROUNDTRIPS


def shutdown_after_clients(network: str, *, times: int = 1, **options: Any) -> None:
    """Ten clients have their echo and close; then the server ends, however often it is told."""
    recorder = Recorder(on_read=echo)
    with gain_tools.server_in_thread(recorder, address_for(network), **options) as server:
        with clients_of(server, 10) as sockets:
            for client in sockets:
                client.sendall(MESSAGE)
            for client in sockets:
                assert receive_exactly(client, len(MESSAGE)) == MESSAGE
        for _ in range(times):
            server.shutdown()
            assert not server.is_running()
            assert server.active_connections() == 0
    connections = 10 if network == "tcp" else 0
    assert recorder.counts()._replace(write=10) == Counts(connections, 10, 10, connections)


def shutdown_with_connected_clients(**options: Any) -> None:
    recorder = Recorder()
    with (
        gain_tools.server_in_thread(recorder, **options) as server,
        clients_of(server, 10) as sockets,
    ):
        wait_until(lambda: recorder.counts().accept == 10)
        server.shutdown()
        assert recorder.errors() == [None] * 10
        assert [client.recv(1) for client in sockets] == [b""] * 10
    assert recorder.counts() == Counts(10, 0, 0, 10)


def close_in_on_read(mode: str, *, with_answer: bool, **options: Any) -> None:
    """The answer arrives, a later write of the client is no error, then comes the end."""

    def read(conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        if with_answer:
            conn.write(data)
        conn.close()

    recorder = gain_tools.make_recorder(mode, on_read=read)
    options |= gain_tools.options_for(mode)
    with gain_tools.server_in_thread(recorder, **options) as server:
        with gain_tools.connect(server) as client:
            client.sendall(MESSAGE)
            if with_answer:
                assert receive_exactly(client, len(MESSAGE)) == MESSAGE
                client.sendall(MESSAGE)
            assert client.recv(1) == b""
        wait_until(lambda: recorder.counts().close == 1)
    assert recorder.counts() == Counts(1, 1, int(with_answer), 1)
    assert recorder.errors() == [None]


def addresses_of_connections(network: str, **options: Any) -> None:
    seen = []

    def read(conn: gain.Conn, n: int) -> None:
        seen.append((conn.local_addr(), conn.remote_addr()))
        echo(conn, n)

    recorder = Recorder(on_read=read)
    with gain_tools.server_in_thread(recorder, address_for(network), **options) as server:
        with gain_tools.connect(server) as client:
            client.sendall(MESSAGE)
            assert receive_exactly(client, len(MESSAGE)) == MESSAGE
            here, there = client.getsockname(), client.getpeername()
        assert server.addresses()[0] == there
    ((local, remote),) = seen
    assert (local, remote) == (there, here)
    assert str(local) == f"127.0.0.1:{there[1]}"
    assert str(remote) == f"127.0.0.1:{here[1]}"
    assert local.network == remote.network == network


def large_read(**options: Any) -> None:
    """What one send gave the kernel is one call, and can be had whole."""
    message = bytes(range(256)) * (4 * PAGE // 256)
    recorder = Recorder(on_read=echo)
    with (
        gain_tools.server_in_thread(recorder, **options) as server,
        gain_tools.connect(server) as client,
    ):
        client.sendall(message)
        assert receive_exactly(client, len(message)) == message
    assert recorder.values("on_read") == [len(message)]


def multiple_reads(mode: str, **options: Any) -> None:
    """Ten pages, each sent when the one before was read: ten calls of a page each."""
    pages = [bytes([i]) * PAGE for i in range(10)]
    received = []

    def read(conn: gain.Conn, n: int) -> None:
        received.append(conn.read(n))

    recorder = gain_tools.make_recorder(mode, on_read=read)
    options |= gain_tools.options_for(mode)
    with gain_tools.server_in_thread(recorder, **options) as server:
        with gain_tools.connect(server) as client:
            for count, page in enumerate(pages, start=1):
                client.sendall(page)
                wait_until(lambda: len(received) == count)  # noqa: B023  # waits in this turn
        wait_until(lambda: recorder.counts().close == 1)
    assert received == pages
    assert recorder.values("on_read") == [PAGE] * 10
    assert recorder.counts() == Counts(1, 10, 0, 1)


def shutdown_under_traffic(network: str, **options: Any) -> None:
    """Clients keep sending while the server ends."""
    stop = threading.Event()

    def traffic(client: stdlib_socket.socket) -> None:
        with contextlib.suppress(OSError):  # the server's end is not hidden from its clients
            while not stop.is_set():
                client.send(MESSAGE)
                if not client.recv(len(MESSAGE)):
                    client.close()

    recorder = Recorder(on_read=echo)
    with (
        gain_tools.server_in_thread(recorder, address_for(network), **options) as server,
        clients_of(server, 4) as sockets,
    ):
        threads = [threading.Thread(target=traffic, args=[client]) for client in sockets]
        try:
            for client, thread in zip(sockets, threads, strict=True):
                client.settimeout(0.1)
                thread.start()
            wait_until(lambda: recorder.counts().read >= 100)
            if network == "udp":
                assert server.active_connections() == 0
            server.shutdown()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
