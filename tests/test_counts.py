"""``make counts``: what is read, what is compared, and what is a failure. Nothing is counted."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import counted
import counts

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RECORDED = {"streams": 1000.0, "gain": 2000.0, "tls": 3000.0}


def failed(found: dict[str, list[float]], *, comparable: bool = True) -> list[str]:
    return counts.judge(found, RECORDED, comparable=comparable)[1]


def test_five_percent_more_than_the_record_is_let_pass_and_more_is_not() -> None:
    assert failed({"streams": [1050.0], "gain": [1000.0]}) == []
    assert failed({"streams": [1051.0], "gain": [2101.0]}) == ["gain", "streams"]


def test_the_best_of_several_counts_and_they_must_not_be_far_apart() -> None:
    assert failed({"streams": [1058.0, 1049.0]}) == []
    assert failed({"streams": [1000.0, 1010.0]}) == []
    assert failed({"streams": [1000.0, 1011.0]}) == ["streams"]


def test_what_is_shown_only_never_fails() -> None:
    assert failed({"tls": [9000.0, 8000.0]}) == []


def test_where_something_else_is_in_use_nothing_is_compared() -> None:
    assert failed({"streams": [9000.0], "sockets": [1.0]}, comparable=False) == []


def test_a_door_that_the_record_lacks_fails() -> None:
    assert failed({"sockets": [1.0]}) == ["sockets"]


def test_what_differs_from_the_record_is_named() -> None:
    assert counts.differences({"trio": "1", "cffi": "2"}, {"trio": "1", "cffi": "2"}) == []
    (line,) = counts.differences({"trio": "1", "cffi": "2"}, {"trio": "3", "cffi": "2"})
    assert line == "trio is '3' here, '1' in the record"
    assert len(counts.differences({"trio": "1"}, {"trio": "1", "libc": "2"})) == 1


def test_what_must_be_equal_is_all_told() -> None:
    assert list(counts.conditions()) == ["machine", "Python", "trio", "cffi", "libc", "compiler"]
    assert "unknown" not in counts.engine_compiler()


def test_the_record_has_every_door_and_what_it_was_made_with() -> None:
    record = json.loads(counts.RECORD.read_text())
    assert list(record["instructions"]) == list(counts.UNITS) == list(counted.DOORS)
    assert record["conditions"].keys() == counts.conditions().keys()


def test_what_callgrind_writes_is_read(tmp_path: Path) -> None:
    at_a_mark, at_the_end = tmp_path / "1", tmp_path / "2"
    at_a_mark.write_text(
        "desc: Trigger: Client Request: streams 5\nevents: Ir\nfn=x\n12 9\ntotals: 123\n"
    )
    at_the_end.write_text("desc: Trigger: Program termination\nevents: Ir\ntotals: 7\n")
    assert counts.read_total(at_a_mark) == ("streams 5", 123)
    assert counts.read_total(at_the_end) == ("", 7)


def test_without_valgrind_it_says_so_and_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert counts.main(["--compared"]) == 0
    text = capsys.readouterr().out
    assert "no valgrind" in text
    assert "=== 1 skipped in " in text


def test_it_fails_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    conditions = counts.conditions()
    record = {"conditions": conditions, "instructions": RECORDED}
    monkeypatch.setattr(counts, "RECORD", tmp_path / "record")
    counts.RECORD.write_text(json.dumps(record))
    monkeypatch.setattr(counts, "count", lambda doors: {"streams": 1100.0, "gain": 2000.0})
    assert counts.main(["streams", "gain"]) == 1
    assert "=== 1 failed, 1 passed in " in capsys.readouterr().out
    conditions["trio"] = "0"
    counts.RECORD.write_text(json.dumps(record))
    assert counts.main(["streams", "gain"]) == 0
    text = capsys.readouterr().out
    assert "not compared with the record: trio is " in text
    assert "=== 2 skipped in " in text


def test_what_the_tests_are_told_by_the_environment_is_kept_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("URING_TRIO_FAST_WAYS", "off")
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    environment = counts.environment()
    assert "URING_TRIO_FAST_WAYS" not in environment
    assert environment["PYTHONHASHSEED"] == "0"
