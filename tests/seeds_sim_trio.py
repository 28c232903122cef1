"""Random programs through trio's door, on the simulated kernel.

Streams, sockets of every type, FdStreams, readiness, accepting and connecting.
"""

from __future__ import annotations

import by_seed
from simulation import programs, programs_draw

SIMULATED = programs.Generator("sim-trio", programs_draw.draw)
by_seed.register(SIMULATED, real=False, prepare=programs.prepare)
