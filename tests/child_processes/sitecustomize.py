"""Has the runs of a child process in the tests' books: Python imports this as it starts.

Python finds it through PYTHONPATH, which `kernel_workers.Book` sets. Nothing else is imported
until the child imports the package itself, and then its manager is watched from the first run.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MANAGER = "uring_trio._io_manager"


class Finder:
    """Finds the manager's module as others do, and hooks it once it is there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Like that of `importlib.abc.MetaPathFinder`, which is not to be imported here."""
        if name != MANAGER:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec: Any = find_spec(name)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                load_book().watch_runs(module.UringIOManager)

            spec.loader.exec_module = exec_module
        return spec  # type: ignore[no-any-return]


def load_book() -> Any:
    """`kernel_workers`, which stands in the folder above."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec: Any = spec_from_file_location(
        "kernel_workers", Path(__file__).parents[1] / "kernel_workers.py"
    )
    module: ModuleType = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.meta_path.insert(0, Finder())
