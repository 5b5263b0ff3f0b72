"""The histogram of durations: in which bucket one falls, and what a percentile of its counts is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.policy.latency import BOUNDS_MS, BUCKETS, bucket, quantile_ms

durations = st.lists(st.integers(0, 60_000), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("duration_ms", "expected"),
    [(0, 0), (5, 0), (6, 1), (10, 1), (11, 2), (1000, 7), (1001, 8), (10_000, 10), (10_001, 11), (10**9, 11)],
)
def test_upper_bounds_belong_to_their_bucket(duration_ms: int, expected: int) -> None:
    assert bucket(duration_ms) == expected


def counted(given_ms: list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for duration_ms in given_ms:
        counts[bucket(duration_ms)] += 1
    return counts


def bound_of(given_ms: list[int], share: float) -> int:
    """The bound over the duration of that rank, from the durations themselves."""
    ordered = sorted(given_ms)
    rank = next(i for i in range(1, len(ordered) + 1) if i >= share * len(ordered))
    return next((bound for bound in BOUNDS_MS if bound >= ordered[rank - 1]), BOUNDS_MS[-1])


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile_ms([0] * BUCKETS, 0.95) is None
    assert quantile_ms([], 0.5) is None


def test_one_outlier_shows_in_the_99th_percentile_and_not_in_the_median() -> None:
    median, p99 = (quantile_ms(counted([3] * 98 + [20_000] * 2), share) for share in (0.5, 0.99))
    assert median is not None
    assert (median <= 5, p99) == (True, 10_000)


@given(given_ms=durations, share=st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_duration_of_that_rank(given_ms: list[int], share: float) -> None:
    bound, quantile = bound_of(given_ms, share), quantile_ms(counted(given_ms), share)
    assert quantile is not None
    index = BOUNDS_MS.index(bound)
    assert (BOUNDS_MS[index - 1] if index and max(given_ms) <= BOUNDS_MS[-1] else 0) <= quantile <= bound


def test_durations_count_as_even_within_their_bucket() -> None:
    counts = [0] * BUCKETS
    counts[3] = 4  # over 25, up to 50
    assert [quantile_ms(counts, share) for share in (0.25, 0.5, 1)] == [31.25, 37.5, 50]
    assert quantile_ms([0] * BUCKETS, 0.5) is None
    assert quantile_ms([*[0] * (BUCKETS - 1), 7], 0.5) == BOUNDS_MS[-1]
