"""A delivery log of millions of attempts, with its statistics, written by set-based SQL as the recorder would have."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import click
import psycopg
from psycopg import sql

from bench.parts import Stage
from bench.seeding import DATA, customer_ids
from daemon.ids import CustomerId, SubscriptionId
from daemon.policy.latency import BOUNDS_MS, BUCKETS
from daemon.store.partitions import HOURS_KEPT_DAYS

BIG: Final = CustomerId("big")
"""Has one attempt in ten."""
SMALL: Final = CustomerId("quiet")
"""Has a single attempt a day: its newest page lies in as many partitions as it has rows."""
OTHERS: Final = customer_ids("c", 500)
FAILED_EVERY: Final = 20
RARE_TYPE: Final = "quote.sent"
RARE_DAY: Final = 2
"""Days after the log's first one; all that is rare happens there."""
RARE_ROWS: Final = 3
"""Of each kind."""
BYTES_EACH: Final = 1400
"""On the disk for each attempt: the row, its indexes, its WAL for a while."""
WORKERS: Final = 2


@dataclass(frozen=True)
class Log:
    """What is written: `attempts` in the last `days` days, evenly, today as far as it has come.

    `endpoints` are those of BIG, in turns. Of each, one attempt in FAILED_EVERY failed. With `rare` something hardly
    occurs, all of it long ago: RARE_TYPE for BIG, a success of its last endpoint but one, a failure of its last one.
    With `events` BIG's attempts have their events too.
    """

    attempts: int
    days: int
    endpoints: Sequence[SubscriptionId]
    rare: bool = False
    events: bool = False

    @property
    def first_day(self) -> date:
        """UTC."""
        return datetime.now(UTC).date() - timedelta(days=self.days - 1)


# Of one day. A customer's attempts lie all over it, so that its newest page is spread over as many pages of the table.
# `n` counts BIG's attempts, `round` those of each of its endpoints.
_ATTEMPTS: Final = """
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type, attempt,
                                 outcome, success, endpoint_url, status_code, error, duration_ms, signature,
                                 webhook_signature, response_headers, response_body)
    SELECT 'dlv_' || stamp || lpad(to_hex(i), 12, '0'), at, customer,
           CASE WHEN customer = %(big)s THEN (%(endpoints)s::text[])[endpoint + 1]
                ELSE 'whk_' || left(md5(customer), 24) END,
           'evt_' || stamp || lpad(to_hex(i), 12, '0'), %(day)s, type, 1,
           CASE WHEN ok THEN 'delivered' ELSE 'retry' END, ok, 'https://hooks.example.com/' || customer,
           CASE WHEN ok THEN 200 ELSE 503 END,
           CASE WHEN NOT ok THEN 'status 503' END, 20 + i %% 600,
           't=1790000000,v1=' || md5(i::text) || md5(customer), 'v1,' || left(md5(i::text) || md5(type), 44),
           '[["Content-Type","text/plain"],["Content-Length","2"],["Date","Wed, 25 Nov 2026 02:00:00 GMT"]]', 'ok'
    FROM (
        SELECT i, at, lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') AS stamp, customer, endpoint,
               CASE WHEN customer = %(big)s AND %(is_rare_day)s AND n < %(rare_rows)s THEN %(rare_type)s
                    ELSE (%(types)s::text[])[1 + CASE WHEN customer = %(big)s THEN n
                                                      ELSE (hashtext(customer) & 7) + i %% 4 END
                                                 %% cardinality(%(types)s::text[])] END AS type,
               CASE WHEN customer = %(big)s AND %(rare)s AND endpoint = of_big - 2
                    THEN %(is_rare_day)s AND round < %(rare_rows)s
                    WHEN customer = %(big)s AND %(rare)s AND endpoint = of_big - 1
                    THEN NOT (%(is_rare_day)s AND round < %(rare_rows)s)
                    ELSE round %% %(failed_every)s <> 7 END AS ok
        FROM (
            SELECT i, i / 10 AS n, of_big, i / 10 %% of_big AS endpoint, i / 10 / of_big AS round,
                   %(day)s::date::timestamp AT TIME ZONE 'UTC' + i * %(length)s / %(rows)s * interval '1 s' AS at,
                   CASE WHEN i = 5 THEN %(small)s WHEN i %% 10 = 0 THEN %(big)s
                        ELSE (%(others)s::text[])[1 + i * 7919 %% cardinality(%(others)s::text[])] END AS customer
            FROM generate_series(0::bigint, %(rows)s::bigint - 1) AS i
            CROSS JOIN (SELECT cardinality(%(endpoints)s::text[]) AS of_big) AS endpoints
        ) AS placed
    ) AS typed
"""
_EVENTS: Final = sql.SQL("""
    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
    SELECT event_id, customer_id, event_type, {data}, created_at, 1 FROM {partition} WHERE customer_id = {big}
""")
_DAILY: Final = sql.SQL("""
    INSERT INTO dealix.daily_stats (day, customer_id, event_type, success, failed, duration_ms, latency_buckets)
    SELECT {day}, customer_id, event_type, count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success),
           sum(duration_ms), ARRAY[{buckets}]
    FROM (SELECT *, width_bucket(duration_ms - 1, {bounds}::int[]) AS bucket FROM {partition}) AS attempts
    GROUP BY customer_id, event_type
""")
_HOURLY: Final = sql.SQL("""
    INSERT INTO dealix.hourly_stats (hour, customer_id, success, failed, latency_buckets)
    SELECT date_trunc('hour', created_at, 'UTC'), customer_id, count(*) FILTER (WHERE success),
           count(*) FILTER (WHERE NOT success), ARRAY[{buckets}]
    FROM (SELECT *, width_bucket(duration_ms - 1, {bounds}::int[]) AS bucket FROM {partition}) AS attempts
    GROUP BY 1, customer_id
""")
_BUCKETS: Final = sql.SQL(", ").join(
    sql.SQL("count(*) FILTER (WHERE bucket = {})").format(sql.Literal(n)) for n in range(BUCKETS)
)


def demand_room(on: Stage, attempts: int) -> None:
    """Refuse to begin what would fill the disk."""
    free, wanted = shutil.disk_usage(on.home).free, attempts * BYTES_EACH
    if free < wanted:
        raise click.ClickException(f"{on.home}: {wanted >> 20} MB are needed, {free >> 20} are free")


def fill(on: Stage, log: Log) -> None:
    """The partitions of the last days and their rows."""
    days = [log.first_day + timedelta(days=n) for n in range(log.days)]
    with on.sql() as db:
        for day in days:
            for parent in ("attempts", "events"):
                db.execute("SELECT dealix.make_partition(%s, %s)", (parent, day))
    with ThreadPoolExecutor(WORKERS) as workers:
        for one in [workers.submit(_fill_day, on.url, log, day) for day in reversed(days)]:
            one.result()
    with on.sql() as db:
        db.execute("VACUUM ANALYZE")


def _fill_day(url: str, log: Log, day: date) -> None:
    """One day, in one transaction."""
    with psycopg.connect(url) as db:
        types = [row[0] for row in db.execute("SELECT type FROM dealix.event_types ORDER BY type").fetchall()]
        is_rare_day = log.rare and day == log.first_day + timedelta(days=RARE_DAY)
        db.execute(
            _ATTEMPTS,
            {
                "day": day,
                "rows": log.attempts // log.days,
                "length": _length_s(day),
                "types": [one for one in types if not log.rare or one != RARE_TYPE],
                "rare_type": RARE_TYPE,
                "rare_rows": RARE_ROWS,
                "rare": log.rare,
                "is_rare_day": is_rare_day,
                "endpoints": list(log.endpoints),
                "big": BIG,
                "small": SMALL,
                "others": list(OTHERS),
                "failed_every": FAILED_EVERY,
            },
        )
        names = {
            "partition": sql.Identifier("dealix", f"attempts_{day:%Y%m%d}"),
            "day": sql.Literal(day),
            "buckets": _BUCKETS,
            "bounds": sql.Literal(list(BOUNDS_MS)),
            "data": sql.Literal(DATA),
            "big": sql.Literal(BIG),
        }
        db.execute(_DAILY.format(**names))
        if day > datetime.now(UTC).date() - timedelta(days=HOURS_KEPT_DAYS):
            db.execute(_HOURLY.format(**names))
        if log.events:
            db.execute(_EVENTS.format(**names))


def _length_s(day: date) -> float:
    """Of the part of the day that is over."""
    midnight = datetime.combine(day, datetime.min.time(), UTC)
    return min((datetime.now(UTC) - midnight).total_seconds(), 86_399)
