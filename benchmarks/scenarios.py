"""Everything that is compared, by name: what is done, to whom, and what ours is held to.

A scenario is a load, the programs that it is put on, and bars. The programs of one do the same
thing, each as its own documentation would have it written; where a way of writing servers
cannot do it (asyncio's streams have no datagrams), it is not among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.comparison import Bar
from benchmarks.exchange import HTTP, TLS, WEBSOCKET, Spoken
from benchmarks.generated import MIB, Generated, format_bytes
from benchmarks.own_work import OwnWork
from benchmarks.peers import (
    AGAIN,
    ANYIO,
    ASYNCIO,
    BEFORE,
    C_RING,
    GAIN,
    IO_URING,
    NOISE,
    RING,
    STOCK,
    UVLOOP,
    UVLOOP_PROTOCOL,
    Peer,
    asyncio_loops,
    callback_servers,
    datagram_servers,
    echo_servers,
    find,
    stream_servers,
    trio_pair,
)
from benchmarks.wrk import Wrk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measurement import Load

ONE_WORKER = "one-worker"
ONE_AGAIN = "one-again"
TWO_WORKERS = "two-workers"


@dataclass(frozen=True)
class Scenario:
    """One comparison.

    Attributes:
      name: as it is called on the command line.
      load: what is done.
      peers: to whom, in the order of the first round.
      bars: what ours is held to.
      base: what the table gives ratios to.
      again: the same once more.
      is_quick: it is a part of the quick look.
    """

    name: str
    load: Load
    peers: tuple[Peer, ...]
    bars: tuple[Bar, ...] = ()
    base: str = STOCK
    again: str = f"{STOCK}-again"
    is_quick: bool = False


def cpu(base: str, at_most: float, stretch: float | None = None, subject: str = RING) -> Bar:
    """CPU for a unit."""
    return Bar("cpu_us", base, at_most, subject, stretch)


def p50(base: str, at_most: float, stretch: float | None = None, subject: str = RING) -> Bar:
    """The median latency."""
    return Bar("p50_us", base, at_most, subject, stretch)


def p99(base: str, at_most: float, stretch: float | None = None, subject: str = RING) -> Bar:
    """The 99th percentile."""
    return Bar("p99_us", base, at_most, subject, stretch)


# Echo. Above 64 MiB under way, what is compared is the memory's bandwidth.

KIB = 1 << 10
ECHO_CELLS = (
    *((count, 64) for count in (1, 8, 64, 1000, 10_000)),
    *((count, 1 * KIB) for count in (1, 8, 64, 1000)),
    *((count, 16 * KIB) for count in (1, 8, 64, 1000)),
    *((count, 100 * KIB) for count in (1, 8, 64)),
    *((count, 1 * MIB) for count in (1, 8)),
)
# By the number of connections: a turn of all of them takes up to a second.
PATIENCE = {1000: 1.5, 10_000: 4.0}
ECHO_BARS: dict[str, tuple[Bar, ...]] = {
    "1x64B": (cpu(STOCK, 0.62, 0.56), p50(STOCK, 0.50, 0.42)),
    "64x64B": (
        cpu(STOCK, 0.36, 0.33),
        cpu(UVLOOP, 0.80, 0.70),
        cpu(UVLOOP_PROTOCOL, 0.98, 0.93, GAIN),
        cpu(C_RING, 1.2, 1.10, GAIN),
    ),
    "1000x64B": (
        cpu(STOCK, 0.42, 0.38),
        p99(STOCK, 0.9, 0.75),
        cpu(UVLOOP_PROTOCOL, 0.85, 0.76, GAIN),
    ),
    "10000x64B": (
        cpu(STOCK, 0.26, 0.22),
        p99(STOCK, 0.75),
        p50(f"{RING}{BEFORE}", 1.0),
        cpu(UVLOOP_PROTOCOL, 0.90, 0.85, GAIN),
    ),
    "1000x16KiB": (cpu(STOCK, 0.55, 0.50), p99(STOCK, 1.0), cpu(UVLOOP, 0.85, 0.78)),
    "8x100KiB": (cpu(STOCK, 0.60, 0.55), cpu(UVLOOP_PROTOCOL, 1.0, 0.9, GAIN)),
    "8x1MiB": (cpu(STOCK, 0.80, 0.75),),
}
QUICK_CELLS = ("1x64B", "64x64B", "1000x16KiB", "8x100KiB")


def echo_scenarios() -> list[Scenario]:
    """A scenario for each sensible cell."""
    found = []
    for connections, size in ECHO_CELLS:
        name = f"{connections}x{format_bytes(size)}"
        load = Generated("echo", connections, size, PATIENCE.get(connections, 1.0))
        is_quick = name in QUICK_CELLS
        found.append(
            Scenario(name, load, echo_servers(), ECHO_BARS.get(name, ()), is_quick=is_quick)
        )
    return found


# Other sockets and other ways of using them.


def servers(service: str) -> tuple[Peer, ...]:
    """Both ways of writing it."""
    return (*stream_servers(service), *callback_servers(service))


SOCKET_SCENARIOS = [
    Scenario("bulk-in", Generated("send", 8, MIB), servers("sink")),
    Scenario("bulk-out", Generated("receive", 8, MIB), servers("source")),
    Scenario(
        "accept-byte-close",
        Generated("accept", 16, 1),
        servers("accept"),
        (cpu(STOCK, 0.95, 0.85),),
    ),
    Scenario(
        "accept-ask-close",
        Generated("ask", 16, KIB),
        servers("ask"),
        (cpu(STOCK, 0.9, 0.8), cpu(UVLOOP_PROTOCOL, 1.0, None, GAIN)),
        is_quick=True,
    ),
    Scenario(
        "tls-64x64B",
        Spoken(TLS, 64),
        servers("tls"),
        (cpu(STOCK, 0.57, 0.53),),
    ),
    Scenario(
        "udp-64x64B",
        Generated("udp", 64, 64),
        (*datagram_servers(), *callback_servers("udp")),
        (cpu(UVLOOP_PROTOCOL, 1.0, 0.8, GAIN),),
        is_quick=True,
    ),
    Scenario("unix-64x64B", Generated("unix", 64, 64), servers("unix")),
    # `move_on_after` around each receive, or what there is in its place.
    Scenario("deadline-64x64B", Generated("echo", 64, 64), stream_servers("deadline")),
    Scenario(
        "workers-64x64B",
        Generated("echo", 64, 64),
        (
            Peer(ONE_WORKER, "gain_callbacks", "gain, one core", ("echo",), needs=(IO_URING,)),
            Peer(ONE_AGAIN, "gain_callbacks", NOISE, ("echo",), needs=(IO_URING,)),
            Peer(
                TWO_WORKERS,
                "gain_callbacks",
                "gain on two cores, of which the load has one where there are no more",
                ("echo", "--workers", "2"),
                cores=2,
                needs=(IO_URING,),
            ),
        ),
        base=ONE_WORKER,
        again=ONE_AGAIN,
    ),
]

# HTTP: one responder for all, and real servers and clients.

HTTP_SCENARIOS = [
    Scenario("http", Wrk(64), servers("http")),
    Scenario(
        "http-pipelined",
        Wrk(512, 16),
        servers("http"),
        (cpu(UVLOOP_PROTOCOL, 0.90, 0.80, GAIN),),
        is_quick=True,
    ),
]

HYPERCORN_BARS = {1: 1.0, 8: 0.85, 50: 0.80}


def ecosystem_scenarios() -> list[Scenario]:
    """Other people's servers: hypercorn's workers, trio-websocket's echo."""
    hypercorn = (
        *trio_pair("hypercorn_hello", needs=("hypercorn",)),
        *asyncio_loops(
            "hypercorn_hello",
            about="hypercorn's worker",
            needs=("hypercorn",),
            loops=(ASYNCIO, UVLOOP),
        ),
    )
    websocket = trio_pair("websocket_echo", needs=("trio_websocket",))
    return [
        *(
            Scenario(
                f"hypercorn-{count}",
                Spoken(HTTP, count),
                hypercorn,
                (cpu(STOCK, at_most),),
                is_quick=count == 50,
            )
            for count, at_most in HYPERCORN_BARS.items()
        ),
        *(
            Scenario(f"websocket-{count}", Spoken(WEBSOCKET, count), websocket)
            for count in (1, 8, 50)
        ),
    ]


def httpx_scenario() -> Scenario:
    """A client: 8 tasks that ask for a small page."""
    tasks = "8"
    return Scenario(
        "httpx-client",
        OwnWork(
            "request",
            f"an httpx client with {tasks} tasks; the server is uvloop's protocol",
            find(callback_servers("http"), UVLOOP_PROTOCOL),
        ),
        (
            *trio_pair("httpx_get", tasks, needs=("httpx",)),
            *asyncio_loops("httpx_get", tasks, about="httpx", needs=("httpx",)),
        ),
    )


def thread_scenarios() -> list[Scenario]:
    """`to_thread.run_sync` of a function that does nothing."""
    return [
        Scenario(
            f"to-thread-{tasks}",
            OwnWork("call", f"{tasks} tasks that call a function in a thread again and again"),
            (
                *trio_pair("thread_calls", str(tasks)),
                Peer(ANYIO, "thread_calls", "anyio on asyncio", (ANYIO, str(tasks))),
                *asyncio_loops("thread_calls", str(tasks), about="asyncio.to_thread"),
            ),
            (cpu(STOCK, 0.98, 0.93),),
            is_quick=tasks == 8,
        )
        for tasks in (1, 8)
    ]


SCENARIOS: tuple[Scenario, ...] = (
    *echo_scenarios(),
    *SOCKET_SCENARIOS,
    *HTTP_SCENARIOS,
    *ecosystem_scenarios(),
    httpx_scenario(),
    *thread_scenarios(),
)
# Of a server that nobody says anything to; see idle.py.
IDLE = "idle"
NAMES = (*(scenario.name for scenario in SCENARIOS), IDLE)

# With another tree to compare with: no row is bought with another one's tail.
TAIL_OF_BEFORE = 1.1


def bars_against(peers: Sequence[str]) -> tuple[Bar, ...]:
    """What ours is held to beside the other tree's, where *peers* has both."""
    return tuple(
        Bar("p99_us", f"{name}{BEFORE}", TAIL_OF_BEFORE, name)
        for name in (RING, GAIN)
        if name in peers and f"{name}{BEFORE}" in peers
    )


def peers_of_bars(scenario: Scenario) -> set[str]:
    """Those whom a scenario's bars are about, and one of them once more."""
    wanted = set()
    for bar in scenario.bars:
        wanted |= {bar.base, bar.subject or RING}
    if scenario.base in wanted:
        return wanted | {scenario.again}
    return wanted | {AGAIN[name] for name in wanted if name in AGAIN}
