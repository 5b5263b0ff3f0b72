"""What the schema of the next version means to the daemons of this one."""

from __future__ import annotations

from typing import Final

import pytest
import trio

from daemon.errors import SchemaMismatch
from daemon.store.connection import connect
from daemon.store.migrate import check_version

LIMIT_S: Final = 20.0


async def test_a_daemon_at_work_may_live_with_a_newer_schema_and_with_no_other(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            await conn.execute("INSERT INTO dealix.schema_migrations VALUES (9000, '9000_of_tomorrow', 'x')")
            await check_version(conn, at_work=True)
            await conn.execute("DELETE FROM dealix.schema_migrations WHERE version = 2")
            with pytest.raises(SchemaMismatch, match="0002_emit is missing"):
                await check_version(conn, at_work=True)
            await conn.execute("INSERT INTO dealix.schema_migrations VALUES (3, '0003_of_somebody', 'x')")
            with pytest.raises(SchemaMismatch, match="0003_of_somebody"):
                await check_version(conn, at_work=True)
