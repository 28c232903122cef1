"""Each example of a callback server, as a program of its own against real sockets."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.ring_only, pytest.mark.usefixtures("backend")]

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT_S = 20

WORKERS = [1, 2]

GET = b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"


def command_of(example: str, *arguments: int) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / example), *map(str, arguments)]


@contextlib.contextmanager
def running(example: str, *arguments: int) -> Iterator[tuple[str, int]]:
    """A server's address while it runs; then SIGINT, after which all must have gone well."""
    with started(example, *arguments) as (process, address):
        yield address
        process.send_signal(signal.SIGINT)
        assert_ended_well(process)


@contextlib.contextmanager
def started(
    example: str, *arguments: int
) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """A server and its address; killed if it still runs at the end."""
    with subprocess.Popen(
        command_of(example, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"listening on (?:http://)?127\.0\.0\.1:(\d+)\n", line)
            assert match is not None, line or process.communicate(timeout=LIMIT_S)[1]
            yield process, ("127.0.0.1", int(match[1]))
        finally:
            process.kill()


def assert_ended_well(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=LIMIT_S)


# ---- all of them ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("example", ["gain_http.py", "gain_chat.py"])
def test_a_signal_ends_it_with_clients_connected(
    example: str, stop: signal.Signals, workers: int
) -> None:
    with started(example, 0, workers) as (process, address), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(10)]
        for client in clients:
            # Both of them answer, so that the connection is known to have been accepted.
            client.sendall(GET)
            assert client.recv(5)
        process.send_signal(stop)
        for client in clients:
            with client.makefile("rb") as replies:
                replies.read()  # up to the end of file, and not a reset
        assert_ended_well(process)


# ---- gain_echo.py -----------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def default_workers() -> int:
    is_gil_enabled = getattr(sys, "_is_gil_enabled", lambda: True)
    return 1 if is_gil_enabled() else len(os.sched_getaffinity(0))


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def test_tutorial_prints_a_line_for_each_callback_and_ends_by_itself() -> None:
    done = subprocess.run(
        command_of("gain_echo.py", free_port()),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    warnings = [record for record in records if record["level"] == "warning"]
    assert [record["message"] for record in warnings] == ["Closing connections"] * default_workers()

    of_remote = collections.defaultdict(list)
    for record in records:
        if record not in warnings:
            of_remote[record.pop("remote address")].append(record)
    assert len(of_remote) == 2
    for remote, (accepted, *others) in of_remote.items():
        assert re.fullmatch(r"127\.0\.0\.1:\d+", remote)
        # The first is 2 as well if both were accepted in one turn of the worker.
        assert accepted.pop("active connections") in (1, 2)
        assert [accepted, *others] == [
            {"level": "info", "message": "New connection accepted"},
            {"level": "info", "message": "Bytes received from remote peer", "bytes": 4},
            {"level": "info", "message": "Bytes sent to remote peer", "bytes": 4},
            {"level": "info", "message": "Connection from remote peer closed by server"},
        ]


# ---- gain_http.py -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=WORKERS)
def http_address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with running("gain_http.py", 0, request.param) as address:
        yield address


GET_LAST = b"GET / HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n"
GET_MISSING = b"GET /missing HTTP/1.1\r\nHost: example\r\n\r\n"

ANSWER = re.compile(
    rb"HTTP/1\.1 (\d+) [\w -]+\r\n"
    rb"(?:Allow: GET, HEAD\r\n|Content-Type: text/plain; charset=utf-8\r\n)?"
    rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n"
    rb"Content-Length: (\d+)\r\n"
    rb"(?:Connection: close\r\n)?\r\n"
    rb"((?:Hello, World!\n)?)"
)


def statuses(received: bytes) -> list[int]:
    """The status of each answer; what is received must be answers from end to end."""
    found = []
    position = 0
    while position < len(received):
        match = ANSWER.match(received, position)
        assert match is not None, received[position : position + 1000]
        assert len(match[3]) == int(match[2])
        found.append(int(match[1]))
        position = match.end()
    return found


def until_closed(address: tuple[str, int], *pieces: bytes) -> bytes:
    """All that the server says, if the pieces are sent one by one."""
    with connect(address) as conn, conn.makefile("rb") as replies:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            conn.sendall(piece)
        return replies.read()


def test_http_keeps_a_connection(http_address: tuple[str, int]) -> None:
    client = http.client.HTTPConnection(*http_address, timeout=LIMIT_S)
    with contextlib.closing(client):
        for method, path, body, expected in [
            ("GET", "/", None, (200, b"Hello, World!\n")),
            ("HEAD", "/", None, (200, b"")),
            ("GET", "/?query", None, (200, b"Hello, World!\n")),
            ("GET", "/missing", None, (404, b"")),
            ("POST", "/", b"x" * 300_000, (405, b"")),
            ("GET", "/", None, (200, b"Hello, World!\n")),
        ]:
            client.request(method, path, body)
            first = client.sock
            answer = client.getresponse()
            assert (answer.status, answer.read()) == expected
            assert answer.headers["Date"].endswith(" GMT")
            assert client.sock is first


def test_http_answers_pipelined_requests_in_order(http_address: tuple[str, int]) -> None:
    requests = [GET, GET_MISSING] * 8
    assert statuses(until_closed(http_address, b"".join([*requests, GET_LAST]))) == [
        *[200, 404] * 8,
        200,
    ]


def test_http_answers_more_than_fits_into_any_buffer(http_address: tuple[str, int]) -> None:
    assert statuses(until_closed(http_address, GET * 20_000 + GET_LAST)) == [200] * 20_001


@pytest.mark.parametrize("size", [1, 7, 33])
def test_http_puts_pieces_together(http_address: tuple[str, int], size: int) -> None:
    post = b"POST / HTTP/1.1\r\nHost: example\r\nContent-Length: 9\r\n\r\nGET / HTT"
    data = GET + post + GET_LAST
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert statuses(until_closed(http_address, *pieces)) == [200, 405, 200]


@pytest.mark.parametrize(
    "request_",
    [
        GET_LAST,
        b"GET / HTTP/1.1\r\nHost: example\r\nConnection: Foo , CLOSE\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_http_closes_when_asked_and_answers_nothing_after(
    http_address: tuple[str, int], request_: bytes
) -> None:
    received = until_closed(http_address, request_ + GET)
    assert statuses(received) == [200]
    assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / / HTTP/1.1\r\nHost: example\r\n\r\n", 400),
        (b"G:T / HTTP/1.1\r\nHost: example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: example\r\n folded\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: example\r\n\r\n", 505),
        (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: example\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 8192, 431),
    ],
)
def test_http_refuses_after_answering_what_came_before(
    http_address: tuple[str, int], request_: bytes, status: int
) -> None:
    assert statuses(until_closed(http_address, GET + request_)) == [200, status]


def test_http_date_is_renewed(http_address: tuple[str, int]) -> None:
    dates: set[bytes] = set()
    deadline = time.monotonic() + LIMIT_S
    while len(dates) < 2 and time.monotonic() < deadline:
        dates |= set(re.findall(rb"Date: (.+)\r\n", until_closed(http_address, GET_LAST)))
        time.sleep(0.2)  # by the wall clock it must be another second in the end
    assert len(dates) == 2


# ---- gain_udp.py ------------------------------------------------------------------------


def udp_client(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(LIMIT_S)
    sock.connect(address)
    return sock


@pytest.mark.parametrize("workers", WORKERS)
def test_udp_echoes_and_sends_copies_to_subscribers(workers: int) -> None:
    with (
        running("gain_udp.py", 0, workers) as address,
        udp_client(address) as first,
        udp_client(address) as second,
        udp_client(address) as speaker,
    ):
        for subscriber in (first, second):
            subscriber.send(b"subscribe")
            assert subscriber.recv(100) == b"subscribed"
        for data in (b"hello", b"", b"x" * 65_507):
            speaker.send(data)
            assert [sock.recv(70_000) for sock in (speaker, first, second)] == [data] * 3
        first.send(b"from a subscriber")
        # Its own copy and the echo.
        assert [first.recv(100) for _ in range(2)] == [b"from a subscriber"] * 2
        assert second.recv(100) == b"from a subscriber"


# ---- gain_chat.py -----------------------------------------------------------------------


class ChatClient:
    """A connection that has said its name."""

    def __init__(self, address: tuple[str, int], name: str, present: list[ChatClient]) -> None:
        self.sock = connect(address)
        self.lines = self.sock.makefile("rb")
        assert self.hear() == "your name?"
        self.say(name)
        for client in present:
            assert client.hear() == f"{name} joined"
        if not present and name != "probe":
            self.wait_until_a_member(address)
        present.append(self)

    def wait_until_a_member(self, address: tuple[str, int]) -> None:
        """Else another worker may be quicker, and tell the next one's name to nobody."""
        probe = ChatClient(address, "probe", [])
        with contextlib.closing(probe):
            # Of the two, the one that joins first is told of the other.
            assert select.select([self.sock, probe.sock], [], [], LIMIT_S)[0]
        while self.hear() != "probe left":
            pass

    def say(self, *lines: str) -> None:
        self.sock.sendall("".join(f"{line}\n" for line in lines).encode())

    def hear(self) -> str:
        return self.lines.readline().decode().removesuffix("\n")

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


@pytest.mark.parametrize("workers", WORKERS)
def test_chat_tells_everybody_else_in_order(workers: int) -> None:
    with running("gain_chat.py", 0, workers) as address, contextlib.ExitStack() as stack:
        present: list[ChatClient] = []
        for name in ("Ada", "Bob", "Čeněk", "Dora"):
            client = ChatClient(address, name, present)
            stack.callback(client.close)
        for speaker, name in zip(present, ("Ada", "Bob", "Čeněk", "Dora"), strict=True):
            said = [f"{number} of {name}" for number in range(1000)]
            speaker.say(*said)
            for client in present:
                if client is not speaker:
                    assert [client.hear() for _ in said] == [f"{name}: {line}" for line in said]
        gone = present.pop()
        gone.close()
        assert [client.hear() for client in present] == ["Dora left"] * 3


def test_chat_gives_up_a_line_without_end() -> None:
    with (
        running("gain_chat.py", 0, 2) as address,
        connect(address) as conn,
        conn.makefile("rb") as replies,
    ):
        conn.sendall(b"x" * 2000)
        assert replies.read() == b"your name?\ntoo long a line\n"


def test_chat_gives_up_who_does_not_read_and_nobody_waits_for_him() -> None:
    with running("gain_chat.py", 0, 2) as address, contextlib.ExitStack() as stack:
        present: list[ChatClient] = []
        for name in ("sleeper", "speaker", "listener"):
            client = ChatClient(address, name, present)
            stack.callback(client.close)
        sleeper, speaker, listener = present
        line = "x" * 1000
        # More than the limit of 1 MiB and what the kernel's buffers take.
        for _ in range(100):
            speaker.say(*[line] * 100)
            heard = [listener.hear() for _ in range(100)]
            if "sleeper left" in heard:
                break
        else:
            pytest.fail("10 MB later the sleeper is still there")
        with pytest.raises(ConnectionResetError):
            sleeper.lines.read()
