"""The errors of the callback servers, as those see them who catch them."""

from __future__ import annotations

import inspect
import pickle

import pytest

from uring_trio.gain import _errors

# The class, the standard classes that catch it too.
BASES = [
    (_errors.AddressError, ValueError),
    (_errors.UnsupportedProtocol, _errors.AddressError),
    (_errors.IsEmpty, BlockingIOError),
    (_errors.ShortBuffer, BufferError),
    (_errors.StuckInput, BufferError),
    (_errors.ConnectionClosed, ConnectionError),
    (_errors.OpNotAvailableInMode, RuntimeError),
    (_errors.EndOfStream, EOFError),
    (_errors.DeadlineExceeded, TimeoutError),
    (_errors.InvalidDuration, ValueError),
    (_errors.InvalidState, RuntimeError),
    (_errors.ServerAlreadyRunning, _errors.InvalidState),
    (_errors.NotSupported, ValueError),
]
ALL = [error for error, _ in BASES]
WITHOUT_ARGUMENTS = [
    error
    for error in ALL
    if error
    not in (
        _errors.AddressError,
        _errors.UnsupportedProtocol,
        _errors.OpNotAvailableInMode,
        _errors.StuckInput,
    )
]


def test_every_error_of_the_module_is_tested_here() -> None:
    classes = {
        item
        for _, item in inspect.getmembers(_errors, inspect.isclass)
        if issubclass(item, Exception) and item.__module__ == _errors.__name__
    }
    assert classes == {_errors.GainError, *ALL}


@pytest.mark.parametrize(("error", "base"), BASES)
def test_errors_are_gain_errors_and_standard_ones(
    error: type[Exception], base: type[Exception]
) -> None:
    assert issubclass(error, _errors.GainError)
    assert issubclass(error, base)
    assert error.__doc__


@pytest.mark.parametrize("error", WITHOUT_ARGUMENTS)
def test_errors_say_what_is_wrong_by_themselves(error: type[_errors.GainError]) -> None:
    assert str(error()) == error.text
    assert str(error("other words")) == "other words"
    assert error.text != _errors.GainError.text


@pytest.mark.parametrize("error", WITHOUT_ARGUMENTS)
def test_errors_survive_pickling(error: type[_errors.GainError]) -> None:
    for original in (error(), error("other words")):
        copy = pickle.loads(pickle.dumps(original))
        assert type(copy) is error
        assert str(copy) == str(original)


def test_system_errors_keep_their_number() -> None:
    error = _errors.DeadlineExceeded(110, "timed out")
    assert error.errno == 110
    assert _errors.DeadlineExceeded().errno is None


@pytest.mark.parametrize("error", [_errors.AddressError, _errors.UnsupportedProtocol])
@pytest.mark.parametrize("address", ["foo://x", "a\0b", 17, b"x", [], None])
def test_address_error_holds_its_input_unchanged(
    error: type[_errors.AddressError], address: object
) -> None:
    original = error(address, "no reason")
    assert original.address is address
    assert original.reason == "no reason"
    assert str(original) == f"address {address!r}: no reason"
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert (copy.address, copy.reason, str(copy)) == (address, "no reason", str(original))


def test_stuck_input_names_the_sizes_and_the_option() -> None:
    error = _errors.StuckInput(70_000, 65_536, "the peer has ended its stream")
    assert (error.buffered, error.limit) == (70_000, 65_536)
    assert error.reason == "the peer has ended its stream"
    for word in ("70000 bytes", "read_buffer_limit of 65536", error.reason, "pause_reading()"):
        assert word in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is _errors.StuckInput
    assert (copy.buffered, copy.limit, str(copy)) == (70_000, 65_536, str(error))


def test_op_not_available_names_the_way_out() -> None:
    error = _errors.OpNotAvailableInMode("write")
    assert error.op == "write"
    assert "write is not available" in str(error)
    assert "call_soon_threadsafe(fn, *args)" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


class Serious(_errors.BaseExceptionGroup):
    """A user's: no Exception, whatever it holds."""


def test_parted_is_what_was_raised_from_what_came_with_it() -> None:
    raised, ended = ValueError("raised"), KeyboardInterrupt()
    ours, rest = _errors.parted(_errors.BaseExceptionGroup("both", [raised, ended]))
    assert isinstance(ours, Exception)
    assert ours.exceptions == (raised,)  # type: ignore[attr-defined]
    assert isinstance(rest, _errors.BaseExceptionGroup)
    assert rest.exceptions == (ended,)
    ours, rest = _errors.parted(_errors.BaseExceptionGroup("ended", [ended]))
    assert ours is None
    assert isinstance(rest, _errors.BaseExceptionGroup)
    assert rest.exceptions == (ended,)
    serious = Serious("serious", [raised])
    assert _errors.parted(serious) == (None, serious)
