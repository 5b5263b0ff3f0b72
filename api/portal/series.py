"""Attempts over time, as charts draw them: even steps from a start to now, empty ones included. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from daemon.policy.latency import BUCKETS, quantile_ms
from daemon.store.stats import Slice

Period = Literal["24h", "7d", "30d"]

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Span:
    """A period: so many steps of one length, the last of which is now's."""

    steps: int
    step: timedelta

    def first(self, now: datetime) -> datetime:
        """When its first step begins: steps are counted from midnight UTC."""
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        current = midnight + (now - midnight) // self.step * self.step
        return current - (self.steps - 1) * self.step


SPANS: Final[dict[Period, Span]] = {"24h": Span(24, HOUR), "7d": Span(28, 6 * HOUR), "30d": Span(30, DAY)}


@dataclass(slots=True)
class _Step:
    success: int = 0
    failed: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)


@dataclass(frozen=True, slots=True)
class Point:
    """One step. The rate (0–1) and the latencies are None where nothing was attempted."""

    starts_at: datetime
    success: int
    failed: int
    rate: float | None
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """All steps, and the figures of the whole."""

    points: list[Point]
    total: Point


def fold(slices: Iterable[Slice], span: Span, now: datetime) -> Series:
    """Sort slices into the steps of a span that ends now; what lies before it is left out."""
    first = span.first(now)
    steps = [_Step() for _ in range(span.steps)]
    whole = _Step()
    for one in slices:
        index = (one.starts_at - first) // span.step
        if 0 <= index < span.steps:
            _add(steps[index], one)
            _add(whole, one)
    points = [_point(first + i * span.step, step) for i, step in enumerate(steps)]
    return Series(points, _point(first, whole))


def _add(step: _Step, one: Slice) -> None:
    step.success += one.success
    step.failed += one.failed
    step.buckets = [a + b for a, b in zip(step.buckets, one.latency_buckets, strict=True)]


def _point(starts_at: datetime, step: _Step) -> Point:
    total = step.success + step.failed
    return Point(
        starts_at,
        step.success,
        step.failed,
        step.success / total if total else None,
        quantile_ms(step.buckets, 0.5),
        quantile_ms(step.buckets, 0.99),
    )
