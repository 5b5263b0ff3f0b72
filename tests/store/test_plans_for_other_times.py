"""The delivery path on plans that were made when its tables were empty, and then met thousands of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
import trio
from psycopg import AsyncCursor
from psycopg.abc import Params, QueryNoTemplate
from psycopg.rows import TupleRow

from daemon.ids import DeliveryId, SubscriptionId
from daemon.model import AttemptRecord, Claim
from daemon.store import outbox, queue, record, shards
from daemon.store.claims import Room
from daemon.store.connection import Connection, connect
from daemon.store.sessions import HOT
from daemon.store.shards import SHARDS
from tests.store.test_recording import result

ALL: Final = frozenset(range(SHARDS))
CUSTOMERS: Final = 50
EVENTS: Final = 3000
BATCH: Final = 1000
"""The largest batch of each statement here."""

STILL: Final = """
    ALTER TABLE dealix.outbox SET (autovacuum_enabled = false);
    ALTER TABLE dealix.deliveries SET (autovacuum_enabled = false);
    ALTER TABLE dealix.subscriptions SET (autovacuum_enabled = false);
    ALTER TABLE dealix.subscription_health SET (autovacuum_enabled = false);
    ANALYZE dealix.outbox, dealix.deliveries, dealix.subscriptions, dealix.subscription_health
"""
FILL: Final = """
    WITH made AS (
        INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
        SELECT 'whk_' || lpad(to_hex(n), 24, '0'), 'c' || n, 'https://example.com/', '\\x00'
        FROM generate_series(1, 1000) AS n
        RETURNING id
    )
    INSERT INTO dealix.subscription_health (subscription_id) SELECT id FROM made
"""
EMIT: Final = """
    SELECT count(*) FROM generate_series(1, %s) AS n
    CROSS JOIN LATERAL dealix.emit('c' || (n %% %s + 1), 'deal.won', '{"n": ' || n || '}', notify => false)
"""

# Autovacuum looks when the last rows are about to go: hardly a row a page, and an index costs what all its pages do.
FLOODED: Final = """
    DELETE FROM dealix.outbox WHERE id < (SELECT max(id) FROM dealix.outbox) - 1;
    VACUUM ANALYZE dealix.outbox;
    DELETE FROM dealix.outbox
"""


class Watched:
    """Explains what a session executes, and then does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[dict[str, Any]] = []
        plain = Connection.execute

        async def execute(
            conn: Connection, query: QueryNoTemplate, params: Params | None = None, **options: bool
        ) -> AsyncCursor[TupleRow]:
            text = query.decode() if isinstance(query, bytes) else str(query)
            if text.lstrip().startswith(("WITH", "UPDATE", "SELECT known")):
                async with conn.transaction(force_rollback=True):
                    explain = f"EXPLAIN (ANALYZE, TIMING off, FORMAT JSON) {text}".encode()
                    cursor = await plain(conn, explain, params, prepare=True)
                    row = await cursor.fetchone()
                    assert row is not None
                    self.plans.append(row[0][0]["Plan"])
            return await plain(conn, query, params, **options)

        monkeypatch.setattr(Connection, "execute", execute)

    def dearest(self) -> int:
        """The most rows that any node of the plans since the last call read or compared."""
        assert self.plans
        worst = max(cost(node) for plan in self.plans for node in nodes(plan))
        self.plans.clear()
        return worst


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def cost(node: dict[str, Any]) -> int:
    removed = node.get("Rows Removed by Join Filter", 0) + node.get("Rows Removed by Filter", 0)
    return round((node["Actual Rows"] + removed) * node["Actual Loops"])


@pytest.mark.parametrize("before", ["always empty", "a flood went through"])
async def test_each_reads_about_as_many_rows_as_its_batch_has(
    any_database: str, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    options = HOT | {"plan_cache_mode": "force_generic_plan"}
    with trio.fail_after(60):
        async with await connect(any_database, timeout_s=5, application_name="test", options=options) as conn:
            for statement in STILL.split(";"):
                await conn.execute(statement.encode())
            await conn.execute(FILL)
            if before == "a flood went through":
                await conn.execute(EMIT, (EVENTS, CUSTOMERS))
                for statement in FLOODED.split(";"):
                    await conn.execute(statement.encode())
            await conn.execute(EMIT, (EVENTS, CUSTOMERS))
            watched = Watched(monkeypatch)
            full = {SubscriptionId(f"whk_{n:024x}"): 60 for n in range(1, 1001)}

            first = await outbox.fan_out(conn, ALL, Room(full, 60, 60.0))
            assert (first.seen, len(first.claims)) == (BATCH, BATCH)
            assert watched.dearest() <= 3 * BATCH

            claimed = await outbox.fan_out_fairly(conn, ALL, Room(full, 60, 60.0))
            assert (claimed.seen, len(claimed.claims)) == (BATCH, BATCH)
            assert watched.dearest() <= 3 * BATCH
            await conn.execute(
                "DELETE FROM dealix.deliveries WHERE id = ANY (%s)", ([c.delivery_id for c in first.claims],)
            )

            await queue.extend_leases(conn, [(c.delivery_id, c.attempt) for c in claimed.claims], lease_s=60)
            assert watched.dearest() <= 3 * BATCH

            done = [finished(claim, success=n % 2 == 0) for n, claim in enumerate(claimed.claims[:500])]
            await record.record(conn, done, disable_after=1000)
            assert watched.dearest() <= 3 * BATCH
            assert await count(conn, "claimed") == 500

            await queue.give_back(conn, [(claim, n % 2 == 0) for n, claim in enumerate(claimed.claims[500:])])
            assert watched.dearest() <= 3 * BATCH
            assert (await count(conn, "claimed"), await count(conn, "due IS NULL")) == (0, 250)

            await conn.execute("UPDATE dealix.deliveries SET due = now() - interval '1 s' WHERE due IS NOT NULL")
            watched.plans.clear()
            due = await queue.claim_due(conn, ALL, Room(full, 60, 60.0))
            assert 450 <= due.seen == len(due.claims) <= 500
            assert watched.dearest() <= 3 * BATCH

            held = await queue.claim_held(conn, SubscriptionId(f"whk_{1:024x}"), limit=16, lease_s=60)
            assert {claim.version for claim in held} <= {1}
            assert watched.dearest() <= 3 * BATCH

            assert await shards.changed(conn, dict.fromkeys(full, 1)) == []
            assert watched.dearest() <= 3 * BATCH


def finished(claim: Claim, *, success: bool) -> AttemptRecord:
    """What the recorder writes of a claim that was sent, or is to be tried again."""
    made = result(claim.subscription_id, delivery_id=DeliveryId(claim.delivery_id), success=success)
    return msgspec.structs.replace(made, attempt=claim.attempt, event_id=claim.event_id)


async def count(conn: Connection, condition: str) -> int:
    cursor = await conn.execute(f"SELECT count(*) FROM dealix.deliveries WHERE {condition}".encode())
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
