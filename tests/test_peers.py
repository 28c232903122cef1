"""Random peers and random use: what the books find where something is wrong.

Each fault is planted between the plan and the product, so that the books are shown to see it.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import TYPE_CHECKING, Any

import by_seed
import kernel_workers
import process_books
import pytest
import trio
from marks import needs_ring
from peers import conduct, ways
from peers.books import Burnt, Early, Handed, Left, Lost, Strange, Stuck
from peers.draw import Draw
from peers.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from by_seed import Plan

pytestmark = needs_ring

RECV: list[Any] = ["call", 0, "recv", 100, "", "", 0]
SEND: list[Any] = ["peer", 0, "send", 50]
TICK: list[Any] = ["tick", 2]


def plan(*steps: list[Any], kind: str = "tcp", **options: Any) -> Plan:
    opened = ["open", 0, kind, "socket", 0]
    return {"options": options, "steps": [opened, *steps], "kernel": []}


def outcome_of(which: Plan, door: str = "trio") -> by_seed.Outcome:
    """In a process of its own, in which nothing of a failure is left."""
    return by_seed.run_apart(by_seed.entry(f"ring-{door}"), which)


def fails_with(error: type[BaseException], wrong: Plan) -> None:
    outcome = outcome_of(wrong)
    assert outcome.kind == by_seed.FAILED
    assert outcome.what == error.__name__, outcome.text


def passes(right: Plan, door: str = "trio") -> None:
    outcome = outcome_of(right, door)
    assert outcome.kind == by_seed.PASSED, outcome.text


def instead_of_recv(monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]) -> None:
    recv = ways.SOCKET_READS["recv"]

    async def changed(sock: Any, size: int, flags: int) -> bytes:
        return change(await recv(sock, size, flags))

    monkeypatch.setitem(ways.SOCKET_READS, "recv", changed)


@pytest.mark.parametrize("door", ["trio", "anyio"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_plan_passes_at_every_kind_of_place(kind: str, door: str) -> None:
    acts = KINDS[kind].__new__(KINDS[kind])
    acts.kind = kind
    steps = [["peer", 0, act, 100] for act in acts.acts() if act != "flood"]
    reads = [RECV, ["call", 0, "receive", 100, "", "", 0], ["call", 0, "accept", 1, "", "", 0]]
    passes(plan(*reads, *itertools.chain(*([s, TICK] for s in steps)), kind=kind), door)


@pytest.mark.parametrize("host", ["", "thread", "guest"])
def test_every_host(host: str) -> None:
    passes(plan(RECV, TICK, SEND, TICK, ["quiet", 40], host=host, stranger=True))


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + data[:1]], ids=["lost", "twice"]
)
def test_bytes(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_recv(monkeypatch, change)
    fails_with(Lost, plan(RECV, TICK, SEND, TICK, RECV, SEND, TICK))


def test_an_end_that_nobody_made(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_recv(monkeypatch, lambda data: b"")
    fails_with(Strange, plan(RECV, TICK, SEND, TICK))


def test_an_error_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> bytes:
        raise BlockingIOError(11, "try again")

    instead_of_recv(monkeypatch, fail)
    fails_with(Strange, plan(RECV, TICK, SEND, TICK))


@pytest.mark.parametrize("quiet", [[["quiet", 40]], []], ids=["quiet", "end"])
def test_a_task_that_is_not_woken(quiet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleeps(sock: Any, size: int, flags: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setitem(ways.SOCKET_READS, "recv", sleeps)
    monkeypatch.setattr(conduct, "WAKE_MAX_S", 0.1)
    monkeypatch.setattr(conduct, "FINISH_MAX_S", 0.5)
    fails_with(Stuck, plan(RECV, TICK, SEND, *quiet))


def test_cpu_in_a_quiet_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spins(sock: Any, size: int, flags: int) -> bytes:
        while True:
            await trio.lowlevel.checkpoint()

    monkeypatch.setitem(ways.SOCKET_READS, "recv", spins)
    fails_with(Burnt, plan(RECV, TICK, ["quiet", 40]))


def test_readiness_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_readable(_: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)
    fails_with(Early, plan(["call", 0, "wait_readable", 0, "", "", 0], TICK, TICK))


def test_an_attempt_that_the_kernel_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_workers, "retried", lambda: [27])
    fails_with(Handed, plan(["quiet", 40]))


@pytest.mark.parametrize("steps", [[["quiet", 40]], [TICK], []], ids=["quiet", "step", "end"])
def test_a_worker_of_the_kernels(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_books.Workers, "more", lambda _: ["one"])
    fails_with(Handed, plan(*steps))


def test_a_call_that_blocks_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(data: bytes) -> bytes:
        time.sleep(60)
        return data

    instead_of_recv(monkeypatch, blocks)
    monkeypatch.setattr(conduct, "TURN_MAX_S", 0.1 * conduct.SLOWNESS)
    fails_with(Stuck, plan(RECV, TICK, SEND, ["sleep", 1], ["sleep", 1]))


def test_somebody_acts_between_two_calls_of_ours() -> None:
    """A connection that was there is gone, and the flag that was looked at is another one."""
    accept = ["call", 0, "accept", 1, "", "", 0]
    comes = [["peer", 0, "connect", 1], ["sleep", 2]]
    taken = [["between", 0, "take", 1, 9], accept, TICK, *comes]
    passes(plan(*taken, kind="listen_tcp"))
    seen = [accept, TICK, ["rival", 0, "block", 0], *comes, ["between", 0, "flip", 1, 9]]
    passes(plan(*seen, accept, TICK, ["rival", 0, "take", 0], *comes, kind="listen_tcp"))


def test_a_descriptor_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(data: bytes) -> bytes:
        os.open(os.devnull, os.O_RDONLY)
        return data

    instead_of_recv(monkeypatch, leave)
    fails_with(Left, plan(RECV, TICK, SEND, TICK))


def test_memory_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keep(data: bytes) -> bytes:
        kept.extend([number] for number in range(5))  # two blocks each
        return data

    instead_of_recv(monkeypatch, keep)
    fails_with(Left, plan(RECV, TICK, SEND, TICK, rounds=8))


def test_the_same_seed_draws_the_same_plan() -> None:
    for door in ("trio", "anyio"):
        one, two = (Draw(random.Random(7), door).plan() for _ in range(2))
        assert one == two
    started = time.monotonic()
    for seed in range(200):
        assert Draw(random.Random(seed), "trio").plan()["steps"]
    assert time.monotonic() - started < 10
