"""The counters of a run on the ring."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from uring_trio._kernel import read_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uring_trio._kernel import Ring
    from uring_trio._slots import Occupant


@dataclass(frozen=True)
class IOStatistics:
    """What `trio.lowlevel.current_statistics` shows as ``io_statistics``.

    Attributes:
      backend: ``"io_uring"``.
      tasks_waiting_read, tasks_waiting_write: tasks that sleep on I/O, by direction. trio's
        own task that other threads wake is always one that reads.
      in_flight: operations that the kernel has not finished.
      leases_out: receive buffers in our hands.
      enters: calls of io_uring_enter so far.
      stale_cqes: completions that belonged to no operation; anything but 0 is a bug.
      operations: operations submitted so far, by opcode.
      plain_calls: calls of socket methods that a plain system call has done beside the ring, by
        the opcode of the operation that it spared.
      stock_calls: calls of socket and stream methods that went trio's own way, by reason.
    """

    backend: str
    tasks_waiting_read: int
    tasks_waiting_write: int
    in_flight: int
    leases_out: int
    enters: int
    stale_cqes: int
    operations: dict[str, int]
    plain_calls: dict[str, int]
    stock_calls: dict[str, int]


def take_statistics(
    occupants: Iterable[Occupant],
    ring: Ring,
    *,
    batch_is_out: bool,
    plain_calls: dict[str, int],
    stock_calls: dict[str, int],
) -> Callable[[], IOStatistics]:
    """The counters as they stand; what is returned puts them into words.

    That takes longer than all else that there is to the end of a run, and few ask.

    Args:
      occupants: whoever stands at a slot of it, or is held.
      ring: what they run on.
      batch_is_out: whether records, and buffers with them, wait to be processed. The engine
        takes a batch's buffers back with the next wait, and counts them as leased until then.
      plain_calls: by opcode.
      stock_calls: by reason.
    """
    reading = [occupant.reading for occupant in occupants if occupant.task is not None]
    calls = dict(plain_calls), dict(stock_calls)
    return partial(_statistics_of, reading, ring.counts(), *calls, batch_is_out=batch_is_out)


def _statistics_of(
    reading: list[bool],
    counts: Any,
    plain_calls: dict[str, int],
    stock_calls: dict[str, int],
    *,
    batch_is_out: bool,
) -> IOStatistics:
    counters, by_opcode = read_counts(counts)
    return IOStatistics(
        backend="io_uring",
        tasks_waiting_read=sum(reading),
        tasks_waiting_write=len(reading) - sum(reading),
        in_flight=counters["in_flight"],
        leases_out=counters["leases_out"] if batch_is_out else 0,
        enters=counters["enters"],
        stale_cqes=counters["stale_cqes"],
        operations=by_opcode,
        plain_calls={opcode: count for opcode, count in plain_calls.items() if count},
        stock_calls=stock_calls,
    )
