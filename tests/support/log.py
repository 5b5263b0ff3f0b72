"""Rows of the delivery log, written as the recorder would write them, for tests that read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from daemon import clock
from daemon.ids import new_attempt_id
from daemon.store.connection import Connection

HOOK: Final = "https://hooks.example.com/h"


@dataclass(frozen=True, slots=True)
class Row:
    """An attempt; a delivered one by default, now."""

    subscription_id: str
    event_id: str = "evt_1"
    customer_id: str = "acme"
    event_type: str = "deal.won"
    attempt: int = 1
    outcome: str = "delivered"
    created_at: datetime = field(default_factory=clock.now)
    status_code: int | None = 200
    error: str | None = None
    duration_ms: int = 12
    signature: str | None = "t=1790000000,v1=00"
    webhook_signature: str | None = "v1,AA=="
    response_headers: str | None = '[["content-type","text/plain"],["set-cookie","a=b"],["set-cookie","c=d"]]'
    response_body: str | None = "thanks"
    response_truncated: bool = False
    event_day: datetime | None = None


_INSERT: Final = """
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type,
        attempt, outcome, success, endpoint_url, status_code, error, duration_ms, signature, webhook_signature,
        response_headers, response_body, response_truncated)
    VALUES (%(id)s, %(created_at)s, %(customer_id)s, %(subscription_id)s, %(event_id)s, %(event_day)s, %(event_type)s,
        %(attempt)s, %(outcome)s, %(success)s, %(endpoint_url)s, %(status_code)s, %(error)s, %(duration_ms)s,
        %(signature)s, %(webhook_signature)s, %(response_headers)s, %(response_body)s, %(response_truncated)s)
"""


async def write(conn: Connection, rows: Iterable[Row]) -> list[str]:
    """Insert attempts; their ids, in order."""
    made: list[str] = []
    async with conn.cursor() as cursor:
        for row in rows:
            attempt_id = new_attempt_id(row.created_at)
            day = (row.event_day or row.created_at).astimezone(UTC).date()
            values = asdict(row) | {
                "id": attempt_id,
                "event_day": day,
                "success": row.outcome == "delivered",
                "endpoint_url": HOOK,
            }
            await cursor.execute(_INSERT, values)
            made.append(attempt_id)
    return made


async def make_days(conn: Connection, *, days_back: int) -> None:
    """Partitions for that many days before today: the templates of the tests have none of them."""
    today = clock.now().date()
    for parent in ("events", "attempts"):
        for back in range(days_back + 1):
            await conn.execute("SELECT dealix.make_partition(%s, %s)", (parent, today - timedelta(days=back)))
