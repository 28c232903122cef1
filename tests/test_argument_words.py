"""Every method of trio's sockets and streams with every odd argument: as on stock.

`test_sockets_args` has chosen cases with their meaning; this is the rest of the grid. Each
case is done once in a stock run and once in a run on the ring, on fresh sockets with data
waiting in both ends, and everything is compared: the value, or the type, the text and the
cause of the exception, what became of the buffers, and what is left in the sockets.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import mmap
import os
import socket as stdlib_socket
from collections import namedtuple
from decimal import Decimal
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
from marks import needs_ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.socket import SocketType

    Call = Callable[[Any, Any], Any]
    Cases = dict[str, Call]

pytestmark = needs_ring

UNIX, INET, INET6 = stdlib_socket.AF_UNIX, stdlib_socket.AF_INET, stdlib_socket.AF_INET6
STREAM, DGRAM = stdlib_socket.SOCK_STREAM, stdlib_socket.SOCK_DGRAM
SEQPACKET = stdlib_socket.SOCK_SEQPACKET
PENDING = b"0123456789"
WAITS_S = 0.25  # nothing more comes; stock and the ring are asked the same
NAMES_S = 4.0  # names are looked up in threads, and no address here is one that only waits


class Number(int):
    """A subclass."""


class Index:
    def __index__(self) -> int:
        return 5


class Convertible:
    def __int__(self) -> int:
        return 1


class BadIndex:
    def __index__(self) -> int:
        raise ZeroDivisionError("of an __index__")


NUMBERS: list[Any] = [
    *(0, 1, 5, -1, True, False, None, 1.0, "1", b"1", (), [1], Number(3), Index(), BadIndex()),
    *(2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**64)),
]
FLAGS: list[Any] = [
    *NUMBERS[:18],
    *(getattr(stdlib_socket, f"MSG_{name}") for name in ("PEEK", "DONTWAIT", "WAITALL", "TRUNC")),
    *(getattr(stdlib_socket, f"MSG_{name}") for name in ("OOB", "ERRQUEUE", "CTRUNC", "EOR")),
    *(getattr(stdlib_socket, f"MSG_{name}") for name in ("MORE", "NOSIGNAL", "DONTROUTE")),
    *(stdlib_socket.MSG_CMSG_CLOEXEC, 0x10, 0x800, 1 << 20, 1 << 25, 0x4000000, 1 << 30, 0x12),
]


def released() -> memoryview:
    view = memoryview(bytearray(3))
    view.release()
    return view


# Made anew for each call; what became of them is compared.
BUFFERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"abc",
    "empty": lambda: b"",
    "bytearray": lambda: bytearray(12),
    "empty bytearray": bytearray,
    "view": lambda: memoryview(bytearray(20))[3:9],
    "read-only view": lambda: memoryview(b"abc"),
    "strided": lambda: memoryview(bytearray(b"abcdef"))[::2],
    "backwards": lambda: memoryview(bytearray(b"abcdef"))[::-1],
    "two dimensions": lambda: memoryview(bytearray(6)).cast("B", (2, 3)),
    "numbers": lambda: array.array("i", [1, 2, 3]),
    "no numbers": lambda: array.array("i"),
    "view of numbers": lambda: memoryview(array.array("h", [1, 2])),
    "map": lambda: mmap.mmap(-1, 4096),
    "released": released,
    "text": lambda: "abc",
    "None": lambda: None,
    "number": lambda: 3,
    "list": lambda: [1, 2],
    "object": lambda: Index(),
}

# CPython's iter() of a released view gives an iterator *and* sets an exception, and whether
# that is raised depends on when its collector runs: to iterate over one is nobody's contract.
UNITERABLE = "released"


def labelled(values: list[Any]) -> dict[str, Any]:
    """By a name that does not depend on where in memory an object lies."""
    names: dict[str, Any] = {}
    for value in values:
        plain = isinstance(value, (int, float, str, bytes, type(None), tuple, list))
        names[f"{type(value).__name__} {value!r}" if plain else type(value).__name__] = value
    return names


def bound(call: Callable[..., Any], value: Any) -> Call:
    """A case with a value of its own."""
    return lambda sock, keep: call(sock, keep, value)


def grid(name: str, *pools: list[Any]) -> Cases:
    """Calls of a method with each combination of arguments out of *pools*."""
    cases: Cases = {}
    for choice in itertools.product(*(labelled(pool).items() for pool in pools)):
        label = ", ".join(item[0] for item in choice)
        arguments = [item[1] for item in choice]
        cases[f"{name}({label})"] = bound(lambda s, _, a: getattr(s, name)(*a), arguments)
    return cases


# How a buffer is handed over: itself, or in a list.
FORMS: dict[str, Callable[[Any], Any]] = {
    "{}": lambda buffer: buffer,
    "[{}]": lambda buffer: [buffer],
    "[3, {}]": lambda buffer: [bytearray(3), buffer],
}


def with_buffers(name: str, form: str, *rest: list[Any], without: str = "") -> Cases:
    """Calls with each buffer but *without* first, and then arguments out of *rest*."""
    cases: Cases = {}
    wrap = FORMS[form]
    for label, make in BUFFERS.items():
        if label == without:
            continue
        for choice in itertools.product(*(labelled(pool).items() for pool in rest)):
            arguments = [item[1] for item in choice]

            def call(
                sock: SocketType, keep: Any, make: Any = make, arguments: Any = arguments
            ) -> Any:
                return getattr(sock, name)(wrap(keep(make())), *arguments)

            text = "".join(f", {item[0]}" for item in choice)
            cases[f"{name}({form.format(label)}{text})"] = call
    return cases


def together(*parts: Cases) -> Cases:
    """All cases of *parts*, none of which may hide another."""
    cases: Cases = {}
    for part in parts:
        assert not cases.keys() & part.keys(), cases.keys() & part.keys()
        cases |= part
    return cases


def shapes(name: str, *calls: Call) -> Cases:
    return {f"{name} #{index}": call for index, call in enumerate(calls)}


RECEIVES: dict[str, Cases] = {
    "recv": together(
        grid("recv", NUMBERS),
        grid("recv", [5], FLAGS),
        grid("recv", [0, -1, "x", 2**40], [0, "x", stdlib_socket.MSG_PEEK, -1]),
        shapes(
            "recv",
            lambda sock, _: sock.recv(),
            lambda sock, _: sock.recv(1, 0, 0),
            lambda sock, _: sock.recv(bufsize=1),
            lambda sock, _: sock.recv(1, flags=0),
            lambda sock, _: sock.recv(1, x=0),
        ),
    ),
    "recvfrom": together(
        grid("recvfrom", NUMBERS),
        grid("recvfrom", [5], FLAGS),
        shapes("recvfrom", lambda sock, _: sock.recvfrom(), lambda s, _: s.recvfrom(1, 0, 0)),
    ),
    "recv_into": together(
        with_buffers("recv_into", "{}"),
        with_buffers("recv_into", "{}", [0, 2, 4097, -1]),
        {
            f"recv_into(nbytes {label})": bound(
                lambda sock, keep, n: sock.recv_into(keep(bytearray(20)), n), number
            )
            for label, number in labelled(NUMBERS).items()
        },
        {
            f"recv_into(flags {label})": bound(
                lambda sock, keep, f: sock.recv_into(keep(bytearray(20)), 5, f), flags
            )
            for label, flags in labelled(FLAGS).items()
        },
        shapes(
            "recv_into",
            lambda sock, _: sock.recv_into(),
            lambda sock, keep: sock.recv_into(keep(bytearray(5)), 1, 0, 0),
            lambda sock, keep: sock.recv_into(buffer=keep(bytearray(5)), nbytes=3, flags=0),
            lambda sock, keep: sock.recv_into(keep(bytearray(5)), flags=stdlib_socket.MSG_PEEK),
            lambda sock, keep: sock.recv_into(keep(bytearray(5)), size=3),
            lambda sock, keep: sock.recv_into(keep(bytearray(5)), 3, nbytes=3),
            lambda sock, _: sock.recv_into(nbytes=3),
        ),
    ),
    "recvfrom_into": together(
        with_buffers("recvfrom_into", "{}"),
        with_buffers("recvfrom_into", "{}", [0, 2, 4097, -1]),
        {
            f"recvfrom_into(nbytes {label})": bound(
                lambda sock, keep, n: sock.recvfrom_into(keep(bytearray(20)), n), number
            )
            for label, number in labelled(NUMBERS).items()
        },
        shapes("recvfrom_into", lambda sock, _: sock.recvfrom_into()),
    ),
    "recvmsg": together(
        grid("recvmsg", NUMBERS),
        grid("recvmsg", [5], NUMBERS),
        grid("recvmsg", [5], [0, 64], FLAGS),
        shapes(
            "recvmsg",
            lambda sock, _: sock.recvmsg(),
            lambda sock, _: sock.recvmsg(1, 0, 0, 0),
            lambda sock, _: sock.recvmsg(bufsize=1),
        ),
    ),
    "recvmsg_into": together(
        with_buffers("recvmsg_into", "[{}]"),
        with_buffers("recvmsg_into", "[3, {}]"),
        with_buffers("recvmsg_into", "{}", without=UNITERABLE),
        {
            f"recvmsg_into(control {label})": bound(
                lambda sock, keep, n: sock.recvmsg_into([keep(bytearray(20))], n), number
            )
            for label, number in labelled(NUMBERS).items()
        },
        {
            f"recvmsg_into(flags {label})": bound(
                lambda sock, keep, f: sock.recvmsg_into([keep(bytearray(20))], 0, f), flags
            )
            for label, flags in labelled(FLAGS).items()
        },
        {
            f"recvmsg_into({n} buffers)": bound(
                lambda sock, keep, n: sock.recvmsg_into([keep(bytearray(1)) for _ in range(n)]), n
            )
            for n in (0, 1, 1023, 1024, 1025, 2000)
        },
        shapes(
            "recvmsg_into",
            lambda sock, _: sock.recvmsg_into(),
            lambda sock, keep: sock.recvmsg_into(iter([keep(bytearray(2)), keep(bytearray(3))])),
            lambda sock, keep: sock.recvmsg_into({1: keep(bytearray(2))}),
            lambda sock, _: sock.recvmsg_into(raising()),
        ),
    ),
    "receive_some": {
        f"receive_some({label})": bound(
            lambda sock, _, n: trio.SocketStream(sock).receive_some(n), number
        )
        for label, number in labelled(NUMBERS).items()
    },
    "accept": shapes(
        "accept",
        lambda sock, _: sock.accept(),
        lambda sock, _: sock.accept(1),
        lambda sock, _: sock.accept(x=1),
    ),
}


def raising() -> Iterator[Any]:
    yield bytearray(2)
    raise ZeroDivisionError("of a generator")


RIGHTS = (stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS)
ANCILLARY: list[Any] = [
    *((), [], None, 5, "x", [()], [(1,)], [(1, 1)], [(1, 1, "x")], [(1, 1, None)], [(1, 1, 5)]),
    *([("x", 1, b"")], [(1, "x", b"")], [(2**31, 1, b"")], [(1, 2**40, b"")], [(1, 999, b"")]),
    *([(1.0, 1, b"")], [[1, 1, b""]], [(1, 1, b"", 0)], [b"abc"], [(999, 1, b"1234")]),
    *([(*RIGHTS, b"")], [(*RIGHTS, b"123")], [(*RIGHTS, array.array("i", [999]))]),
    [(*RIGHTS, array.array("i", [0] * 253))],
    [(*RIGHTS, array.array("i", [0] * 254))],
    [(*RIGHTS, bytes(100_000))],
    [(stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_CREDENTIALS, bytes(12))],
    [(*RIGHTS, array.array("i", [0])), (*RIGHTS, array.array("i", [1]))],
]

SENDS: dict[str, Cases] = {
    "send": together(
        with_buffers("send", "{}"),
        with_buffers("send", "{}", ["x", stdlib_socket.MSG_DONTWAIT]),
        grid("send", [b"abc"], FLAGS),
        shapes(
            "send",
            lambda sock, _: sock.send(),
            lambda sock, _: sock.send(b"a", 0, 0),
            lambda sock, _: sock.send(data=b"a"),
            lambda sock, _: sock.send(b"a", flags=0),
        ),
    ),
    "sendmsg": together(
        with_buffers("sendmsg", "[{}]"),
        with_buffers("sendmsg", "[3, {}]"),
        with_buffers("sendmsg", "{}", without=UNITERABLE),
        grid("sendmsg", [[b"abc"]], ANCILLARY),
        grid("sendmsg", [[b"abc"]], [()], FLAGS),
        {
            f"sendmsg({n} buffers)": bound(lambda sock, _, n: sock.sendmsg([b"x"] * n), n)
            for n in (0, 1, 1023, 1024, 1025, 2000, 70_000)
        },
        shapes(
            "sendmsg",
            lambda sock, _: sock.sendmsg(),
            lambda sock, _: sock.sendmsg([b"a"], [], 0, None, 0),
            lambda sock, _: sock.sendmsg(buffers=[b"a"]),
            lambda sock, _: sock.sendmsg(iter([b"a", b"b"]), iter([])),
            lambda sock, _: sock.sendmsg(raising()),
            lambda sock, _: sock.sendmsg([b"a"], raising()),
        ),
    ),
    "sendto": shapes(
        "sendto",
        lambda sock, _: sock.sendto(),
        lambda sock, _: sock.sendto(b"a"),
        lambda sock, _: sock.sendto(b"a", 0, "/nowhere", 0),
        lambda sock, _: sock.sendto(b"a", "x", "/nowhere"),
        lambda sock, _: sock.sendto(b"a", address="/nowhere"),
        lambda sock, _: sock.sendto("text", "/nowhere"),
        lambda sock, _: sock.sendto(None, "/nowhere"),
        lambda sock, _: sock.sendto(memoryview(b"abcdef")[::2], "/nowhere"),
    ),
    "send_all": {
        f"send_all({label})": bound(
            lambda sock, keep, make: trio.SocketStream(sock).send_all(keep(make())), make
        )
        for label, make in BUFFERS.items()
    },
    "setsockopt": shapes(
        "setsockopt",
        lambda sock, _: as_async(sock.setsockopt),
        lambda sock, _: as_async(sock.setsockopt, 1),
        lambda sock, _: as_async(sock.setsockopt, 1, 18),
        lambda sock, _: as_async(sock.setsockopt, 1, 18, None),
        lambda sock, _: as_async(sock.setsockopt, 1, 18, "x"),
        lambda sock, _: as_async(sock.setsockopt, 1, 18, 1, 4),
        lambda sock, _: as_async(sock.setsockopt, 1, 9999, 1),
        lambda sock, _: as_async(sock.setsockopt, "x", 18, 1),
        lambda sock, _: as_async(sock.setsockopt, 1, 18, 1, 2, 3),
        lambda sock, _: as_async(sock.setsockopt, Convertible(), 18, 1),
        lambda sock, _: as_async(sock.setsockopt, 1, Decimal(18), b"1234"),
        lambda sock, _: as_async(sock.setsockopt, Index(), 18, 1),
        lambda sock, _: as_async(sock.setsockopt, 2**31, 18, 1),
        lambda sock, _: as_async(sock.setsockopt, 1, 18, 2**31),
    ),
    "shutdown": shapes(
        "shutdown",
        lambda sock, _: as_async(sock.shutdown),
        lambda sock, _: as_async(sock.shutdown, -1),
        lambda sock, _: as_async(sock.shutdown, 3),
        lambda sock, _: as_async(sock.shutdown, True),
        lambda sock, _: as_async(sock.shutdown, 2**31),
        lambda sock, _: as_async(sock.shutdown, -(2**31) - 1),
        lambda sock, _: as_async(sock.shutdown, 2**70),
        lambda sock, _: as_async(sock.shutdown, Convertible()),
        lambda sock, _: as_async(sock.shutdown, "1"),
    ),
    "connect": shapes(
        "connect",
        lambda sock, _: sock.connect(),
        lambda sock, _: sock.connect("/a", "/b"),
        lambda sock, _: sock.connect(address="/nowhere/at/all"),
        lambda sock, _: sock.connect(name="/nowhere"),
    ),
    "closing": shapes(
        "closing",
        lambda sock, _: as_async(sock.close, 1),
        lambda sock, _: as_async(sock.detach, 1),
        lambda sock, _: as_async(sock.__exit__),
        lambda sock, _: as_async(sock.__exit__, None, None, None),
        lambda sock, _: as_async(sock.close),
        lambda sock, _: as_async(lambda: os.close(sock.detach())),
    ),
}


async def as_async(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


Named = namedtuple("Named", "host port")

UNIX_ADDRESSES: list[Any] = [
    *("", b"", "\0", b"\0", "\0nobody", b"\0nobody", "/nowhere/at/all", b"/nowhere", "rel"),
    *("a\0b", b"a\0b", "/a\0", "x" * 107, "x" * 108, b"x" * 107, b"x" * 108, "x" * 300),
    *("\0" + "x" * 107, "\0" + "x" * 108, b"\0" * 108, "\0" * 109, "\u00fc", "\udcff", "\ud800"),
    *(PurePosixPath("/nowhere"), bytearray(b"/nowhere"), memoryview(b"/nowhere"), None, 5),
    *((), ("/nowhere",), ["/nowhere"], ("127.0.0.1", 1), Index(), 1.5),
]


def inet_addresses(port: int) -> list[Any]:
    return [
        *(("127.0.0.1", port), ("127.1", port), ("0x7f000001", port), ("127.0.0.1 ", port)),
        *(("", port), ("localhost", port), (b"127.0.0.1", port), (bytearray(b"127.1"), port)),
        *((None, port), (5, port), (1.5, port), ("127.0.0.1", str(port)), ("127.0.0.1", b"80")),
        *(("127.0.0.1", -1), ("127.0.0.1", 65_536), ("127.0.0.1", 2**40), ("127.0.0.1", 1.5)),
        *(("127.0.0.1", None), ("127.0.0.1", True), ("127.0.0.1", Number(port)), ("::1", port)),
        *(("127.0.0.1",), ("127.0.0.1", port, 0), ["127.0.0.1", port], (), None, 5, "127.0.0.1"),
        *(b"127.0.0.1", Named("127.0.0.1", port), ("127.0.0.1\0", port), ("no host", port)),
        *(("256.0.0.1", port), ("127.0.0.1", Index()), ("127.0.0.1", "x"), ("", "")),
    ]


def inet6_addresses(port: int) -> list[Any]:
    return [
        *(("::1", port), ("::1", port, 0), ("::1", port, 0, 0), ("::1", port, 0, 0, 0)),
        *(("::1", port, -1), ("::1", port, 2**20 - 1), ("::1", port, 2**20), ("::1", port, "x")),
        *(("::1", port, 0, -1), ("::1", port, 0, 2**32), ("::1", port, 0, "x"), ("::1",)),
        *(("::1", port, None), ("::1", port, 1.5), ("::1", port, 0, None), ("::1", port, True)),
        *(("::1%lo", port), ("fe80::1%lo", port), ("fe80::1%nothing", port), ("::1%1", port)),
        *(("::ffff:127.0.0.1", port), ("127.0.0.1", port), ("localhost", port), ("", port)),
        *(("::1", -1), ("::1", 65_536), ("::1", None), (b"::1", port), (None, port), None, "::1"),
        *(["::1", port], ("::1", str(port)), (5, port), ("[::1]", port), ("::1\0", port)),
    ]


@contextlib.contextmanager
def loaded_pair(family: int, type_: int) -> Iterator[tuple[stdlib_socket.socket, ...]]:
    """Two connected sockets with data in both; UDP's are connected to each other."""
    if family == UNIX:
        a, b = stdlib_socket.socketpair(family, type_)
    elif type_ == STREAM:
        with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
            a = stdlib_socket.create_connection(listener.getsockname())
            b, _ = listener.accept()
    else:
        a, b = stdlib_socket.socket(family, type_), stdlib_socket.socket(family, type_)
        for sock in (a, b):
            sock.bind(("127.0.0.1", 0))
        a.connect(b.getsockname())
        b.connect(a.getsockname())
    with a, b:
        for sock in (a, b):
            sock.send(PENDING)
            sock.send(b"more")
        yield a, b


def plain(value: Any, ports: dict[int, str]) -> Any:
    """The same for sockets, descriptors and ports of two runs."""
    if isinstance(value, tuple) and len(value) == 2 and value[1] in ports:
        return value[0], ports[value[1]]
    if isinstance(value, tuple):
        return tuple(plain(item, ports) for item in value)
    if isinstance(value, (trio.socket.SocketType, stdlib_socket.socket)):
        return type(value).__name__
    return value


CAUGHT = (
    *(OSError, TypeError, ValueError, OverflowError, MemoryError, BufferError, SystemError),
    *(AssertionError, IndexError, ZeroDivisionError, AttributeError, NotImplementedError),
    *(trio.BrokenResourceError, trio.ClosedResourceError),
)


async def outcome(call: Callable[[], Any], ports: dict[int, str], waits_s: float = WAITS_S) -> Any:
    try:
        with trio.move_on_after(waits_s) as scope:
            value = plain(await call(), ports)
        return "waits" if scope.cancelled_caught else value
    except CAUGHT as exc:
        text = str(exc)
        for port, name in ports.items():
            text = text.replace(str(port), name)
        return type(exc).__name__, text, repr(exc.__cause__)


async def measure_pairs(family: int, type_: int, cases: Cases) -> dict[str, Any]:
    """The outcome of each case, with the buffers and the rest of the data."""
    outcomes: dict[str, Any] = {}
    for label, call in cases.items():
        kept: list[Any] = []

        def keep(buffer: Any, kept: list[Any] = kept) -> Any:
            kept.append(buffer)
            return buffer

        with loaded_pair(family, type_) as (plain_a, plain_b):
            names = {}
            if family != UNIX:
                names = {plain_a.getsockname()[1]: "A", plain_b.getsockname()[1]: "B"}
            sock = trio.socket.from_stdlib_socket(plain_a)
            result = await outcome(partial(call, sock, keep), names)
            rest = []
            for end in (plain_a, plain_b):
                with contextlib.suppress(OSError):  # closed by the case
                    end.setblocking(False)
                    rest.append(harness.drain(end))
        buffers = [
            bytes(b) if not isinstance(b, memoryview) else contents(b) for b in kept if raw(b)
        ]
        outcomes[label] = result, buffers, rest
    return outcomes


def raw(buffer: Any) -> bool:
    return isinstance(buffer, (bytes, bytearray, memoryview, array.array))


def contents(view: memoryview) -> Any:
    with contextlib.suppress(ValueError):
        return view.tolist()
    return "released"


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    assert expected.keys() == found.keys()
    return {
        label: {"stock": expected[label], "ring": found[label]}
        for label in expected
        if expected[label] != found[label]
    }


def compare(measure: Any, *args: Any) -> dict[str, Any]:
    """What stock does, if the ring does the same."""
    expected: dict[str, Any] = harness.run(harness.EPOLL, measure, *args)
    assert differences(expected, harness.run(harness.RING, measure, *args)) == {}
    return expected


PAIRS = [
    pytest.param(UNIX, STREAM, id="UNIX stream"),
    pytest.param(UNIX, DGRAM, id="UNIX datagram"),
    pytest.param(UNIX, SEQPACKET, id="UNIX seqpacket"),
    pytest.param(INET, STREAM, id="TCP"),
    pytest.param(INET, DGRAM, id="UDP"),
]


@pytest.mark.parametrize(("family", "type_"), PAIRS)
@pytest.mark.parametrize("name", [*RECEIVES, *SENDS])
def test_on_two_connected_sockets(name: str, family: int, type_: int) -> None:
    cases = (RECEIVES | SENDS)[name]
    if (family, type_) == (INET, STREAM):
        # TCP takes MSG_TRUNC for "throw away": what the memory then holds is anybody's guess.
        cases = {label: call for label, call in cases.items() if "MSG_TRUNC" not in label}
    found = compare(measure_pairs, family, type_, cases)
    # Of a grid that only raises, or never does, the comparison would say little.
    results = [result[0] for result in found.values()]
    if name not in ("accept", "sendto", "connect", "closing", "setsockopt", "shutdown"):
        raised = [isinstance(r, tuple) and bool(r) and isinstance(r[0], str) for r in results]
        assert any(raised)
        if type_ == STREAM or "receive_some" not in name != "send_all":
            assert not all(raised)


async def measure_addresses(family: int, type_: int, addresses: list[Any], call: Any) -> Any:
    outcomes = {}
    for index, address in enumerate(addresses):
        with stdlib_socket.socket(family, type_) as plain_sock:
            sock = trio.socket.from_stdlib_socket(plain_sock)
            with trio.fail_after(5):
                label = f"{index} {address!r:.60}" if not isinstance(address, Index) else "Index"
                outcomes[label] = await outcome(partial(call, sock, address), {}, NAMES_S)
                outcomes[label + " is open"] = sock.fileno() != -1
    return outcomes


TO_ADDRESS: dict[str, Any] = {
    "connect": lambda sock, address: sock.connect(address),
    "sendto": lambda sock, address: sock.sendto(b"x", address),
    "sendto with flags": lambda sock, address: sock.sendto(b"x", 0, address),
    "sendmsg": lambda sock, address: sock.sendmsg([b"x"], [], 0, address),
}


@pytest.mark.parametrize("type_", [STREAM, DGRAM, SEQPACKET])
@pytest.mark.parametrize("name", TO_ADDRESS)
def test_addresses_of_unix_sockets(
    name: str, type_: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Names that a sloppy packing would reach: one NUL, and a path cut at its NUL.
    with contextlib.ExitStack() as stack:
        for trap in ("\0", "a"):
            listener = stack.enter_context(stdlib_socket.socket(UNIX, type_))
            listener.bind(trap)
            if type_ != DGRAM:
                listener.listen()
        found = compare(measure_addresses, UNIX, type_, UNIX_ADDRESSES, TO_ADDRESS[name])
    if name == "connect":
        assert found["0 ''"][1] == "[Errno 22] Invalid argument"


@pytest.mark.parametrize("type_", [STREAM, DGRAM])
@pytest.mark.parametrize("name", TO_ADDRESS)
@pytest.mark.parametrize("family", [INET, INET6])
def test_addresses_of_internet_sockets(family: int, name: str, type_: int) -> None:
    host, make = ("127.0.0.1", inet_addresses) if family == INET else ("::1", inet6_addresses)
    try:
        target = stdlib_socket.socket(family, type_)
        target.bind((host, 0))
    except OSError as exc:
        pytest.skip(f"no {host} here: {exc}")
    with target:
        if type_ == STREAM:
            target.listen(1000)
        addresses = make(target.getsockname()[1])
        compare(measure_addresses, family, type_, addresses, TO_ADDRESS[name])
