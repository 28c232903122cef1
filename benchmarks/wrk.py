"""Load by wrk: HTTP plaintext, with and without requests pipelined.

wrk's latencies are left out with pipelining. It corrects them by the pace that it takes from
the number of requests, while it records one for all that went out together, and they come out
wrong. It counts in whole seconds, so a measurement is as many as it takes, and at least one.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import system_calls
from benchmarks.measurement import Measurement
from benchmarks.observe import cpu_ns, peak_rss_kib
from benchmarks.processes import cores_for_server_and_load, pinned

if TYPE_CHECKING:
    from benchmarks.peers import Peer

SCRIPT = Path(__file__).with_name("wrk.lua")
WARMUP_S = 1

# Beyond wrk's own time: connecting, and its answers to what is still under way.
WRK_SLACK_S = 20.0


def wrk_missing() -> str | None:
    """Why there is no load, or None."""
    if shutil.which("wrk") is None:
        return "wrk is not installed; on Debian: apt-get install wrk"
    return None


def run_wrk(port: int, seconds: int, connections: int, pipelined: int) -> dict[str, int]:
    """Run wrk on the load's core, and return what ``wrk.lua`` reports.

    Raises:
      RuntimeError: wrk failed; its last words are in the message.
    """
    _, load_core = cores_for_server_and_load()
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT)]
    with pinned([load_core]):
        result = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/", "--", str(pipelined)],
            capture_output=True,
            text=True,
            timeout=seconds + WRK_SLACK_S,
            check=False,
        )
    for line in result.stdout.splitlines():
        if line.startswith("REPORT "):
            found: dict[str, int] = json.loads(line.removeprefix("REPORT "))
            return found
    raise RuntimeError(f"wrk failed: {(result.stderr or result.stdout).strip()[-2000:]}")


@dataclass(frozen=True)
class Wrk:
    """So many connections, each with so many requests in one piece."""

    connections: int
    pipelined: int = 1

    @property
    def unit(self) -> str:
        """A request."""
        return "request"

    @property
    def about(self) -> str:
        """With the numbers."""
        piece = f", {self.pipelined} requests pipelined" if self.pipelined > 1 else ""
        return f"wrk; {self.connections:,} connections{piece}"

    def missing(self) -> str | None:
        """It needs wrk."""
        return wrk_missing()

    def seconds(self, seconds: float) -> float:
        """Warm-up and window."""
        return WARMUP_S + math.ceil(seconds)

    def measure(self, peer: Peer, seconds: float, *, count_calls: bool = False) -> Measurement:
        """Start a server, warm it up for a second, load it, and stop it.

        The CPU time holds accepting the connections too, which is the same for all servers.
        """
        with peer.start() as server, ExitStack() as stack:
            run_wrk(server.port, WARMUP_S, self.connections, self.pipelined)
            fds: tuple[int, ...] = ()
            if count_calls:
                fds = stack.enter_context(system_calls.counters(server.pid))
            before = cpu_ns(server.pid)
            found = run_wrk(server.port, math.ceil(seconds), self.connections, self.pipelined)
            has_latency = self.pipelined == 1
            return Measurement(
                units=found["requests"],
                elapsed_ns=found["elapsed_us"] * 1000,
                cpu_ns=cpu_ns(server.pid) - before,
                errors=found["errors"],
                p50_ns=found["p50_us"] * 1000 if has_latency else 0,
                p99_ns=found["p99_us"] * 1000 if has_latency else 0,
                peak_kib=peak_rss_kib(server.pid),
                calls=system_calls.read(fds) if count_calls else None,
            )
