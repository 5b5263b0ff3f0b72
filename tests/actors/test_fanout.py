"""From the emitter's transaction to the right endpoints: what is sent at all, to whom, how soon, and how often."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio

from daemon.actors import delivery, roster
from daemon.store.connection import Connection, connect
from daemon.store.shards import BUSY_CLASS, RAW, WAKE, shard_of
from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import Receiver, open_receiver

EMIT: Final = "SELECT dealix.emit('acme', 'deal.won', %s::text)"
EMIT_MANY: Final = """
    SELECT count(*) FROM (SELECT %s::int AS n, generate_series(1, %s)) AS many
    CROSS JOIN LATERAL dealix.emit('acme', 'deal.won', json_build_object('n', n)::text)
"""
LEFT: Final = "SELECT (SELECT count(*) FROM dealix.outbox) + (SELECT count(*) FROM dealix.deliveries)"


def customers_on(shard: int) -> list[str]:
    return [name for name in (f"c{n}" for n in range(2000)) if shard_of(name) == shard]


def arrived(receiver: Receiver, path: str | None = None) -> list[object]:
    requests = receiver.received if path is None else receiver.at(path)
    return sorted(json.loads(r.body)["data"]["n"] for r in requests)


# ── transactions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.threat("N111")
async def test_what_rolls_back_is_never_sent_and_what_commits_is(any_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(any_database) as running:
            await running.subscribe(receiver.url())
            async with running.pool.connection(10) as conn:
                async with conn.transaction(force_rollback=True):
                    await conn.execute(EMIT, ('{"n": 1}',))
                    await trio.sleep(0.6)  # longer than a poll, the transaction open
                async with conn.transaction():
                    await conn.execute(EMIT, ('{"n": 2}',))
                    async with conn.transaction(force_rollback=True):
                        await conn.execute(EMIT, ('{"n": 3}',))
                    await conn.execute(EMIT, ('{"n": 4}',))
                    await trio.sleep(0.1)
                    assert receiver.received == []
            await receiver.wait_for(2)
            await running.emit({"n": 5})  # whatever else was to come has come before this
            await receiver.wait_for(3)
            await running.until(0, LEFT)
            assert arrived(receiver) == [2, 4, 5]


async def test_what_was_committed_while_no_daemon_ran_is_sent_after_the_start(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver:
            async with running_engine(migrated_database) as running:
                await running.subscribe(receiver.url())
            async with await connect(migrated_database, timeout_s=5, application_name="emitter") as conn:
                for n in range(3):
                    await conn.execute(EMIT, (f'{{"n": {n}}}',))
            assert receiver.received == []
            async with running_engine(migrated_database) as running:
                await receiver.wait_for(3)
                await running.until(0, LEFT)
            assert arrived(receiver) == [0, 1, 2]


@pytest.mark.threat("N110")
async def test_an_emit_without_a_wake_up_arrives_within_a_second(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.subscribe(receiver.url())
            await running.rows("SELECT dealix.emit('acme', 'deal.won', '{\"n\": 1}', notify => false)")
            emitted_at = trio.current_time()
            (request,) = await receiver.wait_for(1)
            assert request.at - emitted_at < 1.0


async def test_one_own_id_is_one_event_however_often_it_is_emitted(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.subscribe(receiver.url())
            for _ in range(3):
                rows = await running.rows(
                    "SELECT * FROM dealix.emit('acme', 'deal.won', '{\"n\": 1}', event_id => 'order-7')"
                )
                assert rows == [("order-7", 1)]
            await running.emit({"n": 2})
            await receiver.wait_for(2)
            await running.until(0, LEFT)
            assert arrived(receiver) == [1, 2]
            assert "order-7" in {r.headers["webhook-id"] for r in receiver.received}


# ── who gets what ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_subscription_gets_the_types_it_wants_of_its_own_customer(migrated_database: str) -> None:
    wanted = {
        "/all": [],
        "/won": ["deal.won"],
        "/lost": ["deal.lost"],
        "/both": ["deal.won", "deal.lost"],
        "/quote": ["quote.sent"],
    }
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            for path, events in wanted.items():
                await running.subscribe(receiver.url(path), events=events)
            await running.subscribe(receiver.url("/stranger"), customer_id="stranger")
            await running.emit({"n": 1}, event_type="deal.won")
            await running.emit({"n": 2}, event_type="deal.lost")
            await running.emit({"n": 3}, event_type="lead.created")
            await running.emit({"n": 4}, customer_id="stranger")
            await receiver.wait_for(8)
            await running.until(0, LEFT)
            assert {path: arrived(receiver, path) for path in [*wanted, "/stranger"]} == {
                "/all": [1, 2, 3],
                "/won": [1],
                "/lost": [2],
                "/both": [1, 2],
                "/quote": [],
                "/stranger": [4],
            }


@pytest.mark.threat("N122")
async def test_a_flood_arrives_whole_and_once_and_does_not_delay_others_of_its_shard_or_of_another(
    migrated_database: str,
) -> None:
    flooding, neighbour = customers_on(7)[:2]
    stranger = customers_on(8)[0]
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/flood", status(200, delay_s=0.01))
            await running.subscribe(receiver.url("/flood"), customer_id=flooding)
            await running.subscribe(receiver.url("/neighbour"), customer_id=neighbour)
            await running.subscribe(receiver.url("/stranger"), customer_id=stranger)
            await running.emit_many(3000, customer_id=flooding)
            for customer_id, path in ((stranger, "/stranger"), (neighbour, "/neighbour")):
                emitted_at = trio.current_time()
                await running.emit(customer_id=customer_id)
                (request,) = await receiver.wait_for(1, path)
                assert request.at - emitted_at < 0.5
            assert len(receiver.at("/flood")) < 2500, "the flood was over before the others came"
            receiver.answer("/flood", status(200))
            await running.until(0, LEFT, within_s=20)
            requests = receiver.at("/flood")
            assert Counter(r.headers["dealix-delivery-attempt"] for r in requests) == {"1": 3000}
            assert len({r.headers["webhook-id"] for r in requests}) == 3000
            await running.until(0, "SELECT count(*) FROM dealix.roster")


async def test_no_event_is_lost_between_an_actor_that_leaves_and_the_next(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LINGER_S", 0.004)
    monkeypatch.setattr(roster, "IDLE_LOOK_S", 0.002)
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.subscribe(receiver.url())
            for n in range(150):
                await running.emit({"n": n})
                await receiver.wait_for(n + 1, timeout_s=3)
                await trio.sleep(n % 10 / 1000)
            await running.until(0, LEFT)
            assert arrived(receiver) == list(range(150))
            assert {r.headers["dealix-delivery-attempt"] for r in receiver.received} == {"1"}


@pytest.mark.threat("N114")
async def test_equal_events_of_one_transaction_are_as_many_although_their_wake_ups_are_one(
    migrated_database: str,
) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.subscribe(receiver.url())
            async with running.pool.connection(5) as conn, conn.transaction():
                for _ in range(3):
                    await conn.execute(EMIT, ('{"n": 1}',))
            await receiver.wait_for(3)
            await running.until(0, LEFT)
            assert arrived(receiver) == [1, 1, 1]
            assert len({r.headers["dealix-event-id"] for r in receiver.received}) == 3


# ── wake-ups ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def rung(url: str, **delivery: int) -> AsyncGenerator[tuple[Receiver, Running, Connection, Connection]]:
    """A receiver, an engine, a session that hears every wake-up beside it, and one to emit on."""
    async with (
        open_receiver() as receiver,
        running_engine(url, delivery=delivery) as running,
        await connect(url, timeout_s=5, application_name="listener") as listener,
        await connect(url, timeout_s=5, application_name="emitter") as emitter,
    ):
        await listener.execute(f"LISTEN {WAKE}")
        yield receiver, running, listener, emitter


async def test_work_makes_an_owner_busy_and_an_idle_one_is_woken_again(migrated_database: str) -> None:
    busy = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s AND granted"
    with trio.fail_after(20):
        async with rung(migrated_database) as (receiver, running, listener, emitter):
            await running.subscribe(receiver.url())
            emitted = 0
            was_busy = False
            while not was_busy:
                async with emitter.transaction():
                    for _ in range(100):
                        await emitter.execute(EMIT, (f'{{"n": {emitted}}}',))
                        emitted += 1
                await trio.sleep(0.02)
                was_busy = (await running.rows(busy, BUSY_CLASS))[0][0] > 0
            # That no emit rings while the lock is held is under test where emit is.
            await receiver.wait_for(emitted)
            await running.until(0, busy, BUSY_CLASS)
            await listener.next_notifies(0.05)
            await running.emit({"n": emitted})
            assert [n.payload for n in await listener.next_notifies(2)] == [str(shard_of("acme"))]


async def test_a_steady_flow_that_is_borne_with_ease_rings_seldom(migrated_database: str) -> None:
    """Each look finds a little and the next one nothing, on and on; and commits that ring wait for each other."""
    with trio.fail_after(30):
        async with rung(migrated_database) as (receiver, running, listener, emitter):
            await running.subscribe(receiver.url())
            commits, many = 100, 30
            for n in range(commits):
                await emitter.execute(EMIT_MANY, (n, many))
                await trio.sleep(0.01)
            await receiver.wait_for(many * commits)
            assert len(await listener.next_notifies(0.05)) < commits // 4


async def test_an_owner_that_has_to_wait_for_room_is_not_rung_meanwhile(migrated_database: str) -> None:
    """With all places taken it cannot look, for seconds: that is not idleness, and a ring would not help it."""
    with trio.fail_after(30):
        async with rung(migrated_database, max_in_flight=8) as (receiver, running, listener, emitter):
            for n in range(40):
                receiver.answer(f"/{n}", status(200, delay_s=0.2))
                await running.subscribe(receiver.url(f"/{n}"))
            for n in range(5):
                await emitter.execute(EMIT, (f'{{"n": {n}}}',))
            await receiver.wait_for(20)
            await listener.next_notifies(0.05)
            commits = 100
            for n in range(commits):
                await emitter.execute(EMIT, (f'{{"n": {n}}}',))
                await trio.sleep(0.01)
            assert len(await listener.next_notifies(0.05)) < commits // 4


# ── raw NOTIFY ───────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD: Final = '{{"customer_id":"acme","event_type":"deal.won","payload":{{"n":{}}}}}'
MALFORMED: Final = [
    "",
    "not json",
    "[1, 2]",
    '"text"',
    '{"customer_id":"acme","event_type":"deal.won"}',
    '{"customer_id":"acme","event_type":"deal.won","payload":{},"extra":1}',
    '{"customer_id":7,"event_type":"deal.won","payload":{}}',
    '{"customer_id":"a b","event_type":"deal.won","payload":{}}',
    '{"customer_id":"acme","event_type":"no.such_type","payload":{}}',
    '{"customer_id":"acme","event_type":"deal.won","payload":[]}',
    '{"customer_id":"acme","event_type":"deal.won","payload":{"n":NaN}}',
    '{"customer_id":"acme","event_type":"deal.won","payload":{},"event_id":"a b"}',
    '{"customer_id":"acme\\u0000","event_type":"deal.won","payload":{}}',
    '{"customer_id":"acme","event_type":"deal.won\\u0000","payload":{}}',
    '{"customer_id":"acme","event_type":"deal.won","payload":{"n":"\\u0000"}}',
    '{"customer_id":"acme","event_type":"deal.won","payload":{"n":"\\ud800"}}',
    '{"customer_id":"\\ud800","event_type":"deal.won","payload":{}}',
    '{"customer_id":"acme","event_type":"deal.won","payload":' + '{"n":' * 1500,
    "[" * 7999,
    "x" * 7999,
]


async def notify(running: Running, *payloads: str) -> None:
    """All in one transaction, so that they come together."""
    async with running.pool.connection(5) as conn, conn.transaction():
        for payload in payloads:
            await conn.execute("SELECT pg_notify(%s, %s)", (RAW, payload))


@pytest.mark.threat("N108")
async def test_raw_notifies_are_events_and_malformed_ones_harm_nobody(any_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(any_database) as running:
            await running.subscribe(receiver.url())
            shuffled = [p for n, bad in enumerate(MALFORMED) for p in (GOOD.format(n), bad)]
            await notify(running, *shuffled)
            await receiver.wait_for(len(MALFORMED))
            await notify(running, GOOD.format(900))
            await receiver.wait_for(len(MALFORMED) + 1)
            await running.until(0, LEFT)
            assert arrived(receiver) == [*range(len(MALFORMED)), 900]
            assert running.engine.observer.counts.raw_refused == len(MALFORMED)
            assert running.engine.ownership.listening
            assert await running.count("events") == len(MALFORMED) + 1


@pytest.mark.threat("N110")
async def test_raw_notifies_are_not_heard_where_they_are_switched_off(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, intake={"raw_notify": False}) as running,
        ):
            await running.subscribe(receiver.url())
            await notify(running, GOOD.format(1))
            await running.emit({"n": 2})
            await receiver.wait_for(1)
            await running.until(0, LEFT)
            assert await running.count("events") == 1
            assert arrived(receiver) == [2]


async def test_of_two_daemons_one_takes_a_raw_notify(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database) as one,
            running_engine(migrated_database) as two,
        ):
            await one.share(32)
            await two.share(32)
            for n in range(20):
                await one.subscribe(receiver.url(), customer_id=f"c{n}")
            await notify(one, *(GOOD.format(n).replace("acme", f"c{n}") for n in range(20)))
            await receiver.wait_for(20)
            await one.until(0, LEFT)
            assert arrived(receiver) == list(range(20))
