"""Random peers and random use: what the books find where something is wrong.

Each fault is planted between the plan and the product, so that the books are shown to see it.
"""

from __future__ import annotations

import itertools
import os
import random
import time
import types
from typing import TYPE_CHECKING, Any

import by_seed
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


@pytest.mark.parametrize("name", ["workers", "retried"])
def test_the_kernel_at_work_for_us(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"workers": itertools.chain([{}], itertools.repeat({1: None})), "retried": iter([[27]])}
    book = types.SimpleNamespace(workers=dict, retried=list)
    setattr(book, name, lambda: next(told[name]))
    monkeypatch.setattr(conduct, "kernel_workers", book)
    monkeypatch.setattr(process_books, "kernel_workers", book)
    fails_with(Handed, plan(["quiet", 40]))


def test_a_descriptor_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(data: bytes) -> bytes:
        os.open(os.devnull, os.O_RDONLY)
        return data

    instead_of_recv(monkeypatch, leave)
    fails_with(Left, plan(RECV, TICK, SEND, TICK))


def test_memory_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keep(data: bytes) -> bytes:
        kept.append([0])  # less than a hundred bytes
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
