"""What the tests of listening sockets share."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import harness
import pytest

from uring_trio.gain._address import parse_all
from uring_trio.gain._config import make_config
from uring_trio.gain._listen import Listener, bind

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND_S = 5.0  # for what takes microseconds


@contextlib.contextmanager
def bound(address: Any, copies: int = 1, **options: Any) -> Iterator[list[list[Listener]]]:
    workers = bind(parse_all(address), make_config(**options), copies)
    try:
        assert len(workers) == copies
        yield workers
    finally:
        for worker in workers:
            for listener in worker:
                listener.close()


@contextlib.contextmanager
def one(address: str, **options: Any) -> Iterator[Listener]:
    with bound(address, **options) as [[listener]]:
        yield listener


@contextlib.contextmanager
def refused(number: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    """What is in here must raise that error of the kernel, and leave no socket open."""
    with harness.no_new_fds(), pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        yield caught
    assert caught.value.errno == number


def again(listener: Listener) -> str:
    """The address of a second server at the same place."""
    return f"{listener.network}://{listener.address}"


def connect(listener: Listener, host: str | None = None) -> socket.socket:
    host, port, *_ = (host or listener.address[0], *listener.address[1:])
    return socket.create_connection((host, port), timeout=BOUND_S)


def accepted(listener: Listener) -> socket.socket:
    listener.sock.settimeout(BOUND_S)
    return listener.sock.accept()[0]
