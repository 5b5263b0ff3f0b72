"""Disabling, enabling, deleting: by failures, by a person, by SQL; when it takes effect, and what becomes of duties."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import pytest
import trio
from stripe import WebhookSignature

from daemon.ids import SubscriptionId
from tests.support.answers import status
from tests.support.engine import OWNER, Running, running_engine
from tests.support.receiver import Receiver, open_receiver

CALM: Final = {"breaker_after": 1000, "timeout_s": 1.0}
HELD: Final = "SELECT count(*) FROM dealix.deliveries WHERE due IS NULL"
LEFT: Final = "SELECT count(*) FROM dealix.deliveries"
FAILURES: Final = "SELECT consecutive_failures FROM dealix.subscription_health"
REASON: Final = "SELECT disabled_reason FROM dealix.subscriptions"


# ── by failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_twentieth_failure_in_a_row_disables_and_an_enabling_lets_everything_go_on(any_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(any_database, delivery=CALM) as running:
            receiver.answer("/hook", *[status(500)] * 20, status(200))
            subscription_id = await running.subscribe(receiver.url("/hook"))
            await running.emit_many(30)
            await running.until("consecutive_failures", REASON)
            await running.until(10, HELD)
            assert len(receiver.received) == 20
            assert (await running.subscription(subscription_id)).consecutive_failures == 20
            await running.make_due()  # retries that come due meanwhile are held without an attempt
            await running.until(30, HELD)
            assert len(receiver.received) == 20
            found = await running.change(subscription_id, {"enabled": True})
            assert (found.consecutive_failures, found.circuit, found.disabled_reason) == (0, "closed", None)
            requests = await receiver.wait_for(50)
            numbers = sorted(r.headers["dealix-delivery-attempt"] for r in requests[20:])
            assert numbers == ["1"] * 10 + ["2"] * 20
            await running.until(0, LEFT)
            assert (await running.subscription(subscription_id)).consecutive_failures == 0


async def test_failures_before_and_after_a_restart_count_as_one_row(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver:
            receiver.answer_all(status(500))
            async with running_engine(migrated_database, delivery=CALM) as running:
                subscription_id = await running.subscribe(receiver.url())
                await running.emit_many(19)
                await running.until(19, FAILURES)
            async with running_engine(migrated_database, delivery=CALM) as running:
                assert (await running.subscription(subscription_id)).enabled
                await running.emit_many(3)
                await running.until("consecutive_failures", REASON)
                await running.until(2, HELD)
                assert len(receiver.received) == 20
                assert await running.rows(FAILURES) == [(20,)]


async def test_one_success_between_makes_it_two_rows(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=CALM) as running:
            receiver.answer("/hook", *[status(500)] * 19, status(200), *[status(500)] * 19, status(200))
            subscription_id = await running.subscribe(receiver.url("/hook"))
            for number in (19, 20, 39):
                await running.emit_many(number - len(receiver.received))
                await running.logged(number)
            found = await running.subscription(subscription_id)
            assert (found.enabled, found.consecutive_failures) == (True, 19)


async def test_a_disabling_that_is_not_recorded_yet_holds_all_the_same(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery=CALM | {"disable_after": 5}) as running,
            running.pool.connection(15) as conn,
        ):
            receiver.answer_all(status(500))
            subscription_id = await running.subscribe(receiver.url())
            async with conn.transaction():
                await conn.execute("SELECT FROM dealix.subscription_health FOR UPDATE")  # results wait for this
                await running.emit_many(9)
                await receiver.wait_for(5)
                await running.rows(
                    "SELECT pg_notify('dealix_config', %s)", subscription_id
                )  # "read again", where nothing has changed
                await running.emit_many(1)
                await trio.sleep(0.6)
                assert len(receiver.received) == 5
            await running.until("consecutive_failures", REASON)
            await running.until(5, HELD)
            assert len(receiver.received) == 5


async def test_a_success_does_not_disable_where_the_limit_was_lowered(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery=CALM | {"disable_after": 5}) as running,
        ):
            subscription_id = await running.subscribe(receiver.url())
            await running.rows("UPDATE dealix.subscription_health SET consecutive_failures = 10 RETURNING 1")
            await running.emit()
            await running.until(0, FAILURES)
            assert (await running.subscription(subscription_id)).enabled


async def test_results_that_come_in_after_a_disabling_are_logged_and_do_not_count(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=CALM) as running:
            receiver.answer_all(status(500, delay_s=0.4))
            subscription_id = await running.subscribe(receiver.url())
            await running.emit_many(2)
            await receiver.wait_for(2)
            await running.change(subscription_id, {"enabled": False})
            rows = await running.logged(2)
            assert [row.outcome for row in rows] == ["retry", "retry"]
            found = await running.subscription(subscription_id)
            assert (found.consecutive_failures, found.circuit, found.disabled_reason) == (0, "closed", "requested")


# ── by a secret that does not open ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.threat("N97-N98")
async def test_a_secret_that_does_not_open_disables_its_subscription_and_nobody_elses(migrated_database: str) -> None:
    swap = (
        "UPDATE dealix.subscriptions SET secret_sealed = (SELECT secret_sealed FROM dealix.subscriptions WHERE id = %s)"
    )
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            broken = await running.subscribe(receiver.url("/broken"))
            sound = await running.subscribe(receiver.url("/sound"))
            await running.rows(swap + " WHERE id = %s RETURNING 1", sound, broken)
            await running.emit()
            await receiver.wait_for(1, "/sound")
            await running.until("secret_unreadable", REASON + " WHERE id = %s", broken)
            await running.until(1, HELD)
            assert receiver.at("/broken") == []
            assert (await running.subscription(broken)).consecutive_failures == 0


async def test_a_previous_secret_that_does_not_open_only_costs_its_own_signature(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            _, secret = await running.subscribe_with_secret(receiver.url())
            await running.rows(
                "UPDATE dealix.subscriptions SET previous_secret_sealed = secret_sealed, "
                "previous_secret_expires_at = now() + interval '1 hour' RETURNING 1"
            )
            await running.emit()
            (request,) = await receiver.wait_for(1)
            assert request.headers["dealix-signature"].count("v1=") == 1
            assert WebhookSignature.verify_header(request.body, request.headers["dealix-signature"], secret)


# ── what becomes of duties ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_disabled_subscription_matches_nothing_and_keeps_what_it_held_over_a_restart(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver:
            async with running_engine(migrated_database, delivery=CALM) as running:
                receiver.answer("/hook", status(500), status(200))
                subscription_id = await running.subscribe(receiver.url("/hook"))
                await running.emit()
                await running.logged(1)
                await running.change(subscription_id, {"enabled": False})
                rows = await running.rows("SELECT matched FROM dealix.emit('acme', 'deal.won', '{}')")
                assert rows == [(0,)]
                await running.make_due()
                await running.until(1, HELD)
            async with running_engine(migrated_database, delivery=CALM) as running:
                await running.until(1, HELD)
                assert len(receiver.received) == 1
                await running.change(subscription_id, {"enabled": True})
                requests = await receiver.wait_for(2)
                assert requests[1].headers["dealix-delivery-attempt"] == "2"
                await running.until(0, LEFT)
                await running.until(0, "SELECT count(*) FROM dealix.roster")


async def test_an_event_that_matched_before_the_disabling_waits_for_the_enabling(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            subscription_id = await running.subscribe(receiver.url())
            async with running.pool.connection(5) as conn, conn.transaction():
                await conn.execute("SELECT dealix.emit('acme', 'deal.won', '{}', notify => false)")
                await conn.execute(
                    "UPDATE dealix.subscriptions SET enabled = false, disabled_reason = 'requested' WHERE id = %s",
                    (subscription_id,),
                )
            await running.until(1, HELD)
            assert receiver.received == []
            await running.change(subscription_id, {"enabled": True})
            (request,) = await receiver.wait_for(1)
            assert request.headers["dealix-delivery-attempt"] == "1"


async def test_deleting_discards_everything_and_the_actor_goes(migrated_database: str) -> None:
    with trio.fail_after(20):
        delivery = CALM | {"per_subscription": 1}
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=delivery) as running:
            receiver.answer("/hook", status(500), status(200, delay_s=0.3))
            subscription_id = await running.subscribe(receiver.url("/hook"))
            await running.emit()
            await running.logged(1)  # one is scheduled, of the others some are in the mailbox, the rest is held
            await running.emit_many(100)
            await receiver.wait_for(2)
            await running.delete(subscription_id)
            sent = len(receiver.received) + 2
            await running.make_due()
            await running.until(0, LEFT)
            await running.until(0, "SELECT count(*) FROM dealix.roster")
            assert len(receiver.received) <= sent
            while running.engine.roster.counts() != (0, 0):
                await trio.sleep(0.02)


# ── when it takes effect ─────────────────────────────────────────────────────────────────────────────────────────────

Act = Callable[[Running, str], Awaitable[object]]


async def by_patch(running: Running, subscription_id: str) -> None:
    await running.change(subscription_id, {"enabled": False})


async def by_sql(running: Running, subscription_id: str) -> None:
    await running.rows(
        "UPDATE dealix.subscriptions SET enabled = false, disabled_reason = 'requested' WHERE id = %s RETURNING 1",
        subscription_id,
    )


async def by_deleting(running: Running, subscription_id: str) -> None:
    await running.delete(subscription_id)


async def flood_and(act: Act, running: Running, receiver: Receiver) -> str:
    """Under a backlog that would take seconds, do `act`; nothing starts later than 1 s after it. → the subscription."""
    receiver.answer_all(status(200, delay_s=0.015))
    subscription_id = await running.subscribe(receiver.url())
    await running.emit_many(1500)
    await receiver.wait_for(20)
    await act(running, SubscriptionId(subscription_id))
    done_at = trio.current_time()
    await trio.sleep_until(done_at + 1.6)
    assert len(receiver.received) < 1500, "the backlog was too small to show anything"
    assert max(r.at for r in receiver.received) - done_at < 1.0
    return subscription_id


async def finish(running: Running, receiver: Receiver, subscription_id: str) -> None:
    """Enable again: all 1,500 have come in the end, and none of them twice."""
    receiver.answer_all(status(200))
    await running.change(subscription_id, {"enabled": True})
    await running.until(0, LEFT)
    ids = [r.headers["webhook-id"] for r in receiver.received]
    assert (len(ids), len(set(ids))) == (1500, 1500)


async def test_no_request_starts_a_second_after_a_disabling_and_nothing_is_forgotten(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await finish(running, receiver, await flood_and(by_patch, running, receiver))


async def test_no_request_starts_a_second_after_a_deletion(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await flood_and(by_deleting, running, receiver)
            await running.until(0, LEFT)


async def test_a_disabling_takes_effect_without_any_notice(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            trigger = "ALTER TABLE dealix.subscriptions {} TRIGGER changed"
            async with running.pool.connection(5) as conn:
                await conn.execute(trigger.format("DISABLE").encode())
            try:
                await flood_and(by_sql, running, receiver)
            finally:
                async with running.pool.connection(5) as conn:
                    await conn.execute(trigger.format("ENABLE").encode())


async def test_a_disabling_takes_effect_while_the_listening_session_is_killed_again_and_again(
    migrated_database: str,
) -> None:
    async def kill(running: Running) -> None:
        while True:
            await running.terminate(OWNER)
            await trio.sleep(0.25)

    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill, running)
                subscription_id = await flood_and(by_patch, running, receiver)
                nursery.cancel_scope.cancel()
            await finish(running, receiver, subscription_id)
