"""The load generator against plain threaded servers, and against bad ones.

It must report truly, and end on time whatever the server does.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks import c_programs, system_calls
from benchmarks.loadgen import LoadOptions, LoadReport, measure_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Long enough for hundreds of round trips, short enough for a unit test.
SECONDS = 0.2
# The drain that follows the window ends after 2 s at the latest, see loadgen.c.
DRAIN_LIMIT_S = 2.0
# What a loaded machine may add to a bound.
GRACE_S = 2.0


def echo(conn: socket.socket) -> None:
    while data := conn.recv(65536):
        conn.sendall(data)


def late_echo(conn: socket.socket) -> None:
    """So that the load sleeps in between."""
    while data := conn.recv(1 << 16):
        time.sleep(0.005)
        conn.sendall(data)


def serve_connections(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    """Accept until the listener is shut down; handle each connection in a thread."""
    threads, conns = [], []
    with contextlib.suppress(OSError):
        while True:
            conn, _ = listener.accept()
            conns.append(conn)
            threads.append(threading.Thread(target=handle_one, args=(conn, handle)))
            threads[-1].start()
    for conn in conns:
        with contextlib.suppress(OSError):
            conn.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


def handle_one(conn: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    with conn, contextlib.suppress(OSError):
        handle(conn)


@contextlib.contextmanager
def server(handle: Callable[[socket.socket], None] = echo) -> Iterator[int]:
    """A server on a free port of 127.0.0.1, gone with all its threads at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=serve_connections, args=(listener, handle))
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()


def load(port: int, **options: Any) -> LoadReport:
    return measure_load(LoadOptions(port=port, seconds=SECONDS, **options))


@pytest.mark.parametrize(
    ("connections", "message_bytes"),
    [(1, 1), (1, 64), (8, 1024), (2, 100_000), (2, 262_144), (1, 1 << 20)],
)
def test_messages_come_back_whole_and_are_counted(connections: int, message_bytes: int) -> None:
    with server() as port:
        report = load(port, connections=connections, message_bytes=message_bytes)
    assert report.errors == 0
    assert report.messages > 0
    assert report.bytes == report.messages * message_bytes
    assert report.messages_per_second > 0


# ---- kinds -------------------------------------------------------------------------------


@contextlib.contextmanager
def unix_server() -> Iterator[int]:
    """The echo server on a UNIX socket, by the number in its name."""
    number = os.getpid() % 65536
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0uring_trio-benchmark-{number}")
        listener.listen()
        acceptor = threading.Thread(target=serve_connections, args=(listener, echo))
        acceptor.start()
        try:
            yield number
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()


@contextlib.contextmanager
def udp_server(lose_each: int = 0) -> Iterator[int]:
    """Each datagram goes back, but for those that are lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

        def serve() -> None:
            count = 0
            while True:
                data, sender = sock.recvfrom(65536)
                if data == b"end":
                    return
                count += 1
                if not lose_each or count % lose_each:
                    sock.sendto(data, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", ("127.0.0.1", port))
            thread.join()


def test_unix_sockets() -> None:
    with unix_server() as number:
        report = load(number, kind="unix", connections=2)
    assert report.errors == 0
    assert report.messages > 0


def test_datagrams_and_each_that_is_lost_stalls_its_connection() -> None:
    with udp_server() as port:
        report = load(port, kind="udp", connections=2)
    assert (report.errors, report.messages > 0) == (0, True)
    with udp_server(lose_each=3) as port:
        report = load(port, kind="udp", connections=2)
    assert (report.stalled, report.errors) == (2, 2)
    assert report.messages <= 4


def test_one_way_counts_what_was_taken_and_given() -> None:
    def swallow(conn: socket.socket) -> None:
        while conn.recv(1 << 18):
            pass

    def pour(conn: socket.socket) -> None:
        while True:
            conn.sendall(bytes(1 << 18))

    for kind, handle in (("send", swallow), ("receive", pour)):
        with server(handle) as port:
            report = load(port, kind=kind, connections=2, message_bytes=1 << 16)
        assert report.errors == 0
        assert report.messages == report.bytes >> 16 > 0
        assert report.p50_ns == 0


def give_a_byte(conn: socket.socket) -> None:
    conn.sendall(b"x")


def answer_once(conn: socket.socket) -> None:
    conn.sendall(conn.recv(1024, socket.MSG_WAITALL))


@pytest.mark.parametrize(
    ("kind", "message_bytes", "handle"), [("accept", 1, give_a_byte), ("ask", 1024, answer_once)]
)
def test_short_connections_are_counted_one_by_one(
    kind: str, message_bytes: int, handle: Callable[[socket.socket], None]
) -> None:
    accepted = []

    def note(conn: socket.socket) -> None:
        accepted.append(conn)
        handle(conn)

    with server(note) as port:
        report = load(port, kind=kind, connections=3, message_bytes=message_bytes)
    assert report.errors == 0
    assert 3 < report.messages <= len(accepted)
    assert report.bytes == report.messages * message_bytes
    assert 0 < report.p50_ns <= report.p99_ns


@pytest.mark.parametrize(
    ("answer", "mismatches", "disconnects"),
    [(b"y", 2, 0), (b"xx", 2, 0), (b"", 0, 2)],
)
def test_short_connections_with_a_wrong_answer_are_given_up(
    answer: bytes, mismatches: int, disconnects: int
) -> None:
    with server(lambda conn: conn.sendall(answer)) as port:
        report = load(port, kind="accept", connections=2, message_bytes=1)
    assert (report.mismatches, report.disconnects) == (mismatches, disconnects)
    assert report.messages == 0


def test_the_connection_that_has_the_fewest_messages_is_told() -> None:
    first = threading.Event()

    def favour(conn: socket.socket) -> None:
        """One connection has all its answers at once, the other after some time."""
        slow = first.is_set()
        first.set()
        while data := conn.recv(65536):
            if slow:
                time.sleep(SECONDS / 8)
            conn.sendall(data)

    with server(favour) as port:
        report = load(port, connections=2)
    assert 0 < report.fewest <= 8 < report.messages


def test_system_calls_are_those_of_the_window() -> None:
    if reason := system_calls.denied():
        pytest.skip(reason)
    with server(late_echo) as port, system_calls.counters(os.getpid()) as fds:
        report = load(port, warmup_seconds=0.1, call_counters=fds)
        late = load(port)
    # A receive, a sleep and a send for each, and what else this process does meanwhile.
    assert 3 * report.messages - 3 <= report.server_calls < 10 * report.messages + 100
    assert late.server_calls == 0


# ---- what it reports ---------------------------------------------------------------------


def test_signals_are_no_errors_of_the_load() -> None:
    """Stopped and gone on, its waits end with EINTR, and there need be no handler (signal(7))."""
    with server(late_echo) as port:
        command = [
            str(c_programs.build("loadgen")),
            *map(str, (port, 2, 64, 0, 200_000_000, -1, 0)),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            stops = 0
            while process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                process.send_signal(signal.SIGCONT)
                stops += 1
                time.sleep(0.002)
            assert process.stdout is not None
            words = process.stdout.read().split()
    assert stops > 1
    assert words[0] == "messages", words
    values = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert values["messages"] > 0
    assert values["mismatches"] == values["disconnects"] == values["stalled"] == 0


def test_times_are_in_order_and_the_window_is_as_long_as_asked() -> None:
    with server() as port:
        report = load(port, connections=2)
    assert 0 < report.p50_ns <= report.p99_ns <= report.max_ns * 1.01
    assert SECONDS * 1e9 <= report.elapsed_ns < (SECONDS + GRACE_S) * 1e9
    assert 0 < report.load_cpu_ns <= report.elapsed_ns * 1.1


def test_warm_up_is_not_counted() -> None:
    with server() as port:
        report = load(port, warmup_seconds=0.1)
    assert SECONDS * 1e9 <= report.elapsed_ns < (SECONDS + 0.1) * 1e9
    assert report.messages > 0


def test_server_cpu_is_that_of_the_process_asked_for() -> None:
    with server() as port:
        assert load(port).server_cpu_ns == 0
        before, before_here = time.process_time_ns(), time.thread_time_ns()
        report = load(port, connections=2, server_pid=os.getpid())
        spent, spent_here = time.process_time_ns() - before, time.thread_time_ns() - before_here
    # The server is in other threads of this process, and the load is in none.
    assert spent_here < report.server_cpu_ns <= spent
    assert report.load_cpu_ns > 0
    assert report.server_cpu_us_per_message > 0


def test_changed_bytes_are_a_mismatch_and_end_the_connection() -> None:
    def spoil(conn: socket.socket) -> None:
        while data := conn.recv(65536):
            conn.sendall(data[:-1] + bytes([data[-1] ^ 1]))

    with server(spoil) as port:
        report = load(port, connections=3)
    assert (report.mismatches, report.messages, report.stalled) == (3, 0, 0)


def test_a_repeated_reply_is_a_mismatch() -> None:
    def stale(conn: socket.socket) -> None:
        first = conn.recv(65536)
        conn.sendall(first)
        while conn.recv(65536):
            conn.sendall(first)

    with server(stale) as port:
        report = load(port, connections=1)
    assert (report.mismatches, report.messages) == (1, 1)


def test_a_byte_too_many_is_a_mismatch() -> None:
    def generous(conn: socket.socket) -> None:
        while data := conn.recv(65536):
            conn.sendall(data + b"!")

    with server(generous) as port:
        assert load(port).mismatches == 1


def test_a_closed_connection_is_a_disconnect() -> None:
    def leave(conn: socket.socket) -> None:
        conn.sendall(conn.recv(65536))

    with server(leave) as port:
        report = load(port, connections=2)
    assert (report.disconnects, report.messages) == (2, 2)


def test_a_silent_server_is_a_stall_and_does_not_hang_the_load() -> None:
    def swallow(conn: socket.socket) -> None:
        while conn.recv(65536):
            pass

    started = time.monotonic()
    with server(swallow) as port:
        report = load(port, connections=2)
    assert (report.stalled, report.messages) == (2, 0)
    assert time.monotonic() - started < SECONDS + DRAIN_LIMIT_S + GRACE_S
    # No message means no figures, and no division by zero.
    assert (report.p50_ns, report.p99_ns, report.messages_per_second) == (0, 0, 0.0)
    assert math.isnan(report.server_cpu_us_per_message)


def test_nobody_listening_raises_with_the_stage() -> None:
    with server() as port:
        pass
    with pytest.raises(ConnectionRefusedError, match="connect: "):
        load(port)


@pytest.mark.parametrize(
    "wrong",
    [{"connections": 0}, {"message_bytes": 0}, {"cpu": 1 << 20}, {"cpu": 1023}, {"kind": "ehco"}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with server() as port, pytest.raises(OSError, match="Invalid argument"):
        load(port, **wrong)


def test_the_load_is_pinned_and_its_caller_is_not() -> None:
    cpus = os.sched_getaffinity(0)
    with server() as port:
        report = load(port, connections=2, cpu=min(cpus))
    assert report.errors == 0
    assert report.messages > 0
    assert os.sched_getaffinity(0) == cpus


@pytest.mark.parametrize(
    "words", [[], ["1"] * 6, ["1"] * 8, ["soon", *["1"] * 6], [*["1"] * 6, ""]]
)
def test_a_command_line_that_is_none_is_refused(words: list[str]) -> None:
    command = [str(c_programs.build("loadgen")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"failed {errno.EINVAL} options\n"


def test_a_program_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_programs, "build", lambda _name: "/bin/false")
    with pytest.raises(RuntimeError, match="ended with 1"):
        load(1)
