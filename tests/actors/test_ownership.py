"""Who works on what: daemons that join, leave, die or lose their sessions, and what each leaves behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import trio
from psycopg import sql

from daemon.actors import claiming, ownership, recorder, roster
from daemon.store import outbox, shards
from daemon.store.claims import Room
from daemon.store.connection import Connection, connect, is_readable
from daemon.store.sessions import dedicated
from daemon.store.shards import OWN_CLASS, SHARDS, shard_of
from tests.support.answers import hang, status
from tests.support.engine import OWNER, POOL, Running, running_engine
from tests.support.receiver import Receiver, open_receiver

LEFT: Final = "SELECT (SELECT count(*) FROM dealix.outbox) + (SELECT count(*) FROM dealix.deliveries)"
NOT_FIRST: Final = "SELECT count(*) FROM dealix.attempts WHERE attempt <> 1 OR outcome = 'interrupted'"


def once_each(receiver: Receiver, count: int) -> None:
    """Every event came, and none of them twice."""
    times = Counter(r.headers["webhook-id"] for r in receiver.received)
    assert (len(times), max(times.values())) == (count, 1)


@contextmanager
def no_database(url: str) -> Generator[None]:
    """Nobody is connected to the database and nobody can connect, while the block runs."""
    parts = urlsplit(url)
    name = sql.Identifier(parts.path.removeprefix("/"))
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (parts.path.removeprefix("/"),),
            )
            yield
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


@asynccontextmanager
async def light_load(running: Running, receiver: Receiver) -> AsyncGenerator[list[str]]:
    """Some 100 events a second for 24 customers while the block runs; the list grows by each event's id."""
    emitted: list[str] = []
    for n in range(24):
        await running.subscribe(receiver.url(), customer_id=f"c{n}")

    async def emit() -> None:
        while True:
            with trio.CancelScope(shield=True):
                emitted.append(await running.emit(customer_id=f"c{len(emitted) % 24}"))
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(emit)
        yield emitted
        nursery.cancel_scope.cancel()


# ── several daemons ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_daemons_share_the_work_and_joining_or_leaving_loses_and_doubles_nothing(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as one:
            receiver.answer_all(status(200, delay_s=0.03))
            async with light_load(one, receiver) as emitted:
                await one.share(SHARDS)
                async with running_engine(migrated_database) as two:
                    await one.share(SHARDS // 2)
                    await two.share(SHARDS // 2)
                    assert not one.engine.ownership.shards & two.engine.ownership.shards
                    await receiver.wait_for(len(emitted) + 20)
                await one.share(SHARDS)
                await receiver.wait_for(len(emitted) + 20)
            await one.until(0, LEFT)
            once_each(receiver, len(emitted))
            assert await one.rows(NOT_FIRST) == [(0,)]


async def test_a_leaving_daemons_shards_are_taken_over_while_its_last_request_still_goes_on(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database) as one,
            running_engine(migrated_database) as two,
        ):
            receiver.answer("/slow", status(200, delay_s=1.8))
            await one.share(SHARDS // 2)
            await two.share(SHARDS // 2)
            names = [f"c{n}" for n in range(200) if shard_of(f"c{n}") in two.engine.ownership.shards]
            slow, other = names[0], next(name for name in names if shard_of(name) != shard_of(names[0]))
            await one.subscribe(receiver.url("/slow"), customer_id=slow)
            await one.subscribe(receiver.url("/other"), customer_id=other)
            await one.emit(customer_id=slow)
            await receiver.wait_for(1, "/slow")
            two.stop.set()
            await one.emit(customer_id=other)
            await receiver.wait_for(1, "/other", timeout_s=1.5)
            assert shard_of(slow) not in one.engine.ownership.shards
            await one.until(0, LEFT)
            once_each(receiver, 2)
            assert await one.rows(NOT_FIRST) == [(0,)]


async def test_a_leaving_daemon_keeps_the_shards_of_a_request_that_goes_on_for_longer_than_its_heartbeats(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 0.3)
    with trio.fail_after(30):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database) as one,
            running_engine(migrated_database) as two,
        ):
            receiver.answer("/slow", status(200, delay_s=2.5))
            await one.share(SHARDS // 2)
            await two.share(SHARDS // 2)
            slow = next(f"c{n}" for n in range(200) if shard_of(f"c{n}") in two.engine.ownership.shards)
            await one.subscribe(receiver.url("/slow"), customer_id=slow)
            await one.emit(customer_id=slow)
            await receiver.wait_for(1, "/slow")
            two.stop.set()
            await one.until(0, LEFT)
            once_each(receiver, 1)
            assert await one.rows(NOT_FIRST) == [(0,)]
            assert len(two.sessions) == 1


# ── lost sessions ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_after_the_loss_of_the_dedicated_session_all_goes_on_within_two_seconds(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/slow", status(200, delay_s=0.15))
            await running.subscribe(receiver.url("/slow"), customer_id="slow")
            await running.subscribe(receiver.url("/quick"), customer_id="quick")
            await running.emit_many(40, customer_id="slow")
            await receiver.wait_for(4, "/slow")  # some in flight, more in the mailbox, the rest held
            assert await running.terminate(OWNER) == 1
            killed_at = trio.current_time()
            await running.emit(customer_id="quick")
            (request,) = await receiver.wait_for(1, "/quick")
            assert request.at - killed_at < 2.0
            await running.until(0, LEFT)
            once_each(receiver, 41)
            assert await running.rows(NOT_FIRST) == [(0,)]
            assert len(running.sessions) == 2


async def test_connections_that_are_killed_again_and_again_cost_no_event_and_double_none(
    migrated_database: str,
) -> None:
    with trio.fail_after(40):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database) as running,
            await connect(migrated_database, timeout_s=5, application_name="killer") as conn,
        ):
            for n in range(10):
                await running.subscribe(receiver.url(), customer_id=f"c{n}")
            await running.subscribe(receiver.url("/quick"), customer_id="quick")
            for round_ in range(8):
                await conn.execute(
                    "SELECT count(*) FROM generate_series(0, 199) AS n "
                    "CROSS JOIN LATERAL dealix.emit('c' || n % 10, 'deal.won', '{}')"
                )
                await trio.sleep(0.03 * round_)
                await conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = ANY (%s)",
                    ([OWNER, POOL],),
                )
            killed_at = trio.current_time()
            await conn.execute("SELECT dealix.emit('quick', 'deal.won', '{}')")
            (request,) = await receiver.wait_for(1, "/quick")
            assert request.at - killed_at < 2.0
            with trio.fail_after(15):
                while (await (await conn.execute(LEFT)).fetchall()) != [(0,)]:
                    await trio.sleep(0.05)
            once_each(receiver, 1601)


async def test_what_was_in_flight_while_the_database_was_away_is_recorded_and_not_sent_again(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases end meanwhile, too."""
    for module in (claiming, roster, ownership):
        monkeypatch.setattr(module, "LEASE_S", 1.0)
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200, delay_s=0.4))
            await running.subscribe(receiver.url())
            await running.emit_many(6)
            await receiver.wait_for(2)
            with no_database(migrated_database):
                await trio.sleep(1.5)
                assert len(receiver.received) == 2
            await running.until(0, LEFT)
            once_each(receiver, 6)
            assert await running.rows(NOT_FIRST) == [(0,)]
            assert await running.count("attempts") == 6


@pytest.mark.threat("N116")
async def test_a_session_that_has_lost_its_locks_or_its_listening_is_replaced(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 0.2)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s AND pid = %s"
    with trio.fail_after(30):
        async with running_engine(migrated_database) as running:
            for number, statement in enumerate(("SELECT pg_advisory_unlock_all()", "UNLISTEN *"), 1):
                await running.sessions[-1].execute(statement.encode())
                while len(running.sessions) == number:
                    await trio.sleep(0.02)
                while not running.engine.ownership.listening:
                    await trio.sleep(0.02)
                await running.until(SHARDS, locks, OWN_CLASS, running.sessions[-1].info.backend_pid)


async def test_a_session_that_lost_its_locks_under_its_daemon_is_ended_before_others_take_its_shards(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its next check that daemon believes that the shards are its own, and sends."""
    monkeypatch.setattr(ownership, "NEWCOMER_S", 1.0)

    async def ask_now_and_then(conn: Connection, enough: trio.CancelScope) -> None:
        with enough:
            while True:
                await conn.execute("SELECT 1")
                await trio.sleep(0.5)

    half = SHARDS // 2
    with trio.fail_after(40):
        async with (
            running_engine(migrated_database) as running,
            dedicated(migrated_database) as former,
            trio.open_nursery() as living,
        ):
            await shards.join(former)
            living.start_soon(ask_now_and_then, former, enough := trio.CancelScope())
            await running.share(half)
            await trio.sleep(ownership.NEWCOMER_S)
            enough.cancel()
            assert len(await shards.try_own(former, range(SHARDS))) == half
            assert not is_readable(former)
            await former.execute("DISCARD ALL")
            while len(running.engine.ownership.shards) == half:
                await trio.lowlevel.checkpoint()
            assert is_readable(former), "its shards were taken while nothing told its daemon"


# ── what the dead leave ──────────────────────────────────────────────────────────────────────────────────────────────


async def leave_claims(running_url: str, *, attempt: int = 1, emit: int = 1) -> None:
    """A daemon claimed these and died: attempt number `attempt` is on record, its lease has a minute to go."""
    async with await connect(running_url, timeout_s=5, application_name="dead") as conn:
        for _ in range(emit):
            await conn.execute("SELECT dealix.emit('acme', 'deal.won', '{}')")
        batch = await outbox.fan_out(conn, range(SHARDS), Room({}, 32, 60.0))
        assert len(batch.claims) == emit
        await conn.execute("UPDATE dealix.deliveries SET attempt = %s", (attempt,))


async def test_what_a_dead_daemon_had_claimed_is_interrupted_and_goes_on_at_once(any_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver:
            receiver.answer_all(status(500))
            async with running_engine(any_database) as running:
                subscription_id = await running.subscribe(receiver.url())
            await leave_claims(any_database)
            async with running_engine(any_database) as running:
                (request,) = await receiver.wait_for(1)
                assert request.headers["dealix-delivery-attempt"] == "2"
                rows = await running.logged(2)
                assert [(r.attempt, r.outcome, r.status_code) for r in rows] == [
                    (1, "interrupted", None),
                    (2, "retry", 500),
                ]
                assert rows[0].error
                ((attempt, steps, wait_s),) = await running.rows(
                    "SELECT attempt, steps, extract(epoch FROM due - now())::float8 FROM dealix.deliveries"
                )
                assert (attempt, steps) == (2, 1)  # an interrupted attempt uses no step of the schedule
                assert 25 < wait_s <= 33
                found = await running.subscription(subscription_id)
                assert found.consecutive_failures == 1  # and is no failure
                assert await running.rows("SELECT success, failed FROM dealix.daily_stats") == [(0, 1)]


@pytest.mark.parametrize(
    ("attempt", "expected"), [(19, [(19, "interrupted"), (20, "exhausted")]), (20, [(20, "exhausted")])]
)
async def test_twenty_attempts_of_any_kind_end_a_delivery(
    attempt: int, expected: list[tuple[int, str]], migrated_database: str
) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver:
            receiver.answer_all(status(500))
            async with running_engine(migrated_database) as running:
                await running.subscribe(receiver.url())
            await leave_claims(migrated_database, attempt=attempt)
            async with running_engine(migrated_database) as running:
                rows = await running.logged(len(expected))
                assert [(r.attempt, r.outcome) for r in rows] == expected
                await running.until(0, LEFT)
                assert len(receiver.received) == len(expected) - 1


async def test_a_late_result_of_a_superseded_attempt_replaces_its_interrupted_row_and_nothing_else(
    migrated_database: str,
) -> None:
    async def end_the_lease(running: Running) -> None:
        await running.rows("UPDATE dealix.deliveries SET due = now() WHERE claimed RETURNING 1")
        await running.rows("SELECT pg_notify('dealix_due', '')")

    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/hook", status(500, b"late", delay_s=0.8), status(200, delay_s=1.2))
            await running.subscribe(receiver.url("/hook"))
            await running.emit()
            await receiver.wait_for(1)
            await end_the_lease(running)  # as if this daemon had been away for a minute
            await receiver.wait_for(2)
            assert await running.log_rows(1) == [
                (1, "interrupted", None, "the daemon stopped before the outcome of this attempt was known")
            ]
            while (logged := await running.log_rows(1))[0][1] == "interrupted":
                await trio.sleep(0.02)
            assert logged == [(1, "retry", 500, None)]  # never both rows
            rows = await running.rows("SELECT attempt, steps, claimed, due > now() FROM dealix.deliveries")
            assert rows == [(2, 0, True, True)]
            assert await running.log_rows(2) == [(1, "retry", 500, None), (2, "delivered", 200, None)]
            await running.until(0, LEFT)
            assert running.engine.roster.ledger.leases() == []


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_clean_stop_ends_what_is_in_flight_and_gives_back_the_rest(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_receiver() as receiver:
            receiver.answer_all(status(200, delay_s=0.3))
            async with running_engine(migrated_database) as running:
                await running.subscribe(receiver.url())
                await running.emit_many(100)
                await receiver.wait_for(2)
                stopped_at = trio.current_time()
            assert trio.current_time() - stopped_at < 2.0
            sent = len(receiver.received)
            assert sent < 20
            async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
                rows = await (
                    await conn.execute("SELECT count(*), count(*) FILTER (WHERE claimed) FROM dealix.deliveries")
                ).fetchall()
            assert rows == [(100 - sent, 0)]
            receiver.answer_all(status(200))
            async with running_engine(migrated_database) as running:
                await running.until(0, LEFT)
                once_each(receiver, 100)
                assert await running.rows(NOT_FIRST) == [(0,)]


async def test_stops_under_load_lose_and_double_nothing(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver:
            for round_ in range(5):
                async with running_engine(migrated_database) as running:
                    if round_ == 0:
                        for n in range(10):
                            await running.subscribe(receiver.url(), customer_id=f"c{n}")
                    await running.rows(
                        "SELECT count(*) FROM generate_series(0, 299) AS n "
                        "CROSS JOIN LATERAL dealix.emit('c' || n %% 10, 'deal.won', '{}')"
                    )
                    await receiver.wait_for(len(receiver.received) + 20 * round_)
            async with running_engine(migrated_database) as running:
                await running.until(0, LEFT)
                once_each(receiver, 1500)
                assert await running.rows(NOT_FIRST) == [(0,)]


async def test_a_stop_without_a_database_still_waits_for_requests_in_flight(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "QUERY_S", 0.3)
    monkeypatch.setattr(recorder, "LAST_WRITE_S", 0.5)
    with trio.fail_after(30):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200, delay_s=1.0))
            await running.subscribe(receiver.url())
            await running.emit()
            (request,) = await receiver.wait_for(1)
            with no_database(migrated_database):
                while running.engine.ownership.shards:
                    await trio.sleep(0.01)
                running.stop.set()
                while running.engine.observer.counts.of("delivered") == 0:
                    assert receiver.open == 1
                    await trio.sleep(0.02)
                assert trio.current_time() - request.at >= 1.0
                await trio.sleep(1.5)  # long enough for the last write to be given up


async def test_a_stop_while_an_endpoint_hangs_waits_for_its_time_out_and_records_it(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver:
            receiver.answer_all(hang())
            async with running_engine(migrated_database, delivery={"timeout_s": 1.0}) as running:
                await running.subscribe(receiver.url())
                await running.emit({"n": 1})
                await receiver.wait_for(1)
            async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
                rows = await (await conn.execute("SELECT attempt, outcome FROM dealix.attempts")).fetchall()
            assert rows == [(1, "retry")]
            assert json.loads(receiver.received[0].body)["data"] == {"n": 1}
