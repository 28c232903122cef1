"""A turn that takes long holds back no answer of those whose callbacks are done.

Several connections have a request in one turn. Whoever comes second stands still until the
peer of the first, a thread that blocks, has its answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import gain_tools
import harness
import pytest
from gain_tools import connect, secure, server_context, server_in_thread
from marks import ON_RING

from uring_trio import _kernel, gain

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = ON_RING

BUSY_S = 2e-9 * _kernel.LONG_TICK_NS  # more than what counts as long
HELLO = b"h"
GATE = b"g"  # it has its turn end when all requests are there
PEERS = 3


def compute() -> None:
    end = time.monotonic() + BUSY_S
    while time.monotonic() < end:
        pass


class Answers:
    """What the callbacks of both kinds of handlers do."""

    def __init__(self, *, quick: bool, has_deadlines: bool) -> None:
        self.quick = quick
        self.has_deadlines = has_deadlines
        self.known = 0  # connections
        self.gate: list[gain.Conn] = []
        self.stands = threading.Event()  # at the gate
        self.sent = threading.Event()  # all requests
        self.got = {bytes([name]): threading.Event() for name in range(PEERS)}
        self.begun: list[bytes] = []
        self.came: list[bool] = []

    def on_accept(self, conn: gain.Conn) -> None:
        if self.has_deadlines:
            conn.set_idle_timeout(gain_tools.BOUND_S)

    def answer(self, conn: gain.Conn, n: int) -> None:
        data = conn.next(n)
        if data == HELLO:
            self.known += 1
            return
        if data == GATE:
            self.gate.append(conn)
            self.stands.set()
            if self.quick:
                compute()  # such turns have been before
            assert self.sent.wait(harness.HANG_S / 4)
            return
        if self.begun:
            self.came.append(self.got[self.begun[0]].wait(harness.HANG_S / 4))
        elif not self.quick:
            compute()
        self.begun.append(data)
        self.reply(conn, data)

    def reply(self, conn: gain.Conn, data: bytes) -> None:
        conn.write(data)


class Plain(Answers, gain.EventHandler):
    def on_read(self, conn: gain.Conn, n: int) -> None:
        self.answer(conn, n)


class ToAnother(Plain):
    """All answers go to one connection, of which nothing has come in that turn."""

    def reply(self, conn: gain.Conn, data: bytes) -> None:
        self.gate[0].write(data)


class Async(Answers, gain.EventHandler):
    async def on_read(self, conn: gain.Conn, n: int) -> None:
        self.answer(conn, n)


def ask(handler: Answers, clients: list[Any], gate: Any) -> None:
    """All at once; each in a thread of its own receives its answer."""

    def receive(client: Any) -> None:
        with contextlib.suppress(OSError):
            while name := client.recv(1):
                handler.got[name].set()

    peers = [
        threading.Thread(target=receive, args=(client,), daemon=True) for client in (gate, *clients)
    ]
    for peer in peers:
        peer.start()
    gate.sendall(GATE)
    assert handler.stands.wait(harness.HANG_S / 4)
    for name, client in enumerate(clients):
        client.sendall(bytes([name]))
    handler.sent.set()
    for event in handler.got.values():
        assert event.wait(harness.HANG_S / 2)
    for client in (gate, *clients):
        client.shutdown(socket.SHUT_RDWR)
    for peer in peers:
        peer.join(harness.HANG_S)
    assert handler.came == [True] * (PEERS - 1), "the first answer was held back"


@pytest.mark.parametrize("quick", [False, True], ids=["slow", "quick"])
@pytest.mark.parametrize("make", [Plain, ToAnother, Async])
@pytest.mark.parametrize("way", ["plain", "deadlines", "tls"])
def test_an_answer_leaves_before_the_next_callback(
    make: Callable[..., Any], way: str, quick: bool
) -> None:
    handler = make(quick=quick, has_deadlines=way == "deadlines")
    options: dict[str, Any] = {"tls": server_context()} if way == "tls" else {}
    with server_in_thread(handler, workers=1, **options) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(PEERS + 1)]
        if way == "tls":
            clients = [stack.enter_context(secure(client)) for client in clients]
        gate, *others = clients
        for client in clients:  # each is known, and has its deadline
            client.sendall(HELLO)
        gain_tools.wait_until(lambda: handler.known == len(clients))
        ask(handler, others, gate)
