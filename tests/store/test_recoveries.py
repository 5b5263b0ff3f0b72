"""What the janitor forgets of recoveries and test-fires, and a count that has no time."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import trio

from daemon import clock
from daemon.ids import CustomerId, SubscriptionId
from daemon.store import partitions, recoveries
from daemon.store.connection import Connection
from daemon.store.recoveries import Scope
from daemon.store.recovery_walk import Walk

HOOK: Final = SubscriptionId("whk_" + "1" * 24)
ACME: Final = CustomerId("acme")


def last_week() -> Scope:
    now = clock.now()
    return Scope(ACME, HOOK, "all", now - timedelta(days=7), now)


async def test_ended_recoveries_and_test_events_go_with_retention_and_running_ones_stay(conn: Connection) -> None:
    with trio.fail_after(20):
        kept: list[str] = []
        for days_ago in (40, 20, None):  # ended so long ago; still running
            begun = await recoveries.begin(conn, last_week(), queued=1, exact=True)
            assert begun is not None
            if days_ago is not None:
                assert await recoveries.cancel(conn, begun.id)
                ended_at = clock.now() - timedelta(days=days_ago)
                await conn.execute("UPDATE dealix.recoveries SET ended_at = %s WHERE id = %s", (ended_at, begun.id))
            if days_ago != 40:
                kept.append(begun.id)
            await conn.execute(
                "INSERT INTO dealix.test_events VALUES ('acme', %s, %s)",
                (begun.id, clock.now().date() - timedelta(days=days_ago or 0)),
            )
        await partitions.drop_before(conn, clock.now().date() - timedelta(days=30))
        found = [one.id for one in await recoveries.page(conn, ACME, subscription_id=HOOK, limit=10)]
        assert found == sorted(kept, reverse=True)
        cursor = await conn.execute("SELECT event_id FROM dealix.test_events ORDER BY 1")
        assert [row[0] for row in await cursor.fetchall()] == kept


async def test_a_count_that_runs_out_of_time_says_so(conn: Connection) -> None:
    with trio.fail_after(20):
        for n in range(3):
            await conn.execute("SELECT dealix.emit('acme', 'deal.won', %s)", (f'{{"n": {n}}}',))
        walk = Walk(last_week(), [], clock.now())
        assert await walk.count(conn, time_s=5) == (3, True)
        assert await walk.count(conn, time_s=-1) == (0, False)
