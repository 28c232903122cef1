"""The example of an echo server runs as it stands there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ECHO = Path(__file__).parents[1] / "examples" / "echo.py"
LIMIT_S = 20


def test_echo_server_echoes_and_names_its_backend(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", backend)
    with subprocess.Popen(
        [sys.executable, str(ECHO)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"listening on \('127.0.0.1', (\d+)\) with (\w+)\n", line)
            assert match is not None, line
            assert match[2] == backend
            address = ("127.0.0.1", int(match[1]))
            message = bytes(range(256)) * 1000
            with socket.create_connection(address, timeout=LIMIT_S) as conn:
                conn.sendall(message)
                conn.shutdown(socket.SHUT_WR)
                with conn.makefile("rb") as replies:
                    assert replies.read() == message
        finally:
            process.terminate()
