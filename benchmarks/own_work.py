"""Programs that load themselves (``servers/work.py``): calls in threads, an HTTP client."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import system_calls
from benchmarks.measurement import Measurement
from benchmarks.observe import peak_rss_kib
from benchmarks.processes import cores_for_server_and_load, pinned

if TYPE_CHECKING:
    from benchmarks.peers import Peer

WARMUP_S = 0.3  # threads started, connections made, caches warm


@dataclass(frozen=True)
class OwnWork:
    """One thing again and again.

    Attributes:
      unit: what that is.
      about: what it does, for people.
      server: what it talks to, on the other core; its port is the last of the program's
        arguments.
    """

    unit: str
    about: str
    server: Peer | None = None

    def missing(self) -> str | None:
        """What it talks to may not be there."""
        return None if self.server is None else self.server.missing()

    def seconds(self, seconds: float) -> float:
        """Warm-up and window."""
        return WARMUP_S + seconds

    def measure(self, peer: Peer, seconds: float, *, count_calls: bool = False) -> Measurement:
        """Start the program, have it work, and stop it."""
        _, other_core = cores_for_server_and_load()
        with ExitStack() as stack:
            arguments = []
            if self.server is not None:
                server = stack.enter_context(self.server.start_on([other_core]))
                arguments.append(str(server.port))
            program = stack.enter_context(peer.start(*arguments))
            with pinned([other_core]):
                program.ask(f"work {WARMUP_S}", seconds=WARMUP_S)
                fds: tuple[int, ...] = ()
                if count_calls:
                    fds = stack.enter_context(system_calls.counters(program.pid))
                found = json.loads(program.ask(f"work {seconds}", seconds=seconds))
            return Measurement(
                **found,
                errors=0,
                peak_kib=peak_rss_kib(program.pid),
                calls=system_calls.read(fds) if count_calls else None,
            )
