"""Random programs with callback servers in the same run, on the simulated kernel.

Connections and datagrams by callbacks, one worker, clients and tasks beside it.
"""

from __future__ import annotations

import by_seed
from simulation import gain_draw, programs

SIMULATED = programs.Generator("sim-gain", gain_draw.draw)
by_seed.register(SIMULATED, real=False, prepare=programs.prepare)
