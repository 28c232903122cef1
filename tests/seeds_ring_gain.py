"""Random callback servers, handlers and peers on the machine's own ring: see `random_gain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import by_seed
import random_gain.drawing
import random_gain.world

if TYPE_CHECKING:
    import random

    from by_seed import Plan


class RingGain:
    """The generator."""

    name = "ring-gain"

    def draw(self, random: random.Random) -> Plan:
        return random_gain.drawing.draw(random)

    def run(self, plan: Plan) -> None:
        random_gain.world.World(plan).run()


by_seed.register(RingGain(), real=True, seeds=30)
