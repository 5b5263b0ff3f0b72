"""Subscriptions as people see and change them: configuration with its health, and secrets that are shown once.

Lock order, here and wherever else both are written: the health row first, then the subscription's. Emitters read
subscriptions without a lock and never wait for any of this.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypedDict

from daemon.errors import SealBroken, SubscriptionLimit
from daemon.ids import CustomerId, SubscriptionId, new_subscription_id
from daemon.policy.signing import PREFIX, standard_key
from daemon.sealing import KeyRing
from daemon.store.connection import Connection

MAX_PER_CUSTOMER: Final = 100

TABLE: Final = "subscriptions"
"""As seals name it."""
_SECRET_BYTES: Final = 33  # 44 characters of base64 without padding


@dataclass(frozen=True, slots=True)
class Subscription:
    """One subscription without its secret. `events` empty means every type.

    `circuit` is `half_open` once an open breaker's cool-down is over and a probe may go. `disabled_reason` is None
    while it is enabled.
    """

    id: SubscriptionId
    customer_id: CustomerId
    endpoint_url: str
    events: list[str]
    description: str | None
    propagate_trace_context: bool
    enabled: bool
    disabled_reason: str | None
    last_delivery_at: datetime | None
    last_status_code: int | None
    consecutive_failures: int
    circuit: Literal["closed", "open", "half_open"]
    created_at: datetime
    updated_at: datetime


class Changes(TypedDict, total=False):
    """What a PATCH may change; a key that is not there leaves its column alone."""

    enabled: bool
    events: list[str]
    description: str | None
    endpoint_url: str
    propagate_trace_context: bool


@dataclass(frozen=True, slots=True)
class Rotated:
    """A new secret, and until when the one before it still signs; None where it no longer does."""

    secret: str
    previous_secret_expires_at: datetime | None


def new_secret() -> str:
    """`whsec_` + standard base64 of 33 random bytes: 44 characters, no padding, good for both signature schemes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def fit_for_standard_webhooks(secret: str) -> bool:
    """Whether the text after `whsec_` is standard base64; if not, only the Stripe-format signature can be made."""
    return standard_key(secret) is not None


# Held until the end of the transaction; creates and imports of one customer take turns, so that no two of them see the
# same last free place. Emitters do not know this lock.
_TAKE_TURNS: Final = "SELECT pg_advisory_xact_lock(hashtextextended('dealix.subscriptions ' || %(customer_id)s, 0))"

_COUNT: Final = "SELECT count(*) FROM dealix.subscriptions WHERE customer_id = %(customer_id)s"

_INSERT: Final = """
INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, events, description, propagate_trace_context,
                                  enabled, disabled_reason, secret_sealed)
VALUES (%(id)s, %(customer_id)s, %(endpoint_url)s, %(events)s, %(description)s, %(propagate_trace_context)s,
        %(enabled)s, CASE WHEN NOT %(enabled)s THEN 'requested' END, %(secret_sealed)s)
"""

_INSERT_HEALTH: Final = "INSERT INTO dealix.subscription_health (subscription_id) VALUES (%(id)s)"

# Primary keys.
_GET: Final = """
SELECT s.id, s.customer_id, s.endpoint_url, s.events, s.description, s.propagate_trace_context, s.enabled,
       s.disabled_reason, h.last_delivery_at, h.last_status_code, h.consecutive_failures,
       CASE WHEN h.circuit = 'open' AND h.reopen_at <= now() THEN 'half_open' ELSE h.circuit END,
       s.created_at, s.updated_at
FROM dealix.subscriptions s
JOIN dealix.subscription_health h ON h.subscription_id = s.id
WHERE s.id = %(id)s
"""

# Index subscriptions_list; at most 100 rows a customer.
_PAGE: Final = """
SELECT s.id, s.customer_id, s.endpoint_url, s.events, s.description, s.propagate_trace_context, s.enabled,
       s.disabled_reason, h.last_delivery_at, h.last_status_code, h.consecutive_failures,
       CASE WHEN h.circuit = 'open' AND h.reopen_at <= now() THEN 'half_open' ELSE h.circuit END,
       s.created_at, s.updated_at
FROM dealix.subscriptions s
JOIN dealix.subscription_health h ON h.subscription_id = s.id
WHERE s.customer_id = %(customer_id)s
  AND (s.enabled OR NOT %(enabled_only)s)
  AND (%(before_at)s::timestamptz IS NULL OR (s.created_at, s.id) < (%(before_at)s, %(before_id)s::text))
ORDER BY s.created_at DESC, s.id DESC
LIMIT %(limit)s
"""

# Locks the health row, before the subscription's.
_HEAL: Final = """
UPDATE dealix.subscription_health
SET consecutive_failures = 0, circuit = 'closed', cooldown_s = 0, reopen_at = NULL
WHERE subscription_id = %(id)s
"""

# Locks the subscription's row. A reason that is there already stays: disabling twice does not change why.
_UPDATE: Final = """
UPDATE dealix.subscriptions
SET enabled = coalesce(%(enabled)s::boolean, enabled),
    disabled_reason = CASE WHEN NOT coalesce(%(enabled)s::boolean, enabled)
                           THEN coalesce(disabled_reason, 'requested') END,
    events = coalesce(%(events)s::text[], events),
    description = CASE WHEN %(set_description)s THEN %(description)s::text ELSE description END,
    endpoint_url = coalesce(%(endpoint_url)s::text, endpoint_url),
    propagate_trace_context = coalesce(%(propagate_trace_context)s::boolean, propagate_trace_context)
WHERE id = %(id)s
"""

_DELETE_HEALTH: Final = "DELETE FROM dealix.subscription_health WHERE subscription_id = %(id)s"

# The roster row makes the owner of the shard look for held deliveries and purge them.
_DELETE: Final = """
WITH gone AS (
    DELETE FROM dealix.subscriptions
    WHERE id = %(id)s
    RETURNING id, customer_id
)
INSERT INTO dealix.roster AS r (subscription_id, shard)
SELECT id, dealix.shard_of(customer_id)
FROM gone
ON CONFLICT (subscription_id) DO UPDATE
SET generation = r.generation + 1
"""

# Locks the subscription's row, so that two rotations at once keep the right previous secret.
_SEALED: Final = """
SELECT secret_sealed
FROM dealix.subscriptions
WHERE id = %(id)s
FOR NO KEY UPDATE
"""

_ROTATE: Final = """
UPDATE dealix.subscriptions
SET secret_sealed = %(secret)s,
    previous_secret_sealed = %(previous)s,
    previous_secret_expires_at = CASE WHEN %(previous)s::bytea IS NOT NULL
                                      THEN clock_timestamp() + %(overlap_s)s * interval '1 second' END
WHERE id = %(id)s
RETURNING previous_secret_expires_at
"""

_ENDPOINT_HOSTS: Final = r"""
SELECT host
FROM (
    SELECT (regexp_match(endpoint_url, '^https?://([^/:?\[]+)'))[1] AS host, max(created_at) AS newest
    FROM dealix.subscriptions
    WHERE enabled
    GROUP BY 1
) AS hosts
WHERE host !~ '^[0-9.]+$'
ORDER BY newest DESC
LIMIT 10
"""


async def create(  # noqa: PLR0913 the columns that a customer chooses
    conn: Connection,
    *,
    ring: KeyRing,
    customer_id: CustomerId,
    endpoint_url: str,
    events: Sequence[str],
    description: str | None,
    propagate_trace_context: bool = False,
) -> tuple[Subscription, str]:
    """A new, enabled subscription and its secret, which cannot be had again.

    The values must have been checked. Raises SubscriptionLimit where the customer has 100.
    """
    subscription_id, secret = new_subscription_id(), new_secret()
    async with conn.transaction():
        await take_turns(conn, customer_id)
        if await count(conn, customer_id) >= MAX_PER_CUSTOMER:
            raise SubscriptionLimit(f"customer {customer_id} has {MAX_PER_CUSTOMER} subscriptions, which is the limit")
        row = NewRow(
            subscription_id,
            customer_id,
            endpoint_url,
            events,
            description,
            secret,
            propagate_trace_context=propagate_trace_context,
        )
        await insert(conn, ring, row)
        created = await get(conn, subscription_id)
    if created is None:  # nobody else knows the id yet
        raise RuntimeError("the subscription that was just created is not there")
    return created, secret


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to be inserted, with its secret still open."""

    id: SubscriptionId
    customer_id: CustomerId
    endpoint_url: str
    events: Sequence[str]
    description: str | None
    secret: str
    enabled: bool = True
    propagate_trace_context: bool = False


async def take_turns(conn: Connection, customer_id: CustomerId) -> None:
    """Wait until no other transaction adds subscriptions to this customer, and keep others out until ours ends."""
    await conn.execute(_TAKE_TURNS, {"customer_id": customer_id})


async def count(conn: Connection, customer_id: CustomerId) -> int:
    """How many subscriptions the customer has, enabled or not."""
    (row,) = await (await conn.execute(_COUNT, {"customer_id": customer_id})).fetchall()
    return row[0]


async def insert(conn: Connection, ring: KeyRing, row: NewRow) -> None:
    """Insert a subscription and its health, inside the caller's transaction."""
    await conn.execute(_INSERT_HEALTH, {"id": row.id})
    await conn.execute(
        _INSERT,
        {
            "id": row.id,
            "customer_id": row.customer_id,
            "endpoint_url": row.endpoint_url,
            "events": list(row.events),
            "description": row.description,
            "propagate_trace_context": row.propagate_trace_context,
            "enabled": row.enabled,
            "secret_sealed": ring.seal(row.secret, table=TABLE, column="secret", row=row.id),
        },
    )


async def get(conn: Connection, subscription_id: SubscriptionId) -> Subscription | None:
    """One subscription, of whichever customer; None where there is none."""
    row = await (await conn.execute(_GET, {"id": subscription_id})).fetchone()
    return None if row is None else Subscription(*row)


async def page(
    conn: Connection,
    customer_id: CustomerId,
    enabled_only: bool,  # noqa: FBT001 named at the call
    limit: int,
    before: tuple[datetime, str] | None,
) -> list[Subscription]:
    """Up to `limit` of a customer's subscriptions, newest first; those after the (created_at, id) `before`."""
    before_at, before_id = before or (None, None)
    cursor = await conn.execute(
        _PAGE,
        {
            "customer_id": customer_id,
            "enabled_only": enabled_only,
            "limit": limit,
            "before_at": before_at,
            "before_id": before_id,
        },
    )
    return [Subscription(*row) for row in await cursor.fetchall()]


async def update(conn: Connection, subscription_id: SubscriptionId, changes: Changes) -> Subscription | None:
    """Change what `changes` names; None where there is no such subscription.

    `enabled: True` also sets consecutive_failures to 0 and closes the breaker, whatever it was before.
    """
    async with conn.transaction():
        if changes.get("enabled"):
            await conn.execute(_HEAL, {"id": subscription_id})
        await conn.execute(
            _UPDATE,
            {
                "id": subscription_id,
                "enabled": changes.get("enabled"),
                "events": changes.get("events"),
                "set_description": "description" in changes,
                "description": changes.get("description"),
                "endpoint_url": changes.get("endpoint_url"),
                "propagate_trace_context": changes.get("propagate_trace_context"),
            },
        )
        return await get(conn, subscription_id)


async def delete(conn: Connection, subscription_id: SubscriptionId) -> bool:
    """Remove a subscription; its pending deliveries are discarded by their owner. False where there was none."""
    async with conn.transaction():
        await conn.execute(_DELETE_HEALTH, {"id": subscription_id})
        return (await conn.execute(_DELETE, {"id": subscription_id})).rowcount == 1


async def rotate(conn: Connection, ring: KeyRing, subscription_id: SubscriptionId, overlap_s: int) -> Rotated | None:
    """Give a subscription a new secret; the old one goes on signing for `overlap_s` (0: no longer at all) beside it.

    An old secret that does not open, or that itself is in its overlap, is given up. None where there is no such row.
    """
    secret = new_secret()
    async with conn.transaction():
        row = await (await conn.execute(_SEALED, {"id": subscription_id})).fetchone()
        if row is None:
            return None
        cursor = await conn.execute(
            _ROTATE,
            {
                "id": subscription_id,
                "secret": ring.seal(secret, table=TABLE, column="secret", row=subscription_id),
                "previous": _as_previous(ring, subscription_id, row[0]) if overlap_s > 0 else None,
                "overlap_s": overlap_s,
            },
        )
        (rotated,) = await cursor.fetchall()
    return Rotated(secret, rotated[0])


def open_secret(ring: KeyRing, subscription_id: SubscriptionId, sealed: bytes) -> str:
    """The secret in `secret_sealed`. Raises SealBroken."""
    return ring.open(sealed, table=TABLE, column="secret", row=subscription_id)


def open_previous_secret(ring: KeyRing, subscription_id: SubscriptionId, sealed: bytes) -> str:
    """The secret in `previous_secret_sealed`. Raises SealBroken."""
    return ring.open(sealed, table=TABLE, column="previous_secret", row=subscription_id)


async def endpoint_hosts(conn: Connection) -> list[str]:
    """Host names of enabled subscriptions' endpoints, the newest ten; addresses are left out."""
    cursor = await conn.execute(_ENDPOINT_HOSTS)
    return [row[0] for row in await cursor.fetchall()]


def _as_previous(ring: KeyRing, subscription_id: SubscriptionId, sealed: bytes) -> bytes | None:
    """The old secret sealed for its new column, since the seal is bound to the place; None where it does not open."""
    try:
        secret = open_secret(ring, subscription_id, sealed)
    except SealBroken:
        return None
    return ring.seal(secret, table=TABLE, column="previous_secret", row=subscription_id)
