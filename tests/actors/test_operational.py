"""Operational events: what customers are told of their own endpoints, who gets it, and that it goes in no circles."""

from __future__ import annotations

import json
from typing import Any, Final

import trio

from daemon.ids import SubscriptionId
from daemon.policy.operational import LEVELS, TYPES
from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import Receiver, open_receiver

CALM: Final = {"breaker_after": 1000}
"""No breaker: what is looked at is the counter."""
TEN: Final = CALM | {"disable_after": 10}


def told(receiver: Receiver, path: str = "/ops") -> list[tuple[str, dict[str, Any]]]:
    """What came there: types and payloads, in the order in which it was told."""
    bodies = sorted((json.loads(r.body) for r in receiver.at(path)), key=lambda body: body["id"])
    return [(body["type"], body["data"]) for body in bodies]


async def fail(running: Running, times: int) -> None:
    """So many failures, one after the other."""
    ended = "SELECT count(*) FROM dealix.attempts WHERE event_type = 'deal.won' AND NOT success"
    for n in range(1, times + 1):
        await running.emit()
        await running.until(n, ended)


async def test_the_way_to_a_disabling_and_back_is_told_by_levels_once_each(any_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(any_database, delivery=TEN) as running:
            receiver.answer("/hook", *[status(500)] * 10, status(200))
            hook = await running.subscribe(receiver.url("/hook"), events=["deal.won"])
            await running.subscribe(receiver.url("/ops"), events=list(TYPES))
            await fail(running, 10)
            await receiver.wait_for(4, "/ops")
            await running.change(hook, {"enabled": True})
            await running.emit()
            await receiver.wait_for(5, "/ops")
            await running.emit()
            await running.until(0, "SELECT count(*) FROM dealix.endpoint_alerts")
            await receiver.wait_for(12, "/hook")
            about = {"subscription_id": hook, "endpoint_host": f"127.0.0.1:{receiver.port}"}
            assert told(receiver) == [
                *(
                    (
                        "endpoint.failing",
                        about | {"level_percent": level, "consecutive_failures": failures, "disable_after": 10},
                    )
                    for level, failures in zip(LEVELS, (5, 8, 9), strict=True)
                ),
                ("endpoint.disabled", about | {"reason": "consecutive_failures", "consecutive_failures": 10}),
                ("endpoint.recovered", about),
            ]


async def test_a_delivery_that_is_given_up_is_told_with_its_event_and_last_answer(migrated_database: str) -> None:
    with trio.fail_after(20):
        delivery = CALM | {"retry_schedule_s": [0, 1]}
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=delivery) as running:
            receiver.answer("/hook", status(503))
            hook = await running.subscribe(receiver.url("/hook"), events=["deal.won"])
            await running.subscribe(receiver.url("/ops"), events=["delivery.exhausted"])
            event_id = await running.emit()
            await running.logged(1)
            assert told(receiver) == []
            await running.make_due()
            await receiver.wait_for(1, "/ops")
            (found,) = told(receiver)
            assert found == (
                "delivery.exhausted",
                {
                    "subscription_id": hook,
                    "endpoint_host": f"127.0.0.1:{receiver.port}",
                    "event_id": event_id,
                    "event_type": "deal.won",
                    "attempt": 2,
                    "status_code": 503,
                },
            )


async def test_a_410_is_told_with_its_reason(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=TEN) as running:
            receiver.answer("/hook", status(410))
            await running.subscribe(receiver.url("/hook"), events=["deal.won"])
            await running.subscribe(receiver.url("/ops"), events=["endpoint.disabled"])
            await running.emit()
            await receiver.wait_for(1, "/ops")
            assert [(kind, data["reason"]) for kind, data in told(receiver)] == [("endpoint.disabled", "gone")]


async def test_it_goes_to_nobody_but_who_asked_by_name_of_the_same_customer_and_not_to_itself(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=TEN) as running:
            receiver.answer("/hook", status(500))
            await running.subscribe(receiver.url("/hook"), events=["deal.won", *TYPES])
            await running.subscribe(receiver.url("/all"))  # no list of types: not these
            await running.subscribe(receiver.url("/other"), customer_id="globex", events=list(TYPES))
            await fail(running, 5)
            await receiver.wait_for(5, "/all")
            await running.until(5, "SELECT count(*) FROM dealix.attempts WHERE NOT success")
            await trio.sleep(0.3)
            assert {json.loads(r.body)["type"] for r in receiver.received} == {"deal.won"}
            assert receiver.at("/other") == []
            assert await running.rows("SELECT 1 FROM dealix.events WHERE type <> 'deal.won'") == []  # nobody wants it


async def test_two_dead_endpoints_that_ask_for_each_others_trouble_do_not_feed_each_other(
    migrated_database: str,
) -> None:
    operational = "SELECT count(*) FROM dealix.events WHERE type <> 'deal.won'"
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=TEN) as running:
            receiver.answer_all(status(404))
            await running.subscribe(receiver.url("/hook"), events=["deal.won", *TYPES])
            ops = await running.subscribe(receiver.url("/ops"), events=list(TYPES))
            await fail(running, 5)
            await receiver.wait_for(1, "/ops")
            for _ in range(9):  # failures of operational deliveries alone, until that disables it
                count = len(receiver.at("/ops"))
                async with running.pool.connection(5) as conn:
                    await conn.execute("SELECT dealix.tell('acme', 'whk_0', 'endpoint.recovered', '{}')")
                await receiver.wait_for(count + 1, "/ops")
            await running.until(
                "consecutive_failures", "SELECT disabled_reason FROM dealix.subscriptions WHERE id = %s", ops
            )
            await trio.sleep(0.5)
            assert await running.rows(operational) == [(1 + 9,)]


async def test_a_passing_test_fire_of_a_disabled_endpoint_is_no_recovery_and_of_an_enabled_one_is(
    migrated_database: str,
) -> None:
    alerts = "SELECT count(*) FROM dealix.endpoint_alerts"
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=TEN) as running:
            receiver.answer("/hook", *[status(500)] * 10, status(200))
            hook = await running.subscribe(receiver.url("/hook"), events=["deal.won"])
            await running.subscribe(receiver.url("/ops"), events=["endpoint.recovered"])
            await fail(running, 10)
            await running.engine.test_fire.fire(SubscriptionId(hook), "deal.won")
            assert await running.rows(alerts) == [(1,)]
            await running.change(hook, {"enabled": True})
            await running.engine.test_fire.fire(SubscriptionId(hook), "deal.won")
            await receiver.wait_for(1, "/ops")
            assert [kind for kind, _ in told(receiver)] == ["endpoint.recovered"]
            assert await running.rows(alerts) == [(0,)]


async def test_no_emitter_can_make_such_an_event(migrated_database: str) -> None:
    with trio.fail_after(10):
        async with running_engine(migrated_database) as running:
            for kind in TYPES:
                refused = await running.rows(
                    "SELECT reason FROM dealix.emit_raw(ARRAY['acme'], ARRAY[%s], ARRAY['{}'], ARRAY[NULL]::text[])",
                    kind,
                )
                assert "not a known event type" in refused[0][0]
