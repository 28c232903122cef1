"""The generator of plans, for one door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers import conduct, crowd, hosts, stock
from peers.draw import Draw
from peers.draw_files import DrawFiles

if TYPE_CHECKING:
    import random

    from by_seed import Plan

# How many of the plans are about files and who holds them; by trio's door, about a guest run's host
# and a crowd.
FILES_SHARE, HOSTS_SHARE, CROWD_SHARE = 0.3, 0.07, 0.12


class Peers:
    """Draws them and does them: see `peers`."""

    def __init__(self, name: str, door: str) -> None:
        self.name = name
        self._door = door

    def draw(self, random: random.Random) -> Plan:
        """A plan, by nothing but what *random* gives."""
        x = random.random()
        if x < FILES_SHARE:
            return DrawFiles(random, self._door).plan()
        if x < FILES_SHARE + HOSTS_SHARE and self._door == "trio":
            return hosts.draw(random)
        if x < FILES_SHARE + HOSTS_SHARE + CROWD_SHARE and self._door == "trio":
            return crowd.draw(random)
        return Draw(random, self._door).plan()

    def run(self, plan: Plan) -> None:
        """Do it."""
        what = plan["options"].get("how", "")
        if what == "as stock":
            stock.run(plan, self._door)
        elif what == "hosts":
            hosts.run(plan)
        elif what == "crowd":
            crowd.run(plan)
        else:
            conduct.run(plan, self._door)
