"""Log: what reading five million attempts takes, through the store's own functions and over HTTP."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Final

import click
import msgspec
import psycopg
import trio
from psycopg import sql

from bench.cpu import Meter
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import START_S, Stage, stage
from bench.seeding import customer_ids, migrated, register
from bench.serving import Api, serving
from daemon.ids import CustomerId
from daemon.policy.latency import BOUNDS_MS, BUCKETS
from daemon.store import deliveries, stats
from daemon.store.connection import connect
from daemon.store.deliveries import Filter

BIG: Final = CustomerId("big")
"""Has one attempt in ten."""
SMALL: Final = CustomerId("quiet")
"""Has a single attempt a day: its newest page lies in fifty partitions."""
OTHERS: Final = customer_ids("c", 500)
DAYS: Final = 90
TYPES: Final = 19
FAILED_EVERY: Final = 20
BYTES_EACH: Final = 1200
"""On the disk for each attempt: the row, its indexes, its WAL for a while."""
WORKERS: Final = 2

# Of one day. A customer's attempts lie all over it, so that its newest page is spread over as many pages of the table.
_ATTEMPTS: Final = """
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type, attempt,
                                 outcome, success, endpoint_url, status_code, error, duration_ms, signature,
                                 webhook_signature, response_headers, response_body)
    SELECT 'dlv_' || stamp || lpad(to_hex(i), 12, '0'), at, customer, 'whk_' || left(md5(customer), 24),
           'evt_' || stamp || lpad(to_hex(i), 12, '0'), %(day)s, type, 1,
           CASE WHEN ok THEN 'delivered' ELSE 'retry' END, ok, 'https://hooks.example.com/' || customer,
           CASE WHEN ok THEN 200 ELSE 503 END,
           CASE WHEN NOT ok THEN 'status 503' END, 20 + i %% 600,
           't=1790000000,v1=' || md5(i::text) || md5(customer), 'v1,' || left(md5(i::text) || md5(type), 44),
           '[["Content-Type","text/plain"],["Content-Length","2"],["Date","Wed, 25 Nov 2026 02:00:00 GMT"]]', 'ok'
    FROM (
        SELECT i, at, lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') AS stamp, customer,
               (%(types)s::text[])[1 + CASE WHEN customer = %(big)s THEN i / 10
                                        ELSE (hashtext(customer) & 7) + i %% 4 END %% %(type_count)s] AS type,
               i / 10 %% %(failed_every)s <> 7 AS ok
        FROM (
            SELECT i, %(day)s::date::timestamp AT TIME ZONE 'UTC' + i * %(length)s / %(rows)s * interval '1 s' AS at,
                   CASE WHEN i = 5 THEN %(small)s WHEN i %% 10 = 0 THEN %(big)s
                        ELSE (%(others)s::text[])[1 + i * 7919 %% cardinality(%(others)s::text[])] END AS customer
            FROM generate_series(0::bigint, %(rows)s::bigint - 1) AS i
        ) AS placed
    ) AS typed
"""
# As the recorder would have counted them.
_STATS: Final = sql.SQL("""
    INSERT INTO dealix.daily_stats (day, customer_id, event_type, success, failed, duration_ms, latency_buckets)
    SELECT %(day)s, customer_id, event_type, count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success),
           sum(duration_ms), ARRAY[{buckets}]
    FROM (SELECT *, width_bucket(duration_ms - 1, {bounds}::int[]) AS bucket FROM {partition}) AS attempts
    GROUP BY customer_id, event_type
""")
_BUCKETS: Final = sql.SQL(", ").join(
    sql.SQL("count(*) FILTER (WHERE bucket = {})").format(sql.Literal(n)) for n in range(BUCKETS)
)
_NEWEST: Final = """
    SELECT id FROM dealix.attempts WHERE customer_id = %s AND success = ANY (%s) ORDER BY id DESC LIMIT 50
"""


class Run(msgspec.Struct, frozen=True):
    """Milliseconds of one call: through the store's functions, and over HTTP.

    The newest 50 of the big customer, of its failed ones, and of a customer with one attempt a day.
    """

    newest_50: float
    newest_failed: float
    newest_of_quiet: float
    stats_7_days: float
    stats_90_days: float
    http_newest_50: float
    http_newest_of_quiet: float
    http_stats_7_days: float
    http_stats_90_days: float


@click.command("log")
@click.option("--attempts", default=5_000_000, show_default=True, help="Over 90 days, a tenth of one customer's.")
@click.option("--runs", default=20, show_default=True, help="Of each call.")
def log(attempts: int, runs: int) -> None:
    """Reading a log of five million attempts: the newest page, statistics over 7 and 90 days."""
    with stage(1) as on:
        free = shutil.disk_usage(on.home).free
        if free < attempts * BYTES_EACH:
            raise click.ClickException(f"{on.home}: {attempts * BYTES_EACH >> 20} MB are needed, {free >> 20} are free")
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        results = measure(on, attempts, runs)
        others = meter.costs().others
    middle = medians(results)
    what = f"{attempts:,} attempts in the log"
    publish(
        f"milliseconds a call with {what} over {DAYS} days, a tenth of one customer's",
        results,
        [
            Figure(f"{what}: newest 50", middle.newest_50, "ms", 10, at_most=True),
            Figure(
                f"{what}: newest 50 over HTTP", middle.http_newest_50, "ms", 10, at_most=True, floor=middle.newest_50
            ),
            Figure(f"{what}: newest 50 of a customer with one a day", middle.newest_of_quiet, "ms"),
            Figure(f"{what}: statistics over 7 days, HTTP", middle.http_stats_7_days, "ms", 50, at_most=True),
            Figure(f"{what}: statistics over 90 days, HTTP", middle.http_stats_90_days, "ms", 200, at_most=True),
        ],
        others=others,
    )


def measure(on: Stage, attempts: int, runs: int) -> list[Run]:
    """Fill the log, look whether the answers are true, then time them."""
    key = migrated(on)
    register(on, [BIG, SMALL], hosts=1)
    today = datetime.now(UTC).date()
    fill(on, attempts, today)
    with serving(on, DEALIX_RETENTION__DAYS=str(DAYS + 10)) as daemon, on.sql() as db:
        api = Api(daemon, key)
        check(db, api, today)
        return trio.run(_timed, on.url, api, today, runs)


def fill(on: Stage, attempts: int, today: date) -> None:
    """The partitions of the last days and their attempts; today's too, as far as the day has come."""
    days = [today - timedelta(days=n) for n in range(DAYS)]
    with on.sql() as db:
        for day in days:
            db.execute("SELECT dealix.make_partition('attempts', %s)", (day,))
    with ThreadPoolExecutor(WORKERS) as workers:
        filling = [workers.submit(_fill_day, on.url, day, attempts // DAYS, _length_s(day)) for day in days]
        for one in filling:
            one.result()
    with on.sql() as db:
        db.execute("VACUUM ANALYZE")


def _length_s(day: date) -> float:
    """Of the part of the day that is over."""
    midnight = datetime.combine(day, datetime.min.time(), UTC)
    return min((datetime.now(UTC) - midnight).total_seconds(), 86_399)


def _fill_day(url: str, day: date, rows: int, length_s: float) -> None:
    names = {"partition": sql.Identifier("dealix", f"attempts_{day:%Y%m%d}")}
    with psycopg.connect(url) as db:
        types = [row[0] for row in db.execute("SELECT type FROM dealix.event_types ORDER BY type").fetchall()]
        values = {"day": day, "rows": rows, "length": length_s, "types": types, "type_count": len(types)}
        who = {"big": BIG, "small": SMALL, "others": list(OTHERS), "failed_every": FAILED_EVERY}
        db.execute(_ATTEMPTS, values | who)
        db.execute(_STATS.format(buckets=_BUCKETS, bounds=sql.Literal(list(BOUNDS_MS)), **names), {"day": day})


def check(db: psycopg.Connection, api: Api, today: date) -> None:
    """Raises Untrue unless the API says what plain SQL over the log says."""
    for customer, flags, success in (
        (BIG, "", [True, False]),
        (BIG, "&failed_only=true", [False]),
        (SMALL, "", [True]),
    ):
        said = api.call("GET", f"/deliveries?customer_id={customer}&limit=50{flags}")["deliveries"]
        true = [row[0] for row in db.execute(_NEWEST, (customer, success)).fetchall()]
        if len(true) != 50 or [one["id"] for one in said] != true:
            raise Untrue(f"the newest page of {customer} is not the one that the log has")
    for period in (7, 90):
        said = api.call("GET", f"/stats?customer_id={BIG}&period_days={period}")["deliveries"]["total"]
        since = datetime.combine(today - timedelta(days=period - 1), datetime.min.time(), UTC)
        row = "SELECT count(*) FROM dealix.attempts WHERE customer_id = %s AND created_at >= %s"
        if (true := db.execute(row, (BIG, since)).fetchall()[0][0]) != said or not said:
            raise Untrue(f"statistics over {period} days say {said} attempts, the log has {true}")


async def _timed(url: str, api: Api, today: date, runs: int) -> list[Run]:
    """Each call in turns, after one of each that warms up."""
    oldest = datetime.combine(today, datetime.min.time(), UTC) - timedelta(days=DAYS)
    async with await connect(url, timeout_s=START_S, application_name="bench") as conn:

        async def page(customer: CustomerId, *, success: bool | None = None) -> None:
            wanted = Filter(customer, success=success)
            await deliveries.page(conn, wanted, limit=50, before=None, oldest=oldest, look_s=10)

        async def figures(days: int) -> None:
            await stats.by_type(conn, BIG, first=today - timedelta(days=days - 1), last=today)

        calls: list[Callable[[], Awaitable[None]]] = [
            lambda: page(BIG),
            lambda: page(BIG, success=False),
            lambda: page(SMALL),
            lambda: figures(7),
            lambda: figures(90),
        ]
        paths = [
            f"/deliveries?customer_id={BIG}&limit=50",
            f"/deliveries?customer_id={SMALL}&limit=50",
            f"/stats?customer_id={BIG}&period_days=7",
            f"/stats?customer_id={BIG}&period_days=90",
        ]
        rows = [
            [*[await _awaited_ms(c) for c in calls], *[_asked_ms(api, path) for path in paths]] for _ in range(runs + 1)
        ]
    return [Run(*row) for row in rows[1:]]


async def _awaited_ms(call: Callable[[], Awaitable[None]]) -> float:
    began = time.monotonic()
    await call()
    return (time.monotonic() - began) * 1000


def _asked_ms(api: Api, path: str) -> float:
    began = time.monotonic()
    api.call("GET", path)
    return (time.monotonic() - began) * 1000
