"""`notify_closing` ends a send that is half done, whatever memory it sends from."""

from __future__ import annotations

import os

import harness
import pytest
import trio
from trio.lowlevel import FdStream
from trio.testing import wait_all_tasks_blocked

pytestmark = pytest.mark.differential

MORE_THAN_BUFFERS_TAKE = 1 << 24


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_send_all_ends_when_another_task_notifies(kind: type) -> None:
    a, b = await harness.stream_pair()
    async with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                harness.expect_exception,
                trio.ClosedResourceError,
                a.send_all,
                kind(MORE_THAN_BUFFERS_TAKE),
            )
            await wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(a.socket)
            with trio.fail_after(5):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
        # Nobody closed it, so it still works, and a cancel is a cancel.
        with trio.move_on_after(0.05) as scope:
            await a.send_all(bytearray(MORE_THAN_BUFFERS_TAKE))
        assert scope.cancelled_caught


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_fd_stream_ends_when_another_task_notifies(kind: type) -> None:
    read_end, write_end = os.pipe()
    async with FdStream(read_end), FdStream(write_end) as writer, trio.open_nursery() as nursery:
        nursery.start_soon(
            harness.expect_exception,
            trio.ClosedResourceError,
            writer.send_all,
            kind(MORE_THAN_BUFFERS_TAKE),
        )
        await wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(write_end)
        with trio.fail_after(5):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
