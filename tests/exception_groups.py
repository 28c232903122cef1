"""What exceptions hold that hold others."""

from __future__ import annotations


def leaves(exc: BaseException) -> list[BaseException]:
    """What a group holds, at any depth, or it alone."""
    parts = getattr(exc, "exceptions", None)
    return [exc] if parts is None else [leaf for part in parts for leaf in leaves(part)]
