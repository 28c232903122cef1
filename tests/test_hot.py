"""The hot paths in C: what of a stream's beginning they take, what Python's looks see, and no leak.

What they make of records is compared in test_fast_ways.py, beside the other fast ways.
"""

from __future__ import annotations

import collections.abc
import contextlib
import copy
import ctypes
import errno
import gc
import inspect
import itertools
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.testing
from line_signals import Lines, is_ours
from marks import needs_ring

from uring_trio import _hot_parts, _kernel, _streams
from uring_trio._endpoints import Endpoint
from uring_trio._kernel import GROUP_SIZES, TRANSFER_MAX
from uring_trio._lines import Receiver, Sender
from uring_trio._operations import Operation, Receive, Send
from uring_trio._slots import Slots
from uring_trio._streams import RECEIVE_SIZE
from uring_trio._trio_private import park

if TYPE_CHECKING:
    from types import CodeType

hot: Any = _hot_parts.hot

in_c = pytest.mark.skipif(hot is None, reason=f"hot paths in Python: {_hot_parts.why_python}")


# ---- which it is -------------------------------------------------------------------------

SHOW = "from uring_trio import _hot_parts as p; print(p.hot is not None, p.why_python)"


def shown(program: str = SHOW, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != _hot_parts.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=50 * harness.SLOWNESS,
    )
    return done.stdout.strip()


@in_c
def test_it_is_there_if_nobody_minds() -> None:
    assert shown() == "True None"


@pytest.mark.fast_ways
def test_the_environment_can_have_python_alone() -> None:
    assert shown(URING_TRIO_PURE="1") == "False URING_TRIO_PURE is 1"


def test_without_fast_ways_there_is_no_hot_path_either() -> None:
    assert shown(URING_TRIO_FAST_WAYS="off") == "False URING_TRIO_FAST_WAYS is off"


def fail_to_load(error: str) -> str:
    return f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "uring_trio._hot":
            raise {error}
sys.meta_path.insert(0, Finder())
import uring_trio
print(uring_trio.probe().hot_paths)
"""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("ModuleNotFoundError('none')", "it was not built"),
        ("ImportError('undefined symbol: x', path='_hot.abi3.so')", "undefined symbol: x"),
    ],
)
@pytest.mark.fast_ways
def test_why_it_is_not_there_is_told(error: str, reason: str) -> None:
    assert shown(fail_to_load(error)) == f"Python: {reason}"


@in_c
def test_one_of_another_build_is_not_used() -> None:
    program = LOAD_ALONE + (
        "_hot.TABLE_VERSION += 1\n"
        "import uring_trio, trio; uring_trio.run(trio.sleep, 0)\n"
        "print(uring_trio.probe().hot_paths)"
    )
    assert shown(program) == "Python: it was built at another time than the engine"


IN_TWO_INTERPRETERS = """
import _xxsubinterpreters as interpreters
import trio, trio.testing, uring_trio

async def main():
    listener, = await trio.open_tcp_listeners(0, host="127.0.0.1")
    one = await trio.testing.open_stream_to_socket_listener(listener)
    other = await listener.accept()
    async with one, other, listener:
        for _ in range(2):
            await one.send_all(b"x")
            assert await other.receive_some(10) == b"x"

uring_trio.run(main)
from uring_trio import _streams
second = interpreters.create(isolated=False)
interpreters.run_string(
    second, "import uring_trio._streams; from uring_trio._hot_parts import why_python as why"
)
interpreters.run_string(second, "print(why)")
uring_trio.run(main)
interpreters.destroy(second)
uring_trio.run(main)
"""


@needs_ring
@in_c
def test_a_second_interpreter_has_python() -> None:
    """And the first one's runs go on."""
    pytest.importorskip("_xxsubinterpreters")
    assert shown(IN_TWO_INTERPRETERS) == "an earlier import in this process has it"


IN_TWO_IMPORTS = """
import sys
import trio, uring_trio
from uring_trio import _hot_parts

async def main():
    one, other = trio.socket.socketpair()
    async with trio.SocketStream(one) as one, trio.SocketStream(other) as other:
        for _ in range(2):
            await one.send_all(b"x")
            assert await other.receive_some(10) == b"x"

uring_trio.run(main)
before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("uring_trio")}
from uring_trio import _hot_parts as again
print(again.why_python)
sys.modules.update(before)
assert sys.modules["uring_trio._hot_parts"].hot is not None
uring_trio.run(main)
"""


@needs_ring
@in_c
def test_who_imports_it_once_more_has_python() -> None:
    """And runs by what was imported before go on."""
    assert shown(IN_TWO_IMPORTS) == "an earlier import in this process has it"


# Before the package itself imports it.
LOAD_ALONE = """
import importlib.util, importlib.machinery, sys, pathlib
folder = pathlib.Path(importlib.util.find_spec('uring_trio').origin).parent
path = next(folder.glob('_hot.*.so'))
loader = importlib.machinery.ExtensionFileLoader('uring_trio._hot', str(path))
spec = importlib.util.spec_from_file_location('uring_trio._hot', path, loader=loader)
_hot = importlib.util.module_from_spec(spec)
sys.modules['uring_trio._hot'] = _hot
"""


def test_the_classes_have_their_fields_in_either_way() -> None:
    expected: dict[type, set[str]] = {
        Receive: {"line", "raise_cancel", "size", "slot", "task", "tick", "trap"},
        Send: {"flags", "line", "pinned", "raise_cancel", "slot", "task", "tick", "trap"},
        Receiver: {"backlog", "current", "fileno", "slots", "spare", "waiting"}
        | {"group", "plain_receive", "poll_first", "prep_receive", "small_in_a_row"}
        | {"has_low_water", "may_have_low_water"},
        Sender: {"backlog", "current", "fileno", "prep_send", "slots", "spare", "waiting"},
        Endpoint: {"can_be_tried", "fd", "manager", "owner", "receiver", "sender"},
        Slots: {"pool", "pool_address", "record_address", "table", "tick", "wake"},
    }
    for kind, names in expected.items():
        found = {
            name
            for each in kind.__mro__[:-1]
            for name, field in vars(each).items()
            if type(field).__name__ == "member_descriptor"
        }
        assert found == names, kind
        assert not hasattr(kind, "__dict__") or "__dict__" not in dir(kind) or kind is Slots


# ---- what is begun -----------------------------------------------------------------------


class Table(ctypes.Structure):
    """csrc/table.h"""

    RECV = ctypes.CFUNCTYPE(
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
        *(ctypes.c_uint, ctypes.c_uint32, ctypes.c_int),
    )
    SEND = ctypes.CFUNCTYPE(
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int),
    )
    TRY_SEND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    _fields_ = [
        ("version", ctypes.c_int),
        ("recv", RECV),
        ("send", SEND),
        ("try_send", TRY_SEND),
    ]


class Prepared:
    """An engine that prepares nothing, and notes what it was asked for."""

    ENGINE = 64  # an address that nobody follows

    def __init__(self, answer: int) -> None:
        self.noted: list[tuple[Any, ...]] = []
        self.answer = answer
        self.table = Table(hot.TABLE_VERSION, Table.RECV(self._recv), Table.SEND(self._send))
        self.door = hot.Door(ctypes.addressof(self.table), self.ENGINE, self._send_others)

    def _recv(self, engine: int, fd: int, group: int, size: int, poll_first: int) -> int:
        assert engine == self.ENGINE
        self.noted.append(("recv", fd, group, size, poll_first))
        return self.answer

    def _send(self, engine: int, fd: int, data: int, size: int, flags: int) -> int:
        assert engine == self.ENGINE
        self.noted.append(("send", fd, ctypes.string_at(data, size), flags))
        return self.answer

    def _send_others(self, fd: int, data: Any, size: int, flags: int) -> int:
        return self._send(self.ENGINE, fd, 0, 0, flags)


class Case:
    """A stream of this run, whose lines are above such an engine."""

    def __init__(self, stream: Any, answer: int) -> None:
        self.stream = stream
        self.endpoint: Any = stream.socket.ring_endpoint()
        self.receiver, self.sender = self.endpoint.receiver, self.endpoint.sender
        self.slots = self.receiver.slots
        self.engine = Prepared(answer)
        self.receiver.prep_receive = self.engine.door.recv
        self.sender.prep_send = self.engine.door.send
        self.operations = {"receive": Receive(self.receiver, 1), "send": Send(self.sender, b"", 0)}
        self.receiver.spare, self.sender.spare = self.operations["receive"], self.operations["send"]
        self.receiver.current = self.sender.current = None
        self.receiver.group, self.receiver.poll_first = 0, False
        self.size = len(self.slots.table)

    def state(self) -> str:
        """All that was changed, or might have been."""
        line_fields = ["current", "spare", "waiting"]
        names = {
            "receiver": (self.receiver, [*line_fields, "group", "poll_first", "small_in_a_row"]),
            "sender": (self.sender, line_fields),
            "receive": (
                self.operations["receive"],
                ["slot", "tick", "task", "raise_cancel", "size"],
            ),
            "send": (
                self.operations["send"],
                ["slot", "tick", "task", "raise_cancel", "pinned", "flags"],
            ),
        }
        found: dict[str, Any] = {
            where: {name: getattr(thing, name) for name in fields}
            for where, (thing, fields) in names.items()
        }
        found["guard"] = self.stream._send_conflict_detector._held
        found["table"] = [
            (slot, each) for slot, each in enumerate(self.slots.table) if slot == self.engine.answer
        ]
        found["noted"] = self.engine.noted
        return re.sub(r"0x[0-9a-f]+", "", repr(found))

    def leave(self) -> None:
        """As if it had never been."""
        del self.slots.table[self.size :]
        if 0 <= self.engine.answer < self.size:
            self.slots.table[self.engine.answer] = None
        self.receiver.current = self.sender.current = None
        self.receiver.spare = self.sender.spare = None
        self.receiver.prep_receive = self.receiver.plain_receive
        self.sender.prep_send = self.slots.ring.send


BEGINNINGS: dict[str, list[Any]] = {
    "group": [0, 1, 2],
    "poll_first": [False, True],
    "slot": [200, 300],  # the second makes the table grow
}
SIZES = [None, 1, GROUP_SIZES[0], GROUP_SIZES[0] + 1, RECEIVE_SIZE, RECEIVE_SIZE + 1, TRANSFER_MAX]


def begin(case: Case, call: Callable[[Any, Any], Any], argument: Any) -> tuple[str, str]:
    """Call a stream's method and run it to where it sleeps; how it went, and what is left."""
    coroutine = call(case.stream, argument)
    try:
        slept = coroutine.send(None)
        how = re.sub(r"0x[0-9a-f]+", "", repr(slept))
        state = case.state()
    finally:
        coroutine.close()
    return how, state


async def a_stream() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


def arguments_of(what: str) -> list[Any]:
    return SIZES if what == "receive" else [b"x", b"y" * 300]


PYTHON: dict[str, Any] = {"receive": _streams._receive_some, "send": _streams._send_all}
METHODS = {"receive": "receive_some", "send": "send_all"}


@in_c
@pytest.mark.parametrize("what", ["receive", "send"])
@pytest.mark.differential
@pytest.mark.ring_only
async def test_what_is_plain_begins_as_in_python(what: str) -> None:
    method = _streams.REPLACEMENTS[trio.SocketStream][METHODS[what]]
    stream, peer = await a_stream()
    seen = set()
    async with stream, peer:
        for group, poll_first, slot in itertools.product(*BEGINNINGS.values()):
            for argument in arguments_of(what):
                results = []
                for call in (PYTHON[what], method):
                    case = Case(stream, slot)
                    case.receiver.group, case.receiver.poll_first = group, poll_first
                    results.append(begin(case, call, argument))
                    assert len(case.engine.noted) == 1
                    case.leave()
                assert results[0] == results[1]
                seen.add(results[0])
                case = Case(stream, slot)
                assert begins(what, stream, argument)  # it was C indeed
                case.leave()
    # Of the sizes some are one to the kernel: it is asked for no more than a buffer takes.
    assert len(seen) == 12 * (4 if what == "receive" else 2)


@in_c
@pytest.mark.parametrize("what", ["receive", "send"])
@pytest.mark.differential
@pytest.mark.ring_only
async def test_the_first_of_a_connection_begins_as_in_python(what: str) -> None:
    method = _streams.REPLACEMENTS[trio.SocketStream][METHODS[what]]
    own = ["size"] if what == "receive" else ["pinned", "flags"]
    stream, peer = await a_stream()
    async with stream, peer:
        for argument in arguments_of(what):
            begun = []
            for call in (PYTHON[what], method):
                case = Case(stream, 200)
                case.receiver.spare = case.sender.spare = None
                line = case.receiver if what == "receive" else case.sender
                coroutine = call(stream, argument)
                assert coroutine.send(None) is line.current.trap
                assert line.spare is None
                fields = ["line", "task", "slot", "tick", "raise_cancel", *own]
                begun.append([getattr(line.current, name) for name in fields])
                begun[-1].append(case.engine.noted)
                coroutine.close()
                case.leave()
            assert begun[0] == begun[1]
            case = Case(stream, 200)
            case.receiver.spare = case.sender.spare = None
            assert begins(what, stream, argument)  # it was C indeed
            case.leave()


@in_c
@pytest.mark.parametrize("what", ["receive", "send"])
@pytest.mark.differential
@pytest.mark.ring_only
async def test_without_memory_for_the_first_it_is_pythons(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = _streams.REPLACEMENTS[trio.SocketStream][METHODS[what]]
    line_kind = Receiver if what == "receive" else Sender
    asked = []

    def refuse(line: object) -> None:
        asked.append(line)
        raise MemoryError

    stream, peer = await a_stream()
    async with stream, peer:
        case = Case(stream, 200)
        case.receiver.spare = case.sender.spare = None
        line = case.receiver if what == "receive" else case.sender
        with monkeypatch.context() as patch:
            patch.setattr(line_kind, "make_spare", refuse)
            assert not begins(what, stream, arguments_of(what)[0])
            coroutine = method(stream, arguments_of(what)[0])
            assert coroutine.send(None) is line.current.trap
        coroutine.close()
        case.leave()
    assert asked == [line, line]


class Bytes(bytes):
    """Not exactly bytes."""


NOT_PLAIN: dict[str, list[Any]] = {
    "receive": [0, -1, True, 2.5, "1", TRANSFER_MAX + 1, 1 << 80],
    "send": [b"", bytearray(b"x"), memoryview(b"x"), Bytes(b"x"), "x", None],
}


def begins(what: str, stream: Any, argument: Any) -> bool:
    """Whether C takes it."""
    call = hot.begin_receive if what == "receive" else hot.begin_send
    return call(stream, argument) is not None


def somebody_is_in_the_kernel(case: Case) -> None:
    case.receiver.current = Receive(case.receiver, 1)
    case.sender.current = Send(case.sender, b"", 0)


def something_stands_between(case: Case) -> None:
    prepare, send = case.receiver.prep_receive, case.sender.prep_send
    case.receiver.prep_receive = lambda *args: prepare(*args)
    case.sender.prep_send = lambda *args: send(*args)


def the_ring_is_closed(case: Case) -> None:
    case.engine.door.close()


def another_run_has_it(case: Case) -> None:
    case.endpoint.manager = object()


def it_is_another_socket(case: Case) -> None:
    case.endpoint.owner = object()


def it_was_not_used_yet(case: Case) -> None:
    case.stream.socket.endpoint = None


SPECIAL = [
    *(somebody_is_in_the_kernel, something_stands_between, the_ring_is_closed),
    *(another_run_has_it, it_is_another_socket, it_was_not_used_yet),
]


@in_c
@pytest.mark.parametrize("what", ["receive", "send"])
@pytest.mark.differential
@pytest.mark.ring_only
async def test_what_is_not_plain_is_left_alone(what: str) -> None:
    stream, peer = await a_stream()
    plain = 100 if what == "receive" else b"x"
    async with stream, peer:
        case = Case(stream, 200)
        manager, owner, endpoint = case.endpoint.manager, case.endpoint.owner, case.endpoint
        case.leave()
        for argument in NOT_PLAIN[what]:
            case = Case(stream, 200)
            before = case.state()
            assert not begins(what, stream, argument)
            assert case.state() == before
            case.leave()
        for make_special in SPECIAL:
            case = Case(stream, 200)
            make_special(case)
            before = case.state()
            assert not begins(what, stream, plain), make_special
            assert case.state() == before
            endpoint.manager, endpoint.owner = manager, owner
            stream.socket.endpoint = endpoint  # type: ignore[attr-defined]
            case.leave()
        # What the engine refuses is left to be refused once more.
        case = Case(stream, -errno.ENOMEM)
        assert not begins(what, stream, plain)
        assert len(case.engine.noted) == 1
        case.engine.noted.clear()
        state = case.state()
        case.leave()
        assert state == Case(stream, -errno.ENOMEM).state()
        Case(stream, 200).leave()
        # And all of that was no accident.
        case = Case(stream, 200)
        assert begins(what, stream, plain)
        case.leave()


@in_c
@pytest.mark.parametrize("what", ["receive", "send"])
async def test_on_stocks_manager_and_with_other_objects_nothing_is_plain(what: str) -> None:
    argument = 100 if what == "receive" else b"x"
    stream, peer = await a_stream()
    async with stream, peer:
        for thing in (stream, object(), None):
            assert not begins(what, thing, argument)


@in_c
def test_a_door_refuses_what_it_cannot_do() -> None:
    engine = Prepared(5)
    door = engine.door
    assert door.recv(7, 1, 100, True) == 5
    assert door.send(7, b"abc", 2, 0) == 5
    assert door.send(7, bytearray(b"abc"), 2, 0) == 5
    assert engine.noted == [
        ("recv", 7, 1, 100, 1),
        ("send", 7, b"ab", 0),
        ("send", 7, b"", 0),
    ]
    calls: list[Callable[[], Any]] = [
        lambda: door.send(7, b"abc", 4, 0),
        lambda: door.send(7, b"abc", -1, 0),
        lambda: door.recv(7, 1, 100),
        lambda: door.recv(7, 1, "x", 0),
        lambda: hot.know(nothing=1),
        lambda: hot.know(task_coro=object()),
        lambda: hot.deliver(object(), 1),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)):
            call()
    door.close()
    assert door.recv(7, 1, 100, 0) == door.send(7, b"abc", 3, 0) == _kernel.RING_CLOSED
    engine.table.version += 1
    with pytest.raises(RuntimeError):
        hot.Door(ctypes.addressof(engine.table), 64, None)


# ---- what a task awaits ------------------------------------------------------------------


def test_parking_is_a_coroutine_to_whoever_looks() -> None:
    """In either way."""
    trap = object()
    parked: Any = park(trap)
    assert parked.send(None) is trap
    with pytest.raises(StopIteration) as stopped:
        parked.send((1, 2))
    assert stopped.value.value == (1, 2)

    parked = park(trap)
    assert parked.send(None) is trap
    with pytest.raises(KeyError, match="here"):
        parked.throw(KeyError("here"))

    parked = park(trap)
    assert parked.send(None) is trap
    parked.close()
    with pytest.raises((StopIteration, RuntimeError)):
        parked.send(None)


Call = Callable[[trio.SocketStream], Any]

CALLS: dict[str, Call] = {
    "receive_some": lambda stream: stream.receive_some(10),
    "send_all": lambda stream: stream.send_all(b"x"),
}
# What Python does, since it is not plain.
HANDED: dict[str, Call] = {
    "receive_some": lambda stream: stream.receive_some(True),
    "send_all": lambda stream: stream.send_all(bytearray(b"x")),
}
each_call = pytest.mark.parametrize("name", CALLS)
each_way = pytest.mark.parametrize("calls", [CALLS, HANDED], ids=["plain", "handed"])


async def used_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two streams, each of which has an operation to be used again."""
    one, other = await a_stream()
    for stream, peer in ((one, other), (other, one)):
        await stream.send_all(b"x")
        assert await peer.receive_some(1) == b"x"
    return one, other


async def fill(stream: trio.SocketStream) -> None:
    """Until nothing more can be sent."""
    with contextlib.suppress(BlockingIOError):
        while True:
            stream.socket._sock.send(bytes(1 << 16))  # type: ignore[attr-defined]


@pytest.mark.differential
@each_call
@each_way
async def test_a_call_is_a_coroutine_to_python(calls: dict[str, Call], name: str) -> None:
    one, other = await used_pair()
    async with one, other:
        call: Any = calls[name](one)
        assert inspect.isawaitable(call)
        # Else mypy knows better what it is.
        assert isinstance(call, getattr(collections.abc, "Coroutine"))  # noqa: B009
        assert call.__name__ == name
        assert call.__qualname__ == f"SocketStream.{name}"
        assert f"coroutine object SocketStream.{name} at " in repr(call)
        assert call.cr_await is None
        assert not call.cr_running
        with pytest.raises(TypeError, match="can't send non-None value to a just-started"):
            call.send(1)
        call.close()
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            call.send(None)
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            call.throw(KeyError)
        call.close()


@in_c
@pytest.mark.differential
@pytest.mark.ring_only
async def test_no_frame_is_there_before_it_begins() -> None:
    """Or trio would take it for a task's own coroutine."""
    one, other = await a_stream()
    async with one, other:
        call: Any = one.receive_some(1)
        assert call.cr_frame is None
        call.close()


@pytest.mark.differential
@each_call
@each_way
async def test_a_call_that_is_never_awaited_says_so(calls: dict[str, Call], name: str) -> None:
    one, other = await used_pair()
    async with one, other:
        with pytest.warns(RuntimeWarning, match=f"SocketStream.{name}' was never awaited"):
            calls[name](one)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            calls[name](one).close()  # this one has been cared for
            gc.collect()


@pytest.mark.differential
@each_call
@each_way
async def test_the_frames_of_a_task_that_sleeps_can_be_had(
    calls: dict[str, Call], name: str
) -> None:
    one, other = await used_pair()
    async with one, other:
        await fill(one)

        async def user() -> None:
            await calls[name](one)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(user)
            await trio.testing.wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            names = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
            assert names[0] == "user"
            assert name in names[1].lstrip("_")
            assert all(line > 0 for _, line in task.iter_await_frames())
            nursery.cancel_scope.cancel()


@pytest.mark.differential
@each_call
async def test_a_call_may_be_a_tasks_own(name: str) -> None:
    one, other = await used_pair()
    async with one, other, trio.open_nursery() as nursery:
        nursery.start_soon(one.receive_some, 5)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        assert len(list(task.iter_await_frames())) >= 2
        nursery.start_soon(other.send_all, b"x")


@pytest.mark.differential
async def test_arguments_are_those_of_the_methods() -> None:
    one, other = await used_pair()
    methods: Any = one
    async with one, other:
        await methods.send_all(data=b"abc")
        assert await other.receive_some(max_bytes=2) == b"ab"
        assert await other.receive_some() == b"c"
        for refused in (
            lambda: methods.receive_some(1, 2),
            lambda: methods.receive_some(1, max_bytes=2),
            lambda: methods.receive_some(size=1),
            lambda: methods.send_all(),
            lambda: methods.send_all(b"x", b"y"),
            lambda: methods.send_all(text=b"x"),
            lambda: trio.SocketStream.receive_some(object()),  # type: ignore[arg-type]
        ):
            with pytest.raises((TypeError, AttributeError)):
                await refused()
        for method, names in ((methods.receive_some, ["max_bytes"]), (methods.send_all, ["data"])):
            assert list(inspect.signature(method).parameters) == names


@pytest.mark.differential
@each_call
@each_way
async def test_a_traceback_names_the_method(calls: dict[str, Call], name: str) -> None:
    one, other = await used_pair()
    seen: list[BaseException] = []

    async def user() -> None:
        try:
            await calls[name](one)
        except BaseException as exc:
            seen.append(exc)
            raise

    async with one, other:
        await fill(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:

            async def closed() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await user()

            nursery.start_soon(closed)
            await trio.testing.wait_all_tasks_blocked()
            await one.aclose()
    assert [type(exc) for exc in seen] == [trio.Cancelled, trio.ClosedResourceError]
    for exc in seen:
        names = [frame.name for frame in traceback.extract_tb(exc.__traceback__)]
        assert name in names[names.index("user") + 1].lstrip("_")


@pytest.mark.differential
@each_way
async def test_the_guard_of_a_stream_is_let_go_whatever_ends_a_send(calls: dict[str, Call]) -> None:
    one, other = await used_pair()
    guard: Any = one._send_conflict_detector
    send = calls["send_all"]

    async def second() -> None:
        with pytest.raises(trio.BusyResourceError, match="another task is currently sending data"):
            await send(one)
        assert guard._held  # still the first one's

    async with one, other:
        kept = send(one)
        await kept
        assert not guard._held  # also while somebody has the call still
        del kept
        await fill(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            await trio.testing.wait_all_tasks_blocked()
            assert guard._held
            await second()
            nursery.cancel_scope.cancel()
        assert not guard._held

        async with trio.open_nursery() as nursery:

            async def closed() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await send(one)
                assert not guard._held

            nursery.start_soon(closed)
            await trio.testing.wait_all_tasks_blocked()
            await one.aclose()


@in_c
@pytest.mark.differential
@pytest.mark.ring_only
@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("end", ["throw", "close", "drop", "foreign"])
async def test_a_call_that_is_ended_from_without_lets_the_guard_go(
    is_plain: bool, end: str
) -> None:
    stream, peer = await a_stream()
    guard: Any = stream._send_conflict_detector
    async with stream, peer:
        case = Case(stream, 200)
        if not is_plain:
            something_stands_between(case)
        call: Any = stream.send_all(b"x")
        assert call.send(None) is case.sender.current.trap
        assert guard._held
        assert (call.cr_await is None) == is_plain
        assert call.cr_frame.f_code.co_name == "send_all"
        if end == "throw":
            with pytest.raises(KeyError, match="here"):
                call.throw(KeyError("here"))
        elif end == "foreign":
            with warnings.catch_warnings():
                # Python 3.12 says so of its own coroutines; older ones pass it on like this.
                warnings.simplefilter("ignore", DeprecationWarning)
                with pytest.raises(KeyError, match="there"):
                    call.throw(KeyError, "there", None)
        elif end == "close":
            call.close()
        if end != "drop":
            assert call.cr_frame is call.cr_await is None
            assert not guard._held
        del call
        assert not guard._held
        case.leave()


@pytest.mark.differential
@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
async def test_a_send_that_is_short_goes_on(size: int) -> None:
    one, other = await used_pair()
    data = os.urandom(1 << 10) * (size >> 10)
    received = bytearray()
    async with one, other:

        async def receive() -> None:
            while len(received) < size:
                received.extend(await other.receive_some(70_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await one.send_all(data)
    assert bytes(received) == data


class Listener(trio.abc.Instrument):
    """Notes which tasks are scheduled."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.heard.append(task.name)


@pytest.mark.differential
async def test_an_instrument_hears_of_tasks_that_messages_wake() -> None:
    one, other = await used_pair()
    listener = Listener()

    async def reader() -> None:
        for _ in range(3):
            assert await other.receive_some(10) == b"x"
            received.set()

    async with one, other, trio.open_nursery() as nursery:
        nursery.start_soon(reader, name="reader")
        for number in range(3):
            received = trio.Event()
            await trio.testing.wait_all_tasks_blocked()
            if number == 1:
                trio.lowlevel.add_instrument(listener)
            elif number == 2:
                trio.lowlevel.remove_instrument(listener)
            await one.send_all(b"x")
            await received.wait()
    assert listener.heard.count("reader") == 1


@in_c
@pytest.mark.differential
@pytest.mark.ring_only
async def test_a_plain_message_runs_no_line_of_ours() -> None:
    """So no signal's handler, and no KeyboardInterrupt, comes in between."""
    one, other = await used_pair()

    def is_of_the_path(code: CodeType) -> bool:
        return is_ours(code) and code.co_filename.endswith(
            ("_streams.py", "_operations.py", "_lines.py", "_trio_private.py")
        )

    lines = Lines(is_of_the_path, ())
    async with one, other:
        with lines.counted():
            for _ in range(10):
                await one.send_all(b"x")
                assert await other.receive_some(10) == b"x"
    assert lines.count == 0


@pytest.mark.differential
@pytest.mark.ring_only
@each_call
async def test_what_raises_is_protected_from_keyboard_interrupts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    protected: list[bool] = []
    unwrap = Operation.unwrap

    def noting(self: Operation, value: Any) -> Any:
        protected.append(trio.lowlevel.currently_ki_protected())
        return unwrap(self, value)

    monkeypatch.setattr(Operation, "unwrap", noting)
    one, other = await used_pair()
    protected.clear()
    async with one, other:
        await fill(one)
        for call in (CALLS[name], HANDED[name]):
            with trio.move_on_after(0.01) as scope:
                await call(one)
            assert scope.cancelled_caught
    assert protected
    assert all(protected)


@pytest.mark.differential
@pytest.mark.ring_only
async def test_what_enters_a_slot_is_protected_from_keyboard_interrupts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a send would be with the kernel, and nobody at its slot: a long tick has that called."""
    protected: list[bool] = []
    submit = Slots._enter_and_leave

    def noting(self: Slots, occupant: Any, slot: int) -> int:
        protected.append(trio.lowlevel.currently_ki_protected())
        return submit(self, occupant, slot)

    monkeypatch.setattr(Slots, "_enter_and_leave", noting)
    one, other = await used_pair()
    async with one, other:
        end = time.monotonic() + 2e-9 * _kernel.LONG_TICK_NS
        while time.monotonic() < end:
            pass
        await one.send_all(b"x")
        assert await other.receive_some(10) == b"x"
    assert protected == [True]


@pytest.mark.differential
@each_call
@each_way
async def test_a_call_is_made_by_its_method_alone(calls: dict[str, Call], name: str) -> None:
    one, other = await used_pair()
    async with one, other:
        call: Any = calls[name](one)
        with pytest.raises(TypeError, match="cannot create"):
            type(call)()
        with pytest.raises(TypeError, match="cannot pickle"):
            copy.copy(call)
        call.close()


@pytest.mark.differential
@each_call
@each_way
async def test_nobody_else_awaits_a_call_that_sleeps(calls: dict[str, Call], name: str) -> None:
    one, other = await used_pair()
    async with one, other:
        await fill(one)
        call: Any = calls[name](one)

        async def awaits() -> None:
            await call

        with trio.move_on_after(10 * harness.SLOWNESS) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(awaits)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(RuntimeError, match="is being awaited already"):
                    await awaits()
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught


def a_traceback() -> Any:
    try:
        raise KeyError
    except KeyError as exc:
        return exc.__traceback__


@pytest.mark.differential
@each_call
@each_way
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of three arguments
async def test_what_is_thrown_is_raised_as_by_a_coroutine(
    calls: dict[str, Call], name: str
) -> None:
    async def plain() -> None:
        await trio.sleep_forever()

    def outcome(call: Any, thrown: tuple[Any, ...]) -> Any:
        try:
            call.throw(*thrown)
        except BaseException as exc:  # noqa: BLE001 - a StopIteration, too
            frames = [tb for tb, _ in traceback.walk_tb(exc.__traceback__)]
            return type(exc), exc.args, repr(exc.__cause__), there.tb_frame in frames
        finally:
            call.close()

    there = a_traceback()
    one, other = await used_pair()
    async with one, other:
        for thrown in (
            (KeyError("a"),),
            (KeyError, "a"),
            (KeyError, ("a", "b")),
            (KeyError, "a", there),
            (KeyError("a"), None, there),
            (KeyError("a"), "b"),
            (KeyError, None, 5),
            (123,),
            (StopIteration(3),),
        ):
            assert outcome(calls[name](one), thrown) == outcome(plain(), thrown)


class CallsBack(int):
    """A number that calls back whenever it is looked at."""

    act: Callable[[], None]

    def __lt__(self, other: int) -> bool:
        self.act()
        return int.__lt__(self, other)


@pytest.mark.differential
@pytest.mark.parametrize("what", ["send", "throw", "close"])
async def test_a_call_that_runs_is_not_called(what: str) -> None:
    """By what it calls itself."""
    one, other = await used_pair()
    async with one, other:
        size = CallsBack(5)
        call: Any = one.receive_some(size)
        arguments = {"send": (None,), "throw": (KeyError("here"),), "close": ()}[what]
        running: list[bool] = []

        def act() -> None:
            running.append(call.cr_running)
            with pytest.raises(ValueError, match="coroutine already executing"):
                getattr(call, what)(*arguments)

        size.act = act
        await other.send_all(b"abc")
        assert await call == b"abc"
        assert not call.cr_running
        assert running
        assert all(running)
        del size.act


# ---- whole programs ----------------------------------------------------------------------

NOTES_OF = """
import sys
sys.path.insert(0, {tests!r})
import by_seed
if __name__ == "__main__":
    which = by_seed.entry({name!r})
    for seed in range({first}, {end}):
        outcome = by_seed.run_apart(which, seed)
        print(seed, outcome, *outcome.notes, sep="\\n")
"""


def check_seeds(name: str, first: int, end: int) -> None:
    """Random programs on the simulated kernel: the same is seen of them in either way."""
    tests = str(Path(__file__).parent)
    program = NOTES_OF.format(tests=tests, name=name, first=first, end=end)
    in_c, in_python = (
        shown(program, PYTHONHASHSEED="1", **way) for way in ({}, {"URING_TRIO_PURE": "1"})
    )
    assert in_c.count("\npassed\n") == end - first
    assert in_c.splitlines() == in_python.splitlines()


@in_c
@needs_ring
@pytest.mark.parametrize("name", ["sim-trio", "sim-anyio", "sim-gain"])
def test_programs_are_the_same_in_either_way(name: str) -> None:
    check_seeds(name, 0, 10)


@in_c
@needs_ring
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["sim-trio", "sim-anyio", "sim-gain"])
def test_many_programs_are_the_same_in_either_way(name: str) -> None:
    for first in range(0, 200, 20):
        check_seeds(name, first, first + 20)


# ---- memory ------------------------------------------------------------------------------


@in_c
@pytest.mark.parametrize("kind", ["receive", "send"])
def test_operations_and_lines_in_a_cycle_are_collected(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        task = None

    class Ring:
        pool = b""
        pool_address = record_address = 0
        recv = send = read = write = staticmethod(lambda *args: 1)

    monkeypatch.setattr("uring_trio._operations.run_context", Task)
    from uring_trio._lines import Backlog

    class Number(harness.Canary):
        def __call__(self) -> int:
            return 1

    slots = Slots(Ring(), lambda *args: None)  # type: ignore[arg-type]
    line: Any = (Receiver if kind == "receive" else Sender)(
        slots, Backlog(), Number(), is_socket=True
    )
    operation = line.receive(1) if kind == "receive" else line.send(b"x", 0)
    slots.wake = operation.abort  # trap, abort, line, slots: and back
    assert harness.Canary.alive == 1
    del line, operation, slots
    gc.collect()
    assert harness.Canary.alive == 0


# Not tuned: enough to tell what is lost once in each from what a process has anyway.
OPERATIONS = 20_000


def resident_kib() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.differential
@pytest.mark.ring_only
async def test_nothing_is_left_of_many_operations() -> None:
    left, right = trio.socket.socketpair()
    async with trio.SocketStream(left) as one, trio.SocketStream(right) as other:

        async def exchange(count: int) -> None:
            for number in range(count):
                await one.send_all(b"%d" % number)
                assert await other.receive_some(100) == b"%d" % number
                with trio.move_on_after(0):
                    await other.receive_some(100)

        await exchange(1000)
        gc.collect()
        objects, resident = len(gc.get_objects()), resident_kib()
        blocks = sys.getallocatedblocks()
        await exchange(OPERATIONS)
        gc.collect()
        assert abs(len(gc.get_objects()) - objects) < 100
        assert sys.getallocatedblocks() - blocks < OPERATIONS // 20
        assert resident_kib() - resident < 1024 * harness.SLOWNESS
