"""One event as it is looked up, and the states that its deliveries can be in."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
import trio

from daemon import clock
from daemon.ids import CustomerId, EventId
from daemon.store import emit, events
from daemon.store.connection import Connection, connect
from daemon.store.events import Duty, EventRow, Progress
from tests.support.log import Row, make_days, write

LIMIT_S: Final = 20.0
ACME, GLOBEX = CustomerId("acme"), CustomerId("globex")
W: Final = "whk_" + "1" * 24


@pytest.fixture
async def conn(migrated_database: str) -> AsyncGenerator[Connection]:
    with trio.fail_after(LIMIT_S):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as connection:
            yield connection


async def subscribe(conn: Connection, subscription_id: str = W, customer_id: str = "acme") -> None:
    await conn.execute(
        """INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
           VALUES (%s, %s, 'https://now.example/', '')""",
        (subscription_id, customer_id),
    )
    await conn.execute("INSERT INTO dealix.subscription_health (subscription_id) VALUES (%s)", (subscription_id,))


async def emitted(conn: Connection, event_id: str | None = None, customer_id: CustomerId = ACME) -> EventRow:
    made = await emit.emit(conn, customer_id, "deal.won", '{"n": 1.0}', event_id)
    found = await events.find(conn, customer_id, made.event_id)
    assert found is not None
    return found


async def test_an_event_is_found_by_its_id_for_its_own_customer_only(conn: Connection) -> None:
    await subscribe(conn)
    for event_id in (None, "order-7", "evt_" + "a" * 24, "a", "x" * 128):
        event = await emitted(conn, event_id)
        assert (event.customer_id, event.type, event.data, event.matched) == ("acme", "deal.won", '{"n": 1.0}', 1)
        assert event_id in {None, event.id}
        assert await events.find(conn, GLOBEX, event.id) is None
        other = await emitted(conn, event_id, GLOBEX)
        assert (other.matched, other.created_at) != (event.matched, event.created_at)


async def test_an_id_of_no_event_finds_nothing(conn: Connection) -> None:
    for event_id in ("evt_" + "f" * 24, "evt_" + "0" * 24, "evt_" + "A" * 24, "evt_x", "nothing"):
        assert await events.find(conn, ACME, event_id) is None


async def test_an_event_of_the_last_half_millisecond_of_a_day_is_found_though_its_id_says_tomorrow(
    conn: Connection,
) -> None:
    midnight = datetime.combine(clock.now().date(), datetime.min.time(), UTC)
    event_id = f"evt_{int(midnight.timestamp() * 1000):012x}{'0' * 12}"
    await conn.execute(
        """INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
           VALUES (%s, 'acme', 'deal.won', '{}', %s, 0)""",
        (event_id, midnight - timedelta(microseconds=400)),
    )
    assert await events.find(conn, ACME, event_id) is not None


async def only(conn: Connection, event: EventRow) -> Duty:
    (duty,) = await events.duties(conn, event)
    return duty


async def test_a_duty_is_pending_until_it_is_claimed_and_then_in_flight(conn: Connection) -> None:
    await subscribe(conn)
    event = await emitted(conn)
    waiting = await only(conn, event)
    assert (waiting.state, waiting.attempts, waiting.endpoint_url) == ("pending", 0, "https://now.example/")
    await queue(conn, event, claimed=False, due="now()")
    assert (await only(conn, event)).state == "pending"
    await conn.execute("UPDATE dealix.deliveries SET claimed = true, attempt = 1, due = now() + interval '60 s'")
    assert ((await only(conn, event)).state, (await only(conn, event)).attempts) == ("in_flight", 1)


async def queue(conn: Connection, event: EventRow, *, claimed: bool, due: str, attempt: int = 0) -> None:
    """Put the outbox row of an event into deliveries."""
    await conn.execute("DELETE FROM dealix.outbox")
    await conn.execute(
        """INSERT INTO dealix.deliveries (event_id, event_day, event_type, subscription_id, shard, attempt, steps,
                                          claimed, due)
           VALUES (%s, %s, 'deal.won', %s, 0, %s, 0, %s, CASE %s WHEN 'now()' THEN now() WHEN 'later' THEN
                   now() + interval '5 min' END)""",
        (event.id, event.created_at.date(), W, attempt, claimed, due),
    )


ENDED: Final = [
    (("delivered",), "delivered"),
    (("retry", "delivered"), "delivered"),
    (("delivered", "failed"), "delivered"),  # a retry by hand that failed: the endpoint has the event
    (("failed",), "failed"),
    (("test_failed",), "failed"),
    (("retry", "exhausted"), "exhausted"),
    (("gone",), "gone"),
    (("retry", "expired"), "expired"),
    (("retry",), "discarded"),  # its subscription was deleted while it waited
    (("interrupted",), "discarded"),
]


async def test_a_finished_duty_is_what_its_log_says(conn: Connection) -> None:
    for outcomes, state in ENDED:
        event = await emitted(conn)
        rows = [Row(W, event.id, attempt=n + 1, outcome=outcome) for n, outcome in enumerate(outcomes)]
        made = await write(conn, [*rows, Row("whk_" + "9" * 24, event.id, "globex")])
        duty = await only(conn, event)
        assert (duty.state, duty.attempts, duty.last_attempt_id) == (state, len(outcomes), made[len(rows) - 1]), (
            outcomes
        )
        assert (duty.next_attempt_at, duty.held_by) == (None, None)


async def test_a_duty_that_waits_for_its_retry_says_until_when(conn: Connection) -> None:
    await subscribe(conn)
    event = await emitted(conn)
    await queue(conn, event, claimed=False, due="later", attempt=1)
    await write(conn, [Row(W, event.id, outcome="retry", status_code=503, error=None)])
    duty = await only(conn, event)
    assert (duty.state, duty.attempts, duty.last_status_code) == ("scheduled", 1, 503)
    assert duty.next_attempt_at is not None
    assert timedelta(minutes=4) < duty.next_attempt_at - clock.now() < timedelta(minutes=6)


async def test_a_held_duty_says_what_holds_it(conn: Connection) -> None:
    await subscribe(conn)
    event = await emitted(conn)
    await queue(conn, event, claimed=False, due="never")
    assert ((await only(conn, event)).state, (await only(conn, event)).held_by) == ("held", "backlog")
    await conn.execute("UPDATE dealix.subscription_health SET circuit = 'open', reopen_at = now()")
    assert (await only(conn, event)).held_by == "breaker"
    await conn.execute("UPDATE dealix.subscriptions SET enabled = false, disabled_reason = 'requested'")
    assert (await only(conn, event)).held_by == "disabled"


async def test_an_own_id_that_another_customer_uses_too_shows_nothing_of_theirs(conn: Connection) -> None:
    other = "whk_" + "2" * 24
    await subscribe(conn)
    await subscribe(conn, other, "globex")
    mine, theirs = await emitted(conn, "order-1"), await emitted(conn, "order-1", GLOBEX)
    assert [one.subscription_id for one in await events.duties(conn, mine)] == [W]
    assert [one.subscription_id for one in await events.duties(conn, theirs)] == [other]
    await queue(conn, mine, claimed=True, due="now()")
    await write(conn, [Row(other, "order-1", "globex")])
    assert [(one.subscription_id, one.state) for one in await events.duties(conn, mine)] == [(W, "in_flight")]
    assert [(one.subscription_id, one.state) for one in await events.duties(conn, theirs)] == [(other, "delivered")]
    since = clock.now() - timedelta(hours=1)
    assert await events.progress(conn, ACME, EventId("order-1"), since=since) == Progress(0, 0)
    assert await events.progress(conn, GLOBEX, EventId("order-1"), since=since) == Progress(1, 0)


async def test_progress_counts_each_subscription_once_and_no_interrupted_attempt(conn: Connection) -> None:
    since = clock.now() - timedelta(hours=1)
    many = ["whk_" + str(n) * 24 for n in range(4)]
    outcomes = [("retry", "delivered"), ("retry", "retry"), ("interrupted",), ("failed",)]
    await write(conn, [Row(w, "e", outcome=o) for w, made in zip(many, outcomes, strict=True) for o in made])
    assert await events.progress(conn, ACME, EventId("e"), since=since) == Progress(delivered=1, failed=2)


async def test_an_event_whose_day_retention_has_dropped_is_no_longer_found(conn: Connection) -> None:
    await make_days(conn, days_back=2)
    event = await emitted(conn, "order-1")
    await conn.execute("DELETE FROM dealix.events")
    assert await events.find(conn, ACME, event.id) is None
