"""What an outcome means for its delivery: finished, or once more after a wait. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from daemon.model import Outcome

Verdict = Literal["delivered", "retry", "gone", "failed"]
Result = Literal["delivered", "retry", "gone", "failed", "exhausted"]

MAX_ATTEMPTS: Final = 20
"""Attempts of any kind, interrupted ones included, after which a delivery ends."""
MAX_RETRY_AFTER_S: Final = 86_400.0
JITTER: Final = 0.1
"""Each wait grows by a random part of this share, so that what failed together does not come back together."""


def verdict(outcome: Outcome) -> Verdict:
    """Judge one exchange by its status alone; without a complete header block it is a retry."""
    status = outcome.status_code
    if status is None:
        return "retry"
    if 200 <= status < 300:
        return "delivered"
    if status == 410:
        return "gone"
    if status in {408, 429} or status >= 500:
        return "retry"
    return "failed"


def retry_after_s(value: str | None, now: datetime) -> float:
    """`Retry-After` (RFC 9110, 10.2.3: whole seconds or a date) as seconds from `now`, 0–86,400; nonsense is 0."""
    if value is None or not value.isascii():
        return 0.0
    text = value.strip()
    if text.isdigit():
        return MAX_RETRY_AFTER_S if len(text) > 6 else min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
        wait_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(wait_s) else 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """`result` for the log; `wait_s` until the next attempt, None where the delivery is finished."""

    result: Result
    wait_s: float | None


_FINISHED: Final[dict[Verdict, Decision]] = {
    "delivered": Decision("delivered", None),
    "gone": Decision("gone", None),
    "failed": Decision("failed", None),
}


def decide(  # noqa: PLR0913 - the facts that a decision takes
    judged: Verdict, *, attempt: int, steps: int, schedule_s: Sequence[float], asked_s: float, chance: float
) -> Decision:
    """Decide how a delivery goes on after attempt number `attempt`.

    `steps` is how many steps of the schedule were used before this attempt, which uses one more. `asked_s` is the
    receiver's Retry-After, which counts where it is longer than the schedule's own wait. `chance` is in [0, 1).
    """
    if judged != "retry":
        return _FINISHED[judged]
    following = steps + 1
    if following >= len(schedule_s) or attempt >= MAX_ATTEMPTS:
        return Decision("exhausted", None)
    return Decision("retry", max(schedule_s[following] * (1 + JITTER * chance), asked_s))
