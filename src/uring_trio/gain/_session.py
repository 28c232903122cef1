"""What a server has between a start and its end: workers, sockets, and who gets what."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import trio

from uring_trio._trio_private import run_context
from uring_trio.gain import _listen
from uring_trio.gain._balancers import make_balancer
from uring_trio.gain._config import Architecture
from uring_trio.gain._errors import InvalidState
from uring_trio.gain._logging import logger
from uring_trio.gain._statistics import ServerStatistics, WorkerStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from uring_trio.gain._address import Address, Spec
    from uring_trio.gain._config import Config
    from uring_trio.gain._listen import Listener
    from uring_trio.gain._supervisor import Supervisor
    from uring_trio.gain._worker import Worker


class Session:
    """One start of a server; asked from any thread, changed in the supervisor's run.

    Attributes:
      workers: by index.
      supervisor: takes the requests to stop.
      addresses: what is bound; empty until everything is.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        supervisor: Supervisor,
        specs: Sequence[Spec],
        config: Config,
    ) -> None:
        self.workers = workers
        for worker in workers:
            worker.meet(workers)
        self.supervisor = supervisor
        self.addresses: tuple[Address, ...] = ()
        self._specs = specs
        self._config = config
        self._listeners: list[list[Listener]] = [[] for _ in workers]

    async def bind(self) -> None:
        """Bind everything, in a thread, because names are looked up."""
        count = len(self.workers)
        self._listeners = await _bind_in_thread(self._specs, self._config, self._copies, count)
        # The first worker has them all: what is shared, and its own of what is not.
        self.addresses = tuple(listener.address for listener in self._listeners[0])

    def listeners(self) -> list[list[Listener]]:
        """For each worker those that it has not taken yet."""
        return self._listeners

    def assign(self) -> Callable[[Address], Worker] | None:
        """The reactor's choice of a worker, or None where each keeps what it accepts."""
        if len(self.workers) == 1 or self._config.architecture is Architecture.SHARDING:
            return None
        balance = make_balancer(self._config)
        workers = self.workers

        def assign(remote: Address) -> Worker:
            try:
                return workers[balance([worker.active for worker in workers], remote)]
            except Exception:  # noqa: BLE001  the user's own balancer: no client is to pay
                logger.exception("load_balancing failed for %s; worker 0 takes it", remote)
                return workers[0]

        return assign

    def statistics(self) -> ServerStatistics:
        """What the workers say; one that is busy answers between two callbacks."""
        return ServerStatistics(workers=tuple(worker.statistics() for worker in self.workers))

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task in the nursery of the calling worker, or of worker 0."""
        # In guest mode the host loop has this thread too, and is in no task of ours.
        # trio's own in_trio_task() came with 0.29.
        here = threading.get_ident() if hasattr(run_context, "task") else None
        for worker in self.workers:
            if here is not None and worker.thread == here:
                worker.nursery.start_soon(async_fn, *args)
                return
        worker = self.workers[0]
        if not worker.post(lambda: worker.nursery.start_soon(async_fn, *args)):
            raise InvalidState("there is no worker to run a task: it has ended")

    def close(self) -> ServerStatistics:
        """Close what no worker has taken; what the workers have done."""
        close_all(self._listeners)
        return ServerStatistics(workers=tuple(map(_final_statistics, self.workers)))

    def _copies(self, spec: Spec) -> int:
        """How many workers have a socket of their own at this address."""
        shared = spec.network != "udp" and self._config.architecture is Architecture.REACTOR
        return 1 if shared else len(self.workers)


def _final_statistics(worker: Worker) -> WorkerStatistics:
    if worker.ended:
        return worker.statistics()
    # It never ran, or was left behind in a callback and cannot be asked.
    return WorkerStatistics(
        connections=worker.active, bytes_in=worker.turn.bytes_in, bytes_out=worker.turn.bytes_out
    )


async def _bind_in_thread(
    specs: Sequence[Spec], config: Config, copies: Callable[[Spec], int], count: int
) -> list[list[Listener]]:
    """As `_listen.bind`, for each worker; if it is cancelled nothing stays bound."""
    lock = threading.Lock()
    bound: list[list[Listener]] = []
    abandoned = False

    def bind() -> None:
        listeners = bind_each(specs, config, copies, count)
        with lock:
            if not abandoned:
                bound.extend(listeners)
                return
        close_all(listeners)

    try:
        # A look-up may take minutes, and cannot be interrupted.
        await trio.to_thread.run_sync(bind, abandon_on_cancel=True)
    except BaseException:
        with lock:
            abandoned = True
        close_all(bound)
        raise
    return bound


def bind_each(
    specs: Sequence[Spec], config: Config, copies: Callable[[Spec], int], count: int
) -> list[list[Listener]]:
    """For each of *count* workers its listeners, in the order of *specs*; all or nothing."""
    workers: list[list[Listener]] = [[] for _ in range(count)]
    try:
        for number, group in itertools.groupby(specs, copies):
            bound = _listen.bind(list(group), config, number)
            for worker, listeners in zip(workers, bound, strict=False):
                worker.extend(listeners)
    except BaseException:
        close_all(workers)
        raise
    return workers


def close_all(workers: Sequence[list[Listener]]) -> None:
    """Close all listeners, and forget them."""
    for listeners in workers:
        while listeners:
            listeners.pop().close()
