"""Echo servers and load for them, each in a process of its own, as a measurement wants it.

``ServerProcess`` starts a server and pins it. ``measure_load`` starts the C generator of
``csrc/loadgen.h`` as ``python -m uring_trio._loadgen`` and reads its report;
``generate_load`` is the call itself, for that process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import selectors
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, final

from uring_trio import _kernel

if TYPE_CHECKING:
    from types import TracebackType

# A server prints its port once it listens; half a second here, unless the machine is busy.
SERVER_START_LIMIT_S = 20.0
SERVER_STOP_LIMIT_S = 5.0

# Beyond warm-up and window: starting Python, connecting and draining, each with a bound
# of its own in C (10 s and 2 s). Reached only if a bound there is broken.
PROCESS_SLACK_S = 30.0


@dataclass(frozen=True)
class LoadOptions:
    """What to load, and how.

    Attributes:
      port: where the server listens, on 127.0.0.1.
      connections: each has one message under way at any time.
      message_bytes: the size of a message.
      seconds: how long to measure.
      warmup_seconds: how long to run before that, uncounted.
      cpu: the core to pin the generator to, or None.
      server_pid: the process whose CPU time is measured over the same window, or None.
    """

    port: int
    connections: int = 1
    message_bytes: int = 64
    seconds: float = 1.0
    warmup_seconds: float = 0.0
    cpu: int | None = None
    server_pid: int | None = None


@dataclass(frozen=True)
class LoadReport:
    """What was seen in the measured window; times in nanoseconds.

    Attributes:
      messages: round trips completed.
      bytes: bytes of these messages, one direction.
      mismatches: connections given up because other bytes came back.
      disconnects: connections given up because the server closed or reset them.
      stalled: connections without a full reply 2 s after the window's end.
      elapsed_ns: the length of the window, as it really was.
      load_cpu_ns: CPU time of the generator.
      server_cpu_ns: CPU time, user and system, of the whole server process.
      p50_ns: median latency of a round trip.
      p99_ns: 99th percentile of the latency.
      max_ns: the longest round trip.
    """

    messages: int
    bytes: int
    mismatches: int
    disconnects: int
    stalled: int
    elapsed_ns: int
    load_cpu_ns: int
    server_cpu_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int

    @property
    def errors(self) -> int:
        """Connections that did not last to the end."""
        return self.mismatches + self.disconnects + self.stalled

    @property
    def messages_per_second(self) -> float:
        """Round trips a second, over all connections."""
        return self.messages * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0

    @property
    def server_cpu_us_per_message(self) -> float:
        """The server's CPU time for a message, in microseconds; NaN without messages."""
        return self.server_cpu_ns / 1000 / self.messages if self.messages else math.nan


def generate_load(options: LoadOptions) -> LoadReport:
    """Run the load in this thread, with the GIL released, and report.

    With *cpu*, the calling thread stays pinned afterwards.

    Raises:
      OSError: the load could not be made, for instance because nobody listens.
        Connections that break later are counted in the report instead.
    """
    ffi, lib = _kernel.load_extension()
    c_options = ffi.new(
        "struct ut_load_options *",
        {
            "port": options.port,
            "connections": options.connections,
            "message_bytes": options.message_bytes,
            "warmup_ns": round(options.warmup_seconds * 1e9),
            "duration_ns": round(options.seconds * 1e9),
            "cpu": -1 if options.cpu is None else options.cpu,
            "server_pid": options.server_pid or 0,
        },
    )
    c_report = ffi.new("struct ut_load_report *")
    result = lib.ut_load_run(c_options, c_report)
    if result < 0:
        stage = ffi.string(c_report.failed_stage).decode()
        raise OSError(-result, f"{stage}: {os.strerror(-result)}")
    return LoadReport(**{each.name: getattr(c_report, each.name) for each in fields(LoadReport)})


def measure_load(options: LoadOptions) -> LoadReport:
    """Run the load in a process of its own, and report.

    Raises:
      OSError: as for ``generate_load``.
      RuntimeError: the process failed otherwise; its last words are in the message.
    """
    process = subprocess.run(
        [sys.executable, "-m", "uring_trio._loadgen", json.dumps(asdict(options))],
        capture_output=True,
        text=True,
        timeout=options.warmup_seconds + options.seconds + PROCESS_SLACK_S,
        check=False,
    )
    if process.returncode != 0:
        raise RuntimeError(f"the load generator failed: {process.stderr.strip()[-2000:]}")
    answer = json.loads(process.stdout)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"])
    return LoadReport(**answer)


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

    def __init__(self, command: list[str], *, cpu: int | None = None) -> None:
        """Start *command* and wait until it listens; pin it to core *cpu*.

        Raises:
          RuntimeError: it ended, or did not say its port in time. What it had to say
            itself is on standard error.
        """
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        try:
            if cpu is not None:
                # Threads that it starts later inherit this.
                os.sched_setaffinity(self.pid, {cpu})
            self.port = int(self._read_line())
        except BaseException:
            self.close()
            raise

    def ask(self, request: str) -> str:
        """Send one line, and return the line that the server answers."""
        assert self._process.stdin is not None
        print(request, file=self._process.stdin, flush=True)
        return self._read_line()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(SERVER_START_LIMIT_S)
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


def cores_for_server_and_load() -> tuple[int, int]:
    """Two different cores that this process may use, or the one core twice."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


def main(argv: list[str] | None = None) -> int:
    """Read options as JSON from the command line, run the load, print the report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m uring_trio._loadgen")
    parser.add_argument("options", help="the fields of LoadOptions, as one JSON object")
    options = LoadOptions(**json.loads(parser.parse_args(argv).options))
    try:
        answer = asdict(generate_load(options))
    except OSError as error:
        answer = {"errno": error.errno, "error": error.strerror}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
