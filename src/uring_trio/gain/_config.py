"""What a server can be told: one frozen dataclass, checked as a whole when it is made."""

from __future__ import annotations

import difflib
import enum
import functools
import math
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from uring_trio._ring_options import (
    CQ_ENTRIES,
    CQ_ENTRIES_MAX,
    SQ_ENTRIES,
    SQ_ENTRIES_MAX,
    RingOptions,
)
from uring_trio.gain._address import Address
from uring_trio.gain._errors import InvalidDuration, NotSupported

KIB = 1024
SIZE_MAX = 2**31 - 1  # bytes: setsockopt takes an int
KEEP_ALIVE_MAX_S = 32767  # MAX_TCP_KEEPIDLE of the kernel


class Architecture(str, enum.Enum):
    """How connections come to the workers."""

    REACTOR = "reactor"  # one accepts, and hands each connection to a worker
    SHARDING = "sharding"  # each worker listens; the kernel chooses


class LoadBalancing(str, enum.Enum):
    """How the reactor chooses a connection's worker."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    SOURCE_IP_HASH = "source_ip_hash"


# (number of active connections of each worker, the peer's address) -> index of a worker
Balancer = Callable[[Sequence[int], Address], int]

Choice = TypeVar("Choice", bound=enum.Enum)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of a server; also the keywords of `listen_and_serve` and `serve`.

    Attributes:
      architecture: an `Architecture` or its value; UDP is always sharded.
      workers: how many; None is 1 where threads share a GIL, else one for each usable CPU.
      async_handler: run a plain ``on_read`` in a thread.
      pool: at most so many of those threads for each worker.
      cpu_affinity: pin each worker to a CPU.
      process_priority: raise the priority of the process.
      cbpf: with sharding, the CPU that a packet came in on chooses the worker.
      load_balancing: a `LoadBalancing` or its value, or a callable of your own, which gets the
        number of active connections of each worker and the peer's `Address`, and returns the
        worker's index. For the reactor only.
      gain_compatible: hash the source as Gain does, port included.
      socket_recv_buffer_size: bytes for SO_RCVBUF; 0 leaves it to the kernel.
      socket_send_buffer_size: bytes for SO_SNDBUF; 0 leaves it to the kernel.
      tcp_keep_alive: seconds between probes on accepted connections, from 1; None is off.
      logger_level: a level of `logging` for ``uring_trio.gain``; None inherits.
      pretty_logger: add a handler that writes to stderr.
      max_sq_entries: entries of the SQ of each ring that the server makes; None is 256.
      max_cq_events: entries of its CQ, and so of the completions taken in one sweep, at
        least as many as of the SQ; None is 4,096. What does not fit is waited out. A worker
        in a run of yours has the ring of that run, and either is refused if it is another.
      tls: serve TLS on every connection.
      tls_handshake_timeout: seconds.
      max_connections: no more are accepted until one closes; None is no limit.
      read_buffer_limit: bytes of input that gather before reading stops.
      stuck_input_timeout: seconds until a connection is closed whose reading has stopped at
        ``read_buffer_limit`` and whose handler takes nothing; None is never.
      write_strict: a write to a connection that is over raises `ConnectionClosed`, and does
        not return 0.
      write_high_water: bytes of output above which reading stops.
      close_timeout: seconds in which a closing connection's peer may take nothing.
      reuse_port: let other servers listen on the same address.
      backlog: of `listen`; None is as much as the kernel gives.
      tick: seconds between calls of ``on_tick``; None is never.

    Raises:
      ValueError: an option is not allowed; the text names it and what is allowed. It is a
        `NotSupported` for an unknown architecture or load balancing, an `InvalidDuration`
        for seconds out of range.
    """

    architecture: Architecture | str = Architecture.REACTOR
    workers: int | None = None
    async_handler: bool = False
    pool: int = 40
    cpu_affinity: bool = False
    process_priority: bool = False
    cbpf: bool = False
    load_balancing: LoadBalancing | str | Balancer = LoadBalancing.ROUND_ROBIN
    gain_compatible: bool = False
    socket_recv_buffer_size: int = 0
    socket_send_buffer_size: int = 0
    tcp_keep_alive: float | None = None
    logger_level: int | None = None
    pretty_logger: bool = False
    max_sq_entries: int | None = None
    max_cq_events: int | None = None
    tls: ssl.SSLContext | None = None
    tls_handshake_timeout: float = 30.0
    max_connections: int | None = None
    read_buffer_limit: int = 64 * KIB
    stuck_input_timeout: float | None = 10.0
    write_high_water: int = 64 * KIB
    write_strict: bool = False
    close_timeout: float = 30.0
    reuse_port: bool = False
    backlog: int | None = None
    tick: float | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        for name in _FLAGS:
            _check_flag(name, getattr(self, name))
        for name, (least, most, none) in _INTEGERS.items():
            _check_integer(name, getattr(self, name), least, most, none)
        for name, (shortest, longest, none) in _SECONDS.items():
            _check_seconds(name, getattr(self, name), shortest, longest, none)
        self._check_tls()
        if self.cbpf and self.architecture is not Architecture.SHARDING:
            raise ValueError("cbpf=True is allowed with architecture='sharding' only")

    def _check_choices(self) -> None:
        # The dataclass is frozen for its users; here the values become what they mean.
        architecture = _choose(Architecture, "architecture", self.architecture)
        object.__setattr__(self, "architecture", architecture)
        if not callable(self.load_balancing):
            balancing = _choose(
                LoadBalancing, "load_balancing", self.load_balancing, " or a callable"
            )
            object.__setattr__(self, "load_balancing", balancing)

    def _check_tls(self) -> None:
        if self.tls is None:
            return
        if not isinstance(self.tls, ssl.SSLContext):
            raise _refusal("tls", "an ssl.SSLContext or None", self.tls)
        if self.tls.protocol == ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError(
                "tls must be an ssl.SSLContext for servers, such as "
                "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), not one for clients"
            )

    @functools.cached_property
    def worker_count(self) -> int:
        """How many workers there will be."""
        if self.workers is not None:
            return self.workers
        if not threads_run_in_parallel():
            return 1
        if sys.version_info >= (3, 13):
            return os.process_cpu_count() or 1  # heeds -X cpu_count
        return len(usable_cpus())

    @property
    def ring(self) -> RingOptions | None:
        """How large the rings of the server are; None: nothing was said."""
        if self.max_sq_entries is None and self.max_cq_events is None:
            return None
        sq_entries = self.max_sq_entries or SQ_ENTRIES
        cq_entries = max(self.max_cq_events or CQ_ENTRIES, sq_entries)
        return RingOptions(sq_entries=sq_entries, cq_entries=cq_entries)


_FLAGS = (
    "async_handler",
    "cpu_affinity",
    "process_priority",
    "cbpf",
    "gain_compatible",
    "pretty_logger",
    "reuse_port",
    "write_strict",
)

# Option: (least, most, whether None is allowed too)
_INTEGERS: dict[str, tuple[int, int | None, bool]] = {
    "workers": (1, None, True),
    "pool": (1, None, False),
    "socket_recv_buffer_size": (0, SIZE_MAX, False),
    "socket_send_buffer_size": (0, SIZE_MAX, False),
    "logger_level": (0, None, True),
    "max_sq_entries": (1, SQ_ENTRIES_MAX, True),
    "max_cq_events": (1, CQ_ENTRIES_MAX, True),
    "max_connections": (1, None, True),
    "read_buffer_limit": (1, SIZE_MAX, False),
    "write_high_water": (1, SIZE_MAX, False),
    "backlog": (1, SIZE_MAX, True),
}

# Option: (shortest, longest, whether None is allowed too). 0 itself is never allowed.
_SECONDS: dict[str, tuple[float, float, bool]] = {
    "tcp_keep_alive": (1, KEEP_ALIVE_MAX_S, True),
    "tls_handshake_timeout": (0, math.inf, False),
    "stuck_input_timeout": (0, math.inf, True),
    "close_timeout": (0, math.inf, False),
    "tick": (0, math.inf, True),
}


def make_config(**options: Any) -> Config:
    """A `Config` of keywords, as `listen_and_serve` takes them.

    Raises:
      ValueError: an option is not allowed.
      TypeError: there is no such option.
    """
    known = [field.name for field in fields(Config)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"there is no option {name!r}{hint}")
    return Config(**options)


def check_read_buffer_limit(size: Any) -> None:
    """Raise ValueError unless it is one."""
    _check_integer("read_buffer_limit", size, *_INTEGERS["read_buffer_limit"])


def usable_cpus() -> list[int]:
    """The CPUs that the calling thread may run on; ask before any worker is pinned."""
    return sorted(os.sched_getaffinity(0))


def threads_run_in_parallel() -> bool:
    """Whether there is no GIL: a free-threaded build may still have it switched on."""
    is_gil_enabled = getattr(sys, "_is_gil_enabled", None)
    return is_gil_enabled is not None and not is_gil_enabled()


def _refusal(
    name: str, allowed: str, value: Any, error: type[ValueError] = ValueError
) -> ValueError:
    return error(f"{name} must be {allowed}, not {value!r}")


def _choose(choices: type[Choice], name: str, value: Any, more: str = "") -> Choice:
    try:
        return choices(value)
    except ValueError:
        allowed = ", ".join(repr(choice.value) for choice in choices)
        raise _refusal(name, f"one of {allowed}{more}", value, NotSupported) from None


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _refusal(name, "True or False", value)


def _check_integer(name: str, value: Any, least: int, most: int | None, none: bool) -> None:
    if value is None and none:
        return
    # True is an int to Python, and a mistake here: Gain's goroutine pool is a flag.
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):
        return
    bounds = f"from {least}" + ("" if most is None else f" to {most}") + " or None" * none
    raise _refusal(name, f"an integer {bounds}", value)


def _check_seconds(name: str, value: Any, shortest: float, longest: float, none: bool) -> None:
    if value is None and none:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # NaN fails every comparison, so it is refused too.
    if number and value > 0 and shortest <= value <= longest:
        return
    bounds = f"from {shortest} to {longest}" if shortest else "above 0"
    allowed = f"seconds {bounds}" + " or None" * none
    raise _refusal(name, allowed, value, InvalidDuration)
