"""What ends with an exception leaves no cycle behind: stock trio does not, either.

A cycle keeps a user's locals, and the files that they hold, until some later collection. After
each test `conftest.py` looks for descriptors that only a collection would close.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import harness
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.differential


async def cancelled_at_once(operation: Callable[[], Awaitable[object]]) -> None:
    canary = harness.Canary()
    with trio.CancelScope() as scope:
        scope.cancel()
        await operation()
    assert scope.cancelled_caught
    del scope, canary


async def closed(operation: Callable[[], Awaitable[object]], sock: object) -> None:
    async def sleep() -> None:
        canary = harness.Canary()  # noqa: F841
        with pytest.raises(trio.ClosedResourceError):
            await operation()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(sock)  # type: ignore[arg-type]


async def test_no_cycles() -> None:
    a, b = await harness.stream_pair()
    async with a, b:
        operations: list[Callable[[], Awaitable[object]]] = [
            a.receive_some,
            lambda: a.send_all(b"x"),
            lambda: a.socket.recv(10),
            lambda: a.socket.recvmsg(10),
            lambda: a.socket.recv_into(bytearray(10)),
            lambda: trio.lowlevel.wait_readable(a.socket),  # noqa: ASYNC105
        ]
        gc.collect()
        gc.disable()
        try:
            for index, operation in enumerate(operations):
                await cancelled_at_once(operation)
                if index != 1:  # a send does not sleep
                    await closed(operation, a.socket)
                assert harness.Canary.alive == 0, index
        finally:
            gc.enable()


class Holder:
    """Has a pipe, and perhaps itself."""

    def __init__(self) -> None:
        self.files = [open(fd, "rb") for fd in os.pipe()]  # noqa: SIM115
        self.itself: Holder | None = None

    def hold_itself(self) -> None:
        self.itself = self


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_looks_for_descriptors_sees_those_that_only_a_collection_closes() -> None:
    with harness.no_new_fds():
        Holder()
    with pytest.raises(AssertionError, match="garbage collector alone"), harness.no_new_fds():
        Holder().hold_itself()
    with harness.no_new_fds(collecting=True):
        Holder().hold_itself()
    with pytest.raises(AssertionError, match="left open"), harness.no_new_fds():
        holder = Holder()
    for file in holder.files:
        file.close()
