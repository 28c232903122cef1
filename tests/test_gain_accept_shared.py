"""Several processes, or workers, on one listener: no connection waits beside who is idle.

What takes the wake-up of a connection and does not serve it (because it is busy, stopped,
killed, or about to leave) must not be the only one that was woken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
from gain_accept_worker import share
from gain_tools import BOUND_S, Recorder, connect, server_in_thread, wait_until
from marks import ON_RING, needs_ring

from uring_trio import gain
from uring_trio._beside import Name, try_accept
from uring_trio._kernel import EAGAIN
from uring_trio.gain import _accept, _listen

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_ring

WORKER = Path(__file__).with_name("gain_accept_worker.py")
SOON_S = 0.1  # stock trio takes 4 to 17 ms
NETWORKS = ["tcp", "unix"]


@contextlib.contextmanager
def listening(network: str) -> Iterator[socket.socket]:
    if network == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")  # the kernel gives it an abstract name
    else:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
    with listener:
        listener.listen(512)
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def processes(listener: socket.socket, *hows: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One for each, named by its number, all of them listening."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, how in enumerate(hows):
            process = subprocess.Popen(
                [sys.executable, str(WORKER), str(listener.fileno()), str(number), how],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(end, process)
            assert process.stdout is not None
            assert process.stdout.read(1) == b"r"
            found.append(process)
        yield found


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def served(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    out, _ = process.communicate(timeout=BOUND_S)
    return int(out)


# What another process does with the wake-up


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("how", ["busy", "stopped", "killed", "closing"])
def test_the_wake_up_of_another_process_is_not_lost(network: str, how: str) -> None:
    first = {"stopped": "idle", "killed": "busy"}.get(how, how)
    with listening(network) as listener, processes(listener, first, "idle") as (odd, _):
        if how == "stopped":
            odd.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, odd.pid, os.WSTOPPED | os.WNOWAIT)
        started = time.monotonic()
        with connect(listener) as client:
            if how == "killed":
                odd.kill()
            assert client.recv(1) == b"1"
            assert time.monotonic() - started < SOON_S
        if how == "closing":
            odd.communicate(b"x", timeout=BOUND_S)
            with connect(listener) as client:
                assert client.recv(1) == b"1"


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_busy_process_leaves_is_served_by_others(network: str) -> None:
    with listening(network) as listener, processes(listener, "busy", "idle"):
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(listener)) for _ in range(40)]
            assert {client.recv(1) for client in clients} == {b"1"}
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("burst", [1, 16])
def test_idle_processes_share(network: str, burst: int) -> None:
    total = 2400
    with listening(network) as listener, processes(listener, *["idle"] * 4) as four:
        for _ in range(total // burst):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(listener)) for _ in range(burst)]
                assert all(client.recv(1) for client in clients)
        counts = [served(each) for each in four]
    assert sum(counts) == total
    assert max(counts) <= total / 2, counts


# Workers of one server


class ByThread(gain.EventHandler):
    """Counts the connections of each worker."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def on_accept(self, conn: gain.Conn) -> None:
        self.counts[threading.get_ident()] += 1
        conn.write(b"x")
        conn.close()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, network: str) -> Iterator[socket.socket]:
    """A listener that the workers of the next server share."""
    monkeypatch.setattr(_listen, "bind", _listen.bind)  # put back at the end
    with listening(network) as listener:
        share(listener)
        yield listener


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("architecture", ["reactor", "sharding"])
@pytest.mark.parametrize("burst", [1, 16])
def test_idle_workers_share(shared: socket.socket, architecture: str, burst: int) -> None:
    total = 2400
    handler = ByThread()
    with server_in_thread(handler, workers=4, architecture=architecture):
        for _ in range(total // burst):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(shared)) for _ in range(burst)]
                assert all(client.recv(1) for client in clients)
    assert sum(handler.counts.values()) == total
    assert max(handler.counts.values()) <= total / 2, handler.counts


@pytest.mark.parametrize("network", NETWORKS)
def test_a_worker_in_a_callback_takes_nothing(shared: socket.socket) -> None:
    """What comes meanwhile is still the kernel's, and whoever asks for it has it."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(_conn: gain.Conn) -> None:
        inside.set()
        assert go_on.wait(BOUND_S)

    handler = Recorder(on_accept=hold)
    with server_in_thread(handler, workers=1), connect(shared) as first:
        assert inside.wait(BOUND_S)
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(connect(shared))
            time.sleep(0.05)
            for _ in range(5):
                shared.accept()[0].close()
            with pytest.raises(BlockingIOError):
                shared.accept()
        go_on.set()
        first.close()
        wait_until(lambda: handler.counts().close == 1)
    assert handler.counts().accept == 1


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_there_is_no_room_for_is_not_taken(shared: socket.socket, workers: int) -> None:
    handler = Recorder()
    with (
        server_in_thread(handler, workers=workers, max_connections=2) as server,
        connect(shared) as one,
        connect(shared) as two,
    ):
        wait_until(lambda: handler.counts().accept == 2)
        with connect(shared):
            time.sleep(0.05)
            assert server.active_connections() == 2
            shared.accept()[0].close()
        one.close()
        two.close()
        wait_until(lambda: handler.counts().close == 2)
        with connect(shared):
            wait_until(lambda: handler.counts().accept == 3)


@pytest.mark.parametrize("network", NETWORKS)
def test_places_hold_while_many_come_and_go(shared: socket.socket) -> None:
    most = 3
    high = [0]
    lock = threading.Lock()

    class Counting(gain.EventHandler):
        now = 0

        def on_accept(self, conn: gain.Conn) -> None:
            with lock:
                self.now += 1
                high[0] = max(high[0], self.now)
            conn.write(b"x")

        def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
            with lock:
                self.now -= 1

    def visit() -> None:
        for _ in range(50):
            with connect(shared) as client:
                assert client.recv(1) == b"x"

    with server_in_thread(Counting(), workers=4, max_connections=most):
        threads = [threading.Thread(target=visit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(6 * BOUND_S)
        assert not any(thread.is_alive() for thread in threads)
    assert 1 <= high[0] <= most


class TestOnTheRing:
    pytestmark = ON_RING

    @pytest.mark.parametrize("options", [{}, {"max_connections": 5}], ids=["free", "limited"])
    async def test_a_connection_that_comes_with_the_shutdown(self, options: dict[str, Any]) -> None:
        """The listener is let go of once, though its poll has told of a connection."""
        handler = Recorder()
        async with gain_tools.serving(handler, **options) as server:
            address = server.addresses()[0]
            with socket.create_connection(address[:2]):
                await gain_tools.until(lambda: handler.counts().accept == 1)
                worker = handler.conn.worker
                (acceptor,) = worker.admission._acceptors
                assert server._serving is not None
                serving = server._serving
                real = acceptor.complete

                def shut_down_then_complete(slot: int, res: int, flags: int, offset: int) -> None:
                    real(slot, res, flags, offset)
                    # Before the turn in which it would accept.
                    serving.stop(1)
                    worker.begin_shutdown(1)

                acceptor.complete = shut_down_then_complete
                with socket.create_connection(address[:2]) as late:
                    await gain_tools.until(lambda: handler.counts().close == 1)
                    late.settimeout(BOUND_S)
                    with contextlib.suppress(ConnectionResetError):
                        assert late.recv(1) == b""
        assert handler.counts().accept == 1


# A listener that somebody has set to blocking


def set_blocking(listener: socket.socket) -> None:
    """For all who share it, as another process might."""
    flags = fcntl.fcntl(listener, fcntl.F_GETFL)
    fcntl.fcntl(listener, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"max_connections": 1}], ids=["free", "limited"])
def test_a_blocking_listener_does_not_block_the_loop(
    shared: socket.socket, options: dict[str, Any]
) -> None:
    ticks = [0]

    class Ticking(Recorder):
        def on_tick(self, _server: gain.Server) -> None:
            ticks[0] += 1

    def go_on_ticking() -> None:
        before = ticks[0]
        wait_until(lambda: ticks[0] > before + 3, "the loop goes on")

    handler = Ticking(on_accept=lambda conn: conn.write(b"x"))
    with server_in_thread(handler, workers=1, tick=0.01, **options):
        set_blocking(shared)
        go_on_ticking()
        for count in range(1, 6):
            with connect(shared) as client:
                assert client.recv(1) == b"x"
            go_on_ticking()
            wait_until(lambda: handler.counts().close == count)  # noqa: B023  waits in this turn
        shared.setblocking(False)
        with connect(shared) as client:
            assert client.recv(1) == b"x"


@pytest.mark.parametrize("network", NETWORKS)
def test_a_blocking_listener_whose_connections_others_take(shared: socket.socket) -> None:
    """Each wakes all four workers, and one has it: the others must not wait in accept4."""
    handler = ByThread()
    with server_in_thread(handler, workers=4, architecture="sharding") as server:
        set_blocking(shared)
        for _ in range(50):
            with connect(shared) as client:
                assert client.recv(1) == b"x"
        started = time.monotonic()
        assert len(server.statistics().workers) == 4  # each of them answers
        assert time.monotonic() - started < 0.5
    assert sum(handler.counts.values()) == 50


def test_a_blocking_listener_keeps_no_place_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told of a connection that somebody else has: there is none to keep a place for."""
    bound: list[Any] = []
    bind = _listen.bind

    def note(*args: Any) -> Any:
        bound.extend(bind(*args))
        return bound

    stolen = threading.Event()

    def try_accept_too_late(fd: int, *args: Any) -> int:
        [[listener, _]] = bound
        if fd == listener.sock.fileno() and not stolen.is_set():
            set_blocking(listener.sock)
            listener.sock.accept()[0].close()
            stolen.set()
        return int(try_accept(fd, *args))

    monkeypatch.setattr(_listen, "bind", note)
    monkeypatch.setattr(_accept, "try_accept", try_accept_too_late)
    handler = Recorder()
    addresses = [gain_tools.LOOPBACK] * 2
    with server_in_thread(handler, addresses, workers=1, max_connections=1) as server:
        with connect(server.addresses()[0]):
            assert stolen.wait(BOUND_S)
        with connect(server.addresses()[1]):
            wait_until(lambda: handler.counts().accept == 1, "the other listener accepts")
        wait_until(lambda: handler.counts().close == 1)
        with connect(server.addresses()[0]):
            wait_until(lambda: handler.counts().accept == 2, "and this one, as before")


def test_try_accept_takes_what_is_there_and_never_blocks() -> None:
    peer = Name()
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with listening("tcp") as listener:
        fd = listener.fileno()
        assert try_accept(fd, flags, peer.c) == EAGAIN
        with connect(listener) as client:
            accepted = try_accept(fd, flags, peer.c)
            assert accepted >= 0
            assert peer.address == client.getsockname()
            assert fcntl.fcntl(accepted, fcntl.F_GETFL) & os.O_NONBLOCK
            assert fcntl.fcntl(accepted, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.close(accepted)
        set_blocking(listener)
        assert try_accept(fd, flags, peer.c) == -errno.EDEADLK
    assert try_accept(fd, flags, peer.c) == -errno.EBADF
