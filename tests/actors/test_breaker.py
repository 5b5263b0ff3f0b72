"""The circuit breaker at work: it opens, holds without spending attempts, probes once, and lets go."""

from __future__ import annotations

from typing import Final

import trio

from daemon.ids import SubscriptionId
from tests.support.answers import hang, status
from tests.support.engine import Running, running_engine
from tests.support.receiver import open_receiver

QUICK: Final = {"breaker_cooldown_s": 0.3, "timeout_s": 1.0, "disable_after": 100}
CIRCUIT: Final = "SELECT circuit FROM dealix.subscription_health"
HELD: Final = "SELECT count(*) FROM dealix.deliveries WHERE due IS NULL"


async def states(running: Running) -> list[tuple[int, int, str]]:
    """(attempt, steps, state) of every delivery, sorted."""
    rows = await running.rows(
        "SELECT attempt, steps, CASE WHEN due IS NULL THEN 'held' WHEN claimed THEN 'claimed' ELSE 'scheduled' END "
        "FROM dealix.deliveries"
    )
    return sorted(rows)


async def test_it_opens_at_the_fifth_failure_probes_once_doubles_and_drains_what_it_held(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=QUICK) as running:
            receiver.answer("/hook", *[status(500)] * 5, status(500, delay_s=0.4), status(200))
            subscription_id = await running.subscribe(receiver.url("/hook"))
            await running.emit_many(10)
            await receiver.wait_for(5)
            await running.until("open", CIRCUIT)
            await running.until(5, HELD)
            assert await states(running) == [(0, 0, "held")] * 5 + [(1, 1, "scheduled")] * 5
            assert (await running.subscription(subscription_id)).consecutive_failures == 5
            requests = await receiver.wait_for(10)
            opened_at, probed_at, again_at = (requests[n].at for n in (4, 5, 6))
            assert probed_at - opened_at >= 0.3
            assert again_at - probed_at >= 0.4 + 0.6  # its answer came late, and the cool-down had doubled
            assert len(receiver.received) == 10
            assert {r.headers["dealix-delivery-attempt"] for r in requests} == {"1"}
            await running.until("closed", CIRCUIT)
            await running.until(0, HELD)
            assert (await running.subscription(subscription_id)).consecutive_failures == 0
            await running.make_due()
            requests = await receiver.wait_for(16)
            assert [r.headers["dealix-delivery-attempt"] for r in requests[10:]] == ["2"] * 6
            await running.until(0, "SELECT count(*) FROM dealix.deliveries")


async def test_the_log_and_the_api_see_an_open_breaker_as_half_open_once_its_cool_down_is_over(
    migrated_database: str,
) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery=QUICK | {"breaker_after": 1}) as running,
        ):
            receiver.answer_all(status(500))
            subscription_id = await running.subscribe(receiver.url())
            await running.emit()
            await running.until("open", CIRCUIT)
            assert (await running.subscription(subscription_id)).circuit == "open"
            await running.until(True, "SELECT reopen_at <= now() FROM dealix.subscription_health")
            assert (await running.subscription(subscription_id)).circuit == "half_open"


async def test_retry_after_is_the_cool_down_where_it_is_longer(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery=QUICK | {"breaker_after": 2}) as running,
        ):
            receiver.answer("/hook", *[status(429, headers={"Retry-After": "1"})] * 2, status(200))
            await running.subscribe(receiver.url("/hook"))
            await running.emit_many(4)
            requests = await receiver.wait_for(4)
            assert requests[2].at - requests[1].at >= 1.0


async def test_the_breaker_is_found_again_after_a_restart(migrated_database: str) -> None:
    with trio.fail_after(20):
        delivery = QUICK | {"breaker_after": 2, "breaker_cooldown_s": 1.0}
        async with open_receiver() as receiver:
            receiver.answer("/hook", status(500), status(500), status(200))
            async with running_engine(migrated_database, delivery=delivery) as running:
                await running.subscribe(receiver.url("/hook"))
                await running.emit_many(6)
                await running.until(4, HELD)
            async with running_engine(migrated_database, delivery=delivery) as running:
                requests = await receiver.wait_for(6)
                assert requests[2].at - requests[1].at >= 1.0
                assert {r.headers["dealix-delivery-attempt"] for r in requests} == {"1"}
                await running.until("closed", CIRCUIT)


async def test_a_change_of_the_subscription_does_not_undo_what_is_not_recorded_yet(migrated_database: str) -> None:
    """The database still says "closed, no failures" while the results wait for a lock."""
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery=QUICK | {"breaker_cooldown_s": 60.0}) as running,
            running.pool.connection(15) as conn,
        ):
            receiver.answer_all(status(500))
            subscription_id = await running.subscribe(receiver.url())
            async with conn.transaction():
                await conn.execute("SELECT FROM dealix.subscription_health FOR UPDATE")
                await running.emit_many(10)
                await receiver.wait_for(5)
                await running.change(SubscriptionId(subscription_id), {"description": "still the same endpoint"})
                await trio.sleep(0.8)  # two checks: it has read the new version by now
                assert len(receiver.received) == 5
            await running.until("open", CIRCUIT)
            await running.until(5, HELD)
            assert len(receiver.received) == 5
            assert (await running.subscription(subscription_id)).consecutive_failures == 5


async def test_a_test_fire_passes_an_open_breaker_and_its_success_closes_it(migrated_database: str) -> None:
    with trio.fail_after(20):
        delivery = QUICK | {"breaker_after": 2, "breaker_cooldown_s": 60.0}
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=delivery) as running:
            receiver.answer("/hook", status(500), status(500), status(503), status(200))
            subscription_id = SubscriptionId(await running.subscribe(receiver.url("/hook")))
            await running.emit_many(5)
            await running.until(3, HELD)
            failed = await running.engine.test_fire.fire(subscription_id, "lead.created")
            assert failed is not None
            assert (failed.status_code, failed.success) == (503, False)
            found = await running.subscription(subscription_id)
            assert (found.circuit, found.consecutive_failures) == ("open", 3)
            fired = await running.engine.test_fire.fire(subscription_id, "lead.created")
            assert fired is not None
            assert fired.success
            await receiver.wait_for(7)
            await running.until(0, HELD)
            found = await running.subscription(subscription_id)
            assert (found.circuit, found.consecutive_failures) == ("closed", 0)


async def test_a_test_fire_that_fails_late_leaves_a_breaker_alone_that_opened_meanwhile(migrated_database: str) -> None:
    with trio.fail_after(20):
        delivery = QUICK | {"breaker_after": 2, "breaker_cooldown_s": 60.0}
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=delivery) as running:
            receiver.answer("/hook", hang(), status(500))
            subscription_id = SubscriptionId(await running.subscribe(receiver.url("/hook")))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.engine.test_fire.fire, subscription_id, "lead.created")
                await receiver.wait_for(1)
                await running.emit_many(4)
                await running.until("open", CIRCUIT)
            found = await running.subscription(subscription_id)
            assert (found.circuit, found.consecutive_failures) == ("open", 3)
            await running.until(2, HELD)
            assert len(receiver.received) == 3
