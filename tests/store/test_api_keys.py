"""API keys: only a digest is kept, revoking ends them at once, and their use is noted without a write each time."""

from __future__ import annotations

import re
from typing import Final

import psycopg
import pytest
import trio

from daemon.ids import CustomerId
from daemon.store import api_keys
from daemon.store.api_keys import digest_of
from daemon.store.connection import Connection, connect

LIMIT_S: Final = 15.0
ACME: Final = CustomerId("acme")


@pytest.mark.threat("N89", "N96")
async def test_a_new_key_is_recognised_by_its_digest_and_is_nowhere_in_the_database(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, key = await api_keys.create(conn, ACME)
        assert re.fullmatch(r"dlx_[A-Za-z0-9_-]{43}", key)
        assert re.fullmatch(r"key_[0-9a-f]{24}", made.id)
        found = await api_keys.authenticate(conn, digest_of(key))
        assert found is not None
        assert (found.id, found.customer_id) == (made.id, ACME)
        cursor = await conn.execute("SELECT k::text FROM dealix.api_keys k")
        assert key.removeprefix("dlx_") not in str(await cursor.fetchall())


async def test_an_ops_key_has_no_customer(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        _, key = await api_keys.create(conn, None)
        found = await api_keys.authenticate(conn, digest_of(key))
        assert found is not None
        assert found.customer_id is None


@pytest.mark.parametrize("presented", ["", "dlx_", "DLX_{}", "{}x", " {}", "é", "\udcff", "\0", "x" * 10_000])
async def test_nothing_else_is_recognised(conn: Connection, presented: str) -> None:
    with trio.fail_after(LIMIT_S):
        _, key = await api_keys.create(conn, ACME)
        assert await api_keys.authenticate(conn, digest_of(presented.format(key.removeprefix("dlx_")))) is None


@pytest.mark.threat("N88")
async def test_a_revoked_key_ends_at_once_in_every_session_and_stays_listed(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            await connect(migrated_database, timeout_s=5, application_name="one") as one,
            await connect(migrated_database, timeout_s=5, application_name="two") as two,
        ):
            made, key = await api_keys.create(one, ACME)
            assert await api_keys.authenticate(two, digest_of(key)) is not None
            assert await api_keys.revoke(one, made.id) is True
            assert await api_keys.authenticate(two, digest_of(key)) is None
            (listed,) = await api_keys.all_keys(one)
            assert listed.revoked_at is not None
            assert await api_keys.revoke(one, made.id) is True
            assert [k.revoked_at for k in await api_keys.all_keys(one)] == [listed.revoked_at]
            assert await api_keys.revoke(one, "key_" + "0" * 24) is False


@pytest.mark.threat("N82")
async def test_an_expired_key_is_refused(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        _, key = await api_keys.create(conn, ACME)
        await conn.execute("UPDATE dealix.api_keys SET expires_at = now() + interval '1 hour'")
        assert await api_keys.authenticate(conn, digest_of(key)) is not None
        await conn.execute("UPDATE dealix.api_keys SET expires_at = now() - interval '1 second'")
        assert await api_keys.authenticate(conn, digest_of(key)) is None


async def test_a_key_that_was_made_for_a_time_expires_by_the_databases_clock(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, key = await api_keys.create(conn, ACME, valid_s=0.5)
        assert made.expires_at is not None
        assert await api_keys.authenticate(conn, digest_of(key)) is not None
        await conn.execute("SELECT pg_sleep(0.6)")
        assert await api_keys.authenticate(conn, digest_of(key)) is None
        assert (await api_keys.create(conn, ACME))[0].expires_at is None


async def test_use_is_noted_once_a_minute_at_most(conn: Connection) -> None:
    version = "SELECT last_used_at, xmin::text FROM dealix.api_keys"
    with trio.fail_after(LIMIT_S):
        _, key = await api_keys.create(conn, ACME)
        await api_keys.authenticate(conn, digest_of(key))
        first = await (await conn.execute(version)).fetchall()
        assert first[0][0] is not None
        await api_keys.authenticate(conn, digest_of(key))
        assert await (await conn.execute(version)).fetchall() == first
        await conn.execute("UPDATE dealix.api_keys SET last_used_at = now() - interval '61 seconds'")
        await api_keys.authenticate(conn, digest_of(key))
        again = await (await conn.execute(version)).fetchall()
        assert again[0][0] > first[0][0]


async def test_the_database_itself_refuses_a_bad_customer_id(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S), pytest.raises(psycopg.errors.CheckViolation):
        await api_keys.create(conn, CustomerId("not a customer"))
