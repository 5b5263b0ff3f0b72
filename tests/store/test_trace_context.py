"""The traceparent of an event: how it comes into the database, where it stays, and what it never breaks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.errors import EmitRejected
from daemon.ids import CustomerId
from daemon.policy.trace_context import parse
from daemon.store import migrate as migrations
from daemon.store import outbox
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection, connect
from daemon.store.emit import NewEvent, emit_batch
from daemon.store.emit import emit as emit_one
from daemon.store.migrate import known, migrate
from daemon.store.partitions import make_ahead
from tests.support.emitting import Session, emit, subscribe
from tests.support.postgres import fresh_database
from tests.support.traceparents import BAD, GIVEN, GOOD, new

ACME: Final = CustomerId("acme")


def stored(db: Session) -> list[object]:
    return [row[0] for row in db.execute("SELECT traceparent FROM dealix.events ORDER BY id").fetchall()]


def emit_with(db: Session, traceparent: str) -> None:
    with db.transaction():
        db.execute("SELECT set_config('dealix.traceparent', %s, true)", (traceparent,))
        emit(db)


# ── in SQL ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_keeps_the_traceparent_of_its_transaction_and_the_next_one_has_none(db: Session) -> None:
    subscribe(db, 1)
    emit(db)
    emit_with(db, GIVEN)
    emit(db)  # the setting is there now, and empty
    assert stored(db) == [None, GIVEN, None]
    assert db.execute("SELECT traceparent FROM dealix.outbox ORDER BY id").fetchall() == [(None,), (GIVEN,), (None,)]


@pytest.mark.parametrize("type_", ["text", "json", "jsonb"])
def test_every_form_of_the_call_takes_it(db: Session, type_: str) -> None:
    with db.transaction():
        db.execute(f"SET LOCAL dealix.traceparent = '{GIVEN}'".encode())
        db.execute(f"SELECT * FROM dealix.emit('acme', 'deal.won', '{{}}'::{type_})".encode())
    assert stored(db) == [GIVEN]


def test_it_is_taken_from_a_trigger_and_undone_with_a_savepoint(db: Session) -> None:
    db.execute("CREATE TEMPORARY TABLE deals (id integer)")
    db.execute("""
        CREATE OR REPLACE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM dealix.emit('acme', 'deal.created', '{}');
            RETURN NULL;
        END $$
    """)
    db.execute("CREATE TRIGGER tell AFTER INSERT ON deals FOR EACH ROW EXECUTE FUNCTION pg_temp.tell()")
    inner = new()
    with db.transaction():
        db.execute(f"SET LOCAL dealix.traceparent = '{GIVEN}'".encode())
        with db.transaction(force_rollback=True):
            db.execute(f"SET LOCAL dealix.traceparent = '{inner}'".encode())
        db.execute("INSERT INTO deals VALUES (7)")
    assert stored(db) == [GIVEN]


def test_a_role_that_may_only_emit_may_say_what_an_event_belongs_to(db: Session) -> None:
    with db.transaction():
        db.execute("SET LOCAL ROLE dealix_emitter")
        db.execute(f"SET LOCAL dealix.traceparent = '{GIVEN}'".encode())
        db.execute("SELECT * FROM dealix.emit('acme', 'deal.won', '{}')")
    assert stored(db) == [GIVEN]


@pytest.mark.parametrize(("header", "understood"), GOOD.items())
def test_a_valid_one_is_stored_as_version_00(db: Session, header: str, understood: str) -> None:
    emit_with(db, header)
    assert stored(db) == [understood]


@pytest.mark.threat("N64")
@pytest.mark.parametrize("header", BAD)
def test_a_malformed_one_is_ignored_and_the_event_goes_out_all_the_same(db: Session, header: str) -> None:
    subscribe(db, 1)
    emit_with(db, header)
    assert stored(db) == [None]
    assert db.execute("SELECT count(*) FROM dealix.outbox").fetchone() == (1,)


def damaged(place: int, text: str) -> str:
    return GIVEN[:place] + text + GIVEN[place + 1 :]


NEARLY: Final = st.builds(
    damaged,
    st.integers(min_value=0, max_value=len(GIVEN)),
    st.text(alphabet="0123456789abcdefgG- \n", max_size=2),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])  # rows are told apart by id
@given(header=NEARLY)
def test_the_database_and_the_daemon_judge_alike(db: Session, header: str) -> None:
    with db.transaction(force_rollback=True):
        db.execute("SELECT set_config('dealix.traceparent', %s, true)", (header,))
        made_id, _ = emit(db)
        ((kept,),) = db.execute("SELECT traceparent FROM dealix.events WHERE id = %s", (made_id,)).fetchall()
    understood = parse(header)
    assert (kept is None) == (understood is None)
    assert kept is None or parse(str(kept)) == understood


def test_the_same_event_once_more_keeps_what_it_first_came_with(db: Session) -> None:
    with db.transaction():
        db.execute(f"SET LOCAL dealix.traceparent = '{GIVEN}'".encode())
        emit(db, event_id="own")
    with db.transaction():
        db.execute(f"SET LOCAL dealix.traceparent = '{new()}'".encode())
        emit(db, event_id="own")
    assert stored(db) == [GIVEN]


# ── from the daemon's side ───────────────────────────────────────────────────────────────────────────────────────────


async def traceparents(conn: Connection) -> list[str | None]:
    cursor = await conn.execute("SELECT traceparent FROM dealix.events ORDER BY data")
    return [row[0] for row in await cursor.fetchall()]


async def test_one_statement_sets_it_and_emits(conn: Connection) -> None:
    batch = [NewEvent("acme", "deal.won", f'{{"n": {n}}}') for n in range(1, 4)]
    with trio.fail_after(10):
        for _ in range(7):  # also once it is prepared
            one, all_ = new(), new()
            await conn.execute("TRUNCATE dealix.events")
            await emit_one(conn, ACME, "deal.won", '{"n": 0}', traceparent=one)
            emitted = await emit_batch(conn, batch, traceparent=all_)
            await emit_one(conn, ACME, "deal.won", '{"n": 4}')
            await emit_batch(conn, [NewEvent("acme", "deal.won", '{"n": 5}')])
            assert len(emitted) == 3
            assert await traceparents(conn) == [one, all_, all_, all_, None, None]


async def test_a_refusal_is_told_as_without_it(conn: Connection) -> None:
    bad = [NewEvent("acme", "deal.won", "{}"), NewEvent("zeta", "nope", "{}")]
    with trio.fail_after(10):
        with pytest.raises(EmitRejected, match="event_type 'nope'") as refused:
            await emit_batch(conn, bad, traceparent=GIVEN)
        assert refused.value.index == 1
        with pytest.raises(EmitRejected, match="payload is a JSON array"):
            await emit_one(conn, ACME, "deal.won", "[]", traceparent=GIVEN)


SUBSCRIBE: Final = """
    WITH made AS (
        INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
        SELECT 'whk_' || lpad(n::text, 24, '0'), 'acme', 'https://example.com/', '' FROM generate_series(1, 2) AS n
        RETURNING id
    )
    INSERT INTO dealix.subscription_health (subscription_id) SELECT id FROM made
"""


@pytest.mark.parametrize("way", [outbox.fan_out, outbox.fan_out_fairly])
async def test_fan_out_names_the_events_that_it_took_if_asked_to_held_ones_too(
    conn: Connection, way: Callable[..., Awaitable[Claimed]]
) -> None:
    shards, none = range(64), Room({}, 0, 60.0)
    with trio.fail_after(10):
        await conn.execute(SUBSCRIBE)
        with_one = await emit_one(conn, ACME, "deal.won", "{}", traceparent=GIVEN)
        without = await emit_one(conn, ACME, "deal.won", "{}")
        claimed = await way(conn, shards, none, name_events=True)
        assert (claimed.claims, len(claimed.held), claimed.seen) == ([], 2, 2)
        assert {(one.id, one.customer_id, one.traceparent, one.matched) for one in claimed.fanned_out} == {
            (with_one.event_id, "acme", GIVEN, 2),
            (without.event_id, "acme", None, 2),
        }
        await emit_one(conn, ACME, "deal.won", "{}", traceparent=GIVEN)
        assert (await way(conn, shards, Room({}, 9, 60.0))).fanned_out == []


# ── the migration ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_there_before_has_no_traceparent_and_asks_for_none(
    embedded_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = known()
    with trio.fail_after(30):
        async with await connect(fresh_database(embedded_server), timeout_s=5, application_name="test") as conn:
            monkeypatch.setattr(migrations, "known", lambda: tuple(m for m in every if m.version < 13))
            await migrate(conn)
            await make_ahead(conn, days=2)
            await conn.execute(SUBSCRIBE)
            await conn.execute("SELECT dealix.emit('acme', 'deal.won', '{}', 'old')")
            monkeypatch.setattr(migrations, "known", lambda: every)
            assert "0013_trace_context" in await migrate(conn)
            await make_ahead(conn, days=3)
            await emit_one(conn, ACME, "deal.won", "{}", "new", traceparent=GIVEN)
            cursor = await conn.execute("SELECT id, traceparent FROM dealix.events ORDER BY id")
            assert await cursor.fetchall() == [("new", GIVEN), ("old", None)]
            cursor = await conn.execute("SELECT DISTINCT propagate_trace_context FROM dealix.subscriptions")
            assert await cursor.fetchall() == [(False,)]
            claimed = await outbox.fan_out(conn, range(64), Room({}, 9, 60.0), name_events=True)
            assert {(one.id, one.traceparent) for one in claimed.fanned_out} == {("new", GIVEN), ("old", None)}


async def test_it_gives_way_to_an_open_emitter_and_is_done_after_it(
    embedded_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = known()
    url = fresh_database(embedded_server)
    with trio.fail_after(40):
        async with await connect(url, timeout_s=5, application_name="test") as conn:
            monkeypatch.setattr(migrations, "known", lambda: tuple(m for m in every if m.version < 13))
            await migrate(conn)
            await make_ahead(conn, days=2)
            monkeypatch.setattr(migrations, "known", lambda: every)
            with psycopg.connect(url) as emitter:
                emitter.execute("SELECT dealix.emit('acme', 'deal.won', '{}')")
                waited_s = await _emits_beside(url, conn)
                emitter.commit()
            assert waited_s < 2.5
            assert "0013_trace_context" in await migrate(conn)


async def _emits_beside(url: str, conn: Connection) -> float:
    """The longest that an emit had to wait while the migration was tried in vain."""
    longest_s = 0.0
    done = trio.Event()

    async def try_it() -> None:
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await migrate(conn)
        done.set()

    async with trio.open_nursery() as nursery, await connect(url, timeout_s=5, application_name="beside") as beside:
        nursery.start_soon(try_it)
        while not done.is_set():
            began = time.monotonic()
            await beside.execute("SELECT dealix.emit('acme', 'deal.won', '{}')")
            longest_s = max(longest_s, time.monotonic() - began)
            await trio.sleep(0.01)
    return longest_s
