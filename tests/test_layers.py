"""The import direction is part of the design, so a test keeps it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "uring_trio"

# From the ground up. A module may import only from rows above its own row, when it runs;
# what it imports for its annotations alone is free.
LAYERS = [
    {"_errors", "_remedies", "_addresses"},
    {"_kernel", "_trio_private"},
    {"_memory", "_guest", "_statistics", "_loadgen", "_probe"},
    {"_operations", "_socket_arguments"},
    {"_directions", "_draining", "_polls", "_socket_operations"},
    {"_io_manager"},
    {"_sockets"},
    {"_streams"},
    {"_hooks"},
    {"_run"},
    {"_doctor", "_launcher", "_demo", "pytest_plugin"},
    {"__init__", "__main__"},
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# Who may know what: the name -> the only modules that may import it.
RESERVED = {
    "uring_trio._engine": {"_kernel"},
    "pytest": {"pytest_plugin"},
    "rich": {"_demo"},
    "multiprocessing": {"_launcher"},
}

MODULES = sorted(PACKAGE.glob("*.py"))


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


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in nodes_that_run(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(str(node.module))
    return names


def own_modules(names: set[str]) -> set[str]:
    parts = {name.split(".")[1] for name in names if name.startswith("uring_trio.")}
    return parts & RANK.keys()


def private_parts_of_trio(path: Path) -> set[str]:
    """Names such as ``trio._core``, imported or reached as attributes."""
    found = {name for name in imported_names(path) if name.startswith("trio._")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found |= {name} if re.match("trio\\._[^_]", name) else set()
    return found


def test_every_module_has_a_layer() -> None:
    # The extension's Python side is generated; `_engine.pyi` is no module.
    assert {path.stem for path in MODULES} == RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down(path: Path) -> None:
    for name in own_modules(imported_names(path)) - {path.stem}:
        assert RANK[name] < RANK[path.stem], f"{path.stem} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_reserved_names_are_imported_by_their_owners_only(path: Path) -> None:
    for name in imported_names(path):
        for reserved, owners in RESERVED.items():
            if name == reserved or name.startswith(reserved + "."):
                assert path.stem in owners, f"{path.stem} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_private_parts_of_trio_are_named_in_one_module(path: Path) -> None:
    if path.stem != "_trio_private":
        assert not private_parts_of_trio(path)
