"""The demo, cut down to one short measurement of each server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest

ROOT = Path(__file__).resolve().parents[1]

from benchmarks import c_programs, demo, echo
from benchmarks.echo import EchoScenario
from benchmarks.processes import ServerProcess

from uring_trio import _kernel

if TYPE_CHECKING:
    from collections.abc import Callable

LOAD = EchoScenario(2, 64)


@pytest.fixture
def run_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    monkeypatch.chdir(ROOT)  # where `python -m benchmarks.servers...` is to be run
    monkeypatch.setattr(demo, "LOADS", (LOAD,))
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(echo, "WARMUP_S", 0.0)

    def run(*arguments: str) -> tuple[int, list[str]]:
        code = demo.main(["--seconds", "0.05", *arguments])
        return code, capsys.readouterr().out.splitlines()

    return run


def rows(lines: list[str]) -> list[str]:
    """Which servers the table has a row for."""
    start = next(i for i, line in enumerate(lines) if "CPU us/msg" in line)
    table = [line.split() for line in lines[start:] if LOAD.name in line]
    return [words[1] for words in table]


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


def test_without_the_extension_it_says_so_and_shows_stock(
    run_demo: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernel, "extension_available", lambda: False)
    code, lines = run_demo("--plain")
    assert any("cannot be used" in line and "extension" in line for line in lines)
    assert rows(lines) == ["stock"]
    assert code == 0


def test_without_a_compiler_it_says_so(
    run_demo: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    c_programs.build.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    code, lines = run_demo("--plain")
    assert "cannot be built" in lines[0]
    assert "compiler" in lines[0]
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
    monkeypatch.setattr(demo, "ROUNDS", 3)
    monkeypatch.setattr(demo, "BUDGET_S", budget_s)
    monkeypatch.setattr(demo, "LOADS", (LOAD, EchoScenario(1, 64)))
    _, lines = run_demo("--plain")
    assert any(f"median of {rounds} of" in line for line in lines)
    measured = [line for line in lines if line.startswith("[")]
    assert len(measured) == 2 * int(rounds[0])


def test_budget_is_what_people_look_at_a_demo_for() -> None:
    # What is measured, with as much again for starting processes.
    longest_pair_s = 2 * 2 * (echo.WARMUP_S + demo.SECONDS)
    assert demo.BUDGET_S + longest_pair_s < 30


def test_make_demo_tells_what_it_does_while_it_installs(tmp_path: Path) -> None:
    command = ["make", "-n", "demo", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (install,) = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert not {"--quiet", "-q"} & set(install.split())
    before = done.stdout.partition("pip install")[0]
    assert "this takes a minute" in before


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_must_be_a_duration(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad usage is told in a line, with exit status 2, as doctor tells it."""
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--plain", "--seconds", seconds])
    assert exit_.value.code == 2
    assert f"invalid duration value: {seconds!r}" in capsys.readouterr().err


def test_bad_environment_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "uring")
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--plain"])
    assert exit_.value.code == 2
    assert "URING_TRIO_BACKEND must be one of" in capsys.readouterr().err


# ---- from an installed package -----------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--plain"], ["--help"]])
def test_the_installed_package_says_where_the_demo_is(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uring_trio", "demo", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "`make demo`" in line
    assert (ROOT / "benchmarks" / "demo.py").is_file()
    assert "benchmarks/demo.py" in line
