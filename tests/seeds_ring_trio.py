"""Random peers, surroundings and use on the machine's own ring, by trio's door."""

from __future__ import annotations

import by_seed
from peers.generator import Peers

by_seed.register(Peers("ring-trio", "trio"), real=True, seeds=12)
