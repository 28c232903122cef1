"""The generator of plans, for one door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers import conduct
from peers.draw import Draw

if TYPE_CHECKING:
    import random

    from by_seed import Plan


class Peers:
    """Draws them and does them: see `peers`."""

    def __init__(self, name: str, door: str) -> None:
        self.name = name
        self._door = door

    def draw(self, random: random.Random) -> Plan:
        """A plan, by nothing but what *random* gives."""
        return Draw(random, self._door).plan()

    def run(self, plan: Plan) -> None:
        """Do it."""
        conduct.run(plan, self._door)
