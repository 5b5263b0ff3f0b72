"""Every SQL constant of the store is one that both servers understand, and the hot ones walk their indexes."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

import daemon.store
from daemon.store import enveloping, outbox, queue, record, shards
from daemon.store.sessions import HOT

_STATEMENT: Final = re.compile(r"\s*(--.*\n\s*)*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
_PARAMETER: Final = re.compile(r"%\((\w+)\)[sb]")
_FRAGMENTS: Final = {
    "deliveries._COLUMNS", "deliveries._SIFT", "recoveries._COLUMNS", "recovery_walk._FAILED", "recovery_walk._EMITTED",
    "recovery_walk._FIND", "recovery_walk._COUNT",
}  # fmt: skip
"""Constants that are the beginning of others."""
_TODAY: Final = sql.Identifier("dealix", f"events_{datetime.now(UTC):%Y%m%d}")


def text_of(value: object) -> str | None:
    """The text of a constant that is a statement which can be prepared; None for anything else."""
    if isinstance(value, sql.SQL):
        value = value.format(partition=_TODAY, parent=_TODAY).as_string()
    return value if isinstance(value, str) and _STATEMENT.match(value) else None


def constants() -> Iterator[tuple[str, str]]:
    """(module.NAME, text) of all of them."""
    for module in pkgutil.iter_modules(daemon.store.__path__):
        for name, value in vars(importlib.import_module(f"daemon.store.{module.name}")).items():
            full_name = f"{module.name}.{name}"
            if name.isupper() and (text := text_of(value)) is not None and full_name not in _FRAGMENTS:
                yield full_name, text


def numbered(text: str) -> str:
    """With `$1` for each named parameter, as the driver sends it."""
    names: dict[str, str] = {}
    numbered_text = _PARAMETER.sub(lambda m: names.setdefault(m[1], f"${len(names) + 1}"), text)
    return numbered_text.replace("%%", "%") if names else numbered_text


@pytest.fixture
def session(any_database: str) -> Iterator[psycopg.Connection]:
    options = " ".join(f"-c {name}={value}" for name, value in HOT.items())
    with psycopg.connect(any_database, autocommit=True, options=options) as connection:
        yield connection


def prepare(session: psycopg.Connection, name: str, text: str) -> None:
    session.execute(f'PREPARE "{name}" AS {numbered(text)}'.encode())


def test_there_are_statements_to_look_at() -> None:
    names = {name for name, _ in constants()}
    assert {"outbox._FAN_OUT", "queue._CLAIM_DUE", "enveloping._EVENTS", "record._RECORD", "shards._CENSUS"} < names
    assert len(names) > 50


def test_every_statement_is_understood(session: psycopg.Connection) -> None:
    faults: dict[str, str] = {}
    for name, text in constants():
        try:
            prepare(session, name, text)
        except psycopg.Error as e:
            faults[name] = str(e)
    assert faults == {}


# ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────────

HOT_STATEMENTS: Final[dict[str, set[str]]] = {
    "outbox._FAN_OUT": {"outbox_pkey", "subscriptions_pkey", "subscription_health_pkey"},
    "outbox._FAN_OUT_FAIRLY": {"outbox_customers", "subscriptions_pkey", "subscription_health_pkey"},
    "queue._CLAIM_DUE": {"deliveries_due", "subscriptions_pkey", "subscription_health_pkey"},
    "queue._CLAIM_HELD": {"deliveries_held", "subscriptions_pkey"},
    "queue._STRIKE": {"roster_pkey", "deliveries_held"},
    "queue._WAKING": {"subscriptions_pkey", "subscription_health_pkey"},
    "queue._PURGE": {"deliveries_held", "deliveries_pkey"},
    "queue._GIVE_BACK": {"deliveries_pkey"},
    "queue._EXTEND": {"deliveries_pkey"},
    "queue._CONFIGS": {"subscriptions_pkey", "subscription_health_pkey"},
    "enveloping._EVENTS": set(),
    "record._RECORD": {"deliveries_pkey", "subscription_health_pkey", "subscriptions_pkey"},
    "shards._CHANGED": {"subscriptions_pkey"},
    "shards._RECOVER": {"deliveries_due"},
}
"""And the indexes that the comments over them name; those of partitions have names of their own."""

BIG: Final = re.compile(r"outbox|deliveries|subscriptions|subscription_health|roster|(events|attempts)_\d+")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def plan_of(session: psycopg.Connection, name: str) -> list[dict[str, Any]]:
    """The nodes of the plan that is kept and used again and again, whatever the parameters."""
    (row,) = session.execute(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = %s", (name,)
    ).fetchall()
    nulls = ", ".join(["NULL"] * row[0])
    (row,) = session.execute(f'EXPLAIN (FORMAT JSON) EXECUTE "{name}" ({nulls})'.encode()).fetchall()
    return list(nodes(row[0][0]["Plan"]))


FILL: Final = """
    INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
    SELECT 'whk_' || lpad(to_hex(n), 24, '0'), 'c' || n, 'https://example.com/', '\\x00'
    FROM generate_series(1, 2000) AS n;
    INSERT INTO dealix.subscription_health (subscription_id) SELECT id FROM dealix.subscriptions;
    INSERT INTO dealix.roster (subscription_id, shard) SELECT id, 1 FROM dealix.subscriptions LIMIT 500;
    INSERT INTO dealix.outbox (shard, event_id, event_day, event_type, data_bytes, subscription_ids)
    SELECT n % 64, 'e' || n, current_date, 'deal.won', 2, ARRAY['whk_' || lpad(to_hex(n % 2000 + 1), 24, '0')]
    FROM generate_series(1, 5000) AS n;
    INSERT INTO dealix.deliveries
        (event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due)
    SELECT 'e' || n, current_date, 'deal.won', 'whk_' || lpad(to_hex(n % 2000 + 1), 24, '0'), n % 64, 1, 0, n % 3 = 0,
           CASE WHEN n % 3 < 2 THEN now() + n % 100 * interval '1 s' END
    FROM generate_series(1, 9000) AS n;
    ANALYZE dealix.subscriptions, dealix.subscription_health, dealix.roster, dealix.outbox, dealix.deliveries
"""


@pytest.mark.parametrize("is_full", [False, True], ids=["empty", "full"])
def test_no_hot_statement_reads_a_table_from_end_to_end(session: psycopg.Connection, *, is_full: bool) -> None:
    for statement in FILL.split(";") if is_full else []:
        session.execute(statement.encode())
    session.execute("SET plan_cache_mode = force_generic_plan")
    statements = dict(constants())
    for name, indexes in HOT_STATEMENTS.items():
        prepare(session, name, statements[name])
        plan = plan_of(session, name)
        seen = {str(node["Relation Name"]) for node in plan if node["Node Type"] == "Seq Scan"}
        assert [table for table in seen if BIG.fullmatch(table)] == [], f"{name} reads all of {seen}"
        used = {str(node["Index Name"]) for node in plan if "Index Name" in node}
        partial = [
            node for node in plan if node["Node Type"] == "Index Scan" and "customer_id = " in node.get("Filter", "")
        ]
        assert partial == [], f"{name} uses an index without its first column: {partial}"
        assert indexes <= used, f"{name} does not use {indexes - used}: {json.dumps(plan, indent=1)[:4000]}"


def test_the_hot_statements_are_all_of_those_that_the_delivery_path_has() -> None:
    hot = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in (enveloping, outbox, queue, record, shards)
        for name, value in vars(module).items()
        if name.isupper() and text_of(value) is not None
    }
    rare = {
        "queue._DISABLE",
        "queue._EXPIRE",
        "queue._GENERATION",
        "shards._CENSUS",
        "shards._END_LOCKLESS",
        "shards._END_SILENT",
    }
    assert set(HOT_STATEMENTS) == hot - rare
