"""The day partitions of events and attempts: made ahead of time, dropped when they are old, never in an emit's way.

Emitting transactions hold ROW EXCLUSIVE on `events` and on today's partition until they end, perhaps for hours.
Whatever wants a lock that conflicts with that queues behind them, and every later emit queues behind it in turn. So
nothing here ever asks for such a lock on the parent:

- a partition is made as a table of its own and ATTACHed (SHARE UPDATE EXCLUSIVE, no conflict);
- it goes by DETACH … CONCURRENTLY, which marks it, waits without a lock for the transactions that may still see it,
  and only then takes the partition itself; then DROP, of a table that nobody knows any more.

Each wait has a lock_timeout. What could not be done now is done by the next call: the catalog alone says how far the
last one came.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final, LiteralString

import trio
from psycopg import Error, errors, sql

from daemon import clock
from daemon.store.connection import Connection

_MAKE_LOCK: Final = 0x6465616C69780002
"""Advisory lock around the making of one partition; two replicas that start together take turns."""

_JANITOR_LOCK: Final = 0x6465616C69780003
"""Advisory lock of the one replica that drops: Postgres allows one pending DETACH for each parent."""

_LOCK_TIMEOUT: Final = "2s"
"""Longest wait for any lock. Only other work of this kind, and old readers of an old partition, are waited for."""

_BATCH: Final = 5_000
"""Rows deleted in one transaction: some 50 ms, and little to roll back."""

_UNLOCK_S: Final = 5.0

HOURS_KEPT_DAYS: Final = 8
"""Of hourly statistics: the longest period that is shown by the hour is a week."""

# Reads the catalog only. Yesterday too: an emit that began before midnight stamps its event by its own clock reading.
_MISSING: Final = """
SELECT parent, day::date
FROM unnest(ARRAY['events', 'attempts']) AS parent
CROSS JOIN generate_series(
    (now() AT TIME ZONE 'UTC')::date - 1, (now() AT TIME ZONE 'UTC')::date + %(days)s::integer, interval '1 day'
) AS day
WHERE NOT EXISTS (
    SELECT
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = to_regclass('dealix.' || parent) AND c.relname = parent || '_' || to_char(day, 'YYYYMMDD')
)
ORDER BY day, parent
"""


async def make_ahead(conn: Connection, *, days: int) -> int:
    """Make the partitions from yesterday to `days` days after today (UTC, the database's clock); how many were made.

    One short transaction each. Idempotent; replicas may run it at once. Raises the driver's LockNotAvailable, to
    the pool's users DatabaseUnavailable, where a lock was not to be had within 2 s: what was made by then stays.
    """
    cursor = await conn.execute(_MISSING, {"days": days})
    made = 0
    for parent, day in await cursor.fetchall():
        async with conn.transaction():
            await conn.execute("SELECT set_config('lock_timeout', %(timeout)s, true)", {"timeout": _LOCK_TIMEOUT})
            await conn.execute("SELECT pg_advisory_xact_lock(%(key)s)", {"key": _MAKE_LOCK})
            cursor = await conn.execute(
                "SELECT dealix.make_partition(%(parent)s, %(day)s)", {"parent": parent, "day": day}
            )
            row = await cursor.fetchone()
            made += row is not None and bool(row[0])
    return made


@dataclass(frozen=True, slots=True)
class Retired:
    """What one call of `drop_before` came to.

    `expired` deliveries were ended, the partitions `dropped` are gone, those `waiting` go by a later call (somebody
    still reads or emits in them, or a delivery of theirs is still under way), `keys` are forgotten ids of emitters.
    """

    expired: int = 0
    dropped: list[str] = field(default_factory=list[str])
    waiting: list[str] = field(default_factory=list[str])
    keys: int = 0


async def drop_before(conn: Connection, day: date) -> Retired:
    """Drop everything of the days before `day` (UTC): deliveries end as expired, then partitions, then emitters' ids.

    To be called again and again; each call goes on where the last one was stopped. Where another replica is at it,
    nothing is done. `conn` must be in autocommit, outside a transaction.
    """
    async with _janitor(conn) as mine:
        if not mine:
            return Retired()
        expired = await _expire(conn, day)
        dropped: list[str] = []
        waiting: list[str] = []
        busy = await _days_with_duties(conn, day)
        for partition in await _old(conn, day):
            if partition.parent == "events" and partition.day in busy:
                waiting.append(partition.name)
            elif await _drop(conn, partition):
                dropped.append(partition.name)
            else:
                waiting.append(partition.name)
        keys = await _delete_in_batches(conn, _DELETE_KEYS, day)
        for forgotten in (_DELETE_TESTS, _DELETE_RECOVERIES):
            await _delete_in_batches(conn, forgotten, day)
        return Retired(expired, dropped, waiting, keys)


async def drop_stats_before(conn: Connection, day: date) -> int:
    """Delete the daily statistics of the days before `day`; how many rows went. Hourly ones go after eight days."""
    await _delete_in_batches(conn, _DELETE_HOURS, clock.now().date() - timedelta(days=HOURS_KEPT_DAYS))
    return await _delete_in_batches(conn, _DELETE_STATS, day)


# Row locks on a batch of deliveries (SKIP LOCKED: what an actor is claiming is its own), walked by primary key, since
# no index leads by day and this runs a few times a day. Claimed ones are under way and end by themselves. Where the
# subscription is gone there is no one to log it for.
_EXPIRE: Final = """
WITH old AS (
    SELECT d.id
    FROM dealix.deliveries d
    WHERE d.id > %(after)s AND d.event_day < %(day)s AND NOT d.claimed
    ORDER BY d.id
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM dealix.deliveries d
    USING old
    WHERE d.id = old.id
    RETURNING d.id, d.event_id, d.event_day, d.event_type, d.subscription_id, d.attempt
), logged AS (
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type,
                                 attempt, outcome, success, endpoint_url, error)
    SELECT dealix.attempt_id(now()), now(), s.customer_id, s.id, g.event_id, g.event_day, g.event_type,
           g.attempt, 'expired', false, s.endpoint_url,
           'the event reached the end of its retention before it could be delivered'
    FROM gone g
    JOIN dealix.subscriptions s ON s.id = g.subscription_id
)
SELECT count(*), max(id)
FROM gone
"""

_DUTIES: Final = """
SELECT event_day FROM dealix.deliveries WHERE event_day < %(day)s
UNION
SELECT event_day FROM dealix.outbox WHERE event_day < %(day)s
"""

# Attached partitions, those whose DETACH was begun, and tables that were partitions until a crash came before DROP.
# The begun one first: as long as it stands, its parent allows no other.
_OLD: Final = """
SELECT parent, c.relname, to_date(right(c.relname, 8), 'YYYYMMDD'),
       CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'detaching' ELSE 'attached' END
FROM unnest(ARRAY['events', 'attempts']) AS parent
JOIN pg_class c ON c.relnamespace = to_regnamespace('dealix') AND c.relkind = 'r'
               AND c.relname ~ ('^' || parent || '_[0-9]{8}$')
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE right(c.relname, 8) < to_char(%(day)s::date, 'YYYYMMDD')
ORDER BY i.inhdetachpending DESC NULLS LAST, c.relname
"""

_DETACH: Final[dict[str, tuple[LiteralString, ...]]] = {
    "attached": ("ALTER TABLE {parent} DETACH PARTITION {partition} CONCURRENTLY",),
    "detaching": ("ALTER TABLE {parent} DETACH PARTITION {partition} FINALIZE",),
    "detached": (),
}

# BRIN index on the day; rows lie in the order of their insertion.
_DELETE_KEYS: Final = """
DELETE FROM dealix.event_keys
WHERE ctid = ANY (ARRAY(SELECT ctid FROM dealix.event_keys WHERE event_day < %(day)s LIMIT %(batch)s))
"""

_DELETE_TESTS: Final = """
DELETE FROM dealix.test_events
WHERE ctid = ANY (ARRAY(SELECT ctid FROM dealix.test_events WHERE event_day < %(day)s LIMIT %(batch)s))
"""

# A few rows a customer: read from end to end.
_DELETE_RECOVERIES: Final = """
DELETE FROM dealix.recoveries
WHERE ctid = ANY (ARRAY(SELECT ctid FROM dealix.recoveries WHERE ended_at < %(day)s::date LIMIT %(batch)s))
"""

_DELETE_STATS: Final = """
DELETE FROM dealix.daily_stats
WHERE ctid = ANY (ARRAY(SELECT ctid FROM dealix.daily_stats WHERE day < %(day)s LIMIT %(batch)s))
"""


_DELETE_HOURS: Final = """
DELETE FROM dealix.hourly_stats
WHERE ctid = ANY (ARRAY(SELECT ctid FROM dealix.hourly_stats WHERE hour < %(day)s LIMIT %(batch)s))
"""


@dataclass(frozen=True, slots=True)
class _Partition:
    parent: str
    name: str
    day: date
    state: str


async def _expire(conn: Connection, day: date) -> int:
    expired = after = 0
    while True:
        cursor = await conn.execute(_EXPIRE, {"day": day, "after": after, "batch": _BATCH})
        row = await cursor.fetchone()
        if row is None or row[1] is None:
            return expired
        expired += row[0]
        after = row[1]


async def _days_with_duties(conn: Connection, day: date) -> set[date]:
    cursor = await conn.execute(_DUTIES, {"day": day})
    return {row[0] for row in await cursor.fetchall()}


async def _old(conn: Connection, day: date) -> list[_Partition]:
    cursor = await conn.execute(_OLD, {"day": day})
    return [_Partition(*row) for row in await cursor.fetchall()]


async def _drop(conn: Connection, partition: _Partition) -> bool:
    names = {
        "parent": sql.Identifier("dealix", partition.parent),
        "partition": sql.Identifier("dealix", partition.name),
    }
    try:
        for statement in _DETACH[partition.state]:
            await conn.execute(sql.SQL(statement).format(**names))
        # An emit that was open until the DETACH had waited for it may have left a duty for that day.
        if partition.parent == "events" and partition.day in await _days_with_duties(conn, _next(partition.day)):
            return False
        await conn.execute(sql.SQL("DROP TABLE {partition}").format(**names))
    except errors.LockNotAvailable:
        return False
    return True


def _next(day: date) -> date:
    return date.fromordinal(day.toordinal() + 1)


async def _delete_in_batches(conn: Connection, statement: LiteralString, day: date) -> int:
    deleted = 0
    while True:
        cursor = await conn.execute(statement, {"day": day, "batch": _BATCH})
        deleted += cursor.rowcount
        if cursor.rowcount < _BATCH:
            return deleted


@asynccontextmanager
async def _janitor(conn: Connection) -> AsyncGenerator[bool]:
    """Whether this session is the one that drops.

    The lock_timeout is the session's meanwhile, since DETACH CONCURRENTLY allows no transaction that could carry it.
    """
    try:
        cursor = await conn.execute(
            "SELECT pg_try_advisory_lock(%(key)s), set_config('lock_timeout', %(timeout)s, false)",
            {"key": _JANITOR_LOCK, "timeout": _LOCK_TIMEOUT},
        )
        row = await cursor.fetchone()
        yield row is not None and bool(row[0])
    finally:
        # Also after a cancel, which may have come after the lock was granted. On a lost connection it is free anyway.
        with trio.move_on_after(_UNLOCK_S, shield=True), suppress(Error):
            if not conn.closed:
                await conn.execute(
                    "SELECT pg_advisory_unlock(%(key)s), set_config('lock_timeout', '0', false)", {"key": _JANITOR_LOCK}
                )
