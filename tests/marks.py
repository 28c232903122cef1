"""Marks of tests that are about the ring alone."""

from __future__ import annotations

import harness
import pytest

needs_ring = pytest.mark.skipif(
    harness.ring_denied() is not None, reason=str(harness.ring_denied())
)
# For modules: async tests run on the ring, and all are skipped where there is none.
ON_RING = [needs_ring, pytest.mark.differential, pytest.mark.ring_only]
