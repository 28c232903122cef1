"""Plans that are compared with stock: what they are made of, and that a difference is told."""

from __future__ import annotations

import copy
import select
from typing import TYPE_CHECKING

import harness
import pytest
from marks import needs_ring
from peers import conduct, files, stock
from peers.books import Strange
from peers.stranger import poll_says

if TYPE_CHECKING:
    from pathlib import Path

    from by_seed import Plan

SIZE = 10
PLAN: Plan = {
    "options": {},
    "steps": [
        ["open", 0, "unix"],
        ["hold", 0, "sock"],
        ["call", 0, "sock", "recv", SIZE, 0],
        ["acts", 0, [["put", SIZE]]],
    ],
    "kernel": [],
}


@pytest.mark.parametrize("kind", files.KINDS)
def test_a_file_of_each_kind_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with harness.no_new_fds():
        file = files.KINDS[kind](kind, str(tmp_path))
        for name in file.acts():
            file.act(name, SIZE)
        file.far_sees()
        file.close()
        assert file.fd == file.far == -1


def test_what_comes_makes_ready_and_what_is_taken_does_not(tmp_path: Path) -> None:
    for kind in ("eventfd", "semaphore", "timerfd", "inotify", "epoll", "unix", "fifo_in", "tty"):
        file = files.KINDS[kind](kind, str(tmp_path))
        assert not poll_says(file.fd, select.POLLIN)
        file.act("put", SIZE)
        assert poll_says(file.fd, select.POLLIN)
        file.act("take", SIZE)
        assert not poll_says(file.fd, select.POLLIN)
        file.close()


def test_stock_is_its_own_model() -> None:
    states = stock.Sitting(PLAN, "trio", harness.EPOLL, None).run()
    assert states == stock.Sitting(PLAN, "trio", harness.EPOLL, states).run()
    assert [state.get("0: recv of sock of unix") for state in states[1:4]] == [
        None,
        "waits",
        next(value for value in states[3].values() if str(value).startswith("11 bytes")),
    ]


@needs_ring
def test_the_ring_is_as_stock() -> None:
    stock.run(PLAN, "trio")


@pytest.mark.parametrize("step", [2, 3])
def test_a_difference_is_told(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "WAKE_MAX_S", 0.1 * conduct.SLOWNESS)
    model = stock.Sitting(PLAN, "trio", harness.EPOLL, None).run()
    wrong = copy.deepcopy(model)
    wrong[step]["0: recv of sock of unix"] = "EBADF"
    with pytest.raises(BaseException) as caught:  # noqa: PT011  in trio's groups
        stock.Sitting(PLAN, "trio", harness.EPOLL, wrong).run()
    assert isinstance(conduct.sole(caught.value), Strange)  # type: ignore[arg-type]
