"""What tests of other people's programs on the ring share.

``on_ring`` runs one of them and asks the run itself where it was: on io_uring, with bytes
moved by the operations that the test names, or by the plain calls beside the ring that spare
them, and with no call that went trio's own way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import socket
import ssl
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import harness
import pytest
import trio
import trustme

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

T = TypeVar("T")

HOST = "127.0.0.1"
SOCKET_METHODS = frozenset(
    {"accept", "connect", "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg"}
    | {"recvmsg_into", "send", "sendall", "sendmsg", "sendto"}
)


def need(*modules: str) -> None:
    """Skip the module that calls this if one of *modules* is missing; fail if none may be."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return
    reason = f"{', '.join(missing)} not installed; it is in the extra 'ecosystem'"
    if os.environ.get("URING_TRIO_REQUIRE") == "1":
        raise ImportError(reason)
    pytest.skip(reason, allow_module_level=True)


def marks() -> list[pytest.MarkDecorator]:
    """For ``pytestmark``: all that is here is about the ring."""
    denied = harness.ring_denied()
    must_run = os.environ.get("URING_TRIO_REQUIRE") == "1"
    return [
        pytest.mark.ecosystem,
        pytest.mark.skipif(denied is not None and not must_run, reason=str(denied)),
    ]


def on_ring(async_fn: Callable[..., Awaitable[T]], *args: Any, **at_least: int) -> T:
    """Run on the ring. At the end so many operations of each opcode must have been there.

    What a plain call of ours has spared is counted with them: nobody else makes any.

    ``harness.run`` asks whether the run was on io_uring, and whether its books balance.
    """

    async def main() -> T:
        result = await async_fn(*args)
        # What the program left to the collector may still own a socket.
        gc.collect()
        assert_by_ring(vars(harness.io_statistics()), **at_least)
        return result

    result: T = harness.run(harness.RING, main)
    return result


def assert_by_ring(statistics: dict[str, Any], **at_least: int) -> None:
    """Statistics of a run, its own or one that another process sent, prove the ring."""
    assert statistics["backend"] == harness.RING
    assert statistics["stock_calls"] == {}
    assert statistics["stale_cqes"] == 0
    made = Counter(statistics["operations"]) + Counter(statistics["plain_calls"])
    assert all(made[opcode] >= count for opcode, count in at_least.items()), made


@contextlib.contextmanager
def stdlib_socket_calls() -> Iterator[list[str]]:
    """The calls of socket methods that this thread makes, which is what the ring is there to save.

    By the profiler, because whoever kept a method before would not be seen otherwise.
    trio's own wakeup socket is left out.
    """
    calls: list[str] = []
    wakeup = trio._core._run.GLOBAL_RUN_CONTEXT.runner.entry_queue.wakeup
    own = (wakeup.wakeup_sock, wakeup.write_sock)

    def note(_frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in SOCKET_METHODS:
            owner = getattr(function, "__self__", None)
            if isinstance(owner, socket.socket) and owner not in own:
                calls.append(function.__name__)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


# At import, because making keys takes a while.
AUTHORITY = trustme.CA()


def server_context() -> ssl.SSLContext:
    """For a server at HOST."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(HOST).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """Trusts our authority and nobody else."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@contextlib.asynccontextmanager
async def hypercorn(app: Any, **options: Any) -> AsyncIterator[str]:
    """hypercorn's trio worker with *app* on a free port; the URL of its root."""
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config.from_mapping(bind=[f"{HOST}:0"], errorlog=None, graceful_timeout=1, **options)
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        server = partial(serve, app, config, shutdown_trigger=shutdown.wait)
        (url,) = await nursery.start(server)
        try:
            yield url
        finally:
            shutdown.set()
