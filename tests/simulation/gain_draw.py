"""How programs with callback servers are drawn: options, and what is done to servers.

A scene is what a few tasks do at the same time, as in `programs_draw`, whose scenes of two ends
come in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import simulation
from simulation import programs, programs_draw, programs_gain
from simulation.gain_ends import ANSWERS, TAKES
from simulation.gain_handlers import HANDLERS
from simulation.programs_draw import KERNEL_BELOW, KERNEL_LENGTHS, large, limit, size, wait

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from by_seed import Plan

CHANNELS_MAX = 3
SCENES_MAX = 3
STRAY_MAX = 8  # steps of no scene, after each
WRITING = ("s_write", "s_writev", "s_read_from", "s_task")
LONG_MS = 6500  # longer than anything takes

# Of steps of no scene, how likely each verb is.
STRAY = {
    "clients": 100,
    **dict.fromkeys(WRITING, 6),
    **dict.fromkeys(("s_pause", "s_resume", "s_drain", "s_limit", "s_deadline", "s_idle"), 3),
    **dict.fromkeys(("s_close", "s_abort", "s_send_eof"), 3),
    "visit": 14,
    "steal": 3,
    "steal_bytes": 2,
    "blocking": 4,
    "spoil": 2,
    "urgent": 3,
    "reset": 2,
    "restart": 1,
    "stop": 1,
}
NETWORK = programs_draw.NETWORK
# On a kernel without one of these there is no ring, and no server.
NO_RING = ("no_defer_taskrun", "no_single_issuer", "no_probe")
SWITCHES = tuple(name for name in simulation.Switches.__dataclass_fields__ if name not in NO_RING)


class Scenes:
    """Draws the steps of a program with so many channels."""

    def __init__(self, random: random.Random, kinds: list[str], *, closes: bool) -> None:
        self.random = random
        self.kinds = kinds
        self.others = programs_draw.Scenes(random, 2 * len(kinds), 0, closes=closes)
        self.closes = closes
        self.add = self.others.add
        self.begin = self.others.begin
        self.receive, self.send = self.others.receive, self.others.send
        self.verbs, self.weights = list(STRAY), list(STRAY.values())

    def client(self, *networks: str) -> int:
        """The end of a channel's client."""
        chosen = [
            number
            for number, kind in enumerate(self.kinds)
            if not networks or kind.split("-")[1] in networks
        ]
        return 2 * self.random.choice(chosen or range(len(self.kinds)))

    def has(self, network: str) -> bool:
        return any(kind.split("-")[1] == network for kind in self.kinds)

    def place(self) -> int:
        return self.random.randrange(12)

    def stray(self) -> None:
        random = self.random
        verb = random.choices(self.verbs, self.weights)[0]
        if verb == "clients":
            self.others.stray()
            return
        task = random.randrange(programs.TASKS_MAX)
        if verb == "urgent":
            self.add(task, verb, self.client("tcp"), size(random), limit(random))
        elif verb in ("steal_bytes", "reset"):
            self.add(task, verb, self.client("tcp") // 2, size(random), limit(random))
        elif verb.startswith("s_"):
            self.add(task, verb, self.client() + 1, size(random), limit(random))
        else:
            self.add(task, verb, self.place(), size(random), limit(random))

    # ---- scenes --------------------------------------------------------------------------

    def served_and_closed(self) -> None:
        """A server writes and closes, in one step; the client sends, receives, or does not."""
        random = self.random
        one, two, three, _ = self.begin()
        end = self.client()
        if random.random() < 0.5:
            self.add(one, self.send(), end, size(random))
            self.add(two, "checkpoints", 0, wait(random))
        for _ in range(random.randint(1, 3)):
            self.add(two, random.choice(WRITING), end + 1, random.choice([size, large])(random))
        if random.random() < 0.3:
            self.add(two, "s_drain", end + 1, 0)
        if random.random() < 0.8:
            how = random.choice(["s_close", "s_close", "s_send_eof", "s_abort"])
            self.add(two, how, end + 1, 0)
        if random.random() < 0.5:
            self.add(two, random.choice(["s_close", "s_abort"]), end + 1, 0)
        self.add(three, random.choice(["checkpoints", "sleep"]), 0, wait(random))
        for _ in range(random.randint(0, 6)):
            self.add(three, self.receive(), end, large(random), random.choice([0, 5, 50]))

    def paused(self) -> None:
        """Reading stops and goes on while the client sends, and sends its end."""
        random = self.random
        one, two, three, _ = self.begin()
        end = self.client()
        for _ in range(random.randint(1, 4)):
            self.add(one, self.send(), end, random.choice([size, large])(random), limit(random))
            self.add(one, "checkpoints", 0, wait(random))
        if random.random() < 0.4:
            self.add(one, "send_eof", end, 0)
        for _ in range(random.randint(1, 4)):
            self.add(two, "s_pause", end + 1, 0)
            self.add(two, random.choice(["checkpoints", "sleep"]), 0, wait(random))
            self.add(two, "s_resume", end + 1, 0)
            self.add(two, "checkpoints", 0, wait(random))
        for _ in range(random.randint(1, 3)):
            self.add(three, random.choice(WRITING[:3]), end + 1, large(random))
        self.add(three, "s_drain", end + 1, 0, random.choice([20, 100]))
        for _ in range(random.randint(0, 3)):
            self.add(three, self.receive(), end, large(random), random.choice([0, 5, 50]))

    def deadlines(self) -> None:
        """They are set, moved, met and not met."""
        random = self.random
        one, two, _, _ = self.begin()
        end = self.client()
        for _ in range(random.randint(1, 4)):
            verb = random.choice(["s_deadline", "s_idle"])
            self.add(two, verb, end + 1, random.choice([1, 5, 20, 50]))
            self.add(two, "sleep", 0, random.choice([0, 1, 4, 10, 30]))
        for _ in range(random.randint(0, 4)):
            self.add(one, random.choice([self.send(), self.receive()]), end, size(random), 10)
            self.add(one, "sleep", 0, random.choice([0, 1, 4, 10, 30]))

    def gathered(self) -> None:
        """Input comes, now and much later, whether or not anybody takes it."""
        random = self.random
        one, _, three, _ = self.begin()
        end = self.client()
        for _ in range(random.randint(2, 6)):
            for _ in range(random.randint(1, 8)):
                self.add(one, self.send(), end, random.choice([size, size, large])(random), 500)
            self.add(one, "sleep", 0, random.choice([1, 20, LONG_MS, LONG_MS]))
        if random.random() < 0.3:
            self.add(three, "sleep", 0, 2 * LONG_MS)
            self.add(three, random.choice(["s_resume", "s_limit"]), end + 1, large(random))

    def visits(self) -> None:
        """More come than there may be places; some are stolen, and the server starts anew."""
        random = self.random
        tasks = self.begin()
        place = self.place()
        for task in tasks[:3]:
            for _ in range(random.randint(1, 4)):
                where = place if random.random() < 0.7 else self.place()
                self.add(task, "visit", where, size(random), random.choice([0, 0, 0, 20]))
                self.add(task, random.choice(["checkpoints", "sleep"]), 0, wait(random))
        for _ in range(random.randint(0, 2)):
            what = random.choice(["steal", "steal", "blocking", "blocking", "restart"])
            if what == "restart" and random.random() < 0.6:
                what = "blocking"
            self.add(tasks[3], what, place, size(random))
            self.add(tasks[3], random.choice(["checkpoints", "sleep"]), 0, wait(random))

    def shut_at_last(self) -> None:
        """Somebody shuts a listener down; what comes of it lasts until the end."""
        random = self.random
        one, two, _, _ = self.begin()
        place = self.place()
        self.add(one, "visit", place, size(random))
        self.add(one, "checkpoints", 0, wait(random))
        self.add(one, "shut", place, size(random))
        self.add(two, "visit", place, size(random), random.choice([0, 20]))

    def gone(self) -> None:
        """A client sends and goes, with a reset or its end right behind its last bytes."""
        random = self.random
        one, two, _, _ = self.begin()
        end = self.client("tcp")
        for _ in range(random.randint(0, 2)):
            self.add(one, "checkpoints", 0, wait(random))
            self.add(one, self.send(), end, random.choice([size, large])(random), 500)
        if random.random() < 0.3:
            self.add(one, "urgent", end, 0)
            self.add(one, self.send(), end, size(random), 500)
        if random.random() < 0.5:
            self.add(one, "sleep", 0, random.choice([0, 1, 20]))
            self.add(one, self.send(), end, size(random), 500)
        if random.random() < 0.3:
            self.add(one, random.choice(["checkpoints", "sleep"]), 0, wait(random))
        how = random.choice(["reset", "reset", "send_eof", "close"])
        if not self.closes and how != "send_eof":
            how = "send_eof"
        self.add(one, how, end // 2 if how == "reset" else end, 0)
        if random.random() < 0.4:
            self.add(two, random.choice([*WRITING, "s_pause"]), end + 1, size(random))

    def messages(self) -> None:
        """Clients of UDP ask side by side; one may go, and others take what it was sent."""
        random = self.random
        tasks = self.begin()
        for task in tasks[:3]:
            end = self.client("udp")
            for _ in range(random.choice([1, 2, 3, 5, 14])):
                self.add(task, self.send(), end, random.choice([20, 200, 900, 900]))
                if random.random() < 0.4:
                    self.add(task, self.receive(), end, 2000, 6000)
            if self.closes and random.random() < 0.3:
                self.add(task, "close", end, 0)
            for _ in range(random.randint(0, 3)):
                self.add(task, self.receive(), end, 2000, 6000)
        if random.random() < 0.3:
            what = random.choice(["blocking", "spoil", "steal"])
            self.add(tasks[3], what, 3 * random.randrange(2), 3 * size(random))

    def asked_on(self) -> None:
        """Clients of UDP ask again and again, before they are answered."""
        random = self.random
        for task in self.begin()[: random.choice([1, 2, 2])]:
            end = self.client("udp")
            for _ in range(random.randint(5, 10)):
                self.add(task, self.send(), end, random.choice([20, 200, 900, 900, 900]))
                pause = random.choice(["checkpoints", "nap", "sleep", "sleep"])
                self.add(task, pause, 0, random.choice([0, 1, 1, 3, 5, 20, 40]))

    def draw_asked(self) -> list[list[Any]]:
        for _ in range(self.random.randint(1, 3)):
            self.asked_on()
        return self.others.steps

    def draw(self) -> list[list[Any]]:
        scenes: list[Callable[[], None]] = [
            *(self.served_and_closed, self.paused) * 2,
            *(self.gathered, self.visits) * 2,
            self.deadlines,
            *self.others.scenes_of_ends(),
        ]
        if self.has("tcp"):
            scenes += [self.gone] * 4
        if self.has("udp"):
            scenes += [self.messages] * 4
        for _ in range(self.random.randint(1, SCENES_MAX)):
            self.random.choice(scenes)()
            for _ in range(self.random.randint(0, STRAY_MAX)):
                self.stray()
        if self.random.random() < 0.25:
            self.shut_at_last()
        return self.others.steps


def switches(random: random.Random) -> dict[str, bool]:
    """Of older kernels: mostly none."""
    if random.random() < 0.5:
        return {}
    return {random.choice(SWITCHES): True}


def draw(random: random.Random) -> Plan:
    """A program whose channels are connections to callback servers."""
    network = random.random() < 0.8
    kinds = [
        kind for kind in programs_gain.KINDS if network or not kind.endswith(("tcp", "udp", "raw"))
    ]
    channels = [random.choice(kinds) for _ in range(random.randint(1, CHANNELS_MAX))]
    closes = random.random() < 0.6
    rare = random.random() < 0.5  # few of the network's choices, so that no byte is excused
    options = {
        "order": random.randrange(1000),
        "channels": channels,
        "rooms": [random.choice([0, 0, 1, 2]) for _ in channels],
        "kinds": programs_draw.kinds(random),
        "switches": switches(random),
        "network": network,
        "network_kinds": [
            kind
            for kind in NETWORK
            if random.random() < (0.5 if kind in simulation.NETWORK_HARMLESS or not rare else 0.1)
        ],
        "handler": random.randrange(len(HANDLERS)),
        "in_threads": random.choice([0, 0, 0, 0, 1, 2]),
        "takes": [random.randrange(TAKES) for _ in channels],
        "answers": [random.randrange(ANSWERS) for _ in channels],
        "together": random.random() < 0.5,
        "two_addresses": random.random() < 0.3,
        "read_buffer_limit": random.choice([0, 0, 1000, 20_000]),
        "write_high_water": random.choice([0, 0, 1000, 20_000]),
        "max_connections": random.choice([0, 0, 0, 1, 2, 3]),
        "tick": random.choice([0, 0, 700, 20_000]),
        "close_timeout": random.choice([0, 0, 500]),
        "stuck_input_timeout": random.choice([0, 0, 300, 60_000]),
        "write_strict": random.random() < 0.2,
        "udp_send_buffer": random.choice([0, 0, 4608]),
    }
    scenes = Scenes(random, channels, closes=closes)
    if "served-udp" in channels and random.random() < 0.25:
        # A slow line, on which less is under way than the server answers, and nothing is lost.
        options |= {
            "rooms": [0 for _ in channels],
            "kinds": ["network"],
            "network_kinds": ["delays"],
            "udp_send_buffer": 4608,
        }
        odd = random.choice([0.1, 0.3, 1.0])
        choices = [random.randrange(KERNEL_BELOW) for _ in range(KERNEL_LENGTHS[-1])]
        kernel = [choice if random.random() < odd else 0 for choice in choices]
        return {"options": options, "steps": scenes.draw_asked(), "kernel": kernel}
    plan: Plan = {
        "options": options,
        "steps": scenes.draw(),
        "kernel": programs_draw.kernel(random),
    }
    if random.random() < 0.05:
        options["kinds"] = ["fatal"]
        plan["kernel"] = programs_draw.fatal(random)
    return plan
