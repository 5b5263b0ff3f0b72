"""Who may call dealix.emit, what else they may do (nothing), and what their session can do to it (nothing)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final, LiteralString

import psycopg
import pytest
from psycopg import sql

from tests.support.emitting import Open, Session, emit, subscribe


@pytest.fixture
def emitter(db: Session, open_session: Open) -> Iterator[Session]:
    """A session of an application's role, whose only right is to be a member of dealix_emitter."""
    yield from _as_role(db, open_session(), "IN ROLE dealix_emitter")


@pytest.fixture
def stranger(db: Session, open_session: Open) -> Iterator[Session]:
    """A session of a role that was granted nothing: PUBLIC's rights."""
    yield from _as_role(db, open_session(), "")


def _as_role(admin: Session, session: Session, options: LiteralString) -> Iterator[Session]:
    role = sql.Identifier(f"app_{secrets.token_hex(6)}")
    admin.execute(sql.SQL("CREATE ROLE {} " + options).format(role))
    admin.execute(sql.SQL("GRANT CREATE, TEMPORARY ON DATABASE {} TO {}").format(_database(admin), role))
    session.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(role))
    yield session
    session.close()
    admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
    admin.execute(sql.SQL("DROP ROLE {}").format(role))


def _database(admin: Session) -> sql.Identifier:
    return sql.Identifier(admin.info.dbname)


def test_an_emitter_may_emit_in_every_form(db: Session, emitter: Session) -> None:
    subscribe(db, 1)
    assert emit(emitter, event_id="own") == ("own", 1)
    assert emit(emitter, event_id="own") == ("own", 1)
    for cast in ("text", "json", "jsonb"):
        call = sql.SQL("SELECT matched FROM dealix.emit('acme', 'deal.won', '{}'::{})").format(
            sql.SQL("{}"), sql.SQL(cast)
        )
        assert emitter.execute(call).fetchone() == (1,)


def test_an_emitter_may_touch_no_table(db: Session, emitter: Session) -> None:
    cursor = db.execute("""
        SELECT relname FROM pg_class
        WHERE relnamespace = 'dealix'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
    """)
    tables = [str(name) for (name,) in cursor.fetchall()]
    assert {"events", "subscriptions", "outbox", "api_keys", "schema_migrations"} <= set(tables)
    for table in tables:
        name = sql.Identifier("dealix", table)
        for statement in ("SELECT FROM {}", "INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                emitter.execute(sql.SQL(statement).format(name))


EMIT: Final = {f"emit(text,text,{kind},text,boolean)" for kind in ("text", "json", "jsonb")}


def test_an_emitter_may_execute_no_other_function(db: Session, emitter: Session) -> None:
    cursor = db.execute("""
        SELECT p.proname || '(' || array_to_string(p.proargtypes::regtype[], ',') || ')', p.oid::integer
        FROM pg_proc p
        WHERE p.pronamespace = 'dealix'::regnamespace
    """)
    functions = {str(name): oid for name, oid in cursor.fetchall()}
    assert set(functions) > EMIT
    allowed = {
        name
        for name, oid in functions.items()
        if emitter.execute("SELECT has_function_privilege(%(oid)s::oid, 'EXECUTE')", {"oid": oid}).fetchone() == (True,)
    }
    assert allowed == EMIT
    for call in (
        "dealix.make_partition('events', '2030-01-01')",
        "dealix.emit_raw('{}', '{}', '{}', '{}')",
        "dealix.emit_batch('{}', '{}', '{}', '{}')",
        "dealix.check_payload('{}')",
        "dealix.shard_of('acme')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            emitter.execute(b"SELECT " + call.encode())


def test_an_emitter_may_not_make_anything_in_the_schema(emitter: Session) -> None:
    for statement in (
        "CREATE TABLE dealix.mine ()",
        "CREATE FUNCTION dealix.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            emitter.execute(statement.encode())


@pytest.mark.threat("N117")
def test_everybody_else_may_not_emit_and_nothing_is_left_of_the_attempt(db: Session, stranger: Session) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema dealix"):
        emit(stranger)
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (0,)


SHADOWS: Final = (
    "CREATE SCHEMA evil",
    "CREATE TABLE evil.loot (who text)",
    """CREATE FUNCTION evil.took(what text) RETURNS text LANGUAGE plpgsql AS
       'BEGIN INSERT INTO evil.loot VALUES (current_user); RETURN what; END'""",
    "CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS $$ SELECT length(evil.took($1)) $$",
    "CREATE FUNCTION evil.quote_literal(text) RETURNS text LANGUAGE sql AS $$ SELECT evil.took($1) $$",
    "CREATE FUNCTION evil.json_typeof(json) RETURNS text LANGUAGE sql AS $$ SELECT evil.took('object') $$",
    "CREATE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT evil.took('')::bytea $$",
    "CREATE FUNCTION evil.cardinality(text[]) RETURNS int LANGUAGE sql AS $$ SELECT length(evil.took('x')) $$",
    "CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE sql AS $$ SELECT evil.took($1) $$",
    "CREATE FUNCTION evil.differ(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.took($1) = '' $$",
    "CREATE OPERATOR evil.!~ (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.differ)",
    "CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.differ)",
    "CREATE TEMP TABLE event_types (type text, description text)",
    "CREATE TEMP TABLE subscriptions (id text, customer_id text, enabled boolean, events text[])",
    "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT evil.took('')::bytea $$",
    "INSERT INTO event_types VALUES ('made.up', '')",
    "SET search_path = evil, pg_temp, pg_catalog",
)


@pytest.mark.threat("N112")
def test_a_search_path_full_of_traps_changes_nothing_and_runs_no_code_of_the_emitters(
    db: Session, emitter: Session
) -> None:
    subscribe(db, 1)
    for statement in SHADOWS:
        emitter.execute(statement.encode())
    assert emitter.execute("SELECT octet_length('abc'), evil.took('')").fetchone() is not None  # the trap does snap
    emitter.execute("DELETE FROM evil.loot")
    assert emit(emitter, event_id="own") == ("own", 1)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not a known event type"):
        emit(emitter, event_type="made.up")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="customer_id"):
        emit(emitter, customer_id="a b")
    assert db.execute("SELECT count(*) FROM evil.loot").fetchone() == (0,)


@pytest.mark.parametrize(
    "setting",
    [
        "standard_conforming_strings = off",
        "transform_null_equals = on",
        "DateStyle = 'German, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "bytea_output = 'escape'",
        "plpgsql.variable_conflict = 'error'",
        "check_function_bodies = off",
        "client_encoding = 'LATIN1'",
        "role = 'dealix_emitter'",
    ],
)
def test_settings_of_the_emitters_session_do_not_change_what_is_stored_or_refused(
    db: Session, emitter: Session, setting: LiteralString
) -> None:
    subscribe(db, 1)
    emitter.execute(b"SET " + setting.encode())
    payload = '{"a": "\\\\u0000 \\ud83d\\ude00 \\" \\n", "n": 1.0}'
    assert emit(emitter, payload, "own") == ("own", 1)
    assert emit(emitter, payload, "own") == ("own", 1)
    assert db.execute("SELECT data FROM dealix.events").fetchall() == [(payload,)]
    for text, message in (
        ("\\u0000", "u0000"),
        ("\\ud800", "lone surrogate"),
        ("\\ud83d\\\\\\ude00", "lone surrogate"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            emit(emitter, f'{{"a": "{text}"}}')


def test_triggers_of_the_emitter_cannot_be_put_on_what_emit_writes(emitter: Session) -> None:
    emitter.execute("CREATE FUNCTION pg_temp.t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        emitter.execute("CREATE TRIGGER t BEFORE INSERT ON dealix.events FOR EACH ROW EXECUTE FUNCTION pg_temp.t()")
