"""Fan-out: outbox rows become deliveries, those with room claimed at once, in one statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection

PER_SHARD: Final = 100
"""Outbox rows taken from one shard at a time, so that one customer's flood fills its shard's share, not the batch."""
MAX_DELIVERIES: Final = 1000
MAX_BYTES: Final = 8 * 1024 * 1024
"""Bounds of one batch: deliveries made, and bytes of event data that have to be loaded for it."""


# Locks: the outbox rows taken (SKIP LOCKED: during a handover two owners overlap for a moment and take different
# rows), the roster rows of subscriptions with held deliveries, in the order of their ids. Never a subscription's row:
# emitters and PATCH do not wait here. Indexes: outbox primary key (one short range for each shard), subscriptions and
# health primary keys. A row that a crash rolls back is still in the outbox; a claim whose answer is lost comes back
# when its lease ends.
_FAN_OUT: Final = """
    WITH picked AS (
        SELECT o.*, row_number() OVER fair AS place,
               sum(o.data_bytes) OVER fair AS bytes,
               sum(cardinality(o.subscription_ids)) OVER fair AS duties
        FROM (
            SELECT p.*, row_number() OVER (PARTITION BY p.shard ORDER BY p.id) AS turn
            FROM unnest(%(shards)s::smallint[], %(after)s::bigint[]) AS own (shard, after)
            CROSS JOIN LATERAL (
                SELECT * FROM dealix.outbox o WHERE o.shard = own.shard AND o.id > own.after
                ORDER BY o.id LIMIT %(per_shard)s FOR UPDATE SKIP LOCKED
            ) AS p
        ) AS o
        WINDOW fair AS (ORDER BY o.turn, o.id)
    ), taken AS (
        DELETE FROM dealix.outbox o USING picked p
        WHERE o.shard = p.shard AND o.id = p.id
          AND (p.place = 1 OR (p.bytes <= %(max_bytes)s AND p.duties <= %(max_deliveries)s))
        RETURNING o.*
    ), duties AS (
        SELECT t.id AS outbox_id, t.shard, t.event_id, t.event_day, t.event_type, s.id AS subscription_id, s.version,
               s.enabled AND h.circuit = 'closed'
               AND row_number() OVER (PARTITION BY s.id ORDER BY t.id) <= coalesce(r.room, %(default_room)s) AS claim
        FROM taken t
        CROSS JOIN LATERAL unnest(t.subscription_ids) AS m (subscription_id)
        JOIN dealix.subscriptions s ON s.id = m.subscription_id
        JOIN dealix.subscription_health h ON h.subscription_id = s.id
        LEFT JOIN unnest(%(ids)s::text[], %(rooms)s::int[]) AS r (subscription_id, room) ON r.subscription_id = s.id
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
    SELECT m.id, m.event_id, m.event_day, m.event_type, m.subscription_id, m.shard, m.attempt, m.steps, d.version
    FROM made m JOIN duties d USING (event_id, subscription_id) WHERE m.claimed
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, subscription_id, NULL, NULL, NULL, NULL FROM rostered
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, shard, count(*)::smallint, NULL, max(id) FROM taken GROUP BY shard
"""


async def fan_out(
    conn: Connection, shards: Iterable[int], room: Room, after: Mapping[int, int] = MappingProxyType({})
) -> Claimed:
    """Take a batch from the outbox of `shards`; the oldest first, the shards in turns. `seen` counts events.

    What finds no room, or a disabled subscription or open breaker, is held; what finds no subscription is dropped.
    `after`: of these shards only rows behind the given id are looked at.
    """
    ordered = sorted(shards)
    parameters = {
        "shards": ordered,
        "after": [after.get(shard, 0) for shard in ordered],
        "per_shard": PER_SHARD,
        "max_bytes": MAX_BYTES,
        "max_deliveries": MAX_DELIVERIES,
    }
    cursor = await conn.execute(_FAN_OUT, parameters | room.parameters())
    return Claimed.of(await cursor.fetchall())
