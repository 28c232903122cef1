"""The import direction is part of the design, so a test keeps it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "uring_trio"

# From the ground up. A module may import only from rows above its own row, when it runs;
# what it imports for its annotations alone is free, but makes no circle of more than two.
LAYERS = [
    {"_engine", "_hot"},  # the extensions
    {"_errors", "_addresses", "_fast_ways", "_kernel_names", "_process", "_ring_options"},
    {"_hot_parts"},
    {"_kernel", "_trio_private"},
    {"_instruments", "_shortage"},
    {"_remedies"},
    {"_memory", "_probe"},
    {"_beside"},
    {"_guest"},
    {"_slots"},
    {"_draining", "_operations", "_socket_arguments", "_statistics"},
    {"_bell", "_lines", "_polls", "_socket_operations"},
    {"_endpoints"},
    {"_io_manager"},
    {"_sockets"},
    {"_adoption", "_streams"},
    {"_hooks"},
    {"_each_run"},
    {"_run"},
    {"_anyio_options"},
    {"_anyio_backend"},
    {"_anyio_name"},
    {"_doctor", "_launcher", "_pytest_entry", "pytest_plugin"},
    {"_api"},
    {"__init__"},
    {"__main__"},
]

# The callback servers have a table of their own.
GAIN_LAYERS = [
    {"_errors", "_surroundings"},
    {"_address", "_capabilities", "_halves", "_unix_path"},
    {"_came_to", "_config", "_engine", "_tls"},
    {"_callbacks", "_deadlines", "_life", "_listen"},
    {"_accept", "_datagram", "_patience", "_ring", "_turn"},
    {"_connection"},
    {"_conn", "_worker"},
    {"_serving"},
    {"_server"},
    {"__init__"},
]
# All that they may know of what is below them: a ring, calls beside it, the kernel's addresses,
# memory, who stands at a slot, how a task is parked, where hot fields lie, and a run on the ring.
# What is below knows nothing of them.
GAIN_RESTS_ON = {"_addresses", "_beside", "_hot_parts", "_kernel", "_memory", "_slots"}
GAIN_RESTS_ON |= {"_trio_private"}
# ... and what belongs to the whole process, or is an option of every run.
GAIN_RESTS_ON |= {"_fast_ways", "_probe", "_process", "_ring_options", "_run"}

# Files of one circle, annotation imports counted: an operation and the line that it stands in
# tell of each other, but a circle of three is no order at all.
CIRCLE_MAX = 2
# How many rows the callback servers have if annotation imports count as well.
GAIN_FLOORS_MAX = 10

# Who may know what: the name -> the only modules that may import it.
RESERVED: dict[str, set[str]] = {
    "uring_trio._engine": {"_kernel"},
    "uring_trio._hot": {"_hot_parts"},
    # System calls beside the ring are made by `_beside`. These ask once what a place or a file
    # is like; see test_kernel_seam.py.
    "fcntl": {"gain._unix_path"},
    "termios": set(),
    "select": {"_guest", "_polls", "_streams", "gain._capabilities"},
    "benchmarks": set(),
    "anyio": {"_anyio_backend"},
    "pytest": {"pytest_plugin"},
    "multiprocessing": {"_launcher"},
    "signal": {"gain._surroundings"},
    "ssl": {"gain._config", "gain._tls"},
}

RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
RANK |= {f"gain.{name}": rank for rank, row in enumerate(GAIN_LAYERS) for name in row}


def name_of(path: Path) -> str:
    """As in the tables: ``_run``, ``gain._conn``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_for_annotations(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def nodes_that_run(tree: ast.AST) -> list[ast.AST]:
    """All nodes of a module but those under ``if TYPE_CHECKING``."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        if not is_for_annotations(node):
            found.append(node)
            todo.extend(ast.iter_child_nodes(node))
    return found


def imported_names(path: Path, *, for_annotations: bool = False) -> set[str]:
    """What a module imports when it runs, or for its annotations, too."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if for_annotations else nodes_that_run(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_module(name: str) -> str | None:
    """The module of ours that this is, or that it is a name in."""
    first, *parts = name.split(".")
    if first != "uring_trio":
        return None
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in RANK:
            return module
    return "gain.__init__" if parts[:1] == ["gain"] else "__init__"


def may_import(module: str, other: str) -> bool:
    of_gain, other_of_gain = module.startswith("gain."), other.startswith("gain.")
    if of_gain and not other_of_gain:
        return other in GAIN_RESTS_ON
    return of_gain == other_of_gain and RANK[other] < RANK[module]


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """The largest sets of modules that all reach each other: Tarjan's components."""
    found: list[set[str]] = []
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(imports.get(module, ())):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            circle = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            found.append(circle)

    for module in sorted(imports):
        if module not in number:
            visit(module)
    return [circle for circle in found if len(circle) > 1]


def private_parts_of_trio(path: Path) -> set[str]:
    """Names such as ``trio._core``, imported or reached as attributes."""
    found = {name for name in imported_names(path) if name.startswith("trio._")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found |= {name} if re.match("trio\\._[^_]", name) else set()
    return found


def test_every_module_has_a_layer() -> None:
    # The extensions are no modules of Python's, and what types they have stand in `.pyi` files.
    assert MODULES.keys() | {"_engine", "_hot"} == RANK.keys()


@pytest.mark.parametrize(
    ("module", "other", "allowed"),
    [
        ("_run", "_hooks", True),
        ("_hooks", "_run", False),
        ("_probe", "_guest", False),
        ("_run", "gain._errors", False),
        ("__init__", "gain.__init__", False),
        ("gain._conn", "gain._life", True),
        ("gain._life", "gain._conn", False),
        ("gain._server", "_run", True),
        ("gain._server", "_io_manager", False),
        ("gain._server", "__init__", False),
    ],
)
def test_what_the_tables_allow(module: str, other: str, allowed: bool) -> None:
    assert may_import(module, other) is allowed


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("trio.lowlevel", None),
        ("uring_trio", "__init__"),
        ("uring_trio.run", "__init__"),
        ("uring_trio._run.run", "_run"),
        ("uring_trio.gain", "gain.__init__"),
        ("uring_trio.gain.Conn", "gain.__init__"),
        ("uring_trio.gain._conn.Conn", "gain._conn"),
    ],
)
def test_where_a_name_is_from(name: str, module: str | None) -> None:
    assert own_module(name) == module


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    for name in imported_names(MODULES[module]):
        other = own_module(name)
        assert other in (None, module) or may_import(module, other), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_reserved_names_are_imported_by_their_owners_only(module: str) -> None:
    for name in imported_names(MODULES[module]):
        for reserved, owners in RESERVED.items():
            if name == reserved or name.startswith(reserved + "."):
                assert module in owners, f"{module} must not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_private_parts_of_trio_are_named_in_one_module(module: str) -> None:
    if module != "_trio_private":
        assert not private_parts_of_trio(MODULES[module])


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [{"a", "b"}]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [{"a", "b", "c"}]),
        ({"a": {"b", "c"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}, [{"c", "d"}, {"a", "b"}]),
    ],
)
def test_what_a_circle_is(imports: dict[str, set[str]], expected: list[set[str]]) -> None:
    assert circles(imports) == expected


def all_imports() -> dict[str, set[str]]:
    """Of each module, those for annotations included."""
    imports = {}
    for module, path in MODULES.items():
        names = imported_names(path, for_annotations=True)
        others = {own_module(name) for name in names} - {None, module}
        imports[module] = {other for other in others if other is not None}
    return imports


def test_circles_of_imports_are_small() -> None:
    imports = all_imports()
    assert "_slots" in imports["_operations"]  # for annotations only
    assert [c for c in circles(imports) if len(c) > CIRCLE_MAX] == []


def floors(imports: dict[str, set[str]]) -> int:
    """How many modules, or circles, stand on one another where they are the most."""
    together = {module: frozenset(circle) for circle in circles(imports) for module in circle}

    @functools.cache
    def height(members: frozenset[str]) -> int:
        below = {other for module in members for other in imports.get(module, ())} - members
        return 1 + max((height(together.get(o, frozenset({o}))) for o in below), default=0)

    return max(height(together.get(module, frozenset({module}))) for module in imports)


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}, 3),
        ({"a": {"b"}, "b": {"a", "c"}, "c": set()}, 2),
    ],
)
def test_what_a_floor_is(imports: dict[str, set[str]], expected: int) -> None:
    assert floors(imports) == expected


def test_callback_servers_are_not_high() -> None:
    imports = {
        module: {other for other in others if other.startswith("gain.")}
        for module, others in all_imports().items()
        if module.startswith("gain.")
    }
    assert floors(imports) <= GAIN_FLOORS_MAX
