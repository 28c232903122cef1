"""The books of random callback servers see what is planted, and nothing where nothing is.

Each plan here is short and written by hand, so that it makes one situation; the generator draws
all of them, and more. What is planted breaks the product by one line, or is a kernel's fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import by_seed
import harness
import kernel_workers
import pytest
import seeds_ring_gain  # noqa: F401 - registers it
from marks import needs_ring
from random_gain import world
from random_gain.faults import WrongBytes
from random_gain.patterns import FrameReader, frame
from random_gain.stranger import Stranger
from test_fast_ways import RECORD_TAKEN

from uring_trio import _io_manager, _kernel
from uring_trio.gain import (
    _accept,
    _callbacks,
    _capabilities,
    _conn,
    _connection,
    _halves,
    _life,
    _listen,
    _ring,
    _turn,
    _worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from by_seed import Outcome, Plan

    from uring_trio._slots import Record, Slots

pytestmark = needs_ring

Patch = pytest.MonkeyPatch

# For what will not happen, since it is planted so.
SHORT_BOUND_S = 1.0 * harness.SLOWNESS
TRIES = 50
LATER_S = 0.1  # what has not happened by then does not happen


def step(do: str, **more: Any) -> dict[str, Any]:
    return {"do": do, **more}


def on(name: str, do: str, **more: Any) -> dict[str, Any]:
    return {"of": 0, "on": name, "do": do, **more}


CONNECT = step("connect", peer=0, ms=3)
SEND = step("send", peer=0, n=1000, ms=3)
EOF = step("end", peer=0, how="eof")
IDLE = step("idle")


def run(steps: list[Any], **options: Any) -> Outcome:
    plan: Plan = {"options": options, "steps": steps, "kernel": []}
    return by_seed.run_apart(by_seed.entry("ring-gain"), plan)


# ---- what is planted -----------------------------------------------------------------------


def a_byte_is_lost(patch: Patch) -> None:
    real = _conn.Conn.next
    patch.setattr(_conn.Conn, "next", lambda self, n=-1: real(self, n)[1:])


def input_is_doubled(patch: Patch) -> None:
    real = _conn.Conn.next
    patch.setattr(_conn.Conn, "next", lambda self, n=-1: real(self, n) * 2)


def a_write_is_dropped(patch: Patch) -> None:
    patch.setattr(_conn.Conn, "write", lambda self, data: len(data))


def a_write_is_doubled(patch: Patch) -> None:
    real = _conn.Conn.write

    def write(self: Any, data: bytes) -> int:
        real(self, data)
        return real(self, data)

    patch.setattr(_conn.Conn, "write", write)


def no_callback(name: str) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        real = _worker.Worker.tell

        def tell(self: Any, host: Any, called: str, *args: Any) -> None:
            if called != name:
                real(self, host, called, *args)

        patch.setattr(_worker.Worker, "tell", tell)

    return plant


def a_callback_comes_twice(patch: Patch) -> None:
    real = _worker.Worker.tell

    def tell(self: Any, host: Any, called: str, *args: Any) -> None:
        for _ in range(1 + (called == "on_close")):
            real(self, host, called, *args)

    patch.setattr(_worker.Worker, "tell", tell)


def another_thread_does_not_wake_the_worker(patch: Patch) -> None:
    patch.setattr(_turn.Turn, "wake_soon", lambda self: None)


def a_watch_is_always_one_shot(patch: Patch) -> None:
    # Told of the peer's end at once, again and again.
    real = _ring.RingLink.watch
    patch.setattr(_ring.RingLink, "watch", lambda self, again: real(self, again=False))


def the_limit_of_input_is_not_looked_at(patch: Patch) -> None:
    patch.setattr(_halves.Inbound, "judge", lambda self: None)


def a_listener_stays_open(patch: Patch) -> None:
    patch.setattr(_listen.Listener, "close", lambda self: None)


def an_end_is_taken_for_an_error(patch: Patch) -> None:
    patch.setattr(_connection, "EndOfStream", lambda text: OSError(errno.EIO, text))


def a_part_of_ours_raises(patch: Patch) -> None:
    patch.setattr(_connection.Intake, "resume", None)


def an_on_close_is_cut_off(patch: Patch) -> None:
    patch.setattr(_callbacks, "ON_CLOSE_S", 0.0)


def nobody_is_accepted(patch: Patch) -> None:
    patch.setattr(_accept.Acceptor, "arm", lambda self: None)


def the_kernel_has_a_worker(patch: Patch) -> None:
    patch.setattr(kernel_workers, "workers", lambda: {1: 1})


def the_kernel_tries_a_send_again(patch: Patch) -> None:
    patch.setattr(kernel_workers, "retried", lambda: [26])


def python_leaks(patch: Patch) -> None:
    kept: list[Any] = []
    real = _connection.Connection.__init__

    def init(self: Any, *args: Any) -> None:
        kept.extend(object() for _ in range(60))
        real(self, *args)

    patch.setattr(_connection.Connection, "__init__", init)


def c_leaks(patch: Patch) -> None:
    malloc = ctypes.CDLL(None).malloc
    real = _conn.Conn.close

    def close(self: Any) -> None:
        malloc(100_000)  # many times what a round may take
        real(self)

    patch.setattr(_conn.Conn, "close", close)


def there_is_no_limit_to_what_is_received(patch: Patch) -> None:
    full = {_halves.Input.FULL}
    for module in (_halves, _life):
        patch.setattr(module, "RECEIVING", frozenset(module.RECEIVING | full))


HALF_CLOSED = [on("accept", "pause"), CONNECT, EOF, IDLE]
ASYNC_CLOSE = {"async": ["on_close"], "end": "abort"}
PIECES = [CONNECT, *[step("send", peer=0, n=200, ms=3)] * 8, IDLE]
PLANTS: dict[str, tuple[Any, str, list[Any], dict[str, Any]]] = {
    "a byte is lost": (a_byte_is_lost, "WrongBytes", [CONNECT, SEND, IDLE], {}),
    "input is doubled": (input_is_doubled, "WrongBytes", [CONNECT, SEND, IDLE], {}),
    "a write is dropped": (a_write_is_dropped, "NotTold", [CONNECT, SEND, IDLE], {}),
    "a write is doubled": (a_write_is_doubled, "WrongBytes", [CONNECT, SEND, IDLE], {}),
    "no on_close": (no_callback("on_close"), "NotTold", [CONNECT, SEND, EOF, IDLE], {}),
    "no on_eof": (no_callback("on_eof"), "NotTold", [CONNECT, SEND, EOF, IDLE], {}),
    "no on_read": (
        no_callback("on_read"),
        "NotTold",
        [CONNECT, SEND, IDLE],
        {"async": ["on_read"]},
    ),
    "on_close twice": (a_callback_comes_twice, "WrongOrder", [CONNECT, SEND, EOF, IDLE], {}),
    "no wake-up": (
        another_thread_does_not_wake_the_worker,
        "NotTold",
        [CONNECT, step("wait", ms=20), step("ask", of=0, what="write", n=10), IDLE],
        {},
    ),
    "a half-closed peer costs CPU": (a_watch_is_always_one_shot, "NotAsleep", HALF_CLOSED, {}),
    "no limit of input": (
        the_limit_of_input_is_not_looked_at,
        "Unbounded",
        PIECES,
        {"on_read": "peek", "read_buffer_limit": 100},
    ),
    "a descriptor is left": (a_listener_stays_open, "LeftBehind", [CONNECT, SEND], {}),
    "a wrong error": (
        an_end_is_taken_for_an_error,
        "WrongEnd",
        [CONNECT, SEND, EOF],
        {"without": ["on_eof"]},
    ),
    "an error of ours": (
        a_part_of_ours_raises,
        "Refused",
        [CONNECT, IDLE, step("ask", of=0, what="resume"), IDLE],
        {},
    ),
    "an on_close is cut off": (
        an_on_close_is_cut_off,
        "Logged",
        [on("close", "sleep", n=20), CONNECT, SEND],
        ASYNC_CLOSE,
    ),
    "a worker of the kernel's": (
        the_kernel_has_a_worker,
        "LeftToTheKernel",
        [CONNECT, SEND, IDLE],
        {},
    ),
    "a retry of the kernel's": (
        the_kernel_tries_a_send_again,
        "TriedByTheKernel",
        [CONNECT, SEND, IDLE],
        {},
    ),
    "Python leaks": (python_leaks, "LeftBehind", [CONNECT, SEND], {"rounds": 5}),
    "C leaks": (c_leaks, "LeftBehind", [CONNECT, SEND, EOF], {"rounds": 5}),
    "input comes though reading has stopped": (
        there_is_no_limit_to_what_is_received,
        "Unbounded",
        [CONNECT, SEND, IDLE, SEND, IDLE],
        {"on_read": "peek", "read_buffer_limit": 100},
    ),
    "nobody is accepted": (nobody_is_accepted, "NotTold", [CONNECT, SEND, IDLE], {}),
}


@pytest.mark.parametrize("name", PLANTS)
def test_what_is_planted_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, what, steps, options = PLANTS[name]
    assert str(run(steps, **options)) == by_seed.PASSED
    monkeypatch.setattr(world, "BOUND_S", SHORT_BOUND_S)
    plant(monkeypatch)
    outcome = run(steps, **options)
    assert (outcome.kind, outcome.what) == (by_seed.FAILED, what), outcome.text


# ---- a kernel that loses data --------------------------------------------------------------

# Data and a reset come to an armed receive while its worker is busy.
BUSY_AT_THE_RESET = [
    on("read", "hold", n=3),
    CONNECT,
    step("send", peer=0, n=100, ms=5),
    step("send", peer=0, n=1000),
    step("end", peer=0, how="reset", flush=1),
    step("wait"),
    IDLE,
]


def lose_data_before_a_reset(patch: Patch) -> None:
    """As Linux 6.16 does: of a multishot receive that both have come to, the reset alone is told."""
    unpack = _kernel.unpack_records

    def records(area: Any) -> Any:
        found = list(unpack(area))
        reset = {slot for slot, res, _, _ in found if res == -errno.ECONNRESET}
        return [record for record in found if not is_lost(record, reset)]

    def is_lost(record: Record, reset: set[int]) -> bool:
        return record[0] in reset and record[1] > 0 and bool(record[2] & _kernel.CQE_F_MORE)

    def route_in_c(slots: Slots, count: int) -> int:
        area = slots.ring.record_area
        found = list(unpack(area[: count * _kernel.RECORD_SIZE]))
        reset = {slot for slot, res, _, _ in found if res == -errno.ECONNRESET}
        for number, record in enumerate(found):
            if is_lost(record, reset):  # as if somebody had it already
                flags = struct.pack("I", record[2] | RECORD_TAKEN)
                at = number * _kernel.RECORD_SIZE + 8
                area[at : at + 4] = flags
        assert route is not None
        return route(slots, count)

    for module in (_kernel, _io_manager):
        patch.setattr(module, "unpack_records", records)
    route = _ring.route_in_c
    if route is not None:
        patch.setattr(_ring, "route_in_c", route_in_c)


def test_data_that_a_kernel_loses_before_a_reset_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert str(run(BUSY_AT_THE_RESET)) == by_seed.PASSED
    lose_data_before_a_reset(monkeypatch)
    # The product finds such a kernel out, and does without multishot.
    assert str(run(BUSY_AT_THE_RESET)) == by_seed.PASSED
    with_multishot = _capabilities.Capabilities(multishot_receive=True)
    monkeypatch.setattr(_worker, "capabilities", lambda: with_multishot)
    outcome = run(BUSY_AT_THE_RESET)
    assert outcome.what == "BytesLost", outcome.text
    assert "1100 bytes had come before the reset" in outcome.text


# ---- a stranger -----------------------------------------------------------------------------


@contextlib.contextmanager
def shared(family: int) -> Iterator[tuple[socket.socket, Stranger]]:
    """A listener, and a stranger that has it, too."""
    stranger = Stranger()
    with socket.socket(family) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
        listener.listen()
        listener.setblocking(False)
        try:
            stranger.have(lambda: [listener])
            yield listener, stranger
        finally:
            stranger.close()


def test_a_stranger_takes_a_connection_and_says_whose() -> None:
    with shared(socket.AF_INET) as (listener, stranger):
        assert stranger.take() == (None, b"")
        with socket.create_connection(listener.getsockname()) as peer:
            assert stranger.take() == (list(peer.getsockname()), b"")
            assert peer.recv(1) == b""


def test_a_stranger_that_waits_takes_the_only_wake_up_from_who_waits_exclusively() -> None:
    with shared(socket.AF_INET) as (listener, stranger):
        stranger.wait()
        # Its thread may not have got there yet, and who came first is woken first: so each try
        # stands in line anew.
        for _ in range(TRIES):
            with select.epoll() as epoll:
                epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
                with socket.create_connection(listener.getsockname()):
                    woken = epoll.poll(LATER_S)
                    listener.accept()[0].close()
            if not woken:
                return
            time.sleep(LATER_S)
        pytest.fail("it takes none")


def test_what_a_stranger_has_shut_down_tells_of_input_and_has_none() -> None:
    with shared(socket.AF_UNIX) as (listener, stranger):
        stranger.shut()
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        assert poll.poll(0)[0][1] & select.POLLIN
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_stranger_says_how_calls_wait() -> None:
    with shared(socket.AF_INET) as (listener, stranger):
        stranger.block(on=True)
        assert os.get_blocking(listener.fileno())
        stranger.block(on=False)
        assert not os.get_blocking(listener.fileno())


# ---- the parts ----------------------------------------------------------------------------


def test_frames_are_read_in_any_pieces() -> None:
    written = b"".join(
        frame(7, writer, number, size)
        for writer, number, size in [(0, 0, 0), (1, 0, 5), (0, 1, 70_000), (3, 0, 1), (0, 2, 9)]
    )
    pieces = random.Random("pieces")
    reader = FrameReader(7)
    rest = written
    while rest:
        size = pieces.choice([1, 3, 1000, 50_000])
        reader.add(rest[:size])
        rest = rest[size:]
    assert reader.received == len(written)
    assert reader.next_number == [3, 1, 0, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        frame(7, 0, 1, 5),  # not the next
        frame(7, 0, 0, 5)[:-1] + b"?",
        frame(8, 0, 0, 5),
        b"anything else",
    ],
)
def test_a_wrong_frame_is_found(wrong: bytes) -> None:
    with pytest.raises(WrongBytes):
        FrameReader(7).add(wrong)


def test_a_wrong_byte_is_found_before_its_frame_is_whole() -> None:
    with pytest.raises(WrongBytes):
        FrameReader(7).add(frame(7, 0, 0, 5)[:10] + b"?")


def test_every_plan_is_data_and_drawn_anew_alike() -> None:
    which = by_seed.entry("ring-gain")
    for seed in range(50):
        plan = which.draw(seed)
        assert plan == which.draw(seed)
        assert plan["steps"]
