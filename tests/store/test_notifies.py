"""LISTEN: what arrives is returned once, at once, in order, and a lost connection is said."""

from __future__ import annotations

from typing import Final

import pytest
import trio

from daemon.errors import DatabaseUnavailable
from daemon.store.connection import Connection, connect
from tests.support.own_server import OwnServer

LIMIT_S: Final = 15.0


async def session(server: OwnServer) -> Connection:
    return await connect(server.url, timeout_s=5, application_name="under-test")


async def test_notifications_come_once_in_order_also_those_that_came_during_a_query(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn, await session(own_server) as other:
            await conn.execute("LISTEN a")
            await conn.execute("LISTEN b")
            await conn.execute("NOTIFY a, '1'")
            await other.execute("NOTIFY b, '2'")
            await conn.execute("SELECT 1")
            await other.execute("NOTIFY a, 'ü'")
            seen: list[tuple[str, str]] = []
            while len(seen) < 3:
                seen += [(n.channel, n.payload) for n in await conn.next_notifies(5)]
            assert seen == [("a", "1"), ("b", "2"), ("a", "ü")]
            assert await conn.next_notifies(0) == []


async def test_waiting_for_a_notification_ends_at_its_time_and_wakes_at_once(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn, await session(own_server) as other:
            await conn.execute("LISTEN a")
            started = trio.current_time()
            assert await conn.next_notifies(0.2) == []
            assert 0.2 <= trio.current_time() - started < 0.4
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    await other.execute("NOTIFY a, 'now'")

                started = trio.current_time()
                assert [n.payload for n in await conn.next_notifies(5)] == ["now"]
                assert trio.current_time() - started < 1


async def test_a_cancelled_wait_loses_nothing(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn, await session(own_server) as other:
            await conn.execute("LISTEN a")
            seen: list[str] = []
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    for i in range(200):
                        await other.execute("SELECT pg_notify('a', %s)", (str(i),))

                while len(seen) < 200:
                    with trio.move_on_after(0.0005):
                        seen += [n.payload for n in await conn.next_notifies(5)]
            assert seen == [str(i) for i in range(200)]


@pytest.mark.threat("N115")
async def test_a_flood_arrives_whole_and_in_bounded_portions(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn, await session(own_server) as other:
            await conn.execute("LISTEN a")
            await other.execute("SELECT pg_notify('a', i || repeat('x', 2000)) FROM generate_series(1, 5000) i")
            portions: list[int] = []
            while sum(portions) < 5000:
                portions.append(len(await conn.next_notifies(5)))
            assert sum(portions) == 5000
            assert max(portions) < 5000


async def test_the_end_of_the_server_is_an_outage_within_a_moment(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn:
            await conn.execute("LISTEN a")
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def kill() -> None:
                    await trio.sleep(0.1)
                    own_server.kill()

                with pytest.raises(DatabaseUnavailable, match="the database is unavailable"):
                    await conn.next_notifies(10)
            with pytest.raises(DatabaseUnavailable):
                await conn.next_notifies(10)
            assert conn.closed


async def test_a_listening_backend_that_is_terminated_is_an_outage(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await session(own_server) as conn, await session(own_server) as other:
            await conn.execute("LISTEN a")
            await other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
            with pytest.raises(DatabaseUnavailable):
                await conn.next_notifies(10)
            assert conn.closed
