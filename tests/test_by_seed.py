"""The frame of the generators: runs apart, shrinking, replays; on generators with known faults."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import by_seed
import children
import fault_words
import pytest

TESTS = Path(__file__).resolve().parent
LIMIT_S = 50

# Of the kind that planted generators draw; a cancel, and a close behind it, are in it.
WORDS = [*("open", "send", "close", "send", "cancel", "receive", "open", "close", "send", "close")]
PLAN: by_seed.Plan = {
    "options": {"fast": True, "size": 17},
    "steps": [[word, 150 + number] for number, word in enumerate(WORDS)],
    "kernel": [1, 0, 2, 0, 3, 2, 3, 0, 1],
}
SHORTEST: by_seed.Plan = {"options": {}, "steps": [["cancel", 101], ["close", 0]], "kernel": []}


def call(*arguments: object) -> children.Done:
    """What the command line does, with the planted generators there."""
    return children.run([sys.executable, TESTS / "planted_generators.py", *arguments], LIMIT_S)


def shrink(name: str, tmp_path: Path, plan: by_seed.Plan = PLAN) -> tuple[by_seed.Plan, str]:
    """The plan that is found, and what is printed of it."""
    long, short = tmp_path / "long.json", tmp_path / "short.json"
    by_seed.write(long, name, plan)
    done = call("--plan", long, "--shrink", "--to", short)
    assert done.status == 1, done.output
    assert done.output.startswith(f"{name} {long}: ")
    found, shortest = by_seed.read(short)
    assert found == name
    return shortest, done.output.partition(": ")[2]


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
    assert call("--plan", tmp_path / "harmless.json").status == 0


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
    assert done.status == 1
    assert done.output.splitlines() == [
        "cancel 101",
        "close 0",
        "failed: AssertionError: cancel before close",
    ]


def test_a_seed_draws_the_same_each_time_and_another_for_another_generator() -> None:
    one, two = (call("planted-pair", 3, "--show").output for _ in range(2))
    assert one == two
    assert set(json.loads(one)) == {"options", "steps", "kernel"}
    assert call("planted-dies", 3, "--show").output != one


def test_runs_of_one_plan_are_counted_by_how_they_end(tmp_path: Path) -> None:
    by_seed.write(tmp_path / "pair.json", "planted-pair", SHORTEST)
    done = call("--plan", tmp_path / "pair.json", "--times", 3)
    assert (done.status, json.loads(done.output)) == (1, {"failed: AssertionError": 3})
    done = call("planted-passes", 3, "--times", 2)
    assert (done.status, json.loads(done.output)) == (0, {"passed": 2})


def test_that_two_runs_are_the_same_is_checked() -> None:
    done = call("planted-passes", 5, "--same")
    assert done.status == 0, done.output
    done = call("planted-by-hash", 5, "--same")
    assert done.status == 1
    assert "two runs differ: line" in done.output


def test_a_range_tells_each_failure_with_what_replays_it() -> None:
    done = call("planted-dies", "0:8", "--jobs", 2)
    assert done.status == 1
    failed = re.findall(r"^planted-dies (\d+): died: SIGSEGV$", done.output, re.MULTILINE)
    assert 0 < len(failed) < 8
    for seed in failed:
        assert f"by_seed.py planted-dies {seed}\n" in done.output
        assert call("planted-dies", seed, "--apart").status == 1
    assert f"planted-dies: 8 seeds, {len(failed)} failed, " in done.output
    done = call("planted-passes", "0:8,11,20:22")
    assert done.status == 0
    assert "planted-passes: 11 seeds, 0 failed, " in done.output


def test_each_type_of_fault_has_one_word_and_the_docs_have_them() -> None:
    page = (TESTS.parent / "docs" / "testing.md").read_text(encoding="utf-8")
    types = [each for types in fault_words.FAULTS.values() for each in types]
    assert len(types) == len(set(types))
    for package in ("peers", "random_gain", "simulation"):
        for file in (TESTS / package).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            found = re.findall(r"^class (\w+)\((?:AssertionError|Fault)\):", text, re.MULTILINE)
            assert set(found) - {"Fault"} <= set(types), file
    for word, named in fault_words.FAULTS.items():
        assert f"| `{word}` | " in page
        for each in named:
            assert f"`{each}`" in page


def test_a_name_that_is_none_lists_those_that_are() -> None:
    with pytest.raises(LookupError, match="no generator is called 'nobody'"):
        by_seed.entry("nobody")


def test_what_is_prepared_is_so_once_in_a_process_and_not_by_importing() -> None:
    done = call("planted-prepared", "0:3")
    assert done.status == 0, done.output
    assert done.output.startswith("prepared\nplanted-prepared: 3 seeds, 0 failed, ")


def test_a_generator_is_imported_without_a_thread_or_a_ring() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import by_seed, process_books
books = process_books.Threads(), process_books.Descriptors(), process_books.MappedRings()
for name in {by_seed.names()!r}:
    by_seed.entry(name)
assert "uring_trio" in sys.modules
assert process_books.stays(*books) == []
"""
    done = children.run([sys.executable, "-c", program], LIMIT_S)
    assert done.status == 0, done.output


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("how", ["planted-hangs-for-long", "planted-stuck-for-long"])
def test_a_run_ends_with_the_test_that_has_started_it(how: str, tmp_path: Path) -> None:
    """Also if that is killed, so that nobody can see to anything."""
    plan, file = tmp_path / "plan.json", tmp_path / "pid"
    by_seed.write(plan, how, {**SHORTEST, "options": {"pid": str(file)}})
    command = [sys.executable, str(TESTS / "planted_generators.py"), "--plan", str(plan), "--apart"]
    program = f"import children; children.run({command!r}, {LIMIT_S})"
    with subprocess.Popen([sys.executable, "-c", program], cwd=TESTS) as test:
        end = time.monotonic() + LIMIT_S
        while not file.exists() or not file.read_text():
            assert time.monotonic() < end
            assert test.poll() is None
            time.sleep(0.01)
        process = int(file.read_text())
        assert is_there(process)
        test.kill()
    while is_there(process):
        assert time.monotonic() < end
        time.sleep(0.01)


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
