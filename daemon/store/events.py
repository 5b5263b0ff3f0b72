"""Events as people look at them: one event, and how far each of its deliveries is. Cold reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal

from daemon import clock, ids
from daemon.ids import AttemptId, CustomerId, EventId, SubscriptionId
from daemon.store.connection import Connection

State = Literal[
    "delivered", "failed", "exhausted", "gone", "expired", "pending", "scheduled", "held", "in_flight", "discarded"
]
HeldBy = Literal["disabled", "breaker", "backlog"]

SLACK: Final = timedelta(seconds=1)
"""How far created_at may lie from the millisecond in an id: that one is rounded, here up and there down."""
AHEAD: Final = timedelta(hours=1)
"""How far another daemon's clock may be ahead of this one's before a list misses its newest attempts."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event as it was emitted; `matched` is the number of subscriptions that matched it then."""

    id: EventId
    customer_id: CustomerId
    type: str
    data: str
    created_at: datetime
    matched: int


@dataclass(frozen=True, slots=True)
class Duty:
    """One subscription's delivery of an event. `attempts` counts those begun; `held_by` is set while `held` only.

    `next_attempt_at` is set while `scheduled` only, `last_*` from the first finished attempt on.
    """

    subscription_id: SubscriptionId
    endpoint_url: str | None
    state: State
    held_by: HeldBy | None
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_id: AttemptId | None
    last_attempt_at: datetime | None
    last_status_code: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How many subscriptions have had their first finished attempt, by whether any attempt delivered."""

    delivered: int
    failed: int


def bounds_of(identifier: str) -> tuple[datetime, datetime] | None:
    """Between which moments lies created_at of the row with this attempt's or generated event's id; None: nowhere."""
    try:
        moment = ids.time_of(identifier)
        return moment - SLACK, moment + SLACK
    except (ValueError, OverflowError):
        return None


def bounds_of_day(day: date) -> tuple[datetime, datetime]:
    """The first moment of a UTC day and of the next."""
    first = datetime.combine(day, time(), UTC)
    return first, first + timedelta(days=1)


# Primary key. Only ids that emitters chose are here.
_DAY: Final = """
    SELECT event_day
    FROM dealix.event_keys
    WHERE customer_id = %(customer_id)s AND event_id = %(event_id)s
"""

# Index events_id of one partition, of two at midnight: never prepared, since a generic plan could not prune.
_EVENT: Final = """
    SELECT id, customer_id, type, data, created_at, matched
    FROM dealix.events
    WHERE customer_id = %(customer_id)s AND id = %(event_id)s
      AND created_at >= %(low)s AND created_at < %(high)s
    LIMIT 1
"""


async def between(conn: Connection, customer_id: CustomerId, event_id: str) -> tuple[datetime, datetime] | None:
    """Between which moments a customer's event was emitted, by its own key or by its id; None where neither tells."""
    row = await (await conn.execute(_DAY, {"customer_id": customer_id, "event_id": event_id})).fetchone()
    if row is not None:
        return bounds_of_day(row[0])
    return bounds_of(event_id) if ids.GENERATED_EVENT_ID.fullmatch(event_id) else None


async def find(conn: Connection, customer_id: CustomerId, event_id: str) -> EventRow | None:
    """A customer's event by its id, generated or the emitter's own; None where there is none, or none any more."""
    bounds = await between(conn, customer_id, event_id)
    return None if bounds is None else await find_between(conn, customer_id, event_id, bounds)


async def find_between(
    conn: Connection, customer_id: CustomerId, event_id: str, bounds: tuple[datetime, datetime]
) -> EventRow | None:
    """As `find`, where the moments between which it was emitted are known."""
    low, high = bounds
    cursor = await conn.execute(
        _EVENT, {"customer_id": customer_id, "event_id": event_id, "low": low, "high": high}, prepare=False
    )
    row = await cursor.fetchone()
    return None if row is None else EventRow(*row)


# One statement and so one snapshot: a duty moves from outbox to deliveries to attempts, and is never seen nowhere.
# Indexes: attempts_event of the partitions since the event's day, deliveries_duty, subscriptions' primary key. The
# outbox has no index on the event; what waits there is one customer's share, short unless fan-out is behind. Emitters'
# own ids are unique per customer only, hence the customer in every branch. Locks nothing.
_DUTIES: Final = """
    WITH logged AS (
        SELECT DISTINCT ON (subscription_id)
               subscription_id, id, attempt, outcome, endpoint_url, status_code, error, created_at,
               bool_or(success) OVER (PARTITION BY subscription_id) AS delivered
        FROM dealix.attempts
        WHERE event_id = %(event_id)s AND customer_id = %(customer_id)s
          AND created_at >= %(low)s AND created_at < %(high)s
        ORDER BY subscription_id, attempt DESC, id DESC
    ), queued AS (
        SELECT d.subscription_id, d.attempt, d.claimed, d.due, d.due <= now() AS ripe
        FROM dealix.deliveries d
        JOIN dealix.subscriptions s ON s.id = d.subscription_id AND s.customer_id = %(customer_id)s
        WHERE d.event_id = %(event_id)s
    ), waiting AS (
        SELECT s.id AS subscription_id
        FROM dealix.outbox o
        CROSS JOIN LATERAL unnest(o.subscription_ids) AS m (subscription_id)
        JOIN dealix.subscriptions s ON s.id = m.subscription_id AND s.customer_id = %(customer_id)s
        WHERE o.shard = dealix.shard_of(%(customer_id)s) AND o.customer_id IN (%(customer_id)s, '')
          AND o.event_id = %(event_id)s
    ), named AS (
        SELECT subscription_id FROM logged
        UNION SELECT subscription_id FROM queued
        UNION SELECT subscription_id FROM waiting
    )
    SELECT n.subscription_id, coalesce(l.endpoint_url, s.endpoint_url), w.subscription_id IS NOT NULL,
           q.claimed, q.due, q.ripe, coalesce(q.attempt, l.attempt, 0), s.enabled, h.circuit = 'open',
           l.delivered, l.outcome, l.id, l.created_at, l.status_code, l.error
    FROM named n
    LEFT JOIN logged l USING (subscription_id)
    LEFT JOIN queued q USING (subscription_id)
    LEFT JOIN waiting w USING (subscription_id)
    LEFT JOIN dealix.subscriptions s ON s.id = n.subscription_id
    LEFT JOIN dealix.subscription_health h ON h.subscription_id = n.subscription_id
    ORDER BY n.subscription_id
"""


async def duties(conn: Connection, event: EventRow) -> list[Duty]:
    """How far each delivery of an event is, by subscription. Deleted subscriptions that never got it are missing."""
    cursor = await conn.execute(
        _DUTIES,
        {
            "customer_id": event.customer_id,
            "event_id": event.id,
            "low": event.created_at - SLACK,
            "high": clock.now() + AHEAD,
        },
        prepare=False,
    )
    found: list[Duty] = []
    for row in await cursor.fetchall():
        subscription_id, url, waiting, claimed, due, ripe, attempts, enabled, is_open, delivered, outcome = row[:11]
        state = _state(waiting=waiting, claimed=claimed, due=due, ripe=ripe, delivered=delivered, outcome=outcome)
        found.append(
            Duty(
                subscription_id=subscription_id,
                endpoint_url=url,
                state=state,
                held_by=_held_by(enabled=enabled, circuit_open=is_open) if state == "held" else None,
                attempts=attempts,
                next_attempt_at=due if state == "scheduled" else None,
                last_attempt_id=row[11],
                last_attempt_at=row[12],
                last_status_code=row[13],
                last_error=row[14],
            )
        )
    return found


def _state(  # noqa: PLR0911, PLR0913 a table: one row a line
    *,
    waiting: bool,
    claimed: bool | None,
    due: datetime | None,
    ripe: bool | None,
    delivered: bool,
    outcome: str | None,
) -> State:
    if claimed is not None:  # there is a row in deliveries
        if claimed:
            return "in_flight"
        if due is None:
            return "held"
        return "pending" if ripe else "scheduled"
    if delivered:
        return "delivered"
    match outcome:
        case "failed" | "test_failed":
            return "failed"
        case "exhausted" | "gone" | "expired":
            return outcome
        case _:  # nothing final in the log, and no row that would lead there: its subscription was deleted
            return "pending" if waiting else "discarded"


def _held_by(*, enabled: bool, circuit_open: bool | None) -> HeldBy:
    if not enabled:
        return "disabled"
    return "breaker" if circuit_open else "backlog"


# Index attempts_event of the partitions since the event was emitted: one or two while somebody waits for it.
_PROGRESS: Final = """
    SELECT count(*) FILTER (WHERE delivered), count(*) FILTER (WHERE NOT delivered)
    FROM (
        SELECT bool_or(success) AS delivered
        FROM dealix.attempts
        WHERE event_id = %(event_id)s AND customer_id = %(customer_id)s
          AND created_at >= %(low)s AND created_at < %(high)s
          AND outcome <> 'interrupted'
        GROUP BY subscription_id
    ) AS tried
"""


async def progress(conn: Connection, customer_id: CustomerId, event_id: EventId, *, since: datetime) -> Progress:
    """How far the first attempts of an event are that was emitted at `since` or later."""
    cursor = await conn.execute(
        _PROGRESS,
        {"customer_id": customer_id, "event_id": event_id, "low": since, "high": clock.now() + AHEAD},
        prepare=False,
    )
    row = await cursor.fetchone()
    return Progress(0, 0) if row is None else Progress(*row)
