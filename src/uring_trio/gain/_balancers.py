"""Which worker gets a connection: functions of the workers' counts and the peer.

A balancer is called in the thread that accepts; the reactor has one of those, so what a
balancer remembers needs no lock.
"""

from __future__ import annotations

import itertools
import operator
import zlib
from typing import TYPE_CHECKING

from uring_trio.gain._config import Architecture, LoadBalancing
from uring_trio.gain._logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uring_trio.gain._address import Address
    from uring_trio.gain._config import Balancer, Config
    from uring_trio.gain._worker import Worker


def make_assign(workers: Sequence[Worker], config: Config) -> Callable[[Address], Worker] | None:
    """The reactor's choice of a worker, or None where each keeps what it accepts."""
    if config.architecture is Architecture.SHARDING:
        return None
    balance = make_balancer(config)

    def assign(remote: Address) -> Worker:
        try:
            return workers[balance([worker.active for worker in workers], remote)]
        except Exception:  # noqa: BLE001  the user's own balancer: no client is to pay
            logger.exception("load_balancing failed for %s; worker 0 takes it", remote)
            return workers[0]

    return assign


def make_balancer(config: Config) -> Balancer:
    """The balancer that ``config`` asks for, with a memory of its own.

    It takes the number of active connections of each worker, of which there is at least one,
    and the address of the peer, and returns the worker's index. One that the user gave may
    raise anything; if it returns no index of a worker, the balancer made of it raises
    IndexError, or TypeError for what is no integer.
    """
    choice = config.load_balancing
    if choice is LoadBalancing.ROUND_ROBIN:
        return _round_robin()
    if choice is LoadBalancing.LEAST_CONNECTIONS:
        return _least_connections
    if choice is LoadBalancing.SOURCE_IP_HASH:
        return _source_hash(_gain_key if config.gain_compatible else _host_key)
    assert callable(choice)
    return _checked(choice)


def _round_robin() -> Balancer:
    turns = itertools.count()

    def round_robin(counts: Sequence[int], remote: Address) -> int:
        return next(turns) % len(counts)

    return round_robin


def _least_connections(counts: Sequence[int], remote: Address) -> int:
    return counts.index(min(counts))


def _source_hash(key: Callable[[Address], str]) -> Balancer:
    def source_hash(counts: Sequence[int], remote: Address) -> int:
        if remote.network == "unix":
            # UNIX peers rarely have a name: a hash would send all of them to one worker.
            return _least_connections(counts, remote)
        return zlib.crc32(key(remote).encode()) % len(counts)

    return source_hash


def _host_key(remote: Address) -> str:
    return str(remote[0])


def _gain_key(remote: Address) -> str:
    # With the port, so that a client's next connection goes elsewhere (gain's load_balancer.go).
    return str(remote)


def _checked(balancer: Balancer) -> Balancer:
    def checked(counts: Sequence[int], remote: Address) -> int:
        answer = balancer(counts, remote)
        try:
            index = operator.index(answer)
        except TypeError:
            raise TypeError(
                f"load_balancing must return the index of a worker, not {answer!r}"
            ) from None
        if not 0 <= index < len(counts):
            raise IndexError(
                f"load_balancing returned {index}, but the workers are 0 to {len(counts) - 1}"
            )
        return index

    return checked
