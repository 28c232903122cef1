"""Each cure can be taken out, and what finds it is told; see `taken_out.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import taken_out
from cures import CURES, Cure
from taken_out import FOUND, LIVES, Verdict

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


def test_the_table_has_a_row_for_each_in_the_order_of_the_list() -> None:
    verdicts = {cure: Verdict(LIVES) for cure in reversed(CURES)}
    verdicts[CURES[0]] = Verdict(FOUND, "by-chance", "7", "1.5 s: hangs")
    rows = taken_out.table(verdicts).splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [c.rule for c in CURES]
    assert rows[0].endswith("| found | by-chance | 7 | 1.5 s: hangs |")
