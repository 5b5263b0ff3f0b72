"""docs/emitting.md: every example is run, commits with its row, and is taken back with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, LiteralString

import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from daemon.actors.intake import RawEvent
from tests.support.emitting import Session, subscribe
from tests.support.markdown import DOCS, blocks, under

FILE: Final = "emitting.md"
RUN_S: Final = 30.0
UNLUCKY: Final = 13
"""The deal whose change the database refuses, and only at COMMIT."""
TABLE: Final = """
CREATE TABLE deals (id integer PRIMARY KEY, stage text NOT NULL);
INSERT INTO deals VALUES (7, 'open'), (13, 'open');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'unlucky'; END $$;
CREATE CONSTRAINT TRIGGER refused AFTER UPDATE ON deals DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.id = 13) EXECUTE FUNCTION refuse();
"""
BEFORE: Final = {
    "Django": """
import os
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["deals"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["PGDATABASE"],
            "USER": os.environ["PGUSER"],
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
        }
    },
)
django.setup()
"""
}
"""What a reader's program has before the example."""
AFTER: Final = {
    "psycopg": """
def call(deal_id):
    with psycopg.connect() as connection:
        win_deal(connection, deal_id)
""",
    "SQLAlchemy": """
from sqlalchemy import create_engine

engine = create_engine("postgresql+psycopg://")

def call(deal_id):
    with Session(engine) as session:
        win_deal(session, deal_id)
""",
    "Django": """
call = win_deal
""",
    "asyncpg": """
import asyncio

def call(deal_id):
    async def work():
        connection = await asyncpg.connect()
        try:
            await win_deal(connection, deal_id)
        finally:
            await connection.close()

    asyncio.run(work())
""",
}
"""How it calls the example: `call` with the id of a deal, on a connection of its own."""
CALLS: Final = """
call(7)
try:
    call(13)
except Exception as e:
    print("refused:", e)
"""
MODEL: Final = """
from django.db import models

class Deal(models.Model):
    stage = models.TextField()

    class Meta:
        db_table = "deals"
"""


@pytest.fixture
def db(migrated_database: str) -> Iterator[Session]:
    """A session beside the example's, in a database with a table of deals and one subscription."""
    with psycopg.connect(migrated_database, autocommit=True) as connection:
        connection.execute(TABLE)
        subscribe(connection, 1)
        yield connection


def emitted(db: Session) -> list[tuple[object, ...]]:
    return db.execute("SELECT type, data, matched FROM dealix.events ORDER BY created_at").fetchall()


def stages(db: Session) -> list[tuple[object, ...]]:
    return db.execute("SELECT id, stage FROM deals ORDER BY id").fetchall()


# ── Python ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("library", sorted(AFTER))
def test_an_example_commits_with_its_row_and_is_taken_back_with_it(
    library: str, db: Session, migrated_database: str, tmp_path: Path
) -> None:
    ((_, fence, code),) = under(FILE, library)
    assert fence == "python"
    (tmp_path / "deals").mkdir()
    (tmp_path / "deals" / "models.py").write_text(MODEL)
    (tmp_path / "deals" / "__init__.py").touch()
    (tmp_path / "example.py").write_text(BEFORE.get(library, "") + code + AFTER[library] + CALLS)
    place = conninfo_to_dict(migrated_database)
    surroundings = {f"PG{key}": str(place[name]) for key, name in _LIBPQ.items()}
    ran = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env={**os.environ, **surroundings},
        capture_output=True, check=False, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("refused: ")
    assert "unlucky" in ran.stdout
    assert stages(db) == [(7, "won"), (UNLUCKY, "open")]
    assert emitted(db) == [("deal.won", '{"deal_id": 7}', 1)]
    assert db.execute("SELECT count(*) FROM dealix.outbox").fetchone() == (1,)


_LIBPQ: Final = {"HOST": "host", "PORT": "port", "USER": "user", "DATABASE": "dbname"}


def test_every_python_example_of_the_document_is_run() -> None:
    assert sorted(block.heading for block in blocks(FILE) if block.fence == "python") == sorted(AFTER)


# ── SQL ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(db: Session, heading: str) -> None:
    for block in under(FILE, heading):
        db.execute(block.code.encode())


def test_the_transaction_at_the_top_changes_the_row_and_emits(db: Session) -> None:
    run(db, "Emitting events")
    assert stages(db)[0] == (7, "won")
    assert emitted(db) == [("deal.won", '{"deal_id": 7}', 1)]


def test_an_id_of_ones_own_makes_one_event(db: Session) -> None:
    run(db, "The same event once")
    assert emitted(db) == [("deal.won", '{"deal_id": 7}', 1)]
    assert db.execute("SELECT id FROM dealix.events").fetchone() == ("deal-7-won",)


def test_a_query_emits_what_it_finds_and_the_trigger_what_changes(db: Session) -> None:
    db.execute("UPDATE deals SET stage = 'stale' WHERE id = 7")
    run(db, "Many at once, and triggers")
    assert emitted(db) == [("deal.lost", '{"deal_id" : 7}', 1)]
    db.execute("UPDATE deals SET stage = 'stale' WHERE id = 7")  # no change, no event
    db.execute("UPDATE deals SET stage = 'lost' WHERE id = 7")
    assert emitted(db)[1:] == [("deal.stage_changed", '{"deal_id" : 7, "stage" : "lost"}', 1)]


def test_what_is_emitted_after_a_traceparent_was_set_keeps_it(db: Session) -> None:
    run(db, "Traces")
    assert emitted(db) == [("deal.won", '{"deal_id": 7}', 1)]
    ((_, _, code),) = under(FILE, "Traces")
    kept = db.execute("SELECT traceparent FROM dealix.events").fetchone()
    assert kept is not None
    assert f"'{kept[0]}'" in code


def test_the_raw_notify_is_one_that_a_daemon_understands(db: Session) -> None:
    ((_, _, code),) = under(FILE, "Other ways in")
    db.execute("LISTEN dealix_emit")
    db.execute(code.encode())
    (heard,) = db.notifies(timeout=5, stop_after=1)
    event = msgspec.json.decode(heard.payload, type=RawEvent)
    assert (event.customer_id, event.event_type, bytes(event.payload)) == ("acme", "deal.won", b'{"deal_id": 7}')


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────

EMIT: Final = "SELECT dealix.emit('acme', 'deal.won', '{}', event_id => 'a')"
DROP_PARTITIONS: Final = """
DO $$ DECLARE part regclass; BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'dealix.events'::regclass LOOP
        EXECUTE 'DROP TABLE ' || part;
    END LOOP;
END $$
"""
REFUSALS: Final[dict[str, tuple[LiteralString, LiteralString]]] = {
    "22023": ("SELECT", "SELECT dealix.emit('acme', 'no.such_type', '{}')"),
    "22P02": ("SELECT", "SELECT dealix.emit('acme', 'deal.won', '{')"),
    "23505": (EMIT, "SELECT dealix.emit('acme', 'deal.won', '{\"n\": 1}', event_id => 'a')"),
    "42501": ("CREATE ROLE stranger_to_events; SET ROLE stranger_to_events", EMIT),
    "55000": (DROP_PARTITIONS, EMIT),
}
"""By SQLSTATE: what leads to it, and the statement that is refused."""


@pytest.mark.parametrize("state", sorted(REFUSALS))
def test_a_refusal_has_the_state_that_the_document_tells(state: str, db: Session) -> None:
    before, statement = REFUSALS[state]
    with db.transaction(force_rollback=True):  # a role belongs to the whole server
        db.execute(before)
        with pytest.raises(psycopg.Error) as refused, db.transaction():
            db.execute(statement)
        assert refused.value.sqlstate == state


def test_every_state_that_the_document_tells_is_tried() -> None:
    assert set(re.findall(r"^\| (\w{5}) \|", (DOCS / FILE).read_text(), re.MULTILINE)) == set(REFUSALS)
