"""Random programs through anyio's streams and sockets, on the simulated kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import by_seed
from simulation import programs, programs_draw

if TYPE_CHECKING:
    import random

    from by_seed import Plan


class SimAnyio:
    """As sim-trio; what anyio has no name for goes by trio's."""

    name = "sim-anyio"

    def draw(self, random: random.Random) -> Plan:
        return programs_draw.draw(random)

    def run(self, plan: Plan) -> None:
        programs.run(plan, programs.SimulatedWorld(), door="anyio")


by_seed.register(SimAnyio(), real=False, prepare=programs.prepare)
