"""The programs that are measured, each in a process of its own, and the cores they run on."""

from __future__ import annotations

import os
import selectors
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

# A server prints its port once it listens; half a second here, unless the machine is busy.
SERVER_START_LIMIT_S = 20.0
SERVER_STOP_LIMIT_S = 5.0


def cores_for_server_and_load() -> tuple[int, int]:
    """Two different cores that this process may use, or the one core twice."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


@contextmanager
def pinned(cpus: Iterable[int]) -> Iterator[None]:
    """Run this thread on *cpus* alone; a process that it starts meanwhile stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@final
class ServerProcess:
    """A server in a process of its own; as a context manager it ends at the end.

    The program prints its port as the first line of its output, answers each line of
    input with one line of output, if it takes any, and ends at the end of its input: so
    it also ends when the process that measures it is killed.

    Attributes:
      port: where it listens.
      pid: its process.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start *command* and wait until it listens; *environment* is beside ours.

        Raises:
          RuntimeError: it ended, or did not say its port in time. What it had to say
            itself is on standard error.
        """
        self._command = command
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.pid = self._process.pid
        try:
            self.port = int(self._read_line())
        except BaseException:
            self.close()
            raise

    def ask(self, request: str, *, seconds: float = 0.0) -> str:
        """Send one line, and return the line that the server answers, that long later or so."""
        assert self._process.stdin is not None
        print(request, file=self._process.stdin, flush=True)
        return self._read_line(seconds)

    def _read_line(self, seconds: float = 0.0) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(SERVER_START_LIMIT_S + seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"no answer from the server: {' '.join(self._command)}")
        return line.strip()

    def close(self) -> None:
        """End the server; kill it if it does not go by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(SERVER_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
