"""The generator of plans, for one door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers import conduct, stock
from peers.draw import Draw
from peers.draw_files import DrawFiles

if TYPE_CHECKING:
    import random

    from by_seed import Plan

# How many of the plans are about files and who holds them.
FILES_SHARE = 0.3


class Peers:
    """Draws them and does them: see `peers`."""

    def __init__(self, name: str, door: str) -> None:
        self.name = name
        self._door = door

    def draw(self, random: random.Random) -> Plan:
        """A plan, by nothing but what *random* gives."""
        if random.random() < FILES_SHARE:
            return DrawFiles(random, self._door).plan()
        return Draw(random, self._door).plan()

    def run(self, plan: Plan) -> None:
        """Do it."""
        if plan["options"].get("how") == "as stock":
            stock.run(plan, self._door)
        else:
            conduct.run(plan, self._door)
