"""One word for each kind of fault, over all generators.

Each generator has types of its own, which say what its books have seen; shrinking keeps to a
type. What is the same fault at another door has the same word here, for whoever compares them
(``fuzz.py --only WORD``). `test_by_seed.py` sees to it that each type has one.
"""

from __future__ import annotations

# The word, and the types: of peers (ring-trio, ring-anyio), random_gain, simulation.
FAULTS: dict[str, tuple[str, ...]] = {
    "bytes": ("Lost", "BytesLost", "WrongBytes", "WrongCount"),
    "unexplained": ("Strange", "WrongEnd", "WrongError", "WrongOrder", "Refused", "ErrorUntold"),
    "told-for-nothing": ("Early", "ToldForNothing"),
    "not-told": ("Stuck", "NotTold", "TooLate"),
    "awake": ("Burnt", "NotAsleep"),
    "with-the-kernel": ("Handed", "LeftToTheKernel", "TriedByTheKernel"),
    "left-behind": ("Left", "LeftBehind", "StillHeld", "BooksError"),
    "unbounded": ("Unbounded",),
    "counts": ("WrongCounts",),
    "logged": ("Logged",),
}

WORDS = {each: word for word, types in FAULTS.items() for each in types}


def is_of(types: str, only: str) -> bool:
    """Whether a failure with such types, by their names, is of a type or of a word."""
    return any(only in (each, WORDS.get(each)) for each in types.split())
