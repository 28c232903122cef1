"""What a server and its workers have done, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WorkerStatistics:
    """One worker, at one moment; the byte counts only grow.

    Attributes:
      connections: open now; datagrams are none.
      bytes_in: received from peers since the worker started; with TLS, ciphertext.
      bytes_out: accepted by the kernel since the worker started; with TLS, ciphertext.
      buffers_leased: provided buffers that are out of the ring.
      bytes_buffered: received and not consumed, or written and not accepted by the kernel.
      operations_in_flight: operations whose last cqe has not been seen.
      datagrams_dropped: not sent, because `write_high_water` bytes were queued already.
    """

    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    buffers_leased: int = 0
    bytes_buffered: int = 0
    operations_in_flight: int = 0
    datagrams_dropped: int = 0


@dataclass(frozen=True, kw_only=True)
class ServerStatistics:
    """All workers of a server; of its last run while it is not running.

    Attributes:
      workers: one entry for each worker, in the order of their indices.
    """

    workers: tuple[WorkerStatistics, ...] = ()
