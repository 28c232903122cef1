"""A worker that is aborted between a batch and the turn that would look at it."""

from __future__ import annotations

import select
import socket as stdlib_socket
from typing import Any

import trio
from gain_tools import LOOPBACK, Recorder, connect, echo, receive_exactly, until
from harness import Sitter
from marks import ON_RING

from uring_trio import gain

pytestmark = ON_RING

SLOTS_MAX = 20  # that the test takes until it has the one it wants


async def test_a_cancelled_worker_cancels_nobody_elses_operation() -> None:
    """It is late for a batch, and what has ended there has left its slot to others meanwhile."""
    handler = Recorder()
    standing = Sitter()
    used: list[int] = []
    ours, theirs = stdlib_socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            server = gain.Server(handler)
            await nursery.start(server.serve, LOOPBACK)
            client = connect(server)
            await until(lambda: handler.conns)
            worker, slots = handler.conn.worker, handler.conn.worker.slots
            link: Any = handler.conn._connection.link
            left = link.receive_slot
            abort = worker.abort

            def abort_once_others_have_the_slot() -> None:
                while left not in used:
                    assert len(used) < SLOTS_MAX
                    poll = slots.ring.poll(ours.fileno(), select.POLLIN, 0)
                    used.append(slots.enter(standing, poll))
                abort()

            def cancel_a_worker_that_is_busy() -> None:
                worker.abort = abort_once_others_have_the_slot
                worker.post(lambda: None)  # so it does not sleep
                client.close()
                nursery.cancel_scope.cancel()

            worker.post(cancel_a_worker_that_is_busy)
            await trio.sleep_forever()
        assert handler.counts().close == 1
        theirs.send(b"x")
        await until(lambda: len(standing.told) == len(used))
    assert {res for _, res, _, _ in standing.told} == {select.POLLIN}


class LeasesAtWaits(trio.abc.Instrument):
    """What a connection has leased of the ring's buffers whenever a batch is about to end."""

    def __init__(self, conn: gain.Conn) -> None:
        self.inbound: Any = conn._connection.inbound
        self.sizes: list[int] = []

    def before_io_wait(self, timeout: float) -> None:
        self.sizes.append(self.inbound.lease_size)


async def test_a_cancelled_worker_leases_nothing_beyond_a_batch() -> None:
    """It is late for one, and by then the batch's buffers have gone home."""
    handler = Recorder(on_read=echo)
    async with trio.open_nursery() as nursery:
        server = gain.Server(handler)
        await nursery.start(server.serve, LOOPBACK)
        client = connect(server)
        with client:
            for answers in (1, 2):  # from then on it goes the short way
                client.send(b"question")
                await until(lambda n=answers: handler.counts().read == n)  # type: ignore[misc]
                receive_exactly(client, 8)
            conn = handler.conn
            leases = LeasesAtWaits(conn)
            trio.lowlevel.add_instrument(leases)

            def cancel_a_worker_that_is_busy() -> None:
                conn.worker.post(lambda: None)  # so it does not sleep
                nursery.cancel_scope.cancel()
                client.send(b"too late")

            conn.worker.post(cancel_a_worker_that_is_busy)
            with trio.CancelScope(shield=True):
                await until(lambda: handler.counts().close == 1)
            trio.lowlevel.remove_instrument(leases)
    assert len(leases.sizes) >= 3
    assert not any(leases.sizes)
