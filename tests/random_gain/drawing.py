"""A plan by a seed.

It is drawn with moods: a plan has few peers and much to do for each, or many with little; its
peers are gentle or rude; its sizes are small, or those at which something overflows; all are
datagrams; a stranger has the server's sockets, too. What one peer does comes in bursts, since
what it does in a row is what meets a server in one moment; and so does what some peers do while
their worker is busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

    from by_seed import Plan

SIZES = (1, 2, 7, 100, 1000, 4096, 8192, 16_383, 16_384, 16_385, 40_000, 65_536, 100_000)
FLOOD = 600_000
ROUNDS = 5
CROWD_SIZE = 150_000  # bytes: about what a socket takes that nobody reads from
BUFFERS = (0, 0, 0, 2048, 8192, 40_000, 300_000)
LIMITS = (1, 100, 4096, 5000, 16_384, 65_536, 65_536, 65_536, 65_536)
STREAMS = ("tcp4", "tcp4", "tcp4", "tcp6", "unix", "abstract", "tcp", "every")
UDPS = ("udp4", "udp4", "udp", "udp6")
ASYNC = ("on_accept", "on_read", "on_write", "on_eof", "on_close")

READS = ("next", "read", "into", "discard", "peek", "file", "too_much")
WRITES = ("write", "write", "writev", "read_from")
DEADLINES = ("set_read_deadline", "set_write_deadline", "set_deadline", "set_idle_timeout")


class Drawing:
    """One plan as it is drawn."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.steps: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.sizes = random.choice([SIZES, SIZES[:6], SIZES[4:], SIZES])
        self.rude = random.random() < 0.5
        self.strange = random.random() < 0.3
        self.all_udp = random.random() < 0.12
        self.streams = 0
        self.udps = 0
        self.listeners: list[str] = []

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def choice(self, *values: Any) -> Any:
        return self.random.choice(values)

    def size(self) -> int:
        if self.chance(0.02):
            return FLOOD
        return int(self.random.choice(self.sizes))

    def small(self) -> int:
        return int(self.random.choice(SIZES[:8]))

    # ---- options -----------------------------------------------------------------------------

    def draw_options(self) -> None:
        some: dict[str, Any] = {}
        self._draw_place(some)
        self._draw_handler(some)
        self._draw_sizes(some)
        self._draw_times(some)
        some["end"] = self.choice("peers", "peers", "peers", "shutdown", "abort", "cancel")
        some["drain_ms"] = self.choice(0, 20, 1000, 5000)
        some["idle_at_end"] = self.chance(0.6)
        some["collects"] = self.chance(0.1)
        if self.chance(0.05):
            some["rounds"] = ROUNDS
            # Where a socket has every address, and another port in each round, what its datagrams
            # came to is remembered: a cache, and no leak.
            some["listeners"] = ["udp4" if name == "udp" else name for name in self.listeners]
        # What is false or 0 is what is plainest, and is left out.
        self.options = {name: value for name, value in some.items() if value}

    def _draw_place(self, some: dict[str, Any]) -> None:
        some["host"] = self.choice("start", "serve", "serve", "beside")
        count = self.choice(1, 1, 1, 2, 3)
        streams = [self.random.choice(STREAMS) for _ in range(count)]
        if self.all_udp:
            streams = [self.random.choice(UDPS) for _ in streams]
        elif self.strange and self.chance(0.4):
            streams[0] = self.choice("unix", "abstract")
        if self.chance(0.15):
            streams[self.random.randrange(count)] = self.random.choice(UDPS)
        self.listeners = some["listeners"] = streams
        some["workers"] = 2 if self.chance(0.25) else 1
        if self.chance(0.3):
            some["architecture"] = "sharding"
            some["cbpf"] = self.chance(0.2)
        elif self.chance(0.3):
            balancing = ("round_robin", "least_connections", "source_ip_hash")
            some["load_balancing"] = self.random.choice(balancing)
            some["gain_compatible"] = self.chance(0.3)
        some["cpu_affinity"] = self.chance(0.05)
        some["reuse_port"] = self.chance(0.1)
        if self.chance(0.1):
            some["backlog"] = self.choice(16, 100)
        if self.chance(0.15):
            some["max_connections"] = self.choice(1, 2, 3)

    def _draw_handler(self, some: dict[str, Any]) -> None:
        mode = self.choice("plain", "plain", "async", "thread")
        if mode == "async":
            names = [name for name in ASYNC if self.chance(0.5)]
            some["async"] = names or ["on_read"]
        elif mode == "thread":
            some["async_handler"] = True
            some["pool"] = self.choice(1, 2, 40)
            if self.chance(0.2):
                some["async"] = ["on_close"]
        some["without"] = [n for n in ("on_write", "on_eof") if self.chance(0.35)]
        some["on_read"] = self.choice("echo", "echo", "sink", "leave", "peek", "half", "one")
        some["on_eof"] = self.choice("close", "close", "send_eof")
        some["tls"] = self.chance(0.2)
        some["write_strict"] = self.chance(0.1)
        if self.chance(0.1):
            some["tick"] = self.choice(0.01, 0.05)

    def _draw_sizes(self, some: dict[str, Any]) -> None:
        some["read_buffer_limit"] = self.random.choice(LIMITS)
        some["write_high_water"] = self.random.choice(LIMITS)
        some["socket_recv_buffer_size"] = self.random.choice(BUFFERS)
        some["socket_send_buffer_size"] = self.random.choice(BUFFERS)
        if self.chance(0.2):
            some["max_sq_entries"] = self.choice(1, 4, 16, 256)
            some["max_cq_events"] = self.choice(2, 8, 64, 4096)

    def _draw_times(self, some: dict[str, Any]) -> None:
        if self.chance(0.2):
            some["close_timeout"] = self.choice(0.02, 0.1, 1.0)
        if self.chance(0.2):
            some["stuck_input_timeout"] = self.choice(0.02, 0.2)
        if some["tls"] and self.chance(0.3):
            some["tls_handshake_timeout"] = self.choice(0.05, 0.3)
        if self.chance(0.1):
            some["tcp_keep_alive"] = self.choice(1, 60)

    # ---- steps -------------------------------------------------------------------------------

    def add(self, do: str, **more: Any) -> None:
        step = {"do": do, **{name: value for name, value in more.items() if value}}
        for name in ("peer", "of", "n"):  # where 0 is a number like any other
            if name in more:
                step[name] = more[name]
        if self.chance(0.35):
            step["ms"] = self.choice(1, 1, 1, 2, 5)
        self.steps.append(step)

    def draw_steps(self) -> None:
        if self.strange:
            self.stranger()
        for _ in range(self.choice(1, 1, 2, 3)):
            self.connect()
        if self.chance(0.2):
            self.more_than_wanted()
        for _ in range(self.random.randrange(3, 12)):
            if self.chance(0.12):
                self.connect()
            elif self.strange and self.chance(0.12):
                self.stranger()
            elif self.chance(0.1):
                self.about_the_server()
            else:
                self.burst(self.random.randrange(self.streams + self.udps))
        for _ in range(self.random.randrange(0, 14)):
            self.of_handler(self.random.randrange(self.streams + self.udps))
        if self.all_udp and self.chance(0.4):
            self.gossip()
        if self.chance(0.06):
            self.crowd()
        while self.chance(0.45):
            self.while_busy()

    def while_busy(self) -> None:
        """What peers do in a row while their worker is busy, and sees none of it happen."""
        number = self.streams + self.udps
        acts = self.choice(1, 2, 3, 5)
        on = self.choice("accept", "read", "read")
        if self.all_udp:
            on = "read"
        self.steps.append({"of": number, "on": on, "do": "hold", "n": acts + 1})
        self.connect()
        peers = [number]
        if self.all_udp or self.chance(0.3):
            peers.append(self.streams + self.udps)
            self.connect()
        self.steps.append({"do": "send", "peer": number, "n": self.small(), "ms": 5})
        for _ in range(acts - 1):
            peer = self.random.choice(peers)
            if self.chance(0.3):
                self.end(peer)
            else:
                self.steps.append({"do": "send", "peer": peer, "n": self.size()})
        self.end(self.random.choice(peers))
        self.steps += [{"do": "wait", "ms": 1}, {"do": "idle"}]

    def end(self, peer: int) -> None:
        how = self.choice("reset", "reset", "close", "eof", "eof")
        self.steps.append({"do": "end", "peer": peer, "how": how, "flush": self.chance(0.7)})

    def gossip(self) -> None:
        """In one callback all are written to, of whom some are not there any more."""
        first = self.streams + self.udps
        count = self.choice(2, 3, 4)
        for _ in range(count):
            self.connect()
        for peer in range(first, first + count):
            if self.chance(0.4):
                self.steps.append({"do": "end", "peer": peer})
        for peer in range(first, first + count):
            tell = {"of": peer, "on": "read", "do": "tell", "more": 1}
            others = self.random.sample(range(first, first + count), count)
            self.steps += [{**tell, "to": other, "n": self.small()} for other in others]
            self.steps.append({"of": peer, "on": "read", "do": "write", "n": self.small()})
            self.add("send", peer=peer, n=self.small())
        self.add("idle")

    def crowd(self) -> None:
        """Many send much at once, while their worker is busy: more than its ring has room for."""
        first = self.streams + self.udps
        count = self.choice(16, 20)
        to = self.random.randrange(3)
        self.streams += count
        for peer in range(first, first + count):
            self.steps.append({"do": "connect", "peer": peer, "to": to})
        self.steps.append({"do": "idle"})
        self.steps.append({"of": first, "on": "read", "do": "hold", "n": count})
        self.steps.append({"do": "send", "peer": first, "n": 10, "ms": 5})
        for peer in range(first + 1, first + count):
            self.steps.append({"do": "send", "peer": peer, "n": CROWD_SIZE})
        self.steps.append({"do": "idle"})

    def more_than_wanted(self) -> None:
        """A peer sends more than its handler lets come, and goes on."""
        number = self.random.randrange(self.streams + self.udps)
        self.steps.append({"of": number, "on": "accept", "do": "limit", "n": self.small()})
        for _ in range(3):
            self.steps.append({"of": number, "on": "read", "do": "peek", "n": self.small()})
        for _ in range(self.choice(2, 3)):
            for _ in range(self.choice(1, 1, 3)):
                self.add("send", peer=number, n=self.size())
            self.add("idle")

    def connect(self) -> None:
        number = self.streams + self.udps
        self.streams += 1
        tls = bool(self.options.get("tls"))
        kinds = ("plain",) * 9 + ("start_tls",)
        if tls:
            kinds = ("tls",) * 8 + ("garbage", "stall")
        self.add(
            "connect",
            peer=number,
            to=self.random.randrange(3),
            kind=self.random.choice(kinds),
            rcv=self.random.choice(BUFFERS),
            snd=self.random.choice(BUFFERS),
            piece=self.choice(0, 0, 0, 0, 1, 50, 3000),
            then=self.choice("close", "close", "close", "stay"),
        )
        if self.chance(0.2):
            self.add("reads", peer=number, n=self.choice(0, 0, 1, 1000))
        if self.chance(0.5):
            self.steps[-1]["ms"] = 2

    def burst(self, number: int) -> None:
        """What one peer does in a row."""
        for _ in range(self.choice(1, 1, 2, 3)):
            self.of_peer(number)
        if self.chance(0.1):
            self.add("idle" if self.chance(0.7) else "settle")

    def of_peer(self, number: int) -> None:
        x = self.random.random()
        if x < 0.55:
            count = self.choice(1, 1, 3, 20)
            self.add("send", peer=number, n=self.size(), count=count)
        elif x < 0.62:
            self.add("reads", peer=number, n=self.choice(0, -1, -1, 1, 1000))
        elif x < 0.76:
            hows = ("eof", "eof", "close", "reset") if self.rude else ("eof", "eof", "eof", "close")
            how = self.random.choice((*hows, "ragged") if self.options.get("tls") else hows)
            self.add("end", peer=number, how=how, flush=self.chance(0.5))
        elif x < 0.80:
            self.add("urgent", peer=number)
        elif x < 0.81:
            self.add("garbage", peer=number)
        elif x < 0.84:
            self.add("bad", peer=number, n=self.choice(1, 10, 200))
        elif x < 0.94:
            what = self.choice(
                *("write", "write", "write", "writev", "read_from"),
                *("pause", "resume", "close", "abort", "send_eof", "discard", "next"),
                *("limit", "set_idle_timeout", "no_deadline"),
            )
            count = self.choice(1, 1, 1, 4)
            for _ in range(count):
                self.add("ask", of=number, what=what, n=self.small())
        elif x < 0.96:
            self.add("thread", of=number)
        else:
            self.add("wait", ms=self.choice(1, 3, 10))

    def stranger(self) -> None:
        """What another process does that has the server's sockets, too."""
        self.add(self.choice("rival", "rival", "block", "block", "steal", "shut"), n=1)
        if self.chance(0.2):
            self.add("block", n=0)

    def about_the_server(self) -> None:
        x = self.random.random()
        if x < 0.35:
            self.add("steal")
        elif x < 0.45:
            self.add("restart", n=self.choice(0, 20, 1000))
        elif x < 0.9:
            self.add("idle")
        else:
            self.add("wait", ms=20)

    def of_handler(self, number: int) -> None:
        """What one call of a callback does."""
        on = self.choice("accept", "read", "read", "read", "read", "write", "eof", "close")
        for left in range(self.choice(0, 0, 1, 2), -1, -1):
            step = {"of": number, "on": on, **self.act()}
            if left:
                step["more"] = 1
            at = self.random.randrange(len(self.steps) + 1)
            # Their order among themselves is what counts, so they stand together.
            self.steps.insert(len(self.steps) if left or step.get("more") else at, step)

    def act(self) -> dict[str, Any]:
        x = self.random.random()
        if x < 0.24:
            return {"do": self.random.choice(READS), "n": self.size()}
        if x < 0.42:
            return {"do": self.random.choice(WRITES), "n": self.size()}
        if x < 0.52:
            return {"do": "hold", "n": self.choice(1, 2, 3, 6)}
        if x < 0.58:
            return {"do": self.choice("sleep", "drain"), "n": self.choice(0, 1, 5, 20, 60)}
        if x < 0.66:
            return {"do": self.choice("pause", "pause", "resume")}
        if x < 0.70:
            return {"do": self.choice("limit", "buffers"), "n": self.size()}
        if x < 0.71:
            return {"do": "stamps"}
        if x < 0.77:
            how = self.random.choice((*DEADLINES, "no_deadline"))
            return {"do": how, "n": self.choice(5, 30, 60_000, 60_000)}
        if x < 0.86:
            then = self.choice(
                *("write", "write", "next", "discard", "close", "abort", "raise"),
                *("pause", "resume", "send_eof", "drain"),
            )
            ms = self.choice(0, 0, 1, 5, 20)
            return {"do": "task", "then": then, "ms": ms, "n": self.small()}
        if x < 0.91:
            to = self.random.randrange(max(1, self.streams))
            return {"do": "tell", "to": to, "n": self.small()}
        if x < 0.985:
            return {"do": self.choice("close", "close", "abort", "send_eof", "raise")}
        return {"do": "shutdown", "n": self.choice(0, 20, 1000)}


def draw(random: random.Random) -> Plan:
    """A plan, by nothing but *random*."""
    drawing = Drawing(random)
    drawing.draw_options()
    drawing.draw_steps()
    return {"options": drawing.options, "steps": drawing.steps, "kernel": []}
