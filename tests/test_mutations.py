"""Each mutation can be made, and each test that is to catch it is there; see `mutations.py`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mutants import C_TESTS, MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
each = pytest.mark.parametrize("mutation", MUTATIONS, ids=[each.rule for each in MUTATIONS])


@each
def test_its_text_stands_in_its_file_once(mutation: Mutation, tmp_path: Path) -> None:
    file = tmp_path / mutation.path
    file.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / mutation.path, file)
    mutation.apply(tmp_path)
    changed = file.read_text(encoding="utf-8")
    assert changed != (ROOT / mutation.path).read_text(encoding="utf-8")
    if not mutation.is_c:
        compile(changed, mutation.path, "exec")


@each
def test_its_tests_are_there(mutation: Mutation) -> None:
    assert mutation.caught_by
    for name in mutation.caught_by:
        path, _, function = name.partition("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        pattern = rf"\bRUN\({function}\)" if path.startswith(C_TESTS) else rf"\bdef {function}\("
        assert not function or re.search(pattern, source), name


def test_a_text_that_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("one two two\n")
    for text, instead in (("three", "x"), ("two", "x"), ("one", "one")):
        with pytest.raises(LookupError):
            Mutation("", "x.py", text, instead, ()).apply(tmp_path)


def test_rules_are_said_once() -> None:
    assert len({mutation.rule for mutation in MUTATIONS}) == len(MUTATIONS)
