"""Drawing plans for `stock`: which files, who holds them, and what becomes of them."""

from __future__ import annotations

import random as random_module
from typing import TYPE_CHECKING, Any

from peers import ways
from peers.files import Carrier, Standing, Teller

if TYPE_CHECKING:
    from by_seed import Plan

Random = random_module.Random

SIZES = (1, 2, 7, 19, 20, 100, 300, 499, 8191, 8192, 8193, 20_000, 40_000, 59_999)
MARKS = (1, 5, 10, 100, 400)
SOCKET_CALLS = [*ways.SOCKET_READS, "recv", "recv", *ways.SOCKET_WRITES]
STREAM_CALLS = ["receive_some", "receive_some", "send_all", "send_all_user_memory"]
HOWS = ("close", "leave", "detach", "notify")


class DrawFiles:
    """One plan."""

    def __init__(self, random: Random, door: str) -> None:
        self._random = random
        self._door = door
        self._two_runs = random.random() < 0.3
        self._places: list[tuple[int, str, list[str]]] = []

    def plan(self) -> Plan:
        random = self._random
        options: dict[str, Any] = {"how": "as stock"}
        if self._door == "trio" and random.random() < 0.1:
            options["host"] = "guest"
        steps: list[Any] = []
        for number in range(random.choice([1, 2, 2, 3])):
            steps += self._open(number)
        for _ in range(random.choice([10, 16, 24])):
            steps += self._some(random.choice(self._places))
        return {"options": options, "steps": steps, "kernel": []}

    def _open(self, number: int) -> list[Any]:
        random = self._random
        x = random.random()
        files = Standing if x < 0.1 else Teller if x < 0.3 else Carrier
        kind = random.choice(files.KINDS)
        if files is Carrier and random.random() < 0.4:
            kind = random.choice(["unix", "tcp", "tcp", "seqpacket", "unix_dgram"])
        possible = ["other_number", *([] if files is Teller else ["file"])]
        if kind in Carrier.SOCKETS:
            possible += ["sock", "sock", "again", "dup"]
        if kind in ("unix", "tcp"):
            possible += ["stream"]
        holders = sorted({random.choice(possible) for _ in range(random.choice([1, 2, 3]))})
        if files is not Carrier and random.random() < 0.5:
            holders = []
        self._places.append((number, kind, ["number", *holders]))
        return [["open", number, kind], *(["hold", number, holder] for holder in holders)]

    def _where(self) -> int:
        return int(self._two_runs and self._random.random() < 0.5)

    def _call(self, place: tuple[int, str, list[str]]) -> list[Any]:
        random = self._random
        number, _, holders = place
        holder = random.choice(holders)
        names = ["wait_readable", "wait_readable", "wait_writable"]
        if holder in ("sock", "again", "dup"):
            names += SOCKET_CALLS
        elif holder in ("stream", "file"):
            names = STREAM_CALLS
        return ["call", number, holder, random.choice(names), random.choice(SIZES), self._where()]

    def _act(self, kind: str) -> list[Any]:
        random = self._random
        acts = ["put", "put", "take"]
        if kind in Carrier.KINDS:
            acts += ["fill", "room"]
            if random.random() < 0.2:
                acts = ["far_shut_write", "far_shut_write", "far_shut_read", "far_close"]
        return [random.choice(acts), random.choice(SIZES)]

    def _some(self, place: tuple[int, str, list[str]]) -> list[Any]:
        random = self._random
        number, kind, holders = place
        x = random.random()
        if x < 0.35:
            return [self._call(place)]
        if x < 0.65:
            acts = [self._act(kind) for _ in range(random.choice([1, 1, 2, 3]))]
            if random.random() < 0.2:
                acts = random.choice([["put", "take"], ["put", "take", "put"], ["room", "fill"]])
                acts = [[act, random.choice(SIZES)] for act in acts]
            return [["acts", number, acts]]
        if x < 0.73:
            return [["cancel", random.randrange(5)]]
        if x < 0.8:
            return [["mark", number, random.choice(holders), random.choice(MARKS), self._where()]]
        if x < 0.88:
            return [["quiet"]]
        if x < 0.92:
            return [["drop", number, random.choice(holders)]]
        if x < 0.97:
            return [["close", number, random.choice(holders), random.choice(HOWS), self._where()]]
        return [["hold", number, random.choice(["sock", "again", "dup", "file", "other_number"])]]
