"""Fan-out: outbox rows become deliveries, those with room claimed at once, in one statement.

Two ways to choose the rows: the oldest of each shard; and, of shards in which more waits than a look takes, each
customer's oldest in turn, so that one who floods a shard delays nobody else in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from psycopg import errors, sql

from daemon import clock
from daemon.store.arrays import array
from daemon.store.claims import Claimed, Place, Room
from daemon.store.connection import Connection
from daemon.store.enveloping import partition

PER_SHARD: Final = 100
"""Outbox rows taken from one shard at a time; of a deep one, from one customer."""
MAX_CUSTOMERS: Final = 1000
"""Customers looked at in one batch; with more of them waiting, the next batch goes on after the last."""
MAX_DELIVERIES: Final = 1000
MAX_BYTES: Final = 8 * 1024 * 1024
"""Bounds of one batch: deliveries made, and bytes of event data that have to be loaded for it."""

START: Final[Place] = (-1, "")

# Locks: the outbox rows taken (SKIP LOCKED: should two owners overlap, they take different rows), and no other, since
# each lock is a write; the roster rows of subscriptions with held deliveries, in the order of their ids. Never a
# subscription's row: emitters and PATCH do not wait here. Indexes: subscriptions and health primary keys. A row that a
# crash rolls back is still in the outbox; a claim whose answer is lost comes back when its lease ends.
# Rows are found again by ctid, and subscriptions by a LATERAL behind OFFSET 0: see claims.py on joins.
# Events of today come along, which spares a question before the first byte can leave. Index: events_id of that day; the
# outbox compares customers by bytes, so without COLLATE it would be used by its second column alone.
_TAKE: Final = """
    ), locked AS (
        SELECT o.ctid AS tid FROM dealix.outbox o
        WHERE o.ctid = ANY (ARRAY(
            SELECT p.tid FROM picked p
            WHERE p.place = 1 OR (p.bytes <= %(max_bytes)s AND p.total <= %(max_deliveries)s)))
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        DELETE FROM dealix.outbox o WHERE o.ctid = ANY (ARRAY(SELECT tid FROM locked))
        RETURNING o.*
    ), duties AS (
        SELECT t.id AS outbox_id, t.shard, t.event_id, t.event_day, t.event_type, s.id AS subscription_id,
               s.flows AND row_number() OVER (PARTITION BY s.id ORDER BY t.id)
                   <= coalesce((%(rooms)s::jsonb ->> s.id)::int, %(default_room)s) AS claim
        FROM taken t
        CROSS JOIN LATERAL unnest(t.subscription_ids) AS m (subscription_id)
        CROSS JOIN LATERAL (
            SELECT s.id, s.enabled AND h.circuit = 'closed' AS flows
            FROM dealix.subscriptions s JOIN dealix.subscription_health h ON h.subscription_id = s.id
            WHERE s.id = m.subscription_id OFFSET 0
        ) AS s
    ), made AS (
        INSERT INTO dealix.deliveries
            (event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due)
        SELECT event_id, event_day, event_type, subscription_id, shard, claim::int, 0, claim,
               CASE WHEN claim THEN now() + %(lease_s)s * interval '1 s' END
        FROM duties
        ORDER BY outbox_id
        ON CONFLICT (event_id, subscription_id) DO NOTHING
        RETURNING id, event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed
    ), rostered AS (
        INSERT INTO dealix.roster AS r (subscription_id, shard)
        SELECT DISTINCT subscription_id, shard FROM duties WHERE NOT claim ORDER BY subscription_id
        ON CONFLICT (subscription_id) DO UPDATE SET generation = r.generation + 1
        RETURNING subscription_id
    )
    SELECT m.id, m.event_id, m.event_day, m.event_type, m.subscription_id, m.shard, m.attempt, m.steps, s.version,
           NULL AS customer_id, NULL::timestamptz AS created_at, NULL AS data
    FROM made m
    CROSS JOIN LATERAL (SELECT s.version FROM dealix.subscriptions s WHERE s.id = m.subscription_id OFFSET 0) AS s
    WHERE m.claimed
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, subscription_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM rostered
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, shard, count(*)::smallint, NULL, max(id), NULL, NULL, NULL
    FROM taken GROUP BY shard
    UNION ALL
    SELECT NULL, event_id, NULL, NULL, traceparent, NULL, NULL, NULL, cardinality(subscription_ids),
           customer_id, NULL, NULL
    FROM taken WHERE %(name_events)s::boolean
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, shard, NULL, NULL, NULL, NULL, NULL, NULL FROM picked
    GROUP BY shard HAVING count(*) >= %(per_shard)s
    UNION ALL
    SELECT NULL, e.id, NULL, e.type, e.traceparent, NULL, NULL, NULL, e.matched, e.customer_id, e.created_at, e.data
    FROM taken t
    CROSS JOIN LATERAL (
        SELECT * FROM {partition} e
        WHERE e.customer_id = t.customer_id COLLATE "default" AND e.id = t.event_id OFFSET 0
    ) AS e
    WHERE t.event_day = %(today)s::date AND (t.event_id IN (SELECT m.event_id FROM made m WHERE m.claimed)) IS TRUE
"""

# Index: the primary key, one short range for each shard.
_FAN_OUT: Final = sql.SQL(f"""
    WITH picked AS (
        SELECT o.*, row_number() OVER fair AS place,
               sum(o.data_bytes) OVER fair AS bytes,
               sum(o.duties) OVER fair AS total
        FROM (
            SELECT p.*, row_number() OVER (PARTITION BY p.shard ORDER BY p.id) AS turn
            FROM unnest(%(shards)s::smallint[], %(after)s::bigint[]) AS own (shard, after)
            CROSS JOIN LATERAL (
                SELECT o.ctid AS tid, o.shard, o.id, o.data_bytes, cardinality(o.subscription_ids) AS duties
                FROM dealix.outbox o WHERE o.shard = own.shard AND o.id > own.after
                ORDER BY o.id LIMIT %(per_shard)s
            ) AS p
        ) AS o
        WINDOW fair AS (ORDER BY o.turn, o.id)
    {_TAKE}
""")  # noqa: S608 a constant in a constant

# The walk steps from customer to customer, one short index probe each (a "loose index scan"), over shards of others
# in one step; nothing is read of a flood but its first rows. Every customer's first row comes before anybody's second.
# Index: outbox_customers.
_FAN_OUT_FAIRLY: Final = sql.SQL(f"""
    WITH RECURSIVE walk AS (
        (SELECT o.shard, o.customer_id, 1 AS step FROM dealix.outbox o
         WHERE (o.shard, o.customer_id) > (%(shard)s::smallint, %(customer_id)s)
         ORDER BY o.shard, o.customer_id LIMIT 1)
        UNION ALL
        SELECT following.shard, following.customer_id, w.step + 1
        FROM walk w
        CROSS JOIN LATERAL (
            SELECT o.shard, o.customer_id FROM dealix.outbox o
            WHERE (o.shard, o.customer_id)
                  > (w.shard, CASE WHEN w.shard = ANY (%(shards)s::smallint[]) THEN w.customer_id ELSE '~' END)
            ORDER BY o.shard, o.customer_id LIMIT 1
        ) AS following
        WHERE w.step < %(max_customers)s
    ), waiting AS (
        SELECT shard, customer_id FROM walk WHERE shard = ANY (%(shards)s::smallint[])
    ), picked AS (
        SELECT o.*, row_number() OVER fair AS place,
               sum(o.data_bytes) OVER fair AS bytes,
               sum(o.duties) OVER fair AS total
        FROM (
            SELECT p.*, row_number() OVER (PARTITION BY p.shard, p.customer_id ORDER BY p.id) AS turn
            FROM waiting w
            CROSS JOIN LATERAL (
                SELECT o.ctid AS tid, o.shard, o.customer_id, o.id, o.data_bytes,
                       cardinality(o.subscription_ids) AS duties
                FROM dealix.outbox o WHERE o.shard = w.shard AND o.customer_id = w.customer_id
                ORDER BY o.id
                LIMIT (SELECT least(%(per_shard)s, %(max_deliveries)s / greatest(count(*), 1) + 1) FROM waiting)
            ) AS p
        ) AS o
        WINDOW fair AS (ORDER BY o.turn, o.id)
    {_TAKE}
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, shard, NULL, NULL, NULL, customer_id, NULL, NULL
    FROM walk WHERE step = %(max_customers)s
""")  # noqa: S608 a constant in a constant


@lru_cache(maxsize=4)
def _fan_out_of(partition: str) -> bytes:
    return _FAN_OUT.format(partition=sql.Identifier("dealix", partition)).as_bytes(None)


@lru_cache(maxsize=4)
def _fan_out_fairly_of(partition: str) -> bytes:
    return _FAN_OUT_FAIRLY.format(partition=sql.Identifier("dealix", partition)).as_bytes(None)


async def fan_out(
    conn: Connection,
    shards: Iterable[int],
    room: Room,
    after: Mapping[int, int] = MappingProxyType({}),
    *,
    name_events: bool = False,
) -> Claimed:
    """Take a batch from the outbox of `shards`; the oldest first, the shards in turns. `seen` counts events.

    What finds no room, or a disabled subscription or open breaker, is held; what finds no subscription is dropped.
    `after`: of these shards only rows behind the given id are looked at. `name_events`: say which events were taken.
    The events that claims are about come along where they were emitted today.
    """
    ordered = sorted(shards)
    place = {"shards": array(ordered), "after": array(after.get(shard, 0) for shard in ordered)}
    return await _take(conn, _fan_out_of, place | _bounds(name_events) | room.parameters())


async def fan_out_fairly(
    conn: Connection, shards: Iterable[int], room: Room, after: Place = START, *, name_events: bool = False
) -> Claimed:
    """As `fan_out`, but from each customer of these shards in turn, each one's oldest first.

    Looks at customers after the place `after`; `resume` is where the next look has to begin, None for the start.
    """
    place = {"shards": array(sorted(shards)), "shard": after[0], "customer_id": after[1]}
    return await _take(conn, _fan_out_fairly_of, place | _bounds(name_events) | room.parameters())


async def _take(conn: Connection, statement: Callable[[str], bytes], parameters: Mapping[str, object]) -> Claimed:
    today = clock.now().date()
    parameters = {**parameters, "today": today}
    try:
        cursor = await conn.execute(statement(partition(today)), parameters)
    except errors.UndefinedTable:  # nothing can have been emitted today; what was emitted before may wait all the same
        cursor = await conn.execute(statement("events"), parameters)
    return Claimed.of(await cursor.fetchall())


def _bounds(name_events: bool) -> dict[str, int]:  # noqa: FBT001 handed on
    return {
        "name_events": name_events,
        "per_shard": PER_SHARD,
        "max_customers": MAX_CUSTOMERS,
        "max_bytes": MAX_BYTES,
        "max_deliveries": MAX_DELIVERIES,
    }
