"""SIGINT and SIGTERM while `start` blocks the main thread, and no signals otherwise.

A test here is the main thread itself: the server starts in it, and a thread of the test
sends the signals. Where a signal should end the program, it is a program of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import gain_tools
import pytest
import trio
from gain_tools import LOOPBACK, Recorder, connect, wait_until
from marks import ON_RING

from uring_trio import gain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = ON_RING

BOUND_S = gain_tools.BOUND_S
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Run ``act`` in a thread; it must have gone well."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as exc:  # noqa: BLE001  raised in the test's own thread
            errors.append(exc)
            send(signal.SIGTERM)  # the server would wait for ever

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(BOUND_S)
    assert not thread.is_alive()
    for error in errors:
        raise error


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[Any]]:
    """Handlers of our own, which must be there again at the end and never be called."""
    received: list[Any] = []

    def note(number: int, frame: object) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    yield received
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert set(after.values()) == {note}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_shuts_down_and_start_returns(
    workers: int, number: signal.Signals, handlers: list[int]
) -> None:
    handler = Recorder(on_read=gain_tools.echo)
    server = gain.Server(handler, gain.Config(workers=workers))

    def stop() -> None:
        wait_until(server.is_running)
        with connect(server) as client:
            client.sendall(b"question")
            assert client.recv(8) == b"question"
            send(number)
            assert client.recv(1) == b""

    with meanwhile(stop):
        server.start(LOOPBACK)
    assert handlers == []
    assert handler.errors() == [None]


@pytest.mark.parametrize("workers", [1, 2])
def test_first_signal_drains_and_the_second_aborts(workers: int, handlers: list[int]) -> None:
    handler = Recorder(on_accept=lambda conn: conn.write(gain_tools.CLOGGING))
    server = gain.Server(handler, gain.Config(workers=workers))

    def stop_twice() -> None:
        wait_until(server.is_running)
        with connect(server):  # it reads nothing
            wait_until(lambda: handler.conns)
            send(signal.SIGTERM)
            wait_until(lambda: not server.is_running())
            time.sleep(0.1)  # in which a drain is not over
            assert handler.errors() == []
            send(signal.SIGINT)
            wait_until(handler.errors)

    begin = time.monotonic()
    with meanwhile(stop_twice):
        server.start(LOOPBACK)
    assert time.monotonic() - begin < 2
    assert handler.errors() == [None]
    assert handlers == []


def test_signal_during_on_start_ends_before_anything_is_accepted() -> None:
    handler = Recorder(on_start=lambda server: send(signal.SIGTERM))
    gain.listen_and_serve(LOOPBACK, handler, workers=1)
    gain.listen_and_serve(LOOPBACK, handler, workers=2)
    assert handler.starts == 2


def test_handlers_are_back_after_a_failed_start() -> None:
    with pytest.raises(gain.AddressError):
        gain.listen_and_serve("tcp://name.invalid:0", Recorder())


def test_handler_set_meanwhile_is_left_alone(handlers: list[int]) -> None:
    others: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def on_start(server: gain.Server) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: others.append(number))
        server.async_shutdown()

    gain.listen_and_serve(LOOPBACK, Recorder(on_start=on_start), workers=1)
    signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert others == [signal.SIGINT]


def test_start_in_another_thread_leaves_signals_alone(handlers: list[int]) -> None:
    with gain_tools.server_in_thread(Recorder(), workers=1) as server:
        signal.raise_signal(signal.SIGINT)
        assert handlers == [signal.SIGINT]
        assert server.is_running()


@pytest.mark.parametrize("workers", [1, 2])
async def test_serve_leaves_signals_alone(workers: int, handlers: list[int]) -> None:
    server = gain.Server(Recorder(), gain.Config(workers=workers))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, LOOPBACK)
        for number in SIGNALS:
            signal.raise_signal(number)
        await trio.sleep(0.01)
        assert server.is_running()
        server.async_shutdown()
    assert handlers == list(SIGNALS)


# --- Programs ---


def run_program(text: str, *, stop: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """Exit code and output of a program that prints "ready" when ``stop`` may act."""
    program = [sys.executable, "-c", textwrap.dedent(text)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            stop(process)
            output, _ = process.communicate(timeout=BOUND_S)
        finally:
            process.kill()
    return process.returncode, output


STUCK = """
    import socket, threading, time
    from uring_trio import gain

    class Handler(gain.EventHandler):
        def on_start(self, server):
            self.client = socket.create_connection(server.addresses()[0])
            self.client.sendall(b"x")

        def on_read(self, conn, n):
            print("ready", flush=True)
            while True:
                time.sleep(0.01)
"""


def test_third_signal_interrupts_a_callback_that_never_returns() -> None:
    def stop(process: subprocess.Popen[str]) -> None:
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)  # or the kernel makes one of two

    text = (
        STUCK
        + """
    gain.listen_and_serve("tcp://127.0.0.1:0", Handler(), workers=1)
    """
    )
    code, output = run_program(text, stop=stop)
    assert code in (1, -signal.SIGINT)
    assert output.endswith("KeyboardInterrupt\n")


def test_thread_that_is_left_behind_does_not_keep_the_program() -> None:
    text = (
        STUCK
        + """
    gain.listen_and_serve("tcp://127.0.0.1:0", Handler(), workers=2)
    print("returned")
    """
    )

    def stop(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)

    code, output = run_program(text, stop=stop)
    assert code == 0
    assert "is left behind" in output
    assert output.endswith("returned\n")


def test_server_in_a_daemon_thread_does_not_keep_the_program() -> None:
    text = """
    import threading, time
    from uring_trio import gain

    server = gain.Server(gain.EventHandler(), gain.Config(workers=2))
    threading.Thread(target=server.start, args=("tcp://127.0.0.1:0",), daemon=True).start()
    while not server.is_running():
        time.sleep(0.001)
    print("ready", flush=True)
    """
    assert run_program(text, stop=lambda process: None) == (0, "")
