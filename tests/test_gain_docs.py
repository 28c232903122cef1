"""docs/gain.md is complete: every public name, method, option and error is on it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from uring_trio import gain
from uring_trio._slots import Occupant

PAGE = Path(__file__).parents[1] / "docs" / "gain.md"
TEXT = PAGE.read_text()
# Names in code spans, with or without arguments; `a(b)`, `x.a`, and `A, B` in one span.
NAMED = {
    name
    for span in re.findall(r"`([^`\n]+)`", TEXT)
    for name in re.findall(r"[A-Za-z_]\w*", re.sub(r"\".*?\"", "", span))
}


def section(heading: str) -> str:
    """The text from this heading to the next of its level."""
    level, _, _ = heading.partition(" ")
    _, found, rest = TEXT.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^{level} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_every_public_name_is_there() -> None:
    assert set(gain.__all__) <= NAMED


@pytest.mark.parametrize(
    ("heading", "cls"),
    [
        ("## The handler", gain.EventHandler),
        ("## The connection", gain.Conn),
        ("## The server", gain.Server),
    ],
)
def test_every_method_has_its_line(heading: str, cls: type) -> None:
    named = set(re.findall(r"`(?:await )?(\w+)", section(heading).replace("`, `", "` `")))
    assert methods_and_properties(cls) <= named


def methods_and_properties(cls: type) -> set[str]:
    """Others are between a connection and its worker, or the slots where it stands."""
    return {
        name
        for name in dir(cls)
        if not name.startswith("_")
        and name not in vars(Occupant)
        and (callable(getattr(cls, name)) or isinstance(getattr(cls, name), property))
    }


def test_every_option_has_its_line_and_its_default() -> None:
    rows = {}
    for names, default in re.findall(r"^\| (.+?) \| (.+?) \|", section("## Options"), re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            rows[name] = default.strip("`")
    for field in dataclasses.fields(gain.Config):
        shown = rows.pop(field.name)
        default = field.default
        if isinstance(default, gain.LoadBalancing):
            assert shown == "round robin"
        elif isinstance(default, gain.Architecture):
            assert shown == f'"{default.value}"'
        elif isinstance(default, (int, float)) and not isinstance(default, bool):
            assert float(shown.replace(",", "")) == default
        else:
            assert shown == str(default)
    assert not rows


def test_every_error_has_its_line_and_its_base() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section("## Errors"), re.MULTILINE))
    errors = {
        name
        for name in gain.__all__
        if isinstance(getattr(gain, name), type) and issubclass(getattr(gain, name), Exception)
    }
    assert set(rows) == errors - {"GainError"}
    for name, base in rows.items():
        assert issubclass(getattr(gain, name), gain.GainError)
        assert base in {cls.__name__ for cls in getattr(gain, name).__mro__}


def test_statistics_are_all_named() -> None:
    for cls in (gain.ServerStatistics, gain.WorkerStatistics):
        for field in dataclasses.fields(cls):
            assert field.name in NAMED


def test_each_fault_of_gain_has_its_line() -> None:
    faults = re.findall(r"^\| (B\d+): ", section("## What differs, and why"), re.MULTILINE)
    assert faults == [f"B{number}" for number in range(1, 20)]


GAIN = """
DefaultEventHandler OnStart OnAccept OnRead OnWrite OnClose
ListenAndServe NewServer NewConfig
Start StartAsMainProcess Shutdown AsyncShutdown ActiveConnections IsRunning
Read Next Peek Discard WriteTo InboundBuffered Write ReadFrom OutboundBuffered
Close Context SetContext LocalAddr RemoteAddr Fd
SetReadBuffer SetWriteBuffer SetLinger SetKeepAlivePeriod SetNoDelay
WithArchitecture WithAsyncHandler WithGoroutinePool WithCPUAffinity WithProcessPriority
WithWorkers WithCBPF WithLoadBalancing WithSocketRecvBufferSize WithSocketSendBufferSize
WithTCPKeepAlive WithLoggerLevel WithPrettyLogger WithMaxSQEntries WithMaxCQEvents
Reactor SocketSharding RoundRobin LeastConnections SourceIPHash
ErrUnsupportedProtocol ErrUnsupportedTCPProtocol ErrUnsupportedUDPProtocol
ErrNoIPv4AddressOnInterface ErrNotSupported ErrSkippable ErrIsEmpty
ErrConnectionAlreadyClosed ErrConnectionClosed ErrOpNotAvailableInMode
ErrConnectionQueueIsNil ErrUnknownConnectionState ErrInvalidTimeDuration ErrInvalidState
ErrAddressNotFound ErrServerAlreadyRunning ErrGettingSQE EOF ErrShortBuffer ErrShortWrite
SyscallError
"""


def test_every_name_of_gain_is_in_its_tables() -> None:
    table = section("## Coming from Gain")
    assert [name for name in GAIN.split() if not re.search(rf"\b{name}\b", table)] == []
