"""The schema: numbered SQL files applied in order under one lock, and the rights of the role `dealix_emitter`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, LiteralString

import trio
from psycopg import Error, errors

from daemon.errors import SchemaMismatch
from daemon.store.connection import Connection

_LOCK: Final = 0x6465616C69780001
"""Advisory lock of whoever migrates: `dealix` in ASCII, then 1. One bigint, so that it meets no two-int lock."""

_UNLOCK_S: Final = 5.0

_MAKE_TABLE: Final = """
CREATE SCHEMA IF NOT EXISTS dealix;
CREATE TABLE IF NOT EXISTS dealix.schema_migrations (
    version     integer PRIMARY KEY,
    name        text NOT NULL,
    sha256      text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""

_APPLIED: Final = """
SELECT version, name, sha256
FROM dealix.schema_migrations
ORDER BY version
"""

_RECORD: Final = """
INSERT INTO dealix.schema_migrations (version, name, sha256)
VALUES (%(version)s, %(name)s, %(sha256)s)
"""

# Postgres lets everybody execute a new function. The grants to PUBLIC go with every migration, since one may add some.
_CLOSE: Final = "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dealix FROM PUBLIC"

_GRANTS: Final = """GRANT USAGE ON SCHEMA dealix TO dealix_emitter;
GRANT EXECUTE ON FUNCTION dealix.emit(text, text, text, text, boolean) TO dealix_emitter;
GRANT EXECUTE ON FUNCTION dealix.emit(text, text, json, text, boolean) TO dealix_emitter;
GRANT EXECUTE ON FUNCTION dealix.emit(text, text, jsonb, text, boolean) TO dealix_emitter;"""

EMITTER_ROLE_SQL: Final = f"CREATE ROLE dealix_emitter NOLOGIN;\n{_GRANTS}"
"""What somebody who may create roles has to run where the migrating role may not."""

# Roles belong to the whole cluster: another database's migration may make this one at the same moment, which shows as
# either of the first two errors. Without the right to create roles, `emitter_role_missing` tells.
_MAKE_ROLE: Final = """
DO $$
BEGIN
    IF to_regrole('dealix_emitter') IS NULL THEN
        CREATE ROLE dealix_emitter NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN
    NULL;
END $$
"""

_ROLE_EXISTS: Final = "SELECT to_regrole('dealix_emitter') IS NOT NULL"

_ROLE_MAY_EMIT: Final = """
SELECT coalesce(bool_and(has_function_privilege(r.oid, p.oid, 'EXECUTE')
                         AND has_schema_privilege(r.oid, p.pronamespace, 'USAGE')), false)
FROM pg_proc p
JOIN pg_roles r ON r.rolname = 'dealix_emitter'
WHERE p.pronamespace = to_regnamespace('dealix') AND p.proname = 'emit'
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`. `name` is the file's without `.sql`, `sha256` hex over its bytes."""

    version: int
    name: str
    sql: bytes
    sha256: str


@cache
def known() -> tuple[Migration, ...]:
    """The migrations of this program, lowest version first."""
    found: list[Migration] = []
    for file in files("daemon.store").joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            content = file.read_bytes()
            name = file.name.removesuffix(".sql")
            digest = hashlib.sha256(content).hexdigest()
            found.append(Migration(int(name[:4]), name, content, digest))
    return tuple(sorted(found, key=lambda m: m.version))


async def migrate(conn: Connection) -> list[str]:
    """Bring the schema up to date; the names of the migrations that this call applied, none where all was there.

    Several replicas may call it at once: one works, the others wait for it. Each file is a transaction of its own, so
    that what was applied stays applied if a later one fails. `conn` must be in autocommit, outside a transaction.
    Raises SchemaMismatch where the database carries a migration that this program does not know, or knows otherwise.
    """
    async with _locked(conn):
        pending = _pending(await _applied(conn))
        for migration in pending:
            async with conn.transaction():
                # The files are written for this; a role or database may have the old default.
                await conn.execute("SET LOCAL standard_conforming_strings = on")
                await conn.execute(_MAKE_TABLE)
                await conn.execute(migration.sql)
                await conn.execute(_CLOSE)
                await conn.execute(
                    _RECORD, {"version": migration.version, "name": migration.name, "sha256": migration.sha256}
                )
        if pending or not await _one(conn, _ROLE_MAY_EMIT):
            await conn.execute(_MAKE_ROLE)
            if await _one(conn, _ROLE_EXISTS):
                # A role that only runs the daemon may not grant what another has made: `emitter_role_missing` tells.
                with suppress(errors.InsufficientPrivilege):
                    await conn.execute(_GRANTS)
    return [m.name for m in pending]


async def is_empty(conn: Connection) -> bool:
    """Whether no migration was ever applied to this database."""
    return not await _applied(conn)


async def check_version(conn: Connection, *, at_work: bool = False) -> None:
    """Raises SchemaMismatch, with what to do, unless the database's schema is exactly this program's.

    For a program that is `at_work` a newer one is right too: the next version's migrations come before its daemons, and
    only add to what this one uses.
    """
    if pending := _pending(await _applied(conn), newer_is_right=at_work):
        raise SchemaMismatch(
            f"the database's schema is older than this program ({pending[0].name} is missing): run `dealix migrate`"
        )


async def emitter_role_missing(conn: Connection) -> str | None:
    """The SQL that an administrator must run before `dealix_emitter` may emit; None where it may."""
    return None if await _one(conn, _ROLE_MAY_EMIT) else EMITTER_ROLE_SQL


def _pending(applied: list[tuple[int, str, str]], *, newer_is_right: bool = False) -> list[Migration]:
    ours = {m.version: m for m in known()}
    newest = max(ours)
    for version, name, sha256 in applied:
        migration = ours.pop(version, None)
        if migration is None and newer_is_right and version > newest:
            continue
        if migration is None:
            raise SchemaMismatch(
                f"the database's schema is newer than this program (it has {name}): start the newer version of dealix"
            )
        if migration.sha256 != sha256:
            raise SchemaMismatch(
                f"migration {name} was applied to this database in another form than this program's: "
                "use the version of dealix that applied it, or a database of its own"
            )
    return sorted(ours.values(), key=lambda m: m.version)


async def _applied(conn: Connection) -> list[tuple[int, str, str]]:
    if not await _one(conn, "SELECT to_regclass('dealix.schema_migrations') IS NOT NULL"):
        return []
    cursor = await conn.execute(_APPLIED)
    return [(int(version), str(name), str(sha256)) for version, name, sha256 in await cursor.fetchall()]


async def _one(conn: Connection, query: LiteralString) -> bool:
    row = await (await conn.execute(query)).fetchone()
    return row is not None and bool(row[0])


@asynccontextmanager
async def _locked(conn: Connection) -> AsyncGenerator[None]:
    """Hold the migrators' lock, waiting for it. A session's lock, since each file is a transaction."""
    try:
        await conn.execute("SELECT pg_advisory_lock(%(key)s)", {"key": _LOCK})
        yield
    finally:
        # Also after a cancel, which may have come after the lock was granted. On a lost connection it is free anyway.
        with trio.move_on_after(_UNLOCK_S, shield=True), suppress(Error):
            if not conn.closed:
                await conn.execute("SELECT pg_advisory_unlock(%(key)s)", {"key": _LOCK})
