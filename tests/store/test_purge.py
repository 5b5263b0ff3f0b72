"""Purging a customer leaves no row of it in any table, and every row of everybody else."""

from __future__ import annotations

import secrets
from typing import Any, Final

import pytest
import trio

from daemon.ids import CustomerId, SubscriptionId
from daemon.sealing import KeyRing
from daemon.store import api_keys, listening, purge, subscriptions
from daemon.store.connection import Connection, connect
from daemon.store.purge import BY_CUSTOMER, FIRST, INDIRECT, Purge
from tests.support.log import Row, write

LIMIT_S: Final = 40.0
RING: Final = KeyRing(secrets.token_bytes(32))
NOBODYS: Final = {"event_types", "event_type_details", "schema_migrations"}
"""Tables without a customer."""


async def rows(conn: Connection, statement: str, *params: object) -> list[Any]:
    cursor = await conn.execute(statement, params)  # type: ignore[arg-type]
    return await cursor.fetchall()


async def tables(conn: Connection) -> list[str]:
    found = await rows(
        conn,
        "SELECT relname FROM pg_class WHERE relnamespace = 'dealix'::regnamespace AND relkind IN ('r', 'p') "
        "AND NOT relispartition ORDER BY 1",
    )
    return [name for (name,) in found]


async def fill(conn: Connection, customer_id: CustomerId) -> list[SubscriptionId]:
    """Something in every table that knows customers; the ids of the subscriptions."""
    made: list[SubscriptionId] = []
    for _ in range(2):
        subscription, _ = await subscriptions.create(
            conn, ring=RING, customer_id=customer_id, endpoint_url="https://example.com/", events=[], description=None
        )
        made.append(subscription.id)
    await api_keys.create(conn, customer_id)
    await listening.begin(conn, customer_id)
    for number in range(3):
        await rows(
            conn, "SELECT * FROM dealix.emit(%s, 'deal.won', '{}', event_id => %s)", customer_id, f"order-{number}"
        )
    await conn.execute(
        "INSERT INTO dealix.deliveries "
        "(event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due) "
        "SELECT event_id, event_day, event_type, unnest(subscription_ids), shard, 1, 0, false, "
        "CASE WHEN event_id <> 'order-1' THEN now() + interval '1 hour' END "
        "FROM dealix.outbox WHERE shard = dealix.shard_of(%s) AND event_id <> 'order-2' "
        "ON CONFLICT DO NOTHING",
        [customer_id],
    )
    await conn.execute(
        "INSERT INTO dealix.roster (subscription_id, shard) SELECT unnest(%s::text[]), dealix.shard_of(%s)",
        [made, customer_id],
    )
    await write(conn, [Row(made[0], "order-0", customer_id=customer_id, outcome="failed") for _ in range(4)])
    await conn.execute(
        "INSERT INTO dealix.daily_stats VALUES (current_date, %s, 'deal.won', 1, 2, 3, '{1}')", [customer_id]
    )
    await conn.execute(
        "INSERT INTO dealix.recoveries "
        "(id, customer_id, subscription_id, shard, kind, since, until, queued, exact, day) "
        "VALUES (%s, %s, %s, dealix.shard_of(%s), 'all', now(), now(), 0, false, current_date)",
        ["rec_" + secrets.token_hex(12), customer_id, made[0], customer_id],
    )
    await conn.execute("INSERT INTO dealix.test_events VALUES (%s, 'evt_x', current_date)", [customer_id])
    await conn.execute("INSERT INTO dealix.endpoint_alerts VALUES (%s)", [made[1]])
    link = "plk_" + secrets.token_hex(12)
    await conn.execute(
        "INSERT INTO dealix.portal_links (id, digest, customer_id, expires_at) VALUES (%s, %s, %s, now())",
        [link, secrets.token_bytes(32), customer_id],
    )
    await conn.execute(
        "INSERT INTO dealix.portal_sessions (digest, link_id, expires_at) VALUES (%s, %s, now())",
        [secrets.token_bytes(32), link],
    )
    await conn.execute("INSERT INTO dealix.hourly_stats VALUES (%s, now(), 1, 2, '{1}')", [customer_id])
    return made


async def contents(conn: Connection) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    return {
        table: [text for (text,) in await rows(conn, f"SELECT t::text FROM dealix.{table} t ORDER BY 1")]
        for table in await tables(conn)
    }


async def test_every_table_is_named_and_those_with_a_customer_are_emptied_by_it(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        named = {*FIRST, *BY_CUSTOMER, *INDIRECT}
        assert set(await tables(conn)) == named | NOBODYS
        with_customer = await rows(
            conn,
            "SELECT table_name FROM information_schema.columns "
            "WHERE table_schema = 'dealix' AND column_name = 'customer_id' AND table_name !~ '[0-9]{8}$'",
        )
        assert {name for (name,) in with_customer} == {*FIRST, *BY_CUSTOMER, "subscriptions", "outbox"}


async def test_a_table_of_the_applications_own_is_left_alone(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        await conn.execute("CREATE TABLE dealix.invoices AS SELECT 'acme'::text AS customer_id")
        await fill(conn, CustomerId("acme"))
        counts = await Purge(conn, CustomerId("acme"), patience_s=1).run()
        assert "invoices" not in counts
        assert await rows(conn, "SELECT customer_id FROM dealix.invoices") == [("acme",)]


async def test_no_row_of_the_customer_is_left_and_none_of_another_is_gone(conn: Connection) -> None:
    acme, globex = CustomerId("acme"), CustomerId("acme2")  # one is the beginning of the other
    with trio.fail_after(LIMIT_S):
        untouched = await fill(conn, globex)
        others = await contents(conn)
        made = await fill(conn, acme)
        filled = await contents(conn)
        grown = {table for table in filled if len(filled[table]) > len(others[table])}
        assert grown == set(filled) - NOBODYS, "a table that the test does not fill"
        counts = await Purge(conn, acme, patience_s=1).run()
        left = await contents(conn)
        assert left == others
        for text in (text for texts in left.values() for text in texts):
            assert not any(one in text for one in made)
        assert counts["deliveries"] == len(filled["deliveries"]) - len(others["deliveries"]) > 0
        assert {name: counts[name] for name in ("subscriptions", "events", "event_keys", "outbox", "attempts")} == {
            "subscriptions": 2,
            "events": 3,
            "event_keys": 3,
            "outbox": 3,
            "attempts": 4,
        }
        assert await Purge(conn, acme, patience_s=1).run() == {}
        assert len(untouched) == 2


class Broken(Exception):
    """A purge ends here."""


def break_after(conn: Connection, statements: int) -> None:
    """Let the session's statement after so many fail before it is sent."""
    execute, left = conn.execute, statements

    async def counted(*words: Any, **more: Any) -> Any:  # noqa: ANN401 - passed on as it comes
        nonlocal left
        left -= 1
        if left < 0:
            raise Broken
        return await execute(*words, **more)

    conn.execute = counted


async def test_a_purge_that_is_broken_off_anywhere_is_finished_by_the_next(
    conn: Connection, migrated_database: str
) -> None:
    acme, broken = CustomerId("acme"), 0
    with trio.fail_after(LIMIT_S):
        before = await contents(conn)
        await fill(conn, acme)
        full = await contents(conn)
        done = False
        while not done:
            async with await connect(migrated_database, timeout_s=5, application_name="purge") as other:
                break_after(other, broken + 1)
                try:
                    await Purge(other, acme, patience_s=1).run()
                    done = True
                except Broken:
                    broken += 1
        assert broken > 10
        assert await contents(conn) == before != full


async def test_a_batch_is_small_and_a_hundred_of_them_go_too(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "BATCH", 7)
    acme = CustomerId("acme")
    with trio.fail_after(LIMIT_S):
        await fill(conn, acme)
        await rows(
            conn,
            "SELECT e.* FROM generate_series(1, 700) n "
            "CROSS JOIN LATERAL dealix.emit('acme', 'deal.won', '{\"n\": ' || n || '}') e",
        )
        counts = await Purge(conn, acme, patience_s=1).run()
        assert (counts["events"], counts["outbox"]) == (703, 703)


async def test_a_partition_that_retention_drops_meanwhile_is_no_error(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            await connect(migrated_database, timeout_s=5, application_name="purge") as one,
            await connect(migrated_database, timeout_s=5, application_name="retention") as two,
        ):
            await fill(one, CustomerId("acme"))
            job = Purge(one, CustomerId("acme"), patience_s=1)
            ((day,),) = await rows(two, "SELECT max(c.relname) FROM pg_class c WHERE c.relname ~ '^events_[0-9]{8}$'")
            await two.execute(f"DROP TABLE dealix.{day}")  # type: ignore[arg-type]
            await job._empty("events", day)
            assert job._counts == {}
