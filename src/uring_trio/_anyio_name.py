"""Makes ``"uring_trio"`` a name that anyio knows, without importing anyio, or trio.

anyio has no registry: it imports ``anyio._backends._<name>`` and takes its
``backend_class``. So there is a module of that name to be found, after all other finders
were asked: whoever uses the name loads it, and nothing else changes.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

MODULE_NAME = "anyio._backends._uring_trio"


class BackendFinder(MetaPathFinder, Loader):
    """Finder and loader of that one module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module is; None: not here."""
        return ModuleSpec(name, self) if name == MODULE_NAME else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: the usual kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        """Put into it what anyio takes out."""
        from uring_trio import _anyio_backend

        vars(module)["backend_class"] = _anyio_backend.backend_class


def make_known() -> None:
    """Add the finder, unless it, or that of an earlier import of this module, is there."""
    if not any(type(finder).__qualname__ == "BackendFinder" for finder in sys.meta_path):
        sys.meta_path.append(BackendFinder())
