"""Endpoints that hang, crawl or take much: nobody else notices, and memory stays bounded."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Final

import trio

from tests.support.answers import Answer, Stream, hang, status
from tests.support.engine import Running, running_engine
from tests.support.receiver import Receiver, open_receiver

LEFT: Final = "SELECT (SELECT count(*) FROM dealix.outbox) + (SELECT count(*) FROM dealix.deliveries)"


async def p99_s(running: Running, receiver: Receiver, *, path: str, seconds: float) -> float:
    """Emit some 20 events a second to a healthy endpoint: the 99th percentile from before the emit to the arrival."""
    emitted_at: dict[str, float] = {}
    ends_at = trio.current_time() + seconds
    while (began := trio.current_time()) < ends_at:
        emitted_at[await running.emit(customer_id="healthy")] = began
        await trio.sleep_until(began + 0.05)
    requests = await receiver.wait_for(len(emitted_at), path, timeout_s=3)
    waits = sorted(r.at - emitted_at[r.headers["webhook-id"]] for r in requests)
    assert len(waits) > 15 * seconds
    return waits[int(len(waits) * 0.99)]


async def test_sixty_endpoints_that_hang_with_a_backlog_do_not_move_a_healthy_ones_p99(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery={"timeout_s": 2.0}) as running,
        ):
            receiver.answer("/hang", hang())
            await running.subscribe(receiver.url("/healthy"), customer_id="healthy")
            for n in range(60):
                await running.subscribe(receiver.url("/hang"), customer_id=f"dead{n}")
            for n in range(60):
                await running.emit_many(50, customer_id=f"dead{n}")
            await receiver.wait_for(60, "/hang")
            assert await p99_s(running, receiver, path="/healthy", seconds=3.0) < 0.5
            assert len(receiver.at("/hang")) > 120, "they were tried again meanwhile"


async def test_endpoints_that_crawl_do_not_either_and_get_what_is_theirs(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery={"max_in_flight": 40, "per_subscription": 4}) as running,
        ):
            receiver.answer("/crawl", status(200, delay_s=1.3))
            await running.subscribe(receiver.url("/healthy"), customer_id="healthy")
            for n in range(20):
                await running.subscribe(receiver.url("/crawl"), customer_id=f"slow{n}")
                await running.emit_many(3, customer_id=f"slow{n}")
            await receiver.wait_for(40, "/crawl")  # the whole of max_in_flight, until they count as slow
            assert await p99_s(running, receiver, path="/healthy", seconds=1.5) < 1.2
            await receiver.wait_for(60, "/crawl")
            await running.until(0, LEFT)


async def test_an_endpoint_that_is_slow_but_well_gets_as_many_requests_at_a_time_as_any(
    migrated_database: str,
) -> None:
    """Else one that takes 2 s could have an event every 2 s and no more, and a busy customer's would wait for ever."""
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/slow", status(200, delay_s=1.2))
            await running.subscribe(receiver.url("/slow"))
            await running.emit_many(30)
            began = trio.current_time()
            requests = await receiver.wait_for(22, "/slow", timeout_s=9)  # 2, 4 and 8, and 8 from then on
            assert requests[21].at - began > 3 * 1.2, "it was ramped up"
            assert {r.headers["dealix-delivery-attempt"] for r in requests} == {"1"}


async def test_big_payloads_of_many_subscriptions_stay_within_a_bounded_memory(migrated_database: str) -> None:
    """40 endpoints that hang with 15 events of 250 KB each: 150 MB, of which the daemon holds half at most."""
    released = trio.Event()

    async def wait(_: Stream) -> bool:
        await released.wait()
        return False

    with trio.fail_after(40):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery={"timeout_s": 60.0}) as running,
        ):
            receiver.answer_all(Answer("wait", wait))
            for n in range(40):
                await running.subscribe(receiver.url("/hook"), customer_id=f"c{n}")
            await running.rows(
                "SELECT count(*) FROM generate_series(0, 39) AS c CROSS JOIN generate_series(1, 15) AS n "
                "CROSS JOIN LATERAL "
                "dealix.emit('c' || c, 'deal.won', '{\"' || n || '\": \"' || repeat('x', 250000) || '\"}')"
            )
            tracemalloc.start()
            try:
                await running.until(0, "SELECT count(*) FROM dealix.outbox", within_s=20)
                await receiver.wait_for(40)
                held = running.engine.roster.ledger.data_bytes
                assert held < 80 * 2**20
                assert tracemalloc.get_traced_memory()[1] < 160 * 2**20
            finally:
                tracemalloc.stop()
                released.set()


# Deliveries of one subscription, as they stand after an outage: events, and a delivery for each, due or held.
WAITING: Final = """
    WITH event AS (
        INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
        SELECT 'evt_' || lpad(to_hex(floor(extract(epoch FROM now()) * 1000)::bigint), 12, '0')
                   || lpad(to_hex(i), 12, '0'),
               s.customer_id, 'deal.won', '{}', now(), 1
        FROM dealix.subscriptions s, generate_series(1, %s) AS i
        WHERE s.id = %s
        RETURNING id, customer_id, type, created_at
    )
    INSERT INTO dealix.deliveries
        (event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due)
    SELECT e.id, (e.created_at AT TIME ZONE 'UTC')::date, e.type, s.id, dealix.shard_of(s.customer_id), 0, 0, false, %s
    FROM event e JOIN dealix.subscriptions s USING (customer_id)
    RETURNING id
"""
LIST: Final = """
    INSERT INTO dealix.roster (subscription_id, shard)
    SELECT id, dealix.shard_of(customer_id) FROM dealix.subscriptions WHERE id = %s
    RETURNING 1
"""


async def test_what_somebody_holds_is_woken_while_anothers_backlog_is_laid_aside(migrated_database: str) -> None:
    due = "SELECT count(*) > 15000 FROM dealix.deliveries WHERE due IS NOT NULL"
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/hang", hang())
            dead = await running.subscribe(receiver.url("/hang"), customer_id="dead")
            healthy = await running.subscribe(receiver.url("/healthy"), customer_id="healthy")
            await running.rows(WAITING, 20_000, dead, datetime.now(UTC))
            await receiver.wait_for(1, "/hang")
            await running.rows(WAITING, 3, healthy, None)
            await running.rows(LIST, healthy)
            await receiver.wait_for(3, "/healthy", timeout_s=3)
            assert await running.rows(due) == [(True,)]
