"""Recording: a batch of attempts becomes log rows, finished or rescheduled deliveries, health and statistics.

One statement, so one transaction and one round trip. The batch travels as JSON, which Postgres unpacks for about
1.6 µs a row and which costs less to make than arrays (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
import psycopg

from daemon.errors import BatchRefused
from daemon.ids import CustomerId, SubscriptionId
from daemon.model import AttemptRecord
from daemon.policy.latency import BUCKETS, bucket
from daemon.policy.operational import TYPES as OPERATIONAL
from daemon.store.connection import Connection
from daemon.store.outage import first_line, outage
from daemon.store.telling import PARAMETERS, RAISED


class _Health(msgspec.Struct, gc=False):
    """A subscription's results in this batch, folded: see `fold_health`."""

    subscription_id: SubscriptionId
    lead: int
    longest: int
    tail: int
    delivered: bool
    gone_from: str | None
    raises: bool
    last_at: datetime
    last_status_code: int | None
    circuit: str | None
    cooldown_s: float
    reopen_in_s: float | None


class _Stats(msgspec.Struct, gc=False):
    day: str
    customer_id: CustomerId
    event_type: str
    success: int
    failed: int
    duration_ms: int
    latency_buckets: list[int]


class _Hour(msgspec.Struct, gc=False):
    hour: str
    customer_id: CustomerId
    success: int
    failed: int
    latency_buckets: list[int]


@dataclass(frozen=True, slots=True)
class Health:
    """A subscription after a batch that held failures of it. `disabled` names the reason if this batch disabled it.

    `level` is the percentage of the way there that the batch passed. `recovered`: it had an alert, and delivered.
    """

    subscription_id: SubscriptionId
    consecutive_failures: int
    disabled: str | None
    level: int | None
    recovered: bool = False


def fold_health(records: Sequence[AttemptRecord]) -> list[_Health]:
    """Fold each subscription's results, in order, into what its counter needs.

    With `lead` failures before the first success, `longest` run of failures after it, and `tail` failures at
    the end, the counter can be advanced without being read first: it passes the limit if old + lead or longest
    reaches it, and ends at tail, or at old + lead where nothing was delivered.
    """
    folded: dict[SubscriptionId, _Health] = {}
    for r in records:
        h = folded.get(r.subscription_id)
        if h is None:
            h = folded[r.subscription_id] = _Health(
                r.subscription_id, 0, 0, 0, False, None, False, r.created_at, None, None, 0.0, None
            )
        if r.success:
            h.delivered, h.tail = True, 0
        else:
            h.raises |= r.event_type not in OPERATIONAL
            h.tail += 1
            if h.delivered:
                h.longest = max(h.longest, h.tail)
            else:
                h.lead += 1
        if r.gone:
            h.gone_from = r.endpoint_url
        h.last_at, h.last_status_code = r.created_at, r.status_code
        if r.circuit is not None:
            h.circuit, h.cooldown_s, h.reopen_in_s = r.circuit, r.cooldown_s, r.reopen_in_s
    return [folded[key] for key in sorted(folded)]


def fold_stats(records: Sequence[AttemptRecord]) -> list[_Stats]:
    """Sum the batch by UTC day, customer and type, in key order (two recorders then lock rows in the same order)."""
    folded: dict[tuple[str, str, str], _Stats] = {}
    for r in records:
        day = r.created_at.date().isoformat()
        key = (r.customer_id, day, r.event_type)
        s = folded.get(key)
        if s is None:
            s = folded[key] = _Stats(day, r.customer_id, r.event_type, 0, 0, 0, [0] * BUCKETS)
        if r.success:
            s.success += 1
        else:
            s.failed += 1
        s.duration_ms += r.duration_ms
        s.latency_buckets[bucket(r.duration_ms)] += 1
    return [folded[key] for key in sorted(folded)]


def fold_hours(records: Sequence[AttemptRecord]) -> list[_Hour]:
    """Sum the batch by UTC hour and customer, in key order."""
    folded: dict[tuple[str, str], _Hour] = {}
    for r in records:
        hour = r.created_at.isoformat()[:13] + ":00Z"
        key = (r.customer_id, hour)
        h = folded.get(key)
        if h is None:
            h = folded[key] = _Hour(hour, r.customer_id, 0, 0, [0] * BUCKETS)
        if r.success:
            h.success += 1
        else:
            h.failed += 1
        h.latency_buckets[bucket(r.duration_ms)] += 1
    return [folded[key] for key in sorted(folded)]


# Locks: the deliveries (this daemon's claims), the health rows of the batch's subscriptions, their daily_stats and
# hourly_stats rows, and on a disable the subscription's row. Two daemons meet on a row only around a handover or a
# test-fire; should they deadlock, the batch is repeated. Indexes: primary keys.
# Results for a disabled subscription do not count: s.enabled is as the statement's snapshot saw it, and a PATCH that
# enables holds the health row until it commits.
_RECORD: Final = f"""
    WITH r AS (
        SELECT * FROM json_to_recordset(%(attempts)s::json) AS r (
            action text, delivery_id bigint, attempt smallint, wait_s float8, id text, created_at timestamptz,
            customer_id text, subscription_id text, event_id text, event_day date, event_type text, outcome text,
            success boolean, endpoint_url text, status_code smallint, error text, duration_ms integer, signature text,
            webhook_signature text, response_headers text, response_body text, response_truncated boolean,
            traceparent text)
    ), finished AS (
        DELETE FROM dealix.deliveries d
        WHERE d.id = ANY (ARRAY(SELECT r.delivery_id FROM r WHERE r.action = 'finish')) AND d.claimed
          AND ((d.id, d.attempt) IN (SELECT r.delivery_id, r.attempt FROM r WHERE r.action = 'finish')) IS TRUE
        RETURNING d.id
    ), rescheduled AS (
        UPDATE dealix.deliveries d
        SET claimed = false, steps = d.steps + 1,
            due = now() + (%(waits)s::jsonb ->> d.id::text)::float8 * interval '1 s'
        WHERE d.id = ANY (ARRAY(SELECT r.delivery_id FROM r WHERE r.action = 'retry')) AND d.claimed
          AND ((d.id, d.attempt) IN (SELECT r.delivery_id, r.attempt FROM r WHERE r.action = 'retry')) IS TRUE
        RETURNING d.id
    ), logged AS (
        INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type,
            attempt, outcome, success, endpoint_url, status_code, error, duration_ms, signature, webhook_signature,
            response_headers, response_body, response_truncated, traceparent)
        SELECT id, created_at, customer_id, subscription_id, event_id, event_day, event_type,
            attempt, outcome, success, endpoint_url, status_code, error, duration_ms, signature, webhook_signature,
            response_headers, response_body, response_truncated, traceparent
        FROM r
    ), health AS (
        UPDATE dealix.subscription_health k
        SET (consecutive_failures, circuit, cooldown_s, reopen_at, last_delivery_at, last_status_code) = (
            SELECT CASE
                       WHEN NOT s.enabled THEN k.consecutive_failures
                       WHEN h.lead > 0 AND k.consecutive_failures + h.lead >= %(disable_after)s
                           OR h.longest >= %(disable_after)s THEN %(disable_after)s
                       WHEN h.delivered THEN h.tail
                       ELSE k.consecutive_failures + h.lead END,
                   CASE WHEN s.enabled AND h.circuit IS NOT NULL THEN h.circuit ELSE k.circuit END,
                   CASE WHEN s.enabled AND h.circuit IS NOT NULL THEN h.cooldown_s ELSE k.cooldown_s END,
                   CASE WHEN s.enabled AND h.circuit IS NOT NULL THEN now() + h.reopen_in_s * interval '1 s'
                        ELSE k.reopen_at END,
                   h.last_at, h.last_status_code
            FROM jsonb_to_record(%(health)s::jsonb -> k.subscription_id) AS h (
                lead integer, longest integer, tail integer, delivered boolean, last_at timestamptz,
                last_status_code smallint, circuit text, cooldown_s real, reopen_in_s float8)
            CROSS JOIN (SELECT s.enabled FROM dealix.subscriptions s WHERE s.id = k.subscription_id) AS s)
        WHERE k.subscription_id = ANY (ARRAY(SELECT jsonb_object_keys(%(health)s::jsonb)))
          AND (EXISTS (SELECT FROM dealix.subscriptions s WHERE s.id = k.subscription_id)) IS TRUE
        RETURNING k.subscription_id, k.consecutive_failures
    ), judged AS (
        SELECT k.subscription_id, k.consecutive_failures, (h.gone_from = s.endpoint_url) IS TRUE AS gone,
               h.raises, h.lead, h.delivered, s.enabled, s.customer_id, s.endpoint_url
        FROM health k
        CROSS JOIN LATERAL jsonb_to_record(%(health)s::jsonb -> k.subscription_id) AS h (
            gone_from text, raises boolean, lead integer, delivered boolean)
        CROSS JOIN LATERAL (
            SELECT s.enabled, s.customer_id, s.endpoint_url FROM dealix.subscriptions s
            WHERE s.id = k.subscription_id OFFSET 0
        ) AS s
        WHERE k.consecutive_failures > 0 OR h.gone_from IS NOT NULL OR h.delivered
    ), disabled AS (
        UPDATE dealix.subscriptions s
        SET enabled = false,
            disabled_reason = CASE WHEN s.id = ANY (ARRAY(SELECT j.subscription_id FROM judged j WHERE j.gone))
                                   THEN 'gone' ELSE 'consecutive_failures' END
        WHERE s.enabled AND s.id = ANY (ARRAY(
            SELECT j.subscription_id FROM judged j
            WHERE j.enabled AND (j.gone OR j.consecutive_failures >= %(disable_after)s)))
        RETURNING s.id, s.disabled_reason
    ), counted AS (
        INSERT INTO dealix.daily_stats AS k
            (day, customer_id, event_type, success, failed, duration_ms, latency_buckets)
        SELECT day, customer_id, event_type, success, failed, duration_ms, latency_buckets
        FROM json_to_recordset(%(stats)s::json) AS t (
            day date, customer_id text, event_type text, success bigint, failed bigint, duration_ms bigint,
            latency_buckets bigint[])
        ON CONFLICT (customer_id, day, event_type) DO UPDATE
        SET success = k.success + excluded.success, failed = k.failed + excluded.failed,
            duration_ms = k.duration_ms + excluded.duration_ms,
            latency_buckets = dealix.add_buckets(k.latency_buckets, excluded.latency_buckets)
    ), by_hour AS (
        INSERT INTO dealix.hourly_stats AS k (customer_id, hour, success, failed, latency_buckets)
        SELECT customer_id, hour, success, failed, latency_buckets
        FROM json_to_recordset(%(hours)s::json) AS t (
            customer_id text, hour timestamptz, success bigint, failed bigint, latency_buckets bigint[])
        ON CONFLICT (customer_id, hour) DO UPDATE
        SET success = k.success + excluded.success, failed = k.failed + excluded.failed,
            latency_buckets = dealix.add_buckets(k.latency_buckets, excluded.latency_buckets)
    ), {RAISED}
    SELECT 'health', h.subscription_id, h.consecutive_failures, d.disabled_reason, a.level
    FROM judged h
    LEFT JOIN disabled d ON d.id = h.subscription_id
    LEFT JOIN raised a ON a.subscription_id = h.subscription_id
    WHERE h.consecutive_failures > 0 OR h.gone
    UNION ALL
    SELECT 'recovered', subscription_id, NULL, NULL, NULL FROM eased
    UNION ALL
    SELECT 'told', NULL, NULL, NULL, sum(matched)::int FROM told HAVING count(*) > 0
    UNION ALL
    SELECT 'late', r.id, NULL, NULL, dealix.forget_interrupted(r.event_id, r.subscription_id, r.attempt) FROM r
    WHERE r.action <> 'log'
      AND r.delivery_id NOT IN (SELECT id FROM finished UNION ALL SELECT id FROM rescheduled)
"""  # noqa: S608 a constant in a constant


async def record(conn: Connection, records: Sequence[AttemptRecord], *, disable_after: int) -> list[Health]:
    """Write a batch, all or nothing. Returns the subscriptions that have failures in a row now.

    Raises BatchRefused where the database does not take it.
    A late result (its delivery was taken over meanwhile) replaces the `interrupted` row of the same attempt.
    """
    batch = {
        "attempts": msgspec.json.encode(records).decode(),
        "health": msgspec.json.encode({h.subscription_id: h for h in fold_health(records)}).decode(),
        "waits": msgspec.json.encode({r.delivery_id: r.wait_s for r in records if r.action == "retry"}).decode(),
        "stats": msgspec.json.encode(fold_stats(records)).decode(),
        "hours": msgspec.json.encode(fold_hours(records)).decode(),
        "disable_after": disable_after,
    } | PARAMETERS
    try:
        cursor = await conn.execute(_RECORD, batch)
    except psycopg.Error as e:
        if outage(e, connection_lost=conn.closed):
            raise  # the pool translates it
        raise BatchRefused(first_line(e)) from e
    health: list[Health] = []
    for kind, key, failures, disabled, level in await cursor.fetchall():
        if kind == "health":
            health.append(Health(key, failures, disabled, level))
        elif kind == "recovered":
            health.append(Health(key, 0, None, None, recovered=True))
    return health


async def record_again(conn: Connection, records: Sequence[AttemptRecord], *, disable_after: int) -> list[Health]:
    """Write a batch whose first commit went unanswered, unless that commit took place.

    A batch is in the log as a whole or not at all, and an attempt's id is unique there: the second of two equal batches
    fails on it, also where the first one is still running on the server, or only begins when a frozen server goes on.
    """
    try:
        return await record(conn, records, disable_after=disable_after)
    except BatchRefused as e:
        if is_logged_already(e.__cause__):
            return []
        raise


def is_logged_already(cause: BaseException | None) -> bool:
    """Whether it was the log that refused an attempt's id."""
    return (
        isinstance(cause, psycopg.errors.UniqueViolation)
        and cause.diag.constraint_name is not None
        and (cause.diag.table_name or "").startswith("attempts_")
    )
