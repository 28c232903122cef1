"""What exceptions hold that hold others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def leaves(exc: BaseException) -> list[BaseException]:
    """What a group holds, at any depth, or it alone."""
    parts = getattr(exc, "exceptions", None)
    return [exc] if parts is None else [leaf for part in parts for leaf in leaves(part)]


def everything_in(exc: BaseException | None) -> Iterator[BaseException]:
    """It, what it groups, and what has led to each."""
    seen: set[int] = set()
    left = [exc]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        parts = getattr(each, "exceptions", None)
        if parts is None:
            yield each
        else:
            left.extend(parts)
        left += [each.__cause__, each.__context__]
