"""The frame of the generators: runs apart, shrinking, replays; on generators with known faults."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import by_seed
import pytest

TESTS = Path(__file__).resolve().parent

# Of the kind that planted generators draw; a cancel, and a close behind it, are in it.
WORDS = [*("open", "send", "close", "send", "cancel", "receive", "open", "close", "send", "close")]
PLAN: by_seed.Plan = {
    "options": {"fast": True, "size": 17},
    "steps": [[word, 150 + number] for number, word in enumerate(WORDS)],
    "kernel": [1, 0, 2, 0, 3, 2, 3, 0, 1],
}
SHORTEST: by_seed.Plan = {"options": {}, "steps": [["cancel", 101], ["close", 0]], "kernel": []}


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command line does, with the planted generators there."""
    command = [sys.executable, str(TESTS / "planted_generators.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


def shrink(name: str, tmp_path: Path, plan: by_seed.Plan = PLAN) -> tuple[by_seed.Plan, str]:
    """The plan that is found, and what is printed of it."""
    long, short = tmp_path / "long.json", tmp_path / "short.json"
    by_seed.write(long, name, plan)
    done = call("--plan", long, "--shrink", "--to", short)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith(f"{name} {long}: ")
    found, shortest = by_seed.read(short)
    assert found == name
    return shortest, done.stdout.partition(": ")[2]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("planted-pair", "failed: AssertionError: cancel before close, "),
        ("planted-dies", "died: SIGSEGV, "),
        ("planted-exits", "died: exit 3, "),
        ("planted-unseen", "failed: unraisable KeyError: raised where nobody could catch it"),
    ],
)
def test_two_steps_that_fail_together_are_found(name: str, told: str, tmp_path: Path) -> None:
    plan, text = shrink(name, tmp_path)
    assert plan == SHORTEST
    assert text.startswith(told)
    steps = [step for step in PLAN["steps"] if step[0] != "cancel"]
    by_seed.write(tmp_path / "harmless.json", name, {**PLAN, "steps": steps})
    assert call("--plan", tmp_path / "harmless.json").returncode == 0


@pytest.mark.parametrize("name", ["planted-hangs", "planted-stuck"])
def test_what_does_not_end_is_ended_with_its_stack_and_shrinks(name: str, tmp_path: Path) -> None:
    # Each try that fails takes as long as it may.
    steps = [["cancel", 101], ["open", 0], ["close", 0]]
    plan, text = shrink(name, tmp_path, {**SHORTEST, "steps": steps})
    assert plan == SHORTEST
    assert text.startswith("hangs: not over after ")
    assert f" in {name.partition('-')[2]}\n" in text  # the function, in the stack


def test_choices_and_options_that_matter_stay_and_no_others(tmp_path: Path) -> None:
    plan, _ = shrink("planted-late-choice", tmp_path)
    assert plan == {"options": {"fast": True}, "steps": [], "kernel": [0, 0, 0, 0, 0, 3]}


def test_a_plan_that_was_written_down_runs_again(tmp_path: Path) -> None:
    shrink("planted-pair", tmp_path)
    done = call("--plan", tmp_path / "short.json", "--notes")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "cancel 101",
        "close 0",
        "failed: AssertionError: cancel before close",
    ]


def test_a_seed_draws_the_same_each_time_and_another_for_another_generator() -> None:
    one, two = (call("planted-pair", 3, "--show").stdout for _ in range(2))
    assert one == two
    assert set(json.loads(one)) == {"options", "steps", "kernel"}
    assert call("planted-dies", 3, "--show").stdout != one


def test_that_two_runs_are_the_same_is_checked() -> None:
    done = call("planted-passes", 5, "--same")
    assert done.returncode == 0, done.stdout
    done = call("planted-by-hash", 5, "--same")
    assert done.returncode == 1
    assert "two runs differ: line" in done.stdout


def test_a_range_tells_each_failure_with_what_replays_it() -> None:
    done = call("planted-dies", "0:8", "--jobs", 2)
    assert done.returncode == 1
    failed = re.findall(r"^planted-dies (\d+): died: SIGSEGV$", done.stdout, re.MULTILINE)
    assert 0 < len(failed) < 8
    for seed in failed:
        assert f"by_seed.py planted-dies {seed}\n" in done.stdout
        assert call("planted-dies", seed, "--apart").returncode == 1
    assert f"planted-dies: 8 seeds, {len(failed)} failed, " in done.stdout
    done = call("planted-passes", "0:8,11,20:22")
    assert done.returncode == 0
    assert "planted-passes: 11 seeds, 0 failed, " in done.stdout


def test_a_name_that_is_none_lists_those_that_are() -> None:
    with pytest.raises(LookupError, match="no generator is called 'nobody'"):
        by_seed.entry("nobody")


@pytest.mark.parametrize("seed", range(20))
def test_shrinking_leaves_nothing_that_could_go(seed: int) -> None:
    """Whatever makes a plan fail: no step, choice or option less fails still."""
    rng = random.Random(seed)
    plan: by_seed.Plan = {
        "options": {name: rng.randrange(3) for name in "abc"},
        "steps": [[rng.choice("xyz"), rng.randrange(9)] for _ in range(30)],
        "kernel": [rng.randrange(4) for _ in range(30)],
    }
    wanted = [rng.choice("xyz") for _ in range(3)]
    total = rng.randrange(4)
    tried = 0

    def fails(candidate: by_seed.Plan) -> bool:
        nonlocal tried
        tried += 1
        steps = iter(candidate["steps"])
        in_order = all(any(word == each[0] for each in steps) for word in wanted)
        return in_order and sum(candidate["kernel"]) >= total and "b" in candidate["options"]

    assert fails(plan)
    short = by_seed.shrink(plan, fails)
    assert short["steps"] == [[word, 0] for word in wanted]
    assert short["options"] == {"b": 0}
    assert sum(short["kernel"]) == total
    assert tried < 500
