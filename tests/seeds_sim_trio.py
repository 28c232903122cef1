"""Random programs through trio's door, on the simulated kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import by_seed
from simulation import programs, programs_draw

if TYPE_CHECKING:
    import random

    from by_seed import Plan


class SimTrio:
    """Streams, sockets of every type, FdStreams, readiness, accepting and connecting."""

    name = "sim-trio"

    def draw(self, random: random.Random) -> Plan:
        return programs_draw.draw(random)

    def run(self, plan: Plan) -> None:
        programs.run(plan, programs.SimulatedWorld())


by_seed.register(SimTrio(), real=False, prepare=programs.prepare)
