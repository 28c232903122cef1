"""Drawing plans for `stock`: which files, who holds them, and what becomes of them."""

from __future__ import annotations

import random as random_module
from typing import TYPE_CHECKING, Any

from peers import ways
from peers.files import Carrier, Standing, Teller

if TYPE_CHECKING:
    from by_seed import Plan

Random = random_module.Random

LARGE = (8191, 8192, 20_000, 40_000, 59_998, 59_999)
SIZES = (1, 2, 7, 19, 20, 100, 300, 499, *LARGE)
MARKS = (1, 10, 50, 100, 400)
SOCKETS = ("unix", "tcp", "tcp", "seqpacket", "unix_dgram")
ONE_WAY = ("pipe_in", "pipe_out", "fifo_in", "fifo_out")
FEW = (1, 2, 7, 19)
HOWS = ("close", "leave", "detach", "notify")
# What belongs together, and the files that it is for; `DrawFiles` has the steps.
TOGETHER = {
    "comes": (*Teller.KINDS, *Carrier.KINDS),
    "goes": (*Teller.KINDS, *Carrier.KINDS),
    "drop": (*Teller.KINDS, *Carrier.KINDS),
    "close": Carrier.KINDS,
    "room": Carrier.KINDS,
    "half": Carrier.SOCKETS,
    "beside": Carrier.SOCKETS,
    "message": Carrier.MESSAGES,
    "both_ways": ONE_WAY,
    "mark": ("tcp",),  # which alone minds it
}


class DrawFiles:
    """One plan."""

    def __init__(self, random: Random, door: str) -> None:
        self._random = random
        self._door = door
        self._two_runs = random.random() < 0.4
        self._places: list[tuple[int, str, list[str]]] = []

    def plan(self) -> Plan:
        random = self._random
        options: dict[str, Any] = {"how": "as stock"}
        if self._door == "trio" and random.random() < 0.1:
            options["host"] = "guest"
        steps: list[Any] = []
        # What belongs together is done with a file that nothing was done with yet: first of all
        # what, and then a file for it, since some is for one type of many.
        for number in range(random.choice([2, 3, 3])):
            what = random.choice(list(TOGETHER))
            steps += self._open(number, self._kind_for(what))
            steps += self._together(self._places[number], what)
        if random.random() < 0.5:
            steps += self._standing(len(self._places))
        # Then anything, in the state in which they are.
        for _ in range(random.choice([0, 4, 8])):
            place = random.choice(self._places)
            fits = [what for what, kinds in TOGETHER.items() if place[1] in kinds]
            together = random.random() < 0.5
            steps += self._together(place, random.choice(fits)) if together else [self._some(place)]
        return {"options": options, "steps": steps, "kernel": []}

    def _kind_for(self, what: str) -> str:
        random = self._random
        leaning = random.choice([SOCKETS, SOCKETS, ONE_WAY, Carrier.KINDS, Teller.KINDS])
        kinds = [kind for kind in leaning if kind in TOGETHER[what]]
        return random.choice(kinds or TOGETHER[what])

    def _open(self, number: int, kind: str) -> list[Any]:
        random = self._random
        is_teller = kind in Teller.KINDS
        possible = ["other_number", *([] if is_teller else ["file"])]
        if kind in Carrier.SOCKETS:
            possible += ["sock", "sock", "again", "dup"]
        if kind in ("unix", "tcp"):
            possible += ["stream"]
        if kind in ONE_WAY or kind in Carrier.MESSAGES:
            possible += ["file", "file"]
        holders = sorted({random.choice(possible) for _ in range(random.choice([0, 1, 2, 3]))})
        if is_teller and random.random() < 0.5:
            holders = []
        self._places.append((number, kind, ["number", *holders]))
        return [["open", number, kind], *(["hold", number, holder] for holder in holders)]

    def _standing(self, number: int) -> list[Any]:
        """Some of the system's, and who waits for them."""
        random = self._random
        steps: list[Any] = []
        for each in range(number, number + random.choice([1, 2])):
            steps.append(["open", each, random.choice(Standing.KINDS)])
            steps.append(["call", each, "number", self._wait(), 0, self._where()])
            if random.random() < 0.3:
                steps += [["hold", each, "file"], ["call", each, "file", "receive_some", 100, 0]]
        return steps

    def _where(self) -> int:
        return int(self._two_runs and self._random.random() < 0.5)

    def _wait(self) -> str:
        return self._random.choice(["wait_readable", "wait_readable", "wait_writable"])

    def _call(self, place: tuple[int, str, list[str]], way: str = "", where: int = -1) -> list[Any]:
        """By one who has it: any call, or one that receives, sends or waits."""
        random = self._random
        number, _, holders = place
        holder = random.choice(holders)
        reads: list[str] = []
        writes: list[str] = []
        if holder in ("sock", "again", "dup"):
            reads, writes = [*ways.SOCKET_READS, "recv", "recv"], list(ways.SOCKET_WRITES)
        elif holder in ("stream", "file"):
            reads, writes = ["receive_some"], list(ways.TRIO_STREAM_WRITES)
        waits = ["wait_readable", "wait_readable", "wait_writable"]
        if holder == "file":
            waits = []
        names = {
            "read": reads or ["wait_readable"],
            "write": [*writes, "wait_writable"],
            "wait": waits or reads,
        }.get(way, [*reads, *writes, *waits])
        where = self._where() if where < 0 else where
        return ["call", number, holder, random.choice(names), self._size(place[1]), where]

    def _act(self, kind: str) -> list[Any]:
        random = self._random
        acts = ["put", "put", "take"]
        if kind in Carrier.KINDS:
            acts += ["fill", "room"]
            if random.random() < 0.2:
                acts = ["far_shut_write", "far_shut_write", "far_shut_read", "far_close"]
        return [random.choice(acts), self._size(kind)]

    def _size(self, kind: str) -> int:
        large = kind in Carrier.MESSAGES and self._random.random() < 0.5
        return self._random.choice(LARGE if large else SIZES)

    def _acts(self, number: int, *names: str) -> list[Any]:
        kind = next(kind for each, kind, _ in self._places if each == number)
        return ["acts", number, [[name, self._size(kind)] for name in names]]

    def _mark(self, place: tuple[int, str, list[str]]) -> list[Any]:
        random = self._random
        return ["mark", place[0], random.choice(place[2]), random.choice(MARKS), self._where()]

    def _close(self, place: tuple[int, str, list[str]], where: int = -1) -> list[Any]:
        random = self._random
        where = self._where() if where < 0 else where
        return ["close", place[0], random.choice(place[2]), random.choice(HOWS), where]

    def _some(self, place: tuple[int, str, list[str]]) -> list[Any]:
        """One step."""
        random = self._random
        number, kind, holders = place
        x = random.random()
        if x < 0.35:
            return self._call(place)
        if x < 0.7:
            return ["acts", number, [self._act(kind) for _ in range(random.choice([1, 1, 2, 3]))]]
        if x < 0.78:
            return ["cancel", random.randrange(5)]
        if x < 0.83:
            return self._mark(place)
        if x < 0.88:
            return ["quiet"]
        if x < 0.92:
            return ["drop", number, random.choice(holders)]
        if x < 0.95:
            return self._close(place)
        return ["hold", number, random.choice(["sock", "again", "dup", "file", "other_number"])]

    def _together(self, place: tuple[int, str, list[str]], what: str) -> list[Any]:
        """Some that belong together: who waits, and what becomes of what he waits for."""
        random = self._random
        number, kind, _ = place
        put = self._acts(number, "put")
        if what == "comes":
            return [self._call(place, "read"), put][:: random.choice([1, -1])]
        if what == "goes":
            pair = random.choice([("put", "take"), ("put", "take", "put"), ("room", "fill")])
            way = random.choice(["wait", "read"]) if pair[0] == "put" else "write"
            return [self._call(place, way), self._acts(number, *pair)]
        if what == "room":
            return [
                self._acts(number, "fill"),
                self._call(place, "write"),
                *([["quiet"]] if random.random() < 0.3 else []),
                self._acts(number, "room"),
            ]
        if what == "half":
            ends = [self._acts(number, "fill"), self._acts(number, "far_shut_write")]
            random.shuffle(ends)
            return [*ends, self._call(place, "write"), ["quiet"], self._acts(number, "room")]
        if what == "message":
            return self._message(number, kind)
        if what == "both_ways":
            return self._both_ways(number, kind)
        if what == "mark":
            return self._marked(place)
        if what == "close":
            return self._closed(place)
        if what == "beside":
            holds = [["hold", number, holder] for holder in ("sock", "again")]
            both = (number, kind, ["sock", "again", "again"])
            return [*holds, self._call(both, "read"), self._call(both, "read"), put]
        steps = [self._call((number, kind, ["number"]), "wait", where=0)]
        return [*steps, ["drop", number, "number"]]

    def _closed(self, place: tuple[int, str, list[str]]) -> list[Any]:
        """Somebody waits, and what he waits for is closed."""
        random = self._random
        number, kind, holders = place
        holder = random.choice(holders)
        if kind in Carrier.SOCKETS and random.random() < 0.7:
            holder = random.choice(["sock", "sock", "dup"])
        one = (number, kind, [holder])
        begin = [["hold", number, holder], ["acts", number, [["take", 499]] * 2]]
        way = "write" if kind.endswith("_out") else "read"
        if way == "write":
            begin.append(self._acts(number, "fill"))
        calls = [self._call(one, way)]
        if random.random() < 0.3:
            calls.insert(random.randrange(2), self._call(one, "wait"))
        return [*begin, *calls, self._close(one)]

    def _message(self, number: int, kind: str) -> list[Any]:
        """A large one comes to somebody who has room for it, or not quite."""
        random = self._random
        holder = random.choice(["sock", "file", "file"])
        read = self._call((number, kind, [holder]), "read")
        read[4] = random.choice(LARGE)
        put = ["acts", number, [["put", random.choice(LARGE)]]]
        return [["hold", number, holder], *[read, put][:: random.choice([1, -1])]]

    def _both_ways(self, number: int, kind: str) -> list[Any]:
        """Who has used a file one way tries the other, for which it may not be open."""
        random = self._random
        one = (number, kind, ["file"])
        is_source = kind.endswith("_in")
        both = ["read", "write"] if is_source else ["write", "read"]
        calls = [self._call(one, way) for way in (both if random.random() < 0.8 else both[::-1])]
        moves = self._acts(number, "put" if is_source else "room")
        return [["hold", number, "file"], calls[0], moves, calls[1]]

    def _marked(self, place: tuple[int, str, list[str]]) -> list[Any]:
        """A low-water mark is set: before, while, or after somebody receives."""
        random = self._random
        number, kind, holders = place
        holder = random.choice([each for each in holders if each != "number"] or ["sock"])
        begin = [["hold", number, "sock"], ["hold", number, holder]]
        where = self._where()
        plain = {"file": "receive_some", "stream": "receive_some"}.get(holder, "recv")
        steps = []
        for turn in range(random.choice([2, 3])):
            put = ["acts", number, [["put", random.choice(FEW)]]]
            read = self._call((number, kind, [holder]), "read", where)
            read[3] = random.choice([read[3], plain, plain])
            read[4] = LARGE[-1]  # all that is there
            # Who has had to wait, and finds something the next time; or in any order.
            waits = turn == 0 if random.random() < 0.7 else random.random() < 0.5
            steps += [read, put] if waits else [put, read]
        mark = ["mark", number, random.choice(["sock", "sock", *holders]), random.choice(MARKS)]
        steps.insert(random.choice([0, 2, 2, len(steps) - 1]), [*mark, self._where()])
        return [*begin, *steps, self._acts(number, "put")]
