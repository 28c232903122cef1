"""ENOBUFS without a buffer ring is an error like any other, not back-pressure.

The kernel answers it to a sendmsg with more control data than it takes. Held back and tried
again, as a receive that found no buffer is, it would spin for ever.
"""

from __future__ import annotations

import errno
import socket

import pytest
import trio

pytestmark = pytest.mark.differential

MORE_THAN_OPTMEM_MAX = 1 << 20  # bytes; the sysctl is 20 or 128 KiB by default


async def test_sendmsg_with_too_much_control_data() -> None:
    a, b = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with a, b:
        with pytest.raises(OSError, match="buffer space") as caught, trio.fail_after(5):
            await a.sendmsg([b"x"], [(socket.SOL_SOCKET, 99, bytes(MORE_THAN_OPTMEM_MAX))])
        assert caught.value.errno == errno.ENOBUFS
        await a.send(b"still works")
        assert await b.recv(100) == b"still works"
