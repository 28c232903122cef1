"""Drawing a plan: which places, and what is done there, in which order and how often.

Every choice is made of what there is: kinds, ways, acts, options. What the choices lean towards
is that something happens at all: few places, so that what is done meets; small buffers, so that
they fill; the same small thing many times, since much goes wrong only then.
"""

from __future__ import annotations

import random as random_module
from typing import TYPE_CHECKING, Any

from peers import ways
from peers.connects import Connects
from peers.kinds import KINDS
from peers.listeners import Listener
from peers.messages import Messages
from peers.places import OPTIONS
from peers.streams import SOCKETS, Stream

if TYPE_CHECKING:
    from by_seed import Plan

Random = random_module.Random

# Acts of a rival's that take no time.
BETWEEN = ("take", "take_there", "put", "put_there", "fill")

SMALL = (1, 2, 7, 64, 100, 511, 1000)
LARGE = (4096, 8191, 8192, 8193, 20_000, 32_768, 65_536, 131_072, 300_000)
BUFFERS = (0, 0, 1, 4096, 16_384, 65_536)


def size(random: Random) -> int:
    return random.choice(SMALL if random.random() < 0.6 else LARGE)


def times(random: Random) -> int:
    """How often: mostly some, sometimes hundreds."""
    return int(2 ** random.uniform(1, 8.3))


class Draw:
    """One plan."""

    def __init__(self, random: Random, door: str) -> None:
        self._random = random
        self._door = door
        self._places: list[tuple[int, str, str]] = []
        # What a place of this kind can do is asked of one that was never opened.
        self._examples: dict[str, Any] = {}

    def plan(self) -> Plan:
        random = self._random
        options: dict[str, Any] = {}
        if random.random() < 0.15:
            options["host"] = (
                "thread" if self._door == "anyio" else random.choice(["thread", "guest"])
            )
        if random.random() < 0.6:
            options["stranger"] = True
        if random.random() < 0.08:
            options["rounds"] = 8
        steps = []
        for number in range(random.choice([1, 1, 2, 3, 4])):
            steps.append(self._open(number))
            kind = self._places[-1][1]
            if random.random() < 0.4:
                steps += [self._option(number) for _ in range(random.choice([1, 1, 2, 3]))]
            if self._has_flags(self._places[-1]) and random.random() < 0.4:
                steps += self._look_ahead(self._places[-1])
            if random.random() < 0.25 and self._example(kind).rival_acts():
                steps += self._between(self._places[-1])
            elif random.random() < 0.1 and "block" in self._example(kind).rival_acts():
                steps.append(["rival", number, "block", 0])
        for _ in range(random.choice([8, 15, 25, 40])):
            steps += self._step()
        steps.insert(random.randrange(len(steps) // 2, len(steps) + 1), ["quiet", 60])
        if random.random() < 0.6:
            steps.append(["quiet", 60])
        return {"options": options, "steps": steps, "kernel": []}

    def _open(self, number: int) -> list[Any]:
        random = self._random
        kind = random.choice(
            [
                *Stream.KINDS,
                "tcp",
                "unix",
                *Messages.KINDS,
                "unix_open",
                *Listener.KINDS,
                *Connects.KINDS,
            ]
        )
        shape = random.choice(["socket", "stream", "file"])
        self._places.append((number, kind, shape))
        return ["open", number, kind, shape, random.choice(BUFFERS)]

    def _step(self) -> list[Any]:
        """One or some that belong together."""
        random = self._random
        x = random.random()
        if x < 0.12:
            return [["tick", random.choice([1, 1, 2, 5])]]
        if x < 0.15:
            return [["sleep", random.choice([1, 3, 10])]]
        if x < 0.19:
            return [["cancel", random.randrange(5)]]
        place = random.choice(self._places)
        if x < 0.29:
            call = [self._call(place), ["tick", 1]] if random.random() < 0.6 else []
            return [*call, ["again", times(random), self._repeated(place)]]
        if x < 0.34 and "greedy" in self._example(place[1]).rival_acts():
            return self._both_wait(place)
        if x < 0.38 and self._example(place[1]).rival_acts():
            return self._between(place)
        step = self._at(place, random.random())
        late = random.random()
        # Now and then the loop is late to see what has happened.
        return [step, *([["tick", 1]] if late < 0.6 else [["busy", 25]] if late < 0.7 else [])]

    def _comes(self, kind: str) -> str:
        """An act of the peer's that calls of ours wait for."""
        pairs = self._example(kind).back_and_forth()
        return str(self._random.choice(pairs)[0][1]) if pairs else "send"

    def _between(self, place: tuple[int, str, str]) -> list[Any]:
        """Somebody acts after each look of ours at the file, before we do what it was for."""
        random = self._random
        number, kind, _ = place
        acts = [act for act in self._example(kind).rival_acts() if act in BETWEEN]
        act = "flip" if random.random() < 0.5 else random.choice(acts)
        steps: list[Any] = [["between", number, act, size(random), times(random)]]
        if act == "flip":
            # Who has seen once that the file may block has no need of another look.
            comes = ["peer", number, self._comes(kind), size(random)]
            waits = [*self._call(place)[:-2], "", 0]
            steps[:0] = [waits, ["tick", 2], ["rival", number, "block", 0], comes, ["sleep", 1]]
        calls = [self._call(place) for _ in range(random.choice([1, 2, 3]))]
        again = [*calls, ["tick", 1], self._other(place), ["tick", 1], ["cancel", 0]]
        return [*steps, ["again", int(2 ** random.uniform(1, 5)), again]]

    def _has_flags(self, place: tuple[int, str, str]) -> bool:
        """Whether it is a stream, and what receives from it has flags."""
        _, kind, shape = place
        return kind in SOCKETS and shape != "file" and self._door == "trio"

    def _look_ahead(self, place: tuple[int, str, str]) -> list[Any]:
        """We look at what comes, and take nothing: of some there is nothing to see yet."""
        random = self._random
        number = place[0]
        comes = random.choice(["urgent", "urgent", "urgent", "send"])
        option = "oobinline" if random.random() < 0.6 else random.choice(list(OPTIONS))
        return [
            ["call", number, random.choice(list(ways.SOCKET_READS)), size(random), "peek", "", 0],
            ["tick", 2],
            ["peer", number, comes, size(random)],
            ["sleep", random.choice([1, 3, 10])],
            ["option", number, option, size(random)],
            ["quiet", 40],
        ]

    def _both_wait(self, place: tuple[int, str, str]) -> list[Any]:
        """We wait for something, and so does somebody else; it comes, and we have no time."""
        random = self._random
        number, kind, _ = place
        comes = self._comes(kind)
        then = [["busy", 25], ["cancel", random.randrange(5)], ["tick", 1]]
        return [
            self._call(place),
            ["tick", 2],
            ["rival", number, "greedy", 0],
            ["peer", number, comes, size(random)],
            random.choice(then),
        ]

    def _repeated(self, place: tuple[int, str, str]) -> list[Any]:
        """What gives something to wait for, what takes it away again, or both; and a turn."""
        random = self._random
        number, kind, _ = place
        pairs = self._example(kind).back_and_forth()
        if pairs and random.random() < 0.5:
            steps = [[verb, number, act, size(random)] for verb, act in random.choice(pairs)]
        else:
            steps = [self._other(place) for _ in range(random.choice([1, 2, 2, 3]))]
        if random.random() < 0.25:
            steps.append(self._call(place))
        if random.random() < 0.9:
            steps.append(["tick", 1])
        return steps

    def _at(self, place: tuple[int, str, str], x: float) -> list[Any]:
        random = self._random
        number, kind, _ = place
        if x < 0.45:
            return self._call(place)
        if x < 0.86:
            return self._other(place)
        if x < 0.94:
            return self._option(number)
        if x < 0.97 and KINDS[kind] is Stream:
            return ["shut", number, random.choice(["read", "write"])]
        return ["close", number, random.choice(["close", "aclose", "leave", "detach"])]

    def _option(self, number: int) -> list[Any]:
        return ["option", number, self._random.choice(list(OPTIONS)), size(self._random)]

    def _other(self, place: tuple[int, str, str]) -> list[Any]:
        """An act of the peer's or a rival's."""
        random = self._random
        number, kind, _ = place
        example = self._example(kind)
        rivals = example.rival_acts()
        if rivals and random.random() < 0.35:
            return ["rival", number, random.choice(rivals), size(random)]
        return ["peer", number, random.choice(example.acts()), size(random)]

    def _example(self, kind: str) -> Any:
        if kind not in self._examples:
            example = object.__new__(KINDS[kind])
            example.kind = kind
            self._examples[kind] = example
        return self._examples[kind]

    def _call(self, place: tuple[int, str, str]) -> list[Any]:
        random = self._random
        number, kind, shape = place
        name, reads = self._name(kind, shape)
        flag = ""
        if random.random() < 0.3:
            flag = random.choice([*(ways.READ_FLAGS if reads else ways.WRITE_FLAGS), "peek"])
        x = random.random()
        cancel, ms = "", 0
        if x < 0.05:
            cancel = "before"
        elif x < 0.2:
            cancel, ms = "deadline", random.choice([0, 0, 1, 3, 10])
        return ["call", number, name, size(random), flag, cancel, ms]

    def _name(self, kind: str, shape: str) -> tuple[str, bool]:
        """A call that such a place may have, and whether it receives."""
        random = self._random
        what = KINDS[kind]
        if what is Connects:
            return random.choice(Connects.names(kind, self._door)), False
        if what is Listener:
            return random.choice(Listener.names(kind)), True
        if random.random() < 0.12:
            reads = random.random() < 0.5
            return ("wait_readable" if reads else "wait_writable"), reads
        if self._door == "trio" and kind in (*SOCKETS, *Messages.KINDS) and random.random() < 0.06:
            return "accept", True
        names = self._names(kind, shape)
        reads = random.random() < 0.5
        if not names[not reads]:
            reads = not reads
        return random.choice(names[not reads]), reads

    def _names(self, kind: str, shape: str) -> tuple[list[str], list[str]]:
        """Its ways to read and to write."""
        sockets = kind in SOCKETS or KINDS[kind] is Messages
        if self._door == "anyio" and sockets and kind != "seqpacket":
            if KINDS[kind] is Messages:
                targets = ["_0", "_1"] if kind.endswith("_open") else [""]
                return ["receive_packet"], [f"anyio_send{target}" for target in targets]
            fds = kind == "unix"
            return (
                ["receive", *(["receive_fds"] if fds else [])],
                ["anyio_send", *(["anyio_send_fds"] if fds else [])],
            )
        if KINDS[kind] is Messages:
            if kind.endswith("_open"):
                return list(ways.SOCKET_READS), [
                    f"{how}_{target}" for how in ("sendto", "sendmsg") for target in (0, 1)
                ]
            return list(ways.SOCKET_READS), [*ways.SOCKET_WRITES, "sendmsg_descriptor"]
        if not sockets or shape == "file":
            reads = [] if kind.endswith("_out") else list(ways.TRIO_STREAM_READS)
            writes = [] if kind.endswith("_in") else list(ways.TRIO_STREAM_WRITES)
            return reads, writes
        if shape == "stream":
            return (
                [*ways.TRIO_STREAM_READS, *ways.SOCKET_READS],
                [*ways.TRIO_STREAM_WRITES, "wait_send_all_might_not_block"],
            )
        writes = [*ways.SOCKET_WRITES, *(["sendmsg_descriptor"] if kind == "unix" else [])]
        return list(ways.SOCKET_READS), writes
