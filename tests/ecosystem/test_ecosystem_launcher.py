"""``python -m uring_trio run -m hypercorn``: the workers that it spawns serve on the ring.

hypercorn starts each worker, also a single one, as a process by multiprocessing's spawn. What
a worker is on is what its own statistics say, which the application sends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from ecosystem_tools import HOST, assert_by_ring, marks, need

need("hypercorn")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = marks()

LIMIT_S = 20.0  # to start three Pythons, to answer, to end, each on busy cores
BUSY_LIMIT_S = 2.0
REQUESTS = 50

# /busy keeps the process, and not only the task, until a connection to the port in its body ends.
APP = """
import json, os, socket, trio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    if scope["path"] == "/busy":
        with socket.create_connection(("127.0.0.1", int(body))) as done:
            done.recv(1)
    if scope["path"] == "/statistics":
        io_statistics = trio.lowlevel.current_statistics().io_statistics
        statistics = vars(io_statistics) if io_statistics.backend == "io_uring" else {}
        statistics = {"backend": io_statistics.backend, **statistics}
        body = json.dumps({"pid": os.getpid(), "parent": os.getppid(), **statistics}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@contextlib.contextmanager
def launched(
    directory: Path, *program: str, workers: int = 1
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """hypercorn's parent, and the port that all its workers say they serve.

    It must end by itself.
    """
    (directory / "app.py").write_text(APP)
    process = subprocess.Popen(
        [sys.executable, *program, "--bind", f"{HOST}:0", "app:app"],
        cwd=directory,
        env={k: v for k, v in os.environ.items() if k != "URING_TRIO_BACKEND"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Its workers, too, should they survive it.
    watchdog = threading.Timer(2 * LIMIT_S, os.killpg, [process.pid, signal.SIGKILL])
    watchdog.start()
    assert process.stderr is not None
    try:
        said = ""
        while len(ports := re.findall(rf"Running on http://{HOST}:(\d+)", said)) < workers:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, int(ports[0])
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read()  # until the last worker is gone
        assert process.wait() == 0, said
        assert "Traceback" not in said, said
    finally:
        watchdog.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def request(
    port: int, path: str, body: bytes = b"", *, connections: int = 1, timeout: float = LIMIT_S
) -> list[bytes]:
    """Ask once on each of so many new connections, which stay until all are answered."""
    with contextlib.ExitStack() as stack:
        clients = [
            http.client.HTTPConnection(HOST, port, timeout=timeout) for _ in range(connections)
        ]
        answers = []
        for client in clients:
            stack.callback(client.close)
            client.request("POST", path, body)
            response = stack.enter_context(client.getresponse())
            assert response.status == 200
            answers.append(response.read())
        return answers


def statistics_of_workers(port: int, workers: int) -> list[dict[str, Any]]:
    """Ask on new connections until so many different processes have answered."""
    found: dict[int, dict[str, Any]] = {}
    for _ in range(20 * workers):
        (answer,) = request(port, "/statistics")
        statistics = json.loads(answer)
        found[statistics["pid"]] = statistics
    assert len(found) == workers
    return list(found.values())


@pytest.mark.parametrize("workers", [None, 2], ids=["default", "-w 2"])
def test_every_worker_of_hypercorn_is_on_the_ring(tmp_path: Path, workers: int | None) -> None:
    options = [] if workers is None else ["-w", str(workers)]
    launcher = ["-m", "uring_trio", "run", "-m", "hypercorn", "-k", "trio", *options]
    with launched(tmp_path, *launcher, workers=workers or 1) as (process, port):
        body = os.urandom(100_000)
        assert request(port, "/echo", body, connections=REQUESTS) == [body] * REQUESTS
        for statistics in statistics_of_workers(port, workers or 1):
            assert statistics["parent"] == process.pid
            assert_by_ring(statistics, poll_add=2, recv=4, send=4)


def test_without_the_launcher_workers_are_on_epoll(tmp_path: Path) -> None:
    """The negative half: it is the launcher, and nothing that this environment has installed."""
    with launched(tmp_path, "-m", "hypercorn", "-k", "trio") as (_, port):
        (answer,) = request(port, "/statistics")
        assert json.loads(answer)["backend"] == "epoll"


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["-m"], id="epoll"),
        pytest.param(["-m", "uring_trio", "run", "-m"], id="io_uring"),
    ],
)
def test_a_busy_worker_does_not_hold_up_what_an_idle_one_could_serve(
    tmp_path: Path, launcher: list[str]
) -> None:
    hypercorn = [*launcher, "hypercorn", "-k", "trio", "-w", "2"]
    with (
        launched(tmp_path, *hypercorn, workers=2) as (_, port),
        socket.create_server((HOST, 0)) as gate,
    ):
        gate_port = str(gate.getsockname()[1]).encode()
        keeper = threading.Thread(target=request, args=(port, "/busy", gate_port))
        keeper.start()
        try:
            with gate.accept()[0]:
                for _ in range(4):
                    assert request(port, "/echo", b"idle", timeout=BUSY_LIMIT_S) == [b"idle"]
        finally:
            keeper.join()
