"""How programs are drawn: which channels, which scenes, which choices of the kernel.

A program is some *scenes*, one after the other: what a few tasks do to a channel at the same
time, so that they get in each other's way. Each begins at its own moment of the program's clock,
with all its tasks in one batch of the scheduler; between them are steps that fit to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import simulation
from simulation import programs

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from by_seed import Plan

    Steps = list[list[Any]]

SCENES_MAX = 5
STRAY_MAX = 8  # steps of no scene, after each
CHANNELS_MAX = 3
KERNEL_LENGTHS = (30, 100, 300, 1000)
KERNEL_BELOW = 256

# Of steps of no scene, how likely each verb is; those of a direction share what theirs has.
STRAY = {
    "receives": 30,
    "sends": 30,
    "peek": 8,
    "readable": 4,
    "writable": 2,
    "low_water": 1,
    "rubbish": 2,
    "send_eof": 2,
    "close": 1,
    "aclose": 1,
    "leave": 1,
    "abort": 1,
    "sleep": 4,
    "nap": 2,
    "compute": 4,
    "checkpoints": 3,
    "settle": 2,
    "cancel": 10,
    "both": 6,
    "dial": 6,
    "answer": 6,
    "crowd_send": 4,
    "crowd_rush": 2,
    "crowd_take": 2,
}
KINDS = (*simulation.HARMLESS, "stale", "clock")
# A stranger takes what the model knows of.
NETWORK = tuple(kind for kind in simulation.NETWORK if kind != "strangers")
CLOSES = ("close", "aclose", "leave", "abort")


def size(random: random.Random) -> int:
    """Of a transfer: mostly small, and around what the buffers hold."""
    kind = random.random()
    if kind < 0.5:
        return random.randint(1, 64)
    if kind < 0.85:
        return random.choice([100, 1000, 4096, 8191, 8192, 8193])
    if kind < 0.97:
        return random.choice([20_000, 32_768, 70_000])
    return random.choice([131_072, 200_000])


def large(random: random.Random) -> int:
    """More than a socket's buffer takes at once, with small buffers at least."""
    return random.choice([8193, 20_000, 70_000, 131_072, 200_000])


def limit(random: random.Random) -> int:
    if random.random() < 0.6:
        return 0
    return random.choice([1, 1, 2, 3, 5, 10, 50, 500])


def wait(random: random.Random) -> int:
    """Checkpoints, or milliseconds."""
    return random.choice([0, 0, 1, 1, 2, 3, 4, 6, 9])


class Scenes:
    """Draws the steps of a program with so many ends and listeners."""

    def __init__(
        self, random: random.Random, ends: int, listeners: int, crowd: int = 0, *, closes: bool
    ) -> None:
        self.random = random
        self.crowd = crowd
        self.datagrams: list[int] = []  # ends of UDP
        self.tcp: list[int] = []  # ends of TCP
        self.seen_raw: list[int] = []  # ends whose peer does not wait, and looks when it likes
        self.ends = ends
        self.listeners = listeners
        self.steps: Steps = []
        self.number = 0
        weights = dict(STRAY)
        if not listeners:
            weights["dial"] = weights["answer"] = 0
        if not crowd:
            weights |= dict.fromkeys(programs.OF_CROWDS, 0)
        if not ends:
            weights["receives"] = weights["sends"] = 0
        if not closes:
            weights |= dict.fromkeys(CLOSES, 0)
        self.closes = closes
        self.verbs, self.weights = list(weights), list(weights.values())

    # ---- one step ------------------------------------------------------------------------

    def add(self, task: int, verb: str, place: int, size: int, limit: int = 0) -> None:
        self.steps.append([task, verb, place, size, limit])

    def receive(self) -> str:
        return self.random.choice(programs.RECEIVES)

    def send(self) -> str:
        return self.random.choice(programs.SENDS)

    def stray_verb(self) -> str:
        found = self.random.choices(self.verbs, self.weights)[0]
        return {"receives": self.receive, "sends": self.send}.get(found, lambda: found)()

    def place_and_size(self, verb: str) -> tuple[int, int]:
        random = self.random
        if verb in ("sleep", "nap", "compute", "checkpoints", "settle"):
            return 0, random.randint(0, 12)
        if verb == "cancel":
            return random.randrange(programs.TASKS_MAX), wait(random)
        if verb in programs.OF_CROWDS:
            return random.randrange(max(1, self.crowd)), size(random)
        if verb in programs.OF_LISTENERS:
            return random.randrange(max(1, self.listeners)), size(random)
        return random.randrange(max(1, self.ends)), size(random)

    def stray(self) -> None:
        random = self.random
        verb = self.stray_verb()
        step = [random.randrange(programs.TASKS_MAX), verb, *self.place_and_size(verb)]
        # (Where many wait for long, much is tried, and that takes its time.)
        patience = random.choice([1, 20, 100, 300]) if verb in programs.OF_CROWDS else limit(random)
        step.append(patience)
        if verb == "both":
            for _ in range(2):
                other = self.stray_verb()
                step.append([other, *self.place_and_size(other)])
        self.steps.append(step)

    # ---- scenes --------------------------------------------------------------------------

    def begin(self) -> list[int]:
        """Its tasks, in some order, all at the same moment."""
        tasks = list(range(programs.TASKS_MAX))
        self.random.shuffle(tasks)
        self.number += 1
        for task in tasks:
            self.add(task, "at", 0, self.number)
        return tasks

    def cancel_at_work(self) -> None:
        """Somebody receives, the peer sends, and the receive is cancelled about then."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        for _ in range(random.randint(1, 3)):
            self.add(one, self.receive(), end, size(random), limit(random))
        for _ in range(random.randint(1, 4)):
            self.add(two, "checkpoints", 0, wait(random))
            self.add(two, self.send(), end ^ 1, size(random), limit(random))
            # In the same step of the scheduler, if the sender is none that waits.
            if random.random() < 0.5:
                self.add(two, "cancel", one, random.choice([0, 0, 1]))
        for _ in range(random.randint(0, 3)):
            self.add(three, "checkpoints", 0, wait(random))
            self.add(three, "cancel", random.choice([one, two]), 0)

    def at_its_deadline(self) -> None:
        """The peer sends at the moment that is the receive's deadline."""
        random = self.random
        one, two, _, _ = self.begin()
        end = random.randrange(self.ends)
        moment = random.randint(1, 20)
        self.add(one, self.receive(), end, size(random), moment)
        self.add(one, self.receive(), end, size(random))
        self.add(two, "sleep", 0, moment)
        self.add(two, self.send(), end ^ 1, size(random))

    def flood(self) -> None:
        """More than there is room for; the send is cancelled, and the peer takes it all."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        for _ in range(random.randint(1, 3)):
            self.add(one, self.send(), end, large(random), limit(random))
        self.add(two, random.choice(["checkpoints", "sleep"]), 0, wait(random))
        for _ in range(random.randint(1, 6)):
            self.add(two, self.receive(), end ^ 1, large(random), limit(random))
        for _ in range(random.randint(0, 2)):
            self.add(three, "cancel", random.choice([one, two]), wait(random))

    def in_line(self) -> None:
        """Two in one direction, and work for both."""
        random = self.random
        one, two, three, four = self.begin()
        end = random.randrange(self.ends)
        way = random.choice([self.receive, self.receive, self.send])
        for task in (one, two):
            for _ in range(random.randint(1, 3)):
                self.add(task, "checkpoints", 0, random.choice([0, 0, 0, 1]))
                self.add(task, way(), end, size(random), limit(random))
        for _ in range(random.randint(1, 4)):
            other = self.send if way == self.receive else self.receive
            self.add(three, other(), end ^ 1, size(random))
        if self.closes and random.random() < 0.4:
            self.add(four, random.choice(CLOSES), end, 0)
        else:
            self.add(four, "cancel", random.choice([one, two]), wait(random))

    def closed_under(self) -> None:
        """One half or the other, or all of it, is closed while somebody waits there."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        verb = random.choice([self.receive(), self.receive(), self.send(), "readable"])
        if random.random() < 0.2:
            verb = "recvmsg"
        self.add(one, verb, end, random.choice([size, large])(random), limit(random))
        if random.random() < 0.5:
            self.add(two, "checkpoints", 0, wait(random))
            self.add(two, "send_fd" if verb == "recvmsg" else self.send(), end ^ 1, size(random))
        self.add(two, "checkpoints", 0, wait(random))
        how = random.choice([*CLOSES, "send_eof"]) if self.closes else "send_eof"
        self.add(two, how, random.choice([end, end ^ 1]), 0)
        self.add(three, "cancel", one, wait(random))

    def half_closed(self) -> None:
        """A peer that sends its end, and does not receive for a while, what it is sent."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        if random.random() < 0.8:
            self.add(two, "send_eof", end ^ 1, 0)
        self.add(one, "checkpoints", 0, wait(random))
        for _ in range(random.randint(1, 3)):
            self.add(one, self.send(), end, large(random), random.choice([0, 0, 20, 100]))
        for _ in range(random.randint(0, 2)):
            self.add(three, self.receive(), end, size(random), limit(random))
        self.add(two, "sleep", 0, random.choice([1, 10, 50]))
        for _ in range(random.randint(0, 5)):
            self.add(two, self.receive(), end ^ 1, large(random), random.choice([0, 5]))

    def trickle(self) -> None:
        """Little is sent, again and again, and meets whoever has just looked."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        for _ in range(random.randint(2, 6)):
            self.add(one, self.receive(), end, large(random), random.choice([0, 0, 0, 30]))
        for _ in range(random.randint(3, 10)):
            how = random.choice(["sleep", "sleep", "checkpoints"])
            self.add(two, how, 0, random.choice([0, 1, 2, 3, 5, 7, 12, 20, 28]))
            self.add(two, self.send(), end ^ 1, random.randint(1, 30))
        if random.random() < 0.5:
            self.add(three, "sleep", 0, random.randint(1, 40))
            self.add(three, "cancel", one, 0)

    def rubbish(self) -> None:
        """What cannot be received comes, again and again, and what can be behind it."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.choice(self.datagrams)
        for _ in range(3):
            self.add(one, self.receive(), end, size(random), random.choice([0, 0, 0, 120]))
        for _ in range(random.randint(2, 4)):
            often = random.random() < 0.5
            for _ in range(random.randint(0, 6 if often else 2)):
                self.add(two, "rubbish", end, size(random))
                if often:
                    self.add(two, "nap", 0, random.choice([0, 1, 3, 6, 8, 14, 17, 30]))
                else:
                    self.add(two, "sleep", 0, random.choice([1, 80, 80, 100]))
            self.add(two, "rubbish", end, size(random))
            if often:
                self.add(two, "nap", 0, random.choice([0, 6, 8, 14, 17, 30]))
            self.add(two, "checkpoints", 0, random.choice([1, 2, 3, 5]))
            self.add(two, self.send(), end ^ 1, size(random))
            self.add(two, "sleep", 0, random.choice([0, 80, 100]))
        if random.random() < 0.3:
            self.add(three, "sleep", 0, random.randint(1, 200))
            self.add(three, "cancel", one, 0)

    def robbed(self) -> None:
        """Somebody else, who has the file too, takes what has just come."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        for _ in range(random.randint(1, 3)):
            first = random.choice([self.receive(), self.receive(), self.receive(), "readable"])
            self.add(one, first, end, size(random), random.choice([0, 0, 50]))
        for _ in range(random.randint(1, 6)):
            self.add(two, random.choice(["sleep", "checkpoints"]), 0, wait(random))
            self.add(two, self.send(), end ^ 1, size(random))
            if random.random() < 0.7:
                self.add(two, "checkpoints", 0, random.choice([0, 0, 1, 2, 3]))
                self.add(two, "stranger", end, size(random))
        if random.random() < 0.3:
            self.add(three, "sleep", 0, random.randint(1, 20))
            self.add(three, "cancel", one, 0)

    def urgent(self) -> None:
        """Urgent bytes, each of which wakes who waits, between what is received."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.choice(self.tcp)
        for _ in range(random.randint(1, 4)):
            self.add(one, self.receive(), end, size(random), random.choice([0, 0, 30]))
        for _ in range(random.randint(2, 8)):
            self.add(two, random.choice(["sleep", "checkpoints"]), 0, wait(random))
            verb = "urgent" if random.random() < 0.6 else self.send()
            self.add(two, verb, end ^ 1, random.randint(1, 60))
        if random.random() < 0.3:
            self.add(three, "sleep", 0, random.randint(1, 20))
            self.add(three, "cancel", one, 0)

    def stamped(self) -> None:
        """An error queue that nobody reads, or another process, while its end receives and sends
        more than there is room for.
        """
        random = self.random
        one, two, three, _ = self.begin()
        end = random.choice([*self.tcp, *self.datagrams])
        self.add(one, "stamps", end, 0)
        for _ in range(random.randint(1, 4)):
            self.add(one, self.send(), end, random.choice([size, large])(random), limit(random))
        for _ in range(random.randint(0, 3)):
            self.add(three, "checkpoints", 0, wait(random))
            self.add(three, self.receive(), end, size(random), random.choice([0, 1, 30]))
        for _ in range(random.randint(1, 4)):
            self.add(two, random.choice(["sleep", "checkpoints"]), 0, wait(random))
            self.add(two, random.choice([self.send, self.receive])(), end ^ 1, size(random), 20)
            if random.random() < 0.2:
                self.add(two, "take_stamps", end, size(random))

    def refused(self) -> None:
        """Little is sent, step by step, to one who is refused again and again: see `draw`."""
        random = self.random
        one, two, _, _ = self.begin()
        end = random.randrange(self.ends)
        for _ in range(random.randint(2, 5)):
            self.add(one, self.receive(), end, large(random))
        for _ in range(random.randint(4, 12)):
            self.add(two, "checkpoints", 0, random.choice([0, 1, 1, 2, 3]))
            self.add(two, self.send(), end ^ 1, random.randint(1, 30))

    def let_go(self) -> None:
        """Somebody receives, and closes at once; the peer looks in the same moment."""
        random = self.random
        one, two, _, _ = self.begin()
        end = random.choice(self.seen_raw or [random.randrange(self.ends)])
        if end in self.tcp and random.random() < 0.5:
            # What its error queue has is told for as long as nobody reads it.
            self.add(one, "stamps", end, 0)
            self.add(one, "send", end, random.randint(1, 30))
        for _ in range(random.randint(1, 3)):
            self.add(one, self.receive(), end, large(random), random.choice([0, 0, 20]))
        self.add(one, "close", end, 0)
        self.add(one, "receive", end ^ 1, 64, 1)
        for _ in range(random.randint(2, 4)):
            self.add(two, random.choice(["sleep", "checkpoints"]), 0, wait(random))
            self.add(two, self.send(), end ^ 1, random.randint(1, 30))

    def readiness(self) -> None:
        """Somebody waits until there is something to receive, and receives it."""
        random = self.random
        one, two, three, _ = self.begin()
        end = random.randrange(self.ends)
        for _ in range(random.randint(1, 3)):
            self.add(one, random.choice(["readable", "writable"]), end, 0, limit(random))
            self.add(one, self.receive(), end, size(random), 1)
        for _ in range(random.randint(1, 3)):
            self.add(two, "checkpoints", 0, wait(random))
            self.add(two, self.send(), end ^ 1, size(random))
        self.add(three, "cancel", one, wait(random))

    def dialling(self) -> None:
        """More dial than the listener's queue takes, some give up, and some are answered."""
        random = self.random
        one, two, three, four = self.begin()
        place = random.randrange(self.listeners)
        for task in (one, two, three):
            for _ in range(random.randint(0, 2)):
                self.add(task, "dial", place, size(random), random.choice([0, 0, 20, 100, 1000]))
        self.add(four, random.choice(["checkpoints", "sleep"]), 0, wait(random))
        for _ in range(random.randint(0, 5)):
            self.add(four, "answer", place, 0, random.choice([0, 0, 1, 50]))
            if random.random() < 0.4:
                self.add(four, "cancel", random.choice([one, two, three]), wait(random))

    def crowded(self) -> None:
        """More send to one receiver than it has room for, which it makes now and then."""
        random = self.random
        one, two, three, four = self.begin()
        rush = random.choice([self.crowd - 1, random.randrange(self.crowd)])
        patience = random.choice([0, 0, 100, 300, 1000])
        self.add(one, "crowd_rush", 0, rush, patience)
        for _ in range(random.randint(0, 4)):
            self.add(two, "crowd_send", random.randrange(self.crowd), size(random), limit(random))
        # Nothing is taken for a while, which is long where they give up, or shorter.
        self.add(three, "sleep", 0, random.choice([1, 2, 5, 10, 20, 50, 200, 700]))
        for _ in range(random.randint(0, 8)):
            self.add(three, "crowd_take", 0, random.choice([0, 0, 1, 5, 10, 31]))
            self.add(three, "sleep", 0, random.choice([0, 1, 2, 5, 20, 40, 100]))
        for _ in range(random.randint(0, 2)):
            self.add(four, "sleep", 0, random.choice([1, 5, 20, 40, 100]))
            self.add(four, "cancel", random.choice([one, two]), 0)
        if not patience or random.random() < 0.5:
            for _ in range(2 + self.crowd // 10):
                self.add(three, "crowd_take", 0, 31)
                self.add(three, "sleep", 0, 40)

    def scenes_of_ends(self) -> list[Callable[[], None]]:
        scenes: list[Callable[[], None]] = [
            *(self.cancel_at_work, self.at_its_deadline, self.flood, self.in_line),
            *(self.closed_under, self.readiness, self.half_closed, self.trickle),
        ]
        scenes += [self.refused, self.robbed]
        if self.closes:
            scenes += [self.let_go] * (3 if self.seen_raw else 1)
        if self.tcp:
            scenes.append(self.urgent)
        if self.tcp or self.datagrams:
            scenes.append(self.stamped)
        if self.datagrams:
            scenes += [self.rubbish] * 3
        return scenes

    def draw(self) -> Steps:
        scenes: list[Callable[[], None]] = []
        if self.ends:
            scenes += self.scenes_of_ends()
        if self.listeners:
            scenes += [self.dialling] * (3 if self.ends else 1)
        if self.crowd:
            scenes += [self.crowded] * (3 if self.ends else 1)
        for _ in range(self.random.randint(1, SCENES_MAX)):
            self.random.choice(scenes)()
            for _ in range(self.random.randint(0, STRAY_MAX)):
                self.stray()
        return self.steps


# ---- the kernel --------------------------------------------------------------------------


def kernel(random: random.Random) -> list[int]:
    """The kernel's choices: none, a few, or at every turn; or the same some times in a row."""
    odd = random.choice([0.0, 0.0, 0.02, 0.05, 0.2, 0.5, 1.0])
    if not odd:
        return []
    if random.random() < 0.3:
        found: list[int] = []
        while len(found) < KERNEL_LENGTHS[-1]:
            found += [0] * random.choice([0, 1, 3, 10, 30])
            found += [random.choice([1, 1, 2, random.randrange(KERNEL_BELOW)])] * random.randint(
                2, 12
            )
        return found[: random.choice(KERNEL_LENGTHS)]
    return [
        random.randrange(1, KERNEL_BELOW) if random.random() < odd else 0
        for _ in range(random.choice(KERNEL_LENGTHS))
    ]


def in_a_row(random: random.Random) -> list[int]:
    """What is not plain, so many times in a row, in one way or in two."""
    ways = random.choice([1, 2])
    found: list[int] = []
    while len(found) < KERNEL_LENGTHS[1]:
        found += [0] * random.choice([0, 1, 2, 5, 10, 20])
        found += [random.randint(1, ways) for _ in range(random.randint(2, 8))]
    return found


def fatal(random: random.Random) -> list[int]:
    """An enter that fails for good, after some that do not."""
    return [0] * random.randrange(random.choice([20, 80])) + [random.choice([1, 2, 3, 3])]


def kinds(random: random.Random) -> list[str]:
    """Which of them: where all goes wrong at once less is found than where one thing does."""
    if random.random() < 0.5:
        return random.sample(KINDS, random.randint(1, 3))
    rare = ("stale", "clock")
    return [kind for kind in KINDS if random.random() < (0.3 if kind in rare else 0.7)]


def draw(random: random.Random) -> Plan:
    """A program.

    The machine's own sockets carry the bytes, or the network without a kernel. Of the machine's
    TCP and UDP a segment comes when a soft interrupt runs, which does not replay: no such here.
    """
    network = random.random() < 0.7
    channels_of = [
        kind for kind in programs.KINDS if network or not kind.startswith(("tcp", "udp"))
    ]
    listeners_of = programs.LISTENERS if network else ("unix",)
    channels = [random.choice(channels_of) for _ in range(random.randint(0, CHANNELS_MAX))]
    listeners = [random.choice(listeners_of)] if random.random() < 0.25 or not channels else []
    crowd = random.choice([2, 12, 20, 64]) if random.random() < 0.15 else 0
    scenes = Scenes(random, 2 * len(channels), len(listeners), crowd, closes=random.random() < 0.6)
    udp = [number for number, kind in enumerate(channels) if kind == "udp"]
    scenes.datagrams = [2 * number + side for number in udp for side in (0, 1)]
    tcp = [number for number, kind in enumerate(channels) if kind.startswith("tcp")]
    scenes.tcp = [2 * number + side for number in tcp for side in (0, 1)]
    raw = ("unix-raw", "fd-raw", "tcp-raw")
    scenes.seen_raw = [2 * number for number, kind in enumerate(channels) if kind in raw]
    options = {
        "order": random.randrange(1000),
        "channels": channels,
        "rooms": [random.randrange(len(programs.ROOMS)) for _ in channels],
        "listeners": listeners,
        "backlog": random.choice([0, 0, 1, 3, 100]),
        "crowd": crowd,
        "kinds": kinds(random),
        "switches": switches(random),
        "network": network,
        "network_kinds": [kind for kind in NETWORK if random.random() < 0.5],
    }
    plan: Plan = {"options": options, "steps": scenes.draw(), "kernel": kernel(random)}
    if random.random() < 0.08:
        # The same attempt is refused again and again, and the program may be held up meanwhile.
        options["kinds"] = random.choice([["refuse"], ["refuse", "clock"]])
        plan["kernel"] = in_a_row(random)
    if random.random() < 0.08:
        # The run ends there: so it comes after some plain choices, and alone.
        options["kinds"] = ["fatal"]
        plan["kernel"] = fatal(random)
    return plan


# (A probe, which older kernels lack, and what a ring is set up with, are asked for once: tests of
# their own have them. Data that a reset loses, ends and cancels that are missed are what multishot
# receives do: sim-gain's.)
SWITCHES = (
    *("accept_waits", "pipes_without_nowait", "no_inq_of_unix", "refusal_takes_buffer"),
    *("small_cq", "no_multishot_receive"),
)


def switches(random: random.Random) -> dict[str, bool]:
    """Of older kernels: mostly none."""
    if random.random() < 0.7:
        return {}
    return {random.choice(SWITCHES): True}
