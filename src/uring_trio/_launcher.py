"""``python -m uring_trio run``: an unchanged program, started as python itself starts it.

``install()`` comes first, then the program, with the ``sys.argv``, ``sys.path`` and
``__main__`` that it would have under plain python.

Children of ``multiprocessing`` are the same program in another process, so they are put
on the ring too. A forked child inherits it. One that is spawned, or forked by the fork
server, first unpickles its *preparation data*; we add an entry to that whose unpickling
installs there. Unrelated subprocesses are left alone, which is why no environment
variable carries this.
"""

from __future__ import annotations

import builtins
import functools
import importlib.machinery
import io
import multiprocessing.spawn
import os
import pkgutil
import runpy
import sys
import types
from typing import TYPE_CHECKING, Any

from uring_trio._errors import UringUnavailable
from uring_trio._probe import BACKENDS, Backend
from uring_trio._run import install

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = """\
usage: python -m uring_trio run [--backend auto|io_uring|epoll] script.py [ARGS ...]
       python -m uring_trio run [--backend auto|io_uring|epoll] -m package.module [ARGS ...]

Runs an unchanged trio program on io_uring. script.py may also be a directory or a zip
file with a __main__.py, as for python itself.

  --backend B  auto (default): fall back to trio's own manager where there is no ring;
               io_uring: fail there; epoll: trio's own manager"""

EXIT_UNAVAILABLE = 1
EXIT_USAGE = 2


class UsageError(Exception):
    """The command line makes no sense."""


def main(argv: list[str]) -> int:
    """Install, then run the program that *argv* names."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    try:
        backend, is_module, target, arguments = parse(argv)
        install(backend=backend)
    except (UsageError, ValueError) as exc:
        print(f"{USAGE}\n\npython -m uring_trio run: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except UringUnavailable as exc:
        print(f"python -m uring_trio run: {exc}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    carry_over_to_multiprocessing(backend)
    if is_module:
        run_module(target, arguments)
        return 0
    if not os.path.exists(target):
        print(f"python -m uring_trio run: can't open file {target!r}", file=sys.stderr)
        return EXIT_USAGE
    run_script(target, arguments)
    return 0


def parse(argv: list[str]) -> tuple[Backend, bool, str, list[str]]:
    """Split our options from the program: backend, whether it is a module, its name, its arguments.

    By hand, because all that follows the program's name is the program's, whatever it
    looks like, and argparse would take options out of it.
    """
    backend: Backend = "auto"
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        option, equals, value = rest.pop(0).partition("=")
        if option != "--backend":
            raise UsageError(f"unknown option {option}; the program's own come after its name")
        if not equals:
            value = rest.pop(0) if rest else ""
        matching = [known for known in BACKENDS if known == value]
        if not matching:
            raise UsageError(f"--backend is one of {', '.join(BACKENDS)}, not {value!r}")
        backend = matching[0]
    is_module = rest[:1] == ["-m"]
    if is_module:
        rest.pop(0)
    if not rest:
        raise UsageError("no program: give a script, or -m and a module")
    return backend, is_module, rest[0], rest[1:]


def run_script(path: str, arguments: list[str]) -> None:
    """As ``python path arguments``."""
    sys.argv = [path, *arguments]
    main_module = fresh_main()
    path = os.path.abspath(path)
    if not os.path.isfile(path) or is_zip(path):
        put_first(path)
        run_as_main("__main__", alter_argv=False)
        return
    put_first(os.path.dirname(os.path.realpath(path)))
    main_module.__file__ = path
    main_module.__dict__["__cached__"] = None
    main_module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    with io.open_code(path) as file:
        # Else it would be compiled with the future statements of this module.
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main_module.__dict__)  # noqa: S102  it is the program


def run_module(name: str, arguments: list[str]) -> None:
    """As ``python -m name arguments``; sys.path[0] is the current directory already."""
    sys.argv = [name, *arguments]
    fresh_main()
    run_as_main(name, alter_argv=True)


# What `python -m` itself calls. runpy's public functions make a __main__ that is gone when
# they return, and with it what threads and exit handlers may still want to pickle.
run_as_main = runpy._run_module_as_main  # type: ignore[attr-defined]


def fresh_main() -> types.ModuleType:
    """A ``__main__`` with nothing of ours in it."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module


def put_first(directory: str) -> None:
    """Onto sys.path, in the place of the current directory; python -I and -P put nothing there."""
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = directory


def is_zip(path: str) -> bool:
    """Whether python takes the file for an archive of a program."""
    return pkgutil.get_importer(path) is not None


class CarriedInstall:
    """Installs in the process that unpickles it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __reduce__(self) -> tuple[Callable[[Backend], None], tuple[Backend]]:
        return install_in_child, (self.backend,)


def install_in_child(backend: Backend) -> None:
    install(backend=backend)
    carry_over_to_multiprocessing(backend)


def carry_over_to_multiprocessing(backend: Backend) -> None:
    """Have spawn and forkserver children install before they import anything of the program's."""
    original = multiprocessing.spawn.get_preparation_data

    @functools.wraps(original)
    def get_preparation_data(name: str) -> dict[str, Any]:
        return {"uring_trio": CarriedInstall(backend), **original(name)}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
