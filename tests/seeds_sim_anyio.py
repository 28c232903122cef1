"""Random programs through anyio's streams and sockets, on the simulated kernel.

As sim-trio; what anyio has no name for goes by trio's.
"""

from __future__ import annotations

import by_seed
from simulation import programs, programs_draw

SIMULATED = programs.Generator("sim-anyio", programs_draw.draw, "anyio")
by_seed.register(SIMULATED, real=False, prepare=programs.prepare)
