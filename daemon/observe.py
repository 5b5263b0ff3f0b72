"""One fact, one log line, one count: what the operator is told about each attempt."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from daemon.log import get
from daemon.model import AttemptRecord

log = get("attempt")


DURATION_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)


class Histogram:
    """How many values were at most each of `bounds`, which ascend; the last count is of those above all of them."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value: a fifth of a microsecond, since every attempt comes by here."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Counts:
    """What happened since the start, for the summary line and the metrics. Nothing here ever falls.

    `recorded` and `fanned_out` are sizes of batches: results in a write, outbox rows in a look that found some.
    """

    attempts: dict[str, int] = field(default_factory=dict)
    durations_s: Histogram = field(default_factory=partial(Histogram, DURATION_BOUNDS_S))
    recorded: Histogram = field(default_factory=partial(Histogram, BATCH_BOUNDS))
    fanned_out: Histogram = field(default_factory=partial(Histogram, BATCH_BOUNDS))
    loop_lag_s: Histogram = field(default_factory=partial(Histogram, LAG_BOUNDS_S))
    raw_refused: int = 0

    def of(self, outcome: str) -> int:
        """Attempts that ended with `outcome`."""
        return self.attempts.get(outcome, 0)


class Observer:
    """Told of every attempt. `log_all`: successes get a line too (`log.attempts = "all"`), else they are counted."""

    def __init__(self, *, log_all: bool) -> None:
        self.counts = Counts()
        self._log_all = log_all

    def attempt(self, record: AttemptRecord, retry_in_s: float | None, host: str | None) -> None:
        """An attempt ended: one wide line if it failed. No secret, no payload, and of the URL only the host."""
        outcome = record.outcome
        self.counts.attempts[outcome] = self.counts.attempts.get(outcome, 0) + 1
        self.counts.durations_s.add(record.duration_ms / 1000)
        if record.success and not self._log_all:
            return
        facts = {
            "attempt_id": record.id,
            "customer_id": record.customer_id,
            "subscription_id": record.subscription_id,
            "event_id": record.event_id,
            "event_type": record.event_type,
            "attempt": record.attempt,
            "host": host,
            "status_code": record.status_code,
            "error": record.error,
            "duration_ms": record.duration_ms,
        }
        if record.success:
            log.info("attempt.delivered", **facts)
        else:
            wait_s = None if retry_in_s is None else round(retry_in_s, 1)
            log.warning("attempt.failed", outcome=outcome, retry_in_s=wait_s, circuit=record.circuit, **facts)
