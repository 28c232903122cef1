"""What tests want of a child process: Python imports this as it starts.

Python finds it through PYTHONPATH, which `kernel_workers.Book` and `builds.environment` set.
Nothing else is imported until the child imports the package itself. Then its manager is watched
from the first run, if there is a book for that, and it has another engine, if one is named.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

BOOK = "URING_TRIO_TESTS_KERNEL_WORKERS"  # as in `kernel_workers`
MANAGER = "uring_trio._io_manager"
ENGINE = "URING_TRIO_TESTS_ENGINE"  # as in `builds`
HOT_FILE = "_hot.so"
HOOK = "URING_TRIO_TESTS_ENGINE_HOOK"


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
                load("kernel_workers.py").watch_runs(module.UringIOManager)

            spec.loader.exec_module = exec_module
        return spec  # type: ignore[no-any-return]


class OtherEngine:
    """Finds the engine where the environment says that it is, and the hot paths beside it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As above."""
        file = os.environ[ENGINE]
        if name == "uring_trio._hot":
            file = os.path.join(os.path.dirname(file), HOT_FILE)
            if not os.path.exists(file):
                return None  # a free-threaded Python
        elif name != "uring_trio._engine":
            return None
        from importlib.util import spec_from_file_location

        spec: Any = spec_from_file_location(name, file)
        if HOOK in os.environ and name == "uring_trio._engine":
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                load(os.environ[HOOK]).wrap(module)

            spec.loader.exec_module = exec_module
        return spec  # type: ignore[no-any-return]


def load(file: str) -> Any:
    """A module that stands in the folder above."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    path = Path(__file__).parents[1] / file
    spec: Any = spec_from_file_location(path.stem, path)
    module: ModuleType = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if BOOK in os.environ:
    sys.meta_path.insert(0, Finder())
if ENGINE in os.environ:
    sys.meta_path.insert(0, OtherEngine())
