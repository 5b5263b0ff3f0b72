"""What happens beside the browser: endpoints are made, events emitted, and a past is written into the statistics."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.browser.conftest import Window

HOUR: Final = timedelta(hours=1)


def subscribe(window: Window, path: str, **fields: object) -> str:
    """An endpoint of the window's customer at the receiver; its id."""

    async def make() -> str:
        body = {"customer_id": window.customer_id, "endpoint_url": window.site.receiver.url(path)} | fields
        return (await window.site.api.ops.post("/webhooks", body)).json()["id"]

    return window.site.call(make)


def switch_off(window: Window, endpoint_id: str) -> None:
    """As the customer does who pauses it."""

    async def change() -> None:
        assert (await window.site.api.ops.patch(f"/webhooks/{endpoint_id}", {"enabled": False})).status_code == 200

    window.site.call(change)


def emit(window: Window, event_type: str = "deal.won", count: int = 1) -> str:
    """Emit events for the window's customer; the id of the last one, whose first attempts have ended."""

    async def send() -> str:
        event = {"customer_id": window.customer_id, "event_type": event_type, "payload": {"deal_id": 7, "n": 1.0}}
        answers = [await window.site.api.ops.post("/events/emit", event, wait_s=10) for _ in range(count)]
        return answers[-1].json()["event_id"]

    return window.site.call(send)


def run(window: Window, statement: str, **params: object) -> None:
    """A statement in SQL, for states that take hours to come about."""

    async def act() -> None:
        await window.site.api.run(statement, **params)

    window.site.call(act)


def remember_a_month(window: Window) -> None:
    """Statistics of thirty days up to an hour ago: more by day than by night, and on one afternoon many failures."""
    chance = random.Random(7)
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    hours = [now - n * HOUR for n in range(1, 30 * 24)]
    busy = [1 + 0.8 * math.sin((hour.hour - 8) / 24 * 2 * math.pi) * (hour.weekday() < 5) for hour in hours]
    counts = [round(900 * share * chance.uniform(0.85, 1.15)) for share in busy]
    ill = {now - n * HOUR for n in (9, 10, 11, 60, 61, 62, 63)}
    failed = [round(count * (0.35 if hour in ill else 0.006)) for hour, count in zip(hours, counts, strict=True)]
    run(
        window,
        f"""
        WITH h AS (
            SELECT hour, n, failed, {BUCKETS} AS buckets
            FROM unnest(%(hours)s::timestamptz[], %(counts)s::bigint[], %(failed)s::bigint[]) AS t (hour, n, failed)
        ), hourly AS (
            INSERT INTO dealix.hourly_stats
            SELECT %(customer_id)s, hour, n - failed, failed, buckets FROM h WHERE hour > now() - interval '8 days'
        )
        INSERT INTO dealix.daily_stats
        SELECT day, %(customer_id)s, 'deal.won', n - failed, failed, 40 * n, {BUCKETS}
        FROM (
            SELECT (hour AT TIME ZONE 'UTC')::date AS day, sum(n)::bigint AS n, sum(failed)::bigint AS failed
            FROM h
            GROUP BY 1
        ) AS d
        """,
        customer_id=window.customer_id,
        hours=hours,
        counts=counts,
        failed=failed,
    )


BUCKETS: Final = """ARRAY[
    0, n / 8, n / 3, n - n / 8 - n / 3 - n / 6 - n / 40 - failed / 3, n / 6, n / 40, failed / 3, 0, 0, 0, 0, 0]"""
"""Of `n` attempts, as in daemon/policy/latency.py: most within 100 ms; some that failed took half a second."""
