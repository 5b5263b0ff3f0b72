"""Partitions are there before they are needed, go when they are old, and no emit ever waits for either."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Final, LiteralString

import psycopg
import pytest
import trio
from psycopg import sql

from daemon.ids import CustomerId
from daemon.store.connection import Connection, connect
from daemon.store.emit import emit
from daemon.store.partitions import Retired, drop_before, drop_stats_before, make_ahead

LIMIT_S: Final = 20.0
TODAY: Final = datetime.now(UTC).date()
OLD: Final = TODAY - timedelta(days=40)
CUTOFF: Final = TODAY - timedelta(days=30)
ACME: Final = CustomerId("acme")
SUBSCRIPTION: Final = "whk_" + "1" * 24


@pytest.fixture
async def conn(any_database: str) -> AsyncGenerator[Connection]:
    async with await session(any_database) as connection:
        yield connection


async def session(url: str) -> Connection:
    return await connect(url, timeout_s=5, application_name="test", options={"statement_timeout": "15s"})


async def values(conn: Connection, query: LiteralString, **params: object) -> list[object]:
    cursor = await conn.execute(query, params)
    return [row[0] for row in await cursor.fetchall()]


async def attached(conn: Connection, parent: str = "events") -> list[object]:
    query: LiteralString = """
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass('dealix.' || %(parent)s)
        ORDER BY 1
    """
    return await values(conn, query, parent=parent)


async def counted(conn: Connection) -> int:
    return len(await attached(conn, "events")) + len(await attached(conn, "attempts"))


async def has_days(conn: Connection, days: int) -> bool:
    """Whether all from yesterday to `days` after today are there. Midnight may come at any moment."""
    ((today,),) = await (await conn.execute("SELECT (now() AT TIME ZONE 'UTC')::date")).fetchall()
    there = {*await attached(conn, "events"), *await attached(conn, "attempts")}
    days_wanted = [today + timedelta(days=n) for n in range(-1, days + 1)]
    return {f"{parent}_{day:%Y%m%d}" for parent in ("events", "attempts") for day in days_wanted} <= there


async def somebody_waits(conn: Connection) -> None:
    """Return once a session on this database waits for a lock."""
    query: LiteralString = """
        SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
    """
    while await values(conn, query) == [0]:
        await trio.lowlevel.checkpoint()


async def make_day(conn: Connection, day: date) -> None:
    for parent in ("events", "attempts"):
        await conn.execute("SELECT dealix.make_partition(%(parent)s, %(day)s)", {"parent": parent, "day": day})


async def old_event(conn: Connection, event_id: str = "own", day: date = OLD) -> None:
    """An event of some weeks ago, as if it had been emitted then."""
    await conn.execute(
        """
        WITH e AS (
            INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
            VALUES (%(id)s, 'acme', 'deal.won', '{}', %(day)s::date + time '12:00' AT TIME ZONE 'UTC', 1)
        )
        INSERT INTO dealix.event_keys (customer_id, event_id, event_day, matched, digest)
        VALUES ('acme', %(id)s, %(day)s, 1, '')
        """,
        {"id": event_id, "day": day},
    )


async def subscribe(conn: Connection) -> None:
    await conn.execute(
        """
        INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
        VALUES (%(id)s, 'acme', 'https://example.com/hook', '')
        """,
        {"id": SUBSCRIPTION},
    )


async def duty(
    conn: Connection, event_id: str, state: str, *, subscription: str = SUBSCRIPTION, day: date = OLD
) -> None:
    await conn.execute(
        """
        INSERT INTO dealix.deliveries (event_id, event_day, event_type, subscription_id, shard, attempt, steps,
                                       claimed, due)
        VALUES (%(event_id)s, %(day)s, 'deal.won', %(subscription)s, 0, 3, 3, %(state)s = 'claimed',
                CASE WHEN %(state)s <> 'held' THEN now() + interval '1 hour' END)
        """,
        {"event_id": event_id, "day": day, "subscription": subscription, "state": state},
    )


# ── ahead ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_partitions_reach_from_yesterday_to_the_days_asked_for_and_a_second_call_makes_none(
    conn: Connection,
) -> None:
    with trio.fail_after(LIMIT_S):
        before = await counted(conn)  # the template has some
        made = await make_ahead(conn, days=10)
        assert made >= 2 * 7
        assert await counted(conn) == before + made
        assert await has_days(conn, 9)
        assert await make_ahead(conn, days=9) == 0
        assert await values(conn, "SELECT count(*) FROM pg_constraint WHERE conname = 'day'") == [0]


async def test_ninety_days_are_made_within_seconds(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        assert await make_ahead(conn, days=90) >= 2 * 87
        assert await has_days(conn, 89)


async def test_replicas_that_make_partitions_at_once_do_not_disturb_each_other(
    any_database: str, conn: Connection
) -> None:
    made: list[int] = []

    async def replica() -> None:
        async with await session(any_database) as own:
            made.append(await make_ahead(own, days=20))

    with trio.fail_after(LIMIT_S):
        before = await counted(conn)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(replica)
        assert await counted(conn) == before + sum(made)
        assert await has_days(conn, 19)


async def test_partitions_are_made_while_an_emit_is_open_and_the_emit_goes_on(
    any_database: str, conn: Connection
) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(any_database) as emitter, emitter.transaction():
            await emit(emitter, ACME, "deal.won", "{}")
            assert await make_ahead(conn, days=5) >= 2 * 2
            await emit(emitter, ACME, "deal.won", "{}", "evt_" + "0" * 24)
        assert await values(conn, "SELECT count(*) FROM dealix.events") == [2]


async def test_who_cannot_have_the_lock_within_two_seconds_gives_up_and_says_so(
    any_database: str, conn: Connection
) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(any_database) as other, other.transaction(force_rollback=True):
            await other.execute("LOCK dealix.events IN SHARE UPDATE EXCLUSIVE MODE")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await make_ahead(conn, days=5)
        assert not await has_days(conn, 5)
        assert await make_ahead(conn, days=5) > 0
        assert await has_days(conn, 4)
        assert await values(conn, "SELECT current_setting('lock_timeout')") == ["0"]


# ── behind ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_old_days_go_with_their_ids_and_younger_ones_stay(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        for day in (OLD, CUTOFF - timedelta(days=1), CUTOFF):
            await make_day(conn, day)
            await old_event(conn, f"of-{day}", day)
        retired = await drop_before(conn, CUTOFF)
        gone = [
            f"{parent}_{day:%Y%m%d}" for parent in ("events", "attempts") for day in (OLD, CUTOFF - timedelta(days=1))
        ]
        assert sorted(retired.dropped) == sorted(gone)
        assert (retired.expired, retired.waiting, retired.keys) == (0, [], 2)
        for table in ("events", "event_keys"):
            ids = sql.SQL("SELECT {} FROM {}").format(
                sql.Identifier("id" if table == "events" else "event_id"), sql.Identifier("dealix", table)
            )
            assert await (await conn.execute(ids)).fetchall() == [(f"of-{CUTOFF}",)]
        assert (await attached(conn))[0] == f"events_{CUTOFF:%Y%m%d}"
        assert await has_days(conn, 2)
        assert await drop_before(conn, CUTOFF) == Retired()


async def test_held_and_waiting_deliveries_of_an_old_day_end_as_expired_in_the_log(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        await subscribe(conn)
        for event_id, state in (("held", "held"), ("scheduled", "scheduled")):
            await old_event(conn, event_id)
            await duty(conn, event_id, state)
        await duty(conn, "orphan", "held", subscription="whk_" + "2" * 24)
        await duty(conn, "young", "held", day=TODAY)
        retired = await drop_before(conn, CUTOFF)
        assert retired.expired == 3
        assert f"events_{OLD:%Y%m%d}" in retired.dropped
        assert await values(conn, "SELECT event_id FROM dealix.deliveries") == ["young"]
        cursor = await conn.execute("""
            SELECT event_id, outcome, success, attempt, endpoint_url, status_code, event_day,
                   id ~ '^dlv_[0-9a-f]{24}$' AND created_at > now() - interval '1 minute'
            FROM dealix.attempts
            ORDER BY event_id
        """)
        assert await cursor.fetchall() == [
            (event_id, "expired", False, 3, "https://example.com/hook", None, OLD, True)
            for event_id in ("held", "scheduled")
        ]


async def test_a_day_stays_while_a_delivery_of_it_is_under_way_or_not_fanned_out_yet(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        await make_day(conn, OLD + timedelta(days=1))
        await subscribe(conn)
        await duty(conn, "claimed", "claimed")
        await conn.execute(
            """
            INSERT INTO dealix.outbox (shard, event_id, event_day, event_type, data_bytes, subscription_ids)
            VALUES (0, 'own', %(day)s, 'deal.won', 2, '{}')
            """,
            {"day": OLD + timedelta(days=1)},
        )
        retired = await drop_before(conn, CUTOFF)
        assert retired.expired == 0
        assert retired.waiting == [f"events_{OLD:%Y%m%d}", f"events_{OLD + timedelta(days=1):%Y%m%d}"]
        await conn.execute("DELETE FROM dealix.outbox")
        await conn.execute("DELETE FROM dealix.deliveries")
        assert (await drop_before(conn, CUTOFF)).dropped == retired.waiting


async def test_thousands_of_held_deliveries_expire_in_batches(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        await subscribe(conn)
        await conn.execute(
            """
            INSERT INTO dealix.deliveries (event_id, event_day, event_type, subscription_id, shard, attempt, steps,
                                           claimed)
            SELECT 'e' || n, CASE WHEN mod(n, 4) = 0 THEN %(today)s ELSE %(old)s END::date, 'deal.won', %(id)s, 0, 0, 0,
                   false
            FROM generate_series(1, 16000) AS n
            """,
            {"today": TODAY, "old": OLD, "id": SUBSCRIPTION},
        )
        assert (await drop_before(conn, CUTOFF)).expired == 12_000
        assert await values(conn, "SELECT count(*) FROM dealix.deliveries") == [4_000]


async def test_an_open_emit_delays_the_drop_but_no_other_emit(any_database: str, conn: Connection) -> None:
    """The case for which all of this is built: a transaction that emitted stays open while a day is to go."""
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        async with await session(any_database) as lazy, await session(any_database) as busy:
            await busy.execute("SET lock_timeout = '500ms'")
            async with lazy.transaction():
                await emit(lazy, ACME, "deal.won", "{}")
                await emit(lazy, ACME, "deal.won", "{}", "evt_" + "0" * 24)  # looked through all partitions
                emitted = 0
                async with trio.open_nursery() as nursery:
                    results: list[Retired] = []

                    async def janitor() -> None:
                        results.append(await drop_before(conn, CUTOFF))

                    nursery.start_soon(janitor)
                    while not results:
                        await emit(busy, ACME, "deal.won", "{}")
                        await emit(busy, ACME, "deal.won", "{}", f"own-{emitted}")
                        await emit(busy, ACME, "deal.won", "{}", f"evt_{emitted + 1:024x}")
                        emitted += 1
                assert emitted > 10
                assert f"events_{OLD:%Y%m%d}" in results[0].waiting
            retired = await drop_before(conn, CUTOFF)
        assert f"events_{OLD:%Y%m%d}" in retired.dropped
        assert retired.waiting == []


async def test_a_detach_that_was_begun_is_finished_by_the_next_call(any_database: str, conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        await make_day(conn, OLD - timedelta(days=1))
        detach = f"ALTER TABLE dealix.events DETACH PARTITION dealix.events_{OLD:%Y%m%d} CONCURRENTLY"
        async with await session(any_database) as lazy, lazy.transaction():
            await emit(lazy, ACME, "deal.won", "{}")
            await conn.execute("SET lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await conn.execute(detach.encode())
        assert await values(conn, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [1]
        await emit(conn, ACME, "deal.won", "{}")
        await make_ahead(conn, days=4)
        retired = await drop_before(conn, CUTOFF)
        assert retired.waiting == []
        assert {f"events_{OLD:%Y%m%d}", f"events_{OLD - timedelta(days=1):%Y%m%d}"} <= set(retired.dropped)
        assert f"events_{OLD:%Y%m%d}" not in await attached(conn)
        assert await has_days(conn, 3)


async def test_a_crash_between_detach_and_drop_leaves_a_table_that_the_next_call_drops(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        await conn.execute(
            f"ALTER TABLE dealix.events DETACH PARTITION dealix.events_{OLD:%Y%m%d} CONCURRENTLY".encode()
        )
        await conn.execute("CREATE TABLE dealix.events_archive ()")  # somebody else's, and none of ours
        retired = await drop_before(conn, CUTOFF)
        assert f"events_{OLD:%Y%m%d}" in retired.dropped
        assert await values(conn, "SELECT to_regclass('dealix.events_archive') IS NOT NULL") == [True]


async def test_an_event_that_was_emitted_while_its_day_was_being_dropped_is_not_lost(
    any_database: str, conn: Connection
) -> None:
    """A transaction as old as the retention: its duty appears only after the DETACH has waited for it."""
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        await subscribe(conn)
        async with await session(any_database) as lazy:
            results: list[Retired] = []

            async def janitor() -> None:
                results.append(await drop_before(conn, CUTOFF))

            async with trio.open_nursery() as nursery, lazy.transaction():
                await old_event(lazy)
                await duty(lazy, "own", "claimed")
                nursery.start_soon(janitor)
                await somebody_waits(lazy)
        assert results[0].waiting == [f"events_{OLD:%Y%m%d}"]
        cursor = await conn.execute(f"SELECT id FROM dealix.events_{OLD:%Y%m%d}".encode())
        assert await cursor.fetchall() == [("own",)]
        await conn.execute("DELETE FROM dealix.deliveries")
        assert (await drop_before(conn, CUTOFF)).dropped == [f"events_{OLD:%Y%m%d}"]


async def test_two_replicas_do_not_drop_at_once_and_a_cancel_gives_the_turn_back(
    any_database: str, conn: Connection
) -> None:
    with trio.fail_after(LIMIT_S):
        await make_day(conn, OLD)
        async with await session(any_database) as lazy, await session(any_database) as other:
            async with lazy.transaction():
                await emit(lazy, ACME, "deal.won", "{}")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(drop_before, conn, CUTOFF))
                    await somebody_waits(other)
                    assert await drop_before(other, CUTOFF) == Retired()
                    nursery.cancel_scope.cancel()
            assert (await drop_before(other, CUTOFF)).waiting == []
        assert await values(conn, "SELECT current_setting('lock_timeout')") == ["0"]
        assert await values(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [0]


async def test_statistics_have_a_retention_of_their_own(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        for day in (OLD, TODAY):
            await conn.execute(
                "INSERT INTO dealix.daily_stats VALUES (%(day)s, 'acme', 'deal.won', 1, 0, 10, '{1}')", {"day": day}
            )
        for days_ago in (9, 7):
            await conn.execute(
                "INSERT INTO dealix.hourly_stats "
                "VALUES ('acme', now() - %(days)s * interval '1 day', %(days)s, 0, '{1}')",
                {"days": days_ago},
            )
        assert await drop_stats_before(conn, CUTOFF) == 1
        assert await values(conn, "SELECT day FROM dealix.daily_stats") == [TODAY]
        assert await values(conn, "SELECT success FROM dealix.hourly_stats") == [7]
