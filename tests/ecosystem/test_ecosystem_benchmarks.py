"""``python -m benchmarks.ecosystem`` for a moment: it works, and reports truly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ecosystem_tools import marks, need

need("hypercorn", "trio_websocket")

ROOT = Path(__file__).resolve().parents[2]

from benchmarks.ecosystem import __main__ as command_line
from benchmarks.ecosystem import load
from benchmarks.ecosystem.load import HTTP, WEBSOCKET, Exchange, measure
from benchmarks.peers import RING, Peer

pytestmark = marks()

SECONDS = 0.1


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(load, "WARMUP_S", 0.0)
    monkeypatch.setattr(load, "LIMIT_S", 2.0)


def test_scenarios_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    chosen = ["hypercorn_hello-8", "websocket_echo-8"]
    options = [word for name in chosen for word in ("--scenario", name)]
    command = [*options, "--rounds", "1", "--seconds", str(SECONDS), "--json", str(path)]
    assert command_line.main(command) == 0
    figures = json.loads(path.read_text())["scenarios"]
    assert list(figures) == chosen
    for scenario in figures.values():
        assert list(scenario) == ["ring", "stock", "stock-again"]
        for server in scenario.values():
            (report,) = server["rounds"]
            assert report["requests"] > 0
            assert report["errors"] == 0
            assert 0 < report["server_cpu_ns"] <= 2 * report["elapsed_ns"]
    printed = capsys.readouterr().out
    assert all(f"{name}: cpu_us of ring" in printed for name in chosen)


@pytest.mark.parametrize(
    ("program", "exchange"), [("hypercorn_hello", HTTP), ("websocket_echo", WEBSOCKET)]
)
def test_wrong_answers_and_hang_ups_are_errors(program: str, exchange: Exchange) -> None:
    peer = Peer(RING, program, "", (RING,))
    nonsense = Exchange(exchange.greeting, b"\r\n\r\n\xff" * 20, exchange.answer_end)
    report = measure(peer, nonsense, connections=1, seconds=SECONDS)
    assert (report.requests, report.errors) == (0, 1)
