"""Events as they are sent: what the day's partition has of them, enveloped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Final

from psycopg import errors, sql

from daemon.ids import CustomerId, EventId
from daemon.model import Event
from daemon.policy.signing import envelope
from daemon.store.arrays import array
from daemon.store.connection import Connection


def partition(day: date) -> str:
    """That day's partition of `events`. A prepared plan over the parent would lock all of them at each execution."""
    return f"events_{day:%Y%m%d}"


_EVENTS: Final = sql.SQL("""
    SELECT e.id, e.type, e.customer_id, e.created_at, e.data, e.matched, e.traceparent
    FROM unnest(%(customers)s::text[], %(ids)s::text[]) AS wanted (customer_id, id)
    CROSS JOIN LATERAL (
        SELECT * FROM {partition} e WHERE e.customer_id = wanted.customer_id AND e.id = wanted.id OFFSET 0
    ) AS e
""")


@lru_cache(maxsize=8)
def _events_of(day: date) -> bytes:
    return _EVENTS.format(partition=sql.Identifier("dealix", partition(day))).as_bytes(None)


async def load_events(conn: Connection, day: date, wanted: Sequence[tuple[CustomerId, EventId]]) -> list[Event]:
    """The events of one day, enveloped. Those that retention removed are missing from the answer."""
    named = {"customers": array(c for c, _ in wanted), "ids": array(i for _, i in wanted)}
    try:
        cursor = await conn.execute(_events_of(day), named, prepare=True)
    except errors.UndefinedTable:
        return []
    return [enveloped(*row) for row in await cursor.fetchall()]


def enveloped(  # noqa: PLR0913, PLR0917 in the order of the columns
    event_id: EventId,
    event_type: str,
    customer_id: CustomerId,
    created_at: datetime,
    data: str,
    matched: int,
    traceparent: str | None,
) -> Event:
    """An event of a row."""
    body = envelope(event_id=event_id, event_type=event_type, customer_id=customer_id, data=data, created_at=created_at)
    return Event(event_id, event_type, customer_id, created_at, body, matched, traceparent)
