"""Random peers, surroundings and use on the machine's own ring, by anyio's door."""

from __future__ import annotations

import by_seed
from peers.generator import Peers

by_seed.register(Peers("ring-anyio", "anyio"), real=True, seeds=12)
