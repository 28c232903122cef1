"""The demo, cut down to one short measurement of each server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest

from uring_trio import _demo, _kernel
from uring_trio._loadgen import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

LOAD = _demo.Load(2, 64)


@pytest.fixture
def run_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    monkeypatch.setattr(_demo, "LOADS", (LOAD,))
    monkeypatch.setattr(_demo, "ROUNDS", 1)
    monkeypatch.setattr(_demo, "WARMUP_S", 0.0)

    def run(*arguments: str) -> tuple[int, list[str]]:
        code = _demo.main(["--seconds", "0.05", *arguments])
        return code, capsys.readouterr().out.splitlines()

    return run


def rows(lines: list[str]) -> list[str]:
    """Which servers the table has a row for."""
    start = next(i for i, line in enumerate(lines) if "CPU us/msg" in line)
    table = [line.split() for line in lines[start:] if str(LOAD) in line]
    return [words[4] for words in table]


@pytest.mark.parametrize("style", [["--plain"], []])
def test_both_servers_are_in_the_table(
    run_demo: Callable[..., tuple[int, list[str]]], style: list[str]
) -> None:
    if reason := harness.ring_denied():
        pytest.skip(reason)
    code, lines = run_demo(*style)
    assert rows(lines) == ["io_uring", "stock"]
    assert code == 0


def test_where_the_ring_is_denied_it_says_why_and_shows_stock(
    run_demo: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "epoll")
    code, lines = run_demo("--plain")
    assert any("cannot be used" in line and "URING_TRIO_BACKEND" in line for line in lines)
    assert rows(lines) == ["stock"]
    assert code == 0


def test_without_the_extension_it_says_so(
    run_demo: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernel, "extension_available", lambda: False)
    code, lines = run_demo("--plain")
    assert "extension is not there" in lines[0]
    assert code == 1


def test_a_server_that_ends_before_it_listens_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no answer from the server"):
        ServerProcess([sys.executable, "-c", ""])


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, "1 round"), (60.0, "3 rounds")])
def test_rounds_are_left_out_when_time_is_short_but_for_the_first(
    run_demo: Callable[..., tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    budget_s: float,
    rounds: str,
) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "epoll")
    monkeypatch.setattr(_demo, "ROUNDS", 3)
    monkeypatch.setattr(_demo, "BUDGET_S", budget_s)
    monkeypatch.setattr(_demo, "LOADS", (LOAD, _demo.Load(1, 64)))
    _, lines = run_demo("--plain")
    assert any(f"median of {rounds} of" in line for line in lines)
    measured = [line for line in lines if line.startswith("[")]
    assert len(measured) == 2 * int(rounds[0])


def test_budget_is_what_people_look_at_a_demo_for() -> None:
    # What is measured, with as much again for starting processes.
    longest_pair_s = 2 * 2 * (_demo.WARMUP_S + _demo.SECONDS)
    assert _demo.BUDGET_S + longest_pair_s < 30


def test_make_demo_tells_what_it_does_while_it_installs(tmp_path: Path) -> None:
    command = ["make", "-n", "demo", f"VENV={tmp_path / 'venv'}"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    (install,) = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert not {"--quiet", "-q"} & set(install.split())
    before = done.stdout.partition("pip install")[0]
    assert "this takes a minute" in before
