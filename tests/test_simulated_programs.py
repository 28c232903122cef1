"""Random programs on the simulated kernel: what they show, and that they show it again."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from typing import Any

import by_seed
import machine_speed
import pytest
import trio
from simulation import programs, programs_draw
from simulation.gain_others import OF_SERVICE
from simulation.programs_model import ByteQueue, MessageQueue

from uring_trio import _io_manager, _lines, _operations, _streams
from uring_trio.gain import _connection

GENERATORS = ["sim-trio", "sim-anyio", "sim-gain"]
SEEDS = 150
GAIN_SEEDS = 60
REPLAYED = 4
# Seconds of real time in which nothing happens on a machine that is at work elsewhere; of the
# programs here each jumps over time some hundred times.
IDLE_S = 0.02
PLANTED_SEEDS = 400  # in which a planted fault is found


# ---- what is drawn -----------------------------------------------------------------------


def seen_by(name: str, seeds: int) -> tuple[set[str], set[str]]:
    """Which steps came to which ends, and which kinds of choices were made."""
    seen: set[str] = set()
    chosen: set[str] = set()
    which = by_seed.entry(name)
    assert isinstance(which.generator, programs.Generator)
    for seed in range(seeds):
        plan = which.draw(seed)
        if "fatal" in plan["options"]["kinds"]:
            continue  # what such a run had is nobody's, and would stay open here
        world = programs.SimulatedWorld()
        seen |= programs.run(plan, world, which.generator.door).seen
        chosen |= world.chosen
    return seen, chosen


def ends_of(verb: str, seen: set[str]) -> set[str]:
    return {each.partition(": ")[2] for each in seen if each.startswith(f"{verb}: ")}


def test_every_step_is_made_and_every_choice() -> None:
    """Or the other tests show less than they say."""
    seen, chosen = seen_by("sim-trio", SEEDS)
    for verb in programs.RECEIVES:
        assert ends_of(verb, seen) >= {"some", "cancelled", "end", "EBADF"}, verb
    assert ends_of("peek", seen) >= {"some", "cancelled", "end"}
    for verb in programs.SENDS:
        assert ends_of(verb, seen) >= {"some", "cancelled", "EPIPE"}, verb
    for verb in ("readable", "writable", "dial", "answer"):
        good = {"dial": "answered", "answer": "answered"}.get(verb, verb)
        assert ends_of(verb, seen) >= {good, "cancelled"}, verb
    for verb in programs.CLOSES:
        assert "closed" in ends_of(verb, seen), verb
    assert "sent" in ends_of("send_eof", seen)
    received = set().union(*(ends_of(verb, seen) for verb in programs.RECEIVES))
    assert received >= {"BusyResourceError", "ClosedResourceError", "ECONNRESET"}
    assert chosen == set(programs_draw.KINDS)


def test_every_callback_is_called_and_every_end_is_told() -> None:
    seen, chosen = seen_by("sim-gain", GAIN_SEEDS)
    assert ends_of("on_close", seen) >= {
        *("NoneType", "EndOfStream", "DeadlineExceeded", "ConnectionResetError", "StuckInput"),
    }
    for verb in ("s_write", "s_writev", "s_read_from"):
        assert ends_of(verb, seen) >= {"some"}, verb
    for verb in ("s_close", "s_abort", "s_send_eof", "s_pause", "s_resume", "s_deadline", "s_task"):
        assert "done" in ends_of(verb, seen), verb
    assert ends_of("s_drain", seen) >= {"drained", "ConnectionClosed", "cancelled"}
    assert chosen >= {*programs_draw.KINDS} - {"stale"}


def test_a_verb_is_of_one_kind_of_step() -> None:
    """Or the one that is asked first has those of both."""
    others = [*programs.OF_ENDS, *OF_SERVICE, *programs.OF_CROWDS]
    verbs = [*others, *programs.OF_LISTENERS]
    assert len(verbs) == len({*verbs})
    assert not [verb for verb in others if hasattr(programs.Program, verb)]


# ---- the same again ----------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
def test_a_plan_runs_the_same_each_time(name: str) -> None:
    which = by_seed.entry(name)
    for seed in range(REPLAYED):
        plan = which.draw(seed)
        one, other = by_seed.run_apart(which, plan), by_seed.run_apart(which, plan)
        assert one.kind == by_seed.PASSED
        assert one.notes == other.notes
        assert len(one.notes) > 1


@pytest.mark.parametrize("name", GENERATORS)
def test_no_hash_and_no_address_matters(name: str) -> None:
    """Two interpreters, whose strings hash otherwise and whose objects lie elsewhere."""
    command = [sys.executable, by_seed.__file__, name, "3", "--same"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout.startswith("the same twice")


# ---- the same elsewhere ------------------------------------------------------------------


def run_for_real(plan: by_seed.Plan, backend: str, door: str) -> None:
    """On the machine's own kernel, where time is jumped over while the machine may be at work.

    Who is said to sleep over something there is given real time for it, before each jump.
    """
    try:
        programs.run(plan, programs.World(backend), door)
    except BaseException as exc:
        if by_seed.types_in(exc) != {"NotTold"}:
            raise
        programs.run(plan, programs.World(backend, IDLE_S * machine_speed.slowness()), door)


@pytest.mark.parametrize("door", ["trio", "anyio"])
def test_the_same_programs_on_the_machines_own_kernel(backend: str, door: str) -> None:
    """The rules of the model are those of Linux, and of stock trio."""
    for seed in range(40):
        plan = programs_draw.draw(random.Random(seed))
        try:
            run_for_real(plan, backend, door)
        except BaseException as exc:
            raise AssertionError(f"seed {seed}") from exc


# ---- what its books let pass -------------------------------------------------------------


def test_room_for_one_who_gave_up_is_not_held_against_the_next() -> None:
    crowd = 12
    steps = [
        [0, "crowd_rush", 0, crowd - 1, 65],
        *([2, "sleep", 0, ms, 0] for ms in (34, 5, 5, 20)),
        [2, "crowd_take", 0, 0, 0],
        [1, "at", 0, 1, 0],
        [1, "crowd_send", 0, 0, 0],
    ]
    plan: by_seed.Plan = {"options": {"crowd": crowd}, "steps": steps, "kernel": []}
    seen = programs.run(plan, programs.SimulatedWorld()).seen
    assert {"crowd_rush: cancelled", "crowd_send: sent", "crowd_take: some"} <= seen


def rubbish_and_a_wait(*between: list[Any]) -> by_seed.Plan:
    steps = [[0, "rubbish", 0, 500, 0], *between, [0, "readable", 0, 0, 5]]
    return {"options": {"channels": ["udp"], "network": True}, "steps": steps, "kernel": []}


def test_a_wait_may_be_told_of_rubbish_that_lies_there() -> None:
    plan = rubbish_and_a_wait()
    assert "readable: readable" in programs.run(plan, programs.SimulatedWorld()).seen


def test_a_wait_is_not_told_of_rubbish_that_somebody_looked_at() -> None:
    plan = rubbish_and_a_wait([0, "recv", 0, 100, 5])
    assert "readable: cancelled" in programs.run(plan, programs.SimulatedWorld()).seen


async def told_at_once(_file: Any) -> None:
    await trio.lowlevel.checkpoint()


def test_a_wait_that_is_told_of_rubbish_of_before_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trio.lowlevel, "wait_readable", told_at_once)
    plan = rubbish_and_a_wait([0, "recv", 0, 100, 5])
    which = by_seed.entry("sim-trio")
    assert "ToldForNothing" in by_seed.run_apart(which, plan).what.split()


# ---- what it finds -----------------------------------------------------------------------


def nothing(*_: Any) -> None:
    """In the place of what a product would do that forgets it."""


def tell_nobody(line: Any, operation: Any) -> None:
    if line.current is operation and operation.is_waited_for():
        line._clear_waiting()


async def send_less(sender: Any, data: Any, sent: int) -> None:
    await SEND_REST(sender, data, min(sent + 1, len(data)))


def count_more(outlet: Any, res: int) -> None:
    COMPLETED(outlet, res + 1 if res > 1 else res)


SEND_REST = _streams._send_rest
COMPLETED = _connection.Outlet.completed

# The fault, and by what it is seen.
PLANTED: dict[str, tuple[str, Any, str, Any, str]] = {
    "no buffer, and never again": (
        *("sim-trio", _lines.Line, "hold_current", nothing),
        "TrioInternalError",
    ),
    "memory that stays pinned": ("sim-trio", _operations, "unpin", nothing, "BufferError"),
    "nobody is told that he is busy": (
        *("sim-trio", _lines.Line, "find_busy", tell_nobody),
        "TrioInternalError",
    ),
    "the next in line does not begin": ("sim-trio", _lines.Line, "advance", nothing, "NotTold"),
    "a byte that is left out": ("sim-trio", _streams, "_send_rest", send_less, "BytesLost"),
    "a run that ends too early": (
        *("sim-trio", _io_manager, "drain", lambda *_: True),
        "BooksError",
    ),
    "a byte that is counted twice": (
        *("sim-gain", _connection.Outlet, "completed", count_more),
        "WrongCount",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, owner, attribute, instead, seen_as = PLANTED[fault]
    which = dataclasses.replace(by_seed.entry(name), limit_s=5.0)
    which.ready()  # before there is the fault
    monkeypatch.setattr(owner, attribute, instead)
    outcomes = (by_seed.run_apart(which, seed) for seed in range(PLANTED_SEEDS))
    assert any(seen_as in outcome.what.split() for outcome in outcomes)


def test_a_lost_byte_is_found() -> None:
    queue = ByteQueue(0)
    piece = queue.begin(10)
    piece.sent(10)
    with pytest.raises(AssertionError, match="comes"):
        queue.receive(piece.data[:4] + piece.data[5:])


def test_a_doubled_byte_is_found() -> None:
    queue = ByteQueue(0)
    piece = queue.begin(10)
    piece.sent(10)
    with pytest.raises(AssertionError, match="comes"):
        queue.receive(piece.data[:4] + piece.data[3:])


def receive_the_end(queue: ByteQueue, data: bytes) -> None:
    queue.receive(data)
    queue.end()


@pytest.mark.parametrize("size", [240, 57_600, 4096])
def test_a_hole_of_any_size_is_found(size: int) -> None:
    queue = ByteQueue(0)
    piece = queue.begin(100_000)
    piece.sent(100_000)
    queue.receive(piece.data[:100])
    with pytest.raises(AssertionError):
        receive_the_end(queue, piece.data[100 + size :])


def test_a_cancelled_send_that_was_sent_is_found() -> None:
    queue = ByteQueue(0)
    piece = queue.begin(10)
    queue.receive(piece.data)
    with pytest.raises(AssertionError, match="received of 0"):
        piece.sent(0)


def test_a_beginning_of_what_was_cut_off_may_be_received() -> None:
    queue = ByteQueue(0)
    first, second = queue.begin(10), queue.begin(10)
    first.cut_off()
    second.sent(10)
    queue.receive(first.data[:3] + second.data)
    queue.end()


def test_what_two_have_received_is_put_in_order() -> None:
    queue = ByteQueue(0)
    piece = queue.begin(10)
    piece.sent(10)
    queue.loose += [piece.data[6:], piece.data[:2], piece.data[2:6]]
    queue.settle()
    queue.end()


def test_what_one_has_in_hand_may_lie_in_front_of_what_another_tells_first() -> None:
    queue = ByteQueue(0)
    first, second = queue.begin(100), queue.begin(22)
    first.cut_off()
    second.sent(22)
    queue.loose.append(second.data)
    queue.place_certain()
    queue.loose.append(first.data[:50])
    queue.settle()
    queue.end()


def test_a_lost_message_is_found() -> None:
    queue = MessageQueue(0)
    first, second = queue.begin(10), queue.begin(10)
    first.sent(len(first.data))
    with pytest.raises(AssertionError, match="in front of"):
        queue.receive(second.data, 100)


def test_a_message_that_comes_twice_is_found() -> None:
    queue = MessageQueue(0)
    message = queue.begin(10)
    message.sent(len(message.data))
    queue.receive(message.data, 100)
    with pytest.raises(AssertionError, match="never sent"):
        queue.receive(message.data, 100)
