"""Each cure can be taken out, and what finds it is told; see `taken_out.py`."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import by_seed
import pytest
import taken_out
from cures import CURES, Cure, Edit
from taken_out import ERROR, FOUND, LIVES, Find, Search, Verdict

ROOT = Path(__file__).parents[1]
each = pytest.mark.parametrize("cure", CURES, ids=[each.rule for each in CURES])


@each
def test_its_texts_stand_in_their_files_once(cure: Cure, tmp_path: Path) -> None:
    paths = {each.path for each in cure.edits}
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / path)
    cure.take_out(tmp_path)
    for path in paths:
        changed = (tmp_path / path).read_text(encoding="utf-8")
        assert changed != (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".py"):
            compile(changed, path, "exec")


def test_rules_are_said_once() -> None:
    assert len({cure.rule for cure in CURES}) == len(CURES)


def test_no_taking_out_has_another_one_in_it() -> None:
    def parts(cure: Cure) -> set[Edit]:
        return set(cure.edits)

    for one in CURES:
        # What a door has for itself stands in another cure's doors as well.
        others = [cure for cure in CURES if cure is not one and set(cure.doors) & set(one.doors)]
        assert not [cure.rule for cure in others if parts(cure) <= parts(one)], one.rule


def test_the_seeds_are_none_of_those_that_are_tested_anyway() -> None:
    assert max(by_seed.entry(name).seeds for name in by_seed.names()) <= taken_out.FIRST_SEED


def test_each_generator_of_its_doors_looks_for_a_cure_and_the_best_first() -> None:
    cure = Cure("", (), doors=("trio", "anyio"), first="sim")
    names = ["ring-anyio", "ring-gain", "ring-trio", "sim-anyio", "sim-gain", "sim-trio"]
    met = sorted(filter(cure.meets, names), key=cure.order)
    assert met == ["sim-trio", "sim-anyio", "ring-trio", "ring-anyio"]


class Planted(Search):
    """Finds what it is told to find; its plans end as they are told to."""

    def __init__(self, finds: list[Find], ends: list[str]) -> None:
        super().__init__(Path(), ["ring-trio", "sim-trio"], 0)
        self.finds = finds
        self.ends = ends

    def look(self, name: str, seconds: float) -> Find | None:
        self.plans[name] += 1
        return self.finds.pop(0) if self.finds else None

    def ways(self, name: str, seed: int, times: int) -> Counter[str]:
        return Counter(self.ends.pop(0) for _ in range(times))


REAL = Find("ring-trio", 1003, 2.0, "failed: Stuck: waits", "failed: Stuck")
SIMULATED = Find("sim-trio", 1003, 2.0, "failed: Stuck: waits", "failed: Stuck")
PASSES = ["passed"] * 20
STUCK, OTHER = "failed: Stuck", "failed: Lost"


@pytest.mark.parametrize(
    ("find", "without", "with_it", "word", "runs"),
    [
        (REAL, [STUCK, STUCK], PASSES, FOUND, "3 of 3"),
        (REAL, ["passed", STUCK, OTHER, "passed", STUCK], PASSES, FOUND, "3 of 6"),
        (REAL, [STUCK, *PASSES], PASSES, FOUND, "2 of 7"),
        # Once, and never again; in another way; with the cure as well.
        (REAL, PASSES, PASSES, LIVES, ""),
        (REAL, [OTHER] * 20, PASSES, LIVES, ""),
        (REAL, [STUCK, STUCK], ["passed", STUCK, *PASSES], ERROR, ""),
        (SIMULATED, [STUCK, STUCK], PASSES, FOUND, "3 of 3"),
        (SIMULATED, [STUCK, "passed"], PASSES, LIVES, ""),
        (SIMULATED, [STUCK, STUCK], [STUCK], ERROR, ""),
    ],
)
def test_what_counts_as_found(
    find: Find, without: list[str], with_it: list[str], word: str, runs: str
) -> None:
    search = Planted([find], list(without))
    verdict = taken_out.search(search, Planted([], list(with_it)), 20.0)
    assert (verdict.word, verdict.runs) == (word, runs)
    assert verdict.find == (find if word == FOUND else None)
    assert verdict.what == "" or "ring-trio 1003" in verdict.what or "sim-trio 1003" in verdict.what
    assert bool(verdict.what) == (word != FOUND)


def test_behind_what_is_no_find_the_search_goes_on() -> None:
    search = Planted([REAL, REAL._replace(seed=1009)], [*["passed"] * 6, STUCK, STUCK])
    verdict = taken_out.search(search, Planted([], list(PASSES)), 20.0)
    assert verdict.word == FOUND
    assert verdict.find is not None
    assert verdict.find.seed == 1009


def test_the_table_has_a_row_for_each_in_the_order_of_the_list() -> None:
    verdicts = {cure: Verdict(LIVES) for cure in reversed(CURES)}
    verdicts[CURES[0]] = Verdict(FOUND, REAL, "3 of 4")
    rows = taken_out.table(verdicts).splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [c.rule for c in CURES]
    assert rows[0].endswith("| found | ring-trio | 1003 | 2.0 s | 3 of 4 | failed: Stuck |")
    reasons = [cure.reason for cure in CURES[1:]]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows[1:]] == reasons
