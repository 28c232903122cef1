"""The public surface of the callback servers is a list, and small."""

from __future__ import annotations

import inspect
import pickle

import pytest

from uring_trio import gain

SURFACE = {
    "Address",
    "Architecture",
    "Config",
    "Conn",
    "EventHandler",
    "LoadBalancing",
    "Server",
    "ServerStatistics",
    "WorkerStatistics",
    "listen_and_serve",
    "serve",
}
ERRORS = {
    "AddressError": ValueError,
    "ConnectionClosed": ConnectionError,
    "DeadlineExceeded": TimeoutError,
    "EndOfStream": EOFError,
    "GainError": Exception,
    "InvalidDuration": ValueError,
    "InvalidState": RuntimeError,
    "IsEmpty": BlockingIOError,
    "NotSupported": ValueError,
    "OpNotAvailableInMode": RuntimeError,
    "ServerAlreadyRunning": RuntimeError,
    "ShortBuffer": BufferError,
    "StuckInput": BufferError,
    "UnsupportedProtocol": ValueError,
}
SERVER = {
    "active_connections",
    "addresses",
    "async_shutdown",
    "is_running",
    "serve",
    "shutdown",
    "start",
    "start_soon",
    "statistics",
}


def test_names_are_these() -> None:
    assert set(gain.__all__) == SURFACE | set(ERRORS)
    assert len(gain.__all__) == len(set(gain.__all__))
    assert {name for name in vars(gain.Server) if not name.startswith("_")} == SERVER


@pytest.mark.parametrize("name", gain.__all__)
def test_each_is_documented_and_can_be_pickled(name: str) -> None:
    thing = getattr(gain, name)
    assert thing.__module__.startswith("uring_trio.gain")
    assert inspect.getdoc(thing)
    assert pickle.loads(pickle.dumps(thing)) is thing


@pytest.mark.parametrize("name", sorted(SERVER))
def test_methods_of_a_server_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(gain.Server, name))


@pytest.mark.parametrize(("name", "standard"), ERRORS.items())
def test_errors_are_of_gain_and_of_the_standard_library(
    name: str, standard: type[BaseException]
) -> None:
    assert issubclass(getattr(gain, name), gain.GainError)
    assert issubclass(getattr(gain, name), standard)


def test_statistics_are_frozen() -> None:
    for statistics in (gain.ServerStatistics(), gain.WorkerStatistics()):
        with pytest.raises(AttributeError):
            setattr(statistics, "workers", ())  # noqa: B010  the type checker knows it, too
