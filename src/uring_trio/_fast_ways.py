"""Whether the fast ways are taken.

A *fast way* says once more, flat or with less looking, what a plain way beside it says: a
call of a Python function costs a tenth of what a small message may cost altogether. It is
taken where nothing special is the case, and each may be left out: the plain way does all.

So they are checked by leaving all of them out. With URING_TRIO_FAST_WAYS=off in the
environment, which child processes inherit, the tests run a second time, and what they see
must be the same. It is for them alone; nobody else gains by it.
"""

from __future__ import annotations

import os

#: Looked at once, by name, where each fast way begins.
FAST = os.environ.get("URING_TRIO_FAST_WAYS") != "off"
