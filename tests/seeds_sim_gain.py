"""Random programs with callback servers in the same run, on the simulated kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import by_seed
from simulation import gain_draw, programs

if TYPE_CHECKING:
    import random

    from by_seed import Plan


class SimGain:
    """Connections and datagrams by callbacks, one worker, clients and tasks beside it."""

    name = "sim-gain"

    def draw(self, random: random.Random) -> Plan:
        return gain_draw.draw(random)

    def run(self, plan: Plan) -> None:
        programs.run(plan, programs.SimulatedWorld())


by_seed.register(SimGain(), real=False, prepare=programs.prepare)
