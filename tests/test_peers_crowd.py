"""Plans of many streams: what their books see."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import harness
import pytest
from marks import needs_ring
from peers import conduct, crowd
from peers.books import Left, Lost

if TYPE_CHECKING:
    from by_seed import Plan


def plan(kind: str, name: str = "recv") -> Plan:
    """So many that the ring's smallest buffers are short, each woken in vain before."""
    steps: list[Any] = [["open", kind, 128, name, 2], ["vain", 3], ["sleep", 1], ["comes", 20, -1]]
    return {"options": {}, "steps": [*steps, ["quiet"], ["shut", 1]], "kernel": []}


@pytest.fixture
def on_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "BACKEND", harness.EPOLL)


@needs_ring
@pytest.mark.parametrize("name", ["recv", "receive_some", "recvmsg"])
@pytest.mark.parametrize("kind", crowd.KINDS)
def test_all_receive_and_close(kind: str, name: str) -> None:
    crowd.run(plan(kind, name))


@pytest.mark.usefixtures("on_stock")
@pytest.mark.parametrize("kind", crowd.KINDS)
def test_stock_does_the_same(kind: str) -> None:
    conduct.start("trio", crowd.Crowd(plan(kind)).run, backend=harness.EPOLL)


class Held(crowd.Member):
    """Somebody else has our end as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = os.dup(self.fd)

    def end(self) -> None:
        super().end()
        os.close(self._held)


class Altered(crowd.Member):
    """What comes is not what is said to have been sent."""

    def put(self, size: int) -> bool:
        os.write(self.far, b"other")
        return super().put(size)


@pytest.mark.usefixtures("on_stock")
@pytest.mark.parametrize(("member", "found"), [(Held, Left), (Altered, Lost)])
def test_a_difference_is_told(member: Any, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "Member", member)
    with pytest.raises(BaseException) as caught:  # noqa: PT011  in trio's groups
        conduct.start("trio", crowd.Crowd(plan("unix")).run, backend=harness.EPOLL)
    assert isinstance(conduct.sole(caught.value), found)  # type: ignore[arg-type]
