"""The schema comes up to date once, in order, whoever asks for it and however many do."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, LiteralString

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from daemon import clock
from daemon.errors import SchemaMismatch
from daemon.ids import CustomerId
from daemon.store import deliveries
from daemon.store import migrate as migrations
from daemon.store.connection import Connection, connect
from daemon.store.deliveries import Filter
from daemon.store.migrate import EMITTER_ROLE_SQL, check_version, emitter_role_missing, known, migrate
from daemon.store.partitions import make_ahead
from tests.support.log import Row, write
from tests.support.postgres import fresh_database

LIMIT_S: Final = 20.0


async def session(url: str) -> Connection:
    return await connect(url, timeout_s=5, application_name="test")


def test_migrations_have_numbers_of_their_own() -> None:
    versions = [m.version for m in known()]
    assert versions == sorted(set(versions))
    assert versions[:2] == [1, 2]


@pytest.mark.external_postgres
@pytest.mark.parametrize("server", ["embedded_server", "debian_postgres"])
async def test_an_empty_database_gets_every_migration_and_a_second_run_finds_nothing_to_do(
    server: str, request: pytest.FixtureRequest
) -> None:
    url = fresh_database(request.getfixturevalue(server))
    with trio.fail_after(LIMIT_S):
        async with await session(url) as conn:
            with pytest.raises(SchemaMismatch, match=r"older.*dealix migrate"):
                await check_version(conn)
            assert await migrate(conn) == [m.name for m in known()]
            await check_version(conn)
            assert await migrate(conn) == []


async def test_a_log_that_is_there_already_gets_its_new_indexes_day_by_day(
    embedded_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = known()
    url = fresh_database(embedded_server)
    with trio.fail_after(LIMIT_S):
        async with await session(url) as conn:
            monkeypatch.setattr(migrations, "known", lambda: tuple(m for m in all_of_them if m.version < 14))
            await migrate(conn)
            await make_ahead(conn, days=2)
            made = await write(conn, [Row("whk_" + "1" * 24, f"e{n}") for n in range(20)])
            monkeypatch.setattr(migrations, "known", lambda: all_of_them)
            assert "0014_log_filters" in await migrate(conn)
            await make_ahead(conn, days=3)
            cursor = await conn.execute("""
                SELECT child.relname, replace(regexp_replace(indexdef, '.* USING ', ''), ' (', '('), parent.relname
                FROM pg_inherits i
                JOIN pg_class child ON child.oid = i.inhrelid
                JOIN pg_class parent ON parent.oid = i.inhparent AND parent.relname ~ '^attempts_(cust|subs)'
                JOIN pg_indexes d ON d.schemaname = 'dealix' AND d.indexname = child.relname
            """)
            rows = await cursor.fetchall()
            of_each = {parent: {definition for _, definition, name in rows if name == parent} for *_, parent in rows}
            assert of_each == {
                "attempts_customer": {"btree(customer_id, id) INCLUDE(created_at, event_type, success)"},
                "attempts_customer_failed": {
                    "btree(customer_id, id) INCLUDE(created_at, event_type, subscription_id) WHERE(NOT success)"
                },
                "attempts_subscription": {
                    "btree(subscription_id, id) INCLUDE(created_at, customer_id, event_type, success)"
                },
            }
            assert len(rows) == 3 * 5  # yesterday to the third day from now
            cursor = await conn.execute("""
                SELECT count(*), count(*) FILTER (WHERE indisvalid) FROM pg_index
                WHERE indrelid IN (SELECT 'dealix.attempts'::regclass UNION
                                   SELECT inhrelid FROM pg_inherits WHERE inhparent = 'dealix.attempts'::regclass)
            """)
            assert await cursor.fetchall() == [(5 * 6, 5 * 6)]
            page = await deliveries.page(
                conn,
                Filter(CustomerId("acme"), event_type="deal.won"),
                limit=50,
                before=None,
                oldest=clock.now() - timedelta(days=1),
                look_s=10,
            )
            assert [row.id for row in page.rows] == sorted(made, reverse=True)


async def test_of_several_replicas_that_migrate_at_once_each_migration_is_done_by_one(embedded_server: str) -> None:
    url = fresh_database(embedded_server)
    done: list[str] = []

    async def replica() -> None:
        async with await session(url) as conn:
            done.extend(await migrate(conn))
            await make_ahead(conn, days=1)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(replica)
    assert sorted(done) == [m.name for m in known()]


async def test_a_changed_migration_is_refused_by_its_name(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(migrated_database) as conn:
            await conn.execute("UPDATE dealix.schema_migrations SET sha256 = 'of something else' WHERE version = 2")
            for check in (check_version, migrate):
                with pytest.raises(SchemaMismatch, match="0002_emit was applied to this database in another form"):
                    await check(conn)


async def test_a_migration_of_a_newer_program_is_refused_by_its_name(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(migrated_database) as conn:
            await conn.execute("INSERT INTO dealix.schema_migrations VALUES (9000, '9000_of_tomorrow', 'x')")
            for check in (check_version, migrate):
                with pytest.raises(SchemaMismatch, match=r"newer than this program.*9000_of_tomorrow"):
                    await check(conn)


async def test_after_a_refusal_or_a_cancel_the_session_holds_no_lock(migrated_database: str) -> None:
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    with trio.fail_after(LIMIT_S):
        async with await session(migrated_database) as first, await session(migrated_database) as second:
            await second.execute("INSERT INTO dealix.schema_migrations VALUES (9000, '9000_of_tomorrow', 'x')")
            with pytest.raises(SchemaMismatch):
                await migrate(first)
            assert await one(first, locks) == 0
            await second.execute("SELECT pg_advisory_lock(%(key)s)", {"key": 0x6465616C69780001})
            with trio.move_on_after(0.1) as scope:  # a wait that only a cancel ends
                await migrate(first)
            assert scope.cancelled_caught
            assert await one(first, locks) == 0


async def one(conn: Connection, query: LiteralString) -> object:
    row = await (await conn.execute(query)).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.external_postgres
async def test_a_role_that_may_not_create_roles_migrates_and_is_told_what_to_run(debian_postgres: str) -> None:
    """On the server that no other test of this kind uses at once: dealix_emitter belongs to the whole cluster."""
    url = fresh_database(debian_postgres)
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS plain_owner")
        admin.execute("CREATE ROLE plain_owner LOGIN")
        admin.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO plain_owner").format(sql.Identifier(str(name))))
        existed = admin.execute("SELECT to_regrole('dealix_emitter') IS NOT NULL").fetchone() == (True,)
        if existed:
            admin.execute("ALTER ROLE dealix_emitter RENAME TO set_aside")
        try:
            with trio.fail_after(LIMIT_S):
                async with await session(make_conninfo(url, user="plain_owner")) as conn:
                    assert await migrate(conn) == [m.name for m in known()]
                    assert await emitter_role_missing(conn) == EMITTER_ROLE_SQL
                    admin.execute(EMITTER_ROLE_SQL.encode())
                    assert await emitter_role_missing(conn) is None
        finally:
            admin.execute("DROP OWNED BY dealix_emitter")
            admin.execute("DROP ROLE dealix_emitter")
            if existed:
                admin.execute("ALTER ROLE set_aside RENAME TO dealix_emitter")


async def test_public_may_execute_no_function_of_the_schema(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(migrated_database) as conn:
            cursor = await conn.execute("""
                SELECT p.oid::regprocedure::text
                FROM pg_proc p
                WHERE p.pronamespace = 'dealix'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')
            """)
            assert await cursor.fetchall() == []
            assert await emitter_role_missing(conn) is None


async def test_the_schema_does_not_depend_on_settings_of_the_role_or_database(embedded_server: str) -> None:
    url = fresh_database(embedded_server)
    odd = "-c standard_conforming_strings=off -c DateStyle=German -c TimeZone=Asia/Kathmandu -c search_path=nowhere"
    with trio.fail_after(LIMIT_S):
        async with await session(make_conninfo(url, options=odd)) as conn:
            await migrate(conn)
            assert await make_ahead(conn, days=1) == 6
            cursor = await conn.execute("SELECT * FROM dealix.emit('acme', 'deal.won', '{}')")
            assert len(await cursor.fetchall()) == 1
