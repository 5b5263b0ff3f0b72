"""dealix.emit_batch: many at once are stored, answered and refused as dealix.emit does it one by one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
import pytest

from daemon.store.shards import BUSY_CLASS, OWN_CLASS, WAKE, shard_of
from tests.support.emitting import LOCKS, Open, Session, emit, subscribe, woken

BATCH: Final = """
    SELECT * FROM dealix.emit_batch(%(customers)b::text[], %(types)b::text[], %(payloads)b::text[], %(ids)b::text[])
"""
LISTENER: Final = "INSERT INTO dealix.listeners VALUES ('acme', 0, 0, now() + interval '1 hour')"
LOCK: Final = "SELECT pg_advisory_lock(%(kind)s, %(shard)s)"


@dataclass(frozen=True)
class Item:
    customer: str | None = "acme"
    type: str | None = "deal.won"
    payload: str | None = "{}"
    event_id: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Of a batch: what was answered for each, or SQLSTATE, message and place of the refusal; and what was stored."""

    answers: list[tuple[str | None, int]]
    refusal: tuple[str | None, str | None, int] | None
    rows: Counter[object]


def emit_batch(db: Session, items: list[Item]) -> list[tuple[str, int]]:
    rows = db.execute(
        BATCH,
        {
            "customers": [item.customer for item in items],
            "types": [item.type for item in items],
            "payloads": [item.payload for item in items],
            "ids": [item.event_id for item in items],
        },
    ).fetchall()
    assert [row[0] for row in rows] == list(range(1, len(items) + 1))
    return [(str(row[1]), int(str(row[2]))) for row in rows]


def together(db: Session, items: list[Item]) -> Outcome:
    try:
        with db.transaction():
            answers = emit_batch(db, items)
    except psycopg.Error as e:
        refusal = (e.sqlstate, e.diag.message_primary, int(e.diag.datatype_name or 0))
        return Outcome([], refusal, stored(db))
    return Outcome(shown(items, answers), None, stored(db))


def one_by_one(db: Session, items: list[Item]) -> Outcome:
    answers: list[tuple[str, int]] = []
    try:
        with db.transaction():
            for item in items:
                fields = {"customer_id": item.customer, "event_type": item.type, "payload": item.payload}
                answers.append(emit(db, event_id=item.event_id, **fields))  # type: ignore[arg-type]
    except psycopg.Error as e:
        return Outcome([], (e.sqlstate, e.diag.message_primary, len(answers) + 1), stored(db))
    return Outcome(shown(items, answers), None, stored(db))


def shown(items: list[Item], answers: list[tuple[str, int]]) -> list[tuple[str | None, int]]:
    """Answers without the ids that were made, which are never the same."""
    return [(item.event_id and made_id, matched) for item, (made_id, matched) in zip(items, answers, strict=True)]


def stored(db: Session) -> Counter[object]:
    """What is in the tables, without ids that were made and without times."""
    return Counter(
        db.execute("""
            SELECT 'event', e.customer_id, e.type, e.data, e.matched, e.id !~ '^evt_', o.shard, o.data_bytes,
                   o.subscription_ids::text, o.event_type, h.event_type, k.digest, k.matched, k.event_day = o.event_day
            FROM dealix.events e
            LEFT JOIN dealix.outbox o ON (o.customer_id, o.event_id) = (e.customer_id, e.id)
            LEFT JOIN dealix.heard h ON (h.customer_id, h.event_id) = (e.customer_id, e.id)
            LEFT JOIN dealix.event_keys k ON (k.customer_id, k.event_id) = (e.customer_id, e.id)
        """).fetchall()
    )


def emptied(db: Session) -> None:
    for table in ("events", "event_keys", "outbox", "heard", "listeners"):  # TRUNCATE takes 40 ms for the partitions
        db.execute(f"DELETE FROM dealix.{table}".encode())


CUSTOMERS: Final = ("acme", "acme", "bolt", "nobody")
TYPES: Final = ("deal.won", "deal.lost", "payment.received")
PAYLOADS: Final = (
    "{}",
    '{"n": 1}',
    '{"b":1.0, "a":"\\u0623"}',
    '{"a": ' + "[" * 60 + "]" * 60 + ', "b": "' + "[" * 60 + '"}',
)
WRONG: Final = (
    Item(customer="a b"), Item(customer=None), Item(customer=""), Item(type="nope"), Item(type=None),
    Item(payload=None), Item(payload="[]"), Item(payload="nul"), Item(payload='{"a"'), Item(payload="[" * 20_000),
    Item(payload='{"a": "\\u0000"}'), Item(payload='{"a": "\\ud800"}'), Item(payload='{"a": "' + "x" * 262_144 + '"}'),
    Item(payload='{"a": ' + "[" * 101 + "]" * 101 + "}"), Item(event_id="a b"), Item(event_id=""),
    Item(event_id="x" * 129),
)  # fmt: skip


def an_item(chance: random.Random, *, own: float) -> Item:
    if chance.random() >= own:
        return Item(chance.choice(CUSTOMERS), chance.choice(TYPES), chance.choice(PAYLOADS))
    differs = chance.random() < 0.05  # from the others with this id
    payload = '{"differs": true}' if differs else "{}"
    return Item(chance.choice(CUSTOMERS), "deal.won", payload, f"own-{chance.randrange(5)}")


def a_batch(chance: random.Random, *, wrong: float) -> list[Item]:
    own = chance.choice((0.0, 0.5, 1.0))
    items = [an_item(chance, own=own) for _ in range(chance.randrange(8))]
    if chance.random() < wrong:
        items.insert(chance.randrange(len(items) + 1), chance.choice(WRONG))
    return items


def test_batches_of_all_sorts_come_to_what_emits_one_by_one_come_to(db: Session) -> None:
    subscribe(db, 1)
    subscribe(db, 2, events=("deal.won", "deal.lost"))
    subscribe(db, 3, enabled=False)
    subscribe(db, 4, customer="bolt", events=("payment.received",))
    chance = random.Random(16)
    refused = again = 0
    for _ in range(200):
        before, items = a_batch(chance, wrong=0), a_batch(chance, wrong=0.2)
        outcomes: list[Outcome] = []
        for way in (together, one_by_one):
            emptied(db)
            db.execute(LISTENER)
            one_by_one(db, before)
            outcomes.append(way(db, items))
        assert outcomes[0] == outcomes[1], items
        refused += outcomes[0].refusal is not None
        ids = {(item.customer, item.event_id) for item in items if item.event_id}
        again += bool(ids & {(item.customer, item.event_id) for item in before})
    assert min(refused, again, 200 - refused) > 10  # all sorts were there


@pytest.mark.parametrize("wrong", WRONG)
def test_each_refusal_has_emits_own_words_and_the_place(db: Session, wrong: Item) -> None:
    emptied(db)
    items = [Item(), Item(event_id="own"), wrong, Item(payload="[]")]
    outcome = together(db, items)
    assert outcome == one_by_one(db, items)
    assert outcome.refusal is not None
    assert outcome.refusal[2] == 3
    assert not outcome.rows


def test_events_of_a_batch_have_one_time_and_ids_of_their_own_in_order(db: Session) -> None:
    emptied(db)
    subscribe(db, 1)
    made = [made_id for made_id, _ in emit_batch(db, [Item(payload=f'{{"n": {n}}}') for n in range(1000)])]
    assert len(set(made)) == 1000
    assert [row[0] for row in db.execute("SELECT event_id FROM dealix.outbox ORDER BY id").fetchall()] == made
    ((at, count),) = db.execute("SELECT min(created_at), count(DISTINCT created_at) FROM dealix.events").fetchall()
    assert isinstance(at, datetime)
    assert count == 1
    assert {int(made_id[4:16], 16) for made_id in made} == {int(at.timestamp() * 1000)}


def test_owners_are_woken_once_for_each_shard_but_not_where_they_are_busy(open_session: Open) -> None:
    db, owner = open_session(), open_session()
    emptied(db)
    for n, customer in enumerate(("acme", "bolt", "cora", "dune")):
        subscribe(db, n, customer)
    shards = {name: shard_of(name) for name in ("acme", "bolt", "cora", "dune")}
    assert len(set(shards.values())) == 4
    for name in ("acme", "bolt", "cora"):
        owner.execute(LOCK, {"kind": OWN_CLASS, "shard": shards[name]})
    owner.execute(LOCK, {"kind": BUSY_CLASS, "shard": shards["cora"]})
    owner.execute(f"LISTEN {WAKE}")
    emit_batch(db, [Item(name) for name in ("acme", "bolt", "acme", "cora", "dune", "nobody") for _ in range(3)])
    assert sorted(woken(owner)) == sorted(str(shards[name]) for name in ("acme", "bolt"))
    assert db.execute(LOCKS).fetchone() == (0,)


def test_ids_of_emits_own_making_that_are_handed_back_are_the_same_event(db: Session) -> None:
    emptied(db)
    made_id, _ = emit(db, '{"n": 1}')
    assert emit_batch(db, [Item(payload='{"n": 1}', event_id=made_id), Item()])[0] == (made_id, 0)
    with pytest.raises(psycopg.errors.UniqueViolation, match="already emitted with another"):
        emit_batch(db, [Item(), Item(payload='{"n": 2}', event_id=made_id)])
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (2,)


def test_a_batch_of_usual_events_does_not_go_one_by_one(db: Session) -> None:
    """Else it would be right, and ten times slower: so emit, which it would fall back upon, is taken away."""
    emptied(db)
    items = [Item(payload='{"name": "\\u0623\\u0628"}'), Item("bolt", event_id="own-1"), Item()]
    with db.transaction(force_rollback=True):
        db.execute("DROP FUNCTION dealix.emit(text, text, text, text, boolean)")
        assert len(emit_batch(db, items)) == 3
        with pytest.raises(psycopg.errors.UndefinedFunction):
            emit_batch(db, [Item(payload="[]")])
