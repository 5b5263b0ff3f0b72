"""Log: what reading five million attempts takes, through the store's own functions and over HTTP."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final

import click
import msgspec
import psycopg
import trio

from bench.cpu import Meter
from bench.figures import Figure, Untrue, medians, publish
from bench.long_log import BIG, SMALL, Log, demand_room, fill
from bench.parts import START_S, Stage, stage
from bench.seeding import migrated, register
from bench.serving import Api, serving
from daemon.ids import CustomerId
from daemon.store import deliveries, stats
from daemon.store.connection import connect
from daemon.store.deliveries import Filter

DAYS: Final = 90

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
        demand_room(on, attempts)
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
    endpoint, _ = register(on, [BIG, SMALL], hosts=1)
    today = datetime.now(UTC).date()
    fill(on, Log(attempts, DAYS, [endpoint]))
    with serving(on, DEALIX_RETENTION__DAYS=str(DAYS + 10)) as daemon, on.sql() as db:
        api = Api(daemon, key)
        check(db, api, today)
        return trio.run(_timed, on.url, api, today, runs)


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
