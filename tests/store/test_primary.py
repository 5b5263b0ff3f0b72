"""Which server a session is on: all sessions of a process are on one primary, the newest that was met."""

from __future__ import annotations

from typing import Final

import pytest
import trio

from daemon.errors import DatabaseUnavailable
from daemon.store.connection import Connection, connect
from daemon.store.primary import Allegiance, Primary, ask
from daemon.store.sessions import Database
from tests.support.own_server import OwnServer

LIMIT_S: Final = 20.0


async def session(server: OwnServer) -> Connection:
    return await connect(server.url, timeout_s=5, application_name="under-test")


async def test_a_primary_is_told_by_cluster_and_timeline(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn:
            rows = await (await conn.execute("SELECT system_identifier FROM pg_control_system()")).fetchall()
            assert await ask(conn) == Primary(rows[0][0], 1)


async def test_a_role_without_any_rights_may_ask(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn:
            await conn.execute("DROP ROLE IF EXISTS nobody_much")
            await conn.execute("CREATE ROLE nobody_much")
            expected = await ask(conn)
            await conn.execute("SET ROLE nobody_much")
            assert await ask(conn) == expected


async def test_a_server_that_does_not_tell_is_taken_as_it_is(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn, conn.transaction(force_rollback=True):
            await conn.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            await conn.execute("CREATE ROLE nobody_at_all")
            await conn.execute("SET LOCAL ROLE nobody_at_all")
            async with conn.transaction(force_rollback=True):
                assert await ask(conn) is None


async def test_the_first_session_on_a_newer_primary_ends_those_on_the_former(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        allegiance = Allegiance()
        async with await session(own_server) as old, await session(own_server) as new:
            present = await ask(old)
            assert present is not None
            await allegiance.admit(old)
            # As if it had been met before the promotion that this server stands for.
            allegiance.primary = former = Primary(present.cluster, 0)
            allegiance._sessions[old] = former
            await allegiance.admit(new)
            assert (old.closed, new.closed) == (True, False)
            assert allegiance.primary == present


@pytest.mark.parametrize(
    ("met", "said"), [(Primary(1, 1), "another database cluster"), (Primary(0, 2), "a former primary, on timeline 1")]
)
async def test_a_session_on_another_cluster_or_a_former_primary_is_refused(
    own_server: OwnServer, met: Primary, said: str
) -> None:
    with trio.fail_after(LIMIT_S):
        allegiance = Allegiance()
        async with await session(own_server) as conn:
            found = await ask(conn)
            assert found is not None
            allegiance.primary = Primary(met.cluster or found.cluster, met.timeline)
            with pytest.raises(DatabaseUnavailable, match=said):
                await allegiance.admit(conn)


async def test_a_host_that_is_not_admitted_is_passed_over_for_the_next(own_server: OwnServer) -> None:
    looks: list[Connection] = []

    async def admit(conn: Connection) -> None:
        looks.append(conn)
        if len(looks) == 1:
            raise DatabaseUnavailable("not this one")

    with trio.fail_after(LIMIT_S):
        both = own_server.url.replace(f":{own_server.port}/", f":{own_server.port},127.0.0.1:{own_server.port}/")
        async with await connect(both, timeout_s=5, application_name="under-test", admit=admit) as conn:
            assert looks[1] is conn
            assert looks[0].closed


async def test_a_server_that_dies_while_a_session_is_looked_at_is_an_outage(own_server: OwnServer) -> None:
    async def admit(conn: Connection) -> None:
        await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with trio.fail_after(LIMIT_S), pytest.raises(DatabaseUnavailable, match="terminating connection"):
        await connect(own_server.url, timeout_s=5, application_name="under-test", admit=admit)


async def test_a_pool_behind_a_pooler_looks_again_at_connections_that_it_has(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        database = Database(own_server.url, f"{own_server.url}?connect_timeout=7")
        pool = database.pool("under-test", size=1)
        pool._recheck_s = 0.0
        async with pool.connection(5) as first:
            pass
        assert database.allegiance.primary is not None
        database.allegiance.primary = Primary(1, 1)
        with pytest.raises(DatabaseUnavailable, match="another database cluster"):
            async with pool.connection(1):
                pass
        assert first.closed
        await pool.aclose()
