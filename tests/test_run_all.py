"""``make test``: what is chosen, and that a check which hangs is found, shown and ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import machine_speed
import pytest
import run_all

if TYPE_CHECKING:
    from collections.abc import Callable

    Runs = Callable[..., tuple[run_all.Check, str]]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Runs:
    """Run Python code as a check, on a machine of a certain slowness, with little patience."""
    monkeypatch.setattr(run_all, "SILENCE_S", 1.5)
    monkeypatch.setattr(run_all, "LOOK_S", 0.1)

    def run(
        code: str, *, limit_s: int = 60, quiet: bool = False, slowness: float = 1.0
    ) -> tuple[run_all.Check, str]:
        monkeypatch.setattr(machine_speed, "measure", lambda rounds: slowness)
        check = run_all.Check("trial", [sys.executable, "-u", "-c", code], limit_s, quiet=quiet)
        run_all.run_check(check)
        return check, capfdbinary.readouterr().out.decode()

    return run


def test_unknown_name_is_an_error_that_lists_all_checks() -> None:
    command = [sys.executable, str(ROOT / "tests" / "run_all.py"), "ruff", "typo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'typo'" in done.stderr
    for check in run_all.checks():
        assert check.name in done.stderr
    assert done.stdout == ""  # nothing was run


def test_names_choose_and_what_is_long_is_run_when_it_is_asked_for() -> None:
    known = run_all.checks()

    def chosen(*names: str, whole: bool = False) -> list[str]:
        return [check.name for check in run_all.choose(known, list(names), whole=whole)]

    assert chosen("mypy", "ruff") == ["ruff check", "ruff format", "mypy"]
    assert "long tests" not in chosen()
    assert "pytest" in chosen()
    assert chosen("long") == ["long tests"]
    assert chosen(whole=True) == [check.name for check in known]


def test_limits_of_single_tests_grow_with_a_slow_machine_and_stay_below_that_of_silence() -> None:
    for slowness in (1.0, 1.4, 10.0):
        (check,) = run_all.choose(run_all.checks(slowness), ["pytest"], whole=False)
        limit = next(word for word in check.command if word.startswith("--timeout="))
        seconds = float(limit.partition("=")[2])
        assert seconds == min(60 * slowness, 90)
        assert seconds < run_all.SILENCE_S < 120


def test_check_that_works_passes(run: Runs) -> None:
    check, text = run("print('=== 3 passed, 1 skipped in 0.12s ===')")
    assert check.passed
    assert check.counts == {"passed": 3, "skipped": 1}
    assert "3 passed" in text


def test_check_that_fails_has_failed(run: Runs) -> None:
    check, text = run("import sys; print('so'); sys.exit(3)")
    assert not check.passed
    assert "ended" not in text


@pytest.mark.parametrize("quiet", [False, True])
def test_silence_is_found_and_shown_with_the_stacks_of_all_threads(run: Runs, quiet: bool) -> None:
    code = """
import threading, time
def waits_in_a_thread(): time.sleep(60)
threading.Thread(target=waits_in_a_thread).start()
def waits_itself(): time.sleep(60)
print("begun")
waits_itself()
"""
    started = time.monotonic()
    check, text = run(code, quiet=quiet)
    assert time.monotonic() - started < 30
    assert not check.passed
    for words in ("begun", "no sign of life", "waits_in_a_thread", "waits_itself"):
        assert words in text


def test_child_that_hangs_is_shown_and_ended_with_the_check(run: Runs) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import time
def waits_in_a_child(): time.sleep(60)
waits_in_a_child()
'''])
print("child", child.pid)
child.wait()
"""
    check, text = run(code)
    assert not check.passed
    assert "waits_in_a_child" in text
    pid = text.partition("child ")[2].split()[0]
    assert not Path("/proc", pid).exists()


def test_spin_without_output_is_silence_too(run: Runs) -> None:
    check, text = run("while True: pass")
    assert not check.passed
    assert "no sign of life" in text


def test_cpu_is_a_sign_of_life_of_a_check_that_is_quiet(run: Runs) -> None:
    code = """
import time
end = time.monotonic() + 4
while time.monotonic() < end: pass
"""
    check, _ = run(code, quiet=True)
    assert check.passed


CHATTY = """
import time
for _ in range(30):
    print(".", end="")
    time.sleep(0.1)
"""


def test_limit_of_the_whole_is_in_time_of_a_machine_at_full_speed(run: Runs) -> None:
    check, text = run(CHATTY, limit_s=1)
    assert not check.passed
    assert "it took longer than 1 s" in text
    check, _ = run(CHATTY, limit_s=1, slowness=10.0)
    assert check.passed


def test_slowness_is_measured_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1.0 <= machine_speed.measure(2) <= machine_speed.SLOWNESS_MAX
    monkeypatch.setattr(machine_speed, "REFERENCE_S", 1e-9)
    assert machine_speed.measure(1) == machine_speed.SLOWNESS_MAX
    monkeypatch.setattr(machine_speed, "REFERENCE_S", 1e9)
    assert machine_speed.measure(1) == 1.0
    monkeypatch.setenv(machine_speed.VARIABLE, "2.5")
    assert machine_speed.slowness() == 2.5
