"""HTTP plaintext: wrk, 512 connections, 16 requests pipelined on each.

wrk's latencies are left out. It corrects them by the pace that it takes from the number
of requests, while it records one for 16 of them, and with pipelining they come out wrong.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparison import Comparison, take_turns
from benchmarks.gain.peers import UVLOOP, UVLOOP_AGAIN
from benchmarks.observe import cpu_ns
from benchmarks.processes import cores_for_server_and_load, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.peers import Peer

CONNECTIONS = 512
PIPELINED = 16
SCRIPT = Path(__file__).with_name("pipeline.lua")

# Beyond wrk's own time: connecting, and its answers to what is still under way.
WRK_SLACK_S = 20.0


@dataclass(frozen=True)
class HttpReport:
    """What wrk saw, and what it cost the server.

    Attributes:
      requests: answered.
      elapsed_us: how long wrk ran.
      errors: connections, reads, writes and statuses that failed, and time-outs.
      server_cpu_ns: CPU time, user and system, of the server over all of wrk's run.
    """

    requests: int
    elapsed_us: int
    errors: int
    server_cpu_ns: int


METRICS: dict[str, Callable[[HttpReport], float]] = {
    "cpu_us": lambda each: each.server_cpu_ns / 1000 / each.requests if each.requests else math.nan,
    "per_second": lambda each: each.requests * 1e6 / each.elapsed_us if each.elapsed_us else 0.0,
}


def wrk_missing() -> str | None:
    """Why there is no load, or None."""
    if shutil.which("wrk") is None:
        return "wrk is not installed; on Debian: apt-get install wrk"
    return None


def run_wrk(port: int, seconds: int, connections: int, pipelined: int) -> dict[str, int]:
    """Run wrk on the load's core, and return what ``pipeline.lua`` reports.

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


def measure_http(peer: Peer, seconds: float, connections: int, pipelined: int) -> HttpReport:
    """Start a server, warm it up for a second, load it, and stop it.

    wrk counts in whole seconds, so *seconds* is rounded up. The CPU time holds accepting
    the connections too, which is the same for all servers.
    """
    with peer.start() as server:
        run_wrk(server.port, 1, connections, pipelined)
        before = cpu_ns(server.pid)
        found = run_wrk(server.port, math.ceil(seconds), connections, pipelined)
        return HttpReport(**found, server_cpu_ns=cpu_ns(server.pid) - before)


def run_http(
    peers: Sequence[Peer],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
    *,
    connections: int = CONNECTIONS,
    pipelined: int = PIPELINED,
) -> Comparison[HttpReport]:
    """All rounds."""
    reports = take_turns(
        peers,
        rounds,
        lambda peer: measure_http(peer, seconds, connections, pipelined),
        lambda text: progress(f"http, {text}"),
    )
    name = f"http, {connections} connections, {pipelined} requests pipelined"
    return Comparison(name, METRICS, reports, UVLOOP, UVLOOP_AGAIN)
