"""A connection under Trio: what a cancel leaves behind, and that nothing is taken for done that was not."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from itertools import repeat
from typing import Final, LiteralString, cast

import psycopg
import pytest
import trio
import trio.testing
from psycopg import _queries, sql
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from daemon.errors import CommitUnknown
from daemon.store import record
from daemon.store.connection import GRACE_S, Connection, connect
from tests.support.postgres import fresh_database

LIMIT_S: Final = 15.0
HIDDEN_S: Final = 2.0
BUSY_S: Final = 0.01
ENOUGH: Final = 200_000
"""Rows whose COPY or result is far larger than every buffer on the way."""


@pytest.fixture(scope="module", params=["embedded", pytest.param("debian", marks=pytest.mark.external_postgres)])
def url(request: pytest.FixtureRequest) -> str:
    server = "embedded_server" if request.param == "embedded" else "debian_postgres"
    made = fresh_database(request.getfixturevalue(server))
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY, note text)")
    return made


class OwnTurns(trio.abc.Instrument):
    """How often the task that makes it gets its turn."""

    def __init__(self) -> None:
        self.count = 0
        self._task = trio.lowlevel.current_task()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


@asynccontextmanager
async def two(url: str) -> AsyncGenerator[tuple[Connection, Connection]]:
    """The connection under test and one to look on with, on an empty table, within LIMIT_S."""
    with trio.fail_after(LIMIT_S):
        async with await session(url) as conn, await session(url) as other:
            await other.execute("TRUNCATE things")
            yield conn, other


async def session(url: str) -> Connection:
    return await connect(url, timeout_s=5, application_name="under-test")


async def ids(conn: Connection) -> list[int]:
    return [row[0] for row in await (await conn.execute("SELECT id FROM things ORDER BY id")).fetchall()]


async def backend_gone_or_idle(other: Connection, pid: int) -> None:
    """Returns when the backend `pid` runs nothing and holds no transaction any more; the caller bounds it."""
    while True:
        cur = await other.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND (state <> 'idle' OR backend_xid IS NOT NULL)", (pid,)
        )
        if await cur.fetchone() is None:
            return
        await trio.sleep(0.01)


def stream(conn: Connection, query: LiteralString) -> aclosing[AsyncGenerator[TupleRow]]:
    """A stream that is closed when the block is left and not when the collector comes by."""
    return aclosing(cast("AsyncGenerator[TupleRow]", conn.cursor().stream(query)))


def usable(conn: Connection) -> bool:
    return not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE


def test_the_longest_statement_is_read_once() -> None:
    text = record._RECORD
    assert 4096 < len(text) <= _queries.MAX_CACHED_STATEMENT_LENGTH
    first, again = _queries.PostgresQuery(Transformer()), _queries.PostgresQuery(Transformer())
    values = dict.fromkeys(re.findall(r"%\((\w+)\)", text), "")
    first.convert(text, values)
    again.convert(text, values)
    assert first.query is again.query


def test_every_private_name_of_psycopg_that_is_used_or_relied_upon_exists() -> None:
    for name in ("_connect_gen", "_cancel_gen", "_try_cancel", "_exec_command"):
        assert callable(getattr(psycopg.AsyncConnection, name))
    assert psycopg.capabilities.has_cancel_safe(check=True)  # cancelling without a thread, over TLS too


async def test_a_cancelled_query_is_stopped_in_the_server_and_the_connection_goes_on(url: str) -> None:
    async with two(url) as (conn, other):
        started = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await conn.execute("SELECT pg_sleep(10)")
        assert scope.cancelled_caught
        assert trio.current_time() - started < 0.1 + GRACE_S / 2
        assert usable(conn)
        await backend_gone_or_idle(other, conn.info.backend_pid)
        assert await (await conn.execute("SELECT 7")).fetchone() == (7,)


async def test_nothing_is_sent_in_a_scope_that_is_cancelled_already(url: str) -> None:
    async with two(url) as (conn, other):
        with trio.CancelScope() as scope:
            scope.cancel()
            await conn.execute("INSERT INTO things VALUES (1)")
        assert scope.cancelled_caught
        assert usable(conn)
        assert await ids(other) == []


async def test_a_cancel_that_the_statement_swallows_is_sent_again(url: str) -> None:
    stubborn = """
        DO $$ BEGIN
            PERFORM pg_sleep(5);
        EXCEPTION WHEN query_canceled THEN
            PERFORM pg_sleep(5);
        END $$"""
    async with two(url) as (conn, other):
        with trio.move_on_after(0.1) as scope:
            await conn.execute(stubborn)
        assert scope.cancelled_caught
        assert usable(conn)
        await backend_gone_or_idle(other, conn.info.backend_pid)


async def test_a_query_that_cannot_be_stopped_costs_the_connection_after_the_grace(url: str) -> None:
    async with two(url) as (conn, _):
        pid = conn.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            started = trio.current_time()
            with trio.move_on_after(0.2) as scope:
                async with conn.transaction(), conn.transaction():
                    await conn.execute("INSERT INTO things VALUES (1)")
            assert scope.cancelled_caught
            assert GRACE_S <= trio.current_time() - started < 0.2 + GRACE_S + 0.3
            assert conn.closed
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_cancel_inside_a_query_rolls_the_transaction_back(url: str, depth: int) -> None:
    async def nested(conn: Connection, level: int) -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO things VALUES (%s)", (level,))
            if level < depth:
                await nested(conn, level + 1)
            await conn.execute("SELECT pg_sleep(10)")

    async with two(url) as (conn, other):
        with trio.move_on_after(0.1) as scope:
            await nested(conn, 1)
        assert scope.cancelled_caught
        assert usable(conn)
        assert await ids(other) == []
        async with conn.transaction():
            await conn.execute("INSERT INTO things VALUES (9)")
        assert await ids(other) == [9]


async def test_a_cancel_between_queries_rolls_the_transaction_back(url: str) -> None:
    async with two(url) as (conn, other):
        with trio.move_on_after(0.1) as scope:
            async with conn.transaction(), conn.transaction():
                await conn.execute("INSERT INTO things VALUES (1)")
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert usable(conn)
        assert await ids(other) == []


async def test_a_transaction_whose_scope_is_cancelled_without_an_await_is_not_committed(url: str) -> None:
    async with two(url) as (conn, other):
        with trio.CancelScope() as scope:
            async with conn.transaction():
                await conn.execute("INSERT INTO things VALUES (1)")
                scope.cancel()
        assert scope.cancelled_caught
        assert await ids(other) == []


async def test_a_savepoint_that_is_cancelled_by_its_own_deadline_leaves_the_rest_to_commit(url: str) -> None:
    async with two(url) as (conn, other):
        async with conn.transaction():
            await conn.execute("INSERT INTO things VALUES (1)")
            with trio.move_on_after(0.1):
                async with conn.transaction():
                    await conn.execute("INSERT INTO things VALUES (2)")
                    await conn.execute("SELECT pg_sleep(10)")
        assert await ids(other) == [1]


async def slow_commit(conn: Connection, seconds: float) -> None:
    """From now on a COMMIT after an INSERT takes so long, on this connection."""
    function = sql.SQL(
        """CREATE OR REPLACE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({}); RETURN NULL; END $$"""
    )
    await conn.execute(function.format(seconds))
    await conn.execute("CREATE TEMP TABLE late (id int)")
    await conn.execute(
        """CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()"""
    )


async def insert_with_slow_commit(conn: Connection) -> None:
    async with conn.transaction():
        await conn.execute("INSERT INTO things VALUES (1)")
        await conn.execute("INSERT INTO late VALUES (1)")


async def test_a_commit_that_ends_within_the_grace_counts_as_done_and_not_as_cancelled(url: str) -> None:
    async with two(url) as (conn, other):
        await slow_commit(conn, 0.5)
        with trio.move_on_after(0.2) as scope:
            await insert_with_slow_commit(conn)
        assert scope.cancel_called
        assert not scope.cancelled_caught
        assert await ids(other) == [1]
        assert usable(conn)


async def test_a_commit_without_an_answer_raises_instead_of_being_cancelled(url: str) -> None:
    async with two(url) as (conn, other):
        await slow_commit(conn, 1.5)
        await conn.execute("SET client_connection_check_interval = 0")  # else the server notices that we have gone
        pid = conn.info.backend_pid
        with trio.move_on_after(0.2) as scope, pytest.raises(CommitUnknown, match="not answered in time"):
            await insert_with_slow_commit(conn)
        assert scope.cancel_called
        assert conn.closed
        await backend_gone_or_idle(other, pid)
        assert await ids(other) == [1]  # it happened, but nobody could know


async def test_a_backend_that_is_killed_during_its_commit_leaves_the_outcome_unknown(url: str) -> None:
    async with two(url) as (conn, other):
        await slow_commit(conn, 5)
        pid = conn.info.backend_pid
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def kill() -> None:
                await trio.sleep(0.2)
                await other.execute("SELECT pg_terminate_backend(%s)", (pid,))

            with pytest.raises(CommitUnknown):
                await insert_with_slow_commit(conn)
        assert conn.closed


async def test_a_commit_that_the_server_refuses_is_known_to_have_failed(url: str) -> None:
    async with two(url) as (conn, other):
        await conn.execute("CREATE TEMP TABLE later (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with conn.transaction():
                await conn.execute("INSERT INTO things VALUES (1)")
                await conn.execute("INSERT INTO later VALUES (1), (1)")
        assert usable(conn)
        assert await ids(other) == []


async def test_a_transaction_does_not_commit_silently_what_failed(url: str) -> None:
    async with two(url) as (conn, other):
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            async with conn.transaction():
                await conn.execute("INSERT INTO things VALUES (1)")
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await conn.execute("SELECT 1/0")
        assert usable(conn)
        assert await ids(other) == []


async def test_a_transaction_whose_connection_was_lost_does_not_end_well(url: str) -> None:
    async with two(url) as (conn, other):
        with pytest.raises(psycopg.OperationalError, match="lost inside"):
            async with conn.transaction():
                await other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
                with pytest.raises(psycopg.OperationalError):
                    await conn.execute("INSERT INTO things VALUES (1)")
        assert conn.closed


async def test_an_ordinary_exception_rolls_back_and_passes_and_rollback_leaves_the_block_quietly(url: str) -> None:
    async with two(url) as (conn, other):
        with pytest.raises(ZeroDivisionError):
            async with conn.transaction():
                await conn.execute("INSERT INTO things VALUES (1)")
                raise ZeroDivisionError
        async with conn.transaction():
            await conn.execute("INSERT INTO things VALUES (2)")
            raise psycopg.Rollback
        async with conn.transaction(force_rollback=True):
            await conn.execute("INSERT INTO things VALUES (3)")
        assert usable(conn)
        assert await ids(other) == []


async def copy_in_asleep(conn: Connection) -> None:
    async with conn.cursor().copy("COPY things FROM STDIN") as copy:
        for i in range(100):
            await copy.write_row((i, "x"))
        await trio.sleep_forever()


async def copy_in_writing(conn: Connection) -> None:
    async with conn.cursor().copy("COPY things FROM STDIN") as copy:
        i = 0
        while True:
            await copy.write_row((i, "x" * 100))
            i += 1


async def copy_out_midway(conn: Connection) -> None:
    query = "COPY (SELECT repeat('x', 100) FROM generate_series(1, %s)) TO STDOUT"
    async with conn.cursor().copy(query, (ENOUGH,)) as copy:
        await copy.read()
        await trio.sleep_forever()


async def copy_out_reading(conn: Connection) -> None:
    slowly = "COPY (SELECT repeat('x', 100), pg_sleep(0.001) FROM generate_series(1, 100000)) TO STDOUT"
    async with conn.cursor().copy(slowly) as copy:
        async for _ in copy.rows():
            pass


async def copy_out_at_its_start(conn: Connection) -> None:
    async with conn.cursor().copy("COPY (SELECT pg_sleep(10)) TO STDOUT") as copy:
        await copy.read()


async def pipeline_asleep(conn: Connection) -> None:
    async with conn.pipeline():
        await conn.execute("INSERT INTO things VALUES (1)")
        await trio.sleep_forever()


async def pipeline_waiting(conn: Connection) -> None:
    async with conn.pipeline():
        await conn.execute("INSERT INTO things VALUES (1)")
        cur = await conn.execute("SELECT pg_sleep(10)")
        await conn.execute("INSERT INTO things VALUES (2)")
        await cur.fetchone()


async def pipeline_in_transaction(conn: Connection) -> None:
    async with conn.transaction():
        await pipeline_waiting(conn)


async def many(conn: Connection) -> None:
    await conn.cursor().executemany("SELECT pg_sleep(%s)", [(0.05,)] * 400)


async def stream_reading(conn: Connection) -> None:
    async with stream(conn, "SELECT i, pg_sleep(0.01) FROM generate_series(1, 10000) i") as rows:
        async for _ in rows:
            pass


async def stream_asleep(conn: Connection) -> None:
    async with stream(conn, "SELECT generate_series(1, 200000)") as rows:
        async for _ in rows:
            await trio.sleep_forever()


@pytest.mark.parametrize(
    "operation",
    [
        copy_in_asleep,
        copy_in_writing,
        copy_out_midway,
        copy_out_reading,
        copy_out_at_its_start,
        pipeline_asleep,
        pipeline_waiting,
        pipeline_in_transaction,
        many,
        stream_reading,
        stream_asleep,
    ],
)
async def test_a_cancelled_operation_leaves_a_closed_or_a_clean_connection_and_nothing_running(
    url: str, operation: Callable[[Connection], Awaitable[None]]
) -> None:
    async with two(url) as (conn, other):
        pid = conn.info.backend_pid
        started = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await operation(conn)
        assert scope.cancelled_caught
        assert trio.current_time() - started < 0.1 + GRACE_S
        assert conn.closed or usable(conn)
        with trio.fail_after(3):
            await backend_gone_or_idle(other, pid)
        assert await ids(other) == []
        if not conn.closed:
            assert await (await conn.execute("SELECT 7")).fetchone() == (7,)


async def test_a_copy_that_waits_for_a_lock_is_cancelled_with_full_buffers(url: str) -> None:
    async with two(url) as (conn, other):
        pid = conn.info.backend_pid
        async with other.transaction():
            await other.execute("LOCK TABLE things")
            started = trio.current_time()
            with trio.move_on_after(0.3) as scope:
                await copy_in_writing(conn)
            assert scope.cancelled_caught
            assert trio.current_time() - started < 0.3 + GRACE_S
        assert conn.closed or usable(conn)
        await backend_gone_or_idle(other, pid)
        assert await ids(other) == []


async def test_a_copy_that_a_frozen_server_does_not_read_ends_after_the_grace(url: str) -> None:
    async with two(url) as (conn, other):
        pid = conn.info.backend_pid
        try:
            started = trio.current_time()
            with trio.move_on_after(0.3) as scope:
                async with conn.cursor().copy("COPY things FROM STDIN") as copy:
                    os.kill(pid, signal.SIGSTOP)
                    while True:
                        await copy.write_row((1, "x" * 1000))
            assert scope.cancelled_caught
            assert trio.current_time() - started < 0.3 + GRACE_S + 0.3
            assert conn.closed
        finally:
            os.kill(pid, signal.SIGCONT)
        await backend_gone_or_idle(other, pid)
        assert await ids(other) == []


async def test_a_copy_whose_block_raises_writes_nothing_and_the_connection_goes_on(url: str) -> None:
    async with two(url) as (conn, other):
        with pytest.raises(ZeroDivisionError):
            async with conn.cursor().copy("COPY things FROM STDIN") as copy:
                await copy.write_row((1, "x"))
                raise ZeroDivisionError
        assert usable(conn)
        assert await ids(other) == []


async def test_copy_in_and_out_carry_every_row(url: str) -> None:
    async with two(url) as (conn, _):
        rows = [(i, f"note\t{i}\n") for i in range(20_000)]
        cur = conn.cursor()
        async with conn.transaction(), cur.copy("COPY things FROM STDIN") as copy:
            for row in rows:
                await copy.write_row(row)
        assert cur.rowcount == len(rows)
        async with conn.cursor().copy("COPY (SELECT * FROM things ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            assert [row async for row in copy.rows()] == rows


async def test_a_stream_that_is_left_early_stops_in_the_server(url: str) -> None:
    async with two(url) as (conn, _):
        async with stream(conn, "SELECT generate_series(1, 200000)") as rows:
            async for row in rows:
                assert row == (1,)
                break
        assert usable(conn)
        assert await (await conn.execute("SELECT 7")).fetchone() == (7,)


async def test_a_pipeline_with_both_directions_full_does_not_deadlock(url: str) -> None:
    async with two(url) as (conn, _):
        ballast = "x" * 100_000
        async with conn.pipeline():
            cursors = [await conn.execute("SELECT repeat('y', 1000000), %s::text", (ballast,)) for _ in range(60)]
            lengths = [len(row[0]) + len(row[1]) for cur in cursors if (row := await cur.fetchone()) is not None]
        assert lengths == [1_100_000] * 60


async def test_a_pipeline_that_waits_for_both_directions_can_be_cancelled(url: str) -> None:
    async with two(url) as (conn, _):
        pid = conn.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.move_on_after(0.3) as scope:
                async with conn.pipeline():
                    while True:
                        await conn.execute("SELECT %s::text", ("x" * 1_000_000,))
            assert scope.cancelled_caught
            assert conn.closed
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_after_an_error_in_a_pipeline_no_statement_is_believed_to_be_prepared(url: str) -> None:
    async with two(url) as (conn, _):
        conn.prepare_threshold = 1
        await conn.execute("SELECT 'again', %s::int", (1,))
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with conn.pipeline():
                await conn.execute("SELECT 1 / %s", (0,))
                await conn.execute("SELECT 'again', %s::int", (2,))  # PREPARE and EXECUTE, both skipped
        assert usable(conn)
        for i in range(4):
            assert await (await conn.execute("SELECT 'again', %s::int", (i,))).fetchone() == ("again", i)


async def test_a_transaction_inside_a_pipeline_is_refused(url: str) -> None:
    async with two(url) as (conn, _):
        async with conn.pipeline():
            with pytest.raises(psycopg.ProgrammingError, match="transaction first"):
                async with conn.transaction():
                    pass
        assert usable(conn)


async def test_two_tasks_take_turns_on_a_connection(url: str) -> None:
    async with two(url) as (conn, _):
        seen: list[int] = []

        async def ask(n: int) -> None:
            seen.extend(n for (n, _) in await (await conn.execute("SELECT %s::int, pg_sleep(0.01)", (n,))).fetchall())

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(ask, n)
        assert sorted(seen) == list(range(5))


async def test_a_waiter_for_its_turn_can_be_cancelled_and_the_next_one_gets_it(url: str) -> None:
    async with two(url) as (conn, _):

        async def impatient() -> None:
            with trio.move_on_after(0.05):
                await conn.execute("SELECT 1")
                pytest.fail("had a turn")

        async def patient() -> None:
            await conn.execute("SELECT pg_sleep(0.2)")

        async with trio.open_nursery() as nursery:
            for task in (patient, impatient, patient):
                nursery.start_soon(task)
                await trio.testing.wait_all_tasks_blocked()
        assert usable(conn)


async def test_a_statement_inside_a_copy_of_the_same_task_is_an_error_and_no_deadlock(url: str) -> None:
    async with two(url) as (conn, _):
        with pytest.raises(RuntimeError, match="in the middle of another operation"):
            async with conn.cursor().copy("COPY things FROM STDIN"):
                await conn.execute("SELECT 1")
        assert usable(conn)


async def test_a_connection_that_is_closed_under_a_query_ends_it(url: str) -> None:
    async with two(url) as (conn, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def close() -> None:
            await trio.sleep(0.1)
            await conn.close()

        with pytest.raises(psycopg.OperationalError, match="closed"):
            await conn.execute("SELECT pg_sleep(10)")


async def query(conn: Connection) -> None:
    await conn.execute("SELECT pg_sleep(10)")


@pytest.mark.parametrize("operation", [query, copy_out_reading, pipeline_waiting, pipeline_in_transaction, many])
async def test_a_backend_that_is_killed_ends_what_it_does_and_the_connection(
    url: str, operation: Callable[[Connection], Awaitable[None]]
) -> None:
    async with two(url) as (conn, other), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def kill() -> None:
            await trio.sleep(0.1)
            await other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))

        with pytest.raises(psycopg.OperationalError, match=r"terminating connection|server closed"):
            await operation(conn)
        assert conn.closed


async def relay_that_hides_the_end(client: trio.SocketStream, server_socket: str) -> None:
    """Between client and server: what the server says comes through at once, its hanging up HIDDEN_S late."""
    server = await trio.open_unix_socket(server_socket)

    async def upwards() -> None:
        with suppress(trio.BrokenResourceError):
            async for chunk in client:
                await server.send_all(chunk)

    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(upwards)
        with suppress(trio.BrokenResourceError):
            async for chunk in server:
                await client.send_all(chunk)
        await trio.sleep(HIDDEN_S)
        nursery.cancel_scope.cancel()


async def test_a_fatal_answer_closes_the_connection_before_its_end_is_seen(url: str) -> None:
    direct = conninfo_to_dict(url)
    relay = partial(relay_that_hides_the_end, server_socket=f"{direct['host']}/.s.PGSQL.{direct['port']}")
    async with two(url) as (_, other), trio.open_nursery() as relays:
        port = (await relays.start(trio.serve_tcp, relay, 0))[0].socket.getsockname()[1]
        async with await session(make_conninfo(url, host="127.0.0.1", port=port)) as conn:

            @relays.start_soon
            async def kill() -> None:
                await trio.sleep(0.1)
                await other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))

            started = trio.current_time()
            with pytest.raises(psycopg.errors.AdminShutdown):
                await conn.cursor().executemany("SELECT %s::int", repeat((1,)))
            assert conn.closed
            assert trio.current_time() - started < HIDDEN_S
        relays.cancel_scope.cancel()


async def test_without_autocommit_a_block_commits_and_an_exception_rolls_back(url: str) -> None:
    async with two(url) as (_, other):
        async with await session(url) as conn:
            await conn.set_autocommit(False)
            await conn.execute("INSERT INTO things VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            async with await session(url) as conn:
                await conn.set_autocommit(False)
                await conn.execute("INSERT INTO things VALUES (2)")
                raise ZeroDivisionError
        with trio.move_on_after(0.1):
            async with await session(url) as conn:
                await conn.set_autocommit(False)
                await conn.execute("INSERT INTO things VALUES (3)")
                try:
                    await trio.sleep_forever()
                finally:
                    await conn.rollback()
                    assert usable(conn)
        assert await ids(other) == [1]


async def test_a_long_answer_takes_few_turns_of_a_busy_event_loop(url: str) -> None:
    """Each turn may be 10 ms where it is full of senders; a thousand events have 1.2 MB."""

    async def be_busy() -> None:
        while True:
            time.sleep(BUSY_S)  # noqa: ASYNC251 - that is what it is about
            await trio.lowlevel.checkpoint()

    async with two(url) as (conn, _), trio.open_nursery() as others:
        others.start_soon(be_busy)
        turns = OwnTurns()
        trio.lowlevel.add_instrument(turns)
        cursor = await conn.execute("SELECT repeat('x', 1200) FROM generate_series(1, 1000)")
        trio.lowlevel.remove_instrument(turns)
        others.cancel_scope.cancel()
        assert len(await cursor.fetchall()) == 1000
    assert turns.count <= 20
