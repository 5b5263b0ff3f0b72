"""One fact, one log line, one count: what the operator is told about each attempt."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.log import get
from daemon.model import AttemptRecord

log = get("attempt")


@dataclass(slots=True)
class Counts:
    """How often each outcome came since the start, for the summary line and the metrics."""

    attempts: dict[str, int] = field(default_factory=dict)
    claims: int = 0
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
