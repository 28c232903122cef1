"""Load from C: runs the program of ``loadgen.c``, and reads its report."""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass

from benchmarks import c_programs

# Beyond warm-up and window: connecting and draining, each with a bound of its own in C
# (10 s and 2 s), and starting a process. Reached only if a bound there is broken.
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
      kind: what is said: "echo", "unix" and "udp" are ping-pong; "send" and "receive" one
        way; "accept" and "ask" connections of one exchange.
      call_counters: of the server's system calls, see ``system_calls.py``.
    """

    port: int
    connections: int = 1
    message_bytes: int = 64
    seconds: float = 1.0
    warmup_seconds: float = 0.0
    cpu: int | None = None
    server_pid: int | None = None
    kind: str = "echo"
    call_counters: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """What was seen in the measured window; times in nanoseconds.

    Attributes:
      messages: round trips completed, exchanges, or one way as many as the bytes make.
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
      fewest: the messages of the connection that had the fewest.
      server_calls: the server's system calls, if there were counters of them.
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
    fewest: int = 0
    server_calls: int = 0

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


def measure_load(options: LoadOptions) -> LoadReport:
    """Run the load in a process of its own, and report.

    Raises:
      OSError: the load could not be made, for instance because nobody listens.
        Connections that break later are counted in the report instead.
      RuntimeError: the program could not be built, or failed otherwise; what was said
        is in the message.
    """
    arguments = (
        options.port,
        options.connections,
        options.message_bytes,
        round(options.warmup_seconds * 1e9),
        round(options.seconds * 1e9),
        -1 if options.cpu is None else options.cpu,
        options.server_pid or 0,
        options.kind,
        *options.call_counters,
    )
    process = subprocess.run(
        [str(c_programs.build("loadgen")), *map(str, arguments)],
        capture_output=True,
        text=True,
        pass_fds=options.call_counters,
        timeout=options.warmup_seconds + options.seconds + PROCESS_SLACK_S,
        check=False,
    )
    if process.returncode != 0:
        said = process.stderr.strip()[-2000:]
        raise RuntimeError(f"the load generator ended with {process.returncode}: {said}")
    match process.stdout.split(maxsplit=2):
        case ["failed", number, stage]:
            raise OSError(int(number), f"{stage.strip()}: {os.strerror(int(number))}")
    words = process.stdout.split()
    values = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return LoadReport(**values)
