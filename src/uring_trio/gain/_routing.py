"""The first look at a batch of cqes, while trio's scheduler has them.

What every tick has most of, input of a plain connection that stays armed (or that there is
some, where messages are large), is noted in the connection there and then; a tuple and a list for the worker to look through again would
cost as much as all that is to be noted. Everything else goes to the worker's batch.

The order of what comes for one connection must not change. So one of whose cqes is in the
batch is special until it was settled: what comes for it later goes to the batch as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uring_trio._kernel import CQE_F_BUFFER, CQE_F_MORE
from uring_trio.gain._conn import Conn
from uring_trio.gain._receiving import SMALLEST_BUFFER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uring_trio._slots import Occupant, Record

DATA_AND_MORE = CQE_F_BUFFER | CQE_F_MORE


def route(table: list[Occupant | None], records: Iterable[Record]) -> list[Record]:
    """Give connections' cqes to their workers; what is left is others'."""
    others = []
    for record in records:
        slot, res, flags, offset = record
        conn: Any = table[slot]
        if type(conn) is not Conn:
            others.append(record)
            continue
        worker = conn.worker
        if (
            flags & DATA_AND_MORE == DATA_AND_MORE
            and res < SMALLEST_BUFFER
            and not conn._special
            and not conn._large
        ):
            if conn._lease_size:
                conn._stash()
            conn._lease_at = offset
            conn._lease_size = res
            conn._fresh += res
            worker.bytes_in += res
            if not conn._ready:
                conn._ready = True
                ready = worker.ready
                ready.append(conn)
                if worker.parked:
                    worker.wake()
        elif flags == CQE_F_MORE and res > 0 and slot == conn._recv_slot and not conn._special:
            conn._readable |= res  # the poll of a stream with large messages
            if not conn._ready:
                conn._ready = True
                worker.ready.append(conn)
                if worker.parked:
                    worker.wake()
        else:
            if not flags & CQE_F_MORE:
                table[slot] = None
            conn.complete(slot, res, flags, offset)
    return others
