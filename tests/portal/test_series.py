"""Attempts sorted into the steps of a chart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api.portal.series import DAY, HOUR, SPANS, Period, fold
from daemon.policy.latency import BUCKETS
from daemon.store.stats import Slice

NOW = datetime(2026, 3, 4, 13, 47, tzinfo=UTC)


def one(starts_at: datetime, success: int, failed: int, *, bucket: int = 0) -> Slice:
    buckets = [0] * BUCKETS
    buckets[bucket] = success + failed
    return Slice(starts_at, success, failed, buckets)


@pytest.mark.parametrize(("period", "first"), [
    ("24h", datetime(2026, 3, 3, 14, tzinfo=UTC)),
    ("7d", datetime(2026, 2, 25, 18, tzinfo=UTC)),
    ("30d", datetime(2026, 2, 3, tzinfo=UTC)),
])  # fmt: skip
def test_the_last_step_of_a_span_is_the_one_that_is_running(period: Period, first: datetime) -> None:
    span = SPANS[period]
    points = fold([], span, NOW).points
    assert points[0].starts_at == first
    assert len(points) == span.steps
    assert points[-1].starts_at <= NOW < points[-1].starts_at + span.step


def test_slices_of_one_step_are_summed_and_empty_steps_have_no_rate() -> None:
    noon = NOW.replace(hour=12, minute=0)
    series = fold([one(noon, 3, 1, bucket=3), one(noon, 5, 0, bucket=4), one(noon - HOUR, 0, 2)], SPANS["24h"], NOW)
    last = series.points[-2]
    assert (last.starts_at, last.success, last.failed, last.rate) == (noon, 8, 1, 8 / 9)
    assert (last.p50_ms, last.p99_ms) == (pytest.approx(53.125, abs=4), pytest.approx(99, abs=1))
    assert (series.points[-3].rate, series.points[-3].failed) == (0, 2)
    empty = series.points[-1]
    assert (empty.success, empty.failed, empty.rate, empty.p50_ms, empty.p99_ms) == (0, 0, None, None, None)
    assert (series.total.success, series.total.failed) == (8, 3)


def test_what_lies_before_the_span_is_left_out() -> None:
    span = SPANS["30d"]
    first = span.first(NOW)
    series = fold([one(first - DAY, 100, 0), one(first, 1, 0), one(NOW + timedelta(days=1), 100, 0)], span, NOW)
    assert series.total.success == 1
