"""Recording results: what one statement makes of a batch, when it comes twice, and the counting of failures."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

import pytest
import trio
from msgspec.structs import replace

from daemon.errors import BatchRefused
from daemon.ids import CustomerId, DeliveryId, EventId, SubscriptionId, new_attempt_id
from daemon.model import AttemptRecord
from daemon.sealing import KeyRing
from daemon.store import subscriptions
from daemon.store.connection import Connection, connect
from daemon.store.record import record, record_again

LIMIT: Final = 5
RING: Final = KeyRing(secrets.token_bytes(32))


async def subscribe(conn: Connection, customer_id: str = "acme") -> SubscriptionId:
    made, _ = await subscriptions.create(
        conn,
        ring=RING,
        customer_id=CustomerId(customer_id),
        endpoint_url="https://example.com/hook",
        events=[],
        description=None,
    )
    return made.id


async def claimed(conn: Connection, subscription_id: SubscriptionId, event_id: str, attempt: int = 1) -> DeliveryId:
    (row,) = await rows(
        conn,
        "INSERT INTO dealix.deliveries "
        "(event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due) "
        "VALUES (%s, current_date, 'deal.won', %s, 1, %s, 0, true, now() + interval '1 min') RETURNING id",
        event_id,
        subscription_id,
        attempt,
    )
    return DeliveryId(row[0])


async def rows(conn: Connection, statement: LiteralString, *params: object) -> list[Any]:
    return await (await conn.execute(statement, params)).fetchall()


def result(
    subscription_id: SubscriptionId, *, delivery_id: DeliveryId | None = None, success: bool = False, **changes: object
) -> AttemptRecord:
    now = datetime.now(UTC)
    plain = AttemptRecord(
        action="log" if delivery_id is None else "finish" if success else "retry",
        delivery_id=delivery_id,
        attempt=1,
        wait_s=30.0,
        id=new_attempt_id(now),
        created_at=now,
        customer_id=CustomerId("acme"),
        subscription_id=subscription_id,
        event_id=EventId("e1"),
        event_day=now.date().isoformat(),
        event_type="deal.won",
        outcome="delivered" if success else "retry",
        success=success,
        endpoint_url="https://example.com/hook",
        status_code=200 if success else 500,
        error=None,
        duration_ms=7,
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
    return replace(plain, **changes)


async def counts(conn: Connection) -> tuple[int, int, int, int]:
    """Rows of the log, deliveries left, failures in a row, attempts in the statistics."""
    return (
        await rows(
            conn,
            "SELECT (SELECT count(*) FROM dealix.attempts), (SELECT count(*) FROM dealix.deliveries), "
            "(SELECT max(consecutive_failures) FROM dealix.subscription_health), "
            "(SELECT coalesce(sum(success + failed), 0)::int FROM dealix.daily_stats)",
        )
    )[0]


# ── one batch ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_finishes_reschedules_logs_counts_and_sums_up(conn: Connection) -> None:
    with trio.fail_after(10):
        one, other = await subscribe(conn), await subscribe(conn, "other")
        done = await claimed(conn, one, "e1")
        again = await claimed(conn, other, "e2")
        batch = [
            result(one, delivery_id=done, success=True),
            result(
                other,
                delivery_id=again,
                customer_id="other",
                event_id="e2",
                circuit="open",
                cooldown_s=30.0,
                reopen_in_s=31.0,
            ),
        ]
        health = await record(conn, batch, disable_after=LIMIT)
        assert [(h.subscription_id, h.consecutive_failures, h.disabled) for h in health] == [(other, 1, None)]
        assert await counts(conn) == (2, 1, 1, 2)
        assert await rows(
            conn, "SELECT id, attempt, steps, claimed, round(extract(epoch FROM due - now())) FROM dealix.deliveries"
        ) == [(again, 1, 1, False, 30)]
        assert await rows(
            conn,
            "SELECT circuit, cooldown_s, round(extract(epoch FROM reopen_at - now())) FROM dealix.subscription_health "
            "ORDER BY consecutive_failures",
        ) == [("closed", 0.0, None), ("open", 30.0, 31)]


async def test_a_result_of_another_attempt_number_touches_no_delivery_and_replaces_the_interrupted_row(
    conn: Connection,
) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        delivery_id = await claimed(conn, one, "e1", attempt=3)
        for attempt in (1, 2):
            await record(conn, [result(one, outcome="interrupted", attempt=attempt)], disable_after=LIMIT)
        late = [
            result(one, delivery_id=delivery_id, attempt=2, success=True),
            result(one, delivery_id=delivery_id, attempt=2, event_id="e2"),
        ]
        await record(conn, late, disable_after=LIMIT)
        assert await rows(conn, "SELECT attempt, claimed FROM dealix.deliveries") == [(3, True)]
        logged = "SELECT event_id, attempt, outcome FROM dealix.attempts ORDER BY event_id, attempt"
        assert await rows(conn, logged) == [("e1", 1, "interrupted"), ("e1", 2, "delivered"), ("e2", 2, "retry")]


async def test_a_late_result_and_the_row_it_replaces_change_places_at_once(conn: Connection) -> None:
    forbid = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'stays'; END $$;
        CREATE TRIGGER refuse BEFORE DELETE ON dealix.attempts FOR EACH ROW EXECUTE FUNCTION refuse();
    """
    with trio.fail_after(10):
        one = await subscribe(conn)
        taken_over = await claimed(conn, one, "e1", attempt=3)
        await record(conn, [result(one, outcome="interrupted", attempt=2)], disable_after=LIMIT)
        await conn.execute(forbid.encode())
        with pytest.raises(BatchRefused):
            await record(conn, [result(one, delivery_id=taken_over, attempt=2, success=True)], disable_after=LIMIT)
        assert await rows(conn, "SELECT attempt, outcome FROM dealix.attempts") == [(2, "interrupted")]
        await conn.execute("DROP TRIGGER refuse ON dealix.attempts")
        await record(conn, [result(one, delivery_id=taken_over, attempt=2, success=True)], disable_after=LIMIT)
        assert await rows(conn, "SELECT attempt, outcome FROM dealix.attempts") == [(2, "delivered")]


async def test_a_result_without_a_breaker_leaves_the_databases_alone(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        await record(conn, [result(one, circuit="open", cooldown_s=30.0, reopen_in_s=31.0)], disable_after=LIMIT)
        await record(conn, [result(one, circuit=None)], disable_after=LIMIT)
        assert await rows(conn, "SELECT circuit, cooldown_s, consecutive_failures FROM dealix.subscription_health") == [
            ("open", 30.0, 2)
        ]


async def test_a_row_that_the_database_does_not_take_refuses_its_batch_as_a_whole(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        with pytest.raises(BatchRefused):
            await record(conn, [result(one), result(one, response_body="a\0b")], disable_after=LIMIT)
        assert await counts(conn) == (0, 0, 0, 0)


# ── twice ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_whose_commit_took_place_is_not_recorded_again(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        batch = [result(one, delivery_id=await claimed(conn, one, "e1")), result(one)]
        await record(conn, batch, disable_after=LIMIT)
        assert await record_again(conn, batch, disable_after=LIMIT) == []
        assert await counts(conn) == (2, 1, 2, 2)


async def test_a_batch_whose_commit_did_not_take_place_is_recorded(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        batch = [result(one, delivery_id=await claimed(conn, one, "e1"), success=True)]
        assert await record_again(conn, batch, disable_after=LIMIT) == []
        assert await counts(conn) == (1, 0, 0, 1)


@pytest.mark.parametrize("commits", [True, False])
async def test_while_the_first_one_still_runs_the_second_waits_for_what_becomes_of_it(
    conn: Connection, migrated_database: str, *, commits: bool
) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        batch = [result(one), result(one)]  # without deliveries: no row lock makes them meet before the log does
        seen: list[object] = []

        async def again(second: Connection) -> None:
            seen.append(await record_again(second, batch, disable_after=LIMIT))

        async with (
            await connect(migrated_database, timeout_s=5, application_name="second") as second,
            trio.open_nursery() as nursery,
            conn.transaction(force_rollback=not commits),
        ):
            await record(conn, batch, disable_after=LIMIT)
            nursery.start_soon(again, second)
            await trio.sleep(0.1)
            assert seen == []
        assert len(seen) == 1
        assert (seen == [[]]) == commits
        assert await counts(conn) == (2, 0, 2, 2)


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def counted(results: Sequence[bool]) -> tuple[int, bool]:
    """One result after the other: failures in a row, and whether it is still enabled. Nothing counts after that."""
    failures = 0
    for success in results:
        failures = 0 if success else failures + 1
        if failures == LIMIT:
            return failures, False
    return failures, True


async def test_failures_are_counted_as_if_each_result_came_alone_however_they_are_batched(conn: Connection) -> None:
    chance = random.Random(20261124)
    with trio.fail_after(20):
        for _ in range(60):
            one = await subscribe(conn, f"c{chance.random()}")
            share = chance.choice((0.1, 0.3, 0.6))
            results = [chance.random() < share for _ in range(chance.randint(1, 16))]
            left = list(results)
            while left:
                size = chance.randint(1, 7)
                batch, left = left[:size], left[size:]
                at = datetime.now(UTC)
                await record(
                    conn,
                    [
                        result(one, success=success, created_at=at + timedelta(microseconds=n))
                        for n, success in enumerate(batch)
                    ],
                    disable_after=LIMIT,
                )
            found = await subscriptions.get(conn, one)
            assert found is not None
            assert (found.consecutive_failures, found.enabled) == counted(results), results
            assert found.disabled_reason == (None if found.enabled else "consecutive_failures")


async def test_a_lowered_limit_disables_with_the_next_failure_and_not_with_a_success(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        await record(conn, [result(one) for _ in range(10)], disable_after=100)
        await record(conn, [result(one, success=True)], disable_after=LIMIT)
        assert (await counts(conn))[2] == 0
        await record(conn, [result(one) for _ in range(10)], disable_after=100)
        (health,) = await record(conn, [result(one)], disable_after=LIMIT)
        assert (health.consecutive_failures, health.disabled) == (LIMIT, "consecutive_failures")


async def test_gone_from_an_address_that_was_changed_meanwhile_disables_nothing(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        await conn.execute(
            "UPDATE dealix.subscriptions SET endpoint_url = 'https://example.com/new' WHERE id = %s", (one,)
        )
        (health,) = await record(conn, [result(one, outcome="gone", gone=True)], disable_after=LIMIT)
        assert (health.consecutive_failures, health.disabled) == (1, None)
        assert (await rows(conn, "SELECT enabled FROM dealix.subscriptions WHERE id = %s", one)) == [(True,)]


async def test_gone_disables_whatever_the_count(conn: Connection) -> None:
    with trio.fail_after(10):
        one = await subscribe(conn)
        (health,) = await record(conn, [result(one, outcome="gone", gone=True)], disable_after=LIMIT)
        assert (health.consecutive_failures, health.disabled) == (1, "gone")
