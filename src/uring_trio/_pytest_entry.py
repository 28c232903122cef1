"""pytest loads this by itself, so that ``"uring_trio"`` names a backend with nothing imported.

It has no hooks, and imports neither trio nor anyio. ``uring_trio.pytest_plugin``, which puts
a whole session on the ring, is another module, and is only loaded with ``-p``.
"""

from __future__ import annotations

from uring_trio import _anyio_name

_anyio_name.make_known()
