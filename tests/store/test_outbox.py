"""Fan-out's choice: every customer in turn, whoever floods and however many wait; and only shards that are ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
import trio

from daemon import clock
from daemon.ids import CustomerId
from daemon.store import outbox
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection, connect
from daemon.store.enveloping import load_events
from daemon.store.shards import SHARDS, shard_of

ALL: Final = frozenset(range(SHARDS))
ROOM: Final = Room({}, 1000, 60.0)
SUBSCRIBE: Final = """
    WITH made AS (
        INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
        SELECT 'whk_' || left(md5(c), 24), c, 'https://example.com/', '\\x00' FROM unnest(%s::text[]) AS c
        RETURNING id
    )
    INSERT INTO dealix.subscription_health (subscription_id) SELECT id FROM made
"""
EMIT: Final = """
    SELECT count(*) FROM unnest(%s::text[]) AS c
    CROSS JOIN generate_series(1, %s) AS n
    CROSS JOIN LATERAL dealix.emit(c, 'deal.won', '{"n": ' || n || '}', notify => false)
"""


async def emit(conn: Connection, customers: list[str], each: int = 1) -> None:
    await conn.execute(EMIT, (customers, each))


def neighbours(count: int) -> list[str]:
    """Customers of one shard."""
    shard = shard_of(CustomerId("n0"))
    found = (f"n{n}" for n in range(100_000) if shard_of(CustomerId(f"n{n}")) == shard)
    return [next(found) for _ in range(count)]


async def test_a_customer_who_floods_a_shard_delays_nobody_else_in_it(migrated_database: str) -> None:
    flooding, other = neighbours(2)
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, ([flooding, other],))
            await emit(conn, [flooding], 3000)
            await emit(conn, [other])
            assert (await outbox.fan_out(conn, ALL, ROOM)).deep == {shard_of(CustomerId(other))}
            claimed = await outbox.fan_out_fairly(conn, ALL, ROOM)
            assert await events_of(conn, claimed) == {flooding: outbox.PER_SHARD, other: 1}


async def test_a_batch_is_shared_by_all_who_wait_and_nothing_more_is_locked(migrated_database: str) -> None:
    customers = [f"c{n}" for n in range(200)]
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, (customers,))
            await emit(conn, customers, 20)
            async with conn.transaction():
                claimed = await outbox.fan_out_fairly(conn, ALL, ROOM)
                counts = await events_of(conn, claimed)
                assert claimed.seen == outbox.MAX_DELIVERIES
                assert set(counts) == set(customers)
                assert set(counts.values()) == {outbox.MAX_DELIVERIES // len(customers)}
                async with await connect(migrated_database, timeout_s=5, application_name="beside") as beside:
                    rows = await beside.execute("SELECT FROM dealix.outbox FOR UPDATE SKIP LOCKED")
                    assert rows.rowcount == 200 * 20 - claimed.seen


async def test_more_customers_than_one_look_takes_all_get_their_turn(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_CUSTOMERS", 7)
    customers = [f"c{n}" for n in range(30)]
    taken: Counter[str] = Counter()
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, (customers,))
            await emit(conn, customers, 300)
            after, looks = outbox.START, 0
            while len(taken) < len(customers):
                claimed = await outbox.fan_out_fairly(conn, ALL, ROOM, after)
                after = claimed.resume or outbox.START
                taken += await events_of(conn, claimed)
                looks += 1
            assert looks == 5
            assert set(taken.values()) == {outbox.PER_SHARD}


async def test_the_look_passes_over_shards_of_others(migrated_database: str) -> None:
    customers = [f"c{n}" for n in range(100)]
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, (customers,))
            await emit(conn, customers)
            even = frozenset(range(0, SHARDS, 2))
            mine = {c for c in customers if shard_of(CustomerId(c)) in even}
            claimed = await outbox.fan_out_fairly(conn, even, ROOM)
            assert (set(await events_of(conn, claimed)), claimed.resume) == (mine, None)
            assert (await outbox.fan_out_fairly(conn, even, ROOM)).seen == 0
            rest = await outbox.fan_out_fairly(conn, ALL - even, ROOM)
            assert set(await events_of(conn, rest)) == set(customers) - mine


async def test_rows_from_before_customers_were_noted_go_too(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, (["acme"],))
            await emit(conn, ["acme"], 3)
            await conn.execute("UPDATE dealix.outbox SET customer_id = ''")
            assert (await outbox.fan_out_fairly(conn, ALL, ROOM)).seen == 3


@pytest.mark.parametrize("look", [outbox.fan_out, outbox.fan_out_fairly])
async def test_todays_events_come_along_with_their_claims(
    migrated_database: str, look: Callable[[Connection, frozenset[int], Room], Awaitable[Claimed]]
) -> None:
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, (["acme", "acme.one", "full"],))
            await conn.execute("UPDATE dealix.subscriptions SET customer_id = 'acme' WHERE customer_id = 'acme.one'")
            await emit(conn, ["acme"], 3)
            await emit(conn, ["full"], 2)
            full = await conn.execute("SELECT id FROM dealix.subscriptions WHERE customer_id = 'full'")
            room = Room({row[0]: 1 for row in await full.fetchall()}, 1000, 60.0)
            claimed = await look(conn, ALL, room)
            assert len(claimed.claims) == 3 * 2 + 1
            assert len(claimed.events) == 3 + 1
            wanted = sorted({(event.customer_id, event.id) for event in claimed.events})
            assert {event_id for _, event_id in wanted} == {claim.event_id for claim in claimed.claims}
            loaded = await load_events(conn, clock.now().date(), wanted)
            assert sorted(claimed.events, key=lambda e: e.id) == sorted(loaded, key=lambda e: e.id)
            assert {event.matched for event in loaded if event.customer_id == "acme"} == {2}


@pytest.mark.parametrize("look", [outbox.fan_out, outbox.fan_out_fairly])
@pytest.mark.parametrize("days", [-1, 1, 40_000])
async def test_by_another_clock_events_stay_behind_and_can_be_loaded(
    migrated_database: str,
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[Connection, frozenset[int], Room], Awaitable[Claimed]],
    days: int,
) -> None:
    with trio.fail_after(30):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute(SUBSCRIBE, (["acme"],))
            await emit(conn, ["acme"], 3)
            monkeypatch.setattr(clock, "now", lambda: datetime.now(UTC) + timedelta(days=days))
            claimed = await look(conn, ALL, ROOM)
            assert (len(claimed.claims), claimed.events) == (3, [])
            wanted = [(CustomerId("acme"), claim.event_id) for claim in claimed.claims]
            assert len(await load_events(conn, claimed.claims[0].event_day, wanted)) == 3


async def events_of(conn: Connection, claimed: Claimed) -> Counter[str]:
    """How many events of each customer were claimed."""
    ids = [claim.event_id for claim in claimed.claims]
    cursor = await conn.execute("SELECT customer_id FROM dealix.events WHERE id = ANY (%s)", (ids,))
    return Counter(row[0] for row in await cursor.fetchall())
