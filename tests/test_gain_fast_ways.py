"""What C does of a callback server's messages is what Python does, in every situation.

The hot fields lie in C for both, so one connection after the other is brought into the same
situation, and goes through the C of the extension or through the Python that it has in its place.
What is left behind must be equal: all fields, what was called and in which order, what was raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import itertools
import re
import socket
import sys
import threading
from types import FunctionType
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from gain_engine import ScriptedEngine, steady_engine
from gain_tools import Recorder, connected, open_client, read_exactly, serving
from marks import ON_RING
from test_fast_ways import RECORD_TAKEN, FakeRing, fields
from test_gain_tables import life_of

from uring_trio import _beside, _hot_parts, gain
from uring_trio._kernel import (
    CQE_F_BUFFER,
    CQE_F_MORE,
    CQE_F_SOCK_NONEMPTY,
    GROUP_SIZES,
    POLLIN,
)
from uring_trio._slots import Slots
from uring_trio.gain import _life, _ring
from uring_trio.gain._conn import Conn, DatagramConn, Handle
from uring_trio.gain._connection import Connection, Outlet
from uring_trio.gain._halves import (
    PLAIN_INPUT,
    PLAIN_OUTPUT,
    Flight,
    Inbound,
    Input,
    Outbound,
    Output,
    Pieces,
)
from uring_trio.gain._life import Holder, Told, Way, way_of
from uring_trio.gain._turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uring_trio._slots import Record

hot: Any = _hot_parts.hot

in_c = pytest.mark.skipif(hot is None, reason=f"hot paths in Python: {_hot_parts.why_python}")
pytestmark = [*ON_RING, in_c]

METHODS = [
    (cls, name)
    for cls in (Turn, Conn)
    for name, method in vars(cls).items()
    if hot is not None and type(method) is hot.Method
]


@contextlib.contextmanager
def python_alone() -> Iterator[None]:
    """The methods are Python's."""
    with pytest.MonkeyPatch.context() as patch:
        for cls, name in METHODS:
            patch.setattr(cls, name, vars(cls)[name].__wrapped__)
        yield


#: By which of them something is done.
WAYS: list[Callable[[], contextlib.AbstractContextManager[None]]] = [
    contextlib.nullcontext,
    python_alone,
]


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns, with its type, or raises."""
    try:
        result = call()
    except BaseException as exc:  # noqa: BLE001 - compared
        return type(exc), str(exc)
    return type(result), result


def functions_run(call: Callable[[], Any]) -> set[str]:
    """The names of the Python functions that are run."""
    found: set[str] = set()

    def note(frame: Any, event: str, _arg: object) -> None:
        if event == "call":
            found.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


# ---- situations --------------------------------------------------------------------------


class Pool:
    """The engine's buffers: memory, of which a slice is bytes."""

    def __init__(self, data: bytes) -> None:
        self._memory = ctypes.create_string_buffer(data, len(data))
        self.address = ctypes.addressof(self._memory)

    def __getitem__(self, part: slice) -> bytes:
        return self._memory.raw[part]


class Handler(gain.EventHandler):
    """Notes what it is told, and does what it is to do then."""

    def __init__(self, on_read: Callable[[Any, int], object]) -> None:
        self.notes: list[Any] = []
        self._act = on_read

    def on_read(self, conn: gain.Conn, n: int) -> None:
        self.notes.append(("on_read", n))
        self._act(conn, n)

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        self.notes.append(("on_close", repr(err)))


class WritingHandler(Handler):
    """One that is told of what was written, too."""

    def on_write(self, conn: gain.Conn, n: int) -> None:
        self.notes.append(("on_write", n))
        if n == 3:
            raise ValueError("three")


def books(engine: ScriptedEngine, *, pool: bool = False) -> str:
    """All that may be different afterwards."""
    turn = engine.turn
    connections = [link.connection for link in engine.links]
    found: list[Any] = [
        [turn.bytes_in, turn.bytes_out, turn.parked, len(turn.batch)],
        [
            [connections.index(each) for each in listed]
            for listed in (turn.ready, turn.dirty, turn._wrote)
        ],
        [(connections.index(each), told) for each, told in turn._more],
        getattr(engine.callbacks.on_read, "__self__", engine).__dict__.get("notes"),
        engine.seen,
    ]
    for link in engine.links:
        connection = link.connection
        halves = fields(connection.inbound), fields(connection.outbound)  # type: ignore[arg-type]
        if not pool:
            for name in ("pool", "small_pool"):
                del halves[0][name]
        found += [connection.ready, connection.way, *halves]
        found.append(fields(connection.life))  # type: ignore[arg-type]
        found.append([link.readable, sorted(link.flights.items()), link.sending, link.closed])
        found.append(vars(link.peer))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(found))


def a_connection(handler: Any, **options: Any) -> tuple[ScriptedEngine, Connection]:
    """One that is plain."""
    engine = steady_engine(handler, **options)
    engine.logger.disabled = True
    connection, peer = engine.connect()
    peer.window = 100
    engine.take_turn()
    assert connection.way is Way.SMALL
    return engine, connection


def have_sending(connection: Any) -> None:
    """A send is in flight."""
    connection.outbound.begin(b"sending")
    connection.outbound.size += 7
    connection.link.send(*connection.outbound.next_part(7))


# ---- what a handler asks for -------------------------------------------------------------


class Number(int):
    """A class of somebody else's, which says that it is negative."""

    def __lt__(self, other: int) -> bool:
        return True


SIZES: list[tuple[Any, ...]] = [(), (-1,), (0,), (1,), (3,), (4,), (5,), (6,), (7,)]
SIZES += [(1 << 70,), (-(1 << 70),), (sys.maxsize,), (-sys.maxsize - 1,)]
SIZES += [(True,), (False,), (2.0,), (4.0,), (Number(2),), (Number(4),), ("x",), (None,), (1, 2)]
DATA = b"0123456789"
# Where, how much of it, and what lies before it.
LEASES = [(2, 4, None), (0, 10, None), (0, 0, None), (2, 4, b"ab"), (0, 0, b"ab")]
USERS = ["mine", "nobody's", "another's", "none's"]


def use_as(connection: Any, user: str) -> None:
    mine = threading.get_ident()
    connection.life.user = {"mine": mine, "nobody's": -1, "another's": mine + 1, "none's": 0}[user]


def lease(connection: Any, at: int, size: int, buffer: bytes | None, kind: str) -> None:
    """Have input in the engine's buffers, or in bytes of its own."""
    inbound = connection.inbound
    pool = Pool(DATA)
    inbound.pool = inbound.small_pool = pool if kind == "engine" else DATA
    inbound.lease_at, inbound.lease_size = at, size
    inbound.buffer = None if buffer is None else bytearray(buffer)
    ring: Any = FakeRing()
    ring.pool, ring.pool_address = pool, pool.address
    connection.turn._slots = Slots(ring, lambda *args: None)


def taken(name: str, state: Input, case: Any, sizes: tuple[Any, ...], user: str) -> Any:
    engine, connection = a_connection(Handler(lambda conn, n: None))
    lease(connection, *case)
    connection.inbound.state = state
    use_as(connection, user)
    return outcome(lambda: getattr(connection.conn, name)(*sizes)), books(engine)


@pytest.mark.parametrize("state", list(Input), ids=lambda state: state.name)
@pytest.mark.parametrize("name", ["next", "read"])
def test_input_is_taken_as_in_python(name: str, state: Input) -> None:
    seen = set()
    users = USERS if state is PLAIN_INPUT else USERS[:1]
    for (at, size, buffer), kind in itertools.product(LEASES, ["engine", "bytes"]):
        for sizes, user in itertools.product(SIZES, users):
            case = at, size, buffer, kind
            found = []
            for way in WAYS:
                with way():
                    found.append(taken(name, state, case, sizes, user))
            assert found[0] == found[1], (case, sizes, user)
            seen.add(repr(found[0][0]))
    assert len(seen) > 10


@pytest.mark.parametrize("state", list(Input), ids=lambda state: state.name)
@pytest.mark.parametrize("kind", ["engine", "bytes"])
@pytest.mark.parametrize("name", ["next", "read"])
def test_c_takes_the_input_of_the_plain_row_alone(name: str, kind: str, state: Input) -> None:
    for sizes in ((), (-1,), (1,), (4,)):
        _, connection = a_connection(Handler(lambda conn, n: None))
        lease(connection, 2, 4, None, kind)
        connection.inbound.state = state
        method = getattr(connection.conn, name)
        run = functions_run(lambda: method(*sizes))  # noqa: B023 - called here
        assert (name in run) is (state is not PLAIN_INPUT)


def test_what_is_whole_is_not_copied() -> None:
    for way in WAYS:
        _, connection = a_connection(Handler(lambda conn, n: None))
        data = bytes(100)
        connection.inbound.lease(data, 0, 100)
        with way():
            assert connection.conn.next(100) is data


def test_a_ring_that_is_gone_is_not_read() -> None:
    _, connection = a_connection(Handler(lambda conn, n: None))
    lease(connection, 2, 4, None, "engine")
    slots: Any = connection.turn._slots
    connection.inbound.pool = slots.pool
    slots.pool_address = 0
    assert "next" in functions_run(connection.conn.next)


class Text(bytes):
    """A class of somebody else's."""


WRITTEN: list[Any] = [b"", b"x", b"xyz", bytearray(b"xyz"), memoryview(b"xyz"), Text(b"xyz")]
WRITTEN += ["text", None, 5]


def written(state: Output, data: Any, user: str, *, sends: bool, queued: bool, ready: bool) -> Any:
    engine, connection = a_connection(Handler(lambda conn, n: None), write_high_water=8)
    if sends:
        have_sending(connection)
    if queued:
        connection.outbound.add(b"queued", 6)
    connection.outbound.state = state
    connection.ready = ready
    use_as(connection, user)
    return outcome(lambda: connection.conn.write(data)), books(engine)


@pytest.mark.parametrize("state", list(Output), ids=lambda state: state.name)
def test_output_is_taken_as_in_python(state: Output) -> None:
    seen = set()
    for data, user in itertools.product(WRITTEN, USERS):
        for sends, queued, ready in itertools.product([False, True], repeat=3):
            found = []
            for way in WAYS:
                with way():
                    case: dict[str, bool] = {"sends": sends, "queued": queued, "ready": ready}
                    found.append(written(state, data, user, **case))
            assert found[0] == found[1], (data, user, sends, queued, ready)
            seen.add(repr(found[0]))
    assert len(seen) > 5


@pytest.mark.parametrize("state", list(Output), ids=lambda state: state.name)
def test_c_takes_the_output_of_the_plain_row_alone(state: Output) -> None:
    for data, sends in itertools.product([b"x", b"", bytearray(b"x")], [False, True]):
        _, connection = a_connection(Handler(lambda conn, n: None), write_strict=False)
        if sends:
            have_sending(connection)
        connection.outbound.state = state
        run = functions_run(lambda: outcome(lambda: connection.conn.write(data)))  # noqa: B023
        plain = state is PLAIN_OUTPUT and type(data) is bytes and not sends
        assert ("write" in run) is not plain


@pytest.mark.parametrize(
    ("cls", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_method_looks_as_in_python(cls: Any, name: str) -> None:
    method: Any = getattr(cls, name)
    function = method.__wrapped__
    assert function is vars(cls)[name].__wrapped__
    assert type(function) is FunctionType
    assert inspect.signature(method) == inspect.signature(function)
    assert repr(method) == repr(function)
    for attribute in ("__doc__", "__name__", "__qualname__", "__module__", "__annotations__"):
        assert getattr(method, attribute) == getattr(function, attribute)
    assert type(method) is hot.Method
    with pytest.raises(AttributeError):
        method.other  # noqa: B018 - it is asked for
    with pytest.raises(TypeError):
        type(method)()
    assert inspect.isroutine(method)


def test_a_bound_method_looks_and_is_called_as_in_python() -> None:
    _, connection = a_connection(Handler(lambda conn, n: None))
    conn = connection.conn
    lease(connection, 0, 10, None, "engine")
    assert str(inspect.signature(conn.next)) == "(n: 'int' = -1) -> 'bytes'"
    assert conn.next.__self__ is conn
    assert conn.next.__name__ == "next"
    assert conn.next.__doc__ == Handle.next.__doc__
    take = conn.next
    assert take(2) == b"01"
    assert take(n=2) == b"23"
    assert Conn.next(conn, 2) == b"45"
    assert Conn.read(conn, n=1) == b"6"
    assert Conn.next(*(conn,), n=2) == b"78"
    for wrong in (
        lambda: conn.next(m=1),
        lambda: conn.next(1, n=1),
        lambda: conn.write(),
        lambda: Conn.next(),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        Conn.next(object(), 1)  # type: ignore[arg-type]


def test_a_datagram_has_pythons_methods() -> None:
    for name in ("next", "read", "write"):
        assert inspect.isfunction(getattr(DatagramConn, name))
        assert type(vars(Conn)[name]) is hot.Method


def test_a_handle_that_was_never_made_is_nobodys() -> None:
    for cls, name in METHODS:
        if issubclass(cls, Handle):
            with pytest.raises(AttributeError):
                getattr(cls.__new__(Conn), name)(b"x" if name == "write" else 1)
    with pytest.raises(AttributeError):
        Turn.__new__(Turn)._sweep_ready()


# ---- the first look at a batch -----------------------------------------------------------

FLAGS = [
    buffer | more | behind
    for buffer in (0, CQE_F_BUFFER)
    for more in (0, CQE_F_MORE)
    for behind in (0, CQE_F_SOCK_NONEMPTY)
]
RESULTS = [-105, -1, 0, 1, GROUP_SIZES[0] - 1, GROUP_SIZES[0]]


class Other:
    """Somebody else at a slot."""


class Served:
    """Two connections of the ring, of one worker, among others at the slots."""

    OURS, WATCH, SECOND, OTHERS = 3, 4, 7, (5, 9)

    def __init__(self, *, way: Way, lease_size: int, ready: bool, parked: bool) -> None:
        self.engine = steady_engine(Handler(lambda conn, n: None))
        self.connections: list[Any] = []
        self.woken: list[Any] = []
        ring: Any = FakeRing()
        self.slots = Slots(ring, lambda *args: self.woken.append(args))
        turn = self.turn = self.engine.turn
        turn._slots, turn._task = self.slots, "task"
        engine: Any = _ring.RingEngine(self.slots, multishot=True)
        for slot in (self.OURS, self.SECOND):
            left, right = socket.socketpair()
            right.close()
            connection: Any = self.engine.connect()[0]
            link = _ring.RingLink(engine, connection, left)
            connection.link = link
            link.receive_slot, link.watch_slot = slot, self.WATCH
            connection.way = way if slot == self.OURS else Way.SMALL
            self.connections.append(connection)
            self.slots.table[slot] = link
            left.close()
        turn.ready.clear()
        turn.parked = parked
        first = self.connections[0]
        first.ready = ready
        self.connections[1].ready = False
        first.inbound.pool = FakeRing.pool
        first.inbound.lease_size = first.inbound.fresh = lease_size
        self.slots.table[self.WATCH] = first.link
        for slot in self.OTHERS:
            self.slots.table[slot] = Other()  # type: ignore[call-overload]

    def route(self, records: list[Record], *, c: bool) -> list[Record]:
        """What is left to others."""
        if not c:
            return _ring.route(self.slots.table, records)
        ring: Any = self.slots.ring
        ring.write_batch(records)
        left = hot.route(self.slots, len(records))
        there = ring.read_batch(len(records))
        # The engine looks at all of them later.
        assert [(s, r, f & ~RECORD_TAKEN, at) for s, r, f, at in there] == records
        others = [record for record in there if not record[2] & RECORD_TAKEN]
        assert left == (len(records) if others else 0)
        assert hot.route(self.slots, len(records)) == left  # as another server's
        return others

    def left_behind(self) -> str:
        turn = self.turn
        found: list[Any] = [turn.bytes_in, turn.parked, self.woken]
        found.append([self.connections.index(each) for each in turn.ready])
        found.append([(self.connections.index(e[0].connection), *e[1:]) for e in turn.batch])
        found.append([type(each).__name__ for each in self.slots.table])
        for connection in self.connections:
            inbound = fields(connection.inbound)
            del inbound["pool"]
            found += [connection.ready, connection.way, inbound]
            found += [connection.link.readable, connection.link.receive_slot]
        return repr(found)


@pytest.mark.parametrize("way", list(Way), ids=lambda way: way.name)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_batch_is_looked_at_as_in_python(flags: int, way: Way) -> None:
    seen = set()
    for res, slot, lease_size in itertools.product(RESULTS, (Served.OURS, Served.WATCH), (0, 5)):
        for ready, parked in itertools.product([False, True], repeat=2):
            batch: list[Record] = [
                (Served.OTHERS[0], 1, 0, 0),
                (slot, res, flags, 64),
                (Served.SECOND, 8, CQE_F_BUFFER | CQE_F_MORE, 128),
                (Served.OTHERS[1], 2, CQE_F_MORE, 0),
                (Served.SECOND, 9, CQE_F_BUFFER | CQE_F_MORE, 256),
                (Served.OTHERS[0], 3, 0, 0),
            ]
            if flags & CQE_F_MORE:
                batch.insert(3, (slot, 6, CQE_F_BUFFER | CQE_F_MORE, 512))
            found = []
            for c in (True, False):
                served = Served(way=way, lease_size=lease_size, ready=ready, parked=parked)
                others = served.route(batch, c=c)
                found.append((others, served.left_behind()))
            assert found[0] == found[1], (res, slot, lease_size, ready, parked)
            assert [record[0] for record in found[0][0]] == [5, 9, 5]
            seen.add(found[0][1])
    assert len(seen) > 10


def test_a_batch_of_a_run_that_has_ended_is_nobodys() -> None:
    served = Served(way=Way.SMALL, lease_size=0, ready=False, parked=False)
    served.slots.record_address = 0
    assert hot.route(served.slots, 5) == 0
    with pytest.raises(TypeError):
        hot.route(served, 5)
    with pytest.raises(ValueError, match="count"):
        hot.route(served.slots, -1)
    with pytest.raises(TypeError):
        hot.route(served.slots)


# ---- the turn ----------------------------------------------------------------------------


class Ends(BaseException):
    """As a KeyboardInterrupt."""


def raise_(exc: BaseException) -> Any:
    raise exc


def answer(conn: Any, n: int) -> None:
    conn.write(conn.next())


def answer_twice(conn: Any, n: int) -> None:
    conn.write(conn.next(1))
    conn.write(b"and more")


def answer_much(conn: Any, n: int) -> None:
    for _ in range(3):  # more than is joined into one send
        conn.write(bytes(40 << 10))


def change_the_pieces(conn: Any, n: int) -> None:
    conn._outbound.take_all()


ACTIONS: dict[str, Callable[[Any, int], object]] = {
    "nothing": lambda conn, n: None,
    "takes all": lambda conn, n: conn.next(),
    "takes some": lambda conn, n: conn.next(1),
    "answers": answer,
    "answers twice": answer_twice,
    "answers much": answer_much,
    "closes": lambda conn, n: conn.close(),
    "answers and closes": lambda conn, n: (conn.write(b"bye"), conn.close()),
    "aborts": lambda conn, n: conn.abort(),
    "raises": lambda conn, n: raise_(ValueError("here")),
    "answers and raises": lambda conn, n: (conn.write(b"bye"), raise_(ValueError("here"))),
    "ends": lambda conn, n: raise_(Ends()),
    "pauses": lambda conn, n: conn.pause_reading(),
    "ends its output": lambda conn, n: conn.send_eof(),
    "sets a deadline": lambda conn, n: conn.set_deadline(5),
    "writes to another": lambda conn, n: conn.context.write(b"hey"),
    "aborts another": lambda conn, n: conn.context.abort(),
    "takes the output away": change_the_pieces,
}

SITUATIONS: dict[str, list[Any]] = {
    "way": list(Way),
    # Leased, and fresh, and what lies in a buffer of its own.
    "input": [(0, 0, None), (4, 4, None), (4, 6, b"ab"), (4, 2, None), (0, 2, b"ab"), (2, 9, None)],
    "watch": [Flight.IDLE, Flight.ARMED],
    "sends": [False, True],
    "window": [0, 2, 1 << 20],
    "writes": [False, True],
    "leaves": [False, True],
}


def swept(action: str, **situation: Any) -> list[Any]:
    """What a turn leaves behind, and the next."""
    kind = WritingHandler if situation["writes"] else Handler
    engine, connection = a_connection(
        kind(ACTIONS[action]), read_buffer_limit=5, write_high_water=20
    )
    turn, link, inbound = engine.turn, engine.links[0], connection.inbound
    turn._leaves = lambda: situation["leaves"]  # type: ignore[method-assign]
    other, other_peer = engine.connect()
    third, _ = engine.connect()
    engine.take_turn()
    connection.conn.context = other.conn
    other_peer.window = 100
    third.conn.write(b"dirty")  # what is to be sent before, if the turn is long
    link.peer.window = situation["window"]
    size, fresh, buffer = situation["input"]
    way = situation["way"]
    if way is Way.LARGE:
        inbound.pieces = Pieces.LARGE
        link.readable = POLLIN
        link.peer.unread += b"large"
    inbound.pool = DATA if size else b""
    inbound.lease_at, inbound.lease_size, inbound.fresh = 2, size, fresh
    inbound.buffer = None if buffer is None else bytearray(buffer)
    if situation["sends"]:
        have_sending(connection)
    if situation["watch"] is not Flight.IDLE:
        connection.intake.watch()
    connection.way = way
    for each in (connection, other):
        each.ready = True
        turn.ready.append(each)
    found: list[Any] = []
    for _ in range(2):
        found += [outcome(turn.sweep), books(engine)]
    return found


@pytest.mark.parametrize("action", ACTIONS)
def test_a_turn_is_taken_as_in_python(action: str) -> None:
    seen = set()
    for values in itertools.product(*SITUATIONS.values()):
        situation = dict(zip(SITUATIONS, values, strict=True))
        found = []
        for way in WAYS:
            with way():
                found.append(swept(action, **situation))
        assert found[0] == found[1], situation
        seen.add(repr(found[0]))
    assert len(seen) > 50


@pytest.mark.parametrize("told", list(Told), ids=lambda told: told.name)
def test_each_row_of_the_tables_goes_the_way_that_they_say(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C, as Python, takes those that are plain, and has all others settled."""
    settled: list[Connection] = []
    plain = 0
    engine, connection = a_connection(Handler(lambda conn, n: None))
    monkeypatch.setattr(Connection, "settle", lambda self: settled.append(self))
    connection.life.user = threading.get_ident()
    for state, holder in itertools.product(_life.State, Holder):
        life = life_of(state, holder, told)
        for connection.inbound.state, connection.outbound.state in itertools.product(
            list(Input), list(Output)
        ):
            way = way_of(connection.inbound, connection.outbound, life)
            plain += way is Way.SMALL
            for each in WAYS:
                settled.clear()
                connection.way = way
                connection.ready = True
                engine.turn.ready.append(connection)
                with each():
                    engine.turn.sweep()
                assert settled == ([] if way is Way.SMALL else [connection])
                assert engine.turn.ready == []
                assert not connection.ready
    assert plain == (told is _life.PLAIN_TOLD)


def test_c_takes_a_turn_alone() -> None:
    engine, connection = a_connection(WritingHandler(answer))
    note = Handler.on_read.__name__
    connection.inbound.lease(b"abc", 0, 3)
    connection.ready = True
    engine.turn.ready.append(connection)
    run = functions_run(engine.turn.sweep)
    assert {note, "on_write"} < run
    assert not run & {name for _, name in METHODS}


def test_what_lies_in_the_lists_of_a_turn_may_be_no_connection() -> None:
    """Then Python does it."""

    class Datagram:
        way = Way.SETTLED
        ready = True

        def settle(self) -> None:
            settled.append(self)

    settled: list[Any] = []
    engine, _ = a_connection(Handler(lambda conn, n: None))
    datagram = Datagram()
    engine.turn.ready.append(datagram)
    engine.turn.sweep()
    assert settled == [datagram]
    assert not datagram.ready


# ---- what is sent at once ----------------------------------------------------------------


class OnTheRing:
    """A connection with a file, whose link is the ring's."""

    def __init__(self) -> None:
        self.engine, self.connection = a_connection(WritingHandler(lambda conn, n: None))
        self.left, self.right = socket.socketpair()
        self.left.setblocking(False)
        ring: Any = FakeRing()
        self.noted: list[Any] = []
        ring.send_from = self.send_from
        self.slots = Slots(ring, lambda *args: None)
        engine: Any = _ring.RingEngine(self.slots, multishot=True)
        self.link = _ring.RingLink(engine, self.connection, self.left)
        self.connection.link = self.connection.outlet._link = self.link
        self.engine.turn.serve(_beside.try_send)

    def send_from(self, *arguments: Any) -> int:
        """An operation that is begun."""
        self.noted.append(arguments[2:])
        return 1

    def close(self) -> None:
        self.left.close()
        self.right.close()


def sent(what: str, data: bytes) -> Any:
    ring = OnTheRing()
    connection, turn = ring.connection, ring.engine.turn
    if what == "full":
        with contextlib.suppress(BlockingIOError):
            while True:
                ring.left.send(bytes(1 << 16))
    elif what == "gone":
        ring.right.close()
    elif what == "closed":
        ring.left.close()
    turn._slots = ring.slots
    connection.outbound.add(data, len(data))
    turn.dirty.append(connection)
    result = outcome(turn.sweep)
    received = b""
    if what not in ("gone", "full"):
        ring.right.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            received = ring.right.recv(1 << 20)
    ring.close()
    outbound = fields(connection.outbound)  # type: ignore[arg-type]
    outbound["sending"] = outbound["sending"] and len(outbound["sending"])
    return result, received, ring.noted, outbound, turn.bytes_out, connection.way, connection.ready


@pytest.mark.parametrize("size", [1, 100, 8 << 20])
@pytest.mark.parametrize("what", ["open", "full", "gone", "closed"])
def test_what_is_sent_at_once_is_sent_as_in_python(what: str, size: int) -> None:
    found = []
    for way in WAYS:
        with way():
            found.append(sent(what, bytes(size)))
    assert found[0] == found[1]
    whole = what == "open" and size < 1 << 20
    assert (found[0][2] == []) is whole


# ---- whole servers -----------------------------------------------------------------------


async def test_what_c_calls_from_a_users_frame_is_protected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a KeyboardInterrupt would leave output that nobody sends."""
    protected: list[bool] = []
    add_dirty = Turn.add_dirty

    def noting(self: Turn, connection: Connection) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        add_dirty(self, connection)

    monkeypatch.setattr(Turn, "add_dirty", noting)
    assert inspect.isfunction(Outlet.soon)
    async with connected(Recorder()) as (conn, client):
        protected.clear()
        await write_by_a_task(conn)
        assert await read_exactly(client, 4) == b"ping"
    assert protected == [True]


@trio.lowlevel.disable_ki_protection
async def write_by_a_task(conn: gain.Conn) -> None:
    assert not trio.lowlevel.currently_ki_protected()
    conn.write(b"ping")


MESSAGES = 20_000


async def test_nothing_is_left_of_many_messages() -> None:
    class Echo(gain.EventHandler):
        def on_read(self, conn: gain.Conn, n: int) -> None:
            conn.write(conn.read(1))
            conn.write(conn.next(n - 1))

    async with serving(Echo()) as server, await open_client(server) as client:

        async def exchange(count: int) -> None:
            for number in range(count):
                message = b"%09d" % number
                await client.send_all(message)
                assert await read_exactly(client, 9) == message

        await exchange(500)
        gc.collect()
        objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        await exchange(MESSAGES)
        gc.collect()
        assert abs(len(gc.get_objects()) - objects) < 100
        assert sys.getallocatedblocks() - blocks < MESSAGES // 20


FIELDS = [getattr(hot, name) for name in dir(hot) if name.endswith("Fields")]


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_in_a_cycle_are_collected(kind: Any) -> None:
    heir: Any = type("Heir", (kind,), {"__slots__": ()})
    names = [name for each in kind.__mro__[:-1] for name in vars(each) if not name.startswith("__")]
    assert names
    objects = 0
    for name in names:
        thing = heir()
        try:
            setattr(thing, name, [thing, harness.Canary()])
        except TypeError:  # a number
            continue
        objects += 1
        del thing
    gc.collect()
    assert harness.Canary.alive == 0
    assert objects or kind is hot.LifeFields


def test_the_halves_have_their_fields_in_c() -> None:
    for cls, base in (
        (Inbound, hot.InboundFields),
        (Outbound, hot.OutboundFields),
        (_life.Life, hot.LifeFields),
        (Connection, hot.ConnectionFields),
        (_ring.RingLink, hot.LinkFields),
        (Turn, hot.TurnFields),
        (Handle, hot.HandleFields),
    ):
        assert cls.__bases__ == (base,)
