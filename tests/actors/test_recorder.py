"""The one writer of results: a bad row costs nobody else, and what was handed over before the end is written."""

from __future__ import annotations

from datetime import UTC, datetime

import trio
from msgspec.structs import replace

from daemon.actors.recorder import Recorder
from daemon.ids import CustomerId, EventId, SubscriptionId, new_attempt_id
from daemon.model import AttemptRecord
from daemon.store.pool import Pool
from daemon.store.sessions import HOT


def result() -> AttemptRecord:
    now = datetime.now(UTC)
    return AttemptRecord(
        action="log",
        delivery_id=None,
        attempt=1,
        wait_s=0.0,
        id=new_attempt_id(now),
        created_at=now,
        customer_id=CustomerId("acme"),
        subscription_id=SubscriptionId("whk_0123456789abcdef01234567"),
        event_id=EventId("e1"),
        event_day=now.date().isoformat(),
        event_type="deal.won",
        outcome="delivered",
        success=True,
        endpoint_url="https://example.com/",
        status_code=200,
        error=None,
        duration_ms=3,
        signature=None,
        webhook_signature=None,
        response_headers=None,
        response_body=None,
        response_truncated=False,
        gone=False,
        circuit="closed",
        cooldown_s=0.0,
        reopen_in_s=None,
    )


async def test_a_row_that_cannot_be_recorded_costs_no_other_of_its_batch_and_everybody_hears_of_theirs(
    migrated_database: str,
) -> None:
    good, bad = [result() for _ in range(20)], replace(result(), response_body="a\0b")
    heard: list[str] = []
    with trio.fail_after(10):
        pool = Pool(migrated_database, size=2, name="recorder", options=HOT)
        recorder = Recorder(pool, disable_after=20)
        recorder.on_recorded = lambda batch, _: heard.extend(r.id for r in batch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            for r in (*good[:10], bad, *good[10:]):
                await recorder.put(r)
            recorder.close()
        async with pool.connection(5) as conn:
            rows = await (await conn.execute("SELECT id FROM dealix.attempts")).fetchall()
            summed = await (await conn.execute("SELECT success, failed FROM dealix.daily_stats")).fetchall()
        await pool.aclose()
    assert {row[0] for row in rows} == {r.id for r in good}
    assert sorted(heard) == sorted([bad.id, *(r.id for r in good)])
    assert summed == [(20, 0)]


async def test_what_was_handed_over_is_written_although_everything_else_is_being_cancelled(
    migrated_database: str,
) -> None:
    results = [result() for _ in range(30)]
    with trio.fail_after(10):
        pool = Pool(migrated_database, size=2, name="recorder", options=HOT)
        recorder = Recorder(pool, disable_after=20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            async with trio.open_nursery() as senders:
                for r in results:
                    senders.start_soon(recorder.put, r)
            recorder.close()
        async with pool.connection(5) as conn:
            rows = await (await conn.execute("SELECT count(*) FROM dealix.attempts")).fetchall()
        await pool.aclose()
    assert rows == [(30,)]
