"""State machines as tables: a row for each state, in it the next state for each event.

None in a table is what cannot happen. To step there is a fault of ours, and is raised where
it is made, before anything is done on its account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import enum

S = TypeVar("S", bound="enum.IntEnum")

Table = dict[S, "tuple[S | None, ...]"]


def step(table: Table[S], state: S, event: enum.IntEnum) -> S:
    """The state after *event*.

    Raises:
      AssertionError: the table says that it cannot happen.
    """
    following = table[state][event]
    if following is None:
        raise AssertionError(f"{event.name} in {state.name}")
    return following
