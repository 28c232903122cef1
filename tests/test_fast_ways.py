"""Each fast way, and each hot path in C, leaves behind what the plain way beside it does.

The whole of them is compared by a second run of the tests (see `run_all`). Here, one by one,
is what no test of behaviour would notice: what is remembered for the next time.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import re
import socket
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import harness
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uring_trio import _fast_ways, _hot_parts
from uring_trio._kernel import (
    CQE_F_BUFFER,
    CQE_F_SOCK_NONEMPTY,
    GROUP_SIZES,
    RECORD_SIZE,
    RECORD_WAITED,
    TRANSFER_MAX,
)
from uring_trio._lines import Backlog, Line, Receiver, Sender
from uring_trio._memory import pin
from uring_trio._operations import Operation, Receive, ReceiveInto, Send, deliver
from uring_trio._slots import Record, Slots
from uring_trio._streams import SEND_ALL_FLAGS
from uring_trio._trio_private import park

if TYPE_CHECKING:
    from pathlib import Path

# csrc/engine.h: what C has given to whom it is for, and passes over.
RECORD_TAKEN = 1 << 13

Tell = Callable[[Slots, list[Record]], None]

# How a receive may have gone: with its first attempt or not, and more behind it or not.
FLAGS = [
    CQE_F_BUFFER | waited | more
    for waited in (0, RECORD_WAITED)
    for more in (0, CQE_F_SOCK_NONEMPTY)
]
SIZES = [1, *(size + more for size in GROUP_SIZES for more in (-1, 0))]
ERRORS = [0, -11, -32, -104, -125]


class FakeRing:
    """Prepares one operation after the other, and holds what was received."""

    pool = bytes(range(256)) * (2 * GROUP_SIZES[-1] // 256)
    RECORDS = 16

    def __init__(self) -> None:
        # Where C looks for them.
        self._memory = ctypes.create_string_buffer(self.pool, len(self.pool))
        self._records = ctypes.create_string_buffer(self.RECORDS * RECORD_SIZE)
        self.pool_address = ctypes.addressof(self._memory)
        self.record_address = ctypes.addressof(self._records)
        self.prepared: list[tuple[Any, ...]] = []
        self.next_slot = 0

    def _prepare(self, *what: Any) -> int:
        self.prepared.append(what)
        self.next_slot += 1
        return self.next_slot

    recv = recv_into = send = read = write = _prepare

    def write_batch(self, records: list[Record]) -> None:
        """Put the records where a batch's are."""
        for index, record in enumerate(records):
            struct.pack_into("IiII", self._records, index * RECORD_SIZE, *record)

    def read_batch(self, count: int) -> list[Record]:
        """What lies there now."""
        return [
            struct.unpack_from("IiII", self._records, index * RECORD_SIZE) for index in range(count)
        ]

    def error(self, result: int) -> Exception:
        return OSError(-result, "refused")


def deliver_in_c(slots: Slots, records: list[Record]) -> None:
    """`deliver`, as `_hot` has it."""
    ring: Any = slots.ring
    ring.write_batch(records)
    _hot_parts.hot.deliver(slots, len(records))


#: All that do what `Slots.deliver` does.
FAST: list[Tell] = [deliver] if _hot_parts.hot is None else [deliver, deliver_in_c]


class Fixture:
    """A receiver and a sender with nothing below them, and what their tasks were told."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.woken: list[tuple[Any, ...]] = []  # since the last look
        self.ring = FakeRing()
        self.slots = Slots(self.ring, self.wake)  # type: ignore[arg-type]
        self.backlog = Backlog()
        self.receiver = Receiver(self.slots, self.backlog, lambda: 7, is_socket=True)
        self.sender = Sender(self.slots, self.backlog, lambda: 7, is_socket=True)

    def wake(self, task: Any, value: Any) -> None:
        # Two errors are the same if they read the same; bytes are shown short.
        shown = (len(value), hash(value)) if type(value) is bytes else repr(value)
        self.woken.append((task, shown))

    def receive(self, res: int, flags: int, size: int) -> None:
        operation = self.receiver.receive(size)
        self.tell(self.slots, [(operation.slot, res, flags, 64)])

    def receive_into(self, size: int, res: int, flags: int) -> None:
        memory = bytearray(size)
        operation = ReceiveInto(self.receiver, pin(memory, writable=True), size, 0)
        self.receiver.submit(operation)
        self.tell(self.slots, [(operation.slot, res, flags, 0)])
        memory.clear()  # BufferError: it is pinned
        self.woken.append((operation.slot, operation.task, operation.trap))

    def send(self, size: int, res: int) -> None:
        operation = self.sender.send(bytes(size), 0)
        self.tell(self.slots, [(operation.slot, min(res, size), 0, 0)])

    def left_behind(self) -> dict[str, Any]:
        """All that the next operation, or anybody else, may see; not what is used again."""
        woken, self.woken = self.woken, []
        prepared, self.ring.prepared = self.ring.prepared, []
        return {
            "woken": woken,
            "prepared": prepared,
            "slots": self.slots.occupants(),
            "receiver": fields(self.receiver),
            "sender": fields(self.sender),
        }


def fields(line: Line | Operation) -> dict[str, Any]:
    names = {
        name
        for kind in type(line).__mro__[:-1]
        for name, field in vars(kind).items()
        if isinstance(field, types.MemberDescriptorType)  # a slot, or a field in C
    }
    own = {"backlog", "fileno", "slots", "spare", "plain_receive", "prep_receive", "prep_send"}
    return {name: getattr(line, name) for name in sorted(names - own)}


class Task:
    """What runs, as operations see it."""

    task = "the task"


receives = st.tuples(
    st.just("receive"),
    st.one_of(st.sampled_from(SIZES), st.sampled_from(ERRORS), st.integers(1, GROUP_SIZES[-1])),
    st.sampled_from(FLAGS),
    st.sampled_from([1, GROUP_SIZES[0], GROUP_SIZES[0] + 1, GROUP_SIZES[-1]]),
)
receives_into = st.tuples(
    st.just("receive_into"),
    st.integers(1, 100),
    st.one_of(st.integers(0, 100), st.sampled_from(ERRORS)),
    st.sampled_from(FLAGS),
)
sends = st.tuples(
    st.just("send"), st.integers(1, 100), st.one_of(st.integers(0, 100), st.sampled_from(ERRORS))
)


def play(tell: Tell, script: list[tuple[Any, ...]]) -> Any:
    fixture = Fixture(tell)
    after = []
    for name, *arguments in script:
        getattr(fixture, name)(*arguments)
        after.append(repr(fixture.left_behind()))
    return after


@pytest.fixture
def task_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are begun, and there is no run."""
    monkeypatch.setattr("uring_trio._operations.run_context", Task)


@pytest.mark.usefixtures("task_that_runs")
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("res", SIZES)
def test_one_record_chooses_the_same_next_receive(res: int, flags: int) -> None:
    """Such as whether it waits for data before it is tried."""
    script = [("receive", res, flags, GROUP_SIZES[-1])] * 20
    plain = play(Slots.deliver, script)
    for fast in FAST:
        assert play(fast, script) == plain
    waits = "'poll_first': True" in plain[0]
    assert waits == (flags & RECORD_WAITED > 0 and not flags & CQE_F_SOCK_NONEMPTY)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.lists(st.one_of(receives, receives_into, sends), max_size=60))
def check_any_script(script: list[tuple[Any, ...]]) -> None:
    plain = play(Slots.deliver, script)
    for fast in FAST:
        assert play(fast, script) == plain


@pytest.mark.usefixtures("task_that_runs")
def test_any_row_of_records_leaves_the_same_behind() -> None:
    check_any_script()


@pytest.mark.usefixtures("task_that_runs")
def test_what_is_cut_off_or_stood_behind_goes_the_plain_way() -> None:
    def behind(tell: Tell) -> Any:
        fixture = Fixture(tell)
        first = fixture.receiver.receive(100)
        second = fixture.receiver.receive(50)
        tell(fixture.slots, [(first.slot, 10, RECORD_WAITED, 0)])
        assert fixture.receiver.current is second
        second.ask_for_end(lambda: None)
        tell(fixture.slots, [(second.slot, 20, 0, 0)])
        return repr(fixture.left_behind())

    for fast in FAST:
        assert behind(fast) == behind(Slots.deliver)


# What `deliver` may find, beside what came, and all that each of it may be.
SITUATIONS: dict[str, list[Any]] = {
    "kind": ["receive", "receive_into", "send", "send a buffer", "another"],
    "res": [*ERRORS, -4, -105, 1, GROUP_SIZES[0] - 1, GROUP_SIZES[0], GROUP_SIZES[1]],
    "flags": [0, CQE_F_BUFFER, RECORD_WAITED, RECORD_WAITED | CQE_F_SOCK_NONEMPTY],
    "is_waited_for": [True, False],
    "is_cut_off": [False, True],
    "has_one_behind": [False, True],
    "group": [0, 1, 2],
}


def left_behind_by(tell: Tell, kind: str, res: int, flags: int, **situation: Any) -> str:
    """What a record leaves in a situation."""
    fixture = Fixture(tell)
    receiver, sender = fixture.receiver, fixture.sender
    receiver.group = situation["group"]
    memory = bytearray(40)
    line: Line = receiver
    operation: Operation
    if kind == "receive":
        operation = receiver.receive(GROUP_SIZES[-1])
    elif kind == "receive_into":
        operation = receiver.submit(ReceiveInto(receiver, pin(memory, writable=True), 9, 0))
    elif kind == "another":
        operation = receiver.submit(OtherReceive(receiver, 9))
    else:
        line = sender
        data = bytes(memory) if kind == "send" else memory
        operation = sender.send(pin(data), 0)
    slot = operation.slot
    if situation["has_one_behind"]:
        # At once, or who is in the kernel would make it busy.
        line.submit(OtherReceive(receiver, 5) if line is receiver else Send(sender, b"", 0))
    if situation["is_cut_off"]:
        operation.ask_for_end(Cut.off)
    if not situation["is_waited_for"]:
        operation.take_task()
    tell(fixture.slots, [(slot, res, flags, 64)])
    left = fixture.left_behind()
    left["operation"] = fields(operation)
    left["raises"] = Cut.is_raised_by(operation)
    if operation is line.spare:  # to be used again; in the plain way it never is
        assert left["operation"]["trap"] is not None
        left["operation"]["trap"] = None
    left["held"] = list(fixture.backlog.held)
    try:
        memory.append(1)
        left["memory"] = "free"
    except BufferError:
        left["memory"] = "pinned"
    return re.sub(r"0x[0-9a-f]+", "", repr(left))


class OtherReceive(Receive):
    """No kind that a fast way knows."""

    __slots__ = ()


class Cut(Exception):
    """What an operation is cut off with."""

    @classmethod
    def off(cls) -> None:
        raise cls

    @classmethod
    def is_raised_by(cls, operation: Operation) -> bool:
        """Whether a task that was sent a part, or received it, is told of its end now."""
        try:
            operation.raise_if_cut_off()
        except cls:
            return True
        return False


@pytest.mark.usefixtures("task_that_runs")
@pytest.mark.parametrize("kind", SITUATIONS["kind"])
def test_every_situation_is_left_the_same(kind: str) -> None:
    names = [name for name in SITUATIONS if name != "kind"]
    seen = set()
    for values in itertools.product(*(SITUATIONS[name] for name in names)):
        situation: dict[str, Any] = dict(zip(names, values, strict=True))
        plain = left_behind_by(Slots.deliver, kind, **situation)
        seen.add(plain)
        for fast in FAST:
            assert left_behind_by(fast, kind, **situation) == plain, situation
    assert len(seen) > 50


# ---- the start of an operation -----------------------------------------------------------


async def asked_for(*, fast: bool) -> list[Any]:
    """What is prepared for a receive in each state of its line, and for a send."""
    left, right = trio.socket.socketpair()
    asked: list[Any] = []

    def noting(what: str, prepare: Callable[..., int]) -> Callable[..., int]:
        def prepare_and_note(fd: int, *rest: Any) -> int:
            # What is sent may be the bytes themselves, or a pin of them.
            asked.append(
                (what, *(len(part) if hasattr(part, "__len__") else part for part in rest))
            )
            return prepare(fd, *rest)

        return prepare_and_note

    async with trio.SocketStream(left) as peer, trio.SocketStream(right) as stream:
        endpoint: Any = right.ring_endpoint()  # type: ignore[attr-defined]
        receiver, sender = endpoint.receiver, endpoint.sender
        receiver.prep_receive = noting("receive", receiver.plain_receive)
        sender.prep_send = noting("send", sender.prep_send)
        for group, poll_first, size in STATES:
            await peer.send_all(b"x")
            receiver.group, receiver.poll_first = group, poll_first
            if fast:
                assert await stream.receive_some(size) == b"x"
                await stream.send_all(b"answer")
            else:
                receiving = receiver.receive(size)
                assert receiving.unwrap(await park(receiving.trap)) == b"x"
                sending = sender.send(b"answer", SEND_ALL_FLAGS)
                assert sending.unwrap(await park(sending.trap)) == len(b"answer")
            asked.append(("then", fields(receiver), fields(sender)))
    return asked


STATES = [
    (group, poll_first, size)
    for group in range(len(GROUP_SIZES))
    for poll_first in (False, True)
    for size in (1, GROUP_SIZES[0], GROUP_SIZES[0] + 1, GROUP_SIZES[-1])
]


@pytest.mark.differential
@pytest.mark.ring_only
async def test_a_stream_begins_as_its_lines_do() -> None:
    fast, plain = await asked_for(fast=True), await asked_for(fast=False)
    assert fast == plain
    assert len(fast) == 3 * len(STATES)


async def asked_for_into(*, fast: bool) -> list[Any]:
    """What is prepared for a recv_into of a socket with nobody in the kernel."""
    left, right = trio.socket.socketpair()
    asked: list[Any] = []
    with left, right:
        receiver = right.ring_endpoint().receiver  # type: ignore[attr-defined]
        prepare = receiver.slots.ring.recv_into

        def prepare_and_note(fd: int, pinned: Any, *rest: Any) -> int:
            asked.append((len(pinned), *map(int, rest)))
            return int(prepare(fd, pinned, *rest))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(receiver.slots.ring, "recv_into", prepare_and_note)
            for low_water, poll_first, size in INTO_STATES:
                right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
                receiver.poll_first = poll_first
                memory = bytearray(size)
                await left.send(b"x")
                if fast:
                    assert await right.recv_into(memory) == 1
                else:
                    pinned = pin(memory, writable=True)
                    receiving = receiver.submit(ReceiveInto(receiver, pinned, size, 0))
                    assert receiving.unwrap(await park(receiving.trap)) == 1
                assert memory[:1] == b"x"
                memory.clear()  # BufferError: it is pinned
                asked.append(("then", fields(receiver)))
    return asked


INTO_STATES = [
    (low_water, poll_first, size)
    for low_water in (1, 2)
    for poll_first in (False, True)
    for size in (1, 100)
]


@pytest.mark.differential
@pytest.mark.ring_only
async def test_recv_into_begins_as_its_line_does() -> None:
    fast, plain = await asked_for_into(fast=True), await asked_for_into(fast=False)
    assert fast == plain
    assert [each[-1] for each in fast[::2]] == [0, 0, 1, 1, 0, 0, 0, 0]  # polls first


@pytest.mark.differential
async def test_a_buffer_that_the_ring_does_not_take_is_not_pinned(tmp_path: Path) -> None:
    """Larger than what one operation moves: a file with nothing in it, so it takes no memory."""
    left, right = trio.socket.socketpair()
    with left, right, open(tmp_path / "sparse", "wb+") as file:  # noqa: ASYNC230
        file.truncate(TRANSFER_MAX + 1)
        memory = mmap.mmap(file.fileno(), 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.recv_into, memory)
            await trio.testing.wait_all_tasks_blocked()
            memory.close()  # BufferError: it is pinned
            nursery.cancel_scope.cancel()


def test_the_switch_is_the_environments() -> None:
    for value, expected in (("off", False), ("on", True), ("", True)):
        done = subprocess.run(
            [sys.executable, "-c", "from uring_trio._fast_ways import FAST; print(FAST)"],
            env={**os.environ, "URING_TRIO_FAST_WAYS": value},
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        )
        assert done.stdout.strip() == str(expected)
    assert _fast_ways.FAST is harness.FAST_WAYS
