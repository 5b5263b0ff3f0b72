"""The delivery log as people read it, and the retry that a person asks for. Rows of the log are attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final, Literal, LiteralString, cast

import trio

from daemon import clock
from daemon.ids import AttemptId, CustomerId, EventId, SubscriptionId
from daemon.policy.retry import MAX_ATTEMPTS
from daemon.store.connection import Connection
from daemon.store.events import AHEAD, SLACK, between, bounds_of
from daemon.store.shards import DUE, shard_of

Logged = Literal["delivered", "retry", "failed", "exhausted", "gone", "interrupted", "expired", "test_failed"]
"""What an attempt came to; `retry` is a failure after which the delivery goes on."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt as lists show it. `duration_ms` is None where no request was made."""

    id: AttemptId
    subscription_id: SubscriptionId
    event_id: EventId
    event_type: str
    attempt: int
    endpoint_url: str
    outcome: Logged
    status_code: int | None
    success: bool
    error: str | None
    duration_ms: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """Everything the log holds of an attempt. The signatures are None where nothing was signed."""

    row: AttemptRow
    customer_id: CustomerId
    event_day: date
    signature: str | None
    webhook_signature: str | None
    traceparent: str | None
    response_headers: list[tuple[str, str]]
    response_body: str | None
    response_truncated: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which attempts of a customer are wanted. `since` is included, `until` is not; `success` None means both."""

    customer_id: CustomerId
    subscription_id: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    success: bool | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Attempts, newest first. `before` leads to the next page, which may be empty; None on the last one."""

    rows: list[AttemptRow]
    before: str | None


_COLUMNS: Final = """
    SELECT id, subscription_id, event_id, event_type, attempt, endpoint_url, outcome, status_code, success, error,
           duration_ms, created_at
"""
_WITHIN: Final = """
      AND id >= %(first)s AND id < %(before)s
      AND created_at >= %(low)s AND created_at < %(high)s
    ORDER BY id DESC
"""
# Each is one range of one index, walked backwards, in the day partitions between low and high: attempts_customer_failed
# and attempts_customer. They choose by nothing else, so that they end with the page's last row. They lock nothing. No
# plan is kept, so that partitions are left out while planning.
_FAILED: Final = f"""{_COLUMNS}
    FROM dealix.attempts
    WHERE customer_id = %(customer_id)s AND NOT success {_WITHIN}
    LIMIT %(rows)s
"""
_BY_CUSTOMER: Final = f"""{_COLUMNS}
    FROM dealix.attempts
    WHERE customer_id = %(customer_id)s {_WITHIN}
    LIMIT %(rows)s
"""
# Index attempts_event. An event's attempts are few: whatever else is asked of them is looked up in the rows.
_BY_EVENT: Final = f"""{_COLUMNS}
    FROM dealix.attempts
    WHERE event_id = %(event_id)s AND customer_id = %(customer_id)s
      AND (%(subscription_id)s::text IS NULL OR subscription_id = %(subscription_id)s)
      AND (%(event_type)s::text IS NULL OR event_type = %(event_type)s)
      AND (%(success)s::boolean IS NULL OR success = %(success)s) {_WITHIN}
    LIMIT %(rows)s
"""

# Such ranges too, and attempts_subscription, where more is asked that may fit hardly any row: so many rows are looked
# through, in the index alone, which carries all that is asked for, once `NULL IS NULL OR …` is gone before planning.
# What fits is named; how many there were and which was the last one tells how far the look came. Ids sort alike in
# every collation, and fastest in this one. That a customer is asked for beside the subscription keeps others out: they
# get nothing, and no cursor that would tell of its rows.
_SIFT: Final = """
    SELECT (array_agg(id) FILTER (WHERE fits))[:%(rows)s], (array_agg(created_at) FILTER (WHERE fits))[:%(rows)s],
           count(*), min(id COLLATE "C")
    FROM (
        SELECT id, created_at,
               (%(event_type)s::text IS NULL OR event_type = %(event_type)s)
               AND (%(subscription_id)s::text IS NULL OR subscription_id = %(subscription_id)s)
               AND (%(success)s::boolean IS NULL OR success = %(success)s) AS fits
        FROM dealix.attempts
        WHERE
"""
_LOOKED: Final = f"""{_WITHIN}
        LIMIT %(look)s
    ) AS looked
"""
_SIFT_CUSTOMER: Final = f"{_SIFT} customer_id = %(customer_id)s {_LOOKED}"
_SIFT_FAILED: Final = f"{_SIFT} customer_id = %(customer_id)s AND NOT success {_LOOKED}"
_SIFT_SUBSCRIPTION: Final = f"{_SIFT} subscription_id = %(subscription_id)s AND customer_id = %(customer_id)s {_LOOKED}"
# Index attempts_id of the partition of each.
_NAMED: Final = f"""{_COLUMNS}
    FROM unnest(%(ids)s::text[], %(moments)s::timestamptz[]) AS named (attempt_id, began_at)
    CROSS JOIN LATERAL (
        {_COLUMNS}
        FROM dealix.attempts a
        WHERE a.id = named.attempt_id AND a.created_at = named.began_at
          AND a.created_at >= %(low)s AND a.created_at < %(high)s
        LIMIT 1
    ) AS found
    ORDER BY id DESC
"""

_FIRST_SPAN: Final = timedelta(hours=6)
_FIRST_LOOK: Final = 500
_GROWTH: Final = 4
"""A month is walked in five spans: the newest page of a busy customer needs one partition."""
_LONGEST_LOOK: Final = 20_000
"""Rows that are looked through at a time: some 10 ms, and 80 where none of them was vacuumed yet. A filter that matches
almost nothing can stop between two looks instead of running into the deadline."""
_PATIENCE: Final = 25
"""So much longer may a page take where rows are not what takes the time: a short log is shown as a whole, even by a
machine that reads it from a slow disk for the first time."""


def id_at(moment: datetime) -> str:
    """The lowest attempt id of the millisecond of `moment`."""
    return f"dlv_{max(int(moment.timestamp() * 1000), 0):012x}{0:012x}"


async def page(  # noqa: PLR0913 one page of one list, all named at the call
    conn: Connection, wanted: Filter, *, limit: int, before: str | None, oldest: datetime, look_s: float
) -> Page:
    """The newest attempts that `wanted` chooses, at most `limit`, with ids below `before`, not older than `oldest`.

    Looks through no more rows that do not fit after `look_s` seconds, even where the page is not full: `before` of the
    answer goes on from there.
    """
    began_at = trio.current_time()
    newest = clock.now() + AHEAD if wanted.until is None else min(wanted.until + SLACK, clock.now() + AHEAD)
    ceiling = id_at(newest) if before is None else min(before, id_at(newest))
    floor = oldest if wanted.since is None else max(oldest, wanted.since - SLACK)
    if (
        wanted.event_id is not None
        and (emitted := await between(conn, wanted.customer_id, wanted.event_id)) is not None
    ):
        floor = max(floor, emitted[0] - AHEAD)
    span, look = _FIRST_SPAN, _FIRST_LOOK
    rows: list[AttemptRow] = []
    while (bounds := bounds_of(ceiling)) is not None and ceiling > id_at(floor):
        # An event's attempts are found at once in whatever partitions there are, but a plan is made for each span.
        start = floor if wanted.event_id is not None else max(bounds[0] + SLACK - span, floor)
        missing = limit + 1 - len(rows)
        found, reached = await _look(conn, wanted, first=id_at(start), before=ceiling, rows=missing, look=look)
        rows += found
        if len(rows) > limit:
            return Page(rows[:limit], rows[limit - 1].id)
        if reached is None:
            ceiling, span, patience_s = id_at(start), span * _GROWTH, look_s * _PATIENCE
        else:
            ceiling, look, patience_s = reached, min(look * _GROWTH, _LONGEST_LOOK), look_s
        if trio.current_time() > began_at + patience_s and ceiling > id_at(floor):
            return Page(rows, ceiling)
    return Page(rows, None)


async def _look(  # noqa: PLR0913 one look, all but the first two named at the call
    conn: Connection, wanted: Filter, *, first: str, before: str, rows: int, look: int
) -> tuple[list[AttemptRow], str | None]:
    """What fits among ids from `first` on and below `before`, the newest `rows` of it.

    And the id that the look ended with, where it did not come as far as `first`.
    """
    low, high = bounds_of(first), bounds_of(before)
    if low is None or high is None:
        return [], None
    parameters = {
        "customer_id": wanted.customer_id,
        "subscription_id": wanted.subscription_id,
        "event_id": wanted.event_id,
        "event_type": wanted.event_type,
        "success": wanted.success,
        "first": first,
        "before": before,
        "low": low[0] if wanted.since is None else max(low[0], wanted.since),
        "high": high[1] if wanted.until is None else min(high[1], wanted.until),
        "rows": rows,
        "look": look,
    }
    if (plain := _plain(wanted)) is not None:
        cursor = await conn.execute(plain, parameters, prepare=False)
        return [AttemptRow(*row) for row in await cursor.fetchall()], None
    asked = {"success": wanted.success or None}  # the index of what failed has nothing else
    cursor = await conn.execute(_sifting(wanted), parameters | asked, prepare=False)
    ((fitting, moments, looked, last),) = await cursor.fetchall()
    reached = last if looked == look else None
    if fitting is None:
        return [], reached
    cursor = await conn.execute(_NAMED, parameters | {"ids": fitting, "moments": moments}, prepare=False)
    # Where more may fit than was asked for, the look has come no further than what it named.
    return [AttemptRow(*row) for row in await cursor.fetchall()], fitting[-1] if len(fitting) == rows else reached


def _plain(wanted: Filter) -> LiteralString | None:
    """The statement whose range of an index is just what is wanted; None where there is none."""
    if wanted.event_id is not None:
        return _BY_EVENT
    if wanted.subscription_id is not None or wanted.event_type is not None or wanted.success is True:
        return None
    return _BY_CUSTOMER if wanted.success is None else _FAILED


def _sifting(wanted: Filter) -> LiteralString:
    """The statement whose range of an index has least that is not wanted."""
    if wanted.success is False:
        return _SIFT_FAILED
    return _SIFT_CUSTOMER if wanted.subscription_id is None else _SIFT_SUBSCRIPTION


# Index attempts_id of the one partition (at midnight two) that the id's millisecond names.
_ATTEMPT: Final = f"""{_COLUMNS},
           customer_id, event_day, signature, webhook_signature, traceparent, response_headers, response_body,
           response_truncated
    FROM dealix.attempts
    WHERE id = %(id)s AND created_at >= %(low)s AND created_at < %(high)s
    LIMIT 1
"""


async def find(conn: Connection, attempt_id: str) -> Attempt | None:
    """The attempt with this id, whosever it is; None where there is none, or none any more."""
    bounds = bounds_of(attempt_id)
    if bounds is None:
        return None
    low, high = bounds
    row = await (await conn.execute(_ATTEMPT, {"id": attempt_id, "low": low, "high": high}, prepare=False)).fetchone()
    if row is None:
        return None
    return Attempt(
        row=AttemptRow(*row[:12]),
        customer_id=row[12],
        event_day=row[13],
        signature=row[14],
        webhook_signature=row[15],
        traceparent=row[16],
        response_headers=_pairs(row[17]),
        response_body=row[18],
        response_truncated=row[19],
    )


def _pairs(stored: str | None) -> list[tuple[str, str]]:
    if stored is None:
        return []
    return [(name, value) for name, value in cast("list[list[str]]", json.loads(stored))]


# The lock waits for a result of this duty that is being recorded, so that the next statement sees it in the log.
_LOCK_DUTY: Final = """
    SELECT id
    FROM dealix.deliveries
    WHERE event_id = %(event_id)s AND subscription_id = %(subscription_id)s
    FOR UPDATE
"""

# A duty that is finished begins again after its last attempt, with all steps used: a failure is final. One that is
# waiting or held is pulled forward; one in flight stays. Index attempts_event, from the event's day on.
_RETRY: Final = """
    INSERT INTO dealix.deliveries AS d (event_id, event_day, event_type, subscription_id, shard,
                                        attempt, steps, claimed, due)
    SELECT %(event_id)s, %(event_day)s, %(event_type)s, %(subscription_id)s, %(shard)s,
           coalesce(max(a.attempt), 0), %(steps)s, false, now()
    FROM dealix.attempts a
    WHERE a.event_id = %(event_id)s AND a.subscription_id = %(subscription_id)s
      AND a.created_at >= %(low)s AND a.created_at < %(high)s
    ON CONFLICT (event_id, subscription_id) DO UPDATE SET due = now() WHERE NOT d.claimed
    RETURNING d.attempt
"""

_IN_FLIGHT: Final = """
    SELECT attempt
    FROM dealix.deliveries
    WHERE event_id = %(event_id)s AND subscription_id = %(subscription_id)s
"""
_NOTIFY: Final = "SELECT pg_notify(%(channel)s, %(shard)s)"


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt number that the retry has, and whether it waits for its turn or is being made at this moment."""

    attempt: int
    state: Literal["pending", "in_flight"]


async def retry(conn: Connection, attempt: Attempt) -> Retried:
    """Have the event of `attempt` sent to its subscription once more, now, as the next attempt number.

    Where an attempt of it is being made at this moment, that one is it. The caller has seen that the subscription is
    there and enabled; whichever is not by the time of the claim ends as any other duty of it does.
    """
    row = attempt.row
    shard = shard_of(attempt.customer_id)
    parameters: Mapping[str, object] = {
        "event_id": row.event_id,
        "event_day": attempt.event_day,
        "event_type": row.event_type,
        "subscription_id": row.subscription_id,
        "shard": shard,
        "steps": MAX_ATTEMPTS,  # a schedule has at most as many
        "low": datetime.combine(attempt.event_day, datetime.min.time(), row.created_at.tzinfo) - SLACK,
        "high": clock.now() + AHEAD,
    }
    async with conn.transaction():
        await conn.execute(_LOCK_DUTY, parameters)
        made = await (await conn.execute(_RETRY, parameters, prepare=False)).fetchone()
        if made is None:
            current = await (await conn.execute(_IN_FLIGHT, parameters)).fetchone()
            return Retried(row.attempt if current is None else current[0], "in_flight")
        await conn.execute(_NOTIFY, {"channel": DUE, "shard": str(shard)})
    return Retried(made[0] + 1, "pending")
