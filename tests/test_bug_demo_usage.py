"""Bad usage of the demo is told in a line, with exit status 2, as doctor tells it."""

from __future__ import annotations

import pytest

from uring_trio import _demo


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_must_be_a_duration(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        _demo.main(["--plain", "--seconds", seconds])
    assert exit_.value.code == 2
    assert f"invalid duration value: {seconds!r}" in capsys.readouterr().err


def test_bad_environment_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("URING_TRIO_BACKEND", "uring")
    with pytest.raises(SystemExit) as exit_:
        _demo.main(["--plain"])
    assert exit_.value.code == 2
    assert "URING_TRIO_BACKEND must be one of" in capsys.readouterr().err
