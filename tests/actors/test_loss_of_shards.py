"""A daemon that lost its shards while a claim was under way: others may have delivered it since."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from daemon.store.connection import Connection, connect
from daemon.store.shards import SHARDS, try_own
from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import open_receiver

POOL_SIZE = 8
SETTLE_S = 0.5


@asynccontextmanager
async def session(running: Running) -> AsyncGenerator[Connection]:
    async with await connect(running.url, timeout_s=5, application_name="the other") as conn:
        yield conn


async def take_everything(running: Running, other: Connection) -> None:
    """End the engine's ownership session and take its shards, as another daemon would."""
    await other.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'dealix owner' AND datname = current_database()"
    )
    taken: set[int] = set()
    while len(taken) < SHARDS:
        taken |= set(await try_own(other, set(range(SHARDS)) - taken))
    while running.engine.ownership.shards:
        await trio.sleep(0.01)


async def give_everything_back(running: Running, other: Connection) -> None:
    await other.execute("SELECT pg_advisory_unlock_all()")
    while len(running.engine.ownership.shards) < SHARDS:
        await trio.sleep(0.01)


async def test_a_claim_that_waited_for_a_connection_is_not_made_for_shards_that_were_lost_meanwhile(
    migrated_database: str,
) -> None:
    with trio.fail_after(30):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database) as running,
            session(running) as other,
        ):
            await running.subscribe(receiver.url("/hook"))
            async with AsyncExitStack() as lent:
                for _ in range(POOL_SIZE):
                    await lent.enter_async_context(running.pool.connection(20))
                while not running.pool.statistics().waiting:
                    await trio.sleep(0.01)
                await take_everything(running, other)
                await other.execute("SELECT FROM dealix.emit('acme', 'deal.won', '{}')")
            await trio.sleep(SETTLE_S)
            assert await running.count("outbox") == 1
            assert await running.count("deliveries") == 0
            await give_everything_back(running, other)
            await receiver.wait_for(1)


async def test_what_was_claimed_before_the_loss_is_not_sent_when_the_shards_come_back(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database) as running,
            session(running) as other,
            session(running) as locker,
        ):
            receiver.answer_all(status(500))
            await running.subscribe(receiver.url("/hook"))
            await running.emit()
            await running.log_rows(1)
            async with locker.transaction():
                await locker.execute("LOCK TABLE dealix.events IN ACCESS EXCLUSIVE MODE")
                await other.execute("UPDATE dealix.deliveries SET due = now()")  # to be claimed, but not to be read
                while await running.rows("SELECT attempt FROM dealix.deliveries WHERE claimed") != [(2,)]:
                    await trio.sleep(0.01)
                await take_everything(running, other)
                await other.execute("DELETE FROM dealix.deliveries")  # the other has delivered it
                await give_everything_back(running, other)
            receiver.answer_all(status(200))
            event_id = await running.emit()
            await receiver.wait_for(2)
            await trio.sleep(SETTLE_S)
            assert [r.headers["webhook-id"] for r in receiver.received][1:] == [event_id]
            assert [row[:3] for row in await running.log_rows(2)] == [(1, "retry", 500), (1, "delivered", 200)]
