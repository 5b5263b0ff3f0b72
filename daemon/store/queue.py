"""The hot queue after fan-out: what is due, what is held, leases, giving back, and whom it is for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Final

from daemon.ids import DeliveryId, SubscriptionId
from daemon.model import Claim, SubscriptionConfig
from daemon.policy.retry import MAX_ATTEMPTS
from daemon.store.arrays import array
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection

PER_SHARD: Final = 50
MAX_DUE: Final = 1000
"""Due deliveries looked at in one statement: of one shard, and of all."""


# Rows come here when a retry is due, a lease has ended, or somebody pulled a delivery forward.
# Locks: the rows claimed (SKIP LOCKED against a handover's overlap), roster rows in the order of their ids, as
# everywhere, since three statements may hold at once. Index: deliveries_due, a short range per shard.
# A row found claimed was somebody's who is gone: its attempt is logged as interrupted in the same statement, keeps
# its number and uses no step. After 20 attempts such a row ends as exhausted. No subscription: the row is dropped.
_CLAIM_DUE: Final = """
    WITH ripe AS (
        SELECT p.* FROM unnest(%(shards)s::smallint[]) AS own (shard)
        CROSS JOIN LATERAL (
            SELECT d.ctid AS tid, d.id, d.event_id, d.event_day, d.event_type, d.subscription_id, d.attempt,
                   d.claimed AS interrupted
            FROM dealix.deliveries d
            WHERE d.shard = own.shard AND d.due <= now() ORDER BY d.due LIMIT %(per_shard)s FOR UPDATE SKIP LOCKED
        ) AS p
        LIMIT %(max_due)s
    ), judged AS (
        SELECT ripe.*, s.customer_id, s.endpoint_url,
               CASE WHEN s.customer_id IS NULL OR (ripe.interrupted AND ripe.attempt >= %(max_attempts)s) THEN 'drop'
                    WHEN s.flows AND row_number() OVER (PARTITION BY ripe.subscription_id ORDER BY ripe.id)
                         <= coalesce((%(rooms)s::jsonb ->> ripe.subscription_id)::int, %(default_room)s) THEN 'claim'
                    ELSE 'hold' END AS lot
        FROM ripe
        LEFT JOIN LATERAL (
            SELECT s.customer_id, s.endpoint_url, s.enabled AND h.circuit = 'closed' AS flows
            FROM dealix.subscriptions s JOIN dealix.subscription_health h ON h.subscription_id = s.id
            WHERE s.id = ripe.subscription_id OFFSET 0
        ) AS s ON true
    ), dropped AS (
        DELETE FROM dealix.deliveries d WHERE d.ctid = ANY (ARRAY(SELECT tid FROM judged WHERE lot = 'drop'))
        RETURNING d.id
    ), held AS (
        UPDATE dealix.deliveries d SET claimed = false, due = NULL
        WHERE d.ctid = ANY (ARRAY(SELECT tid FROM judged WHERE lot = 'hold'))
        RETURNING d.id, d.subscription_id, d.shard
    ), claimed AS (
        UPDATE dealix.deliveries d
        SET attempt = d.attempt + 1, claimed = true, due = now() + %(lease_s)s * interval '1 s'
        WHERE d.ctid = ANY (ARRAY(SELECT tid FROM judged WHERE lot = 'claim'))
        RETURNING d.id, d.event_id, d.event_day, d.event_type, d.subscription_id, d.shard, d.attempt, d.steps
    ), interrupted AS (
        INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type,
                                     attempt, outcome, success, endpoint_url, error)
        SELECT dealix.attempt_id(now()), now(), j.customer_id, j.subscription_id, j.event_id, j.event_day, j.event_type,
               j.attempt, CASE WHEN j.lot = 'drop' THEN 'exhausted' ELSE 'interrupted' END, false, j.endpoint_url,
               'the daemon stopped before the outcome of this attempt was known'
        FROM judged j
        WHERE j.interrupted AND j.customer_id IS NOT NULL
          AND (j.id IN (SELECT id FROM dropped UNION ALL SELECT id FROM held UNION ALL SELECT id FROM claimed)) IS TRUE
    ), rostered AS (
        INSERT INTO dealix.roster AS r (subscription_id, shard)
        SELECT DISTINCT subscription_id, shard FROM held ORDER BY subscription_id
        ON CONFLICT (subscription_id) DO UPDATE SET generation = r.generation + 1
        RETURNING subscription_id
    )
    SELECT c.id, c.event_id, c.event_day, c.event_type, c.subscription_id, c.shard, c.attempt, c.steps, s.version
    FROM claimed c
    CROSS JOIN LATERAL (SELECT s.version FROM dealix.subscriptions s WHERE s.id = c.subscription_id OFFSET 0) AS s
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, subscription_id, NULL, NULL, NULL, NULL FROM rostered
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, count(*) FROM ripe
"""


async def claim_due(conn: Connection, shards: Iterable[int], room: Room) -> Claimed:
    """Claim what is due in `shards`, up to `PER_SHARD` of each; hold what cannot go now. `seen` counts what was due."""
    bounds = {"per_shard": PER_SHARD, "max_due": MAX_DUE, "max_attempts": MAX_ATTEMPTS}
    turns = sorted(shards, key=lambda _: random.random())  # noqa: S311 - where more is due than MAX_DUE, all get their turn
    cursor = await conn.execute(_CLAIM_DUE, {"shards": array(turns)} | bounds | room.parameters())
    return Claimed.of(await cursor.fetchall())


# Locks the rows claimed. Index: deliveries_held, the subscription's oldest. Called by the owner's actor alone.
_CLAIM_HELD: Final = """
    WITH oldest AS (
        SELECT d.ctid AS tid FROM dealix.deliveries d
        WHERE d.subscription_id = %(subscription_id)s AND d.due IS NULL
        ORDER BY d.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )
    UPDATE dealix.deliveries d
    SET attempt = d.attempt + 1, claimed = true, due = now() + %(lease_s)s * interval '1 s'
    FROM dealix.subscriptions s
    WHERE d.ctid = ANY (ARRAY(SELECT tid FROM oldest)) AND s.id = %(subscription_id)s AND s.enabled
    RETURNING d.id, d.event_id, d.event_day, d.event_type, d.subscription_id, d.shard, d.attempt, d.steps, s.version
"""
_GENERATION: Final = "SELECT generation FROM dealix.roster WHERE subscription_id = %(subscription_id)s"
# A claim that came back empty says little: the subscription may be disabled, or rows were locked by a holding.
_STRIKE: Final = """
    DELETE FROM dealix.roster
    WHERE subscription_id = %(subscription_id)s AND generation = %(generation)s
      AND NOT EXISTS (SELECT FROM dealix.deliveries d WHERE d.subscription_id = %(subscription_id)s AND d.due IS NULL)
"""


async def claim_held(conn: Connection, subscription_id: SubscriptionId, *, limit: int, lease_s: float) -> list[Claim]:
    """Claim up to `limit` held deliveries of a subscription, oldest first; none where it is disabled."""
    cursor = await conn.execute(_CLAIM_HELD, {"subscription_id": subscription_id, "limit": limit, "lease_s": lease_s})
    rows = await cursor.fetchall()
    rows.sort()
    return [Claim(*row) for row in rows]


async def roster_generation(conn: Connection, subscription_id: SubscriptionId) -> int | None:
    """The roster row's generation, to be read before looking for held rows; None where there is no row."""
    row = await (await conn.execute(_GENERATION, {"subscription_id": subscription_id})).fetchone()
    return None if row is None else row[0]


async def strike(conn: Connection, subscription_id: SubscriptionId, generation: int) -> None:
    """Take a subscription off the roster, unless something is held, or was since `generation` was read."""
    await conn.execute(_STRIKE, {"subscription_id": subscription_id, "generation": generation})


# Index roster_shard; then primary keys. The roster is small: only subscriptions with something held are on it.
_WAKING: Final = """
    SELECT r.subscription_id, s.id IS NULL
    FROM dealix.roster r
    LEFT JOIN dealix.subscriptions s ON s.id = r.subscription_id
    LEFT JOIN dealix.subscription_health h ON h.subscription_id = r.subscription_id
    WHERE r.shard = ANY (%(shards)s::smallint[])
      AND (s.id IS NULL OR (s.enabled AND (h.circuit = 'closed' OR h.reopen_at <= now())))
"""


async def waking(conn: Connection, shards: Iterable[int]) -> tuple[list[SubscriptionId], list[SubscriptionId]]:
    """Subscriptions of `shards` with held deliveries that may go now; and those that are deleted."""
    cursor = await conn.execute(_WAKING, {"shards": sorted(shards)})
    rows = await cursor.fetchall()
    return [row[0] for row in rows if not row[1]], [row[0] for row in rows if row[1]]


_PURGE: Final = """
    DELETE FROM dealix.deliveries WHERE id IN (
        SELECT id FROM dealix.deliveries WHERE subscription_id = %(subscription_id)s AND due IS NULL LIMIT 5000)
"""


async def purge_held(conn: Connection, subscription_id: SubscriptionId) -> int:
    """Delete up to 5,000 held deliveries of a deleted subscription; 0 when there are no more."""
    return (await conn.execute(_PURGE, {"subscription_id": subscription_id})).rowcount


# Giving back is safe at any time: a row that somebody else has claimed since has another attempt number.
_GIVE_BACK: Final = """
    WITH given AS (
        UPDATE dealix.deliveries d
        SET attempt = d.attempt - 1, claimed = false,
            due = CASE WHEN (d.id IN (SELECT unnest(%(held)s::bigint[]))) IS TRUE THEN NULL ELSE now() END
        WHERE d.id = ANY (%(ids)s::bigint[]) AND d.claimed
          AND ((d.id, d.attempt) IN (SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::smallint[]))) IS TRUE
        RETURNING d.subscription_id, d.shard, d.due IS NULL AS hold
    )
    INSERT INTO dealix.roster AS r (subscription_id, shard)
    SELECT DISTINCT subscription_id, shard FROM given WHERE hold ORDER BY subscription_id
    ON CONFLICT (subscription_id) DO UPDATE SET generation = r.generation + 1
"""


async def give_back(conn: Connection, claims: Sequence[tuple[Claim, bool]]) -> None:
    """Undo claims of which no byte was sent: the attempt is not counted. With True it is held, else due for others."""
    await conn.execute(
        _GIVE_BACK,
        {
            "ids": [c.delivery_id for c, _ in claims],
            "attempts": [c.attempt for c, _ in claims],
            "held": [c.delivery_id for c, hold in claims if hold],
        },
    )


# Locks the rows, waits for none: one that is being recorded needs no lease, and who waits can be found in a deadlock
# with the recorder, which locks in another order. The session that holds the shards would end by it.
_EXTEND: Final = """
    UPDATE dealix.deliveries d SET due = now() + %(lease_s)s * interval '1 s'
    WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM dealix.deliveries o
        WHERE o.id = ANY (%(ids)s::bigint[]) AND o.claimed
          AND ((o.id, o.attempt) IN (SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::smallint[]))) IS TRUE
        FOR UPDATE SKIP LOCKED))
"""


async def extend_leases(conn: Connection, own: Sequence[tuple[DeliveryId, int]], *, lease_s: float) -> None:
    """Keep what is still in memory, by delivery and attempt, from coming back by its lease."""
    await conn.execute(
        _EXTEND,
        {"ids": [key for key, _ in own], "attempts": [attempt for _, attempt in own], "lease_s": lease_s},
    )


_CONFIGS: Final = """
    SELECT s.id, s.customer_id, s.endpoint_url, s.enabled, s.version, s.secret_sealed, s.previous_secret_sealed,
           s.previous_secret_expires_at, s.propagate_trace_context, h.consecutive_failures, h.cooldown_s,
           CASE WHEN h.circuit = 'open' THEN extract(epoch FROM h.reopen_at - now())::float8 END
    FROM dealix.subscriptions s
    JOIN dealix.subscription_health h ON h.subscription_id = s.id
    WHERE s.id = ANY (%(ids)s::text[])
"""


async def load_configs(conn: Connection, ids: Iterable[SubscriptionId]) -> list[SubscriptionConfig]:
    """Configuration and health; a subscription that is gone is missing from the answer."""
    cursor = await conn.execute(_CONFIGS, {"ids": list(ids)})
    return [SubscriptionConfig(*row) for row in await cursor.fetchall()]


_DISABLE: Final = """
    UPDATE dealix.subscriptions SET enabled = false, disabled_reason = %(reason)s
    WHERE id = %(id)s AND version = %(version)s AND enabled
"""


async def disable(conn: Connection, subscription_id: SubscriptionId, version: int, reason: str) -> None:
    """Disable a subscription, unless it was changed since `version`."""
    await conn.execute(_DISABLE, {"id": subscription_id, "version": version, "reason": reason})


# The event is gone, so its type and day come from the delivery, which carries them for this.
_EXPIRE: Final = """
    WITH ended AS (
        DELETE FROM dealix.deliveries d USING unnest(%(ids)s::bigint[], %(attempts)s::smallint[]) AS g (id, attempt)
        WHERE d.id = g.id AND d.attempt = g.attempt AND d.claimed
        RETURNING d.*
    )
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type,
                                 attempt, outcome, success, endpoint_url, error)
    SELECT dealix.attempt_id(now()), now(), s.customer_id, s.id, e.event_id, e.event_day, e.event_type,
           e.attempt, 'expired', false, s.endpoint_url, 'the event was past retention before it could be sent'
    FROM ended e JOIN dealix.subscriptions s ON s.id = e.subscription_id
"""


async def expire(conn: Connection, claims: Sequence[Claim]) -> None:
    """End claimed deliveries whose event retention has removed."""
    await conn.execute(_EXPIRE, {"ids": [c.delivery_id for c in claims], "attempts": [c.attempt for c in claims]})
