"""`RingOptions`: how large the ring of a run is."""

from __future__ import annotations

from dataclasses import dataclass

# What one enter submits without a second; more is queued, never refused.
SQ_ENTRIES = 256
# Several cqes an sqe: what does not fit costs an extra enter.
CQ_ENTRIES = 4096
# The kernel's own limits: IORING_MAX_ENTRIES, IORING_MAX_CQ_ENTRIES.
SQ_ENTRIES_MAX = 32768
CQ_ENTRIES_MAX = 2 * SQ_ENTRIES_MAX


@dataclass(frozen=True, kw_only=True)
class RingOptions:
    """Sizes of a run's ring; the kernel rounds each up to a power of two.

    Nothing is refused or lost for want of entries: what does not fit costs another call.

    Attributes:
      sq_entries: operations that one call submits, from 1 to 32,768.
      cq_entries: completions that are taken in one sweep, from *sq_entries* to 65,536.

    Raises:
      ValueError: a size is none of these.
    """

    sq_entries: int = SQ_ENTRIES
    cq_entries: int = CQ_ENTRIES

    def __post_init__(self) -> None:
        _check("sq_entries", self.sq_entries, 1, SQ_ENTRIES_MAX)
        _check("cq_entries", self.cq_entries, self.sq_entries, CQ_ENTRIES_MAX)


def _check(name: str, value: object, least: int, most: int) -> None:
    # True is an int to Python, and a mistake here.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, not {value!r}")
