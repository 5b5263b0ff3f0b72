"""How recoveries go on, a step at a time: what came of what was sent, and what of their walk's findings goes next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from daemon import clock
from daemon.ids import CustomerId, EventId, RecoveryId, SubscriptionId
from daemon.model import Claim
from daemon.policy.retry import MAX_ATTEMPTS
from daemon.store.connection import Connection
from daemon.store.events import AHEAD, SLACK
from daemon.store.recoveries import Scope
from daemon.store.recovery_walk import Found, Position, Walk

JOBS: Final = 8
"""Recoveries that go on in one step, those that have waited longest; the others in the next ones."""
LIVE_FIRST: Final = 200
"""Events of its shard that wait for fan-out, from which on a recovery waits too."""


@dataclass(frozen=True, slots=True)
class Job:
    """A running recovery, locked. `most`: deliveries that it may have on its way as things stand; None for no limit.

    `wanted`: the types that the subscription wants, none for all; None where it was deleted. `open` are on their way,
    by event, with the number of the attempt that was claimed.
    """

    id: RecoveryId
    scope: Scope
    shard: int
    started_at: datetime
    position: Position
    open: dict[EventId, int]
    wanted: Sequence[str] | None
    version: int | None
    most: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A recovery that came to its end in a step; `cancelled` because its subscription was deleted."""

    id: RecoveryId
    subscription_id: SubscriptionId
    cancelled: bool
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one step came to: claims to send, jobs that ended, and whether any job got further."""

    claims: list[Claim]
    ended: list[Ended]
    moved: bool


# Locks the jobs (SKIP LOCKED: around a handover two owners step different ones; a cancel waits for the step). Index
# recoveries_shard. Behind an open breaker one delivery may be the probe, as soon as one may go and none is on its way.
_NEXT: Final = """
    SELECT r.id, r.customer_id, r.subscription_id, r.kind, r.since, r.until, r.shard, r.created_at,
           r.day, r.place, r.walked, r.open_events, r.open_attempts, s.events, s.version,
           CASE WHEN NOT coalesce(s.enabled, false) THEN 0
                WHEN EXISTS (SELECT FROM dealix.outbox o WHERE o.shard = r.shard OFFSET %(live_first)s) THEN 0
                WHEN h.circuit = 'closed' THEN NULL
                WHEN h.reopen_at <= now() THEN 1
                ELSE 0 END
    FROM dealix.recoveries r
    LEFT JOIN dealix.subscriptions s ON s.id = r.subscription_id
    LEFT JOIN dealix.subscription_health h ON h.subscription_id = r.subscription_id
    WHERE r.state = 'running' AND r.shard = ANY (%(shards)s::smallint[])
    ORDER BY r.stepped_at
    LIMIT %(jobs)s
    FOR UPDATE OF r SKIP LOCKED
"""

# What was claimed has ended when the log has that attempt, or a later one, with its outcome: an interrupted one is made
# again. Where its row is gone without that, it was discarded or has expired. Indexes: attempts_event of the partitions
# since the recovery began, deliveries_duty.
_CLOSED: Final = """
    SELECT o.event_id, coalesce(ended.success, false)
    FROM unnest(%(events)s::text[], %(attempts)s::smallint[]) AS o (event_id, attempt)
    CROSS JOIN LATERAL (
        SELECT bool_or(a.success) AS success
        FROM dealix.attempts a
        WHERE a.event_id = o.event_id AND a.subscription_id = %(subscription_id)s
          AND a.attempt >= o.attempt AND a.outcome <> 'interrupted'
          AND a.created_at >= %(low)s AND a.created_at < %(high)s
    ) AS ended
    WHERE ended.success IS NOT NULL
       OR NOT EXISTS (
           SELECT FROM dealix.deliveries d
           WHERE d.event_id = o.event_id AND d.subscription_id = %(subscription_id)s)
"""

# Claimed at once, as fan-out does it: the attempt is on record before its first byte leaves, and the lease ends if this
# daemon does. What was attempted before goes on with its number and with every step used, so that a failure is final as
# it is with a retry by hand; a duty that has a row (its next retry waits) is pulled forward and keeps its steps.
_START: Final = """
    INSERT INTO dealix.deliveries AS d
        (event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due)
    SELECT f.event_id, f.event_day, f.event_type, %(subscription_id)s, %(shard)s, f.attempt + 1,
           CASE WHEN f.attempt > 0 THEN %(steps)s ELSE 0 END, true, now() + %(lease_s)s * interval '1 s'
    FROM unnest(%(events)s::text[], %(days)s::date[], %(types)s::text[], %(attempts)s::smallint[])
        AS f (event_id, event_day, event_type, attempt)
    ON CONFLICT (event_id, subscription_id) DO UPDATE
    SET attempt = d.attempt + 1, claimed = true, due = excluded.due
    WHERE NOT d.claimed AND d.due IS NOT NULL
    RETURNING d.id, d.event_id, d.event_day, d.event_type, d.subscription_id, d.shard, d.attempt, d.steps,
              %(version)s::bigint
"""

_SAVE: Final = """
    UPDATE dealix.recoveries
    SET day = %(day)s, place = %(place)s, walked = %(walked)s, open_events = %(events)s, open_attempts = %(attempts)s,
        done = done + %(done)s, failed = failed + %(failed)s, state = %(state)s, stepped_at = clock_timestamp(),
        ended_at = CASE WHEN %(state)s <> 'running' THEN clock_timestamp() END,
        queued = CASE WHEN %(state)s = 'finished' THEN done + failed + %(done)s + %(failed)s ELSE queued END,
        exact = exact OR %(state)s = 'finished'
    WHERE id = %(id)s
    RETURNING done, failed
"""


async def step(
    conn: Connection, shards: Iterable[int], *, spare: Callable[[SubscriptionId, int], int], lease_s: float
) -> Step:
    """Let the recoveries of `shards` go on: see what has ended, and claim what may be on its way instead.

    `spare`: how many more deliveries a subscription may be given, of whose recovery so many are on their way.
    """
    claims: list[Claim] = []
    ended: list[Ended] = []
    moved = False
    async with conn.transaction():
        for job in await _next(conn, shards):
            closed = await _closed(conn, job) if job.open else {}
            left = {event: attempt for event, attempt in job.open.items() if event not in closed}
            take = spare(job.scope.subscription_id, len(left))
            if job.most is not None:
                take = min(take, job.most - len(left))
            position = job.position
            found: list[Found] = []
            if job.wanted is not None and take > 0 and not position.walked:
                found, position = await Walk(job.scope, job.wanted, job.started_at).find(conn, position, take=take)
            started = await _start(conn, job, found, lease_s) if found else []
            end = await _save(conn, job, position, left | {c.event_id: c.attempt for c in started}, closed)
            claims += started
            ended += [end] if end is not None else []
            moved |= bool(closed) or position != job.position
    return Step(claims, ended, moved)


async def _next(conn: Connection, shards: Iterable[int]) -> list[Job]:
    parameters = {"shards": sorted(shards), "jobs": JOBS, "live_first": LIVE_FIRST}
    return [_job(row) for row in await (await conn.execute(_NEXT, parameters)).fetchall()]


def _job(row: Sequence[Any]) -> Job:
    recovery_id, customer_id, subscription_id, kind, since, until, shard, started_at = row[:8]
    return Job(
        id=recovery_id,
        scope=Scope(CustomerId(customer_id), subscription_id, kind, since, until),
        shard=shard,
        started_at=started_at,
        position=Position(*row[8:11]),
        open=dict(zip(row[11], row[12], strict=True)),
        wanted=row[13],
        version=row[14],
        most=row[15],
    )


async def _closed(conn: Connection, job: Job) -> dict[EventId, bool]:
    """Which of what was on its way has ended, and whether it was delivered."""
    parameters = {
        "subscription_id": job.scope.subscription_id,
        "events": list(job.open),
        "attempts": list(job.open.values()),
        "low": job.started_at - SLACK,
        "high": clock.now() + AHEAD,
    }
    return dict(await (await conn.execute(_CLOSED, parameters, prepare=False)).fetchall())


async def _start(conn: Connection, job: Job, found: Sequence[Found], lease_s: float) -> list[Claim]:
    cursor = await conn.execute(
        _START,
        {
            "subscription_id": job.scope.subscription_id,
            "shard": job.shard,
            "version": job.version,
            "steps": MAX_ATTEMPTS,  # a schedule has at most as many
            "lease_s": lease_s,
            "events": [one.event_id for one in found],
            "days": [one.event_day for one in found],
            "types": [one.event_type for one in found],
            "attempts": [one.attempt for one in found],
        },
    )
    return [Claim(*row) for row in await cursor.fetchall()]


async def _save(
    conn: Connection, job: Job, position: Position, on_their_way: dict[EventId, int], closed: dict[EventId, bool]
) -> Ended | None:
    state = "running"
    if job.wanted is None:
        state = "cancelled"
    elif position.walked and not on_their_way:
        state = "finished"
    delivered = sum(closed.values())
    cursor = await conn.execute(
        _SAVE,
        {
            "id": job.id,
            "state": state,
            "day": position.day,
            "place": position.place,
            "walked": position.walked,
            "events": list(on_their_way),
            "attempts": list(on_their_way.values()),
            "done": delivered,
            "failed": len(closed) - delivered,
        },
    )
    ((done, failed),) = await cursor.fetchall()
    if state == "running":
        return None
    return Ended(job.id, job.scope.subscription_id, state == "cancelled", done, failed)
