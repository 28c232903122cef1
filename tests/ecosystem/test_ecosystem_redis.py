"""coredis, an anyio client, and a real Redis, over TCP and over a UNIX socket."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio
from ecosystem_tools import HOST, marks, need, on_ring

need("coredis")

import coredis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REDIS = shutil.which("redis-server")

pytestmark = [
    *marks(),
    pytest.mark.skipif(REDIS is None, reason="no redis-server on PATH; it is optional"),
]

START_ATTEMPTS = 3  # somebody else may take the port that was free
COMMANDS = 200


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A Redis with nothing in it: its port and its socket's path."""
    path = str(tmp_path / "redis")
    for _ in range(START_ATTEMPTS):
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        options = {"bind": HOST, "port": port, "unixsocket": path, "dir": tmp_path, "save": ""}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        process = subprocess.Popen([str(REDIS), *words], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            if any(re.search("Ready to accept", line) for line in process.stdout):
                yield port, path
                process.send_signal(signal.SIGTERM)
                # Else it could wait for room in the pipe.
                process.stdout.read()
                return
    pytest.fail("redis-server does not start")


@pytest.mark.parametrize("network", ["tcp", "unix"])
def test_coredis_and_a_real_redis(redis: tuple[int, str], network: str) -> None:
    port, path = redis

    def connect() -> coredis.Redis[str]:
        if network == "tcp":
            return coredis.Redis(host=HOST, port=port, decode_responses=True)
        return coredis.Redis(unix_socket_path=path, decode_responses=True)

    async def main() -> None:
        async with connect() as client:
            await client.flushdb()
            for number in range(COMMANDS):
                await client.set(f"key {number}", str(number))
                assert await client.get(f"key {number}") == str(number)
            large = "x" * (1 << 20)
            await client.set("large", large)
            assert await client.get("large") == large
            async with client.pipeline() as pipeline:
                counts = [pipeline.incr("counter") for _ in range(COMMANDS)]
            assert [await count for count in counts] == list(range(1, COMMANDS + 1))
            await block_until_pushed(client)

    on_ring(main, connect=2, recv=2 * COMMANDS, send=2 * COMMANDS)


async def block_until_pushed(client: coredis.Redis[str]) -> None:
    """One connection waits at the server, and another one lets it go on."""
    popped = []

    async def pop() -> None:
        popped.append(await client.blpop(["list"], timeout=10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pop)
        with trio.fail_after(5):
            while not (await client.info("clients"))["blocked_clients"]:
                pass
        await client.rpush("list", ["pushed"])
    assert [list(found or ()) for found in popped] == [["list", "pushed"]]
