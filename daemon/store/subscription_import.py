"""Taking over subscriptions from elsewhere, with the ids and secrets that their receivers already know."""

from __future__ import annotations

from typing import Final, Literal

from daemon.errors import ImportConflict, SealBroken, SubscriptionLimit
from daemon.sealing import KeyRing
from daemon.store.connection import Connection
from daemon.store.subscriptions import MAX_PER_CUSTOMER, NewRow, count, insert, open_secret, take_turns

# Locks the row, so that what was compared is what stands there when the import commits.
_EXISTING: Final = """
SELECT customer_id, endpoint_url, events, description, propagate_trace_context, enabled, secret_sealed
FROM dealix.subscriptions
WHERE id = %(id)s
FOR SHARE
"""


async def import_one(conn: Connection, ring: KeyRing, record: NewRow) -> Literal["imported", "unchanged"]:
    """Insert a subscription as it is given, or find it there, the same in everything; inside the caller's transaction.

    The values must have been checked. Raises ImportConflict, naming what differs, and SubscriptionLimit.
    """
    await take_turns(conn, record.customer_id)
    row = await (await conn.execute(_EXISTING, {"id": record.id})).fetchone()
    if row is None:
        if await count(conn, record.customer_id) >= MAX_PER_CUSTOMER:
            raise SubscriptionLimit(
                f"customer {record.customer_id} would have more than {MAX_PER_CUSTOMER} subscriptions"
            )
        await insert(conn, ring, record)
        return "imported"
    *plain, sealed = row
    given = {
        "customer_id": record.customer_id,
        "endpoint_url": record.endpoint_url,
        "events": list(record.events),
        "description": record.description,
        "propagate_trace_context": record.propagate_trace_context,
        "enabled": record.enabled,
    }
    differing = [name for old, (name, new) in zip(plain, given.items(), strict=True) if old != new]
    if not _same_secret(ring, record, sealed):
        differing.append("secret")
    if differing:
        raise ImportConflict(f"{record.id} exists already, with other {', '.join(differing)}")
    return "unchanged"


def _same_secret(ring: KeyRing, record: NewRow, sealed: bytes) -> bool:
    try:
        return open_secret(ring, record.id, sealed) == record.secret
    except SealBroken:
        return False
