"""The scenarios with other people's servers for a moment: they work, and report truly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ecosystem_tools import marks, need

need("hypercorn", "trio_websocket")

ROOT = Path(__file__).resolve().parents[2]

from benchmarks import __main__ as command_line
from benchmarks import exchange as load
from benchmarks import page, system_calls
from benchmarks.exchange import HTTP, WEBSOCKET, Exchange, Spoken
from benchmarks.peers import RING, Peer

pytestmark = marks()

SECONDS = 0.1


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(load, "WARMUP_S", 0.0)
    monkeypatch.setattr(load, "LIMIT_S", 2.0)
    # Tests of their own have what these two take longest with.
    monkeypatch.setattr(page, "draw", lambda _scenarios, _directory: {})
    monkeypatch.setattr(system_calls, "denied", lambda: "not in this test")


def test_scenarios_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio_servers = ["ring", "stock", "stock-again"]
    chosen = {"hypercorn-8": [*trio_servers, "asyncio", "uvloop"], "websocket-8": trio_servers}
    command = [*chosen, "--rounds", "1", "--seconds", str(SECONDS), "--results", str(tmp_path)]
    assert command_line.main(command) == 0
    figures = json.loads((tmp_path / "results.json").read_text())
    assert list(figures) == list(chosen)
    for name, scenario in figures.items():
        assert list(scenario["programs"]) == chosen[name]
        for server in scenario["programs"].values():
            (report,) = server["rounds"]
            assert report["units"] > 0
            assert report["errors"] == 0
            assert 0 < report["cpu_ns"] <= 2 * report["elapsed_ns"]
    printed = capsys.readouterr().out
    assert "hypercorn-8: cpu_us of ring" in printed


@pytest.mark.parametrize(
    ("program", "exchange"), [("hypercorn_hello", HTTP), ("websocket_echo", WEBSOCKET)]
)
def test_wrong_answers_and_hang_ups_are_errors(program: str, exchange: Exchange) -> None:
    peer = Peer(RING, program, "", (RING,))
    nonsense = Exchange(exchange.greeting, b"\r\n\r\n\xff" * 20, exchange.answer_end)
    report = Spoken(nonsense, 1).measure(peer, SECONDS)
    assert (report.units, report.errors) == (0, 1)
