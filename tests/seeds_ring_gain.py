"""Random callback servers, handlers and peers on the machine's own ring: see `random_gain`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import by_seed
import process_books
import random_gain.drawing
import random_gain.world
from random_gain.faults import LeftBehind

if TYPE_CHECKING:
    import random

    from by_seed import Plan


# What one more round of the same may take. Some of Python's blocks are the books' own: names of
# files in /proc, and what it has looked up.
BLOCKS_A_ROUND = 25
MALLOC_BYTES_A_ROUND = 8000
# In these much is bought that stays: tables grow, and caches fill.
ROUNDS_BEFORE = 2


class RingGain:
    """The generator."""

    name = "ring-gain"

    def draw(self, random: random.Random) -> Plan:
        return random_gain.drawing.draw(random)

    def run(self, plan: Plan) -> None:
        random_gain.world.World(plan).run()
        rounds, threads = [], []
        for _ in range(plan["options"].get("rounds", 0)):
            random_gain.world.World(plan, looks=False).run()
            rounds.append(process_books.memory())
            threads.append(threading.active_count())
        if len(set(threads[ROUNDS_BEFORE:])) > 1:
            return  # trio keeps those of callbacks in threads for a while, and they are not small
        told = process_books.growth(
            rounds[ROUNDS_BEFORE:], blocks=BLOCKS_A_ROUND, malloc_bytes=MALLOC_BYTES_A_ROUND
        )
        if told:
            raise LeftBehind(told)


by_seed.register(RingGain(), real=True, seeds=30)
