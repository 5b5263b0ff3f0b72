"""Leases are extended and taken over without a wait for rows in other hands: the session that asks holds the shards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import pytest
import trio

from daemon.ids import DeliveryId
from daemon.store import outbox, queue, shards
from daemon.store.claims import Room
from daemon.store.connection import Connection, connect

ALL: Final = frozenset(range(shards.SHARDS))
Own = Sequence[tuple[DeliveryId, int]]
PREPARE: Final = """
    WITH made AS (
        INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
        VALUES ('whk_' || repeat('1', 24), 'acme', 'https://example.com/', '\\x00') RETURNING id
    ), healthy AS (
        INSERT INTO dealix.subscription_health (subscription_id) SELECT id FROM made
    )
    SELECT 1
"""
EMIT: Final = "SELECT dealix.emit('acme', 'deal.won', '{}', notify => false) FROM generate_series(1, 5)"
DUE: Final = "SELECT id, due <= now(), due > now() + interval '100 s' FROM dealix.deliveries ORDER BY id"


async def extend(conn: Connection, own: Own) -> None:
    await queue.extend_leases(conn, own, lease_s=120)


async def recover(conn: Connection, own: Own) -> None:
    assert await shards.recover(conn, ALL, own=own[:1], lease_s=60) == 3


@pytest.mark.parametrize(
    ("act", "done"), [(extend, (False, True)), (recover, (True, False))], ids=["extended", "taken over"]
)
async def test_a_row_that_is_being_recorded_is_passed_over(
    migrated_database: str, act: Callable[[Connection, Own], Awaitable[None]], done: tuple[bool, bool]
) -> None:
    """Of two that lock rows in different orders the server ends one, and if it is this session the shards are lost."""
    with trio.fail_after(15):
        async with (
            await connect(migrated_database, timeout_s=5, application_name="test") as conn,
            await connect(migrated_database, timeout_s=5, application_name="recorder") as recorder,
        ):
            await conn.execute(PREPARE)
            await conn.execute(EMIT)
            claims = (await outbox.fan_out(conn, ALL, Room({}, 100, 60.0))).claims
            own = sorted((c.delivery_id, c.attempt) for c in claims)
            async with recorder.transaction():
                await recorder.execute("DELETE FROM dealix.deliveries WHERE id = %s", (own[-1][0],))
                with trio.fail_after(2):
                    await act(conn, own)
            rows = await (await conn.execute(DUE)).fetchall()
    moved = [key for key, *state in rows if tuple(state) == done]
    expected = [key for key, _ in own[:-1]]
    assert moved == (expected if act is extend else expected[1:])
