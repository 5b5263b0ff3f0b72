"""Emitting from Python: results in the order they were asked for, refusals as EmitRejected with nothing leaked."""

from __future__ import annotations

from typing import Final

import pytest
import trio

from daemon.errors import EmitRejected
from daemon.ids import CustomerId
from daemon.store.connection import Connection, connect
from daemon.store.emit import NewEvent, emit, emit_batch

LIMIT_S: Final = 15.0
ACME: Final = CustomerId("acme")


async def count_events(conn: Connection) -> int:
    (row,) = await (await conn.execute("SELECT count(*) FROM dealix.events")).fetchall()
    return row[0]


async def test_an_emitted_event_has_an_id_of_its_own_and_its_text_as_it_came(conn: Connection) -> None:
    text = '{ "b": 1.0, "a": 1e400, "b": "\\u00e9\\/é😀" }'
    with trio.fail_after(LIMIT_S):
        emitted = await emit(conn, ACME, "deal.won", text)
        cursor = await conn.execute("SELECT id, data FROM dealix.events")
        assert await cursor.fetchall() == [(emitted.event_id, text)]
        assert emitted.matched == 0


async def test_the_same_own_id_is_the_same_event_and_another_payload_is_refused(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        first = await emit(conn, ACME, "deal.won", '{"n": 1}', "order-7")
        assert await emit(conn, ACME, "deal.won", '{"n": 1}', "order-7") == first
        with pytest.raises(EmitRejected, match="'order-7': already emitted") as refused:
            await emit(conn, ACME, "deal.won", '{"n": 2}', "order-7")
        assert refused.value.sqlstate == "23505"
        assert await count_events(conn) == 1


@pytest.mark.parametrize(
    ("event", "sqlstate", "message"),
    [
        (NewEvent("a b", "deal.won", "{}"), "22023", "customer_id 'a b': must be"),
        (NewEvent("acme", "deal.lots", "{}"), "22023", "event_type 'deal.lots': not a known event type"),
        (NewEvent("acme", "deal.won", "[1]"), "22023", "payload is a JSON array: must be an object"),
        (NewEvent("acme", "deal.won", '{"canary'), "22P02", "payload is not valid JSON"),
        (NewEvent("acme", "deal.won", "{}", "a b"), "22023", "event_id 'a b': must be"),
        (NewEvent("acme", "deal.won", '{"a": "\0"}'), "22023", "payload contains a NUL"),
        (NewEvent("acme", "deal.won", '{"a": "\ud800"}'), "22023", "payload contains .* lone surrogate"),
        (NewEvent("acme\0", "deal.won", "{}"), "22023", "customer_id contains a NUL"),
        (NewEvent("acme", "deal\udfff", "{}"), "22023", "event_type contains"),
        (NewEvent("acme", "deal.won", "{}", "\udfff"), "22023", "event_id contains"),
    ],
)
async def test_a_refusal_says_what_is_wrong_and_quotes_no_payload(
    conn: Connection, event: NewEvent, sqlstate: str, message: str
) -> None:
    good = NewEvent("acme", "deal.won", "{}")
    with trio.fail_after(LIMIT_S):
        with pytest.raises(EmitRejected, match=message) as alone:
            await emit(conn, CustomerId(event.customer_id), event.event_type, event.payload, event.event_id)
        with pytest.raises(EmitRejected, match=message) as batched:
            await emit_batch(conn, [good, good, event, good])
        assert (alone.value.sqlstate, alone.value.index) == (sqlstate, None)
        assert (batched.value.sqlstate, batched.value.index) == (sqlstate, 2)
        assert "canary" not in str(alone.value) + str(batched.value)
        assert "SELECT" not in str(alone.value) + str(batched.value)
        assert await count_events(conn) == 0


async def test_a_batch_answers_in_its_own_order_whatever_ids_it_carries(conn: Connection) -> None:
    batch = [NewEvent("acme", "deal.won", f'{{"n": {n}}}', None if n % 3 else f"own-{9 - n}") for n in range(10)]
    batch += [NewEvent("bolt", "deal.won", "{}", "own-1"), batch[0]]  # the first one again: the same event
    with trio.fail_after(LIMIT_S):
        emitted = await emit_batch(conn, batch)
        cursor = await conn.execute("SELECT id, customer_id, data FROM dealix.events")
        stored = {(row[1], row[0]): row[2] for row in await cursor.fetchall()}
    assert [stored[event.customer_id, e.event_id] for event, e in zip(batch, emitted, strict=True)] == [
        event.payload for event in batch
    ]
    assert emitted[11] == emitted[0]
    assert len(stored) == 11


async def test_an_empty_batch_emits_nothing(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        assert await emit_batch(conn, []) == []


async def test_the_index_of_a_refused_event_is_the_callers_and_not_that_of_the_sorted_batch(conn: Connection) -> None:
    batch = [
        NewEvent("zeta", "deal.won", "{}"),
        NewEvent("acme", "deal.won", "{}", "b"),
        NewEvent("acme", "nope", "{}", "a"),
    ]
    with trio.fail_after(LIMIT_S), pytest.raises(EmitRejected) as refused:
        await emit_batch(conn, batch)
    assert refused.value.index == 2


async def test_batches_with_the_same_own_ids_in_opposite_orders_do_not_lock_each_other_out(
    migrated_database: str,
) -> None:
    ids = [f"id-{n}" for n in range(200)]

    async def send(order: list[str]) -> None:
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            for _ in range(5):
                await emit_batch(conn, [NewEvent("acme", "deal.won", "{}", event_id) for event_id in order])

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, ids)
            nursery.start_soon(send, ids[::-1])


async def test_a_thousand_events_go_in_one_statement(conn: Connection) -> None:
    batch = [NewEvent("acme", "deal.won", '{"text": "' + "x" * 900 + '"}') for _ in range(1000)]
    with trio.fail_after(LIMIT_S):
        assert len({e.event_id for e in await emit_batch(conn, batch)}) == 1000
        assert await count_events(conn) == 1000


async def test_an_emit_inside_a_transaction_that_rolls_back_leaves_nothing(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        async with conn.transaction(force_rollback=True):
            await emit(conn, ACME, "deal.won", "{}")
            await emit_batch(conn, [NewEvent("acme", "deal.won", "{}", "own")])
        assert await count_events(conn) == 0
