"""Cut off everywhere: each scenario is run once for each point at which something may be.

What happens at the nth point is a way of `cut_off`, which has the points as well:

- the whole scenario is cancelled, or its deadline has come; so is one that is shielded, and
  loses its shield a little later;
- every operation is cancelled, or one of them, and is then called anew: the scenario must come
  to its end, with nothing lost and nothing done twice;
- a KeyboardInterrupt comes, which trio brings to the main task;
- the task in which a callback server runs is cancelled, and its clients are not.

Some are also run by anyio's door, and as guests of asyncio's loop.
"""

from __future__ import annotations

import dataclasses

import cut_off
import harness
import pytest
import scenarios
from cut_off import WAYS
from marks import needs_ring
from scenarios import SCENARIOS

# Of each way and scenario, where not all are tried: evenly, the first and the last among them.
SAMPLE = 8

# Those of which all points are tried, each time.
PLAIN = ("echo", "datagrams", "blocked senders", "passed descriptors")
# Servers start within so many.
STARTS = ("server tcp", "server async", "server threads", "server datagrams everywhere")
START_POINTS = 20
STARTS_WAYS = ("whole", "deadline", "server", "interrupt")

DOORS = {"anyio": scenarios.by_anyio, "asyncio": scenarios.in_asyncio}


def has_way(name: str, way: str) -> bool:
    """Whether there is anything to cut off: what TLS has begun cannot be called anew."""
    if way == "server":
        return "server" in name
    return way not in ("each", "one") or "tls" not in name


CASES = [
    (backend, name, way)
    for name, scenario in SCENARIOS.items()
    for way in WAYS
    if has_way(name, way)
    for backend in (harness.EPOLL, harness.RING)
    if backend == harness.RING or not scenario.ring_only
]


def cases(found: list[tuple[str, str, str]]) -> pytest.MarkDecorator:
    """Of a test that is run by each, on the ring where there is one."""
    return pytest.mark.parametrize(
        ("where", "name", "way"),
        [
            pytest.param(
                *case,
                id="-".join(case).replace(" ", "_"),
                marks=needs_ring if case[0] == harness.RING else (),
            )
            for case in found
        ],
    )


@cases([case for case in CASES if case[2] == "whole" and case[1] in PLAIN])
def test_cancelled_at_every_point(where: str, name: str, way: str) -> None:
    assert cut_off.everywhere(where, SCENARIOS[name], way) > 0.5


@cases(CASES)
def test_cut_off_at_some_points(where: str, name: str, way: str) -> None:
    assert cut_off.everywhere(where, SCENARIOS[name], way, SAMPLE) > 0


@cases([case for case in CASES if case[1] in STARTS and case[2] in STARTS_WAYS])
def test_a_server_is_cut_off_at_every_point_of_its_start(where: str, name: str, way: str) -> None:
    made = [cut_off.run(where, SCENARIOS[name], WAYS[way], at) for at in range(1, START_POINTS + 1)]
    assert sum(each.has_cut_off() for each in made) > START_POINTS / 2


@needs_ring
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in ("echo", "connects", "server tcp", "server threads")
        for way in ("whole", "each", "server")
        if has_way(name, way)
    ],
)
def test_cut_off_by_other_doors(name: str, door: str, way: str) -> None:
    scenario = dataclasses.replace(SCENARIOS[name], door=DOORS[door])
    assert cut_off.everywhere(harness.RING, scenario, way, SAMPLE) > 0


@needs_ring
@pytest.mark.parametrize("way", ["whole", "server"])
@pytest.mark.parametrize("door", DOORS)
def test_a_server_is_cut_off_by_other_doors_while_it_starts(door: str, way: str) -> None:
    scenario = dataclasses.replace(SCENARIOS["server tcp"], door=DOORS[door])
    made = [cut_off.run(harness.RING, scenario, WAYS[way], at) for at in range(1, SAMPLE + 1)]
    assert sum(each.has_cut_off() for each in made) > SAMPLE / 2


@pytest.mark.long
@pytest.mark.timeout(600)
@cases(CASES)
def test_cut_off_at_every_point(where: str, name: str, way: str) -> None:
    assert cut_off.everywhere(where, SCENARIOS[name], way) > 0
