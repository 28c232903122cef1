"""What compares callback servers, for a moment: it works, and reports truly."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest
from benchmarks import __main__ as benchmarks_command
from benchmarks import c_programs, echo, wrk
from benchmarks.comparison import Bar, Comparison, take_turns
from benchmarks.echo import EchoScenario
from benchmarks.gain import __main__ as command_line
from benchmarks.gain import connections, hostile
from benchmarks.gain.clients import KINDS, Kind
from benchmarks.measurement import METRICS, Measurement
from benchmarks.peers import (
    C_EPOLL,
    C_RING,
    GAIN,
    UVLOOP_PROTOCOL,
    Peer,
    callback_servers,
    echo_servers,
)
from benchmarks.report import check_bars
from benchmarks.scenarios import SCENARIOS, TWO_WORKERS
from benchmarks.servers.responder import BAD_REQUEST, OK, Responder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ECHO = echo_servers()
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 0.1
REQUEST = b"GET /plaintext HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No warm-up, and where `python -m benchmarks` is to be run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(echo, "WARMUP_S", 0.0)
    monkeypatch.setattr(hostile, "WARMUP_S", 0.0)
    monkeypatch.setattr(connections, "SETTLE_S", 0.05)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def find(peers: Sequence[Peer], name: str) -> Peer:
    """The server of that name; the test is skipped if it cannot run here."""
    peer = next(each for each in peers if each.name == name)
    if reason := peer.missing():
        pytest.skip(reason)
    return peer


def silent(_text: str) -> None:
    """No progress is shown."""


# What is measured with.


def measurement(cpu_us: float) -> Measurement:
    """1,000 messages at so much CPU each."""
    return Measurement(
        units=1000, elapsed_ns=10**9, cpu_ns=round(cpu_us * 1e6), errors=0, p50_ns=1000, p99_ns=2000
    )


def comparison(**cpu_us: list[float]) -> Comparison[Measurement]:
    reports = {name: [measurement(each) for each in rounds] for name, rounds in cpu_us.items()}
    return Comparison("64x64B", METRICS, reports, "base", "again")


def test_ratios_are_taken_within_a_round() -> None:
    found = comparison(base=[10, 20, 40], one=[11, 20, 36]).ratio("one", "cpu_us")
    assert found is not None
    assert (found.low, found.median, found.high) == pytest.approx((0.9, 1.0, 1.1))


@pytest.mark.parametrize(
    ("cpu_us", "at_most", "word"),
    [
        (9.9, 1.0, "met"),
        (10.4, 1.0, "noise"),  # the base was 1.05 of itself once
        (10.6, 1.0, "MISSED"),
        (14.9, 1.5, "met"),
        (15.1, 1.5, "MISSED"),  # a bar with room in it gets none from the noise
    ],
)
def test_not_worse_means_beyond_the_noise(cpu_us: float, at_most: float, word: str) -> None:
    found = comparison(base=[10, 10, 10], again=[9.5, 10, 10.5], gain=[cpu_us] * 3)
    (line,) = check_bars(found, "gain", [Bar("cpu_us", "base", at_most)])
    assert line.split()[0] == word


def test_a_bar_against_a_server_that_was_not_run_is_left_out() -> None:
    assert check_bars(comparison(gain=[1.0]), "gain", [Bar("cpu_us", "base", 1.0)]) == []


def test_servers_take_turns_in_alternating_order() -> None:
    order: list[str] = []

    def measure(peer: Peer) -> Measurement:
        order.append(peer.name)
        return measurement(1.0)

    take_turns([Peer(name, "", "") for name in "abc"], 3, measure, silent)
    assert "".join(order) == "abccbaabc"


@pytest.mark.parametrize("cut", [1, 7, len(REQUEST), len(REQUEST) + 1, 1000])
def test_the_responder_answers_requests_in_any_pieces(cut: int) -> None:
    responder = Responder()
    data = REQUEST * 5
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    assert b"".join(map(responder.feed, pieces)) == OK * 5
    assert not responder.broken


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: here\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost here\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi",
        b"x" * 10_000,
    ],
)
def test_the_responder_refuses_what_it_does_not_know(bad: bytes) -> None:
    responder = Responder()
    assert responder.feed(REQUEST + bad) == OK + BAD_REQUEST
    assert responder.broken


# Without a compiler the servers in C are left out, and the output says why.


def test_a_c_server_that_cannot_be_built_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    c_programs.build.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    reason = next(peer for peer in ECHO if peer.name == C_EPOLL).missing()
    assert reason is not None
    assert "cc" in reason


# The parts.


@pytest.mark.parametrize("name", [GAIN, UVLOOP_PROTOCOL, C_EPOLL, C_RING])
def test_echo_brings_every_byte_back(name: str) -> None:
    peer = find(ECHO, name)
    # More than a buffer, and than a socket takes at once.
    report = echo.measure_once(peer, EchoScenario(3, 300 << 10), SECONDS)
    assert report.errors == 0
    assert report.messages > 0
    assert report.server_cpu_ns > 0


def test_the_c_ring_has_more_connections_than_buffers() -> None:
    # Receives that find no buffer end with ENOBUFS and are armed again.
    peer = find(ECHO, C_RING)
    report = echo.measure_once(peer, EchoScenario(200, 64), SECONDS)
    assert report.errors == 0
    assert report.messages > 200


def test_two_workers_serve() -> None:
    (scenario,) = [each for each in SCENARIOS if each.name == "workers-64x64B"]
    peer = find(scenario.peers, TWO_WORKERS)
    report = echo.measure_once(peer, EchoScenario(4, 64), SECONDS)
    assert report.errors == 0
    assert report.messages > 0


@pytest.mark.parametrize("pipelined", [1, 4])
def test_wrk_gets_its_answers(pipelined: int) -> None:
    if reason := wrk.wrk_missing():
        pytest.skip(reason)
    peer = find(callback_servers("http"), GAIN)
    report = wrk.Wrk(8, pipelined).measure(peer, SECONDS)
    assert report.errors == 0
    assert report.units > 0
    assert report.cpu_ns > 0
    assert (report.p50_ns > 0) == (pipelined == 1)


def test_without_wrk_the_scenario_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert benchmarks_command.main(["http", "http-pipelined", "--results", str(tmp_path)]) == 0
    assert "apt-get install wrk" in capsys.readouterr().out


def test_connections_are_served_and_cost_no_buffer_while_idle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := harness.ring_denied():
        pytest.skip(reason)
    path = tmp_path / "out.json"
    arguments = ["connections", "--connections", "60", "--servers", GAIN]
    code = command_line.main([*arguments, "--seconds", str(SECONDS), "--json", str(path)])
    assert code == 0
    found = json.loads(path.read_text())["connections"][GAIN]
    assert found["served"] == 60
    assert found["idle"]["connections"] == 60
    assert found["idle"]["buffers_leased"] == 0
    assert "MISSED" not in capsys.readouterr().out


def test_more_connections_than_the_limit_allows_are_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Beyond fs.nr_open not even root may go.
    nr_open = int(Path("/proc/sys/fs/nr_open").read_text())
    assert command_line.main(["connections", "--connections", str(nr_open)]) == 0
    assert "RLIMIT_NOFILE is" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_hostile_client_leaves_nothing_behind(kind: Kind) -> None:
    peer = find(ECHO, GAIN)
    side = hostile.run_side(peer, kind, 0.3, hostile=True, pace=kind.pace)
    assert side.client.operations > 0
    assert side.client.failures == 0
    assert side.load.errors == 0
    assert side.left_over == {}


def test_the_client_in_a_hostile_ones_place_keeps_its_pace() -> None:
    peer = find(ECHO, UVLOOP_PROTOCOL)
    kind = next(each for each in KINDS if each.name == "half-closing")
    side = hostile.run_side(peer, kind, 0.5, hostile=False, pace=100.0)
    assert side.client.failures == 0
    # Unpaced it makes thousands.
    assert 0 < side.client.per_second < 120


def test_books_that_do_not_settle_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "SETTLE_LIMIT_S", 0.0)
    with find(ECHO, UVLOOP_PROTOCOL).start() as server:
        books = hostile.read_books(server)
        assert hostile.wait_for_books(server, books) == {}
        assert hostile.wait_for_books(server, {"fds": books["fds"] - 1}) == {"fds": 1}
