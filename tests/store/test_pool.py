"""The pool: bounded, under one deadline, and back by itself after whatever happened to the server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, LiteralString, cast

import psycopg
import pytest
import trio
import trio.testing
from psycopg.rows import TupleRow

from daemon.errors import CommitUnknown, DatabaseUnavailable
from daemon.store.connection import GRACE_S, connect
from daemon.store.pool import Pool, PoolStatistics
from tests.chaos.proxy import open_proxy
from tests.support.own_server import OwnServer

LIMIT_S: Final = 20.0
SLACK_S: Final = 0.4


@asynccontextmanager
async def pool_of(
    server: OwnServer, size: int, *, url: str = "", connect_timeout_s: float = 5.0, max_lifetime_s: float = 60.0
) -> AsyncGenerator[Pool]:
    """To the server, by way of `url` where that is given."""
    pool = Pool(
        url or server.url,
        size=size,
        name="pool",
        connect_timeout_s=connect_timeout_s,
        max_lifetime_s=max_lifetime_s,
    )
    with trio.fail_after(LIMIT_S):
        try:
            yield pool
        finally:
            with trio.CancelScope(shield=True):
                await pool.aclose()


async def one(pool: Pool, query: LiteralString = "SELECT pg_backend_pid()", deadline_s: float = 5.0) -> object:
    async with pool.connection(deadline_s) as conn:
        cur = await conn.execute(query)
        row = await cur.fetchone() if cur.description else None
        return row and row[0]


async def test_connections_are_made_when_needed_lent_again_last_in_first_out_and_never_more_than_the_size(
    own_server: OwnServer,
) -> None:
    async with pool_of(own_server, 3) as pool:
        assert pool.statistics() == PoolStatistics(open=0, idle=0, waiting=0)
        async with pool.connection(5) as a, pool.connection(5) as b:
            assert a is not b
            assert pool.statistics() == PoolStatistics(open=2, idle=0, waiting=0)
        assert pool.statistics() == PoolStatistics(open=2, idle=2, waiting=0)
        async with pool.connection(5) as c:
            assert c is a  # given back last

        most = 0

        async def work() -> None:
            nonlocal most
            for _ in range(5):
                await one(pool, "SELECT pg_sleep(0.002)")
                most = max(most, pool.statistics().open)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(work)
        assert most == 3
        assert pool.statistics() == PoolStatistics(open=3, idle=3, waiting=0)


async def test_waiting_for_a_place_counts_towards_the_deadline_and_is_in_turn(own_server: OwnServer) -> None:
    async with pool_of(own_server, 1) as pool:
        got: list[int] = []

        async def take(n: int) -> None:
            async with pool.connection(5):
                got.append(n)

        async with trio.open_nursery() as nursery, pool.connection(5):
            for n in range(4):
                nursery.start_soon(take, n)
                await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 4
            started = trio.current_time()
            with pytest.raises(DatabaseUnavailable, match=r"within 0\.2 s"):
                await one(pool, deadline_s=0.2)
            assert 0.2 <= trio.current_time() - started < 0.2 + SLACK_S
            assert got == []
        assert got == [0, 1, 2, 3]


async def test_the_whole_block_is_bounded_and_what_it_began_is_rolled_back(own_server: OwnServer) -> None:
    async with pool_of(own_server, 2) as pool:
        await one(pool, "CREATE TABLE IF NOT EXISTS bounded (id int)")
        with pytest.raises(DatabaseUnavailable, match=r"within 0\.3 s"):
            async with pool.connection(0.3) as conn, conn.transaction():
                await conn.execute("INSERT INTO bounded VALUES (1)")
                await conn.execute("SELECT pg_sleep(10)")
        assert pool.statistics() == PoolStatistics(open=1, idle=1, waiting=0)  # stopped, not thrown away
        assert await one(pool, "SELECT count(*) FROM bounded") == 0


async def test_a_cancel_from_outside_stays_a_cancel(own_server: OwnServer) -> None:
    async with pool_of(own_server, 1) as pool:
        with trio.move_on_after(0.2) as scope:
            await one(pool, "SELECT pg_sleep(10)", deadline_s=10)
        assert scope.cancelled_caught
        assert await one(pool, "SELECT 7") == 7


async def test_a_block_that_ends_well_after_its_deadline_has_succeeded(own_server: OwnServer) -> None:
    async with pool_of(own_server, 1) as pool, pool.connection(0.2) as conn:
        await conn.execute("SELECT 1")
        time.sleep(0.3)  # noqa: ASYNC251 the point: no checkpoint


async def test_errors_of_statements_pass_and_outages_are_translated_with_their_sqlstate(own_server: OwnServer) -> None:
    async with pool_of(own_server, 2) as pool:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await one(pool, "SELECT 1/0")
        with pytest.raises(psycopg.errors.UndefinedTable):
            await one(pool, "SELECT * FROM nowhere")
        with pytest.raises(psycopg.errors.RaiseException):
            await one(pool, "DO $$ BEGIN RAISE 'no' USING errcode = 'P0001'; END $$")
        assert pool.statistics().open == 1  # none of them cost the connection

        for sqlstate in ("53100", "57P01", "53300", "55P03", "40P01", "58030", "08006", "25006"):
            with pytest.raises(DatabaseUnavailable, match="the disk of the database") as caught:
                await one(pool, f"DO $$ BEGIN RAISE 'the disk of the database' USING errcode = '{sqlstate}'; END $$")
            assert caught.value.sqlstate == sqlstate
            assert isinstance(caught.value.__cause__, psycopg.Error)

        with pytest.raises(DatabaseUnavailable) as caught:
            await one(pool, "SET statement_timeout = 50; SELECT pg_sleep(5)")
        assert caught.value.sqlstate == "57014"


async def test_a_connection_that_is_given_back_amid_something_is_closed(own_server: OwnServer) -> None:
    async with pool_of(own_server, 2) as pool:
        async with pool.connection(5) as conn:
            await conn.execute("BEGIN")
        assert conn.closed
        async with pool.connection(5) as conn:
            await conn.close()
        async with pool.connection(5) as conn:
            rows = cast("AsyncGenerator[TupleRow]", conn.cursor().stream("SELECT generate_series(1, 100000)"))
            await anext(rows)
        assert conn.closed
        await rows.aclose()
        assert pool.statistics() == PoolStatistics(open=0, idle=0, waiting=0)


async def test_a_session_whose_statements_no_longer_fit_is_replaced(own_server: OwnServer) -> None:
    query = "SELECT * FROM changing WHERE id > %s"
    async with pool_of(own_server, 2) as pool:
        await one(pool, "CREATE TABLE IF NOT EXISTS changing AS SELECT 1 AS id")
        with pytest.raises(DatabaseUnavailable, match="cached plan") as caught:
            async with pool.connection(5) as conn:
                for _ in range(4):
                    await conn.execute(query, (1,))
                async with pool.connection(5) as migrating:
                    await migrating.execute("ALTER TABLE changing ADD note text")
                await conn.execute(query, (1,))
        assert caught.value.sqlstate == "0A000"
        assert pool.statistics().open == 1
        async with pool.connection(5) as conn:
            conn.prepare_threshold = 0
            await conn.execute(query, (1,))
            with pytest.raises(
                psycopg.errors.FeatureNotSupported
            ):  # an answer to the statement: not every 0A000 is one
                await conn.execute("SELECT 1 FROM changing GROUP BY id FOR UPDATE")
            assert not conn.closed
        with pytest.raises(DatabaseUnavailable) as caught:
            async with pool.connection(5) as conn:
                conn.prepare_threshold = 0
                await conn.execute(query, (1,))
                await conn.execute("DISCARD ALL", prepare=False)
                conn.prepare_threshold = 0
                await conn.execute(query, (1,))
                await conn.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$", prepare=False)
                await conn.execute(query, (1,))
        assert caught.value.sqlstate == "26000"
        assert pool.statistics().open == 0


async def test_connections_that_idled_through_a_restart_are_not_lent(own_server: OwnServer) -> None:
    async with pool_of(own_server, 5) as pool:
        for shut_down in (own_server.stop, own_server.kill):
            async with pool.connection(5), pool.connection(5), pool.connection(5):
                pass
            assert pool.statistics().idle >= 3
            shut_down()
            own_server.start()
            for _ in range(5):
                assert await one(pool, "SELECT 7") == 7
            assert pool.statistics() == PoolStatistics(open=1, idle=1, waiting=0)


async def test_a_server_that_dies_fails_what_is_running_and_serves_again_after_its_restart(
    own_server: OwnServer,
) -> None:
    async with pool_of(own_server, 3) as pool:
        outages: list[DatabaseUnavailable] = []

        async def work() -> None:
            try:
                await one(pool, "SELECT pg_sleep(10)", deadline_s=10)
            except DatabaseUnavailable as e:
                outages.append(e)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work)
            await trio.sleep(0.3)
            own_server.kill()
        assert len(outages) == 3
        own_server.start()
        assert await one(pool, "SELECT 7") == 7


async def test_while_the_server_is_away_calls_wait_until_their_deadline_and_say_why(own_server: OwnServer) -> None:
    async with pool_of(own_server, 3) as pool:
        own_server.stop()
        started = trio.current_time()
        with pytest.raises(DatabaseUnavailable, match=r"within 0\.5 s .*Connection refused"):
            await one(pool, deadline_s=0.5)
        assert 0.5 <= trio.current_time() - started < 0.5 + SLACK_S


async def test_a_call_that_waits_while_the_server_restarts_succeeds(own_server: OwnServer) -> None:
    async with pool_of(own_server, 3) as pool:
        own_server.stop()
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def ask() -> None:
                answers.append(await one(pool, "SELECT 7", deadline_s=10))

            for _ in range(10):
                nursery.start_soon(ask)
            await trio.sleep(0.5)
            own_server.start()
        assert answers == [7] * 10


@pytest.mark.parametrize("manner", ["hangs up", "mute"])
async def test_many_callers_do_not_hammer_a_server_that_is_no_use(manner: str) -> None:
    attempts = 0
    size, callers, deadline_s = 10, 20, 0.7

    async def server(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        if manner == "mute":
            await stream.receive_some()  # the greeting
            await stream.receive_some()  # the end
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(LIMIT_S):
            listener = (await nursery.start(trio.serve_tcp, server, 0))[0]
            port = listener.socket.getsockname()[1]
            pool = Pool(f"postgresql://dealix@127.0.0.1:{port}/x?sslmode=disable", size=size, name="pool")

            async def ask() -> None:
                for _ in range(3):
                    with pytest.raises(DatabaseUnavailable):
                        await one(pool, deadline_s=deadline_s)

            async with trio.open_nursery() as asking:
                for _ in range(callers):
                    asking.start_soon(ask)
        nursery.cancel_scope.cancel()
    assert size <= attempts <= size + 15


async def test_where_the_server_is_full_the_connections_there_are_go_round(own_server: OwnServer) -> None:
    async with pool_of(own_server, 6) as pool, AsyncExitStack() as others:
        for _ in range(2):
            await others.enter_async_context(pool.connection(LIMIT_S))
        room = others.pop_all()
        with pytest.raises(DatabaseUnavailable, match="too many clients"):
            while True:
                await others.enter_async_context(await connect(own_server.url, timeout_s=5, application_name="other"))
        await room.aclose()
        assert pool.statistics().idle == 2
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one, pool, "SELECT pg_sleep(0.02)")
        assert trio.current_time() - started < 2
        assert pool.statistics().open == 2


async def test_with_a_frozen_server_every_call_ends_at_its_deadline_or_a_grace_later(own_server: OwnServer) -> None:
    async with pool_of(own_server, 4, connect_timeout_s=1.0) as pool:
        async with pool.connection(5), pool.connection(5):
            pass  # two are open, two would have to be made
        own_server.freeze()
        took: list[float] = []

        async def ask() -> None:
            started = trio.current_time()
            with pytest.raises(DatabaseUnavailable):
                await one(pool, deadline_s=0.7)
            took.append(trio.current_time() - started)

        async def write() -> None:
            started = trio.current_time()
            with pytest.raises(DatabaseUnavailable):
                async with pool.connection(0.7) as conn, conn.transaction():
                    await conn.execute("SELECT 1")
            took.append(trio.current_time() - started)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
                nursery.start_soon(write)
        assert len(took) == 8
        assert max(took) < 0.7 + GRACE_S + SLACK_S < 2.2
        own_server.thaw()
        assert await one(pool, "SELECT 7") == 7
        assert pool.statistics() == PoolStatistics(open=1, idle=1, waiting=0)


async def test_those_that_idled_beside_one_that_fell_silent_are_not_found_out_one_by_one(
    own_server: OwnServer, tmp_path: Path
) -> None:
    with open_proxy(own_server, tmp_path) as proxy:
        async with pool_of(own_server, 3, url=proxy.url(own_server.url)) as pool:
            async with pool.connection(5), pool.connection(5), pool.connection(5):
                pass
            proxy.tell("forget")
            with pytest.raises(DatabaseUnavailable):
                await one(pool, deadline_s=0.3)
            assert await one(pool, "SELECT 7", deadline_s=2) == 7
            assert pool.statistics() == PoolStatistics(open=1, idle=1, waiting=0)


async def test_one_that_came_back_before_the_network_fell_silent_is_not_tried_after_one_that_was_lost(
    own_server: OwnServer, tmp_path: Path
) -> None:
    with open_proxy(own_server, tmp_path) as proxy:
        async with pool_of(own_server, 2, url=proxy.url(own_server.url)) as pool:
            with pytest.raises(DatabaseUnavailable):
                async with pool.connection(1) as long:
                    await one(pool)  # lent later, and back before the silence
                    proxy.tell("forget")
                    await long.execute("SELECT 1")
            assert await one(pool, "SELECT 7", deadline_s=1) == 7


async def test_a_commit_that_meets_a_frozen_server_is_unknown_and_not_merely_late(own_server: OwnServer) -> None:
    async with pool_of(own_server, 1) as pool:
        await one(pool, "CREATE TABLE IF NOT EXISTS frozen (id int)")
        with pytest.raises(CommitUnknown):
            async with pool.connection(0.5) as conn, conn.transaction():
                await conn.execute("INSERT INTO frozen VALUES (1)")
                own_server.freeze()
        own_server.thaw()
        with trio.fail_after(5):
            while await one(pool, "SELECT count(*) FROM frozen") != 1:  # the COMMIT was in its socket
                await trio.sleep(0.01)


async def test_connections_are_replaced_after_their_lifetime(own_server: OwnServer) -> None:
    async with pool_of(own_server, 1, max_lifetime_s=0.3) as pool:
        first = await one(pool)
        assert await one(pool) == first
        await trio.sleep(0.35)
        await one(pool)
        assert await one(pool) != first


async def test_a_closed_pool_lends_nothing_and_keeps_nothing(own_server: OwnServer) -> None:
    async with pool_of(own_server, 2) as pool:
        async with pool.connection(5) as conn:
            await one(pool)
            await pool.aclose()
            assert pool.statistics() == PoolStatistics(open=1, idle=0, waiting=0)
            with pytest.raises(DatabaseUnavailable, match="closed"):
                await one(pool)
            await conn.execute("SELECT 1")
        assert conn.closed
        assert pool.statistics() == PoolStatistics(open=0, idle=0, waiting=0)
