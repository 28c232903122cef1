"""SIGINT and SIGTERM at any line of ours while a server blocks the main thread: it stops in order.

Lines are counted from the call of `start` to its return, in the main thread alone: signals are
handled there. The first lines and the last are before the server's handlers are there, and after
they have gone: whoever handled signals before is told then, and a client stops the server.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

import gain_tools
import harness
import pytest
from gain_tools import LOOPBACK, Recorder
from line_signals import Lines, is_ours
from marks import ON_RING
from scenarios import evenly

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = ON_RING

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Of all lines of a run.
SAMPLE, LONG_SAMPLE = 12, 300
# Lines from a first signal to a second one: its drain has begun, and is not over.
SECOND = 40


class Client:
    """Asks a server once it is there, and stops it; in a thread of its own."""

    def __init__(self) -> None:
        self.server: gain.Server | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join(gain_tools.BOUND_S)
            assert not self._thread.is_alive()

    def found(self, server: gain.Server) -> None:
        self.server = server

    def _run(self) -> None:
        while not self._over.wait(0.001):
            server = self.server
            if server is not None and server.is_running():
                with contextlib.suppress(OSError, IndexError):  # a signal has stopped it
                    self._ask(server)
                server.async_shutdown(1)

    def _ask(self, server: gain.Server) -> None:
        with gain_tools.connect(server) as sock:
            sock.sendall(b"question")
            answer = sock.recv(8)
            assert b"question".startswith(answer)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """What whoever handled signals before is told; he handles them again afterwards."""
    told: list[int] = []

    def note(number: int, _frame: object) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    yield told
    after = {signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == {note}


def run(workers: int, number: signal.Signals, *at: int) -> int:
    """A server's life with a signal at these lines; how many lines it has."""
    client = Client()
    handler = Recorder(on_read=gain_tools.echo, on_start=client.found)
    lines = Lines(is_ours, at, number)
    threads = gain_tools.busy_threads()
    with harness.no_new_fds(collecting=True):
        with client.meanwhile(), lines.counted():
            gain.listen_and_serve(LOOPBACK, handler, workers=workers)
        server = client.server
        if server is not None:
            gain_tools.assert_ended(server, handler)
        assert len(handler.errors()) == handler.counts().accept
    gain_tools.wait_until(lambda: gain_tools.busy_threads() <= threads, "no thread is left")
    return lines.count


def signalled(workers: int, number: signal.Signals, most: int, received: list[int]) -> None:
    count = run(workers, number)
    assert received == []
    points = evenly(count, most)
    for at in points:
        run(workers, number, at)
    handled = len(points) - len(received)
    # By the server. With threads most lines of this one are before and after it.
    assert handled > len(points) / 4
    assert set(received) <= {number}
    for at in points:
        run(workers, number, at, at + SECOND)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_at_some_lines(workers: int, number: signal.Signals, received: list[int]) -> None:
    signalled(workers, number, SAMPLE, received)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_at_many_lines(workers: int, number: signal.Signals, received: list[int]) -> None:
    signalled(workers, number, LONG_SAMPLE, received)
