"""Statements and WAL: how often the daemon asks Postgres, and how much it makes it write, for each delivery."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

import click
import msgspec
import psycopg

from bench.arrivals import SETTLE_S, Arrivals, Duty, check_once
from bench.figures import Figure, medians, publish
from bench.parts import START_S, Stage, stage, wait_until
from bench.seeding import DATA, customer_ids, duties, emit_at_once, migrated, register
from bench.serving import serving
from bench.settling import await_end

CUSTOMERS: Final = customer_ids("c", 100)
ROLE: Final = "daemon"
"""The daemon's own, so that what the bench asks is not counted."""
PAUSE_S: Final = 0.02
SHOWN: Final = 12
_COUNTED: Final = """
    SELECT coalesce(sum(s.calls), 0)::float8, coalesce(sum(s.wal_bytes), 0)::float8
    FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = %s
"""
_STATEMENTS: Final = """
    SELECT s.calls, s.rows, s.total_exec_time, s.wal_bytes::bigint, left(regexp_replace(s.query, '\\s+', ' ', 'g'), 70)
    FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = %s
    ORDER BY s.total_exec_time DESC LIMIT %s
"""


class Asked(msgspec.Struct, frozen=True):
    """One run, each for a delivery: of a drain, and of single events (`single`), one every 20 ms.

    `wal_bytes` is what the daemon's statements wrote, `all_wal_bytes` everything that was written meanwhile.
    """

    statements: float
    wal_bytes: float
    all_wal_bytes: float
    single_statements: float
    single_wal_bytes: float


@click.command()
@click.option("--events", default=20_000, show_default=True)
@click.option("--singles", default=500, show_default=True, help="Events that come one by one.")
@click.option("--runs", default=5, show_default=True)
def statements(events: int, singles: int, runs: int) -> None:
    """Count the daemon's statements and their WAL for each delivery, in a drain and one by one."""
    with stage(len(CUSTOMERS)) as on:
        _load_extension(on)
        migrated(on)
        register(on, CUSTOMERS)
        with on.sql() as db, serving(on, DEALIX_DATABASE__URL=f"{on.url}&user={ROLE}"):
            arrivals = Arrivals(on)
            _drained(db, arrivals, events // 4)
            results: list[Asked] = []
            for _ in range(runs):
                by_one = _one_by_one(db, arrivals, singles)
                results.append(Asked(*_drained(db, arrivals, events), *by_one))
            most = db.execute(_STATEMENTS, (ROLE, SHOWN)).fetchall()
    m = medians(results)
    figures = [
        Figure("statements for a delivery, drain", m.statements, ""),
        Figure("WAL for a delivery, the daemon's statements", m.wal_bytes, "bytes"),
        Figure("statements for a delivery, events one by one", m.single_statements, ""),
        Figure("WAL for a delivery, events one by one", m.single_wal_bytes, "bytes"),
    ]
    publish(f"{events:,} events at once and {singles} one by one, 1 KB, {runs} runs", results, figures, others=None)
    click.echo("  the last drain's statements:     calls      rows   µs a delivery   WAL a delivery")
    for calls, rows, total_ms, wal, query in most:
        click.echo(f"  {calls:37,} {rows:9,} {total_ms * 1e3 / events:15.1f} {wal / events:16.0f}   {query}")


def _load_extension(on: Stage) -> None:
    """The server has to start with it: end it, and have it start again."""
    with on.sql() as db:
        db.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        db.execute(f"CREATE ROLE {ROLE} LOGIN SUPERUSER")
    os.kill(on.postgres.pid, signal.SIGINT)
    wait_until(on.postgres.ensure_running, START_S)
    wait_until(lambda: _extended(on), START_S)


def _extended(on: Stage) -> bool:
    try:
        with on.sql() as db:
            db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    except psycopg.OperationalError:
        return False
    return True


def _drained(db: psycopg.Connection, arrivals: Arrivals, events: int) -> tuple[float, float, float]:
    """Statements, bytes of WAL by statements, and of all WAL for each delivery of one commit of many events."""
    db.execute("CHECKPOINT")
    with db.transaction():
        since = emit_at_once(db, events, CUSTOMERS)
        wanted = duties(db, since)
        before = _reset(db)
    count, wal_bytes, end = _settled(db, arrivals, wanted)
    return count / events, wal_bytes / events, (end - before) / events


def _one_by_one(db: psycopg.Connection, arrivals: Arrivals, events: int) -> tuple[float, float]:
    """Statements and bytes of WAL by statements for each delivery of events that come one by one."""
    _reset(db)
    (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
    for n in range(events):
        db.execute("SELECT dealix.emit(%s, 'deal.won', %s::text)", (CUSTOMERS[n % len(CUSTOMERS)], DATA))
        time.sleep(PAUSE_S)
    count, wal_bytes, _ = _settled(db, arrivals, duties(db, since))
    return count / events, wal_bytes / events


def _reset(db: psycopg.Connection) -> float:
    """Forget what was counted; returns where the log stands."""
    db.execute("SELECT pg_stat_statements_reset()")
    return _wal_bytes(db)


def _wal_bytes(db: psycopg.Connection) -> float:
    return float(db.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8").fetchall()[0][0])


def _settled(db: psycopg.Connection, arrivals: Arrivals, wanted: list[Duty]) -> tuple[float, float, float]:
    """Wait until all is delivered and recorded; raises Untrue.

    Returns the daemon's statements since the reset, their bytes of WAL, and where the log stands then.
    """
    await_end(db, arrivals, wanted)
    count, wal_bytes = db.execute(_COUNTED, (ROLE,)).fetchall()[0]
    end = _wal_bytes(db)
    time.sleep(SETTLE_S)
    check_once(arrivals.take(), wanted)
    return count, wal_bytes, end
