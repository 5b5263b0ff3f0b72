"""The latency histogram of daily_stats: its bounds, and percentiles from its counts. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
"""Upper bounds, inclusive; one more bucket holds what is over the last. Fixed: stored rows count by them."""
BUCKETS: Final = len(BOUNDS_MS) + 1


def bucket(duration_ms: int) -> int:
    """The index of the bucket that a duration in milliseconds falls in."""
    return bisect_left(BOUNDS_MS, duration_ms)


def quantile_ms(counts: Sequence[int], share: float) -> float | None:
    """Where the `share` (0–1) of all durations is reached, taking them as even within each bucket; None for none.

    What is over the last bound is reported as the last bound.
    """
    rank = share * sum(counts)
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            if index >= len(BOUNDS_MS):
                break
            low = BOUNDS_MS[index - 1] if index else 0
            return low + (BOUNDS_MS[index] - low) * max(rank - seen, 0) / count
        seen += count
    return float(BOUNDS_MS[-1]) if sum(counts) else None
