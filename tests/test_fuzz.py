"""``make fuzz``: all generators in turn, resumed, counted and told; with planted faults."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import by_seed
import children
import fault_words
import harness
import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 50


def fuzz(found: Path, *arguments: object) -> children.Done:
    """With the planted generators there, and *found* for what is kept."""
    program = ROOT / "tests" / "planted_generators.py"
    return children.run([sys.executable, program, "fuzz", found, *arguments], LIMIT_S)


def of(*names: str) -> list[str]:
    return [word for name in names for word in ("--generator", f"planted-{name}")]


def state(found: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((found / "state.json").read_text())
    return kept


def test_each_generator_has_its_seeds_and_the_summary_counts_them(tmp_path: Path) -> None:
    done = fuzz(tmp_path, *of("pair", "passes"), "--seeds", 12)
    assert done.status == 1
    told = r"^planted-pair (\d+): failed: AssertionError: cancel before close$"
    failed = re.findall(told, done.output, re.MULTILINE)
    assert 0 < len(failed) < 10
    for seed in failed:
        assert f"tests/by_seed.py planted-pair {seed} --shrink\n" in done.output
    assert re.search(rf"^planted-pair +12 +{len(failed)} ", done.output, re.MULTILINE)
    assert re.search(r"^planted-passes +12 +0 ", done.output, re.MULTILINE)
    assert f"\n  {len(failed)} x failed: AssertionError\n24 plans, " in done.output
    assert f"\n24 plans, {len(failed)} failed, " in done.output
    assert state(tmp_path)["failed"]["planted-pair"] == sorted(map(int, failed))


def test_nothing_that_fails_is_success(tmp_path: Path) -> None:
    done = fuzz(tmp_path, *of("passes"), "--seeds", 3)
    assert done.status == 0, done.output


def test_only_one_kind_of_failure_may_count(tmp_path: Path) -> None:
    done = fuzz(tmp_path, *of("pair"), "--seeds", 12, "--only", "KeyError")
    assert done.status == 0
    told = r"^planted-pair \d+: not counted: failed: AssertionError"
    assert re.search(told, done.output, re.MULTILINE)
    done = fuzz(tmp_path, *of("pair"), "--seeds", 12, "--only", "AssertionError")
    assert done.status == 1


def test_a_kind_of_failure_has_a_word_over_all_generators() -> None:
    assert fault_words.is_of("Stuck", "not-told")
    assert fault_words.is_of("KeyError NotTold", "not-told")
    assert fault_words.is_of("NotTold", "NotTold")
    assert not fault_words.is_of("Strange ValueError", "not-told")


def test_the_next_call_goes_on_behind_the_last_and_tries_what_failed_first(tmp_path: Path) -> None:
    fuzz(tmp_path, *of("pair", "passes"), "--seeds", 12)
    before = state(tmp_path)
    done = fuzz(tmp_path, *of("pair", "passes"), "--seeds", 1, "--jobs", 1)
    told = re.findall(r"^planted-pair (\d+): failed", done.output, re.MULTILINE)
    failed = before["failed"]["planted-pair"]
    assert list(map(int, told))[: len(failed)] == failed
    assert before["next"] == {"planted-pair": 12, "planted-passes": 12}
    assert state(tmp_path)["next"] == {"planted-pair": 13, "planted-passes": 13}


def test_plans_that_once_failed_are_run_first(tmp_path: Path) -> None:
    plan: by_seed.Plan = {"options": {}, "steps": [["cancel", 101], ["close", 0]], "kernel": []}
    by_seed.write(tmp_path / "failed_plans" / "pair.json", "planted-pair", plan)
    done = fuzz(tmp_path, *of("pair"), "--seeds", 0)
    assert done.status == 1
    assert f"planted-pair {tmp_path}/failed_plans/pair.json: failed" in done.output
    assert fuzz(tmp_path, *of("passes"), "--seeds", 0).status == 0
    # New seeds are asked for, and no others.
    assert fuzz(tmp_path, *of("pair"), "--from", 0, "--seeds", 0).status == 0


def test_from_a_seed_nothing_is_kept_and_the_first_failure_may_be_the_end(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = fuzz(tmp_path, *of("pair"), "--from", 0, "--seconds", 30, "--stop", "--report", report)
    assert done.status == 1
    failures = json.loads(report.read_text())["planted-pair"]["failures"]
    assert [failure["way"] for failure in failures] == ["failed: AssertionError"]
    assert not (tmp_path / "state.json").exists()


def test_the_time_is_kept_and_who_fails_often_is_left_out(tmp_path: Path) -> None:
    started, seconds = time.monotonic(), 2 * harness.SLOWNESS
    done = fuzz(tmp_path, *of("dies", "passes"), "--seconds", seconds, "--jobs", 2)
    assert seconds <= time.monotonic() - started < 30 * harness.SLOWNESS
    # One more may have been under way beside the tenth.
    assert len(state(tmp_path)["failed"]["planted-dies"]) in (10, 11)
    assert done.status == 1


def test_the_product_of_another_tree(tmp_path: Path) -> None:
    if (denied := harness.ring_denied()) is not None:
        pytest.skip(denied)
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "uring_trio").symlink_to(ROOT / "src" / "uring_trio")
    done = fuzz(tmp_path, *of("needs-a-ring", "pair"), "--seeds", 1, "--against", tree)
    assert f"the product is {tree}/src/uring_trio/__init__.py\n" in done.output
    # What is simulated is built from this tree, and so is left out.
    assert "\n1 plans, 1 failed, " in done.output
    assert f"again:   PYTHONPATH={tree}/src " in done.output
    assert fuzz(tmp_path, "--against", tmp_path).status == 1
