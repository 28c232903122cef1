"""A device without a poll function is refused, as epoll refuses it, and not found ready."""

from __future__ import annotations

import os

import pytest
import trio

pytestmark = pytest.mark.differential


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
async def test_wait_on_a_device_that_cannot_be_polled(device: str) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
            with pytest.raises(PermissionError):
                await wait(fd)
    finally:
        os.close(fd)


async def test_a_terminal_can_be_waited_for() -> None:
    master, slave = os.openpty()
    try:
        await trio.lowlevel.wait_writable(slave)
        with trio.move_on_after(0.01) as scope:
            await trio.lowlevel.wait_readable(slave)
        assert scope.cancelled_caught
    finally:
        os.close(master)
        os.close(slave)
