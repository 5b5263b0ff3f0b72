"""Bulk replays on the engine: what they find, what they send and as which attempt, and to whom they yield."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Final

import pytest
import trio

from daemon import clock
from daemon.ids import CustomerId, SubscriptionId
from daemon.store import recoveries
from daemon.store.recoveries import Kind, Recovery, Scope
from daemon.store.recovery_walk import Walk
from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import Received, Receiver, open_receiver

STEADY: Final = {"breaker_after": 1000, "disable_after": 1000}
"""Failures change nothing but the log."""
LEFT: Final = "SELECT count(*) FROM dealix.deliveries"


def scope(subscription_id: str, kind: Kind, *, customer_id: str = "acme") -> Scope:
    """The last hour."""
    now = clock.now()
    return Scope(CustomerId(customer_id), SubscriptionId(subscription_id), kind, now - timedelta(hours=1), now)


async def counted(running: Running, wanted: Scope) -> int:
    async with running.pool.connection(5) as conn:
        (events,) = await (
            await conn.execute("SELECT events FROM dealix.subscriptions WHERE id = %s", (wanted.subscription_id,))
        ).fetchone() or ([],)
        found, exact = await Walk(wanted, events, clock.now()).count(conn, time_s=5)
    assert exact
    return found


async def begin(running: Running, wanted: Scope) -> Recovery:
    """A recovery with as many deliveries queued as the walk counts."""
    queued = await counted(running, wanted)
    async with running.pool.connection(5) as conn:
        begun = await recoveries.begin(conn, wanted, queued=queued, exact=True)
    assert begun is not None
    return begun


async def state(running: Running, recovery: Recovery) -> Recovery:
    async with running.pool.connection(5) as conn:
        found = await recoveries.get(conn, recovery.id)
    assert found is not None
    return found


async def ended(running: Running, recovery: Recovery) -> Recovery:
    """As it stands once it has ended."""
    while (found := await state(running, recovery)).state == "running":
        await trio.sleep(0.02)
    return found


async def replayed(running: Running, subscription_id: str, kind: Kind) -> Recovery:
    return await ended(running, await begin(running, scope(subscription_id, kind)))


def numbers(requests: list[Received]) -> dict[str, str]:
    """The attempt number that each event came with."""
    return {r.headers["webhook-id"]: r.headers["dealix-delivery-attempt"] for r in requests}


async def test_failed_ones_are_sent_again_with_the_same_bytes_and_the_next_number_and_a_failure_is_final(
    any_database: str,
) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(any_database, delivery=STEADY) as running:
            receiver.answer("/hook", *[status(404)] * 5, status(200), status(500), status(200))
            hook = await running.subscribe(receiver.url("/hook"))
            events = await running.emit_many(6)
            await running.logged(6)
            first = {r.headers["webhook-id"]: r.body for r in receiver.received}
            found = await replayed(running, hook, "failed")
            assert (found.state, found.queued, found.exact, found.done, found.failed) == ("finished", 5, True, 4, 1)
            again = receiver.received[6:]
            assert set(numbers(again).values()) == {"2"}
            assert len(again) == 5
            assert len({r.headers["webhook-id"] for r in again} & set(events)) == 5
            assert all(r.body == first[r.headers["webhook-id"]] for r in again)
            outcomes = [row.outcome for row in (await running.logged(11))[6:]]
            assert sorted(outcomes) == ["delivered"] * 4 + ["exhausted"]
            assert await running.count() == 0
            # The one that failed once more is what a second recovery finds.
            second = await replayed(running, hook, "failed")
            assert (second.queued, second.done, second.failed) == (1, 1, 0)
            assert numbers(receiver.received[11:]) == {receiver.received[-1].headers["webhook-id"]: "3"}


async def test_a_retry_that_waits_for_hours_is_pulled_forward_and_keeps_its_schedule(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=STEADY) as running:
            receiver.answer("/hook", status(500), status(500), status(200))
            hook = await running.subscribe(receiver.url("/hook"))
            await running.emit()
            await running.logged(1)
            found = await replayed(running, hook, "failed")
            assert (found.queued, found.done, found.failed) == (1, 0, 1)
            assert await running.rows("SELECT attempt, steps, claimed FROM dealix.deliveries") == [(2, 2, False)]
            found = await replayed(running, hook, "failed")
            assert (found.queued, found.done, found.failed) == (1, 1, 0)
            assert [r.headers["dealix-delivery-attempt"] for r in receiver.received] == ["1", "2", "3"]
            assert await running.count() == 0


async def test_missed_ones_are_what_was_emitted_while_disabled_or_before_the_type_was_wanted(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=STEADY) as running:
            early = await running.emit_many(3)
            hook = await running.subscribe(receiver.url("/hook"), events=["deal.won"])
            (delivered,) = await running.emit_many(1)
            await running.logged(1)
            await running.emit(event_type="deal.lost")  # not wanted: not missed either
            await running.change(hook, {"enabled": False})
            meanwhile = await running.emit_many(4)
            await running.emit_many(2, customer_id="globex")
            await running.change(hook, {"enabled": True})
            found = await replayed(running, hook, "missed")
            assert (found.queued, found.done, found.failed) == (7, 7, 0)
            came = receiver.received[1:]
            assert sorted(numbers(came)) == sorted(early + meanwhile)
            assert set(numbers(came).values()) == {"1"}
            assert delivered not in numbers(came)
            await running.change(hook, {"events": ["deal.won", "deal.lost"]})
            assert (await replayed(running, hook, "missed")).done == 1
            assert (await replayed(running, hook, "missed")).queued == 0
            assert len(receiver.received) == 9


async def test_a_missed_one_that_fails_is_retried_by_the_schedule_as_a_new_event_would_be(
    migrated_database: str,
) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=STEADY) as running:
            receiver.answer("/hook", status(500), status(200))
            await running.emit()
            hook = await running.subscribe(receiver.url("/hook"))
            found = await replayed(running, hook, "missed")
            assert (found.done, found.failed) == (0, 1)
            assert await running.rows("SELECT attempt, steps FROM dealix.deliveries") == [(1, 1)]
            await running.make_due()
            await running.until(0, LEFT)
            assert [r.headers["dealix-delivery-attempt"] for r in receiver.received] == ["1", "2"]


async def test_all_sends_everything_once_more_but_what_is_on_its_way(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=STEADY) as running:
            receiver.answer("/hook", status(200), status(404), status(500), status(200))
            missed = await running.emit()
            hook = await running.subscribe(receiver.url("/hook"))
            for n in range(3):  # delivered, failed, to be retried
                await running.emit()
                await running.logged(n + 1)
            found = await replayed(running, hook, "all")
            assert (found.queued, found.done) == (3, 3)
            came = numbers(receiver.received[3:])
            assert sorted(came.values()) == ["1", "2", "2"]
            assert came[missed] == "1"
            assert [row[0] for row in await running.rows("SELECT attempt FROM dealix.deliveries")] == [1]


async def test_only_events_of_the_time_asked_for_are_sent(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.emit()
            await trio.sleep(0.01)
            since = clock.now()
            meant = await running.emit()
            await trio.sleep(0.01)
            until = clock.now()
            await running.emit()
            hook = await running.subscribe(receiver.url())
            wanted = replace(scope(hook, "missed"), since=since, until=until)
            assert (await ended(running, await begin(running, wanted))).done == 1
            assert list(numbers(receiver.received)) == [meant]


async def test_test_fires_are_nobodys_to_recover(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=STEADY) as running:
            receiver.answer("/hook", status(404), status(200))
            hook = await running.subscribe(receiver.url("/hook"))
            other = await running.subscribe(receiver.url("/other"))
            for _ in range(2):
                await running.engine.test_fire.fire(SubscriptionId(hook), "deal.won")
            for subscription_id in (hook, other):
                for kind in ("failed", "missed", "all"):
                    assert await counted(running, scope(subscription_id, kind)) == 0


async def test_own_ids_in_any_order_and_events_that_do_not_fit_between_them_are_all_walked(
    migrated_database: str,
) -> None:
    emit = (
        "SELECT mod(n, 100), e.event_id FROM generate_series(1, 1700) AS n CROSS JOIN LATERAL dealix.emit("
        "'acme', CASE WHEN mod(n, 100) = 0 THEN 'deal.won' ELSE 'deal.lost' END, '{}', "
        "event_id => (ARRAY['a_', 'B:', 'Z-', 'ev', '0'])[mod(n / 100, 5) + 1] || n) AS e"
    )
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            wanted = [event_id for rest, event_id in await running.rows(emit) if rest == 0]
            hook = await running.subscribe(receiver.url(), events=["deal.won"])
            found = await replayed(running, hook, "missed")
            assert (found.queued, found.done) == (17, 17)
            assert sorted(numbers(receiver.received)) == sorted(wanted)


async def test_of_two_recoveries_of_one_subscription_the_second_does_not_begin(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            hook, other = [await running.subscribe(receiver.url(path)) for path in ("/hook", "/other")]
            await running.change(hook, {"enabled": False})
            first = await begin(running, scope(hook, "missed"))
            await running.emit()
            async with running.pool.connection(5) as conn:
                assert await recoveries.begin(conn, scope(hook, "all"), queued=0, exact=True) is None
            await begin(running, scope(other, "all"))
            async with running.pool.connection(5) as conn:
                assert await recoveries.cancel(conn, first.id)
                assert not await recoveries.cancel(conn, first.id)
            await begin(running, scope(hook, "all"))


@pytest.mark.threat("N107")
async def test_a_cancelled_recovery_sends_nothing_more(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.emit_many(400)
            receiver.answer_all(status(200, delay_s=0.02))
            hook = await running.subscribe(receiver.url())
            begun = await begin(running, scope(hook, "missed"))
            assert begun.queued == 400
            await receiver.wait_for(20)
            async with running.pool.connection(5) as conn:
                assert await recoveries.cancel(conn, begun.id)
            sent = len(receiver.received)
            await running.until(0, LEFT)
            await trio.sleep(0.2)
            assert len(receiver.received) <= sent + 4
            found = await state(running, begun)
            assert (found.state, found.queued) == ("cancelled", 400)
            assert found.ended_at is not None


async def test_while_its_endpoint_is_disabled_it_waits_and_then_goes_on(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.emit_many(60)
            receiver.answer_all(status(200, delay_s=0.02))
            hook = await running.subscribe(receiver.url())
            begun = await begin(running, scope(hook, "missed"))
            await receiver.wait_for(10)
            await running.change(hook, {"enabled": False})
            await trio.sleep(1.0)
            sent = len(receiver.received)
            assert sent < 60
            await trio.sleep(1.0)
            assert len(receiver.received) == sent
            await running.change(hook, {"enabled": True})
            found = await ended(running, begun)
            assert (found.done, found.failed, len(receiver.received)) == (60, 0, 60)


async def test_behind_an_open_breaker_it_sends_one_as_the_probe_and_goes_on_when_that_is_accepted(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver:
            receiver.answer("/hook", *[status(404)] * 24, status(500), status(200))
            async with running_engine(migrated_database, delivery=STEADY) as running:
                hook = await running.subscribe(receiver.url("/hook"))
                await running.emit_many(24)
                await running.logged(24)
                await running.rows(
                    "UPDATE dealix.subscription_health SET consecutive_failures = 5, circuit = 'open', cooldown_s = 1, "
                    "reopen_at = now() + interval '1 s' RETURNING 1"
                )
            async with running_engine(migrated_database, delivery=STEADY | {"breaker_cooldown_s": 1}) as running:
                begun = await begin(running, scope(hook, "failed"))
                assert begun.queued == 24
                found = await ended(running, begun)
            assert (found.done, found.failed) == (23, 1)
            times = [request.at for request in receiver.received[24:]]
            gaps = [later - earlier for earlier, later in pairwise(times)]
            assert gaps[0] > 1.9  # the probe that failed doubled the pause, and nothing else went meanwhile
            assert max(gaps[1:]) < 1.0


async def test_when_its_subscription_is_deleted_it_ends(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            await running.emit_many(100)
            receiver.answer_all(status(200, delay_s=0.02))
            hook = await running.subscribe(receiver.url())
            begun = await begin(running, scope(hook, "missed"))
            await receiver.wait_for(5)
            await running.delete(hook)
            assert (await ended(running, begun)).state == "cancelled"
            await running.until(0, LEFT)
            assert len(receiver.received) < 100


@pytest.mark.threat("N107")
async def test_live_events_of_the_same_endpoint_do_not_wait_for_a_recovery(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200, delay_s=0.2))
            warm = await running.subscribe(receiver.url())
            await running.emit_many(40)  # the window opens with quick answers; an endpoint of 0.2 s counts as quick
            await receiver.wait_for(40)
            await running.until(0, LEFT)
            begun = await begin(running, scope(warm, "all"))
            await receiver.wait_for(44)
            late: list[float] = []
            for _ in range(10):
                sent_at = trio.current_time()
                event_id = await running.emit()
                late.append(await arrival(receiver, event_id) - sent_at)
                await trio.sleep(0.05)
            assert (await state(running, begun)).state == "running"
            # A slot was free: they did not wait for an answer that takes 0.2 s. Where the CPU is short for a moment, an
            # actor begins no second request at a time, for whatever it is.
            assert sorted(late)[7] < 0.15


async def arrival(receiver: Receiver, event_id: str) -> float:
    """When the event came."""
    count = 1
    while True:
        requests = await receiver.wait_for(count)
        for request in reversed(requests):
            if request.headers["webhook-id"] == event_id:
                return request.at
        count = len(requests) + 1
