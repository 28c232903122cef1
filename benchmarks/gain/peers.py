"""The callback servers that are compared, and those that show their limit."""

from __future__ import annotations

from benchmarks.peers import Peer

GAIN = "gain"
UVLOOP = "uvloop-protocol"
UVLOOP_AGAIN = "uvloop-again"
C_EPOLL = "c-epoll"
C_RING = "c-ring"

NEEDS_UVLOOP = ("uvloop",)
NEEDS_RING = ("io_uring",)
NOISE = "the same once more: the noise"

GAIN_ECHO = Peer(GAIN, "gain_echo", "on_read on one worker", needs=NEEDS_RING)
UVLOOP_ECHO = Peer(UVLOOP, "uvloop_protocol", "asyncio.Protocol on uvloop", needs=NEEDS_UVLOOP)

ECHO_PEERS = (
    GAIN_ECHO,
    UVLOOP_ECHO,
    Peer(UVLOOP_AGAIN, "uvloop_protocol", NOISE, needs=NEEDS_UVLOOP),
    Peer(C_EPOLL, "echo_epoll", "plain C on epoll", is_c=True),
    Peer(C_RING, "echo_uring", "plain C on io_uring", is_c=True, needs=NEEDS_RING),
)

HTTP_PEERS = (
    Peer(GAIN, "gain_http", "HTTP on gain, one worker", needs=NEEDS_RING),
    Peer(UVLOOP, "uvloop_http", "the same responder on asyncio.Protocol", needs=NEEDS_UVLOOP),
    Peer(UVLOOP_AGAIN, "uvloop_http", NOISE, needs=NEEDS_UVLOOP),
)

ONE_WORKER = "one worker"
ONE_AGAIN = "one again"
TWO_WORKERS = "two workers"

WORKERS_PEERS = (
    Peer(ONE_WORKER, "gain_echo", "gain on one core", needs=NEEDS_RING),
    Peer(ONE_AGAIN, "gain_echo", NOISE, needs=NEEDS_RING),
    Peer(
        TWO_WORKERS,
        "gain_echo",
        "gain on two cores",
        arguments=("--workers", "2"),
        cores=2,
        needs=NEEDS_RING,
    ),
)

# The ones with many or hostile connections: gain, and what another server does there.
SERVER_PEERS = (GAIN_ECHO, UVLOOP_ECHO)
