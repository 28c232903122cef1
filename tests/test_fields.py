"""Who may assign what: an attribute is assigned by the class that declares it, and no other.

A class that others write to has no states of its own that one could name: whoever wants to
know what a field may be has to read all who have it in their hands. So a class declares its
fields, in ``__slots__``, in its body or by assigning them to ``self``, and nobody else assigns
them, no class that is derived from it either. Others call a method.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[1] / "src" / "uring_trio"

# Of a class with all that it inherits from others here.
FIELDS_MAX = 25
METHODS_MAX = 40

# Where, and what: the attributes that are assigned there all the same, each with its reason.
FAST_WAY = "a fast way says once more, flat, what methods of the class do; see `_fast_ways`"
NOT_OURS = "a class of trio's or Python's has no method for it, and this is what we are here for"
TIMER = "an entry of its own heap, which moves with every byte"
NAMES = "a function or class gets the name under which users know it"
EXCEPTIONS: dict[str, tuple[str, set[str]]] = {
    "_operations: deliver": (
        FAST_WAY,
        {"operation.slot", "operation.task", "operation.pinned", "operation.trap"}
        | {"line.current", "line.spare", "line.poll_first"},
    ),
    "_streams: _receive_some": (
        FAST_WAY,
        {"operation.slot", "operation.task", "operation.tick", "operation.size"}
        | {"receiver.current", "receiver.spare"},
    ),
    "_streams: _send_all": (
        FAST_WAY,
        {"operation.slot", "operation.task", "operation.tick"}
        | {"operation.pinned", "operation.flags", "sender.current", "sender.spare"},
    ),
    "_sockets: UringSocket.recv_into": (FAST_WAY, {"receiver.current"}),
    "_trio_private: make_waker.wake": (
        "as Runner.reschedule, flat",
        {"task._next_send_fn", "task._next_send", "task._abort_func", "task.custom_sleep_data"},
    ),
    "_trio_private: hold_send_guard": ("as ConflictDetector.__enter__, flat", {"guard._held"}),
    "_trio_private: let_go": ("as ConflictDetector.__exit__, flat", {"guard._held"}),
    "_trio_private: note_shutdown": ("as trio's own shutdown", {"sock._did_shutdown_SHUT_WR"}),
    "_trio_private: bind_io_manager": (
        NOT_OURS,
        {"setattr(_run, 'TheIOManager', manager_class)"},
    ),
    "_trio_private: bind_socket_type": (
        NOT_OURS,
        {"setattr(_socket, '_SocketType', socket_class)"},
    ),
    "_hooks: Entrance._swap": (NOT_OURS, {"runner.io_manager"}),
    "_instruments: make_flat": (NOT_OURS, {"runner.instruments"}),
    "_instruments: make_flat.give_back": (NOT_OURS, {"runner.instruments"}),
    "_hooks: _settle": (
        NOT_OURS,
        {"setattr(owner, name, ours)", "setattr(owner, name, original)"},
    ),
    "_each_run: EachRun.before_run": (NOT_OURS, {"runner.clock"}),
    "_adoption: _belongs_on_ring": (NOT_OURS, {"sock.__class__"}),
    "_adoption: _ending.method": (NOT_OURS, {"self.__class__"}),
    "_streams: _fd_endpoint": (
        "trio's FdStream has no place for what we know of it",
        {"stream._uring_endpoint", "stream._uring_bytes"},
    ),
    "_launcher: carry_over_to_multiprocessing": (
        NOT_OURS,
        {"multiprocessing.spawn.get_preparation_data"},
    ),
    "_launcher: run_module": ("as python does", {"sys.argv"}),
    "_launcher: run_script": (
        "as python does",
        {"sys.argv", "main_module.__file__", "main_module.__loader__"},
    ),
    "pytest_plugin: RunCounter.pytest_sessionfinish": (NOT_OURS, {"session.exitstatus"}),
    "_kernel: RingSizes.__init__": ("a struct of C's", {"config.long_tick_ns"}),
    "_kernel: _config_of": (
        "a struct of C's",
        {"config.sq_entries", "config.sq_entries_min", "config.cq_entries"}
        | {"config.groups[index].entries", "config.groups[index].buffer_size"},
    ),
    "_operations: raise_error": (
        "a frozen class of outcome's, which does so itself",
        {"object.__setattr__(error, 'error', None)"},
    ),
    "_slots: Slots.lost": ("what `raise from` does", {"lost.__cause__"}),
    "_adoption: _replacement": (
        NAMES,
        {"method.__name__", "method.__qualname__", "method.__doc__"},
    ),
    "_streams: ": (NAMES, {"_method.__name__", "_method.__qualname__", "_method.__doc__"}),
    "_sockets: ": (NAMES, {"getattr(UringSocket, _name).__qualname__"}),
    "gain._address: Address.__new__": ("as __init__, of a tuple", {"self.network"}),
    "gain._callbacks: Callbacks.__init__": (
        "its own fields, which are there by name",
        {"setattr(self, name, method)"},
    ),
    "gain._callbacks: Elsewhere._run_on_close": (NOT_OURS, {"scope.deadline"}),
    "gain._callbacks: Elsewhere.cancel": (NOT_OURS, {"scope.deadline"}),
    "gain._config: Config._check_choices": (
        "its own fields, where a frozen class is made",
        {
            "object.__setattr__(self, 'architecture', architecture)",
            "object.__setattr__(self, 'load_balancing', balancing)",
        },
    ),
    "gain._conn: Conn.write": (FAST_WAY, {"outbound.size"}),
    "gain._conn: Handle.next": (FAST_WAY, {"inbound.lease_size"}),
    "gain._deadlines: Timers.expired": (TIMER, {"timer.filed_at"}),
    "gain._deadlines: Timers.schedule": (TIMER, {"timer.deadline"}),
    "gain._deadlines: WorkerClock.set_in": (NOT_OURS, {"self._scope.deadline"}),
    "gain._listen: _open_unix": (
        "the first listener of a path is the one that removes it",
        {"group[0].unix_path"},
    ),
    "gain._ring: route": (
        FAST_WAY,
        {"connection.ready", "inbound.fresh", "inbound.lease_at", "inbound.lease_size"}
        | {"link.readable", "turn.bytes_in"},
    ),
    "gain._serving: Serving._stop": (NOT_OURS, {"self._scope.deadline"}),
    "gain._turn: Turn._send_now": (FAST_WAY, {"outbound.size", "outbound.written"}),
    "gain._turn: Turn._serve_large": (FAST_WAY, {"inbound.fresh", "inbound.pool"}),
    "gain._turn: Turn._sweep_ready": (
        FAST_WAY,
        {"connection.ready", "inbound.fresh", "outbound.size", "outbound.written"},
    ),
    "_api: ": (NAMES, {"_thing.__module__"}),
    "_errors: ": (NAMES, {"UringUnavailable.__module__"}),
    "_each_run: ": (NAMES, {"RefusedRun.__qualname__", "RefusedRun.__module__"}),
    "_run: ": (NAMES, {"run.__signature__", "start_guest_run.__signature__"}),
}

# Classes that have more of either, each with its reason.
WIDE = {"Config": "one field for each option that a user may choose"}

# The files that a connection of the callback servers is made of, and their fields that are
# true or false. What decides is a state of a table there, or is computed; these are the rest.
CONNECTION_FILES = ["_callbacks", "_conn", "_connection", "_datagram", "_deadlines", "_engine"]
CONNECTION_FILES += ["_halves", "_life", "_patience", "_ring", "_tls", "_turn"]
IN_A_LIST = "whether it is in a list, which nobody wants to search"
BOOLEANS = {
    "_callbacks: Elsewhere._in_threads": "an option of the server's",
    "_connection: Connection.ready": IN_A_LIST,
    "_datagram: Datagram.ready": IN_A_LIST,
    "_datagram: DatagramSocket._receiving": "who sends meanwhile is in the worker's turn already",
    "_engine: Engine.misses_errors": "a fact about the engine, the same for all connections",
    "_patience: Patience.warned": "a line in a log that is written once",
    "_ring: RingLink.poll_first": "a hint to the kernel, which costs time and nothing else",
    "_ring: RingLink.reading": "what the protocol of a slot asks for; always the same",
    "_datagram: Watch.reading": "what the protocol of a slot asks for; always the same",
    "_turn: Turn.parked": "whether its task sleeps, which only trio knows as well",
}


@dataclass
class Found:
    """A class of ours."""

    name: str
    bases: list[str]
    fields: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)  # to self, in its own methods


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name, ast.parse(path.read_text())


def targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to, or deletes, taken apart."""
    todo: list[ast.expr | None] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        todo += node.targets
    elif isinstance(node, (ast.AugAssign, ast.For, ast.AsyncFor, ast.comprehension)):
        todo.append(node.target)
    elif isinstance(node, ast.AnnAssign):
        todo.append(node.target if node.value is not None else None)
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        todo += [item.optional_vars for item in node.items]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(SETTERS):
        # By a name that is computed, or one of a frozen class.
        yield node
    while todo:
        target = todo.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            todo += target.elts
        elif isinstance(target, ast.Starred):
            todo.append(target.value)
        elif isinstance(target, ast.Attribute):
            yield target


SETTERS = ("setattr", "delattr", "__setattr__", "__delattr__")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """All below it, but for what belongs to classes inside; functions inside see its names."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.ClassDef):
            yield child
            yield from own_nodes(child)


def first_argument(function: ast.AST) -> str | None:
    assert isinstance(function, Function)
    if any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list):
        return None
    arguments = [*function.args.posonlyargs, *function.args.args]
    return arguments[0].arg if arguments else None


def look_at_class(node: ast.ClassDef) -> Found:
    found = Found(node.name, [ast.unparse(base).split("[")[0] for base in node.bases])
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found.fields.add(statement.target.id)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                assert isinstance(target, ast.Name)
                if target.id == "__slots__":
                    found.fields |= set(ast.literal_eval(statement.value)) - {"__weakref__"}
                else:
                    found.fields.add(target.id)
        elif isinstance(statement, Function):
            found.methods.add(statement.name)
            me = first_argument(statement)
            for inner in own_nodes(statement):
                for target in targets(inner):
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == me:
                        found.assigned.add(target.attr)
    return found


def look_at_all(trees: list[tuple[str, ast.Module]]) -> dict[str, Found]:
    classes = [
        look_at_class(node)
        for _, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    by_name = {found.name: found for found in classes}
    assert len(by_name) == len(classes), "two classes of one name: one word for one thing"
    return by_name


def ancestors(found: Found, classes: dict[str, Found]) -> list[Found]:
    """Those that are ours."""
    direct = [classes[base] for base in found.bases if base in classes]
    return [*direct, *(further for each in direct for further in ancestors(each, classes))]


def declared(found: Found, classes: dict[str, Found]) -> set[str]:
    """Its own fields: what it declares, and assigns, and does not inherit."""
    inherited = {name for other in ancestors(found, classes) for name in whole(other, classes)[0]}
    return found.fields | (found.assigned - inherited)


def whole(found: Found, classes: dict[str, Found]) -> tuple[set[str], set[str]]:
    """Fields and methods of a class with all that it inherits from ours."""
    fields, methods = found.fields | found.assigned, set(found.methods)
    for other in ancestors(found, classes):
        fields |= other.fields | other.assigned
        methods |= other.methods
    return fields, methods


def assigned_elsewhere(name: str, tree: ast.Module, classes: dict[str, Found]) -> set[str]:
    """``module: function: target`` of each attribute that its class does not assign."""
    found: set[str] = set()

    def look(node: ast.AST, owner: Found | None, me: str | None, where: str) -> None:
        for target in targets(node):
            shown = ast.unparse(target)
            own = declared(owner, classes) if owner is not None else set()
            if shown not in {f"{me}.{attribute}" for attribute in own}:
                found.add(f"{name}: {where}: {shown}")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                look(child, classes[child.name], None, child.name)
            elif isinstance(child, Function) and isinstance(node, ast.ClassDef):
                look(child, owner, first_argument(child), f"{where}.{child.name}")
            elif isinstance(child, Function) and me is None:
                look(child, None, None, f"{where}.{child.name}".lstrip("."))
            else:
                look(child, owner, me, where)

    look(tree, None, None, "")
    return found


TREES = list(modules())
CLASSES = look_at_all(TREES)
ALLOWED = {f"{where}: {what}" for where, (_, names) in EXCEPTIONS.items() for what in names}


def test_attributes_are_assigned_by_the_class_that_declares_them() -> None:
    found = {line for name, tree in TREES for line in assigned_elsewhere(name, tree, CLASSES)}
    assert found - ALLOWED == set()
    assert ALLOWED - found == set(), "an exception that nobody needs any more"


@pytest.mark.parametrize("found", CLASSES.values(), ids=lambda found: found.name)
def test_a_class_can_be_held_in_mind(found: Found) -> None:
    fields, methods = whole(found, CLASSES)
    if found.name in WIDE:
        assert len(fields) > FIELDS_MAX or len(methods) > METHODS_MAX
        return
    assert len(fields) <= FIELDS_MAX, sorted(fields)
    assert len(methods) <= METHODS_MAX, sorted(methods)


EXAMPLE = """
class Base:
    __slots__ = ("a",)
    b: int
    def __init__(self, other):
        self.a = 1
        self.b, (self.c, *self.d) = 1, (2, 3)
        other.a = 1
class Derived(Base):
    def method(self):
        self.a += 1
        self.own = 1
        with open("x") as self.c:
            pass
        for self.b in ():
            pass
        def inner():
            self.own = 2
            self.d = 2
        del self.own
        setattr(self, "e", 1)
    @staticmethod
    def apart(self):
        self.own = 1
def function(thing):
    thing.a = thing.b = 1
    thing.items[0] = 1
    class Inner:
        def method(me):
            me.x = 1
            thing.y = 1
"""


def test_what_counts_as_assigned_elsewhere() -> None:
    tree = ast.parse(EXAMPLE)
    classes = look_at_all([("m", tree)])
    assert declared(classes["Base"], classes) == {"a", "b", "c", "d"}
    assert declared(classes["Derived"], classes) == {"own"}
    assert whole(classes["Derived"], classes)[0] == {"a", "b", "c", "d", "own"}
    assert assigned_elsewhere("m", tree, classes) == {
        "m: Base.__init__: other.a",
        "m: Derived.method: self.a",
        "m: Derived.method: self.b",
        "m: Derived.method: self.c",
        "m: Derived.method: self.d",
        "m: Derived.method: setattr(self, 'e', 1)",
        "m: Derived.apart: self.own",
        "m: function: thing.a",
        "m: function: thing.b",
        "m: Inner.method: thing.y",
    }


def booleans(name: str, tree: ast.Module) -> set[str]:
    """``module: class.field`` of each that is true or false."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.AnnAssign) and ast.unparse(inner.annotation) == "bool":
                found.add(f"{name}: {node.name}.{ast.unparse(inner.target).removeprefix('self.')}")
            elif isinstance(inner, ast.Assign) and is_boolean(inner.value):
                for target in inner.targets:
                    shown = ast.unparse(target)
                    if shown.startswith("self.") or inner in node.body:
                        found.add(f"{name}: {node.name}.{shown.removeprefix('self.')}")
    return found


def is_boolean(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool)
    if isinstance(node, ast.BoolOp):
        return all(map(is_boolean, node.values[1:]))
    return isinstance(node, ast.Compare) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def test_what_decides_is_a_state_of_a_table() -> None:
    trees = {name.removeprefix("gain."): tree for name, tree in TREES if name.startswith("gain.")}
    found = {line for name in CONNECTION_FILES for line in booleans(name, trees[name])}
    assert found == set(BOOLEANS)


def test_what_is_a_boolean() -> None:
    tree = ast.parse(
        "class C:\n    a: bool\n    b = False\n    c = 1\n    def f(self, other):\n"
        "        self.d = True\n        self.e = other > 1\n        self.f = other and not other\n"
        "        self.g = other or 1\n        h = True\n        other.i = True\n"
    )
    assert booleans("m", tree) == {f"m: C.{name}" for name in "abdef"}
