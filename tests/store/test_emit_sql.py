"""dealix.emit as an emitter calls it: its forms, its ids, what it matches, what it refuses and in which words."""

from __future__ import annotations

import re
import time
from typing import LiteralString

import psycopg
import pytest

from daemon.store.shards import shard_of
from tests.support.emitting import Open, Session, emit, refusal, subscribe


@pytest.mark.parametrize(
    ("call", "stored"),
    [
        ("""dealix.emit('acme', 'deal.won', '{"id": 1.0}')""", '{"id": 1.0}'),
        ("""dealix.emit('acme', 'deal.won', '{ "b":1.0,"a":2 }'::text)""", '{ "b":1.0,"a":2 }'),
        ("""dealix.emit('acme', 'deal.won', '{ "b":1.0,"a":2 }'::varchar)""", '{ "b":1.0,"a":2 }'),
        ("""dealix.emit('acme', 'deal.won', '{ "b":1.0,"a":2 }'::json)""", '{ "b":1.0,"a":2 }'),
        ("""dealix.emit('acme', 'deal.won', '{ "b":1.0,"a":2, "b":3 }'::jsonb)""", '{"a": 2, "b": 3}'),
        ("""dealix.emit('acme', 'deal.won', json_build_object('a', 1))""", '{"a" : 1}'),
        ("""dealix.emit('acme', 'deal.won', to_jsonb(t)) FROM (VALUES (1, 'x')) AS t (n, s)""", '{"n": 1, "s": "x"}'),
        ("""dealix.emit('acme', 'deal.won', '{}', event_id => NULL, notify => true)""", "{}"),
        (
            """dealix.emit(customer_id => 'acme', payload => '{}'::json, event_type => 'deal.won', notify => false)""",
            "{}",
        ),
        ("""dealix.emit('acme', 'deal.won', '{}'::jsonb, 'own', false)""", "{}"),
        ("""dealix.emit('acme', 'deal.won', '{}', notify => NULL)""", "{}"),
    ],
)
def test_every_form_of_the_call_stores_the_text_that_was_given(db: Session, call: LiteralString, stored: str) -> None:
    row = db.execute("SELECT " + call).fetchone()
    assert row is not None
    assert db.execute("SELECT data FROM dealix.events").fetchall() == [(stored,)]


def test_the_call_answers_with_event_id_and_matched_by_these_names(db: Session) -> None:
    cursor = db.execute("SELECT * FROM dealix.emit('acme', 'deal.won', '{\"deal_id\": 7}'::jsonb)")
    assert [column.name for column in cursor.description or ()] == ["event_id", "matched"]


def test_a_generated_id_begins_with_the_millisecond_of_its_event(db: Session) -> None:
    before_ms = time.time_ns() // 1_000_000
    made_id, _ = emit(db)
    after_ms = time.time_ns() // 1_000_000
    assert re.fullmatch(r"evt_[0-9a-f]{24}", made_id)
    assert before_ms <= int(made_id[4:16], 16) <= after_ms
    cursor = db.execute("""
        SELECT floor(extract(epoch FROM created_at) * 1000)::bigint, c.relname,
               to_char(created_at AT TIME ZONE 'UTC', '"events_"YYYYMMDD')
        FROM dealix.events e
        JOIN pg_class c ON c.oid = e.tableoid
    """)
    ((created_ms, partition, expected),) = cursor.fetchall()
    assert (created_ms, partition) == (int(made_id[4:16], 16), expected)


def test_an_event_matches_the_enabled_subscriptions_of_its_customer_that_want_its_type(db: Session) -> None:
    wanted = {subscribe(db, 1), subscribe(db, 2, events=("deal.won", "deal.lost"))}
    subscribe(db, 3, events=("deal.lost",))
    subscribe(db, 4, enabled=False)
    subscribe(db, 5, customer="acm")
    made_id, matched = emit(db)
    cursor = db.execute("SELECT shard, event_id, event_type, data_bytes, subscription_ids FROM dealix.outbox")
    ((shard, event_id, event_type, data_bytes, ids),) = cursor.fetchall()
    assert (matched, shard, event_id, event_type, data_bytes) == (2, shard_of("acme"), made_id, "deal.won", 2)
    assert isinstance(ids, list)
    assert set(ids) == wanted
    assert db.execute("SELECT matched FROM dealix.events").fetchall() == [(2,)]


@pytest.mark.threat("N118")
def test_an_event_that_matches_nothing_is_kept_and_leaves_no_work(db: Session) -> None:
    subscribe(db, 1, enabled=False)
    assert emit(db)[1] == 0
    assert db.execute("SELECT (SELECT count(*) FROM dealix.events), count(*) FROM dealix.outbox").fetchone() == (1, 0)


# ── own ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.threat("N101")
def test_the_same_own_id_again_is_the_same_event_and_keeps_its_first_matched(db: Session) -> None:
    subscribe(db, 1)
    assert emit(db, '{"a": 1}', "order-7") == ("order-7", 1)
    subscribe(db, 2)
    assert emit(db, '{"a": 1}', "order-7") == ("order-7", 1)
    cursor = db.execute("SELECT * FROM dealix.emit('acme', 'deal.won', '{\"a\": 1}'::jsonb, event_id => 'order-7')")
    assert cursor.fetchall() == [("order-7", 1)]
    assert db.execute("SELECT (SELECT count(*) FROM dealix.events), count(*) FROM dealix.outbox").fetchone() == (1, 1)


@pytest.mark.parametrize("other", [{"payload": '{"a":1}'}, {"event_type": "deal.lost"}])
@pytest.mark.threat("N101")
def test_the_same_own_id_with_another_payload_or_type_is_23505(db: Session, other: dict[str, str]) -> None:
    emit(db, '{"a": 1}', "order-7")
    with pytest.raises(
        psycopg.errors.UniqueViolation, match="event_id 'order-7': already emitted with another type or"
    ):
        emit(db, **{"payload": '{"a": 1}', "event_id": "order-7"} | other)
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (1,)


@pytest.mark.threat("N101")
def test_the_same_own_id_of_another_customer_is_another_event(db: Session) -> None:
    emit(db, '{"a": 1}', "order-7")
    emit(db, '{"a": 2}', "order-7", customer_id="bolt")
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (2,)


def test_an_id_that_emit_made_may_be_handed_back_and_is_the_same_event(db: Session) -> None:
    subscribe(db, 1)
    made_id, _ = emit(db, '{"a": 1}')
    assert emit(db, '{"a": 1}', made_id) == (made_id, 1)
    for other in ({"payload": '{"a": 2}'}, {"event_type": "deal.lost"}):
        with pytest.raises(psycopg.errors.UniqueViolation, match="already emitted with another type or payload"):
            emit(db, **{"payload": '{"a": 1}', "event_id": made_id} | other)
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (1,)
    assert emit(db, '{"a": 2}', made_id, customer_id="bolt") == (made_id, 0)


def test_an_own_id_that_only_looks_generated_is_an_own_id(db: Session) -> None:
    looks = "evt_" + "f" * 24
    assert emit(db, '{"a": 1}', looks) == emit(db, '{"a": 1}', looks)
    with pytest.raises(psycopg.errors.UniqueViolation):
        emit(db, '{"a": 2}', looks)
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (1,)


@pytest.mark.parametrize("own", ["a", "x" * 128, "A-Z_a-z:0-9", "evt_short", "--", "whk_" + "0" * 24])
def test_own_ids_of_every_allowed_shape_are_accepted(db: Session, own: str) -> None:
    assert emit(db, event_id=own)[0] == own


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"customer_id": None}, "customer_id is NULL: must be 1 to 64 characters of A-Z a-z 0-9 _ . : -"),
        ({"customer_id": ""}, "customer_id '': must be 1 to 64"),
        ({"customer_id": "a" * 65}, "customer_id 'aaaa"),
        ({"customer_id": "acme\n"}, "customer_id 'acme\n': must be"),
        ({"customer_id": "ácme"}, "customer_id 'ácme': must be"),
        ({"customer_id": "'; DROP TABLE dealix.events; --"}, "customer_id '''; DROP TABLE dealix.events; --': must be"),
        ({"event_type": None}, "event_type is NULL: not a known event type"),
        ({"event_type": ""}, "event_type '': not a known event type"),
        ({"event_type": "Deal.Won"}, "event_type 'Deal.Won': not a known event type"),
        ({"event_type": "deal.%"}, "event_type 'deal.%': not a known event type"),
        ({"payload": None}, "payload is NULL: must be a JSON object"),
        ({"payload": "[]"}, "payload is a JSON array: must be an object"),
        ({"payload": "null"}, "payload is a JSON null: must be an object"),
        ({"payload": '"{}"'}, "payload is a JSON string: must be an object"),
        ({"payload": " 7"}, "payload is a JSON number: must be an object"),
        ({"event_id": ""}, "event_id '': must be 1 to 128 characters of A-Z a-z 0-9 _ : -"),
        ({"event_id": "x" * 129}, "event_id 'xxx"),
        ({"event_id": "a.b"}, "event_id 'a.b': must be"),
        ({"event_id": "a\n"}, "event_id 'a\n': must be"),
    ],
)
def test_a_bad_value_is_22023_with_a_message_that_says_which(
    db: Session, fields: dict[str, str | None], message: str
) -> None:
    sqlstate, text = refusal(db, **fields)  # pyright: ignore[reportArgumentType] payload None is one of the cases
    assert sqlstate == "22023"
    assert text.startswith(message)


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sql_and_python_agree_on_the_shard_of_every_customer(db: Session) -> None:
    customers = [f"customer-{n}" for n in range(500)] + ["a", "A", "é", "x" * 64, "..", "-:_"]
    cursor = db.execute(
        "SELECT c, dealix.shard_of(c) FROM unnest(%(customers)s::text[]) AS t (c)", {"customers": customers}
    )
    assert {row[0]: row[1] for row in cursor.fetchall()} == {customer: shard_of(customer) for customer in customers}


def test_of_raw_emits_the_refused_ones_are_told_and_the_others_stand(db: Session) -> None:
    cursor = db.execute("""
        SELECT ordinal, reason
        FROM dealix.emit_raw(ARRAY['acme', 'a b', 'acme', NULL, 'acme', 'acme'],
                             ARRAY['deal.won', 'deal.won', 'deal.won', 'deal.won', 'deal.won', 'deal.won'],
                             ARRAY['{}', '{}', '{"a":', '{}', '[]', '{"n": 2}'],
                             ARRAY[NULL, NULL, NULL, NULL, NULL, 'own'])
    """)
    refused = {int(str(ordinal)): str(reason) for ordinal, reason in cursor.fetchall()}
    assert sorted(refused) == [2, 3, 4, 5]
    assert "must be an object" in refused[5]
    assert db.execute("SELECT data FROM dealix.events ORDER BY data").fetchall() == [('{"n": 2}',), ("{}",)]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_emit_works_at_every_isolation_level(open_session: Open, level: LiteralString) -> None:
    db = open_session()
    subscribe(db, 1)
    db.execute(b"BEGIN ISOLATION LEVEL " + level.encode())
    assert emit(db, event_id="own") == ("own", 1)
    assert emit(db, event_id="own") == ("own", 1)
    db.execute("COMMIT")
    assert open_session().execute("SELECT count(*) FROM dealix.outbox").fetchone() == (1,)


def test_a_read_only_transaction_is_told_that_it_is_one(db: Session) -> None:
    db.execute("BEGIN READ ONLY")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        emit(db)
