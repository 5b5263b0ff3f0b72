"""Figures over days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import trio

from daemon.ids import CustomerId
from daemon.store import stats
from daemon.store.connection import connect
from daemon.store.stats import Slice, SubscriptionFigures, TypeFigures

DAY = date(2026, 3, 1)


async def test_days_are_summed_by_type_for_one_customer_from_the_first_to_the_last(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            for customer_id, event_type, days in (
                ("acme", "deal.won", (0, 1, 2, 3)),
                ("acme", "deal.lost", (2,)),
                ("acme", "lead.created", (9,)),
                ("globex", "deal.won", (1,)),
            ):
                for day in days:
                    await conn.execute(
                        "INSERT INTO dealix.daily_stats VALUES (%s, %s, %s, 10, %s, 500, '{}')",
                        (DAY + timedelta(days=day), customer_id, event_type, day),
                    )
            found = await stats.by_type(
                conn, CustomerId("acme"), first=DAY + timedelta(days=1), last=DAY + timedelta(days=3)
            )
            assert found == [TypeFigures("deal.lost", 10, 2, 500), TypeFigures("deal.won", 30, 6, 1500)]
            assert await stats.by_type(conn, CustomerId("initech"), first=DAY, last=DAY) == []


async def test_subscriptions_are_counted_by_customer(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(
                """INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed, enabled,
                                                     disabled_reason)
                   SELECT 'whk_' || lpad(i::text, 24, '0'), CASE WHEN i < 4 THEN 'acme' ELSE 'globex' END,
                          'https://example.com/', '', i <> 1, CASE WHEN i = 1 THEN 'gone' END
                   FROM generate_series(1, 9) i"""
            )
            assert await stats.subscriptions(conn, CustomerId("acme")) == SubscriptionFigures(total=3, enabled=2)
            assert await stats.subscriptions(conn, CustomerId("initech")) == SubscriptionFigures(total=0, enabled=0)


async def test_slices_are_a_customers_own_from_the_first_on_in_their_order(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
            for customer_id, hours in (("acme", (2, 0, 1)), ("globex", (1,))):
                for hour in hours:
                    await conn.execute(
                        "INSERT INTO dealix.hourly_stats VALUES (%s, %s, %s, 1, '{0,3}')",
                        (customer_id, noon + timedelta(hours=hour), hour),
                    )
            await conn.execute(
                "INSERT INTO dealix.daily_stats VALUES (%s, 'acme', 'deal.won', 5, 6, 7, '{11}')", (DAY,)
            )
            acme = CustomerId("acme")
            one, two = (Slice(noon + timedelta(hours=hour), hour, 1, [0, 3]) for hour in (1, 2))
            assert await stats.by_hour(conn, acme, first=noon + timedelta(hours=1)) == [one, two]
            assert await stats.by_day(conn, acme, first=DAY) == [Slice(datetime(2026, 3, 1, tzinfo=UTC), 5, 6, [11])]
            assert await stats.by_day(conn, acme, first=DAY + timedelta(days=1)) == []
