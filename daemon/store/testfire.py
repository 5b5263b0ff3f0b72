"""What a test-fire writes beside its attempt: its event, and word to the owner of the shard."""

from __future__ import annotations

from typing import Final

from daemon.ids import SubscriptionId
from daemon.model import Event
from daemon.store.connection import Connection
from daemon.store.shards import CONFIG

_INSERT: Final = """
    WITH noted AS (
        INSERT INTO dealix.test_events (customer_id, event_id, event_day)
        VALUES (%(customer_id)s, %(id)s, (%(created_at)s::timestamptz AT TIME ZONE 'UTC')::date)
    )
    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
    VALUES (%(id)s, %(customer_id)s, %(type)s, %(data)s, %(created_at)s, 1)
"""


async def insert_event(conn: Connection, event: Event, data: str) -> None:
    """The event of a test-fire: in the log's reach, but in no outbox, and noted as one that is nobody's to recover."""
    await conn.execute(
        _INSERT,
        {
            "id": event.id,
            "customer_id": event.customer_id,
            "type": event.type,
            "data": data,
            "created_at": event.created_at,
        },
    )


async def tell_owner(conn: Connection, subscription_id: SubscriptionId) -> None:
    """Its breaker may have closed: the owner's actor should look."""
    await conn.execute("SELECT pg_notify(%(channel)s, %(id)s)", {"channel": CONFIG, "id": subscription_id})
