"""Datagrams of blocking clients: whole, one by one, and each answered to its own sender.

A fault of Gain that a test is about stands in its docstring, as ``docs/gain.md`` numbers them.
"""

from __future__ import annotations

import errno
import functools
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import (
    BOUND_S,
    LOOPBACK_UDP,
    MODES,
    Mode,
    Recorder,
    connect,
    echo,
    is_silent,
    make_recorder,
    options_for,
    pattern,
    run_in_worker,
    server_in_thread,
    wait_until,
)
from marks import needs_ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from uring_trio import gain

pytestmark = needs_ring

LARGEST = 65_507  # of an IPv4 datagram: 65,535 less the headers of IP and UDP

# Small datagrams that a socket's receive buffer holds, whatever its default; each counts
# several hundred bytes of 212,992.
MANY = 100


def has_read(handler: Recorder, count: int) -> bool:
    return len(handler.values("on_read")) >= count


def answer_of(client: stdlib_socket.socket) -> bytes:
    return client.recv(LARGEST + 1)


def ask(client: stdlib_socket.socket, data: bytes) -> bytes:
    client.send(data)
    return answer_of(client)


@pytest.mark.parametrize("mode", MODES)
def test_empty_datagram_is_a_datagram(mode: Mode) -> None:
    """B7: one of them and a Gain worker's socket is shut down, as at the end of a stream."""
    handler = make_recorder(mode, on_read=echo)
    with (
        server_in_thread(handler, LOOPBACK_UDP, workers=1, **options_for(mode)) as server,
        connect(server) as client,
    ):
        for data in [b"", b"a", b"", b"", b"bc", b""]:
            assert ask(client, data) == data
    assert handler.values("on_read") == [0, 1, 0, 0, 2, 0]


def test_empty_datagrams_reach_every_worker_and_end_none() -> None:
    """B7: the same with a socket for each worker."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, LOOPBACK_UDP, workers=2) as server:
        clients = [connect(server) for _ in range(16)]  # the kernel spreads them by port
        for client in clients:
            assert ask(client, b"") == b""
        for client in clients:
            assert ask(client, b"alive") == b"alive"
            client.close()


@pytest.mark.parametrize("mode", MODES)
def test_datagrams_need_no_answer(mode: Mode) -> None:
    """B8: after one that was not answered Gain swallows the next, and its socket is gone."""
    taken = []
    handler = make_recorder(mode, on_read=lambda conn, n: taken.append(conn.next(n)))
    with (
        server_in_thread(handler, LOOPBACK_UDP, workers=1, **options_for(mode)) as server,
        connect(server) as client,
    ):
        sent = [b"datagram %d" % i for i in range(MANY)]
        for data in sent:
            client.send(data)
        wait_until(lambda: len(taken) >= MANY)
        assert server.active_connections() == 0  # in Gain it is -1 after the first
        handler.actions["on_read"] = echo
        assert ask(client, b"and now?") == b"and now?"
    assert sorted(taken) == sorted(sent)
    if mode == "def":
        assert taken == sent
    # That there was no on_accept and no on_close is checked for every recorder.
    assert set(handler.names()) == {"on_read", "on_write"}


def test_datagram_that_nobody_reads_harms_nobody() -> None:
    """B8: nor need it be consumed, and what is left is not the next one's."""
    handler = Recorder()
    with (
        server_in_thread(handler, LOOPBACK_UDP, workers=1) as server,
        connect(server) as client,
    ):
        for _ in range(MANY):
            client.send(b"nobody wants this")
        wait_until(lambda: len(handler.values("on_read")) == MANY)
        handler.actions["on_read"] = lambda conn, n: conn.write(conn.next())
        assert ask(client, b"this") == b"this"


@pytest.mark.parametrize("size", [4096, 4097, 6000, LARGEST - 1, LARGEST])
def test_datagrams_of_every_size_are_whole(size: int) -> None:
    """B7, B8: Gain cuts a datagram to 4,096 bytes, and says nothing."""
    handler = Recorder(on_read=echo)
    message = pattern(size)
    with (
        server_in_thread(handler, LOOPBACK_UDP, workers=1) as server,
        connect(server) as client,
    ):
        for _ in range(3):
            assert ask(client, message) == message
    assert handler.values("on_read") == [size] * 3
    assert handler.values("on_write") == [size] * 3


def test_datagram_that_is_too_large_is_refused_at_once() -> None:
    """B7, B8: and costs neither the socket nor what is sent after it."""
    refusals = []

    def too_much(conn: gain.Conn, n: int) -> None:
        sends: list[Callable[[], object]] = [
            lambda: conn.write(bytes(LARGEST + 1)),
            lambda: conn.writev([bytes(LARGEST), b"x"]),
            lambda: conn.send_to(bytes(LARGEST + 1), conn.remote_addr()),
        ]
        for send in sends:
            with pytest.raises(OSError, match=r".") as caught:
                send()
            refusals.append(caught.value.errno)
        conn.write(b"small enough")

    handler = Recorder(on_read=too_much)
    with (
        server_in_thread(handler, LOOPBACK_UDP, workers=1) as server,
        connect(server) as client,
    ):
        assert ask(client, b"?") == b"small enough"
        assert is_silent(client)
    assert refusals == [errno.EMSGSIZE] * 3


def test_each_write_is_one_datagram() -> None:
    """B8: Gain sends all that one callback writes as one datagram."""

    def answer(conn: gain.Conn, n: int) -> None:
        conn.write(b"one")
        conn.write(b"")
        conn.writev([b"t", b"w", b"o"])

    handler = Recorder(on_read=answer)
    with (
        server_in_thread(handler, LOOPBACK_UDP, workers=1) as server,
        connect(server) as client,
    ):
        assert ask(client, b"?") == b"one"
        assert [answer_of(client), answer_of(client)] == [b"", b"two"]
        wait_until(lambda: sum(handler.values("on_write")) == 6)


@pytest.mark.parametrize("mode", ["def", "async def"])
def test_kept_datagram_answers_its_own_sender(mode: Mode) -> None:
    """B12: Gain uses the object again for the next datagram; here each stays its own."""
    kept: dict[bytes, gain.Conn] = {}

    def keep(conn: gain.Conn, n: int) -> None:
        kept[conn.peek(n)] = conn

    handler = make_recorder(mode, on_read=keep)
    with server_in_thread(handler, LOOPBACK_UDP, workers=1) as server:
        clients = {b"client %d" % i: connect(server) for i in range(10)}
        for name, client in clients.items():
            client.send(name)
        wait_until(lambda: len(kept) == len(clients))
        assert len({id(conn) for conn in kept.values()}) == len(clients)
        for name, conn in reversed(kept.items()):
            assert conn.remote_addr() == clients[name].getsockname()

            def reply(conn: gain.Conn = conn) -> None:
                conn.write(b"to " + conn.next())

            run_in_worker(conn, reply)
        for name, client in clients.items():
            assert answer_of(client) == b"to " + name
            client.close()


def test_answer_to_a_client_who_has_gone_harms_nobody() -> None:
    """B8: the ICMP error that comes back is logged, and ends nothing."""
    handler = Recorder(on_read=echo)
    with server_in_thread(handler, LOOPBACK_UDP, workers=1) as server:
        for count in range(1, 21):
            with connect(server) as gone:
                gone.send(b"good-bye")
            wait_until(functools.partial(has_read, handler, count))
        with connect(server) as client:
            for _ in range(5):
                assert ask(client, b"here") == b"here"


def test_send_to_goes_anywhere() -> None:
    """B19: a Gain server can answer the sender, at once, and nobody else."""
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as third:
        third.bind(("127.0.0.1", 0))
        third.settimeout(BOUND_S)

        def forward(conn: gain.Conn, n: int) -> Any:
            conn.send_to(conn.next(n), third.getsockname())

        with (
            server_in_thread(Recorder(on_read=forward), LOOPBACK_UDP, workers=1) as server,
            connect(server) as client,
        ):
            client.send(b"pass this on")
            assert third.recvfrom(100) == (b"pass this on", tuple(server.addresses()[0]))
