"""Somebody keeps an old snapshot, so that nothing dead goes away: looks at the outbox stay short, and miss nobody."""

from __future__ import annotations

import json
from typing import Any, Final

import psycopg
import pytest
import trio

from daemon import clock
from daemon.actors import bookmark
from daemon.store import outbox
from daemon.store.claims import Room
from daemon.store.enveloping import partition
from daemon.store.shards import shard_of
from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import open_receiver

EVENTS: Final = 4000
FEW: Final = 0.1


async def test_a_look_from_the_mark_does_not_walk_over_what_was_taken_before(migrated_database: str) -> None:
    with trio.fail_after(50), psycopg.connect(migrated_database) as old:
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200))
            await running.subscribe(receiver.url())
            old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            old.execute("SELECT count(*) FROM dealix.outbox")
            await running.emit_many(EVENTS)
            await running.until(0, "SELECT count(*) FROM dealix.outbox", within_s=30)
            ((last,),) = await running.rows("SELECT last_value FROM dealix.outbox_id_seq")
            from_the_head = await blocks(running, 0)
            from_the_mark = await blocks(running, last - 10)
            assert from_the_mark < FEW * from_the_head


async def blocks(running: Running, after: int) -> int:
    """Blocks of the shared buffers that a look at acme's shard touches."""
    values = {"shards": [shard_of("acme")], "after": [after]}
    bounds = outbox._bounds(name_events=False)
    today = clock.now().date()
    statement = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + outbox._fan_out_of(partition(today))
    async with running.pool.connection(10) as conn:
        cursor = await conn.execute(statement, values | bounds | {"today": today} | Room({}, 32, 60.0).parameters())
        ((plans,),) = await cursor.fetchall()
    plan: dict[str, Any] = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def test_an_emit_that_others_have_overtaken_is_found_however_long_it_was_open(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookmark, "LAG_S", 0.2)
    monkeypatch.setattr(bookmark, "REST", 1_000_000)
    monkeypatch.setattr(bookmark, "LONGEST_REST_S", 1.5)  # as with looks from the head that take very long
    with trio.fail_after(30), psycopg.connect(migrated_database) as slow:
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200))
            await running.subscribe(receiver.url())
            row = slow.execute("SELECT event_id FROM dealix.emit('acme', 'deal.won', '{}')").fetchone()
            assert row is not None
            for n in range(12):
                await running.emit()
                await receiver.wait_for(n + 1)
                await trio.sleep(0.1)
            slow.commit()
            at = trio.current_time()
            received = await receiver.wait_for(13)
            assert received[-1].headers["webhook-id"] == row[0]
            assert trio.current_time() - at < bookmark.LONGEST_REST_S + 1
