"""A customer's figures over some hours or days, from the statistics that the recorder keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Final

from daemon.ids import CustomerId
from daemon.store.connection import Connection


@dataclass(frozen=True, slots=True)
class TypeFigures:
    """Attempts of one event type over the days asked for; `duration_ms` is their sum."""

    event_type: str
    success: int
    failed: int
    duration_ms: int


@dataclass(frozen=True, slots=True)
class SubscriptionFigures:
    """How many subscriptions a customer has, and how many of them are enabled."""

    total: int
    enabled: int


# Primary key (customer_id, day, event_type): a range of at most 90 days by the types that occurred. Locks nothing.
_BY_TYPE: Final = """
    SELECT event_type, sum(success)::bigint, sum(failed)::bigint, sum(duration_ms)::bigint
    FROM dealix.daily_stats
    WHERE customer_id = %(customer_id)s AND day >= %(first)s AND day <= %(last)s
    GROUP BY event_type
    ORDER BY event_type
"""


async def by_type(conn: Connection, customer_id: CustomerId, *, first: date, last: date) -> list[TypeFigures]:
    """The figures of each event type that was attempted on the UTC days `first` to `last`, both included."""
    cursor = await conn.execute(_BY_TYPE, {"customer_id": customer_id, "first": first, "last": last})
    return [TypeFigures(*row) for row in await cursor.fetchall()]


# Index subscriptions_list: at most the 100 rows of one customer. Locks nothing.
_SUBSCRIPTIONS: Final = """
    SELECT count(*), count(*) FILTER (WHERE enabled)
    FROM dealix.subscriptions
    WHERE customer_id = %(customer_id)s
"""


async def subscriptions(conn: Connection, customer_id: CustomerId) -> SubscriptionFigures:
    """How many subscriptions a customer has now."""
    row = await (await conn.execute(_SUBSCRIPTIONS, {"customer_id": customer_id})).fetchone()
    return SubscriptionFigures(0, 0) if row is None else SubscriptionFigures(*row)


@dataclass(frozen=True, slots=True)
class Slice:
    """Attempts of an hour or a UTC day, beginning at `starts_at`; `latency_buckets` as in policy/latency.py."""

    starts_at: datetime
    success: int
    failed: int
    latency_buckets: list[int]


# Primary key (customer_id, day, event_type): at most 90 days by the types that occurred. Locks nothing.
_BY_DAY: Final = """
    SELECT day, success, failed, latency_buckets
    FROM dealix.daily_stats
    WHERE customer_id = %(customer_id)s AND day >= %(first)s
    ORDER BY day
"""

# Primary key (customer_id, hour): at most 192 rows, a week and a day. Locks nothing.
_BY_HOUR: Final = """
    SELECT hour, success, failed, latency_buckets
    FROM dealix.hourly_stats
    WHERE customer_id = %(customer_id)s AND hour >= %(first)s
    ORDER BY hour
"""


async def by_day(conn: Connection, customer_id: CustomerId, *, first: date) -> list[Slice]:
    """The UTC days from `first` on in which something was attempted, oldest first; one slice for each event type."""
    cursor = await conn.execute(_BY_DAY, {"customer_id": customer_id, "first": first})
    return [
        Slice(datetime.combine(day, time(), UTC), success, failed, buckets)
        for day, success, failed, buckets in await cursor.fetchall()
    ]


async def by_hour(conn: Connection, customer_id: CustomerId, *, first: datetime) -> list[Slice]:
    """The hours from `first` on in which something was attempted, oldest first. Hours are kept for eight days."""
    cursor = await conn.execute(_BY_HOUR, {"customer_id": customer_id, "first": first})
    return [Slice(*row) for row in await cursor.fetchall()]
